"""How far the shares of an upload came in the last second.  (pure)"""

from __future__ import annotations

from collections import deque

#: Seconds.
SPAN = 1.0


class PushRate:
    """Told of positions (bytes of ciphertext that enough servers have), tells how much of that is new.

    Times in seconds, from any clock, which may be set back: what was before counts no more then.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()  # in order of time; the first may be older than SPAN

    def moved_to(self, position: int, now: float) -> int:
        """Bytes by which the position has grown within the last SPAN; 0 if it has become less."""
        samples = self._samples
        if samples and samples[-1][0] > now:
            samples.clear()
        samples.append((now, position))
        while len(samples) > 2 and samples[1][0] <= now - SPAN:
            samples.popleft()
        if len(samples) < 2:
            return 0
        (since, before), (until, after), *_ = samples
        # of the first step only the part that is not older than SPAN
        part = min(1.0, (until - (now - SPAN)) / (until - since)) if until > since else 1.0
        return max(0, position - after + int((after - before) * part))
