"""The rules of staging on a storage node: what is accepted, what becomes an ordinary share, what is swept.

protocol.txt part 2. Beside the node's stock StorageServer, never instead of it.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b32encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from allmydata.storage.lease import LeaseInfo
from allmydata.storage.server import DEFAULT_RENEWAL_TIME
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from helper import staging_errors as errors
from helper.all_done import all_done
from helper.disk import take_lock
from helper.interfaces import STORAGE_INDEX_SIZE
from helper.layout import DATA_OFFSET
from helper.one_staging import Staging
from helper.spool import RunInThread
from helper.staged_share import SETTLED, Means, Outcome, StagedShare
from helper.staging_disk import Disk
from helper.staging_errors import disk_errors
from helper.staging_interfaces import LARGEST_WRITE, SHARES_MAX, STAGING_NAME_SIZE
from helper.staging_publisher import Publisher
from helper.staging_records import Commits, StagedRecord, StagedState, StagingRecords, add, remove, set_uptime, touch
from helper.staging_recovery import Recovery
from helper.staging_room import SPARE_PER_SHARE, Room
from helper.uptime import Uptime

GiB = 1024**3
SECRET_SIZE = 32

_LOCK = "lock"
_NAME_TAG = b"tahoe-stream staging name v1:"


class StagingLocked(Exception):
    """Another process uses this directory of staged shares."""


@attrs.frozen
class StagingLimits:
    """Sizes in bytes, durations in seconds."""

    stagings: int = 10_000
    #: Of all stagings together. Each costs memory, a record and a file, even without a byte.
    shares: int = 40_000
    bytes_per_staging: int = 1024 * GiB
    expiry: float = 14 * 86400
    #: Of stagings without a byte. Helpers look after a share every ten minutes.
    empty_expiry: float = 3 * 3600
    sweep_interval: float = 3600
    #: `touched` is made durable at most so often.
    touch_interval: float = 3600


@attrs.frozen
class Held:
    """A staged share as `held` reports it."""

    shnum: int
    state: str
    length: int
    synced: int


class StagingServer:
    """Staged shares of one node. `stock` is its allmydata StorageServer.

    Methods raise a StagingError for what is refused; a refused call changes nothing (after WriteFailed: ask `held`).
    """

    log = Logger()

    def __init__(self, stock: Any, limits: StagingLimits, clock: IReactorTime, run_in_thread: RunInThread,
                 disk: Disk | None = None) -> None:
        self._stock = stock
        self._limits = limits
        self._clock = clock
        self._run_in_thread = run_in_thread
        self._means = Means(disk or Disk(), run_in_thread, self._commit)
        self._publisher = Publisher(stock, self._means)
        self._directory = Path(stock.storedir) / "staging"
        self._records = StagingRecords(self._directory / "staging.sqlite")
        self._lock: int | None = None
        self._commits: Commits | None = None
        self._stagings: dict[str, Staging] = {}
        self._creating = 0  # shares that are being begun
        self._uptime = Uptime(clock, 2 * limits.sweep_interval)
        self._room = Room(stock, limits.bytes_per_staging)
        self._sweeper = LoopingCall(self._sweep)
        self._sweeper.clock = clock
        self._counters = {"staged": 0, "aborted": 0, "expired": 0, "bytes_written": 0, "write_failed": 0,
                          "assigned": 0, "already_there": 0, "busy": 0, "failed": 0}

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read the records of an earlier run, complete what it had decided, sweep what is no use. Blocks.

        Raises OSError, sqlite3.Error or ValueError if files and records cannot be made to agree, StagingLocked if
        another process uses them; then call `stop`.
        """
        if not self._directory.exists():
            self._means.disk.make_directory(self._directory, 0o700)
            self._means.disk.fsync_directory(self._directory.parent)
        self._directory.chmod(0o700)
        self._lock = take_lock(self._directory / _LOCK)
        if self._lock is None:
            raise StagingLocked(f"{self._directory} is in use by another process")
        self._records.open()
        self._uptime.begin(self._records.uptime())
        self._commits = Commits(self._records, self._run_in_thread)
        recovered = Recovery(self._directory, self._records, self._publisher, self._means).run()
        for share in recovered.shares:
            touched = share.record().touched
            staging = self._stagings.setdefault(share.name, self._new(share.name, touched))
            staging.touched = max(staging.touched, touched)
            staging.shares[share.shnum] = share
        for staging in self._stagings.values():
            if staging.empty:  # perhaps only since now, as nothing was synced: who staged it has time to come back
                staging.touched = self._uptime.seconds
        self._count(recovered.outcomes)
        self._sweeper.start(self._limits.sweep_interval, now=True)

    def stop(self) -> None:
        """The node stops. What is under way goes no further."""
        if self._sweeper.running:
            self._sweeper.stop()
        if self._commits is not None:
            self._commits = None
            self._records.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def statistics(self) -> dict[str, int]:
        """What happened since the start, and what is there now (`…_now`)."""
        shares = [share for staging in self._stagings.values() for share in staging.live()]
        return {**self._counters, "stagings_now": len(self._stagings), "staged_now": len(shares),
                "staged_bytes_now": sum(share.length for share in shares)}

    # -- protocol.txt §16 -----------------------------------------------------------------------------------------

    def get_version(self) -> dict[str, int]:
        space = self._room.available()
        return {"available-space": 2**63 if space is None else max(0, space - SPARE_PER_SHARE),
                "largest-write": LARGEST_WRITE, "bytes-per-staging": self._limits.bytes_per_staging}

    async def stage(self, name: bytes, shnums: Sequence[int], size: int) -> list[Held]:
        key = _key(name)
        _check_shnums(shnums)
        if size < 0:
            raise errors.BadArgument("size", "bytes of share data, or 0 if unknown", str(size))
        self._check_running()
        if key not in self._stagings:
            if len(self._stagings) >= self._limits.stagings:
                raise errors.TooManyStagings(self._limits.stagings)
            self._stagings[key] = self._new(key, self._uptime.seconds)
        staging = self._stagings[key]
        with self._using(staging):
            async with staging.structure:
                new = sorted({*shnums} - {*staging.shares})
                if new:
                    self._room.check(staging, len(new) * size, len(new) * (size + SPARE_PER_SHARE), 0)
                    self._check_number(len(new))
                    await self._create(staging, new)
                    self._counters["staged"] += len(new)
                return _held(staging)

    async def write(self, name: bytes, shnum: int, offset: int, data: bytes) -> dict[str, int]:
        staging = self._find(name)
        share = staging.find(shnum)
        with self._using(staging), self._counted_failures():
            length = await share.write(
                offset, data, lambda grows: self._room.admit(staging, grows, grows, SPARE_PER_SHARE))
            self._counters["bytes_written"] += len(data)
            return {"length": length, "synced": share.synced}

    async def held(self, name: bytes) -> list[Held]:
        staging = self._find(name)
        with self._using(staging):
            return _held(staging)

    async def prepare(self, name: bytes, shnum: int, size: int, renew_secret: bytes, cancel_secret: bytes) -> None:
        staging = self._find(name)
        share = staging.find(shnum)
        for field, secret in (("renew_secret", renew_secret), ("cancel_secret", cancel_secret)):
            if len(secret) != SECRET_SIZE:
                raise errors.BadArgument(field, f"{SECRET_SIZE} bytes", f"{len(secret)} bytes")
        expires = int(self._clock.seconds()) + DEFAULT_RENEWAL_TIME
        lease = LeaseInfo(0, renew_secret, cancel_secret, expires, self._stock.my_nodeid)
        with self._using(staging), self._counted_failures():
            # may use what writes have kept free
            await share.prepare(size, lease, lambda overhead: self._room.admit(staging, 0, overhead, 0))

    async def assign(self, name: bytes, storage_index: bytes, shnums: Sequence[int]) -> dict[int, Outcome]:
        """{share number: outcome} of the shares named; of all that are prepared, if none are."""
        if len(storage_index) != STORAGE_INDEX_SIZE:
            raise errors.BadArgument("storage_index", f"{STORAGE_INDEX_SIZE} bytes", f"{len(storage_index)} bytes")
        _check_shnums(shnums)
        staging = self._find(name)
        live = {share.shnum: share for share in staging.live()}
        wanted = {*shnums} or {n for n, share in live.items() if share.state is not StagedState.GROWING}
        assigning = [live[n] for n in wanted & {*live} if live[n].state is StagedState.ASSIGNING]
        if any(share.storage_index != storage_index for share in assigning):
            raise errors.StorageIndexConflict
        outcomes = {n: Outcome.NOT_PREPARED if n in live else Outcome.UNKNOWN for n in wanted}
        others = [(share.shnum, share.assignment()) for share in assigning]
        mine = [live[n] for n in sorted(wanted & {*live}) if live[n].state is StagedState.PREPARED]
        with self._using(staging):
            if mine:
                outcomes |= await self._publish(staging, mine, storage_index)
            for shnum, outcome in others:
                outcomes[shnum] = await outcome
        return outcomes

    async def abort(self, name: bytes, shnums: Sequence[int]) -> None:
        """Remove shares (all of the staging, if none are named). No error if there are none."""
        key = _key(name)
        _check_shnums(shnums)
        self._check_running()
        staging = self._stagings.get(key)
        if staging is None:
            return
        with self._using(staging), disk_errors():
            async with staging.structure:
                self._counters["aborted"] += await self._remove(
                    staging, [share for share in staging.live() if not shnums or share.shnum in shnums])

    def _check_number(self, new: int) -> None:
        shares = sum(len(staging.shares) for staging in self._stagings.values()) + self._creating
        if shares + new > self._limits.shares:
            raise errors.TooManyStagings(self._limits.shares)

    # -- shares come and go ------------------------------------------------------------------------------------------

    async def _create(self, staging: Staging, shnums: list[int]) -> None:
        records = [StagedRecord(staging.name, shnum, StagedState.GROWING, DATA_OFFSET, None, None, staging.touched)
                   for shnum in shnums]
        shares = [self._share(record) for record in records]
        self._creating += len(shares)
        try:
            with self._counted_failures():
                await self._run_in_thread(self._create_files, staging.directory, shares)
                try:
                    # Of a record without a file, and of a file without a record, nothing is left after a restart.
                    await all_done([
                        self._commit(*(add(record) for record in records)),
                        *(self._run_in_thread(self._means.disk.fsync_directory, directory)
                          for directory in (self._directory, staging.directory))])
                except OSError:
                    await self._commit(*(remove(record.name, record.shnum) for record in records))
                    raise
        finally:
            self._creating -= len(shares)
        # Files of a failure are strangers: in nobody's way, and removed at the next start.
        staging.shares.update({share.shnum: share for share in shares})

    def _create_files(self, directory: Path, shares: list[StagedShare]) -> None:
        self._means.disk.make_directory(directory, 0o700)
        for share in shares:
            share.create()

    async def _publish(self, staging: Staging, shares: list[StagedShare], storage_index: bytes) -> dict[int, Outcome]:
        outcomes: dict[int, Outcome] = {}
        try:
            outcomes = await self._publisher.publish(shares, storage_index)
        finally:
            for share in shares:
                if outcomes.get(share.shnum) in SETTLED:
                    del staging.shares[share.shnum]
            for share in shares:
                share.end_assignment(outcomes.get(share.shnum, Outcome.FAILED))
        self._count(outcomes.values())
        return outcomes

    async def _remove(self, staging: Staging, shares: list[StagedShare]) -> int:
        """How many were removed; those that are being assigned may be published instead. Holds `structure`."""
        removed = await gatherResults(
            [Deferred.fromCoroutine(self._remove_file(share)) for share in shares], consumeErrors=True)
        gone = [share for share, is_removed in zip(shares, removed, strict=True) if is_removed]
        for share in gone:
            del staging.shares[share.shnum]
        await self._commit(*(remove(share.name, share.shnum) for share in gone))
        return len(gone)

    async def _remove_file(self, share: StagedShare) -> bool:
        while share.state is StagedState.ASSIGNING:
            if await share.assignment() in SETTLED:
                return False
        try:
            await share.remove()
        except OSError:  # without its record it is a stranger
            self.log.failure("a staged share could not be removed")
        return True

    def _sweep(self) -> Deferred[Any]:
        self._uptime.step()
        now = self._uptime.seconds
        self._commit(set_uptime(now)).addErrback(self._failed)
        expired = [s for s in self._stagings.values() if not s.users and s.touched < now - (
            self._limits.empty_expiry if s.empty else self._limits.expiry)]
        if expired:
            self.log.info("{count} stagings have expired", count=len(expired))
        return gatherResults([
            Deferred.fromCoroutine(self._expire(staging)).addErrback(self._failed) for staging in expired])

    async def _expire(self, staging: Staging) -> None:
        with self._using(staging, touches=False):
            async with staging.structure:
                self._counters["expired"] += 1
                await self._remove(staging, staging.live())

    # -- what all need -----------------------------------------------------------------------------------------------

    def _new(self, name: str, touched: float) -> Staging:
        return Staging(name, self._directory / name, touched, recorded_touch=touched)

    def _share(self, record: StagedRecord) -> StagedShare:
        return StagedShare(self._directory / record.name / str(record.shnum), record, self._means)

    def _check_running(self) -> Commits:
        if self._commits is None:
            raise errors.Stopping
        return self._commits

    def _commit(self, *changes: Any) -> Deferred[None]:
        return self._check_running().commit(*changes)

    def _find(self, name: bytes) -> Staging:
        staging = self._stagings.get(_key(name))
        self._check_running()
        if staging is None or not staging.live():
            raise errors.UnknownStaging
        return staging

    @contextmanager
    def _using(self, staging: Staging, touches: bool = True) -> Iterator[None]:
        """Somebody is at work on it: it stays. The last one out takes an empty one away, directory and all."""
        staging.users += 1
        try:
            if touches:
                self._touch(staging)
            yield
        finally:
            staging.users -= 1
            if not staging.users and not staging.shares:
                del self._stagings[staging.name]
                self._remove_directory(staging.directory)

    def _touch(self, staging: Staging) -> None:
        now = staging.touched = self._uptime.seconds
        if now - staging.recorded_touch >= self._limits.touch_interval:
            staging.recorded_touch = now
            self._commit(touch(staging.name, now)).addErrback(self._failed)

    def _remove_directory(self, directory: Path) -> None:
        try:
            self._means.disk.remove_directory(directory)
        except OSError:
            pass  # never made, or not empty: then the next start looks again

    @contextmanager
    def _counted_failures(self) -> Iterator[None]:
        try:
            with disk_errors():
                yield
        except errors.WriteFailed:
            self._counters["write_failed"] += 1
            raise

    def _count(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._counters[outcome.value.replace("-", "_")] += 1

    def _failed(self, failure: Any) -> None:
        self.log.failure("staging records could not be written", failure)


def _key(name: bytes) -> str:
    """A directory name, [a-z2-7]{52}. A hash, as the name itself is a bearer capability: protocol.txt §15.3."""
    if len(name) != STAGING_NAME_SIZE:
        raise errors.BadArgument("name", f"{STAGING_NAME_SIZE} bytes", f"{len(name)} bytes")
    return b32encode(hashlib.sha256(_NAME_TAG + name).digest()).decode("ascii").rstrip("=").lower()


def _check_shnums(shnums: Sequence[int]) -> None:
    for shnum in shnums:
        if not 0 <= shnum < SHARES_MAX:
            raise errors.BadArgument("shnums", f"numbers from 0 to {SHARES_MAX - 1}", str(shnum))


def _held(staging: Staging) -> list[Held]:
    return [Held(share.shnum, share.state.value, share.length, share.synced) for share in staging.live()]
