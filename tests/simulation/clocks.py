"""The time of one process, as the process sees it: its clock may be set while it runs."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from world import ProcessClock


class QuickClock(Clock):
    """Twisted's, which sorts all calls whenever there is one more."""

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kw: object) -> DelayedCall:  # noqa: A002
        call = DelayedCall(self.seconds() + delay, callable, args, kw, self.calls.remove, lambda _call: None,
                           self.seconds)
        call.resetter = lambda _call: self.sort()
        insort(self.calls, call, key=DelayedCall.getTime)
        return call

    def sort(self) -> None:
        """To be called when a call was made to wait longer: nobody is told."""
        self.calls.sort(key=DelayedCall.getTime)

    def due(self) -> float | None:
        """When the next call is."""
        return self.calls[0].getTime() if self.calls else None

    def advance(self, amount: float) -> None:
        self.rightNow += amount
        while self.calls and self.calls[0].getTime() <= self.rightNow:
            call = self.calls.pop(0)
            call.called = 1
            call.func(*call.args, **call.kw)


class SettableClock(ProcessClock):
    """As Twisted's reactor: `seconds` is the time of day, and what is to be called waits for a time of day.

    So if the clock is set forward everything is due at once, and if it is set back everything waits longer.
    """

    _clock: QuickClock

    def __init__(self, clock: QuickClock, ahead: float = 0.0) -> None:
        super().__init__(clock)
        self.shift(ahead)
        #: Seconds by which it was ever set back: so much longer than it should, what was to be called may wait.
        self.set_back = 0.0
        self.times_set_forward = 0

    @property
    def ahead(self) -> float:
        """Seconds, of the right time."""
        return self._ahead

    def callLater(self, delay: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> IDelayedCall:
        if len(self._calls) < 64:  # else those that are over are looked for
            call: IDelayedCall = self._clock.callLater(delay, function, *args, **kwargs)
            self._calls.append(call)
            if self.ended:
                call.cancel()
            return call
        return super().callLater(delay, function, *args, **kwargs)

    def set_forward(self, seconds: float) -> None:
        """By so many seconds; back if they are negative."""
        self.shift(seconds)
        self.set_back += max(0.0, -seconds)
        self.times_set_forward += seconds > 0
        now = self._clock.seconds()
        for call in self.getDelayedCalls():
            call.reset(max(0.0, call.getTime() - now - seconds))
        self._clock.sort()
