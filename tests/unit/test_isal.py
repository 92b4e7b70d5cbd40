"""ISA-L's blocks are zfec's, and whatever is not is not used."""

from __future__ import annotations

import random
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import zfec
from hypothesis import given
from hypothesis import strategies as st

from helper.codec import Codec, codec_for, describe_code
from helper.isal import IsalCode, Library, checked, code_for, find_library, first_usable, generator_rows

LARGE_CODES = [(71, 255), (101, 256), (1, 256), (255, 256), (256, 256)]

needs_library = pytest.mark.skipif(find_library() is None, reason="no ISA-L: neither pyeclib nor libisal2 is installed")


def zfec_blocks(k: int, n: int, segment: bytes, shnums: list[int]) -> list[bytes]:
    size = -(-len(segment) // k)
    padded = segment.ljust(k * size, b"\0")
    return list(zfec.Encoder(k, n).encode([padded[i * size:(i + 1) * size] for i in range(k)], shnums))


def fast_codec(k: int, n: int) -> Codec:
    code = code_for(k, n)
    assert code is not None
    return Codec(k, n, code)


@needs_library
def test_every_small_code_at_odd_sizes() -> None:
    source = random.Random(1)
    for n in range(1, 21):
        for k in range(1, n + 1):
            codec = fast_codec(k, n)
            for size in (1, k, k + 1, 31 * k + 1, source.randrange(1, 3000)):
                segment = source.randbytes(size)
                shnums = source.sample(range(n), source.randint(1, n))
                assert codec.encode(segment) == zfec_blocks(k, n, segment, list(range(n)))
                assert codec.encode(segment, shnums) == zfec_blocks(k, n, segment, shnums)


@needs_library
@pytest.mark.parametrize(("k", "n"), [(3, 10), *LARGE_CODES])
@pytest.mark.parametrize("size", [56, 4096, 131_072, 1_048_576, 1_048_577])
def test_segments_of_every_size(k: int, n: int, size: int) -> None:
    source = random.Random(f"{k} {n} {size}")
    segment = source.randbytes(size)
    some = source.sample(range(n), min(n, 5))
    codec = fast_codec(k, n)
    assert codec.encode(segment, some) == zfec_blocks(k, n, segment, some)
    if size <= 131_072:
        assert codec.encode(segment) == zfec_blocks(k, n, segment, list(range(n)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, bytes, list[int]]:
    n = draw(st.integers(1, 256))
    k = draw(st.integers(1, n))
    segment = random.Random(draw(st.integers(0, 9999))).randbytes(draw(st.integers(0, 2000)))
    return k, n, segment, draw(st.lists(st.integers(0, n - 1), unique=True, max_size=20))


@needs_library
@given(cases())
def test_any_code_any_size_any_shares(case: tuple[int, int, bytes, list[int]]) -> None:
    k, n, segment, shnums = case
    assert fast_codec(k, n).encode(segment, shnums) == zfec_blocks(k, n, segment, shnums)


@needs_library
def test_blocks_are_bytes_of_their_own() -> None:
    """They were written in place: a second segment must not be seen in the blocks of the first."""
    codec = fast_codec(3, 10)
    first = codec.encode(b"a" * 3000)
    before = [bytes(bytearray(block)) for block in first]
    codec.encode(b"b" * 3000)
    assert first == before
    assert len({id(block) for block in first}) == 10


def test_the_generator_is_systematic_zfecs() -> None:
    """A byte of a block is the sum of products with the factors: with one byte 1 and the rest 0, the factor."""
    assert [len(row) for row in generator_rows(3, 10)] == [3] * 7
    assert generator_rows(1, 4) == [b"\1"] * 3  # with k = 1 every block is the segment
    assert generator_rows(5, 5) == []


def test_a_library_that_errs_is_not_used() -> None:
    """One that writes nothing: its blocks are whatever was in that memory before."""
    broken = Library("a test", lambda *_args: None, lambda *_args: None)
    assert checked(IsalCode(4, 9, broken)) is None
    assert checked(IsalCode(4, 4, broken)) is not None  # nothing to get wrong


def test_without_a_library_there_is_zfec() -> None:
    assert first_usable([("nowhere", "/nonexistent/libisal.so.2")]) is None
    segment = random.Random(2).randbytes(1000)
    assert Codec(3, 10, None).encode(segment) == zfec_blocks(3, 10, segment, list(range(10)))


def test_a_library_without_the_code_is_passed_over() -> None:
    """Such as the one in PyPI's `isal`, which has compression only; here the C library."""
    assert first_usable([("the C library", "libc.so.6")]) is None


@needs_library
def test_what_is_in_use_is_told() -> None:
    assert describe_code(3, 10).startswith("ISA-L (")
    assert isinstance(code_for(3, 10), IsalCode)
    assert codec_for(3, 10) is codec_for(3, 10)


def test_the_wheel_has_the_library() -> None:
    """Where the wheel is installed, a plain `pip install` must be fast: no system library is needed."""
    try:
        distribution("pyeclib")
    except PackageNotFoundError:
        pytest.skip("pyeclib is not installed")
    library = find_library()
    assert library is not None
    assert library.origin.startswith("pyeclib ")
