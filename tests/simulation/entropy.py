"""Randomness that is always the same, for as long as a schedule runs."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def entropy_from(choose: random.Random) -> Iterator[None]:
    """What the operating system gives as random bytes (os.urandom, and `secrets` through it) comes from `choose`."""
    system, module = os.urandom, random._urandom  # type: ignore[attr-defined]
    os.urandom = choose.randbytes  # type: ignore[assignment]
    random._urandom = choose.randbytes  # type: ignore[attr-defined]
    try:
        yield
    finally:
        os.urandom, random._urandom = system, module  # type: ignore[attr-defined]
