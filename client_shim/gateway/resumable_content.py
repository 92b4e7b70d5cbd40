"""What is known of the plaintext of an upload handle (client_shim/dedup.py), in a form that outlives its process.

No plaintext is on any disk, so nothing of this is stored in the clear: a state of SHA-256 has up to 63 bytes of what it
has seen in it. A state is sealed under a key that follows from that of the upload, with a new nonce each time, as
sealed records are; the journal forgets both keys together.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Callable

from allmydata.util import hashutil
from allmydata.util.netstring import netstring
from Crypto.Cipher import ChaCha20_Poly1305

from client_shim.dedup import DIGEST_KEY_SIZE, Content
from client_shim.gateway.resumable_hash import TaggedHash
from client_shim.one_segment import OneSegment
from helper.interfaces import KEY_SIZE
from helper.parameters import Parameters
from helper.segments import segment_size_for

NONCE_SIZE = 24  # bytes: long enough to be random (XChaCha20)
TAG_SIZE = 16  # bytes
_KEY_TAG = b"tahoe-stream state of an upload handle's plaintext v1"
_DIGEST_TAG = b"tahoe-stream digest of a segment of plaintext v1"
#: Key of the digest, number of the segment, lengths of the two states that follow.
_HEAD = struct.Struct(f">{DIGEST_KEY_SIZE}sQHH")


class ResumableContentHasher:
    """client_shim.dedup.ContentHasher with a state, and of constant size.

    The segment size, which is hashed first, is not known before the file has ended if its size was not declared and it
    turns out to be shorter than a segment. Then `end` needs all of it once more (`needs_all`), which is at most one
    segment.
    """

    def __init__(self, parameters: Parameters, convergence: bytes,
                 choose: Callable[[int], int] = secrets.randbelow) -> None:
        self.size = 0
        self._parameters = parameters
        self._convergence = convergence
        self._choose = choose
        self._assumed = assumed_segment_size(parameters)
        self._convergent = _convergence_hash(parameters, self._assumed, convergence)
        self._digest_key = os.urandom(DIGEST_KEY_SIZE)
        self._segment = OneSegment(self._new_digest, self._assumed, choose)

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of plaintext."""
        self._convergent.update(bytes(data))
        self._segment.update(self.size, memoryview(data))
        self.size += len(data)

    @property
    def needs_all(self) -> bool:
        """Whether `end`, if the file ended here, needs all of the plaintext."""
        return self._parameters.size is None and self._final_segment_size() != self._assumed

    def end(self, plaintext: bytes = b"") -> Content:
        """There is no more. `plaintext`: all of it, if `needs_all`."""
        if not self.needs_all:
            return Content(self._convergent.digest()[:KEY_SIZE], self.size, self._segment)
        if len(plaintext) != self.size:
            raise ValueError(f"expected all {self.size} bytes of a short file, got {len(plaintext)}")
        again = _convergence_hash(self._parameters, self._final_segment_size(), self._convergence)
        again.update(plaintext)
        self._segment.segment_size = self._final_segment_size()  # it is the only one, and so is whole
        return Content(again.digest()[:KEY_SIZE], self.size, self._segment)

    def sealed(self, key: bytes) -> bytes:
        """What `unsealed` goes on from, for the handle with this key."""
        convergent, segment = self._convergent.state(), self._segment.hasher.state()
        nonce = os.urandom(NONCE_SIZE)
        state = _HEAD.pack(self._digest_key, self._segment.number, len(convergent), len(segment)) + convergent + segment
        sealed, tag = _cipher(key, nonce, self.size).encrypt_and_digest(state)
        return nonce + bytes(sealed) + bytes(tag)

    @classmethod
    def unsealed(cls, parameters: Parameters, convergence: bytes, key: bytes, sealed: bytes, size: int,
                 choose: Callable[[int], int] = secrets.randbelow) -> ResumableContentHasher:
        """One that has seen the `size` bytes that the other had seen. ValueError for what is no state of such a one."""
        nonce, state, tag = sealed[:NONCE_SIZE], sealed[NONCE_SIZE:-TAG_SIZE], sealed[-TAG_SIZE:]
        if len(sealed) < NONCE_SIZE + _HEAD.size + TAG_SIZE:
            raise ValueError(f"a sealed state of {len(sealed)} bytes")
        state = _cipher(key, nonce, size).decrypt_and_verify(state, tag)
        digest_key, number, convergent_size, segment_size = _HEAD.unpack_from(state)
        if len(state) != _HEAD.size + convergent_size + segment_size:
            raise ValueError("a sealed state whose lengths do not fit")
        at = _HEAD.size + convergent_size
        hasher = cls(parameters, convergence, choose)
        hasher._convergent = TaggedHash.resumed(state[_HEAD.size:at])
        hasher._digest_key = digest_key
        hasher._segment.number, hasher._segment.hasher = number, TaggedHash.resumed(state[at:])
        hasher.size = size
        return hasher

    def _new_digest(self) -> TaggedHash:
        return TaggedHash(_DIGEST_TAG + netstring(self._digest_key))

    def _final_segment_size(self) -> int:
        p = self._parameters
        return segment_size_for(p.max_segment_size, p.k, self.size)


def assumed_segment_size(parameters: Parameters) -> int:
    """That of a file of the declared size; without one, that of any file which is not shorter than a segment."""
    size = parameters.max_segment_size if parameters.size is None else parameters.size
    return segment_size_for(parameters.max_segment_size, parameters.k, size)


def _convergence_hash(parameters: Parameters, segment_size: int, convergence: bytes) -> TaggedHash:
    """allmydata.util.hashutil.convergence_hasher, whose digest is the beginning of this one's."""
    return TaggedHash(hashutil.CONVERGENT_ENCRYPTION_TAG + netstring(convergence)
                      + netstring(b"%d,%d,%d" % (parameters.k, parameters.n, segment_size)))


def _cipher(key: bytes, nonce: bytes, size: int) -> ChaCha20_Poly1305.ChaCha20Poly1305Cipher:
    cipher = ChaCha20_Poly1305.new(key=bytes(hashutil.tagged_hash(_KEY_TAG, key)), nonce=nonce)
    cipher.update(size.to_bytes(8, "big"))
    return cipher
