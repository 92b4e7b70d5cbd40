"""What the parts of the helper's work cost by themselves on this machine: the floor of its processor time.

For a GiB of ciphertext, 3-of-10: TLS in, the spool's write and sync, SHA-256 over 5.33 GiB (all of it flat, all of it
by segments, and 3.33 GiB of blocks), the erasure code, 3.33 GiB out; the last over bare TLS, and over Foolscap.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.grid import GRID
from benchmarks.links import foolscap_seconds, tls_seconds
from benchmarks.uploads import MiB
from helper import free_memory
from helper.codec import codec_for
from helper.service import ARENAS, KEPT_MEMORY

NAME = "parts"
GIB = 1024 * MiB
EXPANSION = GRID.n / GRID.k
HASHED = 2 + EXPANSION  # bytes hashed of a byte of ciphertext
BLOCK = MiB // GRID.k
MESSAGE = 1_000_000  # bytes, about what the helper sends in one
SUBJECT = "this machine"
#: Bytes that each part is measured with; the quickest of rounds counts, as everything else only adds.
AMOUNT = 256 * MiB


def run(bench: Bench) -> None:
    """By GiB of what goes through each part, and the sum as the helper needs them. With memory as the helper has it."""
    free_memory.keep(KEPT_MEMORY, ARENAS)
    directory = bench.grid.client_directory
    parts: dict[str, Callable[[], float]] = {
        "SHA-256": _hash, "erasure code": _code, "append and fdatasync": partial(_append, directory),
        "TLS, sender": lambda: tls_seconds(AMOUNT)[0], "TLS, receiver": lambda: tls_seconds(AMOUNT)[1],
        "Foolscap, sender": lambda: foolscap_seconds(AMOUNT, MESSAGE)[0],
        "Foolscap, receiver": lambda: foolscap_seconds(AMOUNT, MESSAGE)[1],
    }
    best: dict[str, float] = {}
    for name, measure in parts.items():
        for _round in range(bench.rounds):
            seconds = measure() * GIB / AMOUNT
            bench.add(NAME, name, "CPU", "s/GiB", seconds, SUBJECT)
            best[name] = min(seconds, best.get(name, seconds))
        bench.say(f"  {name}: {best[name]:.2f} s/GiB")
    for link in ("TLS", "Foolscap"):
        floor = (best[f"{link}, receiver"] + best["append and fdatasync"] + HASHED * best["SHA-256"]
                 + best["erasure code"] + EXPANSION * best[f"{link}, sender"])
        bench.add(NAME, floor_case(link), "CPU", "s/GiB", floor, SUBJECT)


def floor_case(link: str) -> str:
    return f"floor of the helper, over {link}"


def _cpu(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _hash() -> float:
    block = os.urandom(BLOCK)
    return _cpu(lambda: [hashlib.sha256(block).digest() for _ in range(AMOUNT // BLOCK)])


def _code() -> float:
    codec, segment = codec_for(GRID.k, GRID.n), os.urandom(BLOCK * GRID.k)

    def encode() -> None:
        for _ in range(AMOUNT // len(segment)):
            codec.encode(segment)

    return _cpu(encode)


def _append(directory: Path) -> float:
    piece = os.urandom(MiB)
    with tempfile.TemporaryFile(dir=directory) as f:

        def append() -> None:
            for _ in range(AMOUNT // MiB):
                os.write(f.fileno(), piece)
                os.fdatasync(f.fileno())

        return _cpu(append)
