"""Connections of all clients: how many at a time, of all and of one host; all of them ended at once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory, IReactorTime
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.logger import Logger
from zope.interface import implementer

from client_shim.gateway.exchange import Handler
from client_shim.gateway.http_connection import ConnectionEvents, HttpConnection, Timeouts
from client_shim.gateway.http_exchange import answer_without_request

_log = Logger()


@attrs.frozen
class ConnectionLimits:
    """Connections at a time."""

    in_all: int = 1000
    per_host: int = 750


@implementer(IProtocolNegotiationFactory)  # behind TLS; Twisted 26 refuses who offers ALPN to a factory that is none
class HttpFactory(ServerFactory):
    """Makes HttpConnections, and refuses what is too many with 503."""

    noisy = False

    def __init__(self, handler: Handler, timeouts: Timeouts, limits: ConnectionLimits, clock: IReactorTime) -> None:
        self._handler = handler
        self._timeouts = timeouts
        self._limits = limits
        self._clock = clock
        self._connections: set[HttpConnection] = set()
        self._of_host: Counter[str] = Counter()
        self._hosts: dict[HttpConnection, str] = {}
        self._last_closed: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        host = str(getattr(addr, "host", "local"))
        if len(self._connections) >= self._limits.in_all or self._of_host[host] >= self._limits.per_host:
            return _Refusal()
        connection = HttpConnection(self._handler, self._timeouts, self._clock,
                                    ConnectionEvents(_refused, self._closed))
        self._connections.add(connection)
        self._hosts[connection] = host
        self._of_host[host] += 1
        return connection

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]

    async def close_all(self) -> None:
        """Cut every connection; handlers get ClientGone. Returns when all are closed."""
        for connection in list(self._connections):
            connection.close_now()
        if self._connections:
            self._last_closed = Deferred()
            await self._last_closed

    def _closed(self, connection: HttpConnection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            host = self._hosts.pop(connection)
            self._of_host[host] -= 1
            if not self._of_host[host]:
                del self._of_host[host]
        last_closed = self._last_closed
        if last_closed is not None and not self._connections:
            self._last_closed = None
            last_closed.callback(None)


def _refused(status: int) -> None:
    _log.info("a request was refused with {status}: it is not HTTP as it should be, or too slow", status=status)


class _Refusal(Protocol):
    """One connection too many."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.write(answer_without_request(503, "too many connections at a time"))
        self.transport.loseConnection()
