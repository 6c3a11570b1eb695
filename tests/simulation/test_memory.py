"""A process that sees ever new users and mailboxes for months keeps in mind a bounded number of them."""

import asyncio
import gc
import itertools
import weakref
from collections import Counter
from collections.abc import Sized
from typing import Any

import pytest

from feishu_mail_async import (
    BulkRun,
    Draft,
    FeishuMailClient,
    MailboxNotFound,
    OutcomeStatus,
    RateLimit,
    Suspended,
)
from feishu_mail_async.sandbox import Sandbox
from tests.helpers.canary import TOKEN
from tests.helpers.scenes import FREE


def ours() -> Counter[str]:
    """The objects there are of the package's own classes, without the sandbox's."""
    gc.collect()
    found: Counter[str] = Counter()
    for one in gc.get_objects():
        module = getattr(type(one), "__module__", "")
        if str(module).startswith("feishu_mail_async") and "sandbox" not in module:
            found[f"{module}.{type(one).__qualname__}"] += 1
    return found


@pytest.mark.looptime
async def test_a_client_that_sees_ever_new_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feishu_mail_async._scheduling.lanes.USERS_REMEMBERED", 50)
    monkeypatch.setattr("feishu_mail_async._auth.tokens._USERS_KEPT", 50)
    async with Sandbox(users=["alice"], latency=0, calls=100_000) as sandbox:

        async def token(user: str | None) -> str:
            return sandbox.token(str(user))

        client = FeishuMailClient(token, app="cli_x", base_url=sandbox.base_url, rate_limit=FREE)
        counts = []
        async with client:
            for part in range(6):
                for number in range(60):
                    user, mailbox = f"user{part}-{number}", f"box{part}-{number}@example.com"
                    sandbox.add_user(user)
                    sandbox.share_mailbox(mailbox, user)
                    await client.send_draft(sandbox.add_draft(user), user=user)
                    await client.send_draft(sandbox.add_draft(user, mailbox=mailbox), mailbox=mailbox, user=user)
                counts.append(ours())
    grown = {
        name: (counts[1][name], number) for name, number in counts[-1].items() if number > counts[1][name] + 5
    }
    assert grown == {}


@pytest.mark.looptime
async def test_more_users_wait_than_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many users wait, and for however long: each has a token when the turn comes."""
    monkeypatch.setattr("feishu_mail_async._auth.tokens._USERS_KEPT", 5)
    users = [f"user{number}" for number in range(30)]
    async with Sandbox(users=users) as sandbox:

        async def token(user: str | None) -> str:
            return sandbox.token(str(user))

        async def sent_by(run: BulkRun) -> list[OutcomeStatus]:
            return [outcome.status async for outcome in run]

        drafts = [Draft(sandbox.add_draft(user), user=user) for _ in range(2) for user in users]
        async with FeishuMailClient(token, base_url=sandbox.base_url) as client:
            runs = [sent_by(client.send_drafts(drafts[part::2])) for part in range(2)]
            alone = [client.send_draft(sandbox.add_draft(user), user=user) for user in users]
            ended, results = await asyncio.gather(asyncio.gather(*runs), asyncio.gather(*alone))
        assert Counter(itertools.chain(*ended)) == {OutcomeStatus.SENT: len(drafts)}
        assert [result.status for result in results] == [OutcomeStatus.SENT] * len(users)
        assert sandbox.ledger.refusals == 0


def sizes(one: Any) -> int:
    """The entries of all collections that an object has, and those of its own parts."""
    total = 0
    for value in vars(one).values():
        if isinstance(value, Sized) and not isinstance(value, str):
            total += len(value)
        elif type(value).__module__ == type(one).__module__ and hasattr(value, "__dict__"):
            total += sizes(value)
    return total


@pytest.mark.parametrize("number", [200])
async def test_a_worker_that_sees_ever_new_users(postgres_url: str, number: int) -> None:
    pytest.importorskip("procrastinate")
    from feishu_mail_async import Outcome  # noqa: PLC0415
    from feishu_mail_async.fleet import Queue, enqueue, prepare  # noqa: PLC0415
    from feishu_mail_async.fleet.worker import DraftWorker, Times  # noqa: PLC0415

    users = [f"user{one}" for one in range(number)]
    outcomes: list[Outcome] = []
    async with Sandbox(users=users, latency=0, calls=100_000) as sandbox:
        queue = Queue(sandbox.base_url, "cli_x")
        await prepare(postgres_url)
        await enqueue(postgres_url, queue, [Draft(sandbox.add_draft(user), "me", user) for user in users])
        limit = RateLimit(calls=1000, per=1.0, spacing=0)
        async with FeishuMailClient(
            sandbox.tokens, app="cli_x", base_url=sandbox.base_url, rate_limit=limit
        ) as client:
            worker = DraftWorker(
                postgres_url,
                queue,
                client,
                user_of=lambda user: user,
                limit=limit,
                at_once=10,
                times=Times(beat=0.2, poll=0.05),
                tell=outcomes.append,
                note=print,
            )
            before = sizes(worker)
            await worker.run(until_empty=True)
            assert sizes(worker) < before + 20
    assert len(outcomes) == number


class Clumsy(FeishuMailClient):
    """A client with a mistake that shows with every draft."""

    async def send_draft(self, draft: Any, **_: Any) -> Any:
        raise KeyError(draft.draft_id)


async def test_a_worker_whose_mistakes_go_to_others(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job with which it failed once, and that it never sees again, is not kept in mind for ever."""
    pytest.importorskip("procrastinate")
    from feishu_mail_async.fleet import Queue, enqueue, prepare  # noqa: PLC0415
    from feishu_mail_async.fleet.worker import DraftWorker, Times  # noqa: PLC0415

    monkeypatch.setattr("feishu_mail_async.fleet.worker._REMEMBERED", 10)
    queue, notes = Queue("http://127.0.0.1:9", "cli_x"), list[str]()
    await prepare(postgres_url)
    await enqueue(postgres_url, queue, [Draft(f"d{number}", "me", "alice") for number in range(100)])

    def note(text: str) -> None:
        notes.append(text)
        if len(notes) == 100:
            worker.stop()

    async with Clumsy({"alice": TOKEN}, app="cli_x", base_url="http://127.0.0.1:9") as client:
        worker = DraftWorker(
            postgres_url,
            queue,
            client,
            user_of=lambda user: user,
            limit=RateLimit(),
            at_once=10,
            times=Times(poll=0.05),
            tell=print,
            note=note,
        )
        before = sizes(worker)
        await worker.run()
    assert len({text.split()[1] for text in notes}) == 100
    assert sizes(worker) < before + 20


@pytest.mark.looptime(start=0)
async def test_a_closure_keeps_nothing_of_its_callers_alive() -> None:
    class Payload:
        pass

    async with Sandbox(users=["alice"], latency=0.1) as sandbox:
        sandbox.close_mailbox(sandbox.users["alice"])
        async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:

            async def handler() -> "weakref.ref[Payload]":
                payload = Payload()
                with pytest.raises(MailboxNotFound):
                    await client.send_draft("d")
                return weakref.ref(payload)

            payload = await handler()
            gc.collect()
            assert payload() is None
            with pytest.raises(Suspended) as caught:
                await client.send_draft("d")
            assert isinstance(caught.value.__cause__, MailboxNotFound)
            assert caught.value.__cause__.__traceback__ is None
