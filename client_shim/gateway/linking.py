"""Linking a stored file into a directory, through the client node."""

from __future__ import annotations

import json
from enum import Enum

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from client_shim.gateway.errors import NodeAway
from client_shim.gateway.node_client import NodeClient, NodeRequest
from client_shim.gateway.upload_requests import Place

#: Seconds between attempts to reach a node that is away when a file is to be linked.
_RETRY = 1.0


class Target(Enum):
    """What is at a place."""

    NOTHING = "nothing"
    IMMUTABLE_FILE = "immutable-file"
    OTHER = "other"
    """A directory, a mutable file, or something that only the node can judge."""


class Linker:
    """Asks the node. `patience`: seconds for which a node that is away is looked for, once a file is stored."""

    def __init__(self, node: NodeClient, patience: float, clock: IReactorTime) -> None:
        self._node = node
        self._patience = patience
        self._clock = clock

    async def look(self, place: Place) -> Target:
        """What is there now. Raises NodeAway."""
        answer, body = await self._node.ask("GET", f"{place.path}?t=json")
        if answer.status == 404:
            return Target.NOTHING
        if answer.status != 200 or body is None:
            return Target.OTHER
        try:
            kind, fields = json.loads(body)
            immutable_file = kind == "filenode" and fields["mutable"] is False
        except (ValueError, TypeError, KeyError):
            return Target.OTHER
        return Target.IMMUTABLE_FILE if immutable_file else Target.OTHER

    async def link(self, place: Place, cap: bytes) -> int:
        """Link it; directories on the way are made. Returns the status of the node's answer, 200 if it is linked.

        Raises NodeAway; then nobody knows whether it is linked.
        """
        request = await self._reached()
        try:
            request.begin("PUT", f"{place.path}?t=uri&replace={place.replace}",
                          [("Host", "localhost"), ("Content-Length", str(len(cap)))])
            await request.write(cap)
            request.end()
            answer = await request.answer()
            await request.whole()
            return 200 if answer.status == 201 else answer.status
        finally:
            request.close()

    async def _reached(self) -> NodeRequest:
        began = self._clock.seconds()
        while True:
            try:
                return await self._node.connect()
            except NodeAway:
                if self._clock.seconds() - began + _RETRY > self._patience:
                    raise
            await deferLater(self._clock, _RETRY)
