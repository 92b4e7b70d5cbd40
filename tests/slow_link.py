"""A TCP proxy that behaves like a slow, long link: limited rate, delay, small buffers.

    python slow_link.py HOST PORT RATE DELAY

prints the port it listens on, then a line for each connection. A process of its own, so that it does not
share an interpreter with what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK = 4 * 1024
SOCKET_BUFFER = 16 * 1024
LATENESS = 0.01  # seconds


class SlowLink:
    """Forwards connections to (host, port), each direction at `rate` bytes/s with `delay` s one way.

    What waits to be sent stays with the sender: buffers here hold a few KiB, so that its own send buffer
    fills as that of a real modem's client does.
    """

    def __init__(self, host: str, port: int, rate: float, delay: float) -> None:
        self._command = [sys.executable, __file__, host, str(port), str(rate), str(delay)]
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _traceback: TracebackType | None) -> None:
        self.cut()

    def drop(self) -> None:
        """End every connection over the link; new ones may be made."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)

    def slow(self) -> None:
        """From now on the rate is a tenth."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR2)

    def stall(self) -> None:
        """Forward nothing until `go_on`; connections stay, and new ones are accepted by the system."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `stall`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def waiting(self) -> int:
        """Bytes that senders have sent to the link and it has not taken: while it stalls, those that do not get
        through."""
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        queues = [fields[4] for line in lines if (fields := line.split())[1].endswith(f":{self.port:04X}")]
        return sum(int(queue.partition(":")[2], 16) for queue in queues)

    def cut(self) -> int:
        """End the link and every connection over it, at once. Returns how many there were."""
        if self._process is None:
            return 0
        self._process.kill()
        output, _errors = self._process.communicate()
        self._process = None
        return output.count("connection")


class _Proxy:
    def __init__(self, host: str, port: int, rate: float, delay: float) -> None:
        self._target = (host, port)
        self._rate = rate
        self._delay = delay
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []

    def _drop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        for each in self._sockets:
            with contextlib.suppress(OSError):  # it has ended itself
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._sockets.clear()

    def _slow(self) -> None:
        self._rate /= 10

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._drop)
        loop.add_signal_handler(signal.SIGUSR2, self._slow)
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)  # inherited by connections
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        print(listener.getsockname()[1], flush=True)
        while True:
            near, _address = await loop.sock_accept(listener)
            print("connection", flush=True)
            far = socket.socket()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
            far.setblocking(False)
            try:
                await loop.sock_connect(far, self._target)
            except OSError:  # nobody listens there now
                near.close()
                far.close()
                continue
            self._sockets += near, far
            for source, sink in ((near, far), (far, near)):
                source.setblocking(False)
                arriving: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
                self._tasks.add(asyncio.create_task(self._forward(source, arriving)))
                self._tasks.add(asyncio.create_task(self._deliver(arriving, sink)))

    async def _forward(self, source: socket.socket, arriving: asyncio.Queue[tuple[float, bytes]]) -> None:
        """One direction: the line is busy with a chunk for len/rate seconds, which arrives `delay` later."""
        loop = asyncio.get_running_loop()
        line_free = loop.time()
        try:
            while data := await loop.sock_recv(source, CHUNK):
                # A sleep ends late by a millisecond or so: the line may catch up that much, or it would be slower.
                line_free = max(line_free, loop.time() - LATENESS) + len(data) / self._rate
                arriving.put_nowait((line_free + self._delay, data))
                # a timer's resolution is coarser than a chunk on a fast line: wait only for what is due
                if line_free > loop.time() + 0.002:
                    await asyncio.sleep(line_free - loop.time())
        except OSError:
            pass
        arriving.put_nowait((loop.time() + self._delay, b""))

    async def _deliver(self, arriving: asyncio.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                when, data = await arriving.get()
                if when > loop.time() + 0.0005:
                    await asyncio.sleep(when - loop.time())
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                await loop.sock_sendall(sink, data)
        except OSError:
            sink.close()


def through(furl: str, link: SlowLink) -> str:
    """`furl` with the link's port in place of its location."""
    tub, _at, rest = furl.partition("@")
    name = rest.partition("/")[2]
    return f"{tub}@tcp:127.0.0.1:{link.port}/{name}"


def location(furl: str) -> tuple[str, int]:
    """Host and port of a furl with one location hint."""
    host, port = furl.partition("@")[2].partition("/")[0].removeprefix("tcp:").rsplit(":", 1)
    return host, int(port)


if __name__ == "__main__":
    asyncio.run(_Proxy(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])).run())
