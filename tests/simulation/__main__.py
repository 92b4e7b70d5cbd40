"""`python -m simulation --seed N` (in tests/) prints a schedule and all that happens in it; see also --help."""

from __future__ import annotations

import argparse
import sys
import traceback

import attrs
from twisted.logger import globalLogBeginner

from simulation.run import run
from simulation.schedule import Schedule, schedule


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--shrink", action="store_true", help="leave out every fault without which it fails, too")
    parser.add_argument("--quiet", action="store_true", help="print no trace")
    arguments = parser.parse_args()
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    plan = schedule(arguments.seed)
    if arguments.shrink:
        plan = shrunk(plan)
    print(plan)
    try:
        report = run(plan, (lambda _line: None) if arguments.quiet else print)
    except Exception:  # noqa: BLE001 (shown to whoever looks for it)
        traceback.print_exc(file=sys.stdout)
        return 1
    print(f"passed: {report.steps} steps, {report.faults.total()} faults struck; {dict(report.endings)}")
    return 0


def shrunk(plan: Schedule) -> Schedule:
    """The same with as few faults and clients as still fail; as it is if it does not fail."""
    for field in ("faults", "programs"):
        for item in getattr(plan, field):
            fewer = attrs.evolve(plan, **{field: tuple(x for x in getattr(plan, field) if x is not item)})
            if fewer.programs and fails(fewer):
                plan = fewer
    return plan


def fails(plan: Schedule) -> bool:
    try:
        run(plan)
    except Exception:  # noqa: BLE001
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
