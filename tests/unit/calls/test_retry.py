"""How long a draft waits before it is tried again."""

from typing import Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feishu_mail_async._calls.retry import PolicyDelays
from feishu_mail_async.model import RetryPolicy

FEW: Final = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@settings(FEW)
@given(
    st.floats(0.01, 100.0),
    st.floats(0.01, 1_000.0),
    st.integers(1, 5_000),
    st.one_of(st.none(), st.floats(0.0, 1_000.0)),
    st.floats(0.0, 2_000.0),
)
def test_waits_grow_to_their_maximum_and_the_last_probe_falls_on_the_end_of_the_outage(
    initial: float, more: float, times: int, outage: float | None, lasted: float
) -> None:
    delays = PolicyDelays(RetryPolicy(initial=initial, maximum=initial + more, outage=outage))
    longest = min(initial + more, initial * 2.0 ** min(times - 1, 60))
    assert longest / 2 <= delays.backoff(times) <= longest
    wait = delays.outage(times, lasted)
    assert 0.0 < wait <= max(longest, 0.1)
    if outage is not None and lasted < outage:
        assert lasted + wait <= max(outage, lasted + 0.1) + 1e-9
