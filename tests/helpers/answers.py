"""Two stages for the same plays: aioresponses, and the sandbox over HTTP."""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
from aioresponses import aioresponses
from yarl import URL

from feishu_mail_async import (
    ApiError,
    Draft,
    FeishuMailClient,
    FeishuMailError,
    OutcomeStatus,
    RetryPolicy,
    errors,
)
from feishu_mail_async._api.base_url import FEISHU
from feishu_mail_async.codes import Code, named
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.canary import TOKEN, holds

REFUSALS = 3
POLICY = RetryPolicy(attempts=3, refusals=REFUSALS)

BOX = "box@example.com"
OTHER_BOX = "other@example.com"
USERS = ("alice", "bob")


def answer(row: Code) -> dict[str, Any]:
    return {"code": row.number, "msg": f"told: {row.message}", "data": {}}


class Answering:
    """Where a client plays against scripted answers."""

    client: FeishuMailClient

    def script(self, draft: Draft, *names: str) -> None:
        """Let the next sends of a draft be answered so; after that it is sent."""
        raise NotImplementedError

    def calls(self, draft: Draft) -> int:
        """Calls made for a draft."""
        raise NotImplementedError


class _Output:
    """What aiohttp 3.14 wants of a stream writer once the request is out."""

    output_size = 0


class MockedResponse(aiohttp.ClientResponse):
    """aioresponses 0.7.9 does not know the argument that aiohttp 3.14 asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, stream_writer=cast("Any", _Output()), **kwargs)


@dataclass
class Mocked(Answering):
    """aioresponses: the real host's name, and no network."""

    client: FeishuMailClient
    mock: aioresponses
    seen: list[tuple[str, str]] = field(default_factory=list)

    def url(self, draft: Draft) -> URL:
        box = draft.mailbox.replace("@", "%40")
        path = f"/open-apis/mail/v1/user_mailboxes/{box}/drafts/{draft.draft_id}/send"
        return URL(FEISHU + path, encoded=True)

    def script(self, draft: Draft, *names: str) -> None:
        for name in names:
            row = named(name)
            self.add(draft, row.http_status, answer(row))
        success = {"code": 0, "msg": "success", "data": {"message_id": "m1", "thread_id": "t1"}}
        self.add(draft, 200, success, repeat=True)

    def add(self, draft: Draft, status: int, payload: dict[str, Any], *, repeat: bool = False) -> None:
        def count(_: Any, **kwargs: Any) -> None:
            self.seen.append((draft.draft_id, kwargs["headers"]["Authorization"]))

        self.mock.post(
            self.url(draft),
            status=status,
            body=json.dumps(payload),
            headers={"X-Tt-Logid": "log1"},
            response_class=MockedResponse,
            callback=count,
            repeat=repeat,
        )

    def calls(self, draft: Draft) -> int:
        return sum(draft_id == draft.draft_id for draft_id, _ in self.seen)


@dataclass
class Real(Answering):
    """The sandbox, over HTTP."""

    client: FeishuMailClient
    sandbox: Sandbox

    def script(self, draft: Draft, *names: str) -> None:
        self.sandbox.add_draft(draft.user or "alice", draft.draft_id, draft.mailbox)
        self.sandbox.script(draft.draft_id, *(Fault.code(name) for name in names))

    def calls(self, draft: Draft) -> int:
        return len(self.sandbox.ledger.calls(draft.draft_id))


@contextlib.asynccontextmanager
async def mocked() -> AsyncIterator[Answering]:
    tokens = {user: f"{TOKEN}-{user}" for user in USERS}
    with aioresponses() as mock:
        async with FeishuMailClient(tokens, retry=POLICY) as client:
            yield Mocked(client, mock)


@contextlib.asynccontextmanager
async def real() -> AsyncIterator[Answering]:
    async with Sandbox(users=USERS, latency=0.1) as sandbox:
        for box in (BOX, OTHER_BOX):
            sandbox.share_mailbox(box, *USERS)
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, retry=POLICY) as client:
            yield Real(client, sandbox)


def draft(draft_id: str, user: str = "alice", box: str = BOX) -> Draft:
    return Draft(draft_id, box, user, tag=f"the tag of {draft_id}")


def check(error: FeishuMailError, row: Code, of: Draft, attempts: int, said: Sequence[str] = ()) -> None:
    """That an error says all there is to say of this answer."""
    assert type(error) is getattr(errors, row.error)
    assert isinstance(error, ApiError)
    assert (error.code, error.http_status) == (row.number, row.http_status)
    assert row.message in error.msg
    assert (error.advice, error.advice_zh) == (row.advice, row.advice_zh)
    assert error.log_id
    assert error.draft == of
    assert error.draft is not None
    assert error.draft.tag == of.tag
    assert error.attempts == attempts
    assert error.status is OutcomeStatus.FAILED
    for part in (str(row.number), row.message, row.advice, error.log_id, *said):
        assert part in str(error)
    assert holds(error, TOKEN) == []
