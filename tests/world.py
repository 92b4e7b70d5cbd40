"""A whole helper in one thread, and clients of it, in time that stands still until a test moves it.

Everything is our real code, except the storage servers (fakes.py), Foolscap (WireLink) and threads: what
should run in one runs in a later turn of the Clock. So every run of a test is the same.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import attrs
import oracle
from allmydata.util import hashutil
from fakes import FakeGrid, FakeServer
from foolscap.api import Violation
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from client_shim.errors import HelperLost, HelperMisbehaved, HelperUnreachable, UploadError
from client_shim.helper_edge import HelperAnswer, _decode
from client_shim.upload import StreamingUpload
from helper.foolscap_edge import StreamingHelper, WireAnswer
from helper.interfaces import LARGEST_MESSAGE, RIStreamingHelper
from helper.ledger import Ledger
from helper.ledger_file import LEDGER_NAME, LedgerFile, Recorded
from helper.parameters import Parameters
from helper.settings import Settings
from helper.spool import ASIDE, RunInThread, Spool
from helper.upload import Upload
from helper.upload_records import UploadRecord
from helper.uploads import Uploads
from helper.wal_database import Change

T = TypeVar("T")

KEY = bytes(range(16))
SI: bytes = hashutil.storage_index_hash(KEY)

#: Small enough that a test of a few kilobytes meets every limit.
SMALL = Settings(credit=64 * 1024, pushing_lag=4096, contact_after=256, first_bound=1 << 20)


def plaintext(size: int, seed: int = 0) -> bytes:
    """`size` bytes that compress badly and are always the same."""
    return random.Random(seed).randbytes(size)


@lru_cache(maxsize=256)
def expected(data: bytes, parameters: Parameters, key: bytes = KEY) -> oracle.Encoded:
    """What stock makes of `data`."""
    return oracle.encode(data, parameters.k, parameters.n, parameters.max_segment_size, key=key, layout=2)


_SCHEMA: Any = RIStreamingHelper  # Foolscap makes it a mapping of its methods


#: Thousands of worlds sync all the time, and whether a disk really does is not their subject.
QUICK_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Stuck(AssertionError):
    """Nothing more would happen, or not in the time given."""


class WireLink:
    """The client's link to a helper, through the wire's schema and encoding but without a wire.

    Messages keep their order. `latency` is one way, in seconds; `rate` in bytes a second bounds `data`.
    """

    def __init__(self, clock: Clock, edge: Any, latency: float = 0.0, rate: float | None = None,
                 largest_message: int = LARGEST_MESSAGE) -> None:
        self.largest_message = largest_message
        self.latency = latency
        self.rate = rate
        self.sent: list[tuple[str, tuple[Any, ...]]] = []
        self.answers: list[tuple[str, WireAnswer]] = []
        #: Changes an answer before the client sees it.
        self.lie: Callable[[str, WireAnswer], Any] = lambda _method, wire: wire
        #: Says whether the connection breaks instead of a call, given its method and how many came before it.
        self.breaks: Callable[[str, int], bool] = lambda _method, _count: False
        self._clock = clock
        self._edge = edge
        self._cut = False
        self._busy_until = 0.0
        self._waiting: list[Deferred[HelperAnswer]] = []
        self._lost: list[Callable[[], None]] = []

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._lost.append(callback)
        return partial(self._lost.remove, callback)

    async def open(self, upload_id: bytes, parameters: dict[bytes, int]) -> HelperAnswer:
        return await self._call("open", upload_id, parameters)

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

    def cut(self) -> None:
        """The connection breaks: every call under way, and to come, fails."""
        self._cut = True
        waiting, self._waiting = self._waiting, []
        for d in waiting:
            d.errback(HelperLost())
        for callback in list(self._lost):
            callback()

    def methods(self) -> list[str]:
        """The calls sent, in order."""
        return [method for method, _arguments in self.sent]

    def _call(self, method: str, *arguments: Any) -> Deferred[HelperAnswer]:
        schema = _SCHEMA[method]
        try:
            schema.checkAllArgs(arguments, {}, False)
        except Violation:
            return fail(HelperMisbehaved(f"{method} or its answer is outside the agreed bounds"))
        if self.breaks(method, len(self.sent)):
            self.cut()
        if self._cut:
            return fail(HelperLost())
        self.sent.append((method, arguments))
        d: Deferred[HelperAnswer] = Deferred()
        self._waiting.append(d)
        size = sum(len(a) for a in arguments if isinstance(a, bytes))
        self._transmit(size, d, method, arguments)
        return d

    def _transmit(self, size: int, d: Deferred[HelperAnswer], method: str, arguments: tuple[Any, ...]) -> None:
        now = self._clock.seconds()
        self._busy_until = max(now, self._busy_until) + (size / self.rate if self.rate else 0.0)
        self._clock.callLater(self._busy_until - now + self.latency, self._arrive, d, method, arguments)

    def _transmit_answer(self, d: Deferred[HelperAnswer], method: str, wire: WireAnswer) -> None:
        self._clock.callLater(self.latency, self._deliver, d, method, wire)

    def _arrive(self, d: Deferred[HelperAnswer], method: str, arguments: tuple[Any, ...]) -> None:
        if self._cut:
            return
        schema = _SCHEMA[method]
        schema.checkAllArgs(arguments, {}, True)

        def answered(wire: WireAnswer) -> None:
            schema.checkResults(wire, False)
            self.answers.append((method, wire))
            self._transmit_answer(d, method, wire)

        getattr(self._edge, f"remote_{method}")(*arguments).addCallback(answered)

    def _deliver(self, d: Deferred[HelperAnswer], method: str, wire: WireAnswer) -> None:
        if d not in self._waiting:
            return
        self._waiting.remove(d)
        try:
            told = self.lie(method, wire)
            _SCHEMA[method].checkResults(told, True)
            answer = _decode(told)
        except Violation:
            d.errback(HelperMisbehaved(f"{method} or its answer is outside the agreed bounds"))
        except UploadError as e:
            d.errback(e)
        else:
            d.callback(answer)


class BreakableLedgerFile(LedgerFile):
    """A ledger on a disk that fails, with `error`, while that is set."""

    error: Exception | None = None

    def apply(self, changes: Iterable[Change]) -> None:
        self._check()
        super().apply(changes)

    def reopen(self) -> Recorded:
        self._check()
        return super().reopen()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


@implementer(IReactorTime)
class ProcessClock:
    """The time of one process, which stands still for it when it has ended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: list[IDelayedCall] = []
        self._ahead = 0.0
        self.ended = False

    def seconds(self) -> float:
        return float(self._clock.seconds()) + self._ahead

    def shift(self, seconds: float) -> None:
        """Somebody sets the clock; no time goes by, and what is due is due as late as before."""
        self._ahead += seconds

    def callLater(self, delay: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> IDelayedCall:
        self._calls = [call for call in self._calls if call.active()]
        call = self._clock.callLater(delay, function, *args, **kwargs)
        self._calls.append(call)
        if self.ended:
            call.cancel()
        return call

    def getDelayedCalls(self) -> list[IDelayedCall]:
        return [call for call in self._calls if call.active()]

    def end(self) -> None:
        self.ended = True
        for call in self.getDelayedCalls():
            call.cancel()


class World:
    """A helper over a fake grid, its spool in a real directory; use it as a context manager."""

    def __init__(self, servers: int = 10, settings: Settings = SMALL, staging: int = 0, system: Any = os) -> None:
        self.settings = settings
        self.system = system  # makes the system calls of the spool
        self.clock = Clock()
        self.grid = FakeGrid(self.clock, servers, staging)
        self.errors: list[LogEvent] = []
        #: Called whenever time has gone on or something has happened.
        self.watch: Callable[[], None] = lambda: None
        self._held_work: deque[Callable[[], None]] | None = None
        self._links: list[WireLink] = []

    def __enter__(self) -> Self:
        globalLogPublisher.addObserver(cast(ILogObserver, self._observe))
        self.directory = Path(tempfile.mkdtemp(prefix="tahoe-stream-test", dir=QUICK_DISK))
        self.start()
        return self

    def start(self, in_ledger_thread: RunInThread | None = None) -> None:
        """The helper's process begins; `in_ledger_thread` may run what the ledger asks of its disk."""
        self.process = ProcessClock(self.clock)
        in_thread = partial(self.in_thread, process=self.process)
        self.spool = Spool(self.directory / "spool", in_thread, self.system)
        self.spool.start()
        self._ledger_file = BreakableLedgerFile(self.directory / LEDGER_NAME)
        self.ledger = Ledger(self._ledger_file, in_ledger_thread or in_thread, self.process)
        recorded = self.ledger.open(len(self.spool.names()))
        self.uploads = Uploads(self.settings, self.spool, self.ledger, self.grid.seen_by(self.process), self.process,
                               in_thread)
        self.uploads.start(recorded)
        self.edge = StreamingHelper(self.uploads)

    def stop(self) -> None:
        """The helper's process ends in good order."""
        self.uploads.stop()
        self.run(self.ledger.close())
        self.turn()
        self.kill()

    def kill(self) -> None:
        """The helper's process ends at once: nothing of it happens any more, and its connections break."""
        self.process.end()
        self.spool.stop()
        self._ledger_file.close()
        for server in self.grid.servers:
            server.client_died()
        links, self._links = self._links, []
        for link in links:
            link.cut()

    def restart(self) -> None:
        """Kill the helper and start it again."""
        self.kill()
        self.start()

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None,
                 _traceback: TracebackType | None) -> None:
        globalLogPublisher.removeObserver(cast(ILogObserver, self._observe))
        self.spool.stop()
        shutil.rmtree(self.directory)
        if kind is None:
            assert not self.errors, self.errors

    def _observe(self, event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            self.errors.append(event)

    # -- threads and time ----------------------------------------------------------------------------------

    def in_thread(self, function: Callable[..., Any], *args: Any, process: ProcessClock | None = None) -> Deferred[Any]:
        """Run `function` in a later turn, if its process lives; while work is held (`hold_work`), when it is
        released."""
        d: Deferred[Any] = Deferred()

        def work() -> None:
            if process is None or not process.ended:
                maybeDeferred(function, *args).chainDeferred(d)

        if self._held_work is None:
            self.clock.callLater(0, work)
        else:
            self._held_work.append(work)
        return d

    def hold_work(self) -> None:
        """Let what is asked of threads wait: nothing becomes durable or encoded."""
        self._held_work = deque()

    def release_work(self) -> None:
        """Do what waited, and hold no more."""
        held, self._held_work = self._held_work or deque(), None
        for work in held:
            self.clock.callLater(0, work)

    def do_held(self, index: int) -> None:
        """Do one piece of the work that waits, in this turn."""
        if self._held_work is None:
            raise IndexError("no work is held")
        work = self._held_work[index]
        del self._held_work[index]
        self.clock.callLater(0, work)
        self.turn()

    def turn(self) -> None:
        """Do everything that is due without time going on."""
        self._advance_to(self.clock.seconds())

    def _advance_to(self, time: float) -> None:
        self.clock.advance(max(0.0, time - self.clock.seconds()))
        self.watch()

    def wait(self, seconds: float) -> None:
        """Let time go on, to every moment at which something is due."""
        end = self.clock.seconds() + seconds
        while (due := self._next_due()) is not None and due <= end:
            self._advance_to(due)
        self._advance_to(end)

    def run(self, awaitable: Awaitable[T], patience: float = 3600.0) -> T:
        """The result of `awaitable`; time goes on as far as needed, but no more than `patience` seconds."""
        results: list[Any] = []
        begin(awaitable).addBoth(results.append)
        deadline = self.clock.seconds() + patience
        while not results:
            due = self._next_due()
            if due is None or due > deadline:
                raise Stuck(f"no result by {deadline} s")
            self._advance_to(due)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        result: T = results[0]
        return result

    def _next_due(self) -> float | None:
        return min((call.getTime() for call in self.clock.getDelayedCalls()), default=None)

    # -- uploads -----------------------------------------------------------------------------------------

    def link(self, latency: float = 0.0, rate: float | None = None) -> WireLink:
        link = WireLink(self.clock, self.edge, latency, rate, self.settings.largest_message)
        self._links.append(link)
        return link

    def upload(self, parameters: Parameters, link: WireLink | None = None, key: bytes | None = KEY,
               clock: IReactorTime | None = None, **options: Any) -> StreamingUpload:
        """A client's upload through `link` (default: a new one, and another whenever that is cut); with `key` None
        under one of its own; its process may have a `clock` of its own."""

        async def connect() -> WireLink:
            if self.process.ended:
                raise HelperUnreachable("ConnectionRefusedError")
            return link or self.link()

        return StreamingUpload(connect, parameters, clock or self.clock, key=key, **options)

    def put(self, data: bytes, parameters: Parameters, link: WireLink | None = None, key: bytes = KEY,
            write_size: int = 1000) -> bytes:
        """Upload `data`; returns its cap."""
        return self.run(write_all(self.upload(parameters, link, key), data, write_size))

    def only_upload(self) -> Upload:
        """The one upload that the helper knows."""
        (upload,) = self.uploads._by_name.values()
        return upload

    def break_ledger(self, error: Exception | None = None) -> None:
        """Nothing can be recorded from now on."""
        self._ledger_file.error = error or OSError(errno.ENOSPC, "full")

    def mend_ledger(self) -> None:
        """Its disk is well again, and the helper will find out."""
        self._ledger_file.error = None

    def records(self) -> list[UploadRecord]:
        """What the ledger has of uploads, durably."""
        return self._ledger_file.all()

    def spool_files(self) -> list[Path]:
        return [p for p in (self.directory / "spool").iterdir() if p.name not in ("lock", ASIDE)]

    def files_aside(self) -> list[Path]:
        """Spool files that the helper has put aside."""
        aside = self.directory / "spool" / ASIDE
        return sorted(aside.iterdir()) if aside.exists() else []

    # -- what is on the servers ----------------------------------------------------------------------------

    def check_shares(self, encoded: oracle.Encoded, missing: int = 0) -> None:
        """All shares but `missing` are published, each byte for byte the oracle's; nothing is left open."""
        copies = self.grid.copies(encoded.storage_index)
        assert len(encoded.shares) - len(copies) <= missing, f"only shares {sorted(copies)} of {len(encoded.shares)}"
        for shnum, found in copies.items():
            for server, share in found:
                assert share.data == encoded.shares[shnum], f"share {shnum} on {server.name}"
                assert share.allocated >= len(share.data)

    def check_nothing_left(self) -> None:
        """No share, no allocation, no ciphertext of any upload."""
        assert not any(server.published for server in self.grid.servers)
        assert not self.grid.leftovers()
        assert not self.spool_files()

    def holders(self) -> list[FakeServer]:
        """Servers with a published share."""
        return [server for server in self.grid.servers if server.published]


async def write_all(upload: StreamingUpload, data: bytes, write_size: int = 1000) -> bytes:
    """Write `data` in pieces and close."""
    for start in range(0, len(data), write_size):
        await upload.write(data[start:start + write_size])
    return await upload.close()


def begin(awaitable: Awaitable[T]) -> Deferred[T]:
    """A Deferred for `awaitable`, which begins at once."""
    if isinstance(awaitable, Deferred):
        return awaitable

    async def run() -> T:
        return await awaitable

    return Deferred.fromCoroutine(run())


def outcome(d: Deferred[T]) -> list[Any]:
    """A list that will hold the result of `d`, or its Failure; it is empty until then."""
    results: list[Any] = []
    d.addBoth(results.append)
    return results


def with_size(parameters: Parameters, size: int | None) -> Parameters:
    return attrs.evolve(parameters, size=size)
