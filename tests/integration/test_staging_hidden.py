"""Until `finish`, staging servers hold an upload's bytes and nobody can address them; of one that is given up nothing
stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import reactor_loop
from grid_tools import (
    SEGMENT,
    MiB,
    SharedGrid,
    answer_of,
    assert_stored,
    client_directory,
    download,
    end_of,
    feed,
    further_helper,
    helper_furl,
    put_in_progress,
    running_grid,
    servers_restored,
    spool_of,
    wait_for,
)
from single_calls import Caller, File, new_file
from staging_tools import MIXED, STAGING, staged_to, trees, wait_for_trees, wait_published

from client_shim.client import StreamingClient
from client_shim.local_node import NodeProcess
from client_shim.node_config import read_node_config
from client_shim.upload import StreamingUpload


@pytest.fixture(scope="module")
def staging(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    return running_grid(pytestconfig, tmp_path_factory, "staging-grid", STAGING)


@pytest.fixture(scope="module")
def mixed(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    return running_grid(pytestconfig, tmp_path_factory, "mixed-grid", MIXED)


# -- until `finish` ----------------------------------------------------------------------------------------


def assert_unknown(shared: SharedGrid, file: File, before: list[set[str]]) -> None:
    """No server knows the storage index, not as the name of a directory either, and stock clients find nothing."""
    now = trees(shared.grid)
    assert not [path for paths in now for path in paths if file.index_name in path]
    assert [{p for p in paths if p.startswith("shares")} for paths in now] == [
        {p for p in paths if p.startswith("shares")} for paths in before]
    for reader in shared.readers:
        status, told = answer_of(reader, "GET", f"/uri/{quote(file.cap, safe='')}")
        assert status == 410, (status, told)
        assert told.startswith((b"NoSharesError", b"NotEnoughSharesError")), told


@pytest.mark.parametrize("grid_name", ["staging", "mixed"])
def test_nothing_has_the_storage_index_before_finish(request: pytest.FixtureRequest, grid_name: str) -> None:
    shared: SharedGrid = request.getfixturevalue(grid_name)
    options = shared.grid.options
    file = new_file(options, 5 * SEGMENT)
    before = trees(shared.grid)
    with Caller(shared.grid.helper_furl, file) as caller:
        caller.send_all()
        staged = staged_to(shared.grid, 5, options.staging_nodes)
        assert {share.server for share in staged} == set(range(options.staging_nodes))
        assert_unknown(shared, file, before)
        caller.finish()
    wait_published(shared, file)
    assert_stored(shared, file.cap, file.plaintext, options.n, len(shared.grid.storage))


def test_python_client_with_a_key_of_its_own(staging: SharedGrid) -> None:
    file = new_file(staging.grid.options, 5 * SEGMENT)
    before = trees(staging.grid)
    client = StreamingClient(read_node_config(staging.grid.client.directory))

    async def written() -> StreamingUpload:
        upload = client.upload(key=file.key)
        await upload.write(file.plaintext)
        return upload

    upload = reactor_loop.run(written, 60)
    try:
        staged_to(staging.grid, 5, 5)
        assert_unknown(staging, file, before)
        assert reactor_loop.run(upload.close, 60).decode() == file.cap
    finally:
        reactor_loop.run(client.stop)
    wait_published(staging, file)
    assert download(staging.plain_client, file.cap) == file.plaintext


# -- uploads that are given up -----------------------------------------------------------------------------


@pytest.mark.parametrize("grid_name", ["staging", "mixed"])
def test_ctrl_c_leaves_nothing(request: pytest.FixtureRequest, grid_name: str) -> None:
    shared: SharedGrid = request.getfixturevalue(grid_name)
    before = trees(shared.grid)
    with put_in_progress(shared.grid.client.directory, "-") as process:
        feed(process, os.urandom(5 * MiB))
        staged_to(shared.grid, 2, shared.grid.options.staging_nodes)
        process.send_signal(signal.SIGINT)
        transcript = end_of(process)
    assert transcript.status == 1
    assert transcript.out == ""
    wait_for_trees(shared.grid, shared.grid.helper, before)


def test_an_aborted_upload_leaves_nothing(staging: SharedGrid) -> None:
    before = trees(staging.grid)
    file = new_file(staging.grid.options, 5 * SEGMENT)
    with Caller(staging.grid.helper_furl, file) as caller:
        caller.send_all()
        staged_to(staging.grid, 5, 5)
        assert caller.abort().fields["state"] == b"aborted"
        assert trees(staging.grid) == before, "the servers have let go when abort is answered"
        assert caller.abort().fields["state"] == b"aborted"
    wait_for_trees(staging.grid, staging.grid.helper, before)


def test_an_aborted_upload_leaves_nothing_on_a_server_that_was_away(staging: SharedGrid) -> None:
    before = trees(staging.grid)
    victim = staging.grid.storage[2]
    file = new_file(staging.grid.options, 5 * SEGMENT)
    with Caller(staging.grid.helper_furl, file) as caller, servers_restored(staging, victim):
        caller.send_all()
        staged_to(staging.grid, 5, 5)
        victim.kill()
        wait_for("its loss to be noticed", lambda: any(s.state == "away" for s in caller.status().shares))
        caller.abort()
    wait_for_trees(staging.grid, staging.grid.helper, before)


@pytest.fixture
def impatient(staging: SharedGrid) -> Iterator[NodeProcess]:
    """A helper that gives up uploads that are idle for three seconds."""
    settings = "[helper]\nidle-expiry = 3 seconds\nempty-expiry = 3 seconds\nsweep-interval = 1 second\n"
    with further_helper(staging.grid, "impatient-helper", settings=settings) as helper:
        yield helper


def test_an_expired_upload_leaves_nothing(staging: SharedGrid, impatient: NodeProcess, tmp_path: Path) -> None:
    before = trees(staging.grid)
    directory = client_directory(tmp_path / "client", helper_furl(impatient))
    with put_in_progress(directory, "-") as process:
        feed(process, os.urandom(5 * MiB))
        staged_to(staging.grid, 2, 5)
    assert len(spool_of(impatient)) == 1  # the client was killed
    wait_for_trees(staging.grid, impatient, before)
