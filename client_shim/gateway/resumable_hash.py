"""SHA-256 whose state can be stored and taken up again, and the hashes of a ciphertext made of it.

hashlib cannot do this. OpenSSL can: SHA256_Init, SHA256_Update and SHA256_Final work on a plain struct (SHA256_CTX in
openssl/sha.h, the same since OpenSSL 0.9.8), in the libcrypto that hashlib itself has loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from functools import lru_cache
from typing import Any

import attrs
from allmydata.util import hashutil
from allmydata.util.netstring import netstring

from client_shim.gateway.handle_errors import NoResumableHash
from helper.ciphertext import CiphertextHashes
from helper.hashtrees import HashTreeRoot
from helper.segments import SegmentCutter

DIGEST_SIZE = 32  # bytes
BLOCK = 64  # bytes that SHA-256 takes in at a time
#: The words of the state and the length so far in bytes. The bytes of a block that was begun follow.
_STATE_HEAD = struct.Struct(">8IQ")
_LENGTH_MAX = 2**61 - 1  # bytes; what SHA-256 is defined for


class _Context(ctypes.Structure):
    """SHA256_CTX."""

    _fields_ = (("h", ctypes.c_uint32 * 8), ("low", ctypes.c_uint32), ("high", ctypes.c_uint32),
                ("data", ctypes.c_ubyte * BLOCK), ("num", ctypes.c_uint), ("md_len", ctypes.c_uint))


class ResumableSHA256:
    """As hashlib.sha256(), with a state."""

    def __init__(self) -> None:
        self._crypto = _libcrypto()
        self._context = _Context()
        _check(self._crypto.SHA256_Init(ctypes.byref(self._context)))

    def update(self, data: bytes) -> None:
        """The next bytes."""
        _check(self._crypto.SHA256_Update(ctypes.byref(self._context), data, len(data)))

    def digest(self) -> bytes:
        """Of all bytes so far; more may follow."""
        ending = _copy(self._context)
        digest = ctypes.create_string_buffer(DIGEST_SIZE)
        _check(self._crypto.SHA256_Final(digest, ctypes.byref(ending)))
        return digest.raw

    def copy(self) -> ResumableSHA256:
        other = ResumableSHA256()
        other._context = _copy(self._context)
        return other

    def state(self) -> bytes:
        """What `resumed` goes on from: numbers big-endian, the same on every machine; at most 103 bytes."""
        context = self._context
        length = (context.high << 32 | context.low) // 8
        return _STATE_HEAD.pack(*context.h, length) + bytes(context.data[:length % BLOCK])

    @classmethod
    def resumed(cls, state: bytes) -> ResumableSHA256:
        """One that has seen the bytes that the other had seen. ValueError for what is no state."""
        if len(state) < _STATE_HEAD.size:
            raise ValueError(f"a state of SHA-256 has at least {_STATE_HEAD.size} bytes, got {len(state)}")
        *words, length = _STATE_HEAD.unpack_from(state)
        begun = state[_STATE_HEAD.size:]
        if length > _LENGTH_MAX or len(begun) != length % BLOCK:
            raise ValueError(f"a state of SHA-256 after {length} bytes has {length % BLOCK} of a block, "
                             f"got {len(begun)}")
        hasher = cls()
        context = hasher._context
        context.h[:] = words
        context.high, context.low = (length * 8) >> 32, (length * 8) & 0xffffffff
        context.data[:len(begun)] = begun
        context.num = len(begun)
        return hasher


class TaggedHash:
    """The tagged double SHA-256 of allmydata.util.hashutil, with a state."""

    def __init__(self, tag: bytes) -> None:
        self._inner = ResumableSHA256()
        self._inner.update(netstring(tag))

    def update(self, data: bytes) -> None:
        """The next bytes."""
        self._inner.update(data)

    def digest(self) -> bytes:
        """32 bytes, of all bytes so far; more may follow."""
        return hashlib.sha256(self._inner.digest()).digest()

    def state(self) -> bytes:
        """What `resumed` goes on from; the tag is in it."""
        return self._inner.state()

    @classmethod
    def resumed(cls, state: bytes) -> TaggedHash:
        """ValueError for what is no state."""
        hasher = cls.__new__(cls)
        hasher._inner = ResumableSHA256.resumed(state)
        return hasher


@attrs.frozen
class HashState:
    """All that is to be kept of a ResumableCiphertextHasher. `size`: bytes it has seen. `content`: what is known of
    the plaintext of these bytes, sealed (resumable_content.py); empty if nothing is."""

    size: int
    segment_filled: int
    flat: bytes = attrs.field(repr=False)
    segment: bytes = attrs.field(repr=False)
    tree: bytes = attrs.field(repr=False)
    content: bytes = attrs.field(default=b"", repr=False)


class ResumableCiphertextHasher:
    """helper.ciphertext.CiphertextHasher with a state, and of a size that hardly depends on that of the file: of the
    tree it keeps what its root needs, less than 2 KiB."""

    def __init__(self, k: int, max_segment_size: int, declared_size: int | None = None) -> None:
        self._cutter = SegmentCutter(k, max_segment_size, declared_size)
        self._flat = TaggedHash(hashutil.CIPHERTEXT_TAG)
        self._segment = TaggedHash(hashutil.CIPHERTEXT_SEGMENT_TAG)
        self._segment_filled = 0
        self._tree = HashTreeRoot()
        self.size = 0

    def update(self, data: bytes) -> None:
        """The next bytes of ciphertext."""
        self._flat.update(data)
        view = memoryview(data)
        while view:
            take, full = self._cutter.next_piece(self.size, self._segment_filled, len(view))
            self._segment.update(bytes(view[:take]) if take < len(data) else data)
            self._segment_filled += take
            self.size += take
            view = view[take:]
            if full:
                self._tree.append(self._segment.digest())
                self._segment = TaggedHash(hashutil.CIPHERTEXT_SEGMENT_TAG)
                self._segment_filled = 0

    def hashes(self) -> CiphertextHashes:
        """The hashes if the stream ended here; more bytes may follow all the same. ValueError if it is empty."""
        tree = self._tree.copy()
        if self._segment_filled:
            tree.append(self._segment.digest())
        return CiphertextHashes(self.size, self._flat.digest(), tree.root())

    def state(self) -> HashState:
        """What `resumed` goes on from."""
        return HashState(self.size, self._segment_filled, self._flat.state(), self._segment.state(),
                         self._tree.state())

    @classmethod
    def resumed(cls, k: int, max_segment_size: int, declared_size: int | None,
                state: HashState) -> ResumableCiphertextHasher:
        """One that has seen the bytes that the other had seen, for a file of the same shape. ValueError for a state
        that cannot be."""
        hasher = cls(k, max_segment_size, declared_size)
        hasher._flat = TaggedHash.resumed(state.flat)
        hasher._segment = TaggedHash.resumed(state.segment)
        hasher._tree = HashTreeRoot.resumed(state.tree)
        if not 0 <= state.segment_filled <= state.size:
            raise ValueError(f"{state.segment_filled} bytes of a segment cannot be, after {state.size}")
        hasher._segment_filled, hasher.size = state.segment_filled, state.size
        return hasher


def require_resumable_hash() -> None:
    """Compares with hashlib, over states that were stored. Raises NoResumableHash: without it nothing can be taken up
    again after a restart."""
    data = bytes(range(256)) * 3
    for cut in (0, 1, 55, 56, 63, 64, 65, 200, len(data)):
        hasher = ResumableSHA256()
        hasher.update(data[:cut])
        again = ResumableSHA256.resumed(hasher.state())
        again.update(data[cut:])
        if again.digest() != hashlib.sha256(data).digest():
            raise NoResumableHash("it computes something else than hashlib does")


@lru_cache(maxsize=1)
def _libcrypto() -> Any:
    """The library, with its three functions declared. Raises NoResumableHash."""
    try:
        import _hashlib  # only where hashlib is made with OpenSSL

        crypto = ctypes.CDLL(_hashlib.__file__)  # finds what the module is linked with, too; releases the GIL
        pointer = ctypes.POINTER(_Context)
        crypto.SHA256_Init.argtypes = [pointer]
        crypto.SHA256_Update.argtypes = [pointer, ctypes.c_char_p, ctypes.c_size_t]
        crypto.SHA256_Final.argtypes = [ctypes.c_char_p, pointer]
    except (ImportError, AttributeError, OSError) as e:
        raise NoResumableHash(f"OpenSSL's SHA256_Init is not found ({type(e).__name__})") from e
    return crypto


def _copy(context: _Context) -> _Context:
    return _Context.from_buffer_copy(context)


def _check(succeeded: int) -> None:
    if succeeded != 1:
        raise NoResumableHash("OpenSSL's SHA-256 does not work")
