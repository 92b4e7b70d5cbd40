"""Where `put` reads from: standard input, a regular file, or the output of a command."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
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
from helper.interfaces import LARGEST_MESSAGE

#: Bytes of one `read`, at most: what makes a message.
READ_SIZE = LARGEST_MESSAGE
#: A read that brings less has emptied the pipe: what another would bring is not worth it.
WORTH_ANOTHER = 64 * 1024
#: As much as a pipe may hold by default (Linux: /proc/sys/fs/pipe-max-size).
PIPE_SIZE = 1024 * 1024


class Source(Protocol):
    """Bytes to upload."""

    async def read(self) -> memoryview:
        """The next bytes, at most READ_SIZE; empty at the end. They stay until the next call of this or of
        `read_ahead`. Raises OSError or an UploadError."""

    def read_ahead(self) -> None:
        """What the last `read` gave is not needed any more: take what there is for the next, waiting for nothing."""

    def close(self) -> None:
        """Read no more; a `read` under way raises UploadClosed, or returns."""


class FileSource:
    """A regular file: its reads block for a moment only, but they may, so a thread does them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray(READ_SIZE)

    async def read(self) -> memoryview:
        length: int = await deferToThread(os.readv, self._fd, [self._buffer])
        return memoryview(self._buffer)[:length]

    def read_ahead(self) -> None:
        """Nothing: that would need a thread's turn of its own."""

    def close(self) -> None:
        pass


@implementer(IReadDescriptor)
class PipeSource:
    """A pipe, socket or terminal. Read when it is readable, and then only once each time: so it never blocks, its
    flags need not be changed (others may share them), and no thread hangs in a read when we want to exit.

    Each turn of the reactor, and each of the thread that encrypts, costs a fast upload a part of its processor time. So
    the reactor is asked only if there is nothing to read yet; and a pipe that has been filled again, while what was
    read before was encrypted and sent, is read into the same piece.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray(READ_SIZE)
        self._filled = 0
        self._ended = False
        self._error: OSError | None = None
        self._readable = select.poll()
        self._readable.register(fd, select.POLLIN)
        self._waiting: Deferred[None] | None = None
        self._widened = False

    async def read(self) -> memoryview:
        if not self._widened:
            self._widened = True
            _widen(self._fd)
        self.read_ahead()
        while not self._filled and not self._ended:
            if self._error is not None:
                raise self._error
            self._waiting = Deferred()
            reactor.addReader(self)
            await self._waiting
            self.read_ahead()
        length, self._filled = self._filled, 0
        return memoryview(self._buffer)[:length]

    def read_ahead(self) -> None:
        while not self._ended and self._error is None and self._filled < READ_SIZE and self._readable.poll(0):
            try:
                with memoryview(self._buffer) as buffer:
                    length = os.readv(self._fd, [buffer[self._filled:]])
            except OSError as e:
                self._error = e  # what came before it is good
                return
            self._ended = length == 0
            self._filled += length
            if length < WORTH_ANOTHER:
                return

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
        """It is readable, or at its end."""
        waiting, self._waiting = self._waiting, None
        reactor.removeReader(self)
        if waiting is not None:
            waiting.callback(None)

    def connectionLost(self, _reason: Failure) -> None:
        """The other end is gone. Bytes it wrote before may still be there to read; else read() finds the end."""
        self.doRead()


class CommandSource:
    """The standard output of a command. Its end is the end of the file only if it succeeds."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=None, stdout=subprocess.PIPE)
        if self._process.stdout is None:
            raise OSError("no pipe")
        self._pipe = PipeSource(self._process.stdout.fileno())

    async def read(self) -> memoryview:
        data = await self._pipe.read()
        if not data:
            status = await deferToThread(self._process.wait)
            if status != 0:
                raise CommandFailed(status)
        return data

    def read_ahead(self) -> None:
        self._pipe.read_ahead()

    def close(self) -> None:
        """End the command too, if it still runs."""
        self._pipe.close()
        if self._process.poll() is None:
            self._process.terminate()


def _widen(fd: int) -> None:
    """Let a pipe hold as much as it may: it holds 64 KiB otherwise, each of which would be a turn."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # no pipe, or not allowed to hold so much
            if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < PIPE_SIZE:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


def source_of(fd: int) -> Source:
    """The right kind of source for an open file."""
    return FileSource(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else PipeSource(fd)
