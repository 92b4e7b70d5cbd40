"""What was measured: single values, and their medians and ranges.  (pure)"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

import attrs


@attrs.frozen
class Key:
    """What a value is of. `measurement` names a module, `case` what was done, `subject` who did it."""

    measurement: str
    case: str
    quantity: str
    subject: str
    unit: str


@attrs.frozen
class Summary:
    """Values of one kind."""

    key: Key
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


class Samples:
    """Values in the order in which their kinds were first seen."""

    def __init__(self) -> None:
        self._values: dict[Key, list[float]] = {}

    def add(self, key: Key, value: float) -> None:
        self._values.setdefault(key, []).append(value)

    def __iter__(self) -> Iterator[Summary]:
        return (Summary(key, tuple(values)) for key, values in self._values.items())

    def median(self, measurement: str, case: str, quantity: str, subject: str) -> float | None:
        """None if nothing of that kind was measured."""
        for summary in self:
            k = summary.key
            if (k.measurement, k.case, k.quantity, k.subject) == (measurement, case, quantity, subject):
                return summary.median
        return None


def slope(points: Iterable[tuple[float, float]]) -> float | None:
    """Of the line through the first and the last of points (x, y) by x; None if there are not two of different x."""
    ordered = sorted(points)
    if len(ordered) < 2 or ordered[0][0] == ordered[-1][0]:
        return None
    (x0, y0), (x1, y1) = ordered[0], ordered[-1]
    return (y1 - y0) / (x1 - x0)
