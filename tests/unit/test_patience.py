"""Servers that do not answer, or answer slowly (helper/patience.py, placing.py), and who waits for them."""

from __future__ import annotations

import attrs
import pytest
from fakes import FakeServer, Fault
from hypothesis import given
from hypothesis import strategies as st
from world import KEY, SI, SMALL, World, begin, expected, outcome, plaintext, write_all

from client_shim.cipher import Encryptor
from client_shim.errors import HelperRefused
from helper.ciphertext import CiphertextHasher
from helper.parameters import Parameters
from helper.patience import Patience, StallLimits, StallRule

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(20_000)
OPERATIONS = ["allocate", "write", "seal", "publish"]
KINDS = pytest.mark.parametrize("staging", [0, 10], ids=["stock", "staging"])


# -- the rule -------------------------------------------------------------------------------------------------


def rule(*durations: float, limits: StallLimits | None = None) -> StallRule:
    judged = StallRule(limits or StallLimits())
    for i, seconds in enumerate(durations):
        judged.finished("write", bytes([i]), seconds)
    return judged


def test_before_three_others_have_done_it_only_the_longest_time_counts() -> None:
    assert rule(1, 1).patience("write", b"x") == 60
    assert rule(1, 1, 1).patience("seal", b"x") == 60
    assert rule(1, 1, 1).patience("write", bytes([0])) == 60  # its own work does not count
    assert rule(1, 1, 1).patience("write", b"x") == 10


def test_twice_the_time_of_others() -> None:
    assert rule(8, 9, 10).patience("write", b"x") == 18
    assert rule(20, 40, 50).patience("write", b"x") == 60


@given(st.lists(st.floats(-5, 1e6), max_size=12), st.integers(1, 5))
def test_never_less_than_the_least_nor_more_than_the_most(durations: list[float], judged_after: int) -> None:
    limits = StallLimits(judged_after=judged_after)
    assert limits.least <= rule(*durations, limits=limits).patience("write", b"x") <= limits.most


# -- servers that hang ------------------------------------------------------------------------------------------


def holder_of(world: World, shnum: int) -> FakeServer:
    (found,) = [s for s in world.grid.servers if s.share(SI, shnum) is not None]
    return found


@KINDS
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_share_on_a_hung_server_finds_another_home_in_seconds(operation: str, staging: int) -> None:
    with World(11, staging=staging and 11) as world:
        hung = world.grid.servers[3]
        hung.plan(operation, 1, Fault.HANG)
        upload = world.upload(PARAMETERS)
        for start in range(0, len(DATA), 1000):
            world.run(upload.write(DATA[start:start + 1000]))
            world.wait(1)
        before = world.clock.seconds()
        assert world.run(upload.close()) == expected(DATA, PARAMETERS).cap
        assert world.clock.seconds() - before < 1
        world.wait(70)
        world.check_shares(expected(DATA, PARAMETERS))
        assert not hung.published
        assert not world.spool_files()
        assert all(len(s.published) <= 1 for s in world.grid.servers)


@KINDS
def test_one_of_ten_servers_hangs_from_the_start_and_nobody_notices(staging: int) -> None:
    times = []
    for hangs in (False, True):
        with World(10, staging=staging) as world:
            for server in world.grid.servers:
                server.latency = 0.02
            upload = world.upload(PARAMETERS)
            world.run(upload.write(DATA[:100]))
            if hangs:
                world.grid.servers[5].hang()
            assert world.run(write_all(upload, DATA[100:])) == expected(DATA, PARAMETERS).cap
            times.append(world.clock.seconds())
            world.wait(120)
            world.check_shares(expected(DATA, PARAMETERS))  # all ten of them
            assert not world.spool_files()
    undisturbed, disturbed = times
    assert disturbed <= undisturbed * 1.1 + 0.05  # that is how long the answer waits for a straggler


def test_a_server_that_has_let_one_share_down_gets_no_other_until_it_answers() -> None:
    with World(12) as world:
        hung = world.grid.servers[:2]
        for server in hung:
            server.plan("allocate", 1, Fault.HANG)
        world.run(write_all(world.upload(PARAMETERS), DATA))
        world.wait(100)
        world.check_shares(expected(DATA, PARAMETERS))
        assert all(len(server.allocations()) <= 1 for server in hung)


@KINDS
def test_a_server_that_is_needed_is_waited_for(staging: int) -> None:
    with World(7, staging=staging and 7) as world:
        upload = world.upload(PARAMETERS)
        world.run(upload.write(DATA[:5000]))
        slow = world.grid.servers[0]
        slow.latency = 90  # an answer every minute and a half
        closing = outcome(begin(write_all(upload, DATA[5000:])))
        world.wait(400)
        slow.latency = 0
        world.wait(400)
        assert closing == [expected(DATA, PARAMETERS).cap]


def test_one_that_is_needed_and_never_answers_ends_the_upload_with_numbers() -> None:
    with World(7) as world:
        upload = world.upload(PARAMETERS)
        world.run(upload.write(DATA[:5000]))
        world.grid.servers[0].hang()
        with pytest.raises(HelperRefused) as caught:
            world.run(write_all(upload, DATA[5000:]))
        assert caught.value.code == "too-few-servers"
        assert caught.value.fields() == {"have": 6, "need": 7}
        assert world.clock.seconds() == pytest.approx(Patience().needed, rel=0.1)


def test_while_publishing_those_who_wait_are_told() -> None:
    ciphertext = Encryptor(KEY).encrypt(DATA)
    hasher = CiphertextHasher(PARAMETERS.k, PARAMETERS.max_segment_size)
    hasher.update(ciphertext)
    hashes = hasher.hashes()
    with World(7) as world:
        link, name = world.link(), b"u" * 32
        world.run(link.open(name, PARAMETERS.to_wire()))
        world.run(link.assign(name, SI))
        world.run(link.put_ciphertext(name, 0, ciphertext))
        world.grid.servers[0].plan("publish", 1, Fault.HANG)
        finish = link.finish(name, len(DATA), SI, hashes.crypttext_hash, hashes.crypttext_root_hash)
        told = world.run(finish)
        assert (told.code, told.fields) == ("waiting", {"state": b"publishing", "have": 6, "need": 7})
        assert 10 <= world.clock.seconds() <= 70
        world.grid.servers[0].disconnect()
        world.grid.servers[0].reconnect()
        finish = link.finish(name, len(DATA), SI, hashes.crypttext_hash, hashes.crypttext_root_hash)
        assert world.run(finish).fields["ueb"] == expected(DATA, PARAMETERS).ueb


def test_a_server_at_a_tenth_of_the_others_speed_delays_nobody() -> None:
    times = []
    for latency in (0.05, 0.5):
        with World(10) as world:
            for server in world.grid.servers:
                server.latency = 0.05
            world.grid.servers[4].latency = latency
            assert world.run(write_all(world.upload(PARAMETERS), DATA)) == expected(DATA, PARAMETERS).cap
            times.append(world.clock.seconds())
            world.wait(600)
            world.check_shares(expected(DATA, PARAMETERS))
    assert times[1] <= times[0] * 1.1 + 0.05


def test_a_clock_that_jumps_gives_up_no_server() -> None:
    with World() as world:
        for server in world.grid.servers:
            server.latency = 0.5
        writing = outcome(begin(write_all(world.upload(PARAMETERS), DATA)))
        for _ in range(3):
            world.wait(0.7)
            world.clock.advance(3600)
        world.wait(60)
        assert writing == [expected(DATA, PARAMETERS).cap]
        world.check_shares(expected(DATA, PARAMETERS))
        assert not any(server.aborted for server in world.grid.servers)


# -- after the answer ------------------------------------------------------------------------------------------


def test_the_ciphertext_is_kept_for_the_last_shares_only_so_long() -> None:
    with World(settings=attrs.evolve(SMALL, placing_patience=1000, stall_most=10**6, stall_least=10**6)) as world:
        world.grid.servers[3].plan("publish", 1, Fault.HANG)
        assert world.run(write_all(world.upload(PARAMETERS), DATA)) == expected(DATA, PARAMETERS).cap
        world.wait(900)
        assert world.spool_files()
        world.wait(200)
        assert not world.spool_files()
        world.check_shares(expected(DATA, PARAMETERS), missing=1)
