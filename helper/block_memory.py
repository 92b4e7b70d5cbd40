"""How many bytes of blocks all uploads together hold in memory, and whose turn it is when that is much.  (pure)

One upload is bounded by itself (pipeline.py, pushing.py). But ciphertext becomes durable faster than servers take
blocks, and with many uploads what each may hold adds up. So a segment is encoded only when there is room for its
blocks; it waits in the spool until then, and nobody waits for it but shares. Whoever holds blocks when room is short
has to let go of those that nobody takes: they can be made again. What is on its way to servers counts elsewhere
(in_flight.py), since it cannot be let go of.
"""

from __future__ import annotations

from typing import Protocol

MiB = 1024 * 1024

#: Bytes of blocks that are being made or wait to be pushed. What Foolscap and TLS make of them comes on top.
BLOCKS_MAX = 16 * MiB


class Holder(Protocol):
    """Who holds blocks, and makes them. Hashable."""

    def granted(self) -> None:
        """There is room for what was asked for; it counts as held from now on."""

    def make_room(self) -> None:
        """Others wait: let go, soon, of blocks that can be made again."""


class BlockMemory:
    """Counts blocks, and grants room for more in the order in which it was asked for."""

    def __init__(self, limit: int = BLOCKS_MAX) -> None:
        self.held = 0
        self._limit = limit
        self._holders: dict[Holder, int] = {}
        self._waiting: dict[Holder, int] = {}
        self._serving = False

    @property
    def short(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def ask(self, holder: Holder, size: int) -> None:
        """Tell the holder when there is room for so many more bytes: at once, if there is."""
        was_short = self.short
        self._waiting[holder] = size
        self._serve()
        if self.short and not was_short:
            for other in list(self._holders):
                other.make_room()

    def cancel(self, holder: Holder) -> None:
        """It needs no more room. No-op if it does not wait."""
        if self._waiting.pop(holder, None) is not None:
            self._serve()

    def holds(self, holder: Holder, size: int) -> None:
        """So many bytes in all are held by this one now."""
        self.held += size - self._holders.pop(holder, 0)
        if size:
            self._holders[holder] = size
        self._serve()

    def _serve(self) -> None:
        if self._serving:  # who is granted room says at once how much is held
            return
        self._serving = True
        try:
            while self._waiting:
                holder, size = next(iter(self._waiting.items()))
                if self.held and self.held + size > self._limit:  # if nothing is held it may be more than the limit
                    return
                del self._waiting[holder]
                self.held += size
                self._holders[holder] = self._holders.get(holder, 0) + size
                holder.granted()
        finally:
            self._serving = False
