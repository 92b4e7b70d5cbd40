"""A command that runs the reactor, and the signal that ends it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

reactor: Any = _reactor  # it has more interfaces than its declared type

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """The first SIGINT or SIGTERM; `then` is called in the reactor. The next one ends the process at once."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then
        #: Of the signal, from the moment when it came.
        self.number: int | None = None

    def run_reactor(self) -> None:
        """Until it is stopped. For the main thread, before the reactor runs."""
        wakeup = _Wakeup()
        reactor.addReader(wakeup)
        before = signal.set_wakeup_fd(wakeup.writes.fileno(), warn_on_full_buffer=False)
        for number in NUMBERS:
            signal.signal(number, self._on_signal)
        try:
            reactor.run(installSignalHandlers=False)
        finally:
            signal.set_wakeup_fd(before)
            wakeup.close()

    def _on_signal(self, number: int, _frame: object) -> None:
        for each in NUMBERS:
            signal.signal(each, signal.SIG_DFL)
        self.number = number
        reactor.callFromThread(self._then)


@implementer(IReadDescriptor)
class _Wakeup:
    """Ends the sleep of the reactor's thread when a signal comes, which the system may give to any other; Python runs
    handlers in this one, and only when it is awake. (Twisted has its own, but with handlers that stop the reactor at
    once.)"""

    def __init__(self) -> None:
        self._reads, self.writes = socket.socketpair()
        self._reads.setblocking(False)
        self.writes.setblocking(False)

    def fileno(self) -> int:
        return self._reads.fileno()

    def doRead(self) -> None:
        with suppress(BlockingIOError):
            self._reads.recv(4096)

    def connectionLost(self, _reason: Failure) -> None:
        pass

    def logPrefix(self) -> str:
        return "signals"

    def close(self) -> None:
        self._reads.close()
        self.writes.close()
