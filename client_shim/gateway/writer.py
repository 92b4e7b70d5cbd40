"""Who may write to an upload handle: one request at a time. What it may do is the handle's to decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from client_shim.gateway.handle_errors import HandleError, TakenOver

if TYPE_CHECKING:
    from client_shim.gateway.handle import Handle


class Writer:
    """Who may write to a handle: one request. Calls raise TakenOver when a newer one has come, and what has ended the
    handle when something has; `on_ended` is called with that error then, once, if it is set. One call at a time.
    """

    def __init__(self, handle: Handle, offset: int, began: float) -> None:
        self.on_ended: Callable[[HandleError], None] = lambda _why: None
        self._handle = handle
        self._start = offset
        self._began = began
        self._over: HandleError | None = None

    @property
    def offset(self) -> int:
        """Length that may be stated: all of it is durable. After take_over and settle the next byte goes there; while
        more is written it follows behind, and never goes back."""
        return max(self._start, self._handle.status.offset)

    async def write(self, data: bytes) -> None:
        """The next bytes of the file. Returns when they are encrypted and on their way into the journal, and thence to
        the helper; what is on its way is bounded.

        Raises SizeExceeded (nothing of `data` was taken), AlreadyComplete, or why the writer has ended.
        """
        await self._handle.write(self, data)

    async def settle(self) -> int:
        """Wait until all that was written is durable; returns the offset. While the helper is away it waits."""
        return await self._handle.settle(self)

    async def set_size(self, size: int) -> None:
        """The file will have `size` bytes; durable when this returns. Once, or the same again.

        Raises BadSize, SizeConflict.
        """
        await self._handle.set_size(self, size)

    async def close(self) -> bytes:
        """The file is complete: returns its cap, when it is stored, and linked if that was wanted. May be repeated, by
        any later writer too; goes on if this writer ends, and over restarts.

        Raises NotComplete if fewer bytes came than were declared; HandleFailed; LinkFailed, which has the cap.
        """
        return await self._handle.close(self)

    def release(self) -> None:
        """This request is over. What was written stays, and goes on to the helper. Safe to repeat."""
        self._over = self._over or TakenOver()
        self._handle.release(self)

    def check(self) -> None:
        """Raises why it has ended, if it has."""
        if self._over is not None:
            raise self._over

    @property
    def goes_on(self) -> bool:
        """True; raises as `check` does."""
        self.check()
        return True

    def rate(self, durable: int, now: float) -> float:
        """Bytes a second that became durable since it began."""
        return max(0, durable - self._start) / max(1.0, now - self._began)

    def end(self, why: HandleError) -> None:
        """For the handle: nothing more is taken from it."""
        if self._over is None:
            self._over = why
            self.on_ended(why)
