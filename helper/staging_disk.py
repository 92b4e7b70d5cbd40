"""What the staging plugin does to the disk, in one object, so that a test can give it one that fails."""

from __future__ import annotations

import os
from pathlib import Path

from helper.spool import fsync_directory, pwrite_all


class Disk:
    """Calls of the operating system. All may raise OSError; those that sync or write belong into a thread."""

    def create(self, path: Path) -> None:
        """An empty file. FileExistsError if there is one."""
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))

    def write(self, fd: int, data: bytes, position: int) -> None:
        pwrite_all(fd, [data], position)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fsync_directory(self, directory: Path) -> None:
        fsync_directory(directory)

    def make_directory(self, directory: Path, mode: int = 0o777) -> None:
        """With its parents; no error if it is there."""
        directory.mkdir(mode=mode, parents=True, exist_ok=True)

    def remove_directory(self, directory: Path) -> None:
        """OSError if there is something in it."""
        directory.rmdir()

    def link(self, old: Path, new: Path) -> None:
        """FileExistsError if `new` is there: nothing is ever replaced."""
        os.link(old, new)

    def unlink(self, path: Path) -> None:
        """No error if it is gone."""
        path.unlink(missing_ok=True)
