"""The helper's memory across restarts, on the reactor: a ledger_file.py whose calls answer with Deferreds.

What is written while one transaction runs goes into the next together (group commit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper.errors import SpoolFailed
from helper.ledger_file import LedgerFile, LedgerUnusable, Recorded, put, remove, set_uptime, touch
from helper.spool import RunInThread
from helper.upload_records import UploadRecord
from helper.wal_database import Change, reason_of_failure


class LedgerFailed(SpoolFailed):
    """Nothing can be recorded now."""


#: While nothing can be recorded it is tried again this often; seconds. What an operator frees is not told to us.
RETRY_INTERVAL = 5.0


@attrs.define(eq=False)
class _Asked:
    """Changes that were asked for together, and who is to be told that they are durable."""

    changes: tuple[Change, ...]
    told: list[Deferred[None]]
    record: UploadRecord | None = None  # if that is what is to be written
    removes: frozenset[str] = frozenset()
    touches: tuple[frozenset[str], float, float] = (frozenset(), 0.0, 0.0)  # names, and what of them is changed


class Ledger:
    """A LedgerFile whose calls answer with Deferreds, in the reactor's thread.

    Changes are made in the order in which they are asked for. If one cannot be made, as the disk is full or fails, none
    is lost (protocol.txt §11.5): all wait, and every RETRY_INTERVAL seconds the file is opened anew, as what a failed
    sync has left is not known; what was durable before is looked for in it and written again if it is not there, and
    all that waits is written then. Meanwhile `failing` says why, and `on_change` is called when it begins and ends.
    """

    log = Logger()

    def __init__(self, file: LedgerFile, run_in_thread: RunInThread, clock: IReactorTime) -> None:
        self._file = file
        self._run_in_thread = run_in_thread
        self._clock = clock
        #: Why nothing can be recorded at present, without a path; empty if it can.
        self.failing = ""
        self.on_change: Callable[[], None] = lambda: None
        self._queue: list[_Asked] = []
        self._writes: dict[str, _Asked] = {}  # of the queue: the last record of each upload, if nothing has begun yet
        self._durable: dict[str, UploadRecord] = {}
        self._unknown: set[str] = set()  # names of uploads that a change that failed was about: it may have been made
        self._impatient: dict[Deferred[None], None] = {}  # in the order in which they asked
        self._committing = False
        self._retry_call: IDelayedCall | None = None
        self._closing: Deferred[None] | None = None
        self._closed = False

    def open(self, spool_files: int = 0) -> Recorded:
        """See LedgerFile.open and LedgerFile.read. Blocks; before the reactor serves anybody."""
        self._file.open(spool_files)
        try:
            recorded = self._file.read()
        except LedgerUnusable:
            self._file.close()
            raise
        self._durable = {record.name: record for record in recorded.uploads}
        return recorded

    def write(self, record: UploadRecord) -> Deferred[None]:
        """Add or replace the record of an upload; fires when that is durable. ValueError for one that could not be
        read again."""
        change = put(record)
        waiting = self._writes.get(record.name)
        if waiting is not None:  # so what waits does not grow however often it is asked for
            waiting.changes, waiting.record = (change,), record
            done: Deferred[None] = Deferred()
            waiting.told.append(done)
            return done
        return self._ask(_Asked((change,), [], record))

    def touch(self, names: Iterable[str], when: float, uptime: float) -> Deferred[None]:
        """Somebody still wants these uploads, and the helper has been up for so long; fires when that is durable."""
        touched = frozenset(names)
        self._later(touched)
        return self._ask(_Asked((touch(touched, when, uptime), set_uptime(uptime)), [],
                                touches=(touched, when, uptime)))

    def remove(self, names: Iterable[str]) -> Deferred[None]:
        """Forget uploads; fires when that is durable."""
        removed = frozenset(names)
        self._later(removed)
        return self._ask(_Asked((remove(removed),), [], removes=removed))

    def change(self, *changes: Change) -> Deferred[None]:
        """Change other tables than that of uploads; fires when all of it is durable."""
        return self._ask(_Asked(changes, []))

    def unless_failing(self, recorded: Deferred[None]) -> Deferred[None]:
        """Fires when `recorded` does; fails with LedgerFailed, if sooner, once it is known that that will take long."""
        d: Deferred[None] = Deferred()
        if self.failing:
            d.errback(LedgerFailed(self.failing))
            return d
        self._impatient[d] = None

        def tell(result: Failure | None) -> Failure | None:
            if d in self._impatient:
                del self._impatient[d]
                if isinstance(result, Failure):
                    d.errback(result)
                else:
                    d.callback(None)
            return result

        recorded.addBoth(tell)
        return d

    def select(self, sql: str, *values: object) -> Deferred[list[tuple[Any, ...]]]:
        """The rows of another table than that of uploads, as far as they are durable."""
        return self._run_in_thread(self._file.select, sql, *values)

    def close(self) -> Deferred[None]:
        """Take no more changes; fires when those under way are durable (or have failed) and the file is closed."""
        done: Deferred[None] = Deferred()
        if self._closing is not None:
            self._closing.chainDeferred(done)
            return done
        self._closing = Deferred()
        self._closing.chainDeferred(done)
        if self._retry_call is not None and self._retry_call.active():
            self._retry_call.cancel()
            self._give_up()
        self._close_when_idle()
        return done

    # -- how it works ------------------------------------------------------------------------------------

    def _ask(self, asked: _Asked) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        if self._closing is not None:
            done.errback(LedgerFailed(self.failing or "the ledger is closed"))
            return done
        asked.told.append(done)
        self._queue.append(asked)
        if asked.record is not None:
            self._writes[asked.record.name] = asked
        self._commit()
        return done

    def _later(self, names: frozenset[str]) -> None:
        """What is written of these uploads from now on comes after the change that is asked for now."""
        for name in names:
            self._writes.pop(name, None)

    def _commit(self) -> None:
        if not (self._committing or self.failing) and self._queue:
            self._apply([])

    def _apply(self, repairs: list[Change]) -> None:
        """Make all changes that wait, after `repairs`."""
        batch, self._queue = self._queue, []
        self._writes.clear()
        self._committing = True
        d = self._run_in_thread(self._file.apply, [*repairs, *(change for asked in batch for change in asked.changes)])
        d.addCallbacks(self._committed, self._commit_failed, callbackArgs=(batch,), errbackArgs=(batch,))

    def _committed(self, _result: None, batch: list[_Asked]) -> None:
        self._committing = False
        for asked in batch:
            self._remember(asked)
        self._unknown.clear()
        was_failing, self.failing = self.failing, ""
        self._commit()  # before anybody is told, so that what they write then goes into one more
        if was_failing:
            self.log.info("the ledger is written again: all that waited is recorded")
            self.on_change()
        for asked in batch:
            for done in asked.told:
                done.callback(None)
        self._close_when_idle()

    def _remember(self, asked: _Asked) -> None:
        if asked.record is not None:
            self._durable[asked.record.name] = asked.record
        for name in asked.removes:
            self._durable.pop(name, None)
        names, when, uptime = asked.touches
        for name in names & self._durable.keys():
            self._durable[name] = attrs.evolve(self._durable[name], touched=when, wanted_at=uptime)

    def _commit_failed(self, failure: Failure, batch: list[_Asked]) -> None:
        for asked in batch:
            self._unknown |= asked.removes | (set() if asked.record is None else {asked.record.name})
        self._queue[:0] = batch
        self._fails(failure)

    def _fails(self, failure: Failure) -> None:
        self._committing = False
        reason = f"ledger: {reason_of_failure(failure.value)}"
        if reason != self.failing:
            # an operator may see the file's name
            detail = f" ({failure.value})" if failure.check(LedgerUnusable) else ""
            self.log.error("nothing can be recorded now, {reason}{detail}: what should be waits, new uploads are "
                           "refused, and it is tried again every {interval} s", reason=reason, detail=detail,
                           interval=RETRY_INTERVAL)
        began, self.failing = not self.failing, reason
        if self._closing is not None:
            self._give_up()
            self._close_when_idle()
            return
        self._retry_call = self._clock.callLater(RETRY_INTERVAL, self._retry)
        if began:
            impatient, self._impatient = self._impatient, {}
            for d in impatient:
                d.errback(LedgerFailed(reason))
            self.on_change()

    def _retry(self) -> None:
        self._committing = True
        d = self._run_in_thread(self._reopened, list(self._durable.values()), frozenset(self._unknown))
        d.addCallback(self._repair)
        d.addErrback(self._fails)

    def _reopened(self, durable: list[UploadRecord], unknown: frozenset[str]) -> _Repairs:
        """In a thread: open the file anew; what has to be written for it to be as it was."""
        found = {record.name: record for record in self._file.reopen().uploads}
        lost = [r for r in durable if r.name not in unknown
                and (r.name not in found or _essence(found[r.name]) != _essence(r))]
        known = unknown.union(record.name for record in durable)
        return _Repairs(lost, [name for name in found if name not in known])

    def _repair(self, repairs: _Repairs) -> None:
        if repairs.lost or repairs.strangers:
            self.log.error("the disk has lost what the ledger had: {lost} records are written anew, {strangers} that "
                           "were removed are removed again", lost=len(repairs.lost), strangers=len(repairs.strangers))
        self._apply([put(*repairs.lost), remove(repairs.strangers)])

    def _give_up(self) -> None:
        """It is closed while nothing can be recorded: what waits is not."""
        given_up, self._queue = self._queue, []
        self._writes.clear()
        for asked in given_up:
            for done in asked.told:
                done.errback(LedgerFailed(self.failing))

    def _close_when_idle(self) -> None:
        if self._closing is not None and not (self._committing or self._queue or self._closed):
            self._closed = True
            self._run_in_thread(self._file.close).chainDeferred(self._closing)


@attrs.frozen
class _Repairs:
    """What a file that was opened anew lacks, and what should not be in it (names)."""

    lost: list[UploadRecord]
    strangers: list[str]


def _essence(record: UploadRecord) -> tuple[UploadRecord, object]:
    """What must be the same of a record that was written and read again."""
    error = None if record.error is None else (record.error.code, record.error.fields())
    return attrs.evolve(record, touched=0.0, wanted_at=0.0, error=None), error
