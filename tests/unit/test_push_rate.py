"""helper/push_rate.py."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helper.push_rate import SPAN, PushRate


def test_what_came_within_the_last_second() -> None:
    rate = PushRate()
    assert rate.moved_to(1000, 5.0) == 0  # where it begins is not known to be new
    assert rate.moved_to(1300, 5.5) == 300
    assert rate.moved_to(1500, 6.0) == 500
    assert rate.moved_to(1600, 6.5) == 300
    assert rate.moved_to(1600, 20.0) == 0
    assert rate.moved_to(9600, 20.25) == 8000


def test_a_long_step_counts_in_part() -> None:
    rate = PushRate()
    rate.moved_to(0, 0.0)
    assert rate.moved_to(1000, 4.0) == 250


def test_shares_that_are_lost_take_nothing() -> None:
    rate = PushRate()
    rate.moved_to(1000, 0.0)
    assert rate.moved_to(400, 0.5) == 0
    assert rate.moved_to(900, 0.75) == 0
    assert rate.moved_to(1200, 1.0) == 200


def test_a_clock_that_is_set_back() -> None:
    rate = PushRate()
    rate.moved_to(0, 1000.0)
    rate.moved_to(500, 1000.5)
    assert rate.moved_to(600, 10.0) == 0
    assert rate.moved_to(900, 10.5) == 300


@given(st.lists(st.tuples(st.floats(0.001, 3), st.integers(0, 1000)), min_size=1))
def test_steady_progress_is_never_overestimated(steps: list[tuple[float, int]]) -> None:
    rate, now, position, history = PushRate(), 0.0, 0, [(0.0, 0)]
    rate.moved_to(0, 0.0)
    for wait, more in steps:
        now, position = now + wait, position + more
        history.append((now, position))
        earlier = max(p for t, p in history if t <= max(0.0, now - SPAN))
        later = min(p for t, p in history if t >= now - SPAN)
        assert position - later <= rate.moved_to(position, now) <= position - earlier
