"""One upload as a program sees it: open, write, close → cap; or abort."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

import attrs
from allmydata import uri
from allmydata.util import hashutil
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from client_shim.cipher import Encryptor, PlaintextDigests
from client_shim.disclosure import Assign, Disclosure, Order, RevealStorageIndex, Statement
from client_shim.errors import DeclaredSize, HelperLost, HelperMisbehaved, UploadClosed, UploadError, Waiting
from client_shim.helper_edge import HelperAnswer
from client_shim.verify import cap_of
from client_shim.window import SendWindow
from helper.ciphertext import CiphertextHasher
from helper.interfaces import KEY_SIZE, LITERAL_MAX, UPLOAD_ID_SIZE
from helper.parameters import Parameters

T = TypeVar("T")

#: Plaintext is encrypted in pieces of at most this many bytes, so that a huge write costs little memory.
PIECE = 256 * 1024
#: How often (seconds) finish is asked again while the helper waits for servers, and for how long.
WAITING_INTERVAL = 1.0
WAITING_PATIENCE = 3600


class Link(Protocol):
    """What an upload needs of a helper: helper_edge.HelperLink."""

    largest_message: int

    def open(self, upload_id: bytes, parameters: dict[bytes, int]) -> Awaitable[HelperAnswer]: ...
    def put_ciphertext(self, upload_id: bytes, offset: int, data: bytes) -> Awaitable[HelperAnswer]: ...
    def status(self, upload_id: bytes) -> Awaitable[HelperAnswer]: ...
    def assign(self, upload_id: bytes, storage_index: bytes) -> Awaitable[HelperAnswer]: ...
    def order(self, upload_id: bytes, order: bytes) -> Awaitable[HelperAnswer]: ...
    def finish(self, upload_id: bytes, size: int, storage_index: bytes, crypttext_hash: bytes,
               crypttext_root_hash: bytes) -> Awaitable[HelperAnswer]: ...
    def abort(self, upload_id: bytes) -> Awaitable[HelperAnswer]: ...


@attrs.frozen
class Progress:
    """Where an upload is; bytes. `accepted` ≥ `sent` ≥ `durable`; `size` if it was declared."""

    accepted: int
    sent: int
    durable: int
    size: int | None


class StreamingUpload:
    """A file on its way to the grid.

    `connect` gives the link to the helper; it is called when the file turns out to need one (more than 55
    bytes), and not before. `key` (16 bytes) is random unless given; never give one that encrypts anything
    else. `reveal` says when the helper is told the storage index. One call at a time: `write` and `close` wait
    for those before them. `on_failed` is called when the upload fails by itself, between calls too; the next call
    raises why.
    """

    def __init__(self, connect: Callable[[], Awaitable[Link]], parameters: Parameters, clock: IReactorTime, *,
                 key: bytes | None = None, digests: PlaintextDigests | None = None,
                 reveal: RevealStorageIndex = RevealStorageIndex.AUTO,
                 on_progress: Callable[[Progress], None] = lambda _progress: None,
                 on_failed: Callable[[], None] = lambda: None) -> None:
        self._connect = connect
        self._parameters = parameters
        self._clock = clock
        self._key = os.urandom(KEY_SIZE) if key is None else key
        self._upload_id = os.urandom(UPLOAD_ID_SIZE)
        self._digests = digests
        self._disclosure = Disclosure(reveal, self._storage_index)
        self._on_progress = on_progress
        self._on_failed = on_failed
        self._lock = DeferredLock()
        self._encryptor = Encryptor(self._key)
        self._hasher = CiphertextHasher(parameters.k, parameters.max_segment_size, parameters.size)
        self._literal = b""  # plaintext, until it is too long for a URI:LIT
        self._link: Link | None = None
        self._connecting: Deferred[Link] | None = None
        self._window: SendWindow | None = None
        self._unsent = bytearray()  # ciphertext
        self._accepted = self._sent = self._durable = 0
        self._room: Deferred[None] | None = None  # fires when something was acknowledged, or failed
        self._error: UploadError | None = None
        self._over = False
        self._abort_wanted = False
        self._aborting = DeferredLock()

    @property
    def progress(self) -> Progress:
        return Progress(self._accepted, self._sent, self._durable, self._parameters.size)

    async def open(self) -> None:
        """Open the upload at the helper now, if it is known to need one. `write` does it otherwise."""
        async with self._lock_held():
            if self._parameters.size is not None and self._parameters.size > LITERAL_MAX:
                await self._open_at_helper()

    async def write(self, data: bytes) -> None:
        """Take the next bytes of the file. Returns when they are on their way to the helper: encrypted, and
        sent but for less than a message; what is on its way is bounded (protocol.txt §7.2).

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
                return
            if self._link is None:
                await self._open_at_helper()
            data, self._literal = self._literal + data if self._literal else data, b""
            view = memoryview(data)
            for start in range(0, len(view), PIECE):
                ciphertext = self._encryptor.encrypt(view[start:start + PIECE])
                self._hasher.update(ciphertext)
                self._unsent += ciphertext
                await self._send(flush=False)

    async def close(self) -> bytes:
        """The file is complete: returns its read cap. Costs what is still on its way, and a few round trips."""
        async with self._lock_held():
            declared = self._parameters.size
            if declared is not None and self._accepted != declared:
                await self._give_up(DeclaredSize(declared, self._accepted))
            if self._digests is not None:
                self._digests.end()
            if self._accepted <= LITERAL_MAX:
                self._over = True
                return bytes(uri.LiteralFileURI(self._literal).to_string())
            await self._send(flush=True)
            try:
                cap = await self._finish()
            except UploadError as e:
                await self._give_up(e)
            self._over = True
            return cap

    async def abort(self) -> None:
        """Give the upload up: the helper forgets it and lets go of its shares. Does not wait for `write`.

        Safe to repeat, and after any error; never raises an UploadError.
        """
        if not self._over:
            self._over = True
            self._fail(UploadClosed())
            self._abort_wanted = True
            if self._connecting is not None:
                self._connecting.cancel()  # a helper that does not answer keeps nobody
        await self._abort_at_helper()

    # -- the helper ----------------------------------------------------------------------------------------

    async def _open_at_helper(self) -> None:
        if self._link is not None:
            return
        try:
            self._connecting = Deferred.fromCoroutine(_awaited(self._connect()))
            link = await self._connecting
            answer = await link.open(self._upload_id, self._parameters.to_wire())
            self._link = link
            self._check()  # abort() may have come meanwhile
            largest = min(link.largest_message, answer.number("largest-message"))
            self._window = SendWindow(max(1, answer.number("credit")), max(1, largest))
            needed, seeds = answer.number("storage-index-needed"), answer.fields.get("permutation-seeds")
            if isinstance(seeds, int):
                raise HelperMisbehaved("its permutation-seeds are a number")
            self._say(self._disclosure.opened(bool(needed), seeds))
        except UploadError as e:
            await self._give_up(e)
        except CancelledError:
            await self._give_up(UploadClosed())

    @property
    def _storage_index(self) -> bytes:
        return bytes(hashutil.storage_index_hash(self._key))

    def _say(self, statements: Iterable[Statement]) -> None:
        """Not awaited: it would cost a round trip, and ciphertext can follow at once."""
        if self._link is None:
            raise RuntimeError("not open")
        for statement in statements:
            match statement:
                case Assign(storage_index):
                    self._in_background(self._link.assign(self._upload_id, storage_index), lambda _answer: None)
                case Order(order):
                    asked = Deferred.fromCoroutine(_awaited(self._link.order(self._upload_id, order)))
                    asked.addErrback(lambda failure: failure.trap(UploadError))  # a hint, and no more

    async def _send(self, flush: bool) -> None:
        """Send what is unsent: all of it if `flush`, else all but less than a message. Waits for room."""
        window = self._window
        if window is None:
            raise RuntimeError("not open")
        while self._unsent:
            self._check()
            length = min(len(self._unsent), window.message_size)
            # Less than a message waits for more bytes, or until nothing is on its way.
            worth_sending = flush or length == window.message_size or window.in_flight == 0
            if worth_sending and window.may_send(length):
                self._send_message(window, length)
            elif worth_sending:
                self._room = Deferred()
                await self._room
            else:
                return

    def _send_message(self, window: SendWindow, length: int) -> None:
        if self._link is None:
            raise RuntimeError("not open")
        data, offset = bytes(self._unsent[:length]), self._sent
        del self._unsent[:length]
        self._sent += length
        window.sent(length, self._clock.seconds())

        def acknowledged(answer: HelperAnswer) -> None:
            window.acknowledged(length, self._clock.seconds())
            self._durable = max(self._durable, min(answer.number("durable"), self._sent))
            if answer.fields.get("storage-index-needed") == 1 and self._error is None:
                self._say(self._disclosure.answer_says_needed())
            self._on_progress(self.progress)
            if self._unsent and window.in_flight == 0 and self._room is None and self._error is None:
                # what `write` left behind because something was on its way
                self._send_message(window, min(len(self._unsent), window.message_size))
            self._make_room()

        self._in_background(self._link.put_ciphertext(self._upload_id, offset, data), acknowledged)

    def _in_background(self, answer: Awaitable[HelperAnswer], then: Callable[[HelperAnswer], None]) -> None:
        """Go on with `then` when the answer comes; if it does not, or is a refusal, the upload has failed."""

        def failed(failure: Failure) -> None:
            error = failure.value
            self._fail(error if isinstance(error, UploadError) else _unexpected(failure))
            if not self._over:
                self._on_failed()

        Deferred.fromCoroutine(_awaited(answer)).addCallback(then).addErrback(failed)

    async def _finish(self) -> bytes:
        if self._link is None:
            raise RuntimeError("not open")
        hashes = self._hasher.hashes()
        started = self._clock.seconds()
        while True:
            self._check()
            # Not after the last acknowledgement: finish waits for it at the helper, and saves a round trip.
            answer = await self._link.finish(self._upload_id, hashes.size, self._storage_index,
                                             hashes.crypttext_hash, hashes.crypttext_root_hash)
            if answer.code != "waiting":
                break
            waited = int(self._clock.seconds() - started)
            if waited > WAITING_PATIENCE:
                raise Waiting(answer.number("have"), answer.number("need"), waited)
            await deferLater(self._clock, WAITING_INTERVAL)
        self._check()  # abort() may have come meanwhile, or a wrong answer to a message
        ueb = answer.fields.get("ueb")
        cap = cap_of(self._key, self._parameters, hashes, ueb if isinstance(ueb, bytes) else b"")
        self._durable = hashes.size
        self._on_progress(self.progress)
        return cap

    async def _abort_at_helper(self) -> None:
        """At most once, however many want it; all wait for it."""
        async with self._aborting:
            if self._abort_wanted and self._link is not None:
                self._abort_wanted = False
                try:
                    await self._link.abort(self._upload_id)
                except UploadError:
                    pass  # the helper is gone, or has ended the upload itself; it expires there

    # -- errors ----------------------------------------------------------------------------------------------

    def _lock_held(self) -> _Held:
        return _Held(self)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def helper_lost(self) -> None:
        """The connection to the helper is gone."""
        if not self._over:
            self._fail(HelperLost())
            self._on_failed()

    def _fail(self, error: UploadError) -> None:
        if self._error is None:
            self._error = error
        self._make_room()

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)

    async def _give_up(self, error: UploadError) -> None:
        """Always raises: `error`, or the error that came before it."""
        self._fail(error)
        if not self._over:
            self._over = self._abort_wanted = True
        await self._abort_at_helper()
        self._check()


@attrs.frozen
class _Held:
    """One call at a time, and none after the end."""

    upload: StreamingUpload

    async def __aenter__(self) -> None:
        await self.upload._lock.acquire()
        try:
            if self.upload._error is not None:
                await self.upload._give_up(self.upload._error)
            if self.upload._over:
                raise UploadClosed()
        except UploadError:
            self.upload._lock.release()
            raise

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            if isinstance(error, UploadError) and not self.upload._over:
                await self.upload._give_up(error)
        finally:
            self.upload._lock.release()


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _unexpected(failure: Failure) -> UploadError:
    return HelperMisbehaved(f"its answer made {type(failure.value).__name__} here")
