"""One helper.furl for both kinds of client; and a stock helper's furl given to ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from grid_tools import (
    TAHOE,
    MiB,
    SharedGrid,
    assert_stored,
    client_directory,
    further_helper,
    helper_furl,
    put,
    upload_as_stock,
)

from client_shim.blocking import UploadFile


def counters(shared: SharedGrid) -> dict[str, int]:
    """What the stock helper counted. A client that cannot use its helper uploads without it and says nothing."""
    status = shared.grid.helper.read_json("helper_status?t=json")
    short = {name.removeprefix("chk_upload_helper."): value for name, value in status.items()}
    return {name: short[name] for name in (
        "upload_requests", "upload_need_upload", "upload_already_present", "fetched_bytes", "encoded_bytes")}


def counted(shared: SharedGrid, before: dict[str, int]) -> dict[str, int]:
    return {name: value - before[name] for name, value in counters(shared).items() if value != before[name]}


def test_stock_client_uploads_through_our_helper(shared: SharedGrid) -> None:
    data = os.urandom(2 * MiB + 5)
    before = counters(shared)
    cap = upload_as_stock(shared.grid.client, data)
    assert counted(shared, before) == {
        "upload_requests": 1, "upload_need_upload": 1, "fetched_bytes": len(data), "encoded_bytes": len(data)}
    assert_stored(shared, cap, data)

    before = counters(shared)
    assert upload_as_stock(shared.grid.client, data) == cap
    assert counted(shared, before) == {"upload_requests": 1, "upload_already_present": 1}


def test_tahoe_put_through_our_helper(shared: SharedGrid, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "file").write_bytes(data)
    before = counters(shared)
    done = subprocess.run([*TAHOE, "-d", shared.grid.client.directory, "put", tmp_path / "file"],
                          capture_output=True, check=True, timeout=60)
    assert counted(shared, before)["upload_need_upload"] == 1
    assert_stored(shared, done.stdout.decode().strip(), data)


def test_both_kinds_of_upload_at_the_same_time(shared: SharedGrid) -> None:
    streamed, stock = os.urandom(3 * MiB), os.urandom(2 * MiB)
    before = counters(shared)
    with UploadFile(shared.grid.client.directory) as f:
        f.write(streamed[:2 * MiB])
        cap = upload_as_stock(shared.grid.client, stock)
        f.write(streamed[2 * MiB:])
    assert counted(shared, before)["encoded_bytes"] == len(stock), "what is streamed is counted elsewhere"
    assert_stored(shared, cap, stock)
    assert_stored(shared, f.cap, streamed)


def test_streamed_uploads_are_counted(shared: SharedGrid) -> None:
    def stats() -> dict[str, int]:
        told: dict[str, int] = shared.grid.helper.read_json("statistics?t=json")["stats"]
        return {name.removeprefix("streaming_helper."): value for name, value in told.items()
                if name.startswith("streaming_helper.")}

    before = stats()
    assert before["open"] == 0
    put(shared.grid.client.directory, "-", stdin=bytes(1000)).cap  # noqa: B018
    after = stats()
    grown = {name: after[name] - before[name] for name in ("opened", "finished", "bytes_received", "open")}
    assert grown == {"opened": 1, "finished": 1, "bytes_received": 1000, "open": 0}


def test_furl_of_a_stock_helper(shared: SharedGrid, tmp_path: Path) -> None:
    with further_helper(shared.grid, "stock-helper", stock=True) as helper:
        directory = client_directory(tmp_path / "client", helper_furl(helper))
        told = put(directory, "--json", "-", stdin=bytes(1000)).failed_with("stock-helper")
        assert "tahoe-stream helper run" in told["text"]
        transcript = put(directory, "-", stdin=bytes(1000))
    assert (transcript.status, transcript.out) == (1, "")
    assert transcript.err.startswith("tahoe-stream: stock-helper: ")
    assert transcript.err.count("\n") == 1
