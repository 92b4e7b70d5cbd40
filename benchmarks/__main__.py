"""Measure, and print a table: `python -m benchmarks`, or `tox -e bench`. Under 40 minutes, with --quick under 5.

Everything runs on this machine; it should do nothing else meanwhile.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import (
    closing,
    concurrency,
    first_block,
    growth,
    idle,
    parts,
    slow_server,
    slow_syncs,
    throughput,
)
from benchmarks.bench import Bench
from benchmarks.grid import BenchGrid
from benchmarks.processes import stolen_seconds
from benchmarks.report import as_json, table
from benchmarks.samples import Samples
from benchmarks.targets import targets
from helper.codec import describe_code

#: Those on storage nodes with our plugin, then those without; in this order.
WITH_PLUGIN: dict[str, Callable[[Bench], None]] = {
    parts.NAME: parts.run, throughput.NAME: throughput.run, closing.NAME: closing.run,
    first_block.NAME: first_block.run, concurrency.NAME: concurrency.run, idle.NAME: idle.run,
    slow_server.NAME: slow_server.run, growth.NAME: growth.run, slow_syncs.NAME: slow_syncs.run}
WITHOUT_PLUGIN: dict[str, Callable[[Bench], None]] = {
    f"{throughput.NAME} on stock servers": throughput.run_on_stock_servers,
    f"{closing.NAME} on stock servers": closing.run_on_stock_servers}
NOT_QUICK = {growth.NAME, slow_syncs.NAME, slow_server.NAME}
#: Stock's own numbers differ by a fifth from one time to the next; the median of three does less.
ROUNDS, QUICK_ROUNDS = 3, 1


@click.command()
@click.option("--quick", is_flag=True, help="Small files, one round, and without what takes long.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this measurement; may be repeated. One of: "
              + "; ".join([*WITH_PLUGIN, *WITHOUT_PLUGIN]) + ".")
@click.option("--rounds", type=click.IntRange(1), help=f"How often; default {ROUNDS}, with --quick {QUICK_ROUNDS}.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), default=Path("benchmark.json"),
              show_default=True, help="Where everything goes that was measured.")
@click.option("--directory", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Where the grid is made; needs 20 GB (with --quick 2) on a disk worth measuring.")
def main(quick: bool, only: tuple[str, ...], rounds: int | None, json_file: Path, directory: Path | None) -> None:
    """Measure our helper and client against those of stock Tahoe-LAFS, on one grid, in one run."""
    if unknown := {*only} - {*WITH_PLUGIN, *WITHOUT_PLUGIN}:
        raise click.BadParameter(f"no such measurement: {', '.join(sorted(unknown))}")
    began, stolen = time.monotonic(), stolen_seconds()
    samples = Samples()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True)

    def wanted(name: str) -> bool:
        return name in only if only else not (quick and name in NOT_QUICK)

    base = Path(tempfile.mkdtemp(prefix="tahoe-stream-benchmark-", dir=directory))
    grid = BenchGrid(base / "grid", say)
    try:
        grid.start()
        bench = Bench(grid, samples, quick, rounds or (QUICK_ROUNDS if quick else ROUNDS), say)
        for name, run in WITH_PLUGIN.items():
            if wanted(name):
                say(name)
                run(bench)
        if any(map(wanted, WITHOUT_PLUGIN)):
            with grid.without_plugin():
                for name, run in WITHOUT_PLUGIN.items():
                    if wanted(name):
                        say(name)
                        run(bench)
    finally:
        grid.stop()
        shutil.rmtree(base, ignore_errors=True)
        took = time.monotonic() - began
        machine = _machine(took, stolen_seconds() - stolen, quick)
        json_file.write_text(as_json(samples, targets(samples), machine))  # whatever there is, if it ends early
    for line in table(samples, targets(samples)):
        print(line)
    print(f"\n{took:.0f} s on {machine['processors']} processors, of which the host gave "
          f"{machine['stolen-seconds']} s to others; all values are in {json_file}")


def _machine(took: float, stolen: float, quick: bool) -> dict[str, object]:
    versions = {name: importlib.metadata.version(name) for name in ("tahoe-lafs", "foolscap", "twisted", "zfec")}
    return {"processors": os.cpu_count(), "kind": platform.machine(), "python": platform.python_version(),
            "erasure-code": describe_code(3, 10), "versions": versions, "seconds": round(took),
            "stolen-seconds": round(stolen, 1), "quick": quick}


if __name__ == "__main__":
    main()
