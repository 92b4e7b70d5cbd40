"""The spool over a real directory: what is durable when, what is on disk, and what a failing disk does.

The disk is made to fail, to be slow and to write little by putting something between the spool and the system
calls of `os`, where it takes them as an argument. What is found after a restart: test_spool_recovery.py.
"""

from __future__ import annotations

import errno
import inspect
import os
import queue
import random
import stat
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from helper.errors import SpoolFailed
from helper.spool import Spool, SpoolDamaged, SpoolFile, SpoolLocked

MiB = 1024 * 1024
NAME = "a" * 52
RECORD = struct.Struct(">4sQQLLL")  # protocol.txt §8.1

# No byte of this is a byte of a record's magic, so that a header read as data is always noticed.
ALPHABET = bytes(set(range(256)) - set(b"TSs2\0"))
DATA = bytes(random.Random("spool").choices(ALPHABET, k=150_000))


# -- ways to run something in a thread ------------------------------------------------------------------


class Stepped:
    """Runs a function when the test says `run`, and tells of it when the test says `report`."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self.ran: list[tuple[Deferred[Any], Deferred[Any]]] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        d: Deferred[Any] = Deferred()
        self.waiting.append((d, function, args))
        return d

    def run(self, number: int = 0) -> None:
        d, function, args = self.waiting.pop(number)
        self.ran.append((d, maybeDeferred(function, *args)))

    def report(self, number: int = 0) -> None:
        d, result = self.ran.pop(number)
        result.addCallbacks(d.callback, d.errback)

    def step(self) -> None:
        self.run()
        self.report()

    def finish(self) -> None:
        while self.waiting:
            self.step()


class Threads:
    """Real threads; results come to the thread that calls `handle_one`, as they come to a reactor."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count)
        self._results: queue.SimpleQueue[tuple[Deferred[Any], Deferred[Any]]] = queue.SimpleQueue()
        self.running = 0

    def __call__(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        d: Deferred[Any] = Deferred()
        self.running += 1
        self._pool.submit(self._run, d, function, args)
        return d

    def _run(self, d: Deferred[Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._results.put((d, maybeDeferred(function, *args)))

    def handle_one(self) -> None:
        d, result = self._results.get(timeout=30)
        self.running -= 1
        result.addCallbacks(d.callback, d.errback)

    def handle_all(self) -> None:
        while self.running:
            self.handle_one()

    def stop(self) -> None:
        self._pool.shutdown()


class Upload:
    """A spool file, and what it told."""

    def __init__(self, spool: Spool, log: list[str] | None = None, name: str = NAME) -> None:
        self.stored: list[int] = []
        self.failed: list[str] = []
        self._log = log
        self.file = spool.file(name, self._on_stored, self.failed.append)

    def _on_stored(self, durable: int) -> None:
        assert self.file.durable == durable
        self.stored.append(durable)
        if self._log is not None:
            self._log.append(f"stored {durable}")


class Disk:
    """Stands for `os` in the spool: records what it is asked, and fails as it is told."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.write_at_most: Callable[[], int] = lambda: sys.maxsize
        self.fail_write: int | None = None  # errno
        self.fail_sync: Exception | None = None
        self.fail_directory_sync: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwritev(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        most, whole = self.write_at_most(), sum(map(len, buffers))
        self.log.append(f"write {min(most, whole)} at {offset}")
        if self.fail_write is not None:
            raise OSError(self.fail_write, os.strerror(self.fail_write), "/secret/path")
        return os.pwritev(fd, buffers if most >= whole else [b"".join(buffers)[:most]], offset)

    def fdatasync(self, fd: int) -> None:
        self.log.append("sync begins")
        if self.fail_sync is not None:
            raise self.fail_sync
        os.fdatasync(fd)
        self.log.append("sync ends")

    def fsync(self, fd: int) -> None:
        assert stat.S_ISDIR(os.fstat(fd).st_mode)
        self.log.append("sync directory")
        if self.fail_directory_sync is not None:
            raise OSError(self.fail_directory_sync, os.strerror(self.fail_directory_sync))
        os.fsync(fd)


@pytest.fixture
def disk() -> Disk:
    return Disk([])


def started(directory: Path, run_in_thread: Callable[..., Deferred[Any]] = maybeDeferred, system: Any = os) -> Spool:
    spool = Spool(directory / "spool", run_in_thread, system)
    spool.start()
    return spool


@pytest.fixture
def stepped() -> Stepped:
    return Stepped()


@pytest.fixture
def spool(tmp_path: Path, stepped: Stepped) -> Iterator[Spool]:
    spool = started(tmp_path, stepped)
    yield spool
    spool.stop()


@pytest.fixture
def upload(spool: Spool) -> Iterator[Upload]:
    upload = Upload(spool)
    yield upload
    upload.file.drop()


def path_in(directory: Path, name: str = NAME) -> Path:
    return directory / "spool" / name


def records_in(content: bytes) -> list[tuple[int, bytes]]:
    """(offset, data) of each record of a spool file, from protocol.txt §8.1. ValueError if one is not whole."""
    return [(offset, data) for _batch, offset, data in batches_in(content)]


def batches_in(content: bytes) -> list[tuple[int, int, bytes]]:
    """(offset of the batch, offset, data) of each record of a spool file."""
    records, position = [], 0
    while position < len(content):
        header = content[position:position + 32]
        if len(header) < 32:
            raise ValueError("torn header")
        magic, batch, offset, length, crc, header_crc = RECORD.unpack(header)
        data = content[position + 32:position + 32 + length]
        if magic != b"TSs2" or len(data) < length or (zlib.crc32(data), zlib.crc32(header[:28])) != (crc, header_crc):
            raise ValueError("torn or changed record")
        records.append((batch, offset, data))
        position += 32 + length
    return records


def open_descriptors(path: Path) -> int:
    """How many descriptors of this process refer to that file, removed or not."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one of listdir itself
        found += target in (str(path), f"{path} (deleted)")
    return found


# -- the directory --------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_look(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        spool = started(tmp_path)
        Upload(spool).file.append(b"x")
        assert mode(tmp_path / "spool") == 0o700
        assert mode(tmp_path / "spool" / "lock") == 0o600
        assert mode(path_in(tmp_path)) == 0o600
        spool.stop()
    finally:
        os.umask(before)


def test_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    """Their names are durable before anything in them is."""
    synced: list[str] = []

    class Watched(Disk):
        def fsync(self, fd: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{fd}"))
            super().fsync(fd)

    spool = Spool(tmp_path / "a" / "b" / "spool", maybeDeferred, Watched([]))
    spool.start()
    assert mode(tmp_path / "a" / "b" / "spool") == 0o700
    assert [Path(path).name for path in synced] == [tmp_path.name, "a", "b", "spool"]
    spool.stop()


def test_permissions_of_an_old_directory_are_tightened(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir(mode=0o755)
    started(tmp_path).stop()
    assert mode(tmp_path / "spool") == 0o700


def test_what_an_earlier_run_left_can_be_seen_and_removed(tmp_path: Path) -> None:
    started(tmp_path).stop()
    for name, size in (("b" * 52, 3), ("c" * 52, 400), ("anything", 5)):
        path_in(tmp_path, name).write_bytes(b"o" * size)
    path_in(tmp_path, "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"not ours")
    path_in(tmp_path, "directory").mkdir()
    spool = started(tmp_path)
    assert spool.names() == ["anything", "b" * 52, "c" * 52, "link"]
    before = spool.used
    spool.remove("c" * 52)
    assert spool.names() == ["anything", "b" * 52, "link"]
    assert not path_in(tmp_path, "c" * 52).exists()
    assert before - spool.used == 400
    for name in ("c" * 52, "lock", "directory", "../elsewhere", "."):
        with pytest.raises(KeyError):
            spool.remove(name)
    for name in spool.names():
        spool.remove(name)
    assert (spool.names(), spool.used) == ([], 0)
    assert sorted(p.name for p in (tmp_path / "spool").iterdir()) == ["directory", "lock"]
    assert (tmp_path / "elsewhere").read_bytes() == b"not ours"
    spool.stop()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = started(tmp_path)
    upload = Upload(first)
    upload.file.append(b"precious")
    second = Spool(tmp_path / "spool", maybeDeferred)
    with pytest.raises(SpoolLocked) as caught:
        second.start()
    assert str(caught.value) == f"{tmp_path / 'spool'} is in use by another helper process"
    assert records_in(path_in(tmp_path).read_bytes()) == [(0, b"precious")]  # not removed by the second
    second.stop()  # never had it
    with pytest.raises(SpoolLocked):
        second.start()
    first.stop()
    first.stop()
    second.start()
    assert second.names() == [NAME]
    second.stop()


def test_one_process_at_a_time_for_real(tmp_path: Path) -> None:
    """The lock is one between processes, and goes with the process that has it, however that ends."""
    program = ("import sys\nfrom pathlib import Path\nfrom helper.spool import Spool\n"
               "Spool(Path(sys.argv[1]), None).start()\nprint('mine', flush=True)\nsys.stdin.read()\n")
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "spool")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(SpoolLocked):
            started(tmp_path)
        other.kill()
    started(tmp_path).stop()


def test_lock_is_not_inherited_by_children_nor_a_link_followed(tmp_path: Path) -> None:
    spool = started(tmp_path)
    locks = [int(fd) for fd in os.listdir("/proc/self/fd")
             if os.path.realpath(f"/proc/self/fd/{fd}") == str(tmp_path / "spool" / "lock")]
    assert len(locks) == 1
    assert not os.get_inheritable(locks[0])
    spool.stop()
    (tmp_path / "spool" / "lock").unlink()
    (tmp_path / "spool" / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links") as caught:
        started(tmp_path)
    assert caught.value.errno == errno.ELOOP
    assert not (tmp_path / "elsewhere").exists()


# -- writing and reading --------------------------------------------------------------------------------


def test_no_file_before_the_first_bytes(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    assert not path_in(tmp_path).exists()
    upload.file.append(b"some bytes")
    assert not path_in(tmp_path).exists()
    stepped.step()
    assert upload.stored == [10]
    assert records_in(path_in(tmp_path).read_bytes()) == [(0, b"some bytes")]
    assert upload.file.read(0, 10) == b"some bytes"
    assert upload.file.read(5, 3) == b"byt"


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (10, 1), (11, 0), (100, 5)])
def test_reading_what_is_not_durable(upload: Upload, stepped: Stepped, offset: int, length: int) -> None:
    with pytest.raises(SpoolDamaged):
        upload.file.read(offset, length)
    upload.file.append(b"some bytes")
    stepped.step()
    upload.file.append(b"more")
    stepped.run()  # written and synced, but nobody knows yet
    with pytest.raises(SpoolDamaged) as caught:
        upload.file.read(offset, length)
    assert caught.value.reason == f"no bytes {offset}..{offset + length} in the spool, 10 are durable"
    assert isinstance(caught.value, SpoolFailed)
    assert caught.value.code == "spool-failed"
    stepped.report()


def test_an_existing_file_is_never_written_to(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    path_in(tmp_path).write_bytes(b"somebody else's")
    upload.file.append(b"mine")
    stepped.finish()
    assert upload.failed == ["EEXIST (File exists)"]
    upload.file.drop()
    assert path_in(tmp_path).read_bytes() == b"somebody else's"


def test_a_link_is_not_followed(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    path_in(tmp_path).symlink_to(tmp_path / "elsewhere")
    upload.file.append(b"mine")
    stepped.finish()
    assert upload.failed == ["EEXIST (File exists)"]
    assert not (tmp_path / "elsewhere").exists()


# -- group commit ---------------------------------------------------------------------------------------


def test_what_is_appended_together_is_synced_once(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    with upload.file.together():
        upload.file.append(b"first")
        upload.file.append(b"second")
        assert not stepped.waiting
    with upload.file.together():
        upload.file.append(b"third")
    assert len(stepped.waiting) == 1
    stepped.step()
    assert upload.stored == [11]
    stepped.step()
    assert upload.stored == [11, 16]
    assert records_in(path_in(tmp_path).read_bytes()) == [(0, b"firstsecond"), (11, b"third")]


def test_what_comes_during_a_commit_goes_into_the_next(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    upload.file.append(b"first")
    upload.file.append(b"second")
    upload.file.append(b"third")
    assert len(stepped.waiting) == 1
    stepped.run()
    upload.file.append(b"fourth")
    assert len(stepped.waiting) == 0  # one commit at a time
    assert upload.stored == []
    assert upload.file.durable == 0
    stepped.report()
    assert upload.stored == [5]
    assert len(stepped.waiting) == 1
    upload.file.append(b"fifth")  # too late for the commit that is waiting to run
    stepped.step()
    assert upload.stored == [5, 22]
    stepped.step()
    assert upload.stored == [5, 22, 27]
    assert not stepped.waiting
    assert records_in(path_in(tmp_path).read_bytes()) == [(0, b"first"), (5, b"secondthirdfourth"), (22, b"fifth")]


def test_nothing_is_durable_before_the_sync_has_returned(tmp_path: Path, disk: Disk) -> None:
    """The file's directory is synced too, once, before anything in it counts."""
    spool = started(tmp_path, system=disk)
    disk.log.clear()
    upload = Upload(spool, disk.log)
    upload.file.append(b"12345")
    upload.file.append(b"678")
    assert disk.log == [
        "write 37 at 0", "sync begins", "sync ends", "sync directory", "stored 5",
        "write 35 at 37", "sync begins", "sync ends", "stored 8",
    ]
    spool.stop()


def test_one_sync_for_all_that_waits(tmp_path: Path, disk: Disk, stepped: Stepped) -> None:
    spool = started(tmp_path, stepped, disk)
    upload = Upload(spool, disk.log)
    upload.file.append(b"x")
    for i in range(1, 2000):
        upload.file.append(bytes([i % 256]))
    disk.log.clear()
    stepped.step()
    stepped.step()
    assert disk.log.count("sync begins") == 2
    assert upload.stored == [1, 2000]
    assert not stepped.waiting
    records = records_in(path_in(tmp_path).read_bytes())
    assert len(records) < 10  # small pieces share a record
    assert b"".join(data for _offset, data in records) == b"x" + bytes(i % 256 for i in range(1, 2000))
    spool.stop()


def test_large_commits_are_cut_into_records(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    """So that reading a few bytes with their digest never means reading very many."""
    pieces = [bytes([i]) * (MiB // 4) for i in range(11)] + [b"z" * (4 * MiB), b"y"]
    upload.file.append(b"")
    for piece in pieces:
        upload.file.append(piece)
    stepped.finish()
    whole = b"".join(pieces)
    records = records_in(path_in(tmp_path).read_bytes())
    assert b"".join(data for _offset, data in records) == whole
    assert all(len(data) <= MiB or data == pieces[-2] for _offset, data in records)
    assert upload.stored[-1] == len(whole)
    for offset, length in [(0, len(whole)), (MiB - 1, 2), (MiB // 4, MiB), (len(whole) - 3, 3), (5, 0)]:
        assert upload.file.read(offset, length) == whole[offset:offset + length]


def test_what_is_told_may_bring_more(tmp_path: Path) -> None:
    """on_stored that appends at once, as a session that releases waiting bytes does."""
    spool = started(tmp_path)
    seen: list[int] = []

    def on_stored(durable: int) -> None:
        seen.append(durable)
        if durable < 50:
            file.append(b"x" * 10)

    file = spool.file(NAME, on_stored, pytest.fail)
    file.append(b"x" * 10)
    assert seen == [10, 20, 30, 40, 50]
    assert file.durable == 50
    spool.stop()


@given(st.lists(st.tuples(st.sampled_from(["append", "run", "report", "read"]), st.integers(0, 5000),
                          st.integers(0, 5000)), max_size=60))
def test_any_appends_and_reads_are_those_of_bytes(tmp_path_factory: pytest.TempPathFactory,
                                                  steps: list[tuple[str, int, int]]) -> None:
    stepped = Stepped()
    directory = tmp_path_factory.mktemp("spool")
    spool = started(directory, stepped)
    upload, model, durable = Upload(spool), b"", 0
    for what, a, b in steps:
        if what == "append":
            data = random.Random(a).randbytes(b)
            upload.file.append(data)
            model += data
        elif what == "run" and stepped.waiting:
            stepped.run()
        elif what == "report" and stepped.ran:
            stepped.report()
        elif a + b <= upload.file.durable and upload.stored:
            assert upload.file.read(a, b) == model[a:a + b]
        else:
            with pytest.raises(SpoolDamaged):
                upload.file.read(a, b)
        assert durable <= upload.file.durable <= len(model)
        durable = upload.file.durable
    while stepped.ran or stepped.waiting:
        if not stepped.ran:
            stepped.run()
        stepped.report()
    assert upload.stored == sorted(upload.stored)
    assert upload.failed == []
    if model:
        assert upload.file.durable == len(model)
        assert upload.file.read(0, len(model)) == model
        records = records_in(path_in(directory).read_bytes())
        assert b"".join(data for _offset, data in records) == model
        assert all(model[offset:offset + len(data)] == data for offset, data in records)
    upload.file.drop()
    spool.stop()


# -- what is on disk ------------------------------------------------------------------------------------


def test_every_flipped_bit_and_every_truncation_can_be_found(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    for piece in (b"one", b"two and", b" three"):
        upload.file.append(piece)
        stepped.finish()
    content = path_in(tmp_path).read_bytes()
    whole = [(0, b"one"), (3, b"two and"), (10, b" three")]
    assert records_in(content) == whole
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            with pytest.raises(ValueError, match="torn"):
                records_in(bytes(flipped))
    for length in range(len(content)):
        if length in (0, 35, 74):  # between records
            assert records_in(content[:length]) == whole[:[0, 35, 74].index(length)]
        else:
            with pytest.raises(ValueError, match="torn"):
                records_in(content[:length])


def test_a_file_that_became_shorter(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    upload.file.append(b"0123456789")
    stepped.finish()
    os.truncate(path_in(tmp_path), 37)
    assert upload.file.read(0, 5) == b"01234"
    with pytest.raises(SpoolDamaged) as caught:
        upload.file.read(0, 6)
    assert caught.value.reason == "the spool file ends at 37"


# -- a disk that writes little, or nothing --------------------------------------------------------------


@given(pieces=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=20),
       lengths=st.lists(st.integers(1, 400), min_size=1, max_size=50))
def test_short_writes(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], lengths: list[int]) -> None:
    directory, stepped = tmp_path_factory.mktemp("spool"), Stepped()
    disk = Disk([])
    left = iter(lengths * 10_000)
    disk.write_at_most = lambda: next(left)
    spool = started(directory, stepped, disk)
    upload = Upload(spool)
    for piece in pieces:
        upload.file.append(piece)
    stepped.finish()
    whole = b"".join(pieces)
    assert upload.stored[-1] == len(whole)
    assert upload.file.read(0, len(whole)) == whole
    records = records_in(path_in(directory).read_bytes())
    assert b"".join(data for _offset, data in records) == whole
    upload.file.drop()
    spool.stop()


def test_short_reads(tmp_path: Path, stepped: Stepped, disk: Disk) -> None:
    disk.pread = lambda fd, length, offset: os.pread(fd, min(length, 3), offset)  # type: ignore[attr-defined]
    spool = started(tmp_path, stepped, disk)
    upload = Upload(spool)
    upload.file.append(b"0123456789")
    upload.file.append(b"abcdefghij")
    stepped.finish()
    assert upload.file.read(1, 18) == b"123456789abcdefghi"
    spool.stop()


def check_ended(upload: Upload, stepped: Stepped, disk: Disk, held: bytes, reason: str) -> None:
    """The upload can store nothing more, said so once, touches the disk no more, and what was durable is."""
    assert upload.failed == [reason]
    assert upload.stored == ([len(held)] if held else [])
    assert upload.file.durable == len(held)
    disk.fail_write = disk.fail_sync = disk.fail_directory_sync = None  # the disk has recovered
    disk.log.clear()
    for _ in range(3):
        upload.file.append(b"more")
        stepped.finish()
    assert disk.log == []
    assert upload.failed == [reason]
    assert upload.stored == ([len(held)] if held else [])
    if held:
        assert upload.file.read(0, len(held)) == held
    with pytest.raises(SpoolDamaged):
        upload.file.read(len(held), 1)


@pytest.fixture
def failing(tmp_path: Path, disk: Disk, stepped: Stepped) -> Iterator[Upload]:
    spool = started(tmp_path, stepped, disk)
    upload = Upload(spool)
    yield upload
    upload.file.drop()
    assert not path_in(tmp_path).exists()
    stepped.finish()
    assert open_descriptors(path_in(tmp_path)) == 0
    spool.stop()


@pytest.mark.parametrize("held", [b"", b"durable"])
@pytest.mark.parametrize(("number", "reason"), [
    (errno.ENOSPC, "ENOSPC (No space left on device)"), (errno.EIO, "EIO (Input/output error)"),
    (errno.EDQUOT, "EDQUOT (Disk quota exceeded)"), (4095, "4095 (Unknown error 4095)")])
def test_failed_write(failing: Upload, stepped: Stepped, disk: Disk, held: bytes, number: int, reason: str) -> None:
    if held:
        failing.file.append(held)
        stepped.finish()
    disk.fail_write = number
    disk.log.clear()
    failing.file.append(b"lost")
    failing.file.append(b"lost too")
    stepped.finish()
    assert disk.log.count("sync begins") == 0
    assert len(disk.log) == 1  # not tried again
    check_ended(failing, stepped, disk, held, reason)


def test_disk_full_in_the_middle_of_a_batch(tmp_path: Path, failing: Upload, stepped: Stepped, disk: Disk) -> None:
    failing.file.append(b"held")
    stepped.finish()
    lengths = iter([32 + MiB, 7])

    def room() -> int:
        length = next(lengths, 0)
        if not length:
            disk.fail_write = errno.ENOSPC
        return length

    disk.write_at_most = room
    stepped_before = len(disk.log)
    failing.file.append(b"b" * MiB)
    failing.file.append(b"c" * MiB)
    stepped.finish()
    assert "sync begins" in disk.log[stepped_before:]  # the first of the two was a commit of its own
    assert failing.stored == [4, 4 + MiB]
    assert failing.failed == ["ENOSPC (No space left on device)"]
    # what was written of the rest was taken back
    assert records_in(path_in(tmp_path).read_bytes()) == [(0, b"held"), (4, b"b" * MiB)]
    assert failing.file.read(0, 4 + MiB) == b"held" + b"b" * MiB


@pytest.mark.parametrize("held", [b"", b"durable"])
@pytest.mark.parametrize(("error", "reason"), [
    (OSError(errno.EIO, "x", "/secret/path"), "EIO (Input/output error)"),
    (OSError(errno.ENOSPC, "x"), "ENOSPC (No space left on device)"),
    (OSError("without a number"), "OSError"),
    (MemoryError("/secret/path"), "MemoryError")])
def test_failed_sync_is_never_tried_again(failing: Upload, stepped: Stepped, disk: Disk, held: bytes,
                                          error: Exception, reason: str) -> None:
    """After a failed fdatasync the kernel may have dropped the pages, and a second one would succeed."""
    if held:
        failing.file.append(held)
        stepped.finish()
    disk.fail_sync = error
    disk.log.clear()
    failing.file.append(b"lost")
    stepped.run()
    failing.file.append(b"lost too")  # while the sync was failing
    stepped.report()
    assert not stepped.waiting
    assert disk.log.count("sync begins") == 1
    check_ended(failing, stepped, disk, held, reason)


def test_failed_directory_sync(failing: Upload, stepped: Stepped, disk: Disk) -> None:
    """The bytes are on disk, but perhaps not the name of their file."""
    disk.fail_directory_sync = errno.EIO
    failing.file.append(b"lost")
    stepped.finish()
    check_ended(failing, stepped, disk, b"", "EIO (Input/output error)")


# -- dropping -------------------------------------------------------------------------------------------


def test_drop(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    upload.file.append(b"x")
    stepped.finish()
    assert open_descriptors(path_in(tmp_path)) == 1
    upload.file.drop()
    assert not path_in(tmp_path).exists()
    assert open_descriptors(path_in(tmp_path)) == 1  # until a thread has closed it, and freed its bytes
    stepped.step()
    assert open_descriptors(path_in(tmp_path)) == 0
    upload.file.drop()
    upload.file.append(b"y")
    assert not stepped.waiting
    with pytest.raises(SpoolDamaged):
        upload.file.read(0, 1)


def test_drop_of_nothing(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    upload.file.drop()
    assert not stepped.waiting
    assert [p.name for p in (tmp_path / "spool").iterdir()] == ["lock"]


@pytest.mark.parametrize("created", [False, True])
@pytest.mark.parametrize("has_run", [False, True])
def test_drop_during_a_commit(tmp_path: Path, upload: Upload, stepped: Stepped, created: bool, has_run: bool) -> None:
    """The descriptor stays open for the thread that uses it; afterwards nothing is left and nothing is told."""
    if created:
        upload.file.append(b"x")
        stepped.finish()
    told = list(upload.stored)
    upload.file.append(b"y")
    upload.file.append(b"z")
    if has_run:
        stepped.run()
    upload.file.drop()
    assert path_in(tmp_path).exists() == (created or has_run)
    if not has_run:
        stepped.run()
    assert path_in(tmp_path).exists()
    stepped.report()
    stepped.finish()
    assert not path_in(tmp_path).exists()
    assert open_descriptors(path_in(tmp_path)) == 0
    assert (upload.stored, upload.failed) == (told, [])


def test_drop_during_a_commit_that_fails(tmp_path: Path, failing: Upload, stepped: Stepped, disk: Disk) -> None:
    disk.fail_sync = OSError(errno.EIO, "x")
    failing.file.append(b"y")
    failing.file.drop()
    stepped.finish()
    assert (failing.stored, failing.failed) == ([], [])


def test_drop_during_reads(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    upload.file.append(b"0123456789")
    stepped.finish()
    got: list[bytes] = []
    for offset in (0, 3):
        upload.file.in_thread(upload.file.read, offset, 4).addCallback(got.append)
    upload.file.drop()
    stepped.step()
    assert path_in(tmp_path).exists()
    stepped.step()
    assert got == [b"0123", b"3456"]
    assert not path_in(tmp_path).exists()
    stepped.step()
    assert open_descriptors(path_in(tmp_path)) == 0


def test_a_read_that_fails_lets_go_of_the_file(tmp_path: Path, upload: Upload, stepped: Stepped) -> None:
    upload.file.append(b"0123456789")
    stepped.finish()
    failures: list[Failure] = []
    upload.file.in_thread(upload.file.read, 5, 6).addErrback(failures.append)
    upload.file.drop()
    stepped.step()
    assert failures[0].check(SpoolDamaged)
    assert not path_in(tmp_path).exists()


def test_files_are_apart(tmp_path: Path, spool: Spool, stepped: Stepped) -> None:
    uploads = [Upload(spool, name=letter * 52) for letter in "bcd"]
    for number, upload in enumerate(uploads):
        upload.file.append(bytes([number]) * 100)
    assert len(stepped.waiting) == 3  # they do not wait for each other
    for number in (2, 0, 0):
        stepped.run(number)
        stepped.report()
    uploads[1].file.drop()
    assert [u.file.read(0, 100) for u in (uploads[0], uploads[2])] == [bytes(100), b"\2" * 100]
    assert sorted(p.name[0] for p in (tmp_path / "spool").iterdir()) == ["b", "d", "l"]
    again = Upload(spool, name="c" * 52)  # a name is free again once its file is gone
    again.file.append(b"new")
    stepped.finish()
    assert again.stored == [3]
    for upload in (*uploads, again):
        upload.file.drop()


# -- threads that change places -------------------------------------------------------------------------


def interrupted(function: Callable[[], Any], at: int, action: Callable[[], Any]) -> bool:
    """Run `function`, and `action` in the middle: before the instruction number `at` of spool_file.py, as if
    another thread got its turn there. Whether there are so many."""
    left = at

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != inspect.getsourcefile(SpoolFile):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == -1:
                action()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return left < 0


def with_records(directory: Path, stepped: Stepped) -> tuple[Spool, Upload, bytes]:
    """A spool file of three records, and what it holds."""
    spool = started(directory, stepped)
    upload = Upload(spool)
    for piece in (DATA[:7], DATA[7:20], DATA[20:21]):
        upload.file.append(piece)
        stepped.finish()
    return spool, upload, DATA[:21]


@pytest.mark.parametrize(("offset", "length"), [(0, 21), (20, 1), (3, 10), (0, 7)])
def test_a_commit_in_the_middle_of_a_read(tmp_path: Path, stepped: Stepped, offset: int, length: int) -> None:
    """At every instruction of `read`, a whole commit, or two: the bytes read are the same."""
    spool, upload, held = with_records(tmp_path, stepped)
    got: list[bytes] = []
    at = 0

    def commits() -> None:
        nonlocal held
        for _ in range(2):
            piece = DATA[len(held):len(held) + 30]
            upload.file.append(piece)
            stepped.finish()
            held += piece

    while interrupted(lambda: got.append(upload.file.read(offset, length)), at, commits):
        at += 1
    assert at > 50
    assert set(got) == {DATA[offset:offset + length]}
    assert upload.file.read(0, len(held)) == held
    upload.file.drop()
    spool.stop()


def test_reads_in_the_middle_of_a_commit(tmp_path: Path, stepped: Stepped) -> None:
    """At every instruction of the thread that writes, and of what is done when it is done: all that is durable
    can be read, and nothing else."""
    spool, upload, held = with_records(tmp_path, stepped)
    at, more = 0, True

    def reads() -> None:
        durable = upload.file.durable
        assert durable in (len(held), len(held) + 60)
        for offset in (0, 20, 21, durable - 1):
            if offset < durable:
                assert upload.file.read(offset, durable - offset) == DATA[offset:durable]
        with pytest.raises(SpoolDamaged):
            upload.file.read(durable, 1)

    while more:
        upload.file.append(DATA[len(held):len(held) + 60])
        more = interrupted(stepped.step, at, reads)
        held = DATA[:len(held) + 60]
        assert upload.file.durable == len(held)
        at += 1
    assert at > 150
    upload.file.drop()
    spool.stop()


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Threads that change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = Threads(4)
    yield threads
    threads.stop()
    sys.setswitchinterval(before)


def read_the_end(file: SpoolFile, stop: threading.Event, wrong: list[str], seed: int) -> int:
    """In a thread, until `stop`: read what has just become durable, and what lies around it."""
    source, reads = random.Random(seed), 0
    while not stop.is_set():
        durable = file.durable
        if not durable:
            continue
        offset = max(0, durable - source.choice([1, 2, 20, 500, durable]))
        length = source.randint(1, durable - offset)
        if source.random() < 0.7:
            length = durable - offset
        if file.read(offset, length) != DATA[offset:offset + length]:
            wrong.append(f"{length} bytes at {offset}, {durable} durable")
        reads += 1
    return reads


def test_readers_never_see_anything_but_data(tmp_path: Path, threads: Threads) -> None:
    """While records are appended, others are read: their places follow from an index that grows meanwhile."""
    spool = started(tmp_path, threads)
    wrong: list[str] = []
    reads: list[int] = []
    stop, upload = threading.Event(), Upload(spool)
    for seed in range(3):
        upload.file.in_thread(read_the_end, upload.file, stop, wrong, seed).addCallback(reads.append)
    source, sent = random.Random("pieces"), 0
    try:
        while sent < len(DATA):
            for _ in range(source.randint(1, 4)):
                length = source.choice([1, 3, 50, 700])
                upload.file.append(DATA[sent:sent + length])
                sent += length
            count = len(upload.stored)
            while len(upload.stored) == count and not upload.failed:
                threads.handle_one()
        while upload.file.durable < len(DATA) and not upload.failed:
            threads.handle_one()
    finally:
        stop.set()
    threads.handle_all()
    assert upload.failed == []
    assert wrong == []
    assert len(reads) == 3  # none of them raised
    assert sum(reads) > 20
    records = records_in(path_in(tmp_path).read_bytes())
    assert len(records) > 100
    assert b"".join(data for _offset, data in records) == DATA
    upload.file.drop()
    spool.stop()


def test_dropping_while_threads_are_busy(tmp_path: Path, threads: Threads) -> None:
    """No thread ever meets a closed descriptor, or one that by now belongs to another file."""
    spool = started(tmp_path, threads)
    for number in range(40):
        results: list[bytes | Failure] = []
        upload = Upload(spool)
        upload.file.append(DATA[:5000])
        while not upload.stored:
            threads.handle_one()
        upload.file.append(DATA[5000:9000])
        for i in range(8):
            upload.file.in_thread(upload.file.read, i * 600, 600).addBoth(results.append)
        for _ in range(number % 8):
            threads.handle_one()
        upload.file.drop()
        other = Upload(spool, name="b" * 52)
        other.file.append(b"\0" * 9000)  # takes the lowest free descriptor
        threads.handle_all()
        assert sorted(results, key=str) == sorted((DATA[i * 600:i * 600 + 600] for i in range(8)), key=str)
        assert upload.stored in ([5000], [5000, 9000])
        assert not path_in(tmp_path).exists()
        assert other.file.read(0, 9000) == bytes(9000)
        other.file.drop()
    assert [p.name for p in (tmp_path / "spool").iterdir()] == ["lock"]
    spool.stop()
