"""The ciphertext of one handle on its way: encrypted, journalled, sent, durable at the helper.

Only what is durable in the journal is sent, with the state of the hashes behind it. So whatever happens to this
process, a later one sends the identical bytes, and encrypts nothing anew that was ever sent (protocol.txt §10.4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import attrs
from allmydata.util import hashutil
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from client_shim.cipher import Encryptor
from client_shim.disclosure import RevealStorageIndex
from client_shim.errors import UploadClosed, UploadError, Waiting
from client_shim.gateway.handle_errors import HandleError
from client_shim.gateway.handle_records import HandleRecord, HandleState, RingRow, hasher_of
from client_shim.gateway.journal import ROW_MAX, Append, Journal, free
from client_shim.gateway.resumable_hash import HashState
from client_shim.gateway.ring_memory import RingMemory, RingPart
from client_shim.helper_upload import Begun, HelperUpload, UploadEvents
from client_shim.reconnect import Link
from client_shim.verify import cap_of
from helper.interfaces import LITERAL_MAX

#: Plaintext is encrypted in pieces of at most this many bytes.
PIECE = 256 * 1024
#: What waits for the helper is at most so many windows (protocol.txt §7.2): one on its way and one behind it, so that
#: waiting for all of it takes about two seconds on any link.
WINDOWS = 2


@attrs.frozen
class StreamParts:
    """What all streams of a gateway share. `now`: seconds since the epoch."""

    journal: Journal
    memory: RingMemory
    connect: Callable[[], Awaitable[Link]]
    clock: IReactorTime
    now: Callable[[], float]
    reveal: RevealStorageIndex


class Stream:
    """A handle that is awake. `changed` is called whenever it has got on, `failed` when the upload has ended at the
    helper or cannot go on there."""

    def __init__(self, record: HandleRecord, ring: list[RingRow], parts: StreamParts, changed: Callable[[], None],
                 failed: Callable[[UploadError], None]) -> None:
        if record.key is None or record.upload_id is None:
            raise ValueError("a handle that has ended has no stream")
        self._number, self._key, self._parameters = record.number, record.key, record.parameters
        self._parts = parts
        self._part = RingPart(parts.memory, changed)
        self._changed = changed
        self._failed = failed
        self.length = record.length
        """Bytes encrypted."""
        self.journalled = record.length
        """Of these, bytes durable in the journal."""
        self.journalled_hashes = record.hashes
        """Of these, the hashes."""
        self.away = ""
        """The code of why the helper is looked for, while it is."""
        self._encryptor = Encryptor(record.key, record.length)
        self._hasher = hasher_of(record)
        self._pending: list[bytes] = []
        self._appending = False
        self._rows = deque(row.end for row in ring)
        self._freed = ring[0].start if ring else record.length  # the journal has nothing before this
        self._seen_durable = self._freed
        self._stated = self._durable_of(record.length)
        self._start_of_file = b"".join(row.data for row in ring) if record.length <= LITERAL_MAX else b""
        self._stopped = False
        begun_ring = () if record.length <= LITERAL_MAX else tuple(row.data for row in ring)
        storage_index = bytes(hashutil.storage_index_hash(record.key))
        events = UploadEvents(self._progress, self._upload_failed, self._paused, self._resumed, self._connected)
        self._upload = HelperUpload(
            parts.connect, parts.clock, record.upload_id, record.parameters, storage_index, parts.reveal, float("inf"),
            events, Begun(self._freed, begun_ring, record.state is HandleState.COMPLETING))
        self._at_helper = False  # the helper is being asked

    def start(self) -> None:
        """Go on with what is there: send the ring, if there is an upload."""
        self._hold()
        self._call_helper()

    # -- plaintext -------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes that `take` may be given now."""
        return min(PIECE, self._part.room(WINDOWS * self._upload.outbox.window_size))

    def take(self, plaintext: bytes | memoryview) -> None:
        """The next bytes of the file: at most `room`. The one place through which plaintext passes."""
        ciphertext = self._encryptor.encrypt(plaintext)
        self._hasher.update(ciphertext)
        self._pending.append(ciphertext)
        self.length += len(ciphertext)
        self._hold()
        self._append()

    # -- what is durable ---------------------------------------------------------------------------------------

    @property
    def durable(self) -> int:
        """What may be stated: durable at the helper; or up to 55 bytes, in the journal. Never goes back."""
        self._stated = max(self._stated, self._durable_of(self.journalled))
        return self._stated

    @property
    def settled(self) -> bool:
        """Whether all that was taken is durable, and the helper (if it knows the upload) takes the next byte now."""
        return self.durable == self.length and (self.length <= LITERAL_MAX or self._upload.connected)

    @property
    def resting(self) -> bool:
        """Whether nothing is on its way."""
        return self.durable == self.length and not self._appending

    def _durable_of(self, journalled: int) -> int:
        return max(self._seen_durable, min(journalled, LITERAL_MAX))

    # -- the end ---------------------------------------------------------------------------------------------

    async def finish(self) -> tuple[bytes | None, bytes | None]:
        """All was journalled, and that it is complete. Returns (cap, None), or for a file of at most 55 bytes (None,
        its ciphertext). While too few servers are there it goes on asking. Raises an UploadError."""
        if self.length <= LITERAL_MAX:
            return None, self._start_of_file
        hashes = self._hasher.hashes()
        while True:
            try:
                ueb = await self._upload.finish(hashes)
            except Waiting as e:
                self.away = e.code
                self._changed()
            else:
                return cap_of(self._key, self._parameters, hashes, ueb), None

    def stop(self) -> None:
        """Let it be: nothing is journalled or sent any more, and the helper keeps what it has."""
        if not self._stopped:
            self._stopped = True
            self._part.leave()
            self._upload.leave()

    async def rest(self) -> None:
        """Forget in the journal what is at the helper; it is going to be stopped."""
        if self._freeable() > self._freed:
            await self._parts.journal.change(free(self._number, self._freeable()))

    async def abort(self) -> None:
        """Stop, and give it up at the helper, which is tried for a few seconds."""
        self._stopped = True
        self._part.leave()
        self._upload.fail(UploadClosed())
        if self.journalled > LITERAL_MAX:
            await self._upload.abort()
        self._upload.leave()

    # -- journal ---------------------------------------------------------------------------------------------

    def _append(self) -> None:
        if self._appending or self._stopped or not self._pending:
            return
        ciphertext, start = b"".join(self._pending), self.journalled
        self._pending.clear()
        self._appending = True
        below = self._freeable()
        append = Append(self._number, start, ciphertext, self._hasher.state(), self._parts.now(),
                        below if below > self._freed else 0)
        d = self._parts.journal.append(append)
        d.addCallbacks(self._appended, self._not_appended, callbackArgs=(ciphertext, append.hashes, below))

    def _appended(self, _none: None, ciphertext: bytes, hashes: HashState, below: int) -> None:
        self._appending = False
        if self._stopped:
            return
        self._freed = max(self._freed, below)
        while self._rows and self._rows[0] <= below:
            self._rows.popleft()
        end = self.journalled + len(ciphertext)
        self._rows.extend([*range(self.journalled + ROW_MAX, end, ROW_MAX), end])
        self.journalled, self.journalled_hashes = end, hashes
        self._append()
        if end <= LITERAL_MAX:
            self._start_of_file += ciphertext
        else:
            ciphertext, self._start_of_file = self._start_of_file + ciphertext, b""
            self._upload.give(ciphertext)
            self._call_helper()
        self._changed()

    def _not_appended(self, failure: Failure) -> None:
        failure.trap(HandleError)  # the journal tells everybody
        self._appending = False

    def _hold(self) -> None:
        self._part.hold(self.length - self._seen_durable)

    def _freeable(self) -> int:
        """Rows that begin before this are at the helper."""
        below = self._freed
        for end in self._rows:
            if end > self._seen_durable:
                break
            below = end
        return below

    # -- helper ----------------------------------------------------------------------------------------------

    def _call_helper(self) -> None:
        if self.journalled > LITERAL_MAX and not (self._at_helper or self._stopped):
            self._at_helper = True
            self._upload.start()

    def _progress(self) -> None:
        if self._stopped:
            return
        durable = self._upload.outbox.durable
        self._seen_durable = max(self._seen_durable, durable)
        self._hold()
        self._changed()

    def _connected(self) -> None:
        self.away = ""
        self._progress()

    def _paused(self, why: UploadError, _patience: float) -> None:
        self.away = why.code
        self._changed()

    def _resumed(self, _seconds: float) -> None:
        self.away = ""
        self._changed()

    def _upload_failed(self) -> None:
        if not self._stopped and self._upload.error is not None:
            self._failed(self._upload.error)
