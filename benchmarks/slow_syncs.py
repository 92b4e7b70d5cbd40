"""Every fsync and fdatasync of helper and storage nodes takes 20 ms, as on a disk that has no cache of its own."""

from __future__ import annotations

import shutil

from benchmarks.bench import Bench
from benchmarks.uploads import MiB, What

NAME = "slow syncs"
SIZE = 256 * MiB
DELAY = 20_000  # microseconds
#: With seccomp-bpf only the calls that are slowed stop at strace; the rest run as they are.
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fsync,fdatasync",
          "-e", f"inject=fsync,fdatasync:delay_exit={DELAY}")
UNDISTURBED, DISTURBED = "syncs as they are", f"syncs of {DELAY // 1000} ms"


def run(bench: Bench) -> None:
    """Both in this order, as nodes have to be restarted for it."""
    if shutil.which("strace") is None:
        bench.say("  left out: there is no strace")
        return
    _measure(bench, UNDISTURBED)
    with bench.grid.run_by([bench.grid.ours.helper, *bench.grid.storage], STRACE):
        _measure(bench, DISTURBED)


def _measure(bench: Bench, case: str) -> None:
    grid = bench.grid
    grid.upload_once(What(MiB))
    for _round in range(bench.rounds):
        done, all_shares = grid.upload_once(What(SIZE))
        bench.add(NAME, case, "throughput", "MB/s", SIZE / 1e6 / (all_shares - done.first_byte), grid.ours)
        bench.add(NAME, case, "last byte to cap", "s", done.cap_at - done.last_byte, grid.ours)
        bench.say(f"  {case}: {SIZE / 1e6 / (all_shares - done.first_byte):.1f} MB/s, close "
                  f"{done.cap_at - done.last_byte:.3f} s")
