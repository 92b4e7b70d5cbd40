"""Tahoe-LAFS's own published vectors: the cap of a plaintext under its convergent key.

Through our code from end to end: key, encryption, the client's hashes, the helper's encoder, and the
client's check of what the helper says.
"""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path

import attrs
import pytest

from client_shim.cipher import Encryptor, convergent_key
from client_shim.verify import cap_of
from helper.ciphertext import CiphertextHasher
from helper.encoder import Encoder
from helper.parameters import Parameters
from helper.segments import SegmentCutter

FILE = Path(__file__).parents[1] / "vectors" / "chk.json"
PIECE = 300_001  # bytes of one write; fits nothing else


@attrs.frozen
class Vector:
    convergence: bytes
    seed: bytes
    length: int
    k: int
    n: int
    segment_size: int
    cap: str

    @property
    def plaintext(self) -> bytes:
        """The seed repeated end to end and cut to length (the file's "about")."""
        return (self.seed * -(-self.length // len(self.seed)))[:self.length]


def load() -> list[Vector]:
    return [
        Vector(b64decode(v["convergence"]), b64decode(v["seed"]), v["length"], v["k"], v["n"], v["segment_size"],
               v["cap"])
        for v in json.loads(FILE.read_text(encoding="utf-8"))["vectors"]
    ]


VECTORS = load()


def test_all_vectors_are_there() -> None:
    assert len(VECTORS) == 60
    assert len({v.cap for v in VECTORS}) == 60


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v.k}of{v.n}-{v.length}")
def test_cap(vector: Vector) -> None:
    # within what `open` allows
    parameters = Parameters.from_wire(Parameters(vector.k, 1, vector.n, vector.segment_size).to_wire())
    plaintext = vector.plaintext
    pieces = [plaintext[i:i + PIECE] for i in range(0, len(plaintext), PIECE)]
    key = convergent_key(vector.k, vector.n, vector.segment_size, vector.length, vector.convergence, pieces)

    encryptor, hasher = Encryptor(key), CiphertextHasher(vector.k, vector.segment_size)
    ciphertext = b""
    for piece in pieces:
        encrypted = encryptor.encrypt(piece)
        hasher.update(encrypted)
        ciphertext += encrypted

    encoder = Encoder(vector.k, vector.n, vector.segment_size)
    size = SegmentCutter(vector.k, vector.segment_size).segment_size(len(ciphertext))
    end = 0 if size is None else len(ciphertext) // size * size
    for start in range(0, end, size or 1):
        encoder.encode(ciphertext[start:start + (size or 0)])
    completion = encoder.complete(ciphertext[end:])

    assert cap_of(key, parameters, hasher.hashes(), completion.ueb).decode("ascii") == vector.cap
