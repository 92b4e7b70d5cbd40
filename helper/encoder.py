"""From ciphertext segments to everything the shares of a file are made of.  (pure)

Blocks and their hashes come a segment at a time; `complete` adds what ends the shares. All bytes are
those of allmydata.immutable.encode.Encoder for the same ciphertext and parameters.
"""

from __future__ import annotations

import attrs
from allmydata.hashtree import HashTree
from allmydata.util import hashutil

from helper.ciphertext import CiphertextHasher, CiphertextHashes
from helper.codec import codec_for
from helper.hashtrees import GrowingHashTree
from helper.layout import ShareLayout, share_hash_chain
from helper.segments import Geometry
from helper.ueb import make_ueb


@attrs.frozen
class Completion:
    """What ends the shares of a file whose whole ciphertext is known."""

    layout: ShareLayout
    hashes: CiphertextHashes
    ueb: bytes
    tail_blocks: list[bytes] | None  # of a last segment that was not encoded as a full one
    _crypttext_tree: GrowingHashTree
    _block_trees: list[GrowingHashTree]
    _share_tree: HashTree

    def trailer(self, shnum: int, start: int = 0, end: int | None = None) -> bytes:
        """What follows the blocks of share `shnum`, or bytes `start` to `end` of it: all of it may be megabytes."""
        return self.layout.trailer(
            [self._crypttext_tree.nodes, self._block_trees[shnum].nodes],
            share_hash_chain(self._share_tree, shnum), self.ueb,
            start, self.layout.trailer_size if end is None else end)

    def block_hash(self, segment: int, shnum: int) -> bytes:
        """The hash of one block."""
        return self._block_trees[shnum].leaf(segment)


class Encoder:
    """Encodes one file. Not thread-safe; segments are given in order.

    `segment_size` must be known (SegmentCutter) before the first full segment is encoded; a file
    shorter than one segment goes to `complete` alone.
    """

    def __init__(self, k: int, n: int, max_segment_size: int, declared_size: int | None = None) -> None:
        self.k = k
        self.n = n
        self._max_segment_size = max_segment_size
        self._codec = codec_for(k, n)
        self._ciphertext = CiphertextHasher(k, max_segment_size, declared_size)
        self._block_trees = [GrowingHashTree() for _ in range(n)]
        self.segments = 0

    def encode(self, segment: bytes) -> list[bytes]:
        """The n blocks of the next full segment."""
        self._ciphertext.update(segment)
        blocks = self._codec.encode(segment)
        for tree, block in zip(self._block_trees, blocks, strict=True):
            tree.append(hashutil.block_hash(block))
        self.segments += 1
        return blocks

    def complete(self, tail: bytes) -> Completion:
        """What ends the shares if the ciphertext ends with `tail` (empty, or shorter than a segment).

        Changes nothing here: if it turns out that the file does not end there, go on with `encode`.
        Raises ValueError if `tail` is longer than a segment: `encode` should have got it. The Completion is
        valid until the next `encode`.
        """
        hasher, block_trees, tail_blocks = self._ciphertext, self._block_trees, None
        if tail:
            hasher = hasher.copy()
            hasher.update(tail)
            tail_blocks = self._codec.encode(tail)
            block_trees = [tree.copy() for tree in block_trees]
            for tree, block in zip(block_trees, tail_blocks, strict=True):
                tree.append(hashutil.block_hash(block))
        hashes = hasher.hashes()
        geometry = Geometry.for_file(self.k, self.n, self._max_segment_size, hashes.size)
        if geometry.num_segments != self.segments + bool(tail):
            raise ValueError(f"a tail of {len(tail)} bytes after {self.segments} segments of {geometry.segment_size}")
        share_tree = HashTree([tree.root() for tree in block_trees])
        ueb = make_ueb(geometry, hashes.crypttext_hash, hashes.crypttext_root_hash, share_tree[0])
        return Completion(ShareLayout(geometry), hashes, ueb, tail_blocks,
                          hasher.complete_tree(), block_trees, share_tree)

    def block_hash(self, segment: int, shnum: int) -> bytes:
        """The hash of one block of a segment encoded before."""
        return self._block_trees[shnum].leaf(segment)

    def reencode(self, segment: bytes, shnums: list[int]) -> list[bytes]:
        """The blocks of a segment encoded before (or of the tail), for some share numbers only.

        Thread-safe: hashes nothing and remembers nothing.
        """
        return self._codec.encode(segment, shnums)
