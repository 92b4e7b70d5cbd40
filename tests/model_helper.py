"""A helper in memory, small enough to be seen to be right, which a test can end and start again at any moment.

It keeps the promises of protocol.txt §4 that a client builds on: what was acknowledged stays over a restart, what was
only received does not; a repeat is answered like the first. And it writes down every byte that came for an offset.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from world import KEY, expected

from client_shim.cipher import Encryptor
from client_shim.errors import HelperLost, HelperRefused, HelperUnreachable
from client_shim.helper_edge import HelperAnswer
from helper.ciphertext import CiphertextHasher
from helper.parameters import Parameters


@attrs.define
class ModelUpload:
    """What a helper knows of an upload."""

    wire: dict[bytes, int]
    received: bytearray = attrs.field(factory=bytearray)
    durable: int = 0
    storage_indexes: list[bytes] = attrs.field(factory=list)
    orders: list[bytes] = attrs.field(factory=list)
    ueb: bytes | None = None
    ended: str = ""


class ModelHelper:
    """`fate` is asked before each call that arrives, with the method: "ok"; "lost", when the call is not carried
    out and the connection breaks; "done", when it is carried out and the answer is lost with the connection;
    "killed" or "done, killed": the same, and what was not durable is lost too; or a code, which is the answer.
    """

    def __init__(self, clock: Clock, parameters: Parameters) -> None:
        self.clock = clock
        self.parameters = parameters
        self.uploads: dict[bytes, ModelUpload] = {}
        self.fate: Callable[[str], str] = lambda _method: "ok"
        #: Seconds until a message is durable.
        self.sync_time = 0.01
        self.open_fields: dict[str, int | bytes] = {}
        self.put_fields: dict[str, int | bytes] = {}
        self.status_fields: dict[str, int | bytes] = {}
        #: Every byte that was ever sent, by offset: whatever was sent there later must be the same.
        self.seen = bytearray()
        self.calls: list[str] = []
        self.connects: list[float] = []
        self.most_unanswered = 0
        self.up = True
        self.link: ModelLink | None = None

    async def connect(self) -> ModelLink:
        self.connects.append(self.clock.seconds())
        if not self.up:
            raise HelperUnreachable("ConnectionRefusedError")
        self.link = ModelLink(self)
        return self.link

    def only(self) -> ModelUpload:
        (upload,) = self.uploads.values()
        return upload

    def cut(self) -> None:
        """The connection breaks."""
        if self.link is not None:
            self.link.break_()

    def kill(self) -> None:
        """The helper ends, and is started again at once."""
        self.cut()
        for upload in self.uploads.values():
            del upload.received[upload.durable:]

    # -- calls -----------------------------------------------------------------------------------------------

    def carry_out(self, method: str, upload_id: bytes, *arguments: Any) -> Deferred[HelperAnswer]:
        if method == "open":
            (wire,) = arguments
            upload = self.uploads.setdefault(upload_id, ModelUpload(wire))
            assert upload.wire == wire
            return self._answer({**self._status_fields(upload), "largest-message": 100, "storage-index-needed": 1,
                                 **self.open_fields})
        if upload_id not in self.uploads:
            raise HelperRefused("unknown-upload", "", {})
        upload = self.uploads[upload_id]
        d: Deferred[HelperAnswer] = getattr(self, f"_{method}")(upload, *arguments)
        return d

    def _put_ciphertext(self, upload: ModelUpload, offset: int, data: bytes) -> Deferred[HelperAnswer]:
        if offset > len(upload.received):
            raise HelperRefused("offset-gap", "", {})
        end = offset + len(data)
        assert upload.received[offset:end] == data[:len(upload.received) - offset]
        if upload.ueb is not None:
            raise HelperRefused("already-finishing", "", {})
        upload.received[offset:end] = data
        answer: Deferred[HelperAnswer] = Deferred()

        def synced() -> None:
            if len(upload.received) >= end:  # else the helper was killed meanwhile
                upload.durable = max(upload.durable, end)
                answer.callback(HelperAnswer("ok", {"durable": upload.durable, "credit": 1, **self.put_fields}, []))

        self.clock.callLater(self.sync_time, synced)
        return answer

    def see(self, offset: int, data: bytes) -> None:
        assert offset <= len(self.seen), "a gap"
        before = self.seen[offset:offset + len(data)]
        assert before == data[:len(before)], f"two ciphertexts at offset {offset}"
        self.seen[offset:offset + len(data)] = data

    def _status(self, upload: ModelUpload) -> Deferred[HelperAnswer]:
        return self._answer({**self._status_fields(upload), **self.status_fields})

    def _status_fields(self, upload: ModelUpload) -> dict[str, int | bytes]:
        state = b"open" if upload.ueb is None else b"finished"
        ended: dict[str, int | bytes] = {"reason": upload.ended.encode()} if upload.ended else {}
        return {"state": state, "received": len(upload.received), "durable": upload.durable,
                "credit": 1000 - (len(upload.received) - upload.durable), **ended}

    def _assign(self, upload: ModelUpload, storage_index: bytes) -> Deferred[HelperAnswer]:
        upload.storage_indexes.append(storage_index)
        return self._answer({"state": b"open"})

    def _order(self, upload: ModelUpload, order: bytes) -> Deferred[HelperAnswer]:
        upload.orders.append(order)
        return self._answer({"state": b"open"})

    def _finish(self, upload: ModelUpload, size: int, storage_index: bytes, crypttext_hash: bytes,
                crypttext_root_hash: bytes) -> Deferred[HelperAnswer]:
        if size != len(upload.received):
            raise HelperRefused("size-mismatch", "", {"expected": len(upload.received), "came": size})
        p = self.parameters
        hasher = CiphertextHasher(p.k, p.max_segment_size)
        hasher.update(bytes(upload.received))
        hashes = hasher.hashes()
        assert (hashes.crypttext_hash, hashes.crypttext_root_hash) == (crypttext_hash, crypttext_root_hash)
        upload.storage_indexes.append(storage_index)
        answer: Deferred[HelperAnswer] = Deferred()

        def synced() -> None:
            if len(upload.received) == size:  # else the helper was killed meanwhile
                upload.durable = size
                upload.ueb = expected(Encryptor(KEY).encrypt(bytes(upload.received)), p).ueb  # as stock makes it
                answer.callback(HelperAnswer("ok", {"state": b"finished", "ueb": upload.ueb}, []))

        self.clock.callLater(self.sync_time, synced)
        return answer

    def _abort(self, upload: ModelUpload) -> Deferred[HelperAnswer]:
        upload.ended = "aborted"
        return self._answer({"state": b"aborted"})

    def _answer(self, fields: dict[str, int | bytes]) -> Deferred[HelperAnswer]:
        d: Deferred[HelperAnswer] = Deferred()
        d.callback(HelperAnswer("ok", fields, []))
        return d


class ModelLink:
    """A connection to a ModelHelper. Calls and answers take a turn of the clock each, in order."""

    largest_message = 100

    def __init__(self, helper: ModelHelper) -> None:
        self._helper = helper
        self._broken = False
        self._lost: list[Callable[[], None]] = []
        self._waiting: list[Deferred[HelperAnswer]] = []
        self._unanswered = 0

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._lost.append(callback)
        return partial(self._lost.remove, callback)

    def break_(self) -> None:
        if not self._broken:
            self._broken = True
            waiting, self._waiting = self._waiting, []
            for d in waiting:
                d.errback(HelperLost())
            for callback in list(self._lost):
                callback()

    def __getattr__(self, method: str) -> Callable[..., Deferred[HelperAnswer]]:
        if method not in ("open", "put_ciphertext", "status", "assign", "order", "finish", "abort"):
            raise AttributeError(method)
        return lambda *arguments: self._call(method, *arguments)

    def _call(self, method: str, *arguments: Any) -> Deferred[HelperAnswer]:
        d: Deferred[HelperAnswer] = Deferred()
        if self._broken:
            d.errback(HelperLost())
            return d
        self._waiting.append(d)
        size = 0
        if method == "put_ciphertext":
            _upload_id, offset, data = arguments
            size = len(data)
            self._helper.see(offset, data)
        self._unanswered += size
        self._helper.most_unanswered = max(self._helper.most_unanswered, self._unanswered)
        self._helper.clock.callLater(0.001, self._arrive, d, size, method, arguments)
        return d

    def _arrive(self, d: Deferred[HelperAnswer], size: int, method: str, arguments: tuple[Any, ...]) -> None:
        if self._broken:
            return
        helper = self._helper
        helper.calls.append(method)
        fate = helper.fate(method)
        if fate == "lost":
            self.break_()
            return
        if fate == "killed":
            helper.kill()
            return
        if fate not in ("ok", "done", "done, killed"):
            self._settle(d, size, HelperRefused(fate, fate, {}))
            return

        def answered(answer: HelperAnswer) -> None:
            if fate == "done":
                self.break_()
            elif fate == "done, killed":
                helper.kill()
            else:
                helper.clock.callLater(0.001, self._settle, d, size, answer)

        try:
            helper.carry_out(method, *arguments).addCallback(answered)
        except HelperRefused as e:
            self._settle(d, size, e)

    def _settle(self, d: Deferred[HelperAnswer], size: int, result: HelperAnswer | HelperRefused) -> None:
        if d in self._waiting:
            self._waiting.remove(d)
            self._unanswered -= size
            if isinstance(result, HelperRefused):
                d.errback(result)
            else:
                d.callback(result)
