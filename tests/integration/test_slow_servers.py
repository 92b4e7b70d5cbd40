"""Ten storage servers, of which some hang, are gone or come too late: uploads do not wait for them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fault_tools import MiB
from grid_tools import (
    assert_healthy,
    by_stock,
    check,
    download,
    further_helper,
    helper_furl,
    spool_of,
    storage_index,
    wait_for,
)
from single_calls import Caller, new_file, refusal_of

from client_shim.blocking import UploadFile
from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid
from client_shim.local_node import NodeProcess

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

#: As Tahoe's defaults.
OPTIONS = GridOptions(storage_nodes=10, staging_nodes=10, k=3, happy=7, n=10)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGrid]:
    with LocalGrid(tmp_path_factory.mktemp("slow-servers") / "grid", OPTIONS) as grid:
        yield grid


@contextmanager
def without(grid: LocalGrid, *servers: NodeProcess) -> Iterator[None]:
    """Servers that are killed in the block are up and connected after it; before it the helper knows they are gone."""
    for server in servers:
        server.kill()
    try:
        wait_for("the helper to see it", lambda: connected(grid.helper) == len(grid.storage) - len(servers))
        yield
    finally:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_ready()
        for node in (grid.helper, grid.client):
            grid.wait_connected(node)


def connected(node: NodeProcess) -> int:
    """How many storage servers."""
    return sum(str(server["connection_status"]).lower().startswith("connected")
               for server in node.read_json("?t=json")["servers"])


def homes(grid: LocalGrid, cap: str) -> dict[int, int]:
    """On which server each share is."""
    return {share.number: share.server for share in grid.shares(storage_index(cap))}


def test_seven_good_servers_are_enough(grid: LocalGrid) -> None:
    data = os.urandom(5 * MiB)
    with without(grid, *grid.storage[:3]):
        with UploadFile(grid.client.directory) as f:
            f.write(data)
        assert by_stock(f.cap, data).cap.decode() == f.cap
        wait_for("every share", lambda: len(homes(grid, f.cap)) == 10)
        assert set(homes(grid, f.cap).values()) == set(range(3, 10))
        assert download(grid.client, f.cap) == data


def test_six_are_too_few_at_the_beginning(grid: LocalGrid) -> None:
    with without(grid, *grid.storage[:4]), Caller(grid.helper_furl, new_file(OPTIONS, MiB)) as upload:
        refusal = refusal_of(upload.open)
    assert refusal.code == "too-few-servers"
    assert dict(refusal.values) == {"have": 6, "need": 7}
    assert "6" in str(refusal)
    assert "7" in str(refusal)


SOON = "[helper]\naway-patience = 2 seconds\nneeded-patience = 4 seconds\n"


def test_six_are_too_few_before_anything_is_published(grid: LocalGrid) -> None:
    """They leave in mid-upload; nothing of it stays on those that are left."""
    file, before = new_file(OPTIONS, 5 * MiB), len(grid.shares())
    victims = grid.storage[:4]
    with further_helper(grid, "impatient-helper", settings=SOON) as helper, \
            Caller(helper_furl(helper), file) as upload:
        upload.open()
        upload.put(0, 3 * MiB)
        wait_for("blocks on all servers", lambda: len(grid.staged_shares()) == 10)
        for victim in victims:
            victim.kill()
        try:
            def put_and_finish() -> None:
                upload.put(3 * MiB, 5 * MiB)
                upload.finish()

            refusal = refusal_of(put_and_finish)
            assert refusal.code == "too-few-servers"
            assert dict(refusal.values) == {"have": 6, "need": 7}
            wait_for("nothing to be left on those that are there",
                     lambda: {share.server for share in grid.staged_shares()} <= {0, 1, 2, 3})
        finally:
            for victim in victims:
                victim.start()
            for victim in victims:
                victim.wait_ready()
            for node in (helper, grid.helper, grid.client):
                grid.wait_connected(node)
        wait_for("nothing to be left", lambda: not grid.staged_shares() and not spool_of(helper))
    assert len(grid.shares()) == before


# -- one that hangs ----------------------------------------------------------------------------------------------


def timed_upload(grid: LocalGrid, data: bytes, hung: NodeProcess | None) -> tuple[float, float, str]:
    """Seconds from open to cap, and from the last byte to the cap; and the cap. `hung` is stopped after open."""
    f = UploadFile(grid.client.directory, len(data))  # a declared size: this opens it
    if hung is not None:
        hung.suspend()
    began = time.monotonic()
    for start in range(0, len(data), MiB):
        f.write(data[start:start + MiB])
    written = time.monotonic()
    f.close()
    ended = time.monotonic()
    return ended - began, ended - written, f.cap


def test_server_that_hangs_right_after_open(grid: LocalGrid) -> None:
    data = os.urandom(12 * MiB)
    hung = grid.storage[5]
    try:
        total, last, cap = timed_upload(grid, data, hung)
        assert by_stock(cap, data).cap.decode() == cap
        assert download(grid.client, cap) == data
        wait_for("ten shares", lambda: set(homes(grid, cap)) == set(range(10)))
        assert set(homes(grid, cap).values()) == set(range(10)) - {5}
    finally:
        hung.resume()
    print(f"\n12 MiB with a hung server: {total:.2f} s, last byte to cap {last:.2f} s")
    wait_for("the hung server to let go", lambda: not grid.staged_shares())
    wait_for("an empty spool", lambda: not spool_of(grid.helper))
    assert_healthy(check(grid.client, cap), 10, 9)


def test_hung_server_costs_no_time(grid: LocalGrid) -> None:
    """Undisturbed and disturbed in turns, on one machine in one run; figures only, as machines are busy."""
    size = 64 * MiB
    times: dict[bool, list[float]] = {False: [], True: []}
    timed_upload(grid, os.urandom(size), None)
    for number in range(10):
        data, hangs = os.urandom(size), bool(number % 2)
        hung = grid.storage[number]
        try:
            total, last, cap = timed_upload(grid, data, hung if hangs else None)
            times[hangs].append(total)
            print(f"\n{'a server hangs' if hangs else 'undisturbed'}: {total:.2f} s, last byte to cap {last:.2f} s",
                  end="")
            assert by_stock(cap, data).cap.decode() == cap
            wait_for("ten shares", lambda cap=cap: set(homes(grid, cap)) == set(range(10)))
        finally:
            hung.resume()
        wait_for("an empty spool", lambda: not spool_of(grid.helper))
        grid.wait_connected(grid.helper)
    medians = {hangs: statistics.median(seconds) for hangs, seconds in times.items()}
    print(f"\n64 MiB to ten servers, medians of five: {medians[False]:.2f} s undisturbed, {medians[True]:.2f} s with "
          f"one that hangs from the beginning ({100 * (medians[True] / medians[False] - 1):+.0f} %)")
