"""The parameters of `open`: every bound of protocol.txt §4.1, and the text of every refusal."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helper.errors import BadArgument, ParametersDiffer
from helper.interfaces import SEGMENT_SIZE_MAX, SHARES_MAX, SIZE_MAX
from helper.parameters import UNKNOWN_SIZE, Parameters

GOOD = {b"k": 3, b"happy": 7, b"n": 10, b"max-segment-size": 1048576, b"size": 1000}


@st.composite
def parameters(draw: st.DrawFn) -> Parameters:
    n = draw(st.integers(1, SHARES_MAX))
    return Parameters(draw(st.integers(1, n)), draw(st.integers(1, n)), n, draw(st.integers(1, SEGMENT_SIZE_MAX)),
                      draw(st.none() | st.integers(0, SIZE_MAX)))


@given(parameters())
def test_there_and_back(wanted: Parameters) -> None:
    wire = wanted.to_wire()
    assert Parameters.from_wire(wire) == wanted
    assert (b"size" in wire) == (wanted.size is not None)
    wanted.check_same(Parameters.from_wire(wire))


@given(parameters())
def test_full_segment_size(wanted: Parameters) -> None:
    full = wanted.full_segment_size
    assert full % wanted.k == 0
    assert wanted.max_segment_size <= full < wanted.max_segment_size + wanted.k


def test_bounds_are_what_the_protocol_says() -> None:
    assert (SHARES_MAX, SEGMENT_SIZE_MAX, SIZE_MAX) == (256, 8_388_608, 2**53)


@pytest.mark.parametrize("wire", [
    {b"k": 1, b"happy": 1, b"n": 1, b"max-segment-size": 1, b"size": 0},
    {b"k": 256, b"happy": 256, b"n": 256, b"max-segment-size": 8_388_608, b"size": 2**53},
    {b"k": 256, b"happy": 1, b"n": 256, b"max-segment-size": 1},
    {b"k": 1, b"happy": 256, b"n": 256, b"max-segment-size": 1},
])
def test_at_the_bounds(wire: dict[bytes, int]) -> None:
    assert Parameters.from_wire(wire).to_wire() == wire


@pytest.mark.parametrize(("key", "value", "expected"), [
    (b"k", 0, "k: expected a number from 1 to 256, got 0"),
    (b"k", -1, "k: expected a number from 1 to 256, got -1"),
    (b"k", 11, "k: expected a number from 1 to 10, got 11"),
    (b"k", 257, "k: expected a number from 1 to 256, got 257"),
    (b"happy", 0, "happy: expected a number from 1 to 256, got 0"),
    (b"happy", 11, "happy: expected a number from 1 to 10, got 11"),
    (b"happy", 2**64, f"happy: expected a number from 1 to 256, got {2**64}"),
    (b"n", 0, "n: expected a number from 1 to 256, got 0"),
    (b"n", 257, "n: expected a number from 1 to 256, got 257"),
    (b"n", 2, "k: expected a number from 1 to 2, got 3"),
    (b"max-segment-size", 0, "max-segment-size: expected a number from 1 to 8388608, got 0"),
    (b"max-segment-size", 8_388_609, "max-segment-size: expected a number from 1 to 8388608, got 8388609"),
    (b"size", -1, "size: expected a number from 0 to 9007199254740992, got -1"),
    (b"size", 2**53 + 1, "size: expected a number from 0 to 9007199254740992, got 9007199254740993"),
    (b"k", b"3", "k: expected a number from 1 to 256, got b'3'"),
    (b"k", 3.0, "k: expected a number from 1 to 256, got 3.0"),
    (b"k", True, "k: expected a number from 1 to 256, got True"),
    (b"size", None, "size: expected a number from 0 to 9007199254740992, got None"),
])
def test_out_of_bounds(key: bytes, value: Any, expected: str) -> None:
    with pytest.raises(BadArgument) as caught:
        Parameters.from_wire({**GOOD, key: value})
    assert caught.value.text() == expected


@pytest.mark.parametrize(("key", "expected"), [
    (b"k", "k: expected a number from 1 to 256, got nothing"),
    (b"happy", "happy: expected a number from 1 to 256, got nothing"),
    (b"n", "n: expected a number from 1 to 256, got nothing"),
    (b"max-segment-size", "max-segment-size: expected a number from 1 to 8388608, got nothing"),
])
def test_missing(key: bytes, expected: str) -> None:
    with pytest.raises(BadArgument) as caught:
        Parameters.from_wire({k: v for k, v in GOOD.items() if k != key})
    assert caught.value.text() == expected


@pytest.mark.parametrize(("key", "came"), [
    (b"colour", "b'colour'"), (b"", "b''"), (b"N", "b'N'"), (b"max_segment_size", "b'max_segment_size'"),
    (b"\xff\x00", "b'\\xff\\x00'"),
])
def test_unknown_key(key: bytes, came: str) -> None:
    with pytest.raises(BadArgument) as caught:
        Parameters.from_wire({**GOOD, key: 1})
    assert caught.value.text() == f"parameters: expected keys happy, k, max-segment-size, n, size, got {came}"


@given(st.dictionaries(st.sampled_from(sorted(GOOD)) | st.binary(max_size=8),
                       st.integers(-2, 300) | st.integers(0, 2**64), max_size=7))
def test_anything_else_is_bad_argument(wire: dict[bytes, int]) -> None:
    try:
        taken = Parameters.from_wire(wire)
    except BadArgument:
        return
    assert 1 <= taken.k <= taken.n <= 256
    assert 1 <= taken.happy <= taken.n
    assert taken.to_wire() == wire


@pytest.mark.parametrize(("field", "value", "expected"), [
    ("k", 4, "this upload was opened with k = 3, now 4"),
    ("happy", 1, "this upload was opened with happy = 7, now 1"),
    ("n", 11, "this upload was opened with n = 10, now 11"),
    ("max_segment_size", 5, "this upload was opened with max-segment-size = 1048576, now 5"),
    ("size", 5, "this upload was opened with size = 1000, now 5"),
    ("size", None, "this upload was opened with size = 1000, now unknown"),
])
def test_repeated_with_something_else(field: str, value: Any, expected: str) -> None:
    opened = Parameters.from_wire(GOOD)
    with pytest.raises(ParametersDiffer) as caught:
        opened.check_same(attrs.evolve(opened, **{field: value}))
    assert caught.value.text() == expected + "; use a new upload ID for another upload"
    assert caught.value.field == field.replace("_", "-")
    assert caught.value.came == (UNKNOWN_SIZE if value is None else value)


def test_repeated_with_a_size_that_was_unknown() -> None:
    opened = attrs.evolve(Parameters.from_wire(GOOD), size=None)
    with pytest.raises(ParametersDiffer, match="opened with size = unknown, now 0;"):
        opened.check_same(attrs.evolve(opened, size=0))
