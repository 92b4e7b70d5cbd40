"""What helper/ may rely on in every kind of storage server (helper/sinks.py), and what it must expect.

The same suite runs against the fake servers of the other tests and against the real helper.stock.StockServer,
which talks over a loopback Foolscap connection to allmydata's own storage server.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import oracle
import pytest
import reactor_loop
from allmydata.storage.immutable import ShareFile
from allmydata.storage.server import FoolscapStorageServer, StorageServer
from allmydata.storage_client import NativeStorageServer
from allmydata.util import base32
from fakes import FakeServer
from foolscap.api import Tub
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from world import begin

from helper.parameters import Parameters
from helper.placement import Allocation
from helper.sinks import Granted, ShareSink
from helper.sinks import StorageServer as Server
from helper.stock import StockServer

T = TypeVar("T")

SI = bytes(range(16))
KEY = bytes(16)
PARAMETERS = Parameters(3, 1, 5, 128)


class Bench(Protocol):
    """A server under test, and what only the test may know about it."""

    @property
    def server(self) -> Server: ...
    def make(self, capacity: int) -> None:
        """Start it, with so many bytes of room."""
    def run(self, call: Callable[[], Awaitable[T]]) -> T: ...
    def content(self, shnum: int) -> bytes | None:
        """The bytes that readers see of a share of SI."""
    def open_shares(self) -> int:
        """How many shares are being written."""
    def disconnect(self) -> None: ...
    def reconnect(self) -> None: ...
    def stop(self) -> None: ...


class FakeBench:
    def make(self, capacity: int) -> None:
        self._clock = Clock()
        self.server = FakeServer("fake", self._clock, capacity)

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        results: list[Any] = []
        begin(call()).addBoth(results.append)
        self._clock.advance(0)
        assert results, "no answer"
        if hasattr(results[0], "raiseException"):
            results[0].raiseException()
        result: T = results[0]
        return result

    def content(self, shnum: int) -> bytes | None:
        share = self.server.share(SI, shnum)
        return None if share is None else share.data.ljust(share.allocated, b"\0")

    def open_shares(self) -> int:
        return len(self.server.open)

    def disconnect(self) -> None:
        self.server.disconnect()
        self._clock.advance(0)

    def reconnect(self) -> None:
        self.server.reconnect()

    def stop(self) -> None:
        pass


class RoomyStorageServer(StorageServer):  # type: ignore[misc]
    """Says that its disk has a certain room, instead of asking the disk."""

    capacity = 0

    def get_available_space(self) -> int:
        used = sum(p.stat().st_blocks * 512 for p in Path(self.sharedir).rglob("*") if p.is_file())
        return max(0, self.capacity - used)


def _client_tub() -> Tub:
    """With the options of a node's Tubs (allmydata.node)."""
    tub = Tub(certData=reactor_loop.certificate("storage client"))
    tub.setOption("expose-remote-exception-types", False)
    return tub


class StockBench:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make(self, capacity: int) -> None:
        self.storage = RoomyStorageServer(str(self._directory), b"n" * 20)
        self.storage.capacity = capacity
        reactor_loop.run(self._start)

    async def _start(self) -> None:
        self._tub = reactor_loop.listening_tub("storage server")
        furl = self._tub.registerReference(FoolscapStorageServer(self.storage))
        announcement = {"anonymous-storage-FURL": furl, "permutation-seed-base32": base32.b2a(b"p" * 20).decode()}
        self._native = NativeStorageServer(
            b"v0-" + base32.b2a(b"s" * 32), announcement, lambda _overrides: _client_tub(), {}, None)
        self._native.startService()
        self._native.start_connecting(None)
        await reactor_loop.turns(self._native.is_connected)

    @property
    def server(self) -> StockServer:
        return StockServer(self._native, lambda _si, _seed: (b"r" * 32, b"c" * 32))

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        return reactor_loop.run(call)

    def content(self, shnum: int) -> bytes | None:
        paths = dict(self.storage.get_shares(SI))
        if shnum not in paths:
            return None
        share = ShareFile(paths[shnum])
        return bytes(share.read_share_data(0, share.get_length()))

    def open_shares(self) -> int:
        return len(self.storage._bucket_writers)

    def disconnect(self) -> None:
        """From the server's side, as a router would."""
        async def cut() -> None:
            for broker in list(self._tub.brokers.values()):
                broker.transport.loseConnection()
            await reactor_loop.turns(lambda: not self._native.is_connected() and not self.open_shares())

        self.run(cut)

    def reconnect(self) -> None:
        async def again() -> None:
            self._native.try_to_connect()
            await reactor_loop.turns(self._native.is_connected)

        self.run(again)

    def stop(self) -> None:
        async def stop() -> None:
            await self._native.stopService()
            await self._tub.stopService()

        self.run(stop)


@pytest.fixture(params=["fake", "stock"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A server with a megabyte of room."""
    bench: Bench = FakeBench() if request.param == "fake" else StockBench(tmp_path / "storage")
    bench.make(1_000_000)
    yield bench
    bench.stop()


def allocate(bench: Bench, shnums: Sequence[int], size: int = 1000) -> Granted:
    return bench.run(lambda: bench.server.allocate(SI, shnums, Allocation(size, size)))


def sink(bench: Bench, shnum: int = 0, size: int = 1000) -> ShareSink:
    return allocate(bench, [shnum], size).sinks[shnum]


def write_share(bench: Bench, data: bytes, shnum: int = 0) -> None:
    one = sink(bench, shnum, len(data))
    bench.run(lambda: one.write(0, data))
    bench.run(one.seal)
    bench.run(one.publish)


# -- asking for room ------------------------------------------------------------------------------------


def test_it_has_a_name_and_a_stable_id(bench: Bench) -> None:
    assert bench.server.server_id == bench.server.server_id
    assert isinstance(bench.server.server_id, bytes)
    assert 0 < len(bench.server.name) <= 64


def test_it_says_how_much_room_it_has(bench: Bench) -> None:
    before = bench.run(bench.server.free_space)
    assert before is not None
    assert 900_000 < before <= 1_000_000
    write_share(bench, random.Random(0).randbytes(100_000))
    after = bench.run(bench.server.free_space)
    assert after is not None
    assert after <= before - 100_000


def test_every_share_asked_for_is_granted(bench: Bench) -> None:
    granted = allocate(bench, [0, 1, 4])
    assert set(granted.sinks) == {0, 1, 4}
    assert not granted.existing
    assert bench.open_shares() == 3


def test_what_does_not_fit_is_refused_by_leaving_it_out(bench: Bench) -> None:
    granted = allocate(bench, [0, 1, 2], 400_000)
    assert len(granted.sinks) == 2
    assert not granted.existing


def test_open_allocations_count_against_the_room(bench: Bench) -> None:
    first = sink(bench, 0, 900_000)
    assert not allocate(bench, [1], 900_000).sinks
    bench.run(first.abort)
    assert set(allocate(bench, [1], 900_000).sinks) == {1}


def test_a_share_open_elsewhere_is_neither_granted_nor_existing(bench: Bench) -> None:
    sink(bench, 3)
    granted = allocate(bench, [3])
    assert not granted.sinks
    assert not granted.existing


def test_other_shares_that_are_there_are_not_told(bench: Bench) -> None:
    write_share(bench, b"x" * 100, 3)
    granted = allocate(bench, [4])
    assert set(granted.sinks) == {4}
    assert not granted.existing


# -- writing ----------------------------------------------------------------------------------------------


def test_a_share_is_read_only_once_it_is_published(bench: Bench) -> None:
    one = sink(bench, 0, 10)
    bench.run(lambda: one.write(0, b"0123456789"))
    assert bench.content(0) is None
    bench.run(one.seal)
    assert bench.content(0) is None
    bench.run(one.publish)
    assert bench.content(0) == b"0123456789"
    assert not bench.open_shares()


def test_the_header_may_be_written_last(bench: Bench) -> None:
    one = sink(bench, 0, 10)
    for offset, data in ((4, b"4567"), (8, b"89"), (0, b"0123")):
        bench.run(partial(one.write, offset, data))
    bench.run(one.publish)
    assert bench.content(0) == b"0123456789"


def test_writes_may_overlap_in_time_and_are_answered_in_order(bench: Bench) -> None:
    one = sink(bench, 0, 100)
    answered: list[int] = []

    def write(i: int) -> Deferred[None]:
        return one.write(i * 10, b"%010d" % i).addCallback(lambda _none: answered.append(i))

    def all_writes() -> Deferred[Any]:
        return gatherResults([write(i) for i in range(10)])

    bench.run(all_writes)
    bench.run(one.publish)
    assert answered == list(range(10))
    assert bench.content(0) == b"".join(b"%010d" % i for i in range(10))


def test_more_may_be_allocated_than_written_the_rest_is_zeros(bench: Bench) -> None:
    one = sink(bench, 0, 500_000)
    bench.run(lambda: one.write(0, b"abc"))
    bench.run(one.publish)
    assert bench.content(0) == b"abc" + bytes(500_000 - 3)


def test_nothing_can_be_written_past_the_allocation(bench: Bench) -> None:
    one = sink(bench, 0, 10)
    with pytest.raises(Exception):  # noqa: B017, PT011 - of the server's choosing
        bench.run(lambda: one.write(8, b"abc"))


def test_the_same_bytes_may_be_written_again_to_keep_the_share_alive(bench: Bench) -> None:
    one = sink(bench, 0, 10)
    bench.run(lambda: one.write(0, b"abcd"))
    bench.run(lambda: one.write(0, b"ab"))
    bench.run(lambda: one.write(0, b"abcdef"))
    bench.run(one.publish)
    assert bench.content(0) == b"abcdef" + bytes(4)


def test_other_bytes_cannot_be_written_over_those_written(bench: Bench) -> None:
    one = sink(bench, 0, 10)
    bench.run(lambda: one.write(0, b"abcd"))
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(lambda: one.write(2, b"xy"))
    bench.run(one.publish)
    content = bench.content(0)
    assert content is not None
    assert content[:4] == b"abcd"


# -- letting go -------------------------------------------------------------------------------------------


def test_abort_leaves_nothing_and_the_share_can_be_had_again(bench: Bench) -> None:
    one = sink(bench, 0)
    bench.run(lambda: one.write(0, b"abcd"))
    bench.run(one.abort)
    assert not bench.open_shares()
    assert bench.content(0) is None
    assert set(allocate(bench, [0], 2000).sinks) == {0}


def test_abort_may_be_repeated(bench: Bench) -> None:
    one = sink(bench, 0)
    bench.run(one.abort)
    bench.run(one.abort)
    assert not bench.open_shares()


def test_abort_after_publish_changes_nothing(bench: Bench) -> None:
    one = sink(bench, 0, 4)
    bench.run(lambda: one.write(0, b"abcd"))
    bench.run(one.publish)
    bench.run(one.abort)
    assert bench.content(0) == b"abcd"


def test_an_aborted_share_takes_no_more_bytes(bench: Bench) -> None:
    one = sink(bench, 0)
    bench.run(one.abort)
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(lambda: one.write(0, b"a"))
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(one.publish)


# -- losing the connection ----------------------------------------------------------------------------------


def test_when_the_connection_goes_open_shares_go_with_it(bench: Bench) -> None:
    one = sink(bench, 0)
    bench.run(lambda: one.write(0, b"abcd"))
    bench.disconnect()
    assert not bench.open_shares()
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(lambda: one.write(4, b"efgh"))
    bench.run(one.abort)  # never fails
    bench.reconnect()
    assert set(allocate(bench, [0]).sinks) == {0}


def test_published_shares_stay(bench: Bench) -> None:
    write_share(bench, b"abcd")
    bench.disconnect()
    assert bench.content(0) == b"abcd"


def test_disconnection_is_told_once(bench: Bench) -> None:
    told: list[int] = []

    async def watch() -> None:
        bench.server.on_disconnect(lambda: told.append(1))

    bench.run(watch)
    bench.disconnect()
    assert told == [1]
    bench.reconnect()
    bench.disconnect()
    assert told == [1]


def test_the_telling_can_be_cancelled_also_afterwards(bench: Bench) -> None:
    told: list[int] = []

    async def watch() -> Callable[[], None]:
        return bench.server.on_disconnect(lambda: told.append(1))

    async def call(cancel: Callable[[], None]) -> None:
        cancel()

    first, second = bench.run(watch), bench.run(watch)
    bench.run(lambda: call(first))
    bench.disconnect()
    assert told == [1]
    bench.run(lambda: call(second))


def test_a_server_that_is_gone_fails_every_request(bench: Bench) -> None:
    server = bench.server
    bench.disconnect()
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(server.free_space)
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(lambda: server.allocate(SI, [0], Allocation(10, 10)))


# -- shares that were there ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded() -> oracle.Encoded:
    return oracle.encode(random.Random(1).randbytes(1000), 3, 5, 128, key=KEY, layout=2)


def test_an_existing_share_is_told_and_cannot_be_written(bench: Bench, encoded: oracle.Encoded) -> None:
    write_share(bench, encoded.shares[2], 2)
    granted = allocate(bench, [1, 2])
    assert set(granted.sinks) == {1}
    assert set(granted.existing) == {2}


def test_an_existing_share_can_be_read(bench: Bench, encoded: oracle.Encoded) -> None:
    write_share(bench, encoded.shares[2], 2)
    existing = allocate(bench, [2]).existing[2]
    assert bench.run(existing.read_ueb) == encoded.ueb
    block_size = 129 // 3
    for segment, length in ((0, block_size), (3, block_size), (7, -(-(1000 - 7 * 129) // 3))):
        start = 0x44 + segment * block_size
        block = bench.run(partial(existing.read_block, segment, block_size, length))
        assert block == encoded.shares[2][start:start + length]


@pytest.mark.parametrize("garbage", [b"x", b"x" * 0x44, bytes(0x44), bytes(500)],
                         ids=["a byte", "no header", "zeros", "more zeros"])
def test_reading_a_share_that_is_none_fails(bench: Bench, garbage: bytes) -> None:
    write_share(bench, garbage)
    existing = allocate(bench, [0], 1000).existing[0]

    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(existing.read_ueb)
