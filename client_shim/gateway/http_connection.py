"""HTTP/1.1 of one connection: h11 inside a Twisted protocol, with backpressure both ways. No rules but HTTP's."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import attrs
import h11
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from client_shim.gateway.backpressure import Outgoing
from client_shim.gateway.exchange import (
    BadBody,
    BodyTooSlow,
    ClientGone,
    Handler,
    HeaderList,
    Headers,
    RequestHead,
    on_the_wire,
)
from client_shim.gateway.receive_window import LARGEST, ReceiveWindow, is_loopback
from client_shim.gateway.strict_head import HEAD_END, MalformedHead, check_beginning, check_head

#: Bytes of a request's head. Caps in paths and metadata of uploads are long, but not so long.
HEAD_MAX = 32 * 1024
#: h11's own bound, for what follows the head: sizes of chunks, trailers.
_INCOMPLETE_MAX = HEAD_MAX + 1024
#: Seconds for which the rest of a body that nobody wants is read and dropped, so that the client sees the answer: who
#: closes a connection with unread bytes makes the kernel reset it, and the answer is lost.
LINGER = 5.0

_log = Logger()


@attrs.frozen
class Timeouts:
    """Seconds. `head`: in which a head must be complete; `body`: in which a body that is waited for brings something,
    or the client takes something of the answer; `idle`: between requests."""

    head: float = 30
    body: float = 24 * 3600
    idle: float = 60


@attrs.frozen
class ConnectionEvents:
    """What the owner of a connection is told."""

    #: A request was refused before it had a handler, with this status.
    refused: Callable[[int], None] = lambda _status: None
    closed: Callable[[HttpConnection], None] = lambda _connection: None


class HttpConnection(Protocol):
    """One client's connection: gives each request to `handler`, one after the other."""

    transport: Any

    def __init__(self, handler: Handler, timeouts: Timeouts, clock: IReactorTime,
                 events: ConnectionEvents | None = None) -> None:
        self._handler = handler
        self._timeouts = timeouts
        self._clock = clock
        self._events = ConnectionEvents() if events is None else events
        self._outgoing = Outgoing(ClientGone)
        self._window = ReceiveWindow()
        self._head = bytearray()
        self._exchange: _Exchange | None = None
        self._timer: IDelayedCall | None = None
        self._closing = False
        self.peer = ""

    # -- the transport ---------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.peer = str(getattr(self.transport.getPeer(), "host", "local"))
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)
            self.transport.setTcpNoDelay(True)
            if not is_loopback(self.peer):
                self._set_receive_buffer(LARGEST)  # the network between has latency, and its own ideas
        self.transport.registerProducer(self._outgoing, True)
        self._set_timer(self._timeouts.head, self._head_too_slow)

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        if self._window.took(len(data), self._clock.seconds()):
            self._set_receive_buffer(self._window.size)
        if self._exchange is not None and self._exchange.wants_bytes:
            self._exchange.bytes_came(data)
            return
        before = len(self._head)
        self._head += data
        if self._exchange is None:
            if before == 0:
                self._set_timer(self._timeouts.head, self._head_too_slow)
            self._look_for_head(before)
        else:
            self.transport.pauseProducing()  # of the next request, whose turn comes

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        self._closing = True
        self._cancel_timer()
        self._outgoing.stopProducing()
        if self._exchange is not None:
            self._exchange.connection_lost()
        self._events.closed(self)

    def _set_receive_buffer(self, size: int) -> None:
        handle = getattr(self.transport, "getHandle", lambda: None)()
        if isinstance(handle, socket.socket):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def close_now(self) -> None:
        """Cut the connection."""
        self.transport.abortConnection()

    # -- heads -----------------------------------------------------------------------------------------------

    def _look_for_head(self, checked: int) -> None:
        try:
            end = self._head.find(HEAD_END, max(0, checked - len(HEAD_END)))
            complete = end >= 0
            size = end + len(HEAD_END) if complete else len(self._head)
            if size > HEAD_MAX:
                raise MalformedHead(431, f"a head has at most {HEAD_MAX} bytes")
            if not complete:
                check_beginning(self._head, checked)
                return
            head, rest = bytes(self._head[:size]), bytes(self._head[size:])
            check_head(head)
            parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_INCOMPLETE_MAX)
            parser.receive_data(head)
            request = parser.next_event()
        except MalformedHead as e:
            self._refuse(e.status, str(e))
            return
        except h11.RemoteProtocolError as e:
            self._refuse(e.error_status_hint, "the head is not one of HTTP/1.1")
            return
        if not isinstance(request, h11.Request):
            self._refuse(400, "the head is not one of HTTP/1.1")
            return
        self._head.clear()
        self._cancel_timer()
        self._begin(parser, _head_of(request), rest)

    def _begin(self, parser: h11.Connection, head: RequestHead, rest: bytes) -> None:
        exchange = _Exchange(parser, head, self.peer, self.transport, self._outgoing, self._timeouts.body, self._clock)
        self._exchange = exchange
        exchange.start(rest)
        Deferred.fromCoroutine(self._handle(exchange)).addErrback(self._handler_broke)

    async def _handle(self, exchange: _Exchange) -> None:
        try:
            await self._handler(exchange)
        except ClientGone:
            pass
        if self._closing:
            return
        if not exchange.ended:
            self.close_now()
            return
        self._exchange = None
        rest = exchange.rest()
        if rest is None:
            self._close(linger=not exchange.body_ended)
            return
        # what came after a body, and what came while it was dealt with
        self._head[:0] = rest
        self._set_timer(self._timeouts.head if self._head else self._timeouts.idle, self._head_too_slow)
        self.transport.resumeProducing()
        if self._head:
            # not at once: a thousand small requests in one packet would be as many frames of the stack
            self._clock.callLater(0, self._next_head)

    def _next_head(self) -> None:
        if not self._closing and self._exchange is None:
            self._look_for_head(0)

    def _handler_broke(self, failure: Failure) -> None:
        # where, but not the exception's own text: it may quote caps
        _log.error("a request could not be answered: {kind}\n{where}", kind=type(failure.value).__name__,
                   where="".join(traceback.format_tb(failure.getTracebackObject())))
        if not self._closing:
            self.close_now()

    # -- ends ------------------------------------------------------------------------------------------------

    def _refuse(self, status: int, reason: str, *, linger: bool = True) -> None:
        """Answer what has no handler, and close."""
        parser = h11.Connection(h11.SERVER)
        body = f"{reason}\n".encode("ascii")
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))),
                   ("Referrer-Policy", "no-referrer"), ("Connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers, reason=_reason(status)),
                      h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(parser.send(event))
        self._events.refused(status)
        self._head.clear()
        self._close(linger=linger)

    def _close(self, *, linger: bool) -> None:
        self._closing = True
        self._cancel_timer()
        self.transport.unregisterProducer()
        if not linger or ISSLTransport.providedBy(self.transport):  # TLS cannot close one direction
            self.transport.loseConnection()
            return
        self._set_timer(LINGER, self.close_now)
        self.transport.loseWriteConnection()
        self.transport.resumeProducing()

    def _head_too_slow(self) -> None:
        self._timer = None
        if self._head:
            self._refuse(408, f"a head must be complete in {self._timeouts.head:g} seconds", linger=False)
        else:
            self._close(linger=False)

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self._clock.callLater(seconds, then)

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _head_of(request: h11.Request) -> RequestHead:
    fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw_items())
    return RequestHead(request.method.decode("ascii"), request.target.decode("latin-1"), Headers(fields),
                       request.http_version.decode("ascii"))


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


class _Exchange:
    """exchange.Exchange over h11."""

    def __init__(self, parser: h11.Connection, head: RequestHead, peer: str, transport: Any, outgoing: Outgoing,
                 timeout: float, clock: IReactorTime) -> None:
        self.head = head
        self.peer = peer
        self.status: int | None = None
        self.received = 0
        self.sent = 0
        self.body_ended = False
        self.ended = False
        self._parser = parser
        self._transport = transport
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

    def bytes_came(self, data: bytes) -> None:
        """More of the body."""
        self._parser.receive_data(data)
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            self._transport.pauseProducing()
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
                self._transport.resumeProducing()  # to see the client go
                return b""
            await self._more()

    async def _more(self) -> None:
        if self._lost or self._abandoned:
            self._fail(ClientGone())
        waiting: Deferred[None] = Deferred(self._not_waiting)
        self._waiting = waiting
        timer = self._clock.callLater(self._timeout, self._too_slow, waiting)
        self._transport.resumeProducing()
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
                status_code=status, headers=on_the_wire(headers), reason=_reason(status)))
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
        self._send(h11.Response(status_code=status, headers=on_the_wire(headers), reason=_reason(status)))
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
