"""One Tahoe node of a local grid: a directory and a process (Linux and other POSIX systems).

A node's standard input is a pipe that this process holds. Stock `tahoe run` exits when its standard
input closes, so a node outlives its parent by no more than a moment even if the parent is killed with
SIGKILL. Each node leads a process group of its own: Ctrl-C on the terminal does not reach it (its parent
stops it in order), and signals sent here reach whatever the node may have started. The group stays in the
parent's session: when the parent dies, the kernel ends suspended groups that it leaves behind (SIGHUP, SIGCONT).
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs

T = TypeVar("T")

POLL_INTERVAL = 0.02  # seconds; stock nodes have nothing one could wait on instead
HTTP_TIMEOUT = 30.0  # seconds without a byte, for the short status pages read here
STOP_TIMEOUT = 5.0  # seconds from SIGTERM to SIGKILL; a stock node needs some 10 ms
LOG_TAIL_LINES = 25


class NodeError(Exception):
    """A node, or the grid, did not do what was asked of it in time; the text ends with the tail of its log."""


def poll_until(
    check: Callable[[], T | None],
    timeout: float,
    describe: Callable[[], str],
    interval: float = POLL_INTERVAL,
) -> T:
    """Call `check` until it returns something other than None, and return that.

    After `timeout` seconds raise NodeError with the text of `describe()`. What `check` raises passes through.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = check()
        if result is not None:
            return result
        if time.monotonic() >= deadline:
            raise NodeError(f"{describe()} (waited {timeout:g} s)")
        time.sleep(interval)


def http_get(url: str, timeout: float = HTTP_TIMEOUT) -> bytes:
    """The body at a loopback `url`. OSError or HTTPException if it cannot be had, NodeError if not status 200."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        # No path in the text: it may hold a cap.
        raise NodeError(f"page of a node's web port: expected status 200, got {response.status}")
    return body


@attrs.define(eq=False)
class NodeProcess:
    """A node in `directory`, run by `command`. All methods block; none is safe to call from two threads at once."""

    name: str
    directory: Path
    command: tuple[str, ...]
    _process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)

    @property
    def log_path(self) -> Path:
        """What the process wrote to its standard output and error, over all its runs."""
        return self.directory / "run.log"

    @property
    def pid(self) -> int:
        """The process ID. NodeError if the node does not run."""
        if self._process is None:
            raise NodeError(f"node {self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists (a suspended one does)."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """That of the process, negative if a signal ended it; None while it runs, and when it was never started."""
        return None if self._process is None else self._process.poll()

    @property
    def web_url(self) -> str:
        """Root of the node's web API, `http://127.0.0.1:PORT/`. NodeError until it is known."""
        try:
            return (self.directory / "node.url").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            raise NodeError(f"node {self.name} has no web port yet{self.log_tail()}") from None

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The end of the log with a heading, to be put after an error text."""
        try:
            tail = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        except FileNotFoundError:
            return f"\n(no log in {self.log_path})"
        return "\n".join([f"\nlast lines of {self.log_path}:", *(f"    {line}" for line in tail)])

    def read_json(self, path: str) -> Any:
        """The JSON page at `path` (no leading slash) of the node's web port. Errors as of `http_get`."""
        return json.loads(http_get(self.web_url + path))

    def start(self) -> None:
        """Start the process and return at once; `wait_ready` waits until it is up."""
        if self.running:
            raise NodeError(f"node {self.name} is already running")
        # Of an earlier run: the web port is a new one each time.
        (self.directory / "node.url").unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def is_up(self) -> bool:
        """Whether the node's web port is open. NodeError if the process has ended."""
        if not self.running:
            status = None if self._process is None else self._process.returncode
            raise NodeError(f"node {self.name} ended with exit status {status}{self.log_tail()}")
        return (self.directory / "node.url").exists()

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return when the node's web port is open; NodeError after `timeout` seconds or if the process ends."""
        poll_until(
            lambda: self.is_up() or None,
            timeout,
            lambda: f"node {self.name} did not open its web port{self.log_tail()}",
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the node's process group; nothing happens if the node does not run."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def suspend(self) -> None:
        """SIGSTOP: its connections stay open and nothing is answered any more. It has taken effect on return.

        A stock node connected to a suspended one does not end by SIGTERM: it waits for its connections to close.
        """
        self.signal(signal.SIGSTOP)
        if self._process is not None and self.running:
            # Sooner or later it is stopped, or has ended; WNOWAIT leaves that for Popen to see.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT after `suspend`."""
        self.signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask the node to stop (SIGTERM) and return at once; `wait_end` or `stop` waits."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a suspended process gets the SIGTERM only when it goes on

    def wait_end(self, timeout: float = STOP_TIMEOUT) -> None:
        """Wait until the process has ended, by SIGKILL after `timeout` seconds. It is reaped when this returns or
        raises."""
        try:
            self._reap(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """SIGTERM, and SIGKILL after `timeout` seconds. The process is reaped when this returns or raises."""
        self.terminate()
        self.wait_end(timeout)

    def kill(self) -> None:
        """SIGKILL, and reap the process. Nothing happens if the node does not run."""
        self.signal(signal.SIGKILL)
        self._reap(None)

    def restart(self) -> None:
        """`stop`, `start` and `wait_ready`; same directory, same Tub port, another web port."""
        self.stop()
        self.start()
        self.wait_ready()

    def _reap(self, timeout: float | None) -> None:
        if self._process is None:
            return
        self._process.wait(timeout)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
