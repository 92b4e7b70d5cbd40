"""Three of ten storage servers stop reading in mid-upload: the helper does not hold for them what they do not take
(threat S20).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
from grid_tools import MiB, sha256_of, spool_of, storage_index, wait_for
from threat_helper import peak_memory

from client_shim.blocking import UploadFile
from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid

#: As Tahoe's defaults; both kinds of servers stop, and no more may be lacking.
OPTIONS = GridOptions(storage_nodes=10, staging_nodes=5, k=3, happy=7, n=10)
STOPPED = (0, 3, 9)

#: What an upload of any size may add to a helper: 32 MiB of blocks (helper/block_memory.py), which exist once more,
#: encrypted, while they are on their way; 8 MiB of ciphertext that is not durable (protocol.txt §7.1), and again while
#: it is written; and half as much for what malloc does not give back at once. What three servers of ten do not take of
#: a file is as much as the whole file.
MEMORY_MAX = 128 * MiB
BEFORE_THE_STOP = 16 * MiB


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGrid]:
    with LocalGrid(tmp_path_factory.mktemp("stalled-servers") / "grid", OPTIONS) as grid:
        yield grid


def send(f: UploadFile, size: int, rng: random.Random, hasher: hashlib._Hash) -> None:
    for _ in range(size // MiB):
        piece = rng.randbytes(MiB)
        hasher.update(piece)
        f.write(piece)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [256 * MiB, 1024 * MiB])
def test_s20_three_of_ten_servers_stop_reading(grid: LocalGrid, size: int) -> None:
    rng, hasher = random.Random(size), hashlib.sha256()
    with UploadFile(grid.client.directory) as f:  # whatever is imported and allocated once
        send(f, BEFORE_THE_STOP, rng, hashlib.sha256())
    wait_for("an empty spool", lambda: not spool_of(grid.helper))
    stopped, logged_before = [grid.storage[number] for number in STOPPED], grid.helper.log_path.stat().st_size
    try:
        with peak_memory(grid.helper.pid) as grown:
            with UploadFile(grid.client.directory) as f:
                send(f, BEFORE_THE_STOP, rng, hasher)
                for server in stopped:
                    server.suspend()
                send(f, size - BEFORE_THE_STOP, rng, hasher)
            wait_for("the end of placing", lambda: not spool_of(grid.helper), 300)
        print(f"\n{size // MiB} MiB, three of ten servers stopped: helper's memory grew by {grown() / MiB:.0f} MiB")
        assert grown() < MEMORY_MAX
        homes = {share.number: share.server for share in grid.shares(storage_index(f.cap))}
        assert len(set(homes.values()) - set(STOPPED)) >= OPTIONS.happy
        log = grid.helper.log_path.read_bytes()[logged_before:].decode()
        missing = sorted(set(range(OPTIONS.n)) - set(homes))
        assert ("every share is placed" if not missing else f"shares {missing} could not be placed") in log
        assert sha256_of(grid.client, f.cap) == hasher.hexdigest()
    finally:
        for server in stopped:
            server.resume()
