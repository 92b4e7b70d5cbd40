"""The simulation: thousands of schedules, each of which must hold every invariant; see run.py.

A seed that fails runs alone with `python -m simulation --seed N` in this directory's parent, with its trace.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simulation.run import STEPS_MIN, Report, coverage, missing, run, run_many
from simulation.schedule import schedule

#: By default. The option --schedules of pytest says otherwise.
SCHEDULES = 5000


@pytest.mark.timeout(0)  # as long as so many take
def test_schedules(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = request.config.getoption("--schedules")
    results = run_many(wanted)
    with capsys.disabled():
        print(f"\n{coverage(results.report)}")
    for failed in results.failed:
        print(f"rerun with `python -m simulation --seed {failed.seed}` in tests/:")
        print(schedule(failed.seed), failed.text, sep="\n")
    assert not results.failed, f"seeds {[failed.seed for failed in results.failed]} failed"
    assert results.report.counted == wanted
    if wanted >= SCHEDULES:
        assert not missing(results.report), "never reached"


def trace_of(seed: int) -> list[str]:
    lines: list[str] = []
    run(schedule(seed), lines.append)
    return lines


@pytest.mark.parametrize("seed", range(20))
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    lines = trace_of(seed)
    assert lines
    assert trace_of(seed) == lines


def test_the_same_seed_gives_the_same_trace_in_another_process() -> None:
    here = Path(__file__).parent.parent
    for seed, hash_seed in [(3, "1"), (3, "2"), (11, "1"), (11, "2")]:
        done = subprocess.run(
            [sys.executable, "-m", "simulation", "--seed", str(seed)], cwd=here, capture_output=True, text=True,
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": hash_seed}, check=True)
        assert "\n".join(trace_of(seed)) in done.stdout


def test_what_is_missing_is_told() -> None:
    nothing = Report()
    assert "SPOOL_EXHAUSTED" in missing(nothing)
    assert "ready -> publishing" in missing(nothing)
    assert "streamed-before" in missing(nothing)
    assert f"at least {STEPS_MIN} steps" in coverage(nothing)
