"""What is kept of an upload handle, and what others are told of it; rows of the journal.  (pure)

States are written to disk: never change the value of one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Any

import attrs
from allmydata import uri

from client_shim.cipher import Encryptor
from client_shim.dedup import DedupMode, Outcome
from client_shim.gateway.handle_errors import BadHandleId, HandleError, HandleExpired, HandleFailed, LinkFailed
from client_shim.gateway.resumable_hash import HashState, ResumableCiphertextHasher
from helper.errors import BadArgument
from helper.interfaces import KEY_SIZE, LITERAL_MAX, UPLOAD_ID_SIZE
from helper.parameters import Parameters

#: Bytes of randomness in the name of a handle, which is a bearer capability; base32 makes 52 letters of them.
HANDLE_ID_SIZE = 32
_HANDLE_ID = re.compile(r"[a-z2-7]{52}", re.ASCII)
#: What a dialect may keep with a handle, in bytes.
METADATA_MAX = 16 * 1024


class HandleState(Enum):
    """The life of a handle."""

    OPEN = "open"
    """Takes bytes."""
    COMPLETING = "completing"
    """Complete: `finish` is asked of the helper, over restarts too."""
    LINKING = "linking"
    """Stored: its cap is being linked into a directory."""
    FINISHED = "finished"
    """There is a cap. If linking has failed there is an error, too."""
    FAILED = "failed"
    """It has ended without a cap, for good."""
    EXPIRED = "expired"
    """It was given up because nothing came."""


ENDED = frozenset({HandleState.FINISHED, HandleState.FAILED, HandleState.EXPIRED})


@attrs.frozen
class LinkTarget:
    """Where the finished file is to be linked: under `name` in the directory of `dircap`."""

    dircap: bytes = attrs.field(repr=False)
    name: str = attrs.field(repr=False)


@attrs.frozen
class HandleOptions:
    """What a handle is made with. `size` in bytes, None if it is not known yet; `metadata` is the dialect's own."""

    size: int | None = None
    link: LinkTarget | None = None
    metadata: bytes = attrs.field(default=b"", repr=False)
    dedup: DedupMode | None = None
    """Whether a file that is stored already is looked for; None: as the gateway is set."""


@attrs.frozen
class HandleStatus:
    """A handle at this moment. Times in seconds since the epoch, lengths in bytes."""

    id: str = attrs.field(repr=False)
    state: HandleState
    offset: int
    """Length that is durable; never goes back."""
    received: int
    """Length that has come; what is beyond `offset` is on its way."""
    size: int | None
    cap: bytes | None = attrs.field(repr=False)
    created: float
    expires: float
    """When it is given up if nothing comes; if it has ended: when it is forgotten."""
    error: HandleError | None
    """Why it has failed, or could not be linked."""
    metadata: bytes = attrs.field(repr=False)
    rate: float
    """Bytes a second that became durable since the present writer began; 0 without one."""
    writing: bool
    """Somebody writes to it."""
    away: str
    """While it waits for its helper, the code of the reason; empty else."""
    outcome: Outcome | None = None
    """What became of the upload, when it has a cap. None for one of an earlier version."""


@attrs.frozen
class HandleRecord:
    """A handle as the journal has it. Whatever is of no use any more in a state is None or empty."""

    number: int
    id: str = attrs.field(repr=False)
    state: HandleState
    created: float
    touched: float
    """When somebody wanted it last; when it ended."""
    parameters: Parameters
    """As the helper is told: its `size` is that of the beginning."""
    size: int | None
    """As far as it is known now."""
    key: bytes | None = attrs.field(repr=False)
    upload_id: bytes | None = attrs.field(repr=False)
    hashes: HashState = attrs.field(repr=False)
    """Of all ciphertext up to `length`."""
    metadata: bytes = attrs.field(default=b"", repr=False)
    link: LinkTarget | None = None
    cap: bytes | None = attrs.field(default=None, repr=False)
    literal: bytes | None = attrs.field(default=None, repr=False)
    """Instead of a URI:LIT, which would be plaintext: the ciphertext of the file."""
    error_code: str | None = None
    error_text: str = ""
    dedup: DedupMode = DedupMode.OFF
    adopting: bytes | None = attrs.field(default=None, repr=False)
    """The cap of a file that is stored already, which the helper may have been asked to take instead."""
    at_helper: int = 0
    """What the ring has before this is at the helper, and only kept for the end of a short file."""
    outcome: Outcome | None = None
    """With a cap; and what it will be if the file of `adopting` is taken."""

    @property
    def length(self) -> int:
        """Bytes in the journal, and at the helper."""
        return self.hashes.size

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def result(self) -> bytes | None:
        """The cap, if there is one."""
        if self.literal is not None and self.key is not None:
            return literal_cap(self.key, self.literal)
        return self.cap

    def error(self) -> HandleError | None:
        """Why there is no cap, or no link."""
        if self.state is HandleState.EXPIRED:
            return HandleExpired(int(self.error_text))
        if self.error_code is None:
            return None
        if self.state is HandleState.FAILED:
            return HandleFailed(self.error_code, self.error_text)
        return LinkFailed(self.error_code, self.error_text, self.result() or b"")


@attrs.frozen
class RingRow:
    """Ciphertext that may not be at the helper yet, and its offset."""

    start: int
    data: bytes = attrs.field(repr=False)

    @property
    def end(self) -> int:
        return self.start + len(self.data)


def check_handle_id(handle_id: str) -> str:
    """`handle_id`, if it can be the name of a handle. Raises BadHandleId."""
    if _HANDLE_ID.fullmatch(handle_id) is None:
        raise BadHandleId()
    return handle_id


def is_file_cap(cap: bytes) -> bool:
    """Whether it is a read cap of an immutable file."""
    return isinstance(uri.from_string(cap), uri.CHKFileURI)


def literal_cap(key: bytes, ciphertext: bytes) -> bytes:
    """The URI:LIT of a file of at most 55 bytes."""
    return bytes(uri.LiteralFileURI(Encryptor(key).encrypt(ciphertext)).to_string())


COLUMNS = ("number", "id", "state", "created", "touched", "k", "happy", "n", "max_segment_size", "declared", "size",
           "key", "upload_id", "length", "segment_filled", "flat", "segment", "tree", "metadata", "dircap", "name",
           "cap", "literal", "error_code", "error_text", "content", "dedup", "adopting", "at_helper",
           "outcome")

CREATE_HANDLES = """CREATE TABLE handles (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, created REAL NOT NULL,
    touched REAL NOT NULL, k INTEGER NOT NULL, happy INTEGER NOT NULL, n INTEGER NOT NULL,
    max_segment_size INTEGER NOT NULL, declared INTEGER, size INTEGER, key BLOB, upload_id BLOB,
    length INTEGER NOT NULL, segment_filled INTEGER NOT NULL, flat BLOB NOT NULL, segment BLOB NOT NULL,
    tree BLOB NOT NULL, metadata BLOB NOT NULL, dircap BLOB, name TEXT, cap BLOB, literal BLOB, error_code TEXT,
    error_text TEXT NOT NULL)"""
#: The next step of the schema: handles that look for files that are stored already.
ADD_DEDUP = (
    "ALTER TABLE handles ADD COLUMN content BLOB NOT NULL DEFAULT x''",
    "ALTER TABLE handles ADD COLUMN dedup TEXT NOT NULL DEFAULT 'off'",
    "ALTER TABLE handles ADD COLUMN adopting BLOB",
    "ALTER TABLE handles ADD COLUMN at_helper INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE handles ADD COLUMN outcome TEXT")


def row_of(record: HandleRecord) -> tuple[Any, ...]:
    """In the order of COLUMNS."""
    p, h, link = record.parameters, record.hashes, record.link
    return (record.number, record.id, record.state.value, record.created, record.touched, p.k, p.happy, p.n,
            p.max_segment_size, p.size, record.size, record.key, record.upload_id, h.size, h.segment_filled, h.flat,
            h.segment, h.tree, record.metadata, None if link is None else link.dircap,
            None if link is None else link.name, record.cap, record.literal, record.error_code, record.error_text,
            h.content, record.dedup.value, record.adopting, record.at_helper,
            None if record.outcome is None else record.outcome.value)


def record_of(row: Sequence[Any]) -> HandleRecord:
    """The record of a row. ValueError, naming what is wrong, for one that cannot have been written."""
    v = dict(zip(COLUMNS, row, strict=True))
    wire = {b"k": v["k"], b"happy": v["happy"], b"n": v["n"], b"max-segment-size": v["max_segment_size"]}
    try:
        parameters = Parameters.from_wire(wire if v["declared"] is None else {**wire, b"size": v["declared"]})
        record = HandleRecord(
            v["number"], check_handle_id(v["id"]), HandleState(v["state"]), v["created"], v["touched"], parameters,
            v["size"], v["key"], v["upload_id"],
            HashState(v["length"], v["segment_filled"], v["flat"], v["segment"], v["tree"], v["content"]),
            v["metadata"],
            None if v["dircap"] is None else LinkTarget(v["dircap"], v["name"]), v["cap"], v["literal"],
            v["error_code"], v["error_text"], DedupMode(v["dedup"]), v["adopting"], v["at_helper"],
            None if v["outcome"] is None else Outcome(v["outcome"]))
        _check(record)
    except (BadArgument, BadHandleId, TypeError, AttributeError) as e:
        raise ValueError(str(e) if isinstance(e, BadArgument | BadHandleId) else "a value of another type") from e
    return record


def _check(record: HandleRecord) -> None:
    hasher_of(record)
    if not record.ended and (record.key is None or record.upload_id is None):
        raise ValueError("it is not ended and has no key")
    if record.key is not None and len(record.key) != KEY_SIZE:
        raise ValueError(f"expected a key of {KEY_SIZE} bytes, got {len(record.key)}")
    if record.upload_id is not None and len(record.upload_id) != UPLOAD_ID_SIZE:
        raise ValueError(f"expected an upload ID of {UPLOAD_ID_SIZE} bytes, got {len(record.upload_id)}")
    if record.size is not None and record.length > record.size:
        raise ValueError(f"it has {record.length} of {record.size} bytes")
    if record.literal is not None and len(record.literal) > LITERAL_MAX:
        raise ValueError(f"a literal of {len(record.literal)} bytes")
    if not isinstance(record.hashes.content, bytes) or not 0 <= record.at_helper <= record.length:
        raise ValueError(f"what is known of {record.length} bytes of plaintext, {record.at_helper} at the helper")
    if record.adopting is not None and (record.outcome is None or not is_file_cap(record.adopting)):
        raise ValueError("it takes something that is no file")
    record.error()  # an idle time is a number


def hasher_of(record: HandleRecord) -> ResumableCiphertextHasher:
    """Goes on with the hashes of a record. ValueError for a state that cannot be."""
    p = record.parameters
    return ResumableCiphertextHasher.resumed(p.k, p.max_segment_size, p.size, record.hashes)
