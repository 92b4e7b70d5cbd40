"""What a staging server refuses, with stable codes: protocol.txt §18. Those imported here are those of §5."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from helper.disk import reason_of
from helper.errors import BadArgument, InternalError, OffsetGap, Refusal, StorageIndexConflict, StreamingError

__all__ = [
    "BY_CODE", "AlreadyPrepared", "BadArgument", "InternalError", "NoSpace", "OffsetGap", "ReadOnly", "StagingFull",
    "Stopping", "StorageIndexConflict", "StreamingError", "TooManyStagings", "UnknownStaging", "WriteFailed",
    "WrongSize", "disk_errors", "reason_of",
]


@attrs.define(eq=False, str=False)
class UnknownStaging(Refusal):
    code = "unknown-staging"

    def text(self) -> str:
        return "no share is staged under this name; it may have been assigned, aborted, or have expired"


@attrs.define(eq=False, str=False)
class TooManyStagings(Refusal):
    code = "too-many-stagings"
    limit: int

    def text(self) -> str:
        return f"the server already has {self.limit} stagings, or so many staged shares, its limit"


@attrs.define(eq=False, str=False)
class StagingFull(Refusal):
    code = "staging-full"
    limit: int
    came: int

    def text(self) -> str:
        return f"a staging holds at most {self.limit} bytes, with this write it would hold {self.came}"


@attrs.define(eq=False, str=False)
class NoSpace(Refusal):
    code = "no-space"
    available: int
    wanted: int

    def text(self) -> str:
        return f"the server has {self.available} bytes to spare, this takes {self.wanted}"


@attrs.define(eq=False, str=False)
class ReadOnly(Refusal):
    code = "read-only"

    def text(self) -> str:
        return "the server takes no shares: [storage] readonly"


@attrs.define(eq=False, str=False)
class AlreadyPrepared(Refusal):
    code = "already-prepared"
    state: str

    def text(self) -> str:
        return f"the share is {self.state}: it takes no more bytes"


@attrs.define(eq=False, str=False)
class WrongSize(Refusal):
    code = "wrong-size"
    held: int
    came: int

    def text(self) -> str:
        return f"the share is to have {self.came} bytes, {self.held} are held"


@attrs.define(eq=False, str=False)
class WriteFailed(Refusal):
    code = "write-failed"
    reason: str

    def text(self) -> str:
        return f"the server could not write: {self.reason}"


@attrs.define(eq=False, str=False)
class Stopping(Refusal):
    code = "stopping"

    def text(self) -> str:
        return "the storage node is shutting down, or could not open its staging records"


#: Every code of protocol.txt §18.
BY_CODE: dict[str, type[StreamingError]] = {
    cls.code: cls
    for cls in (BadArgument, OffsetGap, UnknownStaging, TooManyStagings, StagingFull, NoSpace, ReadOnly,
                AlreadyPrepared, WrongSize, StorageIndexConflict, WriteFailed, Stopping, InternalError)
}


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the disk or the records could not do, as a refusal."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise WriteFailed(reason_of(error)) from error
