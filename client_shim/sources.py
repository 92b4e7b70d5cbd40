"""Where `put` reads from: standard input, a regular file, or the output of a command."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import subprocess
from collections.abc import Sequence
from typing import Protocol

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from zope.interface import implementer

from client_shim.errors import CommandFailed, UploadClosed

READ_SIZE = 1024 * 1024


class Source(Protocol):
    """Bytes to upload."""

    async def read(self) -> bytes:
        """The next bytes, at most READ_SIZE; empty at the end. Raises OSError or an UploadError."""

    def close(self) -> None:
        """Read no more; a `read` under way raises UploadClosed, or returns."""


class FileSource:
    """A regular file: its reads block for a moment only, but they may, so a thread does them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def read(self) -> bytes:
        return await deferToThread(os.read, self._fd, READ_SIZE)

    def close(self) -> None:
        pass


@implementer(IReadDescriptor)
class PipeSource:
    """A pipe, socket or terminal. Read when it is readable, and then only once: so it never blocks, its
    flags need not be changed (others may share them), and no thread hangs in a read when we want to exit."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting: Deferred[bytes] | None = None
        self._widened = False

    async def read(self) -> bytes:
        if not self._widened:
            self._widened = True
            _widen(self._fd)
        self._waiting = Deferred()
        reactor.addReader(self)
        return await self._waiting

    def close(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            reactor.removeReader(self)
            waiting.errback(UploadClosed())

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "source"

    def doRead(self) -> None:
        waiting, self._waiting = self._waiting, None
        reactor.removeReader(self)
        if waiting is None:
            return
        try:
            data = os.read(self._fd, READ_SIZE)
        except OSError:
            waiting.errback(Failure())
        else:
            waiting.callback(data)

    def connectionLost(self, _reason: Failure) -> None:
        """The other end is gone. Bytes it wrote before may still be there to read; else read() finds the end."""
        if self._waiting is not None:
            self.doRead()


class CommandSource:
    """The standard output of a command. Its end is the end of the file only if it succeeds."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=None, stdout=subprocess.PIPE)
        if self._process.stdout is None:
            raise OSError("no pipe")
        self._pipe = PipeSource(self._process.stdout.fileno())

    async def read(self) -> bytes:
        data = await self._pipe.read()
        if not data:
            status = await deferToThread(self._process.wait)
            if status != 0:
                raise CommandFailed(status)
        return data

    def close(self) -> None:
        """End the command too, if it still runs."""
        self._pipe.close()
        if self._process.poll() is None:
            self._process.terminate()


def _widen(fd: int) -> None:
    """Let a pipe hold as much as one `read` takes: it holds 64 KiB otherwise, each of which would be a turn."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # no pipe, or not allowed to hold so much
            if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < READ_SIZE:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, READ_SIZE)


def source_of(fd: int) -> Source:
    """The right kind of source for an open file."""
    return FileSource(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else PipeSource(fd)
