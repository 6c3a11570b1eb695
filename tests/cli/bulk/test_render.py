"""Cells, spans of time, names and tables as they are shown."""

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feishu_mail_async import Draft, Outcome, OutcomeStatus, Priority, RateLimit, Snapshot, Suspended
from feishu_mail_async._api.refusals import api_error
from feishu_mail_async.cli.render.estimate import Pace, duration, name_limit
from feishu_mail_async.cli.render.summary import Tally
from feishu_mail_async.cli.render.wording import Width, skipping, span
from feishu_mail_async.cli.results import Results
from feishu_mail_async.codes import CODES
from feishu_mail_async.errors import AutomatedSendDisabled, FeishuMailError

pytestmark = pytest.mark.usefixtures("own_state")


def test_formulas_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    results = Results(str(path))
    results.open()
    ids = ["=1+1", "+1", "-1", "@a", "a=1", "x,y", 'a"b']
    for draft_id in ids:
        results.write(Outcome(Draft(draft_id, "=m"), OutcomeStatus.SKIPPED, None, FeishuMailError("-@x")))
    results.close()
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["draft_id"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@a", "a=1", "x,y", 'a"b']
    assert {(row["mailbox"], row["error"], row["attempts"]) for row in rows} == {("'=m", "'-@x", "0")}


@pytest.mark.parametrize(
    ("calls", "limit", "seconds"),
    [
        (1, RateLimit(), 0),
        (20, RateLimit(), 3.8),
        (21, RateLimit(), 60.1),
        (5000, RateLimit(), 249 * 60.1 + 3.8),
        (0, RateLimit(), 0),
    ],
)
def test_duration(calls: int, limit: RateLimit, seconds: float) -> None:
    assert duration(calls, limit) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "1 s"),
        (42, "42 s"),
        (120, "120 s"),
        (121, "3 min"),
        (7200, "120 min"),
        (15_000, "4 h 10 min"),
        (10_800, "3 h"),
    ],
)
def test_span(seconds: float, told: str) -> None:
    assert span(seconds) == told


def test_name_limit() -> None:
    assert name_limit(RateLimit()) == "20 calls a minute"
    assert name_limit(RateLimit(1, 2.5)) == "1 call in 2.5 s"


def stand(**changes: Any) -> Snapshot:
    calm = Snapshot(dict.fromkeys(Priority, 0), 0, 20, RateLimit(), 0.0, None, None, {}, ())
    return replace(calm, **changes)


def test_what_is_left_comes_from_the_limit() -> None:
    pace, limit = Pace(RateLimit()), RateLimit()
    assert pace.left(stand(), 0, 0.0) == 0
    assert pace.left(stand(), 20, 0.0) == pytest.approx(duration(20, limit))
    assert pace.left(stand(paused=30.0), 20, 0.0) == pytest.approx(30 + duration(20, limit))
    # A burst of 20 calls, answered from second 0 to second 3.8.
    for call in range(20):
        pace.ended(call * 0.2)
    used = stand(permits=0, next_permit=50.1)
    assert pace.left(used, 1, 10.0) == pytest.approx(50.1)
    assert pace.left(used, 20, 10.0) == pytest.approx(50.1 + 3.8)
    assert pace.left(used, 21, 10.0) == pytest.approx(50.1 + 60.1)
    assert pace.left(used, 5000, 10.0) == pytest.approx(50.1 + duration(5000, limit))
    assert pace.left(replace(used, paused=300.0), 1, 10.0) == pytest.approx(300)
    # Evenly: each permit comes back by itself, and what is left shrinks evenly too.
    even = Pace(RateLimit())
    for call in range(20):
        even.ended(call * 3.0)
    left = [even.left(stand(permits=0, next_permit=60.1 - 57), calls, 57.0) for calls in (1, 2, 20, 21)]
    assert left == pytest.approx([3.1, 6.1, 60.1, 63.2])
    # Half of a window is left, and calls of unknown end fill it.
    assert Pace(limit).left(stand(permits=10, next_permit=None), 11, 0.0) == pytest.approx(0.0)
    assert pace.last_minute(61.0) == 14
    assert pace.last_minute(500.0) == 0


def outcome(error: FeishuMailError, status: OutcomeStatus = OutcomeStatus.FAILED) -> Outcome:
    return Outcome(Draft("a"), status, None, error)


def test_the_table_is_short_however_many_reasons_there_are() -> None:
    tally = Tally()
    for row in CODES.values():
        for _ in range(3) if row.error else ():
            tally.add(outcome(api_error(row, "", http_status=row.http_status, log_id=None)))
    rows = [told for _, told in tally.rows()]
    assert len(rows) <= 14
    assert re.fullmatch(r"  \d+: for \d+ other reasons", rows[-1])
    advices = Counter(row.advice for row in CODES.values() for told in rows if row.advice in told)
    assert set(advices.values()) <= {1, 2}  # two codes may share one


def closed(scope: str, cause: FeishuMailError) -> Suspended:
    error = Suspended("-", subject=scope, until=None)
    error.__cause__ = cause
    return error


def test_closed_subjects_of_one_reason_are_one_row() -> None:
    cause = AutomatedSendDisabled("by policy", "https://example.com/d1")
    tally = Tally()
    for number in range(5):
        tally.add(outcome(closed(f"mailbox:m{number}", cause), OutcomeStatus.SKIPPED))
    ((_, told),) = tally.rows()
    assert told.startswith(
        "5: because of mailbox m0, mailbox m1, mailbox m2 and 2 more: the mailbox does not allow"
    )
    assert told.endswith("Send it by hand, or change the mailbox's setting.")
    # The link is that of one draft, and not of those that are skipped.
    assert "d1" not in told + skipping(closed("mailbox:m0", cause))
    assert skipping(closed("app", cause), Width.CELL).startswith("All drafts are skipped: ")
