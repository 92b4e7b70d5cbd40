"""The helper's durable copy of the ciphertext of uploads in progress: protocol.txt §8.

One file an upload, named by a hash of its upload ID, holding records of a header and ciphertext. Bytes
count as stored when fdatasync has returned; all that arrives during one sync goes into the next (group
commit). Writing, syncing and reading happen off the reactor thread. After a restart `Spool.recover` finds
every byte that counted, or says that it cannot.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from twisted.internet.defer import Deferred

from helper.disk import System, fsync_directory, make_directory, take_lock
from helper.spool_file import (
    FLAGS,
    Files,
    RunInThread,
    SpoolFile,
    SpoolUnreadable,
    Told,
    not_accessible,
    pread_exactly,
)
from helper.spool_records import Recovered, SpoolDamaged, recover

__all__ = ["RunInThread", "Spool", "SpoolDamaged", "SpoolFile", "SpoolLocked", "SpoolUnreadable"]

_LOCK = "lock"
#: A directory in that of the spool, for files that the helper does not need and must not remove. Nothing in it is
#: looked at again.
ASIDE = "aside"


class SpoolLocked(Exception):
    """Another process uses this spool directory."""


class Spool:
    """The directory of spool files of one helper. `system` makes the system calls.

    `recover_in_thread` is for files that are read through, which takes long: no ciphertext shall wait for it. Without
    it that is done in the other threads.
    """

    def __init__(self, directory: Path, run_in_thread: RunInThread, system: System = os,
                 recover_in_thread: RunInThread | None = None) -> None:
        self._directory = directory
        self._recover_in_thread = recover_in_thread or run_in_thread
        self._system = system
        self._files = Files(run_in_thread, system)
        self._lock: int | None = None
        self._found: dict[str, int] = {}  # sizes of files of an earlier run that are neither recovered nor removed

    @property
    def used(self) -> int:
        """Bytes that all files take on the disk, whether or not anybody has asked for them yet."""
        return self._files.used

    def start(self) -> None:
        """Take the directory (made if missing, mode 0700) for this process alone, and see what is in it.

        Raises SpoolLocked. Blocks.
        """
        make_directory(self._directory, self._system)
        self._lock = take_lock(self._directory / _LOCK)
        if self._lock is None:
            raise SpoolLocked(f"{self._directory} is in use by another helper process")
        with os.scandir(self._directory) as entries:
            self._found = {e.name: e.stat(follow_symlinks=False).st_size for e in entries
                           if e.name != _LOCK and not e.is_dir(follow_symlinks=False)}
        self._files.used = sum(self._found.values())
        # A file whose bytes are all there may lack its name yet, if the last run died between two syncs.
        fsync_directory(self._directory, self._system)

    def stop(self) -> None:
        """Let go of the directory and of every file that no thread uses."""
        self._files.release()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def names(self) -> list[str]:
        """The files that were there at the start and are neither recovered nor removed yet."""
        return sorted(self._found)

    def size_of(self, name: str) -> int:
        """Bytes that one of `names()` takes on the disk. KeyError if it is none."""
        return self._found[name]

    def remove(self, name: str) -> None:
        """Remove one of `names()`. KeyError if it is none. Blocks."""
        size = self._found[name]
        (self._directory / name).unlink(missing_ok=True)
        del self._found[name]
        self._files.used -= size

    def put_aside(self, name: str) -> None:
        """Let one of `names()` be none of ours any more, and keep it for who may know what to do with it. KeyError
        if it is none. Blocks."""
        size = self._found[name]
        aside = self._directory / ASIDE
        make_directory(aside, self._system)
        to, number = aside / name, 0
        while os.path.lexists(to):
            number += 1
            to = aside / f"{name}.{number}"
        (self._directory / name).rename(to)
        del self._found[name]
        self._files.used -= size

    def free(self) -> int:
        """Bytes that the file system has left for us beside what is being written. Blocks, if seldom for long."""
        state = self._system.statvfs(self._directory)
        return max(0, int(state.f_bavail * state.f_frsize) - self._files.queued)

    def file(self, name: str, on_stored: Callable[[int], None], on_failed: Callable[[str], None],
             on_full: Callable[[str], None] | None = None) -> SpoolFile:
        """A spool file that does not exist yet; it is created when the first bytes come.

        `on_stored` is told how many bytes are durable, `on_failed` (once) why nothing more can be stored.
        `on_full` is told why bytes have to wait for space until `SpoolFile.retry`; without it the lack of space is
        a failure.
        """
        return SpoolFile(self._files, self._directory / name, Told(on_stored, on_failed, on_full))

    def recover(self, name: str, on_stored: Callable[[int], None], on_failed: Callable[[str], None],
                on_full: Callable[[str], None] | None = None, at_least: int = 0) -> Deferred[SpoolFile]:
        """The spool file of an upload of an earlier run, or a new one if it had none.

        Fires when all that it holds is verified and durable; see its `durable`. `at_least` is how many bytes are
        known to have been durable. Fails with SpoolDamaged if fewer are left, or bytes that may have been
        acknowledged are not what they were; with SpoolUnreadable if the disk fails, and with SpoolFailed if it could
        not be looked at. The file is then left as it is, still one of `names()`, and may be tried again.
        """
        file = self.file(name, on_stored, on_failed, on_full)
        d = self._recover_in_thread(self._recover, name, at_least)
        d.addCallback(lambda recovered: self._recovered(name, file, recovered))
        return d

    def _recover(self, name: str, at_least: int) -> Recovered | None:
        """In a thread: what is in a file, made durable; None if there is no file."""
        try:
            fd = self._system.open(self._directory / name, FLAGS)
        except FileNotFoundError:
            if at_least:
                raise SpoolDamaged(f"the spool file is missing; expected {at_least} bytes in it") from None
            return None
        except OSError as e:
            raise not_accessible(e) from e
        try:
            return _recover_file(fd, at_least, self._system)
        except OSError as e:
            raise not_accessible(e) from e
        finally:
            self._system.close(fd)

    def _recovered(self, name: str, file: SpoolFile, recovered: Recovered | None) -> SpoolFile:
        if recovered is not None:
            self._files.used -= self._found.pop(name, 0)
            file.resume(recovered)
        return file


def _recover_file(fd: int, at_least: int, system: System) -> Recovered:
    """What is in a file, made durable; torn records at its end are cut off."""
    # What a killed process wrote can be read, and yet not be on the disk. Then it is read from there, not from
    # memory: if an earlier sync failed, memory has what the disk has not.
    system.fdatasync(fd)
    system.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    size = system.fstat(fd).st_size
    recovered = recover(lambda position, length: pread_exactly(fd, length, position, system), size)
    if recovered.length < at_least:
        raise SpoolDamaged(f"{recovered.length} bytes are left in the spool file, expected at least {at_least}")
    if recovered.size < size:
        system.ftruncate(fd, recovered.size)
        system.fsync(fd)
    return recovered
