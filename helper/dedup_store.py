"""The sealed records that a helper keeps: few for each file, bounded in all, gone when their shares may be."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from helper.dedup_records import (
    COUNT_RECORDS,
    FIND_RECORDS,
    KEEP_LATEST,
    KEEP_NEWEST,
    PUT_RECORD,
    REMOVE_EXPIRED,
    REMOVE_RECORD,
    RENEW_RECORD,
    SealedRecord,
    place_of,
)
from helper.interfaces import RECORDS_TOLD_MAX
from helper.ledger import Ledger, LedgerFailed
from helper.wal_database import Change

T = TypeVar("T")

#: Seconds for which a storage server keeps a share after its lease was made or renewed
#: (allmydata.storage.server.DEFAULT_RENEWAL_TIME).
LEASE_DURATION = 31 * 86400


class SealedRecords:
    """At most `most` records in the ledger. A record that cannot be written is none: only a deduplication less."""

    def __init__(self, ledger: Ledger, clock: IReactorTime, most: int) -> None:
        self._ledger = ledger
        self._clock = clock
        self._most = most
        self._at_most: int | None = None  # so many there are, or fewer; not known before the first is filed
        self._unwritten: list[Deferred[None]] = []

    async def find(self, convergent_storage_index: bytes) -> list[SealedRecord]:
        """Those filed under it, the newest first: those that are just being written, too."""
        for written in list(self._unwritten):
            await _after(written)
        rows = await self._ledger.select(
            FIND_RECORDS, place_of(convergent_storage_index), self._clock.seconds(), RECORDS_TOLD_MAX)
        return [SealedRecord(storage_index, record) for storage_index, record in rows]

    async def file(self, convergent_storage_index: bytes, record: SealedRecord) -> None:
        """Keep a record, in the place of the oldest if there are too many. Returns when that is durable; raises
        LedgerFailed, at once while nothing can be recorded."""
        if self._ledger.failing:
            raise LedgerFailed(self._ledger.failing)
        place, now = place_of(convergent_storage_index), self._clock.seconds()
        changes = [Change(PUT_RECORD, [(place, record.storage_index, record.record, now, now + LEASE_DURATION)]),
                   Change(KEEP_NEWEST, [(place, place, RECORDS_TOLD_MAX)])]
        if self._at_most is None:
            self._at_most = self._most  # so that the first is followed by a look at all
        self._at_most += 1
        if self._at_most > self._most:
            self._at_most = self._most - self._most // 10  # room for more: a look at all takes a moment
            changes += [Change(REMOVE_EXPIRED, [(now,)]), Change(KEEP_LATEST, [(self._at_most,)])]
        await self._write(*changes)

    def renew(self, convergent_storage_index: bytes, storage_index: bytes) -> None:
        """Its shares have new leases."""
        expires = self._clock.seconds() + LEASE_DURATION
        self._in_background(Change(RENEW_RECORD, [(expires, place_of(convergent_storage_index), storage_index)]))

    def remove(self, convergent_storage_index: bytes, storage_index: bytes) -> None:
        """Its file is not complete any more."""
        self._in_background(Change(REMOVE_RECORD, [(place_of(convergent_storage_index), storage_index)]))

    def remove_expired(self) -> None:
        """Those whose shares may be gone."""
        self._in_background(Change(REMOVE_EXPIRED, [(self._clock.seconds(),)]))

    async def count(self) -> int:
        """How many there are."""
        ((count,),) = await self._ledger.select(COUNT_RECORDS)
        return int(count)

    def _in_background(self, change: Change) -> None:
        if not self._ledger.failing:
            self._write(change).addErrback(lambda failure: failure.trap(LedgerFailed) and None)

    def _write(self, *changes: Change) -> Deferred[None]:
        """Fires when they are durable."""
        written: Deferred[None] = Deferred()
        self._unwritten.append(written)

        def ended(result: T) -> T:
            self._unwritten.remove(written)
            written.callback(None)
            return result

        return self._ledger.change(*changes).addBoth(ended)


def _after(written: Deferred[None]) -> Deferred[None]:
    """One of its own for each who waits: it may be cancelled."""
    after: Deferred[None] = Deferred()
    written.addCallback(after.callback)
    return after
