"""What h11 lets pass in the head of a request and we do not, because two parties may read it differently.  (pure)

RFC 9112 allows a server to be lenient in each of these; every leniency is a way to smuggle a request past whoever
stands in front. No client that means well sends any of them.
"""

from __future__ import annotations

import re

import attrs

#: Ends a head; line ends are CRLF and nothing else.
HEAD_END = b"\r\n\r\n"
#: Content-Length beyond this (2^53, what every JSON reader can hold exactly) is no size of a file.
LARGEST_LENGTH = 1 << 53

_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_DIGITS = re.compile(rb"[0-9]{1,16}")


@attrs.define(eq=False, str=False)
class MalformedHead(Exception):
    """The request cannot be taken: the status of the answer and what is wrong, without quoting the request."""

    status: int
    reason: str

    def __str__(self) -> str:
        return self.reason


def check_beginning(head: bytes | bytearray, start: int = 0) -> None:
    """Raises MalformedHead for what is wrong already in a head that is not complete; up to `start` it was checked."""
    if _BARE_LINE_END.search(head, max(0, start - 1)):
        raise MalformedHead(400, "lines of a head end with CRLF")
    if _CONTROL.search(head, start):
        raise MalformedHead(400, "there are control characters in the head")
    if head.startswith(b"\r\n"):
        raise MalformedHead(400, "there is an empty line before the request")


def check_head(head: bytes) -> None:
    """`head` is complete, HEAD_END included. Raises MalformedHead."""
    check_beginning(head)
    request_line, *lines = head[:-len(HEAD_END)].split(b"\r\n")
    _check_request_line(request_line)
    names = [line.partition(b":")[0].lower() for line in lines]
    if any(line[:1] in (b" ", b"\t") for line in lines):
        raise MalformedHead(400, "a header is continued on a second line")
    lengths = [line.partition(b":")[2].strip(b" \t") for line in lines if line.lower().startswith(b"content-length:")]
    if len(lengths) > 1:
        raise MalformedHead(400, "there is more than one Content-Length")
    if lengths and (not _DIGITS.fullmatch(lengths[0]) or int(lengths[0]) > LARGEST_LENGTH):
        raise MalformedHead(400, f"Content-Length: expected a number from 0 to {LARGEST_LENGTH}")
    if b"transfer-encoding" in names:
        if lengths:
            raise MalformedHead(400, "there are both Content-Length and Transfer-Encoding")
        if not request_line.endswith(b"HTTP/1.1"):
            raise MalformedHead(400, "Transfer-Encoding is of HTTP/1.1")


def _check_request_line(line: bytes) -> None:
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if not version.startswith(b"HTTP/"):
        raise MalformedHead(400, "expected a request line such as GET /uri HTTP/1.1")
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise MalformedHead(505, "expected HTTP/1.1")
    if method == b"CONNECT" or not target.startswith(b"/"):
        # A target with a host of its own could differ from the Host header that is checked.
        raise MalformedHead(400, "expected a target that begins with a slash")
    if b"#" in target:
        raise MalformedHead(400, "a target has no fragment")
