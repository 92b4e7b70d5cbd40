"""Sealed records: what one who has streamed a file tells others who have the same file. protocol.txt §4.10.  (pure)

A streamed file is encrypted under a random key, so nobody finds it by its content. Its record holds that key, sealed
under a key that follows from the content and the convergence secret: who has both can open it, and nobody else.
"""

from __future__ import annotations

import struct

import attrs
from allmydata import uri
from allmydata.util import hashutil
from Crypto.Cipher import ChaCha20_Poly1305

from helper.interfaces import HASH_SIZE, KEY_SIZE, SHARES_MAX, SIZE_MAX

MAGIC = b"TSr1"
NONCE_SIZE = 24  # bytes: long enough to be random (XChaCha20), as many records are sealed under one key
TAG_SIZE = 16  # bytes
_KEY_TAG = b"tahoe-stream sealed record key v1"
#: AES key of the file, UEB hash, k, N, size.
_FIELDS = struct.Struct(f">{KEY_SIZE}s{HASH_SIZE}sHHQ")
SIZE = len(MAGIC) + NONCE_SIZE + _FIELDS.size + TAG_SIZE


class BadRecord(Exception):
    """It is none that was sealed for this file, or not as it was when it was sealed."""


@attrs.frozen
class FileRecord:
    """A file that was streamed: what its read cap is made of."""

    key: bytes = attrs.field(repr=False)
    ueb_hash: bytes = attrs.field(repr=False)
    k: int
    n: int
    size: int

    @property
    def storage_index(self) -> bytes:
        return bytes(hashutil.storage_index_hash(self.key))

    @property
    def cap(self) -> bytes:
        return bytes(uri.CHKFileURI(self.key, self.ueb_hash, self.k, self.n, self.size).to_string())


def seal(record: FileRecord, convergent_key: bytes, nonce: bytes) -> bytes:
    """`record`, for those who can make `convergent_key`. `nonce`: NONCE_SIZE random bytes, new each time."""
    cipher = _cipher(convergent_key, nonce)
    sealed, tag = cipher.encrypt_and_digest(
        _FIELDS.pack(record.key, record.ueb_hash, record.k, record.n, record.size))
    return MAGIC + nonce + bytes(sealed) + bytes(tag)


def unseal(sealed: bytes, convergent_key: bytes) -> FileRecord:
    """What was sealed under `convergent_key`. Raises BadRecord; whoever sealed it may have lied all the same."""
    if len(sealed) != SIZE or not sealed.startswith(MAGIC):
        raise BadRecord(f"expected {SIZE} bytes that begin with {MAGIC!r}")
    nonce_end = len(MAGIC) + NONCE_SIZE
    cipher = _cipher(convergent_key, sealed[len(MAGIC):nonce_end])
    try:
        fields = cipher.decrypt_and_verify(sealed[nonce_end:-TAG_SIZE], sealed[-TAG_SIZE:])
    except ValueError:
        raise BadRecord("it was sealed for another file, or changed since") from None
    record = FileRecord(*_FIELDS.unpack(fields))
    if not 1 <= record.k <= record.n <= SHARES_MAX or record.size > SIZE_MAX:
        raise BadRecord("its numbers are out of bounds")
    return record


def _cipher(convergent_key: bytes, nonce: bytes) -> ChaCha20_Poly1305.ChaCha20Poly1305Cipher:
    cipher = ChaCha20_Poly1305.new(key=bytes(hashutil.tagged_hash(_KEY_TAG, convergent_key)), nonce=nonce)
    cipher.update(MAGIC + bytes(hashutil.storage_index_hash(convergent_key)))
    return cipher
