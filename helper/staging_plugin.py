"""The Tahoe storage plugin that offers staging: `[storage] plugins = tahoe-streaming-staging-v1`.

The dropin twisted/plugins/tahoe_streaming_staging.py makes a node find it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import attrs
from allmydata.interfaces import IAnnounceableStorageServer, IFoolscapStoragePlugin, IStatsProducer
from foolscap.api import Referenceable
from foolscap.ipb import ISlicer
from foolscap.referenceable import ReferenceableSlicer
from twisted.application.service import Service
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.components import registerAdapter
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from helper import free_memory
from helper.errors import StreamingError, fault_of
from helper.large_reads import read_in_large_pieces
from helper.staging import Held, StagingLimits, StagingServer
from helper.staging_interfaces import PLUGIN_NAME, RIStagingServer
from helper.streaming_cfg import duration_of, size_of
from helper.wire_fields import wire_fields

reactor: Any = _reactor  # it has more interfaces than its declared type

#: Bytes of free memory that the node keeps for reuse: what comes in writes of 1 MB, and is written at once.
KEPT_MEMORY = 8 * free_memory.MiB

#: Bytes that are read at a time from connections over which shares come.
READ_SIZE = 256 * 1024

#: Threads that write and sync.
THREADS = 4

WireAnswer = dict[bytes, int | bytes]
WireHeld = list[tuple[int, bytes, int, int]]


@implementer(RIStagingServer)  # type: ignore[misc]
class FoolscapStagingServer(Referenceable):  # type: ignore[misc]
    """RIStagingServer over a StagingServer: decode, call, encode; no rules."""

    log = Logger()

    def __init__(self, staging: StagingServer) -> None:
        self._staging = staging

    def remote_get_version(self) -> WireAnswer:
        return _ok(self._staging.get_version())

    def remote_stage(self, name: bytes, shnums: Sequence[int], size: int) -> Deferred[tuple[WireAnswer, WireHeld]]:
        return self._answer(self._staging.stage(name, shnums, size), lambda held: (_ok(), _wire_held(held)),
                            lambda refusal: (refusal, []))

    def remote_write(self, name: bytes, shnum: int, offset: int, data: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._staging.write(name, shnum, offset, data), _ok)

    def remote_held(self, name: bytes) -> Deferred[tuple[WireAnswer, WireHeld]]:
        return self._answer(self._staging.held(name), lambda held: (_ok(), _wire_held(held)),
                            lambda refusal: (refusal, []))

    def remote_prepare(self, name: bytes, shnum: int, size: int, renew_secret: bytes,
                       cancel_secret: bytes) -> Deferred[WireAnswer]:
        return self._answer(self._staging.prepare(name, shnum, size, renew_secret, cancel_secret), lambda _n: _ok())

    def remote_assign(self, name: bytes, storage_index: bytes,
                      shnums: Sequence[int]) -> Deferred[tuple[WireAnswer, list[tuple[int, bytes]]]]:
        return self._answer(
            self._staging.assign(name, storage_index, shnums),
            lambda outcomes: (_ok(), [(shnum, outcome.value.encode()) for shnum, outcome in sorted(outcomes.items())]),
            lambda refusal: (refusal, []))

    def remote_abort(self, name: bytes, shnums: Sequence[int]) -> Deferred[WireAnswer]:
        return self._answer(self._staging.abort(name, shnums), lambda _none: _ok())

    def _answer(self, awaitable: Awaitable[Any], encode: Callable[[Any], Any],
                refuse: Callable[[WireAnswer], Any] = lambda refusal: refusal) -> Deferred[Any]:
        async def answered() -> Any:
            try:
                return encode(await awaitable)
            except StreamingError as error:
                return refuse(wire_fields({**error.fields(), "code": error.code, "text": error.text()}))
            except Exception as error:  # noqa: BLE001 (a bug: whatever it is must not travel as a failure)
                self.log.failure("a call failed")
                fault = fault_of(error)
                return refuse(wire_fields({**fault.fields(), "code": fault.code, "text": fault.text()}))

        return Deferred.fromCoroutine(answered())


class _Slicer(ReferenceableSlicer):  # type: ignore[misc]
    """Foolscap has it give the staging server to a peer. Who is given it will send shares."""

    def slice(self, streamable: bool, protocol: Any) -> Iterator[Any]:
        read_in_large_pieces(protocol.transport, READ_SIZE)
        yield from super().slice(streamable, protocol)


registerAdapter(_Slicer, FoolscapStagingServer, ISlicer)


def _ok(fields: dict[str, int] | None = None) -> WireAnswer:
    return wire_fields({"code": "ok", **(fields or {})})


def _wire_held(held: Sequence[Held]) -> WireHeld:
    return [(h.shnum, h.state.encode(), h.length, h.synced) for h in held]


@implementer(IStatsProducer)
class StagingService(Service):
    """A StagingServer and its threads, from the node's start to its end."""

    name = "tahoe-streaming-staging"
    log = Logger()

    def __init__(self, stock: Any, limits: StagingLimits) -> None:
        self._threads = ThreadPool(1, THREADS, "staging")
        self.staging = StagingServer(stock, limits, reactor, self._in_thread)

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(reactor, self._threads, function, *arguments)

    def startService(self) -> None:
        super().startService()
        self._threads.start()
        try:
            self.staging.start()
        except Exception:  # noqa: BLE001 (whatever it is: the node's ordinary shares must not go with it)
            self.log.failure("staging could not start; its calls are refused")
            self.staging.stop()

    def stopService(self) -> None:
        super().stopService()
        self._threads.stop()  # waits for what is being written
        self.staging.stop()

    def get_stats(self) -> dict[str, int]:
        return {f"streaming_staging.{name}": value for name, value in self.staging.statistics().items()}


@implementer(IAnnounceableStorageServer)
@attrs.frozen
class _Announceable:
    announcement: dict[str, Any]
    storage_server: Any


@implementer(IFoolscapStoragePlugin)
class StagingPlugin:
    """What a storage node asks for its part; there is no client's part."""

    name = PLUGIN_NAME

    def get_storage_server(self, configuration: dict[str, str],
                           get_anonymous_storage_server: Callable[[], Any]) -> Deferred[Any]:
        """Called once, before the node starts. Raises ValueError for settings that cannot be used."""
        free_memory.keep(KEPT_MEMORY)
        stock = get_anonymous_storage_server()
        service = StagingService(stock, limits_from(configuration))
        # a child of the stock server: started and stopped with it
        service.setServiceParent(stock)
        if stock.stats_provider is not None:
            stock.stats_provider.register_producer(service)
        return succeed(_Announceable({}, FoolscapStagingServer(service.staging)))

    def get_storage_client(self, _configuration: Any, _announcement: Any, _get_rref: Any) -> Any:
        """Helpers find staging servers by themselves; never enable the plugin in a client."""
        raise ValueError(f"{PLUGIN_NAME} is for [storage] plugins, not for [client] storage.plugins")

    def get_client_resource(self, _configuration: Any) -> Any:
        """No web pages."""
        return None


def limits_from(configuration: dict[str, str]) -> StagingLimits:
    """The settings in [storageserver.plugins.tahoe-streaming-staging-v1]. Raises ValueError, naming the key."""
    known: dict[str, Callable[[str], Any]] = {
        "stagings": int, "shares": int, "bytes-per-staging": size_of, "expiry": duration_of,
        "empty-expiry": duration_of}
    values = {}
    for key, text in configuration.items():
        if key not in known:
            raise ValueError(f"[storageserver.plugins.{PLUGIN_NAME}] unknown key {key!r}; "
                             f"known are {', '.join(sorted(known))}")
        values[key.replace("-", "_")] = known[key](text)
    return StagingLimits(**values)


plugin = StagingPlugin()
