"""What the helper remembers of an upload across restarts, and how it stands in a row of the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs

from helper.errors import BY_CODE, StreamingError
from helper.interfaces import HASH_SIZE, STORAGE_INDEX_SIZE
from helper.parameters import Parameters

NAME_LENGTH = 52  # of the hash of an upload ID
SECRET_SIZE = 32

#: protocol.txt §6.1. A copy of the states of helper/session.py (a test compares them), as what is on disk must not
#: change with the code.
STATES = ("open", "completing", "ready", "publishing", "finished", "deduplicated", "aborted", "failed",
          "expired")


@attrs.frozen
class Finish:
    """What an accepted `finish` said: protocol.txt §4.5."""

    size: int
    crypttext_hash: bytes
    crypttext_root_hash: bytes


@attrs.frozen
class UploadRecord:
    """One upload.

    `servers` are the IDs of storage servers as they were told to the client; `order` are indices of them. `homes` says
    on which server each share was last, `sealed` on which server shares were prepared when publication was decided,
    `staged_on` which servers may have staged shares of it. `believed`, of shares that were not found again since the
    helper last started: of how many bytes of ciphertext their servers may have whole blocks. `opened` and `touched` are
    seconds since the epoch, and only shown; `wanted_at` is the helper's uptime (uptime.py) when somebody last called
    for it, or it ended. `error` is why an upload ended without a result; errors of one code are one class here
    (SpoolDamaged comes back as SpoolFailed). `staging_enough`: see events.StagingEnough; None if it was never known.
    """

    name: str
    parameters: Parameters
    state: str
    staging_secret: bytes = attrs.field(repr=False)
    opened: float
    touched: float
    wanted_at: float = 0.0
    servers: tuple[bytes, ...] = ()
    order: tuple[int, ...] | None = None
    homes: Mapping[int, bytes] = attrs.field(factory=dict)
    storage_index: bytes | None = attrs.field(default=None, repr=False)
    finish: Finish | None = None
    ueb: bytes | None = attrs.field(default=None, repr=False)
    error: StreamingError | None = None
    staged_on: frozenset[bytes] = frozenset()
    sealed: Mapping[int, bytes] = attrs.field(factory=dict)
    believed: Mapping[int, int] = attrs.field(factory=dict)
    staging_enough: bool | None = None


#: One step of the ledger's schema.
CREATE_UPLOADS = """
CREATE TABLE uploads (
    name TEXT NOT NULL PRIMARY KEY,
    k INTEGER NOT NULL,
    happy INTEGER NOT NULL,
    n INTEGER NOT NULL,
    max_segment_size INTEGER NOT NULL,
    size INTEGER,
    state TEXT NOT NULL,
    staging_secret BLOB NOT NULL,
    opened REAL NOT NULL,
    touched REAL NOT NULL,
    servers TEXT NOT NULL,  -- JSON list of hexadecimal IDs
    server_order TEXT,  -- JSON list of numbers
    homes TEXT NOT NULL,  -- JSON object of share numbers and hexadecimal IDs
    storage_index BLOB,
    finish_size INTEGER,
    crypttext_hash BLOB,
    crypttext_root_hash BLOB,
    ueb BLOB,
    error TEXT  -- JSON list of code and fields
) WITHOUT ROWID
"""

#: Another: the helper's uptime (uptime.py) as it was written down last.
ADD_UPTIME = (
    "ALTER TABLE uploads ADD COLUMN wanted_at REAL NOT NULL DEFAULT 0",
    "CREATE TABLE helper (uptime REAL NOT NULL)",
    "INSERT INTO helper VALUES (0)",
)

#: And another.
ADD_STAGINGS = (
    "ALTER TABLE uploads ADD COLUMN staged_on TEXT NOT NULL DEFAULT '[]'",  # JSON list of hexadecimal IDs
    "ALTER TABLE uploads ADD COLUMN sealed TEXT NOT NULL DEFAULT '{}'",  # as homes
    "ALTER TABLE uploads ADD COLUMN believed TEXT NOT NULL DEFAULT '{}'",  # JSON object of share numbers and bytes
)

#: And another. NULL: not known.
ADD_STAGING_ENOUGH = ("ALTER TABLE uploads ADD COLUMN staging_enough INTEGER",)

#: In the order of `row_of`.
COLUMNS = ("name", "k", "happy", "n", "max_segment_size", "size", "state", "staging_secret", "opened", "touched",
           "servers", "server_order", "homes", "storage_index", "finish_size", "crypttext_hash",
           "crypttext_root_hash", "ueb", "error", "wanted_at", "staged_on", "sealed", "believed",
           "staging_enough")

_NAMES = ", ".join(COLUMNS)
#: Add or replace the upload of a row.
PUT_UPLOAD = f"INSERT OR REPLACE INTO uploads ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
#: Every row, in the order in which uploads were opened.
ALL_UPLOADS = f"SELECT {_NAMES} FROM uploads ORDER BY opened, name"  # noqa: S608


def row_of(record: UploadRecord) -> tuple[Any, ...]:
    """A record as a row of COLUMNS. Raises ValueError if it could not be read again."""
    p, f = record.parameters, record.finish
    order = None if record.order is None else json.dumps(record.order)
    error = None if record.error is None else json.dumps([record.error.code, record.error.fields()])
    row = (record.name, p.k, p.happy, p.n, p.max_segment_size, p.size, record.state, record.staging_secret,
           record.opened, record.touched, json.dumps([s.hex() for s in record.servers]), order,
           _homes_as_text(record.homes), record.storage_index,
           f and f.size, f and f.crypttext_hash, f and f.crypttext_root_hash, record.ueb, error,
           record.wanted_at, json.dumps(sorted(s.hex() for s in record.staged_on)), _homes_as_text(record.sealed),
           json.dumps(dict(record.believed)), None if record.staging_enough is None else int(record.staging_enough))
    record_of(row)  # with one bad row the helper could not start again
    return row


def record_of(row: tuple[Any, ...]) -> UploadRecord:
    """The record in a row of COLUMNS. Raises ValueError if there is none in it."""
    (name, k, happy, n, max_segment_size, size, state, staging_secret, opened, touched, servers, order, homes,
     storage_index, finish_size, crypttext_hash, crypttext_root_hash, ueb, error, wanted_at, staged_on,
     sealed, believed, staging_enough) = row
    try:
        wire = {b"k": k, b"happy": happy, b"n": n, b"max-segment-size": max_segment_size}
        record = UploadRecord(
            name, Parameters.from_wire(wire if size is None else {**wire, b"size": size}), state, staging_secret,
            opened, touched, wanted_at, tuple(bytes.fromhex(s) for s in json.loads(servers)),
            None if order is None else tuple(json.loads(order)),
            _homes_in(homes), storage_index,
            None if finish_size is None else Finish(finish_size, crypttext_hash, crypttext_root_hash), ueb,
            None if error is None else _error_of(*json.loads(error)),
            frozenset(bytes.fromhex(s) for s in json.loads(staged_on)), _homes_in(sealed),
            {int(shnum): int(size) for shnum, size in json.loads(believed).items()},
            None if staging_enough is None else bool(staging_enough))
    except (TypeError, AttributeError, StreamingError) as e:
        raise ValueError(str(e)) from e
    _check(record)
    return record


def _homes_as_text(homes: Mapping[int, bytes]) -> str:
    return json.dumps({shnum: server_id.hex() for shnum, server_id in homes.items()})


def _homes_in(text: str) -> dict[int, bytes]:
    return {int(shnum): bytes.fromhex(server_id) for shnum, server_id in json.loads(text).items()}


def _error_of(code: str, fields: dict[str, Any]) -> StreamingError:
    if code not in BY_CODE:
        raise ValueError(f"error: expected a code of the protocol, got {code!r}")
    return BY_CODE[code](**fields)


def _check(record: UploadRecord) -> None:
    """Raises ValueError, without the value: some are secrets."""
    if record.state not in STATES:
        raise ValueError(f"state: expected one of {', '.join(STATES)}, got {record.state!r}")
    if record.order is not None and not all(i in range(len(record.servers)) for i in record.order):
        raise ValueError(f"order: expected indices of {len(record.servers)} servers, got {record.order}")
    if not (isinstance(record.wanted_at, float) and 0 <= record.wanted_at < float("inf")):
        raise ValueError(f"wanted_at: expected seconds, got {record.wanted_at}")
    _check_length("name", record.name, str, NAME_LENGTH)
    _check_length("staging_secret", record.staging_secret, bytes, SECRET_SIZE)
    if record.storage_index is not None:
        _check_length("storage_index", record.storage_index, bytes, STORAGE_INDEX_SIZE)
    if record.ueb is not None:
        _check_length("ueb", record.ueb, bytes)
    if record.finish is not None:
        _check_length("crypttext_hash", record.finish.crypttext_hash, bytes, HASH_SIZE)
        _check_length("crypttext_root_hash", record.finish.crypttext_root_hash, bytes, HASH_SIZE)


def _check_length(field: str, value: object, kind: type[bytes | str], length: int | None = None) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{field}: expected {kind.__name__}, got {type(value).__name__}")
    if length is not None and len(value) != length:
        raise ValueError(f"{field}: expected a length of {length}, got {len(value)}")
