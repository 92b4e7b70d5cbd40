"""One upload in the helper: tells its session what happens, does what that decides, and keeps its record."""

from __future__ import annotations

import hashlib
import secrets
from base64 import b32encode
from collections import deque
from collections.abc import Callable, Mapping

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper import errors, events
from helper.block_memory import BlockMemory
from helper.ledger import Ledger
from helper.parameters import Parameters
from helper.pauses import SERVERS, Pauses
from helper.pipeline import Pipeline
from helper.placement import AllocationPolicy
from helper.pushing import SharePusher
from helper.room import SpoolRoom
from helper.session import ENDED, Limits, Session, State
from helper.settings import Settings
from helper.shares import ShareStatus
from helper.sinks import Grid, StorageServer
from helper.spool import RunInThread, SpoolFile
from helper.upload_records import SECRET_SIZE, Finish, UploadRecord


@attrs.frozen
class Answered:
    """An answer as protocol.txt §3.2 has it, before it is put on the wire."""

    fields: Mapping[str, int | str | bytes]
    shares: list[ShareStatus] = attrs.field(factory=list)


def hashed_name(upload_id: bytes) -> str:
    """The only form in which an upload ID is kept or logged: 52 characters of [a-z2-7]."""
    digest = hashlib.sha256(b"tahoe-stream upload ID v1:" + upload_id).digest()
    return b32encode(digest).decode("ascii").rstrip("=").lower()


@attrs.frozen
class Services:
    """What all uploads of a helper share. `count` adds to one of the helper's counters; `encode_in_thread` runs
    what reads and encodes, apart from the threads that make ciphertext durable."""

    settings: Settings
    grid: Grid
    ledger: Ledger
    clock: IReactorTime
    encode_in_thread: RunInThread
    room: SpoolRoom
    memory: BlockMemory
    count: Callable[[str, int], None]


@attrs.frozen
class _Work:
    """What works on an upload that has ciphertext."""

    spool: SpoolFile
    pipeline: Pipeline
    pusher: SharePusher


class Upload:
    """One upload. `begin`, `resume` or `resume_without_spool` must be called, once, before anything else."""

    log = Logger()

    def __init__(self, record: UploadRecord, services: Services) -> None:
        self.name = record.name
        self.short = record.name[:8]  # for logs
        #: Seconds since somebody last called for it; counted by the sweeper, so that no clock that jumps ends it.
        self.idle = 0.0
        self.over_for = 0.0  # seconds since it ended, counted in the same way
        self.asked_at = record.touched  # when somebody last called for it; only to be shown
        self.permutation_seeds = b""
        self._record = record
        self._services = services
        s = services.settings
        self.session = Session(record.parameters, Limits(
            s.credit, s.pushing_lag, s.largest_message, s.contact_after, services.room.upload_quota))
        self._unstored: deque[bytes] = deque()  # waits for room in the spool
        self._disk_full: str | None = None  # why bytes given to the spool wait
        self._calls: dict[int, Deferred[Answered]] = {}
        self._next_call = 0
        self._events: list[object] = []
        self._handling = False
        self._stopped = False
        self._pauses = Pauses(self.short, services.clock, self._what_it_waits_for)
        self._working: _Work | None = None
        self._abandoned: Deferred[None] | None = None
        self._end_recorded: Deferred[bool] = succeed(True)

    def begin(self, spool_file: SpoolFile) -> None:
        """A new upload."""
        s, p = self._services, self._record.parameters
        pipeline = Pipeline(p, spool_file, s.encode_in_thread, s.memory, self._blocks_changed, self._pipeline_failed)
        policy = AllocationPolicy(p.k, p.n, p.max_segment_size, s.settings.first_bound)
        pusher = SharePusher(
            p, pipeline, s.grid, policy, s.clock, self._record.staging_secret, s.settings.patience, secrets.randbelow,
            self.tell, self._homes_changed, s.count, self._settled)
        self._working = _Work(spool_file, pipeline, pusher)

    def resume(self, spool_file: SpoolFile) -> None:
        """An upload of an earlier run, whose ciphertext is in `spool_file`."""
        self.begin(spool_file)
        self._services.room.resume(self.name, self._record.parameters.size, spool_file.durable)
        r, work = self._record, self._work
        if r.order is not None:
            work.pusher.rank([r.servers[i] for i in r.order])
        work.pusher.return_to(r.homes, decided=r.finish is not None)
        work.pipeline.set_durable(spool_file.durable)
        work.pusher.set_durable(spool_file.durable)
        self.tell(self._resumed(spool_file.durable, r.error, unplaced=True))

    def resume_without_spool(self, error: errors.StreamingError | None) -> None:
        """One of an earlier run of which only the result is left, or nothing: `error` says why."""
        self.tell(self._resumed(0, error, unplaced=False))
        if self.session.state.value != self._record.state:
            self._services.count(self.session.state.value, 1)
            self._end_recorded = self._whether_recorded(self.save())

    def _resumed(self, durable: int, error: errors.StreamingError | None, unplaced: bool) -> events.Resumed:
        r, f = self._record, self._record.finish
        finish = None if f is None or r.storage_index is None else events.FinishReceived(
            -1, f.size, r.storage_index, f.crypttext_hash, f.crypttext_root_hash)
        return events.Resumed(r.state, durable, r.storage_index, finish, r.ueb, error, unplaced)

    @property
    def _work(self) -> _Work:
        if self._working is None:
            raise RuntimeError("this upload has no ciphertext any more")
        return self._working

    @property
    def storage_index(self) -> bytes | None:
        """That of the session, or as recorded by an earlier run."""
        return self.session.storage_index or self._record.storage_index

    @property
    def decided_size(self) -> int:
        """Bytes of ciphertext that were durable when publication was decided in an earlier run; 0 if it was not."""
        return self._record.finish.size if self._record.finish is not None else 0

    @property
    def opened_at(self) -> float:
        """Seconds since the epoch."""
        return self._record.opened

    @property
    def recorded_state(self) -> State:
        """The last that was recorded; that of an upload of an earlier run whose ciphertext is not read yet."""
        return State(self._record.state)

    @property
    def over(self) -> bool:
        """Whether the upload has come to its end, good or bad."""
        return self.session.state is State.FINISHED or self.session.state in ENDED

    # -- calls -------------------------------------------------------------------------------------------

    def asked(self) -> None:
        """Somebody called for it."""
        self.idle = 0.0
        self.asked_at = self._services.clock.seconds()

    def call(self, make_event: Callable[[int], object]) -> Deferred[Answered]:
        """Tell the session of a call; fires with the answer to it."""
        self.asked()
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
            "pushed": s.pushed, "paused": int(bool(self.waits_for)), "waits-for": self.waits_for,
            "storage-index-needed": int(s.storage_index_needed),
        }
        if s.parameters.size is not None:
            fields["size"] = s.parameters.size
        return Answered(fields, self._shares())

    def order(self, order: bytes) -> Deferred[Answered]:
        """Fires when the order is recorded. Raises BadArgument unless `order` is a permutation of the servers
        that the client was told."""
        servers = self._record.servers
        indices = [int.from_bytes(order[i:i + 2], "big") for i in range(0, len(order), 2)]
        if len(order) % 2 or sorted(indices) != list(range(len(servers))):
            raise errors.BadArgument("order", f"each number below {len(servers)} once, in two bytes",
                                     f"{len(order)} bytes that are not that")
        if self.session.error is not None:
            raise self.session.error
        self.asked()
        self._record = attrs.evolve(self._record, order=tuple(indices))
        if self._working is not None:
            self._working.pusher.rank([servers[i] for i in indices])
        return self.save().addCallback(lambda _none: Answered({"state": self.session.state.value}))

    def told_servers(self, servers: list[StorageServer]) -> None:
        """These are the servers that the client is told now, and will order by their places in this list."""
        self._record = attrs.evolve(self._record, servers=tuple(s.server_id for s in servers), order=None)
        self.permutation_seeds = b"".join(bytes([len(s.permutation_seed)]) + s.permutation_seed for s in servers)

    def save(self) -> Deferred[None]:
        """Record the upload as it is; fires when that is durable."""
        s = self.session
        now = self._services.clock.seconds()
        if s.state in ENDED:
            self._record = attrs.evolve(self._record, state=s.state.value, error=s.error, touched=now)
        elif self._record.state == State.OPEN.value:  # up to the decision to publish it is open, for a restart
            self._record = attrs.evolve(self._record, storage_index=s.assigned_index, touched=now - self.idle)
        return self._services.ledger.write(self._record)

    def _save_in_background(self) -> None:
        if not self._stopped:
            self._whether_recorded(self.save())

    def _whether_recorded(self, saved: Deferred[None]) -> Deferred[bool]:
        return saved.addCallbacks(lambda _none: True, self._not_recorded)

    def _not_recorded(self, failure: Failure) -> bool:
        if not self._stopped:
            self.log.error("upload {upload} could not be recorded: {kind}", upload=self.short,
                           kind=type(failure.value).__name__)
        return False

    def tell(self, event: object) -> None:
        """Hand an event to the session, after those that came before it."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                before, next_event = self.session.state, self._events.pop(0)
                commands = self.session.handle(next_event)
                if isinstance(next_event, events.Resumed):
                    self._log_resumed()
                elif self.session.state is not before:
                    self._changed_from(before)
                for command in commands:
                    self._carry_out(command)
        finally:
            self._handling = False
        if self.waits_for == SERVERS and not self._stopped:
            self._pauses.waits(SERVERS)

    def _changed_from(self, before: State) -> None:
        s = self.session
        self.idle = 0.0
        if s.state is State.FINISHED:
            self._services.count("finished", 1)
        if s.state in ENDED:
            self._services.count(s.state.value, 1)
            self._pauses.end()
            self._end_recorded = self._whether_recorded(self.save())
        code = s.error.code if s.error is not None else "ok"
        self.log.info("upload {upload}: {before} -> {after} ({code}), {received} bytes received, {durable} durable",
                      upload=self.short, before=before.value, after=s.state.value, code=code,
                      received=s.received, durable=s.durable)

    def _log_resumed(self) -> None:
        s = self.session
        self.log.info("upload {upload}: resumed as {state} ({code}), {durable} durable", upload=self.short,
                      state=s.state.value, code=s.error.code if s.error is not None else "ok", durable=s.durable)

    # -- commands ----------------------------------------------------------------------------------------

    def _carry_out(self, command: events.Command) -> None:  # noqa: C901 (one case a command)
        match command:
            case events.Reply(call, fields):
                self._calls.pop(call).callback(Answered(fields, self._shares() if "ueb" in fields else []))
            case events.Refuse(call, error):
                self._calls.pop(call).errback(error)
            case events.Store(data):
                self._store(data)
            case events.Compare(call, offset, data):
                self._compare(call, offset, data)
            case events.BeginPlacing():
                self._work.pusher.begin()
            case events.UseStorageIndex(storage_index):
                self._work.pusher.use_storage_index(storage_index)
            case events.Complete(size):
                self._work.pipeline.complete(size)
            case events.ForgetCompletion():
                self._work.pipeline.reopen()
            case events.SealShares(storage_index):
                self._work.pusher.seal(storage_index)
            case events.RecordPublishing():
                self._record_publishing()
            case events.PublishShares():
                self._work.pusher.publish()
            case events.RecordResult():
                self._record_result()
            case events.AbandonShares():
                self._work.pipeline.stop()
                self._abandoned = self._work.pusher.abandon()
                self._abandoned.addCallback(lambda _ignored: self.tell(events.Abandoned()))
            case events.DropSpool():
                self._drop_spool()

    def _record_publishing(self) -> None:
        """From here on a restart publishes the upload: so it must not be recorded before the session is ready."""
        finish = self.session.finish
        if finish is None:
            raise ValueError("nothing to publish")
        self._record = attrs.evolve(
            self._record, state=State.PUBLISHING.value, storage_index=finish.storage_index, ueb=self.session.ueb,
            finish=Finish(finish.size, finish.crypttext_hash, finish.crypttext_root_hash),
            touched=self._services.clock.seconds())
        self._services.ledger.write(self._record).addCallbacks(
            lambda _none: self.tell(events.PublishRecorded()),
            lambda failure: self.tell(events.Failed(errors.fault_of(failure.value))))

    def _record_result(self) -> None:
        """If it cannot be recorded that is no reason not to answer: after a restart the upload is published again."""
        self._record = attrs.evolve(self._record, state=State.FINISHED.value)
        self._end_recorded = self._whether_recorded(self._services.ledger.write(self._record))

        def answer(recorded: bool) -> bool:
            self.tell(events.ResultRecorded())
            return recorded

        self._end_recorded.addCallback(answer)

    def _drop_spool(self) -> None:
        spool = self._work.spool

        def drop() -> None:
            spool.drop()
            self._services.room.release(self.name)

        self._unstored.clear()
        self.when_end_recorded(drop)

    def when_end_recorded(self, remove: Callable[[], None]) -> None:
        """Call `remove`, which removes ciphertext, once it is recorded that the upload has ended; never if that
        cannot be. A later run that finds the upload open, or to be published, must find what was acknowledged."""

        def recorded(whether: bool) -> bool:
            if whether and self.over:
                remove()
            return whether

        self._end_recorded.addCallback(recorded)

    def _shares(self) -> list[ShareStatus]:
        return [] if self._working is None else self._working.pusher.status()

    def _compare(self, call: int, offset: int, data: bytes) -> None:
        spool = self._work.spool
        d = spool.in_thread(lambda: spool.read(offset, len(data)) == data)
        d.addCallback(lambda same: self.tell(events.Compared(call, same)))
        d.addErrback(self._pipeline_failed)

    # -- what happens ------------------------------------------------------------------------------------

    def stored(self, durable: int) -> None:
        """The spool has so many bytes."""
        self._work.pipeline.set_durable(durable)
        self._work.pusher.set_durable(durable)
        self.tell(events.Stored(durable))
        self._pauses.got_on(self.waits_for)

    def store_failed(self, reason: str) -> None:
        """The spool can store nothing more."""
        self.tell(events.StoreFailed(reason))

    def _blocks_changed(self) -> None:
        completion = self._work.pipeline.completion
        if completion is not None:
            self.tell(events.Completed(completion.hashes, completion.ueb))
        self._work.pusher.blocks_changed()

    def _homes_changed(self, homes: Mapping[int, bytes]) -> None:
        """Shares have other homes than before: after a restart they are looked for there."""
        self._record = attrs.evolve(self._record, homes=homes)
        self._save_in_background()

    def _pipeline_failed(self, failure: Failure) -> None:
        self.log.failure("upload {upload} failed", failure, upload=self.short)
        self.tell(events.Failed(errors.fault_of(failure.value)))

    def _settled(self, missing: list[int]) -> None:
        if missing:
            self.log.warn("upload {upload}: shares {missing} could not be placed; a repair will make them",
                          upload=self.short, missing=missing)
        else:
            self.log.info("upload {upload}: every share is placed", upload=self.short)
        self._work.pipeline.stop()
        self._drop_spool()

    # -- room in the spool ---------------------------------------------------------------------------------

    def _store(self, data: bytes) -> None:
        if self._unstored or not self._services.room.take(self.name, len(data)):
            self._unstored.append(data)
            self._services.room.wait(self)
            self._pauses.waits(self.waits_for)
        else:
            self._work.spool.append(data)

    def disk_full(self, reason: str) -> None:
        """The spool could not store what it has, and keeps it until it is tried again."""
        self._disk_full = reason
        self._work.pusher.blocks_changed()  # those that would have gone with what has to wait now
        self._services.room.wait(self)
        self._pauses.waits(self.waits_for)

    def try_room(self) -> bool:
        """See room.Waiter."""
        if self._disk_full is not None:
            self._disk_full = None
            self._work.spool.retry()
        while self._unstored and self._services.room.take(self.name, len(self._unstored[0])):
            self._work.spool.append(self._unstored.popleft())
        return not self._unstored

    def end_for_room(self, error: errors.SpoolFull) -> None:
        """See room.Waiter."""
        self.tell(events.Failed(error))

    @property
    def waits_for(self) -> str:
        """What keeps received bytes from becoming durable: room, disk, servers, or nothing ("")."""
        if self.session.state in ENDED:
            return ""
        if self._disk_full is not None:
            return f"disk: {self._disk_full}"
        return "room" if self._unstored else SERVERS if self.session.paused else ""

    def _what_it_waits_for(self) -> str:
        if self.waits_for == SERVERS:
            s = self.session
            return f"storage servers: {s.durable - s.pushed} of {s.durable} bytes are not on enough of them"
        room = self._services.room.status()
        what = "room in the spool" if self._disk_full is None else f"the spool's disk, {self._disk_full}"
        return (f"{what}: {room.stored + room.reserved} bytes are used or reserved, {room.disk_free} are free on "
                "its disk")

    def stop(self) -> None:
        """The helper stops: refuse what is asked; shares and spool stay as they are for the next run."""
        self._stopped = True
        self._pauses.end()
        self.tell(events.Stopping())
        if self._working is not None:
            self._working.pusher.stop()
            self._working.pipeline.stop()

    def time_passes(self, seconds: float) -> None:
        """So much time has gone since this was called last."""
        if self.over:
            self.over_for += seconds
        else:
            self.idle += seconds
            settings = self._services.settings
            self.tell(events.IdleFor(int(self.idle), settings.idle_expiry, settings.empty_expiry))

    def forget(self) -> None:
        """Nobody can ask for the result any more: let go of whatever is still under way for it."""
        if self._working is not None:
            self._working.pipeline.stop()
            self._working.spool.drop()
            self._services.room.release(self.name)
            if self._abandoned is None:
                self._abandoned = self._working.pusher.abandon()


def new_record(name: str, parameters: Parameters, now: float) -> UploadRecord:
    """The record of an upload that begins."""
    return UploadRecord(name, parameters, State.OPEN.value, secrets.token_bytes(SECRET_SIZE), now, now)
