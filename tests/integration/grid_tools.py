"""What the integration tests share: one grid, more helpers and clients on it, command lines, the web API.

A grid costs ten seconds, so one serves all tests that do not need another. Tests run one after the other; each
puts back what it broke (`ServerStopped` and the like do), and looks only at the shares of its own upload.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote, urlsplit

import attrs
import pytest
from allmydata import uri
from allmydata.util import base32
from oracle import Encoded, encode

from client_shim.local_config import GridOptions, client_config, helper_config, write_client
from client_shim.local_grid import STOCK_RUN, STREAMING_HELPER_RUN, LocalGrid, ShareFile
from client_shim.local_node import NodeProcess, poll_until
from client_shim.local_ports import PortReservations

T = TypeVar("T")

MiB = 1024 * 1024

#: The shared grid. Five servers, one of which may be lacking.
SERVERS, K, HAPPY, N = 5, 3, 4, 5
OPTIONS = GridOptions(storage_nodes=SERVERS, k=K, happy=HAPPY, n=N)
MAX_SEGMENT = 1024 * 1024
SEGMENT = 1_048_578  # MAX_SEGMENT rounded up to a multiple of K

#: Before and after the share on a stock server's disk.
CONTAINER_HEADER, LEASE = 12, 72
#: Where blocks begin in a share of layout v2.
BLOCKS_OFFSET = 0x44

#: Seconds within which a thing must happen that takes a moment on an idle machine.
PATIENCE = 60.0

#: A helper.furl that nobody listens at.
DEAD_FURL = "pb://uz5jfvkqwyjiyvg7r2gmwxpsktyudkkg@tcp:127.0.0.1:1/7kkbcsbq6plfynvcj4jzyj2xxxxxxxxx"

TAHOE = (sys.executable, "-m", "allmydata")
TAHOE_STREAM = (sys.executable, "-m", "client_shim.cli")


@attrs.frozen
class SharedGrid:
    """A running grid with our helper, and two stock clients."""

    grid: LocalGrid
    plain_client: NodeProcess
    """Without a helper; uses storage over Foolscap, while grid.client has our helper and uses storage over HTTP."""

    @property
    def readers(self) -> tuple[NodeProcess, NodeProcess]:
        """Stock clients that read over HTTP and over Foolscap."""
        return self.grid.client, self.plain_client


_running: pytest.StashKey[dict[str, SharedGrid]] = pytest.StashKey()


def shared_grid(config: pytest.Config, directories: pytest.TempPathFactory) -> SharedGrid:
    """The grid of stock servers of this test run."""
    return running_grid(config, directories, "shared-grid", OPTIONS)


def running_grid(config: pytest.Config, directories: pytest.TempPathFactory, name: str,
                 options: GridOptions) -> SharedGrid:
    """A grid of this test run; started by the first test that wants it, stopped after the last test."""
    running = config.stash.setdefault(_running, {})
    if name not in running:
        grid = LocalGrid(directories.mktemp(name), options)
        config.add_cleanup(grid.stop)
        grid.start()
        plain = grid.add_client("plain-client", helper_furl="", force_foolscap=True)
        running[name] = SharedGrid(grid, plain)
    for node in running[name].grid.nodes:
        node.is_up()  # NodeError, at once and with its log, if it has ended
    return running[name]


@contextmanager
def further_helper(grid: LocalGrid, name: str, *, settings: str | None = None, stock: bool = False,
                   start: bool = True) -> Iterator[NodeProcess]:
    """Another helper on a grid's storage servers, ours or stock; with `start` up and connected to them."""
    ports = PortReservations()
    directory = grid.basedir / name
    node = NodeProcess(name, directory, (*(STOCK_RUN if stock else STREAMING_HELPER_RUN), str(directory)))
    write_client(directory, helper_config(grid.options, ports.reserve()), grid.introducer_furl)
    if settings is not None:
        (directory / "streaming.cfg").write_text(settings)
    try:
        if start:
            node.start()
            node.wait_ready()
            grid.wait_connected(node)
        yield node
    finally:
        node.stop()
        ports.release()


@contextmanager
def servers_restored(shared: SharedGrid, *servers: NodeProcess) -> Iterator[None]:
    """Storage nodes that are killed or suspended in the block run again after it, and everybody is connected."""
    try:
        yield
    finally:
        for server in servers:
            server.resume()
            if not server.running:
                server.kill()
                server.start()
        for server in servers:
            server.wait_ready()
        for node in (shared.grid.helper, *shared.readers):
            shared.grid.wait_connected(node, len(shared.grid.storage))


def helper_furl(node: NodeProcess) -> str:
    """What clients of a helper have in their tahoe.cfg."""
    return (node.directory / "private" / "helper.furl").read_text().strip()


def client_directory(path: Path, furl: str, *, k: int = K, happy: int = HAPPY, n: int = N,
                     max_segment: int | None = None) -> Path:
    """A directory that `tahoe-stream put -d` accepts; no node runs in it."""
    path.mkdir()
    options = GridOptions(k=k, happy=happy, n=n, max_segment_size=max_segment)
    lines = client_config(options, "client", furl, force_foolscap=False)
    (path / "tahoe.cfg").write_text("\n".join(lines) + "\n")
    return path


def convergence_secret(node: NodeProcess) -> bytes:
    """That of a node."""
    secret: bytes = base32.a2b((node.directory / "private" / "convergence").read_bytes().strip())
    return secret


def give_convergence_secret(directory: Path, secret: bytes) -> None:
    """Let a client directory have a convergence secret."""
    (directory / "private").mkdir(exist_ok=True)
    (directory / "private" / "convergence").write_bytes(base32.b2a(secret) + b"\n")


# -- the command line --------------------------------------------------------------------------------------


@attrs.frozen
class Transcript:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def cap(self) -> str:
        """The cap it printed, which must be all that it printed."""
        assert self.status == 0, self.err
        assert self.out.startswith("URI:")
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1, "the cap alone on standard output"
        return self.out.strip()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of `--json`; every line must be one."""
        lines = [json.loads(line) for line in self.err.splitlines()]
        assert all(isinstance(line["event"], str) for line in lines)
        return lines

    def failed_with(self, *codes: str) -> dict[str, Any]:
        """Check a failure told with `--json`: no cap, exit status 1, one of `codes`. Returns the last line."""
        assert self.out == ""
        assert self.status == 1, self.err
        last = self.events[-1]
        assert last["event"] == "failed", last
        assert last["code"] in codes, last
        assert last["text"]
        return last


def start_put(directory: Path, *arguments: str | Path, stdin: int | None = subprocess.PIPE,
              stderr: int | IO[bytes] = subprocess.PIPE,
              environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """`tahoe-stream put -d directory ...`, with pipes."""
    command = [*TAHOE_STREAM, "put", "-d", str(directory), *map(str, arguments)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr,
                            env=None if environment is None else {**os.environ, **environment})


def end_of(process: subprocess.Popen[bytes], rest: bytes | None = None, timeout: float = PATIENCE) -> Transcript:
    """Write `rest` to its standard input and close that; wait until the process ends. What it tells is its standard
    error, if that is a pipe."""
    try:
        out, err = process.communicate(rest, timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout} s; standard error: {(err or b'').decode()}") from None
    return Transcript(process.returncode, out.decode(), (err or b"").decode())


def put(directory: Path, *arguments: str | Path, stdin: bytes = b"", timeout: float = PATIENCE,
        environment: Mapping[str, str] | None = None) -> Transcript:
    """`tahoe-stream put -d directory ...`, from beginning to end."""
    return end_of(start_put(directory, *arguments, environment=environment), stdin, timeout)


@contextmanager
def put_in_progress(directory: Path, *arguments: str | Path,
                    stderr: int | IO[bytes] = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """A `put` that is killed, if it still runs, when the block is left."""
    process = start_put(directory, *arguments, stderr=stderr)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def feed(process: subprocess.Popen[bytes], data: bytes, timeout: float = PATIENCE) -> None:
    """Write to a process's standard input and leave it open. AssertionError if it does not take all of it in time:
    the process is killed then, for what it wrote to its standard error."""
    assert process.stdin is not None
    stdin, left, deadline = process.stdin.fileno(), memoryview(data), time.monotonic() + timeout
    os.set_blocking(stdin, False)
    try:
        while left:
            if select.select([], [stdin], [], max(0.0, deadline - time.monotonic()))[1]:
                left = left[os.write(stdin, left):]
            elif time.monotonic() >= deadline:
                process.kill()
                _out, err = process.communicate()
                told = (err or b"").decode()
                raise AssertionError(f"{len(left)} bytes not taken after {timeout} s; standard error: {told}")
    finally:
        if not process.stdin.closed:
            os.set_blocking(stdin, True)


# -- a stock client's web API ------------------------------------------------------------------------------


def request(node: NodeProcess, method: str, path: str, body: bytes | None = None,
            headers: Mapping[str, str] | None = None) -> bytes:
    """The body of the answer, which must be a good one."""
    status, content = answer_of(node, method, path, body, headers)
    assert status in (200, 201, 206), (status, content)
    return content


def answer_of(node: NodeProcess, method: str, path: str, body: bytes | None = None,
              headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of the answer, good or bad."""
    parts = urlsplit(node.web_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def download(node: NodeProcess, cap: str, start: int | None = None, end: int | None = None) -> bytes:
    """The file of a cap, or its bytes from `start` to `end`."""
    headers = {} if start is None or end is None else {"Range": f"bytes={start}-{end - 1}"}
    return request(node, "GET", f"/uri/{quote(cap, safe='')}", headers=headers)


def sha256_of(node: NodeProcess, cap: str) -> str:
    """Of the file as a stock client reads it."""
    parts = urlsplit(node.web_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    connection.request("GET", f"/uri/{quote(cap, safe='')}")
    response = connection.getresponse()
    assert response.status == 200
    hasher = hashlib.sha256()
    while piece := response.read(MiB):
        hasher.update(piece)
    connection.close()
    return hasher.hexdigest()


def upload_as_stock(node: NodeProcess, data: bytes) -> str:
    """The cap that a stock client gives for `data`."""
    return request(node, "PUT", "/uri", data).decode()


def check(node: NodeProcess, cap: str) -> dict[str, Any]:
    """What `tahoe check --verify` finds, `results` of its JSON."""
    answer = request(node, "POST", f"/uri/{quote(cap, safe='')}?t=check&verify=true&output=JSON")
    results: dict[str, Any] = json.loads(answer)["results"]
    return results


def repair(node: NodeProcess, cap: str) -> dict[str, Any]:
    """What `tahoe check --verify --repair` tells."""
    answer = request(node, "POST", f"/uri/{quote(cap, safe='')}?t=check&verify=true&repair=true&output=JSON")
    told: dict[str, Any] = json.loads(answer)
    return told


def assert_healthy(results: Mapping[str, Any], shares: int = N, servers: int = SERVERS) -> None:
    """`check` found `shares` good shares on `servers` servers, and nothing wrong."""
    assert results["healthy"], results
    assert results["recoverable"], results
    assert results["count-shares-good"] == shares, results
    assert results["count-good-share-hosts"] == servers, results
    assert results["count-happiness"] == servers, results
    assert results["count-corrupt-shares"] == 0, results
    assert results["count-wrong-shares"] == 0, results


def assert_stored(shared: SharedGrid, cap: str, data: bytes, shares: int = N, servers: int = SERVERS) -> None:
    """Both stock clients read `data` at `cap`, and find it healthy; by default with every share on a server of its
    own."""
    for reader in shared.readers:
        assert download(reader, cap) == data
        assert_healthy(check(reader, cap), shares, servers)


# -- shares on disk ----------------------------------------------------------------------------------------


def storage_index(cap: str) -> str:
    """In base32, as directories on storage servers are named."""
    name: bytes = base32.b2a(uri.from_string(cap.encode()).get_storage_index())
    return name.decode()


def by_stock(cap: str, data: bytes, max_segment: int = MAX_SEGMENT) -> Encoded:
    """What stock's own encoder makes of `data` with the key and parameters of `cap`."""
    parsed = uri.from_string(cap.encode())
    return encode(data, parsed.needed_shares, parsed.total_shares, max_segment, key=parsed.key, layout=2)


def payload(share: ShareFile) -> bytes:
    """What a share's file holds between container header and leases; not for shares of a huge allocation."""
    content = share.path.read_bytes()
    leases = int.from_bytes(content[8:CONTAINER_HEADER], "big")
    return content[CONTAINER_HEADER:len(content) - leases * LEASE]


def leases_of(share: ShareFile) -> int:
    """How many leases a share's file holds."""
    with share.path.open("rb") as f:
        return int.from_bytes(f.read(CONTAINER_HEADER)[8:], "big")


def starts_with_and_zeros_after(share: ShareFile, expected: bytes) -> bool:
    """Whether a share that was allocated too large holds `expected` and nothing more (holes are not read)."""
    end = share.path.stat().st_size - leases_of(share) * LEASE
    fd = os.open(share.path, os.O_RDONLY)
    try:
        if os.pread(fd, len(expected), CONTAINER_HEADER) != expected:
            return False
        position = CONTAINER_HEADER + len(expected)
        while position < end:
            try:
                position = os.lseek(fd, position, os.SEEK_DATA)
            except OSError:  # nothing but holes from here on
                return True
            piece = os.pread(fd, min(MiB, max(0, end - position)), position)
            if any(piece):
                return False
            position += len(piece)
        return True
    finally:
        os.close(fd)


# -- waiting -----------------------------------------------------------------------------------------------


def wait_for(what: str, check: Callable[[], T | None], timeout: float = PATIENCE) -> T:
    """Ask `check` until it returns something; NodeError after `timeout` seconds."""
    return poll_until(lambda: check() or None, timeout, lambda: f"waited for {what}")


def spool_of(helper: NodeProcess) -> list[str]:
    """Names of the spool files of uploads in progress."""
    return sorted(p.name for p in (helper.directory / "helper" / "streaming" / "spool").iterdir() if p.name != "lock")


def uploads_open(helper: NodeProcess) -> int:
    """How many streaming uploads a helper says are in progress."""
    return int(helper.read_json("statistics?t=json")["stats"]["streaming_helper.open"])


def memory(node: NodeProcess, which: str) -> float:
    """Of a node's process, in MiB: VmRSS now, VmHWM at most so far."""
    status = Path(f"/proc/{node.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(which)).split()[1]) / 1024


def share_paths(grid: LocalGrid) -> set[Path]:
    """Every finished share on every server."""
    return {share.path for share in grid.shares()}


def unfinished_paths(grid: LocalGrid) -> set[Path]:
    """Every share that is being written on any server; on staging servers what was killed before it was recorded, too,
    until it expires there."""
    return {share.path for share in grid.unfinished_shares()}


def wait_until_clean(grid: LocalGrid, helper: NodeProcess, shares_before: set[Path]) -> None:
    """Nothing of an upload is left: no share, finished or not, on any server, no ciphertext in the spool."""

    def left() -> list[object]:
        return [*grid.incoming_shares(), *spool_of(helper), *(share_paths(grid) - shares_before)]

    poll_until(lambda: None if left() else True, PATIENCE, lambda: f"still there: {left()}")
    assert uploads_open(helper) == 0


def wait_for_incoming(grid: LocalGrid, servers: int, size: int = 1) -> list[ShareFile]:
    """Unfinished shares on at least `servers` servers that hold at least `size` bytes on disk each."""

    def found() -> list[ShareFile] | None:
        shares = [share for share in grid.incoming_shares()
                  if share.bytes_on_disk >= size and share.holds_blocks()]
        return shares if len({share.server for share in shares}) >= servers else None

    return wait_for(f"blocks on {servers} servers", found)
