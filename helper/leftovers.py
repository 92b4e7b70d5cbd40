"""Staged shares of uploads that are over, on servers that have yet to remove them: protocol.txt §11.6.

A server may be away when an upload ends, or lose what it was told with its connection. It is told when it is back soon,
and whenever uploads are swept, until it says that it has removed them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from helper.sinks import CONNECTION_LOST, Grid, StorageServer, Target

T = TypeVar("T")

#: Seconds in which a server that is away when an upload ends is told as soon as it is back: a helper that has just
#: started may not have found them all. Later a sweep tells it.
RECONNECTING = 60.0


@attrs.frozen(eq=False)
class _Left:
    """What one upload has left on a server; `removed` is told the server's ID when it is gone."""

    target: Target
    shnums: Sequence[int]
    removed: Callable[[bytes], None]


class Leftovers:
    """What all uploads have left on servers."""

    log = Logger()

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._left: dict[bytes, dict[str, _Left]] = {}  # by server ID and name of the upload
        self._asking: set[bytes] = set()
        self._awaited: dict[bytes, Deferred[StorageServer | None]] = {}
        self._stopped = False

    def add(self, name: str, target: Target, shnums: Sequence[int], servers: Iterable[bytes],
            removed: Callable[[bytes], None]) -> None:
        """The upload `name` is over, and these servers (IDs) may keep staged shares of it. `removed` is called for each
        that has removed them."""
        left = _Left(target, shnums, removed)
        connected = {server.server_id for server in self._grid.servers_for(bytes(16))}
        for server_id in servers:
            self._left.setdefault(server_id, {})[name] = left
            if server_id not in connected and server_id not in self._awaited and not self._stopped:
                self._awaited[server_id] = waiting = self._grid.when_back(server_id, RECONNECTING)
                waiting.addCallback(self._back, server_id)
        self.look()

    def forget(self, name: str) -> None:
        """What is still left of an upload expires on its servers."""
        for of_server in self._left.values():
            of_server.pop(name, None)

    def look(self) -> None:
        """Tell the servers that are connected."""
        self._left = {server_id: left for server_id, left in self._left.items() if left}
        if not self._left:
            return
        for server in self._grid.servers_for(bytes(16)):
            if server.stages and server.server_id in self._left and server.server_id not in self._asking:
                self._asking.add(server.server_id)
                Deferred.fromCoroutine(self._tell(server)).addBoth(self._told, server.server_id)

    def stop(self) -> None:
        """Tell nobody any more."""
        self._stopped = True
        for waiting in list(self._awaited.values()):
            waiting.cancel()

    def _back(self, server: StorageServer | None, server_id: bytes) -> None:
        """It is connected again, or was waited for in vain."""
        self._awaited.pop(server_id, None)
        if server is not None and not self._stopped:
            self.look()

    def _told(self, result: T, server_id: bytes) -> T:
        self._asking.discard(server_id)
        return result

    async def _tell(self, server: StorageServer) -> None:
        """One upload after the other, so that a server that was away for long is not flooded."""
        tried: set[_Left] = set()
        while tell := [(n, left) for n, left in self._left.get(server.server_id, {}).items() if left not in tried]:
            for name, left in tell:
                if self._stopped:
                    return
                tried.add(left)
                try:
                    await server.remove_staged(left.target, left.shnums)
                except CONNECTION_LOST:
                    return
                except Exception as e:  # noqa: BLE001 (whatever the server has done, it will be told again)
                    self.log.info("storage server {server} did not remove what upload {upload} has staged: {kind}",
                                  server=server.name, upload=name[:8], kind=type(e).__name__)
                    continue
                if self._left.get(server.server_id, {}).get(name) is left:
                    del self._left[server.server_id][name]
                    left.removed(server.server_id)
