"""A helper that writes down all that clients send it, and hands it on to a real one.

It is a Tub of the test process; clients of any process reach the real helper through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import reactor_loop
from foolscap.api import Referenceable, Tub
from twisted.internet.defer import Deferred, maybeDeferred
from zope.interface import implementer

from helper.interfaces import VERSION_FURL, VERSION_KEY, RIStreamingHelper


@attrs.define
class RecordedUpload:
    """What the client of one upload sent."""

    parameters: Mapping[bytes, int]
    storage_indexes: set[bytes] = attrs.field(factory=set)
    """Told with assign or finish."""
    pieces: list[tuple[int, bytes]] = attrs.field(factory=list)
    """(offset, ciphertext), repeats too."""
    calls: list[str] = attrs.field(factory=list)

    @property
    def length(self) -> int:
        """Where what was sent ends."""
        return max((offset + len(data) for offset, data in self.pieces), default=0)


#: Told of each call before it is handed on: its method, and the offset if it is put_ciphertext.
Watcher = Callable[[str, int], None]


#: Stands for a call: it is given the real helper, the method, the upload ID and the other arguments.
Relay = Callable[[Any, str, bytes, tuple[Any, ...]], Any]


def hand_on(target: Any, method: str, upload_id: bytes, arguments: tuple[Any, ...]) -> Any:
    """To the real helper, as it is."""
    return target.callRemote(method, upload_id, *arguments)


class Recorder:
    """`furl` is the helper.furl for clients; `uploads` are in the order of their `open`."""

    def __init__(self, helper_furl: str, watcher: Watcher, relay: Relay) -> None:
        self.furl = ""
        self.uploads: list[RecordedUpload] = []
        self._helper_furl = helper_furl
        self._watcher = watcher
        self._relay = relay
        self._tub: Tub | None = None
        self._by_id: dict[bytes, RecordedUpload] = {}

    async def start(self) -> None:
        """Connect to the real helper and listen."""
        self._tub = tub = reactor_loop.listening_tub("recording helper")
        helper = await tub.getReference(self._helper_furl)
        versions = await helper.callRemote("get_version")
        target = await tub.getReference(versions[VERSION_KEY][VERSION_FURL].decode())
        streaming = tub.registerReference(_Streaming(self, target))
        announced = {**versions, VERSION_KEY: {**versions[VERSION_KEY], VERSION_FURL: streaming.encode()}}
        self.furl = tub.registerReference(_Announcing(announced))

    async def stop(self) -> None:
        """End every connection."""
        if self._tub is not None:
            await self._tub.stopService()

    def record(self, method: str, upload_id: bytes, arguments: tuple[Any, ...]) -> None:
        """Write a call down, then tell the watcher."""
        if method == "open" and upload_id not in self._by_id:
            self._by_id[upload_id] = RecordedUpload(arguments[0])
            self.uploads.append(self._by_id[upload_id])
        upload = self._by_id[upload_id]
        upload.calls.append(method)
        offset = -1
        if method == "put_ciphertext":
            offset, data = arguments
            upload.pieces.append((offset, data))
        elif method == "assign":
            upload.storage_indexes.add(arguments[0])
        elif method == "finish":
            upload.storage_indexes.add(arguments[1])
        self._watcher(method, offset)

    def relay(self, target: Any, method: str, upload_id: bytes, arguments: tuple[Any, ...]) -> Any:
        """The answer, or a Deferred of it."""
        return self._relay(target, method, upload_id, arguments)


class _Announcing(Referenceable):  # type: ignore[misc]
    """What stands behind helper.furl, as far as our client asks."""

    def __init__(self, versions: Mapping[bytes, Any]) -> None:
        self._versions = versions

    def remote_get_version(self) -> Mapping[bytes, Any]:
        return self._versions


@implementer(RIStreamingHelper)  # type: ignore[misc]
class _Streaming(Referenceable):  # type: ignore[misc]
    def __init__(self, recorder: Recorder, target: Any) -> None:
        self._recorder = recorder
        self._target = target

    def doRemoteCall(self, methodname: str, args: list[Any], kwargs: dict[str, Any]) -> Deferred[Any]:
        assert not kwargs
        upload_id, *arguments = args
        self._recorder.record(methodname, upload_id, tuple(arguments))
        return maybeDeferred(self._recorder.relay, self._target, methodname, upload_id, tuple(arguments))


@contextmanager
def recording_helper(helper_furl: str, watcher: Watcher = lambda _method, _offset: None,
                     relay: Relay = hand_on) -> Iterator[Recorder]:
    """A Recorder before the helper of `helper_furl`. Watcher and relay are called in the reactor's thread."""
    recorder = reactor_loop.now(lambda: Recorder(helper_furl, watcher, relay))
    reactor_loop.run(recorder.start, patience=60)
    try:
        yield recorder
    finally:
        reactor_loop.run(recorder.stop, patience=60)
