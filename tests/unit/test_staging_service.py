"""The plugin's service beside a real StorageServer, with real threads; and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from allmydata.interfaces import IFoolscapStoragePlugin
from allmydata.stats import StatsProvider
from allmydata.storage.server import StorageServer
from reactor_loop import run
from staging_node import BODY, HEADER, NAME, SECRETS, SI, SIZE
from twisted.plugin import getPlugins

from helper.layout import DATA_OFFSET
from helper.staging_interfaces import PLUGIN_NAME
from helper.staging_plugin import FoolscapStagingServer, limits_from


class Client:
    """As much of a storage node as get_storage_server sees."""

    def __init__(self, directory: Path) -> None:
        self.stats = StatsProvider(None)
        self.stock = StorageServer(str(directory), b"i" * 20, stats_provider=self.stats)


async def plugin_server(client: Client, settings: dict[str, str]) -> FoolscapStagingServer:
    """Found as a node finds it."""
    (plugin,) = [found for found in getPlugins(IFoolscapStoragePlugin) if found.name == PLUGIN_NAME]
    announceable = await plugin.get_storage_server(settings, lambda: client.stock)
    server: FoolscapStagingServer = announceable.storage_server
    return server


def test_calls_over_the_edge(tmp_path: Path) -> None:
    client = Client(tmp_path)

    async def calls() -> None:
        edge = await plugin_server(client, {"expiry": "3 days"})
        client.stock.startService()
        answers: list[Any] = [
            await edge.remote_stage(NAME, [0, 1], SIZE),
            await edge.remote_write(NAME, 0, DATA_OFFSET, BODY),
            await edge.remote_write(NAME, 0, 0, HEADER),
            await edge.remote_prepare(NAME, 0, SIZE, *SECRETS),
            await edge.remote_held(NAME),
            await edge.remote_assign(NAME, SI, [0, 1, 2]),
            await edge.remote_write(NAME, 1, SIZE, b"x"),
            await edge.remote_abort(NAME, []),
            await edge.remote_assign(NAME, SI, [])]
        ok = {b"code": b"ok"}
        assert answers == [
            (ok, [(0, b"growing", DATA_OFFSET, DATA_OFFSET), (1, b"growing", DATA_OFFSET, DATA_OFFSET)]),
            {**ok, b"length": SIZE, b"synced": DATA_OFFSET},
            {**ok, b"length": SIZE, b"synced": DATA_OFFSET},
            ok,
            (ok, [(0, b"prepared", SIZE, SIZE), (1, b"growing", DATA_OFFSET, DATA_OFFSET)]),
            (ok, [(0, b"assigned"), (1, b"not-prepared"), (2, b"unknown")]),
            {b"code": b"offset-gap", b"expected": DATA_OFFSET, b"came": SIZE, b"text": answers[6][b"text"]},
            ok,
            ({b"code": b"unknown-staging", b"text": answers[8][0][b"text"]}, [])]
        await client.stock.stopService()

    run(calls, 30)
    stats = client.stats.get_stats()["stats"]
    assert stats["streaming_staging.assigned"] == 1
    assert stats["streaming_staging.staged_now"] == 0
    assert [number for number, _path in client.stock.get_shares(SI)] == [0]


def test_many_calls_at_once_in_real_threads(tmp_path: Path) -> None:
    client = Client(tmp_path)
    piece = bytes(range(256)) * 1024  # 256 KiB

    async def calls() -> None:
        edge = await plugin_server(client, {})
        client.stock.startService()
        await edge.remote_stage(NAME, list(range(6)), 0)
        writes = [edge.remote_write(NAME, n, DATA_OFFSET + i * len(piece), piece) for i in range(20) for n in range(6)]
        writes += [edge.remote_write(NAME, n, 0, HEADER) for n in range(6)]
        size = DATA_OFFSET + 20 * len(piece)
        prepared = [edge.remote_prepare(NAME, n, size, *SECRETS) for n in range(6)]
        for done in [*writes, *prepared]:
            assert (await done)[b"code"] == b"ok"
        both = [edge.remote_assign(NAME, SI, []), edge.remote_assign(NAME, SI, [])]
        for done in both:
            assert (await done)[1] == [(n, b"assigned") for n in range(6)]
        await client.stock.stopService()

    run(calls, 60)
    for reader in client.stock.get_buckets(SI).values():
        assert reader.read(0, 10**8) == HEADER + piece * 20
    assert [path.name for path in (tmp_path / "staging").iterdir() if path.is_dir()] == []


def test_records_that_cannot_be_read_do_not_stop_the_node(tmp_path: Path) -> None:
    client = Client(tmp_path)
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "staging.sqlite").write_bytes(b"not a database" * 1000)

    async def calls() -> None:
        edge = await plugin_server(client, {})
        client.stock.startService()
        assert client.stock.running
        answer, _held = await edge.remote_stage(NAME, [0], 0)
        assert answer[b"code"] == b"stopping"
        await client.stock.stopService()

    run(calls, 30)


def test_settings() -> None:
    limits = limits_from({"stagings": "7", "bytes-per-staging": "2 GiB", "expiry": "3 days"})
    assert (limits.stagings, limits.bytes_per_staging, limits.expiry) == (7, 2 * 1024**3, 3 * 86400)
    with pytest.raises(ValueError, match=r"unknown key 'size'; known are bytes-per-staging, empty-expiry, expiry, "
                       r"shares, stagings"):
        limits_from({"size": "1"})
