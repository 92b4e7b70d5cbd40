"""client_shim/one_segment.py: any segment of a plaintext, and no other bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import partial
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from world import plaintext

from client_shim.one_segment import OneSegment

NEW_HASHER = partial(hashlib.blake2b, key=bytes(32), digest_size=32)


def after(data: bytes, segment_size: int, cuts: list[int], seed: int) -> OneSegment[hashlib.blake2b]:
    segment = OneSegment(NEW_HASHER, segment_size, Random(seed).randrange)
    ends = sorted(min(cut, len(data)) for cut in cuts)
    for start, end in zip([0, *ends], [*ends, len(data)], strict=True):
        segment.update(start, memoryview(data)[start:end])
    return segment


@given(size=st.integers(0, 500), segment_size=st.integers(1, 100), cuts=st.lists(st.integers(0, 500), max_size=6),
       seed=st.integers(0, 1000))
def test_the_segment_is_one_of_the_plaintext_however_that_comes(size: int, segment_size: int, cuts: list[int],
                                                                seed: int) -> None:
    data = plaintext(size)
    segment = after(data, segment_size, cuts, seed)
    assert segment.number == after(data, segment_size, [], seed).number
    assert 0 <= segment.number * segment_size < max(1, size)
    right = data[segment.number * segment_size:][:segment_size]
    assert segment.matches(right)
    assert not segment.matches(right + b"\0")
    assert not right or not segment.matches(bytes([right[0] ^ 1]) + right[1:])


def test_each_segment_is_chosen_as_often_as_any_other() -> None:
    chosen = Counter(after(bytes(55), 10, list(range(0, 55, 5)), seed).number for seed in range(3000))
    assert set(chosen) == set(range(6))
    assert max(chosen.values()) - min(chosen.values()) < 150  # 500 each; six standard deviations
