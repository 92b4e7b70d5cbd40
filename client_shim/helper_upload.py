"""One upload as the helper sees it: ciphertext in, UEB out, over any number of connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from client_shim.disclosure import Assign, Disclosure, Order, RevealStorageIndex, Statement
from client_shim.errors import HelperMisbehaved, HelperRefused, UploadClosed, UploadError, Waiting
from client_shim.helper_edge import HelperAnswer
from client_shim.outbox import Message, Outbox
from client_shim.reconnect import Connection, Interrupted, Link, LinkEvents, Reconnecting
from client_shim.window import SendWindow
from helper.ciphertext import CiphertextHashes
from helper.parameters import Parameters

T = TypeVar("T")

#: How often (seconds) finish is asked again while the helper waits for servers, and for how long.
WAITING_INTERVAL = 1.0
WAITING_PATIENCE = 3600


@attrs.frozen
class UploadEvents:
    """What happens to an upload by itself, between calls too."""

    #: Bytes were acknowledged.
    progress: Callable[[], None]
    #: It has failed; every call raises why.
    failed: Callable[[], None]
    #: The helper was lost for this reason, and is looked for for so many seconds.
    paused: Callable[[UploadError, float], None]
    #: It is back after so many seconds.
    resumed: Callable[[float], None]


class HelperUpload:
    """An upload at a helper. `outbox` tells how far it is.

    Calls raise an UploadError when it has failed; the first error is the one that every later call raises. A helper
    that is away makes them wait (reconnect.py). Not safe for two calls at a time, but for `fail` and `abort`.
    """

    def __init__(self, connect: Callable[[], Awaitable[Link]], clock: IReactorTime, upload_id: bytes,
                 parameters: Parameters, storage_index: bytes, reveal: RevealStorageIndex, patience: float,
                 events: UploadEvents) -> None:
        self.outbox = Outbox()
        self.error: UploadError | None = None
        self._clock = clock
        self._upload_id = upload_id
        self._parameters = parameters
        self._storage_index = storage_index
        self._disclosure = Disclosure(reveal, storage_index)
        self._events = events
        self._helper = Reconnecting(connect, clock, patience, LinkEvents(
            self._greet, self._connected, self.outbox.disconnected, self._failed, events.paused, events.resumed))
        self._opened = False  # there is an upload at the helper
        self._credit = self._largest_message = 0  # as `open` said
        self._resumed = False  # over a second connection, or a later one
        self._finishing = False
        self._room: Deferred[None] | None = None  # fires when more may be sent, or nothing ever
        self._aborted = False
        self._aborting = DeferredLock()

    async def open(self) -> None:
        """Open it, unless it is open. A helper that cannot be reached, the first time, is an error at once."""
        if self._opened:
            return
        try:
            await self._helper.start()
        except CancelledError:
            raise UploadClosed() from None
        self.check()  # fail() may have come meanwhile

    async def send(self, ciphertext: Iterable[bytes]) -> None:
        """Send the next bytes, in pieces. Returns when they are on their way, but for less than a message."""
        for piece in ciphertext:
            self.outbox.add(piece)
        await self._sending_done()

    async def finish(self, hashes: CiphertextHashes) -> bytes:
        """All was sent. Returns the UEB as the helper tells it."""
        self.outbox.complete()
        waiting_since: float | None = None
        while True:
            await self._sending_done()
            connection = self._helper.connection
            if connection is None:
                raise RuntimeError("nothing has to be sent, over no connection")
            self._finishing = True
            try:
                # Not after the last acknowledgement: finish waits for it at the helper, and saves a round trip.
                answer = await connection.call(lambda link: link.finish(
                    self._upload_id, hashes.size, self._storage_index, hashes.crypttext_hash,
                    hashes.crypttext_root_hash))
            except Interrupted:
                waiting_since = None
                continue
            if answer.code != "waiting":
                break
            now = self._clock.seconds()
            waiting_since = now if waiting_since is None else waiting_since
            if now - waiting_since > WAITING_PATIENCE:
                raise Waiting(answer.number("have"), answer.number("need"), int(now - waiting_since))
            await deferLater(self._clock, WAITING_INTERVAL)
        self.check()  # fail() may have come meanwhile, or a wrong answer to a message
        self.outbox.all_acknowledged()
        self._helper.stop()
        ueb = answer.fields.get("ueb")
        return ueb if isinstance(ueb, bytes) else b""

    async def abort(self) -> None:
        """Give it up at the helper, if it is open there. At most once, however many want it; all wait for it."""
        async with self._aborting:
            if self._opened and not self._aborted:
                self._aborted = True
                try:
                    await self._helper.farewell(lambda link: link.abort(self._upload_id))
                except UploadError:
                    pass  # the helper is gone, or has ended the upload itself; it expires there

    def check(self) -> None:
        """Raises why it has failed, if it has."""
        if self.error is not None:
            raise self.error

    def fail(self, error: UploadError) -> None:
        """It is over; the first error stays. Whoever waits is woken, and a lost helper is not looked for any more."""
        if self.error is None:
            self.error = error
        # An `open` that is under way may go on: what it opens has to be aborted.
        self._helper.stop(finish_greeting=not self._opened)
        self._make_room()

    # -- connections -----------------------------------------------------------------------------------------

    async def _greet(self, connection: Connection) -> None:
        """Open the upload at the helper (protocol.txt §4.1), or go on with it (§4.3)."""
        if not self._opened:
            answer = await connection.call(lambda link: link.open(self._upload_id, self._parameters.to_wire()))
            self._opened = True
            self._largest_message = answer.number("largest-message")
            self._credit = answer.number("credit")
            needed, seeds = answer.number("storage-index-needed"), answer.fields.get("permutation-seeds")
            if isinstance(seeds, int):
                raise HelperMisbehaved("its permutation-seeds are a number")
            self._disclosure.opened(bool(needed), seeds)
            durable = 0
        else:
            answer = await connection.call(lambda link: link.status(self._upload_id))
            if reason := answer.text("reason"):
                raise HelperRefused(reason, f"the upload ended at the helper while it was away: {reason}", {})
            self._resumed = True
            self._hear_whether_needed(answer)
            durable = answer.number("durable")
            if self._finishing and answer.text("state") == "finished":
                durable = self.outbox.sent  # `finish` was carried out, and says the rest
        largest = max(1, min(connection.link.largest_message, self._largest_message))
        self.outbox.connected(SendWindow(max(1, self._credit), largest), durable)

    def _connected(self, connection: Connection) -> None:
        for statement in self._disclosure.unanswered:
            self._say(connection, statement)
        self._send()
        self._make_room()

    def _hear_whether_needed(self, answer: HelperAnswer) -> list[Statement]:
        needed = answer.fields.get("storage-index-needed") == 1
        return self._disclosure.answer_says_needed() if needed else []

    def _say(self, connection: Connection, statement: Statement) -> None:
        """Not awaited: it would cost a round trip, and ciphertext can follow at once."""

        def answered(_answer: HelperAnswer | None) -> None:
            self._disclosure.answered(statement)

        match statement:
            case Assign(storage_index):
                call = connection.call(lambda link: link.assign(self._upload_id, storage_index))
            case Order(order):
                call = connection.call(lambda link: link.order(self._upload_id, order))
                call.addErrback(lambda failure: failure.trap(UploadError) and None)  # a hint, and no more
        self._in_background(call, answered)

    # -- ciphertext ------------------------------------------------------------------------------------------

    async def _sending_done(self) -> None:
        """Wait until all is sent that is worth sending, over a connection that stands."""
        self.check()
        self._send()
        while self.outbox.must_wait:
            self._room = Deferred()
            await self._room
            self.check()
            self._send()

    def _send(self) -> None:
        """Send what may be sent now."""
        while self.error is None and (connection := self._helper.connection) is not None:
            message = self.outbox.next_message(self._clock.seconds())
            if message is None:
                return
            self._send_message(connection, message)

    def _send_message(self, connection: Connection, message: Message) -> None:

        def acknowledged(answer: HelperAnswer) -> None:
            self.outbox.acknowledged(message, answer.number("durable"), self._clock.seconds())
            self._events.progress()
            if self.error is None:
                for statement in self._hear_whether_needed(answer):
                    self._say(connection, statement)
            self._send()  # what `write` left behind, too
            self._make_room()

        def refused(failure: Failure) -> None:
            """Some only mean that the helper is not done yet with a connection that was lost: protocol.txt §7.2."""
            error = failure.value
            if self._resumed and isinstance(error, HelperRefused) and error.code == "credit-exceeded":
                connection.lose(error)
                raise Interrupted()
            if not (self._finishing and isinstance(error, HelperRefused) and error.code == "already-finishing"):
                failure.raiseException()
            self.outbox.all_acknowledged()
            self._make_room()

        call = connection.call(lambda link: link.put_ciphertext(self._upload_id, message.offset, message.data))
        self._in_background(call.addCallbacks(acknowledged, refused), lambda _none: None)

    def _in_background(self, answer: Deferred[T], then: Callable[[T], None]) -> None:
        """Go on with `then` when the answer comes. If it is a refusal, the upload has failed; if the connection is
        lost before it comes, what has to be asked again is asked over the next."""

        def not_answered(failure: Failure) -> None:
            if failure.check(Interrupted) is None:
                self._failed(failure)

        answer.addCallback(then).addErrback(not_answered)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        self.fail(error if isinstance(error, UploadError) else _unexpected(failure))
        self._events.failed()

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)


def _unexpected(failure: Failure) -> UploadError:
    return HelperMisbehaved(f"its answer made {type(failure.value).__name__} here")
