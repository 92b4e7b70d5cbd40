"""One request on an HTTP/1.1 connection: exchange.Exchange over h11."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import h11
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from client_shim.gateway.backpressure import Outgoing
from client_shim.gateway.exchange import BadBody, BodyTooSlow, ClientGone, HeaderList, RequestHead, on_the_wire
from client_shim.gateway.reading import Reading


def reason_of(status: int) -> bytes:
    """The words after a status; none for one that is not registered."""
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


def answer_without_request(status: int, reason: str) -> bytes:
    """A whole answer on a connection that is closed after it, to what is no request that could have a handler."""
    parser = h11.Connection(h11.SERVER)
    body = f"{reason}\n".encode("ascii")
    headers = [("Content-Type", "text/plain;charset=utf-8"), ("Content-Length", str(len(body))),
               ("Date", formatdate(usegmt=True)), ("Referrer-Policy", "no-referrer"), ("Connection", "close")]
    events = (h11.Response(status_code=status, headers=headers, reason=reason_of(status)), h11.Data(data=body),
              h11.EndOfMessage())
    return b"".join(parser.send(event) or b"" for event in events)


class HttpExchange:
    """exchange.Exchange over h11."""

    def __init__(self, parser: h11.Connection, head: RequestHead, peer: str, transport: Any, reading: Reading,
                 outgoing: Outgoing, timeout: float, clock: IReactorTime) -> None:
        self.head = head
        self.peer = peer
        self.status: int | None = None
        self.received = 0
        self.sent = 0
        self.body_ended = False
        self.ended = False
        self._parser = parser
        self._transport = transport
        self._reading = reading
        self._outgoing = outgoing
        self._timeout = timeout
        self._clock = clock
        self._abandoned = False
        self._always: list[tuple[str, str]] = []
        self._bodiless = False  # the answer has no body, whatever its head says
        self._lost = False
        self._failed: ClientGone | None = None
        self._continue_expected = False
        self._waiting: Deferred[None] | None = None
        self._on_gone: list[Callable[[], None]] = []

    # -- for the connection ----------------------------------------------------------------------------------

    @property
    def wants_bytes(self) -> bool:
        """Whether what comes belongs to this request."""
        return not self.body_ended

    def start(self, rest: bytes) -> None:
        """`rest` came with the head."""
        self._continue_expected = self._parser.they_are_waiting_for_100_continue and not rest
        if rest:
            self._parser.receive_data(rest)
        if not self.head.has_body:
            self._parser.next_event()  # its end
            self.body_ended = True
        elif self.head.content_length is not None:
            self._reading.length_is_known()

    def bytes_came(self, data: bytes) -> None:
        """More of the body."""
        self._parser.receive_data(data)
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            self._reading.pause()
        else:
            waiting.callback(None)

    def connection_lost(self) -> None:
        """Nothing comes any more, and nothing can be sent."""
        self._lost = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)
        callbacks, self._on_gone = self._on_gone, []
        if not self.ended:
            for callback in callbacks:
                callback()

    def rest(self) -> bytes | None:
        """The answer has ended. What came after the body; None if the connection cannot be used again."""
        if self._parser.our_state is not h11.DONE or self._parser.their_state is not h11.DONE:
            return None
        rest, _closed = self._parser.trailing_data
        if rest and "transfer-encoding" in self.head.headers:
            return None  # h11 is lenient about the lines after the last chunk, so where it ends is open to dispute
        return rest

    # -- for handlers ----------------------------------------------------------------------------------------

    def on_gone(self, callback: Callable[[], None]) -> None:
        if self._lost:
            callback()
        else:
            self._on_gone.append(callback)

    async def read(self) -> bytes:
        if self._failed is not None:
            raise self._failed
        if self.body_ended:
            return b""
        if self._continue_expected:
            self._continue_expected = False
            if self.status is not None:
                self._fail(ClientGone())  # the answer has begun without the body, which will not be sent
            self._send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        while True:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError:
                self._fail(BadBody())
            if isinstance(event, h11.Data):
                self.received += len(event.data)
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                self.body_ended = True
                self._reading.resume()  # to see the client go
                return b""
            await self._more()

    async def _more(self) -> None:
        if self._lost or self._abandoned:
            self._fail(ClientGone())
        waiting: Deferred[None] = Deferred(self._not_waiting)
        self._waiting = waiting
        timer = self._clock.callLater(self._timeout, self._too_slow, waiting)
        self._reading.resume()
        try:
            await waiting
        except ClientGone as e:
            self._fail(e)
        finally:
            if timer.active():
                timer.cancel()

    def _not_waiting(self, _cancelled: Deferred[None]) -> None:
        self._waiting = None

    def _too_slow(self, waiting: Deferred[None]) -> None:
        self._waiting = None
        waiting.errback(BodyTooSlow(int(self._timeout)))

    def _fail(self, error: ClientGone) -> None:
        self._failed = error
        raise error

    def answer_always_with(self, headers: HeaderList) -> None:
        self._always += headers

    def abandon_body(self) -> None:
        if not self.body_ended:
            self._abandoned = True

    async def inform(self, status: int, headers: HeaderList) -> None:
        if self.head.http_version != "1.0" and self.status is None:
            self._send(h11.InformationalResponse(
                status_code=status, headers=on_the_wire(headers), reason=reason_of(status)))
            await self._taken()

    async def respond(self, status: int, headers: HeaderList = (), body: bytes = b"") -> None:
        headers = list(headers)
        if status not in (204, 304):
            headers.append(("Content-Length", str(len(body))))
        await self.begin(status, headers)
        if body:
            await self.write(body)
        await self.end()

    async def begin(self, status: int, headers: HeaderList) -> None:
        headers = list(headers)
        given = {name.lower() for name, _value in headers}
        headers += [(name, value) for name, value in (("Date", formatdate(usegmt=True)), *self._always)
                    if name.lower() not in given]
        if not self.body_ended:
            self._abandoned = True
            headers.append(("Connection", "close"))
        self._send(h11.Response(status_code=status, headers=on_the_wire(headers), reason=reason_of(status)))
        self.status = status
        self._bodiless = self.head.method == "HEAD" or status in (204, 304)

    async def write(self, data: bytes) -> None:
        if data and not self._bodiless:
            self._send(h11.Data(data=data))
            self.sent += len(data)
        await self._taken()

    async def end(self) -> None:
        self._send(h11.EndOfMessage())
        self.ended = True

    def end_now(self) -> None:
        self._transport.abortConnection()

    def _send(self, event: h11.Event) -> None:
        if self._lost:
            raise ClientGone()
        self._transport.write(self._parser.send(event))

    async def _taken(self) -> None:
        """Wait until the client has taken most of what was sent."""
        if self._lost:
            raise ClientGone()
        if self._outgoing.paused:
            timer = self._clock.callLater(self._timeout, self._transport.abortConnection)
            try:
                await self._outgoing.wait()
            finally:
                if timer.active():
                    timer.cancel()
