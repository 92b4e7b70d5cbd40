"""`tahoe-stream status`, the page /streaming and the statistics of a helper node, while an upload is paused."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grid_tools import PATIENCE, TAHOE_STREAM, MiB, Transcript, end_of, feed, put_in_progress, request, wait_for

from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid

#: Enough for one of the two uploads and a part of the other.
QUOTA = 3 * MiB


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[LocalGrid]:
    options = GridOptions(storage_nodes=1, k=1, happy=1, n=1, helper_settings="[helper]\nspool-quota = 3 MiB\n")
    with LocalGrid(tmp_path / "grid", options) as grid:
        yield grid


def status(directory: Path, *options: str) -> Transcript:
    command = [*TAHOE_STREAM, "status", "-d", str(directory), *options]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    return Transcript(done.returncode, done.stdout.decode(), done.stderr.decode())


def told(grid: LocalGrid) -> dict[str, Any]:
    transcript = status(grid.helper.directory, "--json")
    assert (transcript.status, transcript.err) == (0, "")
    answer: dict[str, Any] = json.loads(transcript.out)
    return answer


def statistics(grid: LocalGrid) -> dict[str, int]:
    stats = grid.helper.read_json("statistics?t=json")["stats"]
    return {name.removeprefix("streaming_helper."): value for name, value in stats.items()}


def test_a_paused_upload_is_seen_everywhere(grid: LocalGrid) -> None:
    client = grid.client.directory
    with put_in_progress(client, "-") as first, put_in_progress(client, "-") as second:
        feed(first, os.urandom(5 * MiB // 2))
        wait_for("the first to be durable", lambda: told(grid)["spool"]["stored"] == 5 * MiB // 2)
        feed(second, os.urandom(3 * MiB // 2))
        wait_for("the second to be paused", lambda: told(grid)["waiting"]["room"] == 1)

        seen = told(grid)
        paused, going = seen["uploads"]
        assert (paused["waits-for"], going["waits-for"]) == ("room", "")
        assert paused["received"] > paused["durable"]
        assert going["received"] == going["durable"] == 5 * MiB // 2
        assert (going["state"], going["size"], going["error"]) == ("open", None, None)
        assert [(s["number"], s["state"]) for s in going["shares"]] == [(0, "pushing")]
        assert seen["spool"]["quota"] == QUOTA
        assert seen["servers"] == {"connected": 1, "staging": 0}

        lines = status(grid.helper.directory, "-v").out.splitlines()
        assert lines[:2] == ["uploads: 2 open", "waiting: 1 for room"]
        assert any(line.startswith(paused["upload"]) and line.endswith("room") for line in lines)
        assert sum(line.startswith("    share 0 on ") for line in lines) >= 1

        page = request(grid.helper, "GET", "/streaming").decode()
        assert paused["upload"] in page
        assert "1 for room" in page
        stats = statistics(grid)
        assert (stats["open"], stats["uploads_open"], stats["waiting"], stats["waiting_for_room"]) == (2, 2, 1, 1)
        assert stats["spool_stored"] == seen["spool"]["stored"]

        assert end_of(first, b"").cap
        assert end_of(second, b"").cap
    wait_for("the spool to be empty", lambda: told(grid)["spool"]["stored"] == 0)
    seen = told(grid)
    assert {upload["state"] for upload in seen["uploads"]} == {"finished"}
    assert {share["state"] for upload in seen["uploads"] for share in upload["shares"]} == {"closed"}
    assert (statistics(grid)["finished"], statistics(grid)["waiting"]) == (2, 0)
    log = grid.helper.log_path.read_text()
    assert log.count(f"upload {paused['upload']} waits for room in the spool") == 1
    assert log.count(f"upload {paused['upload']} goes on after ") == 1

    other = status(client)
    assert (other.status, other.out) == (1, "")
    assert "no-streaming-helper" in other.err
    grid.helper.stop()
    gone = status(grid.helper.directory)
    assert (gone.status, gone.out) == (1, "")
    assert "node-not-running" in gone.err
