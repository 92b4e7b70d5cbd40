"""Storage servers of every kind, each on a bench of its own: what the contracts (tests/contracts) are tried on.

The real ones are allmydata's own storage server, alone or with our staging plugin beside it, at the other end of a
loopback Foolscap connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import reactor_loop
from allmydata.storage.immutable import ShareFile
from allmydata.storage.server import FoolscapStorageServer, StorageServer
from allmydata.storage_client import NativeStorageServer
from allmydata.util import base32
from fakes import FakeServer, FakeSink, FakeStagingServer
from foolscap.api import Tub
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from world import begin

from helper.placement import Allocation
from helper.sinks import ShareSink, Target
from helper.sinks import StorageServer as Server
from helper.staged_share import SYNC_INTERVAL
from helper.staging import StagingLimits, StagingServer
from helper.staging_client import StagingStorageServer
from helper.staging_interfaces import PLUGIN_NAME
from helper.staging_links import StagingLinks
from helper.staging_plugin import FoolscapStagingServer
from helper.stock import StockServer

T = TypeVar("T")
reactor: Any = _reactor  # it has more interfaces than its declared type

SI = bytes(range(16))
TARGET = Target(b"s" * 32, SI)
LEASE_SECRETS = (b"r" * 32, b"c" * 32)


class Bench(Protocol):
    """A server under test, and what only the test may know about it."""

    @property
    def server(self) -> Server: ...
    def make(self, capacity: int) -> None:
        """Start it, with so many bytes of room."""
    def set_capacity(self, capacity: int) -> None:
        """Other users of its disk take room, or leave it."""
    def run(self, call: Callable[[], Awaitable[T]]) -> T: ...
    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until what is under way has come to this."""
    def content(self, shnum: int) -> bytes | None:
        """The bytes that readers see of a share of SI."""
    def open_shares(self) -> int:
        """How many shares are being written or staged."""
    def disconnect(self) -> None: ...
    def reconnect(self) -> None: ...
    def stop(self) -> None: ...


class StagingBench(Bench, Protocol):
    def kill(self) -> None:
        """The node's process ends at once; `reconnect` starts it again."""
    def make_read_only(self) -> None:
        """As `[storage] readonly = true` does."""
    def stock_writer(self, shnum: int) -> ShareSink:
        """A writer of an ordinary share of SI, as stock clients have."""


# -- fakes ------------------------------------------------------------------------------------------------


class FakeBench:
    server: FakeServer

    def make(self, capacity: int) -> None:
        self._clock = Clock()
        self.server = FakeServer("fake", self._clock, capacity)

    def set_capacity(self, capacity: int) -> None:
        self.server.capacity = capacity

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        results: list[Any] = []
        begin(call()).addBoth(results.append)
        self._clock.advance(0)
        assert results, "no answer"
        if hasattr(results[0], "raiseException"):
            results[0].raiseException()
        result: T = results[0]
        return result

    def wait_for(self, condition: Callable[[], bool]) -> None:
        self._clock.advance(0)
        assert condition()

    def content(self, shnum: int) -> bytes | None:
        share = self.server.share(SI, shnum)
        return None if share is None else share.data.ljust(share.allocated, b"\0")

    def open_shares(self) -> int:
        return len(self.server.open)

    def disconnect(self) -> None:
        self.server.disconnect()
        self._clock.advance(0)

    def reconnect(self) -> None:
        self.server.reconnect()

    def stop(self) -> None:
        pass


class FakeStagingBench(FakeBench):
    server: FakeStagingServer

    def make(self, capacity: int) -> None:
        self._clock = Clock()
        self.server = FakeStagingServer("fake", self._clock, capacity, sync_interval=SYNC_INTERVAL)

    def open_shares(self) -> int:
        return len(self.server.staged)

    def kill(self) -> None:
        self.server.kill()
        self._clock.advance(0)

    def make_read_only(self) -> None:
        self.server.read_only = True

    def stock_writer(self, shnum: int) -> ShareSink:
        sink = FakeSink(self.server, self.server.connection, (SI, shnum), 1000)
        self.server.open[SI, shnum] = sink
        return sink


# -- real servers -----------------------------------------------------------------------------------------


class RoomyStorageServer(StorageServer):  # type: ignore[misc]
    """Says that its disk has a certain room, instead of asking the disk."""

    capacity = 0

    def get_available_space(self) -> int:
        shares = [*Path(self.sharedir).rglob("*"), *Path(self.storedir, "staging").glob("*/*")]
        used = sum(p.stat().st_blocks * 512 for p in shares if p.is_file())
        return max(0, self.capacity - used)


def _client_tub(name: str) -> Tub:
    """With the options of a node's Tubs (allmydata.node). A second connection with the same name ends the first."""
    tub = Tub(certData=reactor_loop.certificate(name))
    tub.setOption("expose-remote-exception-types", False)
    return tub


class StockBench:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make(self, capacity: int) -> None:
        self.storage = RoomyStorageServer(str(self._directory), b"n" * 20)
        self.storage.capacity = capacity
        reactor_loop.run(self._start)

    def set_capacity(self, capacity: int) -> None:
        self.storage.capacity = capacity

    async def _start(self) -> None:
        self._tub = reactor_loop.listening_tub("storage server")
        furl = self._tub.registerReference(FoolscapStorageServer(self.storage))
        announcement = {"anonymous-storage-FURL": furl, "permutation-seed-base32": base32.b2a(b"p" * 20).decode(),
                        **self._announced()}
        self._native = NativeStorageServer(
            b"v0-" + base32.b2a(b"s" * 32), announcement, lambda _overrides: _client_tub("storage client"), {}, None)
        self._native.startService()
        self._native.start_connecting(None)
        await reactor_loop.turns(self._native.is_connected)

    def _announced(self) -> dict[str, Any]:
        """What else the node announces."""
        return {}

    @property
    def server(self) -> Server:
        return self.stock

    @property
    def stock(self) -> StockServer:
        return StockServer(self._native, lambda _si, _seed: LEASE_SECRETS)

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        return reactor_loop.run(call)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        reactor_loop.run(lambda: reactor_loop.turns(condition))

    def content(self, shnum: int) -> bytes | None:
        share = self.share_file(shnum)
        return None if share is None else bytes(share.read_share_data(0, share.get_length()))

    def share_file(self, shnum: int) -> Any:
        """As allmydata's own code reads it."""
        paths = dict(self.storage.get_shares(SI))
        return ShareFile(paths[shnum]) if shnum in paths else None

    def open_shares(self) -> int:
        return len(self.storage._bucket_writers)

    def disconnect(self) -> None:
        """From the server's side, as a router would."""
        async def cut() -> None:
            for broker in list(self._tub.brokers.values()):
                broker.transport.loseConnection()
            await reactor_loop.turns(self._is_cut)

        self.run(cut)

    def _is_cut(self) -> bool:
        return not self._native.is_connected() and not self.storage._bucket_writers

    def reconnect(self) -> None:
        async def again() -> None:
            self._native.try_to_connect()
            await reactor_loop.turns(self._native.is_connected)

        self.run(again)

    def stop(self) -> None:
        self.run(self._stop)

    async def _stop(self) -> None:
        await self._native.stopService()
        await self._tub.stopService()


class PluginBench(StockBench):
    """The plugin's link is helper.staging_links'; only when it may connect is the test's choice."""

    async def _start(self) -> None:
        self._away = False
        self._attempts: list[tuple[str, Deferred[Any]]] = []
        self._client = _client_tub("plugin client")
        self._client.startService()
        self._links = StagingLinks(self._get_reference, reactor, lambda: None)
        await super()._start()
        link = self._links.link(self._native)
        assert link is not None
        self._link = link
        await reactor_loop.turns(lambda: link.rref is not None)

    def _announced(self) -> dict[str, Any]:
        self._start_staging()
        furl = self._tub.registerReference(self._plugin, "plugin")
        return {"storage-options": [{"name": PLUGIN_NAME, "storage-server-FURL": furl}]}

    def _start_staging(self) -> None:
        self.staging = StagingServer(self.storage, StagingLimits(), reactor, deferToThread)
        self.staging.start()
        self._plugin = FoolscapStagingServer(self.staging)

    def _get_reference(self, furl: str) -> Deferred[Any]:
        """While the server is away this waits, as an attempt to connect to an absent node does."""
        if not self._away:
            return self._client.getReference(furl)  # type: ignore[no-any-return]
        d: Deferred[Any] = Deferred()
        self._attempts.append((furl, d))
        return d

    @property
    def server(self) -> StagingStorageServer:
        return StagingStorageServer(self.stock, self._link)

    @property
    def connections(self) -> list[Any]:
        """The server's ends of them, of Foolscap."""
        return list(self._tub.brokers.values())

    def open_shares(self) -> int:
        return self.staging.statistics()["staged_now"]

    def disconnect(self) -> None:
        self._away = True
        super().disconnect()

    def _is_cut(self) -> bool:
        return super()._is_cut() and self._link.rref is None

    def reconnect(self) -> None:
        super().reconnect()

        async def again() -> None:
            self._away = False
            attempts, self._attempts = self._attempts, []
            for furl, d in attempts:
                self._client.getReference(furl).chainDeferred(d)
            await reactor_loop.turns(lambda: self._link.rref is not None)

        self.run(again)

    def kill(self) -> None:
        """What the process had in memory is lost. (The page cache as well: tests/unit/test_staging_faults.py)"""
        self.disconnect()

        async def restart() -> None:
            self._tub.unregisterReference(self._plugin)
            self.staging.stop()
            self._start_staging()
            self._tub.registerReference(self._plugin, "plugin")

        self.run(restart)

    def make_read_only(self) -> None:
        self.storage.readonly_storage = True

    def stock_writer(self, shnum: int) -> ShareSink:
        granted = self.run(lambda: self.stock.allocate(TARGET, [shnum], Allocation(1000, 1000)))
        return granted.sinks[shnum]

    async def _stop(self) -> None:
        self._links.stop()
        await self._client.stopService()
        await super()._stop()
        self.staging.stop()


BENCHES: dict[str, Callable[[Path], Bench]] = {
    "fake": lambda _directory: FakeBench(),
    "stock": lambda directory: StockBench(directory),
    "fake-staging": lambda _directory: FakeStagingBench(),
    "staging": lambda directory: PluginBench(directory),
}
