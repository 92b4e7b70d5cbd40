"""A proxy to a port of this machine that forwards at most so many bytes a second, over all connections together.

    python -m benchmarks.slow_proxy PORT BYTES-PER-SECOND

prints the port it listens on, and at SIGTERM how many bytes it has forwarded. What waits stays with the sender.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

CHUNK = 16 * 1024
SOCKET_BUFFER = 64 * 1024


class SlowProxy:
    """Answers of the server are not slowed: they are small."""

    def __init__(self, port: int, rate: float) -> None:
        self._port = port
        self._rate = rate
        self._free_at = 0.0  # when the line can take more
        self._forwarded = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)  # inherited by connections
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        print(listener.getsockname()[1], flush=True)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end)
        while True:
            near, _address = await loop.sock_accept(listener)
            far = socket.socket()
            for each in (near, far):
                each.setblocking(False)
            try:
                await loop.sock_connect(far, ("127.0.0.1", self._port))
            except OSError:  # the node is being restarted
                near.close()
                far.close()
                continue
            for source, sink, slow in ((near, far, True), (far, near, False)):
                task = asyncio.create_task(self._forward(source, sink, slow))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _end(self) -> None:
        print(self._forwarded, flush=True)
        sys.exit()

    async def _forward(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(source, CHUNK):
                if slow:
                    self._forwarded += len(data)
                    self._free_at = max(self._free_at, loop.time()) + len(data) / self._rate
                    await asyncio.sleep(self._free_at - loop.time())
                await loop.sock_sendall(sink, data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            sink.close()


if __name__ == "__main__":
    asyncio.run(SlowProxy(int(sys.argv[1]), float(sys.argv[2])).run())
