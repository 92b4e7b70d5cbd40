"""The moving parts of `tahoe-stream demo`: a source of bytes, the `put` process, a watch over the servers' disks."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal
from urllib.parse import quote, urlsplit

import attrs

from client_shim.local_grid import LocalGrid
from client_shim.local_node import NodeProcess

CHUNK = 128 * 1024  # bytes; at 16 MiB/s one every 8 ms
WATCH_INTERVAL = 0.05  # seconds between two looks at the servers' disks
STALL_TIMEOUT = 120.0  # seconds in which neither a byte nor the cap makes any progress
KEPT_ERROR_LINES = 20


class DemoError(Exception):
    """The demo cannot go on; the text is for the user."""


@attrs.frozen
class Source:
    """What is streamed: a file, standard input, or `size` bytes made up from a seed."""

    file: Path | int | None
    """A path, a file descriptor, or None for bytes made up."""
    size: int | None
    """Bytes; None if only the end will tell."""
    description: str

    @classmethod
    def choose(cls, source: Path | Literal["-"] | None, size: int) -> Source:
        """DemoError if `source` is not a file that can be read."""
        if source is None:
            return cls(None, size, f"{size / 2**20:.4g} MiB of random bytes")
        if source == "-":
            return cls(sys.stdin.fileno(), None, "standard input")
        try:
            status = source.stat()
            if stat.S_ISDIR(status.st_mode):
                raise DemoError(f"cannot read {source}: it is a directory")
            if not stat.S_ISREG(status.st_mode):  # opening a pipe just to try would rob its writer
                return cls(source, None, str(source))
            with source.open("rb"):
                return cls(source, status.st_size, str(source))
        except OSError as e:
            raise DemoError(f"cannot read {source}: {e.strerror}") from e

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in chunks of at most CHUNK; nothing is kept. DemoError if they cannot be read."""
        if self.file is None:
            yield from _made_up(self.size or 0)
            return
        try:
            with open(self.file, "rb", buffering=0, closefd=not isinstance(self.file, int)) as f:
                while data := f.read(CHUNK):
                    yield data
        except OSError as e:
            raise DemoError(f"cannot read {self.description}: {e.strerror}") from e


def _made_up(size: int) -> Iterator[bytes]:
    generator = random.Random(size)  # noqa: S311  (content for a demo)
    for start in range(0, size, CHUNK):
        yield generator.randbytes(min(CHUNK, size - start))


class PutProcess:
    """A `tahoe-stream put -` child: bytes go in at `write`, the cap comes out of `finish`."""

    def __init__(self, client: NodeProcess) -> None:
        directory = str(client.directory)
        self.command = [sys.executable, "-m", "client_shim.cli", "put", "-d", directory, "--json", "-"]
        self._process: subprocess.Popen[bytes] | None = None
        self._cap = b""
        self._cap_time = 0.0
        self._failure = ""
        self._other_lines: list[str] = []
        self._readers: list[threading.Thread] = []
        self._started = threading.Event()
        self._waiting_since: float | None = None
        self._stalled = False

    def start(self) -> None:
        """Start the child, and return when it is ready to read. DemoError if it ends or does not get ready."""
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            process_group=0,  # Ctrl-C is for the demo, which then ends the child
        )
        self._process = process
        for target, stream in ((self._read_cap, process.stdout), (self._read_events, process.stderr)):
            thread = threading.Thread(target=target, args=(stream,), daemon=True)
            thread.start()
            self._readers.append(thread)
        if not self._started.wait(STALL_TIMEOUT) or self._failure:
            raise self._error()

    def write(self, data: bytes) -> None:
        """Write all of `data`, waiting as long as the child makes us. DemoError if it has ended."""
        try:
            view = memoryview(data)
            while view:
                self._waiting_since = time.monotonic()
                view = view[os.write(self._stdin().fileno(), view) :]
        except BrokenPipeError:
            raise self._error() from None
        finally:
            self._waiting_since = None

    def finish(self) -> tuple[str, float]:
        """Close the child's standard input; its cap, and the seconds it took from there. DemoError if none came."""
        process = self._running()
        closed = time.monotonic()
        self._stdin().close()
        try:
            status = process.wait(STALL_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._stalled = True
            raise self._error() from None
        for thread in self._readers:
            thread.join(STALL_TIMEOUT)
        if status != 0 or not self._cap:
            raise self._error()
        return self._cap.decode("ascii"), self._cap_time - closed

    def end_if_stalled(self) -> None:
        """Kill the child if `write` has waited for STALL_TIMEOUT, so that it returns. For another thread."""
        process, since = self._process, self._waiting_since
        if process is not None and since is not None and time.monotonic() - since > STALL_TIMEOUT:
            self._stalled = True
            process.kill()

    def kill(self) -> None:
        """End the child, if it still runs, without letting it complete the upload."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for thread in self._readers:
            thread.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("start() comes first")
        return self._process

    def _stdin(self) -> IO[bytes]:
        stdin = self._running().stdin
        if stdin is None:
            raise RuntimeError("started without a pipe")
        return stdin

    def _read_cap(self, stream: BinaryIO) -> None:
        for line in stream:
            self._cap, self._cap_time = line.strip(), time.monotonic()

    def _read_events(self, stream: BinaryIO) -> None:
        for line in stream:
            text = line.decode("utf-8", "replace").rstrip()
            if not text.startswith('{"event": '):  # not from `put --json`: a warning, a traceback
                self._other_lines = [*self._other_lines, text][-KEPT_ERROR_LINES:]
                continue
            event = json.loads(text)
            if event["event"] == "failed":
                self._failure = f"{event['text']} [{event['code']}]"
            elif event["event"] == "started":
                self._started.set()
        self._started.set()  # or never will be

    def _error(self) -> DemoError:
        process = self._running()
        if self._stalled or not self._started.is_set():
            return DemoError(f"`tahoe-stream put` made no progress for {STALL_TIMEOUT:g} s")
        process.wait(STALL_TIMEOUT)
        for thread in self._readers:
            thread.join(STALL_TIMEOUT)
        details = "\n".join([self._failure, *self._other_lines]).strip()
        return DemoError(f"`tahoe-stream put` ended with exit status {process.returncode}: {details}")


@attrs.frozen
class BlocksSeen:
    """What the servers' disks hold. Only shares with blocks in them count."""

    bytes_on_disk: int = 0
    servers: int = 0


class BlockWatch:
    """A thread that looks at the servers' disks all the time, and ends a stalled `put`.

    `on_first_block` is called in that thread.
    """

    def __init__(self, grid: LocalGrid, put: PutProcess, on_first_block: Callable[[], None]) -> None:
        self._grid = grid
        self._put = put
        self._on_first_block = on_first_block
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.latest = BlocksSeen()

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; may be called at any time, and again."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> BlocksSeen:
        """What is on the disks now."""
        # Unfinished ones first: a share that moves between the two looks is counted twice for a moment, never missed.
        shares = [*self._grid.unfinished_shares(), *self._grid.shares()]
        held = {(share.server, share.number): share for share in shares if share.holds_blocks()}
        return BlocksSeen(sum(s.bytes_on_disk for s in held.values()), len({server for server, _ in held}))

    def _run(self) -> None:
        while not self._end.wait(WATCH_INTERVAL):
            before, self.latest = self.latest, self.look()
            if self.latest.servers and not before.servers:
                self._on_first_block()
            self._put.end_if_stalled()


def read_back(node: NodeProcess, cap: str, hasher: hashlib._Hash) -> Iterator[int]:
    """GET the file from a stock node's web API, into `hasher`; yields the length of each piece. DemoError if the node
    refuses, or stops short."""
    connection = _connect(node)
    try:
        connection.request("GET", f"/uri/{quote(cap, safe='')}")
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise DemoError(f"the stock client answered {response.status}: {_text(response)}")
        while data := response.read(CHUNK):
            hasher.update(data)
            yield len(data)
    except (http.client.HTTPException, OSError) as e:
        raise DemoError(f"the stock client stopped sending the file: {e!r}") from e
    finally:
        connection.close()


def check(node: NodeProcess, cap: str) -> dict[str, Any]:
    """What a stock node's `check --verify` finds: the `results` of its JSON answer. DemoError if it cannot check."""
    connection = _connect(node)
    try:
        connection.request("POST", f"/uri/{quote(cap, safe='')}?t=check&verify=true&output=JSON")
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise DemoError(f"the stock client answered {response.status}: {_text(response)}")
        results: dict[str, Any] = json.loads(response.read())["results"]
        return results
    except (http.client.HTTPException, OSError, ValueError, KeyError) as e:
        raise DemoError(f"the stock client could not check the file: {e!r}") from e
    finally:
        connection.close()


def _connect(node: NodeProcess) -> http.client.HTTPConnection:
    parts = urlsplit(node.web_url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=STALL_TIMEOUT)


def _text(response: http.client.HTTPResponse) -> str:
    return response.read(1000).decode("utf-8", "replace").strip()
