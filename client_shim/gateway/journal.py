"""The gateway's memory across restarts: upload handles, the ciphertext that may not be at the helper yet, hash states.

JournalFile is the file: its calls block for a sync and belong into a thread. Journal is its face on the reactor: what
is asked for while one transaction runs goes into the next together (group commit).

It holds keys and directory caps, so it is as secret as a node's private directory; never plaintext.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from client_shim.gateway.handle_errors import JournalFailed, JournalUnusable
from client_shim.gateway.handle_records import (
    ADD_DEDUP,
    COLUMNS,
    CREATE_HANDLES,
    HandleRecord,
    RingRow,
    record_of,
    row_of,
)
from client_shim.gateway.resumable_hash import HashState
from helper.interfaces import LITERAL_MAX
from helper.wal_database import Change, DatabaseDamaged, DatabaseUnusable, WalDatabase, reason_of_failure

#: In the gateway's own directory.
JOURNAL_NAME = "journal.sqlite"
#: Large, as most of what is written are pieces of hundreds of kilobytes.
PAGE_SIZE = 16 * 1024
#: A row of a ring is at most so long, in bytes; a longer piece becomes several.
ROW_MAX = 1024 * 1024

RunInThread = Callable[..., "Deferred[Any]"]

SCHEMA: Sequence[Sequence[str]] = (
    (CREATE_HANDLES,
     """CREATE TABLE ring (handle INTEGER NOT NULL, start INTEGER NOT NULL, crc INTEGER NOT NULL,
        data BLOB NOT NULL)""",
     "CREATE UNIQUE INDEX ring_order ON ring (handle, start)"),
    ADD_DEDUP,
)

_ADVICE = "uploads in progress cannot be resumed without it; restore it, or move it away"
_PUT = f"INSERT OR REPLACE INTO handles ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
_CHANGING = ("state", "touched", "size", "key", "upload_id", "metadata", "dircap", "name", "cap", "literal",
             "error_code", "error_text", "adopting", "outcome")
_UPDATE = f"UPDATE handles SET {', '.join(f'{column} = ?' for column in _CHANGING)} WHERE number = ?"  # noqa: S608
_ALL = f"SELECT {', '.join(COLUMNS)} FROM handles ORDER BY number"  # noqa: S608


@attrs.frozen
class Append:
    """The next ciphertext of a handle, of which nothing was sent yet: `data` at `start`, and the state of its hashes
    at the end of it. Rows of the ring before `free_below` are at the helper; they go, unless the ring `keeps` them."""

    number: int
    start: int
    data: bytes = attrs.field(repr=False)
    hashes: HashState
    touched: float
    free_below: int
    keeps: bool = False

    def changes(self) -> list[Change]:
        h = self.hashes
        rows = [self.data[i:i + ROW_MAX] for i in range(0, len(self.data), ROW_MAX)]
        return [
            Change("INSERT INTO ring (handle, start, crc, data) VALUES (?, ?, ?, ?)",
                   [(self.number, self.start + i * ROW_MAX, zlib.crc32(row), row) for i, row in enumerate(rows)]),
            Change("UPDATE handles SET length = ?, segment_filled = ?, flat = ?, segment = ?, tree = ?, content = ?, "
                   "touched = ? WHERE number = ?",
                   [(h.size, h.segment_filled, h.flat, h.segment, h.tree, h.content, self.touched, self.number)]),
            _free(self.number, self.free_below, self.keeps)]


def put(record: HandleRecord) -> list[Change]:
    """Add a handle, or put another record in its place; without a ring."""
    return [Change(_PUT, [row_of(record)]), _drop([record.number])]


def update(record: HandleRecord, *, drop_ring: bool = False) -> list[Change]:
    """Change a handle, but not its length and hashes, which go on with every append. Its ring, and what is known of its
    plaintext, stay or go."""
    values = dict(zip(COLUMNS, row_of(record), strict=True))
    changes = [Change(_UPDATE, [(*(values[column] for column in _CHANGING), record.number)])]
    if drop_ring:
        changes += [Change("UPDATE handles SET content = x'' WHERE number = ?", [(record.number,)]),
                    _drop([record.number])]
    return changes


def remove(numbers: Iterable[int]) -> list[Change]:
    """Forget handles and their rings."""
    numbers = list(numbers)
    return [Change("DELETE FROM handles WHERE number = ?", [(number,) for number in numbers]), _drop(numbers)]


def free(number: int, below: int, *, keep: bool) -> list[Change]:
    """Rows of the ring of a handle before `below` are at the helper; they go, or `keep` says that they stay."""
    return [_free(number, below, keep)]


def touch(number: int, when: float) -> list[Change]:
    """Somebody wants this handle."""
    return [Change("UPDATE handles SET touched = ? WHERE number = ?", [(when, number)])]


def _free(number: int, below: int, keep: bool) -> Change:
    if keep:
        return Change("UPDATE handles SET at_helper = ? WHERE number = ?", [(below, number)] if below else [])
    return Change("DELETE FROM ring WHERE handle = ? AND start < ?", [(number, below)] if below else [])


def _drop(numbers: list[int]) -> Change:
    return Change("DELETE FROM ring WHERE handle = ?", [(number,) for number in numbers])


class JournalFile:
    """The journal in `path`, for one process alone. Every change is durable when its call returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = WalDatabase(path, SCHEMA, PAGE_SIZE)

    def open(self) -> None:
        """Open the file, or make it. Raises JournalUnusable, with the file's name, and leaves the file as it is.

        After an error of any other call this is what brings it back.
        """
        try:
            self._database.close()
            self._database.open()
        except DatabaseUnusable as e:
            advice = f"; {_ADVICE}" if isinstance(e, DatabaseDamaged) else ""
            raise JournalUnusable(str(self._path), f"this journal of uploads cannot be used: {e}{advice}") from e

    def close(self) -> None:
        self._database.close()

    def apply(self, changes: Iterable[Change]) -> None:
        """Make these changes in their order, all or none. Raises sqlite3.Error."""
        self._database.apply(changes)

    def records(self) -> list[HandleRecord]:
        """Every handle, the oldest first. Raises JournalUnusable if one cannot be understood."""
        records = []
        for row in self._database.read(_ALL):
            try:
                records.append(record_of(row))
            except ValueError as e:
                raise self._damaged(f"a handle: {e}") from e
        return records

    def ring(self, record: HandleRecord) -> list[RingRow]:
        """The ciphertext of a handle that may not be at the helper: without gaps, up to its length.

        Raises JournalUnusable if it is not so.
        """
        rows = self._database.read("SELECT start, crc, data FROM ring WHERE handle = ? ORDER BY start",
                                   (record.number,))
        ring: list[RingRow] = []
        for start, crc, data in rows:
            if not isinstance(data, bytes) or zlib.crc32(data) != crc:
                raise self._damaged("ciphertext is not what was written")
            if ring and ring[-1].end != start:
                raise self._damaged(f"ciphertext from {ring[-1].end} to {start} is missing")
            ring.append(RingRow(start, data))
        if ring and ring[-1].end != record.length:
            raise self._damaged(f"ciphertext ends at {ring[-1].end}, expected {record.length}")
        if 0 < record.length <= LITERAL_MAX and not (ring and ring[0].start == 0):
            raise self._damaged("the beginning of a file is missing, which nobody else has")
        return ring

    def rings(self) -> set[int]:
        """The numbers of handles that have a ring with something that may not be at the helper."""
        return {number for (number,) in self._database.read(
            "SELECT DISTINCT handle FROM ring JOIN handles ON number = handle WHERE start >= at_helper")}

    def _damaged(self, what: str) -> JournalUnusable:
        return JournalUnusable(str(self._path), f"this journal of uploads is damaged: {what}; {_ADVICE}")


class Journal:
    """A JournalFile whose calls answer with Deferreds, in the reactor's thread. `run_in_thread` runs one call at a
    time, or several; they wait for each other.

    Changes are made in the order in which they are asked for. Once one has failed, it and all later ones fail with
    JournalFailed, and `on_failed` is called, once; until `reopen`, which is for whoever then reads anew what is there.
    """

    def __init__(self, file: JournalFile, run_in_thread: RunInThread) -> None:
        self.on_failed: Callable[[], None] = lambda: None
        self._file = file
        self._run_in_thread = run_in_thread
        self._queue: list[tuple[list[Change], Deferred[None]]] = []
        self._committing = False
        self._failure: JournalFailed | None = JournalFailed("it is not open")
        self._idle: list[Deferred[None]] = []

    @property
    def failure(self) -> JournalFailed | None:
        """Why nothing can be recorded, if so."""
        return self._failure

    def open(self) -> Deferred[None]:
        """Open the file, or make it. Fails with JournalUnusable."""
        return self._run_in_thread(self._file.open).addCallback(self._opened)

    reopen = open

    def append(self, append: Append) -> Deferred[None]:
        """Fires when it is durable; only then may `append.data` be sent."""
        return self.change(append.changes())

    def change(self, changes: list[Change]) -> Deferred[None]:
        """Make changes, all or none; fires when they are durable."""
        done: Deferred[None] = Deferred()
        if self._failure is not None:
            done.errback(_again(self._failure))
        else:
            self._queue.append((changes, done))
            self._commit()
        return done

    def records(self) -> Deferred[list[HandleRecord]]:
        """As JournalFile.records."""
        return self._read(self._file.records)

    def ring(self, record: HandleRecord) -> Deferred[list[RingRow]]:
        """As JournalFile.ring."""
        return self._read(self._file.ring, record)

    def rings(self) -> Deferred[set[int]]:
        """As JournalFile.rings."""
        return self._read(self._file.rings)

    def close(self) -> Deferred[None]:
        """Take no more changes; fires when those under way are durable (or have failed) and the file is closed."""
        self._failure = self._failure or JournalFailed("it is closed")
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        self._tell_idle()
        return idle.addCallback(lambda _none: self._run_in_thread(self._file.close))

    def _read(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        def failed(failure: Failure) -> None:
            failure.trap(sqlite3.Error)
            self._fail(failure)
            raise _again(self._failure or JournalFailed("unknown"))

        return self._run_in_thread(function, *arguments).addErrback(failed)

    def _opened(self, _none: None) -> None:
        self._failure = None

    def _commit(self) -> None:
        if self._committing or not self._queue:
            return
        batch, self._queue = self._queue, []
        self._committing = True
        every = [change for changes, _done in batch for change in changes]
        d = self._run_in_thread(self._file.apply, every)
        d.addCallbacks(self._committed, self._commit_failed, callbackArgs=(batch,), errbackArgs=(batch,))

    def _committed(self, _none: None, batch: list[tuple[list[Change], Deferred[None]]]) -> None:
        self._committing = False
        self._commit()  # before anybody is told, so that what they write then goes into one more
        for _changes, done in batch:
            done.callback(None)
        self._tell_idle()

    def _commit_failed(self, failure: Failure, batch: list[tuple[list[Change], Deferred[None]]]) -> None:
        self._committing = False
        batch, self._queue = batch + self._queue, []
        self._fail(failure, [done for _changes, done in batch])

    def _fail(self, failure: Failure, waiting: list[Deferred[None]] | None = None) -> None:
        first = self._failure is None
        if self._failure is None:
            self._failure = JournalFailed(reason_of_failure(failure.value))
        for done in waiting or ():
            done.errback(_again(self._failure))
        if first:
            self.on_failed()
        self._tell_idle()

    def _tell_idle(self) -> None:
        if not (self._committing or self._queue):
            idle, self._idle = self._idle, []
            for each in idle:
                each.callback(None)


def _again(error: JournalFailed) -> JournalFailed:
    """Each who is told gets an error of his own: a traceback is kept in it."""
    return JournalFailed(error.reason, error.seconds)
