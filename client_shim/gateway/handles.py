"""All upload handles of a gateway: made, found, resumed after a restart, swept. No HTTP in it.

A program writes a file through a handle over any number of requests, and of lives of the gateway. What it is told
(`Writer.offset`) is durable at the helper, or, up to 55 bytes, in the journal: it never goes back, and the next byte
is taken there.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Awaitable, Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from client_shim.dedup import Dedup, DedupMode
from client_shim.disclosure import RevealStorageIndex
from client_shim.errors import UploadError
from client_shim.gateway.handle import Handle, HandleParts, LinkFile
from client_shim.gateway.handle_errors import (
    BadHandleId,
    BadMetadata,
    BadSize,
    GatewayStopping,
    HandleExpired,
    HelperUnusable,
    JournalError,
    JournalFailed,
    TooManyHandles,
    UnknownHandle,
)
from client_shim.gateway.handle_records import (
    HANDLE_ID_SIZE,
    METADATA_MAX,
    HandleOptions,
    HandleRecord,
    HandleState,
    HandleStatus,
    LinkTarget,
    check_handle_id,
)
from client_shim.gateway.handle_settings import HandleSettings
from client_shim.gateway.journal import Journal, put, remove
from client_shim.gateway.resumable_content import ResumableContentHasher
from client_shim.gateway.resumable_hash import ResumableCiphertextHasher, require_resumable_hash
from client_shim.gateway.ring_memory import RingMemory
from client_shim.gateway.stream import StreamParts
from client_shim.gateway.writer import Writer
from client_shim.reconnect import Link, awaited, means_away
from helper.interfaces import KEY_SIZE, SIZE_MAX, UPLOAD_ID_SIZE
from helper.parameters import Parameters

__all__ = ["Handle", "HandleOptions", "HandleState", "HandleStatus", "Handles", "LinkTarget", "Writer"]

log = Logger()

#: How often (seconds) handles are looked after: idle ones are put to rest, old ones expire.
SWEEP_INTERVAL = 60.0
#: How long (seconds) after the last writer a handle keeps its link to the helper.
REST_AFTER = 60.0
#: Nothing expires for so long (seconds) after a start, or after the clock has jumped: clients need time to come back.
GRACE = 1800.0
#: So many are given up at a time.
EXPIRING_AT_ONCE = 20
#: How often (seconds) a journal that has failed is opened anew.
REOPEN_INTERVAL = 10.0


class Handles:
    """All handles of a gateway, in one journal.

    `connect` gives a link to the helper; a handle asks for one when it has more than 55 bytes, and whenever it was
    lost. `parameters` are for new handles (their size does not matter). `link` links a finished file into a directory;
    it may be called again for the same file after a restart. `dedup` tells how files that are stored already are found,
    in the mode of a handle, which is `dedup_mode` unless it is made with another. `now`: seconds since the epoch;
    `randomness`: so many unpredictable bytes.
    """

    def __init__(self, journal: Journal, connect: Callable[[], Awaitable[Link]], parameters: Parameters,
                 settings: HandleSettings, clock: IReactorTime, link: LinkFile, *,
                 reveal: RevealStorageIndex = RevealStorageIndex.AUTO,
                 dedup: Callable[[DedupMode], Dedup | None] = lambda _mode: None,
                 dedup_mode: DedupMode = DedupMode.OFF, now: Callable[[], float] = time.time,
                 randomness: Callable[[int], bytes] = os.urandom) -> None:
        self._journal = journal
        self._connect_helper = connect
        self._parameters = parameters
        self._settings = settings
        self._clock = clock
        self._now = now
        self._randomness = randomness
        self._memory = RingMemory(settings.ring_memory)
        self._parts = HandleParts(
            StreamParts(journal, self._memory, self._connect, clock, now, reveal, dedup), settings, link)
        self._dedup = dedup
        self._dedup_mode = dedup_mode
        self._handles: dict[bytes, Handle] = {}  # by the hash of the id: how long it takes to find one tells nothing
        self._next_number = 1
        self._making = 0
        self._running = False
        self._due: set[IDelayedCall] = set()
        self._failure: JournalFailed | None = None
        self._swept = 0.0
        self._sweeping = False
        self._nothing_expires_before = 0.0

    async def start(self) -> None:
        """Open the journal, and go on with what is in it: what may not be at the helper is sent, and what is complete
        is completed, before anybody asks.

        Raises JournalUnusable, NoResumableHash.
        """
        require_resumable_hash()
        self._journal.on_failed = self._journal_failed
        await self._journal.open()
        self._running = True
        try:
            await self._load()
        except JournalError:
            await self.stop()
            raise
        self._swept = self._now()
        self._nothing_expires_before = self._swept + GRACE
        self._later(SWEEP_INTERVAL, self._sweep)

    async def stop(self) -> None:
        """End all writers; returns when all that was received is in the journal and that is closed. Uploads stay as
        they are, and go on with the next start."""
        if not self._running:
            return
        self._running = False
        for call in self._due:
            call.cancel()
        self._due.clear()
        handles = list(self._handles.values())
        for handle in handles:
            await handle.settle_journal()
        for handle in handles:
            handle.stop(GatewayStopping())
        await self._journal.close()

    async def create(self, options: HandleOptions) -> Handle:
        """A new handle, which survives from when this returns on.

        Raises TooManyHandles, BadSize, BadMetadata, JournalFailed.
        """
        self._check_running()
        self._check_options(options)
        unfinished = sum(not handle.record.ended for handle in self._handles.values())
        if unfinished + self._making >= self._settings.handles_max:
            raise TooManyHandles(self._settings.handles_max)
        parameters = attrs.evolve(self._parameters, size=options.size)
        hasher = ResumableCiphertextHasher(parameters.k, parameters.max_segment_size, parameters.size)
        now, key = self._now(), self._randomness(KEY_SIZE)
        mode = self._dedup_mode if options.dedup is None else options.dedup
        dedup = self._dedup(mode)
        content = b"" if dedup is None else ResumableContentHasher(parameters, dedup.convergence).sealed(key)
        record = HandleRecord(
            self._next_number, _id_of(self._randomness(HANDLE_ID_SIZE)), HandleState.OPEN, now, now, parameters,
            options.size, key, self._randomness(UPLOAD_ID_SIZE), attrs.evolve(hasher.state(), content=content),
            options.metadata, options.link, dedup=mode)
        self._next_number += 1
        self._making += 1
        try:
            await self._journal.change(put(record))
        finally:
            self._making -= 1
        return self._add(record)

    def get(self, handle_id: str) -> Handle:
        """Raises UnknownHandle (also for what cannot be an id), HandleExpired, JournalFailed."""
        self._check_running()
        try:
            handle = self._handles.get(_place(check_handle_id(handle_id)))
        except BadHandleId:
            handle = None
        if handle is None or handle.forgotten:
            raise UnknownHandle()
        error = handle.record.error()
        if isinstance(error, HandleExpired):
            raise error
        return handle

    def all(self) -> list[HandleStatus]:
        """Every handle that has not expired, the oldest first."""
        statuses = [handle.status for handle in self._handles.values() if not handle.forgotten]
        return [status for status in statuses if status.state is not HandleState.EXPIRED]

    # -- looking after them ------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        self._later(SWEEP_INTERVAL, self._sweep)
        if self._failure is None and not self._sweeping:
            self._sweeping = True
            try:
                await self.sweep()
            finally:
                self._sweeping = False

    async def sweep(self) -> None:
        """Put to rest what is idle, give up what has been idle for too long, forget what has ended long ago."""
        now = self._now()
        if not -SWEEP_INTERVAL <= now - self._swept <= 3 * SWEEP_INTERVAL:
            self._nothing_expires_before = now + GRACE
        self._swept = now
        if now >= self._nothing_expires_before:
            await self._expire(now)
        await self._forget_ended(now)
        for handle in list(self._handles.values()):
            if now - handle.touched >= REST_AFTER:
                await handle.rest()

    async def _expire(self, now: float) -> None:
        due = [handle for handle in self._handles.values()
               if not (handle.record.ended or handle.in_use) and now >= handle.expires]
        # A few at a time: each may have to look for the helper for some seconds.
        for start in range(0, len(due), EXPIRING_AT_ONCE):
            giving_up = [Deferred.fromCoroutine(handle.expire()) for handle in due[start:start + EXPIRING_AT_ONCE]]
            for each in giving_up:
                await each

    async def _forget_ended(self, now: float) -> None:
        """The oldest, if there are too many; and those that are due."""
        ended = sorted((handle for handle in self._handles.values() if handle.record.ended and not handle.in_use),
                       key=lambda handle: handle.touched)
        too_many = max(0, len(ended) - self._settings.handles_max)
        may_expire = now >= self._nothing_expires_before
        old = [handle for i, handle in enumerate(ended)
               if i < too_many or (may_expire and now >= handle.expires)]
        if old:
            await self._journal.change(remove(handle.record.number for handle in old))
            for handle in old:
                self._forget(handle)

    async def _load(self) -> None:
        """Make the handles that the journal has, and resume them."""
        records, rings = await self._journal.records(), await self._journal.rings()
        self._handles.clear()
        handles = [self._add(record) for record in records]
        self._next_number = max([self._next_number, *(record.number + 1 for record in records)])
        try:
            for handle in handles:
                await handle.resume(handle.record.number in rings)
        except JournalError as e:
            for handle in handles:
                handle.stop(JournalFailed(e.code))
            raise

    def _add(self, record: HandleRecord) -> Handle:
        handle = self._handles[_place(record.id)] = Handle(record, self._parts, self._forget)
        return handle

    def _forget(self, handle: Handle) -> None:
        self._handles.pop(_place(handle.id), None)

    # -- a journal that fails ----------------------------------------------------------------------------------

    def _journal_failed(self) -> None:
        """What is in memory may be ahead of the journal, so is of no use any more: what was not journalled was never
        sent. All begins anew with what the journal has, as after a restart."""
        if self._running and self._failure is None:
            self._failure = self._journal.failure
            log.error("the gateway's journal failed, uploads pause: {reason}",
                      reason="" if self._failure is None else self._failure.reason)
            for handle in self._handles.values():
                handle.stop(JournalFailed("" if self._failure is None else self._failure.reason))
            self._later(REOPEN_INTERVAL, self._reopen)

    async def _reopen(self) -> None:
        try:
            await self._journal.reopen()
            if not self._running:
                await self._journal.close()
                return
            await self._load()
        except JournalError as e:
            log.error("the gateway's journal cannot be opened again: {code}", code=e.code)
            self._later(REOPEN_INTERVAL, self._reopen)
        else:
            self._failure = None
            log.info("the gateway's journal is back, uploads go on")

    # -- small things ------------------------------------------------------------------------------------------

    async def _connect(self) -> Link:
        """Whatever keeps the helper from being found, a wrong furl too, costs no upload that was begun."""
        try:
            return await awaited(self._connect_helper())
        except UploadError as e:
            if means_away(e):
                raise
            raise HelperUnusable(e.code, e.code) from e

    def _later(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        def begin() -> None:
            self._due.discard(call)
            Deferred.fromCoroutine(awaited(work())).addErrback(failed)

        def failed(failure: Failure) -> None:
            if failure.check(JournalError) is None:
                log.error("looking after upload handles: {kind}", kind=type(failure.value).__name__)

        call = self._clock.callLater(seconds, begin)
        self._due.add(call)

    def _check_running(self) -> None:
        if not self._running:
            raise GatewayStopping()
        if self._failure is not None:
            raise JournalFailed(self._failure.reason, self._failure.seconds)

    def _check_options(self, options: HandleOptions) -> None:
        if options.size is not None and not 0 <= options.size <= SIZE_MAX:
            raise BadSize(SIZE_MAX, options.size)
        if len(options.metadata) > METADATA_MAX:
            raise BadMetadata(METADATA_MAX, len(options.metadata))


def _id_of(random: bytes) -> str:
    return base64.b32encode(random).decode("ascii").rstrip("=").lower()


def _place(handle_id: str) -> bytes:
    return hashlib.sha256(handle_id.encode("ascii")).digest()
