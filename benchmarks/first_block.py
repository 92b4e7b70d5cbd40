"""How soon the first block of an upload is on a server's disk."""

from __future__ import annotations

import threading
import time

from benchmarks.bench import Bench
from benchmarks.uploads import MiB, What

NAME = "first block"
#: A producer at a modest pace, and long enough for a block to be seen.
WHAT = What(16 * MiB, rate=8_000_000)
LOOK_INTERVAL = 0.005  # seconds


def run(bench: Bench) -> None:
    """Of a segment of 1 MiB, of which the first is complete after 0.13 s at that pace."""
    bench.alternate(lambda: bench.add(NAME, "16 MiB at 8 MB/s", "first byte to first block", "s", _once(bench),
                                      bench.grid.ours))


def _once(bench: Bench) -> float:
    grid = bench.grid
    ended = threading.Event()
    with grid.only(grid.ours):
        caps: list[tuple[str, float]] = []

        def upload() -> None:
            try:
                done = grid.ours.upload(WHAT)
                caps.append((done.cap, done.first_byte))
            finally:
                ended.set()

        uploading = threading.Thread(target=upload)
        uploading.start()
        seen = None
        while seen is None and not ended.wait(LOOK_INTERVAL):
            seen = time.monotonic() if grid.holds_blocks() else None
        uploading.join()
        if seen is None or not caps:
            raise RuntimeError("no block was seen before the upload ended")
        cap, first_byte = caps[0]
        grid.wait_for_shares(cap)
        grid.remove_shares(cap)
    return seen - first_byte
