"""Upload handles in the dialect of tus 1.0.0 (https://tus.io/protocols/resumable-upload): the core protocol, creation,
creation-with-upload, creation-defer-length, expiration, checksum, termination.

An upload is complete when all its bytes are there; its last answer waits for the cap and has it in Tahoe-Cap.
"""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate

import attrs

from client_shim.dedup import DedupMode
from client_shim.gateway.checksums import ALGORITHMS, CheckedBodies, CheckedBody, check_algorithm
from client_shim.gateway.exchange import Exchange, RequestHead
from client_shim.gateway.handle_errors import BadSize, LinkFailed, SizeExceeded
from client_shim.gateway.handles import Handle, HandleState
from client_shim.gateway.upload_errors import (
    BadField,
    Concatenation,
    MissingField,
    OffsetMismatch,
    WrongMediaType,
    WrongVersion,
)
from client_shim.gateway.upload_fields import (
    FILE_MAX,
    Checksum,
    checksum_of,
    length_of,
    media_type_of,
    metadata_of,
    needed,
    number_of,
    single,
)
from client_shim.gateway.upload_requests import dedup_of
from client_shim.gateway.upload_resource import (
    NO_STORE,
    Notes,
    Turn,
    Uploads,
    by_method,
    directory_of,
    is_collection,
    link_target,
    location_of,
    result_headers,
)
from helper.errors import StreamingError

VERSION = "1.0.0"
MEDIA_TYPE = "application/offset+octet-stream"
EXTENSIONS = ("creation", "creation-with-upload", "creation-defer-length", "expiration", "checksum", "termination")

_OVERRIDE = "X-HTTP-Method-Override"


def speaks_tus(head: RequestHead) -> bool:
    """Whether a request is in this dialect."""
    return "tus-resumable" in head.headers or media_type_of(head.headers) == MEDIA_TYPE


def options_headers() -> list[tuple[str, str]]:
    """What OPTIONS tells of this dialect."""
    return [("Tus-Resumable", VERSION), ("Tus-Version", VERSION), ("Tus-Extension", ",".join(EXTENSIONS)),
            ("Tus-Max-Size", str(FILE_MAX)), ("Tus-Checksum-Algorithm", ",".join(ALGORITHMS))]


class Tus:
    """Handles requests for which `speaks_tus` is true, but for OPTIONS. `check` is told of a request whose method is
    another than that of HTTP, and raises if it must not be answered: Protection.check."""

    def __init__(self, uploads: Uploads, bodies: CheckedBodies, check: Callable[[RequestHead], None]) -> None:
        self._uploads = uploads
        self._bodies = bodies
        self._check = check

    async def __call__(self, exchange: Exchange) -> None:
        exchange.answer_always_with([("Tus-Resumable", VERSION)])
        head = exchange.head
        if head.headers.get_all("tus-resumable") != [VERSION]:
            exchange.answer_always_with([("Tus-Version", VERSION)])
            raise WrongVersion(VERSION)
        override = single(head.headers, _OVERRIDE)
        if override is not None and override != head.method:
            head = attrs.evolve(head, method=override)
            self._check(head)
        if is_collection(head):
            methods = {"POST": self._post}
        else:
            methods = {"HEAD": self._head, "PATCH": self._patch, "DELETE": self._delete}
        await by_method(exchange, head.method, methods)

    # -- creation --------------------------------------------------------------------------------------------

    async def _post(self, exchange: Exchange) -> None:
        head = exchange.head
        if "upload-concat" in head.headers:
            raise Concatenation()
        size = _declared_size(head)
        _check_body_fits(head, 0, size)
        text, metadata = metadata_of(head.headers)
        name = _name_in(metadata)
        link = link_target(metadata.get("dircap", directory_of(head)), name)
        dedup = _dedup(head, metadata)
        checksum = _checksum(head)
        if head.has_body:
            _check_media_type(head)
        # nothing is made for a body that is not what it should be
        checked = await self._bodies.read(exchange.read, head.content_length, checksum) if checksum else None
        try:
            handle = await self._uploads.create(size, link, Notes("tus", name, text), dedup)
            async with self._uploads.writing(handle, exchange) as turn:
                await self._first_bytes(turn, checked)
                exchange.answer_always_with([("Location", location_of(handle))])
                offset = await turn.settle()
                if turn.whole:
                    await turn.close()
                headers = [("Upload-Offset", str(offset))] if head.has_body else []
                await exchange.respond(201, [*headers, *_expires(handle), *result_headers(handle)])
        finally:
            if checked is not None:
                checked.release()

    async def _first_bytes(self, turn: Turn, checked: CheckedBody | None) -> None:
        try:
            if checked is None:
                await turn.append_body()
            else:
                await turn.write(checked.data)
        except Exception:
            # the client does not know its name
            await turn.discard()
            raise

    # -- the upload ------------------------------------------------------------------------------------------

    async def _head(self, exchange: Exchange) -> None:
        handle = self._uploads.find(exchange.head)
        notes = Notes.from_bytes(handle.status.metadata)
        async with self._uploads.writing(handle, exchange) as turn:
            if turn.whole and (notes.dialect != "draft" or handle.status.state is not HandleState.OPEN):
                # to whoever speaks tus this offset says that all is done, so it must be
                try:
                    await turn.close_soon()
                except LinkFailed:
                    pass  # result_headers tells
            size = turn.size
            headers = [("Upload-Offset", str(turn.offset)), NO_STORE, *_expires(handle), *result_headers(handle)]
            headers.append(("Upload-Defer-Length", "1") if size is None else ("Upload-Length", str(size)))
            if notes.metadata:
                headers.append(("Upload-Metadata", notes.metadata))
            await exchange.respond(200, headers)

    async def _patch(self, exchange: Exchange) -> None:
        handle = self._uploads.find(exchange.head)
        try:
            await self._append_to(handle, exchange)
        except StreamingError:
            exchange.answer_always_with(_expires(handle))
            raise

    async def _append_to(self, handle: Handle, exchange: Exchange) -> None:
        head = exchange.head
        _check_media_type(head)
        offset = needed(number_of(head.headers, "Upload-Offset"), "Upload-Offset", "the offset of the body")
        size = length_of(head.headers, "Upload-Length")
        checksum = _checksum(head)
        async with self._uploads.writing(handle, exchange) as turn:
            if turn.offset != offset:
                exchange.answer_always_with([("Upload-Offset", str(turn.offset))])
                raise OffsetMismatch(turn.offset, offset)
            if size is not None:
                await turn.set_size(size)
            _check_body_fits(head, offset, turn.size)
            await self._append(turn, head, checksum)
            offset = await turn.settle()
            exchange.answer_always_with([("Upload-Offset", str(offset))])
            if turn.whole:
                await turn.close()
            await exchange.respond(204, [*_expires(handle), *result_headers(handle)])

    async def _append(self, turn: Turn, head: RequestHead, checksum: Checksum | None) -> None:
        if checksum is None:
            await turn.append_body()
            return
        checked = await self._bodies.read(turn.read, head.content_length, checksum)
        try:
            await turn.write(checked.data)
        finally:
            checked.release()

    async def _delete(self, exchange: Exchange) -> None:
        await self._uploads.find(exchange.head).cancel()
        await exchange.respond(204)


def _declared_size(head: RequestHead) -> int | None:
    """None if its length is deferred. Raises MissingField, BadField."""
    size = length_of(head.headers, "Upload-Length")
    deferred = single(head.headers, "Upload-Defer-Length")
    if deferred not in (None, "1"):
        raise BadField("Upload-Defer-Length", "1")
    if size is None and deferred is None:
        raise MissingField("Upload-Length", "it, or Upload-Defer-Length: 1")
    if size is not None and deferred is not None:
        raise BadField("Upload-Defer-Length", "no such field beside Upload-Length")
    if size is not None and size > FILE_MAX:
        raise BadSize(FILE_MAX, size)
    return size


def _check_body_fits(head: RequestHead, offset: int, size: int | None) -> None:
    """Raises SizeExceeded for a body of which it is known that it is too long."""
    end = offset + (head.content_length or 0)
    if size is not None and end > size:
        raise SizeExceeded(size, end)


def _check_media_type(head: RequestHead) -> None:
    if media_type_of(head.headers) != MEDIA_TYPE:
        raise WrongMediaType(MEDIA_TYPE)


def _checksum(head: RequestHead) -> Checksum | None:
    """Raises BadField, UnknownAlgorithm."""
    checksum = checksum_of(head.headers)
    if checksum is not None:
        check_algorithm(checksum)
    return checksum


def _dedup(head: RequestHead, metadata: dict[str, bytes]) -> DedupMode | None:
    """As the address or else the metadata say. Raises BadQuery, BadField."""
    mode = dedup_of(head.argument("dedup"))
    if mode is not None or "dedup" not in metadata:
        return mode
    try:
        return DedupMode(metadata["dedup"].decode("ascii"))
    except ValueError:
        raise BadField("Upload-Metadata", "a dedup that is on, trust or off") from None


def _name_in(metadata: dict[str, bytes]) -> str | None:
    try:
        return metadata["filename"].decode("utf-8") if "filename" in metadata else None
    except UnicodeDecodeError:
        raise BadField("Upload-Metadata", "a filename in UTF-8") from None


def _expires(handle: Handle) -> list[tuple[str, str]]:
    """Upload-Expires, for what is not finished."""
    status = handle.status
    return [] if status.cap is not None else [("Upload-Expires", formatdate(status.expires, usegmt=True))]
