"""The benchmark's smallest measurement runs to its end. What it measures is not looked at: no assertion on time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_first_block(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--only", "first block", "--json", str(report),
         "--directory", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(report.read_text())["measurements"]
    assert (measured["measurement"], measured["subject"], measured["unit"]) == ("first block", "ours", "s")
    assert measured["median"] > 0
    assert "first byte to first block" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]  # the grid is gone


def test_a_measurement_that_there_is_not(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--only", "luck"], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 2
    assert "no such measurement: luck" in done.stderr
