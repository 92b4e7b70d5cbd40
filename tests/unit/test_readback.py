"""`put --verify` asks the client node, and tells nobody else what it asks (client_shim/readback.py)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from client_shim.cipher import PlaintextDigests
from client_shim.readback import verify_segments

DATA = b"what was sent, in three pieces"
CAP = b"URI:CHK:key:hash:3:10:30"


@contextmanager
def serving(seen: list[str]) -> Iterator[str]:
    """A server that has DATA; its URL. What it is asked for is added to `seen`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            body = DATA[int(first):int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name)
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_no_proxy_sees_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = PlaintextDigests(bytes(32), 10)
    digests.update(DATA)
    digests.end()
    node_saw: list[str] = []
    proxy_saw: list[str] = []
    with serving(node_saw) as node, serving(proxy_saw) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        verify_segments(node, CAP, digests, [0, 2], len(DATA))
    assert node_saw == ["/uri/URI%3ACHK%3Akey%3Ahash%3A3%3A10%3A30"] * 2
    assert not proxy_saw
