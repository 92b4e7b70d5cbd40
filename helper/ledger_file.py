"""The helper's records on disk: one SQLite file beside the spool. Its calls block for a sync and belong into a thread.

Records of uploads are here; other tables bring their own statements (dedup_records.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from helper.dedup_records import CREATE_RECORDS, CREATE_RECORDS_EXPIRY
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
from helper.wal_database import Change, DatabaseDamaged, DatabaseUnusable, WalDatabase

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


_ADVICE = "uploads in progress cannot be resumed without it; restore it, or move it and the spool away"


class LedgerUnusable(Exception):
    """The helper cannot start with this ledger; the text is for its operator."""


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
        self._database = WalDatabase(path, schema)

    def open(self, spool_files: int = 0) -> bool:
        """Open the file, or make it (mode 0600, in a directory of mode 0700). Whether it was made.

        Raises LedgerUnusable, with the file's name, and leaves the file as it is; also if it is missing and there are
        `spool_files`, which only a ledger tells the meaning of.
        """
        if spool_files and not os.path.lexists(self._path):
            raise LedgerUnusable(f"{self._path}: this ledger is missing, but its spool has {spool_files} "
                                 f"file{'' if spool_files == 1 else 's'}; {_ADVICE}")
        try:
            return self._database.open()
        except DatabaseUnusable as e:
            raise self._unusable(e) from e

    def reopen(self) -> Recorded:
        """Open the file anew, after a change has failed, and read what the disk has of it.

        Raises sqlite3.Error, OSError or LedgerUnusable, and may be tried again.
        """
        try:
            self._database.reopen()
        except DatabaseUnusable as e:
            raise self._unusable(e) from e
        return self.read()

    def close(self) -> None:
        """No calls after this but `reopen`."""
        self._database.close()

    def apply(self, changes: Iterable[Change]) -> None:
        """Make these changes in their order, all or none."""
        self._database.apply(changes)

    def all(self) -> list[UploadRecord]:
        """Every record of an upload. Raises LedgerUnusable if one cannot be understood."""
        return [self._record_of(row) for row in self._database.read(ALL_UPLOADS)]

    def read(self) -> Recorded:
        """Everything. Raises LedgerUnusable if it cannot be understood."""
        rows = self._database.read("SELECT uptime FROM helper")
        uptime = rows[0][0] if rows else None
        if not (isinstance(uptime, float) and 0 <= uptime < float("inf")):
            raise LedgerUnusable(f"{self._path}: the helper's uptime is damaged: expected seconds, got {uptime}")
        return Recorded(self.all(), uptime)

    def select(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of another table than that of uploads."""
        return self._database.read(sql, values)

    def _unusable(self, error: DatabaseUnusable) -> LedgerUnusable:
        advice = f"; {_ADVICE}" if isinstance(error, DatabaseDamaged) else ""
        return LedgerUnusable(f"{self._path}: this ledger cannot be used: {error}{advice}")

    def _record_of(self, row: tuple[Any, ...]) -> UploadRecord:
        try:
            return record_of(row)
        except ValueError as e:
            raise LedgerUnusable(f"{self._path}: the record of an upload is damaged: {e}") from e
