"""Medians, ranges, targets and the report of the benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import closing, parts, slow_syncs, throughput
from benchmarks.processes import cpu_seconds, forget_peak, memory, peak_memory
from benchmarks.report import as_json, number, table
from benchmarks.samples import Key, Samples, slope
from benchmarks.targets import OURS, STOCK, STOCK_FOOLSCAP, Target, targets
from benchmarks.uploads import CHUNK, MiB, What, pieces


def samples_of(*values: tuple[str, str, str, str, float]) -> Samples:
    samples = Samples()
    for measurement, case, quantity, subject, value in values:
        samples.add(Key(measurement, case, quantity, subject, "s"), value)
    return samples


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_median_and_range(values: list[float]) -> None:
    samples = samples_of(*(("m", "c", "q", "s", value) for value in values))
    (summary,) = samples
    assert summary.low <= summary.median <= summary.high
    assert {summary.low, summary.high} <= {*values}
    assert sum(v <= summary.median for v in values) >= len(values) / 2 <= sum(v >= summary.median for v in values)


def test_medians_are_found_by_what_they_are_of() -> None:
    values = [("s", 3), ("t", 7), ("s", 1), ("s", 9)]
    samples = samples_of(*(("m", "c", "q", subject, value) for subject, value in values))
    assert samples.median("m", "c", "q", "s") == 3
    assert samples.median("m", "c", "q", "t") == 7
    assert samples.median("m", "c", "other", "s") is None
    assert [s.key.subject for s in samples] == ["s", "t"]


@given(st.floats(-100, 100), st.floats(-100, 100), st.lists(st.integers(-50, 50), min_size=2, unique=True))
def test_slope_of_a_line(a: float, b: float, xs: list[int]) -> None:
    assert slope((x, a + b * x) for x in xs) == pytest.approx(b, abs=1e-9)


def test_slope_of_too_few_points() -> None:
    assert slope([]) is slope([(1.0, 5.0)]) is slope([(1.0, 5.0), (1.0, 6.0)]) is None


def target(samples: Samples, text: str) -> Target:
    return next(t for t in targets(samples) if t.text.startswith(text))


def rates(ours: float, stock: float, foolscap: float) -> Samples:
    case = throughput.case_of(256 * MiB)
    return samples_of((throughput.NAME, case, "throughput", OURS, ours),
                      (throughput.NAME, case, "throughput", STOCK, stock),
                      (throughput.NAME, case, "throughput", STOCK_FOOLSCAP, foolscap))


def test_targets_are_met_or_not() -> None:
    samples = rates(60, 14, 21)
    by_stock, by_foolscap = target(samples, "256 MiB: throughput by stock's"), target(
        samples, "256 MiB: throughput by stock's with")
    assert by_stock.measured == pytest.approx(60 / 14)
    assert by_stock.met is True
    assert by_foolscap.met is False


def test_what_was_not_measured_is_neither() -> None:
    assert {t.met for t in targets(Samples())} == {None}
    assert all(t.measured is None for t in targets(Samples()))


def test_targets_of_differences() -> None:
    cases = [closing.case_of(closing.STOCK_SERVERS, size * MiB, None) for size in (64, 1024)]
    samples = samples_of(*((name, case, "last byte to cap", OURS, seconds) for name, case, seconds in [
        (closing.NAME, cases[0], 0.2), (closing.NAME, cases[1], 0.26),
        (slow_syncs.NAME, slow_syncs.UNDISTURBED, 0.2), (slow_syncs.NAME, slow_syncs.DISTURBED, 0.3)]))
    grows = target(samples, f"the same, 1 GiB more than 64 MiB, unthrottled, {closing.STOCK_SERVERS}")
    assert grows.measured == pytest.approx(0.06)
    assert grows.met is False
    assert target(samples, "last byte to cap with syncs").met is True


def test_every_target_can_be_measured() -> None:
    """Whatever the sums of two parts are called, the report knows them by the same name."""
    samples = samples_of((parts.NAME, parts.floor_case("TLS"), "CPU", parts.SUBJECT, 5),
                         (throughput.NAME, throughput.case_of(256 * MiB), "helper CPU", OURS, 11))
    assert target(samples, "256 MiB: helper CPU by the floor over TLS").measured == pytest.approx(2.2)


def test_the_table_has_it_all() -> None:
    samples = rates(60, 14, 21)
    lines = list(table(samples, targets(samples)))
    assert lines[0] == throughput.NAME
    assert lines[2].split()[-5:] == ["60", "60", "60", "1", "s"]
    text = "\n".join(lines)
    assert "4.29 x" in text
    assert "at least 4" in text
    assert "NO" in text
    assert "not measured" in text
    assert not [line for line in lines if line != line.rstrip()]


def test_the_json_is_the_table_with_single_values() -> None:
    samples = samples_of(("m", "c", "q", "s", 1), ("m", "c", "q", "s", 5))
    read = json.loads(as_json(samples, [Target("t", None, "s", most=2.0)], {"processors": 2}))
    assert read["measurements"] == [{"measurement": "m", "case": "c", "quantity": "q", "subject": "s", "unit": "s",
                                     "median": 3, "lowest": 1, "highest": 5, "values": [1, 5]}]
    assert read["targets"] == [
        {"text": "t", "measured": None, "unit": "s", "least": None, "most": 2.0, "met": None}]
    assert read["machine"] == {"processors": 2}


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (0.04567, "0.0457"), (9.876, "9.88"), (123.4, "123"), (12345.6, "12346"), (-0.5, "-0.5")])
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


# -- what it measures with ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, CHUNK, CHUNK + 1, 3 * CHUNK - 1])
def test_pieces_are_new_bytes_and_so_many(size: int) -> None:
    first, second = b"".join(pieces(What(size))), b"".join(pieces(What(size)))
    assert len(first) == len(second) == size
    if size > 16:
        assert first != second


def test_a_paced_producer_takes_its_time() -> None:
    began = time.monotonic()
    assert sum(map(len, pieces(What(4 * 64 * 1024, rate=2_000_000)))) == 4 * 64 * 1024
    assert time.monotonic() - began >= 3 * 64 * 1024 / 2_000_000


def test_processor_time_includes_children_that_ended() -> None:
    own = [os.getpid()]
    before = cpu_seconds(own)
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    assert cpu_seconds(own) - before >= 0.15


def test_memory_of_a_process() -> None:
    own = os.getpid()
    forget_peak(own)
    before = memory(own)
    data = bytes(bytearray(os.urandom(1024)) * (64 * 1024))
    assert peak_memory(own) >= before + 60
    assert len(data) == 64 * MiB
