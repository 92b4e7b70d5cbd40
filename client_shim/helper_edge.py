"""The Foolscap link to a helper: decode, call, encode; no rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from foolscap.api import DeadReferenceError, SturdyRef, Tub, Violation
from foolscap.furl import BadFURLError
from foolscap.tokens import BananaError, NegotiationError
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost

from client_shim.certificate import new_certificate
from client_shim.errors import (
    BadFurl,
    HelperLost,
    HelperMisbehaved,
    HelperRefused,
    HelperUnreachable,
    StockHelper,
    UploadError,
)
from helper.interfaces import (  # importing it also teaches Foolscap the schema of calls and answers
    LARGEST_MESSAGE_MAX,
    LARGEST_MESSAGE_MIN,
    VERSION_FURL,
    VERSION_KEY,
    VERSION_LARGEST_MESSAGE,
    Answer,
)
from helper.long_strings import LongStrings

_LOST = (DeadReferenceError, ConnectionDone, ConnectionLost)

#: Seconds of silence after which the connection is probed, and given up.
KEEPALIVE_TIMEOUT = 30
DISCONNECT_TIMEOUT = 120


@attrs.frozen
class ShareSeen:
    """A share as the helper reports it; `position` in bytes of ciphertext."""

    shnum: int
    server: str
    state: str
    position: int


@attrs.frozen
class HelperAnswer:
    """A positive answer of the helper (protocol.txt §3.2)."""

    code: str
    fields: Mapping[str, int | bytes]
    shares: list[ShareSeen]

    def number(self, name: str) -> int:
        """A field that must be a number. Raises HelperMisbehaved."""
        value = self.fields.get(name)
        if not isinstance(value, int):
            raise HelperMisbehaved(f"its answer has no number {name!r}")
        return value

    def text(self, name: str) -> str:
        """A field for people, made printable; empty if it is missing."""
        return _text(self.fields.get(name))


def make_tub() -> Tub:
    """A Tub for outgoing connections, to be started."""
    tub = Tub(certData=new_certificate())
    # Without the first, awaiting a call that fails remotely raises AttributeError (Foolscap 24.9, Twisted 26).
    tub.setOption("expose-remote-exception-types", False)
    # The others log arguments of failed calls.
    tub.setOption("logLocalFailures", False)
    tub.setOption("logRemoteFailures", False)
    tub.setOption("keepaliveTimeout", KEEPALIVE_TIMEOUT)
    tub.setOption("disconnectTimeout", DISCONNECT_TIMEOUT)
    tub.brokerClass = LongStrings
    return tub


class HelperLink:
    """RIStreamingHelper over a connection. Every method raises an UploadError if it does not succeed."""

    def __init__(self, rref: Any, largest_message: int) -> None:
        self._rref = rref
        self.largest_message = largest_message

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Be told once when the connection is gone; or no more, once what is returned was called."""
        marker = self._rref.notifyOnDisconnect(callback)

        def forget() -> None:
            self._rref.dontNotifyOnDisconnect(marker)

        return forget

    async def open(self, upload_id: bytes, parameters: Mapping[bytes, int]) -> HelperAnswer:
        return await self._call("open", upload_id, dict(parameters))

    async def put_ciphertext(self, upload_id: bytes, offset: int, data: bytes) -> HelperAnswer:
        return await self._call("put_ciphertext", upload_id, offset, data)

    async def status(self, upload_id: bytes) -> HelperAnswer:
        return await self._call("status", upload_id)

    async def assign(self, upload_id: bytes, storage_index: bytes) -> HelperAnswer:
        return await self._call("assign", upload_id, storage_index)

    async def order(self, upload_id: bytes, order: bytes) -> HelperAnswer:
        return await self._call("order", upload_id, order)

    async def finish(self, upload_id: bytes, size: int, storage_index: bytes, crypttext_hash: bytes,
                     crypttext_root_hash: bytes) -> HelperAnswer:
        return await self._call("finish", upload_id, size, storage_index, crypttext_hash, crypttext_root_hash)

    async def abort(self, upload_id: bytes) -> HelperAnswer:
        return await self._call("abort", upload_id)

    async def look_up(self, upload_id: bytes, convergent_index: bytes) -> HelperAnswer:
        return await self._call("look_up", upload_id, convergent_index)

    async def adopt(self, upload_id: bytes, storage_index: bytes) -> HelperAnswer:
        return await self._call("adopt", upload_id, storage_index)

    async def leave_record(self, upload_id: bytes, convergent_index: bytes, record: bytes) -> HelperAnswer:
        return await self._call("leave_record", upload_id, convergent_index, record)

    async def _call(self, method: str, *arguments: Any) -> HelperAnswer:
        wire = await _remote(self._rref, method, *arguments)
        try:
            Answer.checkObject(wire, True)  # Foolscap bounds what arrives, but lets a tuple be too short
        except Violation as e:
            raise HelperMisbehaved(f"its answer to {method} is outside the agreed bounds") from e
        return _decode(wire)


async def connect(tub: Tub, helper_furl: str) -> HelperLink:
    """Find the streaming helper behind a node's helper.furl: protocol.txt §2.

    Raises BadFurl, HelperUnreachable, StockHelper or HelperMisbehaved.
    """
    try:
        tub_id = SturdyRef(helper_furl).tubID
    except (ValueError, BadFURLError) as e:
        raise BadFurl("it is not a furl") from e
    if tub_id is None:
        raise BadFurl("it is empty")
    helper = await _reference(tub, helper_furl)
    versions = await _remote(helper, "get_version")
    ours = versions.get(VERSION_KEY) if isinstance(versions, dict) else None
    if ours is None:
        raise StockHelper()
    try:
        furl, largest_message = ours[VERSION_FURL].decode("ascii"), ours[VERSION_LARGEST_MESSAGE]
        same_tub = SturdyRef(furl).tubID == tub_id
    except (KeyError, TypeError, AttributeError, ValueError, BadFURLError) as e:
        raise HelperMisbehaved("its version information is malformed") from e
    in_bounds = isinstance(largest_message, int) and LARGEST_MESSAGE_MIN <= largest_message <= LARGEST_MESSAGE_MAX
    if not (same_tub and in_bounds):
        raise HelperMisbehaved("its version information is malformed")
    return HelperLink(await _reference(tub, furl), largest_message)


async def _reference(tub: Tub, furl: str) -> Any:
    try:
        return await tub.getReference(furl)
    except (ConnectError, NegotiationError, BananaError, *_LOST) as e:
        raise HelperUnreachable(type(e).__name__) from e
    except Exception as e:
        # Foolscap raises what it meets: KeyError for an unknown swissnum, NoLocationHintsError, …
        raise HelperUnreachable(type(e).__name__) from e


async def _remote(rref: Any, method: str, *arguments: Any) -> Any:
    try:
        return await rref.callRemote(method, *arguments)
    except _LOST as e:
        raise HelperLost() from e
    except (Violation, BananaError) as e:
        raise HelperMisbehaved(f"{method} or its answer is outside the agreed bounds") from e
    except UploadError:
        raise
    except Exception as e:
        raise HelperMisbehaved(f"{method} failed there ({type(e).__name__})") from e


def _decode(wire: Any) -> HelperAnswer:
    """`wire` is as helper.interfaces.Answer says."""
    wire_fields, wire_shares = wire
    fields = {key.decode("ascii", "replace"): value for key, value in wire_fields.items()}
    code = _text(fields.pop("code", b""))
    shares = [ShareSeen(shnum, _text(server), _text(state), position)
              for shnum, server, state, position in wire_shares]
    if code in ("ok", "waiting"):
        return HelperAnswer(code, fields, shares)
    explanation = _text(fields.pop("text", b"")) or "the helper gives no reason"
    values = {key: value if isinstance(value, int) else _text(value) for key, value in fields.items()}
    raise HelperRefused(code or "internal-error", explanation, values)


def _text(value: object) -> str:
    """Printable text of what a helper sent; it goes to terminals and logs."""
    decoded = value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
    return "".join(c if c.isprintable() else "?" for c in decoded)
