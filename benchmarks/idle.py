"""The memory of a helper that has a thousand uploads open whose writers do nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.bench import Bench
from benchmarks.processes import forget_peak, memory, peak_memory
from helper.free_memory import INTERVAL

NAME = "idle"
UPLOADS, QUICK_UPLOADS = 1000, 100
EACH = 3 * 512 * 1024  # bytes


def run(bench: Bench) -> None:
    """Once; it takes as long as it takes to write all that."""
    grid, count = bench.grid, QUICK_UPLOADS if bench.quick else UPLOADS
    with grid.only(grid.ours):
        helper = grid.ours.helper.pid
        at_start = memory(helper)
        forget_peak(helper)
        command = [sys.executable, "-m", "benchmarks.idle_client", str(grid.client_directory), str(count), str(EACH)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as client:
            if client.stdout is None or client.stdin is None or client.stdout.readline() != "idle\n":
                raise RuntimeError("the uploads could not be begun")
            burst = peak_memory(helper)
            time.sleep(2 * INTERVAL)  # what is measured is how it is when nothing happens; there is nothing to wait for
            resting = memory(helper)
            client.stdin.close()
            if client.wait() != 0:
                raise RuntimeError("the uploads could not be aborted")
    case = f"{count} x {EACH / 1024 / 1024:g} MiB"
    for quantity, value in (("helper memory at its start", at_start), ("helper memory at most meanwhile", burst),
                            ("helper memory in all", resting)):
        bench.add(NAME, case, quantity, "MiB", value, grid.ours)
