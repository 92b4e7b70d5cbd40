"""What the log says of pauses (helper/pauses.py), and of shares that could not be placed: for whole uploads."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, Self, cast

import attrs
import pytest
from fakes import Fault
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from world import KEY, SI, SMALL, World, begin, outcome, plaintext, write_all

from client_shim.cipher import Encryptor
from helper.parameters import Parameters
from helper.pauses import SERVERS_PATIENCE, Pauses
from helper.room import LOOK_INTERVAL
from helper.upload import hashed_name

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(20_000)
CIPHERTEXT = Encryptor(KEY).encrypt(DATA)
ID = b"u" * 32
SHORT = hashed_name(ID)[:8]


class Log:
    """A context manager: the lines of the log that hold one of some words."""

    def __init__(self, *words: str) -> None:
        self._words = words
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        globalLogPublisher.addObserver(cast(ILogObserver, self._observe))
        return self

    def __exit__(self, *_exception: object) -> None:
        globalLogPublisher.removeObserver(cast(ILogObserver, self._observe))

    def _observe(self, event: LogEvent) -> None:
        line = formatEvent(event)
        if any(word in line for word in self._words):
            self.lines.append(line)


@pytest.fixture
def log() -> Iterator[Log]:
    with Log("waits for", "goes on") as log:
        yield log


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.pauses = Pauses("abcdefgh", self.clock, lambda: "rain")


def test_room_is_told_at_once_and_servers_after_a_while(log: Log) -> None:
    bench = Bench()
    bench.pauses.waits("room")
    assert log.lines == ["upload abcdefgh waits for rain"]
    bench = Bench()
    bench.pauses.waits("servers")
    bench.clock.advance(SERVERS_PATIENCE - 1)
    assert len(log.lines) == 1
    bench.clock.advance(1)
    assert len(log.lines) == 2


def test_one_line_a_pause_and_one_when_it_goes_on(log: Log) -> None:
    bench = Bench()
    for _ in range(5):
        bench.pauses.waits("room")
        bench.clock.advance(10)
    bench.pauses.got_on("room")  # something, not all
    bench.pauses.waits("room")
    assert len(log.lines) == 1
    bench.pauses.got_on("")
    assert log.lines[1:] == ["upload abcdefgh goes on after 50 s"]
    bench.pauses.got_on("")
    assert len(log.lines) == 2


def test_who_waits_for_servers_and_gets_on_is_not_paused(log: Log) -> None:
    bench = Bench()
    for _ in range(50):
        bench.pauses.waits("servers")
        bench.clock.advance(SERVERS_PATIENCE - 1)
        bench.pauses.got_on("servers")
    assert not log.lines
    bench.clock.advance(SERVERS_PATIENCE)
    assert log.lines == ["upload abcdefgh waits for rain"]
    bench.pauses.got_on("servers")
    assert log.lines[1:] == [f"upload abcdefgh goes on after {SERVERS_PATIENCE:.0f} s"]


def test_for_servers_and_then_for_room(log: Log) -> None:
    bench = Bench()
    bench.pauses.waits("servers")
    bench.pauses.waits("room")
    assert len(log.lines) == 1
    bench.clock.advance(60)
    assert len(log.lines) == 1
    assert not bench.clock.getDelayedCalls()


def test_an_upload_that_ends_goes_nowhere(log: Log) -> None:
    bench = Bench()
    bench.pauses.waits("servers")
    bench.pauses.end()
    bench.clock.advance(60)
    assert not log.lines
    bench.pauses.waits("room")
    bench.pauses.end()
    bench.pauses.got_on("")
    assert len(log.lines) == 1


# -- whole uploads -------------------------------------------------------------------------------------------


class FullDisk:
    full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwritev(self, fd: int, views: list[memoryview], position: int) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwritev(fd, views, position)


def test_a_full_disk(log: Log) -> None:
    disk = FullDisk()
    with World(settings=attrs.evolve(SMALL, free_disk=0), system=disk) as world:
        upload = world.upload(PARAMETERS)
        world.run(upload.write(DATA[:5000]))
        disk.full = True
        writing = outcome(begin(write_all(upload, DATA[5000:])))
        world.wait(3600)
        short = world.only_upload().short
        (line,) = log.lines
        assert line.startswith(f"upload {short} waits for the spool's disk, ENOSPC (No space left on device): ")
        disk.full = False
        world.wait(2 * LOOK_INTERVAL)
        assert writing
        assert log.lines[1].startswith(f"upload {short} goes on after 360")
        assert len(log.lines) == 2


def test_room_that_another_upload_has(log: Log) -> None:
    with World(settings=attrs.evolve(SMALL, spool_quota=30_000, free_disk=0)) as world:
        first = world.upload(PARAMETERS)
        world.run(first.write(DATA))
        second = world.upload(PARAMETERS, key=b"o" * 16)
        writing = outcome(begin(write_all(second, DATA)))
        world.wait(60)
        (line,) = log.lines
        assert " waits for room in the spool: " in line
        assert " bytes are used or reserved, " in line
        world.run(first.close())
        world.wait(60)
        assert writing
        assert [" goes on after " in line for line in log.lines] == [False, True]


def test_servers_that_take_nothing(log: Log) -> None:
    with World(staging=10) as world:
        link = world.link()
        world.run(link.open(ID, PARAMETERS.to_wire()))
        for offset in range(0, 3000, 1000):
            world.run(link.put_ciphertext(ID, offset, CIPHERTEXT[offset:offset + 1000]))
            world.wait(1)
        for server in world.grid.servers[:4]:
            server.hang()
        world.run(link.put_ciphertext(ID, 3000, CIPHERTEXT[3000:10_000]))
        answers = [outcome(begin(link.put_ciphertext(ID, offset, CIPHERTEXT[offset:offset + 1000])))
                   for offset in range(10_000, 20_000, 1000)]
        world.wait(2 * SERVERS_PATIENCE)
        assert not answers[-1]
        durable = world.only_upload().session.durable
        (line,) = log.lines
        assert line == (f"upload {SHORT} waits for storage servers: {durable - 2004} of {durable} bytes are not on "
                        "enough of them")
        for server in world.grid.servers[:4]:
            server.disconnect()
            server.reconnect()
        world.wait(100)
        assert answers[-1]
        assert log.lines[1].startswith(f"upload {SHORT} goes on after ")
        assert len(log.lines) == 2


def test_uploads_that_nothing_holds_up_are_not_mentioned(log: Log) -> None:
    with World() as world:
        world.put(DATA, PARAMETERS)
    assert not log.lines


def test_a_helper_that_stops_leaves_nothing_to_be_told(log: Log) -> None:
    with World(settings=attrs.evolve(SMALL, spool_quota=3000, free_disk=0)) as world:
        outcome(begin(write_all(world.upload(PARAMETERS), DATA)))
        world.wait(1)
        told = len(log.lines)
        world.stop()
        world.wait(60)
        assert len(log.lines) == told


@pytest.mark.parametrize("lacking", [0, 2])
def test_what_could_not_be_placed(lacking: int) -> None:
    with Log("could not be placed", "every share is placed") as log, World() as world:
        upload = world.upload(PARAMETERS)
        world.run(upload.write(DATA))
        world.wait(10)
        for server in world.grid.servers:
            server.refuse_from_now_on()
        for server in world.grid.in_order(SI)[:lacking]:
            server.plan("publish", 1, Fault.REFUSE)
        world.run(upload.close())
        world.wait(60)
        (line,) = log.lines
        assert line.startswith(f"upload {world.only_upload().short}: ")
        if lacking:
            assert line.endswith("shares [0, 1] could not be placed; a repair will make them")
        else:
            assert line.endswith("every share is placed")
