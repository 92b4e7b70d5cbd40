"""Opens many uploads, writes so many bytes of each, says "idle", and gives them up when standard input ends.

    python -m benchmarks.idle_client CLIENTNODE UPLOADS BYTES
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from client_shim.client import StreamingClient
from client_shim.node_config import read_node_config
from client_shim.upload import StreamingUpload

reactor: Any = _reactor
AT_ONCE = 20


def _started(work: Callable[[StreamingUpload], Awaitable[None]], upload: StreamingUpload) -> Deferred[None]:
    async def worked() -> None:
        await work(upload)

    return Deferred.fromCoroutine(worked())


async def idle(directory: Path, count: int, size: int) -> None:
    """All over one connection."""
    client = StreamingClient(read_node_config(directory))
    data = os.urandom(size)
    uploads = [client.upload() for _ in range(count)]

    async def begin(upload: StreamingUpload) -> None:
        await upload.write(data)

    async def end(upload: StreamingUpload) -> None:
        await upload.abort()

    semaphore = DeferredSemaphore(AT_ONCE)
    for work in (begin, end):
        await gatherResults([semaphore.run(_started, work, upload) for upload in uploads])
        if work is begin:
            print("idle", flush=True)
            await deferToThread(sys.stdin.read)
    await client.stop()


def main() -> int:
    """The exit status."""
    failures: list[Failure] = []

    def ended(result: object) -> None:
        if isinstance(result, Failure):
            failures.append(result)
            result.printTraceback(sys.stderr)
        reactor.stop()

    directory, count, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(idle(directory, count, size)).addBoth(ended))
    reactor.run()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
