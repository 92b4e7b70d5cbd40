"""How many bytes may be on their way: bounded in bytes and in time; protocol.txt §7.2.  (pure)"""

from __future__ import annotations

from collections import deque

KiB = 1024
MiB = 1024 * KiB

WINDOW_MIN = 64 * KiB
WINDOW_MAX = 8 * MiB
#: The window is what is acknowledged in so many seconds, so that close() costs about as long on any link.
WINDOW_SECONDS = 1.0
#: On a fast link it is no more than so much beyond what fills the link: the rest would only wait, and close() for it.
QUEUE_MAX = 4 * MiB
#: … but at least so many round trips long.
ROUND_TRIPS_PER_WINDOW = 2
#: A message is at most this part of the window; of one of QUEUE_MAX or more it may be a larger one, as each costs time.
MESSAGES_PER_WINDOW = 4
MESSAGES_PER_LARGE_WINDOW = 2


class SendWindow:
    """Tells how much may be in flight, from how fast it is acknowledged. Times in seconds, from any clock.

    The rate is measured over the last so many seconds during which something was in flight: a program that
    writes slowly does not make the link look slow. If the round trip is very long, a second's worth would never
    fill the link, nor grow: then the window is two round trips long.
    """

    def __init__(self, credit: int, largest_message: int) -> None:
        self._most = min(WINDOW_MAX, credit)
        self._largest_message = largest_message
        self._busy = 0.0  # seconds during which something was in flight
        self._busy_since: float | None = None
        self._acknowledged = 0
        self._samples: deque[tuple[float, int]] = deque([(0.0, 0)])  # (busy seconds, bytes acknowledged by then)
        self._sent: deque[float] = deque()  # when the messages in flight were sent
        self._round_trip = float("inf")  # the shortest seen
        self.size = min(WINDOW_MIN, self._most)
        self.in_flight = 0

    @property
    def message_size(self) -> int:
        """Bytes of the next message, at most."""
        messages = MESSAGES_PER_LARGE_WINDOW if self.size >= QUEUE_MAX else MESSAGES_PER_WINDOW
        return min(self._largest_message, max(1, self.size // messages))

    def may_send(self, length: int) -> bool:
        """Whether `length` more bytes may be sent now."""
        return self.in_flight == 0 or self.in_flight + length <= self.size

    def sent(self, length: int, now: float) -> None:
        """A message of `length` bytes was sent."""
        if self.in_flight == 0:
            self._busy_since = now
        self.in_flight += length
        self._sent.append(now)

    def acknowledged(self, length: int, now: float) -> None:
        """A message of `length` bytes was acknowledged."""
        if self._busy_since is not None:
            self._busy += max(0.0, now - self._busy_since)
        self.in_flight -= length
        self._round_trip = min(self._round_trip, max(0.0, now - self._sent.popleft()))
        seconds_in_window = max(WINDOW_SECONDS, ROUND_TRIPS_PER_WINDOW * self._round_trip)
        self._busy_since = now if self.in_flight else None
        self._acknowledged += length
        samples = self._samples
        samples.append((self._busy, self._acknowledged))
        # keep one sample that is at least so old, as the start of the measure
        while len(samples) > 2 and samples[1][0] <= self._busy - seconds_in_window:
            samples.popleft()
        seconds, length = self._busy - samples[0][0], self._acknowledged - samples[0][1]
        rate = length / seconds if seconds > 0 else float(WINDOW_MAX)
        most = min(self._most, QUEUE_MAX + int(rate * self._round_trip))
        self.size = min(most, max(WINDOW_MIN, int(rate * seconds_in_window)))
