"""Requests to the client node's web port: h11 inside a Twisted protocol, with backpressure both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import attrs
import h11
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from client_shim.errors import BadNodeDirectory
from client_shim.gateway.backpressure import Outgoing
from client_shim.gateway.errors import NodeAway
from client_shim.gateway.exchange import HeaderList, Headers, on_the_wire

#: Seconds for a connection to the node, which is on this machine.
CONNECT_TIMEOUT = 10
#: Bytes of an answer's head.
_HEAD_MAX = 64 * 1024
#: Bytes of an answer that is read as a whole. Directories in JSON may be large, but their own entry is not.
WHOLE_MAX = 1024 * 1024


@attrs.frozen
class AnswerHead:
    """Status and fields of the node's answer."""

    status: int
    headers: Headers


class NodeRequest(Protocol):
    """One request on a connection of its own. Calls raise NodeAway when the node is lost before its answer ends."""

    transport: Any

    def __init__(self, host: str = "", port: int = 0) -> None:
        self.host = host
        self.port = port
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_MAX)
        self._outgoing = Outgoing(_lost)
        self._waiting: Deferred[None] | None = None
        self._lost = False
        self._answer: AnswerHead | None = None

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self._outgoing, True)

    def dataReceived(self, data: bytes) -> None:
        self._parser.receive_data(data)
        if self._waiting is None:
            self.transport.pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        self._lost = True
        self._outgoing.stopProducing()
        if self._parser.their_state is not h11.ERROR:
            try:
                self._parser.receive_data(b"")
            except h11.RemoteProtocolError:
                pass  # next_event tells
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    # -- the request -----------------------------------------------------------------------------------------

    def begin(self, method: str, target: str, headers: HeaderList) -> None:
        """Send the head. `headers` say how the body is framed, if there is one."""
        fields = on_the_wire([*headers, ("Connection", "close")])
        self._send(h11.Request(method=method, target=target, headers=fields))

    async def write(self, data: bytes) -> None:
        """Send the next piece of the body; waits while the node does not take it. No-op once `answered`."""
        if data and not self.answered:
            self._send(h11.Data(data=data))
            await self._outgoing.wait()

    def end(self) -> None:
        """The request is complete."""
        self._send(h11.EndOfMessage())

    @property
    def answered(self) -> bool:
        """Whether an answer has begun, perhaps before the request was complete."""
        return self._answer is not None or bool(self._parser.trailing_data[0]) or self._lost

    # -- the answer ------------------------------------------------------------------------------------------

    async def answer(self) -> AnswerHead:
        """Wait for the head of the answer."""
        while self._answer is None:
            event = await self._next()
            if isinstance(event, h11.Response):
                fields = tuple((name.decode("latin-1"), value.decode("latin-1"))
                               for name, value in event.headers.raw_items())
                self._answer = AnswerHead(event.status_code, Headers(fields))
        return self._answer

    async def read(self) -> bytes:
        """The next piece of the answer's body; b"" at its end."""
        event = await self._next()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def whole(self) -> bytes | None:
        """The whole body of the answer; None if it has more than WHOLE_MAX bytes."""
        body = b""
        while piece := await self.read():
            body += piece
            if len(body) > WHOLE_MAX:
                return None
        return body

    def close(self) -> None:
        """Nothing more is wanted. Whoever waits gets NodeAway."""
        self.transport.abortConnection()

    async def _next(self) -> h11.Event:
        while True:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError:
                raise NodeAway("its answer is cut off, or is not HTTP") from None
            if isinstance(event, h11.Event):
                if isinstance(event, h11.ConnectionClosed):
                    raise _lost()
                return event
            if self._lost:
                raise _lost()
            waiting: Deferred[None] = Deferred(self._not_waiting)
            self._waiting = waiting
            self.transport.resumeProducing()
            await waiting

    def _not_waiting(self, _cancelled: Deferred[None]) -> None:
        self._waiting = None

    def _send(self, event: h11.Event) -> None:
        if self._lost:
            raise _lost()
        try:
            data = self._parser.send(event)
        except h11.LocalProtocolError as e:
            raise NodeAway("the request cannot be passed on") from e
        if data:
            self.transport.write(data)


def _lost() -> NodeAway:
    return NodeAway("it closed the connection")


class NodeClient:
    """The web port of a client node. `node_url` is asked for every request: a node that restarts may have another."""

    def __init__(self, node_url: Callable[[], str], reactor: Any) -> None:
        self._node_url = node_url
        self._reactor = reactor

    async def connect(self) -> NodeRequest:
        """A connection for one request. Raises NodeAway."""
        try:
            parts = urlsplit(self._node_url())
            host, port = parts.hostname, parts.port
        except (BadNodeDirectory, ValueError) as e:
            raise NodeAway("its node.url cannot be read") from e
        if parts.scheme != "http" or host is None or port is None:
            raise NodeAway("its node.url is no http://HOST:PORT")
        endpoint = HostnameEndpoint(self._reactor, host, port, timeout=CONNECT_TIMEOUT)
        try:
            request = await endpoint.connect(Factory.forProtocol(lambda: NodeRequest(host, port)))  # type: ignore[arg-type]
        except ConnectError as e:
            raise NodeAway("nothing listens at its node.url") from e
        if not isinstance(request, NodeRequest):
            raise TypeError(type(request))
        return request

    async def ask(self, method: str, target: str, body: bytes | None = None) -> tuple[AnswerHead, bytes | None]:
        """A request of our own. Returns head and body of the answer, None for a body beyond WHOLE_MAX. NodeAway."""
        request = await self.connect()
        try:
            host = ("Host", "localhost")
            request.begin(method, target, [host] if body is None else [host, ("Content-Length", str(len(body)))])
            await request.write(body or b"")
            request.end()
            return await request.answer(), await request.whole()
        finally:
            request.close()
