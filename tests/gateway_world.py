"""A gateway in memory: a whole helper (world.py), a node that is a handler, and clients' connections."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import unquote

import attrs
from allmydata import uri
from http_world import Answer, HttpWorld, MemoryNode
from world import SMALL, WireLink, World

from client_shim.dedup import DedupMode
from client_shim.errors import HelperUnreachable
from client_shim.gateway.exchange import Exchange
from client_shim.gateway.forms import PostForm
from client_shim.gateway.linking import Linker
from client_shim.gateway.protection import Protection
from client_shim.gateway.proxy import Proxy
from client_shim.gateway.put_uri import PutLinked, PutUnlinked
from client_shim.gateway.site import Route, Site
from client_shim.gateway.streams import Streams
from client_shim.gateway.upload_requests import is_form, is_put_unlinked, place_of_put
from client_shim.upload import StreamingUpload
from helper.parameters import Parameters

PARAMETERS = Parameters(3, 7, 10, 10_000)
DIRECTORY = uri.DirectoryURI(uri.WriteableSSKFileURI(b"k" * 16, b"f" * 32)).to_string().decode()


class PretendNode:
    """A Tahoe node with one directory, as far as PUT into it goes; everything else it only writes down."""

    def __init__(self) -> None:
        #: What is linked: path below the directory → kind and cap.
        self.links: dict[str, tuple[str, str]] = {}
        self.requests: list[tuple[str, str, bytes]] = []
        #: Called before a request is carried out.
        self.before: Callable[[str, str], None] = lambda _method, _target: None

    async def __call__(self, exchange: Exchange) -> None:
        body = b""
        while piece := await exchange.read():
            body += piece
        head = exchange.head
        self.requests.append((head.method, head.target, body))
        self.before(head.method, head.target)
        name = unquote(head.path.split("/", 3)[3]) if head.path.count("/") > 2 else ""
        if head.method == "GET" and head.argument("t") == "json":
            await self._json(exchange, name)
        elif head.method == "PUT" and head.argument("t") == "uri":
            await self._link(exchange, name, body)
        else:
            await exchange.respond(200, [("Server", "node")], b"passed on: " + body)

    async def _json(self, exchange: Exchange, name: str) -> None:
        if name not in self.links:
            await exchange.respond(404, [], b"No such child")
            return
        kind, cap = self.links[name]
        fields: dict[str, Any] = {"mutable": kind != "immutable", "ro_uri": cap}
        described = ["dirnode" if kind == "directory" else "filenode", fields]
        await exchange.respond(200, [], json.dumps(described, indent=1).encode())

    async def _link(self, exchange: Exchange, name: str, cap: bytes) -> None:
        replace = exchange.head.argument("replace")
        if name in self.links and (replace == "false" or self.links[name][0] == "directory"):
            await exchange.respond(409, [], b"There was already a child by that name")
            return
        self.links[name] = ("immutable", cap.decode())
        await exchange.respond(200, [], cap)


class GatewayWorld:
    """Everything shares one clock; use it as a context manager."""

    def __init__(self, helper_wait: float = 10, patience: float = 3600, **settings: Any) -> None:
        self.helper = World(settings=attrs.evolve(SMALL, **settings))
        self.clock = self.helper.clock
        self.node = PretendNode()
        self.memory_node = MemoryNode(self.node, self.clock)
        self.helper_is_up = True
        self.connects = 0
        self.uploads: list[StreamingUpload] = []
        self.dedup_wanted: list[DedupMode | None] = []
        self.accesses: list[tuple[Any, ...]] = []
        self._patience = patience
        self.streams = Streams(self._make_upload, helper_wait, self.clock)
        proxy = Proxy(self.memory_node.client)
        linker = Linker(self.memory_node.client, helper_wait, self.clock)
        self.site = Site([
            Route("put-uri", is_put_unlinked, PutUnlinked(self.streams)),
            Route("put-child", lambda head: place_of_put(head) is not None, PutLinked(self.streams, linker, proxy)),
            Route("post-uri", is_form, PostForm(self.streams, proxy)),
            Route("node", lambda _head: True, proxy),
        ], Protection(), self.clock, lambda *access: self.accesses.append(access))

    def __enter__(self) -> Self:
        self.helper.__enter__()
        return self

    def __exit__(self, *why: object) -> None:
        self.helper.__exit__(*why)  # type: ignore[arg-type]

    def _make_upload(self, *, size: int | None, dedup: DedupMode | None, **events: Any) -> StreamingUpload:
        self.dedup_wanted.append(dedup)

        async def connect() -> WireLink:
            self.connects += 1
            if not self.helper_is_up:
                raise HelperUnreachable("ConnectionRefusedError")
            return self.helper.link()

        upload = StreamingUpload(connect, attrs.evolve(PARAMETERS, size=size), self.clock, patience=self._patience,
                                 **events)
        self.uploads.append(upload)
        return upload

    def client(self) -> HttpWorld:
        """A client's connection."""
        return HttpWorld(self.site, clock=self.clock)

    def send(self, client: HttpWorld, data: bytes) -> None:
        """Send, and let everything happen that takes no time to speak of."""
        client.send(data)
        self.helper.wait(1)

    def ask(self, data: bytes, method: str = "PUT") -> Answer:
        """One request on a connection of its own, and the whole answer."""
        client = self.client()
        client.send(data)
        for _ in range(200):
            answers = client.answers_so_far(method)
            if answers and answers[0].complete:
                return answers[0]
            self.helper.wait(0.5)
        raise AssertionError("no answer")


def request(method: str, target: str, body: bytes | None = None, *fields: str) -> bytes:
    """A request whose body is declared, if it has one."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *fields]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def chunked(method: str, target: str, *pieces: bytes, end: bool = True, fields: tuple[str, ...] = ()) -> bytes:
    """A request whose body is chunked."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", *fields]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + chunks + (b"0\r\n\r\n" if end else b"")
