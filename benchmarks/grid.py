"""The grid that is measured: stock introducer and storage nodes; a stock helper with a stock client, over HTTP storage
(the default) and over Foolscap; our helper, whose client is `tahoe-stream put`, or our gateway."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
from allmydata import uri
from allmydata.util import base32

from benchmarks.processes import cpu_seconds, forget_peak, memory, peak_memory
from benchmarks.uploads import MiB, Uploaded, What, put, web_put
from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid
from client_shim.local_node import NodeProcess, poll_until
from helper.staging_interfaces import PLUGIN_NAME

GRID = GridOptions(storage_nodes=10, k=3, happy=7, n=10, staging_nodes=10)
SHARES_TIMEOUT = 300.0  # seconds from the cap until every share is there
LOOK_INTERVAL = 0.005  # seconds
PLUGIN_LINE = f"plugins = {PLUGIN_NAME}"


@attrs.frozen(eq=False)
class Subject:
    """Who uploads. `nodes` are those that run only while this one is measured; `client` is a stock client node, or a
    gateway; `connects` are those of them of which their web pages tell to whom they are connected."""

    name: str
    helper: NodeProcess
    client: NodeProcess | None
    upload: Callable[[What], Uploaded]
    client_connects: bool = True

    @property
    def nodes(self) -> list[NodeProcess]:
        return [self.helper] if self.client is None else [self.helper, self.client]

    @property
    def connects(self) -> list[NodeProcess]:
        return self.nodes if self.client_connects else [self.helper]


@attrs.frozen
class Result:
    """What one upload took. Seconds from the first byte accepted; MiB; seconds of processor time."""

    size: int
    to_last_byte: float
    to_cap: float
    to_all_shares: float
    close: float
    """From the last byte to the cap."""
    helper_cpu: float
    storage_cpu: float
    client_cpu: float
    client_start_cpu: float
    helper_peak: float
    """Above what it had before."""
    client_peak: float

    @property
    def rate(self) -> float:
        """MB/s, until every share was closed."""
        return self.size / 1e6 / self.to_all_shares

    def per_gib(self, cpu: float) -> float:
        return cpu * 1024 * MiB / self.size


class BenchGrid:
    """Started by `start`; nodes of subjects are suspended unless they are measured."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._grid = LocalGrid(directory, GRID)
        self._say = say
        self.ours: Subject
        self.gateway: Subject
        self.stock: Subject
        self.stock_foolscap: Subject
        self._running: Subject | None = None

    @property
    def storage(self) -> Sequence[NodeProcess]:
        return self._grid.storage

    def start(self) -> None:
        """Raises NodeError."""
        self._say("starting the grid")
        grid = self._grid
        grid.start()
        grid.client.stop()  # a node with our helper's furl: `put` needs its directory only
        directory = grid.client.directory
        self.ours = Subject("ours", grid.helper, None, lambda what: put(directory, what))
        gateway = grid.add_gateway(grid.client)
        self.gateway = Subject(
            "ours, gateway", grid.helper, gateway, lambda what: web_put(gateway, what, chunked=True), False)
        for node in self.gateway.nodes:
            node.suspend()
        self.stock = self._stock("stock", False)
        self.stock_foolscap = self._stock("stock, force_foolscap", True)

    def stop(self) -> None:
        """End every process; may be called at any time."""
        self._grid.stop()

    @property
    def client_directory(self) -> Path:
        """What `put -d` takes."""
        return self._grid.client.directory

    def _stock(self, name: str, force_foolscap: bool) -> Subject:
        prefix = "foolscap" if force_foolscap else "http"
        helper = self._grid.add_helper(f"{prefix}-helper", stock=True, force_foolscap=force_foolscap)
        furl = (helper.directory / "private" / "helper.furl").read_text().strip()
        client = self._grid.add_client(f"{prefix}-client", furl, force_foolscap)
        for node in (client, helper):
            node.suspend()
        return Subject(name, helper, client, lambda what: web_put(client, what))

    @contextmanager
    def only(self, subject: Subject) -> Iterator[None]:
        """In the block its nodes run, connected, and those of no other subject do."""
        if self._running is not subject:
            self._suspend()
            for node in subject.nodes:
                node.resume()
            self._running = subject
        for node in subject.connects:
            self._grid.wait_connected(node)
        yield

    def _suspend(self) -> None:
        if self._running is not None:
            for node in reversed(self._running.nodes):
                node.suspend()
            self._running = None

    def measure(self, subject: Subject, what: What) -> Result:
        """One upload, measured; its shares are removed afterwards."""
        with self.only(subject):
            helper, client = subject.helper.pid, subject.client
            before = memory(helper)
            forget_peak(helper)
            if client is not None:
                forget_peak(client.pid)
            storage = [node.pid for node in self.storage]
            cpu = cpu_seconds([helper]), cpu_seconds(storage), cpu_seconds([client.pid] if client else [])
            done = subject.upload(what)
            all_shares = self.wait_for_shares(done.cap)
            after = cpu_seconds([helper]), cpu_seconds(storage), cpu_seconds([client.pid] if client else [])
            result = Result(
                what.size, done.last_byte - done.first_byte, done.cap_at - done.first_byte,
                all_shares - done.first_byte, done.cap_at - done.last_byte, after[0] - cpu[0], after[1] - cpu[1],
                after[2] - cpu[2] if done.cpu is None else done.cpu, done.start_cpu or 0.0,
                max(0.0, peak_memory(helper) - before),
                peak_memory(client.pid) if client is not None else done.peak_memory or 0.0)
        self.remove_shares(done.cap)
        self._say(f"  {subject.name}: {what.size // MiB} MiB, {result.rate:.1f} MB/s, close {result.close:.3f} s; "
                  f"s/GiB: helper {result.per_gib(result.helper_cpu):.1f}, storage "
                  f"{result.per_gib(result.storage_cpu):.1f}, client {result.per_gib(result.client_cpu):.1f}")
        return result

    def upload_once(self, what: What) -> tuple[Uploaded, float]:
        """One upload of ours, not measured by us; and when every share was closed. Shares are removed."""
        with self.only(self.ours):
            done = self.ours.upload(what)
            all_shares = self.wait_for_shares(done.cap)
        self.remove_shares(done.cap)
        return done, all_shares

    def wait_for_shares(self, cap: str) -> float:
        """Until every share of the file is closed; when that was (or was seen). NodeError if it takes too long."""
        index = storage_index(cap)

        def all_there() -> bool | None:
            return True if len({share.number for share in self._grid.shares(index)}) == GRID.n else None

        poll_until(all_there, SHARES_TIMEOUT, lambda: "not every share was closed", LOOK_INTERVAL)
        return time.monotonic()

    def remove_shares(self, cap: str) -> None:
        """The disks of the machine are not what is measured."""
        index = storage_index(cap)
        for node in self.storage:
            shutil.rmtree(node.directory / "storage" / "shares" / index[:2] / index, ignore_errors=True)

    def holds_blocks(self) -> bool:
        """Whether any server has a block of an upload that is under way."""
        return any(share.holds_blocks() for share in self._grid.unfinished_shares())

    # -- other configurations ------------------------------------------------------------------------------------

    @contextmanager
    def without_plugin(self) -> Iterator[None]:
        """In the block storage nodes are stock ones."""
        self._say("restarting storage nodes without the plugin")
        self._restart(self.storage, lambda text: text.replace(PLUGIN_LINE + "\n", "")
                      .replace(PLUGIN_LINE, ""))
        try:
            yield
        finally:
            self._say("restarting storage nodes with the plugin")
            self._restart(self.storage, lambda text: text.replace(
                "[storage]\n", f"[storage]\n{PLUGIN_LINE}\n"))

    @contextmanager
    def reached_through(self, node: NodeProcess, port: int, listens: int) -> Iterator[None]:
        """In the block a storage node listens at another port of this machine, and says that it is reached at `port`:
        where it listened before there is nobody, so that nobody gets there round whatever listens at `port`."""
        text = (node.directory / "tahoe.cfg").read_text()
        changed = {"tub.location": f"tcp:127.0.0.1:{port}", "tub.port": f"tcp:{listens}:interface=127.0.0.1"}
        lines = [f"{key} = {changed[key]}" if (key := line.split(" ")[0]) in changed else line
                 for line in text.splitlines()]
        self._restart([node], lambda _text: "\n".join(lines) + "\n")
        try:
            yield
        finally:
            self._restart([node], lambda _text: text)

    @contextmanager
    def run_by(self, nodes: Sequence[NodeProcess], prefix: Sequence[str]) -> Iterator[None]:
        """In the block nodes run under another program, such as strace."""
        commands = [node.command for node in nodes]
        try:
            for node, command in zip(nodes, commands, strict=True):
                node.command = (*prefix, *command)
            self._restart(nodes)
            yield
        finally:
            for node, command in zip(nodes, commands, strict=True):
                node.command = command
            self._restart(nodes)

    def _restart(self, nodes: Sequence[NodeProcess], change: Callable[[str], str] | None = None) -> None:
        self._suspend()
        for node in nodes:
            node.stop()
            if change is not None:
                path = node.directory / "tahoe.cfg"
                path.write_text(change(path.read_text()))
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait_ready(timeout=120)
        with self.only(self.ours):
            pass


def storage_index(cap: str) -> str:
    """Of a URI:CHK cap, in base32, as directories of shares are named."""
    return str(base32.b2a(uri.from_string(cap.encode("ascii")).get_storage_index()), "ascii")
