"""A whole Tahoe grid as processes on the loopback interface, in one directory.

Introducer, storage nodes and client are stock `tahoe run` processes; the helper is ours or stock. Used by
`tahoe-stream demo` and by the integration tests. Blocking, no reactor:

    with LocalGrid(Path("/tmp/grid"), GridOptions(storage_nodes=3, happy=2, n=3)) as grid:
        grid.client.web_url, grid.helper.pid, grid.storage[0].suspend(), grid.shares()

Node directories are written here (local_config.py); `tahoe create-node` would take a second for each.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import attrs

from client_shim.local_config import (
    GridOptions,
    client_config,
    helper_config,
    introducer_config,
    storage_config,
    write_client,
    write_introducer,
)
from client_shim.local_node import POLL_INTERVAL, NodeError, NodeProcess, http_get, poll_until
from client_shim.local_ports import PortReservations

STOCK_RUN = (sys.executable, "-m", "allmydata", "run")
STREAMING_HELPER_RUN = (sys.executable, "-m", "client_shim.cli", "helper", "run")
GATEWAY_RUN = (sys.executable, "-m", "client_shim.cli", "gateway", "run", "--listen", "tcp:0:interface=127.0.0.1")
# Seconds for the whole grid. Ten storage nodes on two idle cores need 11, nearly all of it processor time: a second of
# imports a node, and one RSA key for each pair of storage nodes (Foolscap storage clients make one a server).
START_TIMEOUT = 120.0

# Stock's share files: 12 bytes of container header, then the share, whose blocks begin at 0x24 (v1) or 0x44 (v2).
PROBE_OFFSET = 12 + 0x44
PROBE_LENGTH = 32


@attrs.frozen
class ShareFile:
    """A share on a storage server's disk."""

    server: int
    """Index in LocalGrid.storage."""
    storage_index: str
    """In Tahoe's base32."""
    number: int
    path: Path
    bytes_on_disk: int
    """Disk blocks really occupied: an over-allocated share is sparse and its file size says nothing."""

    def holds_blocks(self) -> bool:
        """Whether data have been written to it; a share that was only allocated has a container header and a lease."""
        try:
            with self.path.open("rb") as f:
                f.seek(PROBE_OFFSET)
                return any(f.read(PROBE_LENGTH))
        except FileNotFoundError:
            return False  # finished or aborted this very moment


@attrs.frozen
class _Start:
    """A node to be started, as soon as the file `after` is complete."""

    node: NodeProcess
    write_directory: Callable[[], None]
    after: Path | None


class LocalGrid:
    """A grid in `basedir`, which must not exist or be empty; `start` makes it, and `stop` leaves it behind."""

    def __init__(self, basedir: Path, options: GridOptions) -> None:
        self.basedir = basedir
        self.options = options
        self.introducer = self._node("introducer")
        self.storage = tuple(self._node(f"storage-{i}") for i in range(options.storage_nodes))
        self.client = self._node("client")
        self.further_clients: list[NodeProcess] = []
        self._helper = self._node("helper", STREAMING_HELPER_RUN if options.helper == "streaming" else STOCK_RUN)
        self._ports = PortReservations()

    @property
    def helper(self) -> NodeProcess:
        """The helper node. NodeError if the grid has none."""
        if self.options.helper is None:
            raise NodeError("this grid was built without a helper")
        return self._helper

    @property
    def nodes(self) -> tuple[NodeProcess, ...]:
        """All nodes."""
        helpers = () if self.options.helper is None else (self._helper,)
        return (self.introducer, *helpers, *self.storage, self.client, *self.further_clients)

    @property
    def introducer_furl(self) -> str:
        """What nodes need in their private/introducers.yaml."""
        return (self.introducer.directory / "private" / "introducer.furl").read_text().strip()

    @property
    def helper_furl(self) -> str:
        """What stands in the helper's private/helper.furl."""
        return (self.helper.directory / "private" / "helper.furl").read_text().strip()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, on_up: Callable[[NodeProcess], None] | None = None) -> None:
        """Start everything; on return helper and client are connected to all storage nodes.

        `on_up` is told each node that has come up. If starting fails, or anything is raised meanwhile, all that
        was started is stopped first. NodeError tells which node failed, with the tail of its log.
        """
        if self.basedir.exists() and any(self.basedir.iterdir()):
            raise NodeError(f"{self.basedir} is not empty: a grid starts in a new directory")
        try:
            deadline = time.monotonic() + START_TIMEOUT
            self._start_in_order(list(self._starts()), deadline, on_up)
            watchers = [self.client] if self.options.helper is None else [self._helper, self.client]
            for node in watchers:
                self._wait_connected(node, self._all_storage_nodes, deadline - time.monotonic())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process, reap it, give the ports back. May be repeated, and called at any time."""
        try:
            for node in self.nodes:
                node.terminate()
            for node in self.nodes:
                node.wait_end()
        finally:
            for node in self.nodes:
                node.kill()
            self._ports.release()

    def add_client(
        self, name: str, helper_furl: str | None = None, force_foolscap: bool | None = None
    ) -> NodeProcess:
        """A further client node, started and connected. By default with the grid's helper (`helper_furl=""`: with
        none), and with the grid's client_force_foolscap."""
        node = self._node(name)
        self._write_client(node, helper_furl, force_foolscap)
        self.further_clients.append(node)
        node.start()
        node.wait_ready()
        self.wait_connected(node)
        return node

    def add_helper(self, name: str, *, stock: bool, force_foolscap: bool = False) -> NodeProcess:
        """A further helper node, started and connected; `stop` ends it with the further clients."""
        node = self._node(name, STOCK_RUN if stock else STREAMING_HELPER_RUN)
        config = helper_config(self.options, self._ports.reserve(), force_foolscap)
        write_client(node.directory, config, self.introducer_furl)
        self.further_clients.append(node)
        node.start()
        node.wait_ready()
        self.wait_connected(node)
        return node

    def add_gateway(self, client: NodeProcess) -> NodeProcess:
        """A gateway beside a client node, which need not run for uploads; started. `stop` ends it with the further
        clients."""
        directory = client.directory / "streaming"
        directory.mkdir(exist_ok=True)
        gateway = NodeProcess("gateway", directory, (*GATEWAY_RUN, "-d", str(client.directory)))
        self.further_clients.append(gateway)
        gateway.start()
        gateway.wait_ready()
        return gateway

    def wait_connected(self, node: NodeProcess, servers: int | None = None, timeout: float = 60.0) -> None:
        """Return when `node` (helper or client) is connected to at least `servers` storage servers (default:
        those that run) and, if it has a helper.furl, to its helper; NodeError after `timeout` seconds.

        A server that was killed counts as connected until `node` notices: a second over HTTP.
        """
        running = sum(storage.running for storage in self.storage)
        self._wait_connected(node, lambda: running if servers is None else servers, timeout)

    def _all_storage_nodes(self) -> int:
        for node in self.nodes:
            node.is_up()  # NodeError if it has ended
        return len(self.storage)

    def _wait_connected(self, node: NodeProcess, wanted: Callable[[], int], timeout: float) -> None:
        seen = "nothing yet"

        def connected() -> Literal[True] | None:
            nonlocal seen
            servers = wanted()
            try:
                have, helper_missing = _connections(node) if node.is_up() else (0, False)
            except (OSError, HTTPException) as e:
                seen = f"no answer from the node's web port ({e})"
                return None
            seen = f"{have} of {servers} storage servers{' and not the helper' if helper_missing else ''}"
            return True if have >= servers and not helper_missing else None

        def describe() -> str:
            return f"node {node.name} is connected to {seen}{node.log_tail()}"

        poll_until(connected, timeout, describe, interval=0.05)

    def shares(self, storage_index: str | None = None) -> list[ShareFile]:
        """The finished shares on all servers' disks, or those of one storage index (base32), in no order."""
        return self._scan("shares", storage_index)

    def incoming_shares(self, storage_index: str | None = None) -> list[ShareFile]:
        """The shares that are being written on stock servers."""
        return self._scan("shares/incoming", storage_index)

    def staged_shares(self) -> list[ShareFile]:
        """The shares that are being written on staging servers; they have a staging name for a storage index."""
        return self._scan("staging", None)

    def unfinished_shares(self) -> list[ShareFile]:
        """The shares that are being written on any server."""
        return [*self.incoming_shares(), *self.staged_shares()]

    def _scan(self, folder: str, storage_index: str | None) -> list[ShareFile]:
        below = "" if storage_index is None else f"{storage_index[:2]}/{storage_index}"
        return [
            share
            for server, node in enumerate(self.storage)
            for share in _shares_below(server, node.directory / "storage" / folder / below)
        ]

    def _node(self, name: str, command: Sequence[str] = STOCK_RUN) -> NodeProcess:
        directory = self.basedir / name
        return NodeProcess(name, directory, (*command, str(directory)))

    def _starts(self) -> Iterator[_Start]:
        """What to start, what others wait for first."""
        introducer_furl = self.introducer.directory / "private" / "introducer.furl"
        yield _Start(self.introducer, self._write_introducer, None)
        client_needs = introducer_furl
        if self.options.helper is not None:
            yield _Start(self._helper, self._write_helper, introducer_furl)
            client_needs = self._helper.directory / "private" / "helper.furl"
        for index, node in enumerate(self.storage):
            yield _Start(node, partial(self._write_storage, index), introducer_furl)
        yield _Start(self.client, partial(self._write_client, self.client), client_needs)

    def _start_in_order(
        self, waiting: list[_Start], deadline: float, on_up: Callable[[NodeProcess], None] | None
    ) -> None:
        starting: list[NodeProcess] = []

        def step() -> Literal[True] | None:
            for node in [node for node in starting if node.is_up()]:
                starting.remove(node)
                if on_up is not None:
                    on_up(node)
            for start in [start for start in waiting if _is_complete(start.after)]:
                waiting.remove(start)
                start.write_directory()
                start.node.start()
                starting.append(start.node)
            return None if starting or waiting else True

        def describe() -> str:
            late = (starting or [start.node for start in waiting])[0]
            return f"node {late.name} did not start{late.log_tail()}"

        poll_until(step, deadline - time.monotonic(), describe, POLL_INTERVAL)

    def _write_introducer(self) -> None:
        write_introducer(self.introducer.directory, introducer_config(self._ports.reserve()))

    def _write_helper(self) -> None:
        config = helper_config(self.options, self._ports.reserve())
        write_client(self._helper.directory, config, self.introducer_furl)
        if self.options.helper_settings is not None:
            (self._helper.directory / "streaming.cfg").write_text(self.options.helper_settings, encoding="utf-8")

    def _write_storage(self, index: int) -> None:
        config = storage_config(self.options, index, self._ports.reserve())
        write_client(self.storage[index].directory, config, self.introducer_furl)

    def _write_client(
        self, node: NodeProcess, helper_furl: str | None = None, force_foolscap: bool | None = None
    ) -> None:
        if helper_furl is None:
            helper_furl = "" if self.options.helper is None else self.helper_furl
        if force_foolscap is None:
            force_foolscap = self.options.client_force_foolscap
        config = client_config(self.options, node.name, helper_furl, force_foolscap)
        write_client(node.directory, config, self.introducer_furl)


def _is_complete(furl_file: Path | None) -> bool:
    """Whether a furl can be read; Foolscap writes the line in place, its end last."""
    if furl_file is None:
        return True
    try:
        return furl_file.read_text().endswith("\n")
    except FileNotFoundError:
        return False


def _connections(node: NodeProcess) -> tuple[int, bool]:
    """How many storage servers a node is connected to; whether it lacks the helper of its helper.furl."""
    known = node.read_json("?t=json")["servers"]
    have = sum(str(server["connection_status"]).lower().startswith("connected") for server in known)
    # Only the welcome page tells about the helper.
    return have, b"Helper not connected" in http_get(node.web_url)


def _shares_below(server: int, folder: Path) -> Iterator[ShareFile]:
    """Shares come and go while we look, and so do their directories: os.walk does not mind, Path.glob does."""
    for directory, subdirectories, names in os.walk(folder):
        if "incoming" in subdirectories:  # it lies in shares/
            subdirectories.remove("incoming")
        for name in filter(str.isdigit, names):
            path = Path(directory, name)
            try:
                occupied = path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
            yield ShareFile(server, path.parent.name, int(name), path, occupied)
