"""The records of a spool file, and what can be concluded from those found after a restart: protocol.txt §8.1.  (pure)

A batch is what is written and synced together. It begins only after the batch before it was synced, and each
record says where its batch begins; so a record proves that everything before its batch was synced once.

Bytes of the last batch need not have been synced, and after a power failure any part of them can be missing:
sectors that were never written read as zeros, or the file ends before them. But a byte that is there and wrong
was not lost that way. So what cannot be read at the end is cut off only if something in it is missing and no
later batch follows. Anything else is damage of bytes that may have been acknowledged, and is reported.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Callable

import attrs

from helper.errors import SpoolFailed

#: magic; offset in the ciphertext at which the batch begins; offset of the data; length of the data; CRC-32 of
#: the data; CRC-32 of the 28 bytes before
_HEADER = struct.Struct(">4sQQLLL")
_MAGIC = b"TSs2"
_CRC = struct.Struct(">L")
HEADER_SIZE = _HEADER.size

#: Small pieces of one batch are gathered into records of up to this many bytes.
RECORD_TARGET = 1024 * 1024
_PIECES_PER_RECORD = 512  # well below IOV_MAX (1024)

#: Memory that reading a file through takes.
WINDOW = 1024 * 1024
_CHUNK = 64 * 1024

#: What a disk writes as a whole or not at all.
SECTOR = 512
#: So many zeros at the end of a sector mean that it was being written when the power failed. More than a header
#: can hold in a row; in ciphertext they come once in 2^256 sectors.
_ZEROS = 32


class SpoolDamaged(SpoolFailed):
    """What was read from the spool is not what was written to it."""


@attrs.frozen
class Header:
    """Of one record. Offsets and length in bytes of ciphertext."""

    batch: int
    offset: int
    length: int
    crc: int


@attrs.frozen
class Recovered:
    """The good records of a file: where each starts and ends in the ciphertext, and their size in the file."""

    starts: array[int]
    ends: array[int]
    size: int

    @property
    def length(self) -> int:
        """Bytes of ciphertext."""
        return self.ends[-1] if self.ends else 0


def gathered(batch: list[bytes]) -> list[list[bytes]]:
    """The pieces of a batch, gathered into records."""
    records: list[list[bytes]] = []
    filled = 0
    for piece in batch:
        if not records or filled + len(piece) > RECORD_TARGET or len(records[-1]) >= _PIECES_PER_RECORD:
            records.append([])
            filled = 0
        records[-1].append(piece)
        filled += len(piece)
    return records


def packed_header(batch: int, offset: int, pieces: list[bytes]) -> bytes:
    """The header of a record of these pieces."""
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    front = _HEADER.pack(_MAGIC, batch, offset, sum(map(len, pieces)), crc, 0)[:-_CRC.size]
    return front + _CRC.pack(zlib.crc32(front))


def recover(read: Callable[[int, int], bytes], size: int) -> Recovered:
    """Read a file of `size` bytes through: all its records that are good, from the first on.

    `read(position, length)` gives so many bytes of it. What is behind them in the file is the torn rest of a batch
    that was never synced. Raises SpoolDamaged if that cannot be shown.
    """
    window = _Window(read, size)
    starts, ends = array("Q"), array("Q")
    position = offset = batch = 0
    while position < size:
        header = _unpacked(window.bytes_at(position, HEADER_SIZE))
        if header is None:
            _check_torn(window, position, position + HEADER_SIZE, offset)
            break
        if header.offset != offset or header.batch not in (batch, offset) or not header.length:
            raise SpoolDamaged(
                f"the record at {position} of the spool file has offset {header.offset}, batch {header.batch}, length "
                f"{header.length}; expected offset {offset}, batch {batch} or {offset}, some bytes")
        end = position + HEADER_SIZE + header.length
        if end > size or window.crc(position + HEADER_SIZE, header.length) != header.crc:
            _check_torn(window, position, end, offset)
            break
        starts.append(offset)
        offset, batch, position = offset + header.length, header.batch, end
        ends.append(offset)
    return Recovered(starts, ends, position)


def _unpacked(data: bytes | memoryview) -> Header | None:
    """The header in these bytes, if it is all there and right."""
    if len(data) < HEADER_SIZE:
        return None
    magic, batch, offset, length, crc, header_crc = _HEADER.unpack(data)
    if magic != _MAGIC or zlib.crc32(data[:-_CRC.size]) != header_crc:
        return None
    return Header(batch, offset, length, crc)


def _check_torn(window: _Window, start: int, end: int, offset: int) -> None:
    """Raises SpoolDamaged unless the bytes from `start` to `end` of the file, of the record of `offset`, which are
    not good, belong to a batch that was never synced."""
    if end > window.size:
        return  # a synced file has its length
    if not _has_hole(window, start, end):
        raise SpoolDamaged(f"the record of offset {offset}, at {start} of the spool file, was changed")
    later = _later_batch(window, start, offset)
    if later is not None:
        raise SpoolDamaged(f"the record of offset {offset}, at {start} of the spool file, is missing, but a batch "
                           f"that begins at offset {later} follows")


def _has_hole(window: _Window, start: int, end: int) -> bool:
    """Whether a sector between `start` and `end` was not written, or not to its end."""
    while start < end:
        next_sector = (start // SECTOR + 1) * SECTOR
        # All that follows in the sector is of the same batch, or of a later one, which is looked for.
        piece = bytes(window.bytes_at(start, next_sector - start))
        if len(piece) - len(piece.rstrip(b"\0")) >= min(_ZEROS, len(piece)):
            return True
        start = next_sector
    return False


def _later_batch(window: _Window, start: int, offset: int) -> int | None:
    """Where a batch begins of which there is a record behind `start`, if it begins behind `offset`."""
    while start < window.size:
        # Headers that begin in one chunk end in the next.
        chunk = bytes(window.bytes_at(start, _CHUNK + HEADER_SIZE - 1))
        at = chunk.find(_MAGIC)
        while at >= 0:
            header = _unpacked(chunk[at:at + HEADER_SIZE])
            if header is not None and header.batch > offset:
                return header.batch
            at = chunk.find(_MAGIC, at + 1)
        start += _CHUNK
    return None


class _Window:
    """A file of `size` bytes, of which no more than WINDOW are in memory."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self.size = size
        self._read = read
        self._start = 0
        self._data = b""

    def bytes_at(self, position: int, length: int) -> memoryview:
        """So many bytes (at most WINDOW), or fewer at the end of the file."""
        length = min(length, self.size - position)
        if not (self._start <= position and position + length <= self._start + len(self._data)):
            self._data = b""  # before the next are read
            self._start, self._data = position, self._read(position, min(WINDOW, self.size - position))
        return memoryview(self._data)[position - self._start:position - self._start + length]

    def crc(self, position: int, length: int) -> int:
        """CRC-32 of so many bytes, all of them in the file."""
        crc, end = 0, position + length
        while position < end:
            chunk = self.bytes_at(position, min(_CHUNK, end - position))
            crc = zlib.crc32(chunk, crc)
            position += len(chunk)
        return crc
