"""The page at /uploads/, where people upload files, and what it and programs are told of uploads, as JSON.

Who may see what: the name of an upload handle is a bearer capability, and everybody who can connect to the gateway can
ask for the list of all uploads; scripts in files that somebody views through the gateway cannot (grid_content.py). So
the list tells what the page of a Tahoe node tells of uploads: sizes, progress, states; never names of handles, caps, or
names of files, nor whether a file was stored before. Whoever knows the name of a handle is told its cap, its file name
and what became of it, and may write to it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from twisted.internet.interfaces import IReactorTime

from client_shim.gateway.error_answers import as_problem
from client_shim.gateway.errors import BadQuery
from client_shim.gateway.exchange import Exchange, RequestHead
from client_shim.gateway.handle_errors import HandleError, HandleFailed, LinkFailed
from client_shim.gateway.handle_records import ENDED
from client_shim.gateway.handle_settings import HandleSettings
from client_shim.gateway.handles import Handles, HandleState, HandleStatus
from client_shim.gateway.site import Route
from client_shim.gateway.upload_errors import WrongMethod
from client_shim.gateway.upload_resource import COLLECTION, NO_STORE, Notes, handle_id_of, is_collection

#: Of the JSON: fields may be added, none changes its meaning while this is 1.
JSON_FORMAT = 1
#: Uploads in one list; of more, the newest. A page asks every two seconds.
LISTED_MAX = 500
#: Seconds for which an upload that has ended is listed.
ENDED_LISTED = 3600
#: Seconds for which a list is good, however many ask for it: it is made of every handle there is.
LIST_AGE = 1.0

_CSS, _JAVASCRIPT, _PNG = "text/css; charset=utf-8", "text/javascript; charset=utf-8", "image/png"
#: What the page consists of, beside itself; no name of a handle has a dot.
PARTS = {
    "style.css": _CSS, "page.js": _JAVASCRIPT, "row.js": _JAVASCRIPT, "upload.js": _JAVASCRIPT,
    "requests.js": _JAVASCRIPT, "remembered.js": _JAVASCRIPT, "units.js": _JAVASCRIPT, "logo.png": _PNG,
    "icon.png": _PNG,
}
#: Those that are Tahoe's own, and where they are; the page needs no node that runs.
_TAHOES = {"logo.png": ("static", "img", "logo.png"), "icon.png": ("static", "icon.png")}
_HTML = "text/html; charset=utf-8"
_JSON = "application/json"

#: Nothing from elsewhere, nothing inline, no text that becomes code or markup, no page around this one.
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
          "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
          "trusted-types 'none'")
#: The rest of what keeps other sites' pages from the answers; Referrer-Policy and nosniff come with every answer.
_ALONE = [("Cross-Origin-Resource-Policy", "same-origin")]
_PAGE_ALONE = [*_ALONE, ("Content-Security-Policy", POLICY), ("Cross-Origin-Opener-Policy", "same-origin"),
               ("X-Frame-Options", "DENY")]


def page_routes(page: UploadPage) -> list[Route]:
    """GET and HEAD of /uploads/ and of the page's parts, and GET of what is told as JSON; to stand before those of
    upload_routes.py."""
    return [
        Route("uploads-json", _wants_list, page.tell_all, as_problem),
        Route("uploads-json", _wants_one, page.tell_one, as_problem),
        Route("uploads-page", _wants_page, page.show),
    ]


def _wants_list(head: RequestHead) -> bool:
    return is_collection(head) and head.method in ("GET", "HEAD") and head.argument("t") == "json"


def _wants_one(head: RequestHead) -> bool:
    # HEAD is the dialects': to them it means the same with any query
    return handle_id_of(head) is not None and head.method == "GET" and head.argument("t") == "json"


def _wants_page(head: RequestHead) -> bool:
    return (is_collection(head) and head.method in ("GET", "HEAD")) or handle_id_of(head) in PARTS


def short_name(handle_id: str) -> str:
    """What an upload is called where its name must not be told: 8 letters of a hash of it."""
    return hashlib.sha256(b"short name of upload " + handle_id.encode("ascii")).hexdigest()[:8]


class UploadPage:
    """`epoch_time`: seconds since the epoch, as in HandleStatus."""

    def __init__(self, handles: Handles, settings: HandleSettings, clock: IReactorTime,
                 epoch_time: Callable[[], float] = time.time) -> None:
        self._handles = handles
        self._settings = settings
        self._clock = clock
        self._epoch_time = epoch_time
        self._list = b""
        self._listed_at: float | None = None

    async def show(self, exchange: Exchange) -> None:
        """The page, or a part of it. Raises WrongMethod, BadQuery."""
        head = exchange.head
        name = handle_id_of(head)
        if name is not None:
            await self._show_part(exchange, name)
        elif head.argument("t") is not None:
            raise BadQuery("t", "json, or nothing")
        elif head.path != COLLECTION:
            await exchange.respond(308, [("Location", COLLECTION), *_ALONE])  # its parts are named relatively
        else:
            await exchange.respond(200, [("Content-Type", _HTML), ("Cache-Control", "no-cache"), *_PAGE_ALONE],
                                   _content("index.html"))

    async def _show_part(self, exchange: Exchange, name: str) -> None:
        if exchange.head.method not in ("GET", "HEAD"):
            exchange.answer_always_with([("Allow", "GET, HEAD")])
            raise WrongMethod("GET or HEAD")
        await exchange.respond(200, [("Content-Type", PARTS[name]), ("Cache-Control", "no-cache"), *_ALONE],
                               _content(name))

    async def tell_all(self, exchange: Exchange) -> None:
        """All uploads, without any secret."""
        now = self._clock.seconds()
        if self._listed_at is None or not 0 <= now - self._listed_at < LIST_AGE:
            self._list = _written(list_as_json(self._handles.all(), self._settings, self._epoch_time()))
            self._listed_at = now
        await exchange.respond(200, [("Content-Type", _JSON), NO_STORE, *_ALONE], self._list)

    async def tell_one(self, exchange: Exchange) -> None:
        """One upload, to those who know its name. Its writer is not disturbed, as HEAD would: the offset is that of
        this moment, and who wants to go on there asks by HEAD. Raises UnknownHandle, HandleExpired, JournalFailed."""
        status = self._handles.get(handle_id_of(exchange.head) or "").status
        told = {"format": JSON_FORMAT, **upload_as_json(status), "name": Notes.from_bytes(status.metadata).name,
                "cap": None if status.cap is None else status.cap.decode("ascii"),
                "dedup": None if status.outcome is None else status.outcome.value}
        await exchange.respond(200, [("Content-Type", _JSON), NO_STORE, *_ALONE], _written(told))


def list_as_json(statuses: Iterable[HandleStatus], settings: HandleSettings, now: float) -> dict[str, Any]:
    """What /uploads/?t=json answers: those in progress, then those that have ended, the newest first. `now` in seconds
    since the epoch."""
    shown = [status for status in statuses if not _ended(status) or now - _touched(status, settings) < ENDED_LISTED]
    shown.sort(key=lambda status: (_ended(status), -status.created))
    listed = shown[:LISTED_MAX]
    return {"format": JSON_FORMAT, "uploads": [upload_as_json(status) for status in listed],
            "uploads-not-listed": len(shown) - len(listed)}


def upload_as_json(status: HandleStatus) -> dict[str, Any]:
    """What everybody may know of an upload. Times in seconds since the epoch, lengths in bytes, rate in bytes/s."""
    return {
        "upload": short_name(status.id), "protocol": Notes.from_bytes(status.metadata).dialect or None,
        "state": status.state.value, "offset": status.offset, "received": status.received, "size": status.size,
        "rate": round(status.rate), "writing": status.writing,
        "waits-for": status.away or None, "created": round(status.created), "expires": round(status.expires),
        "error": _code_of(status.error),
    }


def _ended(status: HandleStatus) -> bool:
    return status.state in ENDED


def _touched(status: HandleStatus, settings: HandleSettings) -> float:
    """When one that has ended did so, or was asked for last."""
    finished = status.state is HandleState.FINISHED
    return status.expires - (settings.result_retention if finished else settings.handle_expiry)


def _code_of(error: HandleError | None) -> str | None:
    """Why there is no cap, or no link."""
    if error is None:
        return None
    return error.why if isinstance(error, HandleFailed | LinkFailed) else str(error.code)


def _written(told: dict[str, Any]) -> bytes:
    return json.dumps(told, indent=1).encode("ascii") + b"\n"


@cache
def _content(name: str) -> bytes:
    if name in _TAHOES:
        return files("allmydata.web").joinpath(*_TAHOES[name]).read_bytes()
    return files("client_shim.gateway").joinpath("page", name).read_bytes()
