"""Room in the spool: who may store how much, who has to wait, and how a spool that is full gets out of it.

DESIGN §7, protocol.txt §7.4. A declared size is reserved when the upload is opened, and always has room. The others
share what is left; when there is nothing left they wait, and their clients with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from helper.errors import QuotaExceeded, SpoolFull
from helper.interfaces import SIZE_MAX

#: While uploads wait for room it is looked for this often; seconds. What an operator frees is not told to us.
LOOK_INTERVAL = 5.0


@attrs.frozen
class RoomLimits:
    """Bytes; `patience` in seconds: how long all may wait before the smallest upload ends."""

    quota: int = SIZE_MAX
    upload_quota: int = SIZE_MAX
    free_disk: int = 0
    patience: float = 600


class Waiter(Protocol):
    """An upload that waits for room."""

    name: str

    def try_room(self) -> bool:
        """Store what waits, as far as there is room. Whether nothing waits any more."""

    def end_for_room(self, error: SpoolFull) -> None:
        """Give the upload up, so that others can go on."""


@attrs.frozen
class RoomStatus:
    """How full a spool is, bytes of ciphertext. `quota` is None if there is none, `disk_free` if the disk does not
    say; `disk_left_free` is what uploads of no declared size leave free there."""

    stored: int
    reserved: int
    quota: int | None
    disk_free: int | None
    disk_left_free: int


@attrs.frozen
class _Share:
    """What one upload has of the spool, bytes."""

    stored: int
    reserved: int  # of a declared size, not yet stored
    declared: bool


class SpoolRoom:
    """The room in one spool. `free_disk` says how many bytes its disk has left."""

    log = Logger()

    def __init__(self, limits: RoomLimits, free_disk: Callable[[], int], clock: IReactorTime) -> None:
        self._limits = limits
        self._free_disk = free_disk
        self._clock = clock
        self._shares: dict[str, _Share] = {}
        self._stored = self._reserved = 0  # the sums over them
        self._waiters: dict[str, Waiter] = {}
        self._stuck_for = 0.0  # seconds in which uploads waited and none of them got on
        self._call: IDelayedCall | None = None
        self._looked = 0.0

    @property
    def upload_quota(self) -> int:
        """The most that one upload may ever hold; bytes."""
        return min(self._limits.upload_quota, self._limits.quota)

    @property
    def used(self) -> int:
        """Bytes stored and reserved."""
        return self._stored + self._reserved

    def stored(self, name: str) -> int:
        """Bytes of one upload that the spool has, or is about to have; 0 once they are removed."""
        return self._shares[name].stored if name in self._shares else 0

    def status(self) -> RoomStatus:
        """How full the spool is now."""
        try:
            free: int | None = self._free_disk()
        except OSError:
            free = None
        quota = self._limits.quota if self._limits.quota < SIZE_MAX else None
        return RoomStatus(self._stored, self._reserved, quota, free, self._limits.free_disk)

    def admit(self, name: str, size: int | None) -> None:
        """A new upload. Raises QuotaExceeded or SpoolFull, with numbers, if it should not begin."""
        if size is not None and size > self.upload_quota:
            raise QuotaExceeded(self.upload_quota, size)
        room = self._room()
        if room < (1 if size is None else size):
            raise SpoolFull(max(0, room), 1 if size is None else size)
        self._set(name, _Share(0, size or 0, size is not None))

    def resume(self, name: str, size: int | None, stored: int) -> None:
        """An upload of an earlier run of the helper; it was admitted then."""
        self._set(name, _Share(stored, max(0, size - stored) if size is not None else 0, size is not None))

    def take(self, name: str, length: int) -> bool:
        """Whether `length` more bytes of an upload may be stored; they are counted if so."""
        share = self._shares[name]
        if length > share.reserved and length - share.reserved > self._room():
            return False
        self._set(name, _Share(share.stored + length, max(0, share.reserved - length), share.declared))
        if name in self._waiters:  # that others get on, who need not wait, is of no use to those who do
            self._stuck_for = 0.0
        return True

    def release(self, name: str) -> None:
        """The upload's ciphertext is removed."""
        self._waiters.pop(name, None)
        if name in self._shares:
            self._set(name, None)
            self._look_soon(0.0)

    def wait(self, waiter: Waiter) -> None:
        """`waiter` will be tried again when there may be room."""
        if not self._waiters:
            self._stuck_for = 0.0
        self._waiters[waiter.name] = waiter
        self._look_soon(LOOK_INTERVAL)

    def stop(self) -> None:
        """Try nothing any more."""
        self._waiters.clear()
        if self._call is not None and self._call.active():
            self._call.cancel()

    def _set(self, name: str, share: _Share | None) -> None:
        before = self._shares.pop(name, None)
        if before is not None:
            self._stored -= before.stored
            self._reserved -= before.reserved
        if share is not None:
            self._shares[name] = share
            self._stored += share.stored
            self._reserved += share.reserved

    def _room(self) -> int:
        """Bytes that uploads of no declared size may still take."""
        on_disk = self._free_disk() - self._limits.free_disk - self._reserved
        return min(self._limits.quota - self.used, on_disk)

    def _look_soon(self, delay: float) -> None:
        if self._call is not None and self._call.active():
            if self._call.getTime() <= self._clock.seconds() + delay:
                return
            self._call.cancel()
        else:
            self._looked = self._clock.seconds()
        if self._waiters:
            self._call = self._clock.callLater(delay, self._look)

    def _look(self) -> None:
        now = self._clock.seconds()
        self._stuck_for += min(max(0.0, now - self._looked), 2 * LOOK_INTERVAL)  # clocks jump
        self._looked = now
        for name, waiter in list(self._waiters.items()):
            if waiter.try_room():
                self._waiters.pop(name, None)
        if self._waiters and self._stuck_for >= self._limits.patience:
            self._stuck_for = 0.0
            self._end_smallest()
        self._look_soon(LOOK_INTERVAL)

    def _end_smallest(self) -> None:
        """All have waited long enough for each other: one must make room."""
        undeclared = [name for name in self._waiters if name in self._shares and not self._shares[name].declared]
        smallest = min(undeclared, key=lambda name: self._shares[name].stored, default=None)
        if smallest is not None:
            self.log.warn("upload {upload} ends so that others find room in the spool", upload=smallest[:8])
            waiter = self._waiters.pop(smallest)
            waiter.end_for_room(SpoolFull(max(0, self._room()), 1))
