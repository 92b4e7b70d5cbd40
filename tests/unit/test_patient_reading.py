"""Ciphertext that cannot be read while an upload goes on (helper/patient_reading.py): it is tried again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from world import KEY, SI, World, begin, expected, outcome, plaintext

from client_shim.cipher import Encryptor
from client_shim.errors import HelperRefused
from helper.ciphertext import CiphertextHasher
from helper.errors import SpoolFailed
from helper.parameters import Parameters
from helper.patient_reading import RETRY_FIRST, RETRY_MOST, UNREADABLE_TRIES, PatientReading
from helper.session import State
from helper.spool import SpoolDamaged
from helper.spool_file import SpoolUnreadable

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(20_000)
CIPHERTEXT = Encryptor(KEY).encrypt(DATA)
ID, OTHER_ID = b"u" * 32, b"o" * 32
ALL_TRIES = sum(RETRY_FIRST * 2**i for i in range(UNREADABLE_TRIES - 1))


def finish_arguments() -> tuple[int, bytes, bytes, bytes]:
    hasher = CiphertextHasher(PARAMETERS.k, PARAMETERS.max_segment_size)
    hasher.update(CIPHERTEXT)
    return len(CIPHERTEXT), SI, hasher.hashes().crypttext_hash, hasher.hashes().crypttext_root_hash


class Disk:
    """The system calls; after `good` more calls reading fails with `error` while that is set."""

    error: OSError | None = None
    good = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pread(self, fd: int, length: int, position: int) -> bytes:
        if self.error is not None:
            self.good -= 1
            if self.good < 0:
                raise self.error
        return os.pread(fd, length, position)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def world(disk: Disk) -> Iterator[World]:
    with World(10, staging=10, system=disk) as world:
        yield world


def open_and_send(world: World, upload_id: bytes, start: int = 0, end: int = len(CIPHERTEXT)) -> None:
    world.run(world.link().open(upload_id, PARAMETERS.to_wire()))
    for offset in range(start, end, 1000):
        world.run(world.link().put_ciphertext(upload_id, offset, CIPHERTEXT[offset:offset + 1000]))


def kill_while_publishing(world: World) -> None:
    """It is decided, and no share is closed."""
    open_and_send(world, ID)
    for server in world.grid.servers:
        server.latency = 1.0
    outcome(begin(world.link().finish(ID, *finish_arguments())))
    while world.only_upload().session.state is not State.PUBLISHING:
        world.wait(0.1)
    world.kill()
    for server in world.grid.servers:
        server.latency = 0.0


def fail_once_resumed(world: World, disk: Disk, number: int) -> None:
    """The helper starts again, and reading fails from when the spool has been read through."""
    disk.error, disk.good = OSError(number, "x", "/secret"), 1  # a file as small as this is read in one piece
    world.start()
    world.turn()
    assert not world.uploads.unread


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_an_upload_that_is_open_outlives_a_disk_that_does_not_read_for_a_while(
        world: World, disk: Disk, number: int) -> None:
    disk.error = OSError(number, "x", "/secret")
    world.run(world.link().open(ID, PARAMETERS.to_wire()))
    world.run(world.link().put_ciphertext(ID, 0, CIPHERTEXT[:1000]))
    repeated = outcome(begin(world.link().put_ciphertext(ID, 0, CIPHERTEXT[:1000])))
    world.wait(ALL_TRIES - 10)
    fields = world.run(world.link().status(ID)).fields
    assert (fields["state"], fields["paused"]) == (b"open", 1)
    assert fields["waits-for"] == f"disk: {errno.errorcode[number]} ({os.strerror(number)})".encode()
    assert not repeated
    disk.error = None
    world.wait(RETRY_MOST)
    assert repeated[0].number("durable") == 1000
    assert world.run(world.link().status(ID)).fields["waits-for"] == b""
    for offset in range(1000, len(CIPHERTEXT), 1000):
        world.run(world.link().put_ciphertext(ID, offset, CIPHERTEXT[offset:offset + 1000]))
    assert world.run(world.link().finish(ID, *finish_arguments())).fields["state"] == b"finished"
    world.wait(10)
    world.check_shares(expected(DATA, PARAMETERS))


def test_publishing_goes_on_when_the_disk_reads_again(world: World, disk: Disk) -> None:
    kill_while_publishing(world)
    fail_once_resumed(world, disk, errno.EIO)
    asked = outcome(begin(world.link().finish(ID, *finish_arguments())))
    world.wait(ALL_TRIES - 1)
    assert not asked
    disk.error = None
    world.wait(RETRY_MOST)
    assert asked[0].fields["state"] == b"finished"
    world.wait(10)
    world.check_shares(expected(DATA, PARAMETERS))


def test_publishing_that_can_never_be_read_says_so_holds_up_no_other_and_may_be_repaired(
        world: World, disk: Disk) -> None:
    kill_while_publishing(world)
    fail_once_resumed(world, disk, errno.EIO)
    asked = outcome(begin(world.link().finish(ID, *finish_arguments())))
    world.wait(ALL_TRIES + 1)
    assert (asked[0].value.code, asked[0].value.fields()["reason"]) == ("spool-failed", "EIO (Input/output error)")
    for _ in range(2):
        with pytest.raises(HelperRefused) as caught:
            world.run(world.link().finish(ID, *finish_arguments()))
        assert caught.value.code == "spool-failed"
    status = world.run(world.link().status(ID)).fields
    assert (status["state"], status["reason"]) == (b"publishing", b"spool-failed")
    assert [e["log_failure"].type for e in world.errors] == [SpoolUnreadable]
    world.errors.clear()
    disk.error = None
    world.run(world.link().open(OTHER_ID, PARAMETERS.to_wire()))
    world.run(world.link().assign(OTHER_ID, SI))  # the storage index is not taken by one that does not get on
    world.run(world.link().abort(OTHER_ID))
    world.restart()
    assert world.run(world.link().finish(ID, *finish_arguments())).fields["state"] == b"finished"


def test_what_ends_meanwhile_leaves_nothing(world: World, disk: Disk) -> None:
    disk.error = OSError(errno.EMFILE, "x", "/secret")
    open_and_send(world, ID, 0, 4000)
    world.wait(20)
    world.run(world.link().abort(ID))
    world.turn()
    world.check_nothing_left()
    assert world.uploads.room.used == world.spool.used == 0


def test_a_helper_can_stop_meanwhile(world: World, disk: Disk) -> None:
    disk.error = OSError(errno.EMFILE, "x", "/secret")
    open_and_send(world, ID, 0, 4000)
    world.wait(20)
    world.stop()
    disk.error = None
    world.start()
    open_and_send(world, ID, 4000)
    assert world.run(world.link().finish(ID, *finish_arguments())).fields["state"] == b"finished"


# -- by itself ----------------------------------------------------------------------------------------------------


class Reading:
    """A function that fails as it is told, and what becomes of reading with it."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.errors = list(errors)
        self.patient = PatientReading(maybeDeferred, self.clock, lambda: self.said.append(self.patient.waits_for))
        self.result = outcome(self.patient(self._read, 7))

    def _read(self, number: int) -> int:
        error = self.errors.pop(0)
        if error is not None:
            raise error
        return number


def test_what_can_be_read_is_read_at_once() -> None:
    assert Reading(None).result == [7]


def test_it_is_tried_again_less_and_less_often_and_says_why() -> None:
    reading = Reading(*[SpoolFailed("busy")] * 8, OSError(errno.ENOMEM, "x", "/secret"), None)
    delays = []
    while not reading.result:
        (call,) = reading.clock.getDelayedCalls()
        delays.append(call.getTime() - reading.clock.seconds())
        reading.clock.advance(delays[-1])
    assert delays == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert reading.result == [7]
    assert reading.said[-3:] == ["", "ENOMEM (Cannot allocate memory)", ""]
    assert set(reading.said[:-3]) == {"busy", ""}


@pytest.mark.parametrize("error", [SpoolDamaged("short"), ValueError("a bug")])
def test_damage_and_bugs_are_not_tried_again(error: Exception) -> None:
    assert Reading(error).result[0].value is error


def test_who_stops_does_not_wait() -> None:
    reading = Reading(SpoolFailed("busy"), None)
    reading.patient.stop()
    assert reading.result[0].value.reason == "busy"
    assert not reading.clock.getDelayedCalls()
    d: Deferred[Any] = reading.patient(reading._read, 8)
    assert outcome(d) == [8]
