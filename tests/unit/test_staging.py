"""helper/staging.py beside a real stock StorageServer: rules, publishing, restarts, space, expiry."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from allmydata.storage.immutable import ShareFile
from hypothesis import given
from hypothesis import strategies as st
from staging_node import BODY, HEADER, NAME, OTHER, SECRETS, SI, SIZE, Call, Node, now

from helper import staging_errors as errors
from helper.layout import DATA_OFFSET
from helper.staged_share import CONTAINER_HEADER, SYNC_INTERVAL
from helper.staging import Held


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "storage")
    yield node
    node.stop()


def test_a_share_comes_to_its_place(node: Node) -> None:
    node.full_share(3)
    assert node.share_file(3) is None  # nothing has a storage index yet
    assert node.assign(NAME) == {3: "assigned"}
    path = node.share_file(3)
    assert path is not None
    share = ShareFile(str(path))
    assert share.read_share_data(0, 10**6) == HEADER + BODY
    (lease,) = share.get_leases()
    assert lease.is_renew_secret(SECRETS[0])
    assert lease.is_cancel_secret(SECRETS[1])
    assert lease.get_expiration_time() == node.clock.seconds() + 31 * 86400
    assert SECRETS[0] not in path.read_bytes()
    assert node.staged_files() == []


def test_assign_may_be_repeated_until_it_has_happened(node: Node) -> None:
    node.full_share(3)
    node.assign(NAME)
    with pytest.raises(errors.UnknownStaging):
        node.assign(NAME)
    assert node.count("assigned") == 1


def test_shares_that_are_not_prepared_stay(node: Node) -> None:
    node.full_share(3)
    node.stage(NAME, [4])
    assert node.assign(NAME) == {3: "assigned"}
    assert node.held(NAME) == [Held(4, "growing", DATA_OFFSET, DATA_OFFSET)]


def test_a_share_that_was_there_before_is_untouched(node: Node) -> None:
    node.full_share(3, OTHER, b"old" * 100)
    node.assign(OTHER)
    path = node.share_file(3)
    assert path is not None
    before = path.read_bytes()
    node.full_share(3)
    assert node.assign(NAME) == {3: "already-there"}
    assert path.read_bytes() == before
    assert node.staged_files() == []


def leases(node: Node) -> list[tuple[bool, bool, float]]:
    """Of share 3: whether each is of SECRETS, of others, and seconds until it expires."""
    return [(lease.is_renew_secret(SECRETS[0]), lease.is_renew_secret(b"R" * 32),
             lease.get_expiration_time() - node.clock.seconds())
            for lease in ShareFile(str(node.share_file(3))).get_leases()]


def test_a_share_that_was_there_before_has_the_lease_of_who_uploads_it_again(node: Node) -> None:
    node.full_share(3, OTHER)
    node.assign(OTHER)
    path = node.share_file(3)
    assert path is not None
    data = path.read_bytes()
    node.clock.advance(30 * 86400)
    node.full_share(3)
    assert node.assign(NAME) == {3: "already-there"}
    assert leases(node) == [(True, False, 31 * 86400)]
    node.clock.advance(86400)
    node.full_share(3, OTHER, secrets=(b"R" * 32, b"C" * 32))
    assert node.assign(OTHER) == {3: "already-there"}
    assert leases(node) == [(True, False, 30 * 86400), (False, True, 31 * 86400)]
    assert path.read_bytes()[12:12 + SIZE] == data[12:12 + SIZE]


def test_a_share_that_was_there_before_and_has_no_room_for_a_lease_may_be_asked_for_again(node: Node) -> None:
    node.full_share(3, OTHER)
    node.assign(OTHER)
    node.full_share(3, NAME, secrets=(b"R" * 32, b"C" * 32))
    node.stock.reserved_space, reserved = 2**62, node.stock.reserved_space
    assert node.assign(NAME) == {3: "failed"}
    assert len(leases(node)) == 1
    node.stock.reserved_space = reserved
    assert node.assign(NAME) == {3: "already-there"}
    assert len(leases(node)) == 2


def test_a_damaged_share_that_was_there_before_is_left_alone(node: Node) -> None:
    node.full_share(3, OTHER)
    node.assign(OTHER)
    path = node.share_file(3)
    assert path is not None
    for damage in (b"", b"\xff" * 100):
        path.write_bytes(damage)
        node.full_share(3)
        assert node.assign(NAME) == {3: "already-there"}
        assert path.read_bytes() == damage


def test_a_stock_writer_is_in_the_way(node: Node) -> None:
    _already, writers = node.stock.allocate_buckets(SI, b"a" * 32, b"b" * 32, {3}, 1000)
    node.full_share(3)
    assert node.assign(NAME) == {3: "busy"}
    assert node.held(NAME)[0].state == "prepared"
    writers[3].abort()
    assert node.assign(NAME) == {3: "assigned"}


def test_a_stock_writer_that_comes_too_late_finds_the_share(node: Node) -> None:
    node.full_share(3)
    node.assign(NAME)
    already, writers = node.stock.allocate_buckets(SI, b"a" * 32, b"b" * 32, {3}, 1000)
    assert (already, writers) == ({3}, {})


def test_writes_go_on_where_they_were(node: Node) -> None:
    node.stage(NAME, [0])
    node.write(NAME, 0, DATA_OFFSET, b"abc")
    with pytest.raises(errors.OffsetGap) as gap:
        node.write(NAME, 0, DATA_OFFSET + 4, b"d")
    assert (gap.value.expected, gap.value.came) == (DATA_OFFSET + 3, DATA_OFFSET + 4)
    with pytest.raises(errors.OffsetGap):
        node.write(NAME, 0, -1, b"d")
    with pytest.raises(errors.OffsetGap):
        node.write(NAME, 0, DATA_OFFSET - 1, b"de")  # not across the end of the header
    assert node.write(NAME, 0, DATA_OFFSET + 1, b"bcd")["length"] == DATA_OFFSET + 4
    assert node.held(NAME) == [Held(0, "growing", DATA_OFFSET + 4, DATA_OFFSET)]


def test_what_is_held_after_a_restart_is_what_was_synced(node: Node) -> None:
    node.stage(NAME, [0])
    end = DATA_OFFSET
    while end < DATA_OFFSET + SYNC_INTERVAL:
        node.write(NAME, 0, end, b"x" * 2**20)
        end += 2**20
    end = node.write(NAME, 0, end, b"y" * 1000)["synced"]
    assert 0 < end - DATA_OFFSET < SYNC_INTERVAL
    node.restart()
    assert node.held(NAME) == [Held(0, "growing", end, end)]
    node.restart()
    node.write(NAME, 0, end, b"z" * 1000)  # where it was, with what comes now
    node.write(NAME, 0, 0, HEADER)
    node.prepare(NAME, 0, end + 1000)
    node.restart()
    assert node.held(NAME)[0] == Held(0, "prepared", end + 1000, end + 1000)
    assert node.assign(NAME) == {0: "assigned"}
    path = node.share_file(0)
    assert path is not None
    assert ShareFile(str(path)).read_share_data(0, 2**30) == HEADER + b"x" * (end - DATA_OFFSET) + b"z" * 1000


def test_prepare_truncates_and_may_be_repeated(node: Node) -> None:
    node.stage(NAME, [0])
    node.write(NAME, 0, DATA_OFFSET, BODY + b"more")
    node.write(NAME, 0, 0, HEADER)
    for size in (DATA_OFFSET, DATA_OFFSET + len(BODY) + 5):
        with pytest.raises(errors.WrongSize):
            node.prepare(NAME, 0, size)
    node.prepare(NAME, 0, DATA_OFFSET + len(BODY))
    node.prepare(NAME, 0, DATA_OFFSET + len(BODY))
    with pytest.raises(errors.AlreadyPrepared):
        node.write(NAME, 0, DATA_OFFSET, BODY)
    node.assign(NAME)
    path = node.share_file(0)
    assert path is not None
    assert len(list(ShareFile(str(path)).get_leases())) == 1
    assert ShareFile(str(path)).read_share_data(0, 10**6) == HEADER + BODY


def test_abort_leaves_nothing(node: Node) -> None:
    node.full_share(3)
    node.stage(NAME, [4, 5])
    node.abort(NAME, [4])
    assert [h.shnum for h in node.held(NAME)] == [3, 5]
    node.abort(NAME, [])
    node.abort(NAME, [])
    assert node.staged_files() == []
    node.restart()
    with pytest.raises(errors.UnknownStaging):
        node.held(NAME)


def test_files_that_nobody_knows_are_removed(node: Node) -> None:
    node.stage(NAME, [0])
    (staged,) = [p for p in node.staged_files() if p.is_file()]
    (staged.parent / "7").write_bytes(b"made, but the record was not")
    node.restart()
    assert [p.name for p in node.staged_files() if p.is_file()] == ["0"]


def test_idle_stagings_expire(node: Node) -> None:
    node.full_share(0)
    node.full_share(1, OTHER)
    node.wait(13 * 86400)
    node.held(OTHER)  # keeps it
    node.wait(2 * 86400)
    with pytest.raises(errors.UnknownStaging):
        node.held(NAME)
    assert node.held(OTHER)
    node.wait(10 * 86400)
    node.restart()
    assert node.held(OTHER)
    node.wait(15 * 86400)
    assert node.staged_files() == []
    assert node.count("expired") == 1


@pytest.mark.parametrize("up", [True, False], ids=["set while it runs", "set while it is down"])
@pytest.mark.parametrize("jump", [15 * 86400, -365 * 86400], ids=["forwards", "backwards"])
def test_a_clock_that_is_set_and_time_in_which_the_node_was_down_expire_nothing(node: Node, up: bool,
                                                                                jump: float) -> None:
    node.full_share(0)
    node.wait(10 * 86400)
    if not up:
        node.stop()
    if jump > 0:
        node.clock.advance(jump)
    else:
        node.clock.rightNow += jump
    if not up:
        node.start()
    if up and jump < 0:
        node.restart()  # its timer would be due in a year
    node.wait(3 * 86400)
    assert len(node.staged_files()) == 2
    node.wait(86400 + 4 * node.limits.sweep_interval)
    assert node.staged_files() == []


def test_stagings_without_a_byte_expire_soon(node: Node) -> None:
    node.stage(NAME, [0, 1])
    node.stage(OTHER, [0, 1])
    node.write(OTHER, 1, DATA_OFFSET, b"x")
    for _hour in range(10):
        node.wait(node.limits.empty_expiry)
        assert len(node.held(NAME)) == 2
    node.wait(node.limits.empty_expiry + 2 * node.limits.sweep_interval)
    with pytest.raises(errors.UnknownStaging):
        node.held(NAME)
    assert len(node.held(OTHER)) == 2


def test_a_staging_that_has_lost_its_bytes_with_the_power_is_kept_for_who_comes_back(node: Node) -> None:
    node.stage(NAME, [0])
    node.write(NAME, 0, DATA_OFFSET, b"not synced")
    node.wait(5 * 86400)
    node.lose_power()
    node.wait(node.limits.empty_expiry - node.limits.sweep_interval)
    assert len(node.staged_files()) == 2
    node.wait(3 * node.limits.sweep_interval)
    assert node.staged_files() == []


def test_stagings_of_an_earlier_version_are_there_as_if_they_had_just_been_called_for(node: Node) -> None:
    node.full_share(0)
    node.stop()
    with closing(sqlite3.connect(node.directory / "staging" / "staging.sqlite", isolation_level=None)) as db:
        db.execute("DROP TABLE node")
        db.execute("UPDATE staged SET touched = 1e9")
        db.execute("PRAGMA user_version = 1")
    node.start()
    node.wait(13 * 86400)
    node.restart()
    assert len(node.staged_files()) == 2
    node.wait(2 * 86400)
    assert node.staged_files() == []


def test_space(node: Node) -> None:
    node.stage(NAME, [0])
    node.stock.get_available_space = lambda: 300_000  # others use the disk, too
    with pytest.raises(errors.NoSpace) as refused:
        node.write(NAME, 0, DATA_OFFSET, bytes(400_000))
    assert refused.value.wanted == 400_000
    assert node.held(NAME)[0].length == DATA_OFFSET
    node.write(NAME, 0, DATA_OFFSET, bytes(1000))
    # what stock writers have allocated is not ours
    node.stock.allocate_buckets(SI, b"a" * 32, b"b" * 32, {3}, 200_000)
    with pytest.raises(errors.NoSpace):
        node.write(NAME, 0, DATA_OFFSET + 1000, bytes(100_000))


def test_read_only(node: Node) -> None:
    node.full_share(0)
    node.stage(NAME, [1])
    node.readonly = True
    node.restart()
    with pytest.raises(errors.ReadOnly):
        node.stage(OTHER, [0])
    with pytest.raises(errors.ReadOnly):
        node.write(NAME, 1, DATA_OFFSET, b"x")
    assert node.staging.get_version()["available-space"] == 0


def test_limits(node: Node) -> None:
    node.limits = attrs.evolve(node.limits, stagings=1, bytes_per_staging=1000)
    node.restart()
    node.stage(NAME, [0])
    with pytest.raises(errors.TooManyStagings):
        node.stage(OTHER, [0])
    with pytest.raises(errors.StagingFull):
        node.write(NAME, 0, DATA_OFFSET, bytes(1000))


def test_shares_of_all_stagings_are_limited(node: Node) -> None:
    node.limits = attrs.evolve(node.limits, shares=5)
    node.restart()
    node.stage(NAME, [0, 1, 2])
    with pytest.raises(errors.TooManyStagings) as caught:
        node.stage(OTHER, [0, 1, 2])
    assert caught.value.limit == 5
    node.threads.hold()
    slow = Call(node.staging.stage(OTHER, [0, 1], 0))
    refused = Call(node.staging.stage(b"p" * 32, [0], 0))
    node.threads.release()
    assert len(slow.result()) == 2
    with pytest.raises(errors.TooManyStagings):
        refused.result()
    assert len(node.stage(NAME, [0, 1, 2])) == 3  # there already
    node.abort(OTHER)
    node.stage(b"p" * 32, [0])


@pytest.mark.parametrize("call", [
    lambda s: s.stage(b"short", [0], 0), lambda s: s.stage(NAME, [256], 0), lambda s: s.stage(NAME, [-1], 0),
    lambda s: s.stage(NAME, [0], -1),
    lambda s: s.assign(NAME, b"short", []), lambda s: s.assign(NAME, SI, [256]),
    lambda s: s.prepare(NAME, 0, 100, b"short", SECRETS[1]),
    lambda s: s.abort(NAME, [-1]),
    lambda s: s.held(b""), lambda s: s.abort(NAME + b"x", []),
])
def test_bad_arguments(node: Node, call: Any) -> None:
    node.stage(NAME, [0])
    with pytest.raises(errors.BadArgument):
        now(call(node.staging))
    assert len(node.held(NAME)) == 1


def test_names_keep_uploads_apart(node: Node) -> None:
    node.full_share(0)
    with pytest.raises(errors.UnknownStaging):
        node.write(OTHER, 0, DATA_OFFSET, b"x")
    with pytest.raises(errors.UnknownStaging):
        node.assign(OTHER)
    node.abort(OTHER, [])
    assert len(node.held(NAME)) == 1


@given(pieces=st.lists(st.binary(min_size=1, max_size=5000), min_size=1, max_size=12),
       restarts=st.sets(st.integers(0, 11)))
def test_any_pieces_with_restarts(pieces: list[bytes], restarts: set[int],
                                  tmp_path_factory: pytest.TempPathFactory) -> None:
    node = Node(tmp_path_factory.mktemp("node") / "storage")
    body = b"".join(pieces)
    node.stage(NAME, [0])
    ends = [len(b"".join(pieces[:i + 1])) for i in range(len(pieces))]
    for number, (piece, end) in enumerate(zip(pieces, ends, strict=True)):
        node.write(NAME, 0, DATA_OFFSET + end - len(piece), piece)
        if number in restarts:
            node.restart()
            held = node.held(NAME)[0].length
            assert DATA_OFFSET <= held <= DATA_OFFSET + end
            node.write(NAME, 0, held, body[held - DATA_OFFSET:end])
    node.write(NAME, 0, 0, HEADER)
    node.prepare(NAME, 0, DATA_OFFSET + len(body))
    node.assign(NAME)
    path = node.share_file(0)
    assert path is not None
    assert path.stat().st_size == CONTAINER_HEADER + DATA_OFFSET + len(body) + ShareFile.LEASE_SIZE
    assert ShareFile(str(path)).read_share_data(0, 10**7) == HEADER + body
    node.stop()
