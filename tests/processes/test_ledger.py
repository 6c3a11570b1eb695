"""Several processes, one ledger: what one is told holds for all."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feishu_mail_async import FeishuMailClient, RateLimit
from feishu_mail_async._scheduling.store import Offer
from feishu_mail_async.ledger.session import Session
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.ledger_processes import STUBBORN, Programs, shares

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it forks, and sends signals")


# --- what one ledger keeps apart ---------------------------------------------------------------------------


async def test_a_rehearsal_and_another_app_count_for_nothing(sqlite_urls: Iterator[str]) -> None:
    url = next(sqlite_urls)
    # Of one seed: both have the same ids.
    async with (
        Sandbox(users=("alice",), latency=0.01) as rehearsal,
        Sandbox(users=("alice",), latency=0.01) as real,
    ):
        limit = {"calls": 20, "per": 60.0, "spacing": 0.0}
        async with Programs(rehearsal, url, limit) as first, Programs(real, url, limit) as second:
            drafts = first.add("alice", 5)
            assert second.add("alice", 5) == drafts
            assert set((await first.run()).values()) == {"sent"}
            assert set((await second.run()).values()) == {"sent"}
            assert set((await second.run()).values()) == {"already_sent"}
            assert len(real.ledger.sends) == 5, "the second run is known to be done"
            second.told.clear()
            second.app = "cli_b"
            assert set((await second.run()).values()) == {"already_sent"}
            assert len(real.ledger.sends) == 10, "of another app nothing is known: the server is asked"


# --- who waits, and what is suspended, across processes -------------------------------------------------------


async def test_a_pause_that_one_process_is_told_of_holds_for_all_and_one_call_probes(
    sqlite_urls: Iterator[str],
) -> None:
    limit = {"calls": 20, "per": 4.0, "spacing": 0.1, "grace": 2.0, "margin": 0.05}
    users = [f"user{number}" for number in range(9)]
    async with (
        Sandbox(users=users, latency=0.2, calls=1000) as sandbox,
        Programs(sandbox, next(sqlite_urls), limit, retry=STUBBORN) as scene,
    ):
        for user in users:
            scene.add(user, 2)
        refused: list[float] = []

        def answer(arrival: Any) -> Fault | None:
            if not refused or (len(refused) == 1 and arrival.time > refused[0] + 1):
                refused.append(arrival.time)
                return Fault.frequency(reset="2" if len(refused) == 1 else "1")
            return None

        sandbox.on_call = answer
        given = list(scene.owners)
        programs = [await scene.start(given[number::3]) for number in range(3)]
        for program in programs:
            await program.done()
            assert set(program.outcomes.values()) == {"sent"}
        times = [send.time for send in sandbox.ledger.sends]
        first, second = refused
        # Those that had their turns before the answer was there are under way; after them there is silence.
        assert not [at for at in times if first + 1.2 < at < first + 2.0]
        probes = [at for at in times if at > first + 1]
        assert probes[0] == second, "one probe, by whichever process"
        assert probes[1] >= second + 1, "a probe that is refused begins the pause anew"
        assert probes[2] >= probes[1] + 0.2, "nobody else before the probe's answer"
        for number, at in enumerate(probes[2:]):
            # A call may take a while to its arrival; the pace is kept all the same.
            assert at >= probes[2] + number * 0.2 - 0.3, "after a pause calls go at the even pace"


async def test_a_mailbox_that_one_process_finds_closed_is_closed_for_all_until_one_reopens_it(
    sqlite_urls: Iterator[str], tmp_path: Path
) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0}
    async with (
        Sandbox(users=("alice", "bob"), latency=0.1) as sandbox,
        Programs(sandbox, next(sqlite_urls), limit) as scene,
    ):
        a, b = scene.add("alice", 7), scene.add("bob", 2)
        sandbox.disable_automation("alice@example.com")

        def of_alice() -> int:
            return sum(send.user == "alice" for send in sandbox.ledger.sends)

        # Two at once: one finds it closed, the other hears of it while it waits for alice's lock.
        waits = tmp_path / "reopened"
        later = {"when": str(waits), "drafts": [(a[2], "alice", "me")]}
        lasting = await scene.start(a[:2], then=[later])
        other = await scene.start(a[2:4])
        await other.done()
        await lasting.says("waits")
        told = Counter(other.outcomes.values()) + Counter(lasting.outcomes.values())
        assert told == {"failed": 1, "skipped": 3}
        assert of_alice() == 1
        # One that is started later knows it, and the other users go.
        assert await scene.run([a[4], b[0]]) == {a[4]: "skipped", b[0]: "sent"}
        assert of_alice() == 1
        sandbox.open_mailbox("alice@example.com")
        assert await scene.run([a[5]]) == {a[5]: "skipped"}, "nobody has resumed it"
        assert await scene.run([a[5]], resume=["mailbox:me/alice"]) == {a[5]: "sent"}
        assert await scene.run([a[6]]) == {a[6]: "sent"}
        waits.touch()
        await lasting.done()
        assert lasting.outcomes[a[2]] == "sent", "it is open for one that had found it closed"
        assert of_alice() == 4


async def test_a_user_who_cools_down_does_so_in_every_process(sqlite_urls: Iterator[str]) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0}
    async with (
        Sandbox(users=("alice", "bob"), latency=0.02) as sandbox,
        Programs(sandbox, next(sqlite_urls), limit, retry={"initial": 3.0, "maximum": 3.0}) as scene,
    ):
        (first,) = scene.add("alice")
        others = scene.add("alice", 2) + scene.add("bob", 2)
        sandbox.script(first, Fault.code("MailThrottled"))
        throttled = await scene.start([first])
        while not sandbox.ledger.sends:  # noqa: ASYNC110 - the sandbox has no event for that
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        other = await scene.start(others)
        await other.done()
        await throttled.done()
        alice = [send.time for send in sandbox.ledger.sends if send.user == "alice"]
        bob = [send.time for send in sandbox.ledger.sends if send.user == "bob"]
        assert alice[1] - alice[0] >= 1.5
        assert bob[-1] < alice[1]
        assert set(shares([throttled, other])) == {"sent"}


# --- a process that stands still ---------------------------------------------------------------------------


async def test_a_turn_that_a_process_has_slept_through_is_not_used(sqlite_urls: Iterator[str]) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice",), latency=lambda _: (0.1, 0.7)) as sandbox,
        Programs(sandbox, next(sqlite_urls), limit, attempt_timeout=1.2, slack=0.3) as scene,
    ):
        mine, other = scene.add("alice", 2)
        stop = {"point": "taken", "nth": 1, "number": signal.SIGSTOP}
        asleep = await scene.start([mine], crashes=[stop])
        await asleep.says("reached")
        began = time.monotonic()
        awake = await scene.start([other])
        while not sandbox.ledger.sends:  # noqa: ASYNC110 - the sandbox has no event for that
            await asyncio.sleep(0.01)
        assert time.monotonic() - began > 1.2, "the lease had not lapsed yet"
        assert sandbox.ledger.sends[0].draft_id == other
        asleep.signal(signal.SIGCONT)  # in the midst of the other's call
        await awake.done()
        await asleep.done()
        assert [send.draft_id for send in sandbox.ledger.sends] == [other, mine]
        assert (asleep.outcomes, awake.outcomes) == ({mine: "sent"}, {other: "sent"})


async def test_a_turn_that_was_not_used_is_there_for_another(sqlite_urls: Iterator[str]) -> None:
    limit = {"calls": 1, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice",), latency=0.02) as sandbox,
        Programs(sandbox, next(sqlite_urls), limit, attempt_timeout=2.0, slack=0.2) as scene,
    ):
        (draft,) = scene.add("alice")
        stop = {"point": "taken", "nth": 1, "number": signal.SIGSTOP}
        asleep = await scene.start([draft], crashes=[stop])
        await asleep.says("reached")
        await asyncio.sleep(0.5)
        asleep.signal(signal.SIGCONT)
        async with asyncio.timeout(10):
            await asleep.done()
        assert len(sandbox.ledger.sends) == 1


async def standing_still(url: str, point: str) -> None:
    limit = {"calls": 20, "per": 60.0, "spacing": 0.0, "grace": 0.3}
    async with (
        Sandbox(users=("alice", "bob"), latency=0.1) as sandbox,
        Programs(sandbox, url, limit, attempt_timeout=0.8, slack=0.3, retry=STUBBORN) as scene,
    ):
        a, b = scene.add("alice", 3), scene.add("bob", 3)
        stop = {"point": point, "nth": 2, "number": signal.SIGSTOP, "delay": 0.05}
        asleep = await scene.start([*a[:2], b[0]], crashes=[stop])
        await asleep.says("reached")
        awake = await scene.start([a[2], *b[1:]])
        await asyncio.sleep(2.0)  # longer than the lease
        asleep.signal(signal.SIGCONT)
        await awake.done()
        await asleep.done()
        assert sandbox.ledger.sent == dict.fromkeys(scene.owners, 1)
        assert set(shares([asleep, awake])) <= {"sent", "already_sent"}


async def test_a_process_that_stands_still_anywhere_goes_on_as_if_nothing_had_been(
    sqlite_urls: Iterator[str],
) -> None:
    points = ("taking", "calling", "settling")
    await asyncio.gather(*(standing_still(next(sqlite_urls), point) for point in points))


@pytest.mark.parametrize("what", ["permit", "probe"])
async def test_a_send_given_up_while_the_ledger_is_asked_leaves_its_turn_to_another(
    sqlite_urls: Iterator[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    granted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    transact = Session.transact
    left = [1 if what == "permit" else 2]

    async def slow(session: Session, *work: Any) -> Any:
        done = await transact(session, *work)
        taken = done[0]
        if isinstance(taken, Offer) and taken.granted is not None:
            left[0] -= 1
            if not left[0]:
                granted.set_result(taken.granted[0].user)
                await asyncio.sleep(0.1)
        return done

    monkeypatch.setattr(Session, "transact", slow)
    limit = RateLimit(calls=1 if what == "permit" else 20, spacing=0)
    async with Sandbox(users=("alice", "bob"), latency=0.02) as sandbox:
        a, b = sandbox.add_draft("alice"), sandbox.add_draft("bob")
        if what == "probe":
            sandbox.script(a, Fault.frequency(reset="1"))
        async with FeishuMailClient(
            sandbox.tokens, app="cli_a", base_url=sandbox.base_url, ledger=next(sqlite_urls), rate_limit=limit
        ) as client:
            sends = {"alice": asyncio.create_task(client.send_draft(a, user="alice"))}
            if what == "probe":
                while not sandbox.ledger.sends:  # noqa: ASYNC110 - the sandbox has no event for that
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
            sends["bob"] = asyncio.create_task(client.send_draft(b, user="bob"))
            given_up = sends.pop(await granted)
            given_up.cancel()
            async with asyncio.timeout(10):
                await asyncio.gather(*sends.values())
        assert sandbox.ledger.sent.total() == 1
