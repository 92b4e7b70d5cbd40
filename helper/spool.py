"""The helper's durable copy of the ciphertext of uploads in progress: protocol.txt §8.

One file an upload, named by a hash of its upload ID, holding records of a header and ciphertext. Bytes
count as stored when fdatasync has returned; all that arrives during one sync goes into the next (group
commit). Writing, syncing and reading happen off the reactor thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from helper.errors import SpoolFailed

#: Runs a function in some thread (or at once) and fires with its result.
RunInThread = Callable[..., Deferred[Any]]

#: magic, offset in the ciphertext, length, CRC-32 of magic, offset, length and data
_RECORD = struct.Struct(">4sQLL")
_MAGIC = b"TSs1"
_CRC_PART = struct.Struct(">4sQL")

#: Small pieces of one commit are gathered into records of up to this many bytes.
_RECORD_TARGET = 1024 * 1024
_PIECES_PER_RECORD = 512  # well below IOV_MAX (1024)


class SpoolLocked(Exception):
    """Another process uses this spool directory."""


class SpoolDamaged(SpoolFailed):
    """What was read from the spool is not what was written to it."""


class Spool:
    """The directory of spool files of one helper."""

    def __init__(self, directory: Path, run_in_thread: RunInThread) -> None:
        self._directory = directory
        self._run_in_thread = run_in_thread
        self._lock: int | None = None

    def start(self) -> int:
        """Take the directory (made if missing, mode 0700) for this process alone and empty it.

        Uploads do not outlive the helper process in this version, so whatever is found is of no use.
        Returns the number of files removed. Raises SpoolLocked.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(self._directory, 0o700)
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(lock)
            raise SpoolLocked(f"{self._directory} is in use by another helper process") from e
        self._lock = lock
        left_over = [p for p in self._directory.iterdir() if p.name != "lock"]
        for path in left_over:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return len(left_over)

    def stop(self) -> None:
        """Let go of the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def file(self, name: str, on_stored: Callable[[int], None], on_failed: Callable[[str], None]) -> SpoolFile:
        """A spool file that does not exist yet; it is created when the first bytes come.

        `on_stored` is told how many bytes are durable, `on_failed` (once) why nothing more can be stored.
        """
        return SpoolFile(self._directory / name, self._run_in_thread, on_stored, on_failed)


class SpoolFile:
    """The ciphertext of one upload."""

    def __init__(self, path: Path, run_in_thread: RunInThread,
                 on_stored: Callable[[int], None], on_failed: Callable[[str], None]) -> None:
        self._path = path
        self._run_in_thread = run_in_thread
        self._on_stored = on_stored
        self._on_failed = on_failed
        self._fd: int | None = None
        self._queue: list[bytes] = []
        self._busy = 0  # threads that use the file descriptor
        self._committing = False
        self._dropped = False
        self._failed = False
        # Offsets in the ciphertext at which each record starts and ends. A record's place in the file follows
        # from its number, as all headers have one size. Read in one thread while another appends: _ends grows
        # first, so a record that is found in _starts has its end.
        self._starts = array("Q")
        self._ends = array("Q")
        self._written = 0  # bytes of ciphertext in records
        self.durable = 0

    def append(self, data: bytes) -> None:
        """Queue `data` to be made durable after all that was queued before. No-op after a failure or `drop`."""
        if not (self._failed or self._dropped):
            self._queue.append(data)
            self._commit()

    def read(self, offset: int, length: int) -> bytes:
        """Durable bytes, in the calling thread (which must have come through `in_thread`).

        Raises SpoolDamaged if the file is shorter than it was.
        """
        if self._fd is None or offset + length > self.durable:
            raise SpoolDamaged(f"no bytes {offset}..{offset + length} in the spool, {self.durable} are durable")
        parts: list[bytes] = []
        record = bisect_right(self._starts, offset) - 1
        while length > 0:
            start, end = self._starts[record], self._ends[record]
            take = min(length, end - offset)
            position = (record + 1) * _RECORD.size + start + (offset - start)
            parts.append(_pread_exactly(self._fd, take, position))
            offset, length, record = offset + take, length - take, record + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def in_thread(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run something that reads this file in a thread; the file stays open meanwhile."""
        self._busy += 1
        d = self._run_in_thread(function, *args)
        d.addBoth(self._done)
        return d

    def drop(self) -> None:
        """Remove the file; nothing can be stored or read any more once running threads are done."""
        self._dropped = True
        self._queue.clear()
        if not self._busy:
            self._remove()

    def _done(self, result: Any) -> Any:
        self._busy -= 1
        if self._dropped and not self._busy:
            self._remove()
        return result

    def _remove(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)
            self._path.unlink(missing_ok=True)

    def _commit(self) -> None:
        if self._committing or not self._queue:
            return
        batch, self._queue = self._queue, []
        self._committing = True
        d = self.in_thread(self._write_and_sync, batch)
        d.addCallbacks(self._committed, self._commit_failed)

    def _committed(self, durable: int) -> None:
        self._committing = False
        self.durable = durable
        if not self._dropped:
            self._on_stored(durable)
            self._commit()

    def _commit_failed(self, failure: Failure) -> None:
        # A failed sync is never tried again: the kernel may have dropped the dirty pages, and a second
        # fdatasync would report success all the same.
        self._committing = False
        self._failed = True
        self._queue.clear()
        if not self._dropped:
            self._on_failed(_reason(failure.value))

    def _write_and_sync(self, batch: list[bytes]) -> int:
        """In a thread: write a batch as records and sync it. Returns the durable length."""
        created = self._fd is None
        if created:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
        assert self._fd is not None
        starts, written = array("Q"), self._written
        position = len(self._starts) * _RECORD.size + written
        for record in _records(batch):
            length = sum(map(len, record))
            pwrite_all(self._fd, [_header(written, length, record), *record], position)
            starts.append(written)
            written += length
            position += _RECORD.size + length
        os.fdatasync(self._fd)
        if created:
            fsync_directory(self._path.parent)
        self._ends.extend([*starts[1:], written])
        self._starts.extend(starts)
        self._written = written
        return written


def _records(batch: list[bytes]) -> list[list[bytes]]:
    """The pieces of a batch, gathered into records."""
    records: list[list[bytes]] = []
    filled = 0
    for piece in batch:
        if not records or filled + len(piece) > _RECORD_TARGET or len(records[-1]) >= _PIECES_PER_RECORD:
            records.append([])
            filled = 0
        records[-1].append(piece)
        filled += len(piece)
    return records


def _header(offset: int, length: int, pieces: list[bytes]) -> bytes:
    crc = zlib.crc32(_CRC_PART.pack(_MAGIC, offset, length))
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return _RECORD.pack(_MAGIC, offset, length, crc)


def pwrite_all(fd: int, pieces: list[bytes], position: int) -> None:
    """Write all pieces at `position`, however few bytes the system takes at a time."""
    views = [memoryview(piece) for piece in pieces]
    while views:
        count = os.pwritev(fd, views, position)
        position += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views and count:
            views[0] = views[0][count:]


def _pread_exactly(fd: int, length: int, position: int) -> bytes:
    data = os.pread(fd, length, position)
    if len(data) == length:
        return data
    parts = [data]
    while (missing := length - sum(map(len, parts))) > 0:
        data = os.pread(fd, missing, position + length - missing)
        if not data:
            raise SpoolDamaged(f"the spool file ends at {position + length - missing}")
        parts.append(data)
    return b"".join(parts)


def fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _reason(error: BaseException | None) -> str:
    """Why, without a path: file names are hashes of upload IDs."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{errno.errorcode.get(error.errno, error.errno)} ({os.strerror(error.errno)})"
    return type(error).__name__
