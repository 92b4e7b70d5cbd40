"""Hashes and encryption of a stream: the same for any split of it, and the same as stock's of the whole."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from allmydata.crypto import aes
from allmydata.hashtree import HashTree
from allmydata.util import hashutil
from Crypto.Cipher import AES
from hypothesis import given
from hypothesis import strategies as st

from client_shim.cipher import BLOCK, Encryptor, PlaintextDigests, convergent_key
from helper.ciphertext import CiphertextHasher, CiphertextHashes
from helper.hashtrees import GrowingHashTree
from helper.segments import Geometry

KEY = bytes(range(100, 116))


def some_bytes(length: int, seed: object = 0) -> bytes:
    return random.Random(str(seed)).randbytes(length)


@st.composite
def splits(draw: st.DrawFn, max_size: int = 3000) -> tuple[bytes, list[bytes]]:
    """Bytes, and the same bytes in pieces (some empty)."""
    data = some_bytes(draw(st.integers(0, max_size)), draw(st.integers(0, 9)))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return data, [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# -- ciphertext hashes ----------------------------------------------------------------------------------


def stock_hashes(k: int, max_segment_size: int, data: bytes) -> CiphertextHashes:
    """From the definition, of the whole."""
    step = Geometry.for_file(k, 256, max_segment_size, len(data)).segment_size
    leaves = [hashutil.crypttext_segment_hash(data[i:i + step]) for i in range(0, len(data), step)]
    return CiphertextHashes(len(data), hashutil.crypttext_hash(data), HashTree(leaves)[0])


@given(splits(), st.integers(1, 12), st.integers(1, 700), st.booleans())
def test_any_split_gives_stocks_hashes(split: tuple[bytes, list[bytes]], k: int, max_segment_size: int,
                                       declared: bool) -> None:
    data, pieces = split
    hasher = CiphertextHasher(k, max_segment_size, len(data) if declared and data else None)
    seen = 0
    for piece in pieces:
        hasher.update(piece)
        seen += len(piece)
        assert hasher.size == seen
        if seen and not declared:
            # hashes() is of the stream so far, and does not disturb what follows
            assert hasher.hashes() == stock_hashes(k, max_segment_size, data[:seen])
    if data:
        assert hasher.hashes() == stock_hashes(k, max_segment_size, data)
        assert hasher.complete_tree().root() == hasher.hashes().crypttext_root_hash


@pytest.mark.parametrize("offset", [-2, -1, 0, 1, 2, 3])
def test_split_around_the_first_segment(offset: int) -> None:
    """Max 1000 with k = 3 makes segments of 1002: between them the segment size is known, not the segment."""
    data = some_bytes(5000, offset)
    for cut in (1000 + offset, 1002 + offset, 2004 + offset):
        hasher = CiphertextHasher(3, 1000)
        hasher.update(data[:cut])
        assert hasher.hashes() == stock_hashes(3, 1000, data[:cut])
        hasher.update(data[cut:])
        assert hasher.hashes() == stock_hashes(3, 1000, data)


def test_no_hashes_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one leaf"):
        CiphertextHasher(3, 1000).hashes()


@given(splits(1500), st.integers(0, 900), st.integers(0, 900))
def test_hasher_copies_are_independent(split: tuple[bytes, list[bytes]], mine: int, theirs: int) -> None:
    data, pieces = split
    one, other = some_bytes(mine, "one"), some_bytes(theirs, "other")
    first = CiphertextHasher(2, 256)
    for piece in pieces:
        first.update(piece)
    second = first.copy()
    first.update(one)
    second.update(other)
    for hasher, added in ((first, one), (second, other)):
        assert hasher.size == len(data + added)
        if data + added:
            assert hasher.hashes() == stock_hashes(2, 256, data + added)


# -- hash trees -----------------------------------------------------------------------------------------


def leaf(number: int) -> bytes:
    return bytes(hashutil.block_hash(b"%d" % number))


def test_growing_tree_has_stocks_nodes() -> None:
    tree = GrowingHashTree()
    for count in range(1, 201):
        tree.append(leaf(count - 1))
        stock = HashTree([leaf(i) for i in range(count)])
        assert len(tree) == count
        assert tree.root() == stock[0]
        assert tree.nodes() == b"".join(stock)
    assert [tree.leaf(i) for i in range(200)] == [leaf(i) for i in range(200)]


@pytest.mark.parametrize("number", [-1, 5, 200])
def test_no_such_leaf(number: int) -> None:
    tree = GrowingHashTree()
    for i in range(5):
        tree.append(leaf(i))
    with pytest.raises(IndexError):
        tree.leaf(number)


def test_tree_without_leaves() -> None:
    tree = GrowingHashTree()
    assert len(tree) == 0
    for ask in (tree.root, tree.nodes):
        with pytest.raises(ValueError, match="at least one leaf"):
            ask()


@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 40))
def test_tree_copies_are_independent(common: int, mine: int, theirs: int) -> None:
    first = GrowingHashTree()
    for i in range(common):
        first.append(leaf(i))
    second = first.copy()
    for i in range(mine):
        first.append(leaf(1000 + i))
    for i in range(theirs):
        second.append(leaf(2000 + i))
    shared = [leaf(i) for i in range(common)]
    assert first.nodes() == b"".join(HashTree(shared + [leaf(1000 + i) for i in range(mine)]))
    assert second.nodes() == b"".join(HashTree(shared + [leaf(2000 + i) for i in range(theirs)]))


# -- encryption -----------------------------------------------------------------------------------------


def keystream(offset: int, length: int) -> bytes:
    """AES-CTR from the definition: block i is the encrypted number i."""
    first = offset // BLOCK
    count = (offset % BLOCK + length + BLOCK - 1) // BLOCK
    cipher = AES.new(KEY, AES.MODE_ECB)
    stream = b"".join(cipher.encrypt((first + i).to_bytes(BLOCK, "big")) for i in range(count))
    return stream[offset % BLOCK:offset % BLOCK + length]


@given(st.integers(0, 2**53), st.integers(0, 100))
def test_keystream_at_any_offset(offset: int, length: int) -> None:
    assert Encryptor(KEY, offset).encrypt(bytes(length)) == keystream(offset, length)


@given(splits(), st.data())
def test_encryption_at_any_offset_is_a_slice_of_the_whole(split: tuple[bytes, list[bytes]],
                                                          data: st.DataObject) -> None:
    plaintext, pieces = split
    whole = Encryptor(KEY).encrypt(plaintext)
    assert whole == aes.encrypt_data(aes.create_encryptor(KEY), plaintext)  # stock's
    encryptor = Encryptor(KEY)
    assert b"".join(encryptor.encrypt(memoryview(piece)) for piece in pieces) == whole
    offset = data.draw(st.integers(0, len(plaintext)))
    assert Encryptor(KEY, offset).encrypt(plaintext[offset:]) == whole[offset:]


@given(splits(), st.integers(1, 12), st.integers(1, 5000), st.binary(max_size=32))
def test_convergent_key_is_stocks(split: tuple[bytes, list[bytes]], k: int, max_segment_size: int,
                                  secret: bytes) -> None:
    plaintext, pieces = split
    if plaintext:
        segment_size = Geometry.for_file(k, 12, max_segment_size, len(plaintext)).segment_size
        expected = hashutil.convergence_hash(k, 12, segment_size, plaintext, secret)
        assert convergent_key(k, 12, max_segment_size, len(plaintext), secret, pieces) == expected


def test_convergent_key_takes_an_iterator() -> None:
    def once() -> Iterator[bytes]:
        yield b"a" * 30
        yield b"b" * 70

    assert convergent_key(3, 10, 1000, 100, b"s", once()) == convergent_key(
        3, 10, 1000, 100, b"s", [b"a" * 30 + b"b" * 70])


# -- digests of the plaintext ---------------------------------------------------------------------------


@given(splits(500), st.integers(1, 120))
def test_digests_know_every_piece_however_it_came(split: tuple[bytes, list[bytes]], piece_size: int) -> None:
    data, pieces = split
    digests = PlaintextDigests(KEY, piece_size)
    for piece in pieces:
        digests.update(memoryview(piece))
    assert len(digests) == len(data) // piece_size
    digests.end()
    digests.end()  # once is enough
    expected = [data[i:i + piece_size] for i in range(0, len(data), piece_size)]
    assert len(digests) == len(expected)
    for number, piece in enumerate(expected):
        assert digests.matches(number, piece)
        assert not digests.matches(number, piece + b"\0")
        assert not digests.matches(number, piece[:-1])
        assert not digests.matches(number, bytes([piece[0] ^ 1]) + piece[1:])
        assert digests.matches(number, expected[0]) == (piece == expected[0])
    assert not digests.matches(len(expected), b"")
    assert not digests.matches(len(expected), expected[-1] if expected else b"x")


def test_unended_piece_is_not_known_yet() -> None:
    digests = PlaintextDigests(KEY, 10)
    digests.update(b"0123456789abc")
    assert len(digests) == 1
    assert not digests.matches(1, b"abc")
    digests.end()
    assert digests.matches(1, b"abc")
