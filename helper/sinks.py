"""Where shares go: one interface for every kind of storage server.

A kind of server is a module that provides these (stock.py: stock servers over Foolscap). pushing.py
knows no other. Every kind passes the same contract suite (tests/contracts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred

from helper.placement import Allocation


class ServerRefused(Exception):
    """A storage server did not do what it was asked; the share needs another home."""


class ShareSink(Protocol):
    """One share on one storage server, being written."""

    def write(self, offset: int, data: bytes) -> Deferred[None]:
        """Write at an offset of the share; fires when the server has the bytes. Calls may overlap in time;
        they are answered in the order in which they were made."""

    def seal(self) -> Deferred[None]:
        """All bytes are written and acknowledged: make the share ready to be published."""

    def publish(self) -> Deferred[None]:
        """Make the share readable under its storage index. Fires when the server says it is."""

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
    def server_id(self) -> bytes:
        """Stable and unique."""

    @property
    def name(self) -> str:
        """Short, for people."""

    def free_space(self) -> Deferred[int | None]:
        """Bytes it would take now, or None if it does not say. Fails if it does not answer."""

    def allocate(self, storage_index: bytes, shnums: Sequence[int], allocation: Allocation) -> Deferred[Granted]:
        """Ask for room for shares. Fails if the server does not answer."""

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Be told (once) when the connection is gone; returns what cancels that."""


class Grid(Protocol):
    """The storage servers this helper knows."""

    def servers_for(self, storage_index: bytes) -> list[StorageServer]:
        """Connected servers that may be written to, in the order in which readers look for shares."""

    def writable_count(self) -> int:
        """How many servers could take a share now."""

    def when_connected(self, count: int, timeout: float) -> Deferred[int]:
        """Fires with writable_count() once that is at least `count`, or after `timeout` seconds."""
