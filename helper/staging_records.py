"""What a storage node remembers of its staged shares across restarts: SQLite beside their files.

Rows are truth about how much of a file is synced and what was decided; the bytes are in the files.
"""

from __future__ import annotations

import enum
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from helper.spool import RunInThread


class StagedState(enum.Enum):
    """protocol.txt §17; on disk."""

    GROWING = "growing"  # takes bytes
    PREPARED = "prepared"  # complete and synced, with its lease; lacks only its name
    ASSIGNING = "assigning"  # its storage index is decided; being linked into place


@attrs.frozen
class StagedRecord:
    """One staged share. `synced` and `size` (None until prepared) are bytes of share data; `touched` is when somebody
    last called for its staging, in seconds of the node's uptime (uptime.py)."""

    name: str
    shnum: int
    state: StagedState
    synced: int
    size: int | None
    storage_index: bytes | None
    touched: float


_SCHEMA = """
CREATE TABLE IF NOT EXISTS staged (
    name TEXT NOT NULL,
    shnum INTEGER NOT NULL,
    state TEXT NOT NULL,
    synced INTEGER NOT NULL,
    size INTEGER,
    storage_index BLOB,
    touched REAL NOT NULL,
    PRIMARY KEY (name, shnum)
) WITHOUT ROWID
"""
#: The node's uptime when it was last written down.
_NODE_SCHEMA = "CREATE TABLE IF NOT EXISTS node (uptime REAL NOT NULL)"
_FIRST_UPTIME = "INSERT INTO node SELECT 0.0 WHERE NOT EXISTS (SELECT * FROM node)"
#: In version 1 `touched` was seconds since the epoch: all that is staged is as if it had been called for now.
_FROM_VERSION_1 = "UPDATE staged SET touched = 0.0"
_VERSION = 2


@attrs.frozen
class Change:
    """One statement on the table."""

    sql: str
    values: tuple[object, ...]


def add(record: StagedRecord) -> Change:
    """A new share."""
    return Change("INSERT OR REPLACE INTO staged VALUES (?, ?, ?, ?, ?, ?, ?)",
                  (record.name, record.shnum, record.state.value, record.synced, record.size, record.storage_index,
                   record.touched))


def update(record: StagedRecord) -> Change:
    """All of a share but `touched`, which has a way of its own."""
    return Change("UPDATE staged SET state = ?, synced = ?, size = ?, storage_index = ? WHERE name = ? AND shnum = ?",
                  (record.state.value, record.synced, record.size, record.storage_index, record.name, record.shnum))


def set_synced(name: str, shnum: int, synced: int) -> Change:
    """So many bytes of a growing share are synced."""
    return Change("UPDATE staged SET synced = ? WHERE name = ? AND shnum = ?", (synced, name, shnum))


def touch(name: str, when: float) -> Change:
    """Somebody still wants these shares."""
    return Change("UPDATE staged SET touched = ? WHERE name = ?", (when, name))


def set_uptime(seconds: float) -> Change:
    """The node was up for so long."""
    return Change("UPDATE node SET uptime = ?", (seconds,))


def remove(name: str, shnum: int) -> Change:
    """Forget a share."""
    return Change("DELETE FROM staged WHERE name = ? AND shnum = ?", (name, shnum))


class StagingRecords:
    """The table of staged shares in `path`. Calls block, and raise sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def open(self) -> None:
        """Before anything else; the file is made if missing, mode 0600. Raises ValueError for a table of another
        version, OSError if there is a link under its name."""
        # SQLite gives its other files the mode of this one.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        os.chmod(self._path, 0o600)
        self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, 1, _VERSION):
            raise ValueError(f"{self._path} has version {version}, expected {_VERSION}")
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(_SCHEMA)
        self._db.execute(_NODE_SCHEMA)
        self._db.execute(_FIRST_UPTIME)
        if version == 1:
            self._db.execute(_FROM_VERSION_1)
        self._db.execute(f"PRAGMA user_version = {_VERSION}")
        self._db.execute("COMMIT")

    def close(self) -> None:
        """No calls after this."""
        with self._lock:
            self._db.close()

    def all(self) -> list[StagedRecord]:
        """Every record."""
        with self._lock:
            rows = self._db.execute(
                "SELECT name, shnum, state, synced, size, storage_index, touched FROM staged").fetchall()
        return [StagedRecord(name, shnum, StagedState(state), synced, size, index, touched)
                for name, shnum, state, synced, size, index, touched in rows]

    def uptime(self) -> float:
        """Seconds that the node was up, as far as that is written down."""
        with self._lock:
            (seconds,) = self._db.execute("SELECT uptime FROM node").fetchone()
        return float(seconds)

    def apply(self, changes: Sequence[Change]) -> None:
        """All or none; durable when this returns."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for change in changes:
                    self._db.execute(change.sql, change.values)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # some errors have rolled it back themselves
                    self._db.execute("ROLLBACK")
                raise


class Commits:
    """Changes in the order in which they come; all that come during one commit share the next."""

    def __init__(self, records: StagingRecords, run_in_thread: RunInThread) -> None:
        self._records = records
        self._run_in_thread = run_in_thread
        self._waiting: list[tuple[Sequence[Change], Deferred[None]]] = []
        self._running = False

    def commit(self, *changes: Change) -> Deferred[None]:
        """Fires when they are durable, or fails with a sqlite3.Error; then none of them was made."""
        done: Deferred[None] = Deferred()
        self._waiting.append((changes, done))
        if not self._running:
            self._run()
        return done

    def _run(self) -> None:
        batch, self._waiting, self._running = self._waiting, [], True
        changes = [change for some, _done in batch for change in some]
        self._run_in_thread(self._records.apply, changes).addBoth(self._ran, batch)

    def _ran(self, result: Failure | None, batch: list[tuple[Sequence[Change], Deferred[None]]]) -> None:
        self._running = False
        if self._waiting:
            self._run()
        for _changes, done in batch:
            if isinstance(result, Failure):
                done.errback(Failure(result.value))
            else:
                done.callback(None)
