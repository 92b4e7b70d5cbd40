"""Ciphertext of an upload on its way into the spool, and what keeps it from getting there: protocol.txt §7.4."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from helper.errors import SpoolFull
from helper.room import SpoolRoom
from helper.spool import SpoolFile


class Intake:
    """That of the upload `name`; a room.Waiter. `spool` gives the file into which it goes. `on_wait` is called whenever
    something has to wait, `on_end` if the upload is to make room for others."""

    def __init__(self, name: str, room: SpoolRoom, spool: Callable[[], SpoolFile], on_wait: Callable[[], None],
                 on_end: Callable[[SpoolFull], None]) -> None:
        self.name = name
        #: Why the disk does not take what the spool was given; empty if it does.
        self.disk_full = ""
        self._room = room
        self._spool = spool
        self._on_wait = on_wait
        self._on_end = on_end
        self._unstored: deque[bytes] = deque()

    @property
    def waits_for_room(self) -> bool:
        """Whether any bytes do."""
        return bool(self._unstored)

    @property
    def unstored(self) -> int:
        """Bytes that wait for room in the spool."""
        return sum(map(len, self._unstored))

    def store(self, data: bytes) -> None:
        """The next bytes, after those that wait."""
        if self.waits_for_room or not self._room.take(self.name, len(data)):
            self._unstored.append(data)
            self._wait()
        else:
            self._spool().append(data)

    def forget(self) -> None:
        """What waits for room is not to be stored any more."""
        self._unstored.clear()

    def refused_by_disk(self, reason: str) -> None:
        """The spool could not store what it was given, and keeps it until it is tried again."""
        self.disk_full = reason
        self._wait()

    def _wait(self) -> None:
        self._room.wait(self)
        self._on_wait()

    def try_room(self) -> bool:
        """See room.Waiter."""
        if self.disk_full:
            self.disk_full = ""
            self._spool().retry()
        while self._unstored and self._room.take(self.name, len(self._unstored[0])):
            self._spool().append(self._unstored.popleft())
        return not self.waits_for_room

    def end_for_room(self, error: SpoolFull) -> None:
        """See room.Waiter."""
        self._on_end(error)

    def describe(self) -> str:
        """What is waited for, for people."""
        room = self._room.status()
        what = f"the spool's disk, {self.disk_full}" if self.disk_full else "room in the spool"
        return (f"{what}: {room.stored + room.reserved} bytes are used or reserved, {room.disk_free} are free on "
                "its disk")
