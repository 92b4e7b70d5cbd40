"""One upload in the helper: tells its session what happens, does what that decides, and keeps its record."""

from __future__ import annotations

import hashlib
import secrets
from base64 import b32encode
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper import errors, events
from helper.block_memory import BlockMemory
from helper.in_flight import InFlight
from helper.intake import Intake
from helper.ledger import Ledger
from helper.leftovers import Leftovers
from helper.parameters import Parameters
from helper.patient_reading import PatientReading
from helper.pauses import ROOM, SERVERS, Pauses
from helper.pipeline import Pipeline
from helper.placement import AllocationPolicy
from helper.pushing import SharePusher
from helper.room import SpoolRoom
from helper.session import ENDED, Limits, Session, State
from helper.settings import Settings
from helper.shares import ShareStatus
from helper.sinks import Grid, StorageServer, Target
from helper.spool import RunInThread, SpoolFile
from helper.upload_records import SECRET_SIZE, Finish, UploadRecord
from helper.uptime import Uptime

#: An upload that has waited for so long (seconds), and not got on, gives up its messages if others want the memory.
WAITS_AT_LEAST = 10.0
#: Bytes of a message that one is taken of afterwards, while it still waits.
SMALL_MESSAGE = 64 * 1024


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
    in_flight: InFlight
    count: Callable[[str, int], None]
    uptime: Uptime
    leftovers: Leftovers


@attrs.frozen
class _Work:
    """What works on an upload that has ciphertext."""

    spool: SpoolFile
    reading: PatientReading
    pipeline: Pipeline
    pusher: SharePusher

    def stop_reading(self) -> None:
        """Encode nothing more."""
        self.pipeline.stop()
        self.reading.stop()


class Upload:
    """One upload. `begin`, `resume` or `resume_without_spool` must be called, once, before anything else."""

    log = Logger()

    def __init__(self, record: UploadRecord, services: Services) -> None:
        self.name = record.name
        self.short = record.name[:8]  # for logs
        #: Seconds of the helper's uptime since somebody last called for it; counted by the sweeper.
        self.idle = 0.0
        self.over_for = 0.0  # seconds since it ended, counted in the same way
        self.asked_at = record.touched  # when somebody last called for it; only to be shown
        self.permutation_seeds = b""
        #: Whether the decision to publish was to be recorded, so that another run may find it.
        self.may_be_published = False
        self._record = record
        self._services = services
        s = services.settings
        self.session = Session(record.parameters, Limits(
            s.credit, s.pushing_lag, s.largest_message, s.contact_after, self.quota))
        self._intake = Intake(self.name, services.room, lambda: self._work.spool, self._wait,
                              lambda error: self.tell(events.Failed(error)))
        self._gave_up_memory_for = ""  # what it waited for when others wanted its memory; until more is durable
        self._calls: dict[int, Deferred[Answered]] = {}
        self._next_call = 0
        self._events: list[object] = []
        self._handling = False
        self._stopped = False
        self._pauses = Pauses(self.short, services.clock, self._what_it_waits_for)
        #: Only while there is work: an upload may be open for long without a byte, and is remembered when it is over.
        self._working: _Work | None = None
        self._unused: SpoolFile | None = None  # until there is work, with the first byte
        self._index_to_use: bytes | None = None  # as soon as there is work
        self._last_shares: list[ShareStatus] = []  # when there was none any more
        self._remove_unread: Callable[[], None] = lambda: None
        self._abandoned: Deferred[None] | None = None
        self._end_recorded: Deferred[bool] = succeed(True)

    def begin(self, spool_file: SpoolFile) -> None:
        """A new upload."""
        self._unused = spool_file

    def _begun(self, spool_file: SpoolFile) -> _Work:
        s, p, r = self._services, self._record.parameters, self._record
        reading = PatientReading(s.encode_in_thread, s.clock, self._reading_changed)
        pipeline = Pipeline(p, spool_file, reading, s.memory, self._blocks_changed, self._pipeline_failed)
        policy = AllocationPolicy(p.k, p.n, p.max_segment_size, s.settings.first_bound)
        pusher = SharePusher(
            p, pipeline, s.grid, policy, s.clock, s.in_flight, self._record.staging_secret, s.settings.patience,
            secrets.randbelow, self.tell, self._homes_changed, self._will_stage_on, self._shares_progress, s.count,
            self._settled)
        if r.order is not None:
            pusher.rank([r.servers[i] for i in r.order])
        if self._index_to_use is not None:
            pusher.use_storage_index(self._index_to_use)
        return _Work(spool_file, reading, pipeline, pusher)

    def resume(self, spool_file: SpoolFile) -> Deferred[None]:
        """An upload of an earlier run, whose ciphertext is in `spool_file`. Fires when it may grow."""
        self.begin(spool_file)
        self._services.room.resume(self.name, self._record.parameters.size, spool_file.durable)
        grows = self._record.finish is None and bool(self._record.homes)
        if grows:
            self._believe_no_more_than(spool_file.durable)
        r = self._record
        if spool_file.durable:
            self._work.pusher.return_to(r.homes, r.sealed, r.staged_on, r.believed)
            self._work.pipeline.set_durable(spool_file.durable)
            self._work.pusher.set_durable(spool_file.durable)
        self.tell(self._resumed(spool_file.durable, r.error, unplaced=True))
        return self.save() if grows else succeed(None)

    def _believe_no_more_than(self, durable: int) -> None:
        """Of the blocks that servers have from earlier runs. Beyond may be what a `finish` has written; that is never
        found out any more, by later runs too, once the file is longer."""
        before = self._record.believed
        self._record = attrs.evolve(self._record, believed={
            shnum: min(durable, before.get(shnum, durable)) for shnum in self._record.homes})

    def resume_without_spool(self, error: errors.StreamingError | None,
                             remove_spool: Callable[[], None] = lambda: None) -> None:
        """One of an earlier run of which only the result is left, or nothing: `error` says why. `remove_spool`
        removes a spool file that cannot be used; it is called when the end of the upload is recorded."""
        self._remove_unread = remove_spool
        self.tell(self._resumed(0, error, unplaced=False))
        if self.session.state.value != self._record.state:
            self._services.count(self.session.state.value, 1)
            self._end_recorded = self._whether_recorded(self.save())
        self.when_end_recorded(self._remove_spool)
        if self.over:
            self._remove_staged()

    def _resumed(self, durable: int, error: errors.StreamingError | None, unplaced: bool) -> events.Resumed:
        r, f = self._record, self._record.finish
        finish = None if f is None or r.storage_index is None else events.FinishReceived(
            -1, f.size, r.storage_index, f.crypttext_hash, f.crypttext_root_hash)
        return events.Resumed(r.state, durable, r.storage_index, finish, r.ueb, error, unplaced, r.staging_enough)

    @property
    def _work(self) -> _Work:
        if self._working is None:
            if self._unused is None:
                raise RuntimeError("this upload has no ciphertext any more")
            spool_file, self._unused = self._unused, None
            self._working = self._begun(spool_file)
        return self._working

    @property
    def quota(self) -> int:
        """The most bytes that this upload may ever have."""
        return min(self._services.room.upload_quota, self._record.parameters.largest_size)

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
        """Somebody called for it. No call helps one that cannot be published any more: it expires (§6.2)."""
        if self.session.error is None:
            self.idle = 0.0
        self.asked_at = self._services.clock.seconds()

    def deserted(self, seconds: float) -> bool:
        """Whether it is open, no call for it is unanswered, and none has come for so long; or may have been, since
        the clock was set back after the last."""
        since = self._services.clock.seconds() - self.asked_at
        return self.session.state is State.OPEN and not self._calls and not (-seconds <= since < seconds)

    def yield_storage_index(self) -> None:
        """Another upload gets it. This one goes on without, and may take it again when it is free."""
        self.log.info("upload {upload}: its storage index goes to another, as nobody called for it", upload=self.short)
        self.tell(events.YieldIndex())
        self._save_in_background()

    def call(self, make_event: Callable[[int], object]) -> Deferred[Answered]:
        """Tell the session of a call; fires with the answer to it."""
        self.asked()
        number, self._next_call = self._next_call, self._next_call + 1
        d: Deferred[Answered] = Deferred()
        self._calls[number] = d
        self.tell(make_event(number))
        return d

    def put(self, offset: int, data: bytes) -> Deferred[Answered]:
        """Tell the session of ciphertext; fires with the answer. Raises MemoryShort if others want the memory that it
        would take while the upload waits; a small message is taken, to find out when it need not wait any more."""
        s = self.session
        if self._gave_up_memory_for and (s.received > s.durable or len(data) > SMALL_MESSAGE):
            self.asked()
            raise errors.MemoryShort()
        return self.call(lambda call: events.PutReceived(call, offset, data))

    def give_up_memory(self) -> int:
        """Others want what messages of this upload hold. If they have waited for a while they are refused, and sent
        again later. Returns how many bytes of ciphertext that were."""
        s, waits_for = self.session, self.waits_for
        if waits_for not in (SERVERS, ROOM) or self._pauses.seconds < WAITS_AT_LEAST or not s.can_let_go:
            return 0
        received, unstored = s.received, self._intake.unstored
        self._intake.forget()
        self._gave_up_memory_for = waits_for
        self.tell(events.MemoryWanted(unstored))
        return received - s.received

    def status(self) -> Answered:
        """What `status` and a repeated `open` say."""
        s = self.session
        fields: dict[str, int | str | bytes] = {
            "state": s.state.value, "received": s.received, "durable": s.durable, "credit": s.credit,
            "pushed": s.pushed, "paused": int(bool(self.waits_for)), "waits-for": self.waits_for,
            "storage-index-needed": int(s.storage_index_needed), "looks-up": 1,
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
        now, uptime = self._services.clock.seconds(), self._services.uptime.seconds
        if s.state in ENDED:
            self._record = attrs.evolve(self._record, state=s.state.value, error=s.error, touched=now,
                                        wanted_at=uptime, storage_index=s.adopted_index or self._record.storage_index)
        elif self._record.state == State.OPEN.value:  # up to the decision to publish it is open, for a restart
            self._record = attrs.evolve(self._record, storage_index=s.assigned_index, touched=now - self.idle,
                                        wanted_at=max(0.0, uptime - self.idle), staging_enough=s.staging_enough)
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
                elif isinstance(next_event, events.StagingEnough):
                    self._save_in_background()  # after a restart no client shall be asked what it need not tell
                elif self.session.state is not before:
                    self._changed_from(before)
                # Bytes that waited go to the spool all at once: each of them would wait for the sync of the one before.
                working = self._working if len(commands) > 1 else None
                with nullcontext() if working is None else working.spool.together():
                    for command in commands:
                        self._carry_out(command)
        finally:
            self._handling = False
        if self.waits_for and not self._stopped:
            self._wait()

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
                self._intake.store(data)
            case events.Compare(call, offset, data):
                self._compare(call, offset, data)
            case events.BeginPlacing():
                self._work.pusher.begin()
            case events.UseStorageIndex(storage_index):
                self._index_to_use = storage_index
                if self._working is not None:
                    self._working.pusher.use_storage_index(storage_index)
            case events.ForgetStorageIndex():
                self._index_to_use = None
                if self._working is not None:
                    self._working.pusher.forget_storage_index()
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
                self._abandon()
            case events.DropSpool():
                self._drop_spool()

    def _record_publishing(self) -> None:
        """From here on a restart publishes the upload: so it must not be recorded before the session is ready."""
        finish = self.session.finish
        if finish is None:
            raise ValueError("nothing to publish")
        self._record = attrs.evolve(
            self._record, state=State.PUBLISHING.value, storage_index=finish.storage_index, ueb=self.session.ueb,
            sealed=self._work.pusher.sealed,
            finish=Finish(finish.size, finish.crypttext_hash, finish.crypttext_root_hash),
            touched=self._services.clock.seconds(), wanted_at=self._services.uptime.seconds)
        self.may_be_published = True
        self._services.ledger.write(self._record).addCallbacks(
            lambda _none: self.tell(events.PublishRecorded()),
            lambda failure: self.tell(events.Failed(errors.fault_of(failure.value))))

    def _record_result(self) -> None:
        """If it cannot be recorded now that is no reason not to answer: after a restart it would be published again."""
        self._record = attrs.evolve(self._record, state=State.FINISHED.value, wanted_at=self._services.uptime.seconds)
        recorded = self._services.ledger.write(self._record)
        self._services.ledger.unless_failing(recorded).addBoth(lambda _result: self.tell(events.ResultRecorded()))
        self._end_recorded = self._whether_recorded(recorded)

    def _abandon(self) -> None:
        if self._working is not None:
            self._working.stop_reading()
            self._abandoned = self._working.pusher.abandon()
        else:  # there is no work yet, or none was found after a restart
            self._abandoned = succeed(None)
        self._remove_staged()
        self._abandoned.addCallback(lambda _ignored: self.tell(events.Abandoned()))

    def _remove_staged(self) -> None:
        """The upload is over: nothing of it shall stay staged anywhere."""
        record = self._record
        if record.staged_on:
            self._services.leftovers.add(self.name, Target(record.staging_secret), range(record.parameters.n),
                                         record.staged_on, self._staged_removed)

    def _staged_removed(self, server_id: bytes) -> None:
        """One server has nothing of it any more; when the last has not, that is recorded."""
        self._record = attrs.evolve(self._record, staged_on=self._record.staged_on - {server_id})
        if not self._record.staged_on:
            self._save_in_background()

    def _drop_spool(self) -> None:
        self._intake.forget()
        self.when_end_recorded(self._remove_spool)

    def _remove_spool(self) -> None:
        unused, self._unused = self._unused, None
        if unused is not None:
            unused.drop()  # one that a run before this has begun may have a file, though nothing was acknowledged
        elif self._working is not None:
            self._working.spool.drop()
            self._last_shares = self._working.pusher.status()
            self._working = None
        else:
            self._remove_unread()
        self._services.room.release(self.name)

    def end_recorded(self) -> Deferred[None]:
        """Fires once it is recorded that the upload has ended, or cannot be."""
        done: Deferred[None] = Deferred()

        def recorded(whether: bool) -> bool:
            done.callback(None)
            return whether

        self._end_recorded.addCallback(recorded)
        return done

    def when_end_recorded(self, remove: Callable[[], None]) -> None:
        """Call `remove`, which removes ciphertext, once it is recorded that the upload has ended; never if that
        cannot be. A later run that finds the upload open, or to be published, must find what was acknowledged."""

        def recorded(whether: bool) -> bool:
            if whether and self.over:
                remove()
            return whether

        self._end_recorded.addCallback(recorded)

    def _shares(self) -> list[ShareStatus]:
        return self._last_shares if self._working is None else self._working.pusher.status()

    def _compare(self, call: int, offset: int, data: bytes) -> None:
        spool = self._work.spool
        d = spool.using(self._work.reading, lambda: spool.read(offset, len(data)) == data)
        d.addCallback(lambda same: self.tell(events.Compared(call, same)))
        d.addErrback(self._pipeline_failed)

    # -- what happens ------------------------------------------------------------------------------------

    def stored(self, durable: int) -> None:
        """The spool has so many bytes."""
        if self._working is None:
            return  # the upload ended while they were being written
        self._working.pipeline.set_durable(durable)
        self._working.pusher.set_durable(durable)
        if durable > self.session.durable:
            self._gave_up_memory_for = ""
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

    def _homes_changed(self, homes: Mapping[int, bytes], believed: Mapping[int, int]) -> None:
        """Shares have other homes than before, or were found there: after a restart they are looked for there."""
        self._record = attrs.evolve(self._record, homes=homes, believed=believed)
        self._save_in_background()

    def _will_stage_on(self, server_id: bytes) -> Deferred[None]:
        """Fires when it is recorded that this server may have staged shares."""
        self._record = attrs.evolve(self._record, staged_on=self._record.staged_on | {server_id})
        return self.save()

    def _shares_progress(self) -> None:
        """Publication gets on. Before it was decided, pushing is no sign that somebody wants the upload."""
        if self.session.state is State.PUBLISHING:
            self.idle = 0.0

    def _pipeline_failed(self, failure: Failure) -> None:
        if self.session.state in ENDED or self._stopped:
            return
        self.log.failure("upload {upload} failed", failure, upload=self.short)
        self.tell(events.CannotComplete(errors.fault_of(failure.value)))

    def _reading_changed(self) -> None:
        if self.waits_for and not self._stopped:
            self._wait()
        else:
            self._pauses.got_on("")

    def _settled(self, missing: list[int]) -> None:
        if missing:
            self.log.warn("upload {upload}: shares {missing} could not be placed; a repair will make them",
                          upload=self.short, missing=missing)
        else:
            self.log.info("upload {upload}: every share is placed", upload=self.short)
        self._record = attrs.evolve(self._record, staged_on=self._record.staged_on & self._work.pusher.disturbed)
        self._save_in_background()
        self._remove_staged()
        self._work.stop_reading()
        self._drop_spool()

    def disk_full(self, reason: str) -> None:
        """The spool could not store what it has, and keeps it until it is tried again."""
        self._intake.refused_by_disk(reason)
        if self._working is not None:
            self._working.pusher.blocks_changed()  # those that would have gone with what has to wait now

    # -- waiting -----------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Or wait on, for what it waits for now."""
        self._pauses.waits(self.waits_for)

    @property
    def waits_for(self) -> str:
        """What keeps received bytes from becoming durable, or the upload from being published: room, disk, servers, or
        nothing ("")."""
        if self.session.state in ENDED:
            return ""
        if self._intake.disk_full:
            return f"disk: {self._intake.disk_full}"
        if self._services.ledger.failing and self.session.state is State.READY:
            return f"disk: {self._services.ledger.failing}"
        if self._working is not None and self._working.reading.waits_for:
            return f"disk: {self._working.reading.waits_for}"
        if self._intake.waits_for_room:
            return ROOM
        if self.session.paused:
            return SERVERS
        return self._gave_up_memory_for if self.session.state is State.OPEN else ""

    def _what_it_waits_for(self) -> str:
        if self.waits_for == SERVERS:
            s = self.session
            return f"storage servers: {s.durable - s.pushed} of {s.durable} bytes are not on enough of them"
        if not self._intake.disk_full and self.session.state is State.READY:
            return f"the disk of its records, {self._services.ledger.failing}"
        if not self._intake.disk_full and self._working is not None and self._working.reading.waits_for:
            return f"the spool's disk, which cannot read: {self._working.reading.waits_for}"
        return self._intake.describe()

    def ledger_changed(self) -> None:
        """Records cannot be written, or can be written again."""
        if self.waits_for:
            self._wait()
        elif not self.over:
            self._pauses.got_on("")

    def stop(self) -> None:
        """The helper stops: refuse what is asked; shares and spool stay as they are for the next run."""
        self._stopped = True
        self._pauses.end()
        self.tell(events.Stopping())
        if self._working is not None:
            self._working.pusher.stop()
            self._working.stop_reading()

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
        self._services.leftovers.forget(self.name)
        working = self._working
        if working is not None:
            working.stop_reading()
            self._remove_spool()
            if self._abandoned is None:
                self._abandoned = working.pusher.abandon()


def new_record(name: str, parameters: Parameters, now: float, uptime: float) -> UploadRecord:
    """The record of an upload that begins."""
    return UploadRecord(name, parameters, State.OPEN.value, secrets.token_bytes(SECRET_SIZE), now, now, uptime)
