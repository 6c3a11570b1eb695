"""The sandbox's OAuth is OAuth: a client library that knows nothing of Feishu gets a token and refreshes it."""

from urllib.parse import urljoin

import httpx2
import pytest
from authlib.common.security import generate_token
from authlib.integrations.httpx_client import AsyncOAuth2Client

from feishu_mail_async import FeishuMailClient
from feishu_mail_async.oauth import SCOPES
from feishu_mail_async.sandbox import Sandbox

BACK = "http://127.0.0.1:9/callback"


@pytest.mark.parametrize("method", ["client_secret_post", "client_secret_basic"])
async def test_a_library_logs_in_with_pkce_and_refreshes(method: str) -> None:
    async with Sandbox(users=("alice",), latency=0, auto_approve=True) as sandbox:
        token_url = f"{sandbox.base_url}/open-apis/authen/v2/oauth/token"
        async with AsyncOAuth2Client(
            sandbox.client_id,
            sandbox.client_secret,
            scope=" ".join(SCOPES),
            redirect_uri=BACK,
            code_challenge_method="S256",
            token_endpoint_auth_method=method,
            trust_env=False,
        ) as library:
            verifier = generate_token(48)
            page, state = library.create_authorization_url(
                f"{sandbox.base_url}/open-apis/authen/v1/authorize", code_verifier=verifier
            )
            async with httpx2.AsyncClient(trust_env=False) as browser:
                answer = await browser.get(page)
            assert answer.is_redirect
            back = urljoin(page, answer.headers["location"])
            assert back.startswith(BACK)
            first = dict(
                await library.fetch_token(
                    token_url, authorization_response=back, state=state, code_verifier=verifier
                )
            )
            second = dict(await library.refresh_token(token_url, refresh_token=first["refresh_token"]))
        assert set(first["scope"].split()) == set(SCOPES)
        assert second["access_token"] != first["access_token"]
        assert second["refresh_token"] != first["refresh_token"]
        async with FeishuMailClient(second["access_token"], base_url=sandbox.base_url) as client:
            assert (await client.send_draft(sandbox.add_draft("alice"))).message_id
