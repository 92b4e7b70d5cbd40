"""Foolscap connections that send long byte strings at half the cost, with the very same tokens.

Foolscap looks every string up in its vocabulary of short words, for which all of a megabyte is hashed. Here a long one
is not looked up, and goes to the socket by itself (large_writes.py). Used for what sends shares (helper) and ciphertext
(client).
"""

from __future__ import annotations

from typing import Any

from foolscap.banana import STRING, int2b128
from foolscap.broker import Broker

from helper.large_writes import LargeWrites

#: A byte string that is longer is in no vocabulary (foolscap.vocab), and worth the trouble.
LONG = 16 * 1024


class LongStrings(Broker):  # type: ignore[misc]
    """A Foolscap connection, over TLS or not."""

    _large_writes: LargeWrites | None = None

    def connectionMade(self) -> None:
        self._large_writes = LargeWrites.over(self.transport)
        super().connectionMade()

    def sendToken(self, obj: Any) -> None:
        if type(obj) is not bytes or len(obj) <= LONG:
            super().sendToken(obj)
            return
        write = self.transport.write
        int2b128(len(obj), write)
        write(STRING)
        if self._large_writes is None:
            write(obj)
        else:
            self._large_writes.write(obj)
