"""What is wrong with requests for upload handles. What is wrong with handles themselves is in handle_errors.py."""

from __future__ import annotations

import attrs

from client_shim.gateway.errors import GatewayError


@attrs.define(eq=False, str=False)
class MissingField(GatewayError):
    code = "missing-field"
    name: str
    expected: str

    def text(self) -> str:
        return f"the request has no field {self.name}: expected {self.expected}"


@attrs.define(eq=False, str=False)
class BadField(GatewayError):
    code = "bad-field"
    name: str
    expected: str

    def text(self) -> str:
        return f"the field {self.name} is not as it should be: expected {self.expected}"


@attrs.define(eq=False, str=False)
class WrongVersion(GatewayError):
    code = "wrong-tus-version"
    expected: str

    def text(self) -> str:
        return f"the field Tus-Resumable must name a version that is spoken here: expected {self.expected}"


@attrs.define(eq=False, str=False)
class WrongMediaType(GatewayError):
    code = "wrong-media-type"
    expected: str

    def text(self) -> str:
        return f"the body has another Content-Type: expected {self.expected}"


@attrs.define(eq=False, str=False)
class WrongMethod(GatewayError):
    code = "wrong-method"
    allowed: str

    def text(self) -> str:
        return f"this is not possible here: expected {self.allowed}"


@attrs.define(eq=False, str=False)
class OffsetMismatch(GatewayError):
    code = "mismatching-upload-offset"
    expected: int
    came: int

    def text(self) -> str:
        return f"the offset of the request is not that of the upload: expected {self.expected}, got {self.came}"


@attrs.define(eq=False, str=False)
class InconsistentLength(GatewayError):
    """`expected`: the length declared elsewhere, `came`: the other."""

    code = "inconsistent-upload-length"
    expected: int
    came: int

    def text(self) -> str:
        return f"the lengths given for the upload differ: expected {self.expected}, got {self.came}"


class Concatenation(GatewayError):
    code = "no-concatenation"

    def text(self) -> str:
        return "uploads cannot be put together out of parts here: expected no Upload-Concat"


@attrs.define(eq=False, str=False)
class UnknownAlgorithm(GatewayError):
    code = "unknown-checksum-algorithm"
    expected: str

    def text(self) -> str:
        return f"the checksum's algorithm is not known here: expected one of {self.expected}"


class ChecksumMismatch(GatewayError):
    code = "checksum-mismatch"

    def text(self) -> str:
        return "the body does not have the checksum that came with it; nothing of it was taken"


@attrs.define(eq=False, str=False)
class ChecksumBodyTooLarge(GatewayError):
    """A body with a checksum waits in memory until it is verified: what was encrypted cannot be taken back."""

    code = "checksum-body-too-large"
    limit: int

    def text(self) -> str:
        return f"a body with Upload-Checksum has at most {self.limit} bytes here; send smaller ones"


class ChecksumMemoryFull(GatewayError):
    code = "checksum-memory-full"

    def text(self) -> str:
        return "too many bodies with Upload-Checksum are on their way at present; nothing of this one was taken"


@attrs.define(eq=False, str=False)
class BadLink(GatewayError):
    code = "bad-link"
    expected: str

    def text(self) -> str:
        return f"the file could not be linked into its directory: expected {self.expected}"


@attrs.define(eq=False, str=False)
class LinkRefused(GatewayError):
    """`status`: what the client node answered."""

    code = "link-refused"
    status: int

    def text(self) -> str:
        return f"the client node answered {self.status}"
