"""Shares of one upload on their way to storage servers.

Every share is a cursor on the spool: shares that keep up take blocks from memory, one that fell behind
or found a new home reads the spool at its own pace. No share waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from allmydata.util.hashutil import block_hash
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper.errors import fault_of
from helper.events import AnswerRuleMet, Failed, PushedTo, SharesReady
from helper.growth import ShareGrowth
from helper.in_flight import InFlight
from helper.layout import DATA_OFFSET
from helper.parameters import Parameters
from helper.patience import Patience
from helper.pipeline import Pipeline
from helper.placement import AllocationPolicy, rule_met, rule_position
from helper.placing import ShareHomes
from helper.push_rate import PushRate
from helper.shares import HOLDS_BLOCKS, LIVE, Share, ShareState, ShareStatus
from helper.sinks import ExistingShare, Grid, ServerRefused, ShareSink
from helper.stalls import ROOM

T = TypeVar("T")

MiB = 1024 * 1024

#: Blocks are gathered into writes of about this size: Foolscap's cost is per message. With many shares into smaller
#: ones, or too much of an upload would be in memory.
WRITE_TARGET = 1_000_000
#: No write is larger than this: a staging server takes 4 MiB (protocol.txt §16.1), and some blocks are larger.
WRITE_MOST = 2 * MiB
#: Bytes of one upload that may be in flight to all servers together (and one write more to each), and to one at most.
IN_FLIGHT_MAX = 12 * MiB
IN_FLIGHT_PER_SHARE_MAX = 3 * MiB
#: When there is no room for blocks of all uploads, those are let go of that a share has not taken for so long, in
#: seconds: its server hangs, or is much slower than others. It reads them from the spool in the end.
SHORT_PATIENCE = 1.0
#: The answer waits this long (seconds) after the last share closed, for the stragglers (protocol.txt §6.4).
CLOSE_GRACE = 0.05
#: A stock server drops a share that was not written to for 30 minutes; seconds.
KEEP_ALIVE_INTERVAL = 600
#: How long giving an upload up waits for servers that do not answer; seconds.
ABANDON_PATIENCE = 5


class SharePusher:
    """Places the shares of one upload and pushes them.

    Tells the session's events to `tell`; `on_homes` which server (ID) each share is on, and of which not all is
    believed that is there from earlier runs (see ShareHomes.return_to), whenever that changes;
    `on_staging` of a server (ID) before it is asked to stage anything, which waits until that fires; `on_progress` when
    a share has come further than it ever was; `on_settled` which shares were given up when all others are closed; and
    `count` what adds to counters.
    """

    log = Logger()

    def __init__(self, parameters: Parameters, pipeline: Pipeline, grid: Grid, policy: AllocationPolicy,
                 clock: IReactorTime, in_flight: InFlight, staging_secret: bytes, patience: Patience,
                 random_below: Callable[[int], int], tell: Callable[[object], None],
                 on_homes: Callable[[Mapping[int, bytes], Mapping[int, int]], None],
                 on_staging: Callable[[bytes], Deferred[None]], on_progress: Callable[[], None],
                 count: Callable[[str, int], None], on_settled: Callable[[list[int]], None]) -> None:
        self._parameters = parameters
        self._pipeline = pipeline
        self._clock = clock
        self._in_flight = in_flight
        self._patience = patience
        self._random_below = random_below
        self._tell = tell
        self._on_homes = on_homes
        self._on_progress = on_progress
        self._on_settled = on_settled
        self._shares = [Share(shnum) for shnum in range(parameters.n)]
        self._homes = ShareHomes(parameters, self._shares, pipeline, grid, policy, clock, in_flight, staging_secret,
                                 patience, self._soon, on_staging, tell, count, self._broken)
        self._growth = ShareGrowth(parameters, self._shares, pipeline, policy, self._homes, self._soon, self._broken)
        self._in_flight_limit = min(IN_FLIGHT_PER_SHARE_MAX, IN_FLIGHT_MAX // parameters.n)
        self._write_target = min(WRITE_TARGET, self._in_flight_limit)
        self._begun = self._publish = self._answered = self._ready_told = False
        self._storage_index: bytes | None = None  # once shares are to be sealed
        self._stopped = self._settled = False
        self._durable = self._pushed = 0
        self._rate = PushRate()
        self._told_homes: Mapping[int, bytes] = {}
        self._told_believed: Mapping[int, int] = {}
        self._update_call: IDelayedCall | None = None
        self._timers: dict[str, IDelayedCall] = {}

    # -- what the session commands ---------------------------------------------------------------------

    def rank(self, servers: list[bytes]) -> None:
        """In which order (of server IDs) the client wants servers to be asked."""
        self._homes.rank(servers)

    def return_to(self, homes: Mapping[int, bytes], sealed: Mapping[int, bytes], staged_on: frozenset[bytes],
                  believed: Mapping[int, int]) -> None:
        """See ShareHomes."""
        self._told_homes, self._told_believed = homes, dict(believed)
        self._homes.return_to(homes, sealed, staged_on, believed)

    @property
    def sealed(self) -> Mapping[int, bytes]:
        """On which server (ID) each share is complete that is staged and not published."""
        return {s.shnum: s.server.server_id for s in self._shares
                if s.state in (ShareState.READY, ShareState.PUBLISHING) and s.server is not None and s.server.stages}

    @property
    def disturbed(self) -> frozenset[bytes]:
        """See ShareHomes."""
        return frozenset(self._homes.disturbed)

    def use_storage_index(self, storage_index: bytes) -> None:
        """Servers that want the storage index first may be told it."""
        self._homes.use_storage_index(storage_index)

    def forget_storage_index(self) -> None:
        """Servers that were told it let go of their shares, and wait until it is told again."""
        self._homes.forget_storage_index()

    def begin(self) -> None:
        """Contact the servers and push whatever there is to push, from now on."""
        self._begun = True
        self._pipeline.call_when_short(self._soon)
        self._start_timer("keep-alive", KEEP_ALIVE_INTERVAL, self._keep_alive)
        self._homes.begin()

    def set_durable(self, durable: int) -> None:
        """So many bytes of ciphertext are durable in the spool."""
        self._durable = self._homes.durable = durable
        if self._begun:
            self._soon()

    def blocks_changed(self) -> None:
        """The pipeline has more, or will have none for now."""
        if self._begun:
            self._soon()
        else:
            self._pipeline.needed_from(self._pipeline.encoded)  # nobody to push to yet: the spool has it

    def seal(self, storage_index: bytes) -> None:
        """The pipeline has a Completion and it is right: end every share."""
        self._storage_index = storage_index
        self._homes.seal(storage_index)
        self._soon()

    def publish(self) -> None:
        """Close every share as it becomes ready."""
        self._publish = True
        if self._storage_index is not None:
            self._homes.use_storage_index(self._storage_index)
        self._homes.complete()
        self._soon()

    def abandon(self) -> Deferred[None]:
        """Let go of every share. Fires when the servers have, or after ABANDON_PATIENCE."""
        self._homes.let_go_of_absent()
        sinks = [share.leave(ShareState.LOST) for share in self._shares]
        waiting = [*self._homes.pending, *(sink.abort() for sink in sinks if sink is not None)]
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
        self._in_flight.forget(self._soon)
        for name in self._timers:
            self._stop_timer(name)
        self._homes.stop()
        if self._update_call is not None and self._update_call.active():
            self._update_call.cancel()

    def status(self) -> list[ShareStatus]:
        """The shares that have, or had, a server."""
        return [
            ShareStatus(s.shnum, s.server.name, s.state.value, self._position(s))
            for s in self._shares if s.server is not None
        ]

    # -- pushing -----------------------------------------------------------------------------------------

    def _soon(self) -> None:
        """Look at everything once in this turn of the reactor, however much has changed."""
        if not self._stopped and self._update_call is None:
            self._update_call = self._clock.callLater(0, self._update)

    def _update(self) -> None:
        self._update_call = None
        self._pipeline.set_in_flight(sum(share.in_flight for share in self._shares))
        self._tell_homes()
        for share in self._shares:
            self._pump(share)
        self._forget_old_blocks()
        position = rule_position(
            {s.shnum: (s.server.server_id, self._position(s))
             for s in self._shares if s.state in HOLDS_BLOCKS and s.server is not None},
            self._parameters.k, self._parameters.happy)
        if position != self._pushed:
            self._pushed = position
            self._tell(PushedTo(position, self._rate.moved_to(position, self._clock.seconds())))
        self._growth.grow_where_due()
        if self._storage_index is not None:
            self._end_shares(self._storage_index)
        self._look_for_progress()

    def _look_for_progress(self) -> None:
        """What a share lost with its server and gained again is none: else servers that come and go were progress."""
        on_its_way = False
        for share in self._shares:
            now = share.state is ShareState.CLOSED, self._position(share)
            if now > share.furthest:
                share.furthest, on_its_way = now, True
        if on_its_way:
            self._on_progress()

    def _tell_homes(self) -> None:
        homes = {s.shnum: s.server.server_id for s in self._shares if s.state in LIVE and s.server is not None}
        believed = {shnum: size for shnum, size in self._homes.believed.items()
                    if homes.get(shnum) == self._told_homes.get(shnum)}
        if self._homes.placed and (homes, believed) != (self._told_homes, self._told_believed):
            self._told_homes, self._told_believed = homes, believed
            self._on_homes(homes, believed)

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
                 for s in self._shares if s.state in HOLDS_BLOCKS and s.server is not None},
                self._parameters.k, self._parameters.happy)
            needed = max(needed, taken)
        if self._pipeline.short:
            now = self._clock.seconds()
            taking = [s for s in waiting if s.advanced is not None and 0 <= now - s.advanced < SHORT_PATIENCE]
            needed = max(needed, min((s.next_segment for s in taking), default=self._pipeline.segments))
            if taking and not self._timer_runs("short"):
                self._start_timer("short", SHORT_PATIENCE, self._soon)
        self._pipeline.needed_from(needed)

    def _pump(self, share: Share) -> None:
        """Hand the share's sink as much as may be in flight."""
        if share.state is not ShareState.PUSHING or share.sink is None or share.server is None or share.reading:
            return
        server = share.server.server_id
        while share.in_flight < self._in_flight_limit or not share.in_flight:
            blocks, size = self._next_blocks(share)
            final = self._pipeline.completion is not None
            if blocks and (size >= self._write_target or final
                           or not (share.in_flight or self._pipeline.expects_more)):
                if not self._has_room(share, server, size):
                    return
                self._write_blocks(share, blocks, size)
            elif blocks:
                return  # more will come into this write while others are under way, or at once
            elif self._behind(share):
                if self._has_room(share, server, self._pipeline.block_size(share.next_segment)):
                    self._read_block(share, server)
                return
            elif not (self._wants_end(share) and self._write_end(share, server)):
                return

    def _has_room(self, share: Share, server: bytes, size: int) -> bool:
        """Whether its server (ID) can be sent so much more now; then it counts as on its way. Else the share is looked
        at again when there may be room."""
        if self._in_flight.take(server, size):
            if share.awaits_room:
                share.awaits_room = False
                self._homes.calls.answered(share)
            return True
        if not share.unanswered:  # else it is known whether the server answers
            share.awaits_room = True
            self._homes.calls.asked(share, ROOM)
        self._in_flight.wait(server, self._soon)
        return False

    def _next_blocks(self, share: Share) -> tuple[list[bytes], int]:
        blocks: list[bytes] = []
        size, segment = 0, share.next_segment
        while segment < self._pipeline.segments and size < self._write_target and self._homes.fits(share, segment):
            block = self._pipeline.block(segment, share.shnum)
            if block is None:
                break
            blocks.append(block)
            size += len(block)
            segment += 1
        return blocks, size

    def _behind(self, share: Share) -> bool:
        return share.next_segment < self._pipeline.segments and self._homes.fits(share, share.next_segment)

    def _has_all_blocks(self, share: Share) -> bool:
        completion = self._pipeline.completion
        return (completion is not None and share.next_segment == completion.layout.geometry.num_segments
                and share.file_bound >= completion.layout.geometry.size)

    def _wants_end(self, share: Share) -> bool:
        return self._storage_index is not None and not share.ended and self._has_all_blocks(share)

    def _write_blocks(self, share: Share, blocks: list[bytes], size: int) -> None:
        segment_size = self._pipeline.segment_size
        if segment_size is None:
            raise ValueError("blocks without a segment size")
        offset = DATA_OFFSET + share.next_segment * (segment_size // self._parameters.k)
        before, share.next_segment = share.next_segment, share.next_segment + len(blocks)
        data = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        if size <= WRITE_MOST:
            self._write(share, offset, data, share.next_segment)
            return
        for start in range(0, size, WRITE_TARGET):
            last = start + WRITE_TARGET >= size
            self._write(share, offset + start, data[start:start + WRITE_TARGET], share.next_segment if last else before)

    def _write(self, share: Share, offset: int, data: bytes, segments: int) -> None:
        """Write what counts as on its way already; the server holds so many segments then."""
        if share.sink is None or share.server is None:
            raise ValueError("no sink")
        server, size = share.server.server_id, len(data)
        share.in_flight += size
        share.advanced = self._clock.seconds()
        share.unacknowledged.append((size, segments))

        def answered(result: T) -> T:
            self._in_flight.done(server, size)  # whatever has become of the share: until now the bytes were in memory
            return result

        self._ask(share, "write", share.sink.write(offset, data).addBoth(answered), self._acknowledged)

    def _acknowledged(self, share: Share) -> None:
        size, segments = share.unacknowledged.popleft()
        share.in_flight -= size
        share.segments_held = segments

    def _ask(self, share: Share, kind: str, d: Deferred[None], then: Callable[[Share], None]) -> None:
        """Carry on with `then` when the server has done it, unless the share has moved on; lose the share
        if the server fails, or does not answer in time."""
        generation = share.generation
        self._homes.calls.asked(share, kind)

        def done(_result: None) -> None:
            if share.generation == generation and not self._stopped:
                self._homes.calls.answered(share)
                then(share)
                self._soon()

        def lost(failure: Failure) -> None:
            if share.generation == generation and not self._stopped:
                self._homes.failed(share, failure)

        def failed(failure: Failure) -> Deferred[None]:
            # A call on a dead connection fails at once, and whoever made it still counts on the share's home.
            return deferLater(self._clock, 0, lost, failure)

        d.addCallbacks(done, failed)
        d.addErrback(self._broken)

    def _read_block(self, share: Share, server: bytes) -> None:
        share.reading = True
        generation, segment = share.generation, share.next_segment
        size = self._pipeline.block_size(segment)

        def got(block: bytes) -> None:
            if share.generation == generation and not self._stopped:
                share.reading = False
                self._write_blocks(share, [block], len(block))
                self._soon()
            else:
                self._in_flight.done(server, size)

        def unreadable(failure: Failure) -> None:
            self._in_flight.done(server, size)
            self._broken(failure)  # this ends the upload, unless publication has begun: then only this share
            if share.generation == generation and not self._stopped:
                self._homes.lose(share, elsewhere=False)

        self._pipeline.reencode(segment, share.shnum).addCallbacks(got, unreadable).addErrback(self._broken)

    def _write_end(self, share: Share, server: bytes) -> bool:
        """Write the next piece of the trailer, or the header after it. Whether there was room for that."""
        completion = self._pipeline.completion
        if completion is None:
            raise ValueError("not complete")
        layout, start = completion.layout, share.end_handed
        size = min(WRITE_TARGET, layout.trailer_size - start) or DATA_OFFSET
        if not self._has_room(share, server, size):
            return False
        if start < layout.trailer_size:
            share.end_handed += size
            piece = completion.trailer(share.shnum, start, start + size)
            self._write(share, layout.trailer_offset + start, piece, share.next_segment)
        else:
            share.ended = True
            self._write(share, 0, layout.header(), share.next_segment)
        return True

    def _keep_alive(self) -> None:
        """Tell servers that idle shares are not forgotten."""
        self._start_timer("keep-alive", KEEP_ALIVE_INTERVAL, self._keep_alive)
        for share in self._shares:
            if (share.state in (ShareState.PUSHING, ShareState.READY) and share.sink is not None
                    and not share.in_flight):
                self._ask(share, "touch", share.sink.touch(), lambda _share: None)

    # -- ending ------------------------------------------------------------------------------------------

    def _end_shares(self, storage_index: bytes) -> None:
        completion = self._pipeline.completion
        if completion is None:
            return  # recomputed from the spool
        for share in self._shares:
            if share.state is ShareState.PUSHING and not share.sealing:
                if share.existing is not None:
                    share.sealing = True
                    verifying = Deferred.fromCoroutine(self._verify_existing(share.shnum, share.existing))
                    self._ask(share, "verify", verifying, self._closed)
                elif share.ended and not share.unacknowledged and share.sink is not None:
                    share.sealing = True
                    if share.server is not None:
                        share.sealed_on.add(share.server.server_id)
                    sealing = share.sink.seal(storage_index, completion.layout.share_size)
                    self._ask(share, "seal", sealing, self._became_ready)
            elif share.state is ShareState.READY and self._publish and share.sink is not None:
                share.state = ShareState.PUBLISHING
                publishing = Deferred.fromCoroutine(self._published(share, share.sink, storage_index))
                self._ask(share, "publish", publishing, self._closed)
        self._check_ready()
        self._check_closed()
        self._check_settled()

    def _check_ready(self) -> None:
        ready = {s.shnum: s.server.server_id for s in self._shares
                 if s.state in (ShareState.READY, ShareState.CLOSED) and s.server is not None}
        if not self._ready_told and rule_met(ready, self._parameters.k, self._parameters.happy):
            self._ready_told = True
            self._tell(SharesReady())

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
            self._start_timer("rest", self._patience.placing, self._give_up_rest)
            self._tell(AnswerRuleMet())
            self._soon()

    def _give_up_rest(self) -> None:
        """Shares that have found no server for so long never will; the ciphertext is not kept for them any more."""
        for share in self._shares:
            if share.state is not ShareState.CLOSED:
                self._homes.lose(share, elsewhere=False)
        self._check_settled()

    async def _published(self, share: Share, sink: ShareSink, storage_index: bytes) -> None:
        existing = await sink.publish(storage_index)
        if existing is not None:
            await self._verify_existing(share.shnum, existing)

    async def _verify_existing(self, shnum: int, existing: ExistingShare) -> None:
        """Whether a share that was there before is really a share of this file: its UEB and a random block."""
        completion = self._pipeline.completion
        if completion is None:
            raise ValueError("nothing to verify")
        if await existing.read_ueb() != completion.ueb:
            raise ServerRefused("has another file's share at this storage index")
        geometry = completion.layout.geometry
        segment = self._random_below(geometry.num_segments)
        last = segment == geometry.num_segments - 1
        length = geometry.padded_tail_size // geometry.k if last else geometry.block_size
        block = await existing.read_block(segment, geometry.block_size, length)
        if block_hash(block) != completion.block_hash(segment, shnum):
            raise ServerRefused("has a corrupt share of this file")

    def _check_settled(self) -> None:
        if self._answered and not self._settled and all(
                s.state in (ShareState.CLOSED, ShareState.LOST) for s in self._shares):
            self._settled = True
            missing = [s.shnum for s in self._shares if s.state is ShareState.LOST]
            self.stop()
            self._on_settled(missing)

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
            self.log.failure("pushing shares failed", failure)
            self._tell(Failed(fault_of(failure.value)))
