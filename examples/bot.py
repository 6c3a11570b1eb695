"""A bot on the official SDK's event dispatcher: who writes "/send DRAFT_ID" to it has that draft of theirs sent.

    .venv/py3.11-lark/bin/python examples/bot.py --sandbox

shows it at work without an account: a made-up Feishu, and an event that is delivered twice. (lark-oapi is large,
so `make test` puts it into an environment of its own; in your project: pip install lark-oapi.) For the real thing
subscribe the app to im.message.receive_v1 with this bot's address as the request URL, and set

    FEISHU_USER_ACCESS_TOKEN           JSON, a token for each person by open_id: {"ou_…": "u-…", "ou_…": "u-…"}
    FEISHU_VERIFICATION_TOKEN          as the app's event settings have it
    FEISHU_ENCRYPT_KEY                 the same; with it the platform encrypts and signs its events
    FEISHU_APP_ID, FEISHU_APP_SECRET   with a secret the bot answers in the chat; without, on standard output

(settings.py tells of the other settings):

    python examples/bot.py --port 8080

The platform wants an answer within 3 seconds, or it delivers the event again, for some hours. A send may have to
wait longer for its turn. So the dispatcher, which is synchronous, only hands the order to the event loop, and the
sending happens there. An event that comes again is known by its event_id. That saves a second reply, and is not
what keeps the mail from going out twice: this memory ends with the process, and a person may type an order twice.
Then the client sends once all the same, or Feishu says that the draft was sent before.

On SIGTERM orders under way are finished, which takes up to a minute. One that a crash ends is not carried out; the
person gets no reply, and may type it again.
"""

import argparse
import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import lark_oapi as lark
from aiohttp import test_utils, web
from lark_oapi.api.im.v1 import P2ImMessageReceiveV1, ReplyMessageRequest, ReplyMessageRequestBody
from lark_oapi.core.model import RawRequest
from rehearsal import report, sandbox
from settings import base_url, open_client

from feishu_mail_async import FeishuMailClient, FeishuMailError, Priority, UnknownUser

COMMAND: Final = re.compile(r"(?:@\S+\s+)?/send\s+(\S+)\s*")
"""What the bot obeys; in a group a mention of the bot comes first."""
DEADLINE: Final = 60.0
REMEMBERED: Final = 8 * 3600.0
"""Seconds: a little longer than the platform goes on delivering an event."""

REHEARSAL_TOKEN: Final = "rehearsal"  # noqa: S105 - it opens nothing

Reply = Callable[[str, str], Awaitable[None]]
"""Answers a message: its id, and the text."""

log = logging.getLogger("bot")


@dataclass(frozen=True)
class Order:
    """What a person told the bot to do."""

    event_id: str
    message_id: str
    open_id: str
    draft_id: str


def read_order(event: P2ImMessageReceiveV1) -> Order | None:
    """The order in a message; None if there is none."""
    message = event.event.message
    if message.message_type != "text":
        return None
    found = COMMAND.fullmatch(json.loads(message.content)["text"].strip())
    if found is None:
        return None
    return Order(event.header.event_id, message.message_id, event.event.sender.sender_id.open_id, found[1])


class SeenEvents:
    """The ids of the events of the last hours."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def is_new(self, event_id: str) -> bool:
        """Whether this event has come for the first time; it is known from then on."""
        now = time.monotonic()
        while self._seen and self._seen[oldest := next(iter(self._seen))] < now - REMEMBERED:
            del self._seen[oldest]
        if event_id in self._seen:
            return False
        self._seen[event_id] = now
        return True


class Bot:
    """Carries out orders in the event loop in which it is made.

    Args:
        client: sends the drafts; it has a token for each person, by open_id.
        reply: tells the person what became of the order.
    """

    def __init__(self, client: FeishuMailClient, reply: Reply) -> None:
        self._client = client
        self._reply = reply
        self._loop = asyncio.get_running_loop()
        self._seen = SeenEvents()
        self._orders: set[asyncio.Task[None]] = set()

    def hear(self, event: P2ImMessageReceiveV1) -> None:
        """What the SDK's dispatcher calls, from whichever thread it runs in: hand the order over, and return."""
        order = read_order(event)
        if order is not None:
            self._loop.call_soon_threadsafe(self._take, order)

    def _take(self, order: Order) -> None:
        if not self._seen.is_new(order.event_id):
            log.info("event %s came once more", order.event_id)
            return
        task = self._loop.create_task(self._obey(order))
        self._orders.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._orders.discard)

    async def _obey(self, order: Order) -> None:
        text = await self._send(order)
        try:
            await self._reply(order.message_id, text)
        except Exception:
            log.exception("no reply to %s: %s", order.message_id, text)

    async def _send(self, order: Order) -> str:
        try:
            result = await self._client.send_draft(
                order.draft_id, user=order.open_id, priority=Priority.INTERACTIVE, deadline=DEADLINE
            )
        except UnknownUser:
            return "I may not send mail for you yet: authorize me first."
        except (FeishuMailError, ValueError) as error:
            return f"{order.draft_id}: {error}"  # it says whether it was sent, and what to do
        return f"{order.draft_id}: sent before." if result.already_sent else f"{order.draft_id}: sent."

    async def finish(self) -> None:
        """Wait until all orders are carried out."""
        while self._orders:
            await asyncio.wait(self._orders)


async def print_reply(message_id: str, text: str) -> None:
    """Show the answer here."""
    print(f"reply to {message_id}: {text}", flush=True)


def chat_reply(app_id: str, app_secret: str) -> Reply:
    """Answer in the chat, in the name of the app."""
    client = lark.Client.builder().app_id(app_id).app_secret(app_secret).domain(base_url()).build()

    async def reply(message_id: str, text: str) -> None:
        content = json.dumps({"text": text})
        body = ReplyMessageRequestBody.builder().msg_type("text").content(content).build()
        request = ReplyMessageRequest.builder().message_id(message_id).request_body(body).build()
        # In a thread: also the SDK's asynchronous calls block the loop while they fetch the app's token.
        response = await asyncio.to_thread(client.im.v1.message.reply, request)
        if not response.success():
            log.warning("no reply to %s: %s %s", message_id, response.code, response.msg)

    return reply


CLIENT: Final = web.AppKey("client", FeishuMailClient)
BOT: Final = web.AppKey("bot", Bot)
DISPATCHER: Final = web.AppKey("dispatcher", lark.EventDispatcherHandler)


async def post_event(request: web.Request) -> web.Response:
    """Let the SDK check, decrypt and dispatch what the platform delivers, its test of the address included."""
    event = RawRequest()
    event.uri, event.headers, event.body = request.path, request.headers, await request.read()
    answer = request.app[DISPATCHER].do(event)
    return web.Response(status=answer.status_code, body=answer.content, headers=answer.headers)


async def open_bot(app: web.Application) -> None:
    """Make the one client of this process, and the bot that uses it."""
    app_id, app_secret = os.environ.get("FEISHU_APP_ID"), os.environ.get("FEISHU_APP_SECRET")
    encrypt_key = os.environ.get("FEISHU_ENCRYPT_KEY", "")
    verification_token = os.environ.get("FEISHU_VERIFICATION_TOKEN", "")
    if not verification_token:
        raise SystemExit("cannot start: FEISHU_VERIFICATION_TOKEN is not set, and anybody could make up events")
    app[CLIENT] = open_client()
    app[BOT] = Bot(app[CLIENT], chat_reply(app_id, app_secret) if app_id and app_secret else print_reply)
    events = lark.EventDispatcherHandler.builder(encrypt_key, verification_token)
    app[DISPATCHER] = events.register_p2_im_message_receive_v1(app[BOT].hear).build()


async def close_bot(app: web.Application) -> None:
    """Finish the orders, then close the client."""
    await app[BOT].finish()
    await app[CLIENT].close()


def make_app() -> web.Application:
    """The bot's web service."""
    app = web.Application()
    app.add_routes([web.post("/", post_event)])
    app.on_startup.append(open_bot)
    app.on_shutdown.append(close_bot)
    return app


def message_event(event_id: str, message_id: str, text: str) -> dict[str, Any]:
    """An event as the platform delivers it."""
    header = {"event_id": event_id, "token": REHEARSAL_TOKEN, "event_type": "im.message.receive_v1"}
    message = {"message_id": message_id, "message_type": "text", "content": json.dumps({"text": text})}
    event = {"sender": {"sender_id": {"open_id": "ou_alice"}}, "message": message}
    return {"schema": "2.0", "header": header, "event": event}


async def rehearse() -> None:
    """Be the platform that delivers events, with a made-up Feishu behind."""
    async with sandbox("ou_alice") as feishu:
        os.environ["FEISHU_VERIFICATION_TOKEN"] = REHEARSAL_TOKEN
        feishu.add_draft("ou_alice", "invitation")
        async with (
            test_utils.TestServer(make_app()) as server,
            aiohttp.ClientSession(server.make_url("/")) as platform,
        ):

            async def deliver(what: str, event: dict[str, Any]) -> None:
                async with platform.post("/", json=event) as response:
                    print(f"{what}: {response.status} {await response.text()}")

            order = message_event("event-1", "message-1", "/send invitation")
            again = message_event("event-2", "message-2", "/send invitation")
            await asyncio.gather(
                deliver('Alice writes "/send invitation" (event-1)', order),
                deliver("the platform delivers event-1 once more", order),
                deliver("Alice writes the same again (event-2)", again),
            )
        report(feishu)


def main() -> None:
    """Read the command line, and serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="A bot that sends drafts.")
    parser.add_argument("--sandbox", action="store_true", help="try it without an account")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(name)s: %(message)s")
    log.setLevel(logging.INFO)
    if arguments.sandbox:
        asyncio.run(rehearse())
    else:
        web.run_app(make_app(), host="127.0.0.1", port=arguments.port)


if __name__ == "__main__":
    main()
