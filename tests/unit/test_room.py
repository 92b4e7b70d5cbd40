"""Room in the spool (helper/room.py): reservations, quotas, waiting, and the way out of a spool that all wait for."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from world import KEY, SMALL, World, begin, expected, outcome, plaintext, write_all

from client_shim.errors import HelperRefused
from client_shim.upload import StreamingUpload
from helper.ciphertext import CiphertextHasher
from helper.errors import QuotaExceeded, SpoolFull
from helper.interfaces import SIZE_MAX
from helper.parameters import Parameters
from helper.room import LOOK_INTERVAL, RoomLimits, SpoolRoom
from helper.session import State
from helper.upload import SMALL_MESSAGE, WAITS_AT_LEAST

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(20_000)


@attrs.define(eq=False)
class Writer:
    """A Waiter that wants to store so many bytes."""

    room: SpoolRoom
    name: str
    wants: int = 0
    stored: int = 0
    ended: SpoolFull | None = None

    def store(self, length: int) -> None:
        self.wants += length
        if not self.try_room():
            self.room.wait(self)

    def try_room(self) -> bool:
        if self.wants and self.room.take(self.name, self.wants):
            self.stored, self.wants = self.stored + self.wants, 0
        return not self.wants

    def end_for_room(self, error: SpoolFull) -> None:
        self.ended = error
        self.room.release(self.name)


@attrs.define
class Disk:
    free: int = SIZE_MAX


class Bench:
    def __init__(self, free: int = SIZE_MAX, **limits: Any) -> None:
        self.clock = Clock()
        self.disk = Disk(free)
        self.room = SpoolRoom(RoomLimits(**limits), lambda: self.disk.free, self.clock)

    def writer(self, name: str, size: int | None = None) -> Writer:
        self.room.admit(name, size)
        return Writer(self.room, name)

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds / LOOK_INTERVAL) + 1):
            self.clock.advance(LOOK_INTERVAL)


# -- who may begin -----------------------------------------------------------------------------------------------


def test_a_declared_size_is_reserved_or_refused_with_numbers() -> None:
    bench = Bench(quota=1000)
    bench.writer("a", 600)
    with pytest.raises(SpoolFull) as caught:
        bench.room.admit("b", 500)
    assert caught.value.fields() == {"available": 400, "wanted": 500}
    bench.room.admit("b", 400)
    with pytest.raises(SpoolFull):
        bench.room.admit("c", None)  # not a byte is left
    bench.room.release("a")
    bench.room.admit("c", None)


def test_more_than_one_upload_may_ever_have_is_refused_as_that() -> None:
    bench = Bench(quota=1000, upload_quota=300)
    with pytest.raises(QuotaExceeded) as caught:
        bench.room.admit("a", 301)
    assert caught.value.fields() == {"limit": 300, "came": 301}
    assert bench.room.upload_quota == 300
    assert Bench(quota=200, upload_quota=300).room.upload_quota == 200


def test_the_disk_says_no_too() -> None:
    bench = Bench(free=1000, free_disk=400)
    bench.writer("a", 500)
    with pytest.raises(SpoolFull) as caught:
        bench.room.admit("b", 101)
    assert caught.value.fields() == {"available": 100, "wanted": 101}


# -- who waits ---------------------------------------------------------------------------------------------------


def test_what_is_reserved_always_has_room_and_others_share_the_rest() -> None:
    bench = Bench(quota=1000)
    declared, other = bench.writer("declared", 600), bench.writer("other")
    other.store(400)
    other.store(1)
    assert (other.stored, other.wants) == (400, 1)
    declared.store(600)
    assert declared.stored == 600
    bench.wait(60)
    assert other.wants == 1
    bench.room.release("declared")
    bench.clock.advance(0)
    assert other.stored == 401


def test_what_an_operator_frees_is_found_within_seconds() -> None:
    bench = Bench(free=100, free_disk=100)
    bench.disk.free = 200
    writer = bench.writer("a")
    writer.store(150)
    bench.wait(60)
    assert writer.wants
    bench.disk.free = 1000
    bench.clock.advance(LOOK_INTERVAL)
    assert writer.stored == 150


def test_an_upload_of_an_earlier_run_has_what_it_had() -> None:
    bench = Bench(quota=1000)
    bench.room.resume("a", 700, 300)
    assert bench.room.used == 700
    bench.room.resume("b", None, 200)
    assert bench.room.used == 900
    bench.room.resume("b", None, 150)  # read through meanwhile
    assert bench.room.used == 850


# -- when all wait -------------------------------------------------------------------------------------------------


def test_when_all_have_waited_long_enough_the_smallest_ends_and_so_on_until_one_can_go_on() -> None:
    bench = Bench(quota=1000, patience=100)
    writers = [bench.writer(name) for name in "abc"]
    for writer, length in zip(writers, (500, 200, 300), strict=True):
        writer.store(length)
    for writer in writers:
        writer.store(450)
    bench.wait(90)
    assert not any(writer.ended for writer in writers)
    bench.wait(20)
    assert [bool(writer.ended) for writer in writers] == [False, True, False]
    assert writers[1].ended is not None
    assert writers[1].ended.code == "spool-full"
    bench.wait(120)
    assert [bool(writer.ended) for writer in writers] == [False, True, True]
    assert writers[0].stored == 950


def test_nobody_ends_while_one_that_waits_gets_on() -> None:
    bench = Bench(quota=1000, patience=100)
    for i in range(10):
        bench.writer(f"ends {i}", 10)
    waiting, other = bench.writer("waiting"), bench.writer("other")
    waiting.store(450)
    other.store(450)
    waiting.store(10)
    other.store(1000)
    for i in range(10):
        bench.wait(80)
        bench.room.release(f"ends {i}")
        bench.wait(LOOK_INTERVAL)
        assert waiting.stored == 460 + 10 * i
        waiting.store(10)
    assert (waiting.ended, other.ended) == (None, None)
    bench.wait(200)
    assert other.ended is not None


def test_an_upload_that_need_not_wait_holds_off_the_end_of_those_that_do_for_no_moment() -> None:
    bench = Bench(quota=1000, patience=100)
    waiting, going = bench.writer("waiting"), bench.writer("going", 500)
    waiting.store(500)
    waiting.store(1)
    for _ in range(3):
        bench.wait(24)
        going.store(1)
    assert waiting.ended is None
    bench.wait(30)
    assert waiting.ended is not None


def test_a_clock_that_jumps_ends_nothing() -> None:
    bench = Bench(quota=10, patience=100)
    writer = bench.writer("a")
    writer.store(11)
    bench.clock.advance(10_000)
    assert writer.ended is None


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 500)), max_size=40), st.integers(100, 2000))
def test_never_more_than_the_quota(stores: list[tuple[str, int]], quota: int) -> None:
    bench = Bench(quota=quota, patience=100)
    writers: dict[str, Writer] = {}
    for name, length in stores:
        if name not in writers:
            try:
                writers[name] = bench.writer(name, 300 if name == "d" else None)
            except (SpoolFull, QuotaExceeded):
                continue
        if writers[name].ended is None and writers[name].stored + writers[name].wants + length <= 300:
            writers[name].store(length)
        assert bench.room.used <= quota
        assert sum(w.stored for w in writers.values() if w.ended is None) <= quota
    bench.wait(2000)
    assert not any(w.wants for w in writers.values() if w.ended is None)


# -- whole uploads ---------------------------------------------------------------------------------------------------


class FullDisk:
    """The system calls of a disk that can be full."""

    def __init__(self) -> None:
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwritev(self, fd: int, views: list[memoryview], position: int) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwritev(fd, views, position)


@pytest.fixture
def small_quota() -> Iterator[World]:
    with World(settings=attrs.evolve(SMALL, spool_quota=30_000, free_disk=0)) as world:
        yield world


def test_open_says_how_much_an_upload_may_have(small_quota: World) -> None:
    opened = small_quota.run(small_quota.link().open(b"u" * 32, PARAMETERS.to_wire()))
    assert opened.number("quota") == 30_000
    with pytest.raises(HelperRefused) as caught:
        small_quota.run(small_quota.link().open(b"v" * 32, attrs.evolve(PARAMETERS, size=30_001).to_wire()))
    assert caught.value.code == "quota-exceeded"
    small_quota.run(small_quota.link().open(b"w" * 32, attrs.evolve(PARAMETERS, size=29_000).to_wire()))
    with pytest.raises(HelperRefused) as caught:
        small_quota.run(small_quota.link().open(b"x" * 32, attrs.evolve(PARAMETERS, size=2000).to_wire()))
    assert caught.value.fields() == {"available": 1000, "wanted": 2000}


def test_an_undeclared_upload_may_reach_its_quota_and_no_more(small_quota: World) -> None:
    with pytest.raises(HelperRefused) as caught:
        small_quota.run(write_all(small_quota.upload(PARAMETERS), plaintext(30_001)))
    assert caught.value.code == "quota-exceeded"
    assert small_quota.run(write_all(small_quota.upload(PARAMETERS, key=b"o" * 16), plaintext(30_000)))


def test_a_second_upload_waits_for_the_first_and_says_why(small_quota: World) -> None:
    world = small_quota
    first = world.upload(PARAMETERS)
    world.run(first.write(DATA))
    second = world.upload(PARAMETERS, key=b"o" * 16)
    writing = outcome(begin(write_all(second, DATA)))
    world.wait(60)
    assert not writing
    waits = [u for u in world.uploads._by_name.values() if u.waits_for]
    assert [u.status().fields["waits-for"] for u in waits] == ["room"]
    assert world.run(first.close()) == expected(DATA, PARAMETERS).cap
    world.wait(60)
    assert writing == [expected(DATA, PARAMETERS, b"o" * 16).cap]


def test_one_that_waits_gives_its_messages_up_if_others_want_the_memory_and_goes_on_later(small_quota: World) -> None:
    world = small_quota
    first = world.upload(PARAMETERS)
    world.run(first.write(DATA))
    told: list[str] = []
    second = world.upload(PARAMETERS, key=b"o" * 16, on_paused=lambda why, _patience: told.append(why.code))
    writing = outcome(begin(write_all(second, DATA)))
    world.wait(WAITS_AT_LEAST - 1)
    (waits,) = [u for u in world.uploads._by_name.values() if u.waits_for]
    world.uploads.memory_wanted()
    assert waits.session.received > waits.session.durable, "it has not waited for long"
    world.wait(2)
    world.uploads.memory_wanted()
    assert waits.session.received == waits.session.durable
    assert waits.waits_for == "room"
    world.wait(100)
    assert told[0] == "memory-short"
    assert waits.session.received - waits.session.durable <= SMALL_MESSAGE
    assert waits.waits_for == "room"
    assert not writing
    assert world.run(first.close()) == expected(DATA, PARAMETERS).cap
    world.wait(60)
    assert writing == [expected(DATA, PARAMETERS, b"o" * 16).cap]
    assert world.uploads.counters["messages_given_up"] == 1


def test_one_that_ends_where_its_messages_were_given_up_waits_for_nothing(small_quota: World) -> None:
    world, upload_id = small_quota, b"u" * 32
    world.run(world.upload(PARAMETERS).write(DATA))
    world.wait(1)
    link = world.link()
    world.run(link.open(upload_id, PARAMETERS.to_wire()))
    world.run(link.put_ciphertext(upload_id, 0, DATA[:10_000]))
    outcome(begin(link.put_ciphertext(upload_id, 10_000, DATA[10_000:15_000])))
    world.wait(WAITS_AT_LEAST + 1)
    world.uploads.memory_wanted()
    (waits,) = [u for u in world.uploads._by_name.values() if u.waits_for]
    hasher = CiphertextHasher(PARAMETERS.k, PARAMETERS.max_segment_size)
    hasher.update(DATA[:10_000])
    hashes = hasher.hashes()
    world.run(link.finish(upload_id, 10_000, bytes(16), hashes.crypttext_hash, hashes.crypttext_root_hash))
    assert waits.session.state is State.FINISHED
    assert waits.waits_for == ""


def test_two_that_wait_for_each_other_do_not_wait_for_ever(small_quota: World) -> None:
    world = small_quota
    uploads = [world.upload(PARAMETERS, key=bytes([i]) * 16) for i in range(2)]
    for i, upload in enumerate(uploads):
        world.run(upload.write(plaintext(20_000, i)[:14_000 + i]))
    world.wait(1)
    writing = [outcome(begin(write_all(upload, plaintext(20_000, i)[14_000 + i:]))) for i, upload in enumerate(uploads)]
    world.wait(SMALL.room_patience - 60)
    assert not any(writing)
    world.wait(SMALL.room_patience + 60)
    caps = [results[0] for results in writing if isinstance(results[0], bytes)]
    refusals = [results[0].value.code for results in writing if not isinstance(results[0], bytes)]
    assert refusals == ["spool-full"]
    assert caps[0] in [expected(plaintext(20_000, i), PARAMETERS, bytes([i]) * 16).cap for i in range(2)]


def test_a_full_disk_is_a_pause_and_nothing_is_lost() -> None:
    disk = FullDisk()
    with World(settings=attrs.evolve(SMALL, free_disk=0), system=disk) as world:
        upload = world.upload(PARAMETERS)
        world.run(upload.write(DATA[:5000]))
        disk.full = True
        writing = outcome(begin(write_all(upload, DATA[5000:])))
        world.wait(3600)
        assert not writing
        assert world.only_upload().waits_for == "disk: ENOSPC (No space left on device)"
        assert world.only_upload().status().fields["paused"] == 1
        disk.full = False
        world.wait(10)
        assert writing == [expected(DATA, PARAMETERS).cap]
        assert world.only_upload().waits_for == ""


def test_an_upload_that_is_forgotten_leaves_its_room(small_quota: World) -> None:
    world = small_quota
    world.grid.servers[0].hang()  # so that the spool is still needed when the upload is forgotten
    assert world.put(DATA, PARAMETERS)
    assert world.uploads._room.used == len(DATA)
    world.only_upload().forget()
    assert world.uploads._room.used == 0


def test_a_restart_forgets_no_room(small_quota: World) -> None:
    world = small_quota
    upload: StreamingUpload = world.upload(attrs.evolve(PARAMETERS, size=20_000))
    world.run(upload.write(DATA[:5000]))
    world.wait(1)
    world.restart()
    with pytest.raises(HelperRefused) as caught:
        world.run(world.link().open(b"x" * 32, attrs.evolve(PARAMETERS, size=20_000).to_wire()))
    assert caught.value.fields() == {"available": 10_000, "wanted": 20_000}
    assert world.run(write_all(upload, DATA[5000:])) == expected(DATA, PARAMETERS, KEY).cap
    world.wait(10)
    world.run(world.link().open(b"x" * 32, attrs.evolve(PARAMETERS, size=20_000).to_wire()))
