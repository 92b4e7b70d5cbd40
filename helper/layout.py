"""The bytes of a share around its blocks: layout v2 of allmydata.immutable.layout.  (pure)

Blocks start at a fixed offset, so they can be written before the size of the file is known; what comes
after them (the trailer) and the header depend on the size and are written last.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import attrs
from allmydata.hashtree import HashTree, IncompleteHashTree, roundup_pow2

from helper.hashtrees import NODE_SIZE
from helper.segments import Geometry
from helper.ueb import ueb_size

DATA_OFFSET = 0x44  # bytes; also the size of the header
_HEADER = struct.Struct(">LQQQQQQQQ")
HEADER_VERSION = b"\0\0\0\2"  # the first bytes of every header
_UEB_LENGTH = struct.Struct(">Q")
_SHARE_HASH = struct.Struct(">H")


@attrs.frozen
class ShareLayout:
    """Where everything stands in every share of one file. Offsets in bytes from the start of the share."""

    geometry: Geometry

    @property
    def trailer_offset(self) -> int:
        """First byte after the blocks; the (unused) plaintext hash tree stands here."""
        return DATA_OFFSET + self.geometry.share_data_size

    @property
    def share_size(self) -> int:
        """Bytes of the whole share: exactly what stock allocates for it."""
        return self._ueb_offset + _UEB_LENGTH.size + ueb_size(self.geometry)

    @property
    def trailer_size(self) -> int:
        """Bytes from trailer_offset to the end of the share."""
        return self.share_size - self.trailer_offset

    def header(self) -> bytes:
        """The first DATA_OFFSET bytes of the share."""
        tree, start = self._tree_size, self.trailer_offset
        return _HEADER.pack(
            2, self.geometry.block_size, self.geometry.share_data_size, DATA_OFFSET,
            start, start + tree, start + 2 * tree, start + 3 * tree, self._ueb_offset,
        )

    def trailer(self, trees: Sequence[Callable[[int, int], bytes]], share_hashes: bytes, ueb: bytes,
                start: int, end: int) -> bytes:
        """Bytes `start` to `end` of what stands from trailer_offset to the end of the share. `trees` give bytes of
        the crypttext hash tree and of the block hash tree."""
        size = self._tree_size
        rest = share_hashes + _UEB_LENGTH.pack(len(ueb)) + ueb

        def zeros(first: int, last: int) -> bytes:
            return bytes(last - first)

        def ending(first: int, last: int) -> bytes:
            return rest[first:last]

        sections = [(size, zeros), *((size, tree) for tree in trees), (len(rest), ending)]
        pieces, position = [], 0
        for length, section in sections:
            first, last = max(0, start - position), min(length, end - position)
            if first < last:
                pieces.append(section(first, last))
            position += length
        return b"".join(pieces)

    @property
    def _tree_size(self) -> int:
        return int(2 * roundup_pow2(self.geometry.num_segments) - 1) * NODE_SIZE

    @property
    def _ueb_offset(self) -> int:
        hashes = len(IncompleteHashTree(self.geometry.n).needed_hashes(0, include_leaf=True))
        return self.trailer_offset + 3 * self._tree_size + hashes * (_SHARE_HASH.size + NODE_SIZE)


def share_hash_chain(tree: HashTree, shnum: int) -> bytes:
    """The nodes of the share hash tree that share `shnum` needs to prove itself, each with its number."""
    needed = tree.needed_hashes(shnum, include_leaf=True)
    return b"".join(_SHARE_HASH.pack(i) + tree[i] for i in needed)
