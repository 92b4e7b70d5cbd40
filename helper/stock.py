"""Stock storage servers over Foolscap: RIStorageServer and RIBucketWriter of allmydata.interfaces.

A stock server wants the storage index and a size before the first byte, keeps a share only as long as
the connection lasts, and publishes it with `close`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import attrs
from allmydata.immutable.layout import ReadBucketProxy
from foolscap.api import Referenceable
from twisted.internet.defer import Deferred, fail, succeed

from helper.layout import HEADER_VERSION
from helper.placement import Allocation
from helper.sinks import ExistingShare, Granted, ServerRefused, ShareSink, Target

LeaseSecrets = Callable[[bytes, bytes], tuple[bytes, bytes]]


@attrs.frozen
class StockServer:
    """One connected stock storage server. `native` is an allmydata NativeStorageServer; `lease_secrets`
    makes (renewal, cancel) secrets from a storage index and a lease seed."""

    native: Any
    lease_secrets: LeaseSecrets

    @property
    def stages(self) -> bool:
        return False

    @property
    def permutation_seed(self) -> bytes:
        return bytes(self.native.get_permutation_seed())

    @property
    def server_id(self) -> bytes:
        return bytes(self.native.get_serverid())

    @property
    def name(self) -> str:
        return short_name(self.native)

    def free_space(self) -> Deferred[int | None]:
        """Asked anew: what the server said when it connected may be days old."""
        d: Deferred[dict[bytes, Any]] = self.native.get_rref().callRemote("get_version")
        return d.addCallback(_available_space)

    def allocate(self, target: Target, shnums: Sequence[int], allocation: Allocation) -> Deferred[Granted]:
        if target.storage_index is None:
            raise ValueError("a stock server wants a storage index")
        return Deferred.fromCoroutine(self._allocate(target.storage_index, frozenset(shnums), allocation))

    async def _allocate(self, storage_index: bytes, shnums: frozenset[int], allocation: Allocation) -> Granted:
        rref = self.native.get_rref()
        renew, cancel = self.lease_secrets(storage_index, self.native.get_lease_seed())
        already, writers = await rref.callRemote(
            "allocate_buckets", storage_index, renew, cancel, set(shnums), allocation.share_size, Referenceable())
        sinks: dict[int, ShareSink] = {
            shnum: StockSink(writer) for shnum, writer in writers.items() if shnum in shnums}
        wanted = shnums & already
        return Granted(sinks, await self.existing_shares(storage_index, wanted) if wanted else {})

    def let_go(self, _target: Target, _shnums: Sequence[int]) -> None:
        pass  # nothing outlives the connection

    def remove_staged(self, _target: Target, _shnums: Sequence[int]) -> Deferred[None]:
        return fail(ServerRefused("keeps no staged shares"))

    async def existing_shares(self, storage_index: bytes, shnums: Collection[int]) -> dict[int, ExistingShare]:
        """Those of `shnums` that readers of `storage_index` find on this server."""
        shares = await self.shares_of(storage_index)
        return {shnum: shares[shnum] for shnum in shnums if shnum in shares}

    def shares_of(self, storage_index: bytes) -> Deferred[dict[int, ExistingShare]]:
        d = self.native.get_rref().callRemote("get_buckets", storage_index)

        def shares(readers: dict[int, Any]) -> dict[int, ExistingShare]:
            return {shnum: StockShare(ReadBucketProxy(reader, self.native, storage_index))
                    for shnum, reader in readers.items()}

        return d.addCallback(shares)  # type: ignore[no-any-return]

    def add_lease(self, storage_index: bytes) -> Deferred[None]:
        """Renew our lease on all shares of `storage_index` that are there, or add it. `allocate` does the same."""
        renew, cancel = self.lease_secrets(storage_index, self.native.get_lease_seed())
        d = self.native.get_rref().callRemote("add_lease", storage_index, renew, cancel)
        return d.addCallback(lambda _answer: None)  # type: ignore[no-any-return]

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        rref = self.native.get_rref()
        marker = rref.notifyOnDisconnect(callback)
        return lambda: rref.dontNotifyOnDisconnect(marker)


@attrs.frozen
class StockSink:
    """A share being written; `writer` refers to an RIBucketWriter."""

    writer: Any

    @property
    def held(self) -> int:
        return 0

    @property
    def prepared(self) -> bool:
        return False

    def write(self, offset: int, data: bytes) -> Deferred[None]:
        return self.writer.callRemote("write", offset, data)  # type: ignore[no-any-return]

    def touch(self) -> Deferred[None]:
        return self.write(0, HEADER_VERSION)  # what every share begins with; an empty write would fail

    def seal(self, _storage_index: bytes, _size: int) -> Deferred[None]:
        return succeed(None)  # a stock server knows nothing between written and closed

    def publish(self, _storage_index: bytes) -> Deferred[ExistingShare | None]:
        return self.writer.callRemote("close")  # type: ignore[no-any-return]

    def abort(self) -> Deferred[None]:
        d: Deferred[None] = self.writer.callRemote("abort")
        return d.addErrback(lambda _failure: None)  # gone with its connection, or closed


@attrs.frozen
class StockShare:
    """A finished share on a stock server, of whatever layout version."""

    proxy: Any

    def read_ueb(self) -> Deferred[bytes]:
        return self.proxy.get_uri_extension()  # type: ignore[no-any-return]

    def read_block(self, segment: int, block_size: int, length: int) -> Deferred[bytes]:
        return self.proxy.get_block_data(segment, block_size, length)  # type: ignore[no-any-return]


def short_name(native: Any) -> str:
    """How Tahoe calls a server in logs and pages."""
    name = native.get_name()
    return name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)


def _available_space(version: Any) -> int | None:
    """From a get_version answer; raises ServerRefused if it is not one."""
    if not isinstance(version, dict):
        raise ServerRefused("answered get_version with something else")
    storage = version.get(b"http://allmydata.org/tahoe/protocols/storage/v1")
    space = storage.get(b"available-space") if isinstance(storage, dict) else None
    return space if isinstance(space, int) else None
