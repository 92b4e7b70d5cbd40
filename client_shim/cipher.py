"""Keys and AES-128-CTR as Tahoe uses them for immutable files (allmydata.immutable.upload).  (pure)"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from allmydata.util import hashutil
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from helper.segments import segment_size_for

BLOCK = 16  # bytes of AES


class Encryptor:
    """AES-128-CTR with the counter starting at 0, from any offset of the file on."""

    def __init__(self, key: bytes, offset: int = 0) -> None:
        self._cipher = Cipher(AES(key), CTR((offset // BLOCK).to_bytes(BLOCK, "big"))).encryptor()
        self._cipher.update(bytes(offset % BLOCK))

    def encrypt(self, plaintext: bytes | memoryview) -> bytes:
        """The ciphertext of the next bytes."""
        return self._cipher.update(plaintext)


def convergent_key(k: int, n: int, max_segment_size: int, size: int, convergence: bytes,
                   plaintext: Iterable[bytes]) -> bytes:
    """The key (16 bytes) with which the stock client encrypts this plaintext (`size` bytes, in pieces)."""
    hasher = hashutil.convergence_hasher(k, n, segment_size_for(max_segment_size, k, size), convergence)
    for piece in plaintext:
        hasher.update(piece)
    return bytes(hasher.digest())


class PlaintextDigests:
    """A keyed digest (32 bytes) of each piece of a plaintext, to know it again without keeping it.

    The key never leaves this process, so a digest tells nobody anything about the plaintext.
    """

    def __init__(self, key: bytes, piece_size: int) -> None:
        self._key = key
        self.piece_size = piece_size
        self._digests: list[bytes] = []
        self._current = self._hasher()
        self._filled = 0

    def __len__(self) -> int:
        """Full pieces seen; with `end` the last, shorter one too."""
        return len(self._digests)

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of plaintext, in any pieces."""
        view = memoryview(data)
        while view:
            take = min(len(view), self.piece_size - self._filled)
            self._current.update(view[:take])
            self._filled += take
            view = view[take:]
            if self._filled == self.piece_size:
                self.end()

    def end(self) -> None:
        """The plaintext ends here: its last piece is what came since the last full one."""
        if self._filled:
            self._digests.append(self._current.digest())
            self._current, self._filled = self._hasher(), 0

    def matches(self, number: int, piece: bytes) -> bool:
        """Whether `piece` is piece `number` of the plaintext."""
        hasher = self._hasher()
        hasher.update(piece)
        return number < len(self._digests) and hasher.digest() == self._digests[number]

    def _hasher(self) -> hashlib.blake2b:
        return hashlib.blake2b(key=self._key, digest_size=32)
