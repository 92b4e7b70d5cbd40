"""Which handler a request below /uploads/ goes to: the one of its dialect."""

from __future__ import annotations

from collections.abc import Callable

from client_shim.gateway import tus
from client_shim.gateway.checksums import CheckedBodies
from client_shim.gateway.error_answers import ErrorAnswer, as_text
from client_shim.gateway.exchange import Exchange, RequestHead
from client_shim.gateway.handle_errors import LinkFailed
from client_shim.gateway.put_uri import CAP_HEADER
from client_shim.gateway.resumable import Resumable, as_upload_problem, limits
from client_shim.gateway.site import Route
from client_shim.gateway.tus import Tus, speaks_tus
from client_shim.gateway.upload_resource import LINK_ERROR_HEADER, Uploads, handle_id_of, is_collection
from helper.errors import StreamingError


def upload_routes(uploads: Uploads, bodies: CheckedBodies, check: Callable[[RequestHead], None]) -> list[Route]:
    """All that is below /uploads/ but GET and HEAD of /uploads/ itself. `check`: Protection.check."""
    return [
        Route("uploads", lambda head: _is_ours(head) and head.method == "OPTIONS", tell_options),
        Route("uploads-tus", lambda head: _is_ours(head) and speaks_tus(head), Tus(uploads, bodies, check),
              as_tus_text),
        Route("uploads", _is_ours, Resumable(uploads), as_upload_problem),
    ]


async def tell_options(exchange: Exchange) -> None:
    """What both dialects offer. Of what they would do otherwise with a request, nothing is looked at here."""
    headers = tus.options_headers()
    if is_collection(exchange.head):
        headers += [limits(), ("Allow", "GET, HEAD, POST, OPTIONS")]
    else:
        headers += [("Allow", "GET, HEAD, PATCH, DELETE, OPTIONS")]
    await exchange.respond(204, headers)


def as_tus_text(error: StreamingError) -> ErrorAnswer:
    """As error_answers.as_text; with the cap of a file that is stored and could not be linked."""
    answer = as_text(error)
    if not isinstance(error, LinkFailed):
        return answer
    cap = error.cap.decode("ascii")
    headers = [*answer.headers, (CAP_HEADER, cap), (LINK_ERROR_HEADER, error.why)]
    return ErrorAnswer(answer.status, headers, answer.body + f"Its cap:\n{cap}\n".encode())


def _is_ours(head: RequestHead) -> bool:
    if is_collection(head):
        return head.method not in ("GET", "HEAD")
    return handle_id_of(head) is not None
