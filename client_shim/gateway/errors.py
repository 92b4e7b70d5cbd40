"""What goes wrong in the gateway itself. The errors of uploads are in client_shim/errors.py."""

from __future__ import annotations

import attrs

from helper.errors import StreamingError


class GatewayError(StreamingError):
    """Base of the gateway's errors."""


@attrs.define(eq=False, str=False)
class NodeAway(GatewayError):
    code = "node-away"
    reason: str

    def text(self) -> str:
        return f"the Tahoe client node behind this gateway does not answer ({self.reason}); does it run?"


@attrs.define(eq=False, str=False)
class GatewayRunning(GatewayError):
    code = "gateway-running"
    where: str

    def text(self) -> str:
        return f"another gateway runs on {self.where}; one client node has one gateway"


@attrs.define(eq=False, str=False)
class BadStateDirectory(GatewayError):
    code = "bad-state-directory"
    where: str
    reason: str

    def text(self) -> str:
        return f"the gateway's directory {self.where} cannot be used: {self.reason}"


@attrs.define(eq=False, str=False)
class CannotListen(GatewayError):
    code = "cannot-listen"
    where: str
    reason: str

    def text(self) -> str:
        return (f"cannot listen at {self.where}: {self.reason}; --listen, or listen in section [gateway] of "
                "streaming.cfg, says where, as a Twisted endpoint such as tcp:3457:interface=127.0.0.1")


@attrs.define(eq=False, str=False)
class BadHost(GatewayError):
    code = "bad-host"

    def text(self) -> str:
        return ("the request is for another host than this gateway answers to; the setting hosts in section [gateway] "
                "of streaming.cfg names more")


@attrs.define(eq=False, str=False)
class CrossSite(GatewayError):
    code = "cross-site"

    def text(self) -> str:
        return "a page of another site may not write here; the setting allow-origins lists those that may"


@attrs.define(eq=False, str=False)
class EncodedBody(GatewayError):
    code = "content-encoding"

    def text(self) -> str:
        return "a body is taken as it is: expected no Content-Encoding"


@attrs.define(eq=False, str=False)
class BadForm(GatewayError):
    code = "bad-form"
    expected: str

    def text(self) -> str:
        return f"the form cannot be taken: expected {self.expected}"


@attrs.define(eq=False, str=False)
class BadQuery(GatewayError):
    code = "bad-query"
    name: str
    expected: str

    def text(self) -> str:
        return f"the query argument {self.name}: expected {self.expected}"


@attrs.define(eq=False, str=False)
class ChildExists(GatewayError):
    code = "child-exists"

    def text(self) -> str:
        return "There was already a child by that name, and you asked me to not replace it."  # as Tahoe says it
