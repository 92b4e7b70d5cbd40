"""Waiting until something is so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred


class Changes:
    """Wakes those who wait for a condition whenever something may have changed."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[None]] = []

    def tell(self) -> None:
        """Something may have changed."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Return when `condition` is true; raise what it raises. It may be cancelled."""
        while not condition():
            change: Deferred[None] = Deferred(self._forget)
            self._waiting.append(change)
            await change

    def _forget(self, change: Deferred[None]) -> None:
        if change in self._waiting:
            self._waiting.remove(change)
