"""The ciphertext of one handle on its way: encrypted, journalled, sent, durable at the helper.

Only what is durable in the journal is sent, with the state of the hashes behind it. So whatever happens to this
process, a later one sends the identical bytes, and encrypts nothing anew that was ever sent (protocol.txt §10.4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import attrs
from allmydata import uri
from allmydata.util import hashutil
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from client_shim.cipher import Encryptor
from client_shim.dedup import Candidate, Content, Dedup, DedupMode, Finder, Outcome, record_of
from client_shim.disclosure import RevealStorageIndex
from client_shim.errors import UploadClosed, UploadError, Waiting
from client_shim.gateway.handle_errors import HandleError
from client_shim.gateway.handle_records import HandleRecord, HandleState, RingRow, hasher_of
from client_shim.gateway.journal import ROW_MAX, Append, Journal, free
from client_shim.gateway.resumable_content import ResumableContentHasher
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
    dedup: Callable[[DedupMode], Dedup | None] = lambda _mode: None
    """How files that are stored already are found; None if they cannot be."""


@attrs.frozen
class Finished:
    """A file that is stored: its cap; or, for one of at most 55 bytes, its ciphertext."""

    cap: bytes | None = attrs.field(repr=False)
    literal: bytes | None = attrs.field(default=None, repr=False)
    outcome: Outcome = Outcome.PUBLISHED


class Stream:
    """A handle that is awake. `changed` is called whenever it has got on, `failed` when the upload has ended at the
    helper or cannot go on there. `adopts` is told of a file that is about to be taken instead; it returns when that is
    durable."""

    def __init__(self, record: HandleRecord, ring: list[RingRow], parts: StreamParts, changed: Callable[[], None],
                 failed: Callable[[UploadError], None],
                 adopts: Callable[[bytes, Outcome], Awaitable[None]]) -> None:
        if record.key is None or record.upload_id is None:
            raise ValueError("a handle that has ended has no stream")
        self._number, self._key, self._parameters = record.number, record.key, record.parameters
        self._parts = parts
        self._part = RingPart(parts.memory, changed)
        self._changed = changed
        self._failed = failed
        self._adopts = adopts
        self._record = record
        self._dedup = parts.dedup(record.dedup)
        self._content = content_hasher_of(record, self._dedup)
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
        self._kept = bool(ring) and ring[0].start < record.at_helper  # the ring has more than may have to be sent
        ring = [row for row in ring if row.start >= record.at_helper]
        self._rows = deque(row.end for row in ring)
        self.freed = ring[0].start if ring else record.length
        """What is before this is at the helper, and the journal knows that."""
        self._seen_durable = self.freed
        self._stated = self._durable_of(record.length)
        self._start_of_file = b"".join(row.data for row in ring) if record.length <= LITERAL_MAX else b""
        self._stopped = False
        begun_ring = () if record.length <= LITERAL_MAX else tuple(row.data for row in ring)
        storage_index = bytes(hashutil.storage_index_hash(record.key))
        events = UploadEvents(self._progress, self._upload_failed, self._paused, self._resumed, self._connected)
        self._upload = HelperUpload(
            parts.connect, parts.clock, record.upload_id, record.parameters, storage_index, parts.reveal, float("inf"),
            events, Begun(self.freed, begun_ring, record.state is HandleState.COMPLETING,
                          record.adopting is not None))
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
        if self._content is not None:
            self._content.update(plaintext)
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

    async def finish(self) -> Finished:
        """All was journalled, and that it is complete. While too few servers are there it goes on asking. Raises an
        UploadError."""
        if self.length <= LITERAL_MAX:
            return Finished(None, self._start_of_file)
        self._upload.complete()
        hashes = self._hasher.hashes()
        content = await self._whole_content()
        taken = await self._take_existing(content)
        if taken is not None:
            return taken
        while True:
            try:
                ueb = await self._upload.finish(hashes)
            except Waiting as e:
                self.away = e.code
                self._changed()
            else:
                break
        cap = cap_of(self._key, self._parameters, hashes, ueb)
        if content is not None:
            self._upload.leave_record(content.convergent_index, record_of(cap, content))  # nobody waits for it
        return Finished(cap)

    async def _take_existing(self, content: Content | None) -> Finished | None:
        """A file that is stored already, which was taken instead."""
        before = self._record
        if before.adopting is not None and before.outcome is not None:
            # An earlier process has asked for it, and the helper may have done it: then there is nothing else.
            storage_index = bytes(uri.from_string(before.adopting).get_storage_index())
            if await self._upload.adopt(storage_index):
                return Finished(before.adopting, outcome=before.outcome)
        if content is None or self._dedup is None:
            return None
        await self._upload.reached()
        found = await Finder(self._dedup, self._parameters, self._parts.clock).find(
            content, self._upload, before_adopt=self._will_adopt)
        return None if found is None else Finished(found.cap, outcome=found.outcome)

    async def _will_adopt(self, candidate: Candidate) -> None:
        await self._adopts(candidate.cap, candidate.outcome)

    async def _whole_content(self) -> Content | None:
        """What is known of the whole plaintext. If its length was not declared, and it is short, it is read once more:
        it is in the ring. None if it is not."""
        content = self._content
        if content is None or not content.needs_all:
            return None if content is None else content.end()
        ring = await self._parts.journal.ring(attrs.evolve(self._record, hashes=self.journalled_hashes))
        if not ring or ring[0].start:
            return None
        return content.end(Encryptor(self._key).encrypt(b"".join(row.data for row in ring)))

    def stop(self) -> None:
        """Let it be: nothing is journalled or sent any more, and the helper keeps what it has."""
        if not self._stopped:
            self._stopped = True
            self._part.leave()
            self._upload.leave()

    async def rest(self) -> None:
        """Forget in the journal what is at the helper; it is going to be stopped."""
        if self._freeable() > self.freed:
            below = self._freeable()
            await self._parts.journal.change(free(self._number, below, keep=self._keeps_ring))
            self.freed = max(self.freed, below)

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
        below, keeps = self._freeable(), self._keeps_ring
        append = Append(self._number, start, ciphertext, self._state(), self._parts.now(),
                        below if below > self.freed or (self._kept and not keeps) else 0, keeps)
        self._kept = keeps
        d = self._parts.journal.append(append)
        d.addCallbacks(self._appended, self._not_appended, callbackArgs=(ciphertext, append.hashes, below))

    @property
    def _keeps_ring(self) -> bool:
        """Whether all of the ring is needed if the file ends here."""
        return self._content is not None and self._content.needs_all

    def _state(self) -> HashState:
        state = self._hasher.state()
        return state if self._content is None else attrs.evolve(state, content=self._content.sealed(self._key))

    def _appended(self, _none: None, ciphertext: bytes, hashes: HashState, below: int) -> None:
        self._appending = False
        if self._stopped:
            return
        self.freed = max(self.freed, below)
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
        below = self.freed
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


def content_hasher_of(record: HandleRecord, dedup: Dedup | None) -> ResumableContentHasher | None:
    """Goes on with what is known of the plaintext of a record; None if nothing is, or nobody wants to know it."""
    if dedup is None or record.key is None or not record.hashes.content:
        return None
    try:
        return ResumableContentHasher.unsealed(
            record.parameters, dedup.convergence, record.key, record.hashes.content, record.length, dedup.choose)
    except ValueError:
        return None  # it is damaged: the file is stored as if it were new
