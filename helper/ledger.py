"""The helper's memory across restarts: SQLite beside the spool. Records of uploads; other tables may follow.

LedgerFile is the file: its calls block for a sync and belong into a thread. Ledger is its face on the reactor:
what is written while one transaction runs goes into the next together (group commit).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from helper.dedup_records import CREATE_RECORDS, CREATE_RECORDS_EXPIRY
from helper.disk import fsync_directory, make_directory, reason_of
from helper.errors import SpoolFailed
from helper.spool import RunInThread
from helper.upload_records import ALL_UPLOADS, CREATE_UPLOADS, PUT_UPLOAD, UploadRecord, record_of, row_of

#: In the directory of the helper's own files, beside the spool.
LEDGER_NAME = "ledger.sqlite"

#: What takes the schema from one version to the next: a list of statements each. Only ever add to its end; the
#: version (user_version) of a file is how many of these it has seen.
SCHEMA: Sequence[Sequence[str]] = (
    (CREATE_UPLOADS,),
    (CREATE_RECORDS, CREATE_RECORDS_EXPIRY),
)


class LedgerUnusable(Exception):
    """The helper cannot start with this ledger; the text is for its operator."""


class LedgerFailed(SpoolFailed):
    """Nothing can be recorded any more."""


@attrs.frozen
class Change:
    """One statement and the rows to run it for."""

    sql: str
    rows: list[tuple[Any, ...]] = attrs.field(repr=False)


def put(*records: UploadRecord) -> Change:
    """Add or replace records of uploads. Raises ValueError for one that could not be read again."""
    return Change(PUT_UPLOAD, [row_of(record) for record in records])


def touch(names: Iterable[str], when: float) -> Change:
    """Somebody still wants these uploads."""
    return Change("UPDATE uploads SET touched = ? WHERE name = ?", [(when, name) for name in names])


def remove(names: Iterable[str]) -> Change:
    """Forget uploads."""
    return Change("DELETE FROM uploads WHERE name = ?", [(name,) for name in names])


class LedgerFile:
    """The database in `path`, for one process alone. Every change is durable when its call returns.

    After an sqlite3.Error nothing more may be asked of it: what a failed sync has left is not known.
    """

    def __init__(self, path: Path, schema: Sequence[Sequence[str]] = SCHEMA) -> None:
        self._path = path
        self._schema = schema
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None

    def open(self) -> bool:
        """Open the file, or make it (mode 0600, in a directory of mode 0700). Whether it was made.

        Raises LedgerUnusable, with the file's name, and leaves the file as it is.
        """
        make_directory(self._path.parent)
        try:
            new = not os.path.lexists(self._path)
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

    def close(self) -> None:
        """No calls after this."""
        with self._lock:
            if self._open is not None:
                self._open.close()
                self._open = None

    def apply(self, changes: Iterable[Change]) -> None:
        """Make these changes in their order, all or none."""
        with self._lock, _transaction(self._db):
            for change in changes:
                self._db.executemany(change.sql, change.rows)

    def all(self) -> list[UploadRecord]:
        """Every record of an upload. Raises LedgerUnusable if one cannot be understood."""
        with self._lock:
            rows = self._db.execute(ALL_UPLOADS).fetchall()
        return [self._record_of(row) for row in rows]

    def select(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of another table than that of uploads."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def counts(self) -> dict[str, int]:
        """How many uploads are recorded in each state that any is in."""
        with self._lock:
            return dict(self._db.execute("SELECT state, count(*) FROM uploads GROUP BY state").fetchall())

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
        with _transaction(self._db):
            for step in self._schema[version:]:
                for statement in step:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(self._schema)}")


_ADVICE = "uploads in progress cannot be resumed without it; restore it, or move it and the spool away"


class Ledger:
    """A LedgerFile whose calls answer with Deferreds, in the reactor's thread.

    Changes are made in the order in which they are asked for. Once one has failed, it and all later ones fail with
    LedgerFailed, and nothing is tried again.
    """

    def __init__(self, file: LedgerFile, run_in_thread: RunInThread) -> None:
        self._file = file
        self._run_in_thread = run_in_thread
        self._queue: list[tuple[Change, Deferred[None]]] = []
        self._committing = False
        self._failed: str | None = None
        self._closing: Deferred[None] | None = None
        self._closed = False

    def open(self) -> bool:
        """See LedgerFile.open. Blocks; before the reactor serves anybody."""
        return self._file.open()

    def write(self, *records: UploadRecord) -> Deferred[None]:
        """Add or replace records of uploads; fires when that is durable."""
        return self.change(put(*records))

    def touch(self, names: Iterable[str], when: float) -> Deferred[None]:
        """Somebody still wants these uploads; fires when that is durable."""
        return self.change(touch(names, when))

    def remove(self, names: Iterable[str]) -> Deferred[None]:
        """Forget uploads; fires when that is durable."""
        return self.change(remove(names))

    def change(self, change: Change) -> Deferred[None]:
        """Make any change; fires when it is durable."""
        done: Deferred[None] = Deferred()
        if self._failed is not None or self._closing is not None:
            done.errback(LedgerFailed(self._failed or "the ledger is closed"))
        else:
            self._queue.append((change, done))
            self._commit()
        return done

    def all(self) -> Deferred[list[UploadRecord]]:
        """Every record of an upload that is durable. Fails with LedgerUnusable if one cannot be understood."""
        return self._run_in_thread(self._file.all)

    def select(self, sql: str, *values: object) -> Deferred[list[tuple[Any, ...]]]:
        """The rows of another table than that of uploads, as far as they are durable."""
        return self._run_in_thread(self._file.select, sql, *values)

    def counts(self) -> Deferred[dict[str, int]]:
        """How many uploads are recorded in each state that any is in."""
        return self._run_in_thread(self._file.counts)

    def close(self) -> Deferred[None]:
        """Take no more changes; fires when those under way are durable (or have failed) and the file is closed."""
        done: Deferred[None] = Deferred()
        if self._closing is not None:
            self._closing.chainDeferred(done)
            return done
        self._closing = Deferred()
        self._closing.chainDeferred(done)
        self._close_when_idle()
        return done

    def _commit(self) -> None:
        if self._committing or not self._queue:
            return
        batch, self._queue = self._queue, []
        self._committing = True
        d = self._run_in_thread(self._file.apply, [change for change, _done in batch])
        d.addCallbacks(self._committed, self._commit_failed, callbackArgs=(batch,), errbackArgs=(batch,))

    def _committed(self, _result: None, batch: list[tuple[Change, Deferred[None]]]) -> None:
        self._committing = False
        self._commit()  # before anybody is told, so that what they write then goes into one more
        _tell(batch, lambda done: done.callback(None))
        self._close_when_idle()

    def _commit_failed(self, failure: Failure, batch: list[tuple[Change, Deferred[None]]]) -> None:
        self._committing = False
        reason = self._failed = f"ledger: {_reason(failure.value)}"
        batch, self._queue = batch + self._queue, []
        _tell(batch, lambda done: done.errback(LedgerFailed(reason)))
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._closing is not None and not (self._committing or self._queue or self._closed):
            self._closed = True
            self._run_in_thread(self._file.close).chainDeferred(self._closing)


def _tell(batch: list[tuple[Change, Deferred[None]]], tell: Callable[[Deferred[None]], None]) -> None:
    for _change, done in batch:
        tell(done)


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite ends it by itself after some errors
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


def _explained(error: sqlite3.Error | OSError) -> str:
    if isinstance(error, OSError):
        return f"this ledger cannot be opened: {reason_of(error)}"
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "this ledger is in use by another process"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"this ledger is damaged: {error}; {_ADVICE}"
    return f"this ledger cannot be opened: {error}"


def _reason(error: BaseException | None) -> str:
    """Why, without a path or a value."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", type(error).__name__)
    return reason_of(error)
