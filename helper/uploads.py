"""Uploads by upload ID: opens them, carries out what their sessions decide, and forgets them again."""

from __future__ import annotations

import hashlib
import secrets
from base64 import b32encode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper import errors, events
from helper.interfaces import SEEDS_MAX, UPLOAD_ID_SIZE
from helper.parameters import Parameters
from helper.pipeline import Pipeline
from helper.placement import AllocationPolicy, staging_suffices
from helper.pushing import SharePusher
from helper.session import ENDED, Limits, Session, State
from helper.settings import Settings
from helper.shares import ShareStatus
from helper.sinks import Grid, StorageServer
from helper.spool import Spool

#: Bytes; from it the names of staged shares derive (protocol.txt §15.1).
STAGING_SECRET_SIZE = 32

#: Ended uploads whose result can still be asked for; the oldest are forgotten first.
REMEMBERED_MAX = 10_000


@attrs.frozen
class Answered:
    """An answer as protocol.txt §3.2 has it, before it is put on the wire."""

    fields: Mapping[str, int | str | bytes]
    shares: list[ShareStatus] = attrs.field(factory=list)


def hashed_name(upload_id: bytes) -> str:
    """The only form in which an upload ID is kept or logged: 52 characters of [a-z2-7]."""
    digest = hashlib.sha256(b"tahoe-stream upload ID v1:" + upload_id).digest()
    return b32encode(digest).decode("ascii").rstrip("=").lower()


class Upload:
    """One upload: its session, and the driver that tells it what happens and does what it decides."""

    log = Logger()

    def __init__(self, name: str, parameters: Parameters, settings: Settings, spool: Spool, grid: Grid,
                 clock: IReactorTime, servers: list[StorageServer], on_count: Callable[[str, int], None]) -> None:
        self.name = name
        self.short = name[:8]  # for logs
        limits = Limits(settings.credit, settings.pushing_lag, settings.largest_message, settings.contact_after)
        self.session = Session(parameters, limits)
        self.last_call = clock.seconds()  # or change of state
        self._clock = clock
        # Those that the client is told, and orders by their places in this list.
        self._servers = [server.server_id for server in servers]
        self.permutation_seeds = b"".join(
            bytes([len(server.permutation_seed)]) + server.permutation_seed for server in servers)
        self._on_count = on_count
        self._calls: dict[int, Deferred[Answered]] = {}
        self._next_call = 0
        self._events: list[object] = []
        self._handling = False
        self._abandoned: Deferred[None] | None = None
        self._spool = spool.file(name, self._stored, lambda reason: self.tell(events.StoreFailed(reason)))
        self._pipeline = Pipeline(parameters, self._spool, self._blocks_changed, self._pipeline_failed)
        policy = AllocationPolicy(parameters.k, parameters.n, parameters.max_segment_size, settings.first_bound)
        self._pusher = SharePusher(parameters, self._pipeline, grid, policy, clock, settings.server_wait,
                                   secrets.token_bytes(STAGING_SECRET_SIZE), secrets.randbelow, self.tell,
                                   lambda length: on_count("bytes_pushed_again", length), self._settled)

    # -- calls -------------------------------------------------------------------------------------------

    def call(self, make_event: Callable[[int], object]) -> Deferred[Answered]:
        """Tell the session of a call; fires with the answer to it."""
        self.last_call = self._clock.seconds()
        number, self._next_call = self._next_call, self._next_call + 1
        d: Deferred[Answered] = Deferred()
        self._calls[number] = d
        self.tell(make_event(number))
        return d

    def status(self) -> Answered:
        """What `status` and a repeated `open` say."""
        s = self.session
        fields: dict[str, int | str | bytes] = {
            "state": s.state.value, "received": s.received, "durable": s.durable, "credit": s.credit,
            "pushed": s.pushed, "paused": int(s.paused),
            "storage-index-needed": int(s.storage_index_needed),
        }
        if s.parameters.size is not None:
            fields["size"] = s.parameters.size
        return Answered(fields, self._pusher.status())

    def tell(self, event: object) -> None:
        """Hand an event to the session, after those that came before it."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                before = self.session.state
                commands = self.session.handle(self._events.pop(0))
                if self.session.state is not before:
                    self._changed_from(before)
                for command in commands:
                    self._carry_out(command)
        finally:
            self._handling = False

    def _changed_from(self, before: State) -> None:
        s = self.session
        self.last_call = self._clock.seconds()
        if s.state is State.FINISHED:
            self._on_count("finished", 1)
        code = s.error.code if s.error is not None else "ok"
        self.log.info("upload {upload}: {before} -> {after} ({code}), {received} bytes received, {durable} durable",
                      upload=self.short, before=before.value, after=s.state.value, code=code,
                      received=s.received, durable=s.durable)

    def order(self, order: bytes) -> Answered:
        """Raises BadArgument unless `order` is a permutation of the servers that the client was told."""
        count = len(self._servers)
        indices = [int.from_bytes(order[i:i + 2], "big") for i in range(0, len(order), 2)]
        if len(order) % 2 or sorted(indices) != list(range(count)):
            raise errors.BadArgument("order", f"each number below {count} once, in two bytes",
                                     f"{len(order)} bytes that are not that")
        if self.session.error is not None:
            raise self.session.error
        self._pusher.rank([self._servers[i] for i in indices])
        return Answered({"state": self.session.state.value})

    # -- commands ----------------------------------------------------------------------------------------

    def _carry_out(self, command: events.Command) -> None:
        match command:
            case events.Reply(call, fields):
                self._calls.pop(call).callback(Answered(fields, self._shares_of(fields)))
            case events.Refuse(call, error):
                self._calls.pop(call).errback(error)
            case events.Store(data):
                self._spool.append(data)
            case events.Compare(call, offset, data):
                self._compare(call, offset, data)
            case events.BeginPlacing():
                self._pusher.begin()
            case events.UseStorageIndex(storage_index):
                self._pusher.use_storage_index(storage_index)
            case events.Complete(size):
                self._pipeline.complete(size)
            case events.ForgetCompletion():
                self._pipeline.reopen()
            case events.SealShares(storage_index):
                self._pusher.seal(storage_index)
            case events.RecordPublishing():
                self.tell(events.PublishRecorded())
            case events.PublishShares():
                self._pusher.publish()
            case events.AbandonShares():
                self._pipeline.stop()
                self._abandoned = self._pusher.abandon()
                self._abandoned.addCallback(lambda _ignored: self.tell(events.Abandoned()))
            case events.DropSpool():
                self._spool.drop()

    def _shares_of(self, fields: Mapping[str, object]) -> list[ShareStatus]:
        return self._pusher.status() if "ueb" in fields else []

    def _compare(self, call: int, offset: int, data: bytes) -> None:
        d = self._spool.in_thread(lambda: self._spool.read(offset, len(data)) == data)
        d.addCallback(lambda same: self.tell(events.Compared(call, same)))
        d.addErrback(self._pipeline_failed)

    # -- what happens ------------------------------------------------------------------------------------

    def _stored(self, durable: int) -> None:
        self._pipeline.set_durable(durable)
        self._pusher.set_durable(durable)
        self.tell(events.Stored(durable))

    def _blocks_changed(self) -> None:
        completion = self._pipeline.completion
        if completion is not None and self.session.state is State.COMPLETING and self.session.ueb is None:
            self.tell(events.Completed(completion.hashes, completion.ueb))
        self._pusher.blocks_changed()

    def _pipeline_failed(self, failure: Failure) -> None:
        self.log.failure("upload {upload} failed", failure, upload=self.short)
        self.tell(events.Failed(errors.fault_of(failure.value)))

    def _settled(self) -> None:
        self._pipeline.stop()
        self._spool.drop()

    def stop(self) -> Deferred[None]:
        """The helper stops: end the upload and let go of its shares."""
        self.tell(events.Failed(errors.HelperStopping()))
        self._pusher.stop()
        return self._abandoned if self._abandoned is not None else succeed(None)

    def forget(self) -> None:
        """Nobody can ask for the result any more: let go of whatever is still under way for it."""
        self._settled()
        if self._abandoned is None:
            self._abandoned = self._pusher.abandon()


class Uploads:
    """All uploads of a helper. Each method answers one of protocol.txt §4, or fails with a StreamingError."""

    log = Logger()

    def __init__(self, settings: Settings, spool: Spool, grid: Grid, clock: IReactorTime) -> None:
        self._settings = settings
        self._spool = spool
        self._grid = grid
        self._clock = clock
        self._by_name: OrderedDict[str, Upload] = OrderedDict()
        self._by_index: dict[bytes, Upload] = {}
        self._stopping = False
        self._started = clock.seconds()
        self._sweeper = LoopingCall(self._sweep)
        self._sweeper.clock = clock
        self.counters = {"opened": 0, "finished": 0, "bytes_received": 0, "bytes_pushed_again": 0}

    def start(self) -> None:
        """The node starts. Begin to look for uploads that have expired."""
        self._started = self._clock.seconds()
        self._sweeper.start(self._settings.sweep_interval, now=False)

    def stop(self) -> Deferred[Any]:
        """End every upload. Fires when their shares are let go of."""
        self._stopping = True
        if self._sweeper.running:
            self._sweeper.stop()
        return DeferredList([upload.stop() for upload in self._by_name.values()])

    def get_stats(self) -> dict[str, int]:
        """For the node's statistics (allmydata.interfaces.IStatsProducer)."""
        live = sum(1 for upload in self._by_name.values() if not _over(upload))
        return {f"streaming_helper.{name}": value for name, value in {**self.counters, "open": live}.items()}

    # -- protocol.txt §4 ---------------------------------------------------------------------------------

    async def open(self, upload_id: bytes, wire: Mapping[bytes, int]) -> Answered:
        name = self._name(upload_id)
        parameters = Parameters.from_wire(wire)
        upload = self._by_name.get(name)
        if upload is None:
            # A node that has just started may not have met its servers yet.
            wait = max(0.0, self._started + self._settings.server_wait - self._clock.seconds())
            have = await self._grid.when_connected(parameters.happy, wait)
            upload = self._by_name.get(name)  # another `open` of the same ID may have come meanwhile
            if upload is None:
                upload = self._new(name, parameters, have)
        upload.session.parameters.check_same(parameters)
        upload.last_call = self._clock.seconds()
        status = upload.status()
        return Answered({**status.fields, "largest-message": self._settings.largest_message,
                         "servers": self._grid.writable_count(), "permutation-seeds": upload.permutation_seeds},
                        status.shares)

    def _new(self, name: str, parameters: Parameters, servers: int) -> Upload:
        if self._stopping:
            raise errors.HelperStopping()
        most = self._settings.uploads_max
        if len(self._by_name) >= most and sum(not _over(u) for u in self._by_name.values()) >= most:
            raise errors.TooManyUploads(self._settings.uploads_max)
        if servers < parameters.happy:
            raise errors.TooFewServers(servers, parameters.happy)
        known = _fitting(self._grid.servers_for(bytes(16)))
        upload = Upload(name, parameters, self._settings, self._spool, self._grid, self._clock, known, self._count)
        self._by_name[name] = upload
        upload.tell(events.StagingEnough(staging_suffices(
            parameters.k, parameters.happy, parameters.n, [s.server_id for s in known],
            {s.server_id for s in known if s.stages})))
        self.counters["opened"] += 1
        self.log.info("upload {upload}: opened, {k} of {n}, happy {happy}, size {size}", upload=upload.short,
                      k=parameters.k, n=parameters.n, happy=parameters.happy,
                      size="unknown" if parameters.size is None else parameters.size)
        return upload

    async def put_ciphertext(self, upload_id: bytes, offset: int, data: bytes) -> Answered:
        upload = self._find(upload_id)
        before = upload.session.received
        d = upload.call(lambda call: events.PutReceived(call, offset, data))
        self.counters["bytes_received"] += upload.session.received - before
        return await d

    async def status(self, upload_id: bytes) -> Answered:
        upload = self._find(upload_id)
        upload.last_call = self._clock.seconds()
        answer = upload.status()
        error = upload.session.error
        return answer if error is None else Answered({**answer.fields, "reason": error.code}, answer.shares)

    async def assign(self, upload_id: bytes, storage_index: bytes) -> Answered:
        upload = self._find(upload_id)
        self._check_not_busy(storage_index, upload)
        answer = upload.call(lambda call: events.AssignReceived(call, storage_index))
        self._claim_for(upload)
        return await answer

    async def order(self, upload_id: bytes, order: bytes) -> Answered:
        return self._find(upload_id).order(order)

    async def finish(self, upload_id: bytes, size: int, storage_index: bytes, crypttext_hash: bytes,
                     crypttext_root_hash: bytes) -> Answered:
        upload = self._find(upload_id)
        self._check_not_busy(storage_index, upload)
        answer = upload.call(lambda call: events.FinishReceived(
            call, size, storage_index, crypttext_hash, crypttext_root_hash))
        self._claim_for(upload)
        return await answer

    async def abort(self, upload_id: bytes) -> Answered:
        return await self._find(upload_id).call(events.AbortReceived)

    # -- finding and forgetting ----------------------------------------------------------------------------

    def _name(self, upload_id: bytes) -> str:
        if len(upload_id) != UPLOAD_ID_SIZE:
            raise errors.BadUploadId(UPLOAD_ID_SIZE, len(upload_id))
        return hashed_name(upload_id)

    def _find(self, upload_id: bytes) -> Upload:
        upload = self._by_name.get(self._name(upload_id))
        if upload is None:
            raise errors.UnknownUpload()
        return upload

    def _check_not_busy(self, storage_index: bytes, upload: Upload) -> None:
        """Two uploads of one storage index would fight over the same places on the servers."""
        other = self._by_index.get(storage_index)
        if (other is not None and other is not upload and not _over(other)
                and other.session.storage_index == storage_index):  # else its `finish` was refused later
            raise errors.StorageIndexBusy()

    def _claim_for(self, upload: Upload) -> None:
        """Remember the storage index that the upload has, if its call was not refused."""
        if upload.session.storage_index is not None and not _over(upload):
            self._by_index[upload.session.storage_index] = upload

    def _count(self, name: str, increment: int) -> None:
        self.counters[name] += increment

    def _sweep(self) -> None:
        now, settings = self._clock.seconds(), self._settings
        for upload in list(self._by_name.values()):
            idle = int(now - upload.last_call)
            upload.tell(events.IdleFor(idle, settings.idle_expiry, settings.empty_expiry))
            if _over(upload) and now - upload.last_call > settings.result_retention:
                self._forget(upload)
        over = [u for u in self._by_name.values() if _over(u)]
        for upload in over[:max(0, len(over) - REMEMBERED_MAX)]:
            self._forget(upload)
        self._by_index = {si: u for si, u in self._by_index.items()
                          if u.session.storage_index == si and not _over(u)}

    def _forget(self, upload: Upload) -> None:
        del self._by_name[upload.name]
        upload.forget()


def _fitting(servers: list[StorageServer]) -> list[StorageServer]:
    """As many as an answer can name (protocol.txt §4.1); more than a file has shares, in any case."""
    size, fitting = 0, []
    for server in servers:
        size += 1 + len(server.permutation_seed)
        if size > SEEDS_MAX or len(server.permutation_seed) > 255:
            break
        fitting.append(server)
    return fitting


def _over(upload: Upload) -> bool:
    """Whether the upload has come to its end, good or bad."""
    return upload.session.state is State.FINISHED or upload.session.state in ENDED
