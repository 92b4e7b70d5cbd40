"""Homes for the shares of one upload: asks storage servers for room, finds others when they fail; protocol.txt §8."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper.events import StagingEnough, TooFewServers, TooFewShares
from helper.in_flight import InFlight
from helper.interfaces import SIZE_MAX
from helper.layout import DATA_OFFSET
from helper.parameters import Parameters
from helper.patience import Patience
from helper.pipeline import Pipeline
from helper.placement import (
    Allocation,
    AllocationPolicy,
    by_rank,
    first_placement,
    happiness,
    new_home,
    rule_met,
    staging_first,
)
from helper.shares import ALL_SEGMENTS, LIVE, Share, ShareState
from helper.sinks import CONNECTION_LOST, AbsentServer, Granted, Grid, ServerRefused, ShareSink, StorageServer, Target
from helper.stalls import StallWatch

#: A server that comes and goes is asked again only so often; seconds.
RETURN_INTERVAL = 1.0
#: While too few servers are left to complete a publication, they are looked for this often; seconds.
RETRY_INTERVAL = 5
#: The same once that was in vain so many times: servers may be gone for days.
RETRIES_SOON, RETRY_INTERVAL_LATER = 60, 60

_ORDER_TAG = b"tahoe-stream order of servers v1:"


class ShareHomes:
    """Keeps every share of `shares` on some server, as far as there are any.

    Calls `on_change` when a share can be pushed or has moved, `tell` with StagingEnough when that changes and with
    TooFewServers or TooFewShares when the answer rule cannot be met, `count` with what adds to counters (bytes that
    must be pushed again after a server was away, shares lost and re-homed, servers that stalled), and `on_broken`
    with a Failure that no server is to blame for.
    """

    log = Logger()

    def __init__(self, parameters: Parameters, shares: list[Share], pipeline: Pipeline, grid: Grid,
                 policy: AllocationPolicy, clock: IReactorTime, in_flight: InFlight, staging_secret: bytes,
                 patience: Patience, on_change: Callable[[], None], on_staging: Callable[[bytes], Deferred[None]],
                 tell: Callable[[object], None], count: Callable[[str, int], None],
                 on_broken: Callable[[Failure], None]) -> None:
        self._parameters = parameters
        self._shares = shares
        self._pipeline = pipeline
        self._grid = grid
        self._policy = policy
        self._clock = clock
        self._on_change = on_change
        self._on_staging = on_staging
        self._tell = tell
        self._count = count
        self._on_broken = on_broken
        self._target = Target(staging_secret)
        # Until the storage index is known and if the client says nothing: any order will do, another for each upload.
        self._any_order = hashlib.sha256(_ORDER_TAG + staging_secret).digest()[:16]
        self._ranked: list[bytes] = []  # server IDs, as the client wants them
        self._homes_before: Mapping[int, bytes] = {}  # share number → server ID, of an earlier run
        self._sealed_before: Mapping[int, bytes] = {}
        self.believed: dict[int, int] = {}  # of shares that are not found again yet; see return_to
        self._staged_on: set[bytes] = set()  # servers (IDs) of which it is recorded that they may have staged shares
        #: Servers (IDs) that may keep staged shares which are not to be published.
        self.disturbed: set[bytes] = set()
        self._staging_enough: bool | None = None  # see StagingEnough; None before shares are placed
        self._known_index: bytes | None = None  # perhaps not told to servers yet
        self._awaited: set[Deferred[StorageServer | None]] = set()  # servers that are away
        self._returns: dict[bytes, float] = {}  # when servers (IDs) were there again
        self.durable = 0
        self.stopped = False
        self._patience = patience
        self.calls = StallWatch(shares, patience, clock, in_flight.answers,
                                lambda server: not self._can_do_without(server), self._server_stalled)
        self.placed = False
        self.must_complete = False  # publication has begun: never give up
        self._watched: dict[bytes, Callable[[], None]] = {}
        self._retry_call: IDelayedCall | None = None
        self._retries = 0
        self._too_few = False  # there were too few servers to begin with
        self.pending: set[Deferred[Any]] = set()  # requests whose answer may bring sinks to let go of

    def rank(self, servers: list[bytes]) -> None:
        """In which order the client wants servers (IDs) to be asked, from now on."""
        self._ranked = servers

    def return_to(self, homes: Mapping[int, bytes], sealed: Mapping[int, bytes], staged_on: frozenset[bytes],
                  believed: Mapping[int, int]) -> None:
        """Shares (by number) were on these servers (IDs) in an earlier run of the helper, and may still be. `sealed`
        were prepared there when it was decided to publish them. `staged_on`: wherever anything may be staged.
        `believed`: how much (bytes of ciphertext) of what they then hold of a share is believed; all, if it is not in
        it."""
        self.believed = dict(believed)
        self._homes_before, self._sealed_before = homes, sealed
        self._staged_on |= staged_on
        self.disturbed |= staged_on

    def use_storage_index(self, storage_index: bytes) -> None:
        """All servers may be told it: those that wait for it get their shares now. No-op the second time."""
        if self._target.storage_index is None:
            self._target = Target(self._target.staging_secret, storage_index)
            if waiting := [share for share in self._shares if share.state is ShareState.WAITING]:
                self._deal(waiting)
                self._check_enough()

    def forget_storage_index(self) -> None:
        """Another upload has it now, and must find its places on the servers free."""
        self._target, self._known_index = Target(self._target.staging_secret), None
        for share in self._shares:
            if share.state in LIVE and share.server is not None and not share.server.stages:
                sink = share.leave(ShareState.WAITING)
                if sink is not None:
                    sink.abort()
        self._on_change()

    def seal(self, storage_index: bytes) -> None:
        """The storage index is known. It is used now only if shares on staging servers do not meet the answer
        rule alone: until something is published, servers should not need to know it."""
        self._known_index = storage_index
        if self._staging_enough is False:  # before shares are placed it is not known; then see _check_staging
            self.use_storage_index(storage_index)

    def begin(self) -> None:
        """Find a home for every share, once enough servers are connected or have been waited for."""
        # What is to be placed was acknowledged: servers that are away, be it all of them, do not end it soon.
        d = self._grid.when_connected(self._parameters.happy, self._patience.needed)
        d.addCallback(lambda _count: self.place_all())
        d.addErrback(self._on_broken)

    def stop(self) -> None:
        """Do nothing more."""
        self.stopped = True
        self.calls.stop()
        if self._retry_call is not None and self._retry_call.active():
            self._retry_call.cancel()
        for cancel in self._watched.values():
            cancel()
        self._watched.clear()
        for waiting in list(self._awaited):
            waiting.cancel()

    def complete(self) -> None:
        """Publication has begun: never give up. Shares that were lost before find homes now, too."""
        self.must_complete = True
        if self.placed:
            self._check_enough()
        elif self._too_few:
            self.place_all()

    def let_go_of_absent(self) -> None:
        """Of what servers keep that are away, as soon as they are back. If this run does not live to see that, another
        will (leftovers.py)."""
        for share in self._shares:
            if share.state is ShareState.AWAY and share.server is not None:
                share.server.let_go(self._target, [share.shnum])

    # -- placing -----------------------------------------------------------------------------------------

    def place_all(self) -> None:
        if self.stopped:
            return
        servers = self._servers()
        self._too_few = len(servers) < self._parameters.happy and not self._homes_before and not self.must_complete
        if self._too_few:
            self._tell(TooFewServers(len(servers), self._parameters.happy))
            return
        before = {share: self._homes_before[share.shnum] for share in self._shares
                  if share.shnum in self._homes_before}
        self._allocate_all(servers, {share: s for share, s in before.items() if s in servers})
        self._await_all({share: s for share, s in before.items() if s not in servers})
        if new := [share for share in self._shares if share not in before]:
            self._deal(new)
        self.placed = True
        self._check_enough()

    def _await_all(self, homes: Mapping[Share, bytes]) -> None:
        """Let shares wait for servers that have them and are not connected."""
        for share, server_id in homes.items():
            share.leave(ShareState.ALLOCATING)
            share.server = AbsentServer(server_id)
        for server_id in dict.fromkeys(homes.values()):
            self._went_away(AbsentServer(server_id))

    def _servers(self) -> dict[bytes, StorageServer]:
        """Those that may be written to, in the order in which readers will ask them as far as that is known."""
        index = self._target.storage_index
        servers = {s.server_id: s for s in self._grid.servers_for(self._any_order if index is None else index)}
        order = list(servers) if index is not None else by_rank(list(servers), self._ranked)
        answering = [s for s in order if s not in self.calls.stalled]
        return {s: servers[s] for s in (answering if len(answering) >= self._parameters.happy else order)}

    def _deal(self, shares: list[Share]) -> None:
        """Give shares that have no home yet to the servers, staging ones first, those with fewest shares first."""
        servers = self._servers()
        if not servers:
            for share in shares:
                self.lose(share)
            return
        load = self._load(besides=shares)
        stages = {s for s, server in servers.items() if server.stages}
        chosen = staging_first(list(servers), stages, self._parameters.n)
        chosen.sort(key=lambda s: load.get(s, 0))
        self._allocate_all(servers, {shares[i]: s for i, s in first_placement(len(shares), chosen).items()})

    def _load(self, besides: Iterable[Share] = ()) -> Counter[bytes]:
        """How many shares each server has."""
        left_out = {share.shnum for share in besides}
        return Counter(s.server.server_id for s in self._shares
                       if s.state in LIVE and s.server is not None and s.shnum not in left_out)

    def _allocate_all(self, servers: Mapping[bytes, StorageServer], homes: Mapping[Share, bytes]) -> None:
        """Ask each server once for room for all its shares."""
        by_server: dict[bytes, list[Share]] = {}
        for share, server_id in homes.items():
            by_server.setdefault(server_id, []).append(share)
        for server_id, shares in by_server.items():
            self._allocate(servers[server_id], shares)

    def _allocate(self, server: StorageServer, shares: list[Share]) -> None:
        """Ask `server` for room for `shares`; each is pushed there, waits for the storage index that the server
        wants, or finds another home."""
        waiting = self._target.storage_index is None and not server.stages
        for share in shares:
            share.leave(ShareState.WAITING if waiting else ShareState.ALLOCATING)
            share.server = server
        if waiting:
            self._watch(server)
            return
        generations = [(share, share.generation) for share in shares]
        self._watch(server)
        d = Deferred.fromCoroutine(self._allocated(server, generations))
        self.pending.add(d)

        def lost(failure: Failure) -> None:
            for share, generation in generations:
                if share.generation == generation and share.state is ShareState.ALLOCATING:
                    self.failed(share, failure)

        # Later: a call on a dead connection fails at once, when other shares may not have been placed yet.
        d.addErrback(lambda failure: deferLater(self._clock, 0, lost, failure))
        d.addBoth(lambda _result: self.pending.discard(d))
        d.addErrback(self._on_broken)

    async def _allocated(self, server: StorageServer, generations: list[tuple[Share, int]]) -> None:
        if server.stages and server.server_id not in self._staged_on:
            # First, so that whatever becomes of us is removed there in the end.
            await self._on_staging(server.server_id)
            self._staged_on.add(server.server_id)
            generations = [(share, generation) for share, generation in generations if share.generation == generation]
            if self.stopped or not generations:
                return
        for share, _generation in generations:
            self.calls.asked(share, "allocate")
        allocation = await self.allocation(server, len(generations))
        if allocation.file_bound < self.durable:
            raise ServerRefused("has no room for the file as it is now")
        if self.stopped:
            return
        granted = await server.allocate(
            self._target, [share.shnum for share, _generation in generations], allocation)
        unwanted = [self._take(share, generation, granted, allocation) for share, generation in generations]
        self._on_change()
        await gatherResults([sink.abort() for sink in unwanted if sink is not None])

    async def allocation(self, server: StorageServer, shares: int) -> Allocation:
        """What to ask a server for that takes so many shares, as far as the size of the file is known."""
        size = self.size
        if server.stages:
            return Allocation(0 if size is None else self._policy.exact(size).share_size, SIZE_MAX)
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
        self.calls.answered(share)
        if sink is None and existing is None:
            self.log.info("storage server {server} refused share {shnum}",
                          server=share.server and share.server.name, shnum=share.shnum)
            self.lose(share)
        else:
            share.sink, share.existing = sink, existing
            share.file_bound = allocation.file_bound
            share.state = ShareState.PUSHING
            if sink is not None:
                self._go_on(share, sink)
        return None

    def _go_on(self, share: Share, sink: ShareSink) -> None:
        """Continue a share where the server has it from before."""
        size = self._pipeline.segment_size
        block_size = 0 if size is None else size // self._parameters.k
        before, share.segments_before = share.segments_before, 0
        if sink.prepared and not self._sealed_by_us(share):
            # The `finish` of an earlier run was not decided, and the file may have grown since: other bytes, even if
            # not more of them in this share.
            self._stage_anew(share)
        elif sink.prepared:
            share.next_segment = share.segments_held = ALL_SEGMENTS
            share.ended = True
        elif not self._begun_by_us(share, sink):
            self._stage_anew(share)
        elif size is not None:
            # What we have not made durable we have not pushed, whatever the server says.
            held = min(max(0, sink.held - DATA_OFFSET) // block_size, self.durable // size)
            share.next_segment = share.segments_held = held
            self._count("bytes_pushed_again", max(0, before - held) * block_size)

    def _begun_by_us(self, share: Share, sink: ShareSink) -> bool:
        """Whether what a server holds of a share are blocks of this file. The `finish` of an earlier run, if it was not
        decided, has perhaps ended the share; where the file has grown since, that is not what the blocks are now."""
        if share.server is None or share.server.server_id in share.known_on:
            return True
        server_id, claimed, size = share.server.server_id, sink.held - DATA_OFFSET, self._pipeline.segment_size
        if claimed > 0:
            if self._homes_before.get(share.shnum) != server_id:
                return False
            believed = self.believed.get(share.shnum)
            if believed is not None and (size is None or claimed > believed // size * (size // self._parameters.k)):
                return False
        share.known_on.add(server_id)
        self.believed.pop(share.shnum, None)
        return True

    def _sealed_by_us(self, share: Share) -> bool:
        """Whether what its server has prepared is of the file that is published: prepared for that, by this run or when
        an earlier one decided. What was prepared for an earlier `finish`, and not seen since, is not."""
        server_id = None if share.server is None else share.server.server_id
        return server_id in share.sealed_on or (
            server_id is not None and self._sealed_before.get(share.shnum) == server_id)

    def _leave(self, share: Share, state: ShareState) -> ShareSink | None:
        if share.server is not None and share.server.stages:
            self.disturbed.add(share.server.server_id)
        return share.leave(state)

    def _stage_anew(self, share: Share) -> None:
        """Let the server remove the share, and begin it again there: once, whatever the server says then."""
        server = share.server
        if server is None or share.staged_anew_on == server.server_id:
            self.lose(share)
        else:
            share.staged_anew_on = server.server_id
            self.move([share])

    def _server_stalled(self, share: Share, needed: bool) -> None:
        """The share's server does not answer. While it is `needed` it is waited for, and those who wait are told."""
        if share.server is not None and share.server.server_id not in self.calls.stalled:
            self._count("servers_stalled", 1)
            self.calls.stalled.add(share.server.server_id)
        if not needed:
            self.lose(share)
        elif self.must_complete:
            self._check_enough()

    def failed(self, share: Share, failure: Failure) -> None:
        """The share's server did not do what it was asked, or is gone."""
        if share.server is None or self.stopped:
            return
        self.log_loss(share.server, failure)
        if share.server.stages and failure.check(*CONNECTION_LOST):
            self._went_away(share.server)
        else:
            self.lose(share)

    def lose(self, share: Share, elsewhere: bool = True) -> None:
        """The share's server failed it: find it another (or not, if that would not help)."""
        if self.stopped or share.state in (ShareState.LOST, ShareState.CLOSED):
            return
        if share.server is not None:
            share.tried.add(share.server.server_id)
            self._count("shares_lost", 1)
        sink = self._leave(share, ShareState.LOST)
        if sink is not None:
            sink.abort()
        elif share.server is not None:
            share.server.let_go(self._target, [share.shnum])
        if elsewhere:
            self._rehome([share])
        self._check_enough()
        self._on_change()

    def _rehome(self, shares: Iterable[Share]) -> None:
        servers = self._servers()
        stages = {s for s, server in servers.items() if server.stages}
        ordered = staging_first(list(servers), stages, len(servers))
        for share in shares:
            load = self._load()
            # While there are fewer than `happy`, only another server helps: a share is not spent on one of them.
            enough = len(load) >= self._parameters.happy
            home = new_home([s for s in ordered if enough or s not in load], load, share.tried)
            if home is not None:
                self.log.info("share {shnum} goes to storage server {server}",
                              shnum=share.shnum, server=servers[home].name)
                self._count("shares_rehomed", 1)
                self._allocate(servers[home], [share])

    def _check_enough(self) -> None:
        """Tell the session when the answer rule cannot be met any more."""
        self._check_staging()
        # Once the answer must come, those who wait for it are told of servers that are away too.
        counted = LIVE - {ShareState.AWAY} if self.must_complete else LIVE
        live = {s.shnum: s.server.server_id for s in self._shares if s.state in counted and s.server is not None
                and (s.state is ShareState.CLOSED or not self.must_complete
                     or s.server.server_id not in self.calls.stalled)}
        k, happy = self._parameters.k, self._parameters.happy
        have = happiness(live.values())
        if have < happy:
            self._tell(TooFewServers(have, happy))
        elif len(live) < k:
            self._tell(TooFewShares(len(live), k))
        else:
            self._retries = 0
            return
        if self.must_complete and not self.stopped and not (self._retry_call and self._retry_call.active()):
            interval = RETRY_INTERVAL if self._retries < RETRIES_SOON else RETRY_INTERVAL_LATER
            self._retry_call = self._clock.callLater(interval, self._retry)

    def _check_staging(self) -> None:
        """Tell the session when shares on staging servers can, or cannot any more, meet the answer rule alone."""
        staged = {s.shnum: s.server.server_id for s in self._shares
                  if s.state in LIVE and s.server is not None and s.server.stages}
        enough = rule_met(staged, self._parameters.k, self._parameters.happy)
        if enough is not self._staging_enough:
            self._staging_enough = enough
            self._tell(StagingEnough(enough))
            if not enough and self._known_index is not None:
                self.use_storage_index(self._known_index)

    def _retry(self) -> None:
        self._retries += 1
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
        if server.stages or not self._can_do_without(server):
            self._went_away(server)
            return
        for share in self._shares_on(server):
            self.lose(share)

    def _can_do_without(self, server: StorageServer) -> bool:
        """Whether there are enough servers without this one."""
        others = {*self._load(), *self._servers()} - self.calls.stalled - {server.server_id}
        return len(others) >= self._parameters.happy

    def _shares_on(self, server: StorageServer) -> list[Share]:
        return [share for share in self._shares if share.state in LIVE and share.server is not None
                and share.server.server_id == server.server_id]

    def _went_away(self, server: StorageServer) -> None:
        """A server that keeps its shares is gone: wait for it a while, then find other homes for them."""
        if (cancel := self._watched.pop(server.server_id, None)) is not None:
            cancel()
        shares = [s for s in self._shares_on(server) if s.state not in (ShareState.AWAY, ShareState.CLOSED)]
        if not shares or self.stopped:
            return
        for share in shares:
            before = share.segments_held
            self._leave(share, ShareState.AWAY)
            share.segments_before = before
        self._await(server, [(share, share.generation) for share in shares], self._patience.away)
        if self.placed:
            self._check_enough()
        self._on_change()

    def _await(self, server: StorageServer, generations: list[tuple[Share, int]], patience: float) -> None:
        """Let shares go on on `server` if it comes back in time, and find other homes if not."""
        waiting = self._grid.when_back(server.server_id, patience)
        self._awaited.add(waiting)

        def over(back: StorageServer | None) -> None:
            self._awaited.discard(waiting)
            still = [(share, generation) for share, generation in generations if share.generation == generation]
            if self.stopped or not still:
                return
            if back is not None:
                self._returned(back, still)
            elif patience < self._patience.needed and not self._can_do_without(server):
                self._await(server, still, self._patience.needed)
            else:
                self.log.info("storage server {server} has not come back", server=server.name)
                for share, _generation in still:
                    self.lose(share)
            self._on_change()

        waiting.addCallback(over).addErrback(self._on_broken)

    def _returned(self, server: StorageServer, generations: list[tuple[Share, int]]) -> None:
        """Let shares go on on a server that is there again; but not at once if it was only just there."""
        now = self._clock.seconds()
        last = self._returns.get(server.server_id)
        delay = RETURN_INTERVAL if last is not None and abs(now - last) < RETURN_INTERVAL else 0.0
        self._returns[server.server_id] = now + delay

        def again() -> None:
            still = [share for share, generation in generations if share.generation == generation]
            if still and not self.stopped:
                self._allocate(server, still)
                if self.placed:  # while it was away it was not known whether it stages
                    self._check_enough()

        if delay:
            deferLater(self._clock, delay, again).addErrback(self._on_broken)
        else:
            again()

    def log_loss(self, server: StorageServer, failure: Failure) -> None:
        # only the kind of failure: its text may quote arguments
        self.log.info("storage server {server} failed: {kind}", server=server.name, kind=type(failure.value).__name__)

    def move(self, shares: list[Share]) -> Deferred[None]:
        """Give up the allocations of shares on one server and ask for new ones there; they start again.

        Fires when the server has let go of the old ones; never, if it hangs, and then they find other homes."""
        server = shares[0].server
        if server is None:
            raise ValueError("no server")
        sinks = [self._leave(share, ShareState.ALLOCATING) for share in shares]
        generations = [share.generation for share in shares]
        for share in shares:
            self.calls.asked(share, "abort")

        def aborted(_results: object) -> None:
            still = [s for s, g in zip(shares, generations, strict=True) if s.generation == g]
            for share in still:
                self.calls.answered(share)
            if still and not self.stopped:
                self._allocate(server, still)

        d: Deferred[Any] = gatherResults([sink.abort() for sink in sinks if sink is not None])
        return d.addCallback(aborted)

    def fits(self, share: Share, segment: int) -> bool:
        size = self._pipeline.segment_size
        if size is None:
            return False
        end = (segment + 1) * size
        if self.size is not None:
            end = min(end, self.size)
        return end <= share.file_bound
