"""Shares of one upload on their way to storage servers.

Every share is a cursor on the spool: shares that keep up take blocks from memory, one that fell behind
or found a new home reads the spool at its own pace. No share waits for another.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import attrs
from allmydata.util.hashutil import block_hash
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper import session
from helper.errors import fault_of
from helper.layout import DATA_OFFSET, HEADER_VERSION
from helper.parameters import Parameters
from helper.pipeline import Pipeline
from helper.placement import (
    Allocation,
    AllocationPolicy,
    first_placement,
    happiness,
    new_home,
    rule_met,
    rule_position,
)
from helper.sinks import ExistingShare, Granted, Grid, ServerRefused, ShareSink, StorageServer

MiB = 1024 * 1024

#: Blocks are gathered into writes of about this size: Foolscap's cost is per message.
WRITE_TARGET = 1_000_000
#: Bytes of one upload that may be in flight to all servers together, and to one at most.
IN_FLIGHT_MAX = 12 * MiB
IN_FLIGHT_PER_SHARE_MAX = 3 * MiB
#: The answer waits this long (seconds) after the last share closed, for the stragglers (protocol.txt §6.4).
CLOSE_GRACE = 0.05
#: A stock server drops a share that was not written to for 30 minutes; seconds.
KEEP_ALIVE_INTERVAL = 600
#: How long giving an upload up waits for servers that do not answer; seconds.
ABANDON_PATIENCE = 5
#: While too few servers are left to complete a publication, they are looked for this often; seconds.
RETRY_INTERVAL = 5


class ShareState(enum.Enum):
    """Where a share is; the values are seen in `status`."""

    UNPLACED = "unplaced"
    ALLOCATING = "allocating"
    PUSHING = "pushing"
    READY = "ready"
    PUBLISHING = "publishing"
    CLOSED = "closed"
    LOST = "lost"


_LIVE = frozenset(ShareState) - {ShareState.UNPLACED, ShareState.LOST}
_HOLDS_BLOCKS = frozenset({ShareState.PUSHING, ShareState.READY, ShareState.PUBLISHING, ShareState.CLOSED})


@attrs.define(eq=False)
class Share:
    """One share and its cursor."""

    shnum: int
    state: ShareState = ShareState.UNPLACED
    server: StorageServer | None = None
    sink: ShareSink | None = None
    existing: ExistingShare | None = None
    file_bound: int = 0  # the largest file whose share fits in what was allocated
    next_segment: int = 0  # the first one not yet handed to the sink
    segments_held: int = 0  # acknowledged by the server, without gaps
    in_flight: int = 0  # bytes
    unacknowledged: deque[tuple[int, int]] = attrs.field(factory=deque)  # (bytes, segments held once acknowledged)
    ended: bool = False  # trailer and header are handed to the sink
    reading: bool = False  # a block is on its way from the spool
    sealing: bool = False
    #: Grows with every new home; answers to an older one are ignored.
    generation: int = 0
    tried: set[bytes] = attrs.field(factory=set)  # servers that this share was lost on

    def leave(self, state: ShareState) -> ShareSink | None:
        """Forget the present home; returns its sink."""
        sink, self.sink, self.existing = self.sink, None, None
        self.state = state
        self.generation += 1
        self.next_segment = self.segments_held = self.in_flight = 0
        self.unacknowledged.clear()
        self.ended = self.reading = self.sealing = False
        return sink


@attrs.frozen
class ShareStatus:
    """What `status` shows of a share; `position` in bytes of ciphertext."""

    shnum: int
    server: str
    state: str
    position: int


class SharePusher:
    """Places the shares of one upload and pushes them. Tells the session's events to `tell`, and
    `on_settled` when every share is closed or given up."""

    log = Logger()

    def __init__(self, parameters: Parameters, pipeline: Pipeline, grid: Grid, policy: AllocationPolicy,
                 clock: IReactorTime, server_wait: float, random_below: Callable[[int], int],
                 tell: Callable[[object], None], on_settled: Callable[[], None]) -> None:
        self._parameters = parameters
        self._pipeline = pipeline
        self._grid = grid
        self._policy = policy
        self._clock = clock
        self._server_wait = server_wait
        self._random_below = random_below
        self._tell = tell
        self._on_settled = on_settled
        self._shares = [Share(shnum) for shnum in range(parameters.n)]
        self._in_flight_limit = min(IN_FLIGHT_PER_SHARE_MAX, IN_FLIGHT_MAX // parameters.n)
        self._storage_index: bytes | None = None
        self._durable = 0
        self._seal = self._publish = self._answered = self._ready_told = False
        self._stopped = self._settled = False
        self._pushed = 0
        self._update_call: IDelayedCall | None = None
        self._timers: dict[str, IDelayedCall] = {}
        self._watched: dict[bytes, Callable[[], None]] = {}
        self._growing: set[bytes] = set()
        self._cannot_grow: set[bytes] = set()
        self._pending: set[Deferred[Any]] = set()  # requests whose answer may bring sinks to let go of

    # -- what the session commands ---------------------------------------------------------------------

    def begin(self, storage_index: bytes) -> None:
        """Contact the servers and push whatever there is to push, from now on."""
        self._storage_index = storage_index
        self._start_timer("keep-alive", KEEP_ALIVE_INTERVAL, self._keep_alive)
        d = self._grid.when_connected(self._parameters.happy, self._server_wait)
        d.addCallback(lambda _count: self._place_all())
        d.addErrback(self._broken)

    def set_durable(self, durable: int) -> None:
        """So many bytes of ciphertext are durable in the spool."""
        self._durable = durable
        if self._storage_index is not None:
            self._soon()

    def blocks_changed(self) -> None:
        """The pipeline has more."""
        if self._storage_index is None:
            self._pipeline.needed_from(self._pipeline.encoded)  # nobody to push to yet: the spool has it
        else:
            self._soon()

    def seal(self) -> None:
        """The pipeline has a Completion and it is right: end every share."""
        self._seal = True
        self._soon()

    def publish(self) -> None:
        """Close every share as it becomes ready."""
        self._publish = True
        self._soon()

    def abandon(self) -> Deferred[None]:
        """Let go of every share. Fires when the servers have, or after ABANDON_PATIENCE."""
        sinks = [share.leave(ShareState.LOST) for share in self._shares]
        waiting = [*self._pending, *(sink.abort() for sink in sinks if sink is not None)]
        self.stop()
        done: Deferred[None] = Deferred()
        timer = self._clock.callLater(ABANDON_PATIENCE, done.callback, None)

        def answered(_results: object) -> None:
            if timer.active():
                timer.cancel()
                done.callback(None)

        DeferredList(waiting, consumeErrors=True).addCallback(answered)
        return done

    def stop(self) -> None:
        """Do nothing more; shares stay as they are."""
        self._stopped = True
        for name in self._timers:
            self._stop_timer(name)
        for cancel in self._watched.values():
            cancel()
        self._watched.clear()
        if self._update_call is not None and self._update_call.active():
            self._update_call.cancel()

    def status(self) -> list[ShareStatus]:
        """The shares that have, or had, a server."""
        return [
            ShareStatus(s.shnum, s.server.name, s.state.value, self._position(s))
            for s in self._shares if s.server is not None
        ]

    # -- placing -----------------------------------------------------------------------------------------

    def _place_all(self) -> None:
        if self._stopped or self._storage_index is None:
            return
        servers = {s.server_id: s for s in self._grid.servers_for(self._storage_index)}
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
        self._pending.add(d)

        def failed(failure: Failure) -> None:
            self._log_loss(server, failure)
            for share, generation in generations:
                if share.generation == generation and share.state is ShareState.ALLOCATING:
                    self._lose(share)

        d.addErrback(failed)
        d.addBoth(lambda _result: self._pending.discard(d))
        d.addErrback(self._broken)

    async def _allocated(self, server: StorageServer, generations: list[tuple[Share, int]]) -> None:
        if self._storage_index is None:
            raise ValueError("no storage index")
        allocation = await self._allocation(server, len(generations))
        if allocation.file_bound < self._durable:
            raise ServerRefused("has no room for the file as it is now")
        granted = await server.allocate(
            self._storage_index, [share.shnum for share, _generation in generations], allocation)
        unwanted = [self._take(share, generation, granted, allocation) for share, generation in generations]
        self._soon()
        await gatherResults([sink.abort() for sink in unwanted if sink is not None])

    async def _allocation(self, server: StorageServer, shares: int) -> Allocation:
        size = self._size
        if size is not None:
            return self._policy.exact(size)
        free = await server.free_space()
        return self._policy.bounded(self._durable, free, shares)

    @property
    def _size(self) -> int | None:
        if self._pipeline.completion is not None:
            return self._pipeline.completion.layout.geometry.size
        return self._parameters.size

    def _take(self, share: Share, generation: int, granted: Granted, allocation: Allocation) -> ShareSink | None:
        """Begin to push to what was granted for a share; returns the sink if nobody wants it any more."""
        sink, existing = granted.sinks.get(share.shnum), granted.existing.get(share.shnum)
        if self._stopped or share.generation != generation:
            return sink
        if sink is None and existing is None:
            self.log.info("storage server {server} refused share {shnum}",
                          server=share.server and share.server.name, shnum=share.shnum)
            self._lose(share)
        else:
            share.sink, share.existing = sink, existing
            share.file_bound = allocation.file_bound
            share.state = ShareState.PUSHING
        return None

    def _lose(self, share: Share) -> None:
        """The share's server failed it: find it another."""
        if self._stopped or share.state in (ShareState.LOST, ShareState.CLOSED):
            return
        if share.server is not None:
            share.tried.add(share.server.server_id)
        sink = share.leave(ShareState.LOST)
        if sink is not None:
            sink.abort()
        self._rehome([share])
        self._check_enough()
        self._soon()

    def _rehome(self, shares: Iterable[Share]) -> None:
        if self._storage_index is None:
            return
        servers = {s.server_id: s for s in self._grid.servers_for(self._storage_index)}
        for share in shares:
            load = Counter(s.server.server_id for s in self._shares if s.state in _LIVE and s.server is not None)
            home = new_home(list(servers), load, share.tried)
            if home is not None:
                self.log.info("share {shnum} goes to storage server {server}",
                              shnum=share.shnum, server=servers[home].name)
                self._allocate(servers[home], [share])

    def _check_enough(self) -> None:
        """Tell the session when the answer rule cannot be met any more."""
        live = {s.shnum: s.server.server_id for s in self._shares if s.state in _LIVE and s.server is not None}
        k, happy = self._parameters.k, self._parameters.happy
        have = happiness(live.values())
        if have < happy:
            self._tell(session.TooFewServers(have, happy))
        elif len(live) < k:
            self._tell(session.TooFewServers(len(live), k))
        else:
            return
        if self._publish and not self._stopped:
            self._start_timer("retry", RETRY_INTERVAL, self._retry)

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
            if share.server is not None and share.server.server_id == server.server_id and share.state in _LIVE:
                self._lose(share)

    def _log_loss(self, server: StorageServer, failure: Failure) -> None:
        # only the kind of failure: its text may quote arguments
        self.log.info("storage server {server} failed: {kind}", server=server.name, kind=failure.type.__name__)

    # -- pushing -----------------------------------------------------------------------------------------

    def _soon(self) -> None:
        """Look at everything once in this turn of the reactor, however much has changed."""
        if not self._stopped and self._update_call is None:
            self._update_call = self._clock.callLater(0, self._update)

    def _update(self) -> None:
        self._update_call = None
        for share in self._shares:
            self._pump(share)
        self._forget_old_blocks()
        position = rule_position(
            {s.shnum: (s.server.server_id, self._position(s))
             for s in self._shares if s.state in _HOLDS_BLOCKS and s.server is not None},
            self._parameters.k, self._parameters.happy)
        if position != self._pushed:
            self._pushed = position
            self._tell(session.PushedTo(position))
        self._grow_where_due()
        if self._seal:
            self._end_shares()

    def _position(self, share: Share) -> int:
        """Bytes of ciphertext whose blocks the server has."""
        if share.existing is not None or share.state in (ShareState.READY, ShareState.PUBLISHING, ShareState.CLOSED):
            return self._durable
        size = self._pipeline.segment_size
        return 0 if size is None else min(share.segments_held * size, self._durable)

    def _forget_old_blocks(self) -> None:
        waiting = [s for s in self._shares
                   if s.state in (ShareState.ALLOCATING, ShareState.UNPLACED)
                   or (s.state is ShareState.PUSHING and s.existing is None)]
        needed = min((s.next_segment for s in waiting), default=self._pipeline.segments)
        if self._pipeline.full:
            # The slow must not hold up the rest: what enough shares have taken, the others read again.
            taken = rule_position(
                {s.shnum: (s.server.server_id, self._pipeline.segments if s.existing is not None else s.next_segment)
                 for s in self._shares if s.state in _HOLDS_BLOCKS and s.server is not None},
                self._parameters.k, self._parameters.happy)
            needed = max(needed, taken)
        self._pipeline.needed_from(needed)

    def _pump(self, share: Share) -> None:
        """Hand the share's sink as much as may be in flight."""
        if share.state is not ShareState.PUSHING or share.sink is None or share.reading:
            return
        while share.in_flight < self._in_flight_limit or not share.in_flight:
            blocks, size = self._next_blocks(share)
            final = self._pipeline.completion is not None
            if blocks and (size >= WRITE_TARGET or final or not share.in_flight):
                self._write_blocks(share, blocks, size)
            elif blocks:
                return  # more will come into this write while others are under way
            elif self._behind(share):
                self._read_block(share)
                return
            else:
                break
        if self._seal and self._has_all_blocks(share) and not share.ended:
            self._write_end(share)

    def _next_blocks(self, share: Share) -> tuple[list[bytes], int]:
        blocks: list[bytes] = []
        size, segment = 0, share.next_segment
        while segment < self._pipeline.segments and size < WRITE_TARGET and self._fits(share, segment):
            block = self._pipeline.block(segment, share.shnum)
            if block is None:
                break
            blocks.append(block)
            size += len(block)
            segment += 1
        return blocks, size

    def _fits(self, share: Share, segment: int) -> bool:
        size = self._pipeline.segment_size
        if size is None:
            return False
        end = (segment + 1) * size
        if self._size is not None:
            end = min(end, self._size)
        return end <= share.file_bound

    def _behind(self, share: Share) -> bool:
        return share.next_segment < self._pipeline.segments and self._fits(share, share.next_segment)

    def _has_all_blocks(self, share: Share) -> bool:
        completion = self._pipeline.completion
        return (completion is not None and share.next_segment == completion.layout.geometry.num_segments
                and share.file_bound >= completion.layout.geometry.size)

    def _write_blocks(self, share: Share, blocks: list[bytes], size: int) -> None:
        segment_size = self._pipeline.segment_size
        if segment_size is None:
            raise ValueError("blocks without a segment size")
        offset = DATA_OFFSET + share.next_segment * (segment_size // self._parameters.k)
        share.next_segment += len(blocks)
        self._write(share, offset, blocks[0] if len(blocks) == 1 else b"".join(blocks), size)

    def _write(self, share: Share, offset: int, data: bytes, size: int) -> None:
        if share.sink is None:
            raise ValueError("no sink")
        share.in_flight += size
        share.unacknowledged.append((size, share.next_segment))
        self._ask(share, share.sink.write(offset, data), self._acknowledged)

    def _acknowledged(self, share: Share) -> None:
        size, segments = share.unacknowledged.popleft()
        share.in_flight -= size
        share.segments_held = segments

    def _ask(self, share: Share, d: Deferred[None], then: Callable[[Share], None]) -> None:
        """Carry on with `then` when the server has done it, unless the share has moved on; lose the share
        if the server fails."""
        generation = share.generation

        def done(_result: None) -> None:
            if share.generation == generation and not self._stopped:
                then(share)
                self._soon()

        def failed(failure: Failure) -> None:
            if share.generation == generation and not self._stopped and share.server is not None:
                self._log_loss(share.server, failure)
                self._lose(share)

        d.addCallbacks(done, failed)
        d.addErrback(self._broken)

    def _read_block(self, share: Share) -> None:
        share.reading = True
        generation, segment = share.generation, share.next_segment

        def got(block: bytes) -> None:
            if share.generation == generation and not self._stopped:
                share.reading = False
                self._write_blocks(share, [block], len(block))
                self._soon()

        self._pipeline.reencode(segment, share.shnum).addCallback(got).addErrback(self._broken)

    def _write_end(self, share: Share) -> None:
        completion = self._pipeline.completion
        if completion is None:
            raise ValueError("not complete")
        share.ended = True
        trailer, start = completion.trailer(share.shnum), completion.layout.trailer_offset
        for i in range(0, len(trailer), WRITE_TARGET):
            piece = trailer[i:i + WRITE_TARGET]
            self._write(share, start + i, piece, len(piece))
        header = completion.layout.header()
        self._write(share, 0, header, len(header))

    def _keep_alive(self) -> None:
        """Write again what every share begins with, before servers think the share was forgotten."""
        self._start_timer("keep-alive", KEEP_ALIVE_INTERVAL, self._keep_alive)
        for share in self._shares:
            if share.state is ShareState.PUSHING and share.sink is not None and not share.in_flight:
                self._write(share, 0, HEADER_VERSION, len(HEADER_VERSION))

    # -- growing -----------------------------------------------------------------------------------------

    def _grow_where_due(self) -> None:
        """Move shares whose allocation is becoming too small to a larger one, on few servers at a time."""
        size, growing_max = self._size, max(1, self._parameters.n - self._parameters.happy)
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
                for share in shares:
                    if share.next_segment < self._pipeline.segments and not self._fits(share, share.next_segment):
                        self._lose(share)
            elif (self._policy.growth_due(self._durable, bound) and server_id not in self._growing
                    and len(self._growing) < growing_max):
                self._grow(shares, bound)

    def _grow(self, shares: list[Share], bound: int) -> None:
        server = shares[0].server
        if server is None:
            raise ValueError("no server")
        self._growing.add(server.server_id)
        generations = [(share, share.generation) for share in shares]

        async def grow() -> None:
            allocation = await self._allocation(server, len(shares))
            still = [share for share, generation in generations if share.generation == generation]
            if allocation.file_bound <= bound:
                self.log.info("storage server {server} has no room for {shares} larger shares",
                              server=server.name, shares=len(shares))
                self._cannot_grow.add(server.server_id)
            elif still and not self._stopped:
                await self._move(still)

        def failed(failure: Failure) -> None:
            self._log_loss(server, failure)
            for share, generation in generations:
                if share.generation == generation:
                    self._lose(share)

        def done(_result: None) -> None:
            self._growing.discard(server.server_id)
            self._soon()

        Deferred.fromCoroutine(grow()).addErrback(failed).addCallback(done).addErrback(self._broken)

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
            if still and not self._stopped:
                self._allocate(server, still)

        d: Deferred[Any] = gatherResults([sink.abort() for sink in sinks if sink is not None])
        return d.addCallback(aborted)

    # -- ending ------------------------------------------------------------------------------------------

    def _end_shares(self) -> None:
        for share in self._shares:
            if share.state is ShareState.PUSHING and not share.sealing:
                if share.existing is not None:
                    share.sealing = True
                    self._ask(share, Deferred.fromCoroutine(self._verify_existing(share)), self._closed)
                elif share.ended and not share.unacknowledged and share.sink is not None:
                    share.sealing = True
                    self._ask(share, share.sink.seal(), self._became_ready)
            elif share.state is ShareState.READY and self._publish and share.sink is not None:
                share.state = ShareState.PUBLISHING
                self._ask(share, share.sink.publish(), self._closed)
        self._check_ready()
        self._check_closed()
        self._check_settled()

    def _check_ready(self) -> None:
        ready = {s.shnum: s.server.server_id for s in self._shares
                 if s.state in (ShareState.READY, ShareState.CLOSED) and s.server is not None}
        if not self._ready_told and rule_met(ready, self._parameters.k, self._parameters.happy):
            self._ready_told = True
            self._tell(session.SharesReady())

    def _became_ready(self, share: Share) -> None:
        share.state = ShareState.READY

    def _closed(self, share: Share) -> None:
        share.state = ShareState.CLOSED
        share.sink = None
        self._stop_timer("grace")  # it runs from the last share closed

    def _check_closed(self) -> None:
        if not self._publish or self._answered:
            return
        if all(s.state is ShareState.CLOSED for s in self._shares):
            self._answer()
        elif self._closed_enough() and not self._timer_runs("grace"):
            self._start_timer("grace", CLOSE_GRACE, self._answer)

    def _closed_enough(self) -> bool:
        closed = {s.shnum: s.server.server_id for s in self._shares
                  if s.state is ShareState.CLOSED and s.server is not None}
        return rule_met(closed, self._parameters.k, self._parameters.happy)

    def _answer(self) -> None:
        if not self._answered:
            self._answered = True
            self._tell(session.AnswerRuleMet())
            self._soon()

    async def _verify_existing(self, share: Share) -> None:
        """Whether a share that was there before is really a share of this file: its UEB and a random block."""
        completion, existing = self._pipeline.completion, share.existing
        if completion is None or existing is None:
            raise ValueError("nothing to verify")
        if await existing.read_ueb() != completion.ueb:
            raise ServerRefused("has another file's share at this storage index")
        geometry = completion.layout.geometry
        segment = self._random_below(geometry.num_segments)
        last = segment == geometry.num_segments - 1
        length = geometry.padded_tail_size // geometry.k if last else geometry.block_size
        block = await existing.read_block(segment, geometry.block_size, length)
        if block_hash(block) != completion.block_hash(segment, share.shnum):
            raise ServerRefused("has a corrupt share of this file")

    def _check_settled(self) -> None:
        if self._answered and not self._settled and all(
                s.state in (ShareState.CLOSED, ShareState.LOST) for s in self._shares):
            self._settled = True
            missing = [s.shnum for s in self._shares if s.state is ShareState.LOST]
            if missing:
                self.log.warn("shares {missing} could not be placed; a repair will make them", missing=missing)
            self.stop()
            self._on_settled()

    def _start_timer(self, name: str, delay: float, function: Callable[[], None]) -> None:
        self._stop_timer(name)
        if not self._stopped:
            self._timers[name] = self._clock.callLater(delay, function)

    def _stop_timer(self, name: str) -> None:
        if self._timer_runs(name):
            self._timers[name].cancel()

    def _timer_runs(self, name: str) -> bool:
        return name in self._timers and bool(self._timers[name].active())

    def _broken(self, failure: Failure) -> None:
        """A bug or the spool: nothing a server did. The upload cannot go on."""
        if not self._stopped:
            self._tell(session.Failed(fault_of(failure.value)))
