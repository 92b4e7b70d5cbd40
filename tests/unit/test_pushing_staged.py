"""Whole uploads onto staging servers, and onto grids of both kinds: nothing has a storage index before `finish`.

As in test_pushing.py: the cap is the oracle's, every share is byte for byte the oracle's, nothing else stays.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import oracle
import pytest
from allmydata.util import hashutil
from fakes import FakeStagingServer, Fault, Published, damaged
from foolscap.api import DeadReferenceError
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import fail
from world import KEY, SI, SMALL, World, begin, expected, outcome, plaintext, with_size, write_all

from client_shim.cipher import Encryptor
from client_shim.errors import HelperRefused
from client_shim.upload import StreamingUpload
from helper.ciphertext import CiphertextHasher
from helper.layout import DATA_OFFSET
from helper.parameters import Parameters
from helper.patience import Patience
from helper.pushing import KEEP_ALIVE_INTERVAL
from helper.session import State

AWAY_PATIENCE = Patience().away
PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(20_000)
BLOCK = 334


def all_staging(servers: int = 10) -> World:
    return World(servers, staging=servers)


def write(world: World, upload: StreamingUpload, data: bytes, size: int = 1000) -> None:
    """So that servers keep up."""
    for start in range(0, len(data), size):
        world.run(upload.write(data[start:start + size]))
        world.wait(0.1)


def upload_and_check(world: World, data: bytes = DATA, parameters: Parameters = PARAMETERS,
                     missing: int = 0) -> oracle.Encoded:
    encoded = expected(data, with_size(parameters, None))
    assert world.put(data, parameters) == encoded.cap
    world.wait(AWAY_PATIENCE + 60)
    world.check_shares(encoded, missing)
    assert not world.grid.leftovers()
    assert not world.spool_files()
    return encoded


# -- what is stored, and when -------------------------------------------------------------------------------

SEGMENT = 300


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "unknown"])
@pytest.mark.parametrize("size", [56, SEGMENT, SEGMENT + 1, 10 * SEGMENT + 7])
@pytest.mark.parametrize(("k", "happy", "n"), [(1, 1, 1), (3, 7, 10), (71, 20, 255)])
@pytest.mark.parametrize("staging", ["all", "half"])
def test_cap_and_shares_are_stocks(k: int, happy: int, n: int, size: int, declared: bool, staging: str) -> None:
    servers = max(20, happy)
    with World(servers, staging=servers if staging == "all" else servers // 2) as world:
        upload_and_check(world, plaintext(size), Parameters(k, happy, n, SEGMENT, size if declared else None))


def test_nothing_has_a_storage_index_before_finish() -> None:
    with all_staging() as world:
        link = world.link()
        upload = world.upload(PARAMETERS, link)
        write(world, upload, DATA)
        encoded = expected(DATA, PARAMETERS)
        for server in world.grid.staging:
            ((_secret, shnum), share), = server.staged.items()
            assert bytes(share.data[DATA_OFFSET:]) == encoded.shares[shnum][DATA_OFFSET:len(share.data)]
            assert len(share.data) >= DATA_OFFSET + 18 * BLOCK
            assert not server.published
        assert "assign" not in link.methods()
        assert world.only_upload().session.storage_index is None
        assert world.run(upload.close()) == encoded.cap
        world.check_shares(encoded)


def test_every_server_knows_the_shares_of_an_upload_under_a_secret_of_its_own_upload() -> None:
    with all_staging() as world:
        for key in (b"k" * 16, b"l" * 16):
            write(world, world.upload(PARAMETERS, key=key), DATA[:2000])
        assert len({secret for server in world.grid.staging for secret, _shnum in server.staged}) == 2


def test_nothing_is_allocated_for_a_size_that_nobody_knows() -> None:
    with all_staging() as world:
        upload_and_check(world)
        assert {a.size for server in world.grid.servers for a in server.allocations()} == {0}


def test_a_declared_size_is_asked_for_so_that_a_full_server_says_so_at_once() -> None:
    with World(11, staging=11) as world:
        world.grid.servers[0].capacity = 100
        encoded = upload_and_check(world, parameters=Parameters(3, 7, 10, 1000, len(DATA)))
        assert {a.size for server in world.grid.servers for a in server.allocations()} == {len(encoded.shares[0])}
        assert not [a for a in world.grid.servers[0].asked if a.operation == "write"]


# -- the order of servers -------------------------------------------------------------------------------------


def reader_order(world: World, si: bytes) -> list[bytes]:
    """As allmydata.storage_client.StorageFarmBroker.get_servers_for_psi."""
    return sorted((s.server_id for s in world.grid.servers),
                  key=lambda s: bytes(hashutil.permute_server_hash(si, s)))


def order_for(seeds: bytes, si: bytes) -> bytes:
    """What a client sends: protocol.txt §4.7."""
    found = []
    while seeds:
        found.append(seeds[1:1 + seeds[0]])
        seeds = seeds[1 + seeds[0]:]
    ranked = sorted(range(len(found)), key=lambda i: bytes(hashutil.permute_server_hash(si, found[i])))
    return b"".join(i.to_bytes(2, "big") for i in ranked)


ID = b"u" * 32


def open_ordered(world: World, name: bytes = ID) -> None:
    answer = world.run(world.link().open(name, PARAMETERS.to_wire()))
    seeds = answer.fields["permutation-seeds"]
    assert isinstance(seeds, bytes)
    world.run(world.link().order(name, order_for(seeds, SI)))


def put_ordered(world: World, data: bytes, name: bytes = ID) -> None:
    """Upload in one message."""
    open_ordered(world, name)
    ciphertext = Encryptor(KEY).encrypt(data)
    world.run(world.link().put_ciphertext(name, 0, ciphertext))
    world.wait(1)
    world.run(world.link().finish(name, len(data), SI, *hashes_of(ciphertext)))


def hashes_of(ciphertext: bytes) -> tuple[bytes, bytes]:
    hasher = CiphertextHasher(PARAMETERS.k, PARAMETERS.max_segment_size)
    hasher.update(ciphertext)
    hashes = hasher.hashes()
    return hashes.crypttext_hash, hashes.crypttext_root_hash


def test_on_forty_servers_a_readers_first_queries_find_the_shares() -> None:
    with World(40, staging=40) as world:
        open_ordered(world)
        world.run(world.link().put_ciphertext(ID, 0, DATA[:5000]))
        world.wait(1)
        first = reader_order(world, SI)[:10]  # stock readers ask ten servers at once
        assert {s.server_id for s in world.grid.staging if s.staged} == set(first)
        assert world.only_upload().session.storage_index is None


def test_a_lost_share_too_goes_where_readers_look_next() -> None:
    with World(40, staging=40) as world:
        open_ordered(world)
        order = reader_order(world, SI)
        by_id = {s.server_id: s for s in world.grid.staging}
        by_id[order[4]].plan("write", 1, Fault.REFUSE)
        world.run(world.link().put_ciphertext(ID, 0, DATA[:5000]))
        world.wait(1)
        assert {s.server_id for s in world.grid.staging if s.staged} == {*order[:4], *order[5:11]}


@pytest.mark.parametrize("order", [b"", b"\0", b"\0\0" * 10, b"".join(i.to_bytes(2, "big") for i in range(1, 11)),
                                   b"".join(i.to_bytes(2, "big") for i in range(11))])
def test_what_is_no_order_of_the_servers_is_refused(order: bytes) -> None:
    with all_staging() as world:
        world.run(world.link().open(ID, PARAMETERS.to_wire()))
        with pytest.raises(HelperRefused) as caught:
            world.run(world.link().order(ID, order))
        assert caught.value.code == "bad-argument"
        assert caught.value.fields()["expected"] == "each number below 10 once, in two bytes"


def test_servers_that_come_later_are_not_in_the_clients_list() -> None:
    with World(11, staging=11) as world:
        world.grid.servers[0].connected = False
        answer = world.run(world.link().open(ID, PARAMETERS.to_wire()))
        world.grid.servers[0].reconnect()
        again = world.run(world.link().open(ID, PARAMETERS.to_wire()))
        assert again.fields["permutation-seeds"] == answer.fields["permutation-seeds"]
        assert len(answer.fields["permutation-seeds"]) == 10 * 21  # type: ignore[arg-type]


# -- is an index needed? -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("staging", "happy", "k", "n", "needed"), [
    (10, 7, 3, 10, 0), (7, 7, 3, 10, 0), (6, 7, 3, 10, 1), (0, 7, 3, 10, 1),
    (2, 2, 3, 10, 1),  # two servers of ten get two shares of ten: too few to read
    (2, 2, 3, 3, 1), (3, 2, 3, 3, 0),  # staging servers come first
    (1, 1, 1, 1, 0),
])
def test_it_is_if_staging_servers_alone_cannot_meet_the_answer_rule(
        staging: int, happy: int, k: int, n: int, needed: int) -> None:
    with World(10, staging=staging) as world:
        answer = world.run(world.link().open(ID, Parameters(k, happy, n, 1000).to_wire()))
        assert answer.number("storage-index-needed") == needed


def test_it_becomes_needed_when_staging_servers_leave_in_mid_stream() -> None:
    with World(12, staging=7) as world:
        link = world.link()
        upload = world.upload(PARAMETERS, link)
        write(world, upload, DATA[:5000])
        assert "assign" not in link.methods()
        world.grid.staging[0].disconnect()
        world.wait(AWAY_PATIENCE + 5)
        assert world.only_upload().session.storage_index_needed
        write(world, upload, DATA[5000:])
        encoded = expected(DATA, PARAMETERS)
        assert world.run(upload.close()) == encoded.cap
        world.wait(60)
        world.check_shares(encoded)


def test_a_client_that_never_reveals_it_early_is_served_from_the_spool() -> None:
    with World(10) as world:
        link = world.link()
        world.run(link.open(ID, PARAMETERS.to_wire()))
        ciphertext = Encryptor(KEY).encrypt(DATA)
        for start in range(0, len(DATA), 1000):
            answer = world.run(link.put_ciphertext(ID, start, ciphertext[start:start + 1000]))
            assert answer.number("storage-index-needed") == 1
        world.wait(10)
        assert not any(server.asked for server in world.grid.servers)
        world.run(link.finish(ID, len(DATA), SI, *hashes_of(ciphertext)))
        world.wait(60)
        world.check_shares(expected(DATA, PARAMETERS))


# -- both kinds of servers ---------------------------------------------------------------------------------------


MIXED = Parameters(3, 4, 10, 1000)


def test_shares_for_stock_servers_wait_in_the_spool_until_publishing() -> None:
    with World(10, staging=5) as world:
        link = world.link()
        upload = world.upload(MIXED, link)
        write(world, upload, DATA)
        assert "assign" not in link.methods()
        status = {s.server: s.state for s in world.only_upload().status().shares}
        assert {status[s.name] for s in world.grid.staging} == {"pushing"}
        assert sorted(status.values()) == ["pushing"] * 5 + ["waiting"] * 5
        assert not any(s.allocations() for s in world.grid.servers if not s.stages)
        encoded = expected(DATA, MIXED)
        assert world.run(upload.close()) == encoded.cap
        world.wait(60)
        world.check_shares(encoded)
        assert all(s.published for s in world.grid.servers)
        assert not world.spool_files()


def test_the_answer_does_not_wait_for_stock_servers_that_are_not_needed() -> None:
    with World(10, staging=5) as world:
        for server in world.grid.servers:
            if not server.stages:
                server.latency = 30
        upload = world.upload(MIXED)
        write(world, upload, DATA)
        before = world.clock.seconds()
        assert world.run(upload.close()) == expected(DATA, MIXED).cap
        assert world.clock.seconds() - before < 1
        world.wait(3600)
        world.check_shares(expected(DATA, MIXED))


def test_an_abort_before_publishing_never_asked_a_stock_server_for_anything() -> None:
    with World(10, staging=5) as world:
        upload = world.upload(MIXED)
        write(world, upload, DATA)
        world.run(upload.abort())
        world.wait(10)
        world.check_nothing_left()
        assert not any(s.asked for s in world.grid.servers if not s.stages)


# -- servers that leave ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["disconnect", "kill"])
def test_a_share_continues_where_its_server_has_it(how: str) -> None:
    with all_staging() as world:
        upload = world.upload(PARAMETERS)
        write(world, upload, DATA[:15_000])
        server = world.grid.staging[3]
        ((_secret, shnum), share), = server.staged.items()
        held = len(share.data)
        getattr(server, how)()
        write(world, upload, DATA[15_000:16_000])
        assert world.only_upload().status().shares[shnum].state == "away"
        server.reconnect()
        write(world, upload, DATA[16_000:])
        encoded = expected(DATA, PARAMETERS)
        assert world.run(upload.close()) == encoded.cap
        world.wait(60)
        world.check_shares(encoded)
        assert server.share(SI, shnum) is not None
        again = world.uploads.counters["bytes_pushed_again"]
        assert again == 0 if how == "disconnect" else 0 <= again <= server.sync_interval
        written = sum(a.size for a in server.asked if a.operation == "write")
        assert written - len(encoded.shares[shnum]) <= (0 if how == "disconnect" else server.sync_interval)
        assert held > server.sync_interval


def test_a_server_that_stays_away_loses_its_share_and_what_it_had_is_removed_when_it_returns() -> None:
    with World(11, staging=11) as world:
        upload = world.upload(PARAMETERS)
        write(world, upload, DATA[:10_000])
        server = next(s for s in world.grid.staging if s.staged)
        server.disconnect()
        world.wait(AWAY_PATIENCE + 1)
        assert all(s.staged for s in world.grid.staging)  # the one that had none has it now
        server.reconnect()
        world.wait(5)
        write(world, upload, DATA[10_000:])
        encoded = expected(DATA, PARAMETERS)
        assert world.run(upload.close()) == encoded.cap
        world.wait(60)
        world.check_shares(encoded)


def test_finish_does_not_wait_for_a_server_that_is_away() -> None:
    with all_staging() as world:
        upload = world.upload(PARAMETERS)
        write(world, upload, DATA)
        world.grid.staging[0].disconnect()
        before = world.clock.seconds()
        encoded = expected(DATA, PARAMETERS)
        assert world.run(upload.close()) == encoded.cap
        assert world.clock.seconds() - before < 1
        world.grid.staging[0].reconnect()
        world.wait(60)
        world.check_shares(encoded)


def test_finish_waits_for_a_server_that_it_cannot_do_without() -> None:
    with all_staging(7) as world:
        upload = world.upload(PARAMETERS)
        write(world, upload, DATA)
        world.grid.staging[0].kill()
        closing = outcome(begin(upload.close()))
        world.wait(20)
        assert not closing
        world.grid.staging[0].reconnect()
        world.wait(5)
        encoded = expected(DATA, PARAMETERS)
        assert closing == [encoded.cap]
        world.wait(60)
        world.check_shares(encoded)


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.DISCONNECT, Fault.LOSE_ANSWER])
@pytest.mark.parametrize("operation", ["allocate", "write", "seal", "publish"])
@pytest.mark.parametrize("returns", [True, False])
def test_any_fault_of_one_server(operation: str, fault: Fault, returns: bool) -> None:
    with World(11, staging=11) as world:
        failing = world.grid.staging[2]
        failing.plan(operation, 1, fault)
        upload = world.upload(PARAMETERS)
        write(world, upload, DATA)
        closing = outcome(begin(upload.close()))
        world.wait(1)
        if returns:
            failing.reconnect()
        world.wait(AWAY_PATIENCE + 60)
        encoded = expected(DATA, PARAMETERS)
        assert closing == [encoded.cap]
        world.check_shares(encoded)
        failing.reconnect()
        assert not world.grid.leftovers()


def test_a_server_that_fails_every_call_though_it_is_listed_is_not_asked_all_the_time() -> None:
    with World(11, staging=11) as world:
        upload = world.upload(PARAMETERS)
        write(world, upload, DATA[:5000])
        dead = next(s for s in world.grid.staging if s.staged)
        dead.disconnect()
        dead.connected = dead.stale = True  # the node has not noticed, and every call fails at once
        dead.connection += 1
        before = len(dead.allocations())
        failing = dead.request
        dead.request = lambda *_arguments, **_more: fail(DeadReferenceError("Calling Stale Broker"))  # type: ignore[method-assign]
        world.wait(20)
        assert len(dead.allocations()) - before <= 21
        dead.request = failing  # type: ignore[method-assign]
        write(world, upload, DATA[5000:])
        assert world.run(upload.close()) == expected(DATA, PARAMETERS).cap


def test_every_server_restarts_at_once() -> None:
    with all_staging() as world:
        upload = world.upload(PARAMETERS)
        write(world, upload, DATA[:12_000])
        for server in world.grid.staging:
            server.kill()
        world.wait(5)
        for server in world.grid.staging:
            server.reconnect()
        write(world, upload, DATA[12_000:])
        encoded = expected(DATA, PARAMETERS)
        assert world.run(upload.close()) == encoded.cap
        world.wait(60)
        world.check_shares(encoded)
        assert 0 < world.uploads.counters["bytes_pushed_again"] <= 10 * world.grid.staging[0].sync_interval


@pytest.mark.parametrize("more", [0, 1, 5000])
def test_shares_that_were_prepared_before_a_restart_may_be_of_a_shorter_file(more: int) -> None:
    """`finish` was not decided, so the upload is open again, and a byte more need not make the share longer."""
    shorter, data = DATA[:19_999], plaintext(19_999 + more)
    with all_staging() as world:
        for server in world.grid.staging[:4]:
            server.plan("seal", 1, Fault.HANG)
        ciphertext = Encryptor(KEY).encrypt(data)
        link = world.link()
        world.run(link.open(ID, PARAMETERS.to_wire()))
        world.run(link.put_ciphertext(ID, 0, ciphertext[:len(shorter)]))
        refused = outcome(begin(link.finish(ID, len(shorter), SI, *hashes_of(ciphertext[:len(shorter)]))))
        world.wait(5)
        prepared = [share for server in world.grid.staging for share in server.staged.values() if share.prepared]
        assert len(prepared) == 6
        world.restart()
        assert len(refused) == 1
        link = world.link()
        if more:
            world.run(link.put_ciphertext(ID, len(shorter), ciphertext[len(shorter):]))
        encoded = expected(data, PARAMETERS)
        assert world.run(link.finish(ID, len(data), SI, *hashes_of(ciphertext))).fields["ueb"] == encoded.ueb
        world.wait(60)
        world.check_shares(encoded)


SHORTER, LONGER = DATA[:19_999], plaintext(20_001)  # their shares have the same size


def prepare_in_vain(world: World, parameters: Parameters) -> list[FakeStagingServer]:
    """A run of the helper that seals shares of SHORTER, and does not decide to publish them; in the next there is all
    of LONGER. Returns the servers with shares; the first has prepared its own, and is away in the next run."""
    ciphertext = Encryptor(KEY).encrypt(LONGER)
    link = world.link()
    world.run(link.open(ID, parameters.to_wire()))
    world.run(link.put_ciphertext(ID, 0, ciphertext[:len(SHORTER)]))
    world.wait(1)
    homes = [server for server in world.grid.staging if server.staged]
    for server in homes[-3:]:
        server.plan("seal", 1, Fault.HANG)
    outcome(begin(link.finish(ID, len(SHORTER), SI, *hashes_of(ciphertext[:len(SHORTER)]))))
    world.wait(5)
    assert next(iter(homes[0].staged.values())).prepared
    world.kill()
    homes[0].disconnect()
    world.start()
    link = world.link()
    world.run(link.put_ciphertext(ID, len(SHORTER), ciphertext[len(SHORTER):]))
    return homes


def finish_longer(world: World) -> None:
    outcome(begin(world.link().finish(ID, len(LONGER), SI, *hashes_of(Encryptor(KEY).encrypt(LONGER)))))


def test_what_an_earlier_run_prepared_on_a_server_that_was_away_is_not_published_though_that_is_decided() -> None:
    with all_staging() as world:
        parameters = attrs.evolve(PARAMETERS, happy=8)
        away, *_others = prepare_in_vain(world, parameters)
        for server in world.grid.staging[-4:]:
            server.plan("publish", 1, Fault.HANG)
        finish_longer(world)
        world.wait(5)
        assert world.only_upload().session.state is State.PUBLISHING
        world.restart()
        away.reconnect()
        world.wait(AWAY_PATIENCE + 60)
        assert world.only_upload().session.state is State.FINISHED
        world.check_shares(expected(LONGER, parameters))


def test_nor_is_it_when_this_run_has_sealed_the_share_on_another_server() -> None:
    with all_staging(11) as world:
        parameters = attrs.evolve(PARAMETERS, happy=10)
        homes = prepare_in_vain(world, parameters)
        away, (spare,) = homes[0], {*world.grid.staging} - {*homes}
        spare.plan("publish", 1, Fault.DISCONNECT)
        finish_longer(world)
        world.wait(5)
        assert next(iter(spare.staged.values())).prepared
        assert world.only_upload().session.state is State.PUBLISHING
        away.reconnect()
        world.wait(2 * AWAY_PATIENCE)
        assert away.published
        assert world.only_upload().session.state is State.FINISHED
        world.check_shares(expected(LONGER, parameters))


# -- space, other writers ------------------------------------------------------------------------------------------


def test_a_server_that_becomes_full_in_mid_stream_is_left() -> None:
    with World(11, staging=11) as world:
        full = world.grid.staging[2]
        full.capacity = 3000
        encoded = upload_and_check(world)
        assert not full.published
        assert len(encoded.shares) == 10


def test_a_share_of_this_file_that_is_there_already_counts() -> None:
    with all_staging() as world:
        for name in (b"1" * 32, b"2" * 32):
            put_ordered(world, DATA, name)
            world.wait(60)
            world.check_shares(expected(DATA, PARAMETERS))
            assert all(len(server.published) == 1 for server in world.grid.servers)
        assert not world.grid.leftovers()


@pytest.mark.parametrize("spoil", [lambda _share: Published(b"something else" * 50, 700),
                                   lambda share: damaged(share, DATA_OFFSET + 5)], ids=["another", "damaged"])
def test_one_that_is_not_is_untouched_and_does_not_count(spoil: Callable[[Published], Published]) -> None:
    data = plaintext(900)  # one segment, so that the random block is the damaged one
    with World(12, staging=12) as world:
        encoded = expected(data, PARAMETERS)
        first = next(s for s in world.grid.servers if s.server_id == reader_order(world, SI)[0])
        bad = spoil(Published(encoded.shares[0], len(encoded.shares[0])))
        for shnum in range(10):
            first.published[SI, shnum] = bad
        put_ordered(world, data)
        world.wait(60)
        assert all(first.published[SI, shnum] == bad for shnum in range(10))
        others = [s for s in world.grid.servers if s is not first and s.published]
        assert len(others) == 10
        assert not world.grid.leftovers()


# -- keeping, giving up ------------------------------------------------------------------------------------------


def test_idle_stagings_are_touched() -> None:
    with all_staging() as world:
        upload = world.upload(PARAMETERS)
        write(world, upload, DATA[:5000])
        world.wait(3 * KEEP_ALIVE_INTERVAL)
        assert all(s.touched == 3 for s in world.grid.staging)
        assert world.run(write_all(upload, DATA[5000:])) == expected(DATA, PARAMETERS).cap


@pytest.mark.parametrize("moment", [0.0, 0.3, 1.0, 1.7, 2.4])
def test_an_abort_at_any_time_leaves_nothing(moment: float) -> None:
    with all_staging() as world:
        for server in world.grid.servers:
            server.latency = 0.05
        upload = world.upload(PARAMETERS)
        writing = outcome(begin(write_all(upload, DATA)))
        world.wait(moment)
        world.run(upload.abort())
        world.wait(60)
        if world.only_upload().session.state is State.ABORTED:
            world.check_nothing_left()
        else:
            assert world.only_upload().session.state is State.FINISHED
            world.check_shares(expected(DATA, PARAMETERS))
        assert writing


def test_an_abort_while_a_server_is_away_is_made_up_for() -> None:
    with all_staging() as world:
        upload = world.upload(PARAMETERS)
        write(world, upload, DATA[:5000])
        world.grid.staging[0].disconnect()
        world.wait(1)
        world.run(upload.abort())
        assert world.grid.leftovers() == [world.grid.staging[0].name]
        world.grid.staging[0].reconnect()
        world.check_nothing_left()


# -- anything -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_upload_with_faults_that_happiness_bears(data: st.DataObject) -> None:
    size = data.draw(st.integers(56, 6000), "size")
    staging = data.draw(st.integers(0, 12), "staging")
    happy = data.draw(st.integers(1, 8), "happy")
    declared = data.draw(st.booleans(), "declared")
    plain = plaintext(size)
    with World(12, staging=staging) as world:
        faulty = data.draw(st.sets(st.integers(0, 11), max_size=3), "faulty")
        killed: list[FakeStagingServer] = []
        for i in faulty:
            server = world.grid.servers[i]
            for _ in range(data.draw(st.integers(0, 2))):
                server.plan(data.draw(st.sampled_from(["allocate", "write", "seal", "publish"])),
                            data.draw(st.integers(1, 3)),
                            data.draw(st.sampled_from([Fault.REFUSE, Fault.DISCONNECT, Fault.LOSE_ANSWER])))
            if isinstance(server, FakeStagingServer) and data.draw(st.booleans()):
                killed.append(server)
        parameters = Parameters(3, happy, 10, 1000, size if declared else None)
        upload = world.upload(parameters)
        cut = data.draw(st.integers(0, size), "cut")
        write(world, upload, plain[:cut], 500)
        for server in killed:
            server.kill()
            world.wait(data.draw(st.sampled_from([0.0, 1.0, AWAY_PATIENCE + 2.0])))
            server.reconnect()
        write(world, upload, plain[cut:], 500)
        closing = outcome(begin(upload.close()))
        world.wait(10)
        for server in world.grid.servers:
            server.reconnect()
        world.wait(AWAY_PATIENCE * 3)
        encoded = expected(plain, with_size(parameters, None))
        assert closing == [encoded.cap]
        world.check_shares(encoded)
        assert not world.spool_files()
        for server in world.grid.servers:
            server.reconnect()  # the last disconnection may have been later
        assert not world.grid.leftovers()


def test_settings_of_these_tests_are_small() -> None:
    assert SMALL.contact_after < 1000
