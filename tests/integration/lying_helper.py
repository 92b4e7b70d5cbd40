"""Helpers that lie about a file, between clients and a real helper that does what it is told (threat S2).

The real one stores and encodes whatever lie it is given, and answers with shares and a URI extension block that agree
with each other; so nobody but the client can find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
from recording_helper import Recorder, recording_helper
from twisted.internet.defer import Deferred

from helper.ciphertext import CiphertextHasher
from helper.interfaces import KiB

#: What the helper is to believe, or the client.
LieAboutCiphertext = Callable[[bytes], bytes]
LieAboutUEB = Callable[[bytes], bytes]

_PIECE = 256 * KiB


@attrs.define
class Liar:
    """Takes the ciphertext of uploads, and gives the helper something else; tells the client something else than the
    helper answered. Without lies it does nothing of the kind, by the same way."""

    about_ciphertext: LieAboutCiphertext = lambda ciphertext: ciphertext
    about_ueb: LieAboutUEB = lambda ueb: ueb
    ciphertext: bytearray = attrs.field(factory=bytearray)
    """Of the upload, as the client sent it."""
    parameters: Mapping[bytes, int] = attrs.field(factory=dict)
    ueb: bytes = b""
    """As the helper answered."""

    def relay(self, target: Any, method: str, upload_id: bytes, arguments: tuple[Any, ...]) -> Any:
        """What stands for a call to the helper."""
        if method == "open":
            self.ciphertext.clear()
            self.parameters = arguments[0]
        elif method == "put_ciphertext":
            offset, data = arguments
            assert offset == len(self.ciphertext)
            self.ciphertext += data
            return {b"code": b"ok", b"durable": len(self.ciphertext), b"credit": 4 * _PIECE}, []
        elif method == "finish":
            return Deferred.fromCoroutine(self._finish(target, upload_id, *arguments))
        return target.callRemote(method, upload_id, *arguments)

    async def _finish(self, target: Any, upload_id: bytes, size: int, storage_index: bytes, *_hashes: bytes) -> Any:
        told = self.about_ciphertext(bytes(self.ciphertext))
        for start in range(0, len(told), _PIECE):
            answer, _shares = await target.callRemote(
                "put_ciphertext", upload_id, start, told[start:start + _PIECE])
            assert answer[b"code"] == b"ok"
        hasher = CiphertextHasher(self.parameters[b"k"], self.parameters[b"max-segment-size"], size)
        hasher.update(told)
        hashes = hasher.hashes()
        fields, shares = await target.callRemote(
            "finish", upload_id, size, storage_index, hashes.crypttext_hash, hashes.crypttext_root_hash)
        self.ueb = fields[b"ueb"]
        return {**fields, b"ueb": self.about_ueb(self.ueb)}, shares


@contextmanager
def lying_helper(helper_furl: str, liar: Liar) -> Iterator[Recorder]:
    """Clients reach the helper of `helper_furl` through it."""
    with recording_helper(helper_furl, relay=liar.relay) as recorder:
        yield recorder
