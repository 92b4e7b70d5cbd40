"""What the tests of staging servers share: grids that have them, uploads made call by call, what is on their disks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from grid_tools import BLOCKS_OFFSET, CONTAINER_HEADER, SharedGrid, spool_of, wait_for
from single_calls import File

from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid, ShareFile
from client_shim.local_node import NodeError, NodeProcess

MiB = 1024 * 1024
MAX_SEGMENT = MiB

#: Five servers, one of which may be lacking, as OPTIONS of grid_tools; all have the plugin.
STAGING = GridOptions(storage_nodes=5, k=3, happy=4, n=5, staging_nodes=5)
#: Half of the servers have it. They are enough for this happiness, and not for MIXED_HIGH_HAPPY.
MIXED = GridOptions(storage_nodes=6, k=3, happy=3, n=6, staging_nodes=3)
MIXED_HIGH_HAPPY = 5

#: Stock's own files in a storage directory, which come and go; and the staging server's records.
_NOT_SHARES = ("staging.sqlite", "lease_checker", "bucket_counter")


# -- what is on disk ---------------------------------------------------------------------------------------


def trees(grid: LocalGrid) -> list[set[str]]:
    """What lies in each server's storage directory: files and, on staging servers, directories, empty ones too.

    (Stock servers leave empty directories behind when a share is aborted.)"""
    return [set(_tree(node.directory / "storage", server < grid.options.staging_nodes))
            for server, node in enumerate(grid.storage)]


def _tree(root: Path, with_directories: bool) -> Iterator[str]:
    for directory, subdirectories, names in os.walk(root):
        entries = [*names, *subdirectories] if with_directories else names
        for name in entries:
            if not name.startswith(_NOT_SHARES):
                yield str(Path(directory, name).relative_to(root))


def wait_for_trees(grid: LocalGrid, helper: NodeProcess, before: list[set[str]]) -> None:
    """What an upload that was given up leaves behind is nothing, on servers and in the spool."""
    def same() -> bool:
        return trees(grid) == before and not spool_of(helper)

    try:
        wait_for("nothing to be left", same, 20)
    except NodeError as e:
        for node, now, then in zip(grid.storage, trees(grid), before, strict=True):
            e.add_note(f"{node.name}: more is there {sorted(now - then)}, less {sorted(then - now)}")
        e.add_note(f"spool: {spool_of(helper)}")
        raise


def staged_to(grid: LocalGrid, segments: int, shares: int, k: int = 3) -> list[ShareFile]:
    """Waits until so many shares hold the blocks of so many full segments: those shares."""
    size = CONTAINER_HEADER + BLOCKS_OFFSET + segments * -(-MAX_SEGMENT // k)

    def held() -> list[ShareFile] | None:
        staged = [share for share in grid.staged_shares() if _size(share) >= size]
        return staged if len(staged) >= shares else None

    return wait_for(f"{shares} staged shares of {segments} segments", held)


def _size(share: ShareFile) -> int:
    try:
        return share.path.stat().st_size
    except FileNotFoundError:
        return 0  # published, or given up, this very moment


def prepared_on(node: NodeProcess) -> bool:
    """Whether a staging server's records say that it has a share that lacks only its name."""
    path = node.directory / "storage" / "staging" / "staging.sqlite"
    with closing(sqlite3.connect(path, timeout=20)) as records:
        return bool(records.execute("SELECT count(*) FROM staged WHERE state = 'prepared'").fetchone()[0])


def statistic(node: NodeProcess, name: str) -> int:
    """One of a node's counters."""
    return int(node.read_json("statistics?t=json")["stats"][name])


def pushed_again(helper: NodeProcess) -> int:
    """Bytes of shares that a helper had to send a second time."""
    return statistic(helper, "streaming_helper.bytes_pushed_again")


def wait_published(shared: SharedGrid, file: File, helper: NodeProcess | None = None) -> list[ShareFile]:
    """Waits until every share is in its place and the spool is empty, for `finish` is answered before: the shares,
    which are byte for byte stock's."""
    numbers = set(range(file.parameters.n))
    wait_for("every share", lambda: {s.number for s in shared.grid.shares(file.index_name)} == numbers)
    wait_for("an empty spool", lambda: not spool_of(helper or shared.grid.helper))
    assert not shared.grid.staged_shares()
    shares = shared.grid.shares(file.index_name)
    assert sorted(share.number for share in shares) == sorted(numbers), "each is on one server"
    return shares


@contextmanager
def restarted_helper(shared: SharedGrid) -> Iterator[Callable[[], None]]:
    """Call what is given to start the grid's helper again, after it has ended; it runs when the block is left."""
    helper = shared.grid.helper

    def start() -> None:
        helper.start()
        helper.wait_ready()
        shared.grid.wait_connected(helper, len(shared.grid.storage))

    try:
        yield start
    finally:
        helper.resume()
        if not helper.running:
            helper.kill()
            start()
