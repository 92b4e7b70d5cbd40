"""What uploads hold in memory, whatever their parameters are and whatever servers do, and that no upload waits for
another's server."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from fakes import FakeServer
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from world import SI, World, begin, expected, outcome, plaintext, write_all

from helper.block_memory import BlockMemory
from helper.encoder import Encoder
from helper.errors import BadArgument, QuotaExceeded
from helper.in_flight import ALL_MAX, SERVER_LEAST, SERVER_MOST, InFlight
from helper.interfaces import SEGMENT_SIZE_MAX, SIZE_MAX
from helper.parameters import SEGMENT_BLOCKS_MAX, TREES_MAX, TREES_PER_BYTE, Parameters
from helper.pipeline import Pipeline
from helper.pushing import IN_FLIGHT_PER_SHARE_MAX, WRITE_MOST, WRITE_TARGET
from helper.settings import Settings
from helper.staging_interfaces import LARGEST_WRITE

MiB = 1024 * 1024
#: As a file of a usual size on a usual grid.
USUAL = Parameters(3, 7, 10, MiB)


# -- a server that hangs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("happy", [7, 10], ids=["can be done without", "is needed"])
def test_a_server_that_hangs_delays_no_upload_that_can_do_without_it(happy: int) -> None:
    with World(servers=10, settings=Settings()) as world:
        others = [world.upload(attrs.evolve(USUAL, happy=happy), key=bytes([i]) * 16) for i in range(12)]
        for upload in others:
            world.run(upload.write(plaintext(200_000)))
        world.wait(1)
        world.grid.servers[0].hang()
        waiting = [outcome(begin(upload.write(plaintext(2 * MiB)))) for upload in others]
        world.wait(0.5)
        data = plaintext(6 * MiB, 5)
        done = outcome(begin(write_all(world.upload(USUAL, key=b"k" * 16), data, 65536)))
        world.wait(3)
        assert done == [expected(data, USUAL, b"k" * 16).cap]
        assert world.uploads._services.memory.held <= 16 * MiB
        assert world.grid.servers[0].unanswered_bytes <= SERVER_MOST
        for upload in others:
            world.run(upload.abort())
        assert waiting


# -- on their way to servers -------------------------------------------------------------------------------


def test_each_server_has_room_of_its_own() -> None:
    in_flight = InFlight(Clock())
    assert in_flight.take(b"a", SERVER_MOST)
    assert not in_flight.take(b"a", 1)
    assert in_flight.take(b"b", SERVER_MOST)
    in_flight.done(b"a", 1000)
    assert in_flight.take(b"a", 1000)
    assert (in_flight.to(b"a"), in_flight.total) == (SERVER_MOST, 2 * SERVER_MOST)


def test_more_than_the_bound_may_be_sent_when_nothing_is_on_its_way() -> None:
    in_flight = InFlight(Clock())
    assert in_flight.take(b"a", 100 * MiB)
    assert not in_flight.take(b"a", 1)
    in_flight.done(b"a", 100 * MiB)
    assert in_flight.take(b"a", 1)


@pytest.mark.parametrize("servers", [1, 8, 16, 255])
def test_many_servers_have_less_room_each(servers: int) -> None:
    in_flight = InFlight(Clock())
    for _round in range(100):
        for server in range(servers):
            in_flight.take(b"%d" % server, 100_000)
    assert in_flight.total <= max(ALL_MAX, servers * SERVER_LEAST) + servers * 100_000


def test_those_who_wait_are_told_in_turn_and_all_of_them_even_if_the_first_does_not_use_the_room() -> None:
    clock, told = Clock(), list[int]()
    in_flight = InFlight(clock)
    in_flight.take(b"a", SERVER_MOST)
    waiters = [lambda i=i: told.append(i) for i in range(10)]
    for waiter in waiters:
        in_flight.wait(b"a", waiter)
        in_flight.wait(b"a", waiter)  # no second time
    in_flight.done(b"a", 1000)
    assert told == [0]
    in_flight.forget(waiters[1])
    clock.pump([0.01] * 20)
    assert told == [0, *range(2, 10)]
    assert not clock.getDelayedCalls()
    assert in_flight.answers(b"a") == 1


def test_nobody_is_told_while_there_is_no_room() -> None:
    clock, told = Clock(), list[int]()
    in_flight = InFlight(clock)
    in_flight.take(b"a", 2 * SERVER_MOST)
    in_flight.wait(b"a", lambda: told.append(1))
    in_flight.done(b"a", 1000)
    clock.advance(10)
    assert not told
    in_flight.done(b"a", SERVER_MOST)
    assert told == [1]


# -- blocks ------------------------------------------------------------------------------------------------


class Spool:
    """Zeros, without a disk."""

    def using(self, run: Callable[..., Deferred[Any]], function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return run(function, *arguments)

    def read(self, _offset: int, length: int) -> bytes:
        return bytes(length)


def pipeline(memory: BlockMemory, parameters: Parameters = USUAL) -> Pipeline:
    return Pipeline(parameters, Spool(), maybeDeferred, memory, lambda: None,  # type: ignore[arg-type]
                    lambda failure: failure.raiseException())


def test_tails_of_many_small_files_wait_for_room() -> None:
    memory = BlockMemory()
    uploads = [pipeline(memory) for _ in range(40)]
    for upload in uploads:
        upload.complete(1_000_000)
        assert memory.held <= 16 * MiB
    waiting = [upload for upload in uploads if upload.completion is None]
    assert memory.short
    assert waiting
    for upload in uploads:
        if upload.completion is not None:
            assert upload.completion.tail_blocks is None
            assert upload.block(0, 3) is not None
            upload.needed_from(1)
            assert upload.block(0, 3) is None
        assert memory.held <= 16 * MiB
    assert not [upload for upload in waiting if upload.completion is None]


def test_the_tail_can_be_read_again() -> None:
    one = pipeline(BlockMemory(), Parameters(3, 7, 10, 1000))
    one.complete(5000)
    assert one.segments == 5
    block = one.block(4, 2)
    assert block is not None
    assert one.block_size(4) == len(block) == -(-(5000 - 4 * 1002) // 3)
    one.needed_from(5)
    assert outcome(one.reencode(4, 2)) == [block]
    assert len(outcome(one.reencode(3, 2))[0]) == one.block_size(3) == 334


def test_a_tail_that_was_not_the_end_is_forgotten() -> None:
    one = pipeline(BlockMemory(), Parameters(3, 7, 10, 1000))
    one.complete(5000)
    one.reopen()
    assert one.block(4, 2) is None
    one.set_durable(5010)
    assert len(one.block(4, 2) or b"") == 334


@pytest.mark.parametrize(("k", "n", "size"), [(71, 255, MiB), (101, 256, MiB), (1, 1, 8 * MiB), (3, 10, MiB)])
def test_usual_parameters_are_allowed(k: int, n: int, size: int) -> None:
    Parameters(k, 1, n, size).check_memory()


def test_a_small_file_may_have_any() -> None:
    Parameters(1, 1, 256, MiB, 1000).check_memory()


@given(k=st.integers(1, 256), n=st.integers(1, 256), size=st.integers(1, SEGMENT_SIZE_MAX))
def test_blocks_of_a_segment_are_bounded(k: int, n: int, size: int) -> None:
    k = min(k, n)
    parameters = Parameters(k, 1, n, size)
    blocks = -(-size // k) * n
    if blocks <= SEGMENT_BLOCKS_MAX:
        parameters.check_memory()
    else:
        with pytest.raises(BadArgument) as caught:
            parameters.check_memory()
        most = int(caught.value.expected.split()[2])
        Parameters(k, 1, n, most).check_memory()


def test_open_refuses_what_would_need_too_much_memory_with_numbers() -> None:
    with World() as world:
        with pytest.raises(BadArgument) as argument:
            world.run(world.uploads.open(b"i" * 32, Parameters(1, 1, 32, 8 * MiB).to_wire()))
        assert str(argument.value) == ("bad-argument: max-segment-size: expected at most 393216 for 1 of 32 shares, "
                                       "got 8388608")
        with pytest.raises(QuotaExceeded):
            world.run(world.uploads.open(b"i" * 32, Parameters(1, 1, 256, 1, 3000).to_wire()))
        answer = world.run(world.uploads.open(b"i" * 32, Parameters(1, 1, 256, 1).to_wire()))
        assert answer.fields["quota"] == 63


# -- hash trees --------------------------------------------------------------------------------------------


@given(k=st.integers(1, 256), n=st.integers(1, 256), size=st.integers(1, SEGMENT_SIZE_MAX))
def test_hash_trees_are_bounded(k: int, n: int, size: int) -> None:
    parameters = Parameters(min(k, n), 1, n, size)
    largest = parameters.largest_size

    def trees(size: int) -> int:
        return -(-size // parameters.full_segment_size) * 64 * (n + 1)

    assert largest >= parameters.full_segment_size
    if largest < SIZE_MAX:
        assert trees(largest) <= max(64 * (n + 1), TREES_MAX + largest // TREES_PER_BYTE)
        beyond = largest + parameters.full_segment_size
        assert trees(beyond) > TREES_MAX + beyond // TREES_PER_BYTE


def test_usual_files_may_have_any_size() -> None:
    assert Parameters(3, 7, 10, 128 * 1024).largest_size == SIZE_MAX
    assert Parameters(71, 1, 255, MiB).largest_size == SIZE_MAX


# -- the end of a share ------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.data())
def test_a_trailer_in_pieces_is_the_trailer(segments: int, data: st.DataObject) -> None:
    encoder = Encoder(2, 3, 4)
    for i in range(segments):
        encoder.encode(bytes([i]) * 4)
    done = encoder.complete(data.draw(st.sampled_from([b"", b"x"])))
    shnum = data.draw(st.integers(0, 2))
    whole = done.trailer(shnum)
    assert len(whole) == done.layout.trailer_size
    size = data.draw(st.integers(1, 200))
    assert b"".join(done.trailer(shnum, i, min(i + size, len(whole))) for i in range(0, len(whole), size)) == whole


@pytest.mark.parametrize("staging", [0, 2])
def test_nothing_larger_than_a_server_takes_is_written_nor_more_at_a_time_than_there_is_room_for(staging: int) -> None:
    """Blocks of 5 MiB: of a file of which every share is whole."""
    parameters = Parameters(1, 2, 2, 5 * MiB + 1)
    data = plaintext(9 * MiB)
    with World(servers=2, staging=staging, settings=attrs.evolve(Settings(), contact_after=256)) as world:
        most = 0

        def watch() -> None:
            nonlocal most
            most = max(most, *(server.unanswered_bytes for server in world.grid.servers))

        world.watch = watch
        for server in world.grid.servers:
            server.latency = 0.1
        assert world.put(data, parameters, write_size=MiB) == expected(data, parameters).cap
        world.wait(10)
        world.check_shares(expected(data, parameters))
        sizes = [asked.size for server in world.grid.servers for asked in server.asked if asked.operation == "write"]
        assert max(sizes) <= WRITE_MOST <= LARGEST_WRITE
        assert most <= IN_FLIGHT_PER_SHARE_MAX + WRITE_TARGET + 5 * MiB + 1


def test_a_long_trailer_is_written_as_far_as_there_is_room() -> None:
    """Of 24,577 segments: 6 MiB."""
    parameters = Parameters(1, 1, 1, 4096)
    with World(servers=1, settings=Settings()) as world:
        server: FakeServer = world.grid.servers[0]
        server.latency = 0.01
        uid, ciphertext = b"i" * 32, bytes(4096) * 8193 * 2
        world.run(world.uploads.open(uid, parameters.to_wire()))
        world.run(world.uploads.assign(uid, SI))
        for start in range(0, len(ciphertext), MiB):
            world.run(world.uploads.put_ciphertext(uid, start, ciphertext[start:start + MiB]))
        world.wait(5)
        most = 0

        def watch() -> None:
            nonlocal most
            most = max(most, server.unanswered_bytes)

        world.watch = watch
        completion = Encoder(1, 1, 4096)
        for start in range(0, len(ciphertext), 4096):
            completion.encode(ciphertext[start:start + 4096])
        hashes = completion.complete(b"").hashes
        answer = world.run(world.uploads.finish(uid, len(ciphertext), SI, hashes.crypttext_hash,
                                                hashes.crypttext_root_hash))
        assert answer.fields["state"] == "finished"
        assert 2 * MiB < most <= IN_FLIGHT_PER_SHARE_MAX + WRITE_TARGET


# -- uploads without a byte, and those that are over -----------------------------------------------------------


@pytest.mark.parametrize("then", ["open", "assigned", "aborted", "finished"])
def test_an_upload_without_work_costs_little(then: str) -> None:
    parameters = Parameters(1, 1, 256, 1000, 1000)
    with World(servers=3, settings=Settings()) as world:

        def one(number: int) -> None:
            uid, si = number.to_bytes(32, "big"), number.to_bytes(16, "big")
            world.run(world.uploads.open(uid, parameters.to_wire()))
            if then == "assigned":
                world.run(world.uploads.assign(uid, si))
            if then == "aborted":
                world.run(world.uploads.abort(uid))
            if then == "finished":
                world.run(world.uploads.put_ciphertext(uid, 0, bytes(1000)))
                encoder = Encoder(1, 256, 1000, 1000)
                encoder.encode(bytes(1000))
                hashes = encoder.complete(b"").hashes
                world.run(world.uploads.finish(uid, 1000, si, hashes.crypttext_hash, hashes.crypttext_root_hash))
                world.wait(60)
                for server in world.grid.servers:
                    for store in (server.published, server.asked, server.aborted, server.closed_at):
                        store.clear()

        for number in range(3):
            one(number)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(3, 8):
            one(number)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert grown / 5 < (80_000 if then == "finished" else 30_000)  # a finished one knows where 256 shares are
        assert os.listdir(world.directory / "spool") == ["lock"]
