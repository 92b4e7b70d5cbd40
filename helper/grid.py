"""The storage servers of the grid, as the Tahoe node knows them.

This module and service.py are the only ones that use parts of allmydata that are not its formats;
tests/unit/test_allmydata_names.py lists every such name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakSet

from allmydata.util import hashutil
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from helper.sinks import StorageServer
from helper.staging_client import StagingStorageServer
from helper.staging_links import StagingLinks
from helper.stock import StockServer

T = TypeVar("T")
Servers = Mapping[bytes, StorageServer]


class TahoeGrid:
    """A Grid (sinks.py) over a node's storage broker. `secret_holder` gives the node's lease secrets,
    `get_reference` is that of the node's Tub."""

    def __init__(self, storage_broker: Any, secret_holder: Any, clock: IReactorTime,
                 get_reference: Callable[[str], Deferred[Any]]) -> None:
        self._broker = storage_broker
        self._secrets = secret_holder
        self._clock = clock
        self._links = StagingLinks(get_reference, clock, self._changed)
        self._followed: WeakSet[Any] = WeakSet()
        #: Each looks whether what it waits for has come: a certain server (ID), or any (None).
        self._waiting: dict[bytes | None, dict[Callable[[Servers], None], None]] = {}

    def follow(self, introducer_clients: list[Any]) -> None:
        """Notice servers as they are announced and connected. After the broker was told to do the same."""
        for introducer in introducer_clients:
            # later: the broker, which subscribed before us, makes a server of the announcement first
            introducer.subscribe_to("storage", lambda *_announced: self._clock.callLater(0, self._changed))
        self._changed()

    def stop(self) -> None:
        """Connect to nothing any more."""
        self._links.stop()

    def servers_for(self, storage_index: bytes) -> list[StorageServer]:
        """Writable servers, in the permuted order in which readers of this storage index ask them."""
        servers = [self._server(native) for native in self._broker.get_servers_for_psi(storage_index, for_upload=True)
                   if _writable(native)]
        return [server for server in servers if server is not None]

    def readable_servers(self) -> list[StorageServer]:
        """See sinks.Grid."""
        return [StockServer(native, self._lease_secrets) for native in self._broker.get_connected_servers()
                if _reached(native)]

    def writable_count(self) -> int:
        """Connected servers that said they have room."""
        return len(self.servers_for(bytes(16)))

    def when_connected(self, count: int, timeout: float) -> Deferred[int]:
        """See sinks.Grid. A node that has just started needs a moment to find its servers."""

        def enough(servers: Servers) -> int | None:
            return len(servers) if len(servers) >= count else None

        return self._when(None, enough, timeout, self.writable_count)

    def when_back(self, server_id: bytes, timeout: float) -> Deferred[StorageServer | None]:
        """See sinks.Grid."""

        return self._when(server_id, lambda servers: servers.get(server_id), timeout, lambda: None)

    def _server(self, native: Any) -> StorageServer | None:
        """None if it is not yet known what kind of server it is."""
        stock = StockServer(native, self._lease_secrets)
        link = self._links.link(native)
        if link is not None and link.rref is not None:
            return StagingStorageServer(stock, link)
        return None if link is not None and link.connecting else stock

    def _present(self) -> Servers:
        """Writable servers by ID. Asks for plugins that are not asked for yet."""
        return {server.server_id: server for server in self.servers_for(bytes(16))}

    def _when(self, server_id: bytes | None, look: Callable[[Servers], T | None], timeout: float,
              otherwise: Callable[[], T]) -> Deferred[T]:
        """Fires with what `look` returns once that is not None, with `otherwise()` after `timeout` or if cancelled.
        It need not look while the server (ID), if there is one, is not there."""
        d: Deferred[T] = Deferred(lambda _d: give_up())

        def end(result: T) -> None:
            del self._waiting[server_id][again]
            if not self._waiting[server_id]:
                del self._waiting[server_id]
            if timer.active():
                timer.cancel()
            d.callback(result)

        def again(servers: Servers) -> None:
            found = look(servers)
            if found is not None:
                end(found)

        def give_up() -> None:
            end(otherwise())

        timer = self._clock.callLater(timeout, give_up)
        self._waiting.setdefault(server_id, {})[again] = None
        again(self._present())
        return d

    def _changed(self) -> None:
        """A server was announced or connected, or its plugin reached."""
        for native in self._broker.get_known_servers():
            if native not in self._followed:
                self._followed.add(native)
                native.on_status_changed(lambda _native: self._changed())
        servers = self._present()
        for server_id in [s for s in self._waiting if s is None or s in servers]:
            for again in list(self._waiting.get(server_id, ())):
                if again in self._waiting.get(server_id, ()):  # one that fires may make others give up
                    again(servers)

    def _lease_secrets(self, storage_index: bytes, lease_seed: bytes) -> tuple[bytes, bytes]:
        """As the stock uploader derives them (allmydata.immutable.upload)."""
        renew = hashutil.file_renewal_secret_hash(self._secrets.get_renewal_secret(), storage_index)
        cancel = hashutil.file_cancel_secret_hash(self._secrets.get_cancel_secret(), storage_index)
        return (hashutil.bucket_renewal_secret_hash(renew, lease_seed),
                hashutil.bucket_cancel_secret_hash(cancel, lease_seed))


def _writable(native: Any) -> bool:
    """A read-only or full server says that it has no space at all; one that says nothing is asked."""
    return _reached(native) and native.get_available_space() != 0


def _reached(native: Any) -> bool:
    return (hasattr(native, "get_rref") and native.get_rref() is not None
            and native.get_storage_server() is not None)
