"""PUT /uri and PUT /uri/DIRCAP/[dirs/]name: the body streams to the helper, the answer is Tahoe's."""

from __future__ import annotations

from http import HTTPStatus

from twisted.internet.defer import Deferred

from client_shim.gateway.errors import ChildExists, NodeAway
from client_shim.gateway.exchange import Exchange
from client_shim.gateway.linking import Linker, Target
from client_shim.gateway.proxy import Proxy
from client_shim.gateway.streams import Stored, Streams
from client_shim.gateway.upload_requests import Place, dedup_of, place_of_put
from client_shim.upload import StreamingUpload

TEXT = ("Content-Type", "text/plain;charset=utf-8")
#: The cap of what was stored, where the body is not it alone.
CAP_HEADER = "Tahoe-Cap"
#: What became of the upload: client_shim.dedup.Outcome.
DEDUP_HEADER = "Tahoe-Dedup"


def outcome_header(stored: Stored) -> tuple[str, str]:
    """Says in an answer what became of the upload."""
    return DEDUP_HEADER, stored.outcome.value


class PutUnlinked:
    """PUT /uri: the answer's body is the cap."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def __call__(self, exchange: Exchange) -> None:

        def opened(upload: StreamingUpload) -> None:

            def gone() -> None:
                Deferred.fromCoroutine(upload.abort())  # nobody would ever learn the cap

            exchange.on_gone(gone)

        head = exchange.head
        stored = await self._streams.store(exchange.read, head.content_length, dedup_of(head.argument("dedup")), opened)
        await exchange.respond(200, [TEXT, outcome_header(stored)], stored.cap)


class PutLinked:
    """PUT /uri/DIRCAP/[dirs/]name: 201 for a new name, 200 for one that was replaced, as Tahoe says it."""

    def __init__(self, streams: Streams, linker: Linker, proxy: Proxy) -> None:
        self._streams = streams
        self._linker = linker
        self._proxy = proxy

    async def __call__(self, exchange: Exchange) -> None:
        place = place_of_put(exchange.head)
        target = Target.OTHER if place is None else await self._linker.look(place)
        if place is None or target is Target.OTHER:
            await self._proxy.pass_on(exchange)
            return
        if target is Target.IMMUTABLE_FILE and place.replace == "false":
            raise ChildExists()
        head = exchange.head
        stored = await self._streams.store(exchange.read, head.content_length, dedup_of(head.argument("dedup")))
        cap, outcome = stored.cap, outcome_header(stored)
        failure = await self._link(place, cap)
        if failure is None:
            await exchange.respond(201 if target is Target.NOTHING else 200, [TEXT, outcome], cap)
        else:
            status, why = failure
            text = f"The file is stored, but it could not be linked into the directory: {why}. Its cap:\n"
            headers = [TEXT, outcome, (CAP_HEADER, cap.decode("ascii"))]
            await exchange.respond(status, headers, text.encode() + cap + b"\n")

    async def _link(self, place: Place, cap: bytes) -> tuple[int, str] | None:
        """None if it is linked; otherwise a status and the reason."""
        try:
            status = await self._linker.link(place, cap)
        except NodeAway as e:
            return 502, e.text()
        if status == 200:
            return None
        if status < 400:
            return 502, f"the client node answered {status}"
        return status, f"the client node answered {status} {_phrase(status)}".rstrip()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
