"""How full a transport's buffer is, as something that can be waited for."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


@implementer(IPushProducer)
class Outgoing:
    """To be registered with a transport as its streaming producer; is told when its buffer is full.

    `gone` makes the error that whoever waits gets when the connection is lost.
    """

    def __init__(self, gone: Callable[[], Exception]) -> None:
        self.paused = False
        self._gone = gone
        self._lost = False
        self._waiting: list[Deferred[None]] = []

    def wait(self) -> Deferred[None]:
        """Fires when more can be sent."""
        waiting: Deferred[None] = Deferred(self._waits_no_more)
        if self._lost:
            waiting.errback(self._gone())
        elif self.paused:
            self._waiting.append(waiting)
        else:
            waiting.callback(None)
        return waiting

    def _waits_no_more(self, waiting: Deferred[None]) -> None:
        self._waiting.remove(waiting)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def stopProducing(self) -> None:
        self._lost = True
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.errback(self._gone())
