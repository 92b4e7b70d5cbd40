"""Sealed records (protocol.txt §4.10): only who has the same file opens one, and only as it was sealed."""

from __future__ import annotations

import pytest
from allmydata.util import hashutil
from Crypto.Cipher import ChaCha20_Poly1305
from hypothesis import given
from hypothesis import strategies as st

from client_shim.sealed_records import MAGIC, NONCE_SIZE, SIZE, BadRecord, FileRecord, seal, unseal
from helper.interfaces import RECORD_MAX

keys = st.binary(min_size=16, max_size=16)
nonces = st.binary(min_size=NONCE_SIZE, max_size=NONCE_SIZE)
numbers = st.integers(1, 256).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n)))
records = st.builds(
    lambda key, ueb_hash, k_n, size: FileRecord(key, ueb_hash, *k_n, size),
    keys, st.binary(min_size=32, max_size=32), numbers, st.integers(0, 2**53))


@given(records, keys, nonces)
def test_what_is_sealed_is_opened(record: FileRecord, convergent_key: bytes, nonce: bytes) -> None:
    sealed = seal(record, convergent_key, nonce)
    assert unseal(sealed, convergent_key) == record
    assert len(sealed) == SIZE <= RECORD_MAX
    hidden = sealed[len(MAGIC) + NONCE_SIZE:]
    assert record.key not in hidden
    assert convergent_key not in hidden
    assert record.storage_index == hashutil.storage_index_hash(record.key)


@given(records, keys, nonces, st.integers(0, SIZE * 8 - 1))
def test_one_bit_that_is_changed(record: FileRecord, convergent_key: bytes, nonce: bytes, bit: int) -> None:
    sealed = bytearray(seal(record, convergent_key, nonce))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadRecord):
        unseal(bytes(sealed), convergent_key)


@given(records, keys, nonces, st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=200))
def test_truncated_and_extended(record: FileRecord, convergent_key: bytes, nonce: bytes, cut: int,
                                more: bytes) -> None:
    sealed = seal(record, convergent_key, nonce)
    for wrong in (sealed[:cut], sealed + more, more + sealed):
        with pytest.raises(BadRecord):
            unseal(wrong, convergent_key)


@given(records, keys, keys, nonces)
def test_other_files_record(record: FileRecord, convergent_key: bytes, other: bytes, nonce: bytes) -> None:
    if convergent_key != other:
        with pytest.raises(BadRecord):
            unseal(seal(record, convergent_key, nonce), other)


@given(st.binary(max_size=2 * SIZE), st.binary(min_size=SIZE - 4, max_size=SIZE - 4), keys)
def test_garbage(garbage: bytes, rest: bytes, convergent_key: bytes) -> None:
    for wrong in (garbage, MAGIC + rest):
        with pytest.raises(BadRecord):
            unseal(wrong, convergent_key)


@pytest.mark.parametrize(("k", "n", "size"), [(0, 10, 100), (11, 10, 100), (3, 257, 100), (3, 10, 2**53 + 1)])
def test_numbers_that_who_has_the_file_made_up(k: int, n: int, size: int) -> None:
    """Sealed as it should be, so it opens; but no cap can be made of it."""
    with pytest.raises(BadRecord, match="out of bounds"):
        unseal(seal(FileRecord(bytes(16), bytes(32), k, n, size), bytes(16), bytes(NONCE_SIZE)), bytes(16))


def test_sealed_for_another_storage_index() -> None:
    """The index is authenticated, though it is not in the record."""
    convergent_key = bytes(range(16))
    key = hashutil.tagged_hash(b"tahoe-stream sealed record key v1", convergent_key)
    cipher = ChaCha20_Poly1305.new(key=key, nonce=bytes(24))
    cipher.update(MAGIC + bytes(16))
    sealed, tag = cipher.encrypt_and_digest(bytes(16) + bytes(32) + b"\0\3\0\x0a" + (100).to_bytes(8, "big"))
    with pytest.raises(BadRecord):
        unseal(MAGIC + bytes(24) + sealed + tag, convergent_key)


def test_nothing_secret_is_shown() -> None:
    record = FileRecord(b"k" * 16, b"u" * 32, 3, 10, 100)
    assert "kkkk" not in repr(record)
    assert "uuuu" not in repr(record)
