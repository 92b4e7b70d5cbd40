"""What every measurement is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from benchmarks.grid import BenchGrid, Result, Subject
from benchmarks.samples import Key, Samples


@attrs.frozen
class Bench:
    """`quick`: fewer sizes, and what takes long is left out; `rounds`: how often everything is measured."""

    grid: BenchGrid
    samples: Samples
    quick: bool
    rounds: int
    say: Callable[[str], None]

    def alternate(self, *cases: Callable[[], None]) -> None:
        """All of them, `rounds` times, so that whatever else the machine does meets each alike."""
        for number in range(self.rounds):
            self.say(f"round {number + 1} of {self.rounds}")
            for case in cases:
                case()

    def add(self, measurement: str, case: str, quantity: str, unit: str, value: float, subject: Subject | str) -> None:
        name = subject if isinstance(subject, str) else subject.name
        self.samples.add(Key(measurement, case, quantity, name, unit), value)

    def add_result(self, measurement: str, case: str, result: Result, subject: Subject | str,
                   quantities: Sequence[str] = ()) -> None:
        """What is known of an upload; only these quantities, if any are named."""
        known = {
            "throughput": ("MB/s", result.rate),
            "to all shares": ("s", result.to_all_shares),
            "to cap": ("s", result.to_cap),
            "last byte to cap": ("s", result.close),
            "helper CPU": ("s/GiB", result.per_gib(result.helper_cpu)),
            "storage CPU": ("s/GiB", result.per_gib(result.storage_cpu)),
            "client CPU": ("s", result.client_cpu),
            "client start-up CPU": ("s", result.client_start_cpu),
            "helper memory": ("MiB", result.helper_peak),
            "client memory": ("MiB", result.client_peak),
        }
        for quantity in quantities or known:
            unit, value = known[quantity]
            self.add(measurement, case, quantity, unit, value, subject)
