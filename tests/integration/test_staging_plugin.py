"""The staging plugin in a real storage node: found, spoken to over Foolscap, killed, and read by a stock client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Self

import oracle
import pytest
from allmydata.util import base32, hashutil
from reactor_loop import run

from client_shim.helper_edge import make_tub
from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid
from client_shim.local_node import http_get
from helper.layout import DATA_OFFSET
from helper.staging_interfaces import PLUGIN_NAME

MiB = 1024 * 1024
NAME = os.urandom(32)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGrid]:
    options = GridOptions(storage_nodes=1, k=1, happy=1, n=1, helper=None,
                          storage_options=[f"plugins = {PLUGIN_NAME}"])
    with LocalGrid(tmp_path_factory.mktemp("staging") / "grid", options) as grid:
        yield grid


def plugin_furl(grid: LocalGrid) -> str:
    """The node keeps it where it keeps its other furls, and announces it."""
    return (grid.storage[0].directory / "private" / f"storage-plugin.{PLUGIN_NAME}.furl").read_text().strip()


class Session:
    """Calls to the node's staging server over a connection of their own."""

    def __init__(self, furl: str) -> None:
        self._furl = furl

    def __enter__(self) -> Self:
        async def connect() -> Any:
            self._tub = make_tub()
            self._tub.startService()
            return await self._tub.getReference(self._furl)

        self._rref = run(connect)
        return self

    def __exit__(self, *_exc: object) -> None:
        async def stop() -> None:
            await self._tub.stopService()

        run(stop)

    def __call__(self, method: str, *arguments: object) -> Any:
        async def call() -> Any:
            return await self._rref.callRemote(method, *arguments)

        return run(call, 30)


def test_a_share_is_staged_survives_kill_9_and_is_read_by_a_stock_client(grid: LocalGrid) -> None:
    plaintext, key = os.urandom(9 * MiB + 5), os.urandom(16)
    made = oracle.encode(plaintext, 1, 1, MiB, key=key, layout=2)
    share, si = made.shares[0], hashutil.storage_index_hash(key)
    writes = [(i, share[i:i + MiB]) for i in range(DATA_OFFSET, len(share), MiB)]
    with Session(plugin_furl(grid)) as call:
        answer, held = call("stage", NAME, [0], len(share))
        assert answer == {b"code": b"ok"}
        assert held == [(0, b"growing", DATA_OFFSET, DATA_OFFSET)]
        for offset, data in writes[:7]:
            assert call("write", NAME, 0, offset, data)[b"code"] == b"ok"
    # Stock servers would have dropped the share with the connection; this one outlives its process.
    grid.storage[0].kill()
    grid.storage[0].start()
    grid.storage[0].wait_ready()
    with Session(plugin_furl(grid)) as call:
        _answer, [(shnum, state, length, synced)] = call("held", NAME)
        assert (shnum, state) == (0, b"growing")
        assert length == synced >= DATA_OFFSET + 4 * MiB
        call("write", NAME, 0, length, share[length:length + MiB])
        for offset, data in writes[5:]:
            assert call("write", NAME, 0, offset, data)[b"code"] == b"ok"
        assert call("write", NAME, 0, 0, share[:DATA_OFFSET])[b"code"] == b"ok"
        assert call("prepare", NAME, 0, len(share), b"r" * 32, b"c" * 32) == {b"code": b"ok"}
        assert grid.shares() == []  # nothing has a storage index yet
        assert call("assign", NAME, si, [0]) == ({b"code": b"ok"}, [(0, b"assigned")])
    assert [s.storage_index for s in grid.shares()] == [base32.b2a(si).decode()]
    grid.wait_connected(grid.client)
    assert http_get(f"{grid.client.web_url}uri/{made.cap.decode()}") == plaintext


def test_refusals_travel_as_values(grid: LocalGrid) -> None:
    with Session(plugin_furl(grid)) as call:
        answer, held = call("held", b"x" * 32)
        assert answer[b"code"] == b"unknown-staging"
        assert held == []
        answer = call("write", b"short", 0, 0, b"data")
        assert answer[b"code"] == b"bad-argument"
        assert answer[b"expected"] == b"32 bytes"


def test_counters_are_in_the_statistics(grid: LocalGrid) -> None:
    stats = grid.storage[0].read_json("statistics?t=json")["stats"]
    assert stats["streaming_staging.assigned"] >= 0
    assert stats["streaming_staging.staged_now"] == stats["streaming_staging.staged_bytes_now"] == 0
