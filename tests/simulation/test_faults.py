"""Invariants 3 and 8: one call at a time; whatever goes wrong, nothing lost, nothing twice, nothing claimed."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from feishu_mail_async import (
    ApiError,
    AutomatedSendDisabled,
    Draft,
    FeishuMailClient,
    NotSent,
    OutcomeUnknown,
    Priority,
    RateLimit,
    RetryPolicy,
    SendResult,
    Suspended,
    TransportError,
    UnknownUser,
    codes,
)
from feishu_mail_async.sandbox import Fault, Sandbox, Window
from tests.helpers.clock import SEEDED, now, run_virtual
from tests.helpers.story import check_story

if TYPE_CHECKING:
    from feishu_mail_async.events import Event

TIMEOUT: Final = 5.0
GRACE: Final = 10.0
USERS: Final = ("alice", "bob", "carol")
SHARED: Final = "team@example.com"

CERTAINLY_NOT_SENT: Final = (
    ApiError,
    AutomatedSendDisabled,
    NotSent,
    Suspended,
    TransportError,
    UnknownUser,
)


# --- what can go wrong -------------------------------------------------------------------------------------

either = st.booleans()
resets = st.sampled_from(["1", "30", "0", "-5", "NaN", "garbage", "1e99", None])

# A server that says "refused" for certain does not send; only answers that settle nothing may hide a mail.
conclusive = st.one_of(
    st.sampled_from(
        [
            Fault.code(row.name)
            for row in codes.CODES.values()
            if row.conclusive and row.verdict in {codes.Verdict.RETRY, codes.Verdict.FATAL}
        ]
    ),
    st.builds(Fault.frequency, st.sampled_from([429, 400]), resets),
    st.builds(Fault.bare_429, resets),
    st.builds(Fault.unknown, st.just(1299999), st.sampled_from([400, 403, 429])),
    st.just(Fault.automation_disabled()),
)
inconclusive = st.one_of(
    st.builds(lambda accepted: Fault.code("InternalError", accepted=accepted), either),
    st.builds(lambda accepted: Fault.unknown(1299998, 503, accepted=accepted), either),
    st.builds(
        lambda status, accepted: Fault.gateway(status, accepted=accepted), st.sampled_from([500, 502, 504]), either
    ),
    st.builds(lambda accepted: Fault.broken(accepted=accepted), either),
    st.builds(lambda accepted: Fault.empty(accepted=accepted), either),
    st.builds(lambda accepted: Fault.null(accepted=accepted), either),
    st.builds(lambda accepted: Fault.array(accepted=accepted), either),
    st.builds(lambda accepted: Fault.nulls(accepted=accepted), either),
    st.builds(
        lambda declared, accepted: Fault.huge(300_000, declared=declared, accepted=accepted), either, either
    ),
    st.just(Fault.redirect("http://127.0.0.1:9/elsewhere")),
    st.sampled_from([Fault.reset_before(), Fault.reset_after(), Fault.hang_before(), Fault.hang_after()]),
    # Given up after TIMEOUT, it arrives and is done with before GRACE is over.
    st.builds(Fault.delay, st.floats(0, 7), st.floats(5, 7)),
)
harmless = st.one_of(
    st.just(Fault.normal()),
    st.just(Fault.code("AlreadySent", accepted=True)),
    st.builds(Fault.delay, st.floats(0, 2), st.floats(0, 2)),
)


@dataclass(frozen=True)
class Case:
    """A draft, what goes wrong with its calls, and what its caller does.

    Attributes:
        user: whose it is.
        shared: whether it lies in the mailbox that all share.
        priority: who goes first.
        faults: of its calls, and whether each is sure to have sent nothing, or to say so.
        asked_at: when it is asked for.
        deadline: seconds for all of it.
        cancelled_after: seconds until its caller has had enough.
        twice: it is asked for twice at once.
    """

    user: str
    shared: bool
    priority: Priority
    faults: tuple[tuple[Fault, bool], ...]
    asked_at: float
    deadline: float | None
    cancelled_after: float | None
    twice: bool


faults = st.one_of(
    st.tuples(conclusive, st.just(True)),
    st.tuples(inconclusive, st.just(False)),
    st.tuples(harmless, st.just(True)),
)
cases = st.builds(
    Case,
    user=st.sampled_from(USERS),
    shared=either,
    priority=st.sampled_from(Priority),
    faults=st.lists(faults, max_size=4).map(tuple),
    asked_at=st.sampled_from([0.0, 0.0, 1.0, 61.0]),
    deadline=st.one_of(st.none(), st.none(), st.floats(0.01, 100)),
    cancelled_after=st.one_of(st.none(), st.none(), st.floats(0.01, 100)),
    twice=st.sampled_from([False, False, True]),
)
policies = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 5),
    refusals=st.integers(0, 5),
    outage=st.sampled_from([None, 20.0, 600.0]),
)
outages = st.lists(st.tuples(st.floats(0, 60), st.floats(1, 60)), max_size=2)


@dataclass(frozen=True)
class Story:
    cases: Sequence[Case]
    calls: int
    window: Window
    policy: RetryPolicy
    outages: Sequence[tuple[float, float]]
    seed: int


stories = st.builds(
    Story,
    cases=st.lists(cases, min_size=1, max_size=10),
    calls=st.integers(3, 20),
    window=st.sampled_from(Window),
    policy=policies,
    outages=outages,
    seed=st.integers(0, 1000),
)

# --- what must be true afterwards --------------------------------------------------------------------------

Found = SendResult | BaseException


async def ask(client: FeishuMailClient, draft: Draft, case: Case) -> list[Found]:
    """Send a draft as its caller does, and return what every caller was told."""
    await asyncio.sleep(case.asked_at)
    tasks = [
        asyncio.create_task(client.send_draft(draft, priority=case.priority, deadline=case.deadline))
        for _ in range(2 if case.twice else 1)
    ]
    if case.cancelled_after is not None:
        # Of two callers, the first one: the second still wants to know.
        asyncio.get_running_loop().call_later(case.cancelled_after, tasks[0].cancel)
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def check(story: Story, case: Case, draft: str, found: Found, sandbox: Sandbox) -> None:
    sent = sandbox.ledger.sent[draft]
    calls = sandbox.ledger.calls(draft)
    assert sent <= 1
    event(type(found).__name__)
    if isinstance(found, SendResult):
        assert sent == 1, "success was claimed, and nothing was sent"
        assert found.attempts >= 1
    elif isinstance(found, CERTAINLY_NOT_SENT):
        assert sent == 0, f"sent, and {found!r} was claimed"
        assert found.draft == Draft(draft, SHARED if case.shared else "me", case.user)
        if isinstance(found, Suspended):
            assert found.subject in {"app", f"user:{case.user}", f"mailbox:{SHARED}", f"mailbox:me/{case.user}"}
        if isinstance(found, TransportError):
            assert story.outages
    elif isinstance(found, OutcomeUnknown):
        # Only where something was left open: by an answer, by a cut connection, or by the deadline. A call
        # uses up one fault, so those beyond the number of calls have not happened.
        open_ends = not all(certain for _, certain in case.faults[: len(calls)])
        assert open_ends or story.outages or case.deadline is not None
        assert calls or story.outages or case.deadline is not None
    else:
        assert isinstance(found, asyncio.CancelledError), repr(found)
        assert case.cancelled_after is not None


async def play(story: Story) -> None:
    random.seed(story.seed)
    limit = RateLimit(calls=story.calls, per=60, spacing=0.1, grace=GRACE)
    async with Sandbox(
        users=USERS, calls=story.calls, window=story.window, latency=(0.01, 0.5), processing=0.05, seed=story.seed
    ) as sandbox:
        sandbox.share_mailbox(SHARED, *USERS)
        async with FeishuMailClient(
            sandbox.tokens,
            base_url=sandbox.base_url,
            rate_limit=limit,
            retry=story.policy,
            attempt_timeout=TIMEOUT,
        ) as client:
            told_of: list[Event] = []
            client.subscribe(told_of.append)
            drafts = []
            for case in story.cases:
                mailbox = SHARED if case.shared else "me"
                drafts.append(Draft(sandbox.add_draft(case.user, mailbox=mailbox), mailbox, case.user))
                sandbox.script(drafts[-1].draft_id, *(fault for fault, _ in case.faults))

            async def disturb() -> None:
                for after, length in story.outages:
                    await asyncio.sleep(after)
                    async with sandbox.outage():
                        await asyncio.sleep(length)

            disturbing = asyncio.create_task(disturb())
            told = await asyncio.gather(
                *(ask(client, draft, case) for draft, case in zip(drafts, story.cases, strict=True))
            )
            await disturbing
            # Every permit comes back, also those of calls whose callers have gone.
            await asyncio.sleep(2 * (TIMEOUT + GRACE) + limit.per + limit.margin)
            snapshot = client.snapshot()
            assert snapshot.in_flight == 0
            assert snapshot.permits == story.calls
            assert set(snapshot.waiting.values()) == {0}
        for draft, case, all_found in zip(drafts, story.cases, told, strict=True):
            for found in all_found:
                check(story, case, draft.draft_id, found, sandbox)
        assert sandbox.ledger.conflicts == 0
        assert sandbox.ledger.refusals == 0
        assert sandbox.ledger.busiest_window() <= story.calls
        check_story(told_of, sandbox.ledger, cut=bool(story.outages))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@given(stories)
@settings(max_examples=100)
def test_every_draft_ends_in_one_true_outcome(story: Story) -> None:
    run_virtual(play(story), noop_cycles=8)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@given(stories)
@settings(max_examples=2500, derandomize=SEEDED)
def test_soak_every_draft_ends_in_one_true_outcome(story: Story) -> None:
    run_virtual(play(story), noop_cycles=8)


# --- closing in the middle ---------------------------------------------------------------------------------


@pytest.mark.looptime(start=0)
@pytest.mark.parametrize("patience", [None, 0, 1.0])
async def test_closing_in_the_middle_ends_every_draft_truly_and_leaves_nothing_behind(
    patience: float | None,
) -> None:
    async with Sandbox(users=USERS, latency=4.0) as sandbox:
        client = FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url)
        drafts = [(draft, user) for user in USERS for draft in sandbox.add_drafts(user, 5)]
        tasks = [asyncio.create_task(client.send_draft(draft, user=user)) for draft, user in drafts]
        await asyncio.sleep(1)
        assert client.snapshot().in_flight == 3
        await client.close(patience)
        assert all(task.done() for task in tasks) or patience == 0
        told = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(10)
        for (draft, _), found in zip(drafts, told, strict=True):
            sent = sandbox.ledger.sent[draft]
            if isinstance(found, SendResult):
                assert sent == 1
                assert patience is None
            elif isinstance(found, OutcomeUnknown):
                assert patience is not None
            else:
                assert isinstance(found, NotSent)
                assert sent == 0
        assert sum(isinstance(found, NotSent) for found in told) == 12
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- one call at a time ------------------------------------------------------------------------------------


@pytest.mark.looptime(start=0, noop_cycles=8)
async def test_two_users_go_in_parallel_and_one_user_never() -> None:
    async with Sandbox(users=("alice", "bob"), latency=1.0, calls=1000) as sandbox:
        limit = RateLimit(calls=1000, spacing=0)
        async with FeishuMailClient(sandbox.tokens, base_url=sandbox.base_url, rate_limit=limit) as client:
            await asyncio.gather(
                *(
                    client.send_draft(draft, user=user)
                    for user in ("alice", "bob")
                    for draft in sandbox.add_drafts(user, 50)
                )
            )
        assert now() == pytest.approx(50, rel=0.01)
        assert sandbox.ledger.conflicts == 0
        for user in ("alice", "bob"):
            times = [call.time for call in sandbox.ledger.sends if call.user == user]
            assert all(later - earlier >= 1 - 1e-3 for earlier, later in itertools.pairwise(times))


async def conflict_run(sends: int, seed: int) -> None:
    """Users and mailboxes that cross, calls that take long or are given up, and no other limit in the way."""
    draw = random.Random(seed)
    random.seed(seed)
    users = [f"user{number}" for number in range(6)]
    boxes = [f"box{number}@example.com" for number in range(3)]
    async with Sandbox(users=users, calls=100_000, latency=(0.01, 1.0), processing=0.2, seed=seed) as sandbox:
        for box in boxes:
            sandbox.share_mailbox(box, *users)
        drafts = []
        for _ in range(sends):
            user = draw.choice(users)
            mailbox = draw.choice(["me", f"{user}@example.com", *boxes])
            # Addresses compare without case; so must the locks.
            spelled = mailbox.upper() if mailbox != "me" and draw.random() < 0.3 else mailbox
            draft = Draft(sandbox.add_draft(user, mailbox=mailbox), spelled, user)
            drafts.append(draft)
            if draw.random() < 0.05:
                # Longer than the timeout, over before the end of grace.
                sandbox.script(draft.draft_id, Fault.delay(draw.uniform(0, 6), draw.uniform(3, 6)))
        limit = RateLimit(calls=100_000, spacing=0)
        async with FeishuMailClient(
            sandbox.tokens, base_url=sandbox.base_url, rate_limit=limit, attempt_timeout=3.0
        ) as client:
            tasks = [asyncio.create_task(client.send_draft(draft)) for draft in drafts]
            dropped = set(draw.sample(range(sends), sends // 20))
            for number in dropped:
                asyncio.get_running_loop().call_later(draw.uniform(0, sends / 3), tasks[number].cancel)
            told = await asyncio.gather(*tasks, return_exceptions=True)
        for number, (draft, found) in enumerate(zip(drafts, told, strict=True)):
            if isinstance(found, SendResult):
                assert sandbox.ledger.sent[draft.draft_id] == 1
            else:
                assert isinstance(found, asyncio.CancelledError)
                assert number in dropped
        assert sandbox.ledger.conflicts == 0
        assert max(sandbox.ledger.sent.values()) == 1
        assert any(isinstance(found, SendResult) and found.attempts > 1 for found in told)


@pytest.mark.looptime(start=0, noop_cycles=8)
async def test_a_thousand_random_sends_never_collide() -> None:
    await conflict_run(1000, seed=1)


@pytest.mark.soak
@pytest.mark.looptime(start=0, noop_cycles=8)
@pytest.mark.parametrize("seed", range(2, 12))
async def test_soak_a_thousand_random_sends_never_collide(seed: int) -> None:
    await conflict_run(1000, seed=seed)
