"""How long storage servers are waited for, and when one that does not answer is given up: protocol.txt §8.6.  (pure)

Durations in seconds.
"""

from __future__ import annotations

from statistics import median

import attrs


@attrs.frozen
class StallLimits:
    """An unanswered call is stalled after `factor` times what others needed, if at least `judged_after` other servers
    have done such work; never before `least` seconds, and after `most` in any case."""

    judged_after: int = 3
    factor: float = 2.0
    least: float = 10.0
    most: float = 60.0


@attrs.frozen
class Patience:
    """What an upload waits for."""

    #: A staging server that was lost: it keeps its shares. Then they find other homes.
    away: float = 60
    #: Any server without which there are too few, before the upload is given up.
    needed: float = 600
    #: The rest of the shares, after the answer.
    placing: float = 86400
    stall: StallLimits = StallLimits()


class StallRule:
    """What servers needed for their last work of each kind, of one upload."""

    def __init__(self, limits: StallLimits) -> None:
        self._limits = limits
        self._needed: dict[str, dict[bytes, float]] = {}

    def finished(self, kind: str, server: bytes, seconds: float) -> None:
        """A server has answered."""
        self._needed.setdefault(kind, {})[server] = max(0.0, seconds)

    def patience(self, kind: str, server: bytes) -> float:
        """After how many seconds without an answer `server` is stalled."""
        limits = self._limits
        others = [seconds for other, seconds in self._needed.get(kind, {}).items() if other != server]
        if len(others) < limits.judged_after:
            return limits.most
        return min(limits.most, max(limits.least, limits.factor * median(others)))
