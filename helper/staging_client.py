"""Storage servers with our staging plugin, as the helper sees them: protocol.txt part 2.

A staging server takes a share without a storage index and a size, keeps it when the connection drops or the
node restarts, and publishes it with one call. Otherwise it is a stock server, and is asked as one for the
shares that it already had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
from allmydata.util import hashutil
from foolscap.api import DeadReferenceError, eventually
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from helper.interfaces import SIZE_MAX
from helper.layout import DATA_OFFSET
from helper.placement import Allocation
from helper.sinks import CONNECTION_LOST, ExistingShare, Granted, ServerRefused, ShareSink, Target
from helper.stock import StockServer

_NAME_TAG = b"tahoe-stream staging name v1"
#: States of staged shares that are complete (protocol.txt §16.4); one is being assigned if an answer was lost.
_COMPLETE = frozenset({b"prepared", b"assigning"})


def staging_name(staging_secret: bytes, server_id: bytes) -> bytes:
    """The name (32 bytes) of an upload's shares on one server, of no use on another: protocol.txt §15.1."""
    return bytes(hashutil.tagged_pair_hash(_NAME_TAG, staging_secret, server_id))


class StagingLink(Protocol):
    """The way to one node's plugin (staging_links.py)."""

    @property
    def rref(self) -> Any:
        """Refers to an RIStagingServer; None while it is not connected."""

    def abort_later(self, name: bytes, *shnums: int) -> None:
        """Remove staged shares (at least one) as soon as the server is connected again."""


@attrs.frozen
class StagingStorageServer:
    """One connected staging server. `stock` is the same node without its plugin."""

    stock: StockServer
    link: StagingLink

    @property
    def server_id(self) -> bytes:
        return self.stock.server_id

    @property
    def name(self) -> str:
        return self.stock.name

    @property
    def stages(self) -> bool:
        return True

    @property
    def permutation_seed(self) -> bytes:
        return self.stock.permutation_seed

    def free_space(self) -> Deferred[int | None]:
        d = _ask(self.link, "get_version")
        return d.addCallback(lambda answer: _number(_checked(answer), b"available-space"))

    def allocate(self, target: Target, shnums: Sequence[int], allocation: Allocation) -> Deferred[Granted]:
        return Deferred.fromCoroutine(self._allocate(target, list(shnums), allocation))

    async def _allocate(self, target: Target, shnums: list[int], allocation: Allocation) -> Granted:
        existing: dict[int, ExistingShare] = {}
        if target.storage_index is not None:
            # Without an index nothing can be there; and if publishing it was cut short, this finds the share.
            existing = await self.existing_shares(target.storage_index, shnums)
        wanted = [shnum for shnum in shnums if shnum not in existing]
        if not wanted:
            return Granted({}, existing)
        name = staging_name(target.staging_secret, self.server_id)
        answer, held = await _ask(self.link, "stage", name, wanted, allocation.share_size)
        _checked(answer)
        sinks: dict[int, ShareSink] = {
            shnum: StagedSink(self, name, shnum, min(length, SIZE_MAX), state in _COMPLETE)
            for shnum, state, length, _synced in held if shnum in wanted}
        return Granted(sinks, existing)

    async def existing_shares(self, storage_index: bytes, shnums: Sequence[int]) -> dict[int, ExistingShare]:
        """Ordinary shares that are there; they have our lease then, as if a stock server had been asked for them."""
        existing = await self.stock.existing_shares(storage_index, shnums)
        if existing:
            await self.stock.add_lease(storage_index)
        return existing

    def let_go(self, target: Target, shnums: Sequence[int]) -> None:
        if shnums:
            self.link.abort_later(staging_name(target.staging_secret, self.server_id), *shnums)

    def shares_of(self, storage_index: bytes) -> Deferred[dict[int, ExistingShare]]:
        return self.stock.shares_of(storage_index)

    def add_lease(self, storage_index: bytes) -> Deferred[None]:
        return self.stock.add_lease(storage_index)

    def remove_staged(self, target: Target, shnums: Sequence[int]) -> Deferred[None]:
        name = staging_name(target.staging_secret, self.server_id)
        return _ask(self.link, "abort", name, list(shnums)).addCallback(_done)

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        rref = self.link.rref
        if rref is None:  # as Foolscap does for a reference that is dead
            eventually(callback)
            return lambda: None
        marker = rref.notifyOnDisconnect(callback)
        return lambda: rref.dontNotifyOnDisconnect(marker)


@attrs.frozen
class StagedSink:
    """A share that is being staged; `held` and `prepared` as they were when it was found."""

    server: StagingStorageServer
    name: bytes
    shnum: int
    held: int
    prepared: bool

    @property
    def is_claimed(self) -> bool:
        """Whether the server said that it had some of the share's bytes before: what it is not sent is its word."""
        return self.prepared or self.held > DATA_OFFSET

    def write(self, offset: int, data: bytes) -> Deferred[None]:
        return self._call("write", self.shnum, offset, data)

    def touch(self) -> Deferred[None]:
        d = _ask(self.server.link, "held", self.name)
        return d.addCallback(lambda answer_and_held: _done(answer_and_held[0]))

    def seal(self, storage_index: bytes, size: int) -> Deferred[None]:
        stock = self.server.stock
        renew, cancel = stock.lease_secrets(storage_index, stock.native.get_lease_seed())
        d = _ask(self.server.link, "prepare", self.name, self.shnum, size, renew, cancel)
        # being assigned, so of that size and prepared before (§16.5): `publish` waits for what comes of it
        return d.addCallback(lambda answer: None if _code(answer) == b"already-prepared" else _done(answer))

    def publish(self, storage_index: bytes) -> Deferred[ExistingShare | None]:
        return Deferred.fromCoroutine(self._publish(storage_index))

    async def _publish(self, storage_index: bytes) -> ExistingShare | None:
        answer, outcomes = await _ask(self.server.link, "assign", self.name, storage_index, [self.shnum])
        # An unknown staging has been assigned before, and the answer was lost: then the share is there.
        outcome = dict(outcomes).get(self.shnum, b"") if _code(answer) == b"ok" else _code(answer)
        if outcome == b"assigned" and not self.is_claimed:
            return None
        if outcome in (b"assigned", b"already-there", b"unknown", b"unknown-staging"):
            existing = await self.server.existing_shares(storage_index, [self.shnum])
            if self.shnum in existing:
                return existing[self.shnum]
        raise ServerRefused(f"did not publish a share: {outcome.decode('ascii', 'replace')}")

    def abort(self) -> Deferred[None]:
        d = _ask(self.server.link, "abort", self.name, [self.shnum])

        def failed(failure: Failure) -> None:
            if failure.check(*CONNECTION_LOST):
                self.server.link.abort_later(self.name, self.shnum)

        return d.addCallbacks(lambda _answer: None, failed)

    def _call(self, method: str, *arguments: Any) -> Deferred[None]:
        return _ask(self.server.link, method, self.name, *arguments).addCallback(_done)


def _ask(link: StagingLink, method: str, *arguments: Any) -> Deferred[Any]:
    """Call the plugin. While it is away that fails as a call on a lost connection does, and at once."""
    if link.rref is None:
        return fail(DeadReferenceError("the staging plugin is not connected"))
    d: Deferred[Any] = link.rref.callRemote(method, *arguments)
    return d


def _code(answer: Any) -> bytes:
    code = answer.get(b"code") if isinstance(answer, dict) else None
    return code if isinstance(code, bytes) else b"no code"


def _checked(answer: Any) -> dict[bytes, Any]:
    """An answer that is not a refusal; raises ServerRefused."""
    if _code(answer) != b"ok":
        raise ServerRefused(f"refused: {_code(answer).decode('ascii', 'replace')}")
    checked: dict[bytes, Any] = answer
    return checked


def _done(answer: Any) -> None:
    _checked(answer)


def _number(answer: dict[bytes, Any], key: bytes) -> int | None:
    value = answer.get(key)
    return value if isinstance(value, int) else None
