"""list_drafts: page by page, within the limit of its endpoint, and as the input of a run."""

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest

from feishu_mail_async import (
    BadReply,
    ClientClosed,
    Draft,
    FeishuMailClient,
    MailboxNotFound,
    Outcome,
    OutcomeStatus,
    PermissionDenied,
    RateLimit,
    RetryPolicy,
    ScopeMissing,
    UnknownUser,
)
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.clock import now
from tests.helpers.raw_server import RawServer, always, http, raw_server
from tests.helpers.tasks import settle
from tests.models.bulk_model import check_true, fetch

pytestmark = pytest.mark.looptime(start=0, noop_cycles=12)

FAST: Final = RateLimit(calls=1000, per=1.0, spacing=0)


async def listed(client: FeishuMailClient, **whose: Any) -> list[Draft]:
    return [draft async for draft in client.list_drafts(**whose)]


def page(ids: Sequence[Any], token: str | None = None, **more: Any) -> bytes:
    data = {"items": [{"id": one} for one in ids], "has_more": token is not None, **more}
    if token is not None:
        data["page_token"] = token
    return answer(data)


def answer(data: Any, code: int = 0, status: int = 200) -> bytes:
    body = json.dumps({"code": code, "msg": "whatever", "data": data}).encode()
    return http(status, body, ("Content-Type", "application/json"))


def raw_client(server: RawServer, **settings: Any) -> FeishuMailClient:
    return FeishuMailClient(TOKEN, base_url=server.base_url, **settings)


# --- paging ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "pages"), [(0, 1), (1, 1), (100, 1), (101, 2), (250, 3)])
async def test_a_mailbox_is_listed_page_by_page(count: int, pages: int) -> None:
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        ids = sandbox.add_drafts("alice", count)
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            assert await listed(client) == [Draft(draft_id) for draft_id in ids]
        assert [call.endpoint for call in sandbox.ledger.arrivals] == ["list"] * pages


async def test_what_is_listed_can_be_sent_as_it_is() -> None:
    async with Sandbox(users=["alice", "bob"], latency=0.1) as sandbox:
        sandbox.share_mailbox("team@example.com", "bob")
        ids = [sandbox.add_draft("bob", mailbox="team@example.com") for _ in range(3)]
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            drafts = await listed(client, mailbox="team@example.com", user="bob")
            assert drafts == [Draft(draft_id, "team@example.com", "bob") for draft_id in ids]
            for draft in drafts:
                assert (await client.send_draft(draft)).draft == draft
            assert await listed(client, mailbox="team@example.com", user="bob") == []
        assert sandbox.ledger.sent.total() == 3


async def test_the_request_is_as_documented() -> None:
    async with (
        raw_server(always(page(["a", "b"], "next/+=&?"), page(["c"]))) as server,
        raw_client(server) as client,
    ):
        assert [draft.draft_id for draft in await listed(client, mailbox="a/b@example.com")] == ["a", "b", "c"]
    first, second = server.requests
    assert first.line.startswith("GET /open-apis/mail/v1/user_mailboxes/a%2Fb%40example.com/drafts?")
    assert first.headers["authorization"] == f"Bearer {TOKEN}"
    assert parse_qs(urlsplit(first.target).query) == {"page_size": ["100"]}
    assert parse_qs(urlsplit(second.target).query) == {"page_size": ["100"], "page_token": ["next/+=&?"]}


async def test_a_draft_comes_before_the_next_page_is_asked_for() -> None:
    async with raw_server(always(page(["a"], "more"), page(["b"]))) as server, raw_client(server) as client:
        drafts = client.list_drafts()
        assert (await anext(drafts)).draft_id == "a"
        await asyncio.sleep(100)
        assert len(server.requests) == 1
        assert [draft.draft_id async for draft in drafts] == ["b"]


# --- within the limit --------------------------------------------------------------------------------------


async def test_thirty_listings_at_once_keep_to_ten_calls_a_second() -> None:
    users = [f"u{number}" for number in range(30)]
    async with Sandbox(users=users, latency=(0.01, 0.1)) as sandbox:
        ids = {user: sandbox.add_drafts(user, 250) for user in users}
        first, second = (FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) for _ in range(2))
        async with first, second:
            drafts = await asyncio.gather(
                *(listed(client, user=user) for user, client in zip(users, itertools.cycle([first, second])))
            )
        for user, mine in zip(users, drafts, strict=True):
            assert mine == [Draft(draft_id, user=user) for draft_id in ids[user]]
        assert len(sandbox.ledger.arrivals) == 90
        assert sandbox.ledger.sibling_refusals == 0
        times = [call.time for call in sandbox.ledger.arrivals]
        assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[10:], strict=False))
        # Nine windows of ten calls, each `per`, `margin` and a round trip long.
        assert now() <= 9 * (1.0 + 0.1 + 0.2)


async def test_listings_of_one_user_at_once_all_see_everything() -> None:
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        sandbox.share_mailbox("team@example.com", "alice")
        ids = sandbox.add_drafts("alice", 250)
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            *mine, team = await asyncio.gather(
                *(listed(client) for _ in range(30)), listed(client, mailbox="team@example.com")
            )
        assert all([draft.draft_id for draft in one] == ids for one in mine)
        assert team == []
        assert sandbox.ledger.sibling_refusals == 0


async def test_listing_and_sending_do_not_use_up_each_others_limits() -> None:
    async with Sandbox(users=["alice", "bob"], latency=0.1) as sandbox:
        ids = sandbox.add_drafts("alice", 40)
        sandbox.add_drafts("bob", 250)
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            sends = asyncio.gather(*(client.send_draft(draft_id, user="alice") for draft_id in ids))
            await asyncio.sleep(20)
            start = now()
            assert len(await listed(client, user="bob")) == 250
            assert now() - start == pytest.approx(0.3, abs=0.01)
            await sends
        assert sandbox.ledger.refusals == sandbox.ledger.sibling_refusals == 0
        assert now() == pytest.approx(60.2 + 19 * 0.2 + 0.1, abs=0.5)


# --- into a run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_ahead", [1, 10, 10_000])
async def test_a_listing_feeds_a_run_which_sends_everything(read_ahead: int) -> None:
    async with Sandbox(users=["alice"], latency=0.1, calls=1_000_000) as sandbox:
        ids = sandbox.add_drafts("alice", 250)
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, rate_limit=FAST) as client:
            async with client.send_drafts(client.list_drafts(), read_ahead=read_ahead) as run:
                outcomes = [outcome async for outcome in run]
            assert {outcome.status for outcome in outcomes} == {OutcomeStatus.SENT}
            check_true([outcome.draft for outcome in outcomes], outcomes, sandbox.ledger)
            assert {outcome.draft.draft_id for outcome in outcomes} == set(ids)
            assert await listed(client) == []
        assert sandbox.ledger.sibling_refusals == sandbox.ledger.conflicts == 0


async def test_a_listing_that_fails_halfway_surfaces_after_what_it_gave_was_sent() -> None:
    answers = always(page(["a", "b"], "more"), answer({}, 1234017, 403))
    sent = http(200, b'{"code":0,"msg":"success","data":{"message_id":"m1"}}')

    async def handler(request: Any, reader: Any, writer: Any) -> None:
        await (answers if request.line.startswith("GET") else always(sent))(request, reader, writer)

    async with raw_server(handler) as server, raw_client(server) as client:
        outcomes: list[Outcome] = []
        with pytest.raises(PermissionDenied):
            await fetch(client.send_drafts(client.list_drafts()), outcomes)
        assert [(outcome.draft.draft_id, outcome.status) for outcome in outcomes] == [("a", "sent"), ("b", "sent")]


@pytest.mark.parametrize("end", ["stop", "leave", "close"])
async def test_a_run_that_ends_early_ends_its_listing(end: str) -> None:
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        sandbox.add_drafts("alice", 250)
        client = FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url)
        async with client, client.send_drafts(client.list_drafts(), read_ahead=5) as run:
            await anext(run)
            if end == "stop":
                run.stop()
                rest = [outcome async for outcome in run]
                assert len(rest) <= 5
            elif end == "close":
                await client.close()
        await settle()
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("feishu-mail")] == []
        assert sum(call.endpoint == "list" for call in sandbox.ledger.arrivals) == 1
        assert sandbox.ledger.sent.total() == len(sandbox.ledger.sends) <= 3


# --- what goes wrong ---------------------------------------------------------------------------------------

TROUBLES: Final = {
    "server error": answer({}, 1236019, 500),
    "gateway": http(502, b"<html>"),
    "cut off": http(200, b'{"code": 0, "data": {"it'),
    "lost": http(200, b"", length=50),
    "too many": answer({}, 99991400, 429),
    "bare 429": http(429, b""),
    "mailbox busy": answer({}, 1236006, 429),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_page_that_could_not_be_had_is_asked_for_again(trouble: str) -> None:
    answers = always(page(["a"], "more"), TROUBLES[trouble], TROUBLES[trouble], page(["b"]))
    async with raw_server(answers) as server, raw_client(server, attempt_timeout=5.0) as client:
        assert [draft.draft_id for draft in await listed(client)] == ["a", "b"]
    assert [parse_qs(urlsplit(request.target).query).get("page_token") for request in server.requests] == [
        None, ["more"], ["more"], ["more"],
    ]  # fmt: skip


async def test_a_page_that_never_comes_is_a_bad_reply_after_all_attempts() -> None:
    thrice = RetryPolicy(attempts=3)
    async with raw_server(always(http(502, b"<html>"))) as server, raw_client(server, retry=thrice) as client:
        with pytest.raises(BadReply):
            await listed(client)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("number", "status", "kind"),
    [(1234013, 404, MailboxNotFound), (1234017, 403, PermissionDenied), (99991679, 401, ScopeMissing)],
)
async def test_a_refusal_is_raised_as_what_it_is(number: int, status: int, kind: type[Exception]) -> None:
    async with raw_server(always(answer({}, number, status))) as server, raw_client(server) as client:
        with pytest.raises(kind):
            await listed(client)
    assert len(server.requests) == 1


ENDLESS: Final = 50


def pages(*answers: bytes) -> Callable[..., Any]:
    """These pages again and again; after too many of them the test is over."""
    source = itertools.cycle(answers)
    count = itertools.count()

    async def handler(_: Any, __: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(next(source) if next(count) < ENDLESS else page(["the end"]))
        await writer.drain()

    return handler


BROKEN: Final = {
    "items are no list": answer({"items": {"id": "a"}, "has_more": False}),
    "items are numbers": answer({"items": [1, 2], "has_more": False}),
    "an item without an id": answer({"items": [{"id": "a"}, {"subject": "x"}], "has_more": False}),
    "an id that is no text": page([7]),
    "an id that is null": page([None]),
    "an empty id": page([""]),
    "an id of spaces": page(["  "]),
    "an id with a line break": page(["a\nb"]),
    "an id that is too long": page(["x" * 600]),
    "more without a token": answer({"items": [{"id": "a"}], "has_more": True}),
    "more with an empty token": answer({"items": [{"id": "a"}], "has_more": True, "page_token": ""}),
    "more with a number for a token": answer({"items": [{"id": "a"}], "has_more": True, "page_token": 7}),
}


@pytest.mark.parametrize("form", BROKEN)
async def test_a_page_of_another_form_is_a_bad_reply(form: str) -> None:
    async with raw_server(pages(BROKEN[form])) as server, raw_client(server) as client:
        with pytest.raises(BadReply):
            await listed(client)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "data",
    [
        {"items": None, "has_more": False},
        {"has_more": False},
        {"items": []},
        {"items": [], "page_token": "x"},
        {},
        None,
    ],
)
async def test_a_mailbox_without_drafts_may_say_so_in_many_ways(data: Any) -> None:
    async with raw_server(pages(answer(data))) as server, raw_client(server) as client:
        assert await listed(client) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("tokens", [["same"], ["one", "two"], ["one", "two", "three"]])
async def test_page_tokens_that_go_in_a_circle_are_a_bad_reply(tokens: list[str]) -> None:
    answers = pages(*(page([f"draft {token}"], token) for token in tokens))
    async with raw_server(answers) as server, raw_client(server) as client:
        with pytest.raises(BadReply):
            await listed(client)
    assert len(server.requests) <= 2 * len(tokens)


# --- parameters and ends -----------------------------------------------------------------------------------


async def test_whose_mailbox_is_checked_before_anything_is_called() -> None:
    async with Sandbox(users=["alice", "bob"], latency=0.1) as sandbox:
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            with pytest.raises(UnknownUser):
                await listed(client, user="mallory")
            with pytest.raises(UnknownUser):
                await listed(client)
            with pytest.raises(ValueError, match=r"^mailbox\b"):
                await listed(client, user="alice", mailbox="a\nb")
            with pytest.raises(TypeError, match=r"^mailbox\b"):
                await listed(client, user="alice", mailbox=7)
        with pytest.raises(ClientClosed):
            await listed(client, user="alice")
        assert sandbox.ledger.arrivals == []


async def test_closing_the_client_in_the_middle_of_a_listing() -> None:
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        sandbox.add_drafts("alice", 250)
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url) as client:
            drafts = client.list_drafts()
            seen = [await anext(drafts)]
            await client.close()
            with pytest.raises(ClientClosed):
                await fetch(drafts, seen)
            # What has come can still be used.
            assert len(seen) == 100


async def test_a_break_out_of_a_listing_leaves_nothing_behind() -> None:
    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        sandbox.add_drafts("alice", 250)
        client = FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url)
        async for _ in client.list_drafts():
            break
        task = asyncio.create_task(listed(client))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.close()
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("feishu-mail")] == []
