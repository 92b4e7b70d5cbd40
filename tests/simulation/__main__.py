"""`python -m simulation --seed N` (in tests/) prints a schedule and its trace; `--schedules N` runs many."""

from __future__ import annotations

import argparse
import sys
import traceback

import attrs

from simulation.run import coverage, discard_history, missing, run, run_many
from simulation.schedule import Schedule, schedule


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, and tell all of it")
    parser.add_argument("--schedules", type=int, help="run so many, and tell what they reached")
    parser.add_argument("--shrink", action="store_true", help="leave out every fault without which it fails, too")
    parser.add_argument("--quiet", action="store_true", help="print no trace")
    arguments = parser.parse_args()
    if arguments.seed is None:
        return many(arguments.schedules or 5000)
    discard_history()
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


def many(number: int) -> int:
    results = run_many(number)
    print(coverage(results.report))
    for failed in results.failed:
        print(f"seed {failed.seed}:\n{failed.text}")
    return 1 if results.failed or missing(results.report) else 0


def shrunk(plan: Schedule) -> Schedule:
    """The same with as few faults and clients as still fail; as it is if it does not fail."""
    for fault in plan.faults:
        fewer = attrs.evolve(plan, faults=tuple(f for f in plan.faults if f is not fault))
        plan = fewer if fails(fewer) else plan
    for program in plan.programs:
        fewer = attrs.evolve(plan, programs=tuple(p for p in plan.programs if p is not program))
        plan = fewer if fewer.programs and fails(fewer) else plan
    return plan


def fails(plan: Schedule) -> bool:
    try:
        run(plan)
    except Exception:  # noqa: BLE001
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
