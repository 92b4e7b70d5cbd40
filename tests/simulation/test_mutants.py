"""The simulation itself is tested: it finds each of these deliberate bugs (mutants.py)."""

from __future__ import annotations

import pytest

from simulation.mutants import MUTANTS, Mutant
from simulation.run import run
from simulation.schedule import schedule
from simulation.test_simulation import SCHEDULES


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_found(mutant: Mutant) -> None:
    for seed in range(SCHEDULES):
        try:
            with mutant.active():
                run(schedule(seed), seams=mutant.seams)
        except Exception:  # noqa: BLE001 (a bug may break things in any way)
            run(schedule(seed))  # without the bug nothing is wrong
            return
    pytest.fail(f"not found in {SCHEDULES} schedules")
