"""How much the kernels may hold of a body."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_shim.gateway.receive_window import INTERVAL, LARGEST, SMALLEST, WORTH, ReceiveWindow, is_loopback


def sizes(rate: float, seconds: float, burst: int = 0) -> list[int]:
    """What is set while bytes are taken at `rate`, a hundred times a second."""
    window = ReceiveWindow()
    return [window.size for step in range(int(seconds * 100))
            if window.took(int(rate / 100) + (burst if step == 0 else 0), step / 100)]


def test_a_slow_body_never_gets_more() -> None:
    assert sizes(100_000, 60, burst=200_000) == []


def test_a_fast_body_soon_gets_all() -> None:
    assert sizes(200_000_000, 2)[-1] == LARGEST


@given(rate=st.floats(0, 1e9), seconds=st.floats(0, 5))
def test_it_is_worth_a_moment_and_only_grows(rate: float, seconds: float) -> None:
    found = sizes(rate, seconds)
    assert found == sorted(set(found))
    assert all(SMALLEST < size <= LARGEST and size <= rate * WORTH * 1.1 for size in found)
    assert len(found) <= 1 + seconds / INTERVAL


@pytest.mark.parametrize(("host", "loopback"), [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("local", True),
    ("192.0.2.1", False), ("2001:db8::1", False), ("::ffff:192.0.2.1", False), ("0.0.0.0", False)])
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
