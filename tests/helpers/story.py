"""The story that the events of a run tell, held against what the sandbox saw: call by call."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from feishu_mail_async import OutcomeStatus, codes
from feishu_mail_async._api.protocol import CallEnd
from feishu_mail_async.events import (
    AttemptEnded,
    AttemptStarted,
    DraftDone,
    DraftEvent,
    DraftQueued,
    Event,
    RetryPlanned,
    TurnGranted,
    UserCooled,
)
from feishu_mail_async.sandbox.calllog import SEND, Arrival, CallLog

__all__ = ["check_story", "jobs_of"]

_LETTERS = {
    DraftQueued: "q",
    TurnGranted: "t",
    AttemptStarted: "s",
    AttemptEnded: "e",
    RetryPlanned: "r",
    DraftDone: "d",
}
# A turn without a call: the draft was given up in that very step. The last attempt's retry may still be given up.
_ONE_DRAFT = re.compile(r"(q(t(se(tr?se|r?tse)*)?r?t?)?)?d+")
_ONE_LISTING = re.compile(r"(tse(r?tse)*r?t?)?")
_ROUNDING = 1e-6


def jobs_of(events: Iterable[Event]) -> dict[int, list[DraftEvent]]:
    """The events of each draft, or list call, on its way."""
    jobs: defaultdict[int, list[DraftEvent]] = defaultdict(list)
    for event in events:
        if isinstance(event, DraftEvent):
            jobs[event.job].append(event)
    return dict(jobs)


def check_story(events: list[Event], ledger: CallLog, *, cut: bool = False) -> None:
    """Assert that events and ledger tell the same.

    Args:
        events: all that were told.
        ledger: what the sandbox saw of the same clients.
        cut: connections were cut on the way, so that a lost call need not have arrived.
    """
    times = [event.time for event in events]
    assert all(earlier <= later + _ROUNDING for earlier, later in itertools.pairwise(times))
    for told in jobs_of(events).values():
        _check_grammar(told)
    _check_calls(events, ledger, cut=cut)
    _check_outcomes(events, ledger)


def _check_grammar(told: list[DraftEvent]) -> None:
    """One draft: queued, then turn, call and what came of it, again and again, then done."""
    letters = "".join(_LETTERS[type(event)] for event in told)
    pattern = _ONE_LISTING if told[0].endpoint == "list" else _ONE_DRAFT
    assert pattern.fullmatch(letters), letters
    assert len({(event.user, event.endpoint) for event in told}) == 1
    done = [event for event in told if isinstance(event, DraftDone)]
    if told[0].endpoint == "list":
        assert not done
        return
    first, *joined = done
    assert not first.joined
    assert all(event.joined and event.attempts == 0 for event in joined)
    calls = [event for event in told if isinstance(event, AttemptEnded) and event.end is not CallEnd.NEVER_LEFT]
    assert first.attempts == len(calls)
    assert [event.attempt for event in calls] == list(range(1, len(calls) + 1))
    turns = [event for event in told if isinstance(event, TurnGranted)]
    assert sum(event.waited for event in turns) <= first.waited + _ROUNDING
    assert first.waited <= first.lasted + _ROUNDING
    if isinstance(told[0], DraftQueued):
        assert abs(told[0].time + first.lasted - first.time) < _ROUNDING


def _check_calls(events: list[Event], ledger: CallLog, *, cut: bool) -> None:
    """Each arrival is an attempt of the events, and each attempt that was answered is an arrival."""
    attempts = list(_attempts(events))
    answered = {end.log_id: (start, end) for start, end in attempts if end.end is CallEnd.ANSWERED}
    assert len(answered) == sum(end.end is CallEnd.ANSWERED for _, end in attempts), "two answers, one log id"
    lost = [(start, end) for start, end in attempts if end.end is CallEnd.LOST]
    for arrival in ledger.arrivals:
        pair = answered.pop(arrival.log_id, None)
        if pair is None:
            pair = next((one for one in lost if _may_be(one[0], arrival)), None)
            assert pair is not None, f"no event tells of {arrival}"
            lost.remove(pair)
        else:
            assert (pair[1].code, pair[1].http_status) == (arrival.code, arrival.http_status)
            assert arrival.time <= pair[1].time + _ROUNDING
        start, end = pair
        assert start.time <= arrival.time + _ROUNDING
        assert (start.endpoint, start.user) == (arrival.endpoint, arrival.user or start.user)
        assert start.draft is None or start.draft.draft_id == arrival.draft_id
        assert abs(start.time + end.seconds - end.time) < _ROUNDING
    assert not answered, "an answer that the sandbox never gave"
    assert cut or not lost, "a call that never arrived"


def _attempts(events: list[Event]) -> Iterator[tuple[AttemptStarted, AttemptEnded]]:
    """The calls, in the order in which they were made."""
    starts = {
        (event.job, event.attempt, event.time): event for event in events if isinstance(event, AttemptStarted)
    }
    ends: defaultdict[tuple[int, int], list[AttemptEnded]] = defaultdict(list)
    for event in events:
        if isinstance(event, AttemptEnded):
            ends[event.job, event.attempt].append(event)
    assert len(starts) == sum(len(some) for some in ends.values()), "a call without an end"
    for (job, attempt, _), start in starts.items():
        yield start, ends[job, attempt].pop(0)


def _may_be(start: AttemptStarted, arrival: Arrival) -> bool:
    draft_id = None if start.draft is None else start.draft.draft_id
    return (start.endpoint, draft_id) == (arrival.endpoint, arrival.draft_id) and (
        start.time <= arrival.time + _ROUNDING
    )


def _check_outcomes(events: list[Event], ledger: CallLog) -> None:
    """No outcome claims what the ledger does not know, and cool-downs are what the codes say."""
    jobs: defaultdict[str, set[int]] = defaultdict(set)
    for event in events:
        if isinstance(event, DraftDone) and event.draft is not None:
            jobs[event.draft.draft_id].add(event.job)
    for event in events:
        if isinstance(event, DraftDone):
            assert event.draft is not None
            sent = ledger.sent[event.draft.draft_id]
            if event.status in {OutcomeStatus.SENT, OutcomeStatus.ALREADY_SENT}:
                assert sent == 1
                assert event.result is not None
            elif event.status is not OutcomeStatus.UNKNOWN:
                assert sent == 0 or jobs[event.draft.draft_id] > {event.job}, "sent, and nobody says so"
            assert (event.error is None) == (event.result is not None)
    slowed = Counter(event.user for event in events if isinstance(event, AttemptEnded) and _slows(event))
    assert Counter(event.user for event in events if isinstance(event, UserCooled)) == slowed
    assert ledger.sent.total() <= len([one for one in ledger.arrivals if one.endpoint == SEND])


def _slows(event: AttemptEnded) -> bool:
    if event.code is None or event.http_status is None:
        return False
    row = codes.lookup(event.code, event.http_status)
    return row.verdict is codes.Verdict.RETRY and row.subject is codes.Subject.USER
