"""Several uploads at a time through one helper."""

from __future__ import annotations

import threading
import time
from functools import partial

from benchmarks.bench import Bench
from benchmarks.processes import cpu_seconds, forget_peak, memory, peak_memory
from benchmarks.uploads import MiB, Uploaded, What

NAME = "concurrency"
COUNTS, QUICK_COUNTS = (1, 4, 16), (1, 4)
SIZE = 64 * MiB


def run(bench: Bench) -> None:
    """Of our client; each is a process of its own."""
    counts = QUICK_COUNTS if bench.quick else COUNTS
    bench.alternate(*(partial(_together, bench, count) for count in counts))


def case_of(count: int) -> str:
    return f"{count} x {SIZE // MiB} MiB"


def _together(bench: Bench, count: int) -> None:
    grid, done, broken = bench.grid, list[Uploaded](), list[BaseException]()

    def one() -> None:
        try:
            done.append(grid.ours.upload(What(SIZE)))
        except BaseException as e:  # noqa: BLE001 (raised where it is waited for)
            broken.append(e)

    with grid.only(grid.ours):
        helper = grid.ours.helper.pid
        before, cpu = memory(helper), cpu_seconds([helper])
        forget_peak(helper)
        threads = [threading.Thread(target=one) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if broken:
            raise broken[0]
        for each in done:
            grid.wait_for_shares(each.cap)
        took = time.monotonic() - min(each.first_byte for each in done)
        peak, used = peak_memory(helper) - before, cpu_seconds([helper]) - cpu
    for each in done:
        grid.remove_shares(each.cap)
    total = count * SIZE
    bench.say(f"  {case_of(count)}: {total / 1e6 / took:.1f} MB/s, {peak:.0f} MiB")
    bench.add(NAME, case_of(count), "throughput of all", "MB/s", total / 1e6 / took, grid.ours)
    bench.add(NAME, case_of(count), "helper memory", "MiB", max(0.0, peak), grid.ours)
    bench.add(NAME, case_of(count), "helper CPU", "s/GiB", used * 1024 * MiB / total, grid.ours)
    bench.add(NAME, case_of(count), "longest close", "s", max(each.cap_at - each.last_byte for each in done), grid.ours)
