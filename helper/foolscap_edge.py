"""Our Referenceables: decode, call, encode; no rules."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from allmydata.immutable.offloaded import Helper
from foolscap.api import Referenceable
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from helper.errors import HelperFault, StreamingError, fault_of
from helper.interfaces import (
    VERSION_FURL,
    VERSION_KEY,
    VERSION_LARGEST_MESSAGE,
    RIStreamingHelper,
)
from helper.upload import Answered
from helper.uploads import Uploads
from helper.wire_fields import wire_fields

WireAnswer = tuple[dict[bytes, int | bytes], list[tuple[int, bytes, bytes, int]]]


class AnnouncingHelper(Helper):  # type: ignore[misc]
    """The stock helper, which in its version also says where the streaming one is (protocol.txt §2).

    A Referenceable may have one RemoteInterface only, hence a second one behind a furl of its own.
    """

    def announce(self, furl: str, largest_message: int) -> None:
        """Tell clients that ask for our version of `furl`."""
        self.VERSION = {**Helper.VERSION, VERSION_KEY: {
            VERSION_FURL: furl.encode("ascii"), VERSION_LARGEST_MESSAGE: largest_message}}


@implementer(RIStreamingHelper)  # type: ignore[misc]
class StreamingHelper(Referenceable):  # type: ignore[misc]
    """RIStreamingHelper over Uploads."""

    log = Logger()

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    def remote_open(self, upload_id: bytes, parameters: Mapping[bytes, int]) -> Deferred[WireAnswer]:
        return self._answer(self._uploads.open(upload_id, parameters))

    def remote_put_ciphertext(self, upload_id: bytes, offset: int, data: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._uploads.put_ciphertext(upload_id, offset, data))

    def remote_status(self, upload_id: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._uploads.status(upload_id))

    def remote_assign(self, upload_id: bytes, storage_index: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._uploads.assign(upload_id, storage_index))

    def remote_order(self, upload_id: bytes, order: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._uploads.order(upload_id, order))

    def remote_finish(self, upload_id: bytes, size: int, storage_index: bytes, crypttext_hash: bytes,
                      crypttext_root_hash: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._uploads.finish(
            upload_id, size, storage_index, crypttext_hash, crypttext_root_hash))

    def remote_abort(self, upload_id: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._uploads.abort(upload_id))

    def remote_look_up(self, upload_id: bytes, convergent_storage_index: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._uploads.look_up(upload_id, convergent_storage_index))

    def remote_adopt(self, upload_id: bytes, storage_index: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._uploads.adopt(upload_id, storage_index))

    def remote_leave_record(self, upload_id: bytes, convergent_storage_index: bytes,
                            record: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._uploads.leave_record(upload_id, convergent_storage_index, record))

    def _answer(self, awaitable: Awaitable[Answered]) -> Deferred[WireAnswer]:
        return Deferred.fromCoroutine(self._encoded(awaitable))

    async def _encoded(self, awaitable: Awaitable[Answered]) -> WireAnswer:
        """Errors travel as values: a Foolscap failure would carry, and log, the arguments of the call."""
        try:
            return wire_answer(await awaitable)
        except StreamingError as error:
            if isinstance(error, HelperFault):
                self.log.warn("answered {code}", code=error.code)
            return wire_refusal(error)
        except Exception as error:  # noqa: BLE001 (a bug: whatever it is must not travel as a failure)
            self.log.failure("a call failed")
            return wire_refusal(fault_of(error))


def wire_answer(answer: Answered) -> WireAnswer:
    """protocol.txt §3.2."""
    shares = [(s.shnum, s.server.encode()[:64], s.state.encode(), s.position) for s in answer.shares]
    return wire_fields({"code": "ok", **answer.fields}), shares


def wire_refusal(error: StreamingError) -> WireAnswer:
    """protocol.txt §3.2."""
    return wire_fields({**error.fields(), "code": error.code, "text": error.text()}), []
