"""Uploads for programs that are not asynchronous: a file-like object."""

from __future__ import annotations

import io
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread
from twisted.python.threadable import isInIOThread

from client_shim.client import StreamingClient
from client_shim.dedup import DedupMode
from client_shim.disclosure import RevealStorageIndex
from client_shim.errors import UploadClosed
from client_shim.node_config import read_node_config
from client_shim.upload import StreamingUpload

T = TypeVar("T")
reactor: Any = _reactor  # it has more interfaces than its declared type
_starting = threading.Lock()


class UploadFile(io.RawIOBase):
    """A file being uploaded: write bytes, then `close`, then read `cap`.

    `close` raises if there is no cap. Leaving a `with` block by an exception aborts the upload. Errors are
    UploadErrors. `reveal` says when the helper is told the storage index, `patience` for how many seconds a helper
    that was lost is looked for, while `write` and `close` wait, `dedup` whether a file that is stored already is looked
    for (None: the node's settings). Not for the reactor
    thread of a Twisted program: use client.StreamingClient there.
    """

    def __init__(self, node_directory: str | Path, size: int | None = None,
                 reveal: RevealStorageIndex | None = None, patience: float | None = None,
                 dedup: DedupMode | None = None) -> None:
        self._client = StreamingClient(read_node_config(Path(node_directory)))
        self._cap: bytes | None = None
        self._upload: StreamingUpload | None = None
        _run_reactor()
        try:
            self._upload = _in_reactor(lambda: _opened(self._client.upload(
                size=size, reveal=reveal, patience=patience, dedup=dedup)))
        except BaseException:
            _in_reactor(self._client.stop)
            raise

    @property
    def cap(self) -> str:
        """The read cap. Raises UploadClosed if the file was not closed, or aborted."""
        if self._cap is None:
            raise UploadClosed()
        return self._cap.decode("ascii")

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Take all of `data`; blocks while too much is on its way to the helper."""
        if self.closed or self._upload is None:
            raise ValueError("write to closed file")
        upload, plain = self._upload, bytes(data)
        _in_reactor(lambda: upload.write(plain))
        return len(plain)

    def close(self) -> None:
        """Complete the upload; afterwards `cap` is known. Raises an UploadError if there is none."""
        if self.closed:
            return
        super().close()
        upload = self._upload
        if upload is not None:
            try:
                self._cap = _in_reactor(upload.close)
            finally:
                _in_reactor(self._client.stop)

    def abort(self) -> None:
        """Give the upload up. No-op once closed."""
        if self.closed:
            return
        super().close()
        upload = self._upload
        if upload is not None:
            try:
                _in_reactor(upload.abort)
            finally:
                _in_reactor(self._client.stop)

    def __exit__(self, kind: object, *_rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        # io.RawIOBase would close, and so complete, a file that was merely forgotten.
        if not self.closed:
            super().close()


async def _opened(upload: StreamingUpload) -> StreamingUpload:
    await upload.open()
    return upload


def _run_reactor() -> None:
    """Run the reactor in a thread of its own, unless the program runs it."""
    with _starting:
        if not reactor.running:
            running = threading.Event()
            reactor.callWhenRunning(running.set)
            threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False},
                             name="tahoe-stream reactor", daemon=True).start()
            running.wait()


def _in_reactor(call: Callable[[], Awaitable[T]]) -> T:
    if isInIOThread():
        raise RuntimeError("UploadFile blocks; in the reactor thread use client_shim.client.StreamingClient")

    async def run() -> T:
        return await call()

    result: T = blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(run()))  # type: ignore[arg-type]
    return result
