"""Throughput, processor time and memory of one upload at a time: ours by `put` and by the gateway, and stock's, in
turn."""

from __future__ import annotations

from functools import partial

from benchmarks.bench import Bench
from benchmarks.grid import Subject
from benchmarks.samples import slope
from benchmarks.uploads import MiB, What

NAME = "throughput"
SIZES, QUICK_SIZES = (64 * MiB, 256 * MiB), (64 * MiB,)
#: The client's processor time by GiB is the slope from the larger of SIZES to this.
SLOPE_SIZE = 1024 * MiB


def run(bench: Bench) -> None:
    """Staging servers; both of our clients, both stock helpers."""
    grid = bench.grid
    sizes = QUICK_SIZES if bench.quick else SIZES
    subjects = [grid.ours, grid.gateway, grid.stock, grid.stock_foolscap]
    for subject in subjects:  # connections, caches and Python's own start-up are not what is measured
        grid.measure(subject, What(MiB))
    bench.alternate(*(partial(_one, bench, subject, size) for size in sizes for subject in subjects))
    if not bench.quick:
        for subject in (grid.ours, grid.gateway, grid.stock):
            _one(bench, subject, SLOPE_SIZE)
    _add_slopes(bench)


def run_on_stock_servers(bench: Bench) -> None:
    """Ours only, with storage nodes without the plugin: the size declared, and not."""
    grid = bench.grid
    size = (QUICK_SIZES if bench.quick else SIZES)[-1]
    grid.measure(grid.ours, What(MiB))
    bench.alternate(*(partial(_on_stock_servers, bench, size, declared) for declared in (True, False)))


def case_of(size: int) -> str:
    return f"{size // MiB} MiB"


def _one(bench: Bench, subject: Subject, size: int) -> None:
    bench.add_result(NAME, case_of(size), bench.grid.measure(subject, What(size)), subject)


def _on_stock_servers(bench: Bench, size: int, declared: bool) -> None:
    case = f"{case_of(size)}, stock servers, size {'declared' if declared else 'not declared'}"
    result = bench.grid.measure(bench.grid.ours, What(size, declared=declared))
    bench.add_result(NAME, case, result, bench.grid.ours)


def _add_slopes(bench: Bench) -> None:
    for subject in (bench.grid.ours, bench.grid.gateway, bench.grid.stock):
        points = [(s / MiB / 1024, cpu) for s in (*SIZES, SLOPE_SIZE)
                  if s >= SIZES[-1] and (cpu := bench.samples.median(NAME, case_of(s), "client CPU", subject.name))]
        value = slope(points)
        if value is not None:
            bench.add(NAME, f"slope from {case_of(SIZES[-1])} to {case_of(SLOPE_SIZE)}", "client CPU", "s/GiB", value,
                      subject)
