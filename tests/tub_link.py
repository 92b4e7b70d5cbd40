"""A Foolscap connection between two real Tubs on loopback, of which one is a client's of ours."""

from __future__ import annotations

from typing import Any, Self

import reactor_loop
from foolscap.api import Referenceable, Tub

from client_shim.helper_edge import make_tub


class Sink(Referenceable):  # type: ignore[misc]
    """Keeps what it is sent, and reads nothing while it is told not to."""

    def __init__(self) -> None:
        self.received: list[Any] = []

    def remote_take(self, number: int, data: Any) -> int:
        self.received.append((number, data))
        return number


class Link:
    """Connected while it is entered. `target` is the sink, for the sender; `broker` the sender's end of the connection,
    `receiver` the other."""

    def __init__(self) -> None:
        self.sink = Sink()
        self.target: Any = None

    async def connect(self) -> None:
        self.server = reactor_loop.listening_tub("helper")
        furl = self.server.registerReference(self.sink)
        self.sender: Tub = make_tub()
        self.sender.startService()
        self.target = await self.sender.getReference(furl)
        self.broker = self.target.tracker.broker
        self.receiver = next(iter(self.server.brokers.values()))

    async def disconnect(self) -> None:
        await self.sender.stopService()
        await self.server.stopService()

    def __enter__(self) -> Self:
        reactor_loop.run(self.connect)
        return self

    def __exit__(self, *_exception: object) -> None:
        reactor_loop.run(self.disconnect)
