"""Every error that crosses the wire, with its stable code: protocol.txt §5.

A Refusal is the peer's fault (or the grid's) and changes nothing; the edges turn it into an answer.
A HelperFault is ours. The text is made from the fields: what was expected, what came, then a hint.
"""

from __future__ import annotations

from typing import ClassVar

import attrs


class StreamingError(Exception):
    """Base of every error of this package. `code` is stable and part of the interface."""

    code: ClassVar[str] = "internal-error"

    def text(self) -> str:
        """One sentence or two for a person; never holds a key, cap, furl or upload ID."""
        raise NotImplementedError(type(self).__name__)

    def fields(self) -> dict[str, int | str]:
        """The typed fields of this error, by name."""
        return {a.name: getattr(self, a.name) for a in getattr(type(self), "__attrs_attrs__", ())}

    def __str__(self) -> str:
        return f"{self.code}: {self.text()}"


class Refusal(StreamingError):
    """What the peer asked for is refused, and nothing was changed by asking."""


class HelperFault(StreamingError):
    """The helper itself failed; the upload cannot go on."""


@attrs.define(eq=False, str=False)
class BadArgument(Refusal):
    code = "bad-argument"
    field: str
    expected: str
    came: str

    def text(self) -> str:
        return f"{self.field}: expected {self.expected}, got {self.came}"


@attrs.define(eq=False, str=False)
class BadUploadId(Refusal):
    code = "bad-upload-id"
    expected: int
    came: int

    def text(self) -> str:
        return f"an upload ID is {self.expected} random bytes, got {self.came} bytes"


@attrs.define(eq=False, str=False)
class UnknownUpload(Refusal):
    code = "unknown-upload"

    def text(self) -> str:
        return "no upload in progress has this upload ID; it may have expired, or the helper was restarted"


@attrs.define(eq=False, str=False)
class ParametersDiffer(Refusal):
    code = "parameters-differ"
    field: str
    expected: int
    came: int

    def text(self) -> str:
        return (f"this upload was opened with {self.field} = {_number(self.expected)}, "
                f"now {_number(self.came)}; use a new upload ID for another upload")


@attrs.define(eq=False, str=False)
class TooManyUploads(Refusal):
    code = "too-many-uploads"
    limit: int

    def text(self) -> str:
        return f"the helper already has {self.limit} uploads open, its limit; try again later"


@attrs.define(eq=False, str=False)
class TooFewServers(Refusal):
    code = "too-few-servers"
    have: int
    need: int

    def text(self) -> str:
        return (f"shares can be placed on {self.have} storage servers, but shares.happy asks for {self.need}; "
                "more servers are needed, or a smaller shares.happy")


@attrs.define(eq=False, str=False)
class TooFewShares(Refusal):
    code = "too-few-shares"
    have: int
    need: int

    def text(self) -> str:
        return (f"{self.have} shares can be placed, but shares.needed is {self.need}; "
                "more storage servers are needed, or servers with more room")


@attrs.define(eq=False, str=False)
class SpoolFull(Refusal):
    code = "spool-full"
    available: int
    wanted: int

    def text(self) -> str:
        return (f"the helper's spool has room for {self.available} bytes, {self.wanted} are wanted; "
                "uploads in progress fill it, or its disk; try again later")


@attrs.define(eq=False, str=False)
class QuotaExceeded(Refusal):
    code = "quota-exceeded"
    limit: int
    came: int

    def text(self) -> str:
        return f"one upload may have at most {self.limit} bytes at this helper, this one would have {self.came}"


@attrs.define(eq=False, str=False)
class MessageTooLarge(Refusal):
    code = "message-too-large"
    limit: int
    came: int

    def text(self) -> str:
        return f"a message holds at most {self.limit} bytes of ciphertext, got {self.came}"


@attrs.define(eq=False, str=False)
class OffsetGap(Refusal):
    code = "offset-gap"
    expected: int
    came: int

    def text(self) -> str:
        return f"the next offset is {self.expected}, got {self.came}; ask for status and go on from there"


@attrs.define(eq=False, str=False)
class ConflictingData(Refusal):
    code = "conflicting-data"
    offset: int
    length: int

    def text(self) -> str:
        return (f"the {self.length} bytes at offset {self.offset} differ from those held; "
                "a repeat must send the identical ciphertext")


@attrs.define(eq=False, str=False)
class CreditExceeded(Refusal):
    code = "credit-exceeded"
    limit: int
    came: int

    def text(self) -> str:
        return (f"at most {self.limit} bytes may wait for acknowledgement, with this message it would be "
                f"{self.came}; wait for answers")


@attrs.define(eq=False, str=False)
class MemoryShort(Refusal):
    code = "memory-short"

    def text(self) -> str:
        return ("the upload waits, and others need the memory that its messages would take meanwhile; ask for status "
                "and go on from there, in some seconds")


@attrs.define(eq=False, str=False)
class SizeExceeded(Refusal):
    code = "size-exceeded"
    declared: int
    came: int

    def text(self) -> str:
        return f"the declared size is {self.declared} bytes, this message would reach {self.came}"


@attrs.define(eq=False, str=False)
class SizeMismatch(Refusal):
    code = "size-mismatch"
    expected: int
    came: int

    def text(self) -> str:
        return f"finish says {self.came} bytes, expected {self.expected}"


@attrs.define(eq=False, str=False)
class LiteralSize(Refusal):
    code = "literal-size"
    limit: int
    came: int

    def text(self) -> str:
        return f"a file of {self.came} bytes is a URI:LIT cap (up to {self.limit} bytes) and needs no helper"


@attrs.define(eq=False, str=False)
class BadStorageIndex(Refusal):
    code = "bad-storage-index"
    expected: int
    came: int

    def text(self) -> str:
        return f"a storage index has {self.expected} bytes, got {self.came}"


@attrs.define(eq=False, str=False)
class StorageIndexConflict(Refusal):
    code = "storage-index-conflict"

    def text(self) -> str:
        return "another storage index was assigned to this upload before; it cannot change"


@attrs.define(eq=False, str=False)
class StorageIndexBusy(Refusal):
    code = "storage-index-busy"

    def text(self) -> str:
        return "another upload in progress has this storage index; wait for it to end"


@attrs.define(eq=False, str=False)
class HashMismatch(Refusal):
    code = "hash-mismatch"
    field: str

    def text(self) -> str:
        return (f"{self.field} of finish is not that of the ciphertext held; "
                "what arrived is not what was sent, or the client hashed something else")


@attrs.define(eq=False, str=False)
class AlreadyFinishing(Refusal):
    code = "already-finishing"
    state: str

    def text(self) -> str:
        return f"the upload is {self.state}: it takes no more ciphertext after finish"


@attrs.define(eq=False, str=False)
class AlreadyPublishing(Refusal):
    code = "already-publishing"
    state: str

    def text(self) -> str:
        return f"the upload is {self.state}: its shares are being published and it can no longer be aborted"


@attrs.define(eq=False, str=False)
class NotFinished(Refusal):
    code = "not-finished"
    state: str

    def text(self) -> str:
        return f"the upload is {self.state}: a sealed record can be left of a finished one only"


@attrs.define(eq=False, str=False)
class NotOffered(Refusal):
    code = "not-offered"

    def text(self) -> str:
        return ("the helper does not answer for this file: the last look_up of this upload did not name it, "
                "the helper was restarted since, or its shares could not be kept from expiring; finish the upload")


@attrs.define(eq=False, str=False)
class Deduplicated(Refusal):
    code = "deduplicated"

    def text(self) -> str:
        return "the client took a file that was stored already; this upload was dropped"


@attrs.define(eq=False, str=False)
class Aborted(Refusal):
    code = "aborted"

    def text(self) -> str:
        return "the upload was aborted"


@attrs.define(eq=False, str=False)
class Expired(Refusal):
    code = "expired"
    idle_seconds: int

    def text(self) -> str:
        return f"the upload was idle for {self.idle_seconds} seconds and has expired"


@attrs.define(eq=False, str=False)
class SpoolFailed(HelperFault):
    code = "spool-failed"
    reason: str

    def text(self) -> str:
        return f"the helper could not store ciphertext on its disk: {self.reason}"


@attrs.define(eq=False, str=False)
class HelperStopping(HelperFault):
    code = "helper-stopping"

    def text(self) -> str:
        return "the helper is shutting down"


@attrs.define(eq=False, str=False)
class InternalError(HelperFault):
    code = "internal-error"
    kind: str

    def text(self) -> str:
        return f"the helper failed ({self.kind}); its log says more"


def fault_of(error: BaseException | None) -> StreamingError:
    """The error to answer with when `error` ended an upload."""
    return error if isinstance(error, StreamingError) else InternalError(type(error).__name__)


def _number(value: int) -> str:
    return "unknown" if value < 0 else str(value)


#: Every code of the wire protocol with its class; protocol.txt §5 lists the same (a test compares).
BY_CODE: dict[str, type[StreamingError]] = {
    cls.code: cls
    for cls in (
        BadArgument, BadUploadId, UnknownUpload, ParametersDiffer, TooManyUploads, TooFewServers,
        TooFewShares, SpoolFull, QuotaExceeded, MessageTooLarge, OffsetGap, ConflictingData, CreditExceeded,
        MemoryShort, SizeExceeded, SizeMismatch, LiteralSize, BadStorageIndex, StorageIndexConflict,
        StorageIndexBusy, HashMismatch, AlreadyFinishing, AlreadyPublishing, NotFinished, NotOffered, Deduplicated,
        Aborted, Expired, SpoolFailed, HelperStopping, InternalError,
    )
}
