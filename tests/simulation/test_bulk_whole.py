"""Whole runs, as the server sees them: they end when an event model says that they ought to."""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from feishu_mail_async import Draft, OutcomeStatus
from feishu_mail_async.sandbox import Fault
from tests.helpers.clock import now
from tests.helpers.runs import ALREADY, FAILED, SENT, UNKNOWN
from tests.helpers.scenes import ROUND_TRIP, WINDOW, Scene, drain, play
from tests.models.bulk_model import End, Mishap, Rules, bulk_end, check_true

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.looptime(start=0, noop_cycles=10)


@dataclass(frozen=True)
class Trouble:
    """Something that goes wrong with a draft on the way, and what becomes of the draft then."""

    faults: tuple[Fault, ...]
    mishaps: tuple[Mishap, ...]
    status: OutcomeStatus = SENT


ATTEMPT_TIMEOUT: Final = 30.0
OWN, LOST, USER = Mishap(End.DRAFT), Mishap(End.LOST), Mishap(End.USER)
TIMED_OUT: Final = Mishap(End.LOST, takes=ATTEMPT_TIMEOUT)

UNREADABLE: Final = (Fault.gateway, Fault.broken, Fault.empty, Fault.null, Fault.array, Fault.nulls)
FINAL: Final = (
    "InvalidRequest",
    "TooManyRecipients",
    "TooManyAttachments",
    "ContentRisk",
    "SenderCheckFailed",
    "ReceiverCheckFailed",
    "PermissionDenied",
    "DraftNotFound",
    "UserExternalQuota",
    "TenantExternalQuota",
)
TROUBLES: Final = (
    *(Trouble((make(),), (OWN,)) for make in UNREADABLE),
    *(Trouble((make(accepted=True),), (OWN,), ALREADY) for make in UNREADABLE),
    Trouble((Fault.huge(300_000, declared=True), Fault.huge(300_000)), (OWN, OWN)),
    Trouble((Fault.redirect("https://login.example.com/"),), (OWN,)),
    Trouble((Fault.code("InternalError"), Fault.code("InternalError")), (OWN, OWN)),
    Trouble((Fault.code("InternalError", accepted=True),), (OWN,), ALREADY),
    Trouble((Fault.unknown(7, 503), Fault.gateway(504), Fault.unknown(7, 500)), (OWN, OWN, OWN)),
    Trouble((Fault.reset_before(),), (LOST,)),
    Trouble((Fault.reset_after(),), (LOST,), ALREADY),
    Trouble((Fault.reset_before(), Fault.reset_after()), (LOST, LOST), ALREADY),
    Trouble((Fault.hang_before(),), (TIMED_OUT,)),
    Trouble((Fault.hang_after(),), (TIMED_OUT,), ALREADY),
    # One that comes late, but comes: within the timeout, and after it.
    Trouble((Fault.delay(8, 4),), (Mishap(End.DONE, takes=12.0),)),
    Trouble((Fault.delay(33, 2),), (TIMED_OUT,), ALREADY),
    Trouble((Fault.code("ConcurrentWrite"),), (USER,)),
    Trouble((Fault.code("MailThrottled"),) * 3, (USER,) * 3),
    Trouble((Fault.unknown(7, 429),), (USER,)),
    Trouble((Fault.frequency(),), (Mishap(End.APP, reset=30),)),
    Trouble((Fault.frequency(400, "5"),), (Mishap(End.APP, reset=5),)),
    Trouble(
        (Fault.bare_429("12"), Fault.frequency(reset=None)),
        (Mishap(End.APP, reset=12), Mishap(End.APP, reset=60)),
    ),
    *(Trouble((Fault.code(name),), (Mishap(End.FATAL),), FAILED) for name in FINAL),
    Trouble((Fault.unknown(7, 400),), (Mishap(End.FATAL),), FAILED),
    Trouble((Fault.reset_before(), Fault.code("DraftNotFound")), (LOST, Mishap(End.FATAL)), UNKNOWN),
    Trouble((Fault.gateway(accepted=True), Fault.code("ContentRisk")), (OWN, Mishap(End.FATAL)), UNKNOWN),
    Trouble(
        (Fault.code("ConcurrentWrite"), Fault.code("InternalError"), Fault.reset_after()),
        (USER, OWN, LOST),
        ALREADY,
    ),
)

SHARES: Final = (0.40, 0.24, 0.16, 0.10, 0.06, 0.03, 0.01)
"""How unequal the seven users are."""


def ways(draw: random.Random) -> tuple[float, float]:
    return draw.uniform(0.05, 0.8), draw.uniform(0.05, 0.8)


async def whole(count: int, seed: int, share: float = 0.05) -> None:
    """Send `count` drafts of seven users, and compare with the ledger and the event model."""
    draw = random.Random(f"the whole {seed}")
    random.seed(seed)  # the jitter's
    sizes = {f"user{number}": round(count * part) for number, part in enumerate(SHARES)}
    assert sum(sizes.values()) == count

    async def act(scene: Scene) -> None:
        given = [Draft(one.draft_id, user=one.user, tag=object()) for one in scene.drafts]
        draw.shuffle(given)
        troubled = draw.sample(given, round(count * share))
        troubles = {one.draft_id: TROUBLES[number % len(TROUBLES)] for number, one in enumerate(troubled)}
        for draft_id, trouble in troubles.items():
            scene.sandbox.script(draft_id, *trouble.faults)
        outcomes = await drain(scene.open(attempt_timeout=ATTEMPT_TIMEOUT).send_drafts(given))
        end = now()

        ledger = scene.sandbox.ledger
        check_true(given, outcomes, ledger)
        expected = {draft_id: trouble.status for draft_id, trouble in troubles.items()}
        for outcome in outcomes:
            assert outcome.status is expected.get(outcome.draft.draft_id, SENT), outcome
        assert ledger.busiest_window() <= 20
        assert ledger.paused_refusals == 0
        # No scripted fault is left: each call was made that was to be made, and no other.
        assert len(ledger.sends) == count + sum(
            len(trouble.mishaps) - (trouble.mishaps[-1].end in {End.FATAL, End.DONE})
            for trouble in troubles.values()
        )

        mishaps: dict[str, list[Sequence[Mishap]]] = {user: [] for user in sizes}
        for one in given:
            assert one.user is not None
            mishaps[one.user].append(troubles[one.draft_id].mishaps if one.draft_id in troubles else ())
        model_draw = random.Random(seed)
        expected_end = bulk_end(mishaps, lambda: ways(model_draw), Rules())
        assert end == pytest.approx(expected_end, rel=0.01)

    await play(sizes, act, latency=ways)


@pytest.mark.soak
async def test_5000_drafts_of_7_users_with_faults_of_all_kinds_end_when_they_ought_to() -> None:
    await whole(5000, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 8))
async def test_the_same_with_other_faults_at_other_places(seed: int) -> None:
    await whole(5000, seed=seed, share=(0.02, 0.05, 0.1)[seed % 3])


async def test_without_faults_it_is_as_fast_as_the_limit_allows() -> None:
    async def act(scene: Scene) -> None:
        outcomes = await drain(scene.open().send_drafts(scene.drafts))
        assert {outcome.status for outcome in outcomes} == {SENT}
        # 300 drafts are 15 windows of 20: fourteen waits, and 20 calls in the last.
        assert now() == pytest.approx(14 * WINDOW + 19 * 0.2 + ROUND_TRIP, abs=1)

    await play({"alice": 200, "bob": 100}, act)
