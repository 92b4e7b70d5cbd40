"""One upload as a program sees it: open, write, close → cap; or abort."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import attrs
from allmydata import uri
from allmydata.util import hashutil
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime

from client_shim.cipher import Encryptor, PlaintextDigests
from client_shim.dedup import Content, ContentHasher, Dedup, Finder, Outcome, record_of
from client_shim.disclosure import RevealStorageIndex
from client_shim.errors import DeclaredSize, UploadClosed, UploadError, UploadInterrupted
from client_shim.helper_upload import HelperUpload, UploadEvents
from client_shim.reconnect import Link
from client_shim.verify import cap_of
from helper.ciphertext import CiphertextHasher
from helper.interfaces import KEY_SIZE, LARGEST_MESSAGE, LITERAL_MAX, UPLOAD_ID_SIZE
from helper.parameters import Parameters

#: Plaintext is encrypted in pieces of at most this many bytes, so that a huge write costs little memory. It is what a
#: large message holds: such a piece is sent uncopied.
PIECE = LARGEST_MESSAGE
#: What is shorter is encrypted at once: it would take longer to ask a thread.
WORTH_A_THREAD = 128 * 1024
#: How long (seconds) a helper that was lost is looked for.
PATIENCE = 3600

#: Runs a function in some thread and fires with its result.
RunInThread = Callable[..., Deferred[Any]]


@attrs.frozen
class Progress:
    """Where an upload is; bytes. `accepted` ≥ `sent` ≥ `durable`; `size` if it was declared."""

    accepted: int
    sent: int
    durable: int
    size: int | None


class StreamingUpload:
    """A file on its way to the grid.

    `connect` gives a link to the helper; it is called when the file turns out to need one (more than 55
    bytes), and not before; and again whenever the helper was lost, until `patience` seconds have passed without a
    connection (the first time, a helper that cannot be reached ends the upload at once). `on_paused` is called with
    the reason and the seconds of patience left when the helper is lost, `on_resumed` with the seconds it was away.

    `key` (16 bytes) is random unless given; never give one that encrypts anything else. `reveal` says when the
    helper is told the storage index. `dedup` says how a file is found that is stored already (None: nothing is looked
    for); after `close`, `outcome` says what became of this one. One call at a time: `write` and `close` wait for
    those before them. `on_failed` is called when the upload fails by itself, between calls too; the next call raises
    why. A call that ends by another exception, as when it is cancelled, fails the upload as well (UploadInterrupted):
    nobody knows what it has taken. `on_taken` is called when the memory of what `write` was given may be used for other
    things, before all of it is sent. `in_thread`, if given, runs what encrypts and hashes, while the reactor sends.
    """

    def __init__(self, connect: Callable[[], Awaitable[Link]], parameters: Parameters, clock: IReactorTime, *,
                 key: bytes | None = None, digests: PlaintextDigests | None = None,
                 reveal: RevealStorageIndex = RevealStorageIndex.AUTO, patience: float = PATIENCE,
                 dedup: Dedup | None = None,
                 on_progress: Callable[[Progress], None] = lambda _progress: None,
                 on_failed: Callable[[], None] = lambda: None,
                 on_paused: Callable[[UploadError, float], None] = lambda _why, _patience: None,
                 on_resumed: Callable[[float], None] = lambda _seconds: None,
                 on_taken: Callable[[], None] = lambda: None,
                 in_thread: RunInThread | None = None) -> None:
        self._parameters = parameters
        self._in_thread = in_thread
        self._key = os.urandom(KEY_SIZE) if key is None else key
        self._upload_id = os.urandom(UPLOAD_ID_SIZE)
        self._digests = digests
        self._on_progress = on_progress
        self._on_failed = on_failed
        self._on_taken = on_taken
        self._helper = HelperUpload(
            connect, clock, self._upload_id, parameters, bytes(hashutil.storage_index_hash(self._key)), reveal,
            patience, UploadEvents(lambda: on_progress(self.progress), self._failed, on_paused, on_resumed))
        self.outcome = Outcome.PUBLISHED
        self._finder = None if dedup is None else Finder(dedup, parameters, clock)
        self._content = None if dedup is None else ContentHasher(parameters, dedup.convergence, dedup.choose)
        self._clock = clock
        self._leaving: Deferred[None] = succeed(None)
        self._lock = DeferredLock()
        self._encryptor = Encryptor(self._key)
        self._hasher = CiphertextHasher(parameters.k, parameters.max_segment_size, parameters.size)
        self._literal = b""  # plaintext, until it is too long for a URI:LIT
        self._accepted = 0
        self._over = False
        self._abort_wanted = False

    @property
    def progress(self) -> Progress:
        outbox = self._helper.outbox
        return Progress(self._accepted, outbox.sent, outbox.durable, self._parameters.size)

    async def open(self, *, of_any_size: bool = False) -> None:
        """Open the upload at the helper now, if it is known to need one; with `of_any_size`, also if it is not known.
        `write` does it otherwise."""
        async with self._lock_held():
            size = self._parameters.size
            if of_any_size if size is None else size > LITERAL_MAX:
                await self._helper.open()

    async def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the file. Returns when they are on their way to the helper: encrypted, and
        sent but for less than a message; what is on its way is bounded (protocol.txt §7.2). While the helper is
        away, it waits.

        Raises an UploadError if the upload cannot go on; every later call raises the same.
        """
        async with self._lock_held():
            declared = self._parameters.size
            if declared is not None and self._accepted + len(data) > declared:
                await self._give_up(DeclaredSize(declared, self._accepted + len(data)))
            if self._digests is not None:
                self._digests.update(data)
            self._accepted += len(data)
            if self._accepted <= LITERAL_MAX:
                self._literal += data
                self._on_taken()
                return
            await self._helper.open()
            data, self._literal = self._literal + data if self._literal else data, b""
            view = memoryview(data)
            for start in range(0, len(view), PIECE):
                ciphertext = await self._encrypted(view[start:start + PIECE])
                if start + PIECE >= len(view):
                    self._on_taken()
                await self._helper.send(ciphertext)

    async def _encrypted(self, plaintext: memoryview) -> bytes:
        if self._in_thread is None or len(plaintext) < WORTH_A_THREAD:
            return self._encrypt(plaintext)
        ciphertext: bytes = await self._in_thread(self._encrypt, plaintext)
        return ciphertext

    def _encrypt(self, plaintext: memoryview) -> bytes:
        """In whatever thread, one call at a time: the next bytes, hashed. They are sent as they are, if they make a
        message (outbox.py): each copy would cost as much as their encryption."""
        if self._content is not None:
            self._content.update(plaintext)
        ciphertext = self._encryptor.encrypt(plaintext)
        self._hasher.update(ciphertext)
        return ciphertext

    async def close(self) -> bytes:
        """The file is complete: returns its read cap. Costs what is still on its way, and a few round trips."""
        async with self._lock_held():
            declared = self._parameters.size
            if declared is not None and self._accepted != declared:
                await self._give_up(DeclaredSize(declared, self._accepted))
            if self._digests is not None:
                self._digests.end()
            if self._accepted <= LITERAL_MAX:
                self._over = self._abort_wanted = True
                await self._helper.abort()  # if it was opened before it turned out to be so short
                return bytes(uri.LiteralFileURI(self._literal).to_string())
            self._helper.complete()
            content = None if self._content is None else self._content.end()
            cap = None if content is None else await self._take_existing(content)
            if cap is None:
                hashes = self._hasher.hashes()
                cap = cap_of(self._key, self._parameters, hashes, await self._helper.finish(hashes))
                if content is not None:
                    self._leaving = self._helper.leave_record(content.convergent_index, record_of(cap, content))
            self._over = True
            self._on_progress(self.progress)
            return cap

    async def find(self, content: Content) -> bytes | None:
        """Before anything is written, for a file that is known and will be encrypted under its convergent key: its
        cap, if it is stored already; the upload is over then. Otherwise `close` will not look for it again."""
        async with self._lock_held():
            self._content = None
            await self._helper.open()
            cap = await self._take_existing(content, streamed=False)
            self._over = cap is not None
            return cap

    async def settle(self, seconds: float) -> None:
        """After `close`: wait until the helper has what was left for those who will have the same file, but no
        longer than so many seconds."""
        waiting: Deferred[None] = Deferred()
        self._leaving.addCallback(lambda _none: None if waiting.called else waiting.callback(None))
        try:
            await waiting.addTimeout(seconds, self._clock)
        except TimedOut:
            pass

    async def _take_existing(self, content: Content, streamed: bool = True) -> bytes | None:
        """The cap of a file that is stored already, which was taken instead of this upload."""
        found = None if self._finder is None else await self._finder.find(content, self._helper, streamed)
        if found is None:
            return None
        self.outcome = found.outcome
        return found.cap

    async def abort(self) -> None:
        """Give the upload up: the helper forgets it and lets go of its shares. Does not wait for `write`.

        Safe to repeat, and after any error; never raises an UploadError.
        """
        if not self._over:
            self._over = True
            self._helper.fail(UploadClosed())
            self._abort_wanted = True
        if self._abort_wanted:
            await self._helper.abort()

    async def _give_up(self, error: UploadError) -> NoReturn:
        """Raises `error`, or the error that came before it."""
        self._helper.fail(error)
        if not self._over:
            self._over = self._abort_wanted = True
        if self._abort_wanted:
            await self._helper.abort()
        raise self._helper.error or error

    def _interrupted(self, error: BaseException) -> None:
        """Waits for nothing: what was cancelled shall end."""
        if not self._over:
            self._over = self._abort_wanted = True
            self._helper.fail(UploadInterrupted(type(error).__name__))
            Deferred.fromCoroutine(self._helper.abort())

    def _failed(self) -> None:
        if not self._over:
            self._on_failed()

    def _lock_held(self) -> _Held:
        return _Held(self)


@attrs.frozen
class _Held:
    """One call at a time, and none after the end."""

    upload: StreamingUpload

    async def __aenter__(self) -> None:
        try:
            await self.upload._lock.acquire()
        except BaseException as e:
            # The call was cancelled before its turn. Those behind it would go on as if it had been done.
            self.upload._interrupted(e)
            raise
        try:
            if self.upload._helper.error is not None:
                await self.upload._give_up(self.upload._helper.error)
            if self.upload._over:
                raise UploadClosed()
        except UploadError:
            self.upload._lock.release()
            raise

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            if isinstance(error, UploadError):
                await self.upload._give_up(error)
            elif error is not None:
                self.upload._interrupted(error)  # nobody knows how much it has done
        finally:
            self.upload._lock.release()
