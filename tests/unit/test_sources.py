"""client_shim/sources.py: what `put` reads is what was written, as soon as it is there, and together if it is there."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from reactor_loop import run, turns
from twisted.internet.defer import Deferred

from client_shim.errors import CommandFailed, UploadClosed
from client_shim.sources import PIPE_SIZE, READ_SIZE, CommandSource, FileSource, PipeSource, Source, source_of


class Pipe:
    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        self.source = PipeSource(self.out)

    def write(self, data: bytes) -> None:
        assert os.write(self.into, data) == len(data)

    def end(self) -> None:
        if self.into >= 0:
            os.close(self.into)
            self.into = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.end()
    os.close(pipe.out)


async def some_turns() -> None:
    seen = count(1)
    await turns(lambda: next(seen) > 3)


@contextmanager
def command(code: str) -> Iterator[CommandSource]:
    source = CommandSource([sys.executable, "-c", code])
    try:
        yield source
    finally:
        source.close()
        source._process.wait()
        source._process.stdout.close()  # type: ignore[union-attr]


async def read_all(source: Source, ahead: bool = True) -> list[bytes]:
    pieces = []
    while data := await source.read():
        pieces.append(bytes(data))
        if ahead:
            source.read_ahead()
    return pieces


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("largest", [100, 100_000, 5_000_000])
def test_all_bytes_in_order(pipe: Pipe, largest: int, ahead: bool) -> None:
    source = random.Random(largest)
    sent = [source.randbytes(source.randrange(largest)) for _ in range(20)]

    def write() -> None:
        for piece in sent:
            view = memoryview(piece)
            while view:
                view = view[os.write(pipe.into, view):]
        pipe.end()

    thread = threading.Thread(target=write)
    thread.start()
    pieces = run(lambda: read_all(pipe.source, ahead))
    thread.join()
    assert b"".join(pieces) == b"".join(sent)
    assert max(map(len, pieces)) <= READ_SIZE


def test_what_is_there_is_read_without_asking_the_reactor(pipe: Pipe) -> None:
    async def first(length: int) -> bytes:
        reading = pipe.source.read()
        with pytest.raises(StopIteration) as done:
            reading.send(None)
        data: memoryview = done.value.value
        assert len(data) == length
        return bytes(data)

    async def check() -> None:
        pipe.write(b"abc")
        assert await first(3) == b"abc"
        pipe.write(b"de")
        pipe.source.read_ahead()
        pipe.write(b"f")
        pipe.end()
        assert await first(3) == b"def"
        assert await first(0) == b""

    run(check)


def test_a_pipe_that_was_filled_again_is_read_into_the_same_piece(pipe: Pipe) -> None:
    async def check() -> None:
        pipe.write(b"0")
        assert await pipe.source.read() == b"0"  # the pipe is as wide as it may be now
        pipe.write(b"1" * PIPE_SIZE)
        pipe.source.read_ahead()
        pipe.write(b"2" * PIPE_SIZE)
        assert bytes(await pipe.source.read()) == b"1" * PIPE_SIZE + b"2" * (READ_SIZE - PIPE_SIZE)

    run(check)


def test_what_was_read_stays_while_more_is_written(pipe: Pipe) -> None:
    async def check() -> None:
        pipe.write(b"first")
        data = await pipe.source.read()
        pipe.write(b"other")
        await some_turns()
        assert data == b"first"
        pipe.source.read_ahead()
        assert await pipe.source.read() == b"other"

    run(check)


def test_a_slow_writer_is_not_waited_for(pipe: Pipe) -> None:
    async def check() -> None:
        reading: Deferred[memoryview] = Deferred.fromCoroutine(pipe.source.read())
        await some_turns()
        assert not reading.called
        pipe.write(b"x")
        assert await reading == b"x"

    run(check)


def test_close_ends_a_read(pipe: Pipe) -> None:
    async def check() -> None:
        reading: Deferred[memoryview] = Deferred.fromCoroutine(pipe.source.read())
        pipe.source.close()
        with pytest.raises(UploadClosed):
            await reading
        pipe.source.close()

    run(check)


def test_an_error_comes_after_what_was_read_before_it(tmp_path: Path) -> None:
    """A directory is readable, and cannot be read."""
    pipe = Pipe()

    async def check() -> None:
        pipe.write(b"good")
        pipe.source.read_ahead()
        directory = os.open(tmp_path, os.O_RDONLY)
        os.dup2(directory, pipe.out)
        os.close(directory)
        pipe.source.read_ahead()
        assert await pipe.source.read() == b"good"
        for _ in range(2):
            with pytest.raises(IsADirectoryError):
                await pipe.source.read()

    run(check)
    pipe.end()
    os.close(pipe.out)


def test_a_file(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(2 * READ_SIZE + 5)
    path = tmp_path / "file"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    source = source_of(fd)
    assert isinstance(source, FileSource)
    assert run(lambda: read_all(source)) == [content[:READ_SIZE], content[READ_SIZE:-5], content[-5:]]
    os.close(fd)


def test_a_command() -> None:
    with command("print('out', end='')") as source:
        assert run(lambda: read_all(source)) == [b"out"]


def test_a_command_that_fails_has_no_end() -> None:
    async def check(source: CommandSource) -> None:
        assert await source.read() == b"out"
        with pytest.raises(CommandFailed):
            await source.read()

    with command("print('out', end='', flush=True); raise SystemExit(3)") as source:
        run(lambda: check(source))


def test_nothing_at_all() -> None:
    """As `put - < /dev/null` reads it."""
    fd = os.open(os.devnull, os.O_RDONLY)
    assert run(lambda: read_all(source_of(fd))) == []
    os.close(fd)
