"""Homes for the shares of one upload: asks storage servers for room, finds others when they fail, and
moves shares to larger allocations while the size of the file is unknown (protocol.txt §8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper.events import TooFewServers, TooFewShares
from helper.parameters import Parameters
from helper.pipeline import Pipeline
from helper.placement import Allocation, AllocationPolicy, first_placement, happiness, new_home
from helper.shares import LIVE, Share, ShareState
from helper.sinks import Granted, Grid, ServerRefused, ShareSink, StorageServer

#: While too few servers are left to complete a publication, they are looked for this often; seconds.
RETRY_INTERVAL = 5


class ShareHomes:
    """Keeps every share of `shares` on some server, as far as there are any.

    Calls `on_change` when a share can be pushed or has moved, `tell` with TooFewServers or TooFewShares when the answer
    rule cannot be met, and `on_broken` with a Failure that no server is to blame for.
    """

    log = Logger()

    def __init__(self, parameters: Parameters, shares: list[Share], pipeline: Pipeline, grid: Grid,
                 policy: AllocationPolicy, clock: IReactorTime, on_change: Callable[[], None],
                 tell: Callable[[object], None], on_broken: Callable[[Failure], None]) -> None:
        self._parameters = parameters
        self._shares = shares
        self._pipeline = pipeline
        self._grid = grid
        self._policy = policy
        self._clock = clock
        self._on_change = on_change
        self._tell = tell
        self._on_broken = on_broken
        self.storage_index: bytes | None = None
        self.durable = 0
        self.stopped = False
        self.must_complete = False  # publication has begun: never give up
        self._watched: dict[bytes, Callable[[], None]] = {}
        # Servers whose shares are moving to larger allocations: how many segments each share must hold again.
        self._growing: dict[bytes, dict[Share, int]] = {}
        self._cannot_grow: set[bytes] = set()
        self._retry_call: IDelayedCall | None = None
        self.pending: set[Deferred[Any]] = set()  # requests whose answer may bring sinks to let go of

    def begin(self, storage_index: bytes, server_wait: float) -> None:
        """Find a home for every share, once enough servers are connected or `server_wait` seconds are over."""
        self.storage_index = storage_index
        d = self._grid.when_connected(self._parameters.happy, server_wait)
        d.addCallback(lambda _count: self.place_all())
        d.addErrback(self._on_broken)

    def stop(self) -> None:
        """Do nothing more."""
        self.stopped = True
        if self._retry_call is not None and self._retry_call.active():
            self._retry_call.cancel()
        for cancel in self._watched.values():
            cancel()
        self._watched.clear()

    # -- placing -----------------------------------------------------------------------------------------

    def place_all(self) -> None:
        if self.stopped or self.storage_index is None:
            return
        servers = {s.server_id: s for s in self._grid.servers_for(self.storage_index)}
        if len(servers) < self._parameters.happy:
            self._tell(TooFewServers(len(servers), self._parameters.happy))
            return
        by_server: dict[bytes, list[Share]] = {}
        for shnum, server_id in first_placement(self._parameters.n, list(servers)).items():
            by_server.setdefault(server_id, []).append(self._shares[shnum])
        for server_id, shares in by_server.items():
            self._allocate(servers[server_id], shares)
        self._check_enough()

    def _allocate(self, server: StorageServer, shares: list[Share]) -> None:
        """Ask `server` for room for `shares`; each is pushed there or finds another home."""
        for share in shares:
            share.leave(ShareState.ALLOCATING)
            share.server = server
        generations = [(share, share.generation) for share in shares]
        self._watch(server)
        d = Deferred.fromCoroutine(self._allocated(server, generations))
        self.pending.add(d)

        def lost(failure: Failure) -> None:
            self.log_loss(server, failure)
            for share, generation in generations:
                if share.generation == generation and share.state is ShareState.ALLOCATING:
                    self.lose(share)

        # Later: a call on a dead connection fails at once, when other shares may not have been placed yet.
        d.addErrback(lambda failure: deferLater(self._clock, 0, lost, failure))
        d.addBoth(lambda _result: self.pending.discard(d))
        d.addErrback(self._on_broken)

    async def _allocated(self, server: StorageServer, generations: list[tuple[Share, int]]) -> None:
        if self.storage_index is None:
            raise ValueError("no storage index")
        allocation = await self._allocation(server, len(generations))
        if allocation.file_bound < self.durable:
            raise ServerRefused("has no room for the file as it is now")
        if self.stopped:
            return
        granted = await server.allocate(
            self.storage_index, [share.shnum for share, _generation in generations], allocation)
        unwanted = [self._take(share, generation, granted, allocation) for share, generation in generations]
        self._on_change()
        await gatherResults([sink.abort() for sink in unwanted if sink is not None])

    async def _allocation(self, server: StorageServer, shares: int) -> Allocation:
        size = self.size
        if size is not None:
            return self._policy.exact(size)
        free = await server.free_space()
        return self._policy.bounded(self.durable, free, shares)

    @property
    def size(self) -> int | None:
        if self._pipeline.completion is not None:
            return self._pipeline.completion.layout.geometry.size
        return self._parameters.size

    def _take(self, share: Share, generation: int, granted: Granted, allocation: Allocation) -> ShareSink | None:
        """Begin to push to what was granted for a share; returns the sink if nobody wants it any more."""
        sink, existing = granted.sinks.get(share.shnum), granted.existing.get(share.shnum)
        if self.stopped or share.generation != generation:
            return sink
        if sink is None and existing is None:
            self.log.info("storage server {server} refused share {shnum}",
                          server=share.server and share.server.name, shnum=share.shnum)
            self.lose(share)
        else:
            share.sink, share.existing = sink, existing
            share.file_bound = allocation.file_bound
            share.state = ShareState.PUSHING
        return None

    def lose(self, share: Share, elsewhere: bool = True) -> None:
        """The share's server failed it: find it another (or not, if that would not help)."""
        if self.stopped or share.state in (ShareState.LOST, ShareState.CLOSED):
            return
        if share.server is not None:
            share.tried.add(share.server.server_id)
        sink = share.leave(ShareState.LOST)
        if sink is not None:
            sink.abort()
        if elsewhere:
            self._rehome([share])
        self._check_enough()
        self._on_change()

    def _rehome(self, shares: Iterable[Share]) -> None:
        if self.storage_index is None:
            return
        servers = {s.server_id: s for s in self._grid.servers_for(self.storage_index)}
        for share in shares:
            load = Counter(s.server.server_id for s in self._shares if s.state in LIVE and s.server is not None)
            # While there are fewer than `happy`, only another server helps: a share is not spent on one of them.
            enough = len(load) >= self._parameters.happy
            home = new_home([s for s in servers if enough or s not in load], load, share.tried)
            if home is not None:
                self.log.info("share {shnum} goes to storage server {server}",
                              shnum=share.shnum, server=servers[home].name)
                self._allocate(servers[home], [share])

    def _check_enough(self) -> None:
        """Tell the session when the answer rule cannot be met any more."""
        live = {s.shnum: s.server.server_id for s in self._shares if s.state in LIVE and s.server is not None}
        k, happy = self._parameters.k, self._parameters.happy
        have = happiness(live.values())
        if have < happy:
            self._tell(TooFewServers(have, happy))
        elif len(live) < k:
            self._tell(TooFewShares(len(live), k))
        else:
            return
        if self.must_complete and not self.stopped and not (self._retry_call and self._retry_call.active()):
            self._retry_call = self._clock.callLater(RETRY_INTERVAL, self._retry)

    def _retry(self) -> None:
        lost = [s for s in self._shares if s.state is ShareState.LOST]
        for share in lost:
            share.tried.clear()
        self._rehome(lost)
        self._check_enough()

    def _watch(self, server: StorageServer) -> None:
        if server.server_id not in self._watched:
            self._watched[server.server_id] = server.on_disconnect(lambda: self._disconnected(server))

    def _disconnected(self, server: StorageServer) -> None:
        self._watched.pop(server.server_id, None)
        self.log.info("storage server {server} disconnected", server=server.name)
        for share in self._shares:
            if share.server is not None and share.server.server_id == server.server_id and share.state in LIVE:
                self.lose(share)

    def log_loss(self, server: StorageServer, failure: Failure) -> None:
        # only the kind of failure: its text may quote arguments
        self.log.info("storage server {server} failed: {kind}", server=server.name, kind=type(failure.value).__name__)

    # -- growing -----------------------------------------------------------------------------------------

    def grow_where_due(self) -> None:
        """Move shares whose allocation is becoming too small to a larger one, on few servers at a time."""
        size, growing_max = self.size, max(1, self._parameters.n - self._parameters.happy)
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
                    self._move(shares)
            elif server_id in self._cannot_grow:
                for share in filter(self._full, shares):
                    self.lose(share)
            elif (self._policy.growth_due(self.durable, bound) and server_id not in self._growing
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
            allocation = await self._allocation(server, len(shares))
            still = [share for share, generation in generations if share.generation == generation]
            if allocation.file_bound <= bound:
                self.log.info("storage server {server} has no room for {shares} larger shares",
                              server=server.name, shares=len(shares))
                self._cannot_grow.add(server.server_id)
                del self._growing[server.server_id]
            elif still and not self.stopped:
                self._growing[server.server_id] = {share: share.segments_held for share in still}
                await self._move(still)
            else:
                del self._growing[server.server_id]

        def failed(failure: Failure) -> None:
            self.log_loss(server, failure)
            self._growing.pop(server.server_id, None)
            for share, generation in generations:
                if share.generation == generation:
                    self.lose(share)

        d = Deferred.fromCoroutine(grow()).addErrback(failed)
        d.addCallback(lambda _result: self._on_change()).addErrback(self._on_broken)

    def _move(self, shares: list[Share]) -> Deferred[None]:
        """Give up the allocations of shares on one server and ask for new ones there; they start again.

        Fires when the server has answered."""
        server = shares[0].server
        if server is None:
            raise ValueError("no server")
        sinks = [share.leave(ShareState.ALLOCATING) for share in shares]
        generations = [share.generation for share in shares]

        def aborted(_results: object) -> None:
            still = [s for s, g in zip(shares, generations, strict=True) if s.generation == g]
            if still and not self.stopped:
                self._allocate(server, still)

        d: Deferred[Any] = gatherResults([sink.abort() for sink in sinks if sink is not None])
        return d.addCallback(aborted)

    def _full(self, share: Share) -> bool:
        return share.next_segment < self._pipeline.segments and not self.fits(share, share.next_segment)

    def fits(self, share: Share, segment: int) -> bool:
        size = self._pipeline.segment_size
        if size is None:
            return False
        end = (segment + 1) * size
        if self.size is not None:
            end = min(end, self.size)
        return end <= share.file_bound
