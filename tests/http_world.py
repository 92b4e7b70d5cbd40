"""One HTTP connection in memory: what a client sends, what it gets, and a clock."""

from __future__ import annotations

from typing import Any

import h11
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from client_shim.gateway.exchange import Handler
from client_shim.gateway.http_connection import ConnectionEvents, HttpConnection, Timeouts


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


class HttpWorld:
    """A client's end of a connection to `handler`."""

    def __init__(self, handler: Handler, timeouts: Timeouts | None = None) -> None:
        self.clock = Clock()
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
