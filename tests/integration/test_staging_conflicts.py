"""Others want the same storage index, or the same space: uploads to staging servers with company."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import reactor_loop
from foolscap.api import Referenceable, Tub
from grid_tools import (
    SEGMENT,
    MiB,
    SharedGrid,
    assert_healthy,
    assert_stored,
    check,
    download,
    further_helper,
    helper_furl,
    running_grid,
    spool_of,
    wait_for,
)
from single_calls import Caller, File, new_file, refusal_of
from staging_tools import STAGING, staged_to, statistic, wait_published

from client_shim.helper_edge import make_tub
from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid
from client_shim.local_node import NodeProcess
from helper.staging_interfaces import PLUGIN_NAME

GiB = 1024 * MiB
SERVERS = STAGING.storage_nodes


@pytest.fixture(scope="module")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    return running_grid(pytestconfig, tmp_path_factory, "staging-grid", STAGING)


def assert_good(shared: SharedGrid, file: File) -> None:
    shares = wait_published(shared, file)
    assert {share.server for share in shares} == set(range(SERVERS))
    assert_stored(shared, file.cap, file.plaintext)


# -- the same storage index --------------------------------------------------------------------------------


def test_two_uploads_through_one_helper(shared: SharedGrid) -> None:
    """The second is told that it is busy, and may finish when the first is over."""
    file = new_file(shared.grid.options, 2 * SEGMENT + 5)
    furl = shared.grid.helper_furl
    with Caller(furl, file) as first, Caller(furl, file) as second:
        first.send_all()
        second.send_all()
        first.assign()
        assert refusal_of(second.assign).code == refusal_of(second.finish).code == "storage-index-busy"
        assert second.state == "open"
        assert first.finish().fields["ueb"] == file.by_stock.ueb
        wait_published_but(shared, file)
        assert second.finish().fields["ueb"] == file.by_stock.ueb
    assert_good(shared, file)


def wait_published_but(shared: SharedGrid, file: File) -> None:
    """Every share is there; another upload's may be staged."""
    wait_for("every share", lambda: len(shared.grid.shares(file.index_name)) == file.parameters.n)


def test_two_uploads_at_once_through_one_helper(shared: SharedGrid) -> None:
    file = new_file(shared.grid.options, 2 * SEGMENT + 5)
    furl = shared.grid.helper_furl
    with Caller(furl, file) as first, Caller(furl, file) as second:
        first.send_all()
        second.send_all()
        finishing = first.begin_finish()
        later = second.begin_finish()
        assert finishing.answer.fields["ueb"] == file.by_stock.ueb
        assert later.refusal == "storage-index-busy"
        second.abort()
    assert_good(shared, file)


def test_two_uploads_at_once_through_two_helpers(shared: SharedGrid) -> None:
    """Each server has one of each share: whichever comes second finds it there, and verifies it."""
    file = new_file(shared.grid.options, 2 * SEGMENT + 5)
    with (further_helper(shared.grid, "second-helper") as other,
          Caller(shared.grid.helper_furl, file) as first, Caller(helper_furl(other), file) as second):
        first.send_all()
        second.send_all()
        calls = [first.begin_finish(), second.begin_finish()]
        for call in calls:
            assert call.answer.fields["ueb"] == file.by_stock.ueb
        assert_good(shared, file)
        wait_for("an empty spool", lambda: not spool_of(other))


def test_shares_that_are_there_already(shared: SharedGrid) -> None:
    file = new_file(shared.grid.options, 2 * SEGMENT + 5)
    for _ in range(2):
        with Caller(shared.grid.helper_furl, file) as caller:
            caller.send_all()
            assert caller.finish().fields["ueb"] == file.by_stock.ueb
        assert_good(shared, file)


@contextmanager
def stock_writer(node: NodeProcess, storage_index: bytes, number: int) -> Iterator[None]:
    """A stock client has a share open for writing, over Foolscap."""
    furl = (node.directory / "private" / "storage.furl").read_text().strip()
    tubs: list[Tub] = []

    async def allocate() -> Any:
        tub = make_tub()
        tub.startService()
        tubs.append(tub)
        server = await tub.getReference(furl)
        _already, writers = await server.callRemote("allocate_buckets", storage_index, b"r" * 32, b"c" * 32, {number},
                                                    1000, Referenceable())
        return writers[number]

    async def stop() -> None:
        for tub in tubs:
            await tub.stopService()

    try:
        writer = reactor_loop.run(allocate)
        yield
        del writer  # a writer whose reference is gone is not aborted: the connection's end does that
    finally:
        reactor_loop.run(stop)


def test_a_stock_writer_has_the_share_open(shared: SharedGrid) -> None:
    """The server says busy: the share goes to another one."""
    file = new_file(shared.grid.options, 2 * SEGMENT + 5)
    with Caller(shared.grid.helper_furl, file) as caller:
        caller.send_all()
        share = staged_to(shared.grid, 2, SERVERS)[0]
        with stock_writer(shared.grid.storage[share.server], file.storage_index, share.number):
            assert caller.finish().fields["ueb"] == file.by_stock.ueb
            shares = wait_published(shared, file)
            assert share.server not in {s.server for s in shares}
    assert download(shared.plain_client, file.cap) == file.plaintext
    assert_healthy(check(shared.plain_client, file.cap), servers=SERVERS - 1)


# -- servers without room ----------------------------------------------------------------------------------

READ_ONLY, FULL, SMALL, FILLING, *_ROOMY = range(6)
#: Bytes that the filling server may take at first; much, for others use the same disk meanwhile.
LEFT = 2 * GiB


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGrid]:
    """Six staging servers, of which some take nothing, or not for long."""
    directory = tmp_path_factory.mktemp("narrow")
    free = shutil.disk_usage(directory).free
    assert free > LEFT + 2 * GiB
    section = f"[storageserver.plugins.{PLUGIN_NAME}]"
    options = GridOptions(storage_nodes=6, k=2, happy=2, n=4, staging_nodes=6, storage_options_of={
        READ_ONLY: ["readonly = true"],
        FULL: [f"reserved_space = {2 * free}"],
        SMALL: [section, "bytes-per-staging = 1MiB"],
        FILLING: [f"reserved_space = {free - LEFT}"],
    })
    with LocalGrid(directory / "grid", options) as grid:
        yield grid


def stored_on(grid: LocalGrid, file: File) -> set[int]:
    """The servers that have its shares, once all are in their place."""
    wait_for("every share", lambda: len(grid.shares(file.index_name)) == file.parameters.n)
    wait_for("an empty spool", lambda: not spool_of(grid.helper))
    assert not grid.staged_shares()
    assert download(grid.client, file.cap) == file.plaintext
    return {share.server for share in grid.shares(file.index_name)}


def test_read_only_and_full_servers_are_not_asked(narrow: LocalGrid) -> None:
    file = new_file(narrow.options, 100_000)
    with Caller(narrow.helper_furl, file) as caller:
        assert caller.open().fields["servers"] == 4
        caller.put(0, len(file.plaintext))
        assert caller.finish().fields["ueb"] == file.by_stock.ueb
    assert stored_on(narrow, file) == {SMALL, FILLING, *_ROOMY}
    for server in (READ_ONLY, FULL):
        assert statistic(narrow.storage[server], "streaming_staging.staged") == 0


def test_a_server_that_becomes_full_in_mid_stream_is_left(narrow: LocalGrid, tmp_path: Path) -> None:
    file = new_file(narrow.options, 8 * SEGMENT)
    with Caller(narrow.helper_furl, file) as caller:
        caller.open()
        caller.put(0, SEGMENT)
        assert {share.server for share in staged_to(narrow, 1, 4, k=2)} == {SMALL, FILLING, *_ROOMY}
        with (tmp_path / "other file").open("wb") as f:
            os.posix_fallocate(f.fileno(), 0, LEFT + GiB)
            caller.put(SEGMENT, len(file.plaintext))
            assert caller.finish().fields["ueb"] == file.by_stock.ueb
            assert stored_on(narrow, file) == set(_ROOMY)
    assert_healthy(check(narrow.client, file.cap), 4, 2)


def test_a_share_larger_than_a_server_takes_is_refused_at_once(narrow: LocalGrid) -> None:
    """If the size is declared; if not, when the share has grown so far (the test before this)."""
    file = new_file(narrow.options, 3 * SEGMENT)
    before = statistic(narrow.storage[SMALL], "streaming_staging.bytes_written")
    declared = File(file.plaintext, attrs.evolve(file.parameters, size=3 * SEGMENT), file.key)
    with Caller(narrow.helper_furl, declared) as caller:
        caller.send_all()
        assert caller.finish().fields["ueb"] == file.by_stock.ueb
    assert SMALL not in stored_on(narrow, file)
    assert statistic(narrow.storage[SMALL], "streaming_staging.bytes_written") == before
