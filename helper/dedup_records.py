"""Sealed records of streamed files, as they stand in the ledger: protocol.txt §4.10.

What is in a record only clients that have the same file can read. It stands under a hash of the convergent storage
index, so that who sees the ledger does not learn that index.
"""

from __future__ import annotations

import hashlib

import attrs

_TAG = b"tahoe-stream convergent storage index v1:"

#: One step of the ledger's schema.
CREATE_RECORDS = """
CREATE TABLE sealed_records (
    place BLOB NOT NULL,  -- hash of the convergent storage index
    storage_index BLOB NOT NULL,
    record BLOB NOT NULL,
    filed REAL NOT NULL,  -- seconds since the epoch
    expires REAL NOT NULL,
    PRIMARY KEY (place, storage_index)
) WITHOUT ROWID
"""
CREATE_RECORDS_EXPIRY = "CREATE INDEX sealed_records_expiry ON sealed_records (expires)"

#: place, storage index, record, filed, expires.
PUT_RECORD = "INSERT OR REPLACE INTO sealed_records VALUES (?, ?, ?, ?, ?)"
#: place, storage index.
REMOVE_RECORD = "DELETE FROM sealed_records WHERE place = ? AND storage_index = ?"
#: expires, place, storage index.
RENEW_RECORD = "UPDATE sealed_records SET expires = ? WHERE place = ? AND storage_index = ?"
#: now.
REMOVE_EXPIRED = "DELETE FROM sealed_records WHERE expires <= ?"
#: place, place, how many may stay: the newest.
KEEP_NEWEST = """
DELETE FROM sealed_records WHERE place = ? AND storage_index IN (
    SELECT storage_index FROM sealed_records WHERE place = ? ORDER BY filed DESC, storage_index LIMIT -1 OFFSET ?)
"""
#: How many may stay: those that expire last.
KEEP_LATEST = """
DELETE FROM sealed_records WHERE (place, storage_index) IN (
    SELECT place, storage_index FROM sealed_records ORDER BY expires DESC LIMIT -1 OFFSET ?)
"""
#: place, now, how many.
FIND_RECORDS = """
SELECT storage_index, record FROM sealed_records WHERE place = ? AND expires > ?
ORDER BY filed DESC, storage_index LIMIT ?
"""
COUNT_RECORDS = "SELECT count(*) FROM sealed_records"


@attrs.frozen
class SealedRecord:
    """A record and the storage index of the upload that left it."""

    storage_index: bytes = attrs.field(repr=False)
    record: bytes = attrs.field(repr=False)


def place_of(convergent_storage_index: bytes) -> bytes:
    """Under what its records stand (32 bytes)."""
    return hashlib.sha256(_TAG + convergent_storage_index).digest()
