"""A large file costs by the byte what a small one does."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.throughput import case_of
from benchmarks.uploads import MiB, What

NAME = "growth"
SMALL, LARGE = 256 * MiB, 4096 * MiB


def run(bench: Bench) -> None:
    """The large one once, the small one in between."""
    for size in (SMALL, LARGE, SMALL):
        _one(bench, size)


def _one(bench: Bench, size: int) -> None:
    result = bench.grid.measure(bench.grid.ours, What(size))
    bench.add_result(NAME, case_of(size), result, bench.grid.ours, [
        "throughput", "helper CPU", "storage CPU", "helper memory", "client memory", "last byte to cap"])
