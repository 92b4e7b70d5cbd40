"""POST /uri: a browser's form with a file (multipart/form-data), streamed.

The fields of a form decide what is to be done with its file, and may stand after it (they do on Tahoe's welcome
page). So the beginning of a form is held back in memory: a form that is complete by then is judged as a whole, and
passed on to the node if it wants anything but an immutable file. A longer one is streamed, unless a field before its
file objects; a field that objects after its file is an error.
"""

from __future__ import annotations

import html
from urllib.parse import quote

from hyperlink import DecodedURL
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from client_shim.gateway.errors import BadForm
from client_shim.gateway.exchange import Exchange
from client_shim.gateway.proxy import Proxy
from client_shim.gateway.put_uri import CAP_HEADER, outcome_header
from client_shim.gateway.streams import Stored, Streams
from client_shim.gateway.upload_requests import dedup_of, is_immutable

#: Bytes of a form that are held back.
HELD_MAX = 256 * 1024
#: Bytes of all its fields but the file.
_FIELDS_MAX = 64 * 1024
_SEGMENTS_MAX = 64


class _Form:
    """What is known of a form, and how to know more."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        _kind, options = parse_options_header(exchange.head.headers.get("content-type") or "")
        try:
            self._parser = PushMultipartParser(options.get("boundary", ""), max_segment_count=_SEGMENTS_MAX)
        except MultipartError as e:
            raise BadForm("a boundary in its Content-Type") from e
        self.fields: dict[str, str] = {}
        self.pieces: list[bytes] = []
        """Of the file; taken by `next_piece`."""
        self.has_file = False
        self.ended = False
        self._segment: MultipartSegment | None = None
        self._value = bytearray()
        self._fields_size = 0

    async def read_more(self) -> bytes:
        """Read and parse the next bytes of the form, which are returned. Raises BadForm."""
        data = await self._exchange.read()
        try:
            if data:
                for event in self._parser.parse(data):
                    self._take(event)
            else:
                self._parser.close()
                self.ended = True
        except MultipartError as e:
            raise BadForm("multipart/form-data that is complete") from e
        return data

    async def next_piece(self) -> bytes:
        """The next bytes of the file; b"" when the form has ended."""
        while not self.pieces and not self.ended:
            await self.read_more()
        return self.pieces.pop(0) if self.pieces else b""

    def _take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            self._segment = event
            self._value.clear()
            if event.name == "file":
                if self.has_file:
                    raise BadForm("one file")
                self.has_file = True
        elif self._segment is None:
            raise BadForm("fields")  # the parser does not do that
        elif event is None:
            if self._segment.name != "file":
                self.fields.setdefault(self._segment.name, self._value.decode("utf-8", "replace"))
            self._segment = None
        elif self._segment.name == "file":
            self.pieces.append(bytes(event))
        else:
            self._fields_size += len(event)
            if self._fields_size > _FIELDS_MAX:
                raise BadForm(f"fields of at most {_FIELDS_MAX} bytes")
            self._value += event

    def argument(self, name: str) -> str | None:
        """As Tahoe looks for it: in the query, then in the form."""
        value = self._exchange.head.argument(name)
        return self.fields.get(name) if value is None else value

    @property
    def wants_immutable_file(self) -> bool:
        """As far as is known."""
        return ((self.argument("t") or "").strip() in ("", "upload")
                and is_immutable(self.argument("format"), self.argument("mutable")))


class PostForm:
    """Handles POST /uri."""

    def __init__(self, streams: Streams, proxy: Proxy) -> None:
        self._streams = streams
        self._proxy = proxy

    async def __call__(self, exchange: Exchange) -> None:
        form = _Form(exchange)
        held: list[bytes] = []
        while form.wants_immutable_file and not form.ended and sum(map(len, held)) < HELD_MAX:
            held.append(await form.read_more())
        if not form.wants_immutable_file or not form.has_file:
            await self._proxy.pass_on(exchange, held)
            return
        held.clear()

        async def source() -> bytes:
            piece = await form.next_piece()
            if not form.wants_immutable_file:
                raise BadForm("format=CHK, or the format in the request's URL, or before the file")
            return piece

        stored = await self._streams.store(source, None, dedup_of(form.argument("dedup")))
        await self._answer(exchange, stored, form.argument("when_done"))

    async def _answer(self, exchange: Exchange, stored: Stored, when_done: str | None) -> None:
        text = stored.cap.decode("ascii")
        about = [(CAP_HEADER, text), outcome_header(stored)]
        if when_done:
            location = _location(when_done.replace("%(uri)s", quote(text, safe="")))
            await exchange.respond(302, [("Location", location), *about])
        else:
            await exchange.respond(200, [("Content-Type", "text/html;charset=utf-8"), *about],
                                   result_page(text).encode())


def _location(url: str) -> str:
    try:
        return DecodedURL.from_text(url).to_uri().to_text()
    except ValueError as e:
        raise BadForm("a URL as when_done") from e


def result_page(cap: str) -> str:
    """What a browser shows: the cap, in the style of Tahoe's own page."""
    shown, link = html.escape(cap), html.escape(quote(cap, safe=""))
    return f"""<!DOCTYPE html>
<html>
  <head>
    <title>Tahoe-LAFS - File Uploaded</title>
    <link href="/tahoe.css" rel="stylesheet" type="text/css">
    <link href="/icon.png" rel="shortcut icon">
    <meta charset="utf-8">
  </head>
  <body>
    <h1>Uploading File... done!</h1>
    <h2>Upload Results:</h2>
    <ul>
      <li>URI: <tt><span>{shown}</span></tt></li>
      <li>Download link: <a href="/uri/{link}">/uri/{shown}</a></li>
    </ul>
    <div>Return to the <a href="/">Welcome Page</a></div>
  </body>
</html>
"""
