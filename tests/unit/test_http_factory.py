"""Connections at a time: threat S11."""

from __future__ import annotations

from http_world import MemoryTransport, parse_answers
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from client_shim.gateway.exchange import ClientGone, Exchange
from client_shim.gateway.http_connection import Timeouts
from client_shim.gateway.http_factory import ConnectionLimits, HttpFactory

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def answer(exchange: Exchange) -> None:
    await exchange.respond(200)


def connect(factory: HttpFactory, host: str) -> MemoryTransport:
    address = IPv4Address("TCP", host, 1)
    transport = MemoryTransport()
    transport.peerAddr = address
    transport.protocol = factory.buildProtocol(address)
    transport.protocol.makeConnection(transport)
    return transport


def is_served(transport: MemoryTransport) -> bool:
    if transport.ended is None:
        transport.protocol.dataReceived(GET)
    (one,) = parse_answers(transport.value(), ("GET",), closed=transport.ended is not None)
    transport.clear()
    assert one.status in (200, 503)
    assert (one.status == 503) is (transport.ended is not None)
    return one.status == 200


def test_limits_in_all_and_of_one_host() -> None:
    factory = HttpFactory(answer, Timeouts(), ConnectionLimits(in_all=4, per_host=3), Clock())
    one = [connect(factory, "192.0.2.1") for _ in range(5)]
    assert [is_served(each) for each in one] == [True, True, True, False, False]
    other = [connect(factory, "192.0.2.2") for _ in range(2)]
    assert [is_served(each) for each in other] == [True, False]
    one[0].cut()
    assert is_served(connect(factory, "192.0.2.2"))
    assert not is_served(connect(factory, "192.0.2.1"))


def test_slow_clients_make_room() -> None:
    clock = Clock()
    factory = HttpFactory(answer, Timeouts(head=30), ConnectionLimits(in_all=500, per_host=500), clock)
    slow = [connect(factory, "192.0.2.1") for _ in range(500)]
    for each in slow:
        each.protocol.dataReceived(b"G")
    assert not is_served(connect(factory, "192.0.2.1"))
    clock.advance(30)
    assert is_served(connect(factory, "192.0.2.1"))


def test_closing_all_ends_what_is_under_way() -> None:
    errors: list[str] = []

    async def waits(exchange: Exchange) -> None:
        try:
            await exchange.read()
        except ClientGone as e:
            errors.append(e.code)
            raise

    factory = HttpFactory(waits, Timeouts(), ConnectionLimits(), Clock())
    transports = [connect(factory, "192.0.2.1") for _ in range(3)]
    for each in transports[:2]:
        each.protocol.dataReceived(b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n")
    closed: list[object] = []
    Deferred.fromCoroutine(factory.close_all()).addCallback(closed.append)
    assert closed == [None]
    assert all(each.ended is not None for each in transports)
    assert errors == ["client-gone", "client-gone"]
