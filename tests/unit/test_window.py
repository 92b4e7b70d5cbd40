"""The client's window on simulated links: no time passes, every number can be computed again.

A link delivers `rate` bytes a second and has a round trip of `rtt` seconds; the helper acknowledges a
message the moment it is complete.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_shim.window import (
    MESSAGES_PER_LARGE_WINDOW,
    MESSAGES_PER_WINDOW,
    QUEUE_MAX,
    WINDOW_MAX,
    WINDOW_MIN,
    SendWindow,
)

KiB = 1024
MiB = 1024 * KiB
KB, MB, GB = 10**3, 10**6, 10**9
PLENTY = 8 * MiB


@attrs.frozen
class Moment:
    """After something happened: seconds, bytes in flight, window, bytes acknowledged so far."""

    time: float
    in_flight: int
    size: int
    acknowledged: int


@attrs.define
class Simulation:
    """A program that writes, a window, a link, and a helper that acknowledges. Sends by the rule of
    protocol.txt §7.2: less than a message waits until it is full, or nothing is unanswered."""

    window: SendWindow
    rate: float
    rtt: float
    trace: list[Moment] = attrs.field(factory=list)
    messages: list[tuple[int, int]] = attrs.field(factory=list)  # (length, window when it was sent)
    now: float = 0.0
    last_byte: float = 0.0  # when the program's last byte was sent off
    bunched: float = 0.0  # the helper answers only so often (seconds), and then all at once: group commit
    _acknowledged: int = 0
    _unsent: int = 0
    _link_free: float = 0.0
    _pauses: list[tuple[float, float]] = attrs.field(factory=list)

    def run(self, writes: Iterable[tuple[float, int]], pauses: Iterable[tuple[float, float]] = ()) -> Simulation:
        """`writes` are (time, bytes) of the program; between `pauses` (from, to) the helper answers nothing."""
        self._pauses = list(pauses)
        events = [(time, 0, length) for time, length in writes]
        heapq.heapify(events)
        last_write = max(time for time, _kind, _length in events)
        while events:
            self.now, acknowledges, length = heapq.heappop(events)
            if acknowledges:
                self.window.acknowledged(length, self.now)
                self._acknowledged += length
            else:
                self._unsent += length
            for sent in self._send(flush=self.now >= last_write):
                heapq.heappush(events, (self._answered(sent), 1, sent))
            self.trace.append(Moment(self.now, self.window.in_flight, self.window.size, self._acknowledged))
        assert self._unsent == self.window.in_flight == 0
        return self

    def _send(self, flush: bool) -> Iterable[int]:
        while self._unsent:
            length = min(self._unsent, self.window.message_size)
            worth = flush or length == self.window.message_size or self.window.in_flight == 0
            if not worth or not self.window.may_send(length):
                return
            self._unsent -= length
            self.messages.append((length, self.window.size))
            self.window.sent(length, self.now)
            self.last_byte = self.now
            yield length

    def _answered(self, length: int) -> float:
        self._link_free = max(self._link_free, self.now) + length / self.rate
        time = self._link_free + self.rtt
        if self.bunched:
            time = math.ceil(time / self.bunched) * self.bunched
        for start, end in self._pauses:
            if start <= time < end:
                time = end
        return time

    def settled(self, after: float) -> list[Moment]:
        return [m for m in self.trace if m.time >= after]


def all_at_once(total: int) -> list[tuple[float, int]]:
    return [(0.0, total)]


def simulate(rate: float, rtt: float, total: int, credit: int = PLENTY, largest_message: int = MiB) -> Simulation:
    return Simulation(SendWindow(credit, largest_message), rate, rtt).run(all_at_once(total))


# -- links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [2 * MiB, 20 * MiB])
def test_slow_link(total: int) -> None:
    """100 kB/s, 100 ms: close() has about a second to wait for, whatever the size of the file."""
    done = simulate(100 * KB, 0.1, total)
    assert max(m.in_flight for m in done.settled(after=1.0)) <= 1.3 * 100 * KB
    assert max(m.in_flight for m in done.trace) <= 1.3 * 100 * KB
    assert done.now - done.last_byte < 2.0
    assert total / (100 * KB) <= done.now < total / (100 * KB) * 1.05 + 1  # and the link is full meanwhile


@pytest.mark.parametrize("rate", [10 * KB, 30 * KB, 60 * KB])
def test_even_slower_links(rate: int) -> None:
    """The window has a least size, 64 KiB, and never more than that is on its way."""
    done = simulate(rate, 0.1, 2 * MiB)
    assert max(m.in_flight for m in done.trace) <= max(WINDOW_MIN, 1.3 * rate)
    assert done.now < 2 * MiB / rate * 1.05 + 1


def test_a_good_link_is_used() -> None:
    """10 MB/s, 100 ms, 60 MB: at least 0.9 of the link, from the first byte on."""
    done = simulate(10 * MB, 0.1, 60 * MB)
    assert 60 * MB / done.now >= 0.9 * 10 * MB
    assert done.now - done.last_byte < 1.3


@pytest.mark.parametrize(("rate", "rtt"), [(MB, 0.01), (MB, 0.3), (5 * MB, 0.2), (8 * MB, 0.02), (8 * MB, 0.3)])
def test_other_links_are_used(rate: int, rtt: float) -> None:
    done = simulate(rate, rtt, 20 * rate)
    assert 20 * rate / done.now >= 0.85 * rate
    assert max(m.in_flight for m in done.settled(after=3.0)) <= 1.3 * rate


@pytest.mark.parametrize(("rate", "rtt"), [(5 * MB, 0.6), (2 * MB, 1.0), (2 * MB, 1.5), (MB, 3.0)])
def test_a_long_round_trip(rate: int, rtt: float) -> None:
    """By satellite, or Tor: it takes some seconds to open, and then the link is used. (A window of one
    second's worth could not open at all where a round trip takes a second.)"""
    done = simulate(rate, rtt, 100 * rate)
    full = [m for m in done.trace if 70.0 < m.time < done.last_byte]
    assert (full[-1].acknowledged - full[0].acknowledged) / (full[-1].time - full[0].time) > 0.9 * rate


def test_a_long_fast_link_gets_the_whole_window() -> None:
    done = simulate(GB, 0.1, 200 * MB)
    assert max(m.in_flight for m in done.trace) > 0.9 * WINDOW_MAX
    assert done.trace[-1].size == WINDOW_MAX


@pytest.mark.parametrize("rtt", [0.0, 0.0001, 0.002, 0.02])
@pytest.mark.parametrize("rate", [20 * MB, 60 * MB, 200 * MB])
def test_no_more_waits_on_a_short_link_than_keeps_it_busy(rate: int, rtt: float) -> None:
    """Beyond what fills it; and the link is full all the same, with messages of a good size."""
    done = simulate(rate, rtt, 20 * rate, largest_message=2 * MiB)
    settled = done.settled(after=2.0)
    # the shortest round trip is that of a message of a quarter of the least window, its own length included
    filling = rate * rtt + WINDOW_MIN // MESSAGES_PER_WINDOW
    assert max(m.in_flight for m in settled) <= QUEUE_MAX + filling * 1.01
    assert 20 * rate / done.now >= 0.97 * rate
    assert max(length for length, _size in done.messages) == 2 * MiB
    assert done.now - done.last_byte <= (QUEUE_MAX + filling * 1.01) / rate + rtt


def test_a_link_that_gets_slower() -> None:
    """From 10 MB/s to 100 kB/s: what is on its way takes its time, but is not added to."""
    window = SendWindow(PLENTY, MiB)
    fast = Simulation(window, 10 * MB, 0.1).run(all_at_once(30 * MB))
    slow = Simulation(window, 100 * KB, 0.1, now=fast.now)
    slow._link_free = fast.now
    slow.run([(fast.now, 20 * MB)])
    # one old window has to drain first
    old = fast.trace[-1].size / (100 * KB)
    assert max(m.in_flight for m in slow.settled(fast.now + old + 3.0)) <= 1.3 * 100 * KB


def test_a_helper_that_pauses() -> None:
    """Backpressure makes the window small, not too small, and a few seconds later it is large again."""
    done = Simulation(SendWindow(PLENTY, MiB), 10 * MB, 0.1).run(all_at_once(200 * MB), pauses=[(5.0, 15.0)])
    assert min(m.size for m in done.settled(after=15.0)) >= WINDOW_MIN
    assert max(m.in_flight for m in done.trace) <= WINDOW_MAX
    assert min(m.in_flight for m in done.trace if 19.0 <= m.time < done.last_byte - 0.5) >= 0.9 * MB
    assert done.now < 200 * MB / (10 * MB) + 10 + 3


@pytest.mark.parametrize("bunched", [0.01, 0.1, 0.25])
def test_answers_in_bunches(bunched: float) -> None:
    """Several answers at one moment do not look like a fast link."""
    slow = Simulation(SendWindow(PLENTY, MiB), 100 * KB, 0.1, bunched=bunched).run(all_at_once(4 * MiB))
    assert max(m.in_flight for m in slow.trace) <= (1.1 + bunched) * 100 * KB
    assert slow.now < 4 * MiB / (100 * KB) * 1.05 + 1
    good = Simulation(SendWindow(PLENTY, MiB), 10 * MB, 0.1, bunched=bunched).run(all_at_once(100 * MB))
    assert 100 * MB / good.now >= 0.85 * 10 * MB


# -- programs that write little -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100, 10 * KB, 50 * KB])
@pytest.mark.parametrize("rate", [100 * KB, 10 * MB])
def test_a_slow_program_does_not_make_the_link_look_slow_or_fast(size: int, rate: int) -> None:
    """A little every second, then a lot: the small writes neither shut the window nor tear it open."""
    writes = [(float(i), size) for i in range(30)] + [(30.0, 30 * rate)]
    done = Simulation(SendWindow(PLENTY, MiB), rate, 0.1).run(writes)
    assert min(m.size for m in done.trace) >= WINDOW_MIN
    assert max(m.size for m in done.trace) <= 1.3 * rate
    assert done.now < 30 + 30 * 1.1 + 1.5


def test_bursts() -> None:
    """Bursts of half a second's worth: each is on its way at once after the first few."""
    writes = [(2.0 * i, 5 * MB) for i in range(10)]
    done = Simulation(SendWindow(PLENTY, MiB), 10 * MB, 0.1).run(writes)
    for i in range(3, 10):
        acknowledged = min(m.time for m in done.trace if m.acknowledged >= (i + 1) * 5 * MB)
        assert acknowledged - 2.0 * i < 0.5 + 0.1 + 0.15
    assert min(m.size for m in done.trace) >= WINDOW_MIN
    assert max(m.size for m in done.trace) <= WINDOW_MAX


# -- bounds ---------------------------------------------------------------------------------------------


def largest_part(size: int) -> int:
    """Of a window of this size one message may be."""
    return max(1, size // (MESSAGES_PER_WINDOW if size < QUEUE_MAX else MESSAGES_PER_LARGE_WINDOW))


@pytest.mark.parametrize("largest_message", [16 * KiB, 256 * KiB, MiB, 4 * MiB])
@pytest.mark.parametrize("credit", [64 * KiB, 300_000, MiB, 8 * MiB, 64 * MiB])
def test_credit_and_message_size(credit: int, largest_message: int) -> None:
    done = simulate(GB, 0.05, 40 * MB, credit, largest_message)
    assert max(m.in_flight for m in done.trace) <= min(credit, WINDOW_MAX)
    assert all(length <= largest_message for length, _size in done.messages)
    assert all(length <= largest_part(size) for length, size in done.messages)


@given(st.integers(1, 20 * MiB), st.integers(1, 4 * MiB),
       st.lists(st.tuples(st.booleans(), st.floats(0, 100), st.integers(0, 2 * MiB)), max_size=60))
def test_bounds_hold_whatever_happens(credit: int, largest_message: int,
                                      steps: list[tuple[bool, float, int]]) -> None:
    """Any times between messages and answers (also none, also a clock that steps back)."""
    window, now, unanswered = SendWindow(credit, largest_message), 0.0, []
    for send, seconds, wanted in steps:
        now += seconds if seconds < 90 else -1.0
        if send:
            length = min(max(1, wanted), window.message_size)
            if window.may_send(length):
                window.sent(length, now)
                unanswered.append(length)
        elif unanswered:
            window.acknowledged(unanswered.pop(0), now)
        assert window.in_flight == sum(unanswered)
        assert window.in_flight <= min(credit, WINDOW_MAX)
        assert min(WINDOW_MIN, credit) <= window.size <= min(WINDOW_MAX, credit)
        assert 1 <= window.message_size <= largest_message
        assert window.message_size <= largest_part(window.size)
        # nothing on its way: something may always be sent, so an upload never hangs
        assert unanswered or window.may_send(window.message_size)


def test_a_message_may_always_follow_when_nothing_is_on_its_way() -> None:
    window = SendWindow(1, 1)
    assert window.message_size == 1
    assert window.may_send(1)
    window.sent(1, 0.0)
    assert not window.may_send(1)
    window.acknowledged(1, 0.5)
    assert window.may_send(1)


def test_memory_of_the_measure_is_bounded() -> None:
    """Samples older than the measured second are forgotten."""
    window = SendWindow(PLENTY, MiB)
    for i in range(10_000):
        window.sent(10_000, i * 0.01)
        window.acknowledged(10_000, i * 0.01 + 0.01)
    assert len(window._samples) <= 110
