"""A web service on aiohttp that sends a draft while somebody waits for the answer.

    python examples/aiohttp_service.py --sandbox

shows it at work without an account: a made-up Feishu, some requests, and their answers. For the real thing set
FEISHU_USER_ACCESS_TOKEN to a token, or to JSON with one for each user (settings.py tells of the other settings):

    python examples/aiohttp_service.py --port 8080
    curl --data '{"draft_id": "268dce11-85f7-427d-8756-6be3abc850fd"}' http://127.0.0.1:8080/send

`POST /send` takes a `draft_id` and, if you like, a `user` and a `deadline`, the seconds its caller waits:

    200  sent
    400  the request makes no sense
    422  Feishu refuses this draft: code and advice say what to mend
    502  Feishu refuses for another reason: code and advice say which
    503  certainly not sent: its turn did not come in time. Retry-After says when to ask again
    504  it may have been sent. Asking again is safe (http_answers.py says why this is not 202)

`GET /health` says how many wait and when the next call may go. The whole process has one client. On SIGTERM no new
connections are taken, calls in flight are finished and answered, and what waits is answered 503 at once.

Whoever reaches the service can send, so it listens on this machine only: put authentication in front of it.
"""

import argparse
import asyncio
from typing import Final

from aiohttp import test_utils, web
from http_answers import DEADLINE, LONGEST_DEADLINE, Answer, bad_request, explain, health, sent
from rehearsal import sandbox, visit
from settings import open_client

from feishu_mail_async import Draft, FeishuMailClient, FeishuMailError, Priority

CLIENT: Final = web.AppKey("client", FeishuMailClient)


async def post_send(request: web.Request) -> web.Response:
    """Send a draft, and answer when it is sent, or certain not to be."""
    client = request.app[CLIENT]
    try:
        draft, deadline = await read(request)
    except (ValueError, TypeError) as error:
        return respond(bad_request(str(error)))
    try:
        result = await client.send_draft(draft, priority=Priority.INTERACTIVE, deadline=deadline)
    except FeishuMailError as error:
        return respond(explain(error, client))
    return respond(sent(result))


async def get_health(request: web.Request) -> web.Response:
    """How things stand."""
    return web.json_response(health(request.app[CLIENT]))


async def read(request: web.Request) -> tuple[Draft, float]:
    """The draft that is meant, and how long its caller waits; ValueError or TypeError if that makes no sense."""
    body = await request.json()
    if not isinstance(body, dict):
        raise TypeError("the body: give a JSON object")
    deadline = body.get("deadline", DEADLINE)
    if not isinstance(deadline, int | float) or not 0 < deadline <= LONGEST_DEADLINE:
        raise ValueError(f"deadline: give seconds, up to {LONGEST_DEADLINE:g}")
    return Draft(body.get("draft_id", ""), user=body.get("user")), deadline


def respond(answer: Answer) -> web.Response:
    """The answer in aiohttp's terms."""
    return web.json_response(answer.body, status=answer.status, headers=answer.headers)


async def open_mail(app: web.Application) -> None:
    """Make the one client of this process."""
    app[CLIENT] = open_client()


async def close_mail(app: web.Application) -> None:
    """Finish the calls in flight, and refuse what waits. aiohttp then lets the handlers give their answers."""
    await app[CLIENT].close()


def make_app() -> web.Application:
    """The service."""
    app = web.Application()
    app.add_routes([web.post("/send", post_send), web.get("/health", get_health)])
    app.on_startup.append(open_mail)
    app.on_shutdown.append(close_mail)
    return app


async def rehearse() -> None:
    """Serve on a free port, with a made-up Feishu behind, and make some requests."""
    async with sandbox() as feishu, test_utils.TestServer(make_app()) as server:
        await visit(str(server.make_url("")), feishu)


def main() -> None:
    """Read the command line, and serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="A web service that sends drafts.")
    parser.add_argument("--sandbox", action="store_true", help="try it without an account")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    arguments = parser.parse_args()
    if arguments.sandbox:
        asyncio.run(rehearse())
    else:
        web.run_app(make_app(), host="127.0.0.1", port=arguments.port)


if __name__ == "__main__":
    main()
