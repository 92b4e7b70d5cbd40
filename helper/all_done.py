"""Waiting for several things that go on at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList


async def all_done(deferreds: Sequence[Deferred[Any]]) -> None:
    """Wait until all have fired. Raises what the first of them (in this order) failed with, if any did."""
    for succeeded, result in await DeferredList(deferreds, consumeErrors=True):
        if not succeeded:
            result.raiseException()
