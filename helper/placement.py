"""Which server gets which share, and when there are enough.  (pure)

A share of an upload is on one server at a time, so servers of happiness (docs/specifications/
servers-of-happiness.rst of Tahoe-LAFS: a maximum matching of servers and shares) is simply the number
of distinct servers that hold a share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs

from helper.layout import ShareLayout
from helper.segments import Geometry, round_up

GiB = 1024**3

#: Growing bounds: each is this many times the one before (protocol.txt §8.4).
BOUND_FACTOR = 8
#: Of a server's free space, an allocation for an unknown size takes at most one part in so many.
FREE_SPACE_PARTS = 8


def happiness(servers: Iterable[bytes]) -> int:
    """Servers of happiness of shares on the given servers (one server ID a share)."""
    return len(set(servers))


def rule_met(placed: Mapping[int, bytes], k: int, happy: int) -> bool:
    """Whether shares {share number: server ID} are enough: `happy` servers and k share numbers (protocol.txt §6.4)."""
    return len(placed) >= k and happiness(placed.values()) >= happy


def rule_position(positions: Mapping[int, tuple[bytes, int]], k: int, happy: int) -> int:
    """How far (bytes) enough shares have come: the position of the share that completes the answer rule.

    `positions` is {share number: (server ID, position)}. 0 if the shares are not enough.
    """
    placed: dict[int, bytes] = {}
    for shnum, (server, position) in sorted(positions.items(), key=lambda item: -item[1][1]):
        placed[shnum] = server
        if rule_met(placed, k, happy):
            return position
    return 0


def first_placement(n: int, servers: Sequence[bytes]) -> dict[int, bytes]:
    """Shares 0..n-1 dealt out to the servers in their order, round and round. Empty without servers."""
    return {shnum: servers[shnum % len(servers)] for shnum in range(n)} if servers else {}


def staging_first(servers: Sequence[bytes], stages: Collection[bytes], n: int) -> list[bytes]:
    """The at most n servers that get the n shares of a file: those in `stages` first, each kind in its order."""
    return [*(s for s in servers if s in stages), *(s for s in servers if s not in stages)][:n]


def staging_suffices(k: int, happy: int, n: int, servers: Sequence[bytes], stages: Collection[bytes]) -> bool:
    """Whether the shares that those of `servers` in `stages` will get meet the answer rule without the others."""
    placed = first_placement(n, staging_first(servers, stages, n))
    return rule_met({shnum: server for shnum, server in placed.items() if server in stages}, k, happy)


def by_rank(servers: Sequence[bytes], ranked: Sequence[bytes]) -> list[bytes]:
    """Servers in the order of `ranked`; those it does not name come last, in their own order."""
    rank = {server: i for i, server in enumerate(ranked)}
    return sorted(servers, key=lambda s: rank.get(s, len(rank)))


def new_home(servers: Sequence[bytes], load: Mapping[bytes, int], tried: Collection[bytes]) -> bytes | None:
    """A server for a share that lost its own: first one without a share of this file, else the one
    holding fewest, in the order given; none that this share has `tried`. None if none is left."""
    left = [s for s in servers if s not in tried]
    return min(left, key=lambda s: load.get(s, 0), default=None)


@attrs.frozen
class Allocation:
    """Space asked for one share, and the largest file (bytes) whose share fits in it."""

    share_size: int
    file_bound: int


@attrs.frozen
class AllocationPolicy:
    """How much to allocate for each share: protocol.txt §8.4."""

    k: int
    n: int
    max_segment_size: int
    first_bound: int = 1 * GiB

    def exact(self, size: int) -> Allocation:
        """For a known size: exactly what stock would ask for."""
        geometry = Geometry.for_file(self.k, self.n, self.max_segment_size, size)
        return Allocation(ShareLayout(geometry).share_size, size)

    def bounded(self, received: int, free_space: int | None, shares: int) -> Allocation:
        """For an unknown size, `received` bytes into the file, on a server that takes `shares` shares of it.

        The first bound of the series first_bound × 8ⁿ of which `received` is less than half, but at most
        an eighth of the server's `free_space` (None: unknown, not limited) for all shares together.
        """
        bound = self.first_bound
        while received * 2 >= bound:
            bound *= BOUND_FACTOR
        if free_space is not None:
            room = free_space // FREE_SPACE_PARTS // max(1, shares)
            bound = min(bound, self._largest_file_in(room))
        return Allocation(self._share_size(bound), bound)

    def growth_due(self, received: int, file_bound: int) -> bool:
        """Whether a share allocated for `file_bound` should be moved to a larger allocation."""
        return received * 2 >= file_bound

    def _share_size(self, bound: int) -> int:
        if bound <= 0:
            return 0
        segment_size = round_up(self.max_segment_size, self.k)
        # 64: a smaller file's URI extension block may have longer numbers (a longer tail) by a few digits
        return ShareLayout(Geometry(self.k, self.n, segment_size, bound)).share_size + 64

    def _largest_file_in(self, room: int) -> int:
        """The largest file whose share fits into `room` bytes, found by bisection."""
        low, high = 0, max(0, room) * self.k
        while low < high:
            middle = (low + high + 1) // 2
            if self._share_size(middle) <= room:
                low = middle
            else:
                high = middle - 1
        return low
