"""One staged share: a file beside the node's shares that has no storage index yet.

The file is laid out as the finished share will be: 12 bytes of container header, then share data. Its
operations run in threads, one at a time, in the order in which they were asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allmydata.storage.immutable import ShareFile
from allmydata.storage.immutable_schema import NEWEST_SCHEMA_VERSION
from allmydata.storage.lease import LeaseInfo
from twisted.internet.defer import Deferred, DeferredLock

from helper.disk import fsync_directory, pwrite_all
from helper.layout import DATA_OFFSET
from helper.spool import RunInThread
from helper.staging_records import StagedRecord, StagedState

MiB = 1024 * 1024

#: Bytes of the container header before share data (allmydata.storage.immutable).
CONTAINER_HEADER = 0x0C
#: A growing share is synced whenever so many bytes were written since the last time.
SYNC_INTERVAL = 4 * MiB


class StagedShare:
    """A staged share. `length` is how many bytes of share data are written without a gap from DATA_OFFSET on
    (the header before it comes last), `synced` how many of them are safe; `size` is known once prepared."""

    def __init__(self, path: Path, record: StagedRecord, run_in_thread: RunInThread,
                 on_synced: Callable[[int], None]) -> None:
        self.path = path
        self.name = record.name
        self.shnum = record.shnum
        self.state = record.state
        self.size = record.size
        self.synced = self.length = max(record.synced, DATA_OFFSET)
        self._run_in_thread = run_in_thread
        self._on_synced = on_synced
        self._order = DeferredLock()
        self._removed = False

    def write(self, offset: int, data: bytes) -> Deferred[int]:
        """Write share data; fires with `length`. The caller has checked offset and space."""
        end = offset + len(data)
        self.length = max(self.length, end)

        async def write() -> int:
            await self._in_order(self._write, offset, data)
            if self.length - self.synced >= SYNC_INTERVAL:
                await self.sync()
            return self.length

        return Deferred.fromCoroutine(write())

    async def sync(self) -> None:
        """Make all that was written until now safe."""
        length = self.length
        if length > self.synced:
            await self._in_order(self._sync)
            if length > self.synced:
                self.synced = length
                self._on_synced(length)

    async def prepare(self, size: int, lease: LeaseInfo) -> None:
        """Truncate to `size` bytes of share data, add container header and lease, sync. Repeatable."""
        await self._in_order(self._prepare, size, lease)
        self.size, self.synced, self.state = size, size, StagedState.PREPARED

    async def remove(self) -> None:
        """Remove the file, once what is under way is done."""
        self._removed = True
        await self._in_order(self._remove)

    @property
    def removed(self) -> bool:
        return self._removed

    async def _in_order(self, function: Callable[..., Any], *arguments: Any) -> Any:
        await self._order.acquire()
        try:
            return await self._run_in_thread(function, *arguments)
        finally:
            self._order.release()

    # -- in threads ------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the file, and its directory entry safe. FileExistsError if it is there."""
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        fsync_directory(self.path.parent)

    def _write(self, offset: int, data: bytes) -> None:
        with self._opened() as fd:
            pwrite_all(fd, [data], CONTAINER_HEADER + offset)

    def _sync(self) -> None:
        with self._opened() as fd:
            os.fdatasync(fd)

    def _prepare(self, size: int, lease: LeaseInfo) -> None:
        with self._opened() as fd:
            os.ftruncate(fd, CONTAINER_HEADER + size)
            pwrite_all(fd, [NEWEST_SCHEMA_VERSION.header(size)], 0)
        ShareFile(str(self.path)).add_lease(lease)
        with self._opened() as fd:
            os.fchmod(fd, 0o644)
            os.fsync(fd)

    def _remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _opened(self) -> _Opened:
        return _Opened(self.path)


class _Opened:
    """A file descriptor for the length of a `with` block: thousands of idle shares must not hold any."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> int:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        return self._fd

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)
