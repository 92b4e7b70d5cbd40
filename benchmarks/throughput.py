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
    bench.alternate(
        *(partial(_one, bench, subject, size) for size in sizes for subject in subjects),
        # In the same rounds as the smaller size: a machine may be a third slower some minutes later.
        *(partial(_one, bench, subject, SLOPE_SIZE) for subject in (grid.ours, grid.gateway, grid.stock)
          if not bench.quick))
    _add_slopes(bench)


def run_on_stock_servers(bench: Bench) -> None:
    """With storage nodes as they are without us: ours, the size declared and not, and stock's. (The plugin makes
    storage nodes quicker for stock's uploads, too: free_memory.py.)"""
    grid = bench.grid
    size = (QUICK_SIZES if bench.quick else SIZES)[-1]
    stocks = [grid.stock, grid.stock_foolscap]
    for subject in (grid.ours, *stocks):
        grid.measure(subject, What(MiB))
    bench.alternate(
        *(partial(_on_stock_servers, bench, grid.ours, size, declared) for declared in (True, False)),
        *(partial(_on_stock_servers, bench, subject, size, True) for subject in stocks))


def case_of(size: int) -> str:
    return f"{size // MiB} MiB"


def _one(bench: Bench, subject: Subject, size: int) -> None:
    bench.add_result(NAME, case_of(size), bench.grid.measure(subject, What(size)), subject)


def case_on_stock_servers(size: int, declared: bool) -> str:
    return f"{case_of(size)}, stock servers, size {'declared' if declared else 'not declared'}"


def _on_stock_servers(bench: Bench, subject: Subject, size: int, declared: bool) -> None:
    result = bench.grid.measure(subject, What(size, declared=declared))
    bench.add_result(NAME, case_on_stock_servers(size, declared), result, subject)


def _add_slopes(bench: Bench) -> None:
    for subject in (bench.grid.ours, bench.grid.gateway, bench.grid.stock):
        points = [(s / MiB / 1024, cpu) for s in (*SIZES, SLOPE_SIZE)
                  if s >= SIZES[-1] and (cpu := bench.samples.median(NAME, case_of(s), "client CPU", subject.name))]
        value = slope(points)
        if value is not None:
            bench.add(NAME, f"slope from {case_of(SIZES[-1])} to {case_of(SLOPE_SIZE)}", "client CPU", "s/GiB", value,
                      subject)
