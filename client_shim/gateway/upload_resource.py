"""What both dialects of /uploads/ share: which handle, one request at a time on it, its body into the file, its end.

/uploads/ID is one resource: tus.py and resumable.py say the same of it in their own words. Offsets that are stated
are durable; a newer request cuts the connection of the older one.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from client_shim.dedup import DedupMode
from client_shim.gateway.exchange import ClientGone, Exchange, Handler, RequestHead
from client_shim.gateway.handle import RETRY_AFTER
from client_shim.gateway.handle_errors import (
    BadSize,
    Cancelled,
    GatewayStopping,
    HandleError,
    HelperAway,
    LinkFailed,
    TakenOver,
)
from client_shim.gateway.handles import Handle, HandleOptions, Handles, HandleState, LinkTarget, Writer
from client_shim.gateway.put_uri import CAP_HEADER, DEDUP_HEADER
from client_shim.gateway.upload_errors import BadLink, WrongMethod
from client_shim.gateway.upload_fields import FILE_MAX
from client_shim.gateway.upload_requests import place_in
from client_shim.reconnect import awaited

T = TypeVar("T")

#: Where uploads are made; each is one level below.
COLLECTION = "/uploads/"
#: The write cap of the directory in which the finished file is to be linked.
DIRECTORY_HEADER = "Tahoe-Directory"
#: On a finished upload that could not be linked: the code of the reason.
LINK_ERROR_HEADER = "Tahoe-Link-Error"

NO_STORE = ("Cache-Control", "no-store")


def is_collection(head: RequestHead) -> bool:
    """Whether a request is for the place where uploads are made."""
    return head.path in (COLLECTION, COLLECTION.rstrip("/"))


async def by_method(exchange: Exchange, method: str, handlers: Mapping[str, Handler]) -> None:
    """Let the one handle it that is there for this method. Raises WrongMethod."""
    handler = handlers.get(method)
    if handler is None:
        exchange.answer_always_with([("Allow", ", ".join(handlers))])
        raise WrongMethod(" or ".join(handlers))
    await handler(exchange)


def handle_id_of(head: RequestHead) -> str | None:
    """What stands in the place of an upload's name; it may be no name at all."""
    return head.path[len(COLLECTION):] if head.path.startswith(COLLECTION) and not is_collection(head) else None


def location_of(handle: Handle) -> str:
    """The path of an upload."""
    return COLLECTION + handle.id


@attrs.frozen
class Notes:
    """What is kept with a handle for the dialects, and for those who list uploads."""

    #: Of the request that made it: "tus", whose uploads are complete when they are as long as they should be, or
    #: "draft", whose uploads are complete when a client says so.
    dialect: str
    #: The file's, as far as the client told.
    name: str | None = attrs.field(default=None, repr=False)
    #: Upload-Metadata of tus, as it came.
    metadata: str = attrs.field(default="", repr=False)

    def to_bytes(self) -> bytes:
        """For HandleOptions.metadata."""
        return json.dumps(attrs.asdict(self), ensure_ascii=False, separators=(",", ":")).encode("utf-8")

    @classmethod
    def from_bytes(cls, metadata: bytes) -> Notes:
        """HandleStatus.metadata of a handle, which may have been made by something else."""
        try:
            return cls(**json.loads(metadata))
        except (ValueError, TypeError):
            return cls("")


def link_target(directory_cap: bytes | None, name: str | None) -> LinkTarget | None:
    """Where the file is to be linked, if a directory is named. Raises BadLink."""
    if directory_cap is None:
        return None
    try:
        place = None if name is None else place_in(directory_cap.decode("utf-8"), name)
    except UnicodeDecodeError:
        place = None
    if place is None or name is None:
        raise BadLink("the write cap of a directory, and a filename without slashes")
    return LinkTarget(directory_cap, name)


def directory_of(head: RequestHead) -> bytes | None:
    """The cap in the field Tahoe-Directory."""
    value = head.headers.get(DIRECTORY_HEADER)
    return None if value is None else value.encode("latin-1")


@attrs.frozen
class UploadPatience:
    """Seconds. `helper_wait`: for which a request that only asks waits for a cap that is about to be there;
    `in_progress`: for which one that has brought bytes waits for a helper that is away."""

    helper_wait: float = 10
    in_progress: float = 3600


class Uploads:
    """The handles of a gateway, for the dialects."""

    def __init__(self, handles: Handles, patience: UploadPatience, clock: IReactorTime,
                 epoch_time: Callable[[], float] = time.time) -> None:
        self._handles = handles
        self._patience = patience
        self._clock = clock
        self._epoch_time = epoch_time

    @property
    def now(self) -> float:
        """Seconds of a clock that only goes forward."""
        return self._clock.seconds()

    def seconds_left(self, handle: Handle) -> int:
        """Until it is given up, or forgotten, if nobody asks for it."""
        return max(0, int(handle.status.expires - self._epoch_time()))

    async def create(self, size: int | None, link: LinkTarget | None, notes: Notes,
                     dedup: DedupMode | None = None) -> Handle:
        """Raises BadSize, and what Handles.create raises."""
        if size is not None and size > FILE_MAX:
            raise BadSize(FILE_MAX, size)
        return await self._handles.create(HandleOptions(size, link, notes.to_bytes(), dedup))

    def find(self, head: RequestHead) -> Handle:
        """The handle that a request is for. Raises UnknownHandle, HandleExpired, JournalFailed."""
        return self._handles.get(handle_id_of(head) or "")

    @asynccontextmanager
    async def writing(self, handle: Handle, exchange: Exchange) -> AsyncIterator[Turn]:
        """A request's turn at a handle; whoever had it before is ended.

        Raises what Handle.take_over raises; ClientGone, after the connection was cut, if a newer request comes.
        """
        turn: Turn | None = None
        try:
            turn = Turn(handle, await handle.take_over(), exchange, self._patience, self._clock)
            turn.begin()
            yield turn
        except (TakenOver, Cancelled, GatewayStopping):
            if exchange.status is None and (turn is None or turn.ours):
                exchange.end_now()
                raise ClientGone() from None
            raise
        finally:
            if turn is not None:
                turn.end()


class Turn:
    """One request, while it has a handle for itself. Made by Uploads.writing."""

    def __init__(self, handle: Handle, writer: Writer, exchange: Exchange, patience: UploadPatience,
                 clock: IReactorTime) -> None:
        self.ours = True
        self._handle = handle
        self._writer = writer
        self._exchange = exchange
        self._patience = patience
        self._clock = clock
        self._reading: Deferred[bytes] | None = None

    def begin(self) -> None:
        """Be told when something ends it."""
        self._writer.on_ended = self._ended

    def end(self) -> None:
        """Let others have it; what was written stays."""
        self._writer.on_ended = lambda _why: None
        self._writer.release()

    @property
    def offset(self) -> int:
        """Length that is durable; where the next byte goes, unless something is on its way."""
        return self._writer.offset

    @property
    def size(self) -> int | None:
        """That of the file, as far as it is known."""
        return self._handle.status.size

    @property
    def whole(self) -> bool:
        """Whether all bytes have come, as far as the file's size is known."""
        return self.size is not None and self._handle.status.received == self.size

    async def set_size(self, size: int) -> None:
        """Raises BadSize, SizeConflict."""
        if size > FILE_MAX:
            raise BadSize(FILE_MAX, size)
        await self._writer.set_size(size)

    async def read(self) -> bytes:
        """As Exchange.read. Raises why the upload has failed, if it does meanwhile."""
        self._reading = Deferred.fromCoroutine(awaited(self._exchange.read()))
        try:
            return await self._reading
        except CancelledError:
            self._writer.check()
            raise
        finally:
            self._reading = None

    async def write(self, data: bytes) -> None:
        """The next bytes of the file. Raises what Writer.write raises; HelperAway."""
        await self._patiently(awaited(self._writer.write(data)), lambda d: d)

    async def append_body(self, written: Callable[[int], Awaitable[None]] | None = None) -> None:
        """The request's body is the next of the file; piece by piece as it comes. `written` is told what is durable."""
        while piece := await self.read():
            await self.write(piece)
            if written is not None:
                await written(self.offset)

    async def settle(self) -> int:
        """Wait until all that was written is durable. Returns the offset; raises HelperAway."""
        return await self._patiently(awaited(self._writer.settle()), _shielded)

    async def close(self) -> bytes:
        """The file is complete: its cap. Raises what Writer.close raises; HelperAway, and it goes on."""
        return await self._patiently(awaited(self._writer.close()), _shielded)

    async def close_soon(self) -> bytes:
        """The same, for one who only asks: raises HelperAway after a few seconds."""
        closing = _shielded(Deferred.fromCoroutine(awaited(self._writer.close())))
        try:
            return await closing.addTimeout(self._patience.helper_wait, self._clock)
        except TimedOut:
            raise HelperAway(RETRY_AFTER, self._handle.status.away) from None

    async def discard(self) -> None:
        """Nobody will ever ask for this upload."""
        self.ours = False
        self.end()
        await self._handle.cancel()

    async def _patiently(self, work: Awaitable[T], waiting: Callable[[Deferred[T]], Deferred[T]]) -> T:
        """Raises HelperAway when the helper has been away, and nothing got on, for the patience of uploads."""
        done = waiting(Deferred.fromCoroutine(awaited(work)))
        if done.called:
            return await done
        before, away = self._handle.status.offset, ""

        def look() -> None:
            nonlocal before, away
            status = self._handle.status
            if status.away and status.offset == before:
                away = status.away
                done.cancel()
            before = status.offset

        looking = LoopingCall(look)
        looking.clock = self._clock
        looking.start(self._patience.in_progress, now=False)
        try:
            return await done
        except CancelledError:
            if away:
                raise HelperAway(RETRY_AFTER, away) from None
            raise
        finally:
            looking.stop()

    def _ended(self, why: HandleError) -> None:
        if isinstance(why, TakenOver | Cancelled | GatewayStopping):
            self._exchange.end_now()
        elif self._reading is not None:
            self._reading.cancel()


def _shielded(work: Deferred[T]) -> Deferred[T]:
    """The result of `work`. If it is cancelled, `work` goes on: what is put into the journal must not be half done."""
    outer: Deferred[T] = Deferred()

    def done(result: object) -> None:
        if not outer.called:
            outer.callback(result)  # type: ignore[arg-type]

    work.addBoth(done)
    return outer


def result_headers(handle: Handle) -> list[tuple[str, str]]:
    """The cap of a finished upload, what became of it, and what is wrong with its link."""
    status = handle.status
    if status.state is not HandleState.FINISHED or status.cap is None:
        return []
    headers = [(CAP_HEADER, status.cap.decode("ascii"))]
    if status.outcome is not None:
        headers.append((DEDUP_HEADER, status.outcome.value))
    if isinstance(status.error, LinkFailed):
        headers.append((LINK_ERROR_HEADER, status.error.why))
    return headers
