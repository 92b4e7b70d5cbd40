"""The erasure code: one segment in, blocks out.  (pure)"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import zfec

from helper.isal import IsalCode, code_for, find_library


class Codec:
    """k-of-n erasure code of allmydata.codec.CRSEncoder: any k blocks of a segment restore it. Thread-safe.

    `fast` makes the same blocks as zfec, which does all the work without it.
    """

    def __init__(self, k: int, n: int, fast: IsalCode | None) -> None:
        self.k = k
        self.n = n
        self._fast = fast
        self._slow = zfec.Encoder(k, n)

    def encode(self, segment: bytes, shnums: Sequence[int] | None = None) -> list[bytes]:
        """The blocks of `segment` for the given share numbers (default: all n, in order).

        The segment is padded with zero bytes to a multiple of k, as stock pads a file's tail.
        """
        block_size = -(-len(segment) // self.k)
        padded = segment if len(segment) == block_size * self.k else segment.ljust(block_size * self.k, b"\0")
        wanted = list(range(self.n)) if shnums is None else list(shnums)
        if self._fast is None or not segment:
            pieces = [padded[i * block_size:(i + 1) * block_size] for i in range(self.k)]
            return list(self._slow.encode(pieces, wanted))
        blocks = {shnum: padded[shnum * block_size:(shnum + 1) * block_size] for shnum in wanted if shnum < self.k}
        secondary = [shnum for shnum in wanted if shnum >= self.k]
        blocks.update(zip(secondary, self._fast.secondary_blocks(padded, secondary), strict=True))
        return [blocks[shnum] for shnum in wanted]


@lru_cache(maxsize=256)
def codec_for(k: int, n: int) -> Codec:
    """The fastest one whose blocks are zfec's."""
    return Codec(k, n, code_for(k, n))


def describe_code(k: int, n: int) -> str:
    """What `codec_for` uses, for people."""
    library = find_library()
    return "zfec" if library is None or code_for(k, n) is None else f"ISA-L ({library.origin})"
