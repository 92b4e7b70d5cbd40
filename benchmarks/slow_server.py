"""One storage server at a tenth of the others' speed, behind a proxy that lets no more through."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.bench import Bench
from benchmarks.grid import GRID
from benchmarks.uploads import MiB, What
from client_shim.local_ports import PortReservations

NAME = "slow server"
SIZE, QUICK_SIZE = 256 * MiB, 64 * MiB
UNDISTURBED, DISTURBED = "undisturbed", "one server at a tenth"
PART = 10  # of what every server gets of an undisturbed upload


def run(bench: Bench) -> None:
    """Undisturbed, then disturbed, as often as all else."""
    grid, what = bench.grid, What(QUICK_SIZE if bench.quick else SIZE)
    slow = grid.storage[0]
    ports = PortReservations()
    try:
        for _round in range(bench.rounds):
            listens = ports.reserve()
            undisturbed = grid.measure(grid.ours, what)
            bench.add(NAME, UNDISTURBED, "throughput", "MB/s", what.size / 1e6 / undisturbed.to_cap, grid.ours)
            rate = undisturbed.rate * 1e6 / GRID.k / PART
            with _proxy(listens, rate) as port, grid.reached_through(slow, port, listens):
                # to the cap: the slow server's share is placed elsewhere, or comes later, and nobody waits for it
                disturbed = grid.measure(grid.ours, what)
            bench.add(NAME, DISTURBED, "throughput", "MB/s", what.size / 1e6 / disturbed.to_cap, grid.ours)
    finally:
        ports.release()


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
