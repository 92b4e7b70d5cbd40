"""Where shares go: one interface for every kind of storage server.

A kind of server is a module that provides these (stock.py: stock servers over Foolscap; staging_client.py:
those with our plugin). pushing.py knows no other. Every kind passes the same contract suite (tests/contracts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
from foolscap.api import DeadReferenceError
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone, ConnectionLost

from helper.placement import Allocation

#: What calls fail with when the connection is gone.
CONNECTION_LOST = (DeadReferenceError, ConnectionDone, ConnectionLost)


class ServerRefused(Exception):
    """A storage server did not do what it was asked; the share needs another home."""


@attrs.frozen
class Target:
    """What servers may know of an upload. `storage_index` is None until they may be told; `staging_secret`
    (32 bytes) is never sent: names of staged shares derive from it (protocol.txt §15.1)."""

    staging_secret: bytes
    storage_index: bytes | None = None


class ShareSink(Protocol):
    """One share on one storage server, being written."""

    @property
    def held(self) -> int:
        """Bytes of share data, from its start, that the server had of this share before."""

    @property
    def prepared(self) -> bool:
        """Whether the share was sealed before: nothing can be written any more, and need not be."""

    def write(self, offset: int, data: bytes) -> Deferred[None]:
        """Write at an offset of the share; fires when the server has the bytes. Calls may overlap in time;
        they are answered in the order in which they were made."""

    def touch(self) -> Deferred[None]:
        """Tell the server that an idle share is still wanted."""

    def seal(self, storage_index: bytes, size: int, /) -> Deferred[None]:
        """All `size` bytes are written and acknowledged: make the share ready to be published. May be repeated."""

    def publish(self, storage_index: bytes, /) -> Deferred[ExistingShare | None]:
        """Make the share readable under its storage index. Fires with None when the server says it is, or with
        what stands there if it is not only what this sink has written: if the server had a share of that number
        before, in whose favour this one is gone, or said that it held some of this one."""

    def abort(self) -> Deferred[None]:
        """Let go of the share so that nothing of it stays. Never fails; no-op once published."""


class ExistingShare(Protocol):
    """A share that was on the server before this upload: counts only if it is really ours."""

    def read_ueb(self) -> Deferred[bytes]:
        """The packed URI extension block the share holds."""

    def read_block(self, segment: int, block_size: int, length: int) -> Deferred[bytes]:
        """One block (of `length` bytes; full blocks have `block_size`)."""


@attrs.frozen
class Granted:
    """What a server made of a request: share numbers missing from both were refused."""

    sinks: dict[int, ShareSink]
    existing: dict[int, ExistingShare]


class StorageServer(Protocol):
    """A storage server of the grid, while it is connected."""

    @property
    def stages(self) -> bool:
        """Whether it takes shares without a storage index and a size, and keeps them when the connection drops."""

    @property
    def permutation_seed(self) -> bytes:
        """From which readers compute the order in which they ask servers."""

    @property
    def server_id(self) -> bytes:
        """Stable and unique."""

    @property
    def name(self) -> str:
        """Short, for people."""

    def free_space(self) -> Deferred[int | None]:
        """Bytes it would take now, or None if it does not say. Fails if it does not answer."""

    def allocate(self, target: Target, shnums: Sequence[int], allocation: Allocation, /) -> Deferred[Granted]:
        """Ask for room for shares, or find those again that the server keeps. Fails if the server does not
        answer. ValueError if a server that does not stage is asked without a storage index."""

    def let_go(self, target: Target, shnums: Sequence[int], /) -> None:
        """Remove what it keeps of shares without a storage index, at once or when it is connected again."""

    def shares_of(self, storage_index: bytes, /) -> Deferred[dict[int, ExistingShare]]:
        """Every share that readers of `storage_index` find on it. Fails if the server does not answer."""

    def add_lease(self, storage_index: bytes, /) -> Deferred[None]:
        """Keep its shares of `storage_index` from expiring, for as long as if they were new. Fails if the server
        does not answer."""

    def remove_staged(self, target: Target, shnums: Sequence[int], /) -> Deferred[None]:
        """Remove what it keeps of shares without a storage index; fires when nothing of them is left. Fails if it is
        not connected, refuses, or keeps none."""

    def on_disconnect(self, callback: Callable[[], None], /) -> Callable[[], None]:
        """Be told (once) when the connection is gone; returns what cancels that."""


@attrs.frozen
class AbsentServer:
    """A server that has shares from an earlier run of the helper, and is not connected yet."""

    server_id: bytes
    name: str = "absent"
    stages: bool = True
    permutation_seed: bytes = b""

    def free_space(self) -> Deferred[int | None]:
        return fail(ServerRefused("is not connected"))

    def allocate(self, _target: Target, _shnums: Sequence[int], _allocation: Allocation) -> Deferred[Granted]:
        return fail(ServerRefused("is not connected"))

    def let_go(self, _target: Target, _shnums: Sequence[int]) -> None:
        pass  # it is told when the upload is over (leftovers.py)

    def remove_staged(self, _target: Target, _shnums: Sequence[int]) -> Deferred[None]:
        return fail(ServerRefused("is not connected"))

    def shares_of(self, _storage_index: bytes) -> Deferred[dict[int, ExistingShare]]:
        return fail(ServerRefused("is not connected"))

    def add_lease(self, _storage_index: bytes) -> Deferred[None]:
        return fail(ServerRefused("is not connected"))

    def on_disconnect(self, _callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class Grid(Protocol):
    """The storage servers this helper knows."""

    def servers_for(self, storage_index: bytes) -> list[StorageServer]:
        """Connected servers that may be written to, in the order in which readers look for shares."""

    def readable_servers(self) -> list[StorageServer]:
        """Every connected server: those that take nothing more, too."""

    def when_back(self, server_id: bytes, timeout: float) -> Deferred[StorageServer | None]:
        """Fires with a server that was lost when it is connected again, with None after `timeout` seconds. May be
        cancelled; it fires with None then."""

    def writable_count(self) -> int:
        """How many servers could take a share now."""

    def when_connected(self, count: int, timeout: float) -> Deferred[int]:
        """Fires with writable_count() once that is at least `count`, or after `timeout` seconds."""
