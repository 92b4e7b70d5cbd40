"""How long a program waits in close(): from its last byte to the cap, of a producer at a pace and of one without."""

from __future__ import annotations

from functools import partial

from benchmarks.bench import Bench
from benchmarks.uploads import MiB, What

NAME = "closing"
SIZES, QUICK_SIZES = (MiB, 64 * MiB, 1024 * MiB), (MiB, 64 * MiB)
PACE = 20_000_000  # bytes a second
STAGING_SERVERS, STOCK_SERVERS = "staging servers", "stock servers"


def run(bench: Bench) -> None:
    """Storage nodes have the plugin."""
    _run(bench, STAGING_SERVERS)


def run_on_stock_servers(bench: Bench) -> None:
    """Storage nodes have not."""
    _run(bench, STOCK_SERVERS)


def _run(bench: Bench, servers: str) -> None:
    sizes = QUICK_SIZES if bench.quick else SIZES
    bench.grid.measure(bench.grid.ours, What(MiB))
    bench.alternate(*(partial(_one, bench, servers, size, rate) for size in sizes for rate in (PACE, None)))


def case_of(servers: str, size: int, rate: float | None) -> str:
    pace = "unthrottled" if rate is None else f"{rate / 1e6:g} MB/s"
    return f"{size // MiB} MiB, {pace}, {servers}"


def _one(bench: Bench, servers: str, size: int, rate: float | None) -> None:
    result = bench.grid.measure(bench.grid.ours, What(size, rate))
    bench.add_result(NAME, case_of(servers, size, rate), result, bench.grid.ours, ["last byte to cap"])
