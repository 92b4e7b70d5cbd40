"""helper/ledger.py: group commit, and what becomes of changes when the disk fails."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from test_ledger_file import FULL, NAMES, path, record, same
from test_spool import Stepped
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from helper.ledger import RETRY_INTERVAL, Ledger, LedgerFailed
from helper.ledger_file import LedgerFile, LedgerUnusable, Recorded, put
from helper.wal_database import Change

__all__ = ["path"]  # a fixture


class Counting(LedgerFile):
    """Counts transactions, and can fail, at one and when it is opened anew."""

    fail: Exception | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.transactions: list[int] = []

    def apply(self, changes: Any) -> None:
        self.transactions.append(len(changes))
        if self.fail is not None:
            raise self.fail
        super().apply(changes)

    def reopen(self) -> Recorded:
        if self.fail is not None:
            raise self.fail
        return super().reopen()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stepped() -> Stepped:
    return Stepped()


@pytest.fixture
def counting(path: Path) -> Iterator[Counting]:
    file = Counting(path)
    yield file
    file.close()


@pytest.fixture
def ledger(counting: Counting, stepped: Stepped, clock: Clock) -> Ledger:
    ledger = Ledger(counting, stepped, clock)
    assert ledger.open() == Recorded([], 0.0)
    return ledger


def results(*deferreds: Deferred[Any]) -> list[Any]:
    out: list[Any] = []
    for d in deferreds:
        d.addBoth(out.append)
    return out


def test_what_comes_during_a_commit_goes_into_the_next(ledger: Ledger, counting: Counting, stepped: Stepped) -> None:
    told = results(*(ledger.write(record(name)) for name in NAMES[:3]))
    assert len(stepped.waiting) == 1
    stepped.run()
    assert [r.name for r in counting.all()] == NAMES[:1]
    later = results(ledger.write(record(NAMES[3])))
    assert told == []  # nobody has been told yet
    stepped.report()
    assert told == [None]
    assert len(stepped.waiting) == 1  # one transaction at a time
    stepped.run()
    assert (told, later) == ([None], [])
    stepped.report()
    assert (told, later) == ([None] * 3, [None])
    assert counting.transactions == [1, 3]
    assert not stepped.waiting


def test_what_is_told_may_bring_more(ledger: Ledger, counting: Counting, stepped: Stepped) -> None:
    d = ledger.write(record())
    d.addCallback(lambda _: ledger.write(record(state="finished")))
    told = results(d)
    stepped.finish()
    assert told == [None]
    assert [r.state for r in counting.all()] == ["finished"]
    assert counting.transactions == [1, 1]


def test_order_is_kept(ledger: Ledger, counting: Counting, stepped: Stepped) -> None:
    told = results(
        ledger.write(record()), ledger.write(record(state="ready")), ledger.write(record(NAMES[1])),
        ledger.touch(NAMES[:2], 7.0, 8.0), ledger.write(record(state="publishing")), ledger.remove(NAMES[1:2]))
    stepped.finish()
    assert told == [None] * 6
    (only,) = counting.all()
    assert same(only, record(state="publishing"))


FAILURES = pytest.mark.parametrize(("error", "reason"), [
    (sqlite3.OperationalError("disk I/O error in /secret/path"), "ledger: OperationalError"),
    (OSError(5, "x", "/secret/path"), "ledger: EIO (Input/output error)"),
    (LedgerUnusable("/secret/path: this ledger is damaged"), "ledger: LedgerUnusable")])


@FAILURES
def test_what_cannot_be_recorded_waits_and_nothing_is_lost(
        ledger: Ledger, counting: Counting, stepped: Stepped, clock: Clock, error: Exception, reason: str) -> None:
    changes: list[str] = []
    ledger.on_change = lambda: changes.append(ledger.failing)
    before = results(ledger.write(record()))
    stepped.finish()
    counting.fail = error
    told: list[Any] = []
    for waiting in (ledger.write(record(NAMES[1])), ledger.write(record(NAMES[2]))):
        waiting.addBoth(told.append)
    stepped.run()
    for waiting in (ledger.write(record(NAMES[3])), ledger.remove(NAMES[:1])):
        waiting.addBoth(told.append)
    stepped.report()
    assert changes == [reason]
    for waiting in (ledger.write(record(NAMES[4])), ledger.touch(NAMES, 1.0, 2.0)):
        waiting.addBoth(told.append)
    for _ in range(3):
        assert not stepped.waiting
        clock.advance(RETRY_INTERVAL)
        stepped.finish()
    assert (told, changes) == ([], [reason])
    counting.fail = None  # the disk has recovered
    clock.advance(RETRY_INTERVAL)
    stepped.finish()
    assert before == [None]
    assert told == [None] * 6
    assert changes == [reason, ""]
    assert [r.name for r in counting.all()] == NAMES[1:5]
    assert {(r.touched, r.wanted_at) for r in counting.all()} == {(1.0, 2.0)}
    after = results(ledger.write(record(NAMES[5])))
    stepped.finish()
    assert after == [None]
    assert results(ledger.close()) == []
    stepped.finish()


def test_what_waits_does_not_grow(ledger: Ledger, counting: Counting, stepped: Stepped, clock: Clock) -> None:
    counting.fail = OSError(28, "x")
    first = results(ledger.write(record()))
    stepped.finish()
    told = results(*(ledger.write(record(opened=float(number))) for number in range(1000)))
    assert len(ledger._queue) == 2  # one that may have been made, and the newest
    assert results(ledger.remove(NAMES[:1])) == []
    last = results(*(ledger.write(record(opened=7.0)) for _ in range(1000)))
    assert len(ledger._queue) == 4  # what comes after a removal is not lost with it
    counting.fail = None
    clock.advance(RETRY_INTERVAL)
    stepped.finish()
    assert (first, told, last) == ([None], [None] * 1000, [None] * 1000)
    assert [r.opened for r in counting.all()] == [7.0]


@pytest.mark.parametrize("made", [True, False])
def test_a_change_that_failed_may_have_been_made(path: Path, stepped: Stepped, clock: Clock, made: bool) -> None:
    class Doubtful(LedgerFile):
        fail = False

        def apply(self, changes: Iterable[Change]) -> None:
            if made or not self.fail:
                super().apply(changes)
            if self.fail:
                raise OSError(5, "x")

    file = Doubtful(path)
    ledger = Ledger(file, stepped, clock)
    ledger.open()
    results(ledger.write(record()), ledger.write(record(NAMES[1])))
    stepped.finish()
    file.fail = True
    told = results(ledger.write(record(state="ready")), ledger.remove(NAMES[1:2]), ledger.write(record(NAMES[2])))
    stepped.finish()
    file.fail = False
    with capturedLogs() as logged:
        clock.advance(RETRY_INTERVAL)
        stepped.finish()
    assert told == [None] * 3
    assert [(r.name, r.state) for r in file.all()] == [(NAMES[0], "ready"), (NAMES[2], "open")]
    assert [event["log_format"] for event in logged] == ["the ledger is written again: all that waited is recorded"]
    file.close()


def test_what_the_disk_has_lost_is_written_anew(path: Path, stepped: Stepped, clock: Clock) -> None:
    """A sync that lied, or that failed: what was acknowledged is looked for, and not taken on trust."""

    class Losing(LedgerFile):
        content: bytes | None = None

        def apply(self, changes: Iterable[Change]) -> None:
            if self.content is not None:
                raise OSError(5, "x")
            super().apply(changes)

        def reopen(self) -> Recorded:
            if self.content is not None:
                self.close()
                path.write_bytes(self.content)
                self.content = None
            return super().reopen()

    file = Losing(path)
    ledger = Ledger(file, stepped, clock)
    ledger.open()
    results(ledger.write(record()), ledger.write(record(NAMES[1])), ledger.write(record(NAMES[2])))
    stepped.finish()
    copy = LedgerFile(path.with_name("copy"))
    copy.open()
    copy.apply([put(record(state="ready"), *map(record, NAMES[1:3]))])
    copy.close()
    expected = [record(state="publishing"), record(NAMES[1]), attrs.evolve(FULL, name=NAMES[3]), record(NAMES[4])]
    results(ledger.write(expected[0]), ledger.write(expected[2]), ledger.remove(NAMES[2:3]),
            ledger.touch(NAMES, 5.0, 6.0))
    stepped.finish()
    file.content = path.with_name("copy").read_bytes()
    told = results(ledger.write(expected[3]))
    stepped.finish()
    with capturedLogs() as logged:
        clock.advance(RETRY_INTERVAL)
        stepped.finish()
    assert told == [None]
    assert (logged[0]["lost"], logged[0]["strangers"]) == (2, 1)
    found = file.all()
    assert [r.wanted_at for r in found] == [6.0, 0.0, 6.0, 0.0]
    assert all(same(attrs.evolve(a, touched=0, wanted_at=0), attrs.evolve(b, touched=0, wanted_at=0))
               for a, b in zip(found, expected, strict=True))
    file.close()


@pytest.mark.parametrize("moment", ["waiting", "reopening", "writing"])
def test_closing_while_nothing_can_be_recorded(ledger: Ledger, counting: Counting, stepped: Stepped, clock: Clock,
                                               path: Path, moment: str) -> None:
    counting.fail = OSError(28, "x")
    told = results(ledger.write(record()), ledger.write(record(NAMES[1])))
    stepped.finish()
    if moment != "waiting":
        clock.advance(RETRY_INTERVAL)
        if moment == "writing":
            counting.fail = None
            stepped.step()
            counting.fail = OSError(28, "x")
    closed = results(ledger.close())
    stepped.finish()
    assert closed == [None]
    assert {failure.value.reason for failure in told} == {"ledger: ENOSPC (No space left on device)"}
    assert not clock.getDelayedCalls()
    again = LedgerFile(path)
    again.open()
    assert not again.all()
    again.close()


def test_who_does_not_want_to_wait_need_not(ledger: Ledger, counting: Counting, stepped: Stepped,
                                            clock: Clock) -> None:
    soon = results(ledger.unless_failing(ledger.write(record())))
    stepped.finish()
    assert soon == [None]
    counting.fail = OSError(28, "x")
    recorded = ledger.write(record(NAMES[1]))
    soon = results(ledger.unless_failing(recorded))
    stepped.finish()
    later = results(ledger.unless_failing(recorded))
    for failure in (*soon, *later):
        assert failure.check(LedgerFailed)
        assert failure.value.reason == "ledger: ENOSPC (No space left on device)"
    counting.fail = None
    clock.advance(RETRY_INTERVAL)
    told = results(recorded)
    stepped.finish()
    assert told == [None]  # it is recorded all the same
    assert [r.name for r in counting.all()] == NAMES[:2]


def test_a_full_disk(ledger: Ledger, counting: Counting, stepped: Stepped, clock: Clock) -> None:
    """SQLite's own error; its limit is that of a connection, so the disk has room when it is opened anew."""
    counting.select("PRAGMA max_page_count = 1")
    told = results(ledger.write(record(ueb=bytes(100_000))))
    stepped.finish()
    assert ledger.failing == "ledger: SQLITE_FULL"
    assert counting.all() == told == []
    clock.advance(RETRY_INTERVAL)
    stepped.finish()
    assert told == [None]
    assert len(counting.all()) == 1
    assert ledger.failing == ""


def test_a_file_that_is_gone_is_not_made_anew(ledger: Ledger, counting: Counting, stepped: Stepped, clock: Clock,
                                              path: Path) -> None:
    counting.fail = OSError(5, "x")
    told = results(ledger.write(record()))
    stepped.finish()
    counting.fail = None
    path.rename(path.with_name("moved"))
    clock.advance(RETRY_INTERVAL)
    stepped.finish()
    assert ledger.failing == "ledger: ENOENT (No such file or directory)"
    assert told == []
    assert not path.exists()
    path.with_name("moved").rename(path)
    clock.advance(RETRY_INTERVAL)
    stepped.finish()
    assert told == [None]


def test_a_bad_record_harms_nobody_else(ledger: Ledger, stepped: Stepped) -> None:
    with pytest.raises(ValueError, match="state"):
        ledger.write(record(state="sleeping"))
    told = results(ledger.write(record()))
    stepped.finish()
    assert told == [None]


def test_close_waits(ledger: Ledger, path: Path, stepped: Stepped) -> None:
    told = results(ledger.write(record()), ledger.write(record(NAMES[1])))
    closed = results(ledger.close(), ledger.close())
    late = results(ledger.write(record(NAMES[2])))
    assert late[0].value.reason == "the ledger is closed"
    stepped.step()
    assert closed == []
    stepped.step()
    assert len(told) == 2
    assert closed == []
    stepped.finish()
    assert closed == [None, None]
    assert results(ledger.close()) == [None]
    again = LedgerFile(path)
    assert not again.open()
    assert [r.name for r in again.all()] == NAMES[:2]
    again.close()


def test_closing_when_told(ledger: Ledger, counting: Counting, stepped: Stepped) -> None:
    """Once only, though it is idle then."""
    d = ledger.write(record())
    d.addCallback(lambda _: ledger.close())
    told = results(d)
    stepped.finish()
    assert told == [None]


def test_it_can_be_closed_without_threads(path: Path) -> None:
    ledger = Ledger(LedgerFile(path), maybeDeferred, Clock())
    ledger.open()
    assert results(ledger.write(FULL), ledger.close()) == [None, None]
