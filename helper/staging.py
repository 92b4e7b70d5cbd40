"""The rules of staging on a storage node: what is accepted, how it becomes an ordinary share, what is swept.

protocol.txt part 2. Beside the node's stock StorageServer, never instead of it: `assign` hands a finished
file over by link(2), in one turn of the reactor, so that the stock server never sees half of it.
"""

from __future__ import annotations

import os
import re
from base64 import b32encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from allmydata.storage.common import storage_index_to_dir
from allmydata.storage.lease import LeaseInfo
from allmydata.storage.server import DEFAULT_RENEWAL_TIME
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from helper import staging_errors as errors
from helper.disk import fsync_directory
from helper.layout import DATA_OFFSET
from helper.spool import RunInThread
from helper.staged_share import StagedShare
from helper.staging_interfaces import LARGEST_WRITE, SHARES_MAX, STAGING_NAME_SIZE
from helper.staging_records import StagedRecord, StagedState, StagingRecords

GiB = 1024**3
STORAGE_INDEX_SIZE = 16
SECRET_SIZE = 32

#: Space kept free for the trailers, headers and leases of shares already staged; bytes a share.
SPARE_PER_SHARE = 64 * 1024


@attrs.frozen
class StagingLimits:
    """Sizes in bytes, durations in seconds."""

    stagings: int = 10_000
    bytes_per_staging: int = 1024 * GiB
    expiry: float = 14 * 86400
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

    Methods raise a StagingError for what is refused; a refused call changes nothing.
    """

    log = Logger()

    def __init__(self, stock: Any, limits: StagingLimits, clock: IReactorTime, run_in_thread: RunInThread) -> None:
        self._stock = stock
        self._limits = limits
        self._clock = clock
        self._run_in_thread = run_in_thread
        self._directory = Path(stock.storedir) / "staging"
        self._records: StagingRecords | None = None
        self._stagings: dict[str, dict[int, StagedShare]] = {}
        self._touched: dict[str, float] = {}
        self._recorded_touch: dict[str, float] = {}
        self._sweeper = LoopingCall(self._sweep)
        self._sweeper.clock = clock
        self.counters = {"staged": 0, "assigned": 0, "already_there": 0, "aborted": 0, "expired": 0,
                         "bytes_written": 0}

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read the records of an earlier run, complete what it had decided, sweep what is no use. Blocks."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._records = StagingRecords(self._directory / "staging.sqlite")
        for record in self._records.all():
            share = self._share(record)
            if not share.path.exists():
                self._table.remove(record.name, [record.shnum])
                if record.state is StagedState.ASSIGNING:  # it was linked, and its staged name is gone
                    self.counters["assigned"] += 1
                continue
            self._stagings.setdefault(record.name, {})[record.shnum] = share
            self._touched[record.name] = max(record.touched, self._touched.get(record.name, 0.0))
            if record.state is StagedState.ASSIGNING and record.storage_index is not None:
                self._publish(share, record.storage_index)
                self._table.remove(record.name, [record.shnum])
                self._forget(share)
        self._remove_strangers()
        self._sweeper.start(self._limits.sweep_interval, now=True)

    def stop(self) -> None:
        """The node stops."""
        if self._sweeper.running:
            self._sweeper.stop()
        if self._records is not None:
            self._records.close()
            self._records = None

    @property
    def _table(self) -> StagingRecords:
        if self._records is None:
            raise errors.Stopping
        return self._records

    def _share(self, record: StagedRecord) -> StagedShare:
        path = self._directory / record.name / str(record.shnum)

        def synced(length: int) -> None:
            self._run_in_thread(self._table.set_synced, record.name, record.shnum, length).addErrback(self._failed)

        return StagedShare(path, record, self._run_in_thread, synced)

    def _failed(self, failure: Any) -> None:
        self.log.failure("staging records could not be written", failure)

    # -- protocol.txt §16 -----------------------------------------------------------------------------------------

    def get_version(self) -> dict[str, int]:
        space = self._stock.get_available_space()
        return {"available-space": 2**63 if space is None else space, "largest-write": LARGEST_WRITE,
                "bytes-per-staging": self._limits.bytes_per_staging}

    async def stage(self, name: bytes, shnums: Sequence[int]) -> list[Held]:
        key = _key(name)
        for shnum in shnums:
            if not 0 <= shnum < SHARES_MAX:
                raise errors.BadArgument("shnums", f"numbers from 0 to {SHARES_MAX - 1}", str(shnum))
        if key not in self._stagings and len(self._stagings) >= self._limits.stagings:
            raise errors.TooManyStagings(self._limits.stagings)
        self._check_space(len(shnums) * SPARE_PER_SHARE)
        shares = self._stagings.setdefault(key, {})
        now = self._clock.seconds()
        records = [StagedRecord(key, shnum, StagedState.GROWING, DATA_OFFSET, None, None, now)
                   for shnum in sorted({*shnums} - {*shares})]
        new = [self._share(record) for record in records]
        shares.update({share.shnum: share for share in new})
        self._touched[key] = now
        await self._run_in_thread(self._create, key, new, records)
        self.counters["staged"] += len(new)
        return self._held(key)

    def _create(self, key: str, shares: list[StagedShare], records: list[StagedRecord]) -> None:
        directory = self._directory / key
        if shares and not directory.exists():
            directory.mkdir(mode=0o700)
            fsync_directory(self._directory)
        for share in shares:
            share.create()
        if records:
            self._table.put(*records)

    async def write(self, name: bytes, shnum: int, offset: int, data: bytes) -> dict[str, int]:
        share = self._find(name, shnum)
        if share.state is not StagedState.GROWING:
            raise errors.AlreadyPrepared(share.state.value)
        end = offset + len(data)
        # The header stands before the data and is written last; everything else grows without gaps.
        in_header = offset >= 0 and end <= DATA_OFFSET
        if not in_header and not DATA_OFFSET <= offset <= share.length:
            raise errors.OffsetGap(share.length, offset)
        used = sum(s.length for s in self._stagings[share.name].values())
        grows = max(0, end - share.length)
        if used + grows > self._limits.bytes_per_staging:
            raise errors.StagingFull(self._limits.bytes_per_staging, used + grows)
        self._check_space(grows)
        self._touch(share.name)
        try:
            length = await share.write(offset, data)
        except OSError as e:
            raise errors.WriteFailed(os.strerror(e.errno) if e.errno else type(e).__name__) from e
        self.counters["bytes_written"] += len(data)
        return {"length": length, "synced": share.synced}

    async def held(self, name: bytes) -> list[Held]:
        key = _key(name)
        if key not in self._stagings:
            raise errors.UnknownStaging
        self._touch(key)
        return self._held(key)

    async def prepare(self, name: bytes, shnum: int, size: int, renew_secret: bytes, cancel_secret: bytes) -> None:
        share = self._find(name, shnum)
        for field, secret in (("renew_secret", renew_secret), ("cancel_secret", cancel_secret)):
            if len(secret) != SECRET_SIZE:
                raise errors.BadArgument(field, f"{SECRET_SIZE} bytes", f"{len(secret)} bytes")
        if not DATA_OFFSET < size <= share.length or (share.size is not None and size != share.size):
            raise errors.WrongSize(share.length if share.size is None else share.size, size)
        if share.state is StagedState.ASSIGNING:
            raise errors.AlreadyPrepared(share.state.value)
        expires = int(self._clock.seconds()) + DEFAULT_RENEWAL_TIME
        lease = LeaseInfo(0, renew_secret, cancel_secret, expires, self._stock.my_nodeid)
        self._touch(share.name)
        try:
            await share.prepare(size, lease)
        except OSError as e:
            raise errors.WriteFailed(os.strerror(e.errno) if e.errno else type(e).__name__) from e
        await self._run_in_thread(self._table.put, self._record(share, None))

    async def assign(self, name: bytes, storage_index: bytes) -> dict[int, str]:
        """{share number: outcome}; outcomes: protocol.txt §16.6. Shares that are not prepared stay as they are."""
        if len(storage_index) != STORAGE_INDEX_SIZE:
            raise errors.BadArgument("storage_index", f"{STORAGE_INDEX_SIZE} bytes", f"{len(storage_index)} bytes")
        key = _key(name)
        shares = [s for s in self._stagings.get(key, {}).values() if s.state is not StagedState.GROWING]
        if key not in self._stagings:
            raise errors.UnknownStaging
        if shares:
            await self._run_in_thread(self._table.put, *(
                attrs.evolve(self._record(share, storage_index), state=StagedState.ASSIGNING) for share in shares))
        outcomes: dict[int, str] = {}
        for share in shares:  # one turn of the reactor: no stock call comes between
            outcomes[share.shnum] = self._publish(share, storage_index)
        gone = [share for share in shares if outcomes[share.shnum] != "busy"]
        await self._run_in_thread(self._table.remove, key, [share.shnum for share in gone])
        back = [share for share in shares if outcomes[share.shnum] == "busy"]
        if back:
            await self._run_in_thread(self._table.put, *(self._record(share, None) for share in back))
        for share in gone:
            self._forget(share)
        return outcomes

    async def abort(self, name: bytes, shnums: Sequence[int]) -> None:
        """Remove shares (all of the staging, if none are named). No error if there are none."""
        key = _key(name)
        shares = self._stagings.get(key, {})
        await self._remove([shares[n] for n in (shnums or list(shares)) if n in shares])
        self.counters["aborted"] += 1

    # -- publishing ------------------------------------------------------------------------------------------------

    def _publish(self, share: StagedShare, storage_index: bytes) -> str:
        """Give the file its place among the node's shares. Blocks, for a link and a few syncs."""
        sub = storage_index_to_dir(storage_index)
        final = Path(self._stock.sharedir) / sub / str(share.shnum)
        if final.exists():
            if final.samefile(share.path):  # an earlier try got so far
                share.path.unlink()
                return "assigned"
            share.path.unlink()
            self.counters["already_there"] += 1
            return "already-there"
        if (Path(self._stock.incomingdir) / sub / str(share.shnum)).exists():
            return "busy"
        final.parent.mkdir(parents=True, exist_ok=True)
        os.link(share.path, final)
        for directory in (final.parent, final.parent.parent, final.parent.parent.parent):
            fsync_directory(directory)
        share.path.unlink()
        self.counters["assigned"] += 1
        return "assigned"

    # -- sweeping --------------------------------------------------------------------------------------------------

    def _sweep(self) -> Deferred[Any] | None:
        oldest = self._clock.seconds() - self._limits.expiry
        expired = [key for key, touched in self._touched.items() if touched < oldest and key in self._stagings]
        if not expired:
            return None
        self.counters["expired"] += len(expired)
        self.log.info("{count} stagings have expired", count=len(expired))
        shares = [share for key in expired for share in self._stagings[key].values()]
        return Deferred.fromCoroutine(self._remove(shares)).addErrback(self._failed)

    async def _remove(self, shares: list[StagedShare]) -> None:
        removals = [Deferred.fromCoroutine(share.remove()) for share in shares]
        await DeferredList(removals, fireOnOneErrback=True, consumeErrors=True)
        for share in shares:
            await self._run_in_thread(self._table.remove, share.name, [share.shnum])
            self._forget(share)

    def _forget(self, share: StagedShare) -> None:
        shares = self._stagings.get(share.name, {})
        shares.pop(share.shnum, None)
        if not shares:
            self._stagings.pop(share.name, None)
            self._touched.pop(share.name, None)
            self._recorded_touch.pop(share.name, None)
            directory = self._directory / share.name
            if directory.exists() and not any(directory.iterdir()):
                directory.rmdir()

    def _remove_strangers(self) -> None:
        """Files without a record: made, but never acknowledged."""
        for path in _files_below(self._directory):
            shares = self._stagings.get(path.parent.name, {})
            if not (path.name.isdigit() and int(path.name) in shares):
                path.unlink()
        for directory in self._directory.iterdir():
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()

    # -- what all need -----------------------------------------------------------------------------------------------

    def _find(self, name: bytes, shnum: int) -> StagedShare:
        share = self._stagings.get(_key(name), {}).get(shnum)
        if share is None or share.removed:
            raise errors.UnknownStaging
        return share

    def _held(self, key: str) -> list[Held]:
        return [Held(s.shnum, s.state.value, s.length, s.synced)
                for _shnum, s in sorted(self._stagings.get(key, {}).items())]

    def _record(self, share: StagedShare, storage_index: bytes | None) -> StagedRecord:
        return StagedRecord(share.name, share.shnum, share.state, share.synced, share.size, storage_index,
                            self._touched.get(share.name, self._clock.seconds()))

    def _touch(self, key: str) -> None:
        now = self._touched[key] = self._clock.seconds()
        if now - self._recorded_touch.get(key, 0.0) >= self._limits.touch_interval:
            self._recorded_touch[key] = now
            self._run_in_thread(self._table.touch, key, now).addErrback(self._failed)

    def _check_space(self, wanted: int) -> None:
        if self._stock.readonly_storage:
            raise errors.ReadOnly
        space = self._stock.get_available_space()
        if space is None:
            return
        space -= self._stock.allocated_size() + SPARE_PER_SHARE
        if wanted > space:
            raise errors.NoSpace(max(0, space), wanted)


def _key(name: bytes) -> str:
    """A directory name: base32 of the staging name, [a-z2-7]{52}."""
    if len(name) != STAGING_NAME_SIZE:
        raise errors.BadArgument("name", f"{STAGING_NAME_SIZE} bytes", f"{len(name)} bytes")
    return b32encode(name).decode("ascii").rstrip("=").lower()


def _files_below(directory: Path) -> Iterator[Path]:
    for sub in directory.iterdir():
        if sub.is_dir() and re.fullmatch(r"[a-z2-7]{52}", sub.name):
            yield from (p for p in sub.iterdir() if p.is_file())
