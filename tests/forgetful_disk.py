"""A disk that forgets what was not synced, fails as it is told, and stands for the module `os` (helper.disk.System).

Files are real ones, so everything else works as ever. What they hold is what the system's memory has; what would be
there after a power failure is kept beside. The rules are those of Linux and ext4:

- a write is in memory until it is synced; after a power failure any sectors of it can be on the disk, and a file can
  have any length between the synced one and the present one;
- a sync that fails may have written some sectors, and marks all of them clean: they can still be read, later syncs
  succeed without writing them, and when memory is dropped (POSIX_FADV_DONTNEED) they are gone;
- a name is there for sure once its directory was synced, and gone for sure only then, too.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

SECTOR = 512


class PowerFailed(Exception):
    """The disk does nothing any more: the process that uses it has ended in the middle of a system call."""


@attrs.define
class _OnDisk:
    """One file: what is on the disk for sure, and the ranges of what is only in memory."""

    content: bytearray = attrs.field(factory=bytearray)
    dirty: list[tuple[int, int]] = attrs.field(factory=list)


class ForgetfulDisk:
    """The files of one flat directory. `choose` decides whatever can be so or otherwise."""

    def __init__(self, directory: Path, choose: random.Random) -> None:
        self._directory = directory
        self._choose = choose
        self._files: dict[str, _OnDisk] = {}
        self._names: set[str] = set()  # as they are on the disk
        self._descriptors: dict[int, Path] = {}
        #: System calls until PowerFailed; None: it does not come.
        self.calls_left: int | None = None
        #: Errors (errno) that calls will end with, by call: pwritev, fdatasync, fsync, open, ftruncate. Used up.
        self.failures: dict[str, list[int]] = {}
        #: Bytes that can still be written; None: no limit.
        self.room: int | None = None
        #: How many bytes a write takes of those it is given.
        self.takes: Callable[[int], int] = lambda size: self._choose.choice([1, 40, 700, size])
        #: Names of files of which a call has failed.
        self.hurt: set[str] = set()
        self.on_failure: Callable[[str], None] = lambda _call: None

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    # -- system calls ------------------------------------------------------------------------------------------

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        self._call("open", Path(path))
        new = flags & os.O_CREAT and not os.path.lexists(path)
        fd = os.open(path, flags, mode)
        self._descriptors[fd] = Path(path)
        if new:
            self._files[Path(path).name] = _OnDisk()
        return fd

    def close(self, fd: int) -> None:
        self._descriptors.pop(fd, None)
        os.close(fd)

    def pwritev(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        path = self._descriptors[fd]
        self._call("pwritev", path)
        whole = b"".join(buffers)
        data = whole[:max(1, min(len(whole), self.takes(len(whole))))]
        if self.room is not None:
            data = data[:self.room]
            if not data:
                self._fail(errno.ENOSPC, path)
            self.room -= len(data)
        count = os.pwrite(fd, data, offset)
        self._file(path).dirty.append((offset, offset + count))
        return count

    def ftruncate(self, fd: int, length: int) -> None:
        path = self._descriptors[fd]
        self._call("ftruncate", path)
        if self.room is not None:
            self.room += max(0, os.fstat(fd).st_size - length)
        os.ftruncate(fd, length)
        file = self._file(path)
        file.dirty = [(start, min(end, length)) for start, end in file.dirty if start < length]

    def fdatasync(self, fd: int) -> None:
        path = self._descriptors[fd]
        file = self._file(path)
        try:
            self._call("fdatasync", path)
        except OSError:
            self._write_out(file, path, lambda: self._choose.random() < 0.5)
            raise
        self._write_out(file, path, lambda: True)

    def fsync(self, fd: int) -> None:
        path = self._descriptors[fd]
        if not path.is_dir():
            self.fdatasync(fd)
            return
        self._call("fsync", path)
        if path == self._directory:
            self._names = set(self._present())
            self._files = {name: file for name, file in self._files.items() if name in self._names}

    def posix_fadvise(self, fd: int, _offset: int, _length: int, advice: int) -> None:
        """Memory is dropped: what is not dirty is read from the disk."""
        if advice != os.POSIX_FADV_DONTNEED:
            return
        path = self._descriptors[fd]
        file, now = self._file(path), bytearray(path.read_bytes())
        before = bytes(now)
        now[:] = file.content[:len(now)].ljust(len(now), b"\0")
        for start, end in file.dirty:
            now[start:end] = before[start:end]
        if now != before:
            path.write_bytes(now)

    def statvfs(self, path: Path) -> Any:
        if self.room is None:
            return os.statvfs(path)
        return os.statvfs_result((1, 1, self.room, self.room, self.room, 9, 9, 9, 0, 255))

    # -- what it is like -----------------------------------------------------------------------------------------

    def synced(self, name: str) -> bytes:
        """What a file holds for sure after a power failure: nothing if its name could be missing."""
        file = self._files.get(name)
        return bytes(file.content) if file is not None and name in self._names else b""

    def fail_power(self) -> None:
        """Make the files what they are when the machine runs again."""
        gone = [name for name in self._files if name in self._names and not (self._directory / name).exists()]
        for name in gone:  # the removal may not have reached the disk
            if self._choose.random() < 0.5:
                self._put(name, bytes(self._files[name].content))
        for name in self._present():
            if name in gone:
                continue
            file = self._files.get(name) or _OnDisk()
            if name not in self._names and self._choose.random() < 0.5:
                (self._directory / name).unlink()
                continue
            self._put(name, self._after_power_failure(file, (self._directory / name).read_bytes()))
        self._names = set(self._present())
        self._files = {name: self._files.get(name, _OnDisk()) for name in self._names}

    def _after_power_failure(self, file: _OnDisk, now: bytes) -> bytes:
        content = self._merged(bytes(file.content), now, file.dirty, lambda: self._choose.random() < 0.5)
        low, high = sorted((len(file.content), len(now)))
        size = self._choose.choice([len(file.content), len(now), self._choose.randint(low, high)])
        return content[:size].ljust(size, b"\0")

    def _put(self, name: str, content: bytes) -> None:
        (self._directory / name).write_bytes(content)
        self._files[name] = _OnDisk(bytearray(content))

    def _present(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self._directory) if entry.name != "lock")

    def _file(self, path: Path) -> _OnDisk:
        if path.name not in self._files:  # of before this disk was put between
            self._files[path.name] = _OnDisk(bytearray(path.read_bytes()) if path.exists() else bytearray())
        return self._files[path.name]

    def _write_out(self, file: _OnDisk, path: Path, written: Callable[[], bool]) -> None:
        """Everything dirty is clean now; each sector is on the disk if `written` says so."""
        if not path.exists():  # removed while a thread used it
            return
        now = path.read_bytes()
        content = self._merged(bytes(file.content), now, file.dirty, written)
        file.content = bytearray(content[:len(now)].ljust(len(now), b"\0"))
        file.dirty.clear()

    @staticmethod
    def _merged(old: bytes, now: bytes, dirty: list[tuple[int, int]], written: Callable[[], bool]) -> bytes:
        """`old` with those dirty sectors of `now` that are written."""
        content = bytearray(old.ljust(len(now), b"\0"))
        chosen: dict[int, bool] = {}
        for start, end in dirty:
            for sector in range(start // SECTOR, -(-end // SECTOR)):
                if sector not in chosen:
                    chosen[sector] = written()
                if chosen[sector]:
                    first, last = max(start, sector * SECTOR), min(end, (sector + 1) * SECTOR)
                    content[first:last] = now[first:last]
        return bytes(content)

    def _call(self, call: str, path: Path) -> None:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise PowerFailed
        if failures := self.failures.get(call):
            self.on_failure(call)
            self._fail(failures.pop(0), path)

    def _fail(self, number: int, path: Path) -> None:
        self.hurt.add(path.name)
        raise OSError(number, os.strerror(number), "/secret/path")
