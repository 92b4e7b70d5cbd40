"""How much the kernels may hold of a body."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_shim.gateway.receive_window import (
    FAST,
    FAST_BYTES,
    FAST_SECONDS,
    INTERVAL,
    LARGEST,
    SMALLEST,
    STALL,
    WORTH,
    ReceiveWindow,
    is_loopback,
)


def sizes(rate: float, seconds: float, burst: int = 0) -> list[int]:
    """What is set while bytes are taken at `rate`, a hundred times a second."""
    window = ReceiveWindow()
    return [window.size for step in range(int(seconds * 100))
            if window.took(int(rate / 100) + (burst if step == 0 else 0), step / 100)]


def take(window: ReceiveWindow, length: int, now: float, wait: float = 0.0) -> float:
    """Take so many bytes from `now` on, a small window a millisecond; each is dealt with in `wait` seconds. Returns
    when the last was."""
    while length > 0:
        now += 0.001
        window.took(min(1448, length), now)
        length -= 1448
        now += wait
        window.wanted(now)
    return now


def test_a_slow_body_never_gets_more() -> None:
    assert sizes(100_000, 60, burst=80_000) == []


def test_a_fast_body_soon_gets_all() -> None:
    assert sizes(200_000_000, 2)[-1] == LARGEST


def test_the_first_window_and_a_message_do_not_make_it_fast() -> None:
    window = ReceiveWindow()
    now = take(window, 80 * 1024, 0)
    for _ in range(100):
        now += 0.25
        window.wanted(now)
        now = take(window, 25_000, now)
    assert window.slow


def test_what_is_taken_at_once_is_fast() -> None:
    window = ReceiveWindow()
    take(window, FAST_BYTES - 1448, 0)
    assert window.slow
    take(window, 2 * 1448, 0.2)
    assert not window.slow


def test_a_body_that_need_not_show_it() -> None:
    window = ReceiveWindow()
    assert window.be_fast(0)
    assert (window.slow, window.size) == (False, FAST)
    assert not window.be_fast(1)


def test_a_fast_body_stays_fast() -> None:
    window = ReceiveWindow()
    now = take(window, FAST_BYTES, 0)
    window.wanted(now + 60)
    take(window, 1448, now + 60)
    assert not window.slow


@given(waits=st.lists(st.floats(1.01 * STALL, 1), min_size=1, max_size=20),
       between=st.integers(1448, FAST_BYTES - 1448))
def test_after_each_wait_it_has_to_show_it_again(waits: list[float], between: int) -> None:
    window = ReceiveWindow()
    now = 0.0
    for wait in waits:
        now = take(window, between, now) + wait
        window.wanted(now)
    assert window.slow


@given(rate=st.floats(0, FAST_BYTES / FAST_SECONDS * 0.9), seconds=st.floats(0, 5))
def test_a_program_that_writes_slowly_never_shows_it(rate: float, seconds: float) -> None:
    window = ReceiveWindow()
    for step in range(int(seconds * 100)):
        window.took(int(rate / 100), step / 100)
    assert window.slow


@given(rate=st.floats(0, 1e9), seconds=st.floats(0, 5))
def test_it_is_worth_a_moment_and_only_grows(rate: float, seconds: float) -> None:
    found = sizes(rate, seconds)
    assert found == sorted(set(found))
    assert all(SMALLEST < size <= LARGEST and size <= max(FAST, rate * WORTH * 1.11) for size in found)
    assert len(found) <= 2 + seconds / INTERVAL


@pytest.mark.parametrize(("host", "loopback"), [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("local", True),
    ("192.0.2.1", False), ("2001:db8::1", False), ("::ffff:192.0.2.1", False), ("0.0.0.0", False)])
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
