"""Uploads by upload ID: opens them, finds those of an earlier run again, and forgets them in the end."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import TypeVar

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from helper import errors, events
from helper.block_memory import BlockMemory
from helper.dedup import Deduplication
from helper.dedup_store import SealedRecords
from helper.in_flight import InFlight
from helper.interfaces import SEEDS_MAX, STORAGE_INDEX_SIZE, UPLOAD_ID_SIZE
from helper.ledger import Ledger, LedgerFailed
from helper.ledger_file import Recorded
from helper.leftovers import Leftovers
from helper.parameters import Parameters
from helper.placement import staging_suffices
from helper.pushing import ABANDON_PATIENCE
from helper.recovery import Recovery
from helper.room import SpoolRoom
from helper.session import State
from helper.settings import Settings
from helper.sinks import Grid, StorageServer
from helper.spool import RunInThread, Spool
from helper.upload import Answered, Services, Upload, hashed_name, new_record
from helper.uptime import Uptime

T = TypeVar("T")

#: Ended uploads whose result can still be asked for; the oldest are forgotten first.
REMEMBERED_MAX = 10_000
#: An upload for which nobody has called for so long (seconds) yields its storage index to one that wants it: as when
#: a client was killed, and is started again with the same file.
YIELD_AFTER = 60.0


class Uploads:
    """All uploads of a helper. Each method answers one of protocol.txt §4, or fails with a StreamingError."""

    log = Logger()

    def __init__(self, settings: Settings, spool: Spool, ledger: Ledger, grid: Grid, clock: IReactorTime,
                 encode_in_thread: RunInThread) -> None:
        self._settings = settings
        self._spool = spool
        self._ledger = ledger
        self._grid = grid
        self._clock = clock
        self._room = SpoolRoom(settings.room_limits, spool.free, clock)
        self._leftovers = Leftovers(grid)
        self._uptime = Uptime(clock, 2.0 * settings.sweep_interval)
        self._services = Services(settings, grid, ledger, clock, encode_in_thread, self._room, BlockMemory(),
                                  InFlight(clock), self._count, self._uptime, self._leftovers)
        self._recovery = Recovery(spool, self._services)
        self._dedup = Deduplication(grid, SealedRecords(ledger, clock, settings.sealed_records_max), clock,
                                    settings.look_up_patience, self._being_placed, self._count)
        ledger.on_change = self._ledger_changed
        self._by_name: OrderedDict[str, Upload] = OrderedDict()
        self._by_index: dict[bytes, Upload] = {}
        self._stopping = False
        self._started = clock.seconds()
        self._sweeper = LoopingCall(self._sweep_for_ever)
        self._sweeper.clock = clock
        #: Since the helper's start.
        self.counters = dict.fromkeys((
            "opened", "resumed", "finished", "aborted", "failed", "expired", "bytes_received", "bytes_pushed_again",
            "shares_lost", "shares_rehomed", "servers_stalled", "deduplicated", "looked_up", "deduplicated_existing",
            "deduplicated_streamed_before", "records_left", "messages_given_up"), 0)

    def start(self, recorded: Recorded) -> None:
        """The node starts, with what the run before has recorded. Begin to look for uploads that have expired."""
        self._started = self._clock.seconds()
        self._uptime.begin(recorded.uptime)
        for upload in self._recovery.find(recorded.uploads):
            self._by_name[upload.name] = upload
            self._claim_for(upload)
        self.counters["resumed"] = len(self._recovery.waiting)
        self._sweeper.start(self._settings.sweep_interval, now=False)
        self._recovery.begin()

    def stop(self) -> None:
        """Refuse every call from now on. Uploads stay as they are, for the next run."""
        self._stopping = True
        self._recovery.stop()
        self._room.stop()
        self._leftovers.stop()
        if self._sweeper.running:
            self._sweeper.stop()
        for upload in self._by_name.values():
            upload.stop()

    def get_stats(self) -> dict[str, int]:
        """For the node's statistics (allmydata.interfaces.IStatsProducer)."""
        live = sum(1 for upload in self._by_name.values() if not upload.over)
        return {f"streaming_helper.{name}": value for name, value in {**self.counters, "open": live}.items()}

    # -- what is shown of them (status.py) -----------------------------------------------------------------

    @property
    def clock(self) -> IReactorTime:
        """What uploads measure time with."""
        return self._clock

    @property
    def grid(self) -> Grid:
        """The storage servers."""
        return self._grid

    @property
    def room(self) -> SpoolRoom:
        """The room in the spool, and who has it."""
        return self._room

    @property
    def spool_on_disk(self) -> int:
        """Bytes that the spool's files take."""
        return self._spool.used

    @property
    def known(self) -> Collection[Upload]:
        """All uploads, those that have ended included, in the order in which they were opened."""
        return self._by_name.values()

    @property
    def unread(self) -> Collection[Upload]:
        """Those of an earlier run whose ciphertext has not been read through yet; their session knows nothing."""
        return self._recovery.waiting

    def unread_because(self, upload: Upload) -> str:
        """Why the last attempt to read the ciphertext of one of them failed; empty if none has."""
        return self._recovery.unread_because.get(upload, "")

    # -- protocol.txt §4 ---------------------------------------------------------------------------------

    async def open(self, upload_id: bytes, wire: Mapping[bytes, int]) -> Answered:
        name = self._name(upload_id)
        parameters = Parameters.from_wire(wire)
        upload, new = self._by_name.get(name), False
        if upload is None:
            # A node that has just started may not have met its servers yet.
            # A clock that was set back must not make that long.
            wait = min(max(0.0, self._started + self._settings.server_wait - self._clock.seconds()),
                       self._settings.server_wait)
            have = await self._grid.when_connected(parameters.happy, wait)
            upload = self._by_name.get(name)  # another `open` of the same ID may have come meanwhile
            if upload is None:
                upload, new = self._new(name, parameters, have), True
        upload.session.parameters.check_same(parameters)
        await self._recovered(upload)
        upload.asked()
        if not upload.permutation_seeds:  # of an earlier run
            upload.told_servers(_fitting(self._grid.servers_for(bytes(16))))
        await self._record_open(upload, new)
        status = upload.status()
        return Answered({**status.fields, "largest-message": self._settings.largest_message,
                         "quota": upload.quota, "servers": self._grid.writable_count(),
                         "permutation-seeds": upload.permutation_seeds}, status.shares)

    async def _record_open(self, upload: Upload, new: bool) -> None:
        recorded = upload.save()
        try:
            if new:
                soon = self._ledger.unless_failing(recorded)
                recorded.addErrback(lambda _failure: None)
                await soon
            else:
                await recorded
                if self._by_name.get(upload.name) is not upload and upload.session.error is not None:
                    raise upload.session.error  # the first `open` was refused meanwhile, and the upload forgotten
        except errors.StreamingError as e:
            self._check_running()
            if new:  # the next run would not know it, so nothing may be acknowledged
                upload.tell(events.Failed(e))
                self._by_name.pop(upload.name, None)
            raise

    def _new(self, name: str, parameters: Parameters, servers: int) -> Upload:
        self._check_running()
        most = self._settings.uploads_max
        if len(self._by_name) >= most and sum(not u.over for u in self._by_name.values()) >= most:
            raise errors.TooManyUploads(self._settings.uploads_max)
        parameters.check_memory()
        if parameters.size is not None and parameters.size > parameters.largest_size:
            raise errors.QuotaExceeded(parameters.largest_size, parameters.size)
        if servers < parameters.happy:
            raise errors.TooFewServers(servers, parameters.happy)
        if self._ledger.failing:
            raise LedgerFailed(self._ledger.failing)
        self._room.admit(name, parameters.size)
        known = _fitting(self._grid.servers_for(bytes(16)))
        upload = Upload(new_record(name, parameters, self._clock.seconds(), self._uptime.seconds), self._services)
        upload.told_servers(known)
        upload.begin(self._spool.file(name, upload.stored, upload.store_failed, upload.disk_full))
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
        upload = await self._find(upload_id)
        before = upload.session.received
        d = upload.put(offset, data)
        self.counters["bytes_received"] += upload.session.received - before
        return await d

    async def status(self, upload_id: bytes) -> Answered:
        upload = await self._find(upload_id)
        upload.asked()
        answer = upload.status()
        error = upload.session.error
        return answer if error is None else Answered({**answer.fields, "reason": error.code}, answer.shares)

    async def assign(self, upload_id: bytes, storage_index: bytes) -> Answered:
        upload = await self._find(upload_id)
        self._check_not_busy(storage_index, upload)
        answer = upload.call(lambda call: events.AssignReceived(call, storage_index))
        self._claim_for(upload)
        answered = await answer
        await self._unless_stopping(upload.save())  # it will not be told again
        return answered

    async def order(self, upload_id: bytes, order: bytes) -> Answered:
        upload = await self._find(upload_id)
        return await self._unless_stopping(upload.order(order))

    async def finish(self, upload_id: bytes, size: int, storage_index: bytes, crypttext_hash: bytes,
                     crypttext_root_hash: bytes) -> Answered:
        upload = await self._find(upload_id)
        self._check_not_busy(storage_index, upload)
        answer = upload.call(lambda call: events.FinishReceived(
            call, size, storage_index, crypttext_hash, crypttext_root_hash))
        self._claim_for(upload)
        return await answer

    async def abort(self, upload_id: bytes) -> Answered:
        upload = await self._find(upload_id)
        answered = await upload.call(events.AbortReceived)
        recorded = upload.save()
        if upload.may_be_published:
            # Else another run might find the decision, and publish what was given up.
            await self._unless_stopping(recorded)
        else:
            # Nothing is lost if this is not recorded: what is left has no ciphertext any more, and expires.
            await recorded.addTimeout(ABANDON_PATIENCE, self._clock).addErrback(lambda _failure: None)
        return answered

    async def look_up(self, upload_id: bytes, convergent_storage_index: bytes) -> Answered:
        upload = await self._find(upload_id)
        _check_index(convergent_storage_index)
        upload.asked()
        if upload.session.error is not None:
            raise upload.session.error
        if upload.session.state is not State.OPEN:
            raise errors.AlreadyFinishing(upload.session.state.value)
        return await self._dedup.look_up(upload, convergent_storage_index)

    async def adopt(self, upload_id: bytes, storage_index: bytes) -> Answered:
        upload = await self._find(upload_id)
        _check_index(storage_index)
        if upload.session.state is State.OPEN and upload.session.error is None:
            await self._dedup.keep(upload, storage_index)
        answered = await upload.call(lambda call: events.AdoptReceived(call, storage_index))
        self._dedup.taken(upload, storage_index)
        with contextlib.suppress(LedgerFailed):
            # The other file is complete, so that is no reason not to answer if it cannot be recorded now: this upload
            # is then open for the next run, and expires.
            await self._ledger.unless_failing(upload.end_recorded())
        return answered

    async def leave_record(self, upload_id: bytes, convergent_storage_index: bytes, record: bytes) -> Answered:
        upload = await self._find(upload_id)
        _check_index(convergent_storage_index)
        if upload.session.error is not None:
            raise upload.session.error
        if upload.session.state is not State.FINISHED or upload.storage_index is None:
            raise errors.NotFinished(upload.session.state.value)
        await self._dedup.leave(convergent_storage_index, upload.storage_index, record)
        return Answered({"state": upload.session.state.value})

    def memory_wanted(self) -> None:
        """Messages hold all the memory that there is for them, and others wait for it: those that do not get on make
        room for those that can."""
        given_up = [n for n in (upload.give_up_memory() for upload in self._by_name.values()) if n]
        self.counters["messages_given_up"] += len(given_up)
        self.log.warn("messages of clients hold all the memory there is for them; {uploads} uploads that wait gave up "
                      "{size} bytes, which their clients will send again", uploads=len(given_up), size=sum(given_up))

    # -- finding and forgetting ----------------------------------------------------------------------------

    def _name(self, upload_id: bytes) -> str:
        self._check_running()
        if len(upload_id) != UPLOAD_ID_SIZE:
            raise errors.BadUploadId(UPLOAD_ID_SIZE, len(upload_id))
        return hashed_name(upload_id)

    async def _unless_stopping(self, recorded: Deferred[T]) -> T:
        """What cannot be recorded since the helper stops is no fault of a disk: the next run will be asked again."""
        try:
            return await recorded
        except errors.StreamingError:
            self._check_running()
            raise

    def _check_running(self) -> None:
        if self._stopping:
            raise errors.HelperStopping()

    async def _find(self, upload_id: bytes) -> Upload:
        upload = self._by_name.get(self._name(upload_id))
        if upload is None:
            raise errors.UnknownUpload()
        await self._recovered(upload)
        return upload

    async def _recovered(self, upload: Upload) -> None:
        """An upload of an earlier run is asked for: it need not wait for its turn."""
        await self._recovery.now(upload)
        self._check_running()

    def _check_not_busy(self, storage_index: bytes, upload: Upload) -> None:
        """Two uploads of one storage index would fight over the same places on the servers."""
        other = self._by_index.get(storage_index)
        if other is None or other is upload or other.over or other.storage_index != storage_index:
            return  # in the last case its `finish` was refused later
        unread = other in self._recovery.waiting
        if other.session.error is not None and not unread:
            return  # it does not get on
        just_started = 0 <= self._clock.seconds() - self._started < YIELD_AFTER
        if unread or just_started or not other.deserted(YIELD_AFTER):
            raise errors.StorageIndexBusy()
        other.yield_storage_index()

    def _claim_for(self, upload: Upload) -> None:
        """Remember the storage index that the upload has, if its call was not refused."""
        if upload.storage_index is not None and not upload.over:
            self._by_index[upload.storage_index] = upload

    def _being_placed(self, storage_index: bytes) -> bytes | None:
        """The UEB of the finished upload with this storage index, while its last shares are being placed."""
        upload = self._by_index.get(storage_index)
        if upload is None or upload.session.state is not State.FINISHED or upload.storage_index != storage_index:
            return None
        return upload.session.ueb if self._room.stored(upload.name) else None

    @property
    def not_recording(self) -> str:
        """Why nothing can be recorded at present; empty if it can."""
        return self._ledger.failing

    def _ledger_changed(self) -> None:
        for upload in list(self._by_name.values()):
            if upload not in self._recovery.waiting:
                upload.ledger_changed()

    def _count(self, name: str, increment: int) -> None:
        self.counters[name] += increment

    def _let_time_pass(self, upload: Upload, seconds: float) -> None:
        try:
            upload.time_passes(seconds)
        except Exception:  # noqa: BLE001 (a bug with one upload is no reason to keep all others for ever)
            self.log.failure("upload {upload} could not grow older", upload=upload.short)

    def _too_old(self) -> list[Upload]:
        """Uploads to forget. Of too many, first those without a result, of which anybody can make any number; and none
        that is still being placed."""
        over = [upload for upload in self._by_name.values() if upload.over]
        gone = [upload for upload in over if upload.over_for > self._settings.result_retention]
        kept = [upload for upload in over if upload.over_for <= self._settings.result_retention]
        done = [upload for upload in kept if not self._room.stored(upload.name)]
        done.sort(key=lambda upload: (upload.session.state is State.FINISHED, -upload.over_for))
        return gone + done[:max(0, len(kept) - REMEMBERED_MAX)]

    def _sweep_for_ever(self) -> Deferred[None]:
        """A sweep that fails is no reason to do without the next."""
        return maybeDeferred(self._sweep).addErrback(
            lambda failure: self.log.failure("looking for uploads that have expired failed", failure))

    def _sweep(self) -> Deferred[None]:
        if self._ledger.failing:  # what nobody could write down has not been
            self._uptime.pause()
            return succeed(None)
        self._leftovers.look()
        elapsed = self._uptime.step()
        for upload in list(self._by_name.values()):
            if upload not in self._recovery.waiting:
                self._let_time_pass(upload, elapsed)
        gone = self._too_old()
        for upload in gone:
            del self._by_name[upload.name]
            upload.forget()
        self._by_index = {si: u for si, u in self._by_index.items()
                          if u.storage_index == si and (not u.over or self._room.stored(u.name))}
        self._dedup.sweep()
        touched = [u.name for u in self._by_name.values() if not u.over and u.idle <= elapsed]
        recorded = DeferredList([self._ledger.remove([u.name for u in gone]),
                                 self._ledger.touch(touched, self._clock.seconds(), self._uptime.seconds)],
                                consumeErrors=True)
        return recorded.addCallback(lambda _results: None)


def _check_index(storage_index: bytes) -> None:
    if len(storage_index) != STORAGE_INDEX_SIZE:
        raise errors.BadStorageIndex(STORAGE_INDEX_SIZE, len(storage_index))


def _fitting(servers: list[StorageServer]) -> list[StorageServer]:
    """As many as an answer can name (protocol.txt §4.1); more than a file has shares, in any case."""
    size, fitting = 0, []
    for server in servers:
        size += 1 + len(server.permutation_seed)
        if size > SEEDS_MAX or len(server.permutation_seed) > 255:
            break
        fitting.append(server)
    return fitting
