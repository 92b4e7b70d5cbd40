"""Shares on their way (helper/pushing.py, placing.py, pipeline.py): whole uploads onto fake storage servers.

What counts is always the same: the cap is the oracle's, every share on a server is byte for byte the
oracle's, and nothing else stays anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import attrs
import oracle
import pytest
from fakes import FakeServer, Fault, Published, damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from world import KEY, SI, SMALL, World, begin, expected, outcome, plaintext, with_size, write_all

from client_shim.errors import HelperRefused
from client_shim.upload import StreamingUpload
from helper.layout import ShareLayout
from helper.parameters import Parameters
from helper.patience import Patience
from helper.pipeline import ALL_BLOCKS_MAX, RECENT_BLOCKS_MAX
from helper.placement import AllocationPolicy
from helper.pushing import (
    CLOSE_GRACE,
    IN_FLIGHT_MAX,
    IN_FLIGHT_PER_SHARE_MAX,
    KEEP_ALIVE_INTERVAL,
    WRITE_TARGET,
)
from helper.segments import Geometry
from helper.session import State

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(5000)

#: A first bound that a few kilobytes outgrow.
GROWING = attrs.evolve(SMALL, first_bound=2048)
#: Operations of a server at which it may fail.
OPERATIONS = ["space", "allocate", "write", "seal", "publish"]


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def upload_and_check(world: World, data: bytes = DATA, parameters: Parameters = PARAMETERS, missing: int = 0,
                     write_size: int = 1000) -> oracle.Encoded:
    """Upload `data`; the cap and all shares but `missing` must be right, and nothing else be left."""
    encoded = expected(data, with_size(parameters, None))
    assert world.put(data, parameters, write_size=write_size) == encoded.cap
    world.wait(60)
    world.check_shares(encoded, missing)
    return encoded


def write_slowly(world: World, upload: StreamingUpload, data: bytes, write_size: int = 100) -> None:
    """So that servers keep up."""
    for start in range(0, len(data), write_size):
        world.run(upload.write(data[start:start + write_size]))
        world.wait(0.1)


def all_settled(world: World) -> None:
    assert not world.grid.leftovers()
    assert not world.spool_files()


def refusal(world: World, upload: StreamingUpload, data: bytes) -> HelperRefused:
    with pytest.raises(HelperRefused) as caught:
        world.run(write_all(upload, data))
    return caught.value


# -- what is stored -----------------------------------------------------------------------------------------

SEGMENT = 300
SIZES = [56, 57, SEGMENT - 1, SEGMENT, SEGMENT + 1, 10 * SEGMENT + 7]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "unknown"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("k", "happy", "n"), [(1, 1, 1), (2, 3, 3), (3, 7, 10), (71, 20, 255)])
def test_cap_and_shares_are_stocks(k: int, happy: int, n: int, size: int, declared: bool) -> None:
    parameters = Parameters(k, happy, n, SEGMENT, size if declared else None)
    with World(servers=max(20, happy)) as world:
        upload_and_check(world, plaintext(size), parameters)
        all_settled(world)


def test_shares_are_dealt_to_servers_in_the_order_in_which_readers_ask(world: World) -> None:
    order = world.grid.in_order(SI)
    upload_and_check(world)
    for shnum in range(10):
        assert order[shnum].share(SI, shnum) is not None


def test_with_fewer_servers_than_shares_they_get_two(world: World) -> None:
    world.grid.servers = world.grid.servers[:7]
    upload_and_check(world)
    assert sorted(len(server.published) for server in world.grid.servers) == [1, 1, 1, 1, 2, 2, 2]


def test_shares_are_on_the_servers_before_the_file_ends(world: World) -> None:
    upload = world.upload(PARAMETERS)
    data = plaintext(20_000)
    for start in range(0, 10_000, 1000):
        world.run(upload.write(data[start:start + 1000]))
    world.wait(1)
    encoded = expected(data, PARAMETERS)
    for server in world.grid.servers:
        ((_si, shnum), sink), = server.open.items()
        assert sink.written_to >= 0x44 + 8 * 334
        assert bytes(sink._data[0x44:]) == encoded.shares[shnum][0x44:sink.written_to]
    assert not world.holders()
    for start in range(10_000, 20_000, 1000):
        world.run(upload.write(data[start:start + 1000]))
    assert world.run(upload.close()) == encoded.cap


# -- how much is allocated ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_declared_size_is_allocated_exactly(world: World, size: int) -> None:
    parameters = Parameters(3, 7, 10, SEGMENT, size)
    encoded = upload_and_check(world, plaintext(size), parameters)
    share_size = ShareLayout(Geometry.for_file(3, 10, SEGMENT, size)).share_size
    assert share_size == encoded.allocated_size == len(encoded.shares[0])
    for server in world.grid.servers:
        assert [asked.size for asked in server.allocations()] == [share_size]


def test_an_unknown_size_is_allocated_within_the_first_bound(world: World) -> None:
    upload_and_check(world)
    bounded = AllocationPolicy(3, 10, 1000, SMALL.first_bound).bounded(0, None, 1)
    assert bounded.file_bound == SMALL.first_bound
    for server in world.grid.servers:
        assert [asked.size for asked in server.allocations()] == [bounded.share_size]


def test_a_size_that_is_known_before_servers_are_asked_is_allocated_exactly() -> None:
    with World(settings=attrs.evolve(SMALL, contact_after=100_000)) as world:
        encoded = upload_and_check(world)
        for server in world.grid.servers:
            assert [asked.size for asked in server.allocations()] == [encoded.allocated_size]


def test_at_most_an_eighth_of_a_servers_free_space_is_asked_for(world: World) -> None:
    for server in world.grid.servers:
        server.capacity = 80_000
    upload_and_check(world)
    for server in world.grid.servers:
        (asked,) = server.allocations()
        assert 7_000 < asked.size <= 10_000


def test_an_eighth_is_for_all_shares_of_a_server_together(world: World) -> None:
    world.grid.servers = world.grid.servers[:7]
    for server in world.grid.servers:
        server.capacity = 160_000
    upload_and_check(world)
    for server in world.grid.servers:
        assert sum(asked.size for asked in server.allocations()) <= 20_000


# -- growing ------------------------------------------------------------------------------------------------


def bound_sizes(count: int, parameters: Parameters = PARAMETERS) -> list[int]:
    """Share sizes of the first bounds of GROWING: 2 KiB, 16 KiB, 128 KiB."""
    policy = AllocationPolicy(parameters.k, parameters.n, parameters.max_segment_size, GROWING.first_bound)
    received = [0, 2048, 16384][:count]
    return [policy.bounded(r, None, 1).share_size for r in received]


def moving(server: FakeServer) -> bool:
    """Whether a share has left its first place here and does not yet hold again what it held."""
    if not server.aborted:
        return False
    now = next(iter(server.open.values()), None)
    return now is None or now.written_to < server.aborted[-1].written_to


@pytest.mark.parametrize("happy", [7, 10, 9, 1])
def test_growth_twice_in_one_upload(happy: int) -> None:
    parameters = attrs.evolve(PARAMETERS, happy=happy)
    data = plaintext(20_000)
    with World(settings=GROWING) as world:
        for server in world.grid.servers:
            server.latency = 0.01
        most = 0

        def watch() -> None:
            nonlocal most
            if not world.holders():
                most = max(most, sum(moving(server) for server in world.grid.servers))

        world.watch = watch
        upload = world.upload(parameters)
        write_slowly(world, upload, data)
        encoded = expected(data, parameters)
        assert world.run(upload.close()) == encoded.cap
        world.wait(1)
        world.check_shares(encoded)
        for server in world.grid.servers:
            assert [asked.size for asked in server.allocations()] == bound_sizes(3)
            assert len(server.aborted) == 2
        assert 1 <= most <= max(1, 10 - happy)
        all_settled(world)


def test_growth_starts_at_half_the_bound() -> None:
    with World(settings=GROWING) as world:
        upload = world.upload(PARAMETERS)
        data = plaintext(1024)
        world.run(upload.write(data[:1023]))
        world.wait(1)
        assert not any(server.aborted for server in world.grid.servers)
        world.run(upload.write(data[1023:]))
        world.wait(1)
        assert all(len(server.aborted) == 1 for server in world.grid.servers)
        world.run(upload.abort())


def test_a_file_that_ends_beyond_its_allocations_is_moved_to_exact_ones() -> None:
    """The end comes so fast that nothing has grown yet."""
    with World(settings=GROWING) as world:
        for server in world.grid.servers:
            server.latency = 0.5
        encoded = upload_and_check(world, plaintext(3900))
        for server in world.grid.servers:
            assert server.allocations()[-1].size in (encoded.allocated_size, *bound_sizes(3))
        all_settled(world)


def test_growth_that_a_full_server_refuses_moves_the_share_elsewhere() -> None:
    """An eighth of what these servers have left is less than the next bound."""
    with World(servers=13, settings=GROWING) as world:
        full = world.grid.in_order(SI)[:3]
        for server in full:
            server.capacity = 24_000
        upload_and_check(world, plaintext(20_000))
        assert all(asked.size <= 3_000 for server in full for asked in server.allocations())
        assert not any(server.published for server in full)
        all_settled(world)


def test_a_server_with_two_shares_grows_if_there_is_room_for_both() -> None:
    with World(servers=7, settings=GROWING) as world:
        for server in world.grid.servers:
            server.capacity = 31_000  # two bounds of 2 KiB are about an eighth of it
        upload = world.upload(PARAMETERS)
        write_slowly(world, upload, plaintext(1500))
        for server in world.grid.servers:
            assert len(server.open) == (1 if server.aborted else 2)
        assert sum(bool(server.aborted) for server in world.grid.servers) == 4
        assert world.run(upload.close()) == expected(plaintext(1500), PARAMETERS).cap


def test_growth_that_too_many_servers_refuse_ends_the_upload_with_numbers() -> None:
    with World(settings=GROWING) as world:
        for server in world.grid.in_order(SI)[:4]:
            server.capacity = 24_000
        error = refusal(world, world.upload(PARAMETERS), plaintext(20_000))
        assert (error.code, error.fields()) == ("too-few-servers", {"have": 6, "need": 7})
        world.check_nothing_left()


def test_a_share_that_still_fits_stays_on_a_server_that_cannot_grow() -> None:
    with World(settings=GROWING) as world:
        full = world.grid.in_order(SI)[0]
        full.capacity = 24_000
        upload = world.upload(PARAMETERS)
        write_slowly(world, upload, plaintext(3_000))
        assert world.run(upload.close()) == expected(plaintext(3_000), PARAMETERS).cap
        assert all(asked.size <= 3_000 for asked in full.allocations())
        assert len(full.published) == 1


@pytest.mark.parametrize("operation", ["space", "allocate", "abort"])
@pytest.mark.parametrize("fault", Fault)
def test_a_server_that_fails_while_it_grows_is_done_without(operation: str, fault: Fault) -> None:
    with World(servers=11, settings=GROWING) as world:
        server = world.grid.in_order(SI)[4]
        server.plan(operation, 1 if operation == "abort" else 2, fault)
        upload = world.upload(PARAMETERS)
        write_slowly(world, upload, plaintext(20_000))
        encoded = expected(plaintext(20_000), PARAMETERS)
        assert world.run(upload.close()) == encoded.cap
        world.wait(1)
        world.check_shares(encoded, missing=1)


def test_as_many_hung_servers_as_may_grow_at_a_time_do_not_stop_the_others() -> None:
    with World(settings=GROWING) as world:
        for server in world.grid.in_order(SI)[2:5]:
            server.plan("space", 2, Fault.HANG)
        upload = world.upload(PARAMETERS)
        write_slowly(world, upload, plaintext(20_000))
        encoded = expected(plaintext(20_000), PARAMETERS)
        assert world.run(upload.close()) == encoded.cap
        world.wait(1)
        world.check_shares(encoded, missing=3)


def test_a_server_that_hangs_when_its_share_moves_delays_nobody() -> None:
    """It has let go of nothing, and no call for the share but that is under way."""
    parameters = attrs.evolve(PARAMETERS, happy=10)
    with World(servers=11, settings=attrs.evolve(GROWING, pushing_lag=1 << 20)) as world:
        hung = world.grid.in_order(SI)[4]
        hung.plan("abort", 1, Fault.HANG)
        upload = world.upload(parameters)
        write_slowly(world, upload, plaintext(20_000))
        encoded = expected(plaintext(20_000), parameters)
        assert world.run(upload.close(), patience=120) == encoded.cap
        world.wait(1)
        world.check_shares(encoded)
        assert not hung.published


# -- servers that fail --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "nth"), [
    ("space", 1), ("allocate", 1), *(("write", nth) for nth in range(1, 9)), ("seal", 1), ("publish", 1)])
@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.DISCONNECT, Fault.LOSE_ANSWER])
def test_a_share_that_its_server_fails_finds_another_home(operation: str, fault: Fault, nth: int) -> None:
    with World(servers=12) as world:
        world.grid.in_order(SI)[4].plan(operation, nth, fault)
        upload_and_check(world)
        assert len(world.grid.copies(SI)) == 10
        all_settled(world)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_hung_server_delays_nobody(operation: str) -> None:
    with World() as world:
        world.grid.servers[4].plan(operation, 1, Fault.HANG)
        before = world.clock.seconds()
        encoded = expected(plaintext(8000), PARAMETERS)
        assert world.put(plaintext(8000), PARAMETERS) == encoded.cap
        assert world.clock.seconds() - before <= CLOSE_GRACE + 0.001
        world.wait(1)
        world.check_shares(encoded, missing=1)


def test_refusals_of_all_kinds_up_to_what_happiness_bears(world: World) -> None:
    world.grid.servers[0].refuse_from_now_on()
    world.grid.servers[1].hang()
    world.grid.servers[2].plan("write", 3, Fault.DISCONNECT)
    upload_and_check(world, missing=3)  # those of the others may have gone to the hung one


def test_a_server_that_is_gone_but_still_listed_does_not_end_the_upload(world: World) -> None:
    """Its requests fail at once, while the other shares are not placed yet."""
    first = world.grid.in_order(SI)[0]
    first.disconnect()
    first.stale = True
    upload_and_check(world, missing=0)
    assert len(world.holders()) == 9


def test_a_share_goes_to_no_server_twice(world: World) -> None:
    world.grid.servers = world.grid.servers[:8]
    for server in world.grid.servers[:1]:
        server.refuse_from_now_on()
    upload_and_check(world)
    for server in world.grid.servers:
        asked = [a.shnum for a in server.allocations()]
        assert len(asked) == len(set(asked))


def test_a_share_that_lost_its_server_is_pushed_again_from_the_start(world: World) -> None:
    world.grid.servers.append(FakeServer("spare", world.clock))
    upload = world.upload(PARAMETERS)
    data = plaintext(30_000)
    for start in range(0, 20_000, 1000):
        world.run(upload.write(data[start:start + 1000]))
    world.wait(1)
    world.grid.in_order(SI)[0].disconnect()
    for start in range(20_000, 30_000, 1000):
        world.run(upload.write(data[start:start + 1000]))
    encoded = expected(data, PARAMETERS)
    assert world.run(upload.close()) == encoded.cap
    world.wait(1)
    world.check_shares(encoded)
    all_settled(world)


def test_the_other_share_of_a_lost_server_is_not_forgotten(world: World) -> None:
    world.grid.servers = world.grid.servers[:8]
    world.grid.in_order(SI)[0].plan("write", 4, Fault.DISCONNECT)
    upload_and_check(world)
    assert len(world.grid.copies(SI)) == 10


def broken_on_disk(world: World) -> None:
    """Every spool file has other bytes from now on, as on a failing disk."""
    for path in world.spool_files():
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)


def test_a_share_is_never_made_of_bytes_that_are_not_those_received(world: World) -> None:
    """A share that is pushed again reads the spool; a block of it must have the hash it had before."""
    world.grid.servers.append(FakeServer("spare", world.clock))
    upload = world.upload(PARAMETERS)
    write_slowly(world, upload, DATA, 500)
    broken_on_disk(world)
    world.grid.in_order(SI)[0].disconnect()
    with pytest.raises(HelperRefused) as caught:
        world.run(upload.close())
    assert caught.value.code == "spool-failed"
    assert len(world.errors) == 1
    world.errors.clear()
    world.check_nothing_left()


def test_a_spool_that_breaks_while_publishing_costs_only_the_shares_that_need_it(world: World) -> None:
    order = world.grid.in_order(SI)
    order[0].plan("publish", 1, Fault.DISCONNECT)
    for server in order:
        server.latency = 0.1
    upload = world.upload(PARAMETERS)
    results = outcome(begin(write_all(upload, DATA)))
    world.turn()
    while world.only_upload().session.state is not State.PUBLISHING:
        world.wait(0.05)
    broken_on_disk(world)
    world.wait(60)
    assert results == [expected(DATA, PARAMETERS).cap]
    assert world.errors
    world.errors.clear()
    world.check_shares(expected(DATA, PARAMETERS), missing=1)
    all_settled(world)


def test_uploads_at_the_same_time_do_not_mix(world: World) -> None:
    keys = [bytes([i]) * 16 for i in range(4)]
    contents = [plaintext(4000 + i, seed=i) for i in range(4)]
    uploads = [world.upload(PARAMETERS, key=key) for key in keys]
    for start in range(0, 5000, 250):
        for upload, content in zip(uploads, contents, strict=True):
            world.run(upload.write(content[start:start + 250]))
    for upload, content, key in zip(uploads, contents, keys, strict=True):
        encoded = expected(content, PARAMETERS, key)
        assert world.run(upload.close()) == encoded.cap
        world.wait(1)
        world.check_shares(encoded)
    all_settled(world)


# -- the answer rule ----------------------------------------------------------------------------------------


def test_when_all_shares_are_closed_the_answer_comes_at_once(world: World) -> None:
    for i, server in enumerate(world.grid.servers):
        server.latency = 0.001 * i
    upload = world.upload(with_size(PARAMETERS, len(DATA)))
    world.run(write_all(upload, DATA))
    closed = [time for server in world.grid.servers for time in server.closed_at.values()]
    assert len(closed) == 10
    assert world.clock.seconds() == pytest.approx(max(closed))


def test_with_stragglers_it_comes_so_long_after_the_last_share_closed(world: World) -> None:
    for i, server in enumerate(world.grid.servers[:8]):
        server.latency = 0.003 * i  # none closes later than the grace after the one before
    for server in world.grid.servers[8:]:
        server.latency = 10.0
    world.run(write_all(world.upload(with_size(PARAMETERS, len(DATA))), DATA))
    closed = [time for server in world.grid.servers for time in server.closed_at.values()]
    assert len(closed) == 8
    assert world.clock.seconds() == pytest.approx(max(closed) + 0.05)
    world.wait(200)
    world.check_shares(expected(DATA, PARAMETERS))
    all_settled(world)


def test_every_share_that_closes_starts_the_wait_anew(world: World) -> None:
    order = world.grid.in_order(SI)
    upload = world.upload(with_size(PARAMETERS, len(DATA)))
    for server in order[7:]:
        server.plan("publish", 1, Fault.HANG)
    for server, latency in zip(order[:7], (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.04), strict=True):
        server.latency = latency
    world.run(write_all(upload, DATA))
    last = max(time for server in order for time in server.closed_at.values())
    assert world.clock.seconds() == pytest.approx(last + CLOSE_GRACE)


def test_no_answer_before_k_share_numbers_are_closed() -> None:
    """happy 1 alone would be met by the first."""
    parameters = Parameters(3, 1, 3, 1000)
    with World(servers=3) as world:
        order = world.grid.in_order(SI)
        order[1].latency, order[2].latency = 0.5, 1.0
        world.run(write_all(world.upload(parameters), DATA))
        assert all(server.closed_at for server in order)
        world.check_shares(expected(DATA, parameters))


def test_no_answer_on_happy_servers_with_fewer_than_k_shares() -> None:
    parameters = Parameters(3, 1, 3, 1000)
    with World(servers=3) as world:
        world.grid.servers[2].plan("publish", 1, Fault.HANG)
        results = outcome(begin(write_all(world.upload(parameters), DATA)))
        world.wait(9)
        assert not results
        world.wait(90)  # its share is placed on another server
        assert results == [expected(DATA, parameters).cap]


# -- too few servers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["allocate", "write", "seal"])
@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.DISCONNECT])
def test_too_few_servers_end_the_upload_with_numbers_and_leave_nothing(operation: str, fault: Fault) -> None:
    with World() as world:
        for server in world.grid.servers[:4]:
            server.plan(operation, 1, fault)
            for nth in range(2, 10):
                server.plan("allocate", nth, Fault.REFUSE)
        error = refusal(world, world.upload(PARAMETERS), DATA)
        assert (error.code, error.fields()) == ("too-few-servers", {"have": 6, "need": 7})
        world.wait(1)
        world.check_nothing_left()


def test_servers_that_leave_between_open_and_placing_are_missed(world: World) -> None:
    world.wait(60)
    upload = world.upload(PARAMETERS)
    world.run(upload.write(DATA[:100]))
    for server in world.grid.servers[:4]:
        server.disconnect()
    results = outcome(begin(write_all(upload, DATA[100:])))
    world.wait(Patience().needed - 10)
    assert not results, "what was acknowledged is not given up soon"
    world.wait(30)
    assert results[0].value.code == "too-few-servers"
    assert results[0].value.fields() == {"have": 6, "need": 7}
    assert not any(server.asked for server in world.grid.servers)


def test_servers_that_come_back_in_time_are_waited_for(world: World) -> None:
    world.wait(60)
    upload = world.upload(PARAMETERS)
    world.run(upload.write(DATA[:100]))
    for server in world.grid.servers[:4]:
        server.disconnect()
    results = outcome(begin(write_all(upload, DATA[100:])))
    world.wait(5)
    for server in world.grid.servers[:4]:
        server.reconnect()
    world.wait(5)
    assert results == [expected(DATA, PARAMETERS).cap]


def test_fewer_share_numbers_than_k_are_too_few_as_well() -> None:
    """happy is 1, and k = n: every share is needed."""
    parameters = Parameters(3, 1, 3, 1000)
    with World(servers=3) as world:
        world.grid.servers[0].refuse_from_now_on()
        world.grid.servers[1].refuse_from_now_on()
        upload_and_check(world, DATA, parameters)
        assert len(world.grid.servers[2].published) == 3
    with World(servers=3) as world:
        for server in world.grid.servers:
            server.capacity = 30_000
            server.plan("allocate", 1, Fault.REFUSE)
            server.plan("allocate", 2, Fault.REFUSE)
        error = refusal(world, world.upload(parameters), DATA)
        assert error.code == "too-few-shares"


def test_publication_never_gives_up_and_ends_when_servers_come_back(world: World) -> None:
    for server in world.grid.servers[:6]:
        server.plan("publish", 1, Fault.DISCONNECT)
    link = world.link()
    results = outcome(begin(write_all(world.upload(PARAMETERS, link), DATA)))
    world.wait(120)
    assert not results
    waiting = [wire[0] for method, wire in link.answers if wire[0][b"code"] == b"waiting"]
    assert len(waiting) > 2
    assert waiting[-1] == {b"code": b"waiting", b"state": b"publishing", b"have": 4, b"need": 7}
    for server in world.grid.servers[:6]:
        server.reconnect()
    world.wait(10)
    assert results == [expected(DATA, PARAMETERS).cap]
    world.wait(10)
    world.check_shares(expected(DATA, PARAMETERS))
    all_settled(world)


# -- giving up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0.0, 0.2, 0.5, 0.9, 1.3])
def test_abort_is_answered_when_nothing_is_left(pause: float) -> None:
    """Also while allocations are under way, whose answers come when nobody wants them any more."""
    with World() as world:
        for server in world.grid.servers:
            server.latency = 0.4
        upload = world.upload(PARAMETERS)
        world.run(upload.write(DATA[:2000]))
        world.wait(pause)
        world.run(upload.abort())
        world.check_nothing_left()
        world.watch = world.check_nothing_left
        world.wait(10)


def test_abort_while_servers_are_waited_for(world: World) -> None:
    world.wait(60)
    upload = world.upload(PARAMETERS)
    world.run(upload.write(DATA[:100]))
    for server in world.grid.servers[:4]:
        server.disconnect()
    world.run(upload.write(DATA[100:]))
    world.wait(3)
    world.run(upload.abort())
    for server in world.grid.servers[:4]:
        server.reconnect()
    world.wait(60)
    assert not any(server.asked for server in world.grid.servers)
    world.check_nothing_left()


@pytest.mark.parametrize("moment", [0.05 * i for i in range(30)])
def test_abort_leaves_nothing_at_any_time_on_slow_servers(moment: float) -> None:
    with World(settings=GROWING) as world:
        for i, server in enumerate(world.grid.servers):
            server.latency = 0.05 + 0.01 * i
        upload = world.upload(PARAMETERS)
        results = outcome(begin(write_all(upload, plaintext(4000))))
        world.wait(moment)
        world.run(upload.abort())
        world.wait(60)
        published = [server for server in world.grid.servers if server.published]
        if published:  # it was too late: then all of it is there
            world.check_shares(expected(plaintext(4000), PARAMETERS))
        else:
            world.check_nothing_left()
        assert results


# -- shares that were there ---------------------------------------------------------------------------------


def given_share(server: FakeServer, shnum: int, share: Published) -> None:
    server.published[SI, shnum] = share


def test_an_identical_share_that_is_there_is_not_written_again(world: World) -> None:
    encoded = expected(DATA, PARAMETERS)
    holder = world.grid.in_order(SI)[2]
    given_share(holder, 2, Published(encoded.shares[2], len(encoded.shares[2])))
    upload_and_check(world)
    assert not [asked for asked in holder.asked if asked.operation == "write"]
    all_settled(world)


def test_all_shares_are_there_already(world: World) -> None:
    upload_and_check(world)
    for server in world.grid.servers:
        server.asked.clear()
    assert world.put(DATA, PARAMETERS) == expected(DATA, PARAMETERS).cap
    assert not [asked for server in world.grid.servers for asked in server.asked if asked.operation == "write"]


@pytest.mark.parametrize("what", ["another file's", "a damaged block", "a damaged UEB", "no share", "another key's"])
def test_a_share_that_is_there_but_is_not_this_files_does_not_count(what: str) -> None:
    encoded = expected(plaintext(900), PARAMETERS)  # one segment, so any block that is read is the damaged one
    right = Published(encoded.shares[2], len(encoded.shares[2]))
    wrong = {
        "another file's": Published(expected(plaintext(900, seed=1), PARAMETERS).shares[2], 5000),
        "a damaged block": damaged(right, 0x44 + 100),
        "a damaged UEB": damaged(right, len(right.data) - 20),
        "no share": Published(b"not a share", 11),
        "another key's": Published(expected(plaintext(900), PARAMETERS, bytes(16)).shares[2], 5000),
    }[what]
    with World(servers=12) as world:
        liar = world.grid.in_order(SI)[2]
        given_share(liar, 2, wrong)
        assert world.put(plaintext(900), PARAMETERS) == encoded.cap
        world.wait(1)
        assert liar.share(SI, 2) == wrong
        elsewhere = [share for server, share in world.grid.copies(SI)[2] if server is not liar]
        assert [share.data for share in elsewhere] == [encoded.shares[2]]
        all_settled(world)


@pytest.mark.parametrize("fault", Fault)
def test_a_server_that_fails_while_its_old_share_is_read(world: World, fault: Fault) -> None:
    encoded = expected(DATA, PARAMETERS)
    holder = world.grid.in_order(SI)[2]
    given_share(holder, 2, Published(encoded.shares[2], len(encoded.shares[2])))
    holder.plan("read", 1, fault)
    assert world.put(DATA, PARAMETERS) == encoded.cap


def test_abort_leaves_alone_what_was_there(world: World) -> None:
    encoded = expected(DATA, PARAMETERS)
    holder = world.grid.in_order(SI)[2]
    share = Published(encoded.shares[2], len(encoded.shares[2]))
    given_share(holder, 2, share)
    upload = world.upload(PARAMETERS)
    world.run(upload.write(DATA))
    world.run(upload.abort())
    assert holder.share(SI, 2) == share
    assert not world.grid.leftovers()


# -- time ---------------------------------------------------------------------------------------------------


def test_idle_shares_are_kept_alive_and_end_as_they_should(world: World) -> None:
    upload = world.upload(PARAMETERS)
    world.run(upload.write(DATA[:2000]))
    world.wait(1)
    for server in world.grid.servers:
        server.asked.clear()
    world.wait(6 * 3600)
    for server in world.grid.servers:
        times = [0.0, *(asked.time for asked in server.asked), world.clock.seconds()]
        assert max(later - earlier for earlier, later in pairwise(times)) < 1800
        assert {asked.size for asked in server.asked} == {4}
    assert world.run(write_all(upload, DATA[2000:])) == expected(DATA, PARAMETERS).cap
    world.wait(1)
    world.check_shares(expected(DATA, PARAMETERS))


def test_shares_that_have_not_begun_are_kept_alive_too(world: World) -> None:
    upload = world.upload(PARAMETERS)
    world.run(upload.write(DATA[:500]))
    world.wait(2 * KEEP_ALIVE_INTERVAL)
    assert all(asked.size == 4 for server in world.grid.servers for asked in server.asked
               if asked.operation == "write")
    assert all(server.asked[-1].time > KEEP_ALIVE_INTERVAL for server in world.grid.servers)
    assert world.run(write_all(upload, DATA[500:])) == expected(DATA, PARAMETERS).cap


def test_shares_that_are_complete_and_wait_for_others_are_kept_alive() -> None:
    with World(settings=attrs.evolve(SMALL, needed_patience=86400)) as world:
        for server in world.grid.servers[:4]:
            server.plan("write", 2, Fault.HANG)
        results = outcome(begin(write_all(world.upload(PARAMETERS), DATA)))
        world.wait(3 * 3600)
        assert not results
        for server in world.grid.servers[4:]:
            assert world.clock.seconds() - server.asked[-1].time <= 1800
        for server in world.grid.servers[:4]:
            server.disconnect()
            server.reconnect()
        world.wait(60)
        assert results


# -- slow and hung servers, and memory ------------------------------------------------------------------------

BIG = Parameters(3, 7, 10, 256 * 1024)


MANY = Parameters(71, 200, 255, 256 * 1024)


@pytest.mark.parametrize("kind", ["slow", "hung"])
@pytest.mark.parametrize("parameters", [BIG, MANY], ids=["3-of-10", "71-of-255"])
def test_memory_is_bounded_whatever_servers_do(parameters: Parameters, kind: str) -> None:
    data = plaintext(12 * 1024 * 1024 if parameters is BIG else 4 * 1024 * 1024)
    encoded = expected(data, parameters)
    with World(servers=parameters.n,
               settings=attrs.evolve(SMALL, credit=1 << 20, pushing_lag=1 << 20, first_bound=1 << 30)) as world:
        slow = world.grid.servers[3]
        if kind == "slow":
            slow.latency = 2.0
        else:
            slow.plan("write", 2, Fault.HANG)
        block_size = parameters.full_segment_size // parameters.k
        held = in_flight = together = most = 0

        def watch() -> None:
            nonlocal held, in_flight, together, most
            working, blocks = world.only_upload()._working, 0
            if working is not None:
                blocks = len(working.pipeline._recent) * block_size * parameters.n
            written = sum(server.unanswered_bytes for server in world.grid.servers)
            held, in_flight, together = max(held, blocks), max(in_flight, written), max(together, blocks + written)
            most = max(most, slow.unanswered_bytes)

        upload = world.upload(parameters)
        world.run(upload.write(data[:1 << 20]))
        world.watch = watch
        for start in range(1 << 20, len(data), 1 << 20):
            world.run(upload.write(data[start:start + (1 << 20)]))
        assert world.run(upload.close()) == encoded.cap
        world.wait(600)
        world.check_shares(encoded, missing=0 if kind == "slow" else 1)
        write_most = min(WRITE_TARGET, IN_FLIGHT_MAX // parameters.n) + block_size
        assert held <= RECENT_BLOCKS_MAX + block_size * parameters.n
        assert in_flight <= IN_FLIGHT_MAX + parameters.n * write_most
        assert together <= ALL_BLOCKS_MAX + parameters.n * write_most
        assert most <= IN_FLIGHT_PER_SHARE_MAX + WRITE_TARGET


def test_blocks_that_come_at_once_are_written_at_once(world: World) -> None:
    """Into one message for each server, though nothing was on its way to it."""
    upload = world.upload(PARAMETERS)  # segments of 1002 bytes, blocks of 334
    world.run(upload.write(plaintext(1002)))
    world.wait(1)
    before = {server: len(server.asked) for server in world.grid.servers}
    world.hold_work()  # so that all becomes durable together
    writing = begin(upload.write(plaintext(3 * 1002)))
    world.turn()
    world.release_work()
    world.run(writing)
    world.wait(1)
    for server in world.grid.servers:
        assert [asked.size for asked in server.asked[before[server]:] if asked.operation == "write"] == [3 * 334]


def test_a_block_that_comes_alone_is_written_at_once(world: World) -> None:
    upload = world.upload(PARAMETERS)
    for count in range(1, 5):
        world.run(upload.write(plaintext(1002)))
        world.wait(0.1)
        assert {server.asked[-1].size for server in world.grid.servers} == {334}
        assert {sum(asked.operation == "write" for asked in server.asked) for server in world.grid.servers} == {count}


def test_when_all_servers_are_slow_the_client_has_to_wait(world: World) -> None:
    for server in world.grid.servers:
        server.latency = 1.0
    upload = world.upload(PARAMETERS)
    lag = 0

    def watch() -> None:
        nonlocal lag
        session = world.only_upload().session
        if session.placing:
            lag = max(lag, session.durable - session.pushed)

    world.run(upload.write(plaintext(60)))
    world.watch = watch
    data = plaintext(60) + plaintext(300_000)
    for start in range(60, len(data), 500):
        world.run(upload.write(data[start:start + 500]))
    assert world.clock.seconds() > 4
    # what is on its way to the disk comes on top
    assert SMALL.pushing_lag <= lag <= 2 * SMALL.pushing_lag + SMALL.credit
    assert world.run(upload.close()) == expected(data, PARAMETERS).cap


# -- any upload, any faults ---------------------------------------------------------------------------------

codes = st.sampled_from([Parameters(1, 1, 1, 100), Parameters(2, 2, 3, 100), Parameters(3, 7, 10, 100),
                         Parameters(3, 4, 10, 64), Parameters(2, 3, 3, 77), Parameters(4, 5, 6, 333)])


@st.composite
def plans(draw: st.DrawFn, servers: int, most: int) -> list[tuple[int, str, int, Fault]]:
    """Faults of at most `most` servers: which server, at which operation, at its how manieth, what."""
    faulty = draw(st.lists(st.integers(0, servers - 1), max_size=most, unique=True))
    return [(server, draw(st.sampled_from([*OPERATIONS, "abort"])), draw(st.integers(1, 6)),
             draw(st.sampled_from(list(Fault)))) for server in faulty]


@settings(max_examples=2 * settings().max_examples)
@given(data=st.data())
def test_any_upload_with_faults_that_happiness_bears(data: st.DataObject) -> None:
    parameters = data.draw(codes)
    size = data.draw(st.integers(56, 3000))
    declared = data.draw(st.booleans())
    first_bound = data.draw(st.sampled_from([256, 1 << 20]))
    pieces = data.draw(st.lists(st.integers(1, 700), min_size=1, max_size=20))
    pauses = data.draw(st.lists(st.sampled_from([0.0, 0.1, 2.0]), min_size=len(pieces), max_size=len(pieces)))
    faults = data.draw(plans(parameters.n, parameters.n - parameters.happy))
    latencies = data.draw(st.lists(st.sampled_from([0.0, 0.0, 0.01, 0.3]), min_size=parameters.n,
                                   max_size=parameters.n))
    encoded = expected(plaintext(size), parameters)
    spares = data.draw(st.integers(0, 2))
    with World(servers=parameters.n + spares, settings=attrs.evolve(
            SMALL, first_bound=first_bound, pushing_lag=512, contact_after=100)) as world:
        order = world.grid.in_order(SI)
        for number, operation, nth, fault in faults:
            order[number].plan(operation, nth, fault)
        for server, latency in zip(order, latencies, strict=False):
            server.latency = latency
        upload = world.upload(with_size(parameters, size if declared else None))
        at = 0
        for length, pause in [*zip(pieces, pauses, strict=True), (size, 0.0)]:
            world.run(upload.write(plaintext(size)[at:at + length]))
            at += length
            world.wait(pause)
        assert world.run(upload.close()) == encoded.cap
        world.wait(600)
        world.check_shares(encoded, missing=len(faults))
        hung = {server.name for server in world.grid.servers if server.hung}
        deaf = {order[number].name for number, operation, _nth, _fault in faults if operation == "abort"}
        assert set(world.grid.leftovers()) <= hung | deaf
        if not hung:
            assert not world.spool_files()


def test_the_key_is_the_one_of_the_oracle() -> None:
    assert expected(DATA, PARAMETERS).key == KEY
    assert expected(DATA, PARAMETERS).storage_index == SI
