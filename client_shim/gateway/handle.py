"""One upload handle: writers come and go, one at a time; the file stays, over restarts, until it has a cap.

A newer request ends the older one, waits until all that was received is durable, and only then is an offset stated. So
what is stated never goes back, and one stretch of the key stream never covers two plaintexts.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.logger import Logger
from twisted.python.failure import Failure

from client_shim.dedup import Outcome
from client_shim.errors import UploadClosed, UploadError
from client_shim.gateway.changes import Changes
from client_shim.gateway.handle_errors import (
    AlreadyComplete,
    BadSize,
    Cancelled,
    GatewayStopping,
    HandleError,
    HandleExpired,
    HandleFailed,
    HelperAway,
    JournalError,
    JournalFailed,
    LinkBroken,
    LinkFailed,
    NotComplete,
    SizeConflict,
    SizeExceeded,
    TakenOver,
)
from client_shim.gateway.handle_records import HandleRecord, HandleState, HandleStatus, LinkTarget, RingRow
from client_shim.gateway.handle_settings import HandleSettings
from client_shim.gateway.journal import put, remove, touch, update
from client_shim.gateway.stream import Stream, StreamParts
from client_shim.gateway.writer import Writer
from helper.errors import StreamingError
from helper.interfaces import LITERAL_MAX, SIZE_MAX

log = Logger()

#: What a client that was sent away is told to wait, in seconds.
RETRY_AFTER = 10

#: Links a cap into a directory. Raises a StreamingError if that does not succeed for good.
LinkFile = Callable[[LinkTarget, bytes], Awaitable[None]]


@attrs.frozen
class HandleParts:
    """What all handles of a gateway share."""

    streams: StreamParts
    settings: HandleSettings
    link: LinkFile


class Handle:
    """See above. Made by Handles alone."""

    def __init__(self, record: HandleRecord, parts: HandleParts, forgotten: Callable[[Handle], None]) -> None:
        self.id = record.id
        self.changes = Changes()
        self._record = record
        self._parts = parts
        self._forgotten = forgotten
        self._stream: Stream | None = None
        self._waking = DeferredLock()
        self._writer: Writer | None = None
        self._turn = 0  # of those who want to write; the newest has it
        self._gone: HandleError | None = None  # why nobody may use it any more
        self._doomed: HandleFailed | None = None  # before the journal knows it
        self._wanted = record.touched
        self._claims = 0  # of those who are about to write, or to change something
        self._changing = DeferredLock()
        self._completed = False  # nothing can follow, also while the journal does not know it yet

    @property
    def record(self) -> HandleRecord:
        """As the journal has it, but for what is on its way there."""
        return self._record

    @property
    def status(self) -> HandleStatus:
        """At this moment."""
        record, stream, writer = self._record, self._stream, self._writer
        length = record.length if stream is None else stream.length
        return HandleStatus(
            self.id, record.state, length if stream is None else stream.durable, length, record.size, record.result(),
            record.created, self.expires, record.error(), record.metadata,
            0.0 if writer is None or stream is None else writer.rate(stream.durable, self._now()),
            writer is not None, "" if stream is None else stream.away,
            record.outcome if record.state is HandleState.FINISHED else None)

    @property
    def expires(self) -> float:
        """Seconds since the epoch."""
        settings, record = self._parts.settings, self._record
        finished = record.state is HandleState.FINISHED
        return self.touched + (settings.result_retention if finished else settings.handle_expiry)

    @property
    def touched(self) -> float:
        """When somebody wanted it last, or it ended."""
        if self._writer is not None:
            return self._now()
        return max(self._wanted, self._record.touched)

    @property
    def in_use(self) -> bool:
        """Whether somebody writes to it, or is about to."""
        return self._writer is not None or self._claims > 0

    @property
    def forgotten(self) -> bool:
        """Whether it was cancelled."""
        return isinstance(self._gone, Cancelled)

    # -- writers -----------------------------------------------------------------------------------------------

    async def take_over(self) -> Writer:
        """End the writer there is, if any, and be the next. Returns when all that was received is durable and the
        helper takes the next byte.

        Raises TakenOver if somebody comes after; HelperAway if the helper takes nothing for `helper-wait`;
        HandleFailed, HandleExpired, Cancelled, JournalFailed, GatewayStopping.
        """
        self._check_usable()
        self._end_writer(TakenOver())
        turn = self._turn
        self._wanted = self._now()
        self._claims += 1
        try:
            if self._record.state in (HandleState.OPEN, HandleState.COMPLETING):
                await self._awake()
                await self._until_settled(turn)
            self._check_turn(turn)
            self._writer = Writer(self, self._length(), self._now())
        finally:
            self._claims -= 1
            self._wanted = self._now()
        return self._writer

    async def cancel(self) -> None:
        """Give the upload up at the helper, and forget it. Returns when it is forgotten here, and the helper has been
        told or could not be reached for a few seconds. A cap that there is already stays good.

        Raises JournalFailed: then it is not forgotten. Safe to repeat.
        """
        await self._give_up(Cancelled(), None)

    async def expire(self) -> None:
        """Cancel it, because nothing came for too long; that it was there is remembered."""
        idle = int(self._now() - self.touched)
        record = attrs.evolve(
            self._record, state=HandleState.EXPIRED, key=None, upload_id=None, link=None, metadata=b"",
            adopting=None, outcome=None, hashes=attrs.evolve(self._record.hashes, content=b""),
            touched=self._now(), error_text=str(idle))
        await self._give_up(HandleExpired(idle), record)

    async def _give_up(self, why: HandleError, tombstone: HandleRecord | None) -> None:
        """Cancel it because of `why`, and keep `tombstone`, if any, in its place."""
        if isinstance(self._gone, Cancelled):
            await self.changes.until(lambda: not self._claims)
            return
        self._check_not_gone()
        self._gone = why
        self._claims += 1
        self._end_writer(why)
        try:
            number = self._record.number
            await self._journal.change(remove([number]) if tombstone is None else put(tombstone))
            await self._abort()
        finally:
            self._claims -= 1
            self.changes.tell()
        if tombstone is None:
            self._forgotten(self)
        else:
            self._record = tombstone
            self._gone = None if self._gone is why else self._gone

    async def _abort(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None and self._record.length > LITERAL_MAX and self._record.state is HandleState.OPEN:
            # it sleeps: of its ring nothing is needed
            stream = self._new_stream([])
        if stream is not None:
            await stream.abort()

    # -- what writers do ---------------------------------------------------------------------------------------

    async def write(self, writer: Writer, data: bytes) -> None:
        """See Writer.write."""
        writer.check()
        if not data:
            return
        stream = self._open_stream()
        most = SIZE_MAX if self._record.size is None else self._record.size
        if stream.length + len(data) > most:
            raise SizeExceeded(most, stream.length + len(data))
        view = memoryview(data)
        while view:
            await self.changes.until(lambda: writer.goes_on and stream.room > 0)
            piece = view[:stream.room]
            stream.take(piece)
            view = view[len(piece):]

    async def settle(self, writer: Writer) -> int:
        """See Writer.settle."""
        writer.check()
        stream = self._stream
        if stream is not None:
            await self.changes.until(
                lambda: writer.goes_on and (stream is not self._stream or stream.durable == stream.length))
        return self._length()

    async def set_size(self, writer: Writer, size: int) -> None:
        """See Writer.set_size."""
        writer.check()
        record = self._record
        if not 0 <= size <= SIZE_MAX:
            raise BadSize(SIZE_MAX, size)
        declared = self._length() if self._completed else record.size
        if declared is not None:
            if declared != size:
                raise SizeConflict(declared, size)
            return
        if self._length() > size:
            raise SizeConflict(self._length(), size)
        await self._change(size=size)

    async def close(self, writer: Writer) -> bytes:
        """See Writer.close."""
        writer.check()
        if self._record.state is HandleState.OPEN and not self._completed:
            length = self._length()
            if self._record.size is not None and length != self._record.size:
                raise NotComplete(self._record.size, length)
            stream = self._open_stream()
            await self.changes.until(lambda: writer.goes_on and stream.journalled == length)
            await self._complete(length)
        await self.changes.until(lambda: writer.goes_on and self._record.ended)
        error = self._record.error()
        if error is not None:
            raise error
        return self._record.result() or b""

    def release(self, writer: Writer) -> None:
        """See Writer.release."""
        if self._writer is writer:
            self._writer = None
            self._wanted = self._now()
            self.changes.tell()

    # -- life --------------------------------------------------------------------------------------------------

    async def resume(self, has_ring: bool) -> None:
        """After a start of the gateway: send the ring, and complete what is complete. Raises a JournalError."""
        state = self._record.state
        if state is HandleState.COMPLETING or (state is HandleState.OPEN and has_ring):
            await self._awake()
        if state in (HandleState.COMPLETING, HandleState.LINKING):
            self._begin_end()

    async def rest(self) -> None:
        """Nobody writes, and nothing is on its way: hold nothing but the record any more."""
        stream = self._stream
        if stream is None or self.in_use or self._record.state is not HandleState.OPEN or not stream.resting:
            return
        await self._waking.acquire()
        try:
            await stream.rest()
            await self._journal.change(touch(self._record.number, self.touched))
            if not self.in_use and stream.resting and self._stream is stream and self._gone is None:
                self._record = attrs.evolve(self._record, hashes=stream.journalled_hashes, at_helper=stream.freed)
                stream.stop()
                self._stream = None
        finally:
            self._waking.release()

    def stop(self, why: HandleError) -> None:
        """Let it be as it is in the journal: for the end of the gateway, or of its journal."""
        self._gone = why
        self._end_writer(why)
        if self._stream is not None:
            self._stream.stop()
            self._stream = None
        self.changes.tell()

    async def settle_journal(self) -> None:
        """End the writer, for the gateway stops; wait until all that was received is in the journal."""
        self._end_writer(GatewayStopping())
        stream = self._stream
        if stream is not None:
            await self.changes.until(lambda: self._gone is not None or stream.journalled == stream.length)

    # -- the end of the file -----------------------------------------------------------------------------------

    async def _complete(self, length: int) -> None:
        """From now on nothing can follow, whatever becomes of the writer."""
        if self._completed:
            return
        self._completed = True
        self._claims += 1
        try:
            await self._change(state=HandleState.COMPLETING, size=length)
        finally:
            self._claims -= 1
        self._begin_end()

    def _begin_end(self) -> None:
        """Complete it at the helper, keep its cap, and link it; whoever waits sees it in the record."""
        self._in_background(self._end())

    async def _end(self) -> None:
        stream = self._stream
        if self._record.state is HandleState.COMPLETING and stream is not None:
            try:
                finished = await stream.finish()
            except UploadError as e:
                if stream is self._stream:
                    await self._fail(e)
                return
            if stream is not self._stream or self._gone is not None:
                return
            linking = self._record.link is not None
            await self._change(
                state=HandleState.LINKING if linking else HandleState.FINISHED, cap=finished.cap,
                literal=finished.literal, adopting=None, outcome=finished.outcome,
                upload_id=self._record.upload_id if linking else None,
                key=self._record.key if linking or finished.literal is not None else None, touched=self._now())
            stream.stop()
            if self._stream is stream:
                self._stream = None
        if self._record.state is HandleState.LINKING and self._gone is None:
            await self._link()
        self.changes.tell()

    async def _link(self) -> None:
        target, cap = self._record.link, self._record.result()
        error: StreamingError | None = None
        if target is not None and cap is not None:
            try:
                await self._parts.link(target, cap)
            except StreamingError as e:
                error = e
            except Exception as e:  # noqa: BLE001 - whatever it is, the cap is there, and somebody waits for it
                log.error("linking a finished upload failed: {what}", what=_described(Failure(e)))
                error = LinkBroken()
        if self._gone is None:
            await self._change(
                state=HandleState.FINISHED, link=None, upload_id=None, touched=self._now(),
                key=self._record.key if self._record.literal is not None else None,
                error_code=None if error is None else error.code, error_text="" if error is None else error.text())

    async def _fail(self, error: StreamingError) -> None:
        """It has ended without a cap, for good."""
        if self._record.ended or self._gone is not None or self._doomed is not None:
            return
        stream, self._stream = self._stream, None
        if stream is not None:
            self._record = attrs.evolve(self._record, hashes=stream.journalled_hashes)
            stream.stop()
        self._doomed = HandleFailed(error.code, error.text())
        self._end_writer(self._doomed)
        await self._change(state=HandleState.FAILED, key=None, upload_id=None, link=None, touched=self._now(),
                           adopting=None, outcome=None, error_code=error.code, error_text=error.text())

    # -- the stream --------------------------------------------------------------------------------------------

    async def _awake(self) -> None:
        """There is a stream afterwards, if it is not ended meanwhile."""
        await self._waking.acquire()
        try:
            if self._stream is None and not self._record.ended and self._gone is None:
                ring = await self._journal.ring(self._record)
                if self._gone is None and not self._record.ended:
                    self._stream = self._new_stream(ring)
                    self._stream.start()
        finally:
            self._waking.release()

    def _new_stream(self, ring: list[RingRow]) -> Stream:
        return Stream(self._record, ring, self._parts.streams, self.changes.tell, self._upload_failed, self._adopts)

    async def _adopts(self, cap: bytes, outcome: Outcome) -> None:
        await self._change(adopting=cap, outcome=outcome)

    async def _until_settled(self, turn: int) -> None:
        """Raises HelperAway when nothing has become durable for `helper_wait`."""
        stream = self._stream

        def settled() -> bool:
            self._check_turn(turn)
            if stream is None or stream is not self._stream:  # it has ended
                return True
            return stream.settled if self._record.state is HandleState.OPEN else stream.durable == stream.length

        while not settled():
            before = self.status.offset
            waiting = Deferred.fromCoroutine(self.changes.until(settled))
            try:
                await waiting.addTimeout(self._parts.settings.helper_wait, self._parts.streams.clock)
            except TimedOut:
                if self.status.offset == before:
                    raise HelperAway(RETRY_AFTER, self.status.away) from None

    def _open_stream(self) -> Stream:
        self._check_usable()
        if self._completed or self._record.state is not HandleState.OPEN:
            raise AlreadyComplete(self._length())
        if self._stream is None:
            raise RuntimeError("a handle with a writer is awake")
        return self._stream

    def _upload_failed(self, error: UploadError) -> None:
        self._in_background(self._fail(error))

    # -- the record --------------------------------------------------------------------------------------------

    async def _change(self, **values: Any) -> None:
        """Change the record, in the journal first; one change at a time."""
        await self._changing.acquire()
        try:
            if self._record.ended:
                raise self._record.error() or AlreadyComplete(self._record.length)
            stream = self._stream
            record = attrs.evolve(self._record, **values)
            await self._journal.change(update(record, drop_ring=record.ended or record.state is HandleState.LINKING))
            self._record = record if stream is None else attrs.evolve(record, hashes=stream.journalled_hashes)
        finally:
            self._changing.release()
        self.changes.tell()

    def _length(self) -> int:
        return self._record.length if self._stream is None else self._stream.length

    def _check_usable(self) -> None:
        self._check_not_gone()
        error = self._doomed or self._record.error()
        if error is not None and not isinstance(error, LinkFailed):
            raise error

    def _check_not_gone(self) -> None:
        if self._gone is not None:
            raise self._gone
        failure = self._journal.failure
        if failure is not None:
            raise JournalFailed(failure.reason, failure.seconds)

    def _check_turn(self, turn: int) -> None:
        self._check_usable()
        if turn != self._turn:
            raise TakenOver()

    def _end_writer(self, why: HandleError) -> None:
        """And whoever is about to be one."""
        self._turn += 1
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.end(why)
            self._wanted = self._now()
        self.changes.tell()

    def _in_background(self, work: Awaitable[None]) -> None:
        """Errors of the journal are the business of Handles, which begins anew."""

        async def run() -> None:
            await work

        def failed(failure: Failure) -> None:
            if failure.check(JournalError, HandleError, UploadClosed, CancelledError) is None:
                log.error("an upload handle: {what}", what=_described(failure))

        Deferred.fromCoroutine(run()).addErrback(failed)

    @property
    def _journal(self) -> Any:
        return self._parts.streams.journal

    def _now(self) -> float:
        return self._parts.streams.now()


def _described(failure: Failure) -> str:
    """What happened and where, but not the error's text, which may quote a cap."""
    where = failure.frames[-1] if failure.frames else ("?", "?", 0)
    return f"{type(failure.value).__name__} in {where[0]}, line {where[2]} of {os.path.basename(where[1])}"
