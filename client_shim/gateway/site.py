"""Which handler a request goes to; what is refused before that; errors as answers; the access log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from client_shim.gateway.error_answers import ErrorAnswer, as_text
from client_shim.gateway.exchange import BadBody, BodyTooSlow, ClientGone, Exchange, Handler, RequestHead
from client_shim.gateway.protection import Protection
from helper.errors import StreamingError

_log = Logger()

#: Put into the log for a request whose client went away without an answer.
_GONE = "gone"


@attrs.frozen
class Route:
    """`handler` gets the requests that `takes` is true of. `name` stands in the log in place of the target, which may
    hold caps. `tell` makes answers of errors that the handler raises: error_answers.as_text or as_problem."""

    name: str
    takes: Callable[[RequestHead], bool]
    handler: Handler
    tell: Callable[[StreamingError], ErrorAnswer] = as_text


class AccessLog(Protocol):
    """Is told every request when it has ended. `status` is that of the answer, or why there is none."""

    def __call__(self, method: str, route: str, status: int | str, received: int, sent: int, seconds: float) -> None:
        """Bytes of the request's and of the answer's body."""


def log_access(method: str, route: str, status: int | str, received: int, sent: int, seconds: float) -> None:
    """The access log: no target, no address, no name."""
    _log.info("{method} {route} {status} received {received} sent {sent} in {seconds:.3f} s",
              method=_known(method), route=route, status=status, received=received, sent=sent, seconds=seconds)


class Site:
    """The gateway's handler of all requests: the first route that takes a request handles it."""

    def __init__(self, routes: Sequence[Route], protection: Protection, clock: IReactorTime,
                 access_log: AccessLog = log_access) -> None:
        self._routes = routes
        self._protection = protection
        self._clock = clock
        self._access_log = access_log

    async def __call__(self, exchange: Exchange) -> None:
        began = self._clock.seconds()
        exchange.answer_always_with(self._protection.headers(exchange.head))
        route = next((route for route in self._routes if route.takes(exchange.head)), _NOWHERE)
        try:
            await self._handle(route, exchange)
        finally:
            self._access_log(exchange.head.method, route.name, exchange.status or _GONE, exchange.received,
                             exchange.sent, self._clock.seconds() - began)

    async def _handle(self, route: Route, exchange: Exchange) -> None:
        try:
            self._protection.check(exchange.head)
            preflight = self._protection.preflight(exchange.head)
            if preflight is not None:
                await exchange.respond(204, preflight)
                return
            await route.handler(exchange)
        except (BodyTooSlow, BadBody) as e:
            await self._tell(route, exchange, e)
        except ClientGone:
            raise
        except StreamingError as e:
            await self._tell(route, exchange, e)

    async def _tell(self, route: Route, exchange: Exchange, error: StreamingError) -> None:
        if exchange.status is not None:
            exchange.end_now()  # the client must not take half an answer for a whole one
            return
        answer = route.tell(error)
        exchange.abandon_body()
        await exchange.respond(answer.status, answer.headers, answer.body)


async def _not_found(exchange: Exchange) -> None:
    await exchange.respond(404, [("Content-Type", "text/plain;charset=utf-8")], b"No such resource\n")


_NOWHERE = Route("nowhere", lambda _head: True, _not_found)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _known(method: str) -> str:
    return method if method in _METHODS else "OTHER"
