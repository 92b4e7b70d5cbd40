"""From the body of a request to a cap: each piece is encrypted and sent to the helper as it arrives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from client_shim.dedup import DedupMode, Outcome
from client_shim.errors import HelperUnreachable, UploadError
from client_shim.reconnect import BACKOFF_MIN, awaited, means_away
from client_shim.upload import StreamingUpload

#: Gives the next bytes of a file; b"" at its end.
Source = Callable[[], Awaitable[bytes]]

#: Seconds that one attempt to reach the helper has at least, however little is left of `helper_wait`.
ATTEMPT_MIN = 5.0
#: Seconds for which `Streams.stop` waits for the helper to hear what is given up.
FAREWELL = 5.0

_log = Logger()


class MakeUpload(Protocol):
    """StreamingClient.upload."""

    def __call__(self, *, size: int | None, dedup: DedupMode | None, on_failed: Callable[[], None],
                 on_paused: Callable[[UploadError, float], None],
                 on_resumed: Callable[[float], None]) -> StreamingUpload: ...


@attrs.frozen
class Stored:
    """A file that is stored: its read cap, and what became of the upload."""

    cap: bytes = attrs.field(repr=False)
    outcome: Outcome


class Streams:
    """Uploads that last as long as a request. `helper_wait`: seconds for which a helper that is away is looked for
    before a new one is refused; those in progress wait as the client's settings say."""

    def __init__(self, make_upload: MakeUpload, helper_wait: float, clock: IReactorTime) -> None:
        self._make_upload = make_upload
        self._helper_wait = helper_wait
        self._clock = clock
        self._ending: set[Deferred[None]] = set()

    async def stop(self) -> None:
        """Wait until the helper has heard of the uploads that were given up, but not for long."""
        ended: Deferred[list[None]] = gatherResults([*self._ending], consumeErrors=True)
        try:
            await ended.addTimeout(FAREWELL, self._clock)
        except TimedOut:
            pass  # they expire there

    async def store(self, source: Source, size: int | None, dedup: DedupMode | None = None,
                    on_upload: Callable[[StreamingUpload], None] = lambda _upload: None) -> Stored:
        """Store the file that `source` gives, of `size` bytes if that is known. `dedup` None: as the client's settings
        say.

        Nothing is asked of `source` before the helper has agreed. Raises an UploadError, or what `source` raises;
        nothing is left at the helper then. `on_upload` is told the upload when it is open, so that it can be aborted.
        """
        reading: Deferred[bytes] | None = None

        def failed() -> None:
            """It failed by itself, while we wait for bytes that may never come."""
            if reading is not None:
                reading.cancel()

        upload = await self._open(size, dedup, failed)
        on_upload(upload)
        try:
            while True:
                reading = Deferred.fromCoroutine(awaited(source()))
                try:
                    piece = await reading
                except CancelledError:
                    await upload.write(b"")  # raises why
                    raise
                if not piece:
                    return Stored(await upload.close(), upload.outcome)
                await upload.write(piece)
        finally:
            # not waited for: a helper that is away would delay the answer; nothing happens if there is a cap
            self._end(upload)

    def _end(self, upload: StreamingUpload) -> None:
        ending = Deferred.fromCoroutine(upload.abort())
        self._ending.add(ending)
        ending.addBoth(lambda _result: self._ending.discard(ending))

    async def _open(self, size: int | None, dedup: DedupMode | None,
                    on_failed: Callable[[], None]) -> StreamingUpload:
        """Raises UploadError; HelperUnreachable or HelperLost after `helper_wait` seconds."""
        began, delay = self._clock.seconds(), BACKOFF_MIN
        while True:
            upload = self._make_upload(size=size, dedup=dedup, on_failed=on_failed, on_paused=_paused,
                                       on_resumed=_resumed)
            left = max(ATTEMPT_MIN, self._helper_wait - (self._clock.seconds() - began))
            opening = Deferred.fromCoroutine(upload.open(of_any_size=True))
            try:
                await opening.addTimeout(left, self._clock, _no_answer)
                return upload
            except UploadError as e:
                self._end(upload)
                if not means_away(e) or self._clock.seconds() - began + delay > self._helper_wait:
                    raise
            await deferLater(self._clock, delay)
            delay *= 2


def _no_answer(_result: object, seconds: float) -> NoReturn:
    raise HelperUnreachable(f"no answer for {seconds:.0f} seconds")


def _paused(why: UploadError, patience: float) -> None:
    _log.warn("an upload waits for the helper ({code}), for {patience:.0f} seconds at most", code=why.code,
              patience=patience)


def _resumed(seconds: float) -> None:
    _log.info("the helper is back after {seconds:.0f} seconds; an upload goes on", seconds=seconds)
