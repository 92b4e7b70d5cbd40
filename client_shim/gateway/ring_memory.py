"""How much ciphertext that is not at the helper yet all handles of a gateway may hold together.  (pure)"""

from __future__ import annotations

from collections.abc import Callable

from client_shim.window import WINDOW_MAX

#: What a handle may hold at least, in bytes, while there is memory at all: less would be too small for a message.
SHARE_MIN = 64 * 1024


class RingMemory:
    """A number of bytes, shared by those who hold some: none may have more than an equal part, nor than a window.

    What was in the journal at the start counts, and may be more than `limit`: then nobody gets any until it is less.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._holders = 0
        self.held = 0
        self._waiting: dict[RingPart, Callable[[], None]] = {}

    @property
    def share(self) -> int:
        """Bytes that one holder may have."""
        return min(WINDOW_MAX, max(SHARE_MIN, self._limit // max(1, self._holders)))

    @property
    def free(self) -> int:
        """Bytes left for all."""
        return max(0, self._limit - self.held)

    def changed(self, before: int, after: int) -> None:
        """One who held `before` bytes holds `after`."""
        self._holders += (after > 0) - (before > 0)
        self.held += after - before
        if self.free:
            waiting, self._waiting = self._waiting, {}
            for call in waiting.values():
                call()

    def wait(self, part: RingPart, call: Callable[[], None]) -> None:
        """Call this when there is room for anybody."""
        self._waiting[part] = call

    def wait_no_more(self, part: RingPart) -> None:
        self._waiting.pop(part, None)


class RingPart:
    """What one handle holds of it, in bytes. `on_room` is called when it was refused room that nobody had."""

    def __init__(self, memory: RingMemory, on_room: Callable[[], None]) -> None:
        self._memory = memory
        self._on_room = on_room
        self.held = 0

    def hold(self, length: int) -> None:
        """So much it is from now on."""
        before, self.held = self.held, length
        self._memory.changed(before, length)

    def room(self, most: int) -> int:
        """How much more it may hold, if it may have `most` at all."""
        free = self._memory.free
        if not free:
            self._memory.wait(self, self._on_room)
        return max(0, min(free, min(most, self._memory.share) - self.held))

    def leave(self) -> None:
        """Hold nothing and wait for nothing."""
        self._memory.wait_no_more(self)
        self.hold(0)
