"""The bot in examples/: it rehearses, and sends once whatever is delivered to it."""

import asyncio
import base64
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import test_utils, web
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.cli import PATIENCE, environment
from tests.helpers.examples import EXAMPLES, settings
from tests.helpers.lark import lark_python

LARK: Final = {"PYTHONWARNINGS": "ignore"}
"""What lark-oapi's own imports warn of is its business."""
VERIFICATION_TOKEN: Final = "the app's verification token"
ENCRYPT_KEY: Final = "the app's encrypt key"


async def start_bot(env: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        lark_python(),
        EXAMPLES / "bot.py",
        *arguments,
        env=env | LARK,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def comes_about(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not happened():  # noqa: ASYNC110 - what happens is in another process
            await asyncio.sleep(0.02)


async def test_the_bot_rehearses() -> None:
    bot = await start_bot(environment(), "--sandbox")
    async with asyncio.timeout(PATIENCE):
        out, err = await bot.communicate()
    assert bot.returncode == 0, err.decode()
    assert out.decode().count('200 {"msg":"success"}') == 3
    assert "bot: event event-1 came once more" in err.decode()
    assert sorted(re.findall("reply to (.*)", out.decode())) == [
        "message-1: invitation: sent.",
        "message-2: invitation: sent.",
    ]
    assert "calls 1, mails 1, sent twice 0." in out.decode()


@dataclass
class Platform:
    """The platform as the bot sees it: it delivers events, takes replies, and has the sandbox for the mail."""

    sandbox: Sandbox
    session: aiohttp.ClientSession
    bot_address: str = ""
    replies: list[tuple[str, str]] = field(default_factory=list)

    def application(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.post("/open-apis/auth/v3/tenant_access_token/internal", self._token),
                web.post("/open-apis/im/v1/messages/{message_id}/reply", self._reply),
                web.post("/open-apis/mail/{rest:.*}", self._mail),
            ]
        )
        return app

    async def _token(self, _: web.Request) -> web.Response:
        return web.json_response({"code": 0, "msg": "ok", "tenant_access_token": "t-bot", "expire": 7200})

    async def _reply(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer t-bot"
        body = await request.json()
        assert body["msg_type"] == "text"
        self.replies.append((request.match_info["message_id"], json.loads(body["content"])["text"]))
        return web.json_response({"code": 0, "msg": "success", "data": {}})

    async def _mail(self, request: web.Request) -> web.Response:
        headers = {"Authorization": request.headers["Authorization"]}
        async with self.session.post(self.sandbox.base_url + request.raw_path, headers=headers) as response:
            return web.Response(
                status=response.status, body=await response.read(), content_type=response.content_type
            )

    async def replied(self, number: int) -> dict[str, str]:
        """What the bot has answered, by message, as soon as it has answered this many."""
        await comes_about(lambda: len(self.replies) >= number)
        assert len(self.replies) == number, self.replies
        return dict(self.replies)

    async def deliver(self, event: dict[str, Any], *, key: str = ENCRYPT_KEY) -> tuple[int, dict[str, Any]]:
        """Deliver an event as the platform does: encrypted, and signed."""
        body = json.dumps({"encrypt": encrypt(json.dumps(event), key)}).encode()
        stamp, nonce = "1700000000", "a nonce"
        signature = hashlib.sha256((stamp + nonce + key).encode() + body).hexdigest()
        headers = {
            "X-Lark-Request-Timestamp": stamp,
            "X-Lark-Request-Nonce": nonce,
            "X-Lark-Signature": signature,
        }
        async with self.session.post(self.bot_address, data=body, headers=headers) as response:
            return response.status, await response.json()

    async def write(
        self, number: int, text: str, *, event: str = "", sender: str = "ou_alice"
    ) -> tuple[int, dict[str, Any]]:
        """Deliver that somebody writes a message to the bot."""
        return await self.deliver(
            {
                "schema": "2.0",
                "header": {
                    "event_id": event or f"event-{number}",
                    "token": VERIFICATION_TOKEN,
                    "event_type": "im.message.receive_v1",
                },
                "event": {
                    "sender": {"sender_id": {"open_id": sender}},
                    "message": {
                        "message_id": f"om_{number}",
                        "message_type": "text",
                        "content": json.dumps({"text": text}),
                    },
                },
            }
        )


def encrypt(text: str, key: str) -> str:
    """AES-256-CBC under the hash of the key, with the vector in front, as the platform's documents have it."""
    padder = padding.PKCS7(128).padder()
    padded = padder.update(text.encode()) + padder.finalize()
    vector = os.urandom(16)
    cipher = Cipher(algorithms.AES(hashlib.sha256(key.encode()).digest()), modes.CBC(vector)).encryptor()
    return base64.b64encode(vector + cipher.update(padded) + cipher.finalize()).decode()


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with Sandbox(users=("ou_alice",), latency=0.1) as sandbox, aiohttp.ClientSession() as session:
        yield Platform(sandbox, session)


async def test_the_bot_sends_once_whatever_is_delivered(platform: Platform) -> None:
    sandbox = platform.sandbox
    first, second, last = sandbox.add_drafts("ou_alice", 3)
    async with test_utils.TestServer(platform.application()) as front:
        env = settings(
            sandbox,
            str(front.make_url("")),
            FEISHU_APP_SECRET="secret",
            FEISHU_VERIFICATION_TOKEN=VERIFICATION_TOKEN,
            FEISHU_ENCRYPT_KEY=ENCRYPT_KEY,
        )
        bot = await start_bot(env, "--port", "0")
        try:
            platform.bot_address = await announced(bot)
            challenge = {"type": "url_verification", "challenge": "echo this", "token": VERIFICATION_TOKEN}
            assert await platform.deliver(challenge) == (200, {"challenge": "echo this"})

            # What anybody could send is refused.
            status, _ = await platform.deliver(challenge, key="another key")
            assert status == 500

            # One event, delivered twice at the same time and once more: one call, one reply.
            for status, _ in await asyncio.gather(*[platform.write(1, f"/send {first}") for _ in range(2)]):
                assert status == 200
            assert (await platform.replied(1))["om_1"] == f"{first}: sent."
            assert (await platform.write(1, f"/send {first}"))[0] == 200

            # The same order in messages of its own, before and after: more calls perhaps, and still one mail.
            await asyncio.gather(
                platform.write(2, f"@_user_1 /send {first}"),
                platform.write(3, f"/send {second}"),
                platform.write(4, f"  /send {second} "),
            )
            replies = await platform.replied(4)
            assert replies["om_2"] == f"{first}: sent before."
            assert replies["om_3"] == replies["om_4"] == f"{second}: sent."

            # What is no order, and who has given no token.
            await platform.write(5, "hello")
            await platform.write(6, f"/send {last}", sender="ou_stranger")
            assert "authorize" in (await platform.replied(5))["om_6"]
            await platform.write(7, "/send nothing")
            assert "1234050" in (await platform.replied(6))["om_7"]

            # SIGTERM while a call is in flight: it is finished, and the person hears of it.
            sandbox.script(last, Fault.delay(0, 1))
            await platform.write(8, f"/send {last}")
            await comes_about(lambda: bool(sandbox.ledger.calls(last)))
            bot.terminate()
            async with asyncio.timeout(PATIENCE):
                out, err = await bot.communicate()
            assert bot.returncode == 0, err.decode()
            assert (await platform.replied(7))["om_8"] == f"{last}: sent."
        finally:
            if bot.returncode is None:
                bot.kill()
                await bot.communicate()
    assert sandbox.ledger.sent == {first: 1, second: 1, last: 1}
    assert len(sandbox.ledger.calls(first)) == 2, "one for the event, one for the other message"
    assert len(sandbox.ledger.calls(second)) == 1
    assert sandbox.token("ou_alice") not in out.decode() + err.decode()


async def announced(bot: asyncio.subprocess.Process) -> str:
    """The address that the bot says it serves at."""
    assert bot.stdout is not None
    async with asyncio.timeout(PATIENCE):
        while line := (await bot.stdout.readline()).decode():
            if found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", line):
                return found[0]
    raise AssertionError("the bot has ended")
