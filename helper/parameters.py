"""The parameters of `open`, checked: protocol.txt §4.1.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from helper.errors import BadArgument, ParametersDiffer
from helper.interfaces import HASH_SIZE, SEGMENT_SIZE_MAX, SHARES_MAX, SIZE_MAX
from helper.segments import round_up, segment_size_for

MiB = 1024 * 1024

#: Bytes of all blocks of one segment, which are in memory together.
SEGMENT_BLOCKS_MAX = 12 * MiB
#: Hash trees are in memory until an upload is over. They may have so many bytes, and beyond them one for so many bytes
#: of ciphertext: with tiny segments, and many shares, they would be larger than the file.
TREES_MAX = MiB
TREES_PER_BYTE = 32

UNKNOWN_SIZE = -1  # how an undeclared size is written where only a number fits


@attrs.frozen
class Parameters:
    """What the client wants of one upload. Sizes in bytes; `size` is None until `finish` if undeclared."""

    k: int
    happy: int
    n: int
    max_segment_size: int
    size: int | None = None

    @property
    def full_segment_size(self) -> int:
        """The size of every segment but the last of a file longer than max_segment_size."""
        return round_up(self.max_segment_size, self.k)

    @property
    def largest_size(self) -> int:
        """The largest file whose hash trees are not too large: one of the ciphertext and one a share, each with two
        nodes a segment. At least a segment."""
        per_segment = (self.n + 1) * 2 * HASH_SIZE
        excess = per_segment * TREES_PER_BYTE - self.full_segment_size  # in bytes of ciphertext, a segment
        if excess <= 0:
            return SIZE_MAX
        segments = max(1, TREES_MAX * TREES_PER_BYTE // excess)
        return min(SIZE_MAX, segments * self.full_segment_size)

    def check_memory(self) -> None:
        """Raises BadArgument if the blocks of a segment would be too large together."""
        size = self.full_segment_size
        if self.size is not None:
            size = segment_size_for(self.max_segment_size, self.k, self.size)
        if size // self.k * self.n > SEGMENT_BLOCKS_MAX:
            raise BadArgument("max-segment-size", f"at most {SEGMENT_BLOCKS_MAX // self.n * self.k} for {self.k} of "
                              f"{self.n} shares", str(self.max_segment_size))

    def to_wire(self) -> dict[bytes, int]:
        """As `open` carries them."""
        wire = {b"k": self.k, b"happy": self.happy, b"n": self.n, b"max-segment-size": self.max_segment_size}
        if self.size is not None:
            wire[b"size"] = self.size
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[bytes, int]) -> Parameters:
        """Checks every bound of protocol.txt §4.1; raises BadArgument."""
        for key in wire:
            if key not in _BOUNDS:
                raise BadArgument("parameters", "keys " + ", ".join(sorted(b.decode() for b in _BOUNDS)), repr(key))
        for key, (low, high) in _BOUNDS.items():
            if key == b"size" and key not in wire:
                continue
            if key not in wire:
                raise BadArgument(key.decode(), f"a number from {low} to {high}", "nothing")
            _check(key.decode(), wire[key], low, high)
        parameters = cls(wire[b"k"], wire[b"happy"], wire[b"n"], wire[b"max-segment-size"], wire.get(b"size"))
        _check("k", parameters.k, 1, parameters.n)
        _check("happy", parameters.happy, 1, parameters.n)
        return parameters

    def check_same(self, other: Parameters) -> None:
        """Raises ParametersDiffer if a repeated `open` asks for something else."""
        for field in attrs.fields(Parameters):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                raise ParametersDiffer(
                    field.name.replace("_", "-"), UNKNOWN_SIZE if mine is None else mine,
                    UNKNOWN_SIZE if theirs is None else theirs)


_BOUNDS = {
    b"k": (1, SHARES_MAX),
    b"happy": (1, SHARES_MAX),
    b"n": (1, SHARES_MAX),
    b"max-segment-size": (1, SEGMENT_SIZE_MAX),
    b"size": (0, SIZE_MAX),
}


def _check(field: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadArgument(field, f"a number from {low} to {high}", str(value))
