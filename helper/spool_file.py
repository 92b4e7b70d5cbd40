"""One spool file: appends that become durable together, reads, and what is done when the disk is full or fails.

protocol.txt §8.1.
"""

from __future__ import annotations

import contextlib
import errno
import os
from array import array
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from helper.disk import System, fsync_directory, pread_all, pwrite_all, reason_of
from helper.errors import SpoolFailed
from helper.spool_records import HEADER_SIZE, Recovered, SpoolDamaged, gathered, packed_header

#: Runs a function in some thread (or at once) and fires with its result.
RunInThread = Callable[..., Deferred[Any]]

#: Files that stay open though no thread uses them. Far below the 1024 descriptors that a process often has, as
#: there may be ten thousand uploads; opening one again takes some microseconds.
IDLE_OPEN_MAX = 256

FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class SpoolUnreadable(SpoolFailed):
    """The disk cannot read a file that is there. It may do so when it is asked again."""


def not_accessible(error: OSError) -> SpoolFailed:
    """What keeps a file from being opened or read, without its path."""
    return (SpoolUnreadable if error.errno == errno.EIO else SpoolFailed)(reason_of(error))


class _NoSpace(Exception):
    """A batch does not fit on the disk. Nothing of it is left there."""


@attrs.frozen
class Told:
    """Who is told of what becomes of a file's bytes: see Spool.file."""

    stored: Callable[[int], None]
    failed: Callable[[str], None]
    full: Callable[[str], None] | None


class Files:
    """What the files of one spool share: threads, system calls, their sum, and descriptors.

    `used` is how many bytes they take on the disk, `queued` how many have yet to be written.
    """

    def __init__(self, run_in_thread: RunInThread, system: System) -> None:
        self.run_in_thread = run_in_thread
        self.system = system
        self.used = self.queued = 0
        self._open: OrderedDict[SpoolFile, None] = OrderedDict()  # have a descriptor; used last comes last
        self._closing: deque[int] = deque()  # descriptors of files that were removed

    def opened(self, file: SpoolFile) -> None:
        """A file was used and has a descriptor: close others that were not used for long."""
        self._open[file] = None
        self._open.move_to_end(file)
        for idle in list(islice(self._open, max(0, len(self._open) - IDLE_OPEN_MAX))):
            idle.release()

    def closed(self, file: SpoolFile) -> None:
        """A file has no descriptor any more."""
        self._open.pop(file, None)

    def close_in_thread(self, fd: int) -> None:
        """Close the last descriptor of a file that was removed."""
        self._closing.append(fd)
        # Whatever a close says of a file that is gone, nobody needs to know.
        self.run_in_thread(self._close_one).addErrback(lambda _failure: None)

    def _close_one(self) -> None:
        with contextlib.suppress(IndexError):  # `release` came first
            self.system.close(self._closing.popleft())

    def release(self) -> None:
        """Close every file that no thread uses."""
        for file in list(self._open):
            file.release()
        while self._closing:
            self._close_one()


class SpoolFile:
    """The ciphertext of one upload."""

    def __init__(self, files: Files, path: Path, told: Told) -> None:
        self._files = files
        self._system = files.system
        self._path = path
        self._told = told
        # At most one descriptor, under "fd". Of two threads that open the file at once one wins: setdefault is atomic.
        self._descriptors: dict[str, int] = {}
        self._exists = False
        self._name_synced = False
        self._queue: list[bytes] = []
        self._unfit: list[bytes] = []  # a batch that found no space; tried again as it is
        self._busy = 0  # threads that use the file
        self._committing = False
        self._gathering = False
        self._full = False
        self._dropped = False
        self._failed = False
        # Offsets in the ciphertext at which each record starts and ends. A record's place in the file follows
        # from its number, as all headers have one size. Read in one thread while another appends: _ends grows
        # first, so a record that is found in _starts has its end.
        self._starts = array("Q")
        self._ends = array("Q")
        self._size = 0  # of the records in the file
        self._occupied = 0  # what the file takes on disk, also if its end is not good
        self._counted = 0  # of that, in Spool.used
        self._queued = 0  # bytes that are not known to be in the file yet
        self.durable = 0

    def resume(self, recovered: Recovered) -> None:
        """Go on where an earlier run ended: all these records are durable."""
        self._exists = self._name_synced = True
        self._starts, self._ends = recovered.starts, recovered.ends
        self._size = self._occupied = recovered.size
        self.durable = recovered.length
        self._count()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is appended in the block becomes durable with one sync, if none is under way."""
        self._gathering = True
        try:
            yield
        finally:
            self._gathering = False
            self._commit()

    def append(self, data: bytes) -> None:
        """Queue `data` to be made durable after all that was queued before. No-op after a failure or `drop`."""
        if data and not (self._failed or self._dropped):
            self._queue.append(data)
            self._count_queued(len(data))
            self._commit()

    @property
    def committing(self) -> bool:
        """Whether more will be durable in a moment, or never."""
        return self._committing

    def retry(self) -> None:
        """There may be space again: go on with what waits for it. If there is none, `on_full` is told again."""
        if self._full:
            self._full = False
            self._commit()

    def read(self, offset: int, length: int) -> bytes:
        """Durable bytes, in the calling thread (which must have come through `in_thread`).

        Raises SpoolDamaged if the file is shorter than it was. CRCs are checked when a file is recovered, and not
        here, as reads seldom take whole records. What is read here is compared in any case: what is encoded first,
        by the hash of all ciphertext that `finish` brings; what is encoded again, by the hash of its block.
        """
        if not (self._exists and self.durable) or offset + length > self.durable:
            raise SpoolDamaged(f"no bytes {offset}..{offset + length} in the spool, {self.durable} are durable")
        fd = self._open()
        parts: list[bytes] = []
        record = bisect_right(self._starts, offset) - 1
        while length > 0:
            start, end = self._starts[record], self._ends[record]
            take = min(length, end - offset)
            position = (record + 1) * HEADER_SIZE + start + (offset - start)
            parts.append(pread_exactly(fd, take, position, self._system))
            offset, length, record = offset + take, length - take, record + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def in_thread(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run something that reads this file in one of the spool's threads; the file stays open meanwhile."""
        return self.using(self._files.run_in_thread, function, *args)

    def using(self, run_in_thread: RunInThread, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """The same in another kind of thread."""
        self._busy += 1
        d = run_in_thread(function, *args)
        d.addBoth(self._done)
        return d

    def release(self) -> bool:
        """Close the file's descriptor unless a thread uses it; it is opened again when needed. Whether it is closed."""
        if self._busy:
            return False
        fd = self._descriptors.pop("fd", None)
        if fd is not None:
            self._system.close(fd)
        self._files.closed(self)
        return True

    def drop(self) -> None:
        """Remove the file; nothing can be stored or read any more once running threads are done."""
        self._dropped = True
        self._queue.clear()
        self._unfit.clear()
        self._count_queued(-self._queued)
        if not self._busy:
            self._remove()

    def _done(self, result: Any) -> Any:
        self._busy -= 1
        self._count()
        if self._dropped and not self._busy:
            self._remove()
        elif self._descriptors:
            self._files.opened(self)
        return result

    def _remove(self) -> None:
        """The file's name goes at once. Its bytes go with its last descriptor, which takes a while: in a thread."""
        fd = self._descriptors.pop("fd", None)
        self._files.closed(self)
        if self._exists:
            self._exists = False
            if fd is None:
                with contextlib.suppress(OSError):
                    fd = self._system.open(self._path, FLAGS)
            self._path.unlink(missing_ok=True)
            self._occupied = 0
            self._count()
        if fd is not None:
            self._files.close_in_thread(fd)

    def _count(self) -> None:
        self._files.used += self._occupied - self._counted
        self._counted = self._occupied

    def _count_queued(self, by: int) -> None:
        self._queued += by
        self._files.queued += by

    def _open(self) -> int:
        """In a thread: the descriptor of the file, which exists."""
        fd = self._descriptors.get("fd")
        if fd is not None:
            return fd
        try:
            fd = self._system.open(self._path, FLAGS)
        except OSError as e:
            raise not_accessible(e) from e
        kept = self._descriptors.setdefault("fd", fd)
        if kept != fd:
            self._system.close(fd)
        return kept

    # -- commits -------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        if self._committing or self._gathering or self._full or not (self._unfit or self._queue):
            return
        if self._unfit:
            batch, self._unfit = self._unfit, []
        else:
            batch, self._queue = self._queue, []
        self._committing = True
        d = self.in_thread(self._write_and_sync, batch)
        d.addCallbacks(self._committed, self._commit_failed, callbackArgs=(batch,), errbackArgs=(batch,))

    def _committed(self, durable: int, batch: list[bytes]) -> None:
        self._committing = False
        self.durable = durable
        if not self._dropped:
            self._count_queued(-sum(map(len, batch)))
            self._told.stored(durable)
            self._commit()

    def _commit_failed(self, failure: Failure, batch: list[bytes]) -> None:
        self._committing = False
        if self._dropped:
            return
        if failure.check(_NoSpace) and self._told.full is not None:
            # Tried again as it is, not with what has come since: should the power fail then, whatever the first
            # attempt has left on the disk is what the second would have written there.
            self._full, self._unfit = True, batch
            self._told.full(str(failure.value))
            return
        # A failed sync is never tried again: the kernel may have dropped the dirty pages, and a second
        # fdatasync would report success all the same.
        self._failed = True
        self._queue.clear()
        self._count_queued(-self._queued)
        self._told.failed(_why(failure.value))

    def _write_and_sync(self, batch: list[bytes]) -> int:
        """In a thread: write a batch as records and sync it. Returns the durable length."""
        begin = self._ends[-1] if self._ends else 0
        starts, ends = array("Q"), array("Q")
        try:
            fd = self._open() if self._exists else self._create()
            offset = begin
            for record in gathered(batch):
                header = packed_header(begin, offset, record)
                length = sum(map(len, record))
                position, self._occupied = self._occupied, self._occupied + len(header) + length
                pwrite_all(fd, [header, *record], position, self._system)
                starts.append(offset)
                offset += length
                ends.append(offset)
        except OSError as e:
            if e.errno not in _NO_SPACE:
                raise
            self._take_back()
            raise _NoSpace(reason_of(e)) from e
        self._system.fdatasync(fd)
        if not self._name_synced:
            fsync_directory(self._path.parent, self._system)
            self._name_synced = True
        self._ends.extend(ends)
        self._starts.extend(starts)
        self._size = self._occupied
        return offset

    def _create(self) -> int:
        """In a thread: the descriptor of a file that did not exist."""
        fd: int = self._system.open(self._path, FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        self._descriptors["fd"] = fd
        self._exists = True
        return fd

    def _take_back(self) -> None:
        """In a thread: remove what was written of a batch that did not fit."""
        if self._exists:
            self._system.ftruncate(self._open(), self._size)
        self._occupied = self._size


def pread_exactly(fd: int, length: int, position: int, system: System) -> bytes:
    """Raises SpoolDamaged if the file ends before."""
    data = pread_all(fd, length, position, system)
    if len(data) < length:
        raise SpoolDamaged(f"the spool file ends at {position + len(data)}")
    return data


def _why(error: BaseException | None) -> str:
    if isinstance(error, SpoolFailed):
        return error.reason
    return str(error) if isinstance(error, _NoSpace) else reason_of(error)
