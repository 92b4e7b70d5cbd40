"""Bodies that come with a checksum: held in memory until they are verified.

What was encrypted and sent cannot be taken back: other bytes at its offset would be under the same key stream.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable

import attrs

from client_shim.gateway.upload_errors import (
    ChecksumBodyTooLarge,
    ChecksumMemoryFull,
    ChecksumMismatch,
    UnknownAlgorithm,
)
from client_shim.gateway.upload_fields import Checksum

#: As tus names them.
ALGORITHMS = ("sha1", "sha256", "sha512", "md5")
#: All such bodies together may be so many times as long as one.
BODIES = 8


def check_algorithm(checksum: Checksum) -> None:
    """Raises UnknownAlgorithm."""
    if checksum.algorithm not in ALGORITHMS:
        raise UnknownAlgorithm(",".join(ALGORITHMS))


@attrs.define(eq=False)
class CheckedBody:
    """A body that is what its checksum says. To be released when it was written."""

    data: bytes = attrs.field(repr=False)
    _give_back: Callable[[int], None] = attrs.field(repr=False)

    def release(self) -> None:
        """Its memory may be used for others. Safe to repeat."""
        length, self.data = len(self.data), b""
        self._give_back(length)


class CheckedBodies:
    """All of them. `most`: bytes of one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0
        """Bytes in memory at present."""

    async def read(self, read: Callable[[], Awaitable[bytes]], length: int | None, checksum: Checksum) -> CheckedBody:
        """The whole body that `read` gives, of `length` bytes if that is declared.

        Raises UnknownAlgorithm, ChecksumBodyTooLarge, ChecksumMemoryFull, ChecksumMismatch; what `read` raises.
        """
        check_algorithm(checksum)
        if length is not None and length > self._most:
            raise ChecksumBodyTooLarge(self._most)
        digest = hashlib.new(checksum.algorithm, usedforsecurity=False)
        pieces: list[bytes] = []
        held = 0
        try:
            while piece := await read():
                self._hold(held, len(piece))
                held += len(piece)
                digest.update(piece)
                pieces.append(piece)
            if not hmac.compare_digest(digest.digest(), checksum.digest):
                raise ChecksumMismatch()
            body = CheckedBody(b"".join(pieces), self._free)
            held = 0  # the body's from now on
            return body
        finally:
            self._free(held)

    def _hold(self, held: int, more: int) -> None:
        if held + more > self._most:
            raise ChecksumBodyTooLarge(self._most)
        if self.held + more > BODIES * self._most:
            raise ChecksumMemoryFull()
        self.held += more

    def _free(self, length: int) -> None:
        self.held -= length
