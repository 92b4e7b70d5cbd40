"""One storage server at a tenth of the others' speed, behind a proxy that lets no more through."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.bench import Bench
from benchmarks.grid import GRID
from benchmarks.uploads import MiB, What

NAME = "slow server"
SIZE, QUICK_SIZE = 256 * MiB, 64 * MiB
UNDISTURBED, DISTURBED = "undisturbed", "one server at a tenth"
PART = 10  # of what every server gets of an undisturbed upload


def run(bench: Bench) -> None:
    """Undisturbed, then disturbed, as often as all else."""
    grid, what = bench.grid, What(QUICK_SIZE if bench.quick else SIZE)
    slow = grid.storage[0]
    port = slow_port(slow.directory.joinpath("tahoe.cfg").read_text())
    for _round in range(bench.rounds):
        undisturbed = grid.measure(grid.ours, what)
        bench.add(NAME, UNDISTURBED, "throughput", "MB/s", what.size / 1e6 / undisturbed.to_cap, grid.ours)
        with _proxy(port, undisturbed.rate * 1e6 / GRID.k / PART) as proxy_port, grid.reached_through(slow, proxy_port):
            # to the cap: the slow server's share is placed elsewhere, or comes later, and nobody waits for it
            disturbed = grid.measure(grid.ours, what)
        bench.add(NAME, DISTURBED, "throughput", "MB/s", what.size / 1e6 / disturbed.to_cap, grid.ours)


def slow_port(config: str) -> int:
    """The port that a node of the grid listens on, from its tahoe.cfg."""
    line = next(line for line in config.splitlines() if line.startswith("tub.port"))
    return int(line.split("tcp:")[1].split(":")[0])


@contextmanager
def _proxy(port: int, rate: float) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.slow_proxy", str(port), str(int(rate))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            if proxy.stdout is None:
                raise RuntimeError("no pipe")
            yield int(proxy.stdout.readline())
            proxy.terminate()
            if int(proxy.stdout.readline()) < MiB:
                raise RuntimeError("the server was not reached through the proxy")
        finally:
            proxy.kill()
