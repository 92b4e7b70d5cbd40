"""Routes, errors as answers, what is refused before a handler sees it, the access log."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable

import pytest
from http_world import Answer, HttpWorld
from twisted.logger import LogEvent, globalLogPublisher

from client_shim import errors as client_errors
from client_shim.errors import HelperRefused, HelperUnreachable, UploadError
from client_shim.gateway import errors as gateway_errors
from client_shim.gateway import handle_errors, upload_errors
from client_shim.gateway.error_answers import RETRY_AFTER, STATUS, as_problem, as_text, status_of
from client_shim.gateway.errors import GatewayError, NodeAway
from client_shim.gateway.exchange import BadBody, BodyTooSlow, ClientGone, Exchange
from client_shim.gateway.http_connection import Timeouts
from client_shim.gateway.protection import Protection
from client_shim.gateway.site import Route, Site
from helper.errors import BY_CODE, StreamingError

SECRET = "URI:CHK:secret"
ORIGIN = "https://uploads.example"


class SiteWorld:
    """One connection to a site with two routes."""

    def __init__(self, handle: Callable[[Exchange], object] | None = None) -> None:
        self.handled: list[str] = []
        self.accesses: list[tuple[object, ...]] = []
        self._handle = handle
        routes = [Route("uploads", lambda head: head.path.startswith("/uploads/"), self._handler, as_problem),
                  Route("put-uri", lambda head: head.path == "/uri", self._handler)]
        self.client = HttpWorld(self._site, Timeouts(body=100))
        self.site = Site(routes, Protection(origins=frozenset({ORIGIN})), self.client.clock, self._log)

    async def _site(self, exchange: Exchange) -> None:
        await self.site(exchange)

    async def _handler(self, exchange: Exchange) -> None:
        self.handled.append(exchange.head.path)
        if self._handle is not None:
            self._handle(exchange)
        while await exchange.read():
            pass
        await exchange.respond(200, [("Content-Type", "text/plain")], b"done")

    def _log(self, *access: object) -> None:
        self.accesses.append(access)

    def ask(self, method: str, target: str, *fields: str, body: bytes = b"") -> Answer:
        head = "\r\n".join([f"{method} {target} HTTP/1.1", *(fields or ["Host: localhost"]),
                            f"Content-Length: {len(body)}", "", ""])
        self.client.send(head.encode() + body)
        (answer,) = self.client.answers(method)
        return answer


def raising(error: Exception) -> SiteWorld:
    def handle(_exchange: Exchange) -> None:
        raise error

    return SiteWorld(handle)


def test_the_first_route_that_takes_a_request_handles_it() -> None:
    world = SiteWorld()
    assert world.ask("PUT", "/uri", body=b"abc").body == b"done"
    assert world.ask("GET", "/uploads/x").status == 200
    assert world.ask("GET", "/nowhere").status == 404
    assert world.handled == ["/uri", "/uploads/x"]
    assert [access[:5] for access in world.accesses] == [
        ("PUT", "put-uri", 200, 3, 4), ("GET", "uploads", 200, 0, 4), ("GET", "nowhere", 404, 0, 17)]


@pytest.mark.parametrize("target", ["/uri", "/uploads/x", "/nowhere"])
@pytest.mark.parametrize(("method", "fields", "status"), [
    ("GET", ["Host: evil.example"], 403),
    ("PUT", ["Host: localhost", "Origin: https://evil.example"], 403),
    ("POST", ["Host: localhost", "Sec-Fetch-Site: cross-site"], 403),
    ("PUT", ["Host: localhost", "Content-Encoding: gzip"], 415),
    ("OPTIONS", ["Host: localhost", "Origin: https://evil.example", "Access-Control-Request-Method: PUT"], 403)])
def test_what_is_refused_reaches_no_handler(method: str, fields: list[str], status: int, target: str) -> None:
    """Threats S15, S16, S17."""
    world = SiteWorld()
    answer = world.ask(method, target, *fields, body=b"" if method in ("GET", "OPTIONS") else b"abc")
    assert (answer.status, world.handled) == (status, [])
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in answer.headers
    expected = "application/problem+json" if target == "/uploads/x" else "text/plain;charset=utf-8"
    assert answer.headers["content-type"] == expected
    assert world.client.over is (method not in ("GET", "OPTIONS")), "a body that is not read closes"


def test_cors_for_an_allowed_origin() -> None:
    """Threat S16."""
    world = SiteWorld()
    fields = ["Host: localhost", f"Origin: {ORIGIN}"]
    answer = world.ask("OPTIONS", "/uploads/", *fields, "Access-Control-Request-Method: POST")
    assert (answer.status, answer.headers["access-control-allow-origin"], world.handled) == (204, ORIGIN, [])
    answer = world.ask("PUT", "/uri", *fields, "Sec-Fetch-Site: cross-site")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
    world = raising_site = raising(NodeAway("x"))
    answer = raising_site.ask("PUT", "/uri", *fields)
    assert answer.headers["access-control-allow-origin"] == ORIGIN, "a page may read why"


def test_errors_as_text_and_as_problems() -> None:
    error = HelperUnreachable("ConnectionRefusedError")
    answer = raising(error).ask("PUT", "/uri")
    assert (answer.status, answer.body.decode()) == (503, error.text() + "\n")
    assert answer.headers["retry-after"] == str(RETRY_AFTER)
    answer = raising(error).ask("POST", "/uploads/")
    assert (answer.status, answer.headers["content-type"]) == (503, "application/problem+json")
    assert json.loads(answer.body) == {"type": "about:blank", "title": error.text(), "status": 503,
                                       "code": "helper-unreachable"}


def test_an_error_without_an_answer_of_its_own_tells_nothing() -> None:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        world = raising(ValueError(SECRET))
        world.client.send(b"GET /uri HTTP/1.1\r\nHost: localhost\r\n\r\n")
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert world.client.transport.ended is not None
    assert world.client.take() == b""
    assert any("ValueError" in str(event.get("kind")) for event in events)
    assert not any(SECRET in str(event) for event in events)


def test_an_error_in_an_answer_cuts_it() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.begin(200, [])
        await exchange.write(b"half")
        raise NodeAway("it closed the connection")

    client = HttpWorld(lambda exchange: site(exchange))
    site = Site([Route("all", lambda _head: True, handler)], Protection(), client.clock, lambda *_access: None)
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    (answer,) = client.answers()
    assert (answer.status, answer.complete) == (200, False)


def test_slow_and_bad_bodies() -> None:
    world = SiteWorld()
    world.client.send(b"PUT /uri HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabc")
    world.client.clock.advance(100)
    assert world.client.answers("PUT")[0].status == 408
    world = SiteWorld()
    world.client.send(b"PUT /uri HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert world.client.answers("PUT")[0].status == 400
    assert world.client.over


def test_methods_in_the_log_are_those_that_are_known() -> None:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        client = HttpWorld(lambda exchange: site(exchange))
        site = Site([], Protection(), client.clock)
        client.send(b"SECRET /uri/URI%3ACHK%3Asecret?a=secret HTTP/1.1\r\nHost: localhost\r\n\r\n")
    finally:
        globalLogPublisher.removeObserver(events.append)
    (line,) = [event for event in events if "route" in event]
    assert (line["method"], line["route"], line["status"]) == ("OTHER", "nowhere", 404)
    assert "secret" not in str(events).lower()


def _errors_of(module: object, base: type[Exception]) -> list[type[StreamingError]]:
    return [each for _name, each in inspect.getmembers(module, inspect.isclass) if issubclass(each, base)
            and each.__module__ == module.__name__]  # type: ignore[attr-defined]


#: Errors of the program's start, or of commands: no request meets them.
NOT_ANSWERED = {"gateway-running", "bad-state-directory", "cannot-listen", "bad-node-directory", "source-changed",
                "command-failed", "verify-failed", "internal-error", "journal-unusable", "no-resumable-hash",
                "taken-over",  # its connection is cut
                "link-refused"}  # which link-failed tells


def test_every_error_that_a_request_can_meet_has_a_status() -> None:
    codes = {each.code for each in _errors_of(gateway_errors, GatewayError)}
    codes |= {each.code for each in _errors_of(client_errors, UploadError) if isinstance(each.code, str)}
    codes |= {each.code for each in _errors_of(upload_errors, GatewayError)}
    codes |= {each.code for each in _errors_of(handle_errors, StreamingError) if isinstance(each.code, str)}
    assert codes - NOT_ANSWERED <= STATUS.keys()
    known = codes | BY_CODE.keys() | {"bad-body", "body-too-slow", "helper-stopping"}
    assert STATUS.keys() <= known, "no status for what does not exist"


TEXTS = [
    (NodeAway("nothing listens at its node.url"),
     ("the Tahoe client node behind this gateway does not answer (nothing listens at its node.url); does it run?")),
    (gateway_errors.GatewayRunning("/node"), "another gateway runs on /node; one client node has one gateway"),
    (gateway_errors.BadStateDirectory("/node/streaming", "Permission denied"),
     "the gateway's directory /node/streaming cannot be used: Permission denied"),
    (gateway_errors.CannotListen("tcp:80", "Permission denied"),
     ("cannot listen at tcp:80: Permission denied; --listen, or listen in section [gateway] of streaming.cfg, says "
      "where, as a Twisted endpoint such as tcp:3457:interface=127.0.0.1")),
    (gateway_errors.BadHost(),
     ("the request is for another host than this gateway answers to; the setting hosts in section [gateway] of "
      "streaming.cfg names more")),
    (gateway_errors.CrossSite(),
     "a page of another site may not write here; the setting allow-origins lists those that may"),
    (gateway_errors.EncodedBody(), "a body is taken as it is: expected no Content-Encoding"),
    (gateway_errors.BadQuery("t", "json, or nothing"), "the query argument t: expected json, or nothing"),
    (gateway_errors.BadForm("one file"), "the form cannot be taken: expected one file"),
    (gateway_errors.ChildExists(),
     "There was already a child by that name, and you asked me to not replace it."),
    (ClientGone(), "the client closed its connection before the request was complete"),
    (BodyTooSlow(60), "the request's body brought nothing for 60 seconds"),
    (BadBody(), "the request's body is not framed as HTTP wants it; expected chunks with their sizes"),
]


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=lambda value: getattr(value, "code", ""))
def test_texts(error: StreamingError, text: str) -> None:
    assert error.text() == text


def test_all_texts_are_tested() -> None:
    tested = {type(error) for error, _text in TEXTS}
    assert set(_errors_of(gateway_errors, GatewayError)) - {GatewayError} <= tested


def test_refusals_of_the_helper_that_are_not_expected() -> None:
    assert status_of(HelperRefused("something-new", "text", {})) == 502
    assert status_of(HelperRefused("quota-exceeded", "text", {})) == 413


@pytest.mark.parametrize("code", sorted(STATUS))
def test_answers_of_all_codes(code: str) -> None:
    error = HelperRefused(code, "text", {})
    for answer in (as_text(error), as_problem(error)):
        assert 400 <= answer.status < 600
        assert (("Retry-After", str(RETRY_AFTER)) in answer.headers) is (answer.status == 503)
        assert b"text" in answer.body
