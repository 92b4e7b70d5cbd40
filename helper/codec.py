"""The erasure code: one segment in, blocks out.  (pure)"""

from __future__ import annotations

from collections.abc import Sequence

import zfec


class Codec:
    """k-of-n erasure code of allmydata.codec.CRSEncoder: any k blocks of a segment restore it."""

    def __init__(self, k: int, n: int) -> None:
        self.k = k
        self.n = n
        self._encoder = zfec.Encoder(k, n)

    def encode(self, segment: bytes, shnums: Sequence[int] | None = None) -> list[bytes]:
        """The blocks of `segment` for the given share numbers (default: all n, in order).

        The segment is padded with zero bytes to a multiple of k, as stock pads a file's tail.
        """
        block_size = -(-len(segment) // self.k)
        padded = segment.ljust(block_size * self.k, b"\0")
        pieces = [padded[i * block_size:(i + 1) * block_size] for i in range(self.k)]
        wanted = list(range(self.n)) if shnums is None else list(shnums)
        return list(self._encoder.encode(pieces, wanted))
