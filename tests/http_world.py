"""HTTP connections in memory: what a client sends, what it gets, and a clock; a Tahoe node as the gateway sees it."""

from __future__ import annotations

from typing import Any

import h11
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from client_shim.gateway.errors import NodeAway
from client_shim.gateway.exchange import Handler
from client_shim.gateway.http_connection import ConnectionEvents, HttpConnection, Timeouts
from client_shim.gateway.node_client import NodeClient, NodeRequest


class MemoryTransport(StringTransport):
    """A transport that obeys pauses: bytes are delivered when reading is resumed, as from a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.undelivered = bytearray()
        self.write_closed = False
        self.ended: Exception | None = None
        self._delivering = False

    def resumeProducing(self) -> None:
        if self.producerState == "stopped" or self.ended is not None:
            return
        super().resumeProducing()
        self.deliver()

    def deliver(self) -> None:
        if self._delivering:
            return
        self._delivering = True
        try:
            while self.undelivered and self.producerState == "producing" and self.ended is None:
                piece = bytes(self.undelivered[:65536])
                del self.undelivered[:65536]
                self.protocol.dataReceived(piece)
        finally:
            self._delivering = False

    def loseConnection(self) -> None:
        self._end(ConnectionDone())

    def abortConnection(self) -> None:
        self._end(ConnectionAborted())

    def loseWriteConnection(self) -> None:
        self.write_closed = True

    def cut(self) -> None:
        """The other side goes away."""
        self._end(ConnectionLost())

    def _end(self, why: Exception) -> None:
        if self.ended is None:
            self.ended = why
            self.protocol.connectionLost(Failure(why))


class PipeTransport(MemoryTransport):
    """One end of a connection in memory; what is written arrives at the other in a later turn."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.other: PipeTransport | None = None
        self._other_ended = False

    def write(self, data: bytes) -> None:
        if self.ended is None and self.other is not None:
            self._clock.callLater(0, self.other.arrives, data)

    def arrives(self, data: bytes) -> None:
        self.undelivered += data
        self.deliver()

    def resumeProducing(self) -> None:
        if self.producerState == "paused" and self.ended is None:
            self.producerState = "producing"
            self._clock.callLater(0, self.deliver)

    def _end(self, why: Exception) -> None:
        if self.ended is None:
            super()._end(why)
            if self.other is not None:
                self._clock.callLater(0, self.other.cut_off)

    def cut_off(self) -> None:
        """The other end is closed, which is noticed when all that came has been read."""
        self._other_ended = True
        self.deliver()

    def deliver(self) -> None:
        super().deliver()
        if self._other_ended and not self.undelivered and self.producerState == "producing":
            self.cut()


class MemoryNode:
    """A client node whose web port is `handler`; for NodeClient's users."""

    def __init__(self, handler: Handler, clock: Clock) -> None:
        self.handler = handler
        self.clock = clock
        self.up = True
        self.connections: list[PipeTransport] = []
        self.requests: list[NodeRequest] = []

    @property
    def client(self) -> NodeClient:
        """What asks it."""
        return MemoryNodeClient(self)

    def kill(self) -> None:
        """Its connections break, and there are no new ones."""
        self.up = False
        for transport in self.connections:
            transport.abortConnection()


class MemoryNodeClient(NodeClient):
    """A NodeClient whose connections are in memory."""

    def __init__(self, node: MemoryNode) -> None:
        super().__init__(lambda: "http://127.0.0.1:1/", None)
        self._memory_node = node

    async def connect(self) -> NodeRequest:
        node = self._memory_node
        if not node.up:
            raise NodeAway("nothing listens at its node.url")
        ours, its = PipeTransport(node.clock), PipeTransport(node.clock)
        ours.other, its.other = its, ours
        its.protocol = HttpConnection(node.handler, Timeouts(), node.clock)
        ours.protocol = NodeRequest("127.0.0.1", 3456)
        node.connections.append(its)
        node.requests.append(ours.protocol)
        its.protocol.makeConnection(its)
        ours.protocol.makeConnection(ours)
        return ours.protocol


class HttpWorld:
    """A client's end of a connection to `handler`."""

    def __init__(self, handler: Handler, timeouts: Timeouts | None = None, clock: Clock | None = None) -> None:
        self.clock = Clock() if clock is None else clock
        self.refused: list[int] = []
        self.closed = 0
        self.transport = MemoryTransport()
        self.connection = HttpConnection(handler, timeouts or Timeouts(), self.clock,
                                         ConnectionEvents(self.refused.append, self._was_closed))
        self.transport.protocol = self.connection
        self.connection.makeConnection(self.transport)

    def _was_closed(self, _connection: HttpConnection) -> None:
        self.closed += 1

    @property
    def paused(self) -> bool:
        return self.transport.producerState == "paused"

    def send(self, data: bytes) -> None:
        self.transport.undelivered += data
        self.transport.deliver()
        self.clock.advance(0)

    def take(self) -> bytes:
        """What was answered since the last time."""
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def answers(self, *methods: str) -> list[Answer]:
        """What was answered since the last time, as answers to requests of these methods (default: one GET)."""
        return parse_answers(self.take(), methods or ("GET",), closed=self.over)

    def answers_so_far(self, *methods: str) -> list[Answer]:
        """The same, but what was answered is not forgotten."""
        return parse_answers(self.transport.value(), methods or ("GET",), closed=self.over)

    @property
    def over(self) -> bool:
        """Whether the client reads an end: the connection is closed, or half of it."""
        return self.transport.write_closed or self.transport.ended is not None


class Answer:
    """One answer, complete or not."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, informed: list[tuple[int, dict[str, str]]],
                 complete: bool) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.informed = informed
        self.complete = complete


def parse_answers(data: bytes, methods: tuple[str, ...], *, closed: bool) -> list[Answer]:
    answers = []
    parser: Any = None
    for method in methods:
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(data)
        answer = _one(parser, closed)
        if answer is None:
            break
        answers.append(answer)
        data, _closed = parser.trailing_data
    assert not data, data
    return answers


def _one(parser: Any, closed: bool) -> Answer | None:
    status, headers, body, informed = 0, {}, b"", []
    if closed:
        parser.receive_data(b"")
    while True:
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError:
            event = h11.ConnectionClosed()
        if isinstance(event, h11.InformationalResponse):
            informed.append((event.status_code, _headers(event)))
        elif isinstance(event, h11.Response):
            status, headers = event.status_code, _headers(event)
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, headers, body, informed, True)
        else:
            return Answer(status, headers, body, informed, False) if status or informed else None


def _headers(event: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in event.headers}
