"""Storage servers of a simulation: the fakes, with servers that lie about lengths, and a grid that need not poll."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs
from fakes import FakeGrid, FakeServer, FakeStagedSink, FakeStagingServer, Fault
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from helper.placement import Allocation
from helper.sinks import Granted, StorageServer, Target

T = TypeVar("T")

OPERATIONS = ("allocate", "space", "write", "seal", "publish", "abort", "read", "touch", "look",
              "lease")


class Unsteady(FakeServer):
    """One that takes `delay()` seconds for each request, and lies by `lie` bytes."""

    lie = 0
    gone = False  # for good
    delay: Callable[[], float] = staticmethod(lambda: 0.0)

    def request(self, operation: str, connection: int, perform: Callable[[], T],
                refused: Callable[[], T] | None = None) -> Deferred[T]:
        self.latency = self.delay()
        return super().request(operation, connection, perform, refused)

    def written_of(self, storage_index: bytes) -> list[tuple[int, bytes]]:
        """Number and content of what is written of shares under a storage index, published or not."""
        return [*((shnum, share.data) for (si, shnum), share in self.published.items() if si == storage_index),
                *((shnum, bytes(sink._data)) for (si, shnum), sink in self.open.items() if si == storage_index)]

    def plan_next(self, fault: Fault) -> None:
        """What happens to the next request of each kind. No abort is refused: a server that could not abort would
        keep the place for half an hour, and these have no such timer."""
        for operation in OPERATIONS:
            if operation != "abort" or fault is not Fault.REFUSE:
                self.plan(operation, self.requests(operation) + 1, fault)
        self.seals = False

    def plan_none(self) -> None:
        """Nothing happens any more."""
        self._faults.clear()


class StockServer(Unsteady):
    """`lie` is added to the free space that it states."""

    def _free_space(self) -> int | None:
        free = super()._free_space()
        return self.lie if free is None and self.lie else free if free is None else max(0, free + self.lie)


class StagingServer(Unsteady, FakeStagingServer):
    """`lie` is added to the lengths that it says it holds of shares."""

    def allocate(self, target: Target, shnums: Sequence[int], allocation: Allocation) -> Deferred[Granted]:
        return super().allocate(target, shnums, allocation).addCallback(self._lied)

    def written_of(self, storage_index: bytes) -> list[tuple[int, bytes]]:
        """What is staged has no storage index yet."""
        return [*super().written_of(storage_index),
                *((shnum, bytes(share.data)) for (_secret, shnum), share in self.staged.items())]

    def _lied(self, granted: Granted) -> Granted:
        if not self.lie:
            return granted
        return Granted({shnum: attrs.evolve(sink, held=max(0, sink.held + self.lie))
                        if isinstance(sink, FakeStagedSink) else sink
                        for shnum, sink in granted.sinks.items()}, granted.existing)


class SimulatedGrid(FakeGrid):
    """Hears of servers that come back, as helper.grid does."""

    def __init__(self, clock: IReactorTime, stock: int, staging: int) -> None:
        super().__init__(clock, 0)
        self.servers = [
            *(StockServer(f"stock{i}", clock) for i in range(stock)),
            *(StagingServer(f"staging{i}", clock) for i in range(staging))]
        self._waiting: list[Callable[[], None]] = []

    def seen_by(self, clock: IReactorTime) -> SimulatedGrid:
        view = super().seen_by(clock)
        assert isinstance(view, SimulatedGrid)
        self._waiting = view._waiting = []  # those of another process hear nothing any more
        return view

    def client_died(self) -> None:
        """The helper's process is gone, and hears nothing any more."""
        self._waiting.clear()

    def changed(self) -> None:
        """A server is connected, or disconnected."""
        for look in list(self._waiting):
            if look in self._waiting:
                look()

    def when_connected(self, count: int, timeout: float) -> Deferred[int]:
        return self._when(lambda: have if (have := self.writable_count()) >= count else None, timeout,
                          self.writable_count)

    def when_back(self, server_id: bytes, timeout: float) -> Deferred[StorageServer | None]:
        return self._when(lambda: next((s for s in self.servers if s.server_id == server_id and s.connected
                                        and s.writable), None), timeout, lambda: None)

    def _when(self, look: Callable[[], T | None], timeout: float, otherwise: Callable[[], T]) -> Deferred[T]:
        done: Deferred[T] = Deferred(lambda _done: end(otherwise()))

        def end(result: T) -> None:
            self._waiting.remove(again)
            if timer.active():
                timer.cancel()
            done.callback(result)

        def again() -> None:
            found = look()
            if found is not None:
                end(found)

        timer: IDelayedCall = self._clock.callLater(timeout, lambda: end(otherwise()))
        self._waiting.append(again)
        again()
        return done
