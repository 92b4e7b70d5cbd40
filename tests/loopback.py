"""A whole helper behind a real Foolscap connection on loopback: real Tub, threads and spool; only the storage
servers are fakes. Runs in the reactor of reactor_loop.py; everything here that is not `async` may be called
from a test's own thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import reactor_loop
from fakes import FakeGrid
from foolscap.api import Referenceable, Tub
from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread
from world import SMALL

from client_shim.helper_edge import HelperLink, connect
from client_shim.upload import StreamingUpload
from helper.bounded_broker import bound, new_memory
from helper.connection_memory import ConnectionBounds
from helper.foolscap_edge import AnnouncingHelper, StreamingHelper
from helper.ledger import Ledger
from helper.ledger_file import LEDGER_NAME, LedgerFile
from helper.parameters import Parameters
from helper.settings import Settings
from helper.spool import Spool
from helper.uploads import Uploads

T = TypeVar("T")
reactor: Any = _reactor  # it has more interfaces than its declared type


def client_tub(name: str = "client") -> Tub:
    """A started Tub with the options of client_shim.helper_edge.make_tub, but for its key."""
    tub = Tub(certData=reactor_loop.certificate(name))
    tub.setOption("expose-remote-exception-types", False)
    tub.setOption("logLocalFailures", False)
    tub.setOption("logRemoteFailures", False)
    tub.startService()
    return tub


class LoopbackHelper:
    """A context manager. `grid` may be another than ten fake servers."""

    def __init__(self, directory: Path, settings: Settings = SMALL, grid: Any = None,
                 bounds: ConnectionBounds | None = None) -> None:
        self.directory = directory
        self.settings = settings
        self.bounds = bounds
        self.grid = grid or FakeGrid(reactor, 10)

    def __enter__(self) -> Self:
        reactor_loop.run(self._start)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _traceback: TracebackType | None) -> None:
        reactor_loop.run(self._stop)

    async def _start(self) -> None:
        self.spool = Spool(self.directory / "spool", deferToThread)
        self.spool.start()
        self.records = Ledger(LedgerFile(self.directory / LEDGER_NAME), deferToThread, reactor)
        recorded = self.records.open()
        self.uploads = Uploads(self.settings, self.spool, self.records, self.grid, reactor, deferToThread)
        self.uploads.start(recorded)
        self.tub = reactor_loop.listening_tub("helper")
        self.tub.setOption("logLocalFailures", False)
        self.tub.setOption("logRemoteFailures", False)
        self.memory = new_memory(self.bounds)
        bound(self.tub, self.memory)
        self.memory.on_stuck = self.uploads.memory_wanted
        self.stock = AnnouncingHelper(str(self.directory / "stock"), None, None, None, None)
        self.streaming_furl = self.register(StreamingHelper(self.uploads))
        self.stock.announce(self.streaming_furl, self.settings.largest_message)
        self.furl = self.register(self.stock)
        self.client = client_tub()

    async def _stop(self) -> None:
        self.uploads.stop()
        await self.records.close()
        await self.client.stopService()
        await self.tub.stopService()
        self.spool.stop()

    def register(self, referenceable: Referenceable) -> str:
        """Its furl."""
        return str(self.tub.registerReference(referenceable))

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        return reactor_loop.run(call)

    def connect(self, furl: str | None = None) -> HelperLink:
        """A client's link to the helper (or to what is at `furl`)."""
        return self.run(lambda: connect(self.client, furl or self.furl))

    async def upload(self, parameters: Parameters, data: bytes, key: bytes, write_size: int = 1000) -> bytes:
        """Upload `data` over the connection; returns the cap."""

        async def link() -> HelperLink:
            return await connect(self.client, self.furl)

        upload = StreamingUpload(link, parameters, reactor, key=key)
        for start in range(0, len(data), write_size):
            await upload.write(data[start:start + write_size])
        return await upload.close()

    def cut(self) -> None:
        """Break every connection, as a router would."""

        async def cut() -> None:
            for broker in list(self.tub.brokers.values()):
                broker.transport.abortConnection()

        self.run(cut)
