"""The helper's memory across restarts: SQLite beside the spool. Records of uploads; other tables may follow.

LedgerFile is the file: its calls block for a sync and belong into a thread. Ledger is its face on the reactor:
what is written while one transaction runs goes into the next together (group commit).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper.dedup_records import CREATE_RECORDS, CREATE_RECORDS_EXPIRY
from helper.disk import fsync_directory, make_directory, reason_of
from helper.errors import SpoolFailed
from helper.spool import RunInThread
from helper.upload_records import (
    ADD_STAGING_ENOUGH,
    ADD_STAGINGS,
    ADD_UPTIME,
    ALL_UPLOADS,
    CREATE_UPLOADS,
    PUT_UPLOAD,
    UploadRecord,
    record_of,
    row_of,
)
from helper.wal_database import Change, reason_of_failure, transaction

#: In the directory of the helper's own files, beside the spool.
LEDGER_NAME = "ledger.sqlite"

#: What takes the schema from one version to the next: a list of statements each. Only ever add to its end; the
#: version (user_version) of a file is how many of these it has seen.
SCHEMA: Sequence[Sequence[str]] = (
    (CREATE_UPLOADS,),
    ADD_UPTIME,
    ADD_STAGINGS,
    ADD_STAGING_ENOUGH,
    (CREATE_RECORDS, CREATE_RECORDS_EXPIRY),
)


class LedgerUnusable(Exception):
    """The helper cannot start with this ledger; the text is for its operator."""


class LedgerFailed(SpoolFailed):
    """Nothing can be recorded now."""


def put(*records: UploadRecord) -> Change:
    """Add or replace records of uploads. Raises ValueError for one that could not be read again."""
    return Change(PUT_UPLOAD, [row_of(record) for record in records])


def touch(names: Iterable[str], when: float, uptime: float) -> Change:
    """Somebody still wants these uploads: see `touched` and `wanted_at` of their records."""
    return Change("UPDATE uploads SET touched = ?, wanted_at = ? WHERE name = ?",
                  [(when, uptime, name) for name in names])


def set_uptime(seconds: float) -> Change:
    """The helper's heartbeat: it has been up for so long, in all its runs."""
    return Change("UPDATE helper SET uptime = ?", [(seconds,)])


def remove(names: Iterable[str]) -> Change:
    """Forget uploads."""
    return Change("DELETE FROM uploads WHERE name = ?", [(name,) for name in names])


@attrs.frozen
class Recorded:
    """What a ledger has: the records of uploads, in the order in which they were opened, and the helper's uptime."""

    uploads: list[UploadRecord]
    uptime: float = 0.0


class LedgerFile:
    """The database in `path`, for one process alone. Every change is durable when its call returns.

    After an sqlite3.Error nothing more may be asked of it than `reopen`: what a failed sync has left is not known.
    """

    def __init__(self, path: Path, schema: Sequence[Sequence[str]] = SCHEMA) -> None:
        self._path = path
        self._schema = schema
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None

    def open(self, spool_files: int = 0) -> bool:
        """Open the file, or make it (mode 0600, in a directory of mode 0700). Whether it was made.

        Raises LedgerUnusable, with the file's name, and leaves the file as it is; also if it is missing and there are
        `spool_files`, which only a ledger tells the meaning of.
        """
        make_directory(self._path.parent)
        try:
            new = not os.path.lexists(self._path)
            if new and spool_files:
                raise LedgerUnusable(f"{self._path}: this ledger is missing, but its spool has {spool_files} "
                                     f"file{'' if spool_files == 1 else 's'}; {_ADVICE}")
            if new:
                self._make()
            self._connect()
        except (sqlite3.Error, OSError) as e:
            self.close()
            raise LedgerUnusable(f"{self._path}: {_explained(e)}") from e
        except LedgerUnusable:
            self.close()
            raise
        return new

    def reopen(self) -> Recorded:
        """Open the file anew, after a change has failed, and read what the disk has of it.

        Raises sqlite3.Error, OSError or LedgerUnusable, and may be tried again.
        """
        self.close()
        for path in (self._path, self._with("-wal")):
            with contextlib.suppress(FileNotFoundError):
                _forget_cached(path)
        with self._lock:
            self._connect()
        return self.read()

    def close(self) -> None:
        """No calls after this but `reopen`."""
        with self._lock:
            if self._open is not None:
                self._open.close()
                self._open = None

    def apply(self, changes: Iterable[Change]) -> None:
        """Make these changes in their order, all or none."""
        with self._lock, transaction(self._db):
            for change in changes:
                self._db.executemany(change.sql, change.rows)

    def all(self) -> list[UploadRecord]:
        """Every record of an upload. Raises LedgerUnusable if one cannot be understood."""
        with self._lock:
            rows = self._db.execute(ALL_UPLOADS).fetchall()
        return [self._record_of(row) for row in rows]

    def read(self) -> Recorded:
        """Everything. Raises LedgerUnusable if it cannot be understood."""
        with self._lock:
            row = self._db.execute("SELECT uptime FROM helper").fetchone()
        if row is None or not (isinstance(row[0], float) and 0 <= row[0] < float("inf")):
            raise LedgerUnusable(f"{self._path}: the helper's uptime is damaged: "
                                 f"expected seconds, got {row and row[0]}")
        return Recorded(self.all(), row[0])

    def select(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of another table than that of uploads."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _record_of(self, row: tuple[Any, ...]) -> UploadRecord:
        try:
            return record_of(row)
        except ValueError as e:
            raise LedgerUnusable(f"{self._path}: the record of an upload is damaged: {e}") from e

    @property
    def _db(self) -> sqlite3.Connection:
        if self._open is None:
            raise sqlite3.ProgrammingError("the ledger is not open")
        return self._open

    def _make(self) -> None:
        """Make the file under another name first: one under the right name is complete, or damaged."""
        if os.path.lexists(self._with("-wal")):  # SQLite would take it for that of the new file
            raise LedgerUnusable(f"{self._path}: this ledger is missing, but its log is there; {_ADVICE}")
        unfinished = self._with(".new")
        for suffix in ("", "-wal", "-shm"):
            unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        making = LedgerFile(unfinished, self._schema)
        making._connect(empty=True)
        making.close()  # this also brings all of its write-ahead log into the file, synced
        unfinished.rename(self._path)
        fsync_directory(self._path.parent)

    def _with(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)

    def _connect(self, empty: bool = False) -> None:
        if not empty and self._path.stat().st_size == 0:  # for SQLite that is a database without tables
            raise LedgerUnusable(f"{self._path}: this ledger is damaged: it is empty; {_ADVICE}")
        os.chmod(self._path, 0o600)
        # Read-write, never create. No waiting: nobody else may have it open.
        self._open = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=rw", uri=True, timeout=0,
                                     check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise LedgerUnusable(f"{self._path}: expected journal mode wal, got {mode}; is this a local disk?")
        self._db.execute("PRAGMA synchronous = FULL")
        found = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise LedgerUnusable(f"{self._path}: this ledger is damaged: {found.splitlines()[0]}; {_ADVICE}")
        self._migrate(empty)

    def _migrate(self, empty: bool) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(self._schema):
            raise LedgerUnusable(f"{self._path}: this ledger has version {version}, of a newer helper; this one knows "
                                 f"versions up to {len(self._schema)}")
        if version == 0 and not empty:
            raise LedgerUnusable(f"{self._path}: this is a database, but not a ledger; {_ADVICE}")
        with transaction(self._db):
            for step in self._schema[version:]:
                for statement in step:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(self._schema)}")


_ADVICE = "uploads in progress cannot be resumed without it; restore it, or move it and the spool away"


#: While nothing can be recorded it is tried again this often; seconds. What an operator frees is not told to us.
RETRY_INTERVAL = 5.0


@attrs.define(eq=False)
class _Asked:
    """Changes that were asked for together, and who is to be told that they are durable."""

    changes: tuple[Change, ...]
    told: list[Deferred[None]]
    record: UploadRecord | None = None  # if that is what is to be written
    removes: frozenset[str] = frozenset()
    touches: tuple[frozenset[str], float, float] = (frozenset(), 0.0, 0.0)  # names, and what of them is changed


class Ledger:
    """A LedgerFile whose calls answer with Deferreds, in the reactor's thread.

    Changes are made in the order in which they are asked for. If one cannot be made, as the disk is full or fails, none
    is lost (protocol.txt §11.5): all wait, and every RETRY_INTERVAL seconds the file is opened anew, as what a failed
    sync has left is not known; what was durable before is looked for in it and written again if it is not there, and
    all that waits is written then. Meanwhile `failing` says why, and `on_change` is called when it begins and ends.
    """

    log = Logger()

    def __init__(self, file: LedgerFile, run_in_thread: RunInThread, clock: IReactorTime) -> None:
        self._file = file
        self._run_in_thread = run_in_thread
        self._clock = clock
        #: Why nothing can be recorded at present, without a path; empty if it can.
        self.failing = ""
        self.on_change: Callable[[], None] = lambda: None
        self._queue: list[_Asked] = []
        self._writes: dict[str, _Asked] = {}  # of the queue: the last record of each upload, if nothing has begun yet
        self._durable: dict[str, UploadRecord] = {}
        self._unknown: set[str] = set()  # names of uploads that a change that failed was about: it may have been made
        self._impatient: dict[Deferred[None], None] = {}  # in the order in which they asked
        self._committing = False
        self._retry_call: IDelayedCall | None = None
        self._closing: Deferred[None] | None = None
        self._closed = False

    def open(self, spool_files: int = 0) -> Recorded:
        """See LedgerFile.open and LedgerFile.read. Blocks; before the reactor serves anybody."""
        self._file.open(spool_files)
        try:
            recorded = self._file.read()
        except LedgerUnusable:
            self._file.close()
            raise
        self._durable = {record.name: record for record in recorded.uploads}
        return recorded

    def write(self, record: UploadRecord) -> Deferred[None]:
        """Add or replace the record of an upload; fires when that is durable. ValueError for one that could not be
        read again."""
        change = put(record)
        waiting = self._writes.get(record.name)
        if waiting is not None:  # so what waits does not grow however often it is asked for
            waiting.changes, waiting.record = (change,), record
            done: Deferred[None] = Deferred()
            waiting.told.append(done)
            return done
        return self._ask(_Asked((change,), [], record))

    def touch(self, names: Iterable[str], when: float, uptime: float) -> Deferred[None]:
        """Somebody still wants these uploads, and the helper has been up for so long; fires when that is durable."""
        touched = frozenset(names)
        self._later(touched)
        return self._ask(_Asked((touch(touched, when, uptime), set_uptime(uptime)), [],
                                touches=(touched, when, uptime)))

    def remove(self, names: Iterable[str]) -> Deferred[None]:
        """Forget uploads; fires when that is durable."""
        removed = frozenset(names)
        self._later(removed)
        return self._ask(_Asked((remove(removed),), [], removes=removed))

    def change(self, *changes: Change) -> Deferred[None]:
        """Change other tables than that of uploads; fires when all of it is durable."""
        return self._ask(_Asked(changes, []))

    def unless_failing(self, recorded: Deferred[None]) -> Deferred[None]:
        """Fires when `recorded` does; fails with LedgerFailed, if sooner, once it is known that that will take long."""
        d: Deferred[None] = Deferred()
        if self.failing:
            d.errback(LedgerFailed(self.failing))
            return d
        self._impatient[d] = None

        def tell(result: Failure | None) -> Failure | None:
            if d in self._impatient:
                del self._impatient[d]
                if isinstance(result, Failure):
                    d.errback(result)
                else:
                    d.callback(None)
            return result

        recorded.addBoth(tell)
        return d

    def select(self, sql: str, *values: object) -> Deferred[list[tuple[Any, ...]]]:
        """The rows of another table than that of uploads, as far as they are durable."""
        return self._run_in_thread(self._file.select, sql, *values)

    def close(self) -> Deferred[None]:
        """Take no more changes; fires when those under way are durable (or have failed) and the file is closed."""
        done: Deferred[None] = Deferred()
        if self._closing is not None:
            self._closing.chainDeferred(done)
            return done
        self._closing = Deferred()
        self._closing.chainDeferred(done)
        if self._retry_call is not None and self._retry_call.active():
            self._retry_call.cancel()
            self._give_up()
        self._close_when_idle()
        return done

    # -- how it works ------------------------------------------------------------------------------------

    def _ask(self, asked: _Asked) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        if self._closing is not None:
            done.errback(LedgerFailed(self.failing or "the ledger is closed"))
            return done
        asked.told.append(done)
        self._queue.append(asked)
        if asked.record is not None:
            self._writes[asked.record.name] = asked
        self._commit()
        return done

    def _later(self, names: frozenset[str]) -> None:
        """What is written of these uploads from now on comes after the change that is asked for now."""
        for name in names:
            self._writes.pop(name, None)

    def _commit(self) -> None:
        if not (self._committing or self.failing) and self._queue:
            self._apply([])

    def _apply(self, repairs: list[Change]) -> None:
        """Make all changes that wait, after `repairs`."""
        batch, self._queue = self._queue, []
        self._writes.clear()
        self._committing = True
        d = self._run_in_thread(self._file.apply, [*repairs, *(change for asked in batch for change in asked.changes)])
        d.addCallbacks(self._committed, self._commit_failed, callbackArgs=(batch,), errbackArgs=(batch,))

    def _committed(self, _result: None, batch: list[_Asked]) -> None:
        self._committing = False
        for asked in batch:
            self._remember(asked)
        self._unknown.clear()
        was_failing, self.failing = self.failing, ""
        self._commit()  # before anybody is told, so that what they write then goes into one more
        if was_failing:
            self.log.info("the ledger is written again: all that waited is recorded")
            self.on_change()
        for asked in batch:
            for done in asked.told:
                done.callback(None)
        self._close_when_idle()

    def _remember(self, asked: _Asked) -> None:
        if asked.record is not None:
            self._durable[asked.record.name] = asked.record
        for name in asked.removes:
            self._durable.pop(name, None)
        names, when, uptime = asked.touches
        for name in names & self._durable.keys():
            self._durable[name] = attrs.evolve(self._durable[name], touched=when, wanted_at=uptime)

    def _commit_failed(self, failure: Failure, batch: list[_Asked]) -> None:
        for asked in batch:
            self._unknown |= asked.removes | (set() if asked.record is None else {asked.record.name})
        self._queue[:0] = batch
        self._fails(failure)

    def _fails(self, failure: Failure) -> None:
        self._committing = False
        reason = f"ledger: {reason_of_failure(failure.value)}"
        if reason != self.failing:
            # an operator may see the file's name
            detail = f" ({failure.value})" if failure.check(LedgerUnusable) else ""
            self.log.error("nothing can be recorded now, {reason}{detail}: what should be waits, new uploads are "
                           "refused, and it is tried again every {interval} s", reason=reason, detail=detail,
                           interval=RETRY_INTERVAL)
        began, self.failing = not self.failing, reason
        if self._closing is not None:
            self._give_up()
            self._close_when_idle()
            return
        self._retry_call = self._clock.callLater(RETRY_INTERVAL, self._retry)
        if began:
            impatient, self._impatient = self._impatient, {}
            for d in impatient:
                d.errback(LedgerFailed(reason))
            self.on_change()

    def _retry(self) -> None:
        self._committing = True
        d = self._run_in_thread(self._reopened, list(self._durable.values()), frozenset(self._unknown))
        d.addCallback(self._repair)
        d.addErrback(self._fails)

    def _reopened(self, durable: list[UploadRecord], unknown: frozenset[str]) -> _Repairs:
        """In a thread: open the file anew; what has to be written for it to be as it was."""
        found = {record.name: record for record in self._file.reopen().uploads}
        lost = [r for r in durable if r.name not in unknown
                and (r.name not in found or _essence(found[r.name]) != _essence(r))]
        known = unknown.union(record.name for record in durable)
        return _Repairs(lost, [name for name in found if name not in known])

    def _repair(self, repairs: _Repairs) -> None:
        if repairs.lost or repairs.strangers:
            self.log.error("the disk has lost what the ledger had: {lost} records are written anew, {strangers} that "
                           "were removed are removed again", lost=len(repairs.lost), strangers=len(repairs.strangers))
        self._apply([put(*repairs.lost), remove(repairs.strangers)])

    def _give_up(self) -> None:
        """It is closed while nothing can be recorded: what waits is not."""
        given_up, self._queue = self._queue, []
        self._writes.clear()
        for asked in given_up:
            for done in asked.told:
                done.errback(LedgerFailed(self.failing))

    def _close_when_idle(self) -> None:
        if self._closing is not None and not (self._committing or self._queue or self._closed):
            self._closed = True
            self._run_in_thread(self._file.close).chainDeferred(self._closing)


@attrs.frozen
class _Repairs:
    """What a file that was opened anew lacks, and what should not be in it (names)."""

    lost: list[UploadRecord]
    strangers: list[str]


def _essence(record: UploadRecord) -> tuple[UploadRecord, object]:
    """What must be the same of a record that was written and read again."""
    error = None if record.error is None else (record.error.code, record.error.fields())
    return attrs.evolve(record, touched=0.0, wanted_at=0.0, error=None), error


def _forget_cached(path: Path) -> None:
    """Let the kernel read a file from the disk again: if a sync has failed its memory may have what the disk has not.
    Not while SQLite has the file open, which would lose its locks."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _explained(error: sqlite3.Error | OSError) -> str:
    if isinstance(error, OSError):
        return f"this ledger cannot be opened: {reason_of(error)}"
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "this ledger is in use by another process"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"this ledger is damaged: {error}; {_ADVICE}"
    return f"this ledger cannot be opened: {error}"
