"""The storage servers of the grid, as the Tahoe node knows them.

This module and service.py are the only ones that use parts of allmydata that are not its formats;
tests/unit/test_allmydata_names.py lists every such name.
"""

from __future__ import annotations

from typing import Any

from allmydata.util import hashutil
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from helper.sinks import StorageServer
from helper.stock import StockServer

#: While fewer servers than wanted are connected, they are counted this often; seconds.
COUNT_INTERVAL = 0.2


class TahoeGrid:
    """A Grid (sinks.py) over a node's storage broker. `secret_holder` gives the node's lease secrets."""

    def __init__(self, storage_broker: Any, secret_holder: Any, clock: IReactorTime) -> None:
        self._broker = storage_broker
        self._secrets = secret_holder
        self._clock = clock

    def servers_for(self, storage_index: bytes) -> list[StorageServer]:
        """Writable servers, in the permuted order in which readers of this storage index ask them."""
        return [
            StockServer(native, self._lease_secrets)
            for native in self._broker.get_servers_for_psi(storage_index, for_upload=True)
            if _writable(native)
        ]

    def writable_count(self) -> int:
        """Connected servers that said they have room."""
        return len(self.servers_for(bytes(16)))

    def when_connected(self, count: int, timeout: float) -> Deferred[int]:
        """See sinks.Grid. A node that has just started needs a moment to find its servers."""
        done: Deferred[int] = Deferred()
        deadline = self._clock.seconds() + timeout

        def look() -> None:
            have = self.writable_count()
            if have >= count or self._clock.seconds() >= deadline:
                done.callback(have)
            else:
                self._clock.callLater(COUNT_INTERVAL, look)

        look()
        return done

    def _lease_secrets(self, storage_index: bytes, lease_seed: bytes) -> tuple[bytes, bytes]:
        """As the stock uploader derives them (allmydata.immutable.upload)."""
        renew = hashutil.file_renewal_secret_hash(self._secrets.get_renewal_secret(), storage_index)
        cancel = hashutil.file_cancel_secret_hash(self._secrets.get_cancel_secret(), storage_index)
        return (hashutil.bucket_renewal_secret_hash(renew, lease_seed),
                hashutil.bucket_cancel_secret_hash(cancel, lease_seed))


def _writable(native: Any) -> bool:
    """A read-only or full server says that it has no space at all; one that says nothing is asked."""
    return (hasattr(native, "get_rref") and native.get_rref() is not None
            and native.get_storage_server() is not None and native.get_available_space() != 0)
