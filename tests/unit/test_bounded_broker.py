"""helper/bounded_broker.py over transports in memory: every bound at its limit and beyond."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import attrs
import pytest
import reactor_loop
from foolscap.api import Referenceable, RemoteInterface, StringConstraint
from foolscap.referenceable import TubRef
from foolscap_tokens import begun_call, call, end_of_call, string, token
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from helper.bounded_broker import NEGOTIATION_BYTES, BoundedBroker, BoundedNegotiation
from helper.connection_memory import TO_STORAGE_SERVERS, ConnectionBounds, ConnectionMemory, for_connections
from helper.interfaces import LARGEST_MESSAGE_MAX, KiB
from helper.token_stream import KNOWN_PEER, PING, PONG, STRANGER, STRING

#: Of what a call of `wait` holds beside its data: two sequences, and nine tokens.
OVERHEAD = 2 * KiB + 11 * 64

BOUNDS = ConnectionBounds(in_all=400 * KiB, each=100 * KiB, calls=10, always=8 * KiB, unhindered=2, patience=60.0,
                          connections=6, strangers=4, references=5)
DATA = StringConstraint(LARGEST_MESSAGE_MAX)
CANARY = b"Canary-0815-4711"


class RIWaiting(RemoteInterface):
    __remote_name__ = "RIWaiting.tahoe-stream.test"

    def wait(data=DATA):  # type: ignore[no-untyped-def]  # noqa: N805 (as Foolscap has it)
        return None


@implementer(RIWaiting)  # type: ignore[misc]
class Waiting(Referenceable):  # type: ignore[misc]
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, Deferred[None]]] = []

    def remote_wait(self, data: bytes) -> Deferred[None]:
        d: Deferred[None] = Deferred()
        self.calls.append((data, d))
        return d


class Connection:
    """A BoundedBroker on a transport in memory."""

    count = 0

    def __init__(self, memory: ConnectionMemory, known: bool = True, accepted: bool = True) -> None:
        Connection.count += 1
        self.transport = StringTransport()
        self.broker = BoundedBroker(memory, accepted, TubRef(f"{Connection.count:032}", []), {})
        self.ended = False
        self.broker.makeConnection(self.transport)
        self.target = Waiting()
        self.object = 0
        if known:
            self.object = self.broker.getTrackerForMyReference(id(self.target), self.target).clid
        self._request = 0
        self._waiting = b""
        self.piece = 16 * KiB

    def feed(self, data: bytes = b"") -> None:
        """As TLS would, while it is read; the rest waits until it is fed again."""
        self._waiting += data
        while self._waiting and (self.reading or self.transport.disconnecting):
            piece, self._waiting = self._waiting[:self.piece], self._waiting[self.piece:]
            self.broker.dataReceived(piece)

    def begin(self, size: int, sent: int) -> None:
        """Of a call with `size` bytes, the first `sent`."""
        self._request += 1
        self.feed(begun_call(self._request, self.object, b"wait", token(STRING, size)) + bytes(sent))

    def end(self, left: int) -> None:
        self.feed(bytes(left) + end_of_call(self._request))

    def call(self, size: int = 10) -> None:
        self.begin(size, size)
        self.end(0)

    def answer(self) -> None:
        self.target.calls.pop(0)[1].callback(None)

    def lose(self) -> None:
        self.broker.connectionLost(Failure(ConnectionDone()))

    @property
    def reading(self) -> bool:
        return self.transport.producerState == "producing"

    @property
    def dropped(self) -> bool:
        if self.transport.disconnecting and not self.ended:
            self.ended = True
            self.lose()
        return self.ended


class World:
    def __init__(self, bounds: ConnectionBounds = BOUNDS) -> None:
        self.clock = Clock()
        self.memory = ConnectionMemory(bounds, self.clock)

    def connect(self, known: bool = True) -> Connection:
        return Connection(self.memory, known)


async def settle() -> None:
    """Let everything that Foolscap put off be done."""
    for _ in range(30):
        turned: Deferred[None] = Deferred()
        reactor_loop.reactor.callLater(0, turned.callback, None)
        await turned


def run(test: Callable[[], Awaitable[None]]) -> None:
    reactor_loop.run(test)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_namespace") == "helper.bounded_broker" or event.get("isError"):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(cast(ILogObserver, observe))
    yield lines
    globalLogPublisher.removeObserver(cast(ILogObserver, observe))


# -- what is passed on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 2, 100, 16 * KiB, 10**7])
def test_calls_arrive_whole_in_any_pieces(piece: int) -> None:
    async def go() -> None:
        connection = World(ConnectionBounds()).connect()
        connection.piece = piece
        sizes = [0, 1, 5000, 70_000]
        connection.feed(b"".join(
            call(5 + i, connection.object, b"wait", string(bytes([i]) * size)) for i, size in enumerate(sizes)))
        await settle()
        assert [data for data, _d in connection.target.calls] == [bytes([i]) * s for i, s in enumerate(sizes)]
        assert not connection.dropped

    run(go)


def test_foolscap_buffers_nothing_itself() -> None:
    async def go() -> None:
        connection = World(ConnectionBounds()).connect()
        connection.begin(LARGEST_MESSAGE_MAX, LARGEST_MESSAGE_MAX - 1)
        assert len(connection.broker.buffer) == 0
        assert len(connection.broker._partial) < LARGEST_MESSAGE_MAX + 10

    run(go)


@pytest.mark.parametrize("paused", [False, True])
def test_a_long_message_and_a_pause_of_ours_are_not_silence(paused: bool) -> None:
    async def go() -> None:
        connection = World(ConnectionBounds()).connect()
        broker = connection.broker
        broker.disconnectTimeout = 100
        connection.begin(LARGEST_MESSAGE_MAX, 5)
        broker.dataLastReceivedAt -= 1000
        if paused:
            broker.hold_back("a test", True)
        else:
            connection.feed(b"more")
        broker.disconnectTimerFired()
        assert broker.disconnectTimer is not None, "it would have been disconnected"
        broker.disconnectTimer.cancel()
        broker.disconnectTimer = None
        broker.dataLastReceivedAt -= 1000
        broker.hold_back("a test", False)
        broker.disconnectTimerFired()
        assert broker.disconnected

    run(go)


# -- violations ---------------------------------------------------------------------------------------------


def test_a_violation_ends_the_connection_and_says_so_in_one_line(logged: list[str]) -> None:
    async def go() -> None:
        world = World(ConnectionBounds())
        at_limit, beyond, other = world.connect(), world.connect(), world.connect()
        at_limit.begin(LARGEST_MESSAGE_MAX, 5)
        assert not at_limit.dropped
        beyond.feed(begun_call(1, beyond.object, CANARY, token(STRING, LARGEST_MESSAGE_MAX + 1)))
        assert beyond.dropped
        assert len(beyond.broker._partial) == 0
        beyond.feed(CANARY * 1000)
        other.call()
        await settle()
        assert len(other.target.calls) == 1
        assert world.memory.held == at_limit.broker.held + other.broker.held

    run(go)
    assert len(logged) == 1
    assert f"at most {LARGEST_MESSAGE_MAX} expected, {LARGEST_MESSAGE_MAX + 1} came" in logged[0]
    assert CANARY.decode() not in logged[0]


@pytest.mark.parametrize("nonsense", [
    string(CANARY), token(0x88) + token(0x88), token(0x88) + string(CANARY * 5), bytes(70) + CANARY,
    token(0x8D, 0, b"")[:-1] + bytes([len(CANARY)]) + b"\x8d" + CANARY,
    token(0x88) + string(b"call") + string(CANARY), token(0x88) + string(b"call") + token(0x89, 5)])
def test_what_is_not_of_foolscap_ends_the_connection_without_being_logged(
        nonsense: bytes, logged: list[str]) -> None:
    async def go() -> None:
        connection = World().connect()
        connection.feed(nonsense)
        await settle()
        assert connection.dropped or not logged

    run(go)
    assert len(logged) <= 1
    assert CANARY.decode() not in "".join(logged)


def test_a_stranger_may_ask_for_an_object_only() -> None:
    async def go() -> None:
        world = World()
        limit, beyond, known = world.connect(False), world.connect(False), world.connect()
        for connection, size in ((limit, STRANGER.name), (beyond, STRANGER.name + 1)):
            connection.feed(begun_call(1, 0, b"getReferenceByName", string(b"name"), token(STRING, size), count=0))
        assert not limit.dropped
        assert beyond.dropped
        known.begin(KNOWN_PEER.argument, 0)
        assert not known.dropped

    run(go)


# -- calls that are not answered ----------------------------------------------------------------------------


def test_it_does_not_read_while_too_many_calls_are_unanswered() -> None:
    async def go() -> None:
        connection = World().connect()
        for _ in range(BOUNDS.calls - 1):
            connection.call()
        await settle()
        assert connection.reading
        connection.call()
        assert not connection.reading
        await settle()
        assert len(connection.target.calls) == BOUNDS.calls
        connection.answer()
        await settle()
        assert connection.reading
        assert not connection.dropped

    run(go)


def test_it_does_not_read_while_unanswered_calls_hold_too_much() -> None:
    async def go() -> None:
        connection = World().connect()
        size = BOUNDS.each // 2 - OVERHEAD
        connection.call(size - 1000)
        connection.call(size)
        await settle()
        assert connection.reading
        assert connection.broker.held < BOUNDS.each
        connection.call(2000)
        assert not connection.reading
        await settle()
        connection.answer()
        await settle()
        assert connection.reading

    run(go)


def test_failed_calls_are_no_longer_held() -> None:
    async def go() -> None:
        world = World()
        connection = world.connect()
        connection.call(5000)
        connection.call(5000)
        await settle()
        connection.target.calls[0][1].errback(Failure(ValueError()))
        connection.target.calls[1][1].callback(cast(Any, object()))  # which the schema forbids
        await settle()
        assert world.memory.held == connection.broker.held == 0
        connection.feed(begun_call(7, connection.object, b"no_such_method") + end_of_call(7))
        await settle()
        assert world.memory.held == connection.broker.held == 0

    run(go)


def test_arguments_of_answered_calls_do_not_wait_for_the_garbage_collector() -> None:
    def kept() -> int:
        return sum(type(o) is list and any(type(i) is bytes and len(i) == 70_001 for i in o) for o in gc.get_objects())

    async def go() -> None:
        connection = World(ConnectionBounds()).connect()
        connection.call(70_001)
        await settle()
        assert kept()  # or the next would prove nothing
        connection.answer()
        await settle()
        assert not kept()

    gc.collect()
    gc.disable()
    try:
        run(go)
    finally:
        gc.enable()


def test_what_calls_hold_after_their_connection_is_lost_still_counts() -> None:
    async def go() -> None:
        world = World()
        connection = world.connect()
        connection.call(5000)
        await settle()
        connection.call(7000)  # not begun yet
        connection.begin(9000, 4000)
        connection.lose()
        await settle()
        assert 5000 < world.memory.held < 7000 + OVERHEAD
        connection.answer()
        await settle()
        assert world.memory.held == 0

    run(go)


def test_calls_of_who_does_not_read_answers_wait() -> None:
    async def go() -> None:
        connection = World().connect()
        assert connection.transport.producer is not None
        connection.call()
        connection.transport.producer.pauseProducing()
        connection.feed(token(PING, 5))
        await settle()
        assert connection.target.calls == []
        for _ in range(BOUNDS.calls - 1):
            assert connection.reading
            connection.call()
        assert not connection.reading
        connection.transport.producer.resumeProducing()
        await settle()
        assert len(connection.target.calls) == BOUNDS.calls
        assert connection.transport.value() == b""
        connection.answer()
        await settle()
        connection.feed(token(PING, 5))
        assert connection.transport.value().endswith(token(PONG, 5))

    run(go)


def test_peers_do_not_get_more_by_taking_turns_when_calls_hang() -> None:
    async def go() -> None:
        bounds = attrs.evolve(BOUNDS, reserve=100 * KiB, connections=40)
        world = World(bounds)
        connections = [world.connect() for _ in range(40)]
        for connection in connections:
            connection.piece = KiB
            connection.call(30 * KiB)
        for connection in connections:
            connection.feed()
        await settle()
        most = bounds.in_all + bounds.reserve + (bounds.always + KiB) * len(connections)
        assert bounds.in_all < world.memory.held < most
        waiting = [connection for connection in connections if not connection.reading]
        assert len(waiting) > 20
        for _round in range(20):
            for connection in connections:
                while connection.target.calls:
                    connection.answer()
            await settle()
            for connection in connections:
                connection.feed()
        assert all(connection.reading for connection in connections)
        assert world.memory.held == 0

    run(go)


def test_who_does_not_take_answers_while_others_wait_has_to_go(logged: list[str]) -> None:
    async def go() -> None:
        world = World(attrs.evolve(BOUNDS, connections=10, unhindered=0))
        deaf = [world.connect() for _ in range(3)]
        for connection in deaf:
            assert connection.transport.producer is not None
            connection.transport.producer.pauseProducing()
            connection.call(95 * KiB)
        world.clock.advance(1000)
        assert not any(connection.dropped for connection in deaf), "nobody waits"
        honest = world.connect()
        honest.begin(80 * KiB, 75 * KiB)
        assert not honest.reading
        for _ in range(3):
            world.clock.advance(BOUNDS.patience / 4)
        deaf[0].transport.producer.resumeProducing()
        deaf[0].transport.producer.pauseProducing()  # it took some
        for _ in range(2):
            world.clock.advance(BOUNDS.patience / 4)
        await settle()
        assert [connection.dropped for connection in deaf] == [False, True, True]
        assert honest.reading

    run(go)
    assert len(logged) == 2


def test_what_those_hold_who_have_to_wait_does_not_keep_out_those_who_can_go_on() -> None:
    """As when uploads are paused: their calls are unanswered for hours, and they would send more."""
    async def go() -> None:
        world = World(attrs.evolve(BOUNDS, reserve=100 * KiB, connections=20, each=10**9, calls=10**9))
        paused = [world.connect() for _ in range(12)]
        for connection in paused:
            connection.piece = KiB
        for _ in range(20):
            for connection in paused:
                connection.call(20 * KiB)
            await settle()
        assert not any(connection.reading for connection in paused)
        for _ in range(30):
            other = world.connect()
            other.call(60 * KiB)
            await settle()
            assert len(other.target.calls) == 1
            other.answer()
            await settle()
            other.lose()

    run(go)


def test_when_all_is_held_by_calls_that_are_not_answered_the_owner_is_told() -> None:
    async def go() -> None:
        world = World(attrs.evolve(BOUNDS, reserve=100 * KiB, connections=40))
        stuck: list[float] = []
        world.memory.on_stuck = lambda: stuck.append(world.clock.seconds())
        holders = [world.connect() for _ in range(12)]
        for connection in holders[:6]:
            connection.call(60 * KiB)
        await settle()
        world.clock.advance(1000)
        assert not stuck, "nobody waits"
        for connection in holders[6:]:
            connection.call(60 * KiB)
            await settle()
        assert world.memory.held >= world.memory.bounds.in_all + world.memory.bounds.reserve
        for looks in range(4):
            assert len(stuck) == max(0, looks - 1)
            world.clock.advance(BOUNDS.patience / 4)
        while any(connection.target.calls for connection in holders):
            for connection in holders:
                while connection.target.calls:
                    connection.answer()
            await settle()
            for connection in holders:
                connection.feed()
            await settle()
        assert world.memory.held == 0
        world.clock.advance(BOUNDS.patience)
        assert len(stuck) == 3

    run(go)


# -- all connections together -------------------------------------------------------------------------------


def test_many_that_take_what_they_get_leave_a_share() -> None:
    async def go() -> None:
        world = World(attrs.evolve(BOUNDS, unhindered=0, each=10**9, calls=10**9))
        hogs = [world.connect() for _ in range(3)]
        for _ in range(200):
            for hog in hogs:
                if hog.reading:
                    hog.call(2000)
        await settle()
        assert not any(hog.reading for hog in hogs)
        share = BOUNDS.in_all / 4
        assert all(0.8 * share < hog.broker.held < 1.2 * share for hog in hogs)
        small = world.connect()
        small.call(4000)
        assert small.reading
        hogs[0].lose()
        while hogs[0].target.calls:
            hogs[0].answer()
        await settle()
        assert all(hog.reading for hog in hogs[1:])

    run(go)


def test_the_oldest_incomplete_messages_are_read_to_their_end() -> None:
    async def go() -> None:
        world = World()
        connections = [world.connect() for _ in range(5)]
        for connection in connections:
            connection.begin(150 * KiB, 120 * KiB)
        assert [connection.reading for connection in connections] == [True, True, False, False, False]
        connections[0].end(30 * KiB)
        await settle()
        assert [connection.reading for connection in connections] == [False, True, True, False, False]
        connections[0].answer()
        await settle()
        assert connections[0].reading

    run(go)


@pytest.mark.parametrize("bounds", [
    ConnectionBounds(), TO_STORAGE_SERVERS, for_connections(1), for_connections(1000)])
def test_what_connections_may_always_hold_leaves_room_for_whole_messages(bounds: ConnectionBounds) -> None:
    one_read = 64 * KiB
    assert (bounds.always + one_read) * bounds.connections + bounds.unhindered * max(
        bounds.known.argument, bounds.known.value) < bounds.in_all + bounds.reserve


def test_who_does_not_complete_its_message_while_others_wait_has_to_go(logged: list[str]) -> None:
    async def go() -> None:
        world = World()
        slow = [world.connect() for _ in range(2)]
        for connection in slow:
            connection.begin(200 * KiB, 190 * KiB)
        world.clock.advance(1000)
        assert not any(connection.dropped for connection in slow), "nobody waits"
        other = world.connect()
        other.begin(50 * KiB, 40 * KiB)
        assert not other.reading
        for _ in range(4):
            world.clock.advance(BOUNDS.patience / 4)
        assert not any(connection.dropped for connection in slow)
        world.clock.advance(BOUNDS.patience / 4)
        assert all(connection.dropped for connection in slow)
        assert other.reading

    run(go)
    assert len(logged) == 2


# -- connections and references -----------------------------------------------------------------------------


def test_there_may_be_so_many_connections() -> None:
    async def go() -> None:
        world = World()
        connections = [world.connect() for _ in range(BOUNDS.connections)]
        assert not any(connection.dropped for connection in connections)
        one_more = world.connect(False)
        assert one_more.dropped
        connections[0].lose()
        assert not world.connect().dropped

    run(go)


def test_connections_of_our_own_take_no_place_of_others() -> None:
    async def go() -> None:
        world = World(attrs.evolve(BOUNDS, outgoing=8))
        ours = [Connection(world.memory, accepted=False) for _ in range(8)]
        theirs = [world.connect() for _ in range(BOUNDS.connections)]
        assert not any(connection.dropped for connection in [*ours, *theirs])
        assert Connection(world.memory, accepted=False).dropped
        assert world.connect().dropped

    run(go)


def test_there_may_be_other_numbers_of_connections() -> None:
    assert for_connections(512) == ConnectionBounds()
    assert (for_connections(10).connections, for_connections(10).strangers) == (10, 10)
    assert for_connections(1024).in_all == 2 * ConnectionBounds().in_all


def test_the_oldest_stranger_makes_room_for_another() -> None:
    async def go() -> None:
        world = World()
        known = world.connect()
        strangers = [world.connect(False) for _ in range(BOUNDS.strangers)]
        assert not any(stranger.dropped for stranger in strangers)
        world.connect(False)
        assert [stranger.dropped for stranger in strangers] == [True, False, False, False]
        assert not known.dropped

    run(go)


def test_references_are_bounded_both_ways() -> None:
    async def go() -> None:
        for get in ("getTrackerForMyReference", "getTrackerForYourReference"):
            connection = World().connect(False)
            kept = [Waiting() for _ in range(BOUNDS.references + 1)]
            for i, one in enumerate(kept[:-1]):
                getattr(connection.broker, get)(i, one if "My" in get else None)
            assert not connection.dropped
            getattr(connection.broker, get)(99, kept[-1] if "My" in get else None)
            assert connection.dropped

    run(go)


def test_negotiation_is_bounded_before_it_is_logged(logged: list[str]) -> None:
    async def go() -> None:
        class Listening:
            _test_options: Any = {}  # noqa: RUF012 (as Foolscap has it)

        for size in (NEGOTIATION_BYTES, NEGOTIATION_BYTES + 1):
            negotiation = BoundedNegotiation(ConnectionMemory(BOUNDS, Clock()))
            negotiation.initServer(Listening(), None)
            transport = StringTransport()
            negotiation.makeConnection(transport)
            negotiation.dataReceived(b"x" * size)
            assert transport.disconnecting == (size > NEGOTIATION_BYTES)
            negotiation.stopNegotiationTimer()

    run(go)
    assert len(logged) == 1


# -- anything -----------------------------------------------------------------------------------------------

SNIPPETS = st.sampled_from([
    token(0x88), token(0x89), token(0x88, 1), token(0x89, 1), string(b"call"), string(b"answer"), string(b"error"),
    string(b"arguments"), string(b"list"), string(b"dict"), string(b"wait"), string(b"data"), token(0x81, 1),
    token(0x81), token(0x87, 3), token(0x8A), token(STRING, 5000), token(STRING, 10**6), token(0x85, 8), b"\x84",
    string(b"copyable"), string(b"reference"), string(b"my-reference"), string(b"their-reference"),
    string(b"getReferenceByName"), call(5, 1, b"wait", string(b"x" * 300)), begun_call(6, 1, b"wait")])


@given(pieces=st.lists(st.one_of(SNIPPETS, st.binary(max_size=60)), max_size=40), known=st.booleans())
def test_garbage_never_raises_and_is_never_held_beyond_the_bound(pieces: list[bytes], known: bool) -> None:
    async def go() -> None:
        world = World()
        connection = world.connect(known)
        for piece in pieces:
            connection.broker.dataReceived(piece)
            assert len(connection.broker.buffer) == 0 or connection.broker.connectionAbandoned
            assert connection.broker.held <= KNOWN_PEER.message + BOUNDS.each
            assert world.memory.held == connection.broker.held
        connection.lose()
        await settle()
        while connection.target.calls:
            connection.answer()
        await settle()
        assert world.memory.held == 0

    run(go)
