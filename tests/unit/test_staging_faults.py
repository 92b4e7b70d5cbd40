"""Staging on a node that is killed, loses its power, or has a disk that fails."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allmydata.storage.immutable import ShareFile
from staging_node import BODY, HEADER, NAME, OTHER, SECRETS, SI, SI2, SIZE, Call, Node, now, outcomes

from helper import staging_errors as errors
from helper.layout import DATA_OFFSET
from helper.staged_share import CONTAINER_HEADER, PREPARED_OVERHEAD, SYNC_INTERVAL
from helper.staging import Held
from helper.staging_room import SPARE_PER_SHARE

MiB = 1024 * 1024


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "storage")
    yield node
    node.stop()


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def data_of(node: Node, shnum: int, si: bytes = SI) -> bytes | None:
    path = node.share_file(shnum, si)
    if path is None:
        return None
    share = ShareFile(str(path))
    (lease,) = share.get_leases()
    assert lease.is_renew_secret(SECRETS[0])
    return bytes(share.read_share_data(0, 10**8))


# -- killed, or without power, before any step ------------------------------------------------------------


def steps_of_assign(directory: Path) -> int:
    node = Node(directory)
    node.full_share(3)
    node.full_share(4, body=BODY * 2)
    before = node.power.steps
    node.assign()
    node.stop()
    return node.power.steps - before


@pytest.mark.parametrize("end", ["kill", "lose_power"])
def test_an_end_before_any_step_of_assign(tmp_path: Path, end: str) -> None:
    total = steps_of_assign(tmp_path / "counted")
    # two commits, two links and their directories, syncs in a thread, two names removed, an empty directory
    assert total >= 9
    published = set()
    for step in range(total + 1):
        node = Node(tmp_path / f"node{step}")
        node.full_share(3)
        node.full_share(4, body=BODY * 2)
        node.power.ends_before = node.power.steps + step
        call = Call(node.staging.assign(NAME, SI, []))
        answered = call.done
        getattr(node, end)()
        there = {n: data_of(node, n) for n in (3, 4)}
        assert there[3] in (None, HEADER + BODY)
        assert there[4] in (None, HEADER + BODY * 2)
        if answered:
            assert outcomes(call.result()) == {3: "assigned", 4: "assigned"}
            assert None not in there.values()
        if None in there.values():  # the decision was not recorded: of neither
            assert there == {3: None, 4: None}
            assert [(h.shnum, h.state) for h in node.held()] == [(3, "prepared"), (4, "prepared")]
            assert node.assign() == {3: "assigned", 4: "assigned"}
        assert node.count("already_there") == 0  # its own link is not another's share
        assert node.staged_files() == []
        node.restart()
        assert (data_of(node, 3), data_of(node, 4)) == (HEADER + BODY, HEADER + BODY * 2)
        published.add(there[3] is not None)
        node.stop()
    assert published == {True, False}


@pytest.mark.parametrize("end", ["kill", "lose_power"])
def test_an_end_before_any_step_of_assigning_what_is_there(tmp_path: Path, end: str) -> None:
    for step in range(20):
        node = Node(tmp_path / f"node{step}")
        node.full_share(3, OTHER, b"old" * 100)
        node.assign(OTHER)
        node.full_share(3)
        node.power.ends_before = node.power.steps + step
        call = Call(node.staging.assign(NAME, SI, [3]))
        answered = call.done
        getattr(node, end)()
        assert data_of(node, 3) == HEADER + b"old" * 100
        if answered:
            assert outcomes(call.result()) == {3: "already-there"}
            assert node.staged_files() == []
        node.stop()
    assert answered


@pytest.mark.parametrize("end", ["kill", "lose_power"])
def test_an_end_before_any_step_of_prepare(tmp_path: Path, end: str) -> None:
    answered, step = False, 0
    while not answered:
        node = Node(tmp_path / f"node{step}")
        node.stage(NAME, [0])
        body = os.urandom(SYNC_INTERVAL)
        node.write(NAME, 0, DATA_OFFSET, body)
        node.write(NAME, 0, 0, HEADER)
        node.power.ends_before = node.power.steps + step
        # less than what was synced: what is cut off must not be missed afterwards
        answered = Call(node.staging.prepare(NAME, 0, DATA_OFFSET + 10**6, *SECRETS)).done
        getattr(node, end)()
        (held,) = node.held()
        if answered:
            assert held.state == "prepared"
        if held.state == "growing":
            assert held.length >= DATA_OFFSET + 10**6
            node.write(NAME, 0, 0, HEADER)
            node.prepare(NAME, 0, DATA_OFFSET + 10**6)
        assert node.assign() == {0: "assigned"}
        assert data_of(node, 0) == HEADER + body[:10**6]
        node.stop()
        step += 1
    assert step > 6


OTHER_CALLS: dict[str, Any] = {
    "stage": lambda staging: staging.stage(NAME, [1, 2, 3], 0),
    "write": lambda staging: staging.write(NAME, 1, DATA_OFFSET, bytes(SYNC_INTERVAL)),
    "abort one": lambda staging: staging.abort(NAME, [1]),
    "abort all": lambda staging: staging.abort(NAME, []),
}


@pytest.mark.parametrize("end", ["kill", "lose_power"])
@pytest.mark.parametrize("call", [*OTHER_CALLS, "expiry"])
def test_an_end_before_any_step_of_other_calls(tmp_path: Path, end: str, call: str) -> None:
    done, step = False, 0
    while not done:
        node = Node(tmp_path / f"node{step}")
        node.full_share(0)
        node.stage(NAME, [1])
        if call == "expiry":
            node.wait(node.limits.expiry)  # not yet
        node.power.ends_before = node.power.steps + step
        if call == "expiry":
            node.clock.advance(node.limits.sweep_interval)
            done = not node.power.off
        else:
            done = Call(OTHER_CALLS[call](node.staging)).done
        getattr(node, end)()
        try:
            held = {share.shnum: share for share in node.held()}
        except errors.UnknownStaging:
            held = {}
        before, after = {0, 1}, {"stage": {0, 1, 2, 3}, "abort one": {0}, "write": {0, 1}}.get(call, set())
        assert {*held} >= before & after
        assert {*held} <= before | after
        if done:
            assert {*held} == after
        if 0 in held:
            assert held[0] == Held(0, "prepared", SIZE, SIZE)
        if call == "write":
            assert held[1].length == DATA_OFFSET + SYNC_INTERVAL * (held[1].length > DATA_OFFSET)
            assert held[1].length > DATA_OFFSET or not done
        # nothing is left over, and everything can be had again
        assert {int(path.name) for path in node.staged_files() if path.is_file()} == {*held}
        node.abort()
        assert node.staged_files() == []
        node.full_share(1)
        assert node.assign() == {1: "assigned"}
        node.stop()
        step += 1
    assert step > 2


@pytest.mark.parametrize("end", ["kill", "lose_power"])
def test_what_was_acknowledged_and_is_not_held_is_less_than_4_mib(node: Node, end: str) -> None:
    node.stage(NAME, [0, 1])
    acknowledged = {0: DATA_OFFSET, 1: DATA_OFFSET}
    missing = []
    for number in range(40):
        for shnum, size in ((0, 700_001), (1, 4 * MiB if number % 5 == 0 else MiB)):
            acknowledged[shnum] = node.write(NAME, shnum, acknowledged[shnum], bytes(size))["length"]
        getattr(node, end)()
        for held in node.held():
            assert held.length == held.synced
            missing.append(acknowledged[held.shnum] - held.length)
            if number % 3:  # otherwise go on from what is held
                node.write(NAME, held.shnum, held.length, bytes(missing[-1]))
            else:
                acknowledged[held.shnum] = held.length
    assert 0 <= min(missing) <= max(missing) < SYNC_INTERVAL
    assert max(missing) > SYNC_INTERVAL // 2


def test_a_sync_is_recorded_before_the_write_is_answered_also_of_writes_in_flight(node: Node) -> None:
    node.stage(NAME, [0])
    node.threads.hold()
    calls = [Call(node.staging.write(NAME, 0, DATA_OFFSET + i * MiB, bytes(MiB))) for i in range(12)]
    while node.threads.waiting:
        answered = sum(call.done for call in calls)
        recorded = {r.shnum: r.synced for r in node.staging._records.all()}[0]
        assert DATA_OFFSET + answered * MiB - recorded < SYNC_INTERVAL
        node.threads.run_one()
    assert all(call.done for call in calls)


def test_syncs_of_several_shares_share_a_commit(node: Node) -> None:
    node.stage(NAME, [0, 1, 2, 3, 4])
    node.threads.hold()
    calls = [Call(node.staging.write(NAME, n, DATA_OFFSET, bytes(4 * MiB))) for n in range(5)]
    node.threads.ran.clear()
    node.threads.release()
    assert all(call.result()["synced"] == DATA_OFFSET + 4 * MiB for call in calls)
    assert node.threads.ran.count("_sync") == 5
    assert node.threads.ran.count("apply") <= 2


def test_without_its_header_a_share_is_not_prepared(node: Node) -> None:
    """A loss of power can take the header, which is written last, and leave all data."""
    node.stage(NAME, [0])
    node.write(NAME, 0, DATA_OFFSET, bytes(SYNC_INTERVAL))
    with pytest.raises(errors.OffsetGap) as refused:
        node.prepare(NAME, 0, DATA_OFFSET + SYNC_INTERVAL)
    assert refused.value.expected == 0
    assert node.held()[0] == Held(0, "growing", DATA_OFFSET + SYNC_INTERVAL, DATA_OFFSET + SYNC_INTERVAL)
    node.write(NAME, 0, 0, HEADER)
    node.prepare(NAME, 0, DATA_OFFSET + SYNC_INTERVAL)


def test_a_file_shorter_than_what_was_synced_is_not_held(node: Node) -> None:
    node.full_share(0)
    node.full_share(1)
    (file,) = [path for path in node.staged_files() if path.name == "0"]
    node.stop()
    os.truncate(file, CONTAINER_HEADER + SIZE - 1)
    node.start()
    assert [held.shnum for held in node.held()] == [1]
    assert not file.exists()


# -- a disk that fails --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "number"), [
    ("link", errno.ENOSPC), ("link", errno.EACCES), ("make_directory", errno.EACCES), ("make_directory", errno.EROFS),
    ("fsync_directory", errno.EIO)])
def test_a_share_that_cannot_be_published_stays_prepared(node: Node, method: str, number: int) -> None:
    node.full_share(3)
    node.disk.errors[method] = os_error(number)
    assert node.assign() == {3: "failed"}
    assert node.share_file(3) is None  # nor is it half there
    assert node.held()[0].state == "prepared"
    del node.disk.errors[method]
    node.restart()
    assert node.held()[0].state == "prepared"  # the record too
    node.disk.errors[method] = os_error(number)
    assert node.assign() == {3: "failed"}
    del node.disk.errors[method]
    assert node.assign() == {3: "assigned"}
    assert data_of(node, 3) == HEADER + BODY
    assert (node.count("failed"), node.count("assigned")) == (1, 1)


def test_others_go_on(node: Node) -> None:
    node.full_share(5)
    node.full_share(6)
    # no call of ours makes a staged file go away
    (lost,) = [path for path in node.staged_files() if path.name == "5"]
    lost.unlink()
    assert node.assign() == {5: "failed", 6: "assigned"}
    assert data_of(node, 6) == HEADER + BODY


def test_start_up_goes_on_when_it_cannot_publish(node: Node) -> None:
    node.full_share(3)
    node.threads.hold()
    Call(node.staging.assign(NAME, SI, [3]))
    node.threads.run_one()  # recorded, linked; nothing synced
    node.disk.errors["fsync_directory"] = os_error(errno.EIO)
    node.lose_power()
    assert node.held()[0].state == "prepared"
    assert node.share_file(3) is None
    del node.disk.errors["fsync_directory"]
    node.kill()  # what was decided once is not decided any more
    assert node.share_file(3) is None
    assert node.assign(si=SI2) == {3: "assigned"}


@pytest.mark.parametrize("answered", [False, True], ids=["waited for", "beside writes"])
def test_a_failed_sync_is_never_tried_again(node: Node, answered: bool) -> None:
    node.stage(NAME, [0, 1])
    end = DATA_OFFSET
    for _i in range(5):
        end = node.write(NAME, 0, end, bytes(MiB))["length"]
    node.disk.errors["fdatasync"] = os_error(errno.EIO)
    syncs = node.disk.calls.count("fdatasync")
    if answered:  # of a sync that nobody waits for whatever comes next says it
        node.write(NAME, 0, end, bytes(MiB))
    with pytest.raises(errors.WriteFailed, match=r"Input/output error"):
        node.write(NAME, 0, end + MiB * answered, bytes(MiB if answered else 2 * MiB))
    node.disk.errors.clear()  # the next would succeed, and lie
    for call in (lambda: node.write(NAME, 0, DATA_OFFSET + 3 * MiB, b"x"), lambda: node.write(NAME, 0, 0, HEADER),
                 lambda: node.prepare(NAME, 0, DATA_OFFSET + 3 * MiB)):
        with pytest.raises(errors.WriteFailed):
            call()
    assert node.disk.calls.count("fdatasync") == syncs + 1
    assert "fsync" not in node.disk.calls
    assert node.held()[0] == Held(0, "growing", DATA_OFFSET + 3 * MiB, DATA_OFFSET + 3 * MiB)
    assert node.write(NAME, 1, DATA_OFFSET, bytes(4 * MiB))["synced"] > 4 * MiB  # others go on
    assert node.count("write_failed") == 4
    node.abort(NAME, [0])  # and its number can be had again
    node.full_share(0)
    assert node.assign(shnums=[0]) == {0: "assigned"}


def test_prepare_fails_with_a_sync_that_was_under_way_though_its_own_succeeds(node: Node) -> None:
    """The system reports an error of writing pages once, to whoever synced first."""
    node.stage(NAME, [0])
    node.write(NAME, 0, 0, HEADER)
    node.threads.hold()
    write = Call(node.staging.write(NAME, 0, DATA_OFFSET, bytes(3 * MiB)))
    assert write.done  # and is being synced
    prepare = Call(node.staging.prepare(NAME, 0, DATA_OFFSET + 3 * MiB, *SECRETS))
    node.disk.errors["fdatasync"] = os_error(errno.EIO)
    node.threads.release()
    with pytest.raises(errors.WriteFailed):
        prepare.result()
    assert node.held()[0] == Held(0, "growing", DATA_OFFSET, DATA_OFFSET)


def test_prepare_of_less_than_what_is_being_synced(node: Node) -> None:
    node.stage(NAME, [0])
    node.write(NAME, 0, 0, HEADER)
    node.threads.hold()
    assert Call(node.staging.write(NAME, 0, DATA_OFFSET, b"x" * 3 * MiB)).done
    prepare = Call(node.staging.prepare(NAME, 0, DATA_OFFSET + MiB, *SECRETS))
    node.threads.run_one()  # the sync
    node.threads.run_one()  # its record, which was asked for when the next came
    node.kill()
    assert node.held()[0] == Held(0, "growing", DATA_OFFSET + 3 * MiB, DATA_OFFSET + 3 * MiB)
    assert not prepare.done
    node.write(NAME, 0, 0, HEADER)
    node.prepare(NAME, 0, DATA_OFFSET + MiB)
    assert node.assign() == {0: "assigned"}
    assert data_of(node, 0) == HEADER + b"x" * MiB


def test_a_failed_sync_of_prepare_is_never_tried_again(node: Node) -> None:
    node.stage(NAME, [0])
    node.write(NAME, 0, DATA_OFFSET, BODY)
    node.write(NAME, 0, 0, HEADER)
    node.disk.errors["fsync"] = os_error(errno.EIO)
    for _i in range(2):
        with pytest.raises(errors.WriteFailed):
            node.prepare(NAME, 0)
        node.disk.errors.clear()
    assert node.disk.calls.count("fsync") == 1
    assert node.assign(shnums=[0]) == {0: "not-prepared"}


def test_out_of_space_in_mid_stream(node: Node) -> None:
    """What the file system refuses is not held, and the share goes on when there is room again."""
    node.stage(NAME, [0])
    node.write(NAME, 0, DATA_OFFSET, b"a" * 1000)
    node.disk.errors["write"] = os_error(errno.ENOSPC)
    with pytest.raises(errors.WriteFailed, match="No space left"):
        node.write(NAME, 0, DATA_OFFSET + 1000, b"b" * 1000)
    assert node.held()[0].length == DATA_OFFSET + 1000
    node.disk.errors.clear()
    with pytest.raises(errors.OffsetGap):
        node.write(NAME, 0, DATA_OFFSET + 2000, b"c" * 1000)
    node.write(NAME, 0, DATA_OFFSET + 1000, b"d" * 1000)
    node.write(NAME, 0, 0, HEADER)
    node.disk.errors["write"] = os_error(errno.ENOSPC)
    with pytest.raises(errors.WriteFailed):
        node.prepare(NAME, 0, DATA_OFFSET + 2000)
    node.disk.errors.clear()
    node.prepare(NAME, 0, DATA_OFFSET + 2000)
    node.assign()
    assert data_of(node, 0) == HEADER + b"a" * 1000 + b"d" * 1000


def test_what_a_failed_prepare_has_cut_off_is_not_held(node: Node) -> None:
    node.stage(NAME, [0])
    node.write(NAME, 0, DATA_OFFSET, BODY)
    node.write(NAME, 0, 0, HEADER)
    node.disk.errors["write"] = os_error(errno.ENOSPC)
    with pytest.raises(errors.WriteFailed):
        node.prepare(NAME, 0, DATA_OFFSET + 1000)
    node.disk.errors.clear()
    assert node.held()[0].length == DATA_OFFSET + 1000
    with pytest.raises(errors.WrongSize):
        node.prepare(NAME, 0, SIZE)


def test_writes_behind_one_that_failed_leave_no_gap(node: Node) -> None:
    node.stage(NAME, [0])
    node.threads.hold()
    size = SYNC_INTERVAL  # the others wait until the first is synced
    calls = [Call(node.staging.write(NAME, 0, DATA_OFFSET + i * size, bytes(size))) for i in range(3)]
    node.disk.errors["write"] = os_error(errno.EDQUOT)
    assert not any(call.done for call in calls)
    node.threads.release()
    assert calls[0].result()["length"] == DATA_OFFSET + size
    with pytest.raises(errors.WriteFailed):
        calls[1].result()
    with pytest.raises(errors.OffsetGap) as gap:
        calls[2].result()
    assert gap.value.expected == DATA_OFFSET + size


@pytest.mark.parametrize("method", ["make_directory", "create", "fsync_directory"])
def test_shares_that_cannot_be_made(node: Node, method: str) -> None:
    node.disk.errors[method] = os_error(errno.ENOSPC)
    with pytest.raises(errors.WriteFailed):
        node.stage(NAME, [0, 1])
    with pytest.raises(errors.UnknownStaging):
        node.held()
    node.disk.errors.clear()
    assert len(node.stage(NAME, [0, 1])) == 2  # files that were left over are in nobody's way
    node.full_share(0)


def test_a_staged_file_that_cannot_be_removed_goes_at_the_next_start(node: Node) -> None:
    node.full_share(0)
    node.full_share(1)
    node.disk.errors["unlink"] = os_error(errno.EACCES)
    assert node.assign(shnums=[0]) == {0: "assigned"}
    node.abort()
    with pytest.raises(errors.UnknownStaging):
        node.held()
    assert len([path for path in node.staged_files() if path.is_file()]) == 2
    node.disk.errors.clear()
    node.restart()
    assert node.staged_files() == []
    assert data_of(node, 0) == HEADER + BODY


def test_records_that_cannot_be_written(node: Node) -> None:
    node.full_share(0)
    node.stage(NAME, [1])
    other = sqlite3.connect(node.directory / "staging" / "staging.sqlite", isolation_level=None)
    other.execute("CREATE TRIGGER full BEFORE UPDATE ON staged BEGIN SELECT RAISE(ABORT, 'full'); END")
    assert node.assign(shnums=[0]) == {0: "failed"}
    assert node.share_file(0) is None
    with pytest.raises(errors.WriteFailed, match="IntegrityError"):
        node.write(NAME, 1, DATA_OFFSET, bytes(4 * MiB))
    with pytest.raises(errors.WriteFailed):  # not recorded, so not answered
        node.write(NAME, 1, DATA_OFFSET + 4 * MiB, b"x")
    other.execute("DROP TRIGGER full")
    other.close()
    assert node.write(NAME, 1, DATA_OFFSET + 4 * MiB, b"x")["synced"] == DATA_OFFSET + 4 * MiB + 1
    assert node.assign(shnums=[0]) == {0: "assigned"}


def test_a_node_that_stops_refuses(node: Node) -> None:
    node.full_share(0)
    node.staging.stop()
    for call in (lambda: node.stage(NAME, [1]), lambda: node.held(), lambda: node.assign(), lambda: node.abort(),
                 lambda: node.write(NAME, 0, DATA_OFFSET, b"x")):
        with pytest.raises(errors.Stopping):
            call()
    node.start()
    assert node.assign() == {0: "assigned"}


# -- space ------------------------------------------------------------------------------------------------------


def leave(node: Node, size: int) -> None:
    """So many bytes beyond reserved_space."""
    node.stop()
    node.stock.reserved_space = 0
    node.reserved = node.stock.get_available_space() - size
    node.start()


def test_stage_with_a_size_needs_room_for_all_new_shares(node: Node) -> None:
    leave(node, 10 * MiB)
    with pytest.raises(errors.NoSpace) as refused:
        node.stage(NAME, [0, 1, 2, 3], 3 * MiB)
    assert refused.value.wanted == 4 * (3 * MiB + SPARE_PER_SHARE)
    with pytest.raises(errors.UnknownStaging):
        node.held()
    assert node.staged_files() == []
    assert node.staging.get_version()["available-space"] >= 9 * MiB  # nothing is reserved either
    node.stage(NAME, [0, 1], 3 * MiB)
    leave(node, 0)
    assert len(node.stage(NAME, [1, 0, 1], 3 * MiB)) == 2  # there already
    with pytest.raises(errors.NoSpace):
        node.stage(NAME, [0, 1, 2], 1)
    assert len(node.held()) == 2


def test_a_read_only_node_takes_nothing_new_and_assigns(node: Node) -> None:
    node.full_share(0)
    node.stage(NAME, [1, 2])
    node.write(NAME, 1, DATA_OFFSET, BODY)
    node.write(NAME, 1, 0, HEADER)
    node.readonly = True
    node.restart()
    assert len(node.stage(NAME, [0, 1, 2])) == 3
    for call in (lambda: node.stage(NAME, [3]), lambda: node.write(NAME, 2, DATA_OFFSET, b"x")):
        with pytest.raises(errors.ReadOnly):
            call()
    node.readonly = False
    node.restart()
    node.write(NAME, 1, DATA_OFFSET, BODY)
    node.stock.readonly_storage = True
    with pytest.raises(errors.ReadOnly):
        node.prepare(NAME, 1)
    assert node.assign() == {0: "assigned"}


def test_prepare_may_use_what_writes_keep_free_but_not_what_is_reserved(node: Node) -> None:
    node.stage(NAME, [0])
    node.write(NAME, 0, DATA_OFFSET, BODY)
    node.write(NAME, 0, 0, HEADER)
    free = node.stock.get_available_space
    node.stock.get_available_space = lambda: PREPARED_OVERHEAD - 1
    with pytest.raises(errors.NoSpace):
        node.prepare(NAME, 0)
    assert node.held()[0].state == "growing"
    node.stock.get_available_space = lambda: PREPARED_OVERHEAD
    with pytest.raises(errors.NoSpace):
        node.write(NAME, 0, SIZE, b"x")
    node.prepare(NAME, 0)
    node.stock.get_available_space = free


def test_what_is_being_prepared_counts(node: Node) -> None:
    node.stage(NAME, [0, 1])
    node.write(NAME, 0, DATA_OFFSET, BODY)
    node.write(NAME, 0, 0, HEADER)
    node.stock.get_available_space = lambda: SPARE_PER_SHARE + PREPARED_OVERHEAD + 500
    node.threads.hold()
    preparing = Call(node.staging.prepare(NAME, 0, SIZE, *SECRETS))
    with pytest.raises(errors.NoSpace) as refused:
        node.write(NAME, 1, DATA_OFFSET, bytes(501))
    assert refused.value.available == 500
    node.write(NAME, 1, DATA_OFFSET, bytes(500))
    node.threads.release()
    preparing.result()


def test_a_platform_that_cannot_tell_its_space(node: Node) -> None:
    node.stock.get_available_space = lambda: None
    assert node.staging.get_version()["available-space"] == 2**63
    node.stage(NAME, [0], 10**15 // 1024)
    node.write(NAME, 0, DATA_OFFSET, b"x")


def test_statistics(node: Node) -> None:
    node.full_share(0)
    node.stage(NAME, [1])
    node.write(NAME, 1, DATA_OFFSET, b"abc")
    numbers = node.staging.statistics()
    assert (numbers["staged"], numbers["staged_now"], numbers["stagings_now"]) == (2, 2, 1)
    assert numbers["staged_bytes_now"] == SIZE + DATA_OFFSET + 3
    _already, writers = node.stock.allocate_buckets(SI, b"a" * 32, b"b" * 32, {0}, 1000)
    node.assign()
    writers[0].abort()
    node.assign()
    numbers = node.staging.statistics()
    assert (numbers["busy"], numbers["assigned"], numbers["staged_now"]) == (1, 1, 1)
    now(node.staging.abort(NAME, []))
    numbers = node.staging.statistics()
    assert (numbers["aborted"], numbers["staged_now"], numbers["staged_bytes_now"]) == (1, 0, 0)
