"""What the gateway does not do itself is passed on to the client node, as it is, and files of the grid as such."""

from __future__ import annotations

from collections.abc import Container, Iterable
from urllib.parse import urlsplit, urlunsplit

from client_shim.gateway.errors import NodeAway
from client_shim.gateway.exchange import Exchange, Headers
from client_shim.gateway.grid_content import policy_for
from client_shim.gateway.node_client import NodeClient, NodeRequest

# RFC 9110 §7.6.1, and Expect, which is between the client and us: a body is not read before the node is there
_HOP_BY_HOP = frozenset({
    "connection", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
    "trailer", "transfer-encoding", "upgrade"})


def end_to_end(headers: Headers) -> list[tuple[str, str]]:
    """The fields that are passed on: all but those of one connection."""
    of_connection = {name.strip().lower() for value in headers.get_all("connection") for name in value.split(",")}
    dropped = _HOP_BY_HOP | of_connection
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def _here(location: str, port: int, hosts: Container[str | None]) -> str:
    """A redirection without the node's own address, which it makes of the Host header and its own port."""
    try:
        parts = urlsplit(location)
        if parts.scheme == "http" and parts.hostname in hosts and parts.port == port:
            return urlunsplit(("", "", parts.path or "/", parts.query, parts.fragment))
    except ValueError:
        pass  # as it is
    return location


class Proxy:
    """Handles an exchange by passing it on to the node."""

    def __init__(self, node: NodeClient) -> None:
        self._node = node

    async def __call__(self, exchange: Exchange) -> None:
        await self.pass_on(exchange)

    async def pass_on(self, exchange: Exchange, already_read: Iterable[bytes] = ()) -> None:
        """Pass on the whole exchange; `already_read` is what was read of the body before.

        Raises NodeAway (also when the answer has begun), ClientGone.
        """
        request = await self._node.connect()
        exchange.on_gone(request.close)
        try:
            await self._send(exchange, request, already_read)
            await self._answer(exchange, request)
        finally:
            request.close()

    async def _send(self, exchange: Exchange, request: NodeRequest, already_read: Iterable[bytes]) -> None:
        head = exchange.head
        headers = end_to_end(head.headers)
        if "transfer-encoding" in head.headers:
            headers.append(("Transfer-Encoding", "chunked"))
        request.begin(head.method, head.target, headers)
        for piece in already_read:
            await request.write(piece)
        while not request.answered and (piece := await exchange.read()):
            try:
                await request.write(piece)
            except NodeAway:
                if not request.answered:
                    raise
        if not request.answered:
            request.end()

    async def _answer(self, exchange: Exchange, request: NodeRequest) -> None:
        answer = await request.answer()
        own_host = urlsplit(f"//{exchange.head.headers.get('host') or ''}").hostname
        headers = [(name, _here(value, request.port, {request.host, own_host}) if name.lower() == "location" else value)
                   for name, value in end_to_end(answer.headers)]
        await exchange.begin(answer.status, headers + policy_for(exchange.head, answer.headers))
        while piece := await request.read():
            await exchange.write(piece)
        await exchange.end()
