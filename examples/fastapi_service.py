"""A web service on FastAPI that sends a draft while somebody waits for the answer.

    python examples/fastapi_service.py --sandbox

shows it at work without an account: a made-up Feishu, some requests, and their answers. For the real thing set
FEISHU_USER_ACCESS_TOKEN to a token, or to JSON with one for each user (settings.py tells of the other settings):

    python examples/fastapi_service.py --port 8080       # or: uvicorn --app-dir examples fastapi_service:app
    curl --json '{"draft_id": "268dce11-85f7-427d-8756-6be3abc850fd"}' http://127.0.0.1:8080/send

Requests and answers are those of aiohttp_service.py; http://127.0.0.1:8080/docs shows them. The client lives as
long as the application, one for each process: keep to one worker, or give all the same FEISHU_MAIL_LEDGER. On
SIGTERM no new connections are taken, and requests under way are answered, each within its deadline.

Whoever reaches the service can send, so it listens on this machine only: put authentication in front of it.
"""

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from http_answers import DEADLINE, LONGEST_DEADLINE, Answer, bad_request, explain, health, sent
from pydantic import BaseModel, Field, model_validator
from rehearsal import sandbox, visit
from settings import open_client

from feishu_mail_async import Draft, FeishuMailClient, FeishuMailError, Priority


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Keep the one client of this process open while the application runs."""
    async with open_client() as client:
        yield {"client": client}


app = FastAPI(title="Send drafts", lifespan=lifespan)


def get_client(request: Request) -> FeishuMailClient:
    """The client that the lifespan opened."""
    client: FeishuMailClient = request.state.client
    return client


Client = Annotated[FeishuMailClient, Depends(get_client)]


class Order(BaseModel):
    """What is asked for: a draft to send, and for how long its caller waits."""

    draft_id: str
    user: str | None = None
    deadline: float = Field(DEADLINE, gt=0, le=LONGEST_DEADLINE)

    @model_validator(mode="after")
    def _check(self) -> "Order":
        self.draft()  # it knows what an id may hold
        return self

    def draft(self) -> Draft:
        """The draft that is meant."""
        return Draft(self.draft_id, user=self.user)


class Sent(BaseModel):
    """A draft that has been sent; without `message_id` if an earlier call had sent it."""

    message_id: str | None
    already_sent: bool
    log_id: str | None


@app.post("/send")
async def post_send(order: Order, client: Client) -> Sent:
    """Send a draft, and answer when it is sent, or certain not to be."""
    result = await client.send_draft(order.draft(), priority=Priority.INTERACTIVE, deadline=order.deadline)
    return Sent(**sent(result).body)


@app.get("/health")
async def get_health(client: Client) -> dict[str, Any]:
    """How things stand."""
    return health(client)


@app.exception_handler(FeishuMailError)
async def on_mail_error(request: Request, error: FeishuMailError) -> JSONResponse:
    """Answer for a send that did not end well."""
    return respond(explain(error, get_client(request)))


@app.exception_handler(RequestValidationError)
async def on_bad_request(_: Request, error: RequestValidationError) -> JSONResponse:
    """400, because 422 is what Feishu's own refusals are answered with."""
    wrong = [f"{'.'.join(map(str, one['loc'][1:])) or 'the body'}: {one['msg']}" for one in error.errors()]
    return respond(bad_request("; ".join(wrong)))


def respond(answer: Answer) -> JSONResponse:
    """The answer in FastAPI's terms."""
    return JSONResponse(answer.body, answer.status, answer.headers)


async def rehearse() -> None:
    """Serve on a free port, with a made-up Feishu behind, and make some requests."""
    async with sandbox() as feishu:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(server.serve([listening]))
            await visit("http://{}:{}".format(*listening.getsockname()), feishu)
            server.should_exit = True
            await serving


def main() -> None:
    """Read the command line, and serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="A web service that sends drafts.")
    parser.add_argument("--sandbox", action="store_true", help="try it without an account")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    arguments = parser.parse_args()
    if arguments.sandbox:
        asyncio.run(rehearse())
        return
    # When all is finished and closed, uvicorn raises the signal once more: then the exit code is to be 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(app, host="127.0.0.1", port=arguments.port)


if __name__ == "__main__":
    main()
