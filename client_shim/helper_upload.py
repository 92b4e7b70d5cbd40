"""One upload as the helper sees it: ciphertext in, UEB out, over any number of connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.internet.defer import TimeoutError as TimedOut
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
#: For so long (seconds) at most an answer of the helper, which is to say that it waits, counts as waiting.
WAITING_ANSWER_MAX = 60.0
#: How long (seconds) an answer to look_up is waited for. The helper itself takes no longer than a second, but on a slow
#: link what is on its way comes first.
LOOK_UP_PATIENCE = 5.0


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
    #: There is a connection, over which the upload goes on.
    connected: Callable[[], None] = lambda: None


@attrs.frozen
class Begun:
    """An upload that another process may have begun. Nothing but what is said here is known of it."""

    #: Length that was acknowledged for certain; if it is 0 the helper may never have heard of the upload.
    durable: int
    #: The ciphertext that follows, which may have been sent.
    ring: tuple[bytes, ...] = attrs.field(default=(), repr=False)
    #: `finish` may have been called.
    finishing: bool = False
    #: `adopt` may have been called.
    adopting: bool = False


class HelperUpload:
    """An upload at a helper. `outbox` tells how far it is.

    Calls raise an UploadError when it has failed; the first error is the one that every later call raises. A helper
    that is away makes them wait (reconnect.py). Not safe for two calls at a time, but for `fail` and `abort`.

    With `begun` it goes on with what another process began: `start` instead of `open`, and `give` for `send` if nobody
    is to wait.
    """

    def __init__(self, connect: Callable[[], Awaitable[Link]], clock: IReactorTime, upload_id: bytes,
                 parameters: Parameters, storage_index: bytes, reveal: RevealStorageIndex, patience: float,
                 events: UploadEvents, begun: Begun | None = None) -> None:
        self.outbox = Outbox() if begun is None else Outbox(begun.durable, begun.ring)
        self.error: UploadError | None = None
        self._clock = clock
        self._upload_id = upload_id
        self._parameters = parameters
        self._storage_index = storage_index
        self._disclosure = Disclosure(reveal, storage_index)
        self._events = events
        self._helper = Reconnecting(connect, clock, patience, LinkEvents(
            self._greet, self._connected, self.outbox.disconnected, self._failed, events.paused, events.resumed))
        self._opened = begun is not None and begun.durable > 0  # there is an upload at the helper
        self._may_be_open = begun is not None
        self._credit = self._largest_message = 0  # as `open` said
        self._resumed = False  # over a second connection, or a later one
        self._finishing = begun is not None and begun.finishing
        self._looks_up = False  # whether the helper knows look_up
        self._adopting = begun is not None and begun.adopting
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

    def start(self) -> None:
        """Begin to look for the helper, and open the upload or go on with it; waits for nothing. A helper that cannot
        be reached is looked for like one that was lost."""

        def failed(failure: Failure) -> None:
            if failure.check(CancelledError) is None:
                self._failed(failure)

        self._helper.start(patiently=True).addErrback(failed)

    @property
    def connected(self) -> bool:
        """Whether there is a connection, over which the upload goes on."""
        return self._helper.connection is not None

    def give(self, ciphertext: bytes) -> None:
        """The next bytes, to be sent when that is possible; whoever gives them bounds what waits."""
        self.outbox.add(ciphertext)
        self._send()

    async def send(self, ciphertext: bytes) -> None:
        """Send the next bytes. Returns when they are on their way, but for less than a message."""
        self.outbox.add(ciphertext)
        await self._sending_done()

    def complete(self) -> None:
        """All was given: send what is left, and wait for nothing."""
        self.outbox.complete()
        self._send()

    async def finish(self, hashes: CiphertextHashes) -> bytes:
        """All was sent. Returns the UEB as the helper tells it. Raises Waiting when the helper has waited for servers
        too long, counted in steps: a machine that slept, or whose clock was set, has not waited meanwhile.
        """
        self.outbox.complete()
        waited: float | None = None  # seconds; None if the helper did not say that it waits
        while True:
            await self._sending_done()
            connection = self._helper.connection
            if connection is None:
                raise RuntimeError("nothing has to be sent, over no connection")
            self._finishing = True
            asked_at = self._clock.seconds()
            try:
                # Not after the last acknowledgement: finish waits for it at the helper, and saves a round trip.
                answer = await connection.call(lambda link: link.finish(
                    self._upload_id, hashes.size, self._storage_index, hashes.crypttext_hash,
                    hashes.crypttext_root_hash))
            except Interrupted:
                waited = None
                continue
            if answer.code != "waiting":
                break
            waited = 0.0 if waited is None else waited + self._step(asked_at, WAITING_ANSWER_MAX)
            if waited > WAITING_PATIENCE:
                raise Waiting(answer.number("have"), answer.number("need"), int(waited))
            answered_at = self._clock.seconds()
            await deferLater(self._clock, WAITING_INTERVAL)
            waited += self._step(answered_at, WAITING_INTERVAL)
        self.check()  # fail() may have come meanwhile, or a wrong answer to a message
        self.outbox.all_acknowledged()
        self._helper.stop()
        ueb = answer.fields.get("ueb")
        return ueb if isinstance(ueb, bytes) else b""

    # -- files that are stored already (dedup.py) --------------------------------------------------------------

    async def reached(self) -> None:
        """Wait until there is a connection, over which the upload goes on."""
        await self._standing_connection()

    async def look_up(self, convergent_index: bytes) -> Mapping[str, int | bytes] | None:
        """The fields of the answer (protocol.txt §4.8); None if the helper has none, or none in time. What was given
        to be sent goes on being sent meanwhile."""
        self.check()
        connection = self._helper.connection
        if connection is None or not self._looks_up:
            return None
        asking = connection.call(lambda link: link.look_up(self._upload_id, convergent_index))
        try:
            answer = await asking.addTimeout(LOOK_UP_PATIENCE, self._clock)
        except (Interrupted, UploadError, TimedOut):
            answer = None
        self.check()
        return None if answer is None else answer.fields

    async def adopt(self, storage_index: bytes) -> bool:
        """Whether the upload has ended in favour of another file (§4.9). If the helper does not want that, it goes on
        as if nothing had been asked; if the answer is lost it is asked for again, as for that of `finish`."""
        self._adopting = True
        while True:
            try:
                connection = await self._standing_connection()
                await connection.call(lambda link: link.adopt(self._upload_id, storage_index))
                break
            except Interrupted:
                continue
            except HelperRefused:
                self._adopting = False
                self.check()
                return False
        self.check()
        self.outbox.all_acknowledged()
        self._helper.stop()
        return True

    def leave_record(self, convergent_index: bytes, record: bytes) -> Deferred[None]:
        """Leave a sealed record of the finished upload (§4.10). Fires when that is done, or has failed."""
        connection = self._helper.connection
        if connection is None:
            return succeed(None)
        leaving = connection.call(lambda link: link.leave_record(self._upload_id, convergent_index, record))

        def failed(failure: Failure) -> None:
            failure.trap(UploadError, Interrupted)  # only a deduplication less

        return leaving.addCallbacks(lambda _answer: None, failed)

    async def abort(self) -> None:
        """Give it up at the helper, if it is open there. At most once, however many want it; all wait for it."""
        async with self._aborting:
            if (self._opened or self._may_be_open) and not self._aborted:
                self._aborted = True
                try:
                    await self._helper.farewell(lambda link: link.abort(self._upload_id), reach=self._may_be_open)
                except UploadError:
                    pass  # the helper is gone, or has ended the upload itself; it expires there

    def leave(self) -> None:
        """Let it be, as it is at the helper, for another process or another time. Calls that wait, and all later ones,
        raise UploadClosed."""
        if self.error is None:
            self.error = UploadClosed()
        self._helper.leave()
        self._make_room()

    def check(self) -> None:
        """Raises why it has failed, if it has."""
        if self.error is not None:
            raise self.error

    def fail(self, error: UploadError) -> None:
        """It is over; the first error stays. Whoever waits is woken, and a lost helper is not looked for any more."""
        if self.error is None:
            self.error = error
        # An `open` that is under way may go on: what it opens has to be aborted.
        self._helper.stop(finish_greeting=not (self._opened or self._may_be_open))
        self._make_room()

    def _step(self, since: float, at_most: float) -> float:
        """Seconds that a step took, which began at `since`; the clock may have been set meanwhile."""
        return min(max(0.0, self._clock.seconds() - since), at_most)

    # -- connections -----------------------------------------------------------------------------------------

    async def _greet(self, connection: Connection) -> None:
        """Open the upload at the helper (protocol.txt §4.1), or go on with it (§4.3)."""
        if not self._opened:
            answer = await connection.call(lambda link: link.open(self._upload_id, self._parameters.to_wire()))
            self._opened = True
            needed, seeds = answer.number("storage-index-needed"), answer.fields.get("permutation-seeds")
            if isinstance(seeds, int):
                raise HelperMisbehaved("its permutation-seeds are a number")
            self._disclosure.opened(bool(needed), seeds)
            self._limits(answer, answer.number("largest-message"))
            durable = self._durable(answer) if self._may_be_open else 0
        else:
            answer = await connection.call(lambda link: link.status(self._upload_id))
            self._resumed = True
            if not self._credit:
                self._limits(answer, connection.link.largest_message)
            durable = self._durable(answer)
            self._hear_whether_needed(answer)
        self._looks_up = answer.fields.get("looks-up") == 1
        largest = max(1, min(connection.link.largest_message, self._largest_message))
        self.outbox.connected(SendWindow(max(1, self._credit), largest), durable)

    def _limits(self, answer: HelperAnswer, largest_message: int) -> None:
        """The credit of an answer is what is left of that of a new upload: protocol.txt §7.1."""
        self._largest_message = largest_message
        held = answer.number("received") - answer.number("durable") if "received" in answer.fields else 0
        self._credit = answer.number("credit") + max(0, held)

    def _durable(self, answer: HelperAnswer) -> int:
        """Where to go on with an upload that was there before. Raises HelperRefused if it has ended there."""
        if (reason := answer.text("reason")) and not (self._adopting and reason == "deduplicated"):
            raise HelperRefused(reason, f"the upload ended at the helper while it was away: {reason}", {})
        durable = answer.number("durable")
        self._resumed = self._resumed or durable > 0 or answer.fields.get("received", 0) != 0
        if ((self._finishing and answer.text("state") == "finished")
                or (self._adopting and answer.text("state") == "deduplicated")):
            return self.outbox.sent  # `finish` or `adopt` was carried out, and says the rest
        return durable

    def _connected(self, connection: Connection) -> None:
        for statement in self._disclosure.unanswered:
            self._say(connection, statement)
        self._send()
        self._make_room()
        self._events.connected()

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

    async def _standing_connection(self) -> Connection:
        """Wait until there is one."""
        self.check()
        while (connection := self._helper.connection) is None:
            self._room = Deferred()
            await self._room
            self.check()
        return connection

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
            code = error.code if isinstance(error, HelperRefused) else None
            if self._adopting and code == "deduplicated":
                return  # the answer to `adopt` says the rest; if that is lost these bytes may be wanted again
            if not (self._finishing and code == "already-finishing"):
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
