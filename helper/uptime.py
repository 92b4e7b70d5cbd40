"""How long the helper was up, in all its runs together: what idle time is measured in, protocol.txt §11.4."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime


class Uptime:
    """Seconds of uptime, counted in steps of at most `longest_step` seconds each: so a clock that is set, or a machine
    that sleeps, ends nothing at once. A run begins with what the runs before have recorded."""

    def __init__(self, clock: IReactorTime, longest_step: float) -> None:
        self._clock = clock
        self._longest_step = longest_step
        self._looked = clock.seconds()
        self.seconds = 0.0

    def begin(self, recorded: float) -> None:
        """The helper starts now; `recorded` is its uptime when that was last written down."""
        self.seconds = recorded
        self._looked = self._clock.seconds()

    def pause(self) -> None:
        """What has gone by since `step` was called last does not count."""
        self._looked = self._clock.seconds()

    def step(self) -> float:
        """Count what has gone by since this was called last; returns that, in seconds."""
        now = self._clock.seconds()
        gone = min(max(0.0, now - self._looked), self._longest_step)
        self._looked = now
        self.seconds += gone
        return gone
