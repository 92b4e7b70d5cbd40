"""A small database that can be relied on: one SQLite file (WAL, synchronous FULL), for one process alone.

Neutral ground: knows nothing of uploads, of the helper or of the client, and both may use it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from helper.disk import fsync_directory, make_directory, reason_of


class DatabaseUnusable(Exception):
    """The file cannot be used, and was left as it is; the text says why, without its name."""


class DatabaseDamaged(DatabaseUnusable):
    """What was in it is not there, or not readable."""


@attrs.frozen
class Change:
    """One statement and the rows to run it for."""

    sql: str
    rows: list[tuple[Any, ...]] = attrs.field(repr=False)


class WalDatabase:
    """The database in `path`. Its calls block, for a sync at the longest; any thread may make them. Every change is
    durable when its call returns.

    `schema` is what takes it from one version to the next, a list of statements each: only ever add to its end; the
    version (user_version) of a file is how many of these it has seen. `page_size` (bytes) counts when the file is
    made.

    After an sqlite3.Error nothing more may be asked of it but `close` and `reopen`: what a failed sync has left is not
    known. `open` and `reopen` bring all that they find to the disk anew.
    """

    def __init__(self, path: Path, schema: Sequence[Sequence[str]], page_size: int = 4096) -> None:
        self.path = path
        self._schema = schema
        self._page_size = page_size
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None

    def open(self) -> bool:
        """Open the file, or make it (mode 0600, in a directory of mode 0700). Whether it was made.

        Raises DatabaseUnusable.
        """
        try:
            make_directory(self.path.parent)
            new = not os.path.lexists(self.path)
            if new:
                self._make()
            self._connect()
        except (sqlite3.Error, OSError) as e:
            self._drop()
            raise _explained(e) from e
        except DatabaseUnusable:
            self._drop()
            raise
        return new

    def reopen(self) -> None:
        """After a change has failed: open the file anew, for what the disk has of it and not what memory has. One that
        is gone is not made. Raises sqlite3.Error, OSError or DatabaseUnusable, and may be tried again."""
        with self._lock:
            self._drop()
            for path in (self.path, self._with("-wal")):
                with contextlib.suppress(FileNotFoundError):
                    _forget_cached(path)
            self._connect()

    def close(self) -> None:
        """No calls after this, but `open` and `reopen`."""
        with self._lock:
            self._drop()

    def apply(self, changes: Iterable[Change]) -> None:
        """Make these changes in their order, all or none. Raises sqlite3.Error."""
        with self._lock, transaction(self._db):
            for change in changes:
                self._db.executemany(change.sql, change.rows)

    def read(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows that are durable. Raises sqlite3.Error."""
        with self._lock:
            return self._db.execute(sql, parameters).fetchall()

    @property
    def _db(self) -> sqlite3.Connection:
        if self._open is None:
            raise sqlite3.ProgrammingError("the database is not open")
        return self._open

    def _drop(self) -> None:
        database, self._open = self._open, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):  # what it could not write it has not promised
                database.close()

    def _make(self) -> None:
        """Make the file under another name first: one under the right name is complete, or damaged."""
        if os.path.lexists(self._with("-wal")):  # SQLite would take it for that of the new file
            raise DatabaseDamaged("it is missing, but its log (-wal) is there")
        unfinished = self._with(".new")
        for suffix in ("", "-wal", "-shm"):
            unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        making = WalDatabase(unfinished, self._schema, self._page_size)
        making._connect(empty=True)
        making.close()  # this also brings all of its write-ahead log into the file, synced
        unfinished.rename(self.path)
        fsync_directory(self.path.parent)

    def _with(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _connect(self, empty: bool = False) -> None:
        if not empty and self.path.stat().st_size == 0:  # for SQLite that is a database without tables
            raise DatabaseDamaged("it is damaged: it is empty")
        os.chmod(self.path, 0o600)
        # Read-write, never create. No waiting: nobody else may have it open.
        self._open = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=0,
                                     check_same_thread=False, isolation_level=None)
        self._db.execute(f"PRAGMA page_size = {self._page_size}")
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise DatabaseUnusable(f"expected journal mode wal, got {mode}; is this a local disk?")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA secure_delete = FAST")
        found = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise DatabaseDamaged(f"it is damaged: {found.splitlines()[0]}")
        self._migrate(empty)
        # After a sync that failed, what is read may be in no more than the system's memory: write and sync it anew.
        (busy, _frames, _moved) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise DatabaseUnusable("its write-ahead log cannot be brought into it")

    def _migrate(self, empty: bool) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(self._schema):
            raise DatabaseUnusable(f"it has version {version}, of a newer program; this one knows versions up to "
                                   f"{len(self._schema)}")
        if version == 0 and not empty:
            raise DatabaseDamaged("it is a database, but another one")
        if version == len(self._schema):
            return
        with transaction(self._db):
            for step in self._schema[version:]:
                for statement in step:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(self._schema)}")


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or none of the changes in the block, durable at its end. Raises sqlite3.Error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite ends it by itself after some errors
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


def _explained(error: sqlite3.Error | OSError) -> DatabaseUnusable:
    if isinstance(error, OSError):
        return DatabaseUnusable(f"it cannot be opened: {reason_of(error)}")
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return DatabaseUnusable("it is in use by another process")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return DatabaseDamaged(f"it is damaged: {error}")
    return DatabaseUnusable(f"it cannot be opened: {error}")


def _forget_cached(path: Path) -> None:
    """Let the kernel read a file from the disk again: if a sync has failed its memory may have what the disk has not.
    Not while SQLite has the file open, which would lose its locks."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def reason_of_failure(error: BaseException | None) -> str:
    """Why something failed, without a path or a value."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", type(error).__name__)
    return reason_of(error)
