"""What those who store things ask of a disk, in the form in which it can be relied on after a power failure."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

#: What makes the system calls: the module `os`, or what a test puts between.
System = Any


def make_directory(directory: Path, system: System = os) -> None:
    """Make a directory (mode 0700) with its parents; their names are safe when this returns."""
    missing = [d for d in (directory, *directory.parents) if not d.exists()]
    for new in reversed(missing):
        new.mkdir(mode=0o700, exist_ok=True)
        if new != directory:
            fsync_directory(new.parent, system)
    os.chmod(directory, 0o700)
    fsync_directory(directory.parent, system)  # also if it was there: an earlier run may have died before this


def take_lock(path: Path) -> int | None:
    """A descriptor that holds a file (made if missing, mode 0600) for this process alone, until it is closed or the
    process ends; None if another process holds it. OSError if there is a link under that name."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def pwrite_all(fd: int, pieces: list[bytes], position: int, system: System = os) -> None:
    """Write all pieces at `position`, however few bytes the system takes at a time."""
    views = [memoryview(piece) for piece in pieces]
    while views:
        count = system.pwritev(fd, views, position)
        position += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views and count:
            views[0] = views[0][count:]


def pread_all(fd: int, length: int, position: int, system: System = os) -> bytes:
    """`length` bytes from `position` on, or fewer if the file ends before."""
    data: bytes = system.pread(fd, length, position)
    if len(data) == length:
        return data
    parts, got = [data], len(data)
    while data and got < length:
        data = system.pread(fd, length - got, position + got)
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def fsync_directory(directory: Path, system: System = os) -> None:
    """Make the names in a directory durable."""
    fd = system.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        system.fsync(fd)
    finally:
        system.close(fd)


def reason_of(error: BaseException | None) -> str:
    """Why something failed, without a path: file names are hashes of upload IDs and of staging names."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{errno.errorcode.get(error.errno, error.errno)} ({os.strerror(error.errno)})"
    return type(error).__name__
