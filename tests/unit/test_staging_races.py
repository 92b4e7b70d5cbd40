"""Calls on one staging, and stock writers, that meet: every order has an outcome that was chosen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allmydata.storage.immutable import ShareFile
from staging_node import BODY, HEADER, NAME, OTHER, SECRETS, SI, SI2, SIZE, Call, Node, outcomes

from helper import staging_errors as errors
from helper.layout import DATA_OFFSET
from helper.staged_share import SYNC_INTERVAL
from helper.staging import Held

MiB = 1024 * 1024


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "storage")
    yield node
    node.stop()


def content(node: Node, shnum: int, si: bytes = SI) -> bytes:
    path = node.share_file(shnum, si)
    assert path is not None
    return bytes(ShareFile(str(path)).read_share_data(0, 10**8))


def assigning(node: Node, shnums: list[int], name: bytes = NAME, si: bytes = SI) -> Call:
    return Call(node.staging.assign(name, si, shnums))


# -- stock writers ----------------------------------------------------------------------------------------------


def stock_writer(node: Node, shnum: int = 3) -> Any:
    _already, writers = node.stock.allocate_buckets(SI, b"a" * 32, b"b" * 32, {shnum}, 10)
    return writers[shnum]


def test_a_stock_writer_that_closes(node: Node) -> None:
    writer = stock_writer(node)
    node.full_share(3)
    assert node.assign() == {3: "busy"}
    writer.write(0, b"0123456789")
    writer.close()
    assert node.assign() == {3: "already-there"}
    assert content(node, 3) == b"0123456789"
    assert node.staged_files() == []


def test_a_stock_writer_that_aborts(node: Node) -> None:
    writer = stock_writer(node)
    node.full_share(3)
    assert node.assign() == {3: "busy"}
    node.restart()  # the record says so as well; and the writer has gone with its server
    assert node.held()[0].state == "prepared"
    writer = stock_writer(node)
    assert node.assign() == {3: "busy"}
    writer.abort()
    assert node.assign() == {3: "assigned"}


@pytest.mark.parametrize("when", range(4))
def test_a_stock_writer_that_comes_during_assign(node: Node, when: int) -> None:
    """Whatever the moment: either it is refused because the share is there, or assign says busy."""
    node.full_share(3)
    node.threads.hold()
    call = assigning(node, [3])
    for _i in range(when):
        if node.threads.waiting:
            node.threads.run_one()
    already, writers = node.stock.allocate_buckets(SI, b"a" * 32, b"b" * 32, {3}, 10)
    node.threads.release()
    if writers:
        assert when == 0
        assert outcomes(call.result()) == {3: "busy"}
        writers[3].write(0, b"0123456789")
        writers[3].close()
        assert content(node, 3) == b"0123456789"
        assert node.held()[0].state == "prepared"
    else:
        assert already == {3}
        assert outcomes(call.result()) == {3: "assigned"}
        assert content(node, 3) == HEADER + BODY


def test_a_file_that_a_failed_allocation_left_is_in_nobodys_way(node: Node) -> None:
    """Only a writer in memory can rename over a share: its file alone cannot."""
    writer = stock_writer(node)
    left = Path(writer.incominghome)
    writer.abort()
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"")
    node.full_share(3)
    assert node.assign() == {3: "assigned"}


def test_a_writer_of_another_share_is_not_in_the_way(node: Node) -> None:
    stock_writer(node, 4)
    node.full_share(3)
    node.full_share(4)
    assert node.assign() == {3: "assigned", 4: "busy"}


# -- assign and assign -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", range(4))
def test_a_second_assign_waits_and_has_the_same_outcome(node: Node, when: int) -> None:
    node.full_share(3)
    node.threads.hold()
    first = assigning(node, [3])
    for _i in range(when):
        if node.threads.waiting:
            node.threads.run_one()
    if first.done:
        node.threads.release()
        return
    assert [held.state for held in Call(node.staging.held(NAME)).result()] == ["assigning"]
    second, third = assigning(node, [3]), assigning(node, [])
    assert not second.done
    node.threads.release()
    assert outcomes(first.result()) == outcomes(second.result()) == outcomes(third.result()) == {3: "assigned"}
    assert node.count("assigned") == 1
    assert node.staged_files() == []


def test_a_second_assign_that_waits_hears_busy_too(node: Node) -> None:
    writer = stock_writer(node)
    node.full_share(3)
    node.threads.hold()
    first, second = assigning(node, [3]), assigning(node, [3])
    node.threads.release()
    assert outcomes(first.result()) == outcomes(second.result()) == {3: "busy"}
    writer.abort()
    assert node.assign() == {3: "assigned"}


def test_a_second_assign_to_another_index_is_refused_and_changes_nothing(node: Node) -> None:
    node.full_share(3)
    node.full_share(4)
    node.threads.hold()
    first = assigning(node, [3])
    with pytest.raises(errors.StorageIndexConflict):
        assigning(node, [3, 4], si=SI2).result()
    node.threads.release()
    assert outcomes(first.result()) == {3: "assigned"}
    assert node.held() == [Held(4, "prepared", SIZE, SIZE)]
    assert node.assign(si=SI2) == {4: "assigned"}
    assert node.share_file(4) is None


def test_two_stagings_of_one_index_at_once(node: Node) -> None:
    node.full_share(3, body=b"one" * 100)
    node.full_share(3, OTHER, body=b"two" * 100)
    node.threads.hold()
    calls = [assigning(node, [3]), assigning(node, [], OTHER)]
    node.threads.release()
    assert [outcomes(call.result()) for call in calls] == [{3: "assigned"}, {3: "already-there"}]
    assert content(node, 3) == HEADER + b"one" * 100
    assert node.staged_files() == []


def test_named_shares_have_outcomes_of_their_own(node: Node) -> None:
    node.full_share(3)
    node.full_share(4)
    node.stage(NAME, [5])
    assert node.assign(shnums=[3, 3, 5, 9]) == {3: "assigned", 5: "not-prepared", 9: "unknown"}
    assert node.assign(shnums=[3]) == {3: "unknown"}
    assert node.assign() == {4: "assigned"}
    assert node.assign() == {}
    node.abort()
    with pytest.raises(errors.UnknownStaging):
        node.assign(shnums=[3])


# -- abort and expiry, and what is under way ---------------------------------------------------------------------


def removal(node: Node, how: str, *shnums: int) -> Call:
    """By abort, or by expiry of the whole staging."""
    if how == "abort":
        return Call(node.staging.abort(NAME, list(shnums)))
    node.wait(node.limits.expiry + node.limits.sweep_interval + 1)

    async def nothing() -> None:
        pass

    return Call(nothing())


@pytest.mark.parametrize("when", range(4))
def test_abort_while_assign_is_under_way(node: Node, when: int) -> None:
    """The decision has been made: the share is published, and nothing staged remains."""
    node.full_share(3)
    node.stage(NAME, [4])
    node.threads.hold()
    call = assigning(node, [3])
    for _i in range(when):
        if node.threads.waiting:
            node.threads.run_one()
    abort = removal(node, "abort")
    node.threads.release()
    abort.result()
    assert outcomes(call.result()) == {3: "assigned"}
    assert content(node, 3) == HEADER + BODY
    assert node.staged_files() == []
    node.restart()
    assert node.staged_files() == []


def test_abort_while_an_assign_is_under_way_that_leaves_the_share(node: Node) -> None:
    writer = stock_writer(node)
    node.full_share(3)
    node.threads.hold()
    call, abort = assigning(node, [3]), removal(node, "abort", 3)
    assert not abort.done
    node.threads.release()
    assert outcomes(call.result()) == {3: "busy"}
    abort.result()
    assert node.staged_files() == []
    writer.abort()
    with pytest.raises(errors.UnknownStaging):
        node.assign()


def test_abort_while_prepare_is_under_way(node: Node) -> None:
    node.stage(NAME, [3])
    node.write(NAME, 3, DATA_OFFSET, BODY)
    node.write(NAME, 3, 0, HEADER)
    node.threads.hold()
    prepare = Call(node.staging.prepare(NAME, 3, SIZE, *SECRETS))
    abort = removal(node, "abort")
    late = Call(node.staging.prepare(NAME, 3, SIZE, *SECRETS))
    node.threads.release()
    prepare.result()
    abort.result()
    with pytest.raises(errors.UnknownStaging):
        late.result()
    assert node.staged_files() == []
    node.restart()
    with pytest.raises(errors.UnknownStaging):
        node.held()


def test_abort_while_writes_are_under_way(node: Node) -> None:
    node.stage(NAME, [3])
    node.threads.hold()
    first = Call(node.staging.write(NAME, 3, DATA_OFFSET, bytes(4 * MiB)))
    behind = Call(node.staging.write(NAME, 3, DATA_OFFSET + 4 * MiB, b"x"))
    abort = removal(node, "abort")
    node.threads.release()
    assert first.result()["synced"] == DATA_OFFSET + 4 * MiB
    abort.result()
    with pytest.raises(errors.UnknownStaging):
        behind.result()
    assert node.staged_files() == []
    node.stage(NAME, [3])
    assert node.held() == [Held(3, "growing", DATA_OFFSET, DATA_OFFSET)]


@pytest.mark.parametrize("call", ["write", "prepare", "assign", "stage"])
def test_nothing_under_way_expires(node: Node, call: str) -> None:
    node.full_share(3)
    node.stage(NAME, [4])
    node.threads.hold()
    under_way = Call({"write": lambda: node.staging.write(NAME, 4, DATA_OFFSET, b"x" * 100),
                      "prepare": lambda: node.staging.prepare(NAME, 3, SIZE, *SECRETS),
                      "assign": lambda: node.staging.assign(NAME, SI, []),
                      "stage": lambda: node.staging.stage(NAME, [5], 0)}[call]())
    removal(node, "expiry")
    expires_anyway = under_way.done  # a repeated prepare has nothing to wait for
    node.threads.release()
    under_way.result()
    if expires_anyway:
        assert node.staged_files() == []
    else:
        assert 4 in [held.shnum for held in node.held()]
    removal(node, "expiry")
    assert node.staged_files() == []
    assert node.staging.statistics()["stagings_now"] == 0


@pytest.mark.parametrize("how", ["abort", "expiry"])
@pytest.mark.parametrize("when", range(4))
def test_stage_while_the_staging_goes(node: Node, how: str, when: int) -> None:
    node.stage(NAME, [0, 1])
    node.threads.hold()
    gone = removal(node, how)
    for _i in range(when):
        if node.threads.waiting:
            node.threads.run_one()
    with pytest.raises(errors.UnknownStaging):
        Call(node.staging.held(NAME)).result()
    with pytest.raises(errors.UnknownStaging):
        Call(node.staging.write(NAME, 0, DATA_OFFSET, b"x")).result()
    staged = Call(node.staging.stage(NAME, [1, 2], 0))
    node.threads.release()
    gone.result()
    assert [held.shnum for held in staged.result()] == [1, 2]
    node.write(NAME, 1, DATA_OFFSET, b"x")
    node.restart()
    assert [held.shnum for held in node.held()] == [1, 2]


def test_abort_while_stage_is_under_way(node: Node) -> None:
    node.threads.hold()
    staged, abort, again = (Call(node.staging.stage(NAME, [0], 0)), removal(node, "abort"),
                            Call(node.staging.stage(NAME, [7], 0)))
    with pytest.raises(errors.UnknownStaging):  # not answered, so not there
        Call(node.staging.write(NAME, 0, DATA_OFFSET, b"x")).result()
    node.threads.release()
    assert [held.shnum for held in staged.result()] == [0]
    abort.result()
    assert [held.shnum for held in again.result()] == [7]


def test_stage_twice_at_once(node: Node) -> None:
    node.threads.hold()
    calls = [Call(node.staging.stage(NAME, [0, 1], 0)), Call(node.staging.stage(NAME, [1, 2], 0))]
    node.threads.release()
    assert [[held.shnum for held in call.result()] for call in calls] == [[0, 1], [0, 1, 2]]
    assert node.count("staged") == 3


def test_stage_while_the_last_share_is_assigned(node: Node) -> None:
    node.full_share(3)
    node.threads.hold()
    call = assigning(node, [3])
    while node.threads.waiting:
        staged = Call(node.staging.stage(NAME, [9], 0))
        node.threads.run_one()
        staged.done or node.threads.run_one()
    node.threads.release()
    assert outcomes(call.result()) == {3: "assigned"}
    assert node.held() == [Held(9, "growing", DATA_OFFSET, DATA_OFFSET)]
    node.write(NAME, 9, DATA_OFFSET, b"x")


@pytest.mark.parametrize("call", ["held", "stage", "write"])
def test_calls_keep_a_staging(node: Node, call: str) -> None:
    node.stage(NAME, [0])
    node.write(NAME, 0, DATA_OFFSET, b"x" * SYNC_INTERVAL)
    for _i in range(4):
        node.wait(node.limits.expiry - 2 * node.limits.sweep_interval)
        {"held": node.held, "stage": lambda: node.stage(NAME, [0]),
         "write": lambda: node.write(NAME, 0, DATA_OFFSET, b"x")}[call]()
        node.kill()  # and what is recorded of it is enough
    assert len(node.held()) == 1
    node.wait(node.limits.expiry + node.limits.sweep_interval)
    assert node.staged_files() == []
    assert node.count("expired") == 1
