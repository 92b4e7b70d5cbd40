"""What a storage node remembers of its staged shares across restarts: SQLite beside their files.

Rows are truth about how much of a file is synced and what was decided; the bytes are in the files. All calls
block for a sync and belong into a thread.
"""

from __future__ import annotations

import enum
import sqlite3
import threading
from pathlib import Path

import attrs


class StagedState(enum.Enum):
    """protocol.txt §17; on disk."""

    GROWING = "growing"  # takes bytes
    PREPARED = "prepared"  # complete and synced, with its lease; lacks only its name
    ASSIGNING = "assigning"  # its storage index is decided; being linked into place


@attrs.frozen
class StagedRecord:
    """One staged share. `synced` and `size` (None until prepared) are bytes of share data."""

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
_VERSION = 1


class StagingRecords:
    """The table of staged shares in `path`. Every change is durable when its call returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise ValueError(f"{path} has version {version}, expected {_VERSION}")
        self._db.execute(_SCHEMA)
        self._db.execute(f"PRAGMA user_version = {_VERSION}")

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

    def put(self, *records: StagedRecord) -> None:
        """Add or replace records, all or none."""
        rows = [(r.name, r.shnum, r.state.value, r.synced, r.size, r.storage_index, r.touched) for r in records]
        with self._lock:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO staged VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")

    def set_synced(self, name: str, shnum: int, synced: int) -> None:
        """So many bytes of a growing share are synced."""
        with self._lock:
            self._db.execute("UPDATE staged SET synced = ? WHERE name = ? AND shnum = ?", (synced, name, shnum))

    def touch(self, name: str, when: float) -> None:
        """Somebody still wants these shares."""
        with self._lock:
            self._db.execute("UPDATE staged SET touched = ? WHERE name = ?", (when, name))

    def remove(self, name: str, shnums: list[int]) -> None:
        """Forget shares."""
        with self._lock:
            self._db.execute("BEGIN")
            self._db.executemany("DELETE FROM staged WHERE name = ? AND shnum = ?", [(name, s) for s in shnums])
            self._db.execute("COMMIT")
