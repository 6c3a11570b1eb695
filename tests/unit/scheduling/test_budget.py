"""Spacing: no dispatch goes before its time, not even by a rounding error."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from feishu_mail_async._scheduling.budget import Spacing


@settings(max_examples=1_000, deadline=None, derandomize=True)
@given(st.floats(0.0, 1e6), st.floats(1e-3, 100.0), st.lists(st.floats(0.0, 1.0), max_size=20))
def test_nothing_goes_a_rounding_error_before_its_spacing_has_passed(
    last: float, seconds: float, looks: list[float]
) -> None:
    spacing, due = Spacing(), last + seconds
    spacing.take(last)
    for part in sorted(looks):
        now = last + part * seconds
        assert due <= max(now, spacing.ready_at(now, seconds)) <= due + 1e-5
    before = math.nextafter(due, 0.0)
    at = spacing.ready_at(before, seconds)
    assert before < at <= due + 1e-5
    assert spacing.ready_at(at, seconds) == at
    spacing.take(at)
    assert spacing.ready_at(at, seconds) >= at + seconds
