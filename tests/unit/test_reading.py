"""When bytes are taken from a connection: on real sockets, in simulated time."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from client_shim.gateway.reading import Reading
from client_shim.gateway.receive_window import FAST_BYTES, PAUSE, SMALLEST


class SocketTransport:
    """A transport of which only reading matters."""

    def __init__(self, handle: socket.socket) -> None:
        self.handle = handle
        self.reads = True

    def getHandle(self) -> socket.socket:
        return self.handle

    def pauseProducing(self) -> None:
        self.reads = False

    def resumeProducing(self) -> None:
        self.reads = True


@pytest.fixture
def transport() -> Iterator[SocketTransport]:
    with socket.socket() as handle:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALLEST)
        yield SocketTransport(handle)


def reading_from(transport: SocketTransport, peer: str) -> tuple[Reading, Clock]:
    clock = Clock()
    reading = Reading(transport, clock)
    reading.begin(peer)
    return reading, clock


def test_a_new_body_is_read_once_in_a_while(transport: SocketTransport) -> None:
    reading, clock = reading_from(transport, "127.0.0.1")
    reading.took(1448)
    assert not transport.reads
    reading.resume()
    assert not transport.reads
    clock.advance(PAUSE)
    assert transport.reads


def test_it_is_read_on_though_nobody_asked_yet(transport: SocketTransport) -> None:
    """So that a client is seen to go while what came before it is dealt with."""
    reading, clock = reading_from(transport, "127.0.0.1")
    reading.took(1448)
    clock.advance(PAUSE)
    assert transport.reads


def test_who_asks_for_nothing_gets_nothing(transport: SocketTransport) -> None:
    reading, clock = reading_from(transport, "127.0.0.1")
    reading.took(1448)
    reading.pause()
    clock.advance(10)
    assert not transport.reads
    reading.resume()
    assert transport.reads


def test_a_fast_body_is_read_at_once_and_the_kernel_holds_more(transport: SocketTransport) -> None:
    reading, clock = reading_from(transport, "127.0.0.1")
    before = transport.handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    reading.took(FAST_BYTES)
    assert transport.reads
    clock.advance(0.1)
    reading.took(10_000_000)
    assert transport.handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 10 * before


def test_a_body_of_known_length_is_read_at_once(transport: SocketTransport) -> None:
    reading, _clock = reading_from(transport, "127.0.0.1")
    reading.length_is_known()
    reading.took(1448)
    assert transport.reads


def test_another_machine_is_never_made_to_wait(transport: SocketTransport) -> None:
    reading, _clock = reading_from(transport, "192.0.2.1")
    reading.took(1448)
    assert transport.reads
    assert transport.handle.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 100_000


def test_nothing_comes_after_the_end(transport: SocketTransport) -> None:
    reading, clock = reading_from(transport, "127.0.0.1")
    reading.took(1448)
    reading.end()
    assert clock.getDelayedCalls() == []
    transport.handle.close()
    reading.resume()
