"""The benchmark's output: a table for people, JSON for programs.  (pure)"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from benchmarks.samples import Samples, Summary
from benchmarks.targets import Target

FORMAT = 1
_HEADINGS = ("case", "quantity", "subject", "median", "lowest", "highest", "n", "unit")


def table(samples: Samples, targets: Iterable[Target]) -> Iterator[str]:
    """Lines: every measurement, then what must hold."""
    by_measurement: dict[str, list[Summary]] = {}
    for summary in samples:
        by_measurement.setdefault(summary.key.measurement, []).append(summary)
    for name, summaries in by_measurement.items():
        yield f"{name}"
        yield from _aligned([_HEADINGS, *map(_row, summaries)])
        yield ""
    yield "what must hold"
    yield from _aligned([("what", "measured", "expected", ""), *(_target_row(target) for target in targets)])


def as_json(samples: Samples, targets: Iterable[Target], machine: Mapping[str, object]) -> str:
    """Everything, single values too."""
    return json.dumps({
        "format": FORMAT,
        "machine": dict(machine),
        "measurements": [{
            "measurement": s.key.measurement, "case": s.key.case, "quantity": s.key.quantity, "subject": s.key.subject,
            "unit": s.key.unit, "median": s.median, "lowest": s.low, "highest": s.high, "values": list(s.values),
        } for s in samples],
        "targets": [{"text": t.text, "measured": t.measured, "unit": t.unit, "least": t.least, "most": t.most,
                     "met": t.met} for t in targets],
    }, indent=1)


def number(value: float) -> str:
    """Three digits, or all that are before the point."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _row(s: Summary) -> tuple[str, ...]:
    return (s.key.case, s.key.quantity, s.key.subject, number(s.median), number(s.low), number(s.high),
            str(len(s.values)), s.key.unit)


def _target_row(target: Target) -> tuple[str, ...]:
    measured = "not measured" if target.measured is None else f"{number(target.measured)} {target.unit}"
    bounds = [f"at least {number(target.least)}"] if target.least is not None else []
    bounds += [f"at most {number(target.most)}"] if target.most is not None else []
    verdict = {None: "", True: "yes", False: "NO"}[target.met] if bounds else ""
    return (target.text, measured, " and ".join(bounds), verdict)


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
