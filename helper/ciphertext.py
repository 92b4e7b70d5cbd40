"""The two hashes a client can make of its own ciphertext: crypttext_hash and crypttext_root_hash.  (pure)

Helper and client each compute them; they meet in `finish` (protocol.txt §4.5).
"""

from __future__ import annotations

import copy

import attrs
from allmydata.util import hashutil

from helper.hashtrees import GrowingHashTree
from helper.segments import SegmentCutter


@attrs.frozen
class CiphertextHashes:
    """The hashes of one whole ciphertext, 32 bytes each."""

    size: int
    crypttext_hash: bytes
    crypttext_root_hash: bytes


class CiphertextHasher:
    """Hashes a ciphertext stream, in any pieces: flat, and as a Merkle tree of segments."""

    def __init__(self, k: int, max_segment_size: int, declared_size: int | None = None) -> None:
        self._cutter = SegmentCutter(k, max_segment_size, declared_size)
        self._flat = hashutil.crypttext_hasher()
        self._segment = hashutil.crypttext_segment_hasher()
        self._segment_filled = 0
        self._tree = GrowingHashTree()
        self.size = 0

    def update(self, data: bytes) -> None:
        """The next bytes of ciphertext."""
        self._flat.update(data)
        view = memoryview(data)
        while view:
            take, full = self._cutter.next_piece(self.size, self._segment_filled, len(view))
            self._segment.h.update(view[:take])  # stock's own `update` wants bytes: a copy
            self._segment_filled += take
            self.size += take
            view = view[take:]
            if full:
                self._tree.append(self._segment.digest())
                self._segment = hashutil.crypttext_segment_hasher()
                self._segment_filled = 0

    def hashes(self) -> CiphertextHashes:
        """The hashes if the stream ended here; more bytes may follow all the same. ValueError if it is empty."""
        return CiphertextHashes(self.size, _copy(self._flat).digest(), self.complete_tree().root())

    def complete_tree(self) -> GrowingHashTree:
        """The tree of segment hashes if the stream ended here."""
        tree = self._tree.copy()
        if self._segment_filled:
            tree.append(_copy(self._segment).digest())
        return tree

    def copy(self) -> CiphertextHasher:
        """An independent hasher that has seen the same bytes."""
        other = copy.copy(self)
        other._flat, other._segment, other._tree = _copy(self._flat), _copy(self._segment), self._tree.copy()
        return other


def _copy(hasher: hashutil._SHA256d_Hasher) -> hashutil._SHA256d_Hasher:
    """digest() ends a stock hasher; a copy can be ended instead."""
    other = hashutil._SHA256d_Hasher(hasher.truncate_to)
    other.h = hasher.h.copy()
    return other
