"""SHA-256 that is stored and taken up again (gateway/resumable_hash.py), against hashlib and stock Tahoe."""

from __future__ import annotations

import hashlib

import pytest
from allmydata.hashtree import HashTree
from allmydata.util import hashutil
from hypothesis import given
from hypothesis import strategies as st
from world import plaintext

from client_shim.gateway.resumable_hash import (
    HashState,
    ResumableCiphertextHasher,
    ResumableSHA256,
    TaggedHash,
    require_resumable_hash,
)
from helper.ciphertext import CiphertextHasher
from helper.hashtrees import HashTreeRoot

DATA = plaintext(300)


def test_every_split_and_every_state_equals_hashlib() -> None:
    for end in range(len(DATA) + 1):
        expected = hashlib.sha256(DATA[:end]).digest()
        for cut in range(end + 1):
            hasher = ResumableSHA256()
            hasher.update(DATA[:cut])
            again = ResumableSHA256.resumed(hasher.state())
            assert again.state() == hasher.state()
            assert again.digest() == hasher.digest()
            for one in (hasher, again):
                one.update(DATA[cut:end])
                assert one.digest() == expected, (cut, end)


@given(data=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_any_number_of_states(data: bytes, cuts: list[int]) -> None:
    ends = sorted(min(cut, len(data)) for cut in cuts)
    hasher = ResumableSHA256()
    for start, end in zip([0, *ends], [*ends, len(data)], strict=True):
        hasher.update(data[start:end])
        hasher = ResumableSHA256.resumed(hasher.state())
    assert hasher.digest() == hashlib.sha256(data).digest()
    other = hasher.copy()
    other.update(b"more")
    assert hasher.digest() == hashlib.sha256(data).digest()
    assert other.digest() == hashlib.sha256(data + b"more").digest()


def test_a_length_beyond_32_bits_is_in_the_state() -> None:
    """2**29 bytes are 2**32 bits: the length of the struct takes two words."""
    piece = bytes(1 << 20)
    hasher, stock = ResumableSHA256(), hashlib.sha256()
    for _ in range(513):
        hasher.update(piece)
        stock.update(piece)
    again = ResumableSHA256.resumed(hasher.state())
    for one in (again, stock):
        one.update(b"end")
    assert again.digest() == stock.digest()


@pytest.mark.parametrize("state", [b"", bytes(39), bytes(41), bytes(32) + (64).to_bytes(8, "big") + b"x",
                                   bytes(32) + (2**61).to_bytes(8, "big"), bytes(32) + (65).to_bytes(8, "big")])
def test_what_is_no_state_is_refused(state: bytes) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        ResumableSHA256.resumed(state)


@given(data=st.binary(max_size=500), cut=st.integers(0, 500), tag=st.binary(max_size=50))
def test_tagged_double_hash_is_that_of_tahoe(data: bytes, cut: int, tag: bytes) -> None:
    hasher = TaggedHash(tag)
    hasher.update(data[:cut])
    hasher = TaggedHash.resumed(hasher.state())
    hasher.update(data[cut:])
    assert hasher.digest() == hashutil.tagged_hash(tag, data)


@given(leaves=st.integers(1, 70), cut=st.integers(0, 70))
def test_root_alone_is_that_of_the_whole_tree(leaves: int, cut: int) -> None:
    hashes = [hashlib.sha256(bytes([i])).digest() for i in range(leaves)]
    tree = HashTreeRoot()
    for i, leaf in enumerate(hashes):
        if i == cut:
            assert HashTreeRoot.resumed(tree.state()).state() == tree.state()
            tree = HashTreeRoot.resumed(tree.state()).copy()
        tree.append(leaf)
    assert tree.root() == HashTree(hashes)[0]


def test_a_root_of_nothing_and_a_state_of_nothing() -> None:
    with pytest.raises(ValueError, match="one leaf"):
        HashTreeRoot().root()
    for state in (b"", bytes(7), bytes(9), (3).to_bytes(8, "big") + bytes(32)):
        with pytest.raises(ValueError, match="hash tree"):
            HashTreeRoot.resumed(state)


@given(size=st.integers(1, 5000), declared=st.booleans(), k=st.integers(1, 7), max_segment_size=st.integers(1, 1200),
       cuts=st.lists(st.integers(0, 5000), max_size=10))
def test_ciphertext_hashes_over_any_states(size: int, declared: bool, k: int, max_segment_size: int,
                                           cuts: list[int]) -> None:
    data = plaintext(size)
    shape = (k, max_segment_size, size if declared else None)
    whole = CiphertextHasher(*shape)
    whole.update(data)
    hasher = ResumableCiphertextHasher(*shape)
    ends = sorted(min(cut, size) for cut in cuts)
    for start, end in zip([0, *ends], [*ends, size], strict=True):
        hasher.update(data[start:end])
        if end:
            hasher.hashes()  # asking changes nothing
        hasher = ResumableCiphertextHasher.resumed(*shape, hasher.state())
    assert hasher.hashes() == whole.hashes()


def test_a_state_that_cannot_be_is_refused() -> None:
    state = ResumableCiphertextHasher(3, 1000).state()
    with pytest.raises(ValueError, match="segment"):
        ResumableCiphertextHasher.resumed(3, 1000, None, HashState(5, 6, state.flat, state.segment, state.tree))


def test_this_python_has_it() -> None:
    require_resumable_hash()
