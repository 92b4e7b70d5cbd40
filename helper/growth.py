"""Shares of a file of unknown size on stock servers: moved to larger allocations in time (protocol.txt §8.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper.parameters import Parameters
from helper.pipeline import Pipeline
from helper.placement import AllocationPolicy
from helper.placing import ShareHomes
from helper.shares import Share, ShareState


class ShareGrowth:
    """Moves the shares of one upload, on few servers at a time. Calls `on_change` when one has moved, and `on_broken`
    with a Failure that no server is to blame for."""

    log = Logger()

    def __init__(self, parameters: Parameters, shares: Sequence[Share], pipeline: Pipeline, policy: AllocationPolicy,
                 homes: ShareHomes, on_change: Callable[[], None], on_broken: Callable[[Failure], None]) -> None:
        self._parameters = parameters
        self._shares = shares
        self._pipeline = pipeline
        self._policy = policy
        self._homes = homes
        self._on_change = on_change
        self._on_broken = on_broken
        # Servers whose shares are moving to larger allocations: how many segments each share must hold again.
        self._growing: dict[bytes, dict[Share, int]] = {}
        self._cannot_grow: set[bytes] = set()

    def grow_where_due(self) -> None:
        """Move shares whose allocation is becoming too small to a larger one, on few servers at a time."""
        size, growing_max = self._homes.size, max(1, self._parameters.n - self._parameters.happy)
        for server_id in [s for s in self._growing if self._caught_up(s)]:
            del self._growing[server_id]
        by_server: dict[bytes, list[Share]] = {}
        for share in self._shares:
            if share.state is ShareState.PUSHING and share.sink is not None and share.server is not None:
                by_server.setdefault(share.server.server_id, []).append(share)
        for server_id, shares in by_server.items():
            bound = min(share.file_bound for share in shares)
            if size is not None:
                if bound < size:
                    self._homes.move(shares)
            elif server_id in self._cannot_grow:
                for share in filter(self._full, shares):
                    self._homes.lose(share)
            elif (self._policy.growth_due(self._homes.durable, bound) and server_id not in self._growing
                    # one more when a share can take nothing otherwise: those that are growing may hang
                    and len(self._growing) < growing_max + any(map(self._full, shares))):
                self._grow(shares, bound)

    def _caught_up(self, server_id: bytes) -> bool:
        """Whether every share that moved there holds again what it held before, or has gone elsewhere."""
        targets = self._growing[server_id]
        return bool(targets) and all(
            share.server is None or share.server.server_id != server_id
            or share.state not in (ShareState.ALLOCATING, ShareState.PUSHING) or share.segments_held >= held
            for share, held in targets.items())

    def _grow(self, shares: list[Share], bound: int) -> None:
        server = shares[0].server
        if server is None:
            raise ValueError("no server")
        self._growing[server.server_id] = {}
        generations = [(share, share.generation) for share in shares]

        async def grow() -> None:
            allocation = await self._homes.allocation(server, len(shares))
            still = [share for share, generation in generations if share.generation == generation]
            if allocation.file_bound <= bound:
                self.log.info("storage server {server} has no room for {shares} larger shares",
                              server=server.name, shares=len(shares))
                self._cannot_grow.add(server.server_id)
                del self._growing[server.server_id]
            elif still and not self._homes.stopped:
                self._growing[server.server_id] = {share: share.segments_held for share in still}
                await self._homes.move(still)
            else:
                del self._growing[server.server_id]

        def failed(failure: Failure) -> None:
            self._homes.log_loss(server, failure)
            self._growing.pop(server.server_id, None)
            for share, generation in generations:
                if share.generation == generation:
                    self._homes.lose(share)

        d = Deferred.fromCoroutine(grow()).addErrback(failed)
        d.addCallback(lambda _result: self._on_change()).addErrback(self._on_broken)

    def _full(self, share: Share) -> bool:
        return share.next_segment < self._pipeline.segments and not self._homes.fits(share, share.next_segment)
