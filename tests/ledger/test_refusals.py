"""A draft that the database takes no record of ends alone, by name: no other is concerned."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from feishu_mail_async import (
    ApiError,
    Draft,
    DraftNotFound,
    FeishuMailClient,
    FeishuMailError,
    LedgerError,
    Outcome,
    OutcomeStatus,
    RecordRefused,
)
from feishu_mail_async._auth.store import StoredToken
from feishu_mail_async.ledger import DraftKey, DraftState, schema
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.ledgers import APP, Process, ask, client_of, home_url, ledger_on, nothing_held, rows
from tests.helpers.raw_server import always, http, raw_server
from tests.helpers.refusals import POISON, make_refuse
from tests.helpers.scenes import FREE, ONCE

_BOTH: Final = ["sqlite", "postgresql"]


def chinese(number: int, seed: int) -> str:
    """Characters of three bytes each, in an order that no database can make shorter."""
    chance = random.Random(seed)
    return "".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(number))


@pytest.fixture(params=_BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return home_url(request, tmp_path)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    users = [f"user{number}" for number in range(8)]
    async with Sandbox(users=users, latency=0, calls=100_000) as one:
        yield one


def drafts_of(sandbox: Sandbox, number: int) -> list[Draft]:
    """Drafts of all users, who take turns."""
    users = list(sandbox.tokens)
    return [
        Draft(sandbox.add_draft(user), "me", user)
        for user in (users[place % len(users)] for place in range(number))
    ]


def open_client(sandbox: Sandbox, ledger: Any, **settings: Any) -> FeishuMailClient:
    return client_of(sandbox, ledger, **({"rate_limit": FREE, "retry": ONCE} | settings))


async def run(client: FeishuMailClient, drafts: Sequence[Draft]) -> dict[Draft, Outcome]:
    async with asyncio.timeout(60):
        return {one.draft: one async for one in client.send_drafts(drafts)}


async def one_by_one(client: FeishuMailClient, drafts: Sequence[Draft]) -> dict[Draft, Outcome]:
    """All at once, each sent by itself."""

    async def send(draft: Draft) -> Outcome:
        try:
            result = await client.send_draft(draft)
        except FeishuMailError as error:
            return Outcome(draft, error.status, None, error)
        return Outcome(draft, result.status, result, None)

    async with asyncio.timeout(60):
        return {one.draft: one for one in await asyncio.gather(*map(send, drafts))}


async def make_tables(url: str, sandbox: Sandbox) -> None:
    """Have the ledger's tables there, by a draft that was sent."""
    async with open_client(sandbox, url) as client:
        await client.send_draft(sandbox.add_draft("user0"), user="user0")
    sandbox.ledger.sent.clear()


def mixed(sandbox: Sandbox, good: int, bad: int) -> tuple[list[Draft], list[Draft], list[Draft]]:
    """All drafts in any order, the good ones, and those that are poisoned; the sandbox would send all of them."""
    fine = drafts_of(sandbox, good)
    users = list(sandbox.tokens)
    odd = [
        Draft(sandbox.add_draft(users[place % len(users)], f"{POISON}{place}"), "me", users[place % len(users)])
        for place in range(bad)
    ]
    every = [*fine, *odd]
    random.Random(good).shuffle(every)
    return every, fine, odd


def all_is_well(outcomes: dict[Draft, Outcome], sandbox: Sandbox, good: list[Draft], bad: list[Draft]) -> None:
    """Each good draft was sent once; each poisoned one ended by name, without a call."""
    assert sandbox.ledger.sent == Counter(draft.draft_id for draft in good)
    assert {draft: outcomes[draft].status for draft in good} == dict.fromkeys(good, OutcomeStatus.SENT)
    for draft in bad:
        error = outcomes[draft].error
        assert isinstance(error, RecordRefused), error
        assert outcomes[draft].status is OutcomeStatus.FAILED
        assert draft.draft_id in str(error)
        assert error.draft == draft
    assert len(outcomes) == len(good) + len(bad)


# --- keys of any length -----------------------------------------------------------------------------------


async def test_keys_of_512_characters_each_concern_nobody(url: str, sandbox: Sandbox) -> None:
    """What the path of a call cannot hold is the server's to refuse: the ledger takes it."""
    odd = Draft(chinese(512, 1), chinese(512, 2), "user3")
    good = drafts_of(sandbox, 60)
    drafts = [*good[:30], odd, *good[30:]]
    async with open_client(sandbox, url) as client:
        outcomes = await run(client, drafts)
        [record] = await client.records([odd])
    assert {draft: outcomes[draft].status for draft in good} == dict.fromkeys(good, OutcomeStatus.SENT)
    assert sandbox.ledger.sent == Counter(draft.draft_id for draft in good)
    assert not isinstance(outcomes[odd].error, LedgerError)
    assert record is not None
    assert record.calls == 1
    ledger = ledger_on(url)
    await nothing_held(ledger)
    await ledger.close()


async def test_users_mailboxes_and_apps_with_the_longest_names(url: str) -> None:
    """Every key is as long as it may be: what was sent is on record, and no other draft is taken for it."""
    user, app = chinese(512, 3), chinese(512, 4)
    mailbox = "\u0390" * 512  # six bytes each without case
    async with Sandbox(users=[user], latency=0, calls=100_000) as sandbox:
        sandbox.share_mailbox(mailbox, user)
        ids = [sandbox.add_draft(user, "\U0001f600" * 200 + str(number)) for number in range(3)]
        drafts = [Draft(one, "me", user) for one in ids] + [
            Draft(sandbox.add_draft(user, mailbox=mailbox), mailbox, user)
        ]
        async with open_client(sandbox, url, app=app) as client:
            first = await run(client, drafts[1:])
        async with open_client(sandbox, url, app=app) as client:
            again = await run(client, drafts)
            records = await client.records(drafts)
        assert [one.status for one in first.values()] == [OutcomeStatus.SENT] * 3
        assert [again[draft].status for draft in drafts] == [OutcomeStatus.SENT] + [OutcomeStatus.ALREADY_SENT] * 3
        assert sandbox.ledger.sent == Counter(draft.draft_id for draft in drafts)
        assert [one is not None and one.state for one in records] == [DraftState.SENT] * 4


async def test_a_scope_with_the_longest_name_is_closed_and_reopened_everywhere(url: str) -> None:
    user = chinese(512, 5)
    async with Sandbox(users=[user], latency=0, calls=100_000) as sandbox:
        first, second, third = sandbox.add_drafts(user, 3)
        sandbox.set_quota(user, 0)
        async with open_client(sandbox, url) as here, open_client(sandbox, url) as there:
            with pytest.raises(FeishuMailError):
                await here.send_draft(first, user=user)
            with pytest.raises(FeishuMailError) as caught:
                await there.send_draft(second, user=user)
            assert getattr(caught.value, "subject", None) == f"user:{user}"
            assert [one.subject for one in there.snapshot().suspended] == [f"user:{user}"]
            sandbox.set_quota(user, None)
            there.resume(f"user:{user}")
            assert (await there.send_draft(second, user=user)).attempts == 1
            here.resume(f"user:{user}")
            assert (await here.send_draft(third, user=user)).attempts == 1
        assert sandbox.ledger.sent == Counter([second, third])


async def test_short_keys_stay_as_they_are(url: str, sandbox: Sandbox) -> None:
    """A ledger that is there goes on working: whatever has 768 bytes at most is kept as it is."""
    longest = Draft("d" * 512, chinese(256, 6), "user1")
    sandbox.share_mailbox(longest.mailbox, "user1")
    sandbox.add_draft("user1", longest.draft_id, longest.mailbox)
    async with open_client(sandbox, url) as client:
        await client.send_draft(longest)
    ledger = ledger_on(url)
    [row] = await rows(ledger, schema.draft)
    assert (row["user_key"], row["mailbox_key"], row["draft_id"]) == ("user1", longest.mailbox, longest.draft_id)
    await ledger.close()


async def test_the_login_of_a_user_with_the_longest_name(url: str) -> None:
    user = "\U0001f600" * 512
    ledger = ledger_on(url)
    store = ledger.tokens("http://127.0.0.1:1", APP)
    token = StoredToken("u-1", 2e9, 7200.0, "ur-1", None, "mail:\ud800\0send")
    assert await store.save(user, token)
    loaded = await store.load(user)
    assert loaded is not None
    assert (loaded.access_token, loaded.refresh_token) == ("u-1", "ur-1")
    assert await store.users() == [user]
    await ledger.close()


async def test_a_scope_that_no_text_can_be_is_nobody_elses_trouble(url: str) -> None:
    """A key with characters that a database does not take is kept all the same."""
    ledger = ledger_on(url, patience=5.0)
    process = Process(ledger, ledger.store("http://127.0.0.1:1", APP, FREE))
    process.store.resume("user:\0\ud800")
    await process.send(ask("d1", user="\ud800"))
    await process.send(ask("d1", user="\ud801"))
    records = await process.store.records(
        [DraftKey(user, f"me/{user}", "d1") for user in ("\ud800", "\ud801", "?")]
    )
    assert sorted(key.user for key in records) == ["\ud800", "\ud801"]
    await ledger.close()


# --- what a database refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize("send", [run, one_by_one])
async def test_a_record_that_is_refused_as_the_turn_comes(url: str, sandbox: Sandbox, send: Any) -> None:
    await make_tables(url, sandbox)
    make_refuse(url, "INSERT")
    every, good, bad = mixed(sandbox, 60, 5)
    async with open_client(sandbox, url) as client:
        outcomes = await send(client, every)
        all_is_well(outcomes, sandbox, good, bad)
        await client.send_draft(sandbox.add_draft("user1"), user="user1")
    ledger = ledger_on(url)
    await nothing_held(ledger)
    assert sum(row["state"] == "sent" for row in await rows(ledger, schema.draft)) == 62
    await ledger.close()


@pytest.mark.parametrize("kind", ["22003", "22P02", "23514", "23503", "44000", "54000", "P0001"])
async def test_whatever_postgresql_refuses_a_row_with(postgres_url: str, sandbox: Sandbox, kind: str) -> None:
    await make_tables(postgres_url, sandbox)
    make_refuse(postgres_url, "INSERT", kind=kind)
    every, good, bad = mixed(sandbox, 10, 2)
    async with open_client(sandbox, postgres_url) as client:
        all_is_well(await run(client, every), sandbox, good, bad)


@pytest.fixture
def choking() -> Iterator[None]:
    """A driver that cannot even ask for a poisoned draft, whatever the statement."""

    def look(*arguments: Any) -> None:
        if POISON in repr(arguments[3]):
            raise UnicodeEncodeError("utf-8", POISON, 0, 1, "it cannot be said")

    sa.event.listen(sa.Engine, "before_cursor_execute", look)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", look)


@pytest.mark.parametrize("send", [run, one_by_one])
@pytest.mark.usefixtures("choking")
async def test_a_draft_that_cannot_even_be_looked_up(url: str, sandbox: Sandbox, send: Any) -> None:
    every, good, bad = mixed(sandbox, 80, 4)
    async with open_client(sandbox, url) as client:
        all_is_well(await send(client, every), sandbox, good, bad)
        records = await client.records(every)
    known = {draft for draft, record in zip(every, records, strict=True) if record is not None}
    assert known == set(good)


async def test_a_success_that_cannot_be_written_holds_nobody_up(
    url: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """The mail went out, and that is told; its user's next draft does not wait until what it held has lapsed."""
    await make_tables(url, sandbox)
    make_refuse(url, "UPDATE", "NEW.state = 'sent'")
    odd, good = sandbox.add_draft("user1", f"{POISON}1"), sandbox.add_draft("user1")
    async with open_client(sandbox, url) as client, asyncio.timeout(20):
        assert (await client.send_draft(odd, user="user1")).status is OutcomeStatus.SENT
        assert (await client.send_draft(good, user="user1")).status is OutcomeStatus.SENT
        records = await client.records([Draft(one, user="user1") for one in (odd, good)])
    assert [one is not None and one.state for one in records] == [DraftState.IN_FLIGHT, DraftState.SENT]
    assert [told for told in caplog.messages if odd in told]
    ledger = ledger_on(url)
    assert [row for row in await rows(ledger, schema.permit) if row["ended"] is None] == []
    assert [row for row in await rows(ledger, schema.lock) if row["turn"]] == []
    await ledger.close()


async def test_an_end_that_cannot_be_written(url: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """Drafts that end together are noted together: those that can be are on record, the other is told by name."""
    ledger = ledger_on(url)
    store = ledger.store(sandbox.base_url, APP, FREE)
    keys = [DraftKey("user1", "me/user1", f"d{number}") for number in range(300)]
    odd = DraftKey("user1", "me/user1", f"{POISON}1")
    await store.records(keys)
    make_refuse(url, "INSERT")
    for key in (*keys[:250], odd, *keys[250:]):
        store.note(key, OutcomeStatus.SKIPPED, FeishuMailError("not sent"))
    await store.written()
    noted = {row["draft_id"] for row in await rows(ledger, schema.draft)}
    assert noted == {key.draft_id for key in keys}
    [told] = [one for one in caplog.messages if "record" in one]
    assert odd.draft_id in told
    await ledger.close()


async def test_what_concerns_the_whole_database_is_nobodys_own(url: str, sandbox: Sandbox) -> None:
    """A database that refuses every transaction is no draft's fault: all are told that the ledger fails."""
    await make_tables(url, sandbox)
    good = drafts_of(sandbox, 30)

    def look(*arguments: Any) -> None:
        if "feishu_mail_app" in arguments[2]:
            raise UnicodeEncodeError("utf-8", "x", 0, 1, "nothing can be said")

    async with open_client(sandbox, url) as client:
        sa.event.listen(sa.Engine, "before_cursor_execute", look)
        try:
            outcomes = await run(client, good)
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", look)
        errors = [one.error for one in outcomes.values()]
        assert {type(error and error.__cause__) for error in errors} == {LedgerError}
        assert sandbox.ledger.sent == Counter()
        assert {one.status for one in (await run(client, good)).values()} == {OutcomeStatus.SENT}


@pytest.mark.parametrize("code", [2**31, 2**40, 2**62])
async def test_a_code_that_no_column_takes(url: str, code: int) -> None:
    """The refusal of a draft is on record, however large its number, and the next draft goes."""
    answers = always(http(400, f'{{"code":{code},"msg":"new"}}'.encode(), ("Content-Type", "application/json")))
    ledger = ledger_on(url, patience=5.0)
    async with raw_server(answers) as server:
        settings: dict[str, Any] = {"app": APP, "base_url": server.base_url, "rate_limit": FREE, "retry": ONCE}
        async with FeishuMailClient("u-1", ledger=ledger, **settings) as client:
            for draft in ("d1", "d2"):
                with pytest.raises(ApiError, match=str(code)):
                    await client.send_draft(draft)
            records = await client.records(["d1", "d2"])
    assert [one is not None and one.state for one in records] == [DraftState.FAILED, DraftState.FAILED]
    await ledger.close()


async def test_a_draft_that_is_refused_by_the_server_is_another_thing(url: str, sandbox: Sandbox) -> None:
    async with open_client(sandbox, url) as client:
        with pytest.raises(DraftNotFound):
            await client.send_draft("no-such-draft", user="user1")
