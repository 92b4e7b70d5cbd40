"""POST /uri: forms that browsers send, whole and in pieces; those that the node has to judge."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from itertools import pairwise
from urllib.parse import quote

import pytest
from gateway_world import PARAMETERS, GatewayWorld
from http_world import Answer
from hypothesis import given, settings
from hypothesis import strategies as st
from world import expected, plaintext

from client_shim.gateway.forms import HELD_MAX

SMALL, LARGE = plaintext(5000), plaintext(HELD_MAX + 200_000)
BOUNDARY = "----WebKitFormBoundary0123456789abcdef"

Field = tuple[str, str | bytes]


@pytest.fixture
def world() -> Iterator[GatewayWorld]:
    with GatewayWorld() as world:
        yield world


def form(*fields: Field, end: bool = True) -> bytes:
    """Bytes are a file's."""
    parts = []
    for name, value in fields:
        about = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, bytes):
            about += '; filename="holiday.jpg"\r\nContent-Type: image/jpeg'
        parts.append(about.encode() + b"\r\n\r\n" + (value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    return b"".join(parts) + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def post(body: bytes, target: str = "/uri") -> bytes:
    return (f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def assert_stored(world: GatewayWorld, answer: Answer, data: bytes) -> None:
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html;charset=utf-8")
    cap = answer.headers["tahoe-cap"]
    assert f"<tt><span>{html.escape(cap)}</span></tt>" in answer.body.decode()
    assert f'href="/uri/{quote(cap, safe="")}"' in answer.body.decode()
    if len(data) > 55:
        key = world.uploads[-1]._key
        assert cap.encode() == expected(data, PARAMETERS, key).cap
        world.helper.wait(1)
        world.helper.check_shares(expected(data, PARAMETERS, key))


#: As Tahoe's welcome page sends it: the file first.
WELCOME: Sequence[Field] = [("t", "upload"), ("format", "chk")]


@settings(max_examples=25)
@given(size=st.sampled_from([0, 1, 55, 56, 3000]), before=st.integers(0, 2),
       cuts=st.lists(st.integers(0, 5000), max_size=6))
def test_any_split_of_a_form(size: int, before: int, cuts: list[int]) -> None:
    data = plaintext(size)
    whole = post(form(*WELCOME[:before], ("file", data), *WELCOME[before:]))
    with GatewayWorld() as world:
        client = world.client()
        places = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
        for start, end in pairwise(places):
            world.send(client, whole[start:end])
        world.helper.wait(5)
        assert_stored(world, client.answers("POST")[0], data)


def test_data_like_the_boundary(world: GatewayWorld) -> None:
    data = f"\r\n--{BOUNDARY[:-1]}\r\n--\r\n".encode() * 40
    assert_stored(world, world.ask(post(form(("file", data))), "POST"), data)


@pytest.mark.parametrize("fields", [
    [("file", LARGE), *WELCOME], [*WELCOME, ("file", LARGE)], [("file", LARGE)],
    [("mutable", "false"), ("file", LARGE)]])
def test_large_files_stream(world: GatewayWorld, fields: list[Field]) -> None:
    assert_stored(world, world.ask(post(form(*fields)), "POST"), LARGE)


def test_a_large_file_is_with_the_helper_before_the_form_ends(world: GatewayWorld) -> None:
    client = world.client()
    whole = post(form(("file", LARGE), *WELCOME))
    client.send(whole[:-400])
    world.helper.wait(60)
    assert world.helper.only_upload().session.durable > len(LARGE) - 1000
    client.send(whole[-400:])
    world.helper.wait(5)
    assert_stored(world, client.answers("POST")[0], LARGE)


@pytest.mark.parametrize(("target", "fields"), [
    ("/uri", [("file", SMALL), ("t", "upload"), ("format", "sdmf")]),  # the welcome page's
    ("/uri", [("format", "MDMF"), ("file", LARGE)]),
    ("/uri", [("mutable", "true"), ("file", LARGE)]),
    ("/uri", [("file", SMALL), ("mutable", "on")]),
    ("/uri", [("t", "mkdir"), ("format", "sdmf"), ("redirect_to_result", "true")]),
    ("/uri", [("file", SMALL), ("format", "unheard-of")]),
    ("/uri?t=upload", [("format", "SDMF"), ("file", SMALL)]),
    ("/uri", [("other", "no file at all")]),
    ("/uri", []),
])
def test_what_the_node_has_to_judge_is_passed_on_whole(
        world: GatewayWorld, target: str, fields: list[Field]) -> None:
    body = form(*fields)
    answer = world.ask(post(body, target), "POST")
    assert (answer.status, answer.body) == (200, b"passed on: " + body)
    assert world.node.requests == [("POST", target, body)]
    assert world.connects == 0


def test_the_query_goes_before_the_form(world: GatewayWorld) -> None:
    answer = world.ask(post(form(("format", "SDMF"), ("file", SMALL)), "/uri?format=CHK"), "POST")
    assert_stored(world, answer, SMALL)


@pytest.mark.parametrize("late", [("format", "sdmf"), ("mutable", "true"), ("t", "mkdir")])
def test_a_field_that_comes_too_late(world: GatewayWorld, late: Field) -> None:
    answer = world.ask(post(form(("file", LARGE), late)), "POST")
    assert answer.status == 400
    assert b"before the file" in answer.body
    world.helper.wait(1)
    world.helper.check_nothing_left()


@pytest.mark.parametrize("data", [SMALL, LARGE])
@pytest.mark.parametrize("missing", [2, 10, 60])
def test_a_form_without_its_end_is_no_form(world: GatewayWorld, data: bytes, missing: int) -> None:
    answer = world.ask(post(form(("file", data))[:-missing]), "POST")
    if missing == 2:  # the line end after the last boundary: nothing is lacking
        assert_stored(world, answer, data)
        return
    assert answer.status == 400
    world.helper.wait(1)
    world.helper.check_nothing_left()


@pytest.mark.parametrize("data", [SMALL, LARGE])
def test_a_cut_form_aborts(world: GatewayWorld, data: bytes) -> None:
    client = world.client()
    client.send(post(form(("file", data), *WELCOME))[:-10])
    world.helper.wait(60)
    client.transport.cut()
    world.helper.wait(1)
    world.helper.check_nothing_left()


@pytest.mark.parametrize("body", [
    b"no form", form(("file", SMALL), ("file", SMALL)), form(("file", LARGE), ("file", SMALL)),
    form(("other", "x" * 100_000), ("file", SMALL)), form(*([("other", "x")] * 100), ("file", SMALL)),
    f"--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\n".encode() + form(("file", SMALL))])
def test_bad_forms(world: GatewayWorld, body: bytes) -> None:
    assert world.ask(post(body), "POST").status == 400
    world.helper.wait(1)
    world.helper.check_nothing_left()


@pytest.mark.parametrize(("when_done", "location"), [
    ("/elsewhere?cap=%(uri)s", "/elsewhere?cap={quoted}"), ("http://there.example/%(uri)s", "http://there.example/{quoted}"),
    (".", "."), ("/ä", "/%C3%A4")])
@pytest.mark.parametrize("in_query", [True, False])
def test_when_done(world: GatewayWorld, when_done: str, location: str, in_query: bool) -> None:
    if in_query:
        request = post(form(("file", SMALL)), f"/uri?when_done={quote(when_done)}")
    else:
        request = post(form(("file", SMALL), ("when_done", when_done)))
    answer = world.ask(request, "POST")
    assert answer.status == 302
    assert answer.headers["location"] == location.format(quoted=quote(answer.headers["tahoe-cap"], safe=""))


def test_when_done_makes_no_header_of_its_own(world: GatewayWorld) -> None:
    answer = world.ask(post(form(("file", SMALL)), "/uri?when_done=/%0d%0aSet-Cookie:%20a=b"), "POST")
    assert "set-cookie" not in answer.headers
    assert answer.status in (302, 400)
