"""Uploads for programs that run the Twisted reactor: one connection to a helper, any number of uploads."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn
from weakref import WeakSet

import attrs
from foolscap.api import Tub
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from client_shim.cipher import PlaintextDigests
from client_shim.dedup import READ_PATIENCE, Dedup, DedupMode
from client_shim.disclosure import RevealStorageIndex
from client_shim.errors import BadNodeDirectory, HelperUnreachable, UploadClosed, UploadError
from client_shim.helper_edge import HelperLink, connect, make_tub
from client_shim.node_config import NodeConfig
from client_shim.readback import read_range
from client_shim.upload import Progress, StreamingUpload

#: Seconds for finding the streaming helper; Foolscap itself would wait for two minutes.
CONNECT_TIMEOUT = 30
#: Seconds that `stop` waits for what uploads leave at the helper after they gave their caps.
SETTLE_PATIENCE = 1.0


class StreamingClient:
    """Streams files to the helper of a client node.

        client = StreamingClient(read_node_config(Path("~/.tahoe")))
        upload = client.upload()
        await upload.write(b"...")
        cap = await upload.close()
        await client.stop()
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._tub: Tub | None = None
        self._stops = 0
        self._uploads: WeakSet[StreamingUpload] = WeakSet()

    def upload(self, *, size: int | None = None, key: bytes | None = None, digests: PlaintextDigests | None = None,
               reveal: RevealStorageIndex | None = None, patience: float | None = None,
               dedup: DedupMode | None = None,
               on_progress: Callable[[Progress], None] = lambda _progress: None,
               on_failed: Callable[[], None] = lambda: None,
               on_paused: Callable[[UploadError, float], None] = lambda _why, _patience: None,
               on_resumed: Callable[[float], None] = lambda _seconds: None,
               on_taken: Callable[[], None] = lambda: None) -> StreamingUpload:
        """A new upload of `size` bytes (None: as many as come). `reveal`, `patience` and `dedup` are the node's
        settings if they are None. The rest as for StreamingUpload."""
        parameters = attrs.evolve(self.config.parameters, size=size)

        stops = self._stops

        async def connect_upload() -> HelperLink:
            if self._stops != stops:
                raise UploadClosed()
            return await self._connect()

        settings = self.config.settings
        upload = StreamingUpload(connect_upload, parameters, reactor, key=key, digests=digests,
                                 reveal=settings.reveal if reveal is None else reveal,
                                 patience=settings.patience if patience is None else patience,
                                 dedup=self.dedup_in(settings.dedup if dedup is None else dedup),
                                 on_progress=on_progress, on_failed=on_failed, on_paused=on_paused,
                                 on_resumed=on_resumed, on_taken=on_taken, in_thread=deferToThread)
        self._uploads.add(upload)
        return upload

    def dedup_in(self, mode: DedupMode) -> Dedup | None:
        """How files that are stored already are found. None, too, for a node that never ran: it has no convergence
        secret, and so no file like another."""
        if mode is DedupMode.OFF:
            return None
        try:
            return Dedup(self.config.convergence_secret(), None if mode is DedupMode.TRUST else self._read)
        except BadNodeDirectory:
            return None

    async def _read(self, cap: bytes, start: int, end: int) -> bytes:
        """Through the client node. Raises BadNodeDirectory or VerifyFailed."""
        url = self.config.node_url()
        return await deferToThread(read_range, url, cap, start, end, READ_PATIENCE)

    async def link(self) -> HelperLink:
        """A link to the helper, over the one connection. Raises HelperUnreachable; UploadClosed after `stop`."""
        if self._stops:
            raise UploadClosed()
        return await self._connect()

    async def _connect(self) -> HelperLink:
        furl = self.config.helper_furl
        if self._tub is None:
            self._tub = make_tub()
            self._tub.startService()
        connecting = Deferred.fromCoroutine(connect(self._tub, furl))
        return await connecting.addTimeout(CONNECT_TIMEOUT, reactor, _no_answer)

    async def stop(self) -> None:
        """Close the connection. Uploads in progress fail."""
        for upload in list(self._uploads):
            await upload.settle(SETTLE_PATIENCE)
        self._stops += 1
        tub, self._tub = self._tub, None
        if tub is not None:
            stopped: Deferred[None] = tub.stopService()
            await stopped


def _no_answer(_result: object, seconds: float) -> NoReturn:
    raise HelperUnreachable(f"no answer for {seconds:g} seconds")
