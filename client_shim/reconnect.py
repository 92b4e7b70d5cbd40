"""An upload's link to its helper, which is found again when it breaks. Knows nothing of ciphertext."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from client_shim.errors import HelperLost, HelperRefused, HelperUnreachable, UploadError
from client_shim.helper_edge import HelperAnswer

T = TypeVar("T")

#: Seconds before the first attempt to find a lost helper; doubled before each further one, up to the second number.
BACKOFF_MIN = 0.25
BACKOFF_MAX = 10.0
#: How long (seconds) one attempt to find it may take.
ATTEMPT_MAX = 600.0
#: An upload that is over has one thing left to say, and tries no longer than so many seconds.
FAREWELL_PATIENCE = 5.0


class Link(Protocol):
    """What an upload needs of a helper: helper_edge.HelperLink."""

    largest_message: int

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]: ...
    def open(self, upload_id: bytes, parameters: dict[bytes, int]) -> Awaitable[HelperAnswer]: ...
    def put_ciphertext(self, upload_id: bytes, offset: int, data: bytes) -> Awaitable[HelperAnswer]: ...
    def status(self, upload_id: bytes) -> Awaitable[HelperAnswer]: ...
    def assign(self, upload_id: bytes, storage_index: bytes) -> Awaitable[HelperAnswer]: ...
    def order(self, upload_id: bytes, order: bytes) -> Awaitable[HelperAnswer]: ...
    def finish(self, upload_id: bytes, size: int, storage_index: bytes, crypttext_hash: bytes,
               crypttext_root_hash: bytes) -> Awaitable[HelperAnswer]: ...
    def abort(self, upload_id: bytes) -> Awaitable[HelperAnswer]: ...
    def look_up(self, upload_id: bytes, convergent_index: bytes) -> Awaitable[HelperAnswer]: ...
    def adopt(self, upload_id: bytes, storage_index: bytes) -> Awaitable[HelperAnswer]: ...
    def leave_record(self, upload_id: bytes, convergent_index: bytes, record: bytes) -> Awaitable[HelperAnswer]: ...


class Interrupted(Exception):
    """The connection was lost before the answer came; the call may or may not have been carried out."""


class Connection:
    """One connection to the helper, up to the moment when it is lost: a call ends then, too."""

    def __init__(self, link: Link, on_lost: Callable[[Connection, UploadError], None]) -> None:
        self.link = link
        self.lost = False
        self.answers = 0
        """How many calls were answered."""
        self._on_lost = on_lost
        self._calls: list[Deferred[HelperAnswer]] = []
        self._unwatch: Callable[[], None] = lambda: None

    def watch(self) -> None:
        """From now on it is lost when its link is."""
        self._unwatch = self.link.on_lost(lambda: self.lose(HelperLost()))

    def call(self, request: Callable[[Link], Awaitable[HelperAnswer]]) -> Deferred[HelperAnswer]:
        """The answer to `request`. Fails with Interrupted, whatever comes afterwards, if the connection is lost or
        the helper says that it is stopping; and with an UploadError if the helper refused, or broke the protocol.
        """
        if self.lost:
            return fail(Interrupted())
        call: Deferred[HelperAnswer] = Deferred(self._calls.remove)
        self._calls.append(call)

        def ended(result: HelperAnswer | Failure) -> None:
            if call not in self._calls:
                return
            if isinstance(result, Failure):
                error = result.value
                if isinstance(error, UploadError) and means_away(error):
                    self.lose(error)
                    return
                self._calls.remove(call)
                call.errback(result)
            else:
                self._calls.remove(call)
                self.answers += 1
                call.callback(result)

        Deferred.fromCoroutine(awaited(request(self.link))).addBoth(ended)
        return call

    def lose(self, why: UploadError) -> None:
        """It is lost: end every call."""
        if not self.lost:
            self.lost = True
            calls, self._calls = self._calls, []
            self._on_lost(self, why)
            for call in calls:
                call.errback(Interrupted())

    def let_go(self, why: UploadError) -> None:
        """Lose it though the link may stand, which then holds nothing of it any more: many uploads share a link."""
        self._unwatch()
        self.lose(why)


def means_away(error: UploadError) -> bool:
    """Whether `error` says that the helper is away, and may come back."""
    return (isinstance(error, HelperLost | HelperUnreachable) or asks_to_wait(error)
            or (isinstance(error, HelperRefused) and error.code == "helper-stopping"))


def asks_to_wait(error: UploadError) -> bool:
    """Whether the helper is there, and wants what was not acknowledged later (protocol.txt §7.5)."""
    return isinstance(error, HelperRefused) and error.code == "memory-short"


@attrs.frozen
class LinkEvents:
    """What the owner of a Reconnecting is asked and told."""

    #: The first calls of every connection. Fails as Connection.call does.
    greet: Callable[[Connection], Awaitable[object]]
    #: A connection was greeted, and is the one to use.
    connected: Callable[[Connection], None]
    #: It is lost.
    disconnected: Callable[[], None]
    #: It is not found again, for this reason.
    failed: Callable[[Failure], None]
    #: For people: the helper is away for this reason, and will be looked for for so many seconds.
    paused: Callable[[UploadError, float], None]
    #: For people: it is back after so many seconds.
    resumed: Callable[[float], None]


class Reconnecting:
    """A connection that is made again when it was lost, until `patience` seconds have passed without one.

    A connection on which the greeting alone was answered, and which lasted less than BACKOFF_MAX, is none: a helper
    that comes back only to fall again is not tried for ever, nor more and more often.

    Patience is used up by waits and attempts, each counted for no longer than it should take: a machine that slept, or
    whose clock was set, has not looked for the helper meanwhile.
    """

    def __init__(self, connect: Callable[[], Awaitable[Link]], clock: IReactorTime, patience: float,
                 events: LinkEvents) -> None:
        self.connection: Connection | None = None
        self._connect = connect
        self._clock = clock
        self._patience = patience
        self._events = events
        self._attempt: Deferred[None] | None = None
        self._greeting = False
        self._stopped = False
        self._leaving = False
        self._told_away = False
        self._connected_at = 0.0
        self._away: float | None = None  # seconds for which it was looked for, if it is away
        self._delay = BACKOFF_MIN
        self._why: UploadError = HelperLost()

    def start(self, patiently: bool = False) -> Deferred[None]:
        """Connect for the first time. Fails at once if no connection can be made: a helper that was never there may
        be one that never will be; unless `patiently`, when it is looked for as if it had been lost. A connection that
        is lost before its greeting is answered is made again.
        """
        self._attempt = Deferred.fromCoroutine(self._first(patiently))
        return self._attempt

    def stop(self, finish_greeting: bool = False) -> None:
        """Make no connection any more: end every attempt, unless it is greeting and may finish that."""
        self._stopped = True
        if self._attempt is not None and not (self._greeting and finish_greeting):
            self._attempt.cancel()

    def leave(self) -> None:
        """Let go of the connection, and of every call over it: they fail with Interrupted. No calls after this."""
        self.stop()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.let_go(self._why)
            self._events.disconnected()

    async def farewell(self, request: Callable[[Link], Awaitable[HelperAnswer]], reach: bool = False) -> None:
        """Make one last call over the connection, if there is one; if it is lost, or there is none and `reach`, over
        another, but not for long.

        Raises UploadError.
        """
        self._stopped = self._leaving = True
        connection = self.connection
        if connection is None and not reach:
            return
        try:
            if connection is not None:
                await connection.call(request)
                return
        except Interrupted:
            pass
        self._was_lost()
        await self._again(lambda another: another.call(request), FAREWELL_PATIENCE)

    async def _first(self, patiently: bool) -> None:
        try:
            link = await awaited(self._connect())
        except UploadError as e:
            if not (patiently and means_away(e)):
                raise
            self._why, found = e, False
        else:
            found = await self._greeted(link, self._events.greet)
        if not found:
            self._was_lost()
            await self._find_again()

    async def _again(self, greet: Callable[[Connection], Awaitable[object]], patience: float) -> None:
        """Try until there is a connection. Raises HelperLost after `patience`, and any other UploadError at once."""
        while True:
            if self._stopped and not self._leaving:
                raise CancelledError()
            began, delay = self._clock.seconds(), min(self._delay, self._patience_left(patience))
            await deferLater(self._clock, delay)
            self._was_away(began, delay)
            self._delay = min(2 * self._delay, BACKOFF_MAX)
            began, limit = self._clock.seconds(), min(ATTEMPT_MAX, self._patience_left(patience))
            attempt = Deferred.fromCoroutine(self._once(greet)).addTimeout(limit, self._clock)
            try:
                if await attempt:
                    return
            except TimedOut:
                pass
            except UploadError as e:
                if not means_away(e):
                    raise
            self._was_away(began, limit)

    def _patience_left(self, patience: float) -> float:
        """Seconds. Raises HelperLost if there are none."""
        away = self._away or 0.0
        if away >= patience:
            raise HelperLost(int(away)) if patience > 0 else self._why
        return patience - away

    def _was_away(self, since: float, at_most: float) -> None:
        if self._away is not None:
            self._away += min(max(0.0, self._clock.seconds() - since), at_most)

    async def _once(self, greet: Callable[[Connection], Awaitable[object]]) -> bool:
        return await self._greeted(await awaited(self._connect()), greet)

    async def _greeted(self, link: Link, greet: Callable[[Connection], Awaitable[object]]) -> bool:
        """Whether there is a connection now."""
        connection = Connection(link, self._on_lost)
        connection.watch()
        self._greeting = True
        try:
            await greet(connection)
        except Interrupted:
            return False
        except UploadError:
            if not connection.lost:
                self.connection = connection  # it stands: what was begun can be ended over it
            raise
        finally:
            self._greeting = False
        if connection.lost:
            self._events.disconnected()
            return False
        connection.answers = 0
        self.connection, self._connected_at = connection, self._clock.seconds()
        self._attempt = None
        if not self._stopped:
            if self._told_away and self._away is not None:
                self._told_away = False
                self._events.resumed(self._away)
            self._events.connected(connection)
        return True

    def _on_lost(self, connection: Connection, why: UploadError) -> None:
        self._why = why
        if connection is not self.connection:
            return  # it was not greeted yet: who greets will see it
        self.connection = None
        now = self._clock.seconds()
        if connection.answers or now - self._connected_at >= BACKOFF_MAX:
            self._away = None
        if self._away is not None and asks_to_wait(why):
            self._away = 0.0  # patience is for helpers that are away; but it is asked less and less often
        self._was_away(self._connected_at, BACKOFF_MAX)
        self._was_lost()
        self._events.disconnected()
        if not self._stopped:
            self._attempt = Deferred.fromCoroutine(self._find_again()).addErrback(self._not_found)

    def _was_lost(self) -> None:
        if self._away is None:
            self._away, self._delay = 0.0, BACKOFF_MIN

    async def _find_again(self) -> None:
        left = self._patience_left(self._patience)
        self._told_away = True
        self._events.paused(self._why, left)
        await self._again(self._events.greet, self._patience)

    def _not_found(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._events.failed(failure)


async def awaited(awaitable: Awaitable[T]) -> T:
    """A coroutine for any awaitable."""
    return await awaitable
