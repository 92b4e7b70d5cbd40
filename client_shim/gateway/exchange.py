"""One HTTP request and its answer, as handlers see them. Handlers see nothing else of HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import cached_property
from typing import Protocol
from urllib.parse import parse_qsl

import attrs

from helper.errors import StreamingError

#: Names and values of a head, in the order in which they are sent.
HeaderList = Iterable[tuple[str, str]]


def on_the_wire(headers: HeaderList) -> list[tuple[bytes, bytes]]:
    """Fields as they are sent. What is not Latin-1 becomes `?`."""
    return [(name.encode("ascii", "replace"), value.encode("latin-1", "replace")) for name, value in headers]


@attrs.frozen
class Headers:
    """The fields of a head in their order, names as they were sent (Latin-1). Looked up without regard to case."""

    fields: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str | None:
        """The value of the first field of that name."""
        return next(iter(self.get_all(name)), None)

    def get_all(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        wanted = name.lower()
        return [value for each, value in self.fields if each.lower() == wanted]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.fields)


@attrs.frozen(slots=False)
class RequestHead:
    """The head of a request. `target` as it was sent, so percent-encoded: path, and perhaps `?` and a query."""

    method: str
    target: str
    headers: Headers
    http_version: str = "1.1"

    @property
    def path(self) -> str:
        """What stands before the first `?`, percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What stands after the first `?`, percent-encoded."""
        return self.target.partition("?")[2]

    @cached_property
    def arguments(self) -> list[tuple[str, str]]:
        """The query's names and values, decoded. What is not UTF-8 becomes U+FFFD."""
        return parse_qsl(self.query, keep_blank_values=True)

    def argument(self, name: str) -> str | None:
        """The first value of a query argument."""
        return next((value for each, value in self.arguments if each == name), None)

    @property
    def content_length(self) -> int | None:
        """Bytes of the body, if they were declared."""
        text = self.headers.get("content-length")
        return None if text is None else int(text)

    @property
    def has_body(self) -> bool:
        """Whether a body of at least one byte is to be expected."""
        return "transfer-encoding" in self.headers or bool(self.content_length)


class ClientGone(StreamingError):
    """The request's body will not be complete, or its answer cannot be sent: the connection is lost."""

    code = "client-gone"

    def text(self) -> str:
        return "the client closed its connection before the request was complete"


@attrs.define(eq=False, str=False)
class BodyTooSlow(ClientGone):
    """Nothing came, or nothing was taken, for so long (seconds). The answer can still be given."""

    code = "body-too-slow"
    seconds: int

    def text(self) -> str:
        return f"the request's body brought nothing for {self.seconds} seconds"


class BadBody(ClientGone):
    """The body's framing is wrong. The answer can still be given."""

    code = "bad-body"

    def text(self) -> str:
        return "the request's body is not framed as HTTP wants it; expected chunks with their sizes"


class Exchange(Protocol):
    """One request and its answer: http_exchange.py. One call at a time, but for `on_gone` and `end_now`.

    Every method that awaits raises ClientGone when the connection is lost.
    """

    @property
    def head(self) -> RequestHead:
        """The request's head."""

    @property
    def peer(self) -> str:
        """The address that the request came from."""

    @property
    def status(self) -> int | None:
        """That of the answer, when it has begun."""

    @property
    def received(self) -> int:
        """Bytes of the body that `read` gave."""

    @property
    def sent(self) -> int:
        """Bytes of the answer's body."""

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Be told once if the connection is lost before the answer has ended; at once if it is lost already.

        While nobody reads a body that is not complete, a connection that is cut is not noticed.
        """

    async def read(self) -> bytes:
        """The next piece of the body; b"" at its end, and ever after. Reads from the connection only while it waits:
        so a slow reader makes a slow client. The first call sends 100 Continue if that is expected.

        Raises ClientGone if the connection was cut before the body's end (after everything that came was given),
        BodyTooSlow and BadBody. May be cancelled (Deferred.fromCoroutine(...).cancel()); nothing is lost by it.
        """

    def answer_always_with(self, headers: HeaderList) -> None:
        """Whatever the answer is: it gets these fields, unless it has some of the same name."""

    def abandon_body(self) -> None:
        """The rest of the body will not be read: the connection is closed after the answer. An answer that begins
        before the body was read to its end does that by itself."""

    async def inform(self, status: int, headers: HeaderList) -> None:
        """Send a 1xx answer, if the client can take one (HTTP/1.1)."""

    async def respond(self, status: int, headers: HeaderList = (), body: bytes = b"") -> None:
        """Send a whole answer, with its Content-Length. The body is left out where HTTP wants it (HEAD, 204, 304)."""

    async def begin(self, status: int, headers: HeaderList) -> None:
        """Begin an answer whose body follows by `write`; without a Content-Length in `headers` it is chunked."""

    async def write(self, data: bytes) -> None:
        """Send the next piece of the answer's body; waits while the client does not take it."""

    async def end(self) -> None:
        """The answer begun is complete."""

    def end_now(self) -> None:
        """Cut the connection."""


Handler = Callable[[Exchange], Awaitable[None]]
