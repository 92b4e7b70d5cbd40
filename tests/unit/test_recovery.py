"""How a helper that starts finds uploads of the run before (helper/recovery.py): in the background, or when asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Fault
from world import KEY, SI, WireLink, World, begin, expected, outcome, plaintext

from client_shim.cipher import Encryptor
from client_shim.errors import HelperRefused
from helper.ciphertext import CiphertextHasher
from helper.parameters import Parameters
from helper.recovery import Recovery
from helper.upload import Upload, hashed_name

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(4000)
CIPHERTEXT = Encryptor(KEY).encrypt(DATA)
IDS = [bytes([i]) * 32 for i in range(4)]


@pytest.fixture
def world() -> Iterator[World]:
    with World(11, staging=11) as world:
        yield world


def open_all(world: World, length: int = 2000) -> None:
    """Uploads of all IDS, one a second, with so many bytes each."""
    for upload_id in IDS:
        world.run(world.link().open(upload_id, PARAMETERS.to_wire()))
        world.run(world.link().put_ciphertext(upload_id, 0, CIPHERTEXT[:length]))
        world.wait(1)


def restart_with_work_held(world: World) -> Recovery:
    """The helper starts again; every spool file that is to be read through waits in `World.do_held`."""
    world.kill()
    world.hold_work()
    world.start()
    return world.uploads._recovery


def under_way(recovery: Recovery) -> list[str]:
    return [upload.name for upload in recovery._under_way]


def waiting(recovery: Recovery) -> list[str]:
    return [upload.name for upload in recovery.waiting]


def upload_of(world: World, upload_id: bytes) -> Upload:
    return world.uploads._by_name[hashed_name(upload_id)]


def file_of(world: World, upload_id: bytes) -> Path:
    return world.directory / "spool" / hashed_name(upload_id)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def finish_arguments() -> tuple[int, bytes, bytes, bytes]:
    hasher = CiphertextHasher(PARAMETERS.k, PARAMETERS.max_segment_size)
    hasher.update(CIPHERTEXT)
    hashes = hasher.hashes()
    return len(CIPHERTEXT), SI, hashes.crypttext_hash, hashes.crypttext_root_hash


def reason(world: World, upload_id: bytes) -> tuple[object, object]:
    fields = world.run(world.link().status(upload_id)).fields
    return fields["state"], fields.get("reason")


NAMES = [hashed_name(upload_id) for upload_id in IDS]

# -- when -----------------------------------------------------------------------------------------------------------


def test_uploads_are_read_through_one_after_the_other_though_nobody_asks(world: World) -> None:
    open_all(world)
    recovery = restart_with_work_held(world)
    assert world.uploads.counters["resumed"] == 4
    left = NAMES.copy()
    while left:
        assert waiting(recovery) == left
        assert under_way(recovery) == left[:1]
        before = len(left)
        while len(left) == before:  # what is resumed encodes in threads, too
            world.do_held(0)
            left = waiting(recovery)
    assert not recovery._under_way
    world.release_work()
    world.wait(60)
    for upload_id in IDS:
        assert upload_of(world, upload_id).session.durable == 2000


def test_one_that_is_asked_for_does_not_wait_for_its_turn(world: World) -> None:
    open_all(world)
    recovery = restart_with_work_held(world)
    asked = outcome(begin(world.link().status(IDS[2])))
    world.turn()
    assert sorted(under_way(recovery)) == sorted([NAMES[0], NAMES[2]])
    while not asked:  # it is read, and recorded
        world.do_held(-1)
    assert asked[0].number("durable") == 2000
    assert waiting(recovery) == [NAMES[0], NAMES[1], NAMES[3]]
    assert under_way(recovery) == [NAMES[0]]  # it did not make others begin
    world.release_work()
    world.wait(60)
    assert not recovery.waiting


def test_one_that_is_asked_for_twice_or_in_its_turn_is_read_through_once(world: World) -> None:
    open_all(world)
    recovery = restart_with_work_held(world)
    asked = [outcome(begin(world.link().status(upload_id))) for upload_id in (IDS[0], IDS[0], IDS[1], IDS[1])]
    world.turn()
    assert sorted(under_way(recovery)) == sorted(NAMES[:2])
    assert world._held_work is not None
    assert len(world._held_work) == 2
    world.release_work()
    world.turn()
    assert [results[0].number("durable") for results in asked] == [2000] * 4
    world.wait(60)
    assert not recovery.waiting


def test_calls_that_come_meanwhile_are_answered_in_their_order(world: World) -> None:
    open_all(world)
    restart_with_work_held(world)
    link = world.link()
    calls = [link.open(IDS[3], PARAMETERS.to_wire()), link.put_ciphertext(IDS[3], 2000, CIPHERTEXT[2000:2500]),
             link.put_ciphertext(IDS[3], 2500, CIPHERTEXT[2500:]), link.finish(IDS[3], *finish_arguments())]
    results = [outcome(begin(call)) for call in calls]
    world.wait(5)
    assert results == [[], [], [], []]
    world.release_work()
    world.wait(10)
    assert results[0][0].number("durable") >= 2000  # as it is when it is answered
    assert [r[0].number("durable") for r in results[1:3]] == [2500, 4000]
    answered = [method for method, _wire in link.answers]
    answered.remove("open")  # when it is recorded
    assert answered == ["put_ciphertext", "put_ciphertext", "finish"]
    assert results[3][0].fields["ueb"] == expected(DATA, PARAMETERS).ueb


def test_what_waits_to_be_read_through_does_not_grow_older(world: World) -> None:
    open_all(world)
    recovery = restart_with_work_held(world)
    world.wait(2 * world.settings.idle_expiry)
    assert waiting(recovery) == NAMES
    world.release_work()
    world.wait(60)
    assert [reason(world, upload_id) for upload_id in IDS] == [(b"open", None)] * 4


# -- the helper stops -------------------------------------------------------------------------------------------------


def test_a_helper_that_stops_while_it_reads_resumes_nothing_and_answers_who_waits(world: World) -> None:
    open_all(world)
    restart_with_work_held(world)
    calls: list[WireLink] = [world.link() for _ in range(3)]
    asked = [outcome(begin(link.status(IDS[i]))) for i, link in enumerate(calls)]
    world.turn()
    pushed = [len(server.asked) for server in world.grid.servers]
    world.uploads.stop()
    world.turn()
    assert [results[0].value.code for results in asked] == ["helper-stopping"] * 3
    world.release_work()
    world.wait(60)
    assert [len(server.asked) for server in world.grid.servers] == pushed
    assert all(upload._working is None for upload in world.uploads._by_name.values())
    world.stop()
    world.start()
    world.wait(60)
    for upload_id in IDS:
        assert world.run(world.link().status(upload_id)).number("durable") == 2000


def test_what_is_found_damaged_while_the_helper_stops_is_found_again(world: World) -> None:
    open_all(world)
    world.kill()
    flip(file_of(world, IDS[0]))
    world.hold_work()
    world.start()
    world.uploads.stop()
    world.release_work()
    world.wait(1)
    assert {record.state for record in world.records()} == {"open"}
    world.stop()
    world.start()
    assert reason(world, IDS[0]) == (b"failed", b"spool-failed")


# -- spool files ------------------------------------------------------------------------------------------------------


def test_only_the_files_that_no_upload_needs_are_removed(world: World) -> None:
    open_all(world)
    world.run(world.link().abort(IDS[1]))
    world.kill()
    needed = {path.name: path.read_bytes() for path in world.spool_files()}
    assert set(needed) == {NAMES[0], NAMES[2], NAMES[3]}
    for stranger in ("a" * 52, "not a name", NAMES[1]):
        (world.directory / "spool" / stranger).write_bytes(needed[NAMES[0]])
    world.start()
    assert {path.name: path.read_bytes() for path in world.spool_files()} == needed
    world.wait(60)
    assert world.spool.used == sum(path.stat().st_size for path in world.spool_files())


def test_one_damaged_spool_ends_its_upload_and_no_other(world: World) -> None:
    open_all(world)
    world.kill()
    flip(file_of(world, IDS[1]))
    world.start()
    world.wait(60)
    assert [reason(world, upload_id) for upload_id in IDS] == [
        (b"open", None), (b"failed", b"spool-failed"), (b"open", None), (b"open", None)]
    assert sorted(record.state for record in world.records()) == ["failed", "open", "open", "open"]
    with pytest.raises(HelperRefused) as caught:
        world.run(world.link().put_ciphertext(IDS[1], 2000, CIPHERTEXT[2000:]))
    assert caught.value.code == "spool-failed"
    world.restart()
    assert not file_of(world, IDS[1]).exists()
    assert reason(world, IDS[1]) == (b"failed", b"spool-failed")


@pytest.mark.parametrize("missing", [False, True])
def test_publishing_without_its_ciphertext_is_still_publishing_and_says_why_it_waits(
        world: World, missing: bool) -> None:
    open_all(world, len(CIPHERTEXT))
    for server in world.grid.servers:
        server.plan("publish", 1, Fault.HANG)
    outcome(begin(world.link().finish(IDS[0], *finish_arguments())))
    world.wait(5)
    world.kill()
    if missing:
        file_of(world, IDS[0]).unlink()
    else:
        flip(file_of(world, IDS[0]))
    world.start()
    for _ in range(2):
        assert reason(world, IDS[0]) == (b"publishing", b"spool-failed")
        for code, call in (("spool-failed", world.link().finish(IDS[0], *finish_arguments())),
                           ("already-publishing", world.link().abort(IDS[0]))):
            with pytest.raises(HelperRefused) as caught:
                world.run(call)
            assert caught.value.code == code
        world.restart()
    assert file_of(world, IDS[0]).exists() is not missing  # somebody may repair it


def test_a_result_outlives_its_ciphertext(world: World) -> None:
    open_all(world, len(CIPHERTEXT))
    for server in world.grid.servers[:2]:  # one of them has a share, which is not closed then
        server.hang()
    assert world.run(world.link().finish(IDS[0], *finish_arguments())).fields["state"] == b"finished"
    world.kill()
    flip(file_of(world, IDS[0]))
    world.start()
    for _ in range(2):
        answer = world.run(world.link().finish(IDS[0], *finish_arguments()))
        assert answer.fields == {"state": b"finished", "ueb": expected(DATA, PARAMETERS).ueb}
        world.restart()
