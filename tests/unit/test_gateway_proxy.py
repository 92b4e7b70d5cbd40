"""What is passed on to the node: intact, streamed both ways, and cut where one side is cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from http_world import Answer, HttpWorld, MemoryNode
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from client_shim.gateway.errors import NodeAway
from client_shim.gateway.exchange import ClientGone, Exchange, Headers, RequestHead
from client_shim.gateway.protection import Protection
from client_shim.gateway.proxy import Proxy, end_to_end
from client_shim.gateway.site import Route, Site

Handle = Callable[[Exchange], Awaitable[None]]


class Passing:
    """A client, the gateway, and a node."""

    def __init__(self, handle: Handle) -> None:
        self.clock = Clock()
        self.heads: list[RequestHead] = []
        self.node = MemoryNode(self._at_node, self.clock)
        self._handle = handle
        proxy = Proxy(self.node.client)
        site = Site([Route("node", lambda _head: True, proxy)], Protection(), self.clock, self._log)
        self.accesses: list[tuple[object, ...]] = []
        self.client = HttpWorld(site, clock=self.clock)

    def _log(self, *access: object) -> None:
        self.accesses.append(access)

    async def _at_node(self, exchange: Exchange) -> None:
        self.heads.append(exchange.head)
        await self._handle(exchange)

    def send(self, data: bytes, turns: int = 30) -> None:
        self.client.send(data)
        self.turn(turns)

    def turn(self, turns: int = 30) -> None:
        for _ in range(turns):
            self.clock.advance(0)

    def answer(self, method: str = "GET") -> Answer:
        (answer,) = self.client.answers(method)
        return answer


async def echo(exchange: Exchange) -> None:
    body = b""
    while piece := await exchange.read():
        body += piece
    await exchange.respond(200, [("X-Node", "yes"), ("Connection", "X-Private"), ("X-Private", "a")], body)


def test_a_request_is_passed_on_as_it_is() -> None:
    passing = Passing(echo)
    passing.send(b"GET /uri/URI%3ADIR2%3Aa%2fb/c?t=json&x=%20 HTTP/1.1\r\nHost: localhost:99\r\nRange: bytes=1-2\r\n"
                 b"Accept: text/html\r\nCookie: a\r\nCookie: b\r\nX-\xe4: \xe4\r\n\r\n".replace(b"X-\xe4", b"X-A"))
    (head,) = passing.heads
    assert (head.method, head.target) == ("GET", "/uri/URI%3ADIR2%3Aa%2fb/c?t=json&x=%20")
    assert [field for field in head.headers if field[0] != "Connection"] == [
        ("Host", "localhost:99"), ("Range", "bytes=1-2"), ("Accept", "text/html"), ("Cookie", "a"), ("Cookie", "b"),
        ("X-A", "ä")]
    answer = passing.answer()
    assert (answer.status, answer.headers["x-node"], answer.headers["referrer-policy"]) == (200, "yes", "no-referrer")
    assert "x-private" not in answer.headers
    assert not passing.client.over


def test_fields_of_one_connection_are_not_passed_on() -> None:
    headers = Headers((("Connection", "close, X-Mine"), ("X-Mine", "a"), ("Keep-Alive", "5"), ("TE", "trailers"),
                       ("Transfer-Encoding", "chunked"), ("Upgrade", "h2c"), ("Expect", "100-continue"),
                       ("Proxy-Connection", "keep-alive"), ("Content-Type", "a/b")))
    assert end_to_end(headers) == [("Content-Type", "a/b")]


@pytest.mark.parametrize("framing", ["declared", "chunked"])
def test_bodies_keep_their_framing(framing: str) -> None:
    passing = Passing(echo)
    body = bytes(range(256)) * 1000
    head = b"POST /uri?t=mkdir HTTP/1.1\r\nHost: localhost\r\n"
    if framing == "declared":
        passing.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert passing.heads[0].content_length == len(body)
    else:
        passing.send(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert passing.heads[0].headers.get("transfer-encoding") == "chunked"
    assert passing.answer("POST").body == body


def test_a_body_streams_both_ways() -> None:
    came: list[bytes] = []
    gate: Deferred[None] = Deferred()

    async def node(exchange: Exchange) -> None:
        while piece := await exchange.read():
            came.append(piece)
        await exchange.begin(200, [])
        await exchange.write(b"first")
        await gate
        await exchange.write(b"second")
        await exchange.end()

    passing = Passing(node)
    passing.send(b"PUT /uri?t=x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\nabc")
    assert came == [b"abc"]
    passing.send(b"def")
    assert b"first" in passing.client.transport.value()
    gate.callback(None)
    passing.turn()
    assert passing.answer("PUT").body == b"firstsecond"


def test_a_node_that_takes_nothing_stops_the_client() -> None:
    gate: Deferred[None] = Deferred()

    async def node(exchange: Exchange) -> None:
        await gate
        await echo(exchange)

    passing = Passing(node)
    size = 2_000_000
    passing.send(b"PUT /uri?t=x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
    for request in passing.node.requests:
        request.transport.producer.pauseProducing()  # its buffer is full
    passing.send(bytes(size))
    assert passing.client.paused
    assert len(passing.client.transport.undelivered) > size - 4 * 65536
    for request in passing.node.requests:
        request.transport.producer.resumeProducing()
    gate.callback(None)
    passing.turn(500)
    assert len(passing.answer("PUT").body) == size


def test_a_client_that_takes_nothing_stops_the_node() -> None:
    written = 0

    async def node(exchange: Exchange) -> None:
        nonlocal written
        await exchange.begin(200, [])
        for _ in range(50):
            await exchange.write(bytes(65536))
            written += 1
        await exchange.end()

    passing = Passing(node)
    passing.client.transport.producer.pauseProducing()
    passing.send(b"GET /uri/x HTTP/1.1\r\nHost: localhost\r\n\r\n", turns=200)
    ours = passing.node.requests[0].transport
    assert ours.producerState == "paused"
    assert len(ours.undelivered) > 40 * 65536
    passing.client.transport.producer.resumeProducing()
    passing.turn(500)
    assert len(passing.answer().body) == 50 * 65536


def test_an_early_answer_is_passed_on_and_the_body_is_left() -> None:
    async def node(exchange: Exchange) -> None:
        await exchange.respond(413, [], b"too much")

    passing = Passing(node)
    passing.send(b"PUT /uri?t=x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
    passing.send(bytes(200_000))
    answer = passing.answer("PUT")
    assert (answer.status, answer.body, answer.headers["connection"]) == (413, b"too much", "close")
    assert passing.client.over


def test_head_requests() -> None:
    async def node(exchange: Exchange) -> None:
        await exchange.respond(200, [], b"12345")

    passing = Passing(node)
    passing.send(b"HEAD /uri/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = passing.answer("HEAD")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "5", b"")
    assert not passing.client.over


def test_no_node() -> None:
    passing = Passing(echo)
    passing.node.up = False
    passing.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = passing.answer()
    assert (answer.status, not passing.client.over) == (502, True)
    assert answer.body.decode().rstrip() == NodeAway("nothing listens at its node.url").text()


def test_a_node_that_dies_before_its_answer() -> None:
    async def node(exchange: Exchange) -> None:
        passing.node.kill()

    passing = Passing(node)
    passing.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert passing.answer().status == 502


def test_a_node_that_dies_in_its_answer_leaves_no_whole_answer() -> None:
    async def node(exchange: Exchange) -> None:
        await exchange.begin(200, [])
        await exchange.write(b"half")
        passing.node.kill()

    passing = Passing(node)
    passing.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = passing.answer()
    assert (answer.status, answer.complete) == (200, False)
    assert passing.client.transport.ended is not None


def test_an_answer_that_is_not_http() -> None:
    passing = Passing(echo)
    client = passing.node.client
    passing.send(b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n")
    assert client is not None
    ours = passing.node.requests[0].transport
    ours.arrives(b"220 smtp.example ESMTP\r\n\r\n")
    passing.send(b"abc")
    assert passing.answer("PUT").status == 502


def test_a_client_that_goes_ends_the_request_to_the_node() -> None:
    errors: list[Exception] = []

    async def node(exchange: Exchange) -> None:
        exchange.on_gone(lambda: errors.append(ClientGone()))
        await Deferred()

    passing = Passing(node)
    passing.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    passing.client.transport.cut()
    passing.turn()
    assert len(errors) == 1
    assert passing.accesses[0][2] == "gone"


@pytest.mark.parametrize(("location", "told"), [
    ("http://localhost:3456/uri/x?a=b#c", "/uri/x?a=b#c"), ("http://127.0.0.1:3456", "/"), ("/uri/x", "/uri/x"),
    ("http://elsewhere.example:3456/a", "http://elsewhere.example:3456/a"), ("relative", "relative"),
    ("http://localhost:99/a", "http://localhost:99/a"), ("http://localhost:nonsense/", "http://localhost:nonsense/")])
def test_redirections_lead_to_the_gateway(location: str, told: str) -> None:
    async def node(exchange: Exchange) -> None:
        await exchange.respond(302, [("Location", location)])

    passing = Passing(node)
    passing.send(b"GET / HTTP/1.1\r\nHost: localhost:99\r\n\r\n")
    assert passing.answer().headers["location"] == told


def test_upgrades_are_not_made() -> None:
    passing = Passing(echo)
    passing.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert passing.answer().status == 200
    assert "upgrade" not in passing.heads[0].headers
    passing.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert passing.answer().status == 200
