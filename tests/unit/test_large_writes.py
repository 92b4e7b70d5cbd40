"""helper/large_writes.py: what waits for a socket leaves in order, whatever that takes at a time."""

from __future__ import annotations

import gc
import weakref

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactor
from zope.interface import implementer

from helper.large_writes import OFFERED, write_piece_by_piece


class Socket:
    """Takes as much as it is told to, and then blocks; or fails."""

    def __init__(self) -> None:
        self.taken = b""
        self.room = 0
        self.broken = False

    def send(self, data: memoryview) -> int:
        return self.sendmsg([data])

    def sendmsg(self, pieces: list[memoryview]) -> int:
        if self.broken:
            raise ConnectionResetError(104, "reset")
        offered = b"".join(pieces)
        if offered and not self.room:
            raise BlockingIOError(11, "full")
        taken, self.room = offered[:self.room], max(0, self.room - len(offered))
        self.taken += taken
        return len(taken)

    def setblocking(self, _flag: object) -> None:
        pass

    def fileno(self) -> int:
        return 99


@implementer(IPushProducer)
class Producer:
    paused = False

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        pass


class Transport:
    """A connection that writes pieces, if `pieces`, or as Twisted does it."""

    def __init__(self, pieces: bool = True) -> None:
        self.reactor = MemoryReactor()
        self.socket = Socket()
        self.tcp = Connection(self.socket, Protocol(), self.reactor)
        self.tcp.connected = 1
        self.producer = Producer()
        self.tcp.registerProducer(self.producer, True)
        if pieces:
            write_piece_by_piece(self.tcp)

    def turn(self, room: int) -> object:
        """The reactor finds that the socket takes so much; returns what the reactor is told."""
        self.socket.room = room
        return self.tcp.doWrite() if self.tcp in self.reactor.writers else None


LENGTHS = st.sampled_from([0, 1, 2, 5, 100])
STEPS = st.lists(st.one_of(st.tuples(st.just("write"), LENGTHS), st.tuples(st.just("turn"), st.integers(0, 250))))


@given(STEPS)
@example([("write", 5)] * (2 * OFFERED) + [("turn", 7)] * 3)
def test_bytes_leave_in_order_and_twisted_hears_of_the_end(steps: list[tuple[str, int]]) -> None:
    ours, twisteds = Transport(), Transport(pieces=False)
    written = 0
    for what, number in [*steps, ("turn", 10**6), ("turn", 10**6), ("turn", 10**6)]:
        for transport in (ours, twisteds):
            if what == "write":
                transport.tcp.write(bytes((written + i) % 251 for i in range(number)))
            else:
                assert transport.turn(number) is None
            tcp = transport.tcp
            assert tcp._tempDataLen == sum(map(len, tcp._tempDataBuffer))
        written += number if what == "write" else 0
        assert twisteds.socket.taken[:len(ours.socket.taken)] == ours.socket.taken  # it offers all, we some pieces
    for transport in (ours, twisteds):
        assert transport.socket.taken == bytes(i % 251 for i in range(written))
        assert transport.tcp not in transport.reactor.writers
        assert not transport.producer.paused


def test_errors_are_told_as_twisted_tells_them() -> None:
    told = []
    for pieces in (True, False):
        transport = Transport(pieces)
        for _ in range(3):
            transport.tcp.write(b"12345")
        transport.socket.broken = True
        told.append(transport.turn(10))
    assert told[0] is told[1] is not None


def test_a_connection_that_is_to_be_closed_is_closed_when_all_is_sent() -> None:
    transport = Transport()
    transport.tcp.unregisterProducer()
    for _ in range(3):
        transport.tcp.write(b"12345")
    transport.tcp.loseConnection()
    assert transport.turn(7) is None
    assert transport.turn(7) is None
    assert transport.turn(7) is not None
    assert transport.socket.taken == b"12345" * 3


def test_a_connection_goes_when_nobody_has_it() -> None:
    gc.disable()  # what needs a collection of all garbage may stay for long
    try:
        tcp = Connection(Socket(), None, MemoryReactor())
        write_piece_by_piece(tcp)
        gone, write = weakref.ref(tcp), tcp.doWrite
        del tcp
        assert gone() is None
        assert write() is None
    finally:
        gc.enable()
