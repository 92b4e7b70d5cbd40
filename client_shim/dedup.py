"""Files that are stored already, as their uploader finds them: protocol.txt §4.8, §9.1.

While a file is streamed under a random key, the key that stock Tahoe would have used is computed too, and a keyed
digest of one segment, chosen at random, is kept. With these the client asks the helper at the end whether the file is
there, and looks for itself before it believes it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Protocol

import attrs
from allmydata import uri
from allmydata.util import hashutil
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime

from client_shim.errors import UploadError
from client_shim.one_segment import KnownSegment, OneSegment
from client_shim.sealed_records import NONCE_SIZE, BadRecord, FileRecord, seal, unseal
from helper.interfaces import HASH_SIZE, RECORDS_TOLD_MAX
from helper.parameters import Parameters
from helper.segments import Geometry, SegmentCutter, segment_size_for
from helper.ueb import make_ueb

#: Seconds within which a claimed file must have been read; otherwise the upload is published as if it were new.
READ_PATIENCE = 2.0

DIGEST_KEY_SIZE = 32  # bytes
_HASHES = ("crypttext_hash", "crypttext_root_hash", "share_root_hash")


class DedupMode(Enum):
    """Whether files that are stored already are looked for. The values are those of the setting and of the command
    line."""

    ON = "on"
    """A file that is found is taken once a random segment of it was read and is right."""
    TRUST = "trust"
    """It is taken without reading."""
    OFF = "off"
    """Nothing is looked for, and nothing that is sent depends on the plaintext."""


class Outcome(Enum):
    """What became of an upload. The values are those of `--json`."""

    PUBLISHED = "published"
    """It was stored."""
    EXISTING = "existing"
    """The file was stored before, under its convergent key: its cap is the one that stock Tahoe gives."""
    STREAMED_BEFORE = "streamed-before"
    """The file was streamed before: its cap is the one of then."""


@attrs.frozen
class Dedup:
    """How to find files that are stored already. `read` returns the bytes from a start to an end of the file of a
    cap, or fails with an UploadError; None: a file is believed to be there without reading. `choose` returns a
    random number below another."""

    convergence: bytes = attrs.field(repr=False)
    read: Callable[[bytes, int, int], Awaitable[bytes]] | None
    choose: Callable[[int], int] = secrets.randbelow


@attrs.frozen
class Content:
    """What is known of a whole plaintext of `size` bytes: the key that stock Tahoe makes of it, and one of its
    segments, chosen at random."""

    convergent_key: bytes = attrs.field(repr=False)
    size: int
    segment: KnownSegment

    @property
    def convergent_index(self) -> bytes:
        return bytes(hashutil.storage_index_hash(self.convergent_key))


class ContentHasher:
    """Makes the Content of a plaintext in one pass, its length unknown. Holds back no more than a segment."""

    def __init__(self, parameters: Parameters, convergence: bytes,
                 choose: Callable[[int], int] = secrets.randbelow) -> None:
        self._parameters = parameters
        self._convergence = convergence
        self._choose = choose
        self._cutter = SegmentCutter(parameters.k, parameters.max_segment_size, parameters.size)
        self._held = bytearray()  # while the segment size, which is hashed first, is not known
        self._key_hasher: hashutil._SHA256d_Hasher | None = None
        self._segment: OneSegment[hashlib.blake2b] | None = None
        self._hashed = self._size = 0

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self._size += len(data)
        if self._key_hasher is None:
            segment_size = self._cutter.segment_size(self._size)
            if segment_size is None:
                self._held += data
                return
            self._begin(segment_size)
        self._hash(data)

    def end(self) -> Content:
        """There is no more. Call it once."""
        if self._key_hasher is None:
            p = self._parameters
            self._begin(segment_size_for(p.max_segment_size, p.k, self._size))
        return Content(bytes(self._key_hasher.digest()), self._size, self._segment)  # type: ignore[union-attr, arg-type]

    def _begin(self, segment_size: int) -> None:
        p = self._parameters
        self._key_hasher = hashutil.convergence_hasher(p.k, p.n, segment_size, self._convergence)
        self._segment = OneSegment(partial(hashlib.blake2b, key=os.urandom(DIGEST_KEY_SIZE), digest_size=32),
                                   segment_size, self._choose)
        held, self._held = bytes(self._held), bytearray()
        self._hash(held)

    def _hash(self, data: bytes | memoryview) -> None:
        self._key_hasher.h.update(data)  # type: ignore[union-attr] # stock's own `update` wants bytes: a copy
        self._segment.update(self._hashed, memoryview(data))  # type: ignore[union-attr]
        self._hashed += len(data)


@attrs.frozen
class Candidate:
    """A file that the helper says is the same."""

    cap: bytes = attrs.field(repr=False)
    storage_index: bytes = attrs.field(repr=False)
    outcome: Outcome


class Asked(Protocol):
    """What is needed of an upload at the helper (helper_upload.py)."""

    async def look_up(self, convergent_index: bytes) -> Mapping[str, int | bytes] | None:
        """The fields of the answer, or None if there is none."""

    async def adopt(self, storage_index: bytes) -> bool:
        """Whether the upload has ended in favour of that file. If not it goes on as if nothing had been asked."""


class Finder:
    """Finds one file that is stored already, and takes it."""

    def __init__(self, dedup: Dedup, parameters: Parameters, clock: IReactorTime) -> None:
        self._dedup = dedup
        self._parameters = parameters
        self._clock = clock

    async def find(self, content: Content, helper: Asked, streamed: bool = True,
                   before_adopt: Callable[[Candidate], Awaitable[None]] | None = None) -> Candidate | None:
        """The file that was taken instead of the upload. None if there is none, and for any doubt. `streamed`:
        whether one under a random key will do. `before_adopt` is told a file before it is asked for. Raises what
        `helper` raises when the upload has ended."""
        fields = await helper.look_up(content.convergent_index)
        if fields is None:
            return None
        deadline = self._clock.seconds() + READ_PATIENCE
        for candidate in candidates_of(fields, content, self._parameters):
            if candidate.outcome is Outcome.STREAMED_BEFORE and not streamed:
                continue
            if not await self._is_right(candidate, content, deadline):
                continue
            if before_adopt is not None:
                await before_adopt(candidate)
            if await helper.adopt(candidate.storage_index):
                return candidate
        return None

    async def _is_right(self, candidate: Candidate, content: Content, deadline: float) -> bool:
        """Whether a random segment of it is that of the plaintext."""
        if self._dedup.read is None:
            return True
        left = deadline - self._clock.seconds()
        if left <= 0:
            return False
        segment = content.segment
        start = segment.number * segment.segment_size
        end = min(start + segment.segment_size, content.size)
        reading = Deferred.fromCoroutine(_awaited(self._dedup.read(candidate.cap, start, end)))
        try:
            piece = await reading.addTimeout(left, self._clock)
        except (UploadError, TimedOut):
            return False
        return segment.matches(piece)


async def _awaited(awaitable: Awaitable[bytes]) -> bytes:
    return await awaitable


def candidates_of(fields: Mapping[str, int | bytes], content: Content, parameters: Parameters) -> Iterator[Candidate]:
    """The files that an answer to look_up names and that fit the plaintext, as far as that can be seen in it."""
    geometry = Geometry.for_file(parameters.k, parameters.n, parameters.max_segment_size, content.size)
    ueb = fields.get("ueb")
    if isinstance(ueb, bytes) and ueb_fits(ueb, geometry):
        file = FileRecord(content.convergent_key, bytes(hashutil.uri_extension_hash(ueb)), geometry.k, geometry.n,
                          geometry.size)
        yield Candidate(file.cap, file.storage_index, Outcome.EXISTING)
    for number in range(1, RECORDS_TOLD_MAX + 1):
        record, ueb = fields.get(f"record-{number}"), fields.get(f"ueb-{number}")
        if not (isinstance(record, bytes) and isinstance(ueb, bytes) and ueb_fits(ueb, geometry)):
            continue
        try:
            file = unseal(record, content.convergent_key)
        except BadRecord:
            continue
        if ((file.k, file.n, file.size) == (geometry.k, geometry.n, geometry.size)
                and file.storage_index == fields.get(f"storage-index-{number}")
                and file.ueb_hash == hashutil.uri_extension_hash(ueb)):
            yield Candidate(file.cap, file.storage_index, Outcome.STREAMED_BEFORE)


def ueb_fits(ueb: bytes, geometry: Geometry) -> bool:
    """Whether it is the UEB of a file of this shape; its hashes may be any."""
    try:
        fields = uri.unpack_extension(ueb)
        hashes = [fields[name] for name in _HASHES]
    except (KeyError, ValueError, AssertionError, UnicodeDecodeError):
        return False
    if any(len(value) != HASH_SIZE for value in hashes):
        return False
    expected = uri.unpack_extension(make_ueb(geometry, *hashes))
    return all(fields.get(name) == value for name, value in expected.items())


def record_of(cap: bytes, content: Content) -> bytes:
    """The sealed record of the file of a cap, for those who have the same content."""
    file = uri.from_string(cap)
    return seal(FileRecord(file.key, file.uri_extension_hash, file.needed_shares, file.total_shares, file.size),
                content.convergent_key, os.urandom(NONCE_SIZE))
