"""Invariants 2 and 4: the spacing between calls, and who takes the next slot."""

import asyncio
import itertools
from typing import Final

import pytest

from feishu_mail_async import Priority, RateLimit
from feishu_mail_async.sandbox import Fault, Sandbox
from tests.helpers.clock import now
from tests.helpers.crowds import crowd, send_all

virtual = pytest.mark.looptime(start=0)

TICK: Final = 2e-6
"""What the virtual clock rounds off."""


def gaps(sandbox: Sandbox) -> list[float]:
    times = [call.time for call in sandbox.ledger.sends]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


@virtual
@pytest.mark.parametrize("spacing", [0.2, 1.0, 7.0])
async def test_calls_are_never_closer_than_the_spacing(spacing: float) -> None:
    """Also after the wait for a permit, in which a bucket that was asked too early would have filled again."""
    limit = RateLimit(calls=4, per=60, spacing=spacing)
    async with crowd(20, 1, limit) as (sandbox, client, drafts):
        for number, (draft, _) in enumerate(drafts[:4]):
            # They are answered at the same time, so that their permits come back together.
            sandbox.script(draft, Fault.delay(0.01, 28 - number * spacing))
        await send_all(client, drafts)
    assert min(gaps(sandbox)) >= spacing - TICK
    assert min(gaps(sandbox)) <= spacing + 1e-4, "slower than need be"
    assert sandbox.ledger.busiest_window() <= 4


@virtual
async def test_calls_are_never_closer_than_the_spacing_after_a_rest() -> None:
    async with crowd(3, 6, RateLimit(calls=50, spacing=2.0)) as (sandbox, client, drafts):
        await send_all(client, drafts[:5])
        await asyncio.sleep(500)
        await send_all(client, drafts[5:])
    assert min(gaps(sandbox)) >= 2.0 - TICK
    assert sorted(gaps(sandbox))[-2] <= 2.0 + 1e-4  # all but the rest itself


@virtual
async def test_without_spacing_a_burst_goes_at_once() -> None:
    async with crowd(20, 1, RateLimit(spacing=0)) as (sandbox, client, drafts):
        await send_all(client, drafts)
        assert now() == pytest.approx(0.02, abs=1e-4)
    assert max(gaps(sandbox)) == 0


@virtual
async def test_smooth_spreads_the_calls_evenly() -> None:
    async with crowd(5, 20, RateLimit.smooth(20, 60)) as (sandbox, client, drafts):
        await send_all(client, drafts)
    assert gaps(sandbox) == pytest.approx([3.0] * 99, abs=0.15)  # each permit is back 0.12 s later
    assert min(gaps(sandbox)) >= 3.0 - TICK


@virtual
@pytest.mark.parametrize(
    ("limit", "slot"),
    [(RateLimit.smooth(20, 60), 3.0), (RateLimit(calls=1, per=60, spacing=0), 60.12)],
    ids=["spacing", "permit"],
)
async def test_an_urgent_send_takes_the_very_next_slot(limit: RateLimit, slot: float) -> None:
    """Whoever waits when a slot comes is looked at then: nobody has been chosen before."""
    async with crowd(5, 3, limit) as (sandbox, client, drafts):
        *bulk, (urgent, user) = drafts
        rest = asyncio.create_task(send_all(client, bulk, Priority.BULK))
        await asyncio.sleep(slot * 1.1)  # in the middle of the wait for the third slot
        asked = len(sandbox.ledger.sends)
        await client.send_draft(urgent, user=user, priority=Priority.INTERACTIVE)
        assert now() == pytest.approx(2 * slot + 0.02, abs=0.05)
        assert [call.draft_id for call in sandbox.ledger.sends[asked:]] == [urgent]
        await rest


@virtual
async def test_the_reserve_is_kept_for_interactive_sends() -> None:
    async with crowd(10, 1, RateLimit(calls=5, spacing=0, reserve=2)) as (sandbox, client, drafts):
        rest = asyncio.create_task(send_all(client, drafts[:6]))
        await asyncio.sleep(10)
        assert len(sandbox.ledger.sends) == 3
        await send_all(client, drafts[6:8], Priority.INTERACTIVE)
        assert now() == pytest.approx(10.02, abs=1e-4)
        # All five are taken now, and an interactive send waits for the first permit like anybody else.
        await send_all(client, drafts[8:9], Priority.INTERACTIVE)
        assert now() == pytest.approx(60.14, abs=1e-3)
        await rest
    assert sandbox.ledger.busiest_window() <= 5
