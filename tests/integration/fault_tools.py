"""What the tests of kills and faults share: strace, and uploads that write down what was acknowledged and go on
whatever becomes of the helper."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
from foolscap.api import Tub
from grid_tools import wait_for
from reactor_loop import reactor
from single_calls import File
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from client_shim.client import StreamingClient
from client_shim.errors import HelperLost, HelperUnreachable, UploadError
from client_shim.helper_edge import HelperLink, connect
from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid
from client_shim.local_node import NodeError, NodeProcess
from client_shim.node_config import NodeConfig
from client_shim.reconnect import means_away
from client_shim.upload import Progress, StreamingUpload

KiB = 1024
MiB = 1024 * KiB

#: Four staging servers and a stock one.
FAULT_GRID = GridOptions(storage_nodes=5, staging_nodes=4, k=2, happy=3, n=5)

_grid: pytest.StashKey[LocalGrid] = pytest.StashKey()


def fault_grid(config: pytest.Config, directories: pytest.TempPathFactory) -> LocalGrid:
    """The grid whose nodes are killed and made to fail; started by the first test that wants it."""
    if _grid not in config.stash:
        grid = LocalGrid(directories.mktemp("fault-grid"), FAULT_GRID)
        config.add_cleanup(grid.stop)
        grid.start()
        config.stash[_grid] = grid
    return config.stash[_grid]


def restore(grid: LocalGrid) -> None:
    """Let every node run again, connected, whatever was done to it."""
    for node in grid.nodes:
        node.resume()
        if not node.running:
            node.kill()  # reaps it
            node.start()
    for node in grid.nodes:
        node.wait_ready()
    for node in (grid.helper, grid.client):
        try:
            grid.wait_connected(node, timeout=20)
        except NodeError:  # a stock client looks for a helper that was away for long only now and then
            node.restart()
            grid.wait_connected(node)


# -- strace ------------------------------------------------------------------------------------------------

#: Names of system calls that say the same, on this kind of machine and others.
CALLS = {"pwritev": "/^pwritev2?$", "link": "/^link(at)?$", "unlink": "/^unlink(at)?$", "rename": "/^rename(at2?)?$",
         "mkdir": "/^mkdir(at)?$"}


@functools.cache
def _why_no_strace() -> str | None:
    if shutil.which("strace") is None:
        return "needs strace: apt-get install strace"
    with subprocess.Popen(["sleep", "60"]) as tried:
        command = ["strace", "-qq", "-o", "/dev/null", "-p", str(tried.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            try:
                while strace.poll() is None and not _traced(tried.pid):
                    pass
                if strace.poll() is not None:
                    assert strace.stderr is not None
                    return f"strace cannot trace processes here (ptrace): {strace.stderr.read().strip()}"
            finally:
                strace.terminate()
                tried.kill()
    return None


def need_strace() -> None:
    """Skip the test, and say why, where there is no strace or it may not trace."""
    reason = _why_no_strace()
    if reason is not None:
        pytest.skip(reason)


def _traced(pid: int) -> bool:
    """Whether every thread of a process has a tracer."""
    threads = []
    with suppress(OSError):  # threads end
        threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return bool(threads) and not any("\nTracerPid:\t0\n" in thread for thread in threads)


def inject(call: str, fault: str) -> list[str]:
    """Options of strace that do `fault` (see its manual) to a system call."""
    calls = CALLS.get(call, call)
    return ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]


@contextmanager
def injected(node: NodeProcess, call: str, fault: str, path: Path | None = None) -> Iterator[Path]:
    """A running node whose system calls (on `path` only, if given) have a fault. What is yielded is strace's output.

    strace counts the calls of each thread by itself.
    """
    output = node.directory / "strace.out"
    only = [] if path is None else ["-P", str(path)]
    command = ["strace", "-f", "-qq", "-o", str(output), *inject(call, fault), *only, "-p", str(node.pid)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as strace:
        try:
            wait_for("strace", lambda: _traced(node.pid) or strace.poll() is not None)
            if strace.poll() is not None and node.running:
                assert strace.stderr is not None
                raise AssertionError(f"strace has ended: {strace.stderr.read()}")
            yield output
        finally:
            strace.terminate()


@contextmanager
def runs_under_strace(node: NodeProcess, options: Sequence[str]) -> Iterator[None]:
    """Whenever the node is started in the block it is under strace, from its first system call on.

    Its process is strace's then; it ends as the node does, and takes the node with it when it is killed.
    """
    command = node.command
    output = str(node.directory / "strace.out")
    node.command = ("strace", "-f", "-qq", "--seccomp-bpf", "-o", output, *options, *command)
    try:
        yield
    finally:
        node.command = command


# -- uploads that outlive what is done to the helper ---------------------------------------------------------


class Recorded:
    """An upload in progress, in the reactor's thread: what was acknowledged of it, and where it waits.

    At `gate` (bytes) it stops sending, once everything before is acknowledged, until `open_gate`. `on_event` is
    told of each acknowledgement, when the file is complete, and when the cap is known.
    """

    def __init__(self, file: File, gate: int | None, on_event: Callable[[], None]) -> None:
        self.file = file
        self.acknowledged = 0
        self.completing = False
        self.cap = ""
        self.at_gate = False
        self._gate = gate
        self._wait: Deferred[None] = Deferred()
        self._on_event = on_event
        self._outcome: list[Any] = []
        self._running: Deferred[None] | None = None

    def begin(self) -> None:
        """Upload the file."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addBoth(self._outcome.append)

    def give_up(self) -> None:
        """Nobody wants to know any more; no-op when it is over."""
        if self._running is not None:
            self._running.cancel()

    @property
    def over(self) -> bool:
        """Whether there is a cap. Raises why there will be none."""
        for outcome in self._outcome:
            if isinstance(outcome, Failure):
                outcome.raiseException()
        return bool(self._outcome)

    def __str__(self) -> str:
        return (f"{type(self).__name__} of {len(self.file.plaintext)} bytes: {self.acknowledged} acknowledged"
                f"{', complete' * self.completing}{', has a cap' * bool(self.cap)}{', at its gate' * self.at_gate}")

    async def _run(self) -> None:
        raise NotImplementedError

    def open_gate(self) -> None:
        """Go on to the end."""
        self._gate = None
        self._wait.callback(None)

    def _until(self, start: int, length: int) -> int:
        """Where a piece that begins at `start` ends; `start` if that is at the gate."""
        end = min(start + length, len(self.file.plaintext))
        return end if self._gate is None else min(end, max(start, self._gate))

    async def _gate_passed(self) -> None:
        self.at_gate = True
        await self._wait

    def _heard(self, durable: int) -> None:
        """The helper says, now, that so much is durable."""
        if durable < self.acknowledged:
            raise AssertionError(f"{self.acknowledged} bytes were acknowledged, and {durable} are left")
        self.acknowledged = durable
        self._on_event()

    def _complete(self) -> None:
        self.completing = True
        self._on_event()

    def _has_cap(self, cap: str) -> None:
        self.cap = cap
        self._on_event()


class CallByCall(Recorded):
    """By the calls of protocol.txt §4, a few in flight. When the helper is lost it is asked for `status`, and what it
    says is compared with what was acknowledged."""

    IN_FLIGHT = 4

    def __init__(self, tub: Tub, furl: str, file: File, rng: random.Random, gate: int | None = None,
                 on_event: Callable[[], None] = lambda: None) -> None:
        super().__init__(file, gate, on_event)
        self.upload_id = os.urandom(32)
        self._tub = tub
        self._furl = furl
        self._rng = rng
        self._opened = False

    async def _run(self) -> None:
        while True:
            try:
                await self._go_on(await connect(self._tub, self._furl))
                return
            except UploadError as error:
                if not means_away(error):
                    raise
            await deferLater(reactor, 0.1)

    async def _go_on(self, link: HelperLink) -> None:
        if not self._opened:
            answer = await link.open(self.upload_id, self.file.parameters.to_wire())
            self._opened = True
        else:
            answer = await link.status(self.upload_id)
            assert not answer.text("reason"), answer.text("reason")
        if answer.text("state") not in ("publishing", "finished"):  # then all of it was durable
            self._heard(answer.number("durable"))
            if answer.number("storage-index-needed"):
                await link.assign(self.upload_id, self.file.storage_index)
            await self._send(link, answer.number("durable"))
        self._complete()
        await self._finish(link)

    async def _send(self, link: HelperLink, offset: int) -> None:
        in_flight: deque[Deferred[None]] = deque()
        try:
            while offset < len(self.file.plaintext):
                end = self._until(offset, self._rng.randint(1, 256 * KiB))
                if end == offset:
                    while in_flight:
                        await in_flight.popleft()
                    await self._gate_passed()
                    continue
                in_flight.append(Deferred.fromCoroutine(self._put(link, offset, end)))
                offset = end
                if len(in_flight) == self.IN_FLIGHT:
                    await in_flight.popleft()
            while in_flight:
                await in_flight.popleft()
        finally:
            for call in in_flight:
                call.addErrback(lambda _failure: None)

    async def _put(self, link: HelperLink, offset: int, end: int) -> None:
        answer = await link.put_ciphertext(self.upload_id, offset, self.file.ciphertext[offset:end])
        assert answer.number("durable") >= end
        self._heard(max(self.acknowledged, answer.number("durable")))  # answers may overtake each other

    async def _finish(self, link: HelperLink) -> None:
        while (answer := await link.finish(self.upload_id, *self.file.finish_arguments)).code == "waiting":
            await deferLater(reactor, 0.5)
        self._has_cap(self.file.cap_from(answer))


class ByClient(Recorded):
    """By the Python client, which compares what is left with what was acknowledged by itself."""

    def __init__(self, config: NodeConfig, file: File, rng: random.Random, gate: int | None = None,
                 on_event: Callable[[], None] = lambda: None) -> None:
        super().__init__(file, gate, on_event)
        p = file.parameters
        self._client = StreamingClient(attrs.evolve(config, parameters=attrs.evolve(p, size=None)))
        self._rng = rng

    async def _run(self) -> None:
        upload, offset = self._new(), 0
        try:
            while offset < len(self.file.plaintext):
                end = self._until(offset, self._rng.randint(100, 512 * KiB))
                if end == offset:
                    await self._gate_passed()
                    continue
                try:
                    await upload.write(self.file.plaintext[offset:end])
                except (HelperUnreachable, HelperLost):
                    if offset > 0:
                        raise
                    # It was just killed: at the beginning that is an error, and the program's turn.
                    upload = self._new()
                    await deferLater(reactor, 0.1)
                    continue
                offset = end
            self._complete()
            self._has_cap((await upload.close()).decode())
        finally:
            await self._client.stop()

    def _new(self) -> StreamingUpload:
        return self._client.upload(size=self.file.parameters.size, key=self.file.key, patience=120,
                                   on_progress=self._progress)

    def _progress(self, progress: Progress) -> None:
        self._heard(progress.durable)
