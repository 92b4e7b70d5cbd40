"""How this process has memory from the system: what is used again at once is kept, and given back when it is not.

As it comes, glibc has every block of a share mapped by the system, which clears it page by page, and unmapped when it
is freed: that takes more time than to encode it. It is told to keep some. On the other hand it keeps what was used in
a burst, as pages between which something small lives on: some hundred MiB after a thousand uploads.
"""

from __future__ import annotations

import ctypes
import gc
from functools import cache
from typing import Any

MiB = 1024 * 1024

#: Seconds from one time to the next: pages that are needed again have to be cleared again.
INTERVAL = 10

#: glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
#: Larger pieces are mapped, and unmapped when they are freed; ours, messages and blocks, have at most 4 MiB.
MAPPED_FROM = 8 * MiB
#: So much is had from the system at a time, beyond what is needed.
HAD_AT_ONCE = 1 * MiB


def keep(at_most: int, arenas: int = 0) -> None:
    """Keep so many free bytes at the end of each arena. At the start of the process, before there are threads.

    Threads beyond `arenas` (0: as many as glibc likes) share theirs: there is less to keep. What was made so far,
    modules above all, is not looked through any more for garbage: that would take as much time as all of TLS.
    """
    gc.freeze()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if _malloc_trim() is None or mallopt is None:  # not glibc
        return
    if arenas:
        mallopt(_M_ARENA_MAX, arenas)
    mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)
    mallopt(_M_TRIM_THRESHOLD, at_most)
    mallopt(_M_TOP_PAD, HAD_AT_ONCE)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none, and no need of it


def give_back() -> None:
    """Takes some milliseconds: belongs into a thread."""
    malloc_trim = _malloc_trim()
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))
