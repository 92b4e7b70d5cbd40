"""Errors of the client side. Those the helper answers with come as HelperRefused, with their stable code."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from helper.errors import StreamingError


class UploadError(StreamingError):
    """An upload that gave no cap. Whatever was sent is unreadable and will be swept."""


@attrs.define(eq=False, str=False)
class NoHelperConfigured(UploadError):
    code = "no-helper-configured"
    where: str

    def text(self) -> str:
        return f"{self.where} has no helper.furl in section [client]; put the furl of a streaming helper there"


@attrs.define(eq=False, str=False)
class BadNodeDirectory(UploadError):
    code = "bad-node-directory"
    where: str
    reason: str

    def text(self) -> str:
        return f"{self.where} cannot be used as a client node's directory: {self.reason}"


@attrs.define(eq=False, str=False)
class StockHelper(UploadError):
    code = "stock-helper"

    def text(self) -> str:
        return ("the configured helper is a stock Tahoe helper, which cannot take a stream; "
                "run `tahoe-stream helper run` there, or configure another helper.furl")


@attrs.define(eq=False, str=False)
class BadFurl(UploadError):
    code = "bad-furl"
    reason: str

    def text(self) -> str:
        return f"the configured helper.furl cannot be used: {self.reason}"


@attrs.define(eq=False, str=False)
class HelperUnreachable(UploadError):
    code = "helper-unreachable"
    reason: str

    def text(self) -> str:
        return f"no connection to the helper ({self.reason}); is it running, and is helper.furl its present one?"


@attrs.define(eq=False, str=False)
class HelperLost(UploadError):
    """`seconds`: how long it was tried to find the helper again."""

    code = "helper-lost"
    seconds: int = 0

    def text(self) -> str:
        tried = f", and it was not found again for {self.seconds} seconds" if self.seconds else ""
        return f"the connection to the helper broke before the upload was complete{tried}; there is no cap"


@attrs.define(eq=False, str=False)
class HelperMisbehaved(UploadError):
    code = "helper-misbehaved"
    what: str

    def text(self) -> str:
        return f"the helper broke the protocol: {self.what}; there is no cap"


@attrs.define(eq=False, str=False)
class HelperRefused(UploadError):
    """A refusal of the helper: `code` is its code, `values` the fields it came with."""

    code: str  # type: ignore[misc]
    explanation: str
    values: Mapping[str, int | str]

    def text(self) -> str:
        return self.explanation

    def fields(self) -> dict[str, int | str]:
        return dict(self.values)


@attrs.define(eq=False, str=False)
class WrongUEB(UploadError):
    code = "wrong-ueb"
    field: str

    def text(self) -> str:
        return (f"the helper's result is not that of the file that was sent ({self.field} differs); "
                "the helper is faulty or lies, and there is no cap")


@attrs.define(eq=False, str=False)
class Waiting(UploadError):
    code = "waiting-too-long"
    have: int
    need: int
    seconds: int

    def text(self) -> str:
        return (f"shares could be placed on {self.have} of {self.need} servers for {self.seconds} seconds; "
                "the helper goes on trying, but there is no cap yet")


@attrs.define(eq=False, str=False)
class DeclaredSize(UploadError):
    code = "declared-size"
    declared: int
    came: int

    def text(self) -> str:
        more = "more" if self.came > self.declared else "fewer"
        return f"{more} bytes came than were declared: {self.came}, expected {self.declared}"


@attrs.define(eq=False, str=False)
class SourceChanged(UploadError):
    code = "source-changed"
    offset: int

    def text(self) -> str:
        return (f"the file changed while it was being read, in the segment at offset {self.offset}; "
                "nothing of that segment was sent")


@attrs.define(eq=False, str=False)
class CommandFailed(UploadError):
    code = "command-failed"
    status: int

    def text(self) -> str:
        how = f"was killed by signal {-self.status}" if self.status < 0 else f"exited with status {self.status}"
        return f"the command {how}; its output was not stored"


@attrs.define(eq=False, str=False)
class VerifyFailed(UploadError):
    code = "verify-failed"
    reason: str

    def text(self) -> str:
        return f"reading the file back through the client node failed: {self.reason}"


@attrs.define(eq=False, str=False)
class UploadClosed(UploadError):
    code = "upload-closed"

    def text(self) -> str:
        return "the upload was closed or aborted before"


@attrs.define(eq=False, str=False)
class UploadInterrupted(UploadError):
    """`reason`: the kind of exception that ended a call before it was done, as when a program cancels it."""

    code = "upload-interrupted"
    reason: str

    def text(self) -> str:
        return f"a call was ended by {self.reason} before it was done, so that bytes may be missing; there is no cap"


class StatusError(StreamingError):
    """Why `tahoe-stream status` has nothing to show."""


@attrs.define(eq=False, str=False)
class NoNodeDirectory(StatusError):
    code = "no-node-directory"
    where: str
    reason: str

    def text(self) -> str:
        return f"{self.where} is not the directory of a Tahoe node: {self.reason}"


@attrs.define(eq=False, str=False)
class NodeNotRunning(StatusError):
    code = "node-not-running"
    where: str
    reason: str

    def text(self) -> str:
        return (f"the node in {self.where} does not run, or has no web port ({self.reason}); "
                "start it with `tahoe-stream helper run`")


@attrs.define(eq=False, str=False)
class NoStreamingHelper(StatusError):
    code = "no-streaming-helper"
    where: str

    def text(self) -> str:
        return (f"the node in {self.where} runs, but is no streaming helper; "
                "-d names the helper's directory, which `tahoe-stream helper run` was given")


@attrs.define(eq=False, str=False)
class StatusUnreadable(StatusError):
    code = "status-unreadable"
    where: str
    expected: str
    came: str

    def text(self) -> str:
        return f"the node in {self.where} did not tell its status: expected {self.expected}, got {self.came}"
