"""Which answers of the node are files of the grid, and may not do what its own pages may."""

from __future__ import annotations

import pytest
from http_world import Answer
from test_gateway_proxy import Passing

from client_shim.gateway.exchange import Exchange, Headers, RequestHead
from client_shim.gateway.grid_content import SANDBOX, is_grid_content, policy_for

FILE = (("Content-Type", "text/html"), ("Accept-Ranges", "bytes"), ("ETag", "x-"))
PAGE = (("Content-Type", "text/html;charset=utf-8"), ("ETag", "DIR:x-"))


def sandboxed(target: str, *answer: tuple[str, str]) -> bool:
    policy = policy_for(RequestHead("GET", target, Headers(())), Headers(answer))
    assert policy in ([], [("Content-Security-Policy", SANDBOX)])
    return bool(policy)


@pytest.mark.parametrize("target", [
    "/uri/URI%3ACHK%3Aa", "/uri/URI%3ADIR2%3Aa/file.html", "/cap/URI%3ACHK%3Aa?filename=a.html", "/uri/static/",
    "/file/URI%3ACHK%3Aa/@@named=/a.html", "/named/URI%3ACHK%3Aa/a.html", "//static/a", "/%73tatic/a", "/staticky"])
def test_files_are(target: str) -> None:
    assert sandboxed(target, *FILE)


@pytest.mark.parametrize("target", ["/", "/uri/URI%3ADIR2%3Aa/", "/uri/URI%3ADIR2%3Aa/dir.html/", "/status"])
def test_pages_of_the_node_are_not(target: str) -> None:
    assert not sandboxed(target, *PAGE)


def test_what_is_on_the_disk_of_the_node_is_not() -> None:
    assert not sandboxed("/static/application.html", *FILE)


@pytest.mark.parametrize("prefix", ["/file/", "/named/"])
def test_there_nothing_else_is(prefix: str) -> None:
    assert sandboxed(prefix + "URI%3ACHK%3Aa/a.html", ("Content-Type", "text/html"))


@pytest.mark.parametrize(("content_type", "expected"), [
    ("text/html", True), ("application/xhtml+xml", True), ("image/svg+xml", True), ("text/xml; charset=utf-8", True),
    ("text/plain", True), ("application/pdf", False), ("Application/PDF; a=b", False), ("application/pdfx", True)])
def test_types(content_type: str, expected: bool) -> None:
    assert sandboxed("/uri/URI%3ACHK%3Aa", ("Content-Type", content_type), ("Accept-Ranges", "bytes")) is expected


def test_no_type_or_two_of_them() -> None:
    assert sandboxed("/uri/a", ("Accept-Ranges", "bytes"))
    assert sandboxed("/uri/a", ("Content-Type", "application/pdf"), ("content-type", "text/html"), FILE[1])


def test_a_part_of_a_file() -> None:
    assert is_grid_content(RequestHead("GET", "/uri/a", Headers(())), Headers((("Content-Range", "bytes 0-1/2"),)))


def test_that_the_browser_is_told() -> None:

    async def node(exchange: Exchange) -> None:
        await exchange.respond(200, FILE if "file" in exchange.head.target else PAGE, b"<p>")

    def answer(target: bytes) -> Answer:
        passing = Passing(node)
        passing.send(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return passing.answer()

    assert answer(b"/uri/URI%3ACHK%3Afile").headers["content-security-policy"] == SANDBOX
    assert "content-security-policy" not in answer(b"/uri/URI%3ADIR2%3Aa/").headers
