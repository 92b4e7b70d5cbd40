"""`tahoe-stream put`: a file, standard input or a command's output becomes a cap."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import attrs
from allmydata import uri
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from client_shim.cipher import PlaintextDigests, convergent_key
from client_shim.client import StreamingClient
from client_shim.dedup import Content, DedupMode
from client_shim.disclosure import RevealStorageIndex
from client_shim.errors import SourceChanged, UploadClosed, UploadError
from client_shim.interruption import Interruption
from client_shim.node_config import read_node_config
from client_shim.one_segment import OneOfAll
from client_shim.readback import verify_segments
from client_shim.report import Report
from client_shim.sources import CommandSource, FileSource, Source, source_of
from client_shim.upload import StreamingUpload
from helper import free_memory
from helper.interfaces import LITERAL_MAX
from helper.segments import segment_size_for

reactor: Any = _reactor  # it has more interfaces than its declared type

#: Bytes of free memory that are kept for reuse: about a window of messages, encrypted once and twice.
KEPT_MEMORY = 24 * free_memory.MiB

#: After Ctrl-C the upload is aborted at the helper; one that does not answer keeps us no longer than so many seconds.
INTERRUPT_PATIENCE = 10

#: `--verify` reads so many segments back, and the last one.
VERIFIED_SEGMENTS = 3


@attrs.frozen
class PutOptions:
    """What the command line asks for. `file` None is standard input; `command` replaces both. The node's settings
    hold where `reveal`, `patience` (seconds) or `dedup` is None."""

    node_directory: Path
    file: Path | None = None
    command: Sequence[str] = ()
    convergent: bool = False
    verify: bool = False
    reveal: RevealStorageIndex | None = None
    patience: int | None = None
    dedup: DedupMode | None = None


class Put:
    """One run of `put`. `run` gives the cap; `cancel` may end it at any time."""

    def __init__(self, options: PutOptions, report: Report) -> None:
        self._options = options
        self._report = report
        self._config = read_node_config(options.node_directory)
        self._client = StreamingClient(self._config)
        self._upload: StreamingUpload | None = None
        self._source: Source | None = None
        self._cancelled = False

    async def run(self, give: Callable[[bytes], None] = lambda _cap: None) -> bytes:
        """Returns the cap; before that, `give` is called with it, as soon as it is known: what is still to be said to
        the helper then need not be waited for. Raises OSError or an UploadError if there is no cap; nothing readable
        is left then."""
        try:
            cap = await self._put()
            give(cap)
            return cap
        finally:
            await self.cancel()
            await self._client.stop()

    async def _put(self) -> bytes:
        if self._options.command:
            return await self._stream(CommandSource(self._options.command), None)
        if self._options.file is None:
            return await self._stream(source_of(0), None)
        with self._options.file.open("rb", buffering=0) as f:
            return await self._put_file(f)

    async def cancel(self) -> None:
        """End source and upload, if they have not ended themselves."""
        self._cancelled = True
        if self._source is not None:
            self._source.close()
        if self._upload is not None:
            await self._upload.abort()

    async def _put_file(self, f: BinaryIO) -> bytes:
        status = os.fstat(f.fileno())
        if not stat.S_ISREG(status.st_mode):
            return await self._stream(source_of(f.fileno()), None)
        if self._options.convergent:
            return await self._put_convergent(f, status.st_size)
        return await self._stream(FileSource(f.fileno()), status.st_size)

    async def _stream(self, source: Source, size: int | None) -> bytes:
        self._source = source
        digests = self._verify_digests(size) if self._options.verify else None
        upload = self._begin(size, None, digests)
        await upload.open()
        while data := await self._read(source, upload):
            await upload.write(data)
        return await self._complete(upload, digests)

    async def _read(self, source: Source, upload: StreamingUpload) -> memoryview:
        try:
            return await source.read()
        except UploadClosed:
            await upload.write(b"")  # raises why the upload has ended, if it was not told to
            raise

    def _begin(self, size: int | None, key: bytes | None, digests: PlaintextDigests | None) -> StreamingUpload:
        self._report.start(size)
        self._upload = self._client.upload(size=size, key=key, digests=digests, reveal=self._options.reveal,
                                           patience=self._options.patience, dedup=self._options.dedup,
                                           on_progress=self._report.progress,
                                           on_failed=self._stop_reading, on_taken=self._read_ahead,
                                           on_paused=self._report.paused, on_resumed=self._report.resumed)
        return self._upload

    def _read_ahead(self) -> None:
        if self._source is not None:
            self._source.read_ahead()

    def _stop_reading(self) -> None:
        """The upload has failed, perhaps while we wait for input that may never come."""
        if self._source is not None:
            self._source.close()

    async def _complete(self, upload: StreamingUpload, digests: PlaintextDigests | None) -> bytes:
        self._report.last_byte(upload.progress)
        return await self._completed(await upload.close(), upload, digests)

    async def _completed(self, cap: bytes, upload: StreamingUpload, digests: PlaintextDigests | None) -> bytes:
        self._report.cap_known()
        if digests is not None and self._options.verify:
            await deferToThread(self._verify, cap, digests, uri.from_string(cap).get_size())
            self._report.verified()
        self._report.finished(upload.progress, upload.outcome)
        return cap

    # -- --convergent --------------------------------------------------------------------------------------

    async def _put_convergent(self, f: BinaryIO, size: int) -> bytes:
        """Two passes. The key is a hash of the file of pass one; so each segment of pass two is compared
        with a digest from pass one before it is encrypted, or one keystream would cover two plaintexts."""
        parameters = self._config.parameters
        secret = self._config.convergence_secret()
        segment_size = segment_size_for(parameters.max_segment_size, parameters.k, max(1, size))
        digests = PlaintextDigests(os.urandom(32), segment_size)
        key: bytes = await deferToThread(
            convergent_key, parameters.k, parameters.n, parameters.max_segment_size, max(1, size), secret,
            self._first_pass(f, size, digests))
        upload = self._begin(size, key, None)
        if size > LITERAL_MAX:
            content = Content(key, size, OneOfAll(digests, random.SystemRandom().randrange(len(digests))))
            if (cap := await upload.find(content)) is not None:
                self._report.last_byte(upload.progress)
                return await self._completed(cap, upload, digests)
        await upload.open()
        f.seek(0)
        for number in range(len(digests)):
            segment = await deferToThread(_read_up_to, f, segment_size)
            if not digests.matches(number, segment):
                raise SourceChanged(number * segment_size)
            await upload.write(segment)
        if await deferToThread(f.read, 1):
            raise SourceChanged(size)
        return await self._complete(upload, digests)

    def _first_pass(self, f: BinaryIO, size: int, digests: PlaintextDigests) -> Iterator[bytes]:
        """The file in pieces, their digests taken. Raises SourceChanged if it is not `size` bytes long, and
        UploadClosed after `cancel`."""
        seen = 0
        while data := f.read(digests.piece_size):
            if self._cancelled:
                raise UploadClosed()
            seen += len(data)
            digests.update(data)
            yield data
        digests.end()
        if seen != size:
            raise SourceChanged(min(seen, size))

    # -- --verify ------------------------------------------------------------------------------------------

    def _verify_digests(self, size: int | None) -> PlaintextDigests:
        parameters = self._config.parameters
        piece = parameters.full_segment_size if size is None else segment_size_for(
            parameters.max_segment_size, parameters.k, max(1, size))
        return PlaintextDigests(os.urandom(32), piece)

    def _verify(self, cap: bytes, digests: PlaintextDigests, size: int) -> None:
        """In a thread. Raises VerifyFailed."""
        count = len(digests)
        chosen = {*random.SystemRandom().sample(range(count), min(VERIFIED_SEGMENTS, count)), count - 1}
        if count:
            verify_segments(self._config.node_url(), cap, digests, sorted(chosen), size)


def _read_up_to(f: BinaryIO, length: int) -> bytes:
    parts: list[bytes] = []
    while length > 0 and (data := f.read(length)):
        parts.append(data)
        length -= len(data)
    return b"".join(parts)


def run_put(options: PutOptions, report: Report, print_cap: Callable[[str], None]) -> int:
    """Run the reactor until the upload has ended. Returns the exit status: 0 with a cap printed, or 1.

    Ctrl-C and SIGTERM end the upload at the helper before they end us.
    """
    free_memory.keep(KEPT_MEMORY)
    put: Put | None = None
    status = 1
    over = False

    def give(cap: bytes) -> None:
        nonlocal status
        print_cap(cap.decode("ascii"))
        status = 0

    async def run() -> None:
        nonlocal put
        try:
            put = Put(options, report)
            await put.run(give)
        except (UploadError, OSError) as e:
            if over:
                pass  # told already
            elif interruption.number is not None:
                report.interrupted(interruption.number)
            else:
                report.failed(e)

    def ended(failure: Failure | None) -> None:
        nonlocal over
        if over:
            return
        over = True
        reactor.stop()
        if failure is not None:
            report.broken(failure)

    def interrupt() -> None:
        reactor.callLater(INTERRUPT_PATIENCE, give_up)
        if put is not None:
            Deferred.fromCoroutine(put.cancel())

    def give_up() -> None:
        if not over and interruption.number is not None:
            report.interrupted(interruption.number)
        ended(None)

    interruption = Interruption(interrupt)
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(run()).addBoth(ended))
    interruption.run_reactor()
    return status
