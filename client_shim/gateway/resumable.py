"""Upload handles in the dialect of the IETF draft "Resumable Uploads for HTTP", draft-ietf-httpbis-resumable-upload-12
(interop version 8).

An upload is complete when a request says so (`Upload-Complete: ?1`) and all of its content has come. The answer to that
request is what PUT /uri would have given: 200, and the cap as the body.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from client_shim.gateway.error_answers import ErrorAnswer, as_problem
from client_shim.gateway.exchange import ClientGone, Exchange, RequestHead
from client_shim.gateway.handle_errors import AlreadyComplete, HandleFailed, LinkFailed, NotComplete, SizeConflict
from client_shim.gateway.handle_errors import SizeExceeded as TooManyBytes
from client_shim.gateway.handles import Handle, HandleState
from client_shim.gateway.put_uri import TEXT
from client_shim.gateway.upload_errors import InconsistentLength, OffsetMismatch, WrongMediaType
from client_shim.gateway.upload_fields import (
    FILE_MAX,
    file_name_of,
    media_type_of,
    needed,
    remaining_length,
    structured_boolean,
    structured_number,
    written_boolean,
    written_dictionary,
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

INTEROP_VERSION = 8
MEDIA_TYPE = "application/partial-upload"
#: Of problem types, which are named like the codes of errors.
PROBLEMS = "https://iana.org/assignments/http-problem-types#"

UPLOAD_RESUMPTION_SUPPORTED = 104
#: Seconds between two 104 answers that tell the offset.
PROGRESS_INTERVAL = 1.0

_VERSION = ("Upload-Draft-Interop-Version", str(INTEROP_VERSION))
_INCOMPLETE = ("Upload-Complete", written_boolean(False))
_COMPLETE = ("Upload-Complete", written_boolean(True))
_FLAG = "?1 if the upload is complete with this body, ?0 if more will follow"


def limits() -> tuple[str, str]:
    """Those of all uploads."""
    return "Upload-Limit", written_dictionary(max_size=FILE_MAX)


def as_upload_problem(error: StreamingError) -> ErrorAnswer:
    """As error_answers.as_problem, with the draft's own types; with the cap of a file that is stored and could not be
    linked."""
    answer = as_problem(error)
    problem = json.loads(answer.body)
    if isinstance(error, OffsetMismatch | InconsistentLength):
        problem["type"] = PROBLEMS + error.code
    if isinstance(error, OffsetMismatch):
        problem |= {"expected-offset": error.expected, "provided-offset": error.came}
    elif isinstance(error, LinkFailed):
        problem["cap"] = error.cap.decode("ascii")
    return ErrorAnswer(answer.status, answer.headers, json.dumps(problem).encode("ascii") + b"\n")


class Resumable:
    """Handles requests below /uploads/ that are not tus's, but for OPTIONS, and GET of /uploads/ itself."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    async def __call__(self, exchange: Exchange) -> None:
        head = exchange.head
        if is_collection(head):
            methods = {"POST": self._post}
        else:
            methods = {"HEAD": self._tell, "GET": self._tell, "PATCH": self._patch, "DELETE": self._delete}
        await by_method(exchange, head.method, methods)

    # -- creation --------------------------------------------------------------------------------------------

    async def _post(self, exchange: Exchange) -> None:
        head = exchange.head
        complete = _completes(exchange)
        exchange.answer_always_with([limits()])
        size = _indicated_size(head, 0, complete=complete)
        name = file_name_of(head.headers)
        handle = await self._uploads.create(size, link_target(directory_of(head), name), Notes("draft", name),
                                            dedup_of(head.argument("dedup")))
        location = ("Location", location_of(handle))
        told = _takes_104(head)
        if told:
            await exchange.inform(UPLOAD_RESUMPTION_SUPPORTED, [_VERSION, location, self._limits(handle)])
        exchange.answer_always_with([location])
        progress = self._progress(exchange, [location])
        async with self._uploads.writing(handle, exchange) as turn:
            try:
                await _append(turn, progress)
            except ClientGone:
                if not told:
                    await turn.discard()  # the client does not know its name
                raise
            await self._end(exchange, turn, handle, 201, complete=complete)

    # -- the upload ------------------------------------------------------------------------------------------

    async def _tell(self, exchange: Exchange) -> None:
        handle = self._uploads.find(exchange.head)
        async with self._uploads.writing(handle, exchange) as turn:
            finished = handle.status.state is HandleState.FINISHED
            headers = [("Upload-Offset", str(turn.offset)), _COMPLETE if finished else _INCOMPLETE,
                       self._limits(handle), NO_STORE, *result_headers(handle)]
            if turn.size is not None:
                headers.append(("Upload-Length", str(turn.size)))
            await exchange.respond(204, headers)

    async def _patch(self, exchange: Exchange) -> None:
        head = exchange.head
        handle = self._uploads.find(head)
        exchange.answer_always_with([self._limits(handle)])
        complete = _completes(exchange)
        if media_type_of(head.headers) != MEDIA_TYPE:
            exchange.answer_always_with([("Accept-Patch", MEDIA_TYPE)])
            raise WrongMediaType(MEDIA_TYPE)
        offset = needed(structured_number(head.headers, "Upload-Offset"), "Upload-Offset", "the offset of the body")
        async with self._uploads.writing(handle, exchange) as turn:
            if turn.offset != offset:
                exchange.answer_always_with([("Upload-Offset", str(turn.offset))])
                raise OffsetMismatch(turn.offset, offset)
            size = _indicated_size(head, offset, complete=complete)
            if size is not None:
                await _set_size(turn, size)
            await _append(turn, self._progress(exchange, []))
            if not complete and handle.status.state is not HandleState.OPEN:
                raise AlreadyComplete(offset)
            await self._end(exchange, turn, handle, 204, complete=complete)

    async def _delete(self, exchange: Exchange) -> None:
        await self._uploads.find(exchange.head).cancel()
        await exchange.respond(204)

    async def _end(self, exchange: Exchange, turn: Turn, handle: Handle, status: int, *, complete: bool) -> None:
        """All of the body is there."""
        if not complete:
            offset = await turn.settle()
            await exchange.respond(status, [("Upload-Offset", str(offset)), _INCOMPLETE, self._limits(handle)])
            return
        try:
            cap = await turn.close()
        except NotComplete as e:
            raise InconsistentLength(e.declared, e.came) from e
        except (HandleFailed, LinkFailed) as e:
            await _respond(exchange, as_upload_problem(e), [_COMPLETE, *result_headers(handle)])
            return
        await exchange.respond(200, [TEXT, _COMPLETE, *result_headers(handle)], cap)

    def _progress(self, exchange: Exchange, headers: list[tuple[str, str]]) -> Callable[[int], Awaitable[None]]:
        """Tells the client what is durable, from time to time."""
        told_at, told = self._uploads.now, 0

        async def tell(offset: int) -> None:
            nonlocal told_at, told
            now = self._uploads.now
            if _takes_104(exchange.head) and offset > told and now >= told_at + PROGRESS_INTERVAL:
                told_at, told = now, offset
                await exchange.inform(UPLOAD_RESUMPTION_SUPPORTED,
                                      [_VERSION, *headers, ("Upload-Offset", str(offset))])

        return tell

    def _limits(self, handle: Handle) -> tuple[str, str]:
        """Those of one upload."""
        return "Upload-Limit", written_dictionary(max_size=FILE_MAX, max_age=self._uploads.seconds_left(handle))


def _takes_104(head: RequestHead) -> bool:
    return structured_number(head.headers, "Upload-Draft-Interop-Version") == INTEROP_VERSION


def _completes(exchange: Exchange) -> bool:
    """Upload-Complete of the request. From now on answers have it, too. Raises MissingField."""
    exchange.answer_always_with([_INCOMPLETE])
    return needed(structured_boolean(exchange.head.headers, "Upload-Complete"), "Upload-Complete", _FLAG)


def _indicated_size(head: RequestHead, offset: int, *, complete: bool) -> int | None:
    """The length of the file, as far as the request tells it, in one way or both. Raises InconsistentLength."""
    size = structured_number(head.headers, "Upload-Length")
    remaining = remaining_length(head) if complete else None
    if remaining is None:
        return size
    if size is not None and size != offset + remaining:
        raise InconsistentLength(size, offset + remaining)
    return offset + remaining


async def _set_size(turn: Turn, size: int) -> None:
    try:
        await turn.set_size(size)
    except SizeConflict as e:
        raise InconsistentLength(e.expected, e.came) from e


async def _append(turn: Turn, progress: Callable[[int], Awaitable[None]]) -> None:
    """Raises InconsistentLength for a body with more bytes than the file was to have: there is no upload then any
    more, as the draft wants it."""
    try:
        await turn.append_body(progress)
    except TooManyBytes as e:
        await turn.discard()
        raise InconsistentLength(e.declared, e.came) from e


async def _respond(exchange: Exchange, answer: ErrorAnswer, headers: list[tuple[str, str]]) -> None:
    await exchange.respond(answer.status, [*answer.headers, *headers], answer.body)
