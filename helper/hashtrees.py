"""Merkle trees that grow a leaf at a time, with the nodes of allmydata.hashtree.HashTree.  (pure)

Stock Tahoe builds a tree when it has all leaves. Here inner nodes are computed as leaves arrive, so
that completing a tree of any size hashes O(log n) nodes; the padding to a power of two depends on
nothing but its position and is computed once for all trees of a size.
"""

from __future__ import annotations

from functools import lru_cache

from allmydata.hashtree import empty_leaf_hash, pair_hash, roundup_pow2

NODE_SIZE = 32  # bytes


class GrowingHashTree:
    """A Merkle tree under construction: `append` leaves, then ask for `root` or `nodes`."""

    def __init__(self) -> None:
        # rows[0] holds the leaves, rows[j] every node whose 2**j leaves are all known; NODE_SIZE bytes each
        self._rows: list[bytearray] = [bytearray()]

    def __len__(self) -> int:
        """The number of leaves."""
        return len(self._rows[0]) // NODE_SIZE

    def append(self, leaf: bytes) -> None:
        """Add the hash (32 bytes) of the next leaf."""
        level, node = 0, leaf
        while True:
            if level == len(self._rows):
                self._rows.append(bytearray())
            row = self._rows[level]
            row += node
            if (len(row) // NODE_SIZE) % 2:
                return
            node = pair_hash(bytes(row[-2 * NODE_SIZE:-NODE_SIZE]), node)
            level += 1

    def leaf(self, number: int) -> bytes:
        """The hash given for a leaf. IndexError if there is none of that number."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return bytes(self._rows[0][number * NODE_SIZE:(number + 1) * NODE_SIZE])

    def copy(self) -> GrowingHashTree:
        """An independent tree with the same leaves."""
        other = GrowingHashTree()
        other._rows = [bytearray(row) for row in self._rows]
        return other

    def root(self) -> bytes:
        """The root (32 bytes) of the tree as it would be without further leaves."""
        return b"".join(self._complete_rows()[-1])

    def nodes(self, start: int = 0, end: int | None = None) -> bytes:
        """All 2p - 1 nodes, root first, p the number of leaves rounded up to a power of two; or only bytes `start` to
        `end` of them."""
        pieces, position = [], 0
        for row in reversed(self._complete_rows()):
            for part in row:
                begin, stop = max(0, start - position), len(part) if end is None else max(0, end - position)
                pieces.append(bytes(part[begin:stop]))
                position += len(part)
        return b"".join(pieces)

    def _complete_rows(self) -> list[tuple[bytearray, bytes, bytes]]:
        """Each row as the nodes that are known, one that has both real leaves and padding below it (or none), and
        those that have only padding below them."""
        leaves = len(self)
        if not leaves:
            raise ValueError("a hash tree needs at least one leaf")
        rows: list[tuple[bytearray, bytes, bytes]] = []
        width, level = roundup_pow2(leaves), 0
        while True:
            known, mixed = self._rows[level] if level < len(self._rows) else bytearray(), b""
            touched = -(-leaves >> level)  # nodes with at least one real leaf below; ceil(leaves / 2**level)
            if len(known) // NODE_SIZE < touched:
                first = 2 * (touched - 1)
                mixed = pair_hash(_node(rows[-1], first), _node(rows[-1], first + 1))
            rows.append((known, mixed, _padding_row(level, touched, width)))
            if width == 1:
                return rows
            width, level = width // 2, level + 1


def _node(row: tuple[bytearray, bytes, bytes], number: int) -> bytes:
    start = number * NODE_SIZE
    for part in row:
        if start < len(part):
            return bytes(part[start:start + NODE_SIZE])
        start -= len(part)
    raise IndexError(number)


class HashTreeRoot:
    """The root alone of a tree that grows a leaf at a time: keeps one node a level, and these can be stored."""

    def __init__(self) -> None:
        self._leaves = 0
        # by level: the last node whose 2**level leaves are all known, while it is not part of a larger one
        self._nodes: dict[int, bytes] = {}

    def append(self, leaf: bytes) -> None:
        """Add the hash (32 bytes) of the next leaf."""
        self._leaves += 1
        level, node = 0, leaf
        while level in self._nodes:
            node = pair_hash(self._nodes.pop(level), node)
            level += 1
        self._nodes[level] = node

    def root(self) -> bytes:
        """The root (32 bytes) of the tree as it would be without further leaves."""
        if not self._leaves:
            raise ValueError("a hash tree needs at least one leaf")
        partial: bytes | None = None  # the node of this level with both real leaves and padding below it
        top = roundup_pow2(self._leaves).bit_length() - 1
        for level in range(top):
            full = self._leaves >> level
            if level in self._nodes:
                right = _padding_row(level, full, full + 1) if partial is None else partial
                partial = pair_hash(self._nodes[level], right)
            elif partial is not None:
                partial = pair_hash(partial, _padding_row(level, full + 1, full + 2))
        return self._nodes[top] if partial is None else partial

    def copy(self) -> HashTreeRoot:
        """An independent tree with the same leaves."""
        other = HashTreeRoot()
        other._leaves, other._nodes = self._leaves, dict(self._nodes)
        return other

    def state(self) -> bytes:
        """What `resumed` goes on from: the number of leaves (8 bytes, big-endian), the nodes kept, lowest first."""
        return self._leaves.to_bytes(8, "big") + b"".join(self._nodes[level] for level in sorted(self._nodes))

    @classmethod
    def resumed(cls, state: bytes) -> HashTreeRoot:
        """A tree with the leaves that the other had. ValueError for what is no state."""
        tree = cls()
        tree._leaves = int.from_bytes(state[:8], "big")
        levels = [level for level in range(64) if tree._leaves >> level & 1]
        if len(state) != 8 + NODE_SIZE * len(levels):
            raise ValueError(f"the state of a hash tree of {tree._leaves} leaves has {len(levels)} nodes, "
                             f"got {len(state)} bytes")
        tree._nodes = {level: state[8 + NODE_SIZE * i:8 + NODE_SIZE * (i + 1)] for i, level in enumerate(levels)}
        return tree


@lru_cache(maxsize=64)
def _padding_row(level: int, start: int, stop: int) -> bytes:
    """The nodes start..stop-1 of a level that have only padding below them."""
    if start >= stop:
        return b""
    if level == 0:
        return b"".join(empty_leaf_hash(i) for i in range(start, stop))
    below = _padding_row(level - 1, 2 * start, 2 * stop)
    return b"".join(
        pair_hash(below[i:i + NODE_SIZE], below[i + NODE_SIZE:i + 2 * NODE_SIZE])
        for i in range(0, len(below), 2 * NODE_SIZE)
    )
