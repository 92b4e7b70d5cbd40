"""ISA-L, Intel's library of erasure codes, with the output of zfec and at thirty times its speed.

Its Reed-Solomon code takes any generator matrix over GF(2^8). Given zfec's own, in the same field (polynomial 0x11d),
it makes the same bytes; `code_for` believes that only when it has seen it, for every k and N. The library is that of
the wheel of pyeclib, which pip installs where there is one, or the system's (Debian: libisal2).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import attrs
import zfec
from twisted.logger import Logger

#: What ec_init_tables may write for one coefficient; some versions write less on some machines.
TABLE_ENTRY = 32  # bytes

#: Sizes (bytes) of the blocks that are compared with zfec's: each of the vector lengths of ISA-L, and odd ends.
COMPARED_BLOCKS = (1, 15, 33, 64, 199)

_log = Logger()


@attrs.frozen
class Library:
    """ISA-L in this process; `origin` says where it was found."""

    origin: str
    init_tables: Any
    encode_data: Any


class IsalCode:
    """k-of-n code: the secondary blocks, from the primary ones. Thread-safe; drops the GIL while it works."""

    def __init__(self, k: int, n: int, library: Library) -> None:
        self.k = k
        self.n = n
        self._library = library
        self._rows = generator_rows(k, n)
        self._all = list(range(k, n))
        self._all_tables = self._tables(self._all)

    def secondary_blocks(self, segment: bytes, shnums: Sequence[int]) -> list[bytes]:
        """Blocks of a segment whose length is a multiple of k, not 0, for share numbers from k to n - 1."""
        size = len(segment) // self.k
        wanted = list(shnums)
        if not wanted:
            return []
        tables = self._all_tables if wanted == self._all else self._tables(wanted)
        start = _address(segment)
        sources = (ctypes.c_void_p * self.k)(*range(start, start + size * self.k, size))
        # Filled before anyone else sees them: bytes that nobody has to copy.
        blocks = [_new_bytes(None, size) for _ in wanted]
        targets = (ctypes.c_void_p * len(wanted))(*map(_address, blocks))
        self._library.encode_data(size, self.k, len(wanted), tables, sources, targets)
        return blocks

    def _tables(self, shnums: Sequence[int]) -> Any:
        tables = ctypes.create_string_buffer(max(1, TABLE_ENTRY * self.k * len(shnums)))
        self._library.init_tables(self.k, len(shnums), b"".join(self._rows[shnum - self.k] for shnum in shnums), tables)
        return tables


def generator_rows(k: int, n: int) -> list[bytes]:
    """Of zfec's matrix, what makes the secondary blocks: row i has the k factors of block k + i.

    Read off by encoding unit vectors: block j of them is 1 in place j and 0 elsewhere.
    """
    units = [bytes(place == j for place in range(k)) for j in range(k)]
    return list(zfec.Encoder(k, n).encode(units, list(range(k, n)))) if n > k else []


@lru_cache(maxsize=256)
def code_for(k: int, n: int) -> IsalCode | None:
    """A code that `checked`; None if there is no library, or it errs."""
    library = find_library()
    return None if library is None else checked(IsalCode(k, n, library))


def checked(code: IsalCode) -> IsalCode | None:
    """The code if its blocks are those of zfec, for random segments."""
    k, n = code.k, code.n
    reference = zfec.Encoder(k, n)
    for size in COMPARED_BLOCKS:
        segment = os.urandom(k * size)
        shnums = list(range(k, n))
        expected = list(reference.encode([segment[i * size:(i + 1) * size] for i in range(k)], shnums))
        if code.secondary_blocks(segment, shnums) != expected:
            _log.error("ISA-L makes other blocks than zfec, {k} of {n}, {size} bytes: not used", k=k, n=n, size=size)
            return None
    return code


@cache
def find_library() -> Library | None:
    """ISA-L, if it is on this machine."""
    if platform.python_implementation() != "CPython":
        return None  # blocks are written into new bytes objects, as only CPython's are made
    return first_usable([*_in_wheel(), ("libisal.so.2", "libisal.so.2")])


def first_usable(candidates: Sequence[tuple[str, str]]) -> Library | None:
    """Of places (origin, what dlopen takes) the first that has the library."""
    for origin, path in candidates:
        try:
            return _loaded(origin, path)
        except (OSError, AttributeError):
            continue  # not there, not for this machine, or without these functions
    return None


def _in_wheel() -> list[tuple[str, str]]:
    try:
        wheel = distribution("pyeclib")
    except PackageNotFoundError:
        return []
    return [(f"pyeclib {wheel.version}", str(file.locate())) for file in wheel.files or () if "libisal" in file.name]


def _loaded(origin: str, path: str) -> Library:
    """Raises OSError or AttributeError."""
    library = ctypes.CDLL(path)  # drops the GIL during calls
    init_tables, encode_data = library.ec_init_tables, library.ec_encode_data
    init_tables.restype = encode_data.restype = None
    init_tables.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    encode_data.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return Library(origin, init_tables, encode_data)


#: PyBytes_FromStringAndSize(None, size): bytes that are not initialised.
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
_address = ctypes.pythonapi.PyBytes_AsString
_address.restype = ctypes.c_void_p
_address.argtypes = [ctypes.py_object]
