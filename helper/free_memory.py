"""Memory that was used in a burst and is free again goes back to the system.

glibc keeps it otherwise, as pages between which something small lives on: some hundred MiB after a thousand uploads.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

#: Seconds from one time to the next: pages that are needed again have to be cleared again.
INTERVAL = 10

#: glibc's malloc.h. Threads beyond two share their arenas: there is less to keep, and they wait for the disk anyway.
_M_ARENA_MAX, _ARENAS = -8, 2


def limit_arenas() -> None:
    """Before threads are started."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if _malloc_trim() is not None and mallopt is not None:  # glibc
        mallopt(_M_ARENA_MAX, _ARENAS)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none, and no need of it


def give_back() -> None:
    """Takes some milliseconds: belongs into a thread."""
    malloc_trim = _malloc_trim()
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))
