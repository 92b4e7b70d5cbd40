"""One segment of a plaintext, chosen at random, that is known again without having been kept.  (pure)"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import attrs

from client_shim.cipher import PlaintextDigests


class KnownSegment(Protocol):
    """Segment `number` of a plaintext in segments of `segment_size` bytes, of which the last may have fewer."""

    @property
    def number(self) -> int: ...
    @property
    def segment_size(self) -> int: ...

    def matches(self, segment: bytes) -> bool:
        """Whether `segment` is that one."""


@attrs.frozen
class OneOfAll:
    """One of those whose digests were all kept."""

    digests: PlaintextDigests
    number: int

    @property
    def segment_size(self) -> int:
        return self.digests.piece_size

    def matches(self, segment: bytes) -> bool:
        return self.digests.matches(self.number, segment)


class Hasher(Protocol):
    """As those of hashlib."""

    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


H = TypeVar("H", bound=Hasher)


class OneSegment(Generic[H]):
    """A keyed digest of one segment of a plaintext, each of its segments with the same probability: when segment i
    (from 1) begins it takes the place of the one before with probability 1/i. So its size does not depend on the
    file's, and only a few segments are hashed.

    `new_hasher` makes a hasher whose key never leaves this process but sealed, so that the digest tells nobody
    anything about the plaintext. `segment_size` in bytes. `choose` returns a random number below another.
    """

    def __init__(self, new_hasher: Callable[[], H], segment_size: int, choose: Callable[[int], int]) -> None:
        self.segment_size = segment_size
        self.number = 0
        self.hasher = new_hasher()
        self._new_hasher = new_hasher
        self._choose = choose

    def update(self, offset: int, data: memoryview) -> None:
        """The next bytes of plaintext, from `offset` on."""
        while data:
            number, filled = divmod(offset, self.segment_size)
            piece = data[:self.segment_size - filled]
            if not filled and number and self._choose(number + 1) == 0:
                self.number, self.hasher = number, self._new_hasher()
            if number == self.number:
                self.hasher.update(bytes(piece))
            offset += len(piece)
            data = data[len(piece):]

    def matches(self, segment: bytes) -> bool:
        """Whether `segment` is segment `number` of the plaintext."""
        hasher = self._new_hasher()
        hasher.update(segment)
        return hmac.compare_digest(hasher.digest(), self.hasher.digest())
