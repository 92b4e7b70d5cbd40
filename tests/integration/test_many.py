"""Many uploads at a time, and long ones: memory and the time from last byte to cap do not grow with them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from grid_tools import (
    SharedGrid,
    assert_healthy,
    check,
    client_directory,
    download,
    further_helper,
    helper_furl,
    memory,
    put,
    sha256_of,
    spool_of,
    uploads_open,
    wait_for,
)

from client_shim.blocking import UploadFile
from client_shim.local_node import NodeProcess

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

MiB = 1024 * 1024

#: Prints so many MiB, no two alike, and their SHA-256 at the end on standard error.
SOURCE = """
import hashlib, random, sys
hasher, piece = hashlib.sha256(), bytearray(random.randbytes(1 << 20))
for number in range(int(sys.argv[1])):
    piece[:8] = number.to_bytes(8, "big")
    hasher.update(piece)
    sys.stdout.buffer.write(piece)
print(hasher.hexdigest(), file=open(sys.argv[2], "w"))
"""


@pytest.fixture
def helper(shared: SharedGrid) -> Iterator[NodeProcess]:
    """A new process for each test: what it has grown to before does not hide what a test makes it grow by."""
    with further_helper(shared.grid, "measured-helper") as helper:
        yield helper


def test_thirty_uploads_at_a_time(shared: SharedGrid, helper: NodeProcess, tmp_path: Path) -> None:
    client = client_directory(tmp_path / "client", helper_furl(helper))
    files = [os.urandom(2 * MiB + 1000 * i) for i in range(30)]
    before = memory(helper, "VmRSS")

    def upload(data: bytes) -> str:
        with UploadFile(client, len(data) if len(data) % 2 else None) as f:
            for start in range(0, len(data), 300_000):
                f.write(data[start:start + 300_000])
        return f.cap

    started = time.monotonic()
    with ThreadPoolExecutor(len(files)) as threads:
        caps = list(threads.map(upload, files))
    print(f"\n30 uploads of 2 MiB at a time: {time.monotonic() - started:.1f} s; helper's memory "
          f"{before:.0f} MiB before, {memory(helper, 'VmHWM'):.0f} MiB at most")
    for cap, data in zip(caps, files, strict=True):
        assert download(shared.plain_client, cap) == data
    for cap in caps[::10]:
        assert_healthy(check(shared.grid.client, cap))
    wait_for("an empty spool", lambda: not spool_of(helper))
    assert uploads_open(helper) == 0


def test_long_pipe(shared: SharedGrid, helper: NodeProcess, tmp_path: Path) -> None:
    client = client_directory(tmp_path / "client", helper_furl(helper))
    put(client, "-", stdin=os.urandom(MiB)).cap  # noqa: B018 (whatever is imported late is imported now)
    before = memory(helper, "VmRSS")
    caps: dict[str, str] = {}
    seconds: dict[int, list[float]] = {}
    growth = 0.0
    for mib in (512, 64, 64, 1, 1, 512):
        command = ("--from-command", "--", sys.executable, "-c", SOURCE, str(mib), str(tmp_path / "sha256"))
        transcript = put(client, "--json", *command, timeout=600)
        caps[transcript.cap] = (tmp_path / "sha256").read_text().strip()
        seconds.setdefault(mib, []).append(transcript.events[-1]["seconds_from_last_byte"])
        if len(caps) == 1:
            growth = memory(helper, "VmHWM") - before
    for mib, measured in seconds.items():
        print(f"\nlast byte to cap at {mib} MiB: {', '.join(f'{s:.3f}' for s in measured)} s", end="")
    print(f"\nhelper's memory grew by at most {growth:.0f} MiB from {before:.0f} MiB during the first")
    assert growth < 150
    for cap, sha256 in caps.items():
        assert sha256_of(shared.plain_client, cap) == sha256
        assert_healthy(check(shared.plain_client, cap))
    assert min(seconds[512]) < min(seconds[64]) + 0.5
