"""The journal of upload handles over real files (client_shim/gateway/journal.py, helper/wal_database.py)."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from allmydata import uri
from hypothesis import given
from hypothesis import strategies as st
from test_spool import Stepped
from world import outcome, plaintext

from client_shim.dedup import DedupMode, Outcome
from client_shim.gateway.handle_errors import JournalFailed, JournalUnusable
from client_shim.gateway.handle_records import (
    COLUMNS,
    HandleRecord,
    HandleState,
    LinkTarget,
    RingRow,
    hasher_of,
    record_of,
    row_of,
)
from client_shim.gateway.journal import (
    ROW_MAX,
    SCHEMA,
    Append,
    Journal,
    JournalFile,
    free,
    put,
    remove,
    touch,
    update,
)
from client_shim.gateway.resumable_hash import HashState, ResumableCiphertextHasher
from helper.parameters import Parameters
from helper.wal_database import Change, WalDatabase

PARAMETERS = Parameters(3, 7, 10, 1000)
EMPTY = ResumableCiphertextHasher(3, 1000).state()
ID = "a2" * 26
CAP = bytes(uri.CHKFileURI(bytes(16), bytes(32), 3, 10, 1000).to_string())


def record(number: int = 1, **changes: Any) -> HandleRecord:
    return attrs.evolve(HandleRecord(number, ID[:50] + f"{number:02}".translate(str.maketrans("0189", "wxyz")),
                                     HandleState.OPEN, 1000.5, 2000.25, PARAMETERS, None, b"k" * 16, b"u" * 32, EMPTY),
                        **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "streaming" / "journal.sqlite"


@pytest.fixture
def file(path: Path) -> Iterator[JournalFile]:
    file = JournalFile(path)
    file.open()
    yield file
    file.close()


def appended(before: HandleRecord, data: bytes, free_below: int = 0) -> Append:
    hasher = hasher_of(before)
    hasher.update(data)
    return Append(before.number, before.length, data, hasher.state(), 3000.0, free_below)


# -- records ---------------------------------------------------------------------------------------------------

RECORDS = st.builds(
    record,
    number=st.integers(1, 99),
    state=st.sampled_from(HandleState).filter(lambda state: state is not HandleState.EXPIRED),
    parameters=st.builds(Parameters, st.just(3), st.just(7), st.just(10), st.just(1000),
                         st.none() | st.integers(0, 2**53)),
    size=st.none() | st.integers(0, 2**53),
    metadata=st.binary(max_size=100),
    link=st.none() | st.builds(LinkTarget, st.binary(max_size=50), st.text(st.characters(codec="utf-8"))),
    cap=st.none() | st.binary(max_size=100),
    literal=st.none() | st.binary(max_size=55),
    error_code=st.none() | st.text(st.characters(codec="utf-8")),
    error_text=st.text(st.characters(codec="utf-8")),
    hashes=st.binary(max_size=200).map(lambda content: attrs.evolve(EMPTY, content=content)),
    dedup=st.sampled_from(DedupMode),
    adopting=st.none() | st.just(CAP),
    outcome=st.sampled_from(Outcome),
)


@given(one=RECORDS)
def test_a_record_comes_back(one: HandleRecord) -> None:
    assert record_of(row_of(one)) == one


@pytest.mark.parametrize(("column", "value"), [
    ("id", "A" * 52), ("id", "a" * 51), ("id", None), ("state", "opened"), ("k", 0), ("k", "3"), ("n", 257),
    ("declared", -1), ("size", "ten"), ("key", None), ("key", b"k" * 15), ("upload_id", b"u" * 31), ("length", -1),
    ("length", 5), ("flat", b""), ("flat", 7), ("segment", b"x"), ("tree", b""), ("segment_filled", 1),
    ("literal", bytes(56)), ("content", "x"), ("content", None), ("dedup", "maybe"), ("dedup", None), ("at_helper", 1),
    ("at_helper", -1), ("at_helper", "0"), ("adopting", CAP), ("adopting", b"URI:DIR2:x:y"), ("outcome", "lost")])
def test_a_record_that_cannot_be_is_refused(column: str, value: Any) -> None:
    row = list(row_of(record(size=4)))
    row[COLUMNS.index(column)] = value
    with pytest.raises(ValueError):  # noqa: PT011 - each with words of its own
        record_of(row)


def test_a_damaged_record_refuses_the_journal(path: Path, file: JournalFile) -> None:
    file.apply(put(record()))
    file.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE handles SET state = 'x'")
    database.close()
    again = JournalFile(path)
    again.open()
    with pytest.raises(JournalUnusable, match=r"damaged: a handle: .*restore it, or move it away"):
        again.records()
    again.close()


# -- what is kept ----------------------------------------------------------------------------------------------


def test_mode_and_durability(path: Path, file: JournalFile) -> None:
    file.apply(put(record()))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for each in path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600, each.name
    settings = {name: file._database._db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "locking_mode")}
    assert settings == {"journal_mode": "wal", "synchronous": 2, "locking_mode": "exclusive"}
    copy = path.parent.parent / "copy"
    shutil.copytree(path.parent, copy)  # as after a kill
    other = JournalFile(copy / path.name)
    other.open()
    assert other.records() == [record()]
    other.close()


def test_a_ring_grows_and_is_freed(file: JournalFile) -> None:
    file.apply(put(record()))
    data = plaintext(2 * ROW_MAX + 100)
    first = appended(record(), data)
    file.apply(first.changes())
    now = record(hashes=first.hashes, touched=3000.0)
    assert file.records() == [now]
    assert file.rings() == {1}
    assert [(row.start, len(row.data)) for row in file.ring(now)] == [
        (0, ROW_MAX), (ROW_MAX, ROW_MAX), (2 * ROW_MAX, 100)]
    assert b"".join(row.data for row in file.ring(now)) == data
    second = appended(now, b"more", free_below=ROW_MAX)
    file.apply(second.changes())
    then = attrs.evolve(now, hashes=second.hashes)
    assert [row.start for row in file.ring(then)] == [ROW_MAX, 2 * ROW_MAX, len(data)]
    file.apply(free(1, len(data) + 4, keep=False))
    assert file.ring(then) == []
    assert file.rings() == set()


def test_an_update_leaves_length_and_ring(file: JournalFile) -> None:
    file.apply(put(record()))
    first = appended(record(), plaintext(100))
    file.apply(first.changes())
    file.apply(update(record(size=200)))  # made of a record that knows nothing of the append
    now = record(hashes=first.hashes, size=200)
    assert file.records() == [now]
    assert len(file.ring(now)) == 1
    file.apply(update(attrs.evolve(now, state=HandleState.FAILED, key=None), drop_ring=True))
    assert file.rings() == set()
    file.apply(touch(1, 5000.0))
    assert file.records()[0].touched == 5000.0


def test_removed_handles_leave_nothing(path: Path, file: JournalFile) -> None:
    key = b"KEY-canary-16byt"
    file.apply(put(record(1, key=key)) + put(record(2)))
    file.apply(appended(record(1), plaintext(100)).changes())
    file.apply(remove([1]))
    assert [each.number for each in file.records()] == [2]
    assert file.rings() == set()
    file.close()
    assert key not in path.read_bytes()


def test_all_or_nothing(file: JournalFile) -> None:
    file.apply(put(record()))
    broken = appended(record(), b"data")
    file.apply(broken.changes())
    with pytest.raises(sqlite3.IntegrityError):  # the same place again
        file.apply([*put(record(2)), *broken.changes()])
    file.open()
    assert [each.number for each in file.records()] == [1]


@pytest.mark.parametrize(("change", "message"), [
    ("UPDATE ring SET data = x'00'", "ciphertext is not what was written"),
    ("UPDATE ring SET crc = 1", "ciphertext is not what was written"),
    ("DELETE FROM ring WHERE start = 100", "ciphertext from 100 to 200 is missing"),
    ("DELETE FROM ring WHERE start = 200", "ciphertext ends at 200, expected 300")])
def test_a_damaged_ring_is_refused(file: JournalFile, change: str, message: str) -> None:
    now = record()
    file.apply(put(now))
    for _ in range(3):
        append = appended(now, plaintext(100))
        file.apply(append.changes())
        now = attrs.evolve(now, hashes=append.hashes)
    file._database._db.execute(change)
    with pytest.raises(JournalUnusable, match=message):
        file.ring(now)


def test_the_beginning_of_a_file_that_nobody_else_has(file: JournalFile) -> None:
    append = appended(record(), bytes(55))
    now = record(hashes=append.hashes)
    with pytest.raises(JournalUnusable, match="the beginning of a file is missing"):
        file.ring(now)


# -- files that are refused ------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    file = JournalFile(path)
    with pytest.raises(JournalUnusable) as caught:
        file.open()
    assert str(path) in caught.value.text()
    return caught.value.text()


def test_two_at_once(path: Path, file: JournalFile) -> None:
    assert "in use by another process" in refusal(path)
    file.apply(put(record()))


@pytest.mark.parametrize("content", [b"", b"not a database", bytes(5000)])
def test_a_damaged_file_is_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert "damaged" in refusal(path) or "another one" in refusal(path)
    assert path.read_bytes() == content


def test_a_damaged_page(path: Path, file: JournalFile) -> None:
    now = record()
    file.apply(put(now))
    for _ in range(20):
        append = appended(now, plaintext(20_000))
        file.apply(append.changes())
        now = attrs.evolve(now, hashes=append.hashes)
    file.close()
    content = bytearray(path.read_bytes())
    content[2 * 16384:2 * 16384 + 200] = b"\xff" * 200
    path.write_bytes(content)
    assert "damaged" in refusal(path)


def test_a_log_without_its_file(path: Path) -> None:
    path.parent.mkdir()
    path.with_name(path.name + "-wal").write_bytes(b"x")
    assert "its log (-wal) is there" in refusal(path)


def test_another_database(path: Path) -> None:
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE t (x)")
    database.commit()
    database.close()
    assert "another one" in refusal(path)


def test_a_newer_version(path: Path) -> None:
    newer = WalDatabase(path, [*SCHEMA, ["CREATE TABLE more (x)"]])
    assert newer.open()
    newer.close()
    assert "of a newer program" in refusal(path)


# -- on the reactor --------------------------------------------------------------------------------------------


@pytest.fixture
def stepped() -> Stepped:
    return Stepped()


def open_journal(file: JournalFile, stepped: Stepped) -> Journal:
    journal = Journal(file, stepped)
    opened = outcome(journal.open())
    stepped.finish()
    assert opened == [None]
    return journal


def test_group_commit(file: JournalFile, stepped: Stepped) -> None:
    journal = open_journal(file, stepped)
    told = [outcome(journal.change(put(record(number)))) for number in range(1, 6)]
    stepped.step()
    assert [bool(each) for each in told] == [True] + [False] * 4
    stepped.step()
    assert told == [[None]] * 5, "what came while the first was written went into one"
    assert len(file.records()) == 5


def test_after_a_failure_nothing_is_recorded_until_it_is_opened_again(file: JournalFile, stepped: Stepped) -> None:
    journal = open_journal(file, stepped)
    failures: list[int] = []
    journal.on_failed = lambda: failures.append(1)
    first = outcome(journal.change(put(record())))
    bad = outcome(journal.change([*put(record(2)), *[attrs.evolve(put(record())[0], sql="nonsense")]]))
    later = outcome(journal.change(put(record(3))))
    stepped.finish()
    assert first == [None]
    for each in (bad, later, outcome(journal.change(put(record(4))))):
        assert isinstance(each[0].value, JournalFailed)
    assert failures == [1]
    assert journal.failure is not None
    assert journal.failure.reason.startswith("SQLITE_ERROR")
    outcome(journal.reopen())
    stepped.finish()
    assert journal.failure is None
    assert [each.number for each in file.records()] == [1]
    again = outcome(journal.change(put(record(5))))
    stepped.finish()
    assert again == [None]


def test_close_waits_for_what_is_under_way(path: Path, file: JournalFile, stepped: Stepped) -> None:
    journal = open_journal(file, stepped)
    first, second = (outcome(journal.change(put(record(number)))) for number in (1, 2))
    closed = outcome(journal.close())
    assert isinstance(outcome(journal.change(put(record(3))))[0].value, JournalFailed)
    assert closed == []
    stepped.finish()
    assert (first, second, closed) == ([None], [None], [None])
    file.open()
    assert [each.number for each in file.records()] == [1, 2]


def test_it_does_not_grow_without_bound(path: Path, file: JournalFile) -> None:
    """64 MiB go through a ring of 2 MiB."""
    now = record()
    file.apply(put(now))
    piece = plaintext(256 * 1024)
    largest = 0
    for _ in range(256):
        append = appended(now, piece, free_below=max(0, now.length - 8 * len(piece)))
        file.apply(append.changes())
        now = attrs.evolve(now, hashes=append.hashes)
        largest = max(largest, sum(each.stat().st_size for each in path.parent.iterdir()))
    assert largest < 32 * 1024 * 1024
    ring = file.ring(now)
    assert sum(len(row.data) for row in ring) <= 10 * len(piece)
    assert ring[-1] == RingRow(now.length - len(piece), piece)


def test_hash_states_are_of_the_end_of_what_is_there() -> None:
    append = appended(record(), plaintext(2500))
    assert isinstance(append.hashes, HashState)
    assert append.hashes.size == 2500
    hasher = ResumableCiphertextHasher.resumed(3, 1000, None, append.hashes)
    whole = ResumableCiphertextHasher(3, 1000)
    whole.update(plaintext(2500))
    assert hasher.hashes() == whole.hashes()


APPENDING = """
import sys
from pathlib import Path
from client_shim.gateway.handle_records import HandleRecord, HandleState
from client_shim.gateway.journal import Append, JournalFile, put
from client_shim.gateway.resumable_hash import ResumableCiphertextHasher
from helper.parameters import Parameters
hasher = ResumableCiphertextHasher(3, 1000)
file = JournalFile(Path(sys.argv[1]))
file.open()
file.apply(put(HandleRecord(1, "a2" * 26, HandleState.OPEN, 0.0, 0.0, Parameters(3, 7, 10, 1000), None, b"k" * 16,
                            b"u" * 32, hasher.state())))
for number in range(100_000):
    data, start = number.to_bytes(4, "big") * 5000, hasher.size
    hasher.update(data)
    file.apply(Append(1, start, data, hasher.state(), 0.0, start - 40 * len(data) if number > 40 else 0).changes())
    print(hasher.size, flush=True)
"""


@pytest.mark.parametrize("after", [1, 30, 120])
def test_what_a_killed_process_was_told_is_there(path: Path, after: int) -> None:
    with subprocess.Popen([sys.executable, "-c", APPENDING, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(after)][-1]
        process.kill()
        told = max([told, *(int(line) for line in process.stdout.read().split(b"\n")[:-1] if line)])
    file = JournalFile(path)
    file.open()
    (found,) = file.records()
    assert found.length >= told
    ring = file.ring(found)
    assert ring[-1].end == found.length
    hasher = ResumableCiphertextHasher(3, 1000)
    for number in range(found.length // 20_000):
        data = number.to_bytes(4, "big") * 5000
        hasher.update(data)
        for row in ring:
            assert row.start != number * 20_000 or row.data == data
    assert hasher.hashes() == hasher_of(found).hashes()
    file.close()


def test_a_journal_of_a_version_without_dedup_goes_on(path: Path) -> None:
    """Its handles look for nothing: of what they have nothing is known."""
    older = WalDatabase(path, SCHEMA[:1])
    older.open()
    values = dict(zip(COLUMNS, row_of(record()), strict=True))
    names = [name for name in COLUMNS if name not in ("content", "dedup", "adopting", "at_helper", "outcome")]
    statement = f"INSERT INTO handles ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    older.apply([Change(statement, [tuple(values[name] for name in names)])])
    older.close()
    file = JournalFile(path)
    file.open()
    assert file.records() == [record()]
    assert (file.records()[0].dedup, file.records()[0].hashes.content) == (DedupMode.OFF, b"")
    file.close()


def test_a_ring_that_is_kept_wakes_nobody(file: JournalFile) -> None:
    file.apply(put(record()))
    first = appended(record(), b"a" * 100)
    file.apply(first.changes())
    now = record(hashes=first.hashes)
    file.apply(free(1, 100, keep=True))
    assert file.rings() == set()
    kept = attrs.evolve(now, at_helper=100, touched=3000.0)
    assert file.records() == [kept]
    assert [row.start for row in file.ring(kept)] == [0]
    second = appended(kept, b"b" * 10)
    file.apply(second.changes())
    assert file.rings() == {1}
    file.apply(free(1, 110, keep=False))
    assert file.rings() == set()


def test_what_is_known_of_the_plaintext_goes_with_the_ring(file: JournalFile) -> None:
    known = record(hashes=attrs.evolve(EMPTY, content=b"sealed"), dedup=DedupMode.ON)
    file.apply(put(known))
    file.apply(update(attrs.evolve(known, adopting=CAP, outcome=Outcome.EXISTING)))
    assert file.records()[0].hashes.content == b"sealed"
    assert file.records()[0].adopting == CAP
    ended = attrs.evolve(known, state=HandleState.FINISHED, cap=CAP, outcome=Outcome.EXISTING, key=None, upload_id=None)
    file.apply(update(ended, drop_ring=True))
    assert file.records() == [attrs.evolve(ended, hashes=EMPTY)]
