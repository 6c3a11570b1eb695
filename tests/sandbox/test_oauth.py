"""The token endpoint and the page on which a user agrees."""

import asyncio
import base64
import hashlib
from urllib.parse import parse_qs, quote, urlsplit

import aiohttp
import pytest

from feishu_mail_async import codes
from feishu_mail_async.sandbox import Fault
from tests.helpers.callers import TOKEN_PATH, Answer, Caller, number, running
from tests.helpers.clock import now

pytestmark = pytest.mark.looptime
AUTHORIZE_PATH = "/open-apis/authen/v1/authorize"
CALLBACK = "http://127.0.0.1:9/callback"


SCOPE = "mail:user_mailbox.message:send offline_access"
VERIFIER = "v" * 50
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


async def authorize(caller: Caller, **asked: str) -> Answer:
    query = {
        "client_id": caller.sandbox.client_id,
        "response_type": "code",
        "redirect_uri": CALLBACK,
        "scope": SCOPE,
        "state": "s&=",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
    } | asked
    text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items() if value)
    return await caller.call("GET", f"{AUTHORIZE_PATH}?{text}", user=None)


def returned(answer: Answer) -> dict[str, str]:
    assert answer.status == 302
    parts = urlsplit(answer.headers["Location"])
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == CALLBACK
    return {name: values[0] for name, values in parse_qs(parts.query).items()}


async def new_code(caller: Caller, **asked: str) -> str:
    found = returned(await authorize(caller, decision="allow", **asked))
    assert found["state"] == "s&="
    return found["code"]


def error(answer: Answer) -> str:
    rows = {row.number: row.name for row in codes.OAUTH.values()}
    assert answer.json["error"]
    return rows[answer.code]


async def test_a_login_with_pkce_brings_tokens_that_work() -> None:
    async with running(expires_in=100) as (sandbox, caller):
        code = await new_code(caller, user="bob")
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        assert error(await caller.token(**form, code_verifier="wrong")) == "PkceFailed"
        assert error(await caller.token(**(form | {"redirect_uri": "x:"}))) == "RedirectMismatch"
        answer = await caller.token(**form, code_verifier=VERIFIER)
        pair = answer.json
        assert (pair["code"], pair["token_type"], pair["expires_in"]) == (0, "Bearer", 100)
        assert (pair["scope"], pair["refresh_token_expires_in"]) == (SCOPE, 604_800)
        assert error(await caller.token(**form, code_verifier=VERIFIER)) == "AuthorizationCodeUsed"
        headers = {"Authorization": f"Bearer {pair['access_token']}"}
        assert (await caller.send(sandbox.add_draft("bob"), user=None, headers=headers)).code == 0
        assert (await caller.mail("GET", "drafts", user=None, headers=headers)).code == number("UserScopeMissing")


async def test_a_code_ends_after_five_minutes() -> None:
    async with running(auto_approve=True) as (_, caller):
        code = returned(await authorize(caller))["code"]
        form = {"grant_type": "authorization_code", "redirect_uri": CALLBACK, "code_verifier": VERIFIER}
        await asyncio.sleep(300.0)
        assert error(await caller.token(**form, code=code)) == "AuthorizationCodeExpired"
        assert error(await caller.token(**form, code="x")) == "AuthorizationCodeNotFound"


async def test_a_refresh_token_works_once_and_the_old_access_token_lives_on() -> None:
    async with running(expires_in=100) as (sandbox, caller):
        first = sandbox.issue_tokens("alice")
        form = {"grant_type": "refresh_token"}
        second = (await caller.token(**form, refresh_token=first["refresh_token"])).json
        assert second["refresh_token"] != first["refresh_token"]
        assert error(await caller.token(**form, refresh_token=first["refresh_token"])) == "RefreshTokenUsed"
        assert error(await caller.token(**form, refresh_token="x")) == "RefreshTokenMalformed"
        for pair in (first, second):
            headers = {"Authorization": f"Bearer {pair['access_token']}"}
            assert (await caller.send(sandbox.add_draft("alice"), user=None, headers=headers)).code == 0
        await asyncio.sleep(100.0)
        assert (await caller.send(sandbox.add_draft("alice"), user=None, headers=headers)).code == number(
            "TokenExpired"
        )
        sandbox.revoke("alice")
        revoked = await caller.token(**form, refresh_token=second["refresh_token"])
        assert error(revoked) == "RefreshTokenRevoked"
        assert sandbox.ledger.refreshes == {"alice": 1}


async def test_a_refresh_token_ends_and_needs_offline_access() -> None:
    async with running() as (sandbox, caller):
        old = sandbox.issue_tokens("alice")["refresh_token"]
        await asyncio.sleep(604_800.0)
        assert error(await caller.token(grant_type="refresh_token", refresh_token=old)) == "RefreshTokenExpired"
        assert "refresh_token" not in sandbox.issue_tokens("alice", scopes=["mail:user_mailbox.message:send"])


async def test_two_refreshes_at_once_lose_one() -> None:
    async with running() as (sandbox, caller):
        old = sandbox.issue_tokens("alice")["refresh_token"]
        found = await asyncio.gather(
            *[caller.token(grant_type="refresh_token", refresh_token=old) for _ in range(2)]
        )
        assert sorted(answer.status for answer in found) == [200, 400]


async def test_the_token_endpoint_takes_forms_and_basic_credentials() -> None:
    async with running() as (sandbox, caller):
        form = {"grant_type": "refresh_token", "scope": "mail:user_mailbox.message:send"}
        app = {"client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
        basic = aiohttp.encode_basic_auth(sandbox.client_id, sandbox.client_secret)
        for extra, headers in ((app, {}), ({}, {"Authorization": basic})):
            token = sandbox.issue_tokens("alice")["refresh_token"]
            data = form | extra | {"refresh_token": token}
            answer = await caller.call("POST", TOKEN_PATH, user=None, data=data, headers=headers)
            assert (answer.status, answer.json["scope"]) == (200, "mail:user_mailbox.message:send")


async def test_what_the_token_endpoint_refuses() -> None:
    async with running() as (_, caller):
        assert error(await caller.token(client_secret="wrong")) == "ClientSecretWrong"
        assert error(await caller.token(client_id="wrong")) == "ClientSecretWrong"
        assert (await caller.token(grant_type="password")).json["error"] == "unsupported_grant_type"
        for wrong in (b"[]", b"{", b"\xff"):
            headers = {"Content-Type": "application/json"}
            answer = await caller.call("POST", TOKEN_PATH, user=None, data=wrong, headers=headers)
            assert answer.json["error"] == "invalid_request"


async def test_the_token_endpoint_may_be_scripted() -> None:
    async with running() as (sandbox, caller):
        old = sandbox.issue_tokens("alice")["refresh_token"]
        form = {"grant_type": "refresh_token", "refresh_token": old}
        sandbox.script_token("Unavailable", Fault.gateway(), Fault.delay(5.0, 5.0), Fault.reset_after())
        assert ((answer := await caller.token(**form)).status, error(answer)) == (503, "Unavailable")
        assert (await caller.token(**form)).status == 502
        start = now()
        pair = (await caller.token(**form)).json
        assert now() - start == pytest.approx(10.0)
        # The login is lost with the answer.
        form["refresh_token"] = pair["refresh_token"]
        with pytest.raises(aiohttp.ClientOSError):
            await caller.token(**form)
        assert error(await caller.token(**form)) == "RefreshTokenUsed"


async def test_the_page_asks_and_a_user_may_deny() -> None:
    async with running() as (_, caller):
        page = await authorize(caller, state='"><script>')
        assert page.status == 200
        assert b"Allow as alice" in page.body
        assert b"Allow as bob" in page.body
        assert b"<script>" not in page.body
        assert returned(await authorize(caller, decision="deny")) == {"error": "access_denied", "state": "s&="}


@pytest.mark.parametrize(
    "wrong",
    [
        {"client_id": "x"},
        {"response_type": "token"},
        {"redirect_uri": ""},
        {"code_challenge_method": "plain"},
        {"decision": "perhaps"},
        {"scope": "everything"},
        {"user": "nobody"},
    ],
    ids=str,
)
async def test_what_the_page_refuses(wrong: dict[str, str]) -> None:
    async with running() as (_, caller):
        answer = await authorize(caller, **wrong)
        assert answer.status == 400
        assert next(iter(wrong)).encode() in answer.body
