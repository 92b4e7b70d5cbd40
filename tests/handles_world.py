"""A gateway's upload handles over a real journal and a helper in memory, in time that a test moves; any moment may be
the last of its process, of which then nothing is left but its journal's files as they are on the disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from model_helper import ModelHelper
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from world import KEY, QUICK_DISK, ProcessClock, begin, outcome

from client_shim.dedup import Dedup, DedupMode
from client_shim.gateway.handle_settings import HandleSettings
from client_shim.gateway.handles import Handle, HandleOptions, Handles, LinkTarget
from client_shim.gateway.journal import JOURNAL_NAME, Journal, JournalFile
from helper.errors import StreamingError
from helper.parameters import Parameters

PARAMETERS = Parameters(2, 3, 4, 500)


class Died(Exception):
    """The process ended before there was a result."""


class GatewayWorld:
    """Use it as a context manager."""

    def __init__(self, parameters: Parameters = PARAMETERS, settings: HandleSettings = HandleSettings(),  # noqa: B008
                 connect: Callable[[], Awaitable[Any]] | None = None, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.parameters = parameters
        self.settings = settings
        self.helper = ModelHelper(self.clock, parameters)
        self.connect = connect or self.helper.connect
        #: Breaks the connection to the helper.
        self.cut: Callable[[], None] = self.helper.cut
        self.linked: list[tuple[LinkTarget, bytes]] = []
        self.link_fails: Exception | None = None
        self.link: Callable[[LinkTarget, bytes], Awaitable[None]] = self._link
        #: Raises what a call in the journal's thread raises instead of being made.
        self.fail_work: Callable[[str], None] = lambda _name: None
        #: Called in the journal's thread before and after each call, with its name.
        self.before_work: Callable[[str], None] = lambda _name: None
        self.after_work: Callable[[str], None] = lambda _name: None
        #: Called when a process begins.
        self.on_start: Callable[[], None] = lambda: None
        self.epoch = 1_000_000.0
        #: How files that are stored already are found, and whether they are looked for.
        self.dedup: Callable[[DedupMode], Dedup | None] = lambda _mode: None
        self.dedup_mode = DedupMode.OFF

    def __enter__(self) -> Self:
        self.root = Path(tempfile.mkdtemp(prefix="tahoe-stream-test", dir=QUICK_DISK))
        self.directory = self.root / "first"
        self.lives = 0
        self.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _traceback: TracebackType | None) -> None:
        self.process.end()
        self.file.close()
        shutil.rmtree(self.root)

    # -- the process -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The gateway's process begins; again if it dies at once."""
        while True:
            self.process = ProcessClock(self.clock)
            self.file = JournalFile(self.directory / JOURNAL_NAME)
            self.handles = self._handles(self.process)
            self.on_start()
            try:
                self.result(self.handles.start())
            except Died:
                continue
            return

    def _handles(self, process: ProcessClock) -> Handles:
        def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            d: Deferred[Any] = Deferred()

            def work() -> None:
                if process.ended:
                    return
                name = function.__name__
                self.before_work(name)
                if process.ended:
                    return
                done = maybeDeferred(self._work, function, *arguments)
                self.after_work(name)
                if not process.ended:
                    done.chainDeferred(d)
                else:
                    done.addErrback(lambda _failure: None)

            process.callLater(0, work)
            return d

        async def connect() -> Any:
            if process.ended:
                return await Deferred()
            return await self.connect()

        async def link(target: LinkTarget, cap: bytes) -> None:
            if process.ended:
                await Deferred()
            await self.link(target, cap)

        keys = iter([KEY])
        return Handles(Journal(self.file, in_thread), connect, self.parameters, self.settings, process, link,
                       dedup=lambda mode: self.dedup(mode), dedup_mode=self.dedup_mode,
                       now=lambda: self.epoch + process.seconds(),
                       randomness=lambda size: next(keys, _other_key()) if size == len(KEY) else _random(size))

    def _work(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.fail_work(function.__name__)
        return function(*arguments)

    async def _link(self, target: LinkTarget, cap: bytes) -> None:
        self.linked.append((target, cap))
        if self.link_fails is not None:
            raise self.link_fails

    def kill(self) -> None:
        """The gateway's process ends at once, and the machine's disk keeps what was synced: the next life opens copies
        of the journal's files as they are now, while the dead process still has its own open."""
        self.process.end()
        self.cut()
        self.lives += 1
        after = self.root / f"life {self.lives}"
        shutil.copytree(self.directory, after)
        self.directory = after
        self.file.close()

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    # -- time --------------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Let time go on, to every moment at which something is due."""
        end = self.clock.seconds() + seconds
        while (due := self._next_due()) is not None and due <= end:
            self.clock.advance(max(0.0, due - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def result(self, call: Awaitable[Any], patience: float = 300.0) -> Any:
        """Its result; raises what it raises; Died if the process ended first."""
        results = outcome(begin(call))
        end = self.clock.seconds() + patience
        while not results and (due := self._next_due()) is not None and due <= end:
            self.clock.advance(max(0.0, due - self.clock.seconds()))
        if not results and self.process.ended:
            raise Died()
        assert results, "no result"
        return value_of(results)

    def error(self, call: Awaitable[Any], patience: float = 300.0) -> StreamingError:
        """The error that it raises."""
        try:
            value = self.result(call, patience)
        except StreamingError as e:
            return e
        raise AssertionError(f"no error but {value!r}")

    def _next_due(self) -> float | None:
        return min((call.getTime() for call in self.clock.getDelayedCalls()), default=None)

    # -- handles -----------------------------------------------------------------------------------------------

    def create(self, size: int | None = None, **options: Any) -> Handle:
        handle: Handle = self.result(self.handles.create(HandleOptions(size, **options)))
        return handle

    def journal_bytes(self) -> bytes:
        """All that is in files of the gateway, of this life."""
        return b"".join(path.read_bytes() for path in sorted(self.directory.rglob("*")) if path.is_file())


def value_of(results: list[Any]) -> Any:
    """What `outcome` gave; raises it if it is an error."""
    (value,) = results
    error = getattr(value, "value", value)
    if isinstance(error, BaseException):
        raise error
    return value


def _random(size: int) -> bytes:
    return os.urandom(size)


def _other_key() -> bytes:
    return _random(len(KEY))


