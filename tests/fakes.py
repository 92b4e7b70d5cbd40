"""Storage servers and a grid in memory, with the semantics of stock servers over Foolscap and faults on order.

They pass the same contract as the real ones (tests/contracts/test_storage_servers.py). Nothing happens
before the clock turns: an answer comes one turn after its request at the earliest, as over a network.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any, TypeVar

import attrs
from foolscap.api import DeadReferenceError
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime

from helper.layout import DATA_OFFSET
from helper.placement import Allocation
from helper.sinks import ExistingShare, Granted, ShareSink, StorageServer, Target

T = TypeVar("T")

#: How often a fake grid counts its servers while it waits for more; seconds, as helper.grid.
COUNT_INTERVAL = 0.2


class ServerError(Exception):
    """What a stock server raises at the other end arrives as some exception."""


class Fault(enum.Enum):
    """What a server does instead of answering a request as it should."""

    REFUSE = "refuse"  # allocate: grants nothing; anything else fails
    HANG = "hang"  # this and everything after it on the connection is never answered
    DISCONNECT = "disconnect"  # the request is lost with the connection
    LOSE_ANSWER = "lose answer"  # done, but the connection is lost before the answer


@attrs.frozen
class Asked:
    """A request that a server was sent, at a time in seconds."""

    time: float
    operation: str
    shnum: int | None = None
    size: int = 0  # bytes written, or allocated


@attrs.frozen
class Published:
    """A share that readers can see: what was written of it; the rest of `allocated` bytes is zeros."""

    data: bytes
    allocated: int


class FakeServer:
    """A stock StorageServer (helper/sinks.py). `capacity` in bytes, None for a server that does not say.

    `latency`: seconds between a request and its answer; requests are served one after the other.
    """

    stages = False

    def __init__(self, name: str, clock: IReactorTime, capacity: int | None = None, latency: float = 0.0) -> None:
        self.server_id = self.permutation_seed = hashlib.sha256(name.encode()).digest()[:20]
        self.name = name
        self.clock = clock
        self.capacity = capacity
        self.latency = latency
        self.connected = True
        self.writable = True
        self.seals = False  # whether `seal` is a request of its own, which a stock server does not know
        self.stale = False  # listed although the connection is gone: the node has not noticed yet
        self.hung = False
        self.connection = 0
        self.published: dict[tuple[bytes, int], Published] = {}
        self.open: dict[tuple[bytes, int], FakeSink] = {}
        self.leases: list[bytes] = []  # storage indexes whose leases were made or renewed by a request of its own
        self.asked: list[Asked] = []
        self.aborted: list[FakeSink] = []
        self.closed_at: dict[int, float] = {}  # share number: time, in seconds
        self.unanswered_bytes = 0  # of writes
        self._faults: dict[tuple[str, int], Fault] = {}
        self._counts: Counter[str] = Counter()
        self._busy_until = 0.0
        self._waiting: list[Deferred[Any]] = []
        self._watchers: dict[int, Callable[[], None]] = {}
        self._next_watcher = 0
        self._clients_died = 0

    # -- what tests do to it -----------------------------------------------------------------------------

    def plan(self, operation: str, nth: int, fault: Fault) -> None:
        """What happens to the `nth` request (from 1) of that kind: allocate, space, write, seal, publish, abort,
        read, look or lease."""
        self._faults[operation, nth] = fault
        self.seals |= operation == "seal"

    def requests(self, operation: str) -> int:
        """How many of that kind there were."""
        return self._counts[operation]

    def refuse_from_now_on(self) -> None:
        """Grant nothing any more."""
        self.capacity = 0

    def hang(self) -> None:
        """Answer nothing any more on this connection."""
        self.hung = True

    def disconnect(self) -> None:
        """The connection is gone, and with it every share that was open."""
        if not self.connected:
            return
        self.connected = False
        self.connection += 1
        self.hung = False
        self.open.clear()
        waiting, self._waiting = self._waiting, []
        watchers, self._watchers = list(self._watchers.values()), {}
        for d in waiting:
            self._tell_client(d.errback, DeadReferenceError("Connection was lost"))
        for callback in watchers:
            self._tell_client(callback)

    def _tell_client(self, function: Callable[..., None], *args: Any) -> None:
        """In a later turn, if the helper's process still lives."""
        died = self._clients_died

        def tell() -> None:
            if self._clients_died == died:
                function(*args)

        self.clock.callLater(0, tell)

    def reconnect(self) -> None:
        """Be there again, on a new connection."""
        self.connected = True

    def client_died(self) -> None:
        """The helper's process is gone: nobody hears of what becomes of its requests, or of its connection."""
        self._clients_died += 1
        self.open.clear()
        self.connection += 1
        self.hung = False
        self._waiting.clear()
        self._watchers.clear()

    def share(self, storage_index: bytes, shnum: int) -> Published | None:
        return self.published.get((storage_index, shnum))

    def allocations(self) -> list[Asked]:
        """Requests to allocate, in order."""
        return [a for a in self.asked if a.operation == "allocate"]

    @property
    def has_leftovers(self) -> bool:
        """Whether a share that nobody will ever complete or let go of takes room here."""
        return bool(self.open)

    # -- StorageServer -----------------------------------------------------------------------------------

    def free_space(self) -> Deferred[int | None]:
        return self.request("space", self.connection, self._free_space)

    def allocate(self, target: Target, shnums: Sequence[int], allocation: Allocation) -> Deferred[Granted]:
        if target.storage_index is None and not self.stages:
            raise ValueError("a stock server wants a storage index")
        for shnum in shnums:
            self.asked.append(Asked(self.clock.seconds(), "allocate", shnum, allocation.share_size))
        return self.request(
            "allocate", self.connection, lambda: self._grant(target, list(shnums), allocation.share_size),
            refused=lambda: Granted({}, {}))

    def let_go(self, target: Target, shnums: Sequence[int]) -> None:
        pass

    def shares_of(self, storage_index: bytes) -> Deferred[dict[int, ExistingShare]]:
        def shares() -> dict[int, ExistingShare]:
            return {shnum: FakeShare(self, self.connection, (storage_index, shnum))
                    for si, shnum in self.published if si == storage_index}

        return self.request("look", self.connection, shares)

    def add_lease(self, storage_index: bytes) -> Deferred[None]:
        return self.request("lease", self.connection, lambda: self.leases.append(storage_index))

    def remove_staged(self, _target: Target, _shnums: Sequence[int]) -> Deferred[None]:
        return fail(ServerError("stages nothing"))

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        number, self._next_watcher = self._next_watcher, self._next_watcher + 1
        if self.connected:
            self._watchers[number] = callback
        else:
            self.clock.callLater(0, callback)

        def cancel() -> None:
            self._watchers.pop(number, None)

        return cancel

    # -- how it works ------------------------------------------------------------------------------------

    def request(self, operation: str, connection: int, perform: Callable[[], T],
                refused: Callable[[], T] | None = None) -> Deferred[T]:
        """Carry `perform` out after the latency, unless a fault was planned for this request."""
        if not self.connected or connection != self.connection:
            return fail(DeadReferenceError("Calling Stale Broker"))
        self._counts[operation] += 1
        fault = self._faults.get((operation, self._counts[operation]))
        d: Deferred[T] = Deferred()
        self._waiting.append(d)
        if fault is Fault.HANG:
            self.hung = True
        if self.hung:
            return d
        now = self.clock.seconds()
        self._busy_until = max(now, self._busy_until) + self.latency
        self.clock.callLater(self._busy_until - now, self._serve, d, fault, perform, refused)
        return d

    def _serve(self, d: Deferred[T], fault: Fault | None, perform: Callable[[], T],
               refused: Callable[[], T] | None) -> None:
        if d not in self._waiting or self.hung:
            return  # it was lost with the connection, or hangs
        if fault is Fault.DISCONNECT:
            self.disconnect()
            return
        try:
            if fault is Fault.REFUSE and refused is None:
                raise ServerError("refused")
            result = refused() if fault is Fault.REFUSE and refused is not None else perform()
        except ServerError as e:
            self._waiting.remove(d)
            d.errback(e)
            return
        if fault is Fault.LOSE_ANSWER:
            self.disconnect()
            return
        self._waiting.remove(d)
        d.callback(result)

    def _free_space(self) -> int | None:
        """As stock: what is open and not yet written counts as free."""
        if self.capacity is None:
            return None
        written = sum(len(share.data) for share in self.published.values())
        written += sum(sink.written_to for sink in self.open.values())
        return max(0, self.capacity - written)

    def _grant(self, target: Target, shnums: list[int], size: int) -> Granted:
        assert target.storage_index is not None
        free = self._free_space()
        room = None if free is None else free - sum(sink.allocated for sink in self.open.values())
        granted = Granted({}, {})
        for shnum in shnums:
            place = target.storage_index, shnum
            if place in self.published:
                granted.existing[shnum] = FakeShare(self, self.connection, place)
            elif place not in self.open and (room is None or room >= size):
                room = None if room is None else room - size
                sink = FakeSink(self, self.connection, place, size)
                self.open[place] = sink
                granted.sinks[shnum] = sink
        return granted


@attrs.define(eq=False)
class FakeSink:
    """A share being written (helper/sinks.py ShareSink)."""

    server: FakeServer
    connection: int
    place: tuple[bytes, int]
    allocated: int
    _data: bytearray = attrs.field(factory=bytearray)
    _mask: bytearray = attrs.field(factory=bytearray)  # 1 where a byte was written

    @property
    def written_to(self) -> int:
        """End of the last byte written."""
        return len(self._data)

    def write(self, offset: int, data: bytes) -> Deferred[None]:
        self.server.asked.append(Asked(self.server.clock.seconds(), "write", self.place[1], len(data)))
        self.server.unanswered_bytes += len(data)
        return self._request("write", lambda: self._write(offset, bytes(data))).addBoth(self._answered, len(data))

    def _answered(self, result: T, size: int) -> T:
        self.server.unanswered_bytes -= size
        return result

    held = 0
    prepared = False

    def touch(self) -> Deferred[None]:
        return self.write(0, b"\0\0\0\2")

    def seal(self, _storage_index: bytes, _size: int) -> Deferred[None]:
        if not self.server.seals:
            return succeed(None)  # as stock: nothing is asked, nothing can fail
        return self._request("seal", self._check_open)

    def publish(self, _storage_index: bytes) -> Deferred[ExistingShare | None]:
        return self._request("publish", self._publish)

    def abort(self) -> Deferred[None]:
        d = self._request("abort", self._abort)
        return d.addErrback(lambda _failure: None)

    def _request(self, operation: str, perform: Callable[[], None]) -> Deferred[Any]:
        return self.server.request(operation, self.connection, perform)

    def _check_open(self) -> None:
        if self.server.open.get(self.place) is not self:
            raise ServerError("this share is closed")

    def _write(self, offset: int, data: bytes) -> None:
        self._check_open()
        end = offset + len(data)
        if end > self.allocated:
            raise ServerError("DataTooLargeError")
        if not data:
            raise ServerError("an empty write")
        held, mask = self._data[offset:end], self._mask[offset:end]
        if any(m and h != d for h, m, d in zip(held, mask, data, strict=False)):
            raise ServerError("ConflictingWriteError")
        grow = end - len(self._data)
        if grow > 0:
            self._data.extend(bytes(grow))
            self._mask.extend(bytes(grow))
        self._data[offset:end] = data
        self._mask[offset:end] = b"\1" * len(data)

    def _publish(self) -> None:
        self._check_open()
        del self.server.open[self.place]
        self.server.published[self.place] = Published(bytes(self._data), self.allocated)
        self.server.closed_at[self.place[1]] = self.server.clock.seconds()

    def _abort(self) -> None:
        if self.server.open.get(self.place) is self:
            del self.server.open[self.place]
            self.server.aborted.append(self)


_HEADER = struct.Struct(">LQQQQQQQQ")  # layout v2: version, block and data size, six offsets


@attrs.frozen
class FakeShare:
    """A share that was there before (helper/sinks.py ExistingShare), read by its own header."""

    server: FakeServer
    connection: int
    place: tuple[bytes, int]

    def read_ueb(self) -> Deferred[bytes]:
        return self.server.request("read", self.connection, self._ueb)

    def read_block(self, segment: int, block_size: int, length: int) -> Deferred[bytes]:
        def block() -> bytes:
            start = self._header()[3] + segment * block_size
            return self._data()[start:start + length]

        return self.server.request("read", self.connection, block)

    def _data(self) -> bytes:
        share = self.server.share(*self.place)
        if share is None:
            raise ServerError("no such share")
        return share.data

    def _header(self) -> tuple[int, ...]:
        if len(self._data()) < _HEADER.size or self._data()[:4] != b"\0\0\0\2":
            raise ServerError("not a share")
        return _HEADER.unpack_from(self._data())

    def _ueb(self) -> bytes:
        start = self._header()[-1]
        length = int.from_bytes(self._data()[start:start + 8], "big")
        return self._data()[start + 8:start + 8 + length]


@attrs.define
class StagedData:
    """A staged share: what is written of it, and how much of that survives a kill."""

    data: bytearray = attrs.field(factory=lambda: bytearray(DATA_OFFSET))
    synced: int = DATA_OFFSET
    prepared: bool = False


class FakeStagingServer(FakeServer):
    """A storage server with the staging plugin: keeps shares when the connection drops, and what was synced when
    it is killed. `sync_interval` in bytes."""

    stages = True

    def __init__(self, name: str, clock: IReactorTime, capacity: int | None = None, latency: float = 0.0,
                 sync_interval: int = 4096) -> None:
        super().__init__(name, clock, capacity, latency)
        self.sync_interval = sync_interval
        self.staged: dict[tuple[bytes, int], StagedData] = {}
        self.touched = 0
        self.read_only = False  # as `[storage] readonly`, found out only when asked
        self._aborts: list[tuple[bytes, int]] = []

    def kill(self) -> None:
        """The node's process ends at once; `reconnect` starts it again."""
        self.disconnect()
        for share in self.staged.values():
            if not share.prepared:
                del share.data[share.synced:]

    def reconnect(self) -> None:
        super().reconnect()
        for place in self._aborts:
            self.staged.pop(place, None)
        self._aborts.clear()

    def client_died(self) -> None:
        super().client_died()
        self._aborts.clear()

    @property
    def has_leftovers(self) -> bool:
        return bool(self.staged)

    def abort_later(self, place: tuple[bytes, int]) -> None:
        """As helper.staging_links."""
        if self.connected:
            self.staged.pop(place, None)
        else:
            self._aborts.append(place)

    def let_go(self, target: Target, shnums: Sequence[int]) -> None:
        for shnum in shnums:
            self.abort_later((target.staging_secret, shnum))

    def remove_staged(self, target: Target, shnums: Sequence[int]) -> Deferred[None]:
        def remove() -> None:
            for shnum in shnums:
                self.staged.pop((target.staging_secret, shnum), None)

        return self.request("abort", self.connection, remove)

    def room(self) -> int | None:
        """Bytes."""
        if self.capacity is None:
            return None
        used = sum(len(share.data) for share in [*self.published.values(), *self.staged.values()])
        return max(0, self.capacity - used)

    def _free_space(self) -> int | None:
        return self.room()

    def _grant(self, target: Target, shnums: list[int], size: int) -> Granted:
        existing: dict[int, ExistingShare] = {}
        if target.storage_index is not None:
            existing = {shnum: FakeShare(self, self.connection, (target.storage_index, shnum))
                        for shnum in shnums if (target.storage_index, shnum) in self.published}
        wanted = [shnum for shnum in shnums if shnum not in existing]
        new = [shnum for shnum in wanted if (target.staging_secret, shnum) not in self.staged]
        room = self.room()
        if new and self.read_only:
            raise ServerError("read-only")
        if new and room is not None and room <= size * len(new):
            raise ServerError("no-space")
        sinks: dict[int, ShareSink] = {}
        for shnum in wanted:
            share = self.staged.setdefault((target.staging_secret, shnum), StagedData())
            sinks[shnum] = FakeStagedSink(self, self.connection, target.staging_secret, shnum,
                                          len(share.data), share.prepared)
        return Granted(sinks, existing)


@attrs.frozen
class FakeStagedSink:
    """A share being staged (helper/sinks.py ShareSink)."""

    server: FakeStagingServer
    connection: int
    secret: bytes
    shnum: int
    held: int
    prepared: bool

    def write(self, offset: int, data: bytes) -> Deferred[None]:
        self.server.asked.append(Asked(self.server.clock.seconds(), "write", self.shnum, len(data)))
        self.server.unanswered_bytes += len(data)
        d: Deferred[None] = self._request("write", lambda: self._write(offset, bytes(data)))
        return d.addBoth(self._answered, len(data))

    def touch(self) -> Deferred[None]:
        return self._request("touch", self._touch)

    def seal(self, _storage_index: bytes, size: int) -> Deferred[None]:
        return self._request("seal", lambda: self._seal(size))

    def publish(self, storage_index: bytes) -> Deferred[ExistingShare | None]:
        return self._request("publish", lambda: self._publish(storage_index))

    def abort(self) -> Deferred[None]:
        place = self.secret, self.shnum
        d: Deferred[None] = self._request("abort", lambda: self.server.abort_later(place))
        return d.addErrback(lambda _failure: self.server.abort_later(place))

    def _answered(self, result: T, size: int) -> T:
        self.server.unanswered_bytes -= size
        return result

    def _request(self, operation: str, perform: Callable[[], Any]) -> Deferred[Any]:
        return self.server.request(operation, self.connection, perform)

    def _share(self) -> StagedData:
        share = self.server.staged.get((self.secret, self.shnum))
        if share is None:
            raise ServerError("unknown-staging")
        return share

    def _write(self, offset: int, data: bytes) -> None:
        share, end = self._share(), offset + len(data)
        if share.prepared:
            raise ServerError("already-prepared")
        if not (end <= DATA_OFFSET or DATA_OFFSET <= offset <= len(share.data)):
            raise ServerError("offset-gap")
        if self.server.read_only:
            raise ServerError("read-only")
        room = self.server.room()
        if room is not None and end - len(share.data) > room:
            raise ServerError("no-space")
        share.data[offset:end] = data
        if len(share.data) - share.synced >= self.server.sync_interval:
            share.synced = len(share.data)

    def _touch(self) -> None:
        self._share()
        self.server.touched += 1

    def _seal(self, size: int) -> None:
        share = self._share()
        if not DATA_OFFSET < size <= len(share.data) or (share.prepared and size != len(share.data)):
            raise ServerError("wrong-size")
        if not any(share.data[:4]):
            raise ServerError("offset-gap")  # the header is missing
        del share.data[size:]
        share.prepared = True

    def _publish(self, storage_index: bytes) -> ExistingShare | None:
        place = storage_index, self.shnum
        share = self.server.staged.get((self.secret, self.shnum))
        if share is not None:
            if not share.prepared:
                raise ServerError("not-prepared")
            if place in self.server.open:
                raise ServerError("busy")
            del self.server.staged[self.secret, self.shnum]
            if place not in self.server.published:
                self.server.published[place] = Published(bytes(share.data), len(share.data))
                self.server.closed_at[self.shnum] = self.server.clock.seconds()
                if not (self.prepared or self.held > DATA_OFFSET):
                    return None
        if place not in self.server.published:
            raise ServerError("unknown-staging")
        return FakeShare(self.server, self.connection, place)


class FakeGrid:
    """A Grid (helper/sinks.py) of fake servers, of which the last `staging` stage."""

    def __init__(self, clock: IReactorTime, count: int, staging: int = 0) -> None:
        self._clock = clock
        self._servers: list[list[FakeServer]] = [[
            (FakeStagingServer if i >= count - staging else FakeServer)(f"server{i}", clock) for i in range(count)]]

    @property
    def servers(self) -> list[FakeServer]:
        """All of them; one list for all who see this grid."""
        return self._servers[0]

    @servers.setter
    def servers(self, servers: list[FakeServer]) -> None:
        self._servers[0] = servers

    def servers_for(self, storage_index: bytes) -> list[StorageServer]:
        return list(self.in_order(storage_index))

    def in_order(self, storage_index: bytes) -> list[FakeServer]:
        """Connected, writable servers in the order in which readers of this storage index ask them."""
        return sorted((s for s in self.servers if (s.connected or s.stale) and s.writable),
                      key=lambda s: hashlib.sha1(storage_index + s.server_id).digest())

    def readable_servers(self) -> list[StorageServer]:
        return [server for server in self.servers if server.connected or server.stale]

    def writable_count(self) -> int:
        return len(self.servers_for(bytes(16)))

    def seen_by(self, clock: IReactorTime) -> FakeGrid:
        """The same servers, for a process whose clock ends with it."""
        view = copy(self)
        view._clock = clock
        return view

    def when_connected(self, count: int, timeout: float) -> Deferred[int]:
        done: Deferred[int] = Deferred()
        deadline = self._clock.seconds() + timeout

        def look() -> None:
            have = self.writable_count()
            if have >= count or self._clock.seconds() >= deadline:
                done.callback(have)
            else:
                self._clock.callLater(COUNT_INTERVAL, look)

        look()
        return done

    def when_back(self, server_id: bytes, timeout: float) -> Deferred[StorageServer | None]:
        done: Deferred[StorageServer | None] = Deferred(lambda d: d.callback(None))
        deadline = self._clock.seconds() + timeout

        def look() -> None:
            back = next((s for s in self.servers if s.server_id == server_id and s.connected and s.writable), None)
            if done.called:
                return
            if back is not None or self._clock.seconds() >= deadline:
                done.callback(back)
            else:
                self._clock.callLater(COUNT_INTERVAL, look)

        look()
        return done

    @property
    def staging(self) -> list[FakeStagingServer]:
        """Those that stage."""
        return [s for s in self.servers if isinstance(s, FakeStagingServer)]

    def copies(self, storage_index: bytes) -> dict[int, list[tuple[FakeServer, Published]]]:
        """Every published share of a storage index, by share number."""
        found: dict[int, list[tuple[FakeServer, Published]]] = {}
        for server in self.servers:
            for (si, shnum), share in server.published.items():
                if si == storage_index:
                    found.setdefault(shnum, []).append((server, share))
        return found

    def leftovers(self) -> list[str]:
        """Names of servers on which shares are still open."""
        return [server.name for server in self.servers if server.has_leftovers]


def damaged(share: Published, offset: int) -> Published:
    """The same share with one byte changed."""
    data = bytearray(share.data)
    data[offset] ^= 1
    return attrs.evolve(share, data=bytes(data))


def ids(servers: Iterable[FakeServer]) -> set[bytes]:
    return {server.server_id for server in servers}
