"""How many bytes are on their way to each storage server, for all uploads together, and who waits to send more.

What is handed to a connection stays in memory until the server answers, and a server that hangs never does: so each
server has a bound of its own, and only those wait for it who want to write to it.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

MiB = 1024 * 1024

#: Bytes to all servers together, as far as each may have at least the second of these and need not more than the third.
ALL_MAX = 32 * MiB
SERVER_LEAST = 5 * MiB // 4  # one write as they usually are (pushing.py)
SERVER_MOST = 4 * MiB
#: Who was told that there is room has this long (seconds) to use it, before others are told.
TURN = 0.01


class InFlight:
    """Counts bytes of unanswered writes by server (ID)."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._bytes: dict[bytes, int] = {}  # of servers that have any
        self._waiting: dict[bytes, dict[Callable[[], None], None]] = {}
        self._answers: dict[bytes, int] = {}  # since the start; of servers that somebody waited for
        self._calls: dict[bytes, IDelayedCall] = {}

    @property
    def total(self) -> int:
        """Bytes to all servers."""
        return sum(self._bytes.values())

    def to(self, server: bytes) -> int:
        """Bytes to one server."""
        return self._bytes.get(server, 0)

    def take(self, server: bytes, size: int) -> bool:
        """Whether so many bytes more may be sent to a server; they count until `done`. If none are on their way to
        it, it may be any number."""
        before = self._bytes.get(server, 0)
        if before and before + size > self._limit(server):
            return False
        self._bytes[server] = before + size
        return True

    def done(self, server: bytes, size: int) -> None:
        """So many of the bytes taken are not on their way any more: the server has answered, or they were not sent."""
        left = self._bytes.get(server, 0) - size
        if left > 0:
            self._bytes[server] = left
        else:
            self._bytes.pop(server, None)
        self._answers[server] = self._answers.get(server, 0) + 1
        self._tell(server)

    def answers(self, server: bytes) -> int:
        """A number that grows with every answer of a server, to whatever upload."""
        return self._answers.get(server, 0)

    def wait(self, server: bytes, callback: Callable[[], None]) -> None:
        """Call once when there may be room at a server; those who wait are called in the order in which they came."""
        self._waiting.setdefault(server, {}).setdefault(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """It need not be called any more."""
        for server in [s for s, waiting in self._waiting.items() if callback in waiting]:
            del self._waiting[server][callback]
            self._tidy(server)

    def _limit(self, server: bytes) -> int:
        servers = len(self._bytes) + (server not in self._bytes)
        return max(SERVER_LEAST, min(SERVER_MOST, ALL_MAX // servers))

    def _tell(self, server: bytes) -> None:
        """There is room; more are told soon if it is not used."""
        waiting = self._waiting.get(server)
        if not waiting or server in self._calls:
            return
        room = self._limit(server) - self._bytes.get(server, 0)
        if room <= 0:
            return
        for callback in list(waiting)[:1 + room // SERVER_LEAST]:
            del waiting[callback]
            callback()
        self._tidy(server)
        if waiting:
            self._calls[server] = self._clock.callLater(TURN, self._tell_more, server)

    def _tell_more(self, server: bytes) -> None:
        del self._calls[server]
        self._tell(server)

    def _tidy(self, server: bytes) -> None:
        if not self._waiting.get(server):
            self._waiting.pop(server, None)
            if server in self._calls:
                self._calls.pop(server).cancel()
