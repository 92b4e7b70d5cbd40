"""Errors of upload handles and of their journal, each with its stable code."""

from __future__ import annotations

import attrs

from client_shim.errors import HelperUnreachable
from helper.errors import StreamingError


class HandleError(StreamingError):
    """What was asked of an upload handle is refused, and has changed nothing."""


@attrs.define(eq=False, str=False)
class BadHandleId(HandleError):
    code = "bad-handle-id"

    def text(self) -> str:
        return "the name of an upload is 52 letters and digits out of a-z and 2-7"


@attrs.define(eq=False, str=False)
class UnknownHandle(HandleError):
    code = "unknown-handle"

    def text(self) -> str:
        return "there is no upload of this name; it may have been cancelled, or have ended long ago"


@attrs.define(eq=False, str=False)
class HandleExpired(HandleError):
    """`idle_seconds`: for how long nothing had come."""

    code = "handle-expired"
    idle_seconds: int

    def text(self) -> str:
        return f"this upload was given up: nothing came for {self.idle_seconds} seconds"


@attrs.define(eq=False, str=False)
class TooManyHandles(HandleError):
    code = "too-many-handles"
    limit: int

    def text(self) -> str:
        return f"there are {self.limit} uploads already, the gateway's limit; try again later"


@attrs.define(eq=False, str=False)
class BadSize(HandleError):
    code = "bad-size"
    limit: int
    came: int

    def text(self) -> str:
        return f"a file has from 0 to {self.limit} bytes, got {self.came}"


@attrs.define(eq=False, str=False)
class BadMetadata(HandleError):
    code = "bad-metadata"
    limit: int
    came: int

    def text(self) -> str:
        return f"an upload may have {self.limit} bytes of metadata, got {self.came}"


@attrs.define(eq=False, str=False)
class SizeConflict(HandleError):
    """`expected`: the size declared before, or the bytes that are there already, if they are more than `came`."""

    code = "size-conflict"
    expected: int
    came: int

    def text(self) -> str:
        return f"the size of the file: expected {self.expected}, got {self.came}"


@attrs.define(eq=False, str=False)
class SizeExceeded(HandleError):
    """Nothing of the bytes that are too many was taken."""

    code = "size-exceeded"
    declared: int
    came: int

    def text(self) -> str:
        return f"more bytes came than were declared: {self.came}, expected {self.declared}"


@attrs.define(eq=False, str=False)
class NotComplete(HandleError):
    """The file cannot be closed yet; it can be continued."""

    code = "not-complete"
    declared: int
    came: int

    def text(self) -> str:
        return f"the file is not complete: {self.came} of {self.declared} bytes have come"


@attrs.define(eq=False, str=False)
class AlreadyComplete(HandleError):
    code = "already-complete"
    size: int

    def text(self) -> str:
        return f"the file is complete with {self.size} bytes; nothing can follow"


@attrs.define(eq=False, str=False)
class TakenOver(HandleError):
    code = "taken-over"

    def text(self) -> str:
        return "a newer request has taken this upload over"


@attrs.define(eq=False, str=False)
class Cancelled(HandleError):
    code = "cancelled"

    def text(self) -> str:
        return "this upload was cancelled"


@attrs.define(eq=False, str=False)
class GatewayStopping(HandleError):
    code = "gateway-stopping"

    def text(self) -> str:
        return "the gateway is stopping; the upload can go on when it is back"


@attrs.define(eq=False, str=False)
class HelperUnusable(HelperUnreachable):
    """What was found is not the helper: `code` says what. It may yet come: somebody may set the furl right."""

    code: str  # type: ignore[misc]


@attrs.define(eq=False, str=False)
class HelperAway(HandleError):
    """What was received is not durable at the helper yet; ask again after `seconds`. `why`: the code of what keeps
    it, empty if it is only slow."""

    code = "helper-away"
    seconds: int
    why: str = ""

    def text(self) -> str:
        why = f" ({self.why})" if self.why else ""
        return (f"the helper does not take the upload at present{why}; nothing is lost, "
                f"try again in {self.seconds} seconds")


@attrs.define(eq=False, str=False)
class HandleFailed(HandleError):
    """The upload has ended without a cap, for good: `why` is the code of the reason, `reason` its text."""

    code = "handle-failed"
    why: str
    reason: str

    def text(self) -> str:
        return f"this upload has failed: {self.reason}"


@attrs.define(eq=False, str=False)
class LinkFailed(HandleError):
    """The file is stored, and its cap is `cap`, but it could not be linked into its directory: `why` is the code of
    the reason, `reason` its text. The cap is no part of text or fields: it is for the writer alone."""

    code = "link-failed"
    why: str
    reason: str
    cap: bytes = attrs.field(repr=False)

    def text(self) -> str:
        return f"the file is stored, but could not be linked into the directory: {self.reason}"

    def fields(self) -> dict[str, int | str]:
        return {"why": self.why, "reason": self.reason}


@attrs.define(eq=False, str=False)
class LinkBroken(HandleError):
    code = "internal-error"

    def text(self) -> str:
        return "the gateway failed; its log says more"


class JournalError(StreamingError):
    """The gateway's journal."""


@attrs.define(eq=False, str=False)
class JournalUnusable(JournalError):
    """The gateway cannot start with this journal; for its operator."""

    code = "journal-unusable"
    where: str
    reason: str

    def text(self) -> str:
        return f"{self.where}: {self.reason}"


@attrs.define(eq=False, str=False)
class JournalFailed(JournalError, HandleError):
    """Nothing can be recorded at present, so nothing was taken; ask again after `seconds`."""

    code = "journal-failed"
    reason: str
    seconds: int = 10

    def text(self) -> str:
        return (f"the gateway cannot write its journal ({self.reason}); what was acknowledged is safe, "
                f"try again in {self.seconds} seconds")


@attrs.define(eq=False, str=False)
class NoResumableHash(JournalError):
    code = "no-resumable-hash"
    reason: str

    def text(self) -> str:
        return ("uploads that survive a restart need the SHA-256 of OpenSSL, as Python's hashlib has it: "
                f"{self.reason}; use a Python that is linked with OpenSSL's libcrypto")
