"""One staged share: a file beside the node's shares that has no storage index yet.

The file is laid out as the finished share will be: 12 bytes of container header, then share data. What
works on it (in threads, if it waits for the disk) does so one at a time, in the order in which it was asked for, and
finds the share as the one before has left it: every check is made when the turn comes, not when the call does.
"""

from __future__ import annotations

import enum
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import attrs
from allmydata.storage.immutable import ShareFile
from allmydata.storage.immutable_schema import NEWEST_SCHEMA_VERSION
from allmydata.storage.lease import LeaseInfo
from twisted.internet.defer import Deferred, DeferredLock

from helper import staging_errors as errors
from helper.layout import DATA_OFFSET
from helper.spool import RunInThread
from helper.staging_disk import Disk
from helper.staging_records import Change, StagedRecord, StagedState, set_synced, update

MiB = 1024 * 1024

#: Bytes of the container header before share data (allmydata.storage.immutable).
CONTAINER_HEADER = 0x0C
#: Bytes that `prepare` adds to share data: container header and one lease.
PREPARED_OVERHEAD = CONTAINER_HEADER + ShareFile.LEASE_SIZE
#: A growing share is synced when so many bytes were written since the last time, beside the writes that follow;
SYNC_AHEAD = 5 * MiB // 2
#: a write that makes so many waits for that.
SYNC_INTERVAL = 4 * MiB


class Outcome(enum.Enum):
    """What has become of a share in `assign`: protocol.txt §16.6."""

    ASSIGNED = "assigned"
    ALREADY_THERE = "already-there"
    BUSY = "busy"
    FAILED = "failed"
    NOT_PREPARED = "not-prepared"
    UNKNOWN = "unknown"


#: Outcomes after which nothing is staged any more.
SETTLED = frozenset({Outcome.ASSIGNED, Outcome.ALREADY_THERE})


@attrs.frozen
class Means:
    """What every staged share of a node is given."""

    disk: Disk
    run_in_thread: RunInThread
    commit: Callable[..., Deferred[None]]


class StagedShare:
    """A staged share. `length` is how many bytes of share data are written without a gap from DATA_OFFSET on
    (the header before it comes last), `synced` how many of them are synced and recorded to be; `size` is
    known once prepared, `storage_index` while it is being assigned.

    Methods raise a StagingError for what is refused, OSError and sqlite3.Error for what the disk could not do.
    """

    def __init__(self, path: Path, record: StagedRecord, means: Means) -> None:
        self.path = path
        self.name = record.name
        self.shnum = record.shnum
        self.state = record.state
        self.size = record.size
        self.storage_index = record.storage_index
        self.synced = self.length = max(record.synced, DATA_OFFSET)
        #: As it was given to `prepare` in this run of the node: on disk its secrets are only hashed.
        self.lease: LeaseInfo | None = None
        #: It is being removed: nothing that waits for its turn may touch the file.
        self.removed = False
        self._record = record
        self._disk = means.disk
        self._run_in_thread = means.run_in_thread
        self._commit = means.commit
        self._order = DeferredLock()
        self._sync_turn = DeferredLock()  # held while a growing share is synced; taken after _order, if both are
        self._preparing = False
        self._sync_failure: str | None = None
        self._waiting: list[Deferred[Outcome]] = []

    def record(self) -> StagedRecord:
        """As it is to be found after a restart; `touched` as it was when the share came."""
        return attrs.evolve(self._record, state=self.state, synced=self.synced, size=self.size,
                            storage_index=self.storage_index)

    async def write(self, offset: int, data: bytes, admit: Callable[[int], AbstractContextManager[None]]) -> int:
        """Write share data; returns `length`. `admit(bytes the share grows by)` may refuse."""
        async with self._order:
            self._check_it_grows()
            end = offset + len(data)
            # The header stands before the data and is written last; everything else grows without gaps.
            in_header = offset >= 0 and end <= DATA_OFFSET
            if not in_header and not DATA_OFFSET <= offset <= self.length:
                raise errors.OffsetGap(self.length, offset)
            with admit(max(0, end - self.length)):
                # Into the system's memory, as stock writes: to have a thread do it takes longer than to do it. What
                # waits for the disk, the sync, is not done here.
                self._write(offset, data)
            self.length = max(self.length, end)
            if self._unsynced >= SYNC_INTERVAL:
                # Before the answer, and before the next write: so what was acknowledged and is not held after a
                # kill is always less than that.
                async with self._sync_turn:
                    self._check_usable()
                    if self._unsynced >= SYNC_INTERVAL:
                        await self._sync_and_record()
            elif self._unsynced >= SYNC_AHEAD and not self._sync_turn.locked:
                # Nobody waits for it. If it cannot be done the write that has to wait for it tries again, and says so;
                # a sync that failed is not tried again, and whatever comes next says that.
                Deferred.fromCoroutine(self._sync_ahead()).addErrback(
                    lambda failure: failure.trap(OSError, sqlite3.Error, errors.Stopping) and None)
            return self.length

    @property
    def _unsynced(self) -> int:
        return self.length - self.synced

    async def _sync_ahead(self) -> None:
        async with self._sync_turn:
            await self._sync_and_record()

    async def _sync_and_record(self) -> None:
        """Of what is written now. Holds `_sync_turn`."""
        length = self.length
        with self._poisoned_by_failure():
            await self._run_in_thread(self._sync)
        if self._preparing:  # which will record that all is synced
            return
        await self._commit(set_synced(self.name, self.shnum, length))
        self.synced = length

    async def prepare(self, size: int, lease: LeaseInfo, admit: Callable[[int], AbstractContextManager[None]]) -> None:
        """Truncate to `size` bytes of share data, add container header and lease, sync. A repeat does nothing."""
        async with self._order:
            if size < self.length:  # what is being synced just now may be cut off
                await self._sync_turn.run(lambda: None)
            self._check_usable()
            if self.state is StagedState.PREPARED and size == self.size:
                self.lease = lease
                return
            if not DATA_OFFSET < size <= self.length or (self.size is not None and size != self.size):
                raise errors.WrongSize(self.length if self.size is None else self.size, size)
            self._check_it_grows()
            self._preparing = True
            try:
                await self._prepare_and_sync(size, lease, admit)
            finally:
                self._preparing = False
            prepared = attrs.evolve(self.record(), state=StagedState.PREPARED, size=size, synced=size)
            await self._commit(update(prepared))
            self.state, self.size, self.synced = prepared.state, prepared.size, prepared.synced
            self.lease = lease

    async def _prepare_and_sync(self, size: int, lease: LeaseInfo,
                                admit: Callable[[int], AbstractContextManager[None]]) -> None:
        with admit(PREPARED_OVERHEAD), self._poisoned_by_failure():
            if size < self.synced:  # a restart must not miss bytes that are cut off now
                await self._commit(set_synced(self.name, self.shnum, size))
            self.length, self.synced = size, min(size, self.synced)
            await self._run_in_thread(self._prepare, size, lease)
        # The system tells of pages that it could not write once: perhaps in a sync that was under way before ours.
        await self._sync_turn.run(self._check_synced)

    async def remove(self) -> None:
        """Remove the file, once what is under way is done."""
        self.removed = True
        async with self._order, self._sync_turn:
            await self._run_in_thread(self._disk.unlink, self.path)

    def _check_usable(self) -> None:
        if self.removed:
            raise errors.UnknownStaging
        self._check_synced()

    def _check_synced(self) -> None:
        if self._sync_failure is not None:
            raise errors.WriteFailed(self._sync_failure)

    def _check_it_grows(self) -> None:
        self._check_usable()
        if self.state is not StagedState.GROWING:
            raise errors.AlreadyPrepared(self.state.value)

    @contextmanager
    def _poisoned_by_failure(self) -> Iterator[None]:
        """A sync that failed may have marked lost pages clean, so that the next would succeed and lie
        (RELIABILITY §1): nothing more is taken, and nothing counts that no earlier sync has covered."""
        try:
            yield
        except _SyncFailed as error:
            self._sync_failure = errors.reason_of(error)
            self.length = self.synced
            raise

    # -- being assigned ----------------------------------------------------------------------------------------

    def begin_assignment(self, storage_index: bytes) -> Change:
        """From here until end_assignment nobody else decides about this share. Returns what must be durable
        before it is linked."""
        self.state, self.storage_index = StagedState.ASSIGNING, storage_index
        return update(self.record())

    def prepared_record(self) -> StagedRecord:
        """As it was before begin_assignment."""
        return attrs.evolve(self.record(), state=StagedState.PREPARED, storage_index=None)

    def end_assignment(self, outcome: Outcome) -> None:
        """Tell those who wait."""
        if outcome not in SETTLED:
            self.state, self.storage_index = StagedState.PREPARED, None
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(outcome)

    def assignment(self) -> Deferred[Outcome]:
        """Fires with the outcome of the assignment that is under way."""
        done: Deferred[Outcome] = Deferred()
        self._waiting.append(done)
        return done

    # -- system calls: in threads, all but _write ----------------------------------------------------------------

    def create(self) -> None:
        """Make the file, in place of one that was left over without a record."""
        self._disk.unlink(self.path)
        self._disk.create(self.path)

    def _write(self, offset: int, data: bytes) -> None:
        with self._opened() as fd:
            self._disk.write(fd, data, CONTAINER_HEADER + offset)

    def _sync(self) -> None:
        with self._opened() as fd:
            _synced(self._disk.fdatasync, fd)

    def _prepare(self, size: int, lease: LeaseInfo) -> None:
        with self._opened() as fd:
            # After a power loss `held` may cover all data, and the header, which is written last, may be lost.
            if not any(os.pread(fd, 4, CONTAINER_HEADER)):
                raise errors.OffsetGap(0, size)
            os.ftruncate(fd, CONTAINER_HEADER + size)
            self._disk.write(fd, NEWEST_SCHEMA_VERSION.header(size), 0)
            ShareFile(str(self.path)).add_lease(lease)
            os.fchmod(fd, 0o644)
            _synced(self._disk.fsync, fd)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """For one operation only: thousands of idle shares must not hold any descriptors."""
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)


class _SyncFailed(OSError):
    """Not that a file could not be opened: that its pages could not be written."""


def _synced(sync: Callable[[int], None], fd: int) -> None:
    try:
        sync(fd)
    except OSError as error:
        raise _SyncFailed(error.errno, error.strerror) from error
