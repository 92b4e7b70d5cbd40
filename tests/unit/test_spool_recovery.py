"""What a restart finds in the spool: after a kill, a power failure, a damaged disk, a full one.

A model writes spool files from protocol.txt §8.1, and a disk (forgetful_disk.py) forgets what was not synced.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forgetful_disk import SECTOR, ForgetfulDisk, PowerFailed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_spool import ALPHABET, NAME, Disk, MiB, Stepped, Upload, batches_in, open_descriptors, path_in, started
from twisted.internet.defer import Deferred, maybeDeferred

from helper.errors import SpoolFailed
from helper.spool import ASIDE, Spool, SpoolDamaged, SpoolFile, SpoolUnreadable
from helper.spool_file import IDLE_OPEN_MAX
from helper.spool_records import WINDOW, recover

HEADER = 32


def data_of(length: int, seed: int = 0) -> bytes:
    """Bytes like those of ciphertext, of which none looks like a hole or a header."""
    return bytes(random.Random(seed).choices(ALPHABET, k=length))


def record(batch: int, offset: int, data: bytes) -> bytes:
    front = struct.pack(">4sQQLL", b"TSs2", batch, offset, len(data), zlib.crc32(data))
    return front + struct.pack(">L", zlib.crc32(front)) + data


def now(d: Deferred[Any]) -> Any:
    """The result of a Deferred that has one."""
    out: list[Any] = []
    d.addBoth(out.append)
    assert out, "no result yet"
    if hasattr(out[0], "raiseException"):
        out[0].raiseException()
    return out[0]


class Recovering:
    """A spool file that is recovered, and what it tells."""

    def __init__(self, spool: Spool, name: str = NAME, at_least: int = 0) -> None:
        self.stored: list[int] = []
        self.failed: list[str] = []
        self.full: list[str] = []
        d = spool.recover(name, self.stored.append, self.failed.append, self.full.append, at_least)
        self.file: SpoolFile = now(d)

    def content(self) -> bytes:
        if not self.file.durable:
            return b""
        content: bytes = now(self.file.in_thread(self.file.read, 0, self.file.durable))
        return content


def recovered_from(content: bytes) -> int:
    """How many bytes of ciphertext are found in a spool file of this content."""
    return recover(lambda position, length: content[position:position + length], len(content)).length


def write_batches(directory: Path, batches: list[list[bytes]]) -> bytes:
    """Write these batches with the spool itself; what the file holds."""
    stepped = Stepped()
    spool = started(directory, stepped)
    upload = Upload(spool)
    for batch in batches:
        # A first piece is committed alone unless something is under way; so the batch is the one behind a wait.
        for piece in batch:
            upload.file.append(piece)
        stepped.finish()
    spool.stop()
    return path_in(directory).read_bytes()


# -- after an orderly end or a kill -------------------------------------------------------------------------


def test_what_was_stored_is_found_and_goes_on(tmp_path: Path) -> None:
    content = write_batches(tmp_path, [[b"one"], [b"two", b" and", b" more"], [b"three"]])
    spool = started(tmp_path)
    assert spool.names() == [NAME]
    found = Recovering(spool)
    assert spool.names() == []
    assert found.file.durable == 20
    assert found.content() == b"onetwo and morethree"
    assert (found.stored, found.failed) == ([], [])
    assert path_in(tmp_path).read_bytes() == content
    found.file.append(b"four")
    assert found.stored == [24]
    assert found.file.read(15, 9) == b"threefour"
    spool.stop()
    assert batches_in(path_in(tmp_path).read_bytes())[-1] == (20, 20, b"four")
    spool = started(tmp_path)
    assert Recovering(spool).content() == b"onetwo and morethreefour"
    spool.stop()


def test_batches_say_where_they_begin(tmp_path: Path) -> None:
    big = data_of(MiB)
    content = write_batches(tmp_path, [[b"1"], [b"22", big, b"333"], [b"4"]])
    # the first piece of a row finds the disk idle, and is a batch of its own
    assert [(batch, offset) for batch, offset, _data in batches_in(content)] == [
        (0, 0), (1, 1), (3, 3), (3, 3 + MiB), (6 + MiB, 6 + MiB)]


def test_no_file_is_a_new_one(tmp_path: Path) -> None:
    """An upload may have been opened, and nothing have come for it."""
    spool = started(tmp_path)
    found = Recovering(spool)
    assert found.file.durable == 0
    found.file.append(b"first")
    assert found.stored == [5]
    assert batches_in(path_in(tmp_path).read_bytes()) == [(0, 0, b"first")]
    spool.stop()


def test_an_empty_file_is_gone_on_with(tmp_path: Path) -> None:
    started(tmp_path).stop()
    path_in(tmp_path).touch()
    spool = started(tmp_path)
    found = Recovering(spool)
    found.file.append(b"first")
    assert (found.stored, found.failed) == ([5], [])
    spool.stop()


def test_a_new_upload_does_not_take_a_file_that_was_left(tmp_path: Path) -> None:
    write_batches(tmp_path, [[b"old"]])
    spool = started(tmp_path)
    upload = Upload(spool)
    upload.file.append(b"new")
    assert upload.failed == ["EEXIST (File exists)"]
    assert Recovering(spool).content() == b"old"
    spool.stop()


def test_dropping_what_was_recovered(tmp_path: Path) -> None:
    write_batches(tmp_path, [[b"x"]])
    spool = started(tmp_path)
    Recovering(spool).file.drop()
    assert not path_in(tmp_path).exists()
    assert spool.used == 0
    spool.stop()


@pytest.mark.parametrize(("missing", "text"), [
    (True, "the spool file is missing; expected 21 bytes in it"),
    (False, "20 bytes are left in the spool file, expected at least 21")])
def test_fewer_bytes_than_are_known_to_have_been_durable(tmp_path: Path, missing: bool, text: str) -> None:
    """The ledger may know more than the file can tell: that `finish` was accepted, say."""
    content = write_batches(tmp_path, [[data_of(20)]])
    torn = content + b"torn"
    path_in(tmp_path).write_bytes(torn)
    if missing:
        path_in(tmp_path).unlink()
    spool = started(tmp_path)
    with pytest.raises(SpoolDamaged) as caught:
        Recovering(spool, at_least=21)
    assert caught.value.reason == text
    if not missing:
        assert path_in(tmp_path).read_bytes() == torn  # it is left as it is
        assert spool.names() == [NAME]
        assert Recovering(spool, at_least=20).file.durable == 20
    spool.stop()


# -- torn ends and damage --------------------------------------------------------------------------------------

FIRST, SECOND = data_of(700, 1), data_of(1500, 2)
#: Two batches; the second of two records.
TWO_BATCHES = record(0, 0, FIRST) + record(700, 700, SECOND[:900]) + record(700, 1600, SECOND[900:])
SECOND_AT = HEADER + 700
THIRD_AT = SECOND_AT + HEADER + 900


def test_the_whole_of_it_is_good() -> None:
    assert recovered_from(TWO_BATCHES) == 2200


def test_a_file_that_ends_early() -> None:
    """As after a kill in the middle of a write: whole records count."""
    for length in range(len(TWO_BATCHES)):
        expected = 0 if length < SECOND_AT else 700 if length < THIRD_AT else 1600
        assert recovered_from(TWO_BATCHES[:length]) == expected


def test_no_flipped_bit_is_overlooked_or_taken_for_a_torn_end() -> None:
    """Not even in the last batch: what power failures leave away are sectors, not bits."""
    for position in range(len(TWO_BATCHES)):
        damaged = bytearray(TWO_BATCHES)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(SpoolDamaged):
            recovered_from(bytes(damaged))


@pytest.mark.parametrize("tail", [1, 10, HEADER, 100, SECTOR, 5000])
def test_a_file_that_ends_with_zeros(tail: int) -> None:
    """Its length was written, and the bytes were not."""
    assert recovered_from(TWO_BATCHES + bytes(tail)) == 2200


def test_sectors_of_the_last_batch_that_were_not_written() -> None:
    """Whichever they are: what is before them is there, and nothing that follows is made use of."""
    for first in range(SECOND_AT, len(TWO_BATCHES), SECTOR // 4):
        for missing in ({0}, {1}, {0, 1}, {0, 2}):
            content = bytearray(TWO_BATCHES)
            hit = len(content)
            for number in missing:
                start = (first // SECTOR + number) * SECTOR
                for position in range(max(start, SECOND_AT), min(start + SECTOR, len(content))):
                    content[position] = 0
                    hit = min(hit, position)
            assert recovered_from(bytes(content)) == (700 if hit < THIRD_AT else 1600 if hit < len(content) else 2200)


def test_a_sector_that_was_being_written_when_the_power_failed() -> None:
    """It ends in zeros; but a few zeros are nothing special."""
    for zeros in range(1, 60):
        content = bytearray(TWO_BATCHES)
        end = (SECOND_AT // SECTOR + 1) * SECTOR
        content[end - zeros:end] = bytes(zeros)
        if zeros >= 32:
            assert recovered_from(bytes(content)) == 700
        else:
            with pytest.raises(SpoolDamaged):
                recovered_from(bytes(content))


def test_a_hole_before_a_later_batch_is_damage() -> None:
    """A later batch proves that the bytes were synced."""
    for start in range(0, SECOND_AT - 1, 50):
        content = bytearray(TWO_BATCHES)
        content[start:SECOND_AT] = bytes(SECOND_AT - start)
        with pytest.raises(SpoolDamaged) as caught:
            recovered_from(bytes(content))
        assert "offset 0, at 0 of the spool file" in caught.value.reason


def test_text_of_damage() -> None:
    hole = bytes(SECTOR) + TWO_BATCHES[SECTOR:]
    with pytest.raises(SpoolDamaged) as caught:
        recovered_from(hole)
    assert caught.value.reason == (
        "the record of offset 0, at 0 of the spool file, is missing, but a batch that begins at offset 700 follows")
    flipped = bytearray(TWO_BATCHES)
    flipped[SECOND_AT + 50] ^= 1
    with pytest.raises(SpoolDamaged) as caught:
        recovered_from(bytes(flipped))
    assert caught.value.reason == f"the record of offset 700, at {SECOND_AT} of the spool file, was changed"
    assert (caught.value.code, isinstance(caught.value, SpoolFailed)) == ("spool-failed", True)


@pytest.mark.parametrize("second", [
    record(700, 701, b"x"),  # a gap
    record(700, 699, b"x"),
    record(0, 0, FIRST),  # the first again
    record(701, 700, b"x"),  # of a batch that begins behind it
    record(699, 700, b"x"),  # of one that begins in the middle of another
    record(700, 700, b"")])
def test_good_records_in_a_wrong_place(second: bytes) -> None:
    with pytest.raises(SpoolDamaged) as caught:
        recovered_from(record(0, 0, FIRST) + second)
    assert caught.value.reason.startswith("the record at 732 of the spool file has offset ")


def test_records_in_ciphertext_are_no_records() -> None:
    """A client can send what looks like records; it can only make its own upload end."""
    inner = record(5000, 5000, b"x" * 10)
    content = record(0, 0, FIRST) + record(700, 700, data_of(600) + inner)
    assert recovered_from(content) == 1300 + len(inner)
    torn = bytearray(content)
    torn[SECTOR * 2:SECTOR * 2 + 10] = bytes(10)  # and the rest of the sector is there: no hole
    with pytest.raises(SpoolDamaged):
        recovered_from(bytes(torn))


def test_a_later_batch_is_found_wherever_it_is() -> None:
    """Across the pieces in which a file is read, too."""
    for length in range(65536 - HEADER - 40, 65536 + 10):
        content = bytearray(record(0, 0, data_of(length)) + record(length, length, b"x"))
        content[:2 * SECTOR] = bytes(2 * SECTOR)
        with pytest.raises(SpoolDamaged) as caught:
            recovered_from(bytes(content))
        assert str(length) in caught.value.reason


def test_files_are_read_in_bounded_pieces() -> None:
    big = data_of(1000) * 5000  # a record of 5 MB: larger messages than now may have been allowed once
    content = record(0, 0, big) + b"".join(record(len(big) + i, len(big) + i, b"x") for i in range(1000))
    read: list[int] = []

    def reader(position: int, length: int) -> bytes:
        read.append(length)
        return content[position:position + length]

    found = recover(reader, len(content))
    assert (found.length, found.size) == (len(big) + 1000, len(content))
    assert max(read) <= WINDOW
    assert sum(read) < len(content) * 1.2  # each byte about once
    assert len(read) < 20


@st.composite
def _files(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]]]:
    """The content of a file, and (position in it, bytes of ciphertext) of the end of each batch."""
    content, offset, ends = b"", 0, [(0, 0)]
    for _ in range(draw(st.integers(1, 5))):
        batch = offset
        for _ in range(draw(st.integers(1, 3))):
            data = data_of(draw(st.integers(1, 1500)), offset)
            content += record(batch, offset, data)
            offset += len(data)
        ends.append((len(content), offset))
    return content, ends


@given(_files(), st.data())
def test_any_file_cut_off_anywhere(file: tuple[bytes, list[tuple[int, int]]], data: st.DataObject) -> None:
    content, ends = file
    length = data.draw(st.integers(0, len(content)))
    found = recover(lambda position, n: content[:length][position:position + n], length)
    assert found.length >= max(offset for position, offset in ends if position <= length)
    assert found.size <= length
    assert list(found.ends) == list(found.starts[1:]) + ([found.length] if found.starts else [])


@given(_files(), st.data())
def test_any_byte_changed_anywhere(file: tuple[bytes, list[tuple[int, int]]], data: st.DataObject) -> None:
    content = bytearray(file[0])
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    if not content[position]:
        content[position] ^= 0x80  # ALPHABET has no zeros
    with pytest.raises(SpoolDamaged):
        recovered_from(bytes(content))


@given(_files(), st.data())
def test_any_sectors_of_the_last_batch_lost(file: tuple[bytes, list[tuple[int, int]]], data: st.DataObject) -> None:
    """What was synced before is there, and nothing that is wrong."""
    content, ends = file
    start, acknowledged = ends[-2]
    lost = data.draw(st.sets(st.integers(start // SECTOR, len(content) // SECTOR)))
    end = data.draw(st.integers(start, len(content)))
    changed = bytearray(content[:end])
    for sector in lost:
        low, high = max(start, sector * SECTOR), min(end, (sector + 1) * SECTOR)
        changed[low:high] = bytes(max(0, high - low))
    found = recover(lambda position, n: bytes(changed[position:position + n]), len(changed))
    assert found.length >= acknowledged
    assert changed[:found.size] == content[:found.size]


# -- the power fails -------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.booleans(), st.integers(0, 25)), min_size=1, max_size=4))
def test_nothing_acknowledged_is_lost(tmp_path_factory: pytest.TempPathFactory, seed: int,
                                      runs: list[tuple[bool, int]]) -> None:
    """Uploads that are killed, or whose machine loses its power, at any system call and again after that."""
    directory, choose = tmp_path_factory.mktemp("spool"), random.Random(seed)
    started(directory).stop()
    disk = ForgetfulDisk(directory / "spool", choose)
    data = data_of(60_000, seed)
    acknowledged = 0
    for power_fails, calls in runs:
        disk.calls_left = None
        stepped = Stepped()
        spool = started(directory, stepped, disk)
        disk.calls_left = calls
        recovered: list[Any] = []
        told: list[int] = []
        failed: list[str] = []
        spool.recover(NAME, told.append, failed.append).addBoth(recovered.append)
        stepped.finish()
        if isinstance(recovered[0], SpoolFile):
            file = recovered[0]
            assert file.durable >= acknowledged
            acknowledged = sent = file.durable
            while sent < len(data) and not failed:
                # many small pieces make a batch of several records
                pieces, length = choose.choice([(1, 1), (2, 30), (3, 500), (2, 3000), (1300, 1), (600, 3)])
                for _ in range(pieces):
                    file.append(data[sent:sent + length])
                    sent += length
                stepped.finish()
            acknowledged = max([acknowledged, *told])
        else:
            assert recovered[0].check(PowerFailed)
        disk.calls_left = None
        spool.stop()
        if power_fails:
            disk.fail_power()
    spool = started(directory)
    found = Recovering(spool, at_least=acknowledged)
    assert found.content() == data[:found.file.durable]
    spool.stop()


# -- what is asked of the disk ----------------------------------------------------------------------------------


class Recording(Disk):
    """Lets files be synced with fsync, too, and logs more."""

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        self.log.append("open directory" if flags & os.O_DIRECTORY else "open")
        return os.open(path, flags, mode)

    def ftruncate(self, fd: int, length: int) -> None:
        self.log.append(f"cut to {length}")
        os.ftruncate(fd, length)

    def posix_fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        self.log.append("forget what is in memory")
        os.posix_fadvise(fd, offset, length, advice)

    def pread(self, fd: int, length: int, position: int) -> bytes:
        self.log.append("read")
        return os.pread(fd, length, position)

    def fsync(self, fd: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{fd}")).is_dir():
            super().fsync(fd)
        else:
            self.log.append("sync all")
            os.fsync(fd)


def test_recovery_syncs_before_it_believes_and_after_it_cuts(tmp_path: Path) -> None:
    """What a killed process wrote can be read before it is on the disk, and so can the name of its file."""
    content = write_batches(tmp_path, [[b"one"], [b"two"]])
    path_in(tmp_path).write_bytes(content + b"torn")
    disk = Recording([])
    spool = started(tmp_path, system=disk)
    assert disk.log[-2:] == ["open directory", "sync directory"]
    disk.log.clear()
    found = Recovering(spool)
    assert disk.log == ["open", "sync begins", "sync ends", "forget what is in memory", "read",
                        f"cut to {len(content)}", "sync all"]
    disk.log.clear()
    found.file.append(b"three")
    assert disk.log == ["open", f"write 37 at {len(content)}", "sync begins", "sync ends"]
    spool.stop()


@pytest.mark.parametrize(("fail", "reason"), [
    ("sync", "EIO (Input/output error)"), ("open", "ELOOP (Too many levels of symbolic links)"),
    ("read", "EIO (Input/output error)")])
def test_a_disk_that_fails_during_recovery(tmp_path: Path, fail: str, reason: str) -> None:
    content = write_batches(tmp_path, [[b"one"]])
    disk = Disk([])
    eio = OSError(errno.EIO, "x", "/secret/path")

    def failing_read(*_args: int) -> bytes:
        raise eio

    if fail == "sync":
        disk.fail_sync = eio
    elif fail == "read":
        disk.pread = failing_read  # type: ignore[attr-defined]
    else:
        path_in(tmp_path).rename(tmp_path / "elsewhere")
        path_in(tmp_path).symlink_to(tmp_path / "elsewhere")
    spool = started(tmp_path, system=disk)
    with pytest.raises(SpoolFailed) as caught:
        Recovering(spool)
    assert (type(caught.value), caught.value.reason) == (
        SpoolFailed if fail == "open" else SpoolUnreadable, reason)
    assert path_in(tmp_path).read_bytes() == content
    assert spool.names() == [NAME]
    spool.remove(NAME)
    spool.stop()


def test_files_that_are_put_aside_stay(tmp_path: Path) -> None:
    kept = []
    for letter in (b"a", b"b", b"c"):
        kept.append(write_batches(tmp_path, [[letter]]))
        spool = started(tmp_path)
        assert spool.names() == [NAME], "what was put aside is not looked at"
        spool.put_aside(NAME)
        assert (spool.names(), spool.used) == ([], 0)
        spool.stop()
    aside = path_in(tmp_path).parent / ASIDE
    assert [(path.name, path.read_bytes()) for path in sorted(aside.iterdir())] == [
        (NAME, kept[0]), (f"{NAME}.1", kept[1]), (f"{NAME}.2", kept[2])]
    assert aside.stat().st_mode & 0o777 == 0o700


def test_files_are_read_through_in_threads_of_their_own(tmp_path: Path) -> None:
    write_batches(tmp_path, [[b"one"]])
    held: list[Any] = []

    def recover_in_thread(*work: Any) -> Deferred[Any]:
        held.append((Deferred(), *work))
        return held[-1][0]

    spool = Spool(path_in(tmp_path).parent, maybeDeferred, recover_in_thread=recover_in_thread)
    spool.start()
    recovered: list[SpoolFile] = []
    spool.recover(NAME, lambda _durable: None, lambda _reason: None).addCallback(recovered.append)
    stored: list[int] = []
    spool.file("b" * 52, stored.append, lambda _reason: None).append(b"other")
    assert stored == [5]
    ((done, function, *arguments),) = held
    done.callback(function(*arguments))
    assert recovered[0].durable == 3
    spool.stop()


def test_a_file_that_becomes_shorter_while_it_is_recovered(tmp_path: Path) -> None:
    write_batches(tmp_path, [[b"one"]])
    disk = Disk([])
    disk.pread = lambda fd, length, position: os.pread(fd, min(length, 10 - position), position)  # type: ignore[attr-defined]
    spool = started(tmp_path, system=disk)
    with pytest.raises(SpoolDamaged, match="the spool file ends at 10"):
        Recovering(spool)
    spool.stop()


# -- no space --------------------------------------------------------------------------------------------------


class Small(Disk):
    """Has room for a file of so many bytes."""

    def __init__(self, room: int, number: int = errno.ENOSPC) -> None:
        super().__init__([])
        self.room = room
        self._number = number

    def pwritev(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset >= self.room:
            raise OSError(self._number, "x", "/secret/path")
        whole = b"".join(buffers)
        return super().pwritev(fd, [memoryview(whole[:self.room - offset])], offset)


FULL = "ENOSPC (No space left on device)"


class Waiting:
    """A spool file that can wait for space, and what it told."""

    def __init__(self, spool: Spool, name: str = NAME) -> None:
        self.stored: list[int] = []
        self.failed: list[str] = []
        self.full: list[str] = []
        self.file = spool.file(name, self.stored.append, self.failed.append, self.full.append)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_bytes_wait_for_space(tmp_path: Path, number: int) -> None:
    disk, stepped = Small(100, number), Stepped()
    reason = f"{errno.errorcode[number]} ({os.strerror(number)})"
    spool = started(tmp_path, stepped, disk)
    upload = Waiting(spool)
    upload.file.append(b"first")
    stepped.finish()
    held = path_in(tmp_path).read_bytes()
    for piece in (b"x" * 60, b"second", b"third"):
        upload.file.append(piece)
    stepped.finish()
    assert (upload.stored, upload.full, upload.failed) == ([5], [reason], [])
    assert path_in(tmp_path).read_bytes() == held  # what was written of it is gone
    assert spool.used == len(held)
    upload.file.append(b"fourth")
    assert not stepped.waiting  # it is not tried unasked
    upload.file.retry()
    stepped.finish()
    assert (upload.stored, upload.full, upload.failed) == ([5], [reason] * 2, [])
    assert upload.file.read(0, 5) == b"first"
    disk.room = 10**6
    upload.file.retry()
    upload.file.retry()
    assert len(stepped.waiting) == 1
    stepped.finish()
    assert (upload.stored, upload.failed) == ([5, 65, 82], [])
    assert batches_in(path_in(tmp_path).read_bytes()) == [
        (0, 0, b"first"), (5, 5, b"x" * 60), (65, 65, b"secondthirdfourth")]
    assert spool.used == path_in(tmp_path).stat().st_size
    upload.file.retry()
    assert not stepped.waiting
    spool.stop()


def test_a_batch_is_tried_again_as_it_was(tmp_path: Path) -> None:
    """Not together with what has come since: see SpoolFile._commit_failed."""
    disk, stepped = Small(0), Stepped()
    spool = started(tmp_path, stepped, disk)
    upload = Waiting(spool)
    upload.file.append(b"first")
    upload.file.append(b"second")
    stepped.finish()
    disk.room = 1000
    upload.file.retry()
    stepped.finish()
    assert batches_in(path_in(tmp_path).read_bytes()) == [(0, 0, b"first"), (5, 5, b"second")]
    assert "sync directory" in disk.log  # though the file was made by an attempt that failed
    spool.stop()


def test_no_space_for_the_file_itself(tmp_path: Path) -> None:
    class NoFiles(Disk):
        full = True

        def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_CREAT and self.full:
                raise OSError(errno.ENOSPC, "x", path)
            return os.open(path, flags, mode)

    disk = NoFiles([])
    spool = started(tmp_path, system=disk)
    upload = Waiting(spool)
    upload.file.append(b"first")
    assert (upload.full, upload.failed) == ([FULL], [])
    assert not path_in(tmp_path).exists()
    disk.full = False
    upload.file.retry()
    assert upload.stored == [5]
    spool.stop()


def test_a_sync_that_finds_no_space_is_not_tried_again(tmp_path: Path) -> None:
    disk = Disk([])
    spool = started(tmp_path, system=disk)
    upload = Waiting(spool)
    disk.fail_sync = OSError(errno.ENOSPC, "x")
    upload.file.append(b"first")
    upload.file.retry()
    assert (upload.full, upload.failed) == ([], [FULL])
    assert disk.log.count("sync begins") == 1
    spool.stop()


def test_what_cannot_be_taken_back_is_a_failure(tmp_path: Path) -> None:
    class NoCut(Small):
        def ftruncate(self, fd: int, length: int) -> None:
            raise OSError(errno.EIO, "x")

    spool = started(tmp_path, system=NoCut(40))
    upload = Waiting(spool)
    upload.file.append(b"x" * 100)
    assert (upload.full, upload.failed) == ([], ["EIO (Input/output error)"])
    spool.stop()


def test_dropping_what_waits_for_space(tmp_path: Path) -> None:
    spool = started(tmp_path, system=Small(40))
    upload = Waiting(spool)
    upload.file.append(b"x" * 100)
    upload.file.drop()
    upload.file.retry()
    assert not path_in(tmp_path).exists()
    assert spool.used == 0
    spool.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The directory of a real file system of 4 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)],
                             check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    spool = started(small_disk)
    other, upload = Waiting(spool, "b" * 52), Waiting(spool)
    other.file.append(data_of(MiB))
    data = data_of(MiB)
    before = spool.free()
    for _ in range(5):
        upload.file.append(data)
    assert before - spool.free() >= 2 * MiB
    assert (upload.stored, upload.full, upload.failed) == ([MiB, 2 * MiB], [FULL], [])
    assert path_in(small_disk).stat().st_size == 2 * (MiB + HEADER)
    assert upload.file.read(MiB, MiB) == data
    other.file.drop()
    upload.file.retry()
    assert (upload.stored, upload.full) == ([MiB, 2 * MiB, 3 * MiB], [FULL] * 2)
    spool.stop()
    spool = started(small_disk)
    assert Recovering(spool).content() == data * 3
    spool.stop()


# -- accounts and descriptors ------------------------------------------------------------------------------------


def on_disk(directory: Path) -> int:
    return sum(p.stat().st_size for p in (directory / "spool").iterdir() if p.name != "lock")


def test_used(tmp_path: Path) -> None:
    """Always what the files take, whoever asked for them."""
    write_batches(tmp_path, [[b"x" * 1000]])
    path_in(tmp_path, "b" * 52).write_bytes(b"left over")
    path_in(tmp_path).write_bytes(path_in(tmp_path).read_bytes() + b"torn")
    disk = Recording([])
    spool = started(tmp_path, system=disk)
    assert spool.used == on_disk(tmp_path) == 1000 + HEADER + 4 + 9
    found = Recovering(spool)
    assert spool.used == on_disk(tmp_path) == 1000 + HEADER + 9
    found.file.append(b"y" * 50)
    new = Upload(spool, name="c" * 52)
    new.file.append(b"z")
    assert spool.used == on_disk(tmp_path) == 1050 + 2 * HEADER + 9 + HEADER + 1
    disk.fail_sync = OSError(errno.EIO, "x")
    new.file.append(b"more")
    assert new.failed
    assert spool.used == on_disk(tmp_path)
    new.file.drop()
    spool.remove("b" * 52)
    assert spool.used == on_disk(tmp_path) == 1050 + 2 * HEADER
    spool.stop()


def test_free(tmp_path: Path) -> None:
    class Sized(Disk):
        def statvfs(self, path: Path) -> os.statvfs_result:
            assert path == tmp_path / "spool"
            return os.statvfs_result((4096, 512, 1000, 300, 200, 0, 0, 0, 0, 255))

    spool = started(tmp_path, system=Sized([]))
    assert spool.free() == 200 * 512  # what root alone may use is not counted
    spool.stop()


def test_release(tmp_path: Path) -> None:
    stepped = Stepped()
    spool = started(tmp_path, stepped)
    upload = Upload(spool)
    assert upload.file.release()
    upload.file.append(b"0123456789")
    assert not upload.file.release()  # a thread is about to use it
    stepped.finish()
    assert open_descriptors(path_in(tmp_path)) == 1
    assert upload.file.release()
    assert upload.file.release()
    assert open_descriptors(path_in(tmp_path)) == 0
    assert upload.file.read(2, 3) == b"234"
    assert open_descriptors(path_in(tmp_path)) == 1
    upload.file.release()
    upload.file.append(b"more")
    stepped.finish()
    assert upload.file.read(8, 6) == b"89more"
    upload.file.release()
    upload.file.drop()
    assert not path_in(tmp_path).exists()
    stepped.step()
    assert open_descriptors(path_in(tmp_path)) == 0
    with pytest.raises(SpoolDamaged):
        upload.file.read(0, 1)
    spool.stop()


@pytest.mark.parametrize("action", ["read", "append"])
def test_a_released_file_that_is_gone(tmp_path: Path, action: str) -> None:
    spool = started(tmp_path)
    upload = Upload(spool)
    upload.file.append(b"0123456789")
    upload.file.release()
    path_in(tmp_path).unlink()
    if action == "read":
        with pytest.raises(SpoolFailed) as caught:
            upload.file.read(0, 1)
        assert caught.value.reason == "ENOENT (No such file or directory)"
    else:
        upload.file.append(b"more")
        assert upload.failed == ["ENOENT (No such file or directory)"]
        assert not path_in(tmp_path).exists()  # never made anew, with a hole
    spool.stop()


def test_threads_that_open_a_file_at_once(tmp_path: Path) -> None:
    class Slow(Disk):
        """While one thread opens the file, others do and are done first."""

        meanwhile: Callable[[], None] | None = None

        def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
            fd = os.open(path, flags, mode)
            if self.meanwhile is not None:
                meanwhile, self.meanwhile = self.meanwhile, None
                meanwhile()
            return fd

    disk = Slow([])
    spool = started(tmp_path, system=disk)
    upload = Upload(spool)
    upload.file.append(b"0123456789")
    upload.file.release()
    got: list[bytes] = []
    disk.meanwhile = lambda: got.append(upload.file.read(3, 2))
    assert upload.file.read(5, 2) == b"56"
    assert got == [b"34"]
    assert open_descriptors(path_in(tmp_path)) == 1
    upload.file.drop()
    spool.stop()


def test_files_that_were_removed_are_closed_at_the_end(tmp_path: Path) -> None:
    stepped = Stepped()
    spool = started(tmp_path, stepped)
    upload = Upload(spool)
    upload.file.append(b"x")
    stepped.finish()
    upload.file.drop()
    spool.stop()
    assert open_descriptors(path_in(tmp_path)) == 0
    stepped.finish()  # too late, and nothing happens to whoever has its number now


def test_many_files_and_few_descriptors(tmp_path: Path) -> None:
    """Ten thousand uploads that are idle fit into a process that may open 1,024 files."""
    count = 1500
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    spool = started(tmp_path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, before[0]), before[1]))
    try:
        uploads = [Upload(spool, name=f"{i:052}") for i in range(count)]
        for upload in uploads:
            upload.file.append(b"first")
        descriptors = [os.readlink(p) for p in Path("/proc/self/fd").iterdir() if p.is_symlink() and p.exists()]
        assert sum(target.startswith(str(tmp_path)) for target in descriptors) <= IDLE_OPEN_MAX + 1  # and the lock
        for upload in uploads:
            upload.file.append(b"second")
            assert now(upload.file.in_thread(upload.file.read, 0, 11)) == b"firstsecond"
        assert all((u.stored, u.failed) == ([5, 11], []) for u in uploads)
        spool.stop()
        spool = started(tmp_path)
        found = [Recovering(spool, name) for name in spool.names()]
        assert len(found) == count
        assert all(f.file.durable == 11 for f in found)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    spool.stop()
    assert not any(os.readlink(p).startswith(str(tmp_path)) for p in Path("/proc/self/fd").iterdir() if p.exists())


def test_a_file_that_is_used_is_not_closed_for_others(tmp_path: Path) -> None:
    stepped = Stepped()
    spool = started(tmp_path, stepped)
    first = Upload(spool)
    first.file.append(b"0123456789")
    stepped.finish()
    got: list[bytes] = []
    first.file.in_thread(first.file.read, 0, 4).addCallback(got.append)
    for i in range(IDLE_OPEN_MAX + 5):
        other = Upload(spool, name=f"{i:052}")
        other.file.append(b"x")
        stepped.run(1)
        stepped.report()
    assert open_descriptors(path_in(tmp_path)) == 1
    stepped.finish()
    assert got == [b"0123"]
    spool.stop()
