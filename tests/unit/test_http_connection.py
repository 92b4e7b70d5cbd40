"""HTTP of one connection over a transport in memory: bodies, backpressure, answers, slowness, ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from http_world import HttpWorld
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from client_shim.gateway.exchange import BadBody, BodyTooSlow, ClientGone, Exchange
from client_shim.gateway.http_connection import HEAD_MAX, LINGER, Timeouts

GET = b"GET /uri HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Recorder:
    """A handler that reads the whole body and answers with it; each request is recorded."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.bodies: list[bytes] = []
        self.errors: list[Exception] = []
        self.gone = 0

    async def __call__(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        exchange.on_gone(self._gone)
        body = b""
        try:
            while piece := await exchange.read():
                body += piece
            self.bodies.append(body)
            await exchange.respond(200, [("Content-Type", "text/plain")], body)
        except ClientGone as e:
            self.errors.append(e)

    def _gone(self) -> None:
        self.gone += 1


def put(headers: bytes, body: bytes = b"") -> bytes:
    return b"PUT /uri HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n" + body


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def in_pieces(world: HttpWorld, data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in pairwise(places):
        world.send(data[start:end])


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5), st.lists(st.integers(0, 5000), max_size=8))
def test_any_split_of_a_chunked_body_is_the_same_body(pieces: list[bytes], cuts: list[int]) -> None:
    recorder = Recorder()
    world = HttpWorld(recorder)
    in_pieces(world, put(b"Transfer-Encoding: chunked\r\n", chunked(*pieces)), cuts)
    assert recorder.bodies == [b"".join(pieces)]
    (answer,) = world.answers()
    assert (answer.status, answer.body, answer.complete) == (200, b"".join(pieces), True)


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.lists(st.integers(0, 5000), max_size=8))
def test_pipelined_requests_are_answered_in_order(bodies: list[bytes], cuts: list[int]) -> None:
    recorder = Recorder()
    world = HttpWorld(recorder)
    in_pieces(world, b"".join(put(b"Content-Length: %d\r\n" % len(body), body) for body in bodies), cuts)
    for _ in bodies:
        world.clock.advance(0)
    assert recorder.bodies == bodies
    assert [answer.body for answer in world.answers(*["PUT"] * len(bodies))] == bodies
    assert not world.over


def test_body_is_read_only_as_fast_as_the_handler_takes_it() -> None:
    taken: list[bytes] = []
    gate: list[Deferred[None]] = []

    async def slow(exchange: Exchange) -> None:
        while piece := await exchange.read():
            taken.append(piece)
            gate.append(Deferred())
            await gate[-1]
        await exchange.respond(201)

    world = HttpWorld(slow)
    size = 1_000_000
    world.send(put(b"Content-Length: %d\r\n" % size))
    world.send(bytes(size))
    assert world.paused
    assert len(world.transport.undelivered) >= size - 2 * 65536
    while gate:
        gate.pop(0).callback(None)
    assert sum(map(len, taken)) == size
    assert world.answers()[0].status == 201


def test_continue_is_sent_when_the_body_is_wanted_and_not_before() -> None:
    opened: Deferred[None] = Deferred()

    async def careful(exchange: Exchange) -> None:
        await opened
        while await exchange.read():
            pass
        await exchange.respond(201, [], b"done")

    world = HttpWorld(careful)
    world.send(put(b"Content-Length: 3\r\nExpect: 100-continue\r\n"))
    assert world.take() == b""
    opened.callback(None)
    assert world.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    world.send(b"abc")
    assert world.answers()[0].status == 201
    assert not world.over


def test_refusal_without_reading_closes_and_sends_no_continue() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.respond(507, [], b"full")

    world = HttpWorld(refuse)
    world.send(put(b"Content-Length: 3000000\r\nExpect: 100-continue\r\n"))
    (answer,) = world.answers()
    assert (answer.status, answer.body, answer.informed) == (507, b"full", [])
    assert answer.headers["connection"] == "close"
    assert world.transport.write_closed
    world.send(bytes(3_000_000))  # is dropped, so that the answer is not lost to a reset
    assert not world.transport.undelivered
    assert world.transport.ended is None
    world.clock.advance(LINGER)
    assert world.transport.ended is not None


def test_a_body_that_waits_for_continue_does_not_come_after_the_answer() -> None:
    async def late(exchange: Exchange) -> None:
        await exchange.begin(200, [])
        with pytest.raises(ClientGone):
            await exchange.read()
        await exchange.end()

    world = HttpWorld(late)
    world.send(put(b"Content-Length: 3\r\nExpect: 100-continue\r\n"))
    (answer,) = world.answers()
    assert (answer.status, answer.informed, world.over) == (200, [], True)


def test_a_cut_body_is_no_body() -> None:
    recorder = Recorder()
    world = HttpWorld(recorder)
    world.send(put(b"Content-Length: 10\r\n", b"only"))
    world.transport.cut()
    assert [type(e) for e in recorder.errors] == [ClientGone]
    assert (recorder.bodies, recorder.gone, world.closed) == ([], 1, 1)


def test_what_came_before_a_cut_is_given_first() -> None:
    seen: list[bytes | str] = []
    gate: Deferred[None] = Deferred()

    async def late(exchange: Exchange) -> None:
        await gate
        try:
            while True:
                seen.append(await exchange.read())
        except ClientGone as e:
            seen.append(e.code)

    world = HttpWorld(late)
    world.send(put(b"Content-Length: 10\r\n", b"only"))
    world.transport.cut()
    gate.callback(None)
    assert seen == [b"only", "client-gone"]


@pytest.mark.parametrize("body", [b"5\r\nabcde\r\n", b"5\r\nabc", b"5", b""])
def test_a_chunked_body_without_its_end_is_no_body(body: bytes) -> None:
    recorder = Recorder()
    world = HttpWorld(recorder)
    world.send(put(b"Transfer-Encoding: chunked\r\n", body))
    world.transport.cut()
    assert (recorder.bodies, len(recorder.errors)) == ([], 1)


@pytest.mark.parametrize("body", [
    b"x\r\n", b"-5\r\nabcde\r\n", b"+5\r\nabcde\r\n", b"0x5\r\nabcde\r\n", b"5\r\nabcdefg\r\n", b" 5\r\nabcde\r\n",
    b"5\r\nabcde\n0\r\n\r\n", b"fffffffffffffffffffff\r\n", b"\r\n",
])
def test_bad_chunks_are_told_to_the_handler(body: bytes) -> None:
    errors: list[Exception] = []

    async def tell(exchange: Exchange) -> None:
        try:
            while await exchange.read():
                pass
        except BadBody as e:
            errors.append(e)
            await exchange.respond(400, [], e.text().encode())

    world = HttpWorld(tell)
    world.send(put(b"Transfer-Encoding: chunked\r\n", body))
    assert len(errors) == 1
    (answer,) = world.answers()
    assert answer.status == 400
    assert world.over


def test_nothing_is_taken_as_a_request_after_a_chunked_body_that_came_with_it() -> None:
    recorder = Recorder()
    world = HttpWorld(recorder)
    # h11 takes a bare LF as the line after the last chunk; another party would not
    world.send(put(b"Transfer-Encoding: chunked\r\n", b"0\r\n\n" + GET))
    world.clock.advance(0)
    assert len(recorder.exchanges) == 1
    assert world.over


def test_a_connection_serves_another_request_after_a_chunked_body() -> None:
    recorder = Recorder()
    world = HttpWorld(recorder)
    for _ in range(2):
        world.send(put(b"Transfer-Encoding: chunked\r\n", chunked(b"abc")))
        assert world.answers()[0].body == b"abc"
    assert len(recorder.exchanges) == 2


def test_gone_is_told_while_the_answer_is_made() -> None:
    gone: list[str] = []
    errors: list[str] = []
    gate: Deferred[None] = Deferred()

    async def slow(exchange: Exchange) -> None:
        exchange.on_gone(lambda: gone.append("gone"))
        while await exchange.read():
            pass
        await gate
        exchange.on_gone(lambda: gone.append("gone at once"))
        try:
            await exchange.respond(200)
        except ClientGone as e:
            errors.append(e.code)

    world = HttpWorld(slow)
    world.send(put(b"Content-Length: 3\r\n", b"abc"))
    assert not world.paused
    world.transport.cut()
    assert gone == ["gone"]
    gate.callback(None)
    assert (gone, errors) == (["gone", "gone at once"], ["client-gone"])


def test_writing_waits_for_the_client() -> None:
    written = 0

    async def big(exchange: Exchange) -> None:
        nonlocal written
        await exchange.begin(200, [])
        for _ in range(3):
            await exchange.write(bytes(1000))
            written += 1
        await exchange.end()

    world = HttpWorld(big)
    world.transport.producer.pauseProducing()
    world.send(GET)
    assert written == 0
    world.transport.producer.resumeProducing()
    (answer,) = world.answers()
    assert (written, len(answer.body), answer.headers["transfer-encoding"]) == (3, 3000, "chunked")


def test_a_client_that_takes_nothing_is_cut_off() -> None:
    errors: list[str] = []

    async def big(exchange: Exchange) -> None:
        await exchange.begin(200, [])
        try:
            await exchange.write(bytes(1000))
        except ClientGone as e:
            errors.append(e.code)

    world = HttpWorld(big, Timeouts(body=100))
    world.transport.producer.pauseProducing()
    world.send(GET)
    world.clock.advance(99)
    assert world.transport.ended is None
    world.clock.advance(1)
    assert world.transport.ended is not None
    assert errors == ["client-gone"]


def test_inform_sends_1xx_but_not_to_http_1_0() -> None:
    async def early(exchange: Exchange) -> None:
        await exchange.inform(104, [("Upload-Offset", "5")])
        await exchange.respond(200)

    world = HttpWorld(early)
    world.send(GET)
    assert world.answers()[0].informed == [(104, {"upload-offset": "5"})]
    world = HttpWorld(early)
    world.send(GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
    (answer,) = world.answers()
    assert (answer.status, answer.informed) == (200, [])
    assert world.over


@pytest.mark.parametrize(("method", "status", "length"), [("HEAD", 200, "4"), ("GET", 204, None), ("GET", 304, None)])
def test_answers_without_a_body(method: str, status: int, length: str | None) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(status, [], b"body" if method == "HEAD" else b"")

    world = HttpWorld(answer)
    world.send(GET.replace(b"GET", method.encode()))
    (one,) = world.answers(method)
    assert (one.status, one.body, one.complete) == (status, b"", True)
    assert one.headers.get("content-length") == length
    assert not world.over


def test_end_now_cuts() -> None:
    async def cut(exchange: Exchange) -> None:
        exchange.end_now()
        with pytest.raises(ClientGone):
            await exchange.read()

    world = HttpWorld(cut)
    world.send(put(b"Content-Length: 3\r\n"))
    assert world.take() == b""
    assert world.transport.ended is not None


async def _unanswered(_exchange: Exchange) -> None:
    pass


async def _broken(_exchange: Exchange) -> None:
    raise ValueError("URI:CHK:secret")


@pytest.mark.parametrize("handler", [_unanswered, _broken])
def test_a_handler_that_does_not_answer_cuts(handler: Callable[[Exchange], Awaitable[None]]) -> None:
    world = HttpWorld(handler)
    world.send(GET)
    assert world.transport.ended is not None
    assert world.take() == b""


# -- slowness ------------------------------------------------------------------------------------------------


def test_a_head_must_be_complete_in_time_whatever_trickles_in() -> None:
    recorder = Recorder()
    world = HttpWorld(recorder, Timeouts(head=30))
    for byte in GET[:29]:
        world.send(bytes([byte]))
        world.clock.advance(1)
    assert not world.over
    world.clock.advance(1)
    (answer,) = world.answers()
    assert (answer.status, world.over, recorder.exchanges) == (408, True, [])


def test_a_connection_without_a_request_is_closed_without_a_word() -> None:
    world = HttpWorld(Recorder(), Timeouts(head=30, idle=60))
    world.clock.advance(30)
    assert (world.take(), world.transport.ended is not None) == (b"", True)
    world = HttpWorld(Recorder(), Timeouts(head=30, idle=60))
    world.send(GET)
    world.take()
    world.clock.advance(59)
    assert not world.over
    world.clock.advance(1)
    assert (world.take(), world.over) == (b"", True)


def test_a_body_that_brings_nothing_ends() -> None:
    recorder = Recorder()
    world = HttpWorld(recorder, Timeouts(body=100))
    world.send(put(b"Content-Length: 10\r\n"))
    for _ in range(3):
        world.clock.advance(99)
        world.send(b"x")
    assert recorder.errors == []
    world.clock.advance(100)
    assert [type(e) for e in recorder.errors] == [BodyTooSlow]
    assert world.transport.ended is not None, "the handler did not answer"


def test_no_timer_is_left() -> None:
    world = HttpWorld(Recorder())
    world.send(put(b"Content-Length: 3\r\n", b"abc"))
    world.transport.cut()
    assert world.clock.getDelayedCalls() == []


# -- heads ---------------------------------------------------------------------------------------------------

HOST = b"Host: localhost\r\n"
MALFORMED = [
    # smuggling: two parties would disagree where the request ends
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\ncontent-length: 4\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: 3, 3\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: +10\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: 0x10\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: 1_0\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: 1e3\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: 9007199254740993\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Content-Length : 3\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: identity\r\n\r\n", 501),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
    (b"PUT /uri HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400),
    (b"PUT /uri HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", 400),
    (b"GET /uri HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", 400),
    (b"GET /uri HTTP/1.1\r\n Host: localhost\r\n\r\n", 400),
    (b"GET /uri HTTP/1.1\nHost: localhost\n\n", 400),
    (b"GET /uri HTTP/1.1\r\nHost: localhost\nX: a\r\n\r\n", 400),
    (b"GET /uri HTTP/1.1\r\nHost: localhost\rX: a\r\n\r\n", 400),
    (b"GET /uri HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", 400),
    (b"GET /uri HTTP/1.1\r\nHost: localhost\r\nX: a\x01b\r\n\r\n", 400),
    (b"GET /uri HTTP/1.1\r\nHost: localhost\r\n: a\r\n\r\n", 400),
    (b"GET /uri HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400),
    (b"GET /uri HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
    (b"GET /uri HTTP/1.1\r\n\r\n", 400),
    (b"\r\nGET /uri HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"GET  /uri HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"GET /uri with spaces HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"GET /uri\x80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"GET /uri\r\nHost: localhost\r\n\r\n", 400),
    (b"GET /uri HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
    (b"GET /uri HTTP/1.10\r\nHost: localhost\r\n\r\n", 505),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (b"GET http://elsewhere/uri HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"CONNECT elsewhere:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"GET /uri#fragment HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client\r\n\r\n", 400),
    (b"GET /" + b"a" * HEAD_MAX + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * HEAD_MAX, 431),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (1 << 20), 431),
]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("head", "status"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_requests_reach_no_handler(head: bytes, status: int, at_once: bool) -> None:
    """Threat S17. What follows them is not taken as a request either."""
    recorder = Recorder()
    world = HttpWorld(recorder)
    everything = head + b"abc" + GET
    for piece in [everything] if at_once else [everything[i:i + 7] for i in range(0, min(len(everything), 70_000), 7)]:
        world.send(piece)
    world.clock.advance(0)
    (answer,) = world.answers()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert (recorder.exchanges, world.refused, world.over) == ([], [status], True)


@pytest.mark.parametrize("size", [-1, 0])
def test_the_largest_head(size: int) -> None:
    recorder = Recorder()
    world = HttpWorld(recorder)
    frame = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \r\n\r\n"
    world.send(frame.replace(b"X: ", b"X: " + b"y" * (HEAD_MAX - len(frame) + size)))
    assert world.answers()[0].status == 200


@given(st.binary(max_size=400))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    recorder = Recorder()
    world = HttpWorld(recorder)
    world.send(data)
    assert recorder.exchanges == []
    assert all(answer.status >= 400 for answer in world.answers())


def test_the_query_is_decoded_and_the_path_is_not() -> None:
    recorder = Recorder()
    world = HttpWorld(recorder)
    world.send(GET.replace(b"/uri", b"/uri/URI%3ADIR2%3Aa/b?t=upload&name=%C3%A4&name=x&empty="))
    head = recorder.exchanges[0].head
    assert head.path == "/uri/URI%3ADIR2%3Aa/b"
    assert head.arguments == [("t", "upload"), ("name", "ä"), ("name", "x"), ("empty", "")]
    assert (head.argument("name"), head.argument("no")) == ("ä", None)
