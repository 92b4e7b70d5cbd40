"""One upload, as a user makes it: `tahoe-stream put`, or a PUT to a stock node's web API or to our gateway."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import attrs

from benchmarks.processes import cpu_seconds
from client_shim.local_node import NodeProcess

MiB = 1024 * 1024
#: Bytes of one write of an unthrottled producer, and of a paced one.
CHUNK, PACED_CHUNK = MiB, 64 * 1024
TIMEOUT = 600.0  # seconds without an answer


class UploadFailed(Exception):
    """There is no cap; the text is what the program said."""


@attrs.frozen
class What:
    """What is uploaded: `size` bytes, at `rate` bytes a second (None: as fast as they are taken). `declared`: the
    client knows the size before."""

    size: int
    rate: float | None = None
    declared: bool = False


@attrs.frozen
class Uploaded:
    """Times of time.monotonic(). What is None is not known of this kind of client."""

    cap: str
    first_byte: float
    last_byte: float
    cap_at: float
    start_cpu: float | None = None
    """Seconds of the client's processor time until it was ready for the first byte."""
    cpu: float | None = None
    """All of it."""
    peak_memory: float | None = None
    """MiB."""


def pieces(what: What) -> Iterator[bytes | memoryview]:
    """Bytes that were never uploaded before, each piece when its time has come."""
    block = bytearray(os.urandom(CHUNK))
    size = CHUNK if what.rate is None else PACED_CHUNK
    began = time.monotonic()
    for start in range(0, what.size, size):
        # No two segments alike, at little cost for a machine that is being measured.
        block[:16] = start.to_bytes(8, "big") + os.urandom(8)
        if what.rate is not None:
            wait = began + start / what.rate - time.monotonic()
            if wait > 0:
                time.sleep(wait)
        yield memoryview(block)[:min(size, what.size - start)]


def put(directory: Path, what: What, on_ready: Callable[[int], None] = lambda _pid: None) -> Uploaded:
    """`tahoe-stream put` of standard input, or of a file if the size is declared. Raises UploadFailed.

    `on_ready` is told its process ID when it is ready for the first byte.
    """
    if not what.declared:
        return _Put(directory, "-", on_ready).run(what)
    if what.rate is not None:
        raise ValueError("a file is read as fast as it is taken")
    file = directory / "upload"
    try:
        with file.open("wb") as f:
            for piece in pieces(what):
                f.write(piece)
        return _Put(directory, str(file), on_ready).run(None)
    finally:
        file.unlink(missing_ok=True)


class _Put:
    """One child process."""

    def __init__(self, directory: Path, source: str, on_ready: Callable[[int], None]) -> None:
        self._command = [sys.executable, "-m", "client_shim.cli", "put", "-d", str(directory), "--json", source]
        self._on_ready = on_ready
        self._ready = threading.Event()
        self._ready_at = self._last_byte = self._start_cpu = 0.0
        self._said: list[str] = []

    def run(self, what: What | None) -> Uploaded:
        """`what` goes to its standard input; None: it reads a file by itself."""
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, bufsize=0)
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise UploadFailed("no pipes")
        listener = threading.Thread(target=self._listen, args=(process.pid, stderr), daemon=True)
        listener.start()
        try:
            if not self._ready.wait(TIMEOUT):
                raise UploadFailed("it does not start")
            if what is not None:
                self._feed(stdin, what)
            stdin.close()
            cap = stdout.readline().strip()
            cap_at = time.monotonic()
            _pid, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            listener.join()
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
            stdout.close()
        if process.returncode != 0 or not cap:
            raise UploadFailed("\n".join(self._said[-5:]))
        return Uploaded(cap.decode("ascii"), self._ready_at, self._last_byte, cap_at, self._start_cpu,
                        usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)

    def _feed(self, stdin: IO[bytes], what: What) -> None:
        try:
            for piece in pieces(what):
                view = memoryview(piece)
                while view:
                    view = view[os.write(stdin.fileno(), view):]
        except BrokenPipeError:
            raise UploadFailed("it ended: " + "\n".join(self._said[-5:])) from None
        self._last_byte = time.monotonic()

    def _listen(self, pid: int, stderr: IO[bytes]) -> None:
        with stderr:
            for line in stderr:
                text = line.decode("utf-8", "replace").rstrip()
                self._said.append(text)
                if not text.startswith('{"event": '):
                    continue
                event = json.loads(text)["event"]
                if event == "started":
                    self._start_cpu = cpu_seconds([pid])
                    self._on_ready(pid)
                    self._ready_at = time.monotonic()
                    self._ready.set()
                elif event == "last-byte" and not self._last_byte:
                    self._last_byte = time.monotonic()  # of a file, which it read by itself
        self._ready.set()  # or never will be


def web_put(node: NodeProcess, what: What, chunked: bool = False) -> Uploaded:
    """PUT /uri of a stock client node, whose body always has a length, or (`chunked`) of a gateway, whose body has
    none. Raises UploadFailed."""
    url = urlsplit(node.web_url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=TIMEOUT)
    try:
        connection.putrequest("PUT", "/uri")
        connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(what.size))))
        connection.endheaders()
        first_byte = time.monotonic()
        for piece in pieces(what):
            if chunked:
                connection.send(b"%x\r\n" % len(piece))
            connection.send(piece)
            if chunked:
                connection.send(b"\r\n")
        if chunked:
            connection.send(b"0\r\n\r\n")
        last_byte = time.monotonic()
        response = connection.getresponse()
        body = response.read().decode("utf-8", "replace")
        cap_at = time.monotonic()
    except (OSError, http.client.HTTPException) as e:
        raise UploadFailed(f"the web API: {e!r}") from e
    finally:
        connection.close()
    if response.status not in (http.client.OK, http.client.CREATED):
        raise UploadFailed(f"status {response.status}: {body[:500]}")
    return Uploaded(body.strip(), first_byte, last_byte, cap_at)
