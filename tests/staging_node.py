"""A stock StorageServer with staging beside it, for tests: it can be killed at any step, lose its power, and
have a disk that fails. Nothing of helper/ is replaced but what StagingServer takes as arguments."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allmydata.storage.server import StorageServer
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from helper.layout import DATA_OFFSET
from helper.staged_share import Outcome
from helper.staging import StagingLimits, StagingServer
from helper.staging_disk import Disk

NAME, OTHER = b"n" * 32, b"o" * 32
SI, SI2 = b"storage index 16", b"another index 16"
SECRETS = (b"r" * 32, b"c" * 32)
BODY = bytes(range(256)) * 8
HEADER = b"\0\0\0\2" + b"h" * (DATA_OFFSET - 4)
SIZE = DATA_OFFSET + len(BODY)


class Killed(BaseException):
    """The node is gone; nothing more of it happens."""


class Call:
    """A call under way."""

    def __init__(self, coroutine: Any) -> None:
        self._results: list[Any] = []
        Deferred.fromCoroutine(coroutine).addBoth(self._results.append)

    @property
    def done(self) -> bool:
        return bool(self._results) and not (
            isinstance(self._results[0], Failure) and self._results[0].check(Killed) is not None)

    def result(self) -> Any:
        """What it returned or raised."""
        assert self.done, "still waiting"
        if isinstance(self._results[0], Failure):
            self._results[0].raiseException()
        return self._results[0]


def now(coroutine: Any) -> Any:
    """The result of what needs no waiting, as threads are calls here."""
    return Call(coroutine).result()


class Power:
    """Counts steps, and ends the node before one of them."""

    def __init__(self) -> None:
        self.steps = 0
        self.ends_before: int | None = None

    @property
    def off(self) -> bool:
        return self.ends_before is not None and self.steps >= self.ends_before

    def step(self) -> None:
        if self.off:
            raise Killed
        self.steps += 1


class Threads:
    """Runs functions at once, or when told. What the power ends never comes back."""

    def __init__(self, power: Power) -> None:
        self._power = power
        self.waiting: list[Callable[[], None]] | None = None
        #: Names of the functions that were run.
        self.ran: list[str] = []

    def hold(self) -> None:
        self.waiting = []

    def run_one(self) -> None:
        """The function that has waited longest."""
        assert self.waiting
        self.waiting.pop(0)()

    def release(self) -> None:
        """Run all, and from now on at once."""
        while self.waiting:
            self.run_one()
        self.waiting = None

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()

        def run() -> None:
            self.ran.append(function.__name__)
            try:
                self._power.step()
                maybeDeferred(function, *arguments).addBoth(self._unless_killed).chainDeferred(done)
            except Killed:
                pass

        if self.waiting is None:
            run()
        else:
            self.waiting.append(run)
        return done

    def _unless_killed(self, result: Any) -> Any:
        if self._power.off or (isinstance(result, Failure) and result.check(Killed)):
            return Deferred()
        return result


class TestDisk(Disk):
    """A disk that can fail, and forget at a loss of power what was not synced. It does not
    really sync, which costs time and is of no use to a test."""

    __test__ = False

    def __init__(self, power: Power, attic: Path) -> None:
        self._power = power
        self._attic = attic
        #: Errors to raise, by method: of every call, until they are taken away.
        self.errors: dict[str, OSError] = {}
        self.calls: list[str] = []
        self._synced: dict[int, int] = {}
        self._names: list[Path] = []  # new ones, whose directory was not synced since
        self._unlinked: dict[Path, Path] = {}

    def _step(self, method: str) -> None:
        self._power.step()
        self.calls.append(method)
        if method in self.errors:
            raise self.errors[method]

    def create(self, path: Path) -> None:
        self._step("create")
        super().create(path)
        self._names.append(path)

    def write(self, fd: int, data: bytes, position: int) -> None:
        self._step("write")
        super().write(fd, data, position)

    def fdatasync(self, fd: int) -> None:
        self._step("fdatasync")
        self._remember(fd)

    def fsync(self, fd: int) -> None:
        self._step("fsync")
        self._remember(fd)

    def fsync_directory(self, directory: Path) -> None:
        self._step("fsync_directory")
        self._names = [path for path in self._names if path.parent != directory]
        self._unlinked = {path: kept for path, kept in self._unlinked.items() if path.parent != directory}

    def make_directory(self, directory: Path, mode: int = 0o777) -> None:
        self._step("make_directory")
        new = [path for path in (directory, *directory.parents) if not path.exists()]
        super().make_directory(directory, mode)
        self._names += new

    def remove_directory(self, directory: Path) -> None:
        self._step("remove_directory")
        super().remove_directory(directory)

    def link(self, old: Path, new: Path) -> None:
        self._step("link")
        super().link(old, new)
        self._names.append(new)

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        if path.exists():
            kept = self._attic / str(len(list(self._attic.iterdir())))
            os.link(path, kept)
            self._unlinked[path] = kept
        super().unlink(path)

    def _remember(self, fd: int) -> None:
        status = os.fstat(fd)
        self._synced[status.st_ino] = status.st_size

    def lose_power(self, staged: list[Path]) -> None:
        """New names go, removed ones come back, files end where they were synced."""
        for path, kept in self._unlinked.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(kept, path)
        for path in self._names:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for path in staged:
            if path.exists():
                os.truncate(path, self._synced.get(path.stat().st_ino, 0))
        self._names, self._unlinked = [], {}


class Node:
    """A storage node's part of it, that can be restarted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.clock.advance(10**9)  # seconds since the epoch
        self.limits = StagingLimits()
        self.reserved = 0
        self.readonly = False
        self.power = Power()
        attic = directory.parent / f"{directory.name}.attic"
        attic.mkdir(parents=True)
        self.disk = TestDisk(self.power, attic)
        self.start()

    def start(self) -> None:
        self.power.ends_before = None
        time, self.clock = self.clock.seconds(), Clock()  # timers of an earlier life ended with it
        self.clock.advance(time)
        self.threads = Threads(self.power)
        self.stock = StorageServer(str(self.directory), b"i" * 20, clock=self.clock, reserved_space=self.reserved,
                                   readonly_storage=self.readonly)
        self.staging = StagingServer(self.stock, self.limits, self.clock, self.threads, self.disk)
        self.staging.start()

    def stop(self) -> None:
        self.staging.stop()

    def wait(self, seconds: float) -> None:
        """Time goes by, as it does: when it comes in one piece the node takes it for a clock that is set."""
        while seconds > 0:
            self.clock.advance(min(seconds, self.limits.sweep_interval))
            seconds -= self.limits.sweep_interval

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """Nothing more happens; and start again."""
        self.power.ends_before = self.power.steps
        self.restart()

    def lose_power(self) -> None:
        self.power.ends_before = self.power.steps
        self.stop()
        self.disk.lose_power([path for path in self.staged_files() if path.is_file()])
        self.start()

    def share_file(self, shnum: int, si: bytes = SI) -> Path | None:
        return {number: Path(path) for number, path in self.stock.get_shares(si)}.get(shnum)

    def staged_files(self) -> list[Path]:
        return [p for p in (self.directory / "staging").rglob("*")
                if p.name != "lock" and not p.name.startswith("staging.sqlite")]

    def full_share(self, shnum: int, name: bytes = NAME, body: bytes = BODY,
                   secrets: tuple[bytes, bytes] = SECRETS) -> None:
        self.stage(name, [shnum])
        self.write(name, shnum, DATA_OFFSET, body)
        self.write(name, shnum, 0, HEADER)
        self.prepare(name, shnum, DATA_OFFSET + len(body), secrets)

    def stage(self, name: bytes, shnums: list[int], size: int = 0) -> Any:
        return now(self.staging.stage(name, shnums, size))

    def write(self, name: bytes, shnum: int, offset: int, data: bytes) -> Any:
        return now(self.staging.write(name, shnum, offset, data))

    def held(self, name: bytes = NAME) -> Any:
        return now(self.staging.held(name))

    def prepare(self, name: bytes, shnum: int, size: int = SIZE, secrets: tuple[bytes, bytes] = SECRETS) -> Any:
        return now(self.staging.prepare(name, shnum, size, *secrets))

    def assign(self, name: bytes = NAME, si: bytes = SI, shnums: list[int] | None = None) -> dict[int, str]:
        return outcomes(now(self.staging.assign(name, si, shnums or [])))

    def abort(self, name: bytes = NAME, shnums: list[int] | None = None) -> None:
        now(self.staging.abort(name, shnums or []))

    def count(self, name: str) -> int:
        return self.staging.statistics()[name]


def outcomes(answer: dict[int, Outcome]) -> dict[int, str]:
    return {shnum: outcome.value for shnum, outcome in answer.items()}
