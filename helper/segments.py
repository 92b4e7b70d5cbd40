"""How a file is cut into segments and blocks: the arithmetic of allmydata.immutable.encode.  (pure)"""

from __future__ import annotations

import attrs


def round_up(value: int, multiple: int) -> int:
    """`value` rounded up to a multiple of `multiple`."""
    return -(-value // multiple) * multiple


def segment_size_for(max_segment_size: int, k: int, size: int) -> int:
    """The segment size (bytes) stock gives a file of `size` bytes: never larger than the file, then
    rounded up to a multiple of k (allmydata.immutable.upload.BaseUploadable)."""
    return round_up(max(1, min(max_segment_size, size)), k)


@attrs.frozen
class Geometry:
    """The shape of one encoded file. Sizes in bytes; `size` and `segment_size` are not 0."""

    k: int
    n: int
    segment_size: int
    size: int

    @classmethod
    def for_file(cls, k: int, n: int, max_segment_size: int, size: int) -> Geometry:
        """The shape of a file of `size` bytes."""
        return cls(k, n, segment_size_for(max_segment_size, k, size), size)

    @property
    def num_segments(self) -> int:
        return -(-self.size // self.segment_size)

    @property
    def tail_size(self) -> int:
        """Bytes of ciphertext in the last segment: 1..segment_size."""
        return self.size - (self.num_segments - 1) * self.segment_size

    @property
    def padded_tail_size(self) -> int:
        """The last segment as the codec sees it, zero bytes added up to a multiple of k."""
        return round_up(self.tail_size, self.k)

    @property
    def block_size(self) -> int:
        """Bytes of one block of every segment but the last."""
        return self.segment_size // self.k

    @property
    def share_data_size(self) -> int:
        """Bytes of all blocks of one share."""
        return -(-self.size // self.k)


class SegmentCutter:
    """Finds the segment boundaries of a stream whose length may be unknown.

    The segment size is known once the first `max_segment_size` bytes are there, or the size is
    declared, or the stream has ended; until then every byte belongs to the first segment.
    """

    def __init__(self, k: int, max_segment_size: int, declared_size: int | None = None) -> None:
        self._k = k
        self._max = max_segment_size
        self._size = declared_size

    def segment_size(self, seen: int) -> int | None:
        """The segment size (bytes), `seen` bytes into the stream, or None while it is open."""
        if self._size is not None:
            return segment_size_for(self._max, self._k, self._size)
        if seen >= self._max:
            return round_up(self._max, self._k)
        return None

    def next_piece(self, seen: int, filled: int, available: int) -> tuple[int, bool]:
        """How many of the next `available` bytes belong to the segment that has `filled` of the `seen` bytes, and
        whether it is full with them.

        A segment ends where its size says; while that is open, after what could be its size at least.
        """
        size = self.segment_size(seen + available)
        take = available if size is None else min(available, size - filled)
        return take, size is not None and filled + take == size
