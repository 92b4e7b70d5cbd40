"""What helper/ may rely on in every kind of storage server (helper/sinks.py), and what it must expect.

The same suite runs against the fake servers of the other tests and against the real ones (tests/server_benches.py).
What only stock servers do stands at the end; what staging servers add has a suite of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import oracle
import pytest
from server_benches import BENCHES, SI, TARGET, Bench, StockBench
from twisted.internet.defer import Deferred, gatherResults

from helper.layout import DATA_OFFSET
from helper.placement import Allocation
from helper.sinks import Granted, ShareSink, Target

KEY = bytes(16)
#: What stands before the data of every share.
HEADER = b"\0\0\0\2" + b"h" * (DATA_OFFSET - 4)


def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A server with a megabyte of room."""
    bench = BENCHES[request.param](tmp_path / "storage")
    bench.make(1_000_000)
    yield bench
    bench.stop()


bench = pytest.fixture(made, params=list(BENCHES), name="bench")
stocks_own = pytest.fixture(made, params=["stock"], name="stocks_own")
stock_bench = pytest.fixture(made, params=["fake", "stock"], name="stock_bench")


def allocate(bench: Bench, shnums: Sequence[int], size: int = 1000) -> Granted:
    return bench.run(lambda: bench.server.allocate(TARGET, shnums, Allocation(size, size)))


def sink(bench: Bench, shnum: int = 0, size: int = 1000) -> ShareSink:
    return allocate(bench, [shnum], size).sinks[shnum]


def share_of(data: bytes) -> bytes:
    """A share with this data, and no trailer."""
    return HEADER + data


def write_share(bench: Bench, share: bytes, shnum: int = 0) -> None:
    """All that the pusher does for a share."""
    one = sink(bench, shnum, len(share))
    write(bench, one, share)
    publish(bench, one, len(share))


def write(bench: Bench, one: ShareSink, share: bytes) -> None:
    """The header last."""
    if len(share) > DATA_OFFSET:
        bench.run(lambda: one.write(DATA_OFFSET, share[DATA_OFFSET:]))
    bench.run(lambda: one.write(0, share[:DATA_OFFSET]))


def publish(bench: Bench, one: ShareSink, size: int) -> None:
    bench.run(lambda: one.seal(SI, size))
    assert bench.run(lambda: one.publish(SI)) is None


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


def test_other_shares_that_are_there_are_not_told(bench: Bench) -> None:
    write_share(bench, share_of(b"x" * 100), 3)
    granted = allocate(bench, [4])
    assert set(granted.sinks) == {4}
    assert not granted.existing


# -- writing ----------------------------------------------------------------------------------------------


def test_a_share_is_read_only_once_it_is_published(bench: Bench) -> None:
    share = share_of(b"0123456789")
    one = sink(bench, 0, len(share))
    write(bench, one, share)
    assert bench.content(0) is None
    bench.run(lambda: one.seal(SI, len(share)))
    assert bench.content(0) is None
    assert bench.open_shares() == 1
    assert bench.run(lambda: one.publish(SI)) is None
    assert bench.content(0) == share
    assert not bench.open_shares()


def test_the_header_may_be_written_last_and_in_parts(bench: Bench) -> None:
    share = share_of(b"0123456789")
    one = sink(bench, 0, len(share))
    for start, end in ((DATA_OFFSET, DATA_OFFSET + 6), (DATA_OFFSET + 6, len(share)), (0, 4), (4, DATA_OFFSET)):
        bench.run(partial(one.write, start, share[start:end]))
    publish(bench, one, len(share))
    assert bench.content(0) == share


def test_writes_may_overlap_in_time_and_are_answered_in_order(bench: Bench) -> None:
    share = share_of(b"".join(b"%010d" % i for i in range(10)))
    one = sink(bench, 0, len(share))
    answered: list[int] = []

    def write_block(i: int) -> Deferred[None]:
        return one.write(DATA_OFFSET + i * 10, b"%010d" % i).addCallback(lambda _none: answered.append(i))

    def all_writes() -> Deferred[Any]:
        return gatherResults([*(write_block(i) for i in range(10)), one.write(0, HEADER)])

    bench.run(all_writes)
    publish(bench, one, len(share))
    assert answered == list(range(10))
    assert bench.content(0) == share


def test_the_same_bytes_may_be_written_again(bench: Bench) -> None:
    share = share_of(b"abcdef")
    one = sink(bench, 0, len(share))
    bench.run(lambda: one.write(0, HEADER[:4]))
    for data in (b"abcd", b"ab", b"abcdef"):
        bench.run(partial(one.write, DATA_OFFSET, data))
    bench.run(lambda: one.write(0, HEADER[:4]))
    bench.run(lambda: one.write(0, HEADER))
    publish(bench, one, len(share))
    assert bench.content(0) == share


def test_a_share_can_be_kept_alive_at_any_time_before_it_is_published(bench: Bench) -> None:
    share = share_of(b"abcdef")
    one = sink(bench, 0, len(share))
    bench.run(one.touch)
    bench.run(lambda: one.write(DATA_OFFSET, b"abcdef"))
    bench.run(one.touch)
    bench.run(lambda: one.write(0, HEADER))
    bench.run(one.touch)
    bench.run(lambda: one.seal(SI, len(share)))
    bench.run(one.touch)
    assert bench.run(lambda: one.publish(SI)) is None
    assert bench.content(0) == share


# -- letting go -------------------------------------------------------------------------------------------


def test_abort_leaves_nothing_and_the_share_can_be_had_again(bench: Bench) -> None:
    one = sink(bench, 0)
    bench.run(lambda: one.write(DATA_OFFSET, b"abcd"))
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
    share = share_of(b"abcd")
    one = sink(bench, 0, len(share))
    write(bench, one, share)
    publish(bench, one, len(share))
    bench.run(one.abort)
    assert bench.content(0) == share


def test_an_aborted_share_takes_no_more_bytes(bench: Bench) -> None:
    one = sink(bench, 0)
    bench.run(one.abort)
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(lambda: one.write(DATA_OFFSET, b"a"))
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(one.touch)
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(lambda: one.publish(SI))
    assert bench.content(0) is None


# -- losing the connection ----------------------------------------------------------------------------------


def test_published_shares_stay(bench: Bench) -> None:
    write_share(bench, share_of(b"abcd"))
    bench.disconnect()
    assert bench.content(0) == share_of(b"abcd")


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
        bench.run(lambda: server.allocate(TARGET, [0], Allocation(10, 10)))
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(lambda: server.shares_of(SI))
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(lambda: server.add_lease(SI))


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


def test_every_share_of_an_index_that_readers_find_is_told(bench: Bench, encoded: oracle.Encoded) -> None:
    write_share(bench, encoded.shares[1], 1)
    write_share(bench, encoded.shares[2], 2)
    allocate(bench, [3])  # still being written
    shares = bench.run(lambda: bench.server.shares_of(SI))
    assert set(shares) == {1, 2}
    for share in shares.values():
        assert bench.run(share.read_ueb) == encoded.ueb
    assert bench.run(lambda: bench.server.shares_of(bytes(16))) == {}


def test_a_lease_may_be_added_and_renewed_at_any_time(bench: Bench, encoded: oracle.Encoded) -> None:
    """Also where nothing is: that is no error on any server."""
    bench.run(lambda: bench.server.add_lease(SI))
    write_share(bench, encoded.shares[1], 1)
    for _ in range(2):
        bench.run(lambda: bench.server.add_lease(SI))
    assert bench.content(1) == encoded.shares[1]


def test_a_lease_is_added_by_whoever_has_none_and_renewed_by_whoever_has(stocks_own: StockBench,
                                                                          encoded: oracle.Encoded) -> None:
    write_share(stocks_own, encoded.shares[1], 1)
    (first,) = stocks_own.share_file(1).get_leases()
    stocks_own.run(lambda: stocks_own.stock.add_lease(SI))
    (renewed,) = stocks_own.share_file(1).get_leases()
    assert renewed.get_expiration_time() >= first.get_expiration_time()
    other = attrs.evolve(stocks_own.stock, lease_secrets=lambda _si, _seed: (b"R" * 32, b"C" * 32))
    stocks_own.run(lambda: other.add_lease(SI))
    assert len(list(stocks_own.share_file(1).get_leases())) == 2


def test_reading_a_share_that_is_none_fails(bench: Bench) -> None:
    write_share(bench, b"x" * 500)
    existing = allocate(bench, [0], 1000).existing[0]
    with pytest.raises(Exception):  # noqa: B017, PT011
        bench.run(existing.read_ueb)


# -- what only stock servers do -----------------------------------------------------------------------------


def test_without_a_storage_index_a_stock_server_cannot_be_asked(stock_bench: Bench) -> None:
    assert not stock_bench.server.stages
    with pytest.raises(ValueError, match="storage index"):
        stock_bench.server.allocate(Target(TARGET.staging_secret), [0], Allocation(10, 10))


def test_what_does_not_fit_is_refused_by_leaving_it_out(stock_bench: Bench) -> None:
    granted = allocate(stock_bench, [0, 1, 2], 400_000)
    assert len(granted.sinks) == 2
    assert not granted.existing


def test_open_allocations_count_against_the_room(stock_bench: Bench) -> None:
    first = sink(stock_bench, 0, 900_000)
    assert not allocate(stock_bench, [1], 900_000).sinks
    stock_bench.run(first.abort)
    assert set(allocate(stock_bench, [1], 900_000).sinks) == {1}


def test_a_share_open_elsewhere_is_neither_granted_nor_existing(stock_bench: Bench) -> None:
    sink(stock_bench, 3)
    granted = allocate(stock_bench, [3])
    assert not granted.sinks
    assert not granted.existing


def test_more_may_be_allocated_than_written_the_rest_is_zeros(stock_bench: Bench) -> None:
    one = sink(stock_bench, 0, 500_000)
    stock_bench.run(lambda: one.write(0, b"abc"))
    stock_bench.run(lambda: one.publish(SI))
    assert stock_bench.content(0) == b"abc" + bytes(500_000 - 3)


def test_nothing_can_be_written_past_the_allocation(stock_bench: Bench) -> None:
    one = sink(stock_bench, 0, 10)
    with pytest.raises(Exception):  # noqa: B017, PT011 - of the server's choosing
        stock_bench.run(lambda: one.write(8, b"abc"))


def test_other_bytes_cannot_be_written_over_those_written(stock_bench: Bench) -> None:
    one = sink(stock_bench, 0, 10)
    stock_bench.run(lambda: one.write(0, b"abcd"))
    with pytest.raises(Exception):  # noqa: B017, PT011
        stock_bench.run(lambda: one.write(2, b"xy"))
    stock_bench.run(lambda: one.publish(SI))
    content = stock_bench.content(0)
    assert content is not None
    assert content[:4] == b"abcd"


def test_when_the_connection_goes_open_shares_go_with_it(stock_bench: Bench) -> None:
    one = sink(stock_bench, 0)
    stock_bench.run(lambda: one.write(0, b"abcd"))
    stock_bench.disconnect()
    assert not stock_bench.open_shares()
    with pytest.raises(Exception):  # noqa: B017, PT011
        stock_bench.run(lambda: one.write(4, b"efgh"))
    stock_bench.run(one.abort)  # never fails
    stock_bench.reconnect()
    assert set(allocate(stock_bench, [0]).sinks) == {0}


@pytest.mark.parametrize("garbage", [b"x", b"x" * 0x44, bytes(0x44), bytes(500)],
                         ids=["a byte", "no header", "zeros", "more zeros"])
def test_reading_what_only_a_stock_server_takes_for_a_share_fails(stock_bench: Bench, garbage: bytes) -> None:
    write_share(stock_bench, garbage)
    existing = allocate(stock_bench, [0], 1000).existing[0]
    with pytest.raises(Exception):  # noqa: B017, PT011
        stock_bench.run(existing.read_ueb)
