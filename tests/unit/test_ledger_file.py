"""helper/ledger_file.py over real files: what comes back, what is durable when, and which files it refuses."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helper.errors import BY_CODE, Aborted, BadArgument, Expired, SpoolFailed, StreamingError, TooFewServers
from helper.ledger_file import SCHEMA, LedgerFile, LedgerUnusable, put, remove, set_uptime, touch
from helper.parameters import Parameters
from helper.session import State
from helper.spool import SpoolDamaged
from helper.staging_errors import StagingFull
from helper.upload_records import COLUMNS, STATES, Finish, UploadRecord, record_of, row_of
from helper.wal_database import Change

PARAMETERS = Parameters(3, 7, 10, 1048576)
NAMES = [letter * 52 for letter in "abcdefgh"]


def record(name: str = NAMES[0], **changes: Any) -> UploadRecord:
    return attrs.evolve(UploadRecord(name, PARAMETERS, "open", b"s" * 32, 1000.5, 2000.25), **changes)


FULL = record(
    parameters=Parameters(1, 1, 256, 1, 2**53), state="publishing", servers=(b"\0server", b"other", b"\xff" * 20),
    order=(2, 0), homes={0: b"a", 3: b"b"}, storage_index=b"i" * 16, finish=Finish(2**53, b"c" * 32, b"r" * 32),
    ueb=b"\0ueb",
    error=TooFewServers(1, 7))


def same(a: UploadRecord, b: UploadRecord) -> bool:
    """Errors have no equality of their own."""
    return attrs.evolve(a, error=None) == attrs.evolve(b, error=None) and (
        (type(a.error), a.error and a.error.fields()) == (type(b.error), b.error and b.error.fields()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "streaming" / "ledger.sqlite"


@pytest.fixture
def file(path: Path) -> Iterator[LedgerFile]:
    file = LedgerFile(path)
    assert file.open()
    yield file
    file.close()


def reopened(path: Path, file: LedgerFile) -> LedgerFile:
    file.close()
    again = LedgerFile(path)
    assert not again.open()
    return again


# -- records ---------------------------------------------------------------------------------------------------


def test_states_are_those_of_the_session() -> None:
    assert [state.value for state in State] == list(STATES)


def _error(code: str) -> StreamingError:
    cls: Any = BY_CODE[code]
    return cls(*(7 if a.type == "int" else "text" for a in getattr(cls, "__attrs_attrs__", ())))


@pytest.mark.parametrize("error", [None, *map(_error, BY_CODE)], ids=lambda e: e.code if e else "none")
def test_every_error_comes_back(error: StreamingError | None) -> None:
    came = record_of(row_of(record(state="failed", error=error)))
    assert same(came, record(state="failed", error=error))
    if error is not None:
        assert came.error is not None
        assert came.error.text() == error.text()


def test_an_error_comes_back_as_that_of_its_code() -> None:
    came = record_of(row_of(record(error=SpoolDamaged("the spool file ends at 7")))).error
    assert type(came) is SpoolFailed
    assert str(came) == "spool-failed: the helper could not store ciphertext on its disk: the spool file ends at 7"


RECORDS = st.builds(
    UploadRecord,
    name=st.sampled_from(NAMES),
    parameters=st.tuples(st.integers(1, 256), st.data()).flatmap(lambda t: st.builds(
        Parameters, st.integers(1, t[0]), st.integers(1, t[0]), st.just(t[0]), st.integers(1, 8388608),
        st.none() | st.integers(0, 2**53))),
    state=st.sampled_from(STATES),
    staging_secret=st.binary(min_size=32, max_size=32),
    opened=st.floats(0, 1e11),
    touched=st.floats(0, 1e11),
    wanted_at=st.floats(0, 1e11),
    servers=st.lists(st.binary(max_size=40), min_size=3, max_size=10).map(tuple),
    order=st.none() | st.lists(st.integers(0, 2)).map(tuple),
    homes=st.dictionaries(st.integers(0, 255), st.binary(max_size=40), max_size=5),
    storage_index=st.none() | st.binary(min_size=16, max_size=16),
    finish=st.none() | st.builds(Finish, st.integers(56, 2**53), st.binary(min_size=32, max_size=32),
                                 st.binary(min_size=32, max_size=32)),
    ueb=st.none() | st.binary(max_size=8192),
    staged_on=st.frozensets(st.binary(max_size=40), max_size=5),
    sealed=st.dictionaries(st.integers(0, 255), st.binary(max_size=40), max_size=5),
    believed=st.dictionaries(st.integers(0, 255), st.integers(0, 2**53), max_size=5),
    staging_enough=st.none() | st.booleans(),
    error=st.sampled_from([None, Aborted(), Expired(604800), BadArgument("k", "a number ≥ 1", "\x00'\"")]),
)


@given(st.lists(st.tuples(st.sampled_from(["put", "touch", "remove", "reopen"]), st.lists(RECORDS, max_size=4))))
def test_the_ledger_is_a_dictionary(tmp_path_factory: pytest.TempPathFactory,
                                    steps: list[tuple[str, list[UploadRecord]]]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    file = LedgerFile(path)
    file.open()
    model: dict[str, UploadRecord] = {}
    for what, records in steps:
        names = [r.name for r in records]
        if what == "put":
            file.apply([put(*records)])
            model.update((r.name, r) for r in records)
        elif what == "touch":
            file.apply([touch(names, 5.5, 6.5)])
            model.update((name, attrs.evolve(model[name], touched=5.5, wanted_at=6.5))
                         for name in names if name in model)
        elif what == "remove":
            file.apply([remove(names)])
            model = {name: r for name, r in model.items() if name not in names}
        else:
            file = reopened(path, file)
    came = file.all()
    expected = sorted(model.values(), key=lambda r: (r.opened, r.name))
    assert len(came) == len(expected)
    assert all(same(a, b) for a, b in zip(came, expected, strict=True))
    file.close()


@pytest.mark.parametrize(("changes", "text"), [
    ({"state": "sleeping"}, f"state: expected one of {', '.join(STATES)}, got 'sleeping'"),
    ({"name": "short"}, "name: expected a length of 52, got 5"),
    ({"name": b"a" * 52}, "name: expected str, got bytes"),
    ({"staging_secret": b"s" * 31}, "staging_secret: expected a length of 32, got 31"),
    ({"storage_index": b"x"}, "storage_index: expected a length of 16, got 1"),
    ({"ueb": "text"}, "ueb: expected bytes, got str"),
    ({"servers": (b"a", b"b"), "order": (0, 2)}, "order: expected indices of 2 servers, got (0, 2)"),
    ({"finish": Finish(1, b"", b"r" * 32)}, "crypttext_hash: expected a length of 32, got 0"),
    ({"finish": Finish(1, b"c" * 32, b"")}, "crypttext_root_hash: expected a length of 32, got 0"),
    ({"parameters": Parameters(2, 1, 1, 1)}, "bad-argument: k: expected a number from 1 to 1, got 2"),
    ({"error": StagingFull(5, 6)}, "error: expected a code of the protocol, got 'staging-full'"),
    ({"error": StreamingError()}, "InternalError.__init__() missing 1 required positional argument: 'kind'")])
def test_a_record_that_could_not_be_read_again_is_not_written(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        put(record(**changes))
    assert str(caught.value) == text


def test_secrets_are_not_in_what_is_printed() -> None:
    secret = attrs.evolve(FULL, staging_secret=b"kept from others" * 2, ueb=b"roots")
    for shown in (repr(secret), repr(put(secret))):
        assert "kept from" not in shown
        assert "iiii" not in shown
        assert "roots" not in shown


# -- the file --------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_may_look(path: Path) -> None:
    before = os.umask(0)
    try:
        file = LedgerFile(path)
        file.open()
        file.apply([put(FULL)])
        assert mode(path.parent) == 0o700
        assert {p.name: mode(p) for p in path.parent.iterdir()} == {"ledger.sqlite": 0o600, "ledger.sqlite-wal": 0o600}
        path.chmod(0o644)
        file = reopened(path, file)
        assert mode(path) == 0o600
        file.close()
    finally:
        os.umask(before)


def test_every_change_is_synced(path: Path, file: LedgerFile) -> None:
    """A copy of the files, taken at any moment, is what a killed process leaves."""
    assert file.select("PRAGMA synchronous") == [(2,)]
    assert file.select("PRAGMA journal_mode") == [("wal",)]
    for number in range(1, 4):
        file.apply([put(*(record(name) for name in NAMES[:number]))])
        copy = path.parent / f"copy{number}" / path.name
        copy.parent.mkdir()
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
        killed = LedgerFile(copy)
        killed.open()
        assert [r.name for r in killed.all()] == NAMES[:number]
        killed.close()


def test_a_killed_process_loses_nothing(path: Path) -> None:
    program = ("import os, sys\nfrom pathlib import Path\nfrom helper.ledger_file import LedgerFile, put\n"
               "from helper.upload_records import UploadRecord\nfrom helper.parameters import Parameters\n"
               "file = LedgerFile(Path(sys.argv[1]))\nfile.open()\n"
               "file.apply([put(UploadRecord('k' * 52, Parameters(1, 1, 1, 1), 'open', bytes(32), 1, 1))])\n"
               "os.kill(os.getpid(), 9)\n")
    ended = subprocess.run([sys.executable, "-c", program, str(path)], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -9
    file = LedgerFile(path)
    assert not file.open()
    assert [r.name for r in file.all()] == ["k" * 52]
    file.close()


def test_all_changes_or_none(file: LedgerFile) -> None:
    file.apply([put(record(NAMES[0]))])
    with pytest.raises(sqlite3.Error):
        file.apply([put(record(NAMES[1])), Change("INSERT INTO nothing VALUES (?)", [(1,)])])
    assert [r.name for r in file.all()] == NAMES[:1]


def test_one_process_at_a_time(path: Path, file: LedgerFile) -> None:
    with pytest.raises(LedgerUnusable) as caught:
        LedgerFile(path).open()
    assert str(caught.value) == f"{path}: this ledger cannot be used: it is in use by another process"
    file.apply([put(FULL)])
    assert len(file.all()) == 1


def test_a_newer_version_is_refused(path: Path, file: LedgerFile) -> None:
    file.close()
    newer = LedgerFile(path, [*SCHEMA, ["CREATE TABLE later (x)"]])
    newer.open()
    newer.close()
    before = path.read_bytes()
    with pytest.raises(LedgerUnusable) as caught:
        LedgerFile(path).open()
    assert str(caught.value) == (
        f"{path}: this ledger cannot be used: it has version {len(SCHEMA) + 1}, of a newer program; this one knows "
        f"versions up to {len(SCHEMA)}")
    assert path.read_bytes() == before


def test_an_older_version_is_brought_up(path: Path, file: LedgerFile) -> None:
    file.apply([put(FULL)])
    file.close()
    newer = LedgerFile(path, [*SCHEMA, ["CREATE TABLE later (x)", "INSERT INTO later VALUES (5)"]])
    for _ in range(2):  # the step is done once
        assert not newer.open()
        assert same(newer.all()[0], FULL)
        assert newer.select("SELECT x FROM later") == [(5,)]
        newer.close()


def test_a_ledger_of_before_uptime_was_counted(path: Path) -> None:
    """Its uploads were just called for, and not long ago."""
    older = LedgerFile(path, SCHEMA[:1])
    older.open()
    columns = [column for column in COLUMNS if column not in (
        "wanted_at", "staged_on", "sealed", "believed", "staging_enough")]
    older.apply([Change(f"INSERT INTO uploads ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                        [row_of(FULL)[:len(columns)]])])
    file = reopened(path, older)
    recorded = file.read()
    assert recorded.uptime == 0
    assert same(recorded.uploads[0], FULL)
    file.close()


def test_uptime_is_there_again(path: Path, file: LedgerFile) -> None:
    assert file.read().uptime == 0
    file.apply([set_uptime(12.5), put(FULL)])
    file = reopened(path, file)
    recorded = file.read()
    assert (recorded.uptime, len(recorded.uploads)) == (12.5, 1)
    for damage in ("UPDATE helper SET uptime = -1", "UPDATE helper SET uptime = 'x'", "DELETE FROM helper"):
        file.apply([Change(damage, [()])])
        with pytest.raises(LedgerUnusable, match="the helper's uptime is damaged"):
            file.read()
    file.close()


def test_a_step_of_the_schema_is_done_whole_or_not(path: Path, file: LedgerFile) -> None:
    file.close()
    with pytest.raises(LedgerUnusable):
        LedgerFile(path, [*SCHEMA, ["CREATE TABLE later (x)", "nonsense"]]).open()
    again = LedgerFile(path, [*SCHEMA, ["CREATE TABLE later (x)"]])
    again.open()
    again.close()


ADVICE = "uploads in progress cannot be resumed without it; restore it, or move it and the spool away"


def check_refused(path: Path, text: str) -> None:
    """Not opened, and left as it is."""
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    with pytest.raises(LedgerUnusable) as caught:
        LedgerFile(path).open()
    assert str(caught.value) == f"{path}: {text}"
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before


def test_not_a_ledger(path: Path, file: LedgerFile) -> None:
    file.close()
    path.write_bytes(b"something else" * 1000)
    check_refused(path, f"this ledger cannot be used: it is damaged: file is not a database; {ADVICE}")


def test_an_empty_file_is_not_a_new_ledger(path: Path, file: LedgerFile) -> None:
    """For SQLite it would be, and every upload be forgotten."""
    file.close()
    path.write_bytes(b"")
    check_refused(path, f"this ledger cannot be used: it is damaged: it is empty; {ADVICE}")


def test_another_database(path: Path, file: LedgerFile) -> None:
    file.close()
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("CREATE TABLE uploads (x)")
    other.commit()
    other.close()
    check_refused(path, f"this ledger cannot be used: it is a database, but another one; {ADVICE}")


def test_a_damaged_page(path: Path, file: LedgerFile) -> None:
    file.apply([put(*(record(name, ueb=bytes(5000)) for name in NAMES))])
    file.close()
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    for start in range(size, len(content), size):
        damaged = bytearray(content)
        damaged[start:start + 64] = b"\xa5" * 64
        path.write_bytes(damaged)
        refused = LedgerFile(path)
        with pytest.raises(LedgerUnusable) as caught:
            refused.open()
        assert str(caught.value).startswith(f"{path}: this ledger cannot be used: it is damaged: ")
        assert path.read_bytes() == damaged


def test_a_cut_off_file(path: Path, file: LedgerFile) -> None:
    file.apply([put(*(record(name, ueb=bytes(5000)) for name in NAMES))])
    file.close()
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(LedgerUnusable, match="it is damaged"):
        LedgerFile(path).open()


def test_a_log_without_its_ledger(path: Path, file: LedgerFile) -> None:
    """SQLite would take what it says for changes of the new file."""
    file.apply([put(FULL)])
    log = Path(f"{path}-wal").read_bytes()
    file.close()
    path.unlink()
    Path(f"{path}-wal").write_bytes(log)
    check_refused(path, f"this ledger cannot be used: it is missing, but its log (-wal) is there; {ADVICE}")


@pytest.mark.parametrize(("column", "value", "text"), [
    ("state", "sleeping", "state: expected one of"), ("k", 0, "k: expected a number from 1 to 256, got 0"),
    ("servers", "[", "Expecting value"), ("servers", "[5]", "fromhex"), ("server_order", "[0]", "order: expected"),
    ("error", '["no-such-code", {}]', "no-such-code"), ("error", '["expired", {"x": 1}]', "unexpected keyword"),
    ("staging_secret", b"", "staging_secret: expected a length of 32, got 0"), ("finish_size", 60, "crypttext_hash"),
    ("staged_on", "[5]", "fromhex"), ("sealed", "[]", "items"), ("believed", '{"x": 1}', "invalid literal"),
    ("wanted_at", -1, "wanted_at: expected seconds, got -1"), ("wanted_at", "x", "wanted_at: expected seconds")])
def test_a_row_that_cannot_be_understood(path: Path, file: LedgerFile, column: str, value: Any, text: str) -> None:
    file.apply([put(record()), Change(f"UPDATE uploads SET {column} = ?", [(value,)])])
    with pytest.raises(LedgerUnusable) as caught:
        file.all()
    assert str(caught.value).startswith(f"{path}: the record of an upload is damaged: ")
    assert text in str(caught.value)


def test_making_the_file_can_be_interrupted(path: Path) -> None:
    """What an earlier attempt left is made anew, under its own name."""
    path.parent.mkdir()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}.new{suffix}").write_bytes(b"half")
    file = LedgerFile(path)
    assert file.open()
    assert sorted(p.name for p in path.parent.iterdir()) == ["ledger.sqlite", "ledger.sqlite-wal"]
    file.close()
    assert [p.name for p in path.parent.iterdir()] == ["ledger.sqlite"]


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").mkdir()
    with pytest.raises(LedgerUnusable) as caught:
        LedgerFile(tmp_path / "ledger.sqlite").open()
    assert str(caught.value).startswith(
        f"{tmp_path / 'ledger.sqlite'}: this ledger cannot be used: it cannot be opened: ")


def test_columns_are_those_of_the_table(file: LedgerFile) -> None:
    assert tuple(row[1] for row in file.select("PRAGMA table_info(uploads)")) == COLUMNS
