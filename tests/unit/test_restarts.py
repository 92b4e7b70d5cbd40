"""Restarts of the helper (protocol.txt §11): every upload is there again, and goes on as if nothing had happened."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing

import attrs
import pytest
from fakes import FakeServer, FakeStagingServer, Fault
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from world import KEY, SI, SMALL, World, begin, expected, outcome, plaintext, with_size, write_all

from client_shim.cipher import Encryptor
from client_shim.errors import HelperRefused
from helper.ciphertext import CiphertextHasher
from helper.ledger_file import LEDGER_NAME, LedgerUnusable
from helper.parameters import Parameters
from helper.session import State

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(20_000)
CIPHERTEXT = Encryptor(KEY).encrypt(DATA)
ID = b"u" * 32
GRIDS = {"staging": 10, "stock": 0, "mixed": 5}
#: Hours instead of days.
SHORT = attrs.evolve(SMALL, idle_expiry=4 * 3600, empty_expiry=900, sweep_interval=600)
grids = pytest.mark.parametrize("staging", GRIDS.values(), ids=GRIDS)


def hashes(length: int = len(CIPHERTEXT)) -> tuple[bytes, bytes]:
    hasher = CiphertextHasher(PARAMETERS.k, PARAMETERS.max_segment_size)
    hasher.update(CIPHERTEXT[:length])
    return hasher.hashes().crypttext_hash, hasher.hashes().crypttext_root_hash


def begin_upload(world: World, length: int = 10_000) -> None:
    """Open an upload and send its first bytes; they are acknowledged."""
    opened = world.run(world.link().open(ID, PARAMETERS.to_wire()))
    if opened.number("storage-index-needed"):
        world.run(world.link().assign(ID, SI))
    send(world, 0, length)


def send(world: World, start: int, end: int) -> None:
    link = world.link()
    for offset in range(start, end, 1000):
        world.run(link.put_ciphertext(ID, offset, CIPHERTEXT[offset:min(end, offset + 1000)]))
        world.wait(0.1)


def finish(world: World) -> bytes:
    answer = world.run(world.link().finish(ID, len(DATA), SI, *hashes()))
    ueb = answer.fields["ueb"]
    assert isinstance(ueb, bytes)
    return ueb


def check_stored(world: World) -> None:
    world.wait(200)
    encoded = expected(DATA, PARAMETERS)
    world.check_shares(encoded)
    assert not world.grid.leftovers()
    assert not world.spool_files()


# -- before finish ------------------------------------------------------------------------------------------------


@grids
@pytest.mark.parametrize("orderly", [True, False], ids=["stop", "kill"])
def test_what_was_acknowledged_is_there_again_and_the_upload_goes_on(staging: int, orderly: bool) -> None:
    with World(10, staging=staging) as world:
        begin_upload(world)
        (world.stop if orderly else world.kill)()
        world.start()
        status = world.run(world.link().status(ID))
        assert status.number("durable") == status.number("received") == 10_000
        assert status.fields["state"] == b"open"
        send(world, 10_000, 20_000)
        assert finish(world) == expected(DATA, PARAMETERS).ueb
        check_stored(world)


@pytest.mark.parametrize("length", [100, 10_000])  # less than what servers are contacted for, and more
@pytest.mark.parametrize("away", [False, True])
def test_a_restart_makes_no_client_reveal_the_storage_index(length: int, away: bool) -> None:
    with World(10, staging=10) as world:
        begin_upload(world, length)
        assert not world.run(world.link().status(ID)).number("storage-index-needed")
        for _ in range(2):
            world.kill()
            for server in world.grid.servers:
                (server.disconnect if away else server.reconnect)()
            world.start()
            for _ in range(10):
                assert not world.run(world.link().status(ID)).number("storage-index-needed")
                world.wait(1)
        for server in world.grid.servers:
            server.reconnect()
        send(world, length, 20_000)
        assert world.only_upload().session.assigned_index is None
        finish(world)
        check_stored(world)


@pytest.mark.parametrize("length", [100, 10_000])
def test_a_restart_does_not_forget_that_the_storage_index_is_needed(length: int) -> None:
    with World(10) as world:
        world.run(world.link().open(ID, PARAMETERS.to_wire()))
        send(world, 0, length)
        world.kill()
        for server in world.grid.servers:
            server.disconnect()
        world.start()
        assert world.run(world.link().status(ID)).number("storage-index-needed") == 1


@grids
@pytest.mark.parametrize("length", [100, 10_000])
def test_what_was_acknowledged_waits_for_servers_that_lost_their_power_too(staging: int, length: int) -> None:
    with World(10, staging=staging) as world:
        begin_upload(world, length)
        world.kill()
        for server in world.grid.servers:
            server.disconnect()
        world.start()
        sent = outcome(begin(world.link().put_ciphertext(ID, length, CIPHERTEXT[length:12_000])))
        world.wait(500)
        for server in world.grid.servers:
            server.reconnect()
        world.wait(10)
        assert sent[0].number("durable") == 12_000
        send(world, 12_000, 20_000)
        finish(world)
        check_stored(world)


def test_no_server_is_told_the_storage_index_before_shares_are_placed() -> None:
    """Whether staging servers are enough is not known while all are away."""
    with World(10, staging=10) as world:
        begin_upload(world, 20_000)
        world.kill()
        for server in world.grid.servers:
            server.disconnect()
        world.start()
        finishing = outcome(begin(world.link().finish(ID, len(DATA), SI, *hashes())))
        world.wait(5)
        pusher = world.only_upload()._work.pusher
        world.break_ledger()  # so nothing is decided
        for server in world.grid.servers:
            server.reconnect()
        world.wait(5)
        assert world.only_upload().session.state is State.READY
        assert pusher._homes._target.storage_index is None
        world.mend_ledger()
        world.wait(20)
        assert finishing[0].fields["state"] == b"finished"


def test_staged_shares_continue_where_they_were() -> None:
    with World(10, staging=10) as world:
        begin_upload(world)
        written = {s.name: sum(a.size for a in s.asked if a.operation == "write") for s in world.grid.servers}
        homes = {s.name: next(iter(s.staged))[1] for s in world.grid.staging}
        world.restart()
        world.wait(5)
        assert {s.name: next(iter(s.staged))[1] for s in world.grid.staging} == homes
        assert written == {s.name: sum(a.size for a in s.asked if a.operation == "write")
                           for s in world.grid.servers}  # nothing was pushed again
        send(world, 10_000, 20_000)
        finish(world)
        check_stored(world)


def test_nothing_is_staged_before_it_is_recorded_where() -> None:
    with World(12, staging=12) as world:
        world.run(world.link().open(ID, PARAMETERS.to_wire()))
        world.kill()
        asked: list[tuple[Deferred[object], Callable[..., object], tuple[object, ...]]] = []

        def in_thread(function: Callable[..., object], *arguments: object) -> Deferred[object]:
            asked.append((Deferred(), function, arguments))
            return asked[-1][0]

        world.start(in_ledger_thread=in_thread)
        send(world, 0, 5000)
        assert not any(server.staged for server in world.grid.staging)
        world.wait(120)
        assert not world.uploads.counters["servers_stalled"], "it is not the servers that keep us waiting"
        recorded: frozenset[bytes] = frozenset()
        while asked:
            done, function, arguments = asked.pop(0)
            done.callback(function(*arguments))
            (record,) = world.records()
            assert recorded <= record.staged_on
            recorded = record.staged_on
            world.turn()
            assert {server.server_id for server in world.grid.staging if server.staged} <= recorded
            world.wait(0.1)
        assert len(recorded) == 10
        assert {server.server_id for server in world.grid.staging if server.staged} == recorded


@pytest.mark.parametrize("restarts", [0, 1, 3])
@pytest.mark.parametrize("ended", ["finished", "aborted", "expired"])
def test_what_was_staged_on_a_server_that_is_away_at_the_end_is_removed_when_it_is_back(
        ended: str, restarts: int) -> None:
    """Also if the helper is killed just after it was staged, and again before the server is back."""
    with World(12, staging=12, settings=SHORT) as world:
        world.run(world.link().open(ID, PARAMETERS.to_wire()))
        link = world.link()
        outcome(begin(link.put_ciphertext(ID, 0, CIPHERTEXT[:1000])))
        while not any(server.staged for server in world.grid.staging):
            world.clock.advance(0)
        away = next(server for server in world.grid.staging if server.staged)
        world.kill()
        away.disconnect()
        world.start()
        if ended == "aborted":
            world.run(world.link().abort(ID))
        elif ended == "finished":
            send(world, world.run(world.link().status(ID)).number("durable"), 20_000)
            finish(world)
        else:
            world.wait(SHORT.idle_expiry + 8 * SHORT.sweep_interval)
        world.wait(200)
        assert world.only_upload().session.state.value == ended
        assert away.staged
        for _ in range(restarts):
            world.restart()
            world.wait(1)
        away.reconnect()
        world.wait(2 * SHORT.sweep_interval)
        assert not world.grid.leftovers()
        assert [record.staged_on for record in world.records()] == [frozenset()]
        if ended == "finished":
            world.check_shares(expected(DATA, PARAMETERS))
        asked = [server.requests("abort") for server in world.grid.staging]
        world.restart()
        world.wait(3 * SHORT.sweep_interval)
        assert asked == [server.requests("abort") for server in world.grid.staging], "nothing is left to tell"


def test_a_server_that_a_new_helper_has_not_found_yet_is_told_as_soon_as_it_has() -> None:
    with World(12, staging=12, settings=SHORT) as world:
        begin_upload(world)
        late = next(server for server in world.grid.staging if server.staged)
        world.kill()
        late.disconnect()
        world.start()
        world.run(world.link().abort(ID))
        world.wait(1)
        assert late.staged
        late.reconnect()
        world.wait(1)
        assert not world.grid.leftovers()
        assert [record.staged_on for record in world.records()] == [frozenset()]


def test_a_server_that_does_not_do_what_it_is_told_is_told_again() -> None:
    with World(12, staging=12, settings=SHORT) as world:
        begin_upload(world)
        deaf, lost, hung = [server for server in world.grid.staging if server.staged][:3]
        for number in range(1, 4):
            deaf.plan("abort", number, Fault.REFUSE)
        lost.plan("abort", 1, Fault.DISCONNECT)
        hung.hang()
        world.run(world.link().abort(ID))
        world.wait(SHORT.sweep_interval / 2)
        assert hung.staged
        lost.reconnect()
        hung.disconnect()
        hung.reconnect()
        world.wait(4 * SHORT.sweep_interval)
        world.check_nothing_left()
        assert [record.staged_on for record in world.records()] == [frozenset()]


def test_an_upload_that_nothing_went_wrong_with_tells_servers_nothing_in_the_end() -> None:
    with World(12, staging=12) as world:
        begin_upload(world, 20_000)
        finish(world)
        check_stored(world)
        world.wait(3 * SMALL.sweep_interval)
        assert not any(server.requests("abort") for server in world.grid.staging)
        assert [record.staged_on for record in world.records()] == [frozenset()]


def test_what_nobody_remembers_any_more_expires_on_its_server() -> None:
    with World(12, staging=12, settings=attrs.evolve(SHORT, result_retention=3600)) as world:
        begin_upload(world)
        away = next(server for server in world.grid.staging if server.staged)
        away.disconnect()
        world.run(world.link().abort(ID))
        world.wait(3600 + 3 * SHORT.sweep_interval)
        assert not world.records()
        assert not world.uploads._leftovers._left or not any(world.uploads._leftovers._left.values())


def test_what_was_prepared_for_another_finish_is_not_published_after_two_crashes() -> None:
    """One byte more, and its share is as long as before: only its content tells."""
    with World(10, staging=10) as world:
        begin_upload(world, 19_999)
        keeps, *others = world.grid.staging
        for server in others:
            server.plan("seal", 1, Fault.HANG)
        outcome(begin(world.link().finish(ID, 19_999, SI, *hashes(19_999))))
        world.wait(2)
        assert [share.prepared for share in keeps.staged.values()] == [True]
        world.kill()
        keeps.disconnect()
        world.start()
        send(world, 19_999, 20_000)
        for server in others:
            server.plan("publish", 1, Fault.HANG)
        outcome(begin(world.link().finish(ID, 20_000, SI, *hashes())))
        world.wait(2)
        (record,) = world.records()
        assert record.state == "publishing"
        assert set(record.sealed.values()) == {server.server_id for server in others}
        world.kill()
        keeps.reconnect()
        world.start()
        assert finish(world) == expected(DATA, PARAMETERS).ueb
        check_stored(world)
        assert keeps.published


@pytest.mark.parametrize("crashes", [1, 2])
def test_what_was_written_to_end_a_share_is_not_taken_for_its_blocks_after_a_crash(crashes: int) -> None:
    """A `finish` that was not decided has written a short block and hashes where there are full blocks now."""
    with World(10, staging=10) as world:
        begin_upload(world, 10_000)
        for server in world.grid.staging:
            server.plan("seal", 1, Fault.HANG)
        outcome(begin(world.link().finish(ID, 10_000, SI, *hashes(10_000))))
        world.wait(2)
        away = world.grid.staging[:2]
        for server in away:
            for share in server.staged.values():
                share.synced = len(share.data)
        world.kill()
        for server in away:
            server.disconnect()
        world.start()
        send(world, 10_000, 15_000)
        if crashes == 2:
            world.restart()
        send(world, 15_000, 20_000)
        for server in away:
            server.reconnect()
        world.wait(5)
        assert finish(world) == expected(DATA, PARAMETERS).ueb
        check_stored(world)
        assert all(server.published for server in away)


def test_an_early_storage_index_is_remembered() -> None:
    with World(10) as world:
        begin_upload(world)
        world.restart()
        assert world.run(world.link().status(ID)).number("storage-index-needed") == 0
        with pytest.raises(HelperRefused) as caught:
            world.run(world.link().assign(ID, bytes(16)))
        assert caught.value.code == "storage-index-conflict"
        other = world.link()
        world.run(other.open(b"o" * 32, PARAMETERS.to_wire()))
        with pytest.raises(HelperRefused) as caught:
            world.run(other.assign(b"o" * 32, SI))
        assert caught.value.code == "storage-index-busy"


def test_the_clients_order_is_remembered() -> None:
    with World(40, staging=40) as world:
        opened = world.run(world.link().open(ID, PARAMETERS.to_wire()))
        count = len(opened.fields["permutation-seeds"]) // 21  # type: ignore[arg-type]
        order = [*range(30, count), *range(30)]
        world.run(world.link().order(ID, b"".join(i.to_bytes(2, "big") for i in order)))
        listed = world.grid.in_order(bytes(16))
        world.restart()
        send(world, 0, 5000)
        assert {s.name for s in world.grid.staging if s.staged} == {listed[i].name for i in order[:10]}


def test_an_upload_that_was_only_opened_is_there_again() -> None:
    with World() as world:
        world.run(world.link().open(ID, PARAMETERS.to_wire()))
        world.restart()
        begin_upload(world, 20_000)
        finish(world)
        check_stored(world)


def test_a_repeated_open_gives_a_fresh_list_of_servers() -> None:
    with World(10, staging=10) as world:
        begin_upload(world)
        world.restart()
        world.grid.servers.append(FakeServer("another", world.clock))
        answer = world.run(world.link().open(ID, PARAMETERS.to_wire()))
        assert len(answer.fields["permutation-seeds"]) == 11 * 21  # type: ignore[arg-type]
        assert answer.number("durable") == 10_000
        world.run(world.link().order(ID, b"".join(i.to_bytes(2, "big") for i in range(11))))


def test_servers_that_come_back_later_than_the_helper_are_waited_for() -> None:
    with World(10, staging=10) as world:
        begin_upload(world)
        late = world.grid.staging[:4]
        for server in late:
            server.disconnect()
        world.restart()
        world.wait(30)
        for server in late:
            server.reconnect()
        send(world, 10_000, 20_000)
        finish(world)
        check_stored(world)
        assert all(len(s.published) == 1 for s in world.grid.servers)
        assert world.uploads.counters["bytes_pushed_again"] == 0


def test_a_server_that_does_not_come_back_is_replaced() -> None:
    with World(11, staging=11) as world:
        begin_upload(world)
        lost = next(s for s in world.grid.staging if s.staged)
        lost.disconnect()
        world.restart()
        send(world, 10_000, 20_000)
        finish(world)
        world.wait(300)
        world.check_shares(expected(DATA, PARAMETERS))


def test_aborted_and_expired_uploads_stay_so() -> None:
    with World() as world:
        begin_upload(world)
        world.run(world.link().abort(ID))
        world.restart()
        for _ in range(2):
            assert world.run(world.link().abort(ID)).fields["state"] == b"aborted"
            status = world.run(world.link().status(ID))
            assert status.fields["reason"] == b"aborted"
        with pytest.raises(HelperRefused) as caught:
            send(world, 10_000, 11_000)
        assert caught.value.code == "aborted"
        world.check_nothing_left()


def test_an_abort_after_a_restart_leaves_nothing() -> None:
    with World(10, staging=10) as world:
        begin_upload(world)
        world.restart()
        world.run(world.link().abort(ID))
        world.wait(10)
        world.check_nothing_left()


def test_a_spool_file_in_which_nothing_is_durable_is_removed_too() -> None:
    with World(10, staging=10) as world:
        begin_upload(world, 100)
        world.kill()
        (path,) = world.spool_files()
        os.truncate(path, 0)  # as if the helper had been killed before it wrote
        world.start()
        assert world.run(world.link().status(ID)).number("durable") == 0
        world.run(world.link().abort(ID))
        world.wait(10)
        world.check_nothing_left()


def test_idle_time_counts_over_restarts() -> None:
    with World() as world:
        begin_upload(world)
        world.wait(SMALL.idle_expiry - 3600)
        world.restart()
        assert world.run(world.link().status(ID)).fields["state"] == b"open"  # a call: it is not idle
        world.wait(SMALL.idle_expiry - 3600)
        world.restart()
        world.wait(3600 + 3 * SMALL.sweep_interval)
        assert world.run(world.link().status(ID)).fields["state"] == b"expired"
        world.check_nothing_left()


@pytest.mark.parametrize("orderly", [True, False], ids=["stop", "kill"])
@pytest.mark.parametrize("jump", [0, 365 * 86400, -365 * 86400])
def test_time_in_which_the_helper_was_down_is_not_idle_time(orderly: bool, jump: float) -> None:
    with World(settings=SHORT) as world:
        begin_upload(world)
        world.wait(SHORT.idle_expiry / 2)
        for _ in range(3):
            (world.stop if orderly else world.kill)()
            world.wait(2 * SHORT.idle_expiry)
            world.start()
            world.process.shift(jump)  # while it was down
        # Each start may have cost it a sweep interval that was not written down, and each jump one that did not go by.
        world.wait(SHORT.idle_expiry / 2 - 3 * SHORT.sweep_interval)
        assert world.only_upload().session.state is State.OPEN
        world.wait(8 * SHORT.sweep_interval)
        assert world.only_upload().session.state is State.EXPIRED


def test_results_are_kept_for_as_long_as_the_helper_is_up() -> None:
    with World(settings=attrs.evolve(SHORT, result_retention=4 * 3600)) as world:
        begin_upload(world, 20_000)
        finish(world)
        check_stored(world)
        world.wait(2 * 3600)
        for _ in range(2):
            world.kill()
            world.wait(30 * 86400)
            world.start()
        assert finish(world) == expected(DATA, PARAMETERS).ueb
        world.wait(2 * 3600 + 3 * SHORT.sweep_interval)
        with pytest.raises(HelperRefused) as caught:
            finish(world)
        assert caught.value.code == "unknown-upload"


def test_after_a_start_a_client_has_time_to_come_back() -> None:
    """However idle its upload was before."""
    with World(settings=SHORT) as world:
        begin_upload(world)
        world.wait(SHORT.idle_expiry - 2 * SHORT.sweep_interval)
        for _ in range(3):
            world.restart()
            world.wait(5 * SHORT.sweep_interval)
            assert world.only_upload().session.state is State.OPEN
        world.wait(3 * SHORT.sweep_interval)
        assert world.only_upload().session.state is State.EXPIRED


def test_spool_files_that_no_upload_needs_are_removed() -> None:
    with World() as world:
        world.kill()
        (world.directory / "spool" / ("a" * 52)).write_bytes(b"of nobody")
        world.start()
        assert not world.spool_files()


def test_a_spool_that_lost_acknowledged_bytes_ends_the_upload_with_a_reason() -> None:
    with World() as world:
        begin_upload(world)
        world.kill()
        (path,) = world.spool_files()
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        world.start()
        status = world.run(world.link().status(ID))
        assert (status.fields["state"], status.fields["reason"]) == (b"failed", b"spool-failed")
        world.restart()
        assert world.run(world.link().status(ID)).fields["reason"] == b"spool-failed"
        assert not world.spool_files()


def test_ciphertext_is_kept_until_the_end_of_its_upload_is_recorded() -> None:
    """A run that finds the upload open must find what was acknowledged."""
    with World() as world:
        begin_upload(world)
        world.break_ledger()
        assert world.run(world.link().abort(ID)).fields["state"] == b"aborted"
        world.restart()
        assert world.run(world.link().status(ID)).number("durable") == 10_000
        send(world, 10_000, 20_000)
        finish(world)
        check_stored(world)


@grids
def test_a_result_that_could_not_be_recorded_is_there_after_a_restart(staging: int) -> None:
    with World(10, staging=staging) as world:
        begin_upload(world, 20_000)
        for server in world.grid.servers:
            server.latency = 0.1
        answer = outcome(begin(world.link().finish(ID, len(DATA), SI, *hashes())))
        while world.only_upload().session.state is not State.PUBLISHING:
            world.wait(0.01)
        world.break_ledger()
        world.wait(10)
        assert answer[0].fields["ueb"] == expected(DATA, PARAMETERS).ueb
        world.restart()
        assert finish(world) == expected(DATA, PARAMETERS).ueb
        check_stored(world)


def test_a_damaged_spool_file_is_put_aside_when_its_upload_has_failed() -> None:
    with World() as world:
        begin_upload(world)
        world.kill()
        (path,) = world.spool_files()
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        world.start()
        world.wait(1)
        assert world.run(world.link().status(ID)).fields["reason"] == b"spool-failed"
        assert not world.spool_files()
        assert [file.name for file in world.files_aside()] == [path.name]
        assert world.spool.used == 0


def test_a_helper_whose_ledger_is_missing_does_not_start_and_leaves_the_spool_as_it_is() -> None:
    with World() as world:
        begin_upload(world)
        world.stop()
        ledger = world.directory / LEDGER_NAME
        ledger.rename(world.directory / "elsewhere")
        for _ in range(2):
            with pytest.raises(LedgerUnusable, match=r"is missing, but its spool has 1 file; .*restore it, or move"):
                world.start()
            world.spool.stop()
        assert not ledger.exists()
        (world.directory / "elsewhere").rename(ledger)
        world.start()
        assert world.run(world.link().status(ID)).number("durable") == 10_000


# -- around finish ------------------------------------------------------------------------------------------------


@grids
@pytest.mark.parametrize(("latency", "moment"), [(0.0, 0.0), (0.0, 0.1), *((0.3, i / 10) for i in range(30))])
def test_a_crash_at_any_moment_of_finish(staging: int, latency: float, moment: float) -> None:
    """Nothing published and open again, or published; a repeated finish gives the same."""
    with World(10, staging=staging) as world:
        begin_upload(world, 20_000)
        for server in world.grid.servers:
            server.latency = latency
        outcome(begin(world.link().finish(ID, len(DATA), SI, *hashes())))
        world.wait(moment)
        published = any(server.published for server in world.grid.servers)
        state = world.only_upload().session.state
        world.restart()
        if published:
            assert world.only_upload()._record.state in ("publishing", "finished")
        if state is State.COMPLETING:
            assert not published
            assert world.run(world.link().status(ID)).fields["state"] == b"open"
        assert finish(world) == expected(DATA, PARAMETERS).ueb
        check_stored(world)
        assert finish(world) == expected(DATA, PARAMETERS).ueb


@grids
def test_a_crash_before_the_decision_leaves_an_upload_that_can_be_aborted(staging: int) -> None:
    with World(10, staging=staging) as world:
        begin_upload(world, 20_000)
        for server in world.grid.servers:
            server.plan("write", 2 + sum(a.operation == "write" for a in server.asked), Fault.HANG)
        outcome(begin(world.link().finish(ID, len(DATA), SI, *hashes())))
        world.wait(5)
        assert world.only_upload().session.state is State.COMPLETING
        world.restart()
        assert world.run(world.link().abort(ID)).fields["state"] == b"aborted"
        world.wait(10)
        world.check_nothing_left()


def test_a_stock_server_that_comes_back_after_a_restart_is_not_taken_for_one_that_stages() -> None:
    """While it is away nobody knows. Its share waits for the storage index, which comes with `finish`."""
    with World(servers=2) as world:
        one = Parameters(1, 1, 1, 1000)
        world.run(world.link().open(ID, one.to_wire()))
        world.run(world.link().put_ciphertext(ID, 0, CIPHERTEXT[:1000]))
        world.wait(1)
        (record,) = world.records()
        (home,) = (server for server in world.grid.servers if server.server_id == record.homes[0])
        world.kill()
        home.disconnect()
        world.start()
        world.wait(5)
        home.reconnect()
        world.wait(5)
        hasher = CiphertextHasher(1, 1000)
        hasher.update(CIPHERTEXT[:1000])
        right = hasher.hashes()
        answer = world.run(world.link().finish(ID, 1000, SI, right.crypttext_hash, right.crypttext_root_hash), 100)
        assert answer.code == "ok"


def test_publishing_without_a_home_finds_one_whenever_servers_come() -> None:
    """Where shares were to go was not recorded when the power failed, and when the helper is back no server is."""
    with World() as world:
        begin_upload(world, len(DATA))
        for server in world.grid.servers:
            server.plan("publish", 1, Fault.DISCONNECT)
        assert world.run(world.link().finish(ID, len(DATA), SI, *hashes())).code == "waiting"
        world.kill()
        with closing(sqlite3.connect(world.directory / LEDGER_NAME)) as ledger, ledger:
            ledger.execute("UPDATE uploads SET homes = '{}', sealed = '{}'")
        world.start()
        world.wait(SMALL.needed_patience + 60)
        assert world.only_upload().session.state is State.PUBLISHING
        for server in world.grid.servers:
            server.reconnect()
        world.wait(61)
        assert finish(world) == expected(DATA, PARAMETERS).ueb


@grids
def test_publishing_goes_on_by_itself(staging: int) -> None:
    with World(10, staging=staging) as world:
        begin_upload(world, 20_000)
        for server in world.grid.servers[3:]:
            server.plan("publish", 1, Fault.HANG)
        outcome(begin(world.link().finish(ID, len(DATA), SI, *hashes())))
        world.wait(5)
        assert world.only_upload().session.state is State.PUBLISHING
        world.restart()
        check_stored(world)
        assert finish(world) == expected(DATA, PARAMETERS).ueb


@pytest.mark.parametrize("staging", [7, 0, 3])
def test_a_server_that_refuses_a_share_after_a_restart_is_asked_again(staging: int) -> None:
    """There are no others, and publication never gives up."""
    with World(7, staging=staging) as world:
        begin_upload(world, 20_000)
        for server in world.grid.servers:
            server.plan("publish", 1, Fault.HANG)
        outcome(begin(world.link().finish(ID, len(DATA), SI, *hashes())))
        world.wait(5)
        assert world.only_upload().session.state is State.PUBLISHING
        refusing = world.grid.servers[0]
        refusing.plan("allocate", refusing.requests("allocate") + 1, Fault.REFUSE)
        world.restart()
        world.wait(30)
        assert finish(world) == expected(DATA, PARAMETERS).ueb
        assert refusing.published


def test_a_result_is_remembered_for_as_long_as_it_is_kept() -> None:
    with World() as world:
        begin_upload(world, 20_000)
        finish(world)
        check_stored(world)
        world.restart()
        assert finish(world) == expected(DATA, PARAMETERS).ueb
        assert world.uploads.counters["finished"] == 0
        world.wait(SMALL.result_retention + 3 * SMALL.sweep_interval)
        with pytest.raises(HelperRefused) as caught:
            finish(world)
        assert caught.value.code == "unknown-upload"
        world.restart()
        assert not world.uploads._by_name


def test_the_last_shares_of_a_finished_upload_are_placed_after_a_restart() -> None:
    with World(11, staging=5) as world:
        begin_upload(world, 20_000)
        slow = [s for s in world.grid.servers if not s.stages][:2]
        for server in slow:
            server.hang()
        assert finish(world) == expected(DATA, PARAMETERS).ueb
        world.wait(5)
        assert world.spool_files()
        world.restart()
        check_stored(world)


# -- clients --------------------------------------------------------------------------------------------------------


@grids
def test_a_program_that_writes_notices_nothing_but_a_pause(staging: int) -> None:
    with World(10, staging=staging) as world:
        upload = world.upload(PARAMETERS)
        writing = outcome(begin(write_all(upload, DATA)))
        for _ in range(4):
            world.wait(0.01)
            world.kill()
            world.wait(20)
            world.start()
            world.wait(15)
        world.wait(60)
        assert writing == [expected(DATA, PARAMETERS).cap]
        check_stored(world)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_number_of_kills_at_any_time(data: st.DataObject) -> None:
    size = data.draw(st.integers(56, 8000), "size")
    staging = data.draw(st.sampled_from([0, 5, 10]), "staging")
    happy = data.draw(st.integers(1, 8), "happy")
    declared = data.draw(st.booleans(), "declared")
    latency = data.draw(st.sampled_from([0.0, 0.05]), "latency")
    plain = plaintext(size)
    parameters = Parameters(3, happy, 10, 1000, size if declared else None)
    with World(10, staging=staging) as world:
        for server in world.grid.servers:
            server.latency = latency
        upload = world.upload(parameters)
        writing = outcome(begin(write_all(upload, plain, 700)))
        for _ in range(data.draw(st.integers(1, 4), "kills")):
            world.wait(data.draw(st.floats(0, 1), "running"))
            world.kill()
            for server in world.grid.staging:
                if data.draw(st.integers(0, 9)) == 0:
                    server.kill()
                    server.reconnect()
            world.wait(data.draw(st.sampled_from([0.0, 1.0, 100.0]), "away"))
            world.start()
        world.wait(700)
        encoded = expected(plain, with_size(parameters, None))
        assert writing == [encoded.cap]
        world.wait(200)
        world.check_shares(encoded)
        assert not world.grid.leftovers()
        assert not world.spool_files()


def test_these_are_real_kinds_of_servers() -> None:
    with World(10, staging=5) as world:
        assert sum(isinstance(s, FakeStagingServer) for s in world.grid.servers) == 5


# -- publication that cannot be completed -----------------------------------------------------------------------------


def publish_in_vain(world: World, closed: int) -> None:
    """Publication is decided; `closed` shares are published, and all other servers do not answer any more."""
    begin_upload(world, 20_000)
    for server in world.grid.servers[closed:]:
        server.plan("publish", 1, Fault.HANG)
    outcome(begin(world.link().finish(ID, len(DATA), SI, *hashes())))
    world.wait(2)
    assert world.only_upload().session.state is State.PUBLISHING
    for server in world.grid.servers[closed:]:
        server.disconnect()


@grids
@pytest.mark.parametrize("restart", [False, True])
def test_publication_that_can_never_be_completed_ends_at_expiry(staging: int, restart: bool) -> None:
    with World(10, staging=staging, settings=SHORT) as world:
        publish_in_vain(world, closed=3)
        if restart:
            world.restart()
        world.wait(SHORT.idle_expiry - 2 * SHORT.sweep_interval)
        assert world.only_upload().session.state is State.PUBLISHING
        assert world.run(world.link().finish(ID, len(DATA), SI, *hashes())).code == "waiting"
        world.wait(SHORT.idle_expiry - 2 * SHORT.sweep_interval)
        assert world.only_upload().session.state is State.PUBLISHING, "somebody has called since"
        world.wait(4 * SHORT.sweep_interval)
        for _ in range(2):
            with pytest.raises(HelperRefused) as caught:
                finish(world)
            assert caught.value.code == "expired"
            world.restart()
        assert not world.spool_files()
        assert world.uploads.room.used == 0
        assert [record.state for record in world.records()] == ["expired"]
        encoded = expected(DATA, PARAMETERS)
        copies = world.grid.copies(SI)
        assert len(world.holders()) == 3, "published shares stay: they are ordinary ones"
        assert all(share.data == encoded.shares[shnum] for shnum, found in copies.items() for _server, share in found)
        assert not any(server.staged for server in world.grid.staging[:3] if server.connected)


def test_publication_that_gets_on_does_not_expire_though_nobody_calls() -> None:
    with World(10, staging=10, settings=SHORT) as world:
        publish_in_vain(world, closed=0)
        for server in world.grid.servers:
            world.wait(SHORT.idle_expiry - 3 * SHORT.sweep_interval)
            assert world.only_upload().session.state in (State.PUBLISHING, State.FINISHED)
            server.reconnect()
        check_stored(world)
        assert finish(world) == expected(DATA, PARAMETERS).ueb


def test_servers_that_come_and_go_are_no_progress() -> None:
    with World(10, settings=SHORT) as world:
        publish_in_vain(world, closed=3)
        returning = world.grid.servers[3]
        returning.plan("publish", 2, Fault.HANG)
        for number in range(3, 40):
            world.wait(SHORT.idle_expiry / 8)
            returning.plan("publish", number, Fault.HANG)
            (returning.reconnect if number % 2 else returning.disconnect)()
        assert world.only_upload().session.state is State.EXPIRED


@pytest.mark.parametrize("missing", [False, True])
def test_publication_whose_spool_is_damaged_expires_whoever_calls(missing: bool) -> None:
    with World(10, staging=10, settings=SHORT) as world:
        publish_in_vain(world, closed=3)
        world.kill()
        for server in world.grid.servers:
            server.reconnect()
        (path,) = world.spool_files()
        if missing:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        world.start()
        assert world.uploads.counters["expired"] == 0
        for _ in range(int(SHORT.idle_expiry / SHORT.sweep_interval) - 2):
            with pytest.raises(HelperRefused) as caught:
                finish(world)
            assert caught.value.code == "spool-failed"
            world.wait(SHORT.sweep_interval)
        assert missing or world.spool_files()
        world.wait(4 * SHORT.sweep_interval)
        with pytest.raises(HelperRefused) as caught:
            finish(world)
        assert caught.value.code == "expired"
        assert world.run(world.link().abort(ID)).fields["state"] == b"expired"
        world.wait(10)
        assert not world.spool_files()
        assert world.uploads.room.used == world.spool.used == 0
        assert not world.grid.leftovers(), "prepared shares are aborted"
        assert len(world.holders()) == 3
        assert world.uploads.counters["expired"] == 1


def test_publication_that_has_expired_makes_room_for_another_upload() -> None:
    with World(10, settings=attrs.evolve(SHORT, uploads_max=1)) as world:
        publish_in_vain(world, closed=3)
        other = world.link()
        for server in world.grid.servers:
            server.reconnect()
            server.plan("allocate", server.requests("allocate") + 1, Fault.HANG)
        with pytest.raises(HelperRefused) as caught:
            world.run(other.open(b"o" * 32, PARAMETERS.to_wire()))
        assert caught.value.code == "too-many-uploads"
        world.wait(SHORT.idle_expiry + 2 * SHORT.sweep_interval)
        world.run(other.open(b"o" * 32, PARAMETERS.to_wire()))
        world.run(other.assign(b"o" * 32, SI))  # nor does it hold its storage index
