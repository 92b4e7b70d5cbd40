"""The blocking file (client_shim/blocking.py): a program without a reactor, a real connection, a real helper."""

from __future__ import annotations

import gc
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import reactor_loop
from allmydata import uri
from loopback import LoopbackHelper
from twisted.internet import reactor
from world import SMALL, expected, plaintext

from client_shim.blocking import UploadFile
from client_shim.errors import (
    BadNodeDirectory,
    DeclaredSize,
    HelperLost,
    HelperRefused,
    HelperUnreachable,
    NoHelperConfigured,
    UploadClosed,
    UploadError,
)
from helper.parameters import Parameters

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(300_000)


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[LoopbackHelper]:
    with LoopbackHelper(tmp_path / "helper") as helper:
        yield helper


def node_directory(directory: Path, furl: str | None) -> Path:
    """A client node's directory as far as we need one."""
    directory.mkdir(exist_ok=True)
    (directory / "tahoe.cfg").write_text(
        "[client]\n" + (f"helper.furl = {furl}\n" if furl else "")
        + "shares.needed = 3\nshares.happy = 7\nshares.total = 10\n"
        + "shares._max_immutable_segment_size_for_testing = 1000\n")
    return directory


@pytest.fixture
def node(tmp_path: Path, helper: LoopbackHelper) -> Path:
    return node_directory(tmp_path / "client", helper.furl)


def assert_is_cap_of(cap: str, data: bytes) -> None:
    key = uri.from_string(cap.encode()).key
    assert expected(data, PARAMETERS, key).cap.decode() == cap


def nothing_is_left(helper: LoopbackHelper) -> bool:
    return not helper.grid.leftovers() and not [
        path for path in (helper.directory / "spool").iterdir() if path.name != "lock"]


def test_write_close_cap(helper: LoopbackHelper, node: Path) -> None:
    with UploadFile(node) as f:
        assert f.writable()
        assert not f.readable()
        for start in range(0, len(DATA), 10_000):
            assert f.write(DATA[start:start + 10_000]) == 10_000
    assert f.closed
    assert_is_cap_of(f.cap, DATA)
    f.close()
    f.abort()
    assert_is_cap_of(f.cap, DATA)
    helper.run(lambda: reactor_loop.turns(lambda: nothing_is_left(helper)))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_may_be_written(helper: LoopbackHelper, node: Path, kind: type) -> None:
    with UploadFile(node, size=2000) as f:
        assert f.write(kind(DATA[:2000])) == 2000
    assert_is_cap_of(f.cap, DATA[:2000])


def test_it_is_a_file_for_the_standard_library(helper: LoopbackHelper, node: Path) -> None:
    f = UploadFile(node)
    with io.BufferedWriter(cast(io.RawIOBase, f), 4096) as buffered:
        shutil.copyfileobj(io.BytesIO(DATA), buffered)
    assert_is_cap_of(f.cap, DATA)


def test_small_files_need_no_helper(tmp_path: Path) -> None:
    node = node_directory(tmp_path / "client", None)
    with UploadFile(node) as f:
        f.write(b"small")
    assert uri.from_string(f.cap.encode()).data == b"small"


def test_leaving_by_an_exception_aborts(helper: LoopbackHelper, node: Path) -> None:
    f = UploadFile(node)

    def use() -> None:
        with f:
            f.write(DATA)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    with pytest.raises(UploadClosed):
        assert f.cap
    helper.run(lambda: reactor_loop.turns(lambda: nothing_is_left(helper)))
    with pytest.raises(ValueError, match="closed"):
        f.write(b"x")


def test_there_is_no_cap_before_close(helper: LoopbackHelper, node: Path) -> None:
    with UploadFile(node) as f:
        f.write(DATA)
        with pytest.raises(UploadClosed):
            assert f.cap


def test_a_file_that_was_merely_forgotten_is_not_completed(helper: LoopbackHelper, node: Path) -> None:
    f = UploadFile(node)
    f.write(DATA)
    del f
    gc.collect()
    assert helper.uploads.counters["finished"] == 0
    (upload,) = helper.uploads._by_name.values()
    assert upload.session.state.value == "open"


def test_close_raises_if_there_is_no_cap(helper: LoopbackHelper, node: Path) -> None:
    f = UploadFile(node, size=len(DATA) + 1)
    f.write(DATA)
    with pytest.raises(DeclaredSize):
        f.close()
    f.close()
    with pytest.raises(UploadClosed):
        assert f.cap
    helper.run(lambda: reactor_loop.turns(lambda: nothing_is_left(helper)))


def test_errors_of_the_helper_arrive(helper: LoopbackHelper, node: Path) -> None:
    for server in helper.grid.servers[:4]:
        server.refuse_from_now_on()
    with pytest.raises(HelperRefused) as caught, UploadFile(node) as f:
        f.write(DATA)
    assert caught.value.code == "too-few-servers"


def test_a_broken_connection_is_a_pause(helper: LoopbackHelper, node: Path) -> None:
    with UploadFile(node) as f:
        f.write(DATA)
        helper.cut()
        f.write(DATA)
        helper.cut()
    assert_is_cap_of(f.cap, 2 * DATA)


def test_without_patience_a_lost_helper_is_noticed_by_the_next_write(helper: LoopbackHelper, node: Path) -> None:
    f = UploadFile(node, patience=0)
    f.write(DATA)
    helper.cut()

    def write_on() -> None:
        for _ in range(100):
            f.write(DATA)

    with pytest.raises(HelperLost):
        write_on()
    f.abort()


def sockets() -> int:
    """How many connections this process has, roughly."""

    async def count() -> int:
        return len(reactor.getReaders())

    return reactor_loop.run(count)


@pytest.mark.parametrize("size", [None, 5000])
def test_a_helper_that_is_not_there(tmp_path: Path, size: int | None) -> None:
    node = node_directory(tmp_path / "client", "pb://" + "a" * 32 + "@tcp:127.0.0.1:1/" + "a" * 32)

    def upload() -> None:
        with UploadFile(node, size) as f:
            f.write(DATA[:5000])

    with pytest.raises(HelperUnreachable):
        upload()


def test_a_node_directory_that_is_none_or_has_no_helper(tmp_path: Path) -> None:
    with pytest.raises(BadNodeDirectory):
        UploadFile(tmp_path / "nowhere")
    node = node_directory(tmp_path / "client", None)
    with pytest.raises(NoHelperConfigured):
        UploadFile(node, size=1000)


def test_when_it_cannot_be_opened_nothing_stays_behind(helper: LoopbackHelper, node: Path) -> None:
    reactor_loop.now(helper.uploads.stop)
    before = sockets()
    for _ in range(3):
        with pytest.raises(HelperRefused):
            UploadFile(node, size=1000, patience=0)
    helper.run(lambda: reactor_loop.turns(lambda: len(reactor.getReaders()) <= before))


def test_it_does_not_block_the_reactor_it_needs(helper: LoopbackHelper, node: Path) -> None:
    f = UploadFile(node)

    async def in_reactor() -> None:
        f.write(DATA)

    with pytest.raises(RuntimeError, match="reactor thread"):
        reactor_loop.run(in_reactor)
    f.abort()


def test_writes_block_while_too_much_is_on_its_way(helper: LoopbackHelper, node: Path) -> None:
    for server in helper.grid.servers:
        server.latency = 0.01
    most = 0

    def look() -> None:
        nonlocal most
        for upload in helper.uploads._by_name.values():
            most = max(most, upload.session.received - upload.session.durable)

    with UploadFile(node) as f:
        for start in range(0, len(DATA), 50_000):
            f.write(DATA[start:start + 50_000])
            reactor_loop.now(look)
    assert_is_cap_of(f.cap, DATA)
    assert most <= SMALL.credit


def test_errors_are_upload_errors() -> None:
    assert issubclass(HelperRefused, UploadError)
