"""Who may ask, and who may write: threats S15 and S16."""

from __future__ import annotations

import pytest

from client_shim.gateway.errors import BadHost, CrossSite, EncodedBody, GatewayError
from client_shim.gateway.exchange import Headers, RequestHead
from client_shim.gateway.protection import Protection, hosts_of

ALLOWED = "https://uploads.example"
METHODS = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "MKCOL"]


def head(method: str, *, host: str = "127.0.0.1:3457", **fields: str) -> RequestHead:
    named = [(name.replace("_", "-"), value) for name, value in fields.items()]
    return RequestHead(method, "/uri", Headers((("Host", host), *named)))


def refusal(protection: Protection, request: RequestHead) -> type[GatewayError] | None:
    try:
        protection.check(request)
    except GatewayError as e:
        return type(e)
    return None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("host", [
    "127.0.0.1", "127.0.0.1:3457", "localhost", "LOCALHOST:80", "[::1]:3457", "[::1]", "192.0.2.7:1", "my.example",
    "[2001:db8::1]:3457"])
def test_our_hosts(host: str, method: str) -> None:
    protection = Protection(hosts_of(["192.0.2.7", "My.Example", "2001:db8::1"]))
    assert refusal(protection, head(method, host=host)) is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:3457", "127.0.0.1.evil.example", "localhost.evil.example", "localhost@evil.example",
    "", "localhost:", "localhost:3457:80", "127.0.0.1,evil.example", "0.0.0.0:3457", "127.0.0.2", "2130706433",
    "[::1", "::1", "localhost.", "localhost/", "localhost:port", "[::ffff:127.0.0.1]"])
def test_other_hosts_are_refused_whatever_is_asked(host: str, method: str) -> None:
    """S15: a name that resolves to 127.0.0.1."""
    assert refusal(Protection(), head(method, host=host)) is BadHost


OURS = "http://127.0.0.1:3457"
WRITES = [
    # programs
    ({}, True),
    # pages of the gateway and of the node behind it
    ({"Origin": OURS}, True),
    ({"Origin": OURS, "Sec_Fetch_Site": "same-origin"}, True),
    ({"Origin": "null", "Sec_Fetch_Site": "same-origin"}, True),  # a form of a page with Referrer-Policy: no-referrer
    ({"Sec_Fetch_Site": "same-origin"}, True),
    ({"Sec_Fetch_Site": "none"}, True),
    ({"Referer": OURS + "/uploads/"}, True),
    # pages of others
    ({"Origin": "https://evil.example"}, False),
    ({"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}, False),
    ({"Origin": "https://evil.example", "Sec_Fetch_Site": "same-origin"}, False),
    ({"Origin": "null"}, False),
    ({"Origin": "null", "Sec_Fetch_Site": "cross-site"}, False),
    ({"Origin": "null", "Sec_Fetch_Site": "none"}, True),
    ({"Origin": ""}, False),
    ({"Origin": "http://127.0.0.1:8080"}, False),  # another program on this machine
    ({"Origin": "http://127.0.0.1"}, False),
    ({"Origin": "http://localhost:3457"}, False),  # reached under another name
    ({"Origin": OURS + ".evil.example"}, False),
    ({"Origin": "http://127.0.0.1:3457@evil.example"}, False),
    ({"Origin": "ftp://127.0.0.1:3457"}, False),
    ({"Origin": OURS, "Sec_Fetch_Site": "cross-site"}, False),
    ({"Origin": OURS, "Sec_Fetch_Site": "same-site"}, False),
    ({"Sec_Fetch_Site": "cross-site"}, False),
    ({"Sec_Fetch_Site": "same-site"}, False),
    ({"Sec_Fetch_Site": "something new"}, False),
    ({"Referer": "https://evil.example/"}, False),
    ({"Referer": OURS, "Sec_Fetch_Site": "cross-site"}, False),
    # CORS is off
    ({"Origin": ALLOWED}, False),
]


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE", "MKCOL"])
@pytest.mark.parametrize(("fields", "allowed"), WRITES, ids=range(len(WRITES)))
def test_who_may_write(fields: dict[str, str], allowed: bool, method: str) -> None:
    assert refusal(Protection(), head(method, **fields)) is (None if allowed else CrossSite)


@pytest.mark.parametrize(("fields", "allowed"), WRITES, ids=range(len(WRITES)))
def test_reading_is_left_to_the_same_origin_policy(fields: dict[str, str], allowed: bool) -> None:
    assert refusal(Protection(), head("GET", **fields)) is None
    assert dict(Protection().headers(head("GET", **fields))).keys().isdisjoint({"Access-Control-Allow-Origin", "Vary"})


def test_an_allowed_origin() -> None:
    protection = Protection(origins=frozenset({ALLOWED}))
    request = head("PUT", Origin=ALLOWED, Sec_Fetch_Site="cross-site")
    assert refusal(protection, request) is None
    headers = dict(protection.headers(request))
    assert headers["Access-Control-Allow-Origin"] == ALLOWED
    assert "Tahoe-Cap" in headers["Access-Control-Expose-Headers"]
    assert headers["Vary"] == "Origin"
    for origin in ("https://uploads.example:8443", "http://uploads.example", "https://uploads.example.evil.example"):
        request = head("PUT", Origin=origin, Sec_Fetch_Site="cross-site")
        assert refusal(protection, request) is CrossSite
        headers = dict(protection.headers(request))
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["Vary"] == "Origin"


def test_preflights() -> None:
    protection = Protection(origins=frozenset({ALLOWED}))
    asked = {"Access_Control_Request_Method": "PATCH", "Access_Control_Request_Headers": "upload-offset"}
    answer = protection.preflight(head("OPTIONS", Origin=ALLOWED, **asked))
    assert answer is not None
    allowed = dict(answer)
    assert "PATCH" in allowed["Access-Control-Allow-Methods"]
    assert "Upload-Offset" in allowed["Access-Control-Allow-Headers"]
    assert int(allowed["Access-Control-Max-Age"]) <= 600
    for request in (head("OPTIONS", Origin="https://evil.example", **asked), head("OPTIONS", **asked)):
        with pytest.raises(CrossSite):
            protection.preflight(request)
    with pytest.raises(CrossSite):
        Protection().preflight(head("OPTIONS", Origin=ALLOWED, **asked))
    assert protection.preflight(head("OPTIONS")) is None, "tus asks so what a server can do"
    assert protection.preflight(head("GET", Origin=ALLOWED, **asked)) is None


@pytest.mark.parametrize(("encoding", "refused"), [("gzip", True), ("identity", False), ("br, gzip", True), ("", True)])
def test_encoded_bodies(encoding: str, refused: bool) -> None:
    assert refusal(Protection(), head("PUT", Content_Encoding=encoding)) is (EncodedBody if refused else None)


def test_every_answer_keeps_caps_out_of_referers() -> None:
    assert ("Referrer-Policy", "no-referrer") in Protection().headers(head("GET"))
