"""HTTP/1.1 of one connection: h11 inside a Twisted protocol, with backpressure both ways. No rules but HTTP's."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import attrs
import h11
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from client_shim.gateway.backpressure import Outgoing
from client_shim.gateway.exchange import ClientGone, Handler, Headers, RequestHead
from client_shim.gateway.http_exchange import HttpExchange, answer_without_request
from client_shim.gateway.reading import Reading
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
    _reading: Reading  # from connectionMade on

    def __init__(self, handler: Handler, timeouts: Timeouts, clock: IReactorTime,
                 events: ConnectionEvents | None = None) -> None:
        self._handler = handler
        self._timeouts = timeouts
        self._clock = clock
        self._events = ConnectionEvents() if events is None else events
        self._outgoing = Outgoing(ClientGone)
        self._head = bytearray()
        self._exchange: HttpExchange | None = None
        self._timer: IDelayedCall | None = None
        self._closing = False
        self.peer = ""

    # -- the transport ---------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.peer = str(getattr(self.transport.getPeer(), "host", "local"))
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)
            self.transport.setTcpNoDelay(True)
        self._reading = Reading(self.transport, self._clock)
        self._reading.begin(self.peer)
        self.transport.registerProducer(self._outgoing, True)
        self._set_timer(self._timeouts.head, self._head_too_slow)

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        self._reading.took(len(data))
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
            self._reading.pause()  # of the next request, whose turn comes

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        self._closing = True
        self._cancel_timer()
        self._reading.end()
        self._outgoing.stopProducing()
        if self._exchange is not None:
            self._exchange.connection_lost()
        self._events.closed(self)

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
        exchange = HttpExchange(parser, head, self.peer, self.transport, self._reading, self._outgoing,
                                self._timeouts.body, self._clock)
        self._exchange = exchange
        exchange.start(rest)
        Deferred.fromCoroutine(self._handle(exchange)).addErrback(self._handler_broke)

    async def _handle(self, exchange: HttpExchange) -> None:
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
        self._reading.resume()
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
        self.transport.write(answer_without_request(status, reason))
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
        self._reading.resume()

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
