"""A helper in a process of its own, whose memory can be looked at, and peers that keep to no protocol.

As a program: runs tests/loopback.py's helper in the directory named, until its standard input ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
import reactor_loop
from foolscap.api import Referenceable, SturdyRef, Tub
from loopback import LoopbackHelper, client_tub
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from helper.interfaces import MiB
from helper.settings import Settings

TESTS = Path(__file__).parent


class Hanging(Referenceable):  # type: ignore[misc]
    """Answers nothing, and takes anything."""

    def remote_hang(self, _data: Any) -> Deferred[None]:
        return Deferred()

    def remote_tell(self, size: int) -> bytes:
        return bytes(size)


@attrs.define
class ThreatenedHelper:
    """A context manager: that program, running."""

    directory: Path
    pid: int = 0
    furl: str = ""
    streaming_furl: str = ""
    hanging_furl: str = ""
    _process: Any = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([sys.executable, __file__, self.directory], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(TESTS.parent)})
        for name, value in json.loads(self._process.stdout.readline()).items():
            setattr(self, name, value)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _traceback: TracebackType | None) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


@contextmanager
def peak_memory(pid: int) -> Iterator[Callable[[], int]]:
    """What is yielded says by how many bytes a process, at its peak since then, has grown."""
    process = Path(f"/proc/{pid}")

    def memory(name: str) -> int:
        status = (process / "status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))

    before = memory("VmRSS")
    (process / "clear_refs").write_text("5")  # the peak is now what is
    yield lambda: memory("VmHWM") - before


# -- peers ------------------------------------------------------------------------------------------------


@implementer(IPullProducer)
class _Pouring:
    """Writes pieces as fast as they are taken."""

    def __init__(self, broker: Any, pieces: Iterator[bytes]) -> None:
        self.broker = broker
        self.pieces = pieces
        self.done: Deferred[int] = Deferred()
        self.poured = 0

    def resumeProducing(self) -> None:
        piece = next(self.pieces, None)
        if piece is None:
            self.broker.transport.unregisterProducer()
            self._end()
        else:
            self.poured += len(piece)
            self.broker.transport.write(piece)

    def stopProducing(self) -> None:
        self._end()

    def _end(self) -> None:
        if not self.done.called:
            self.done.callback(self.poured)


@attrs.define
class RawPeer:
    """A Foolscap connection that was negotiated as it should be, and on which a test writes what it likes."""

    tub: Tub
    broker: Any
    lost: list[bool] = attrs.field(factory=list)
    pouring: Any = None

    @classmethod
    async def connect(cls, furl: str, name: str = "raw peer") -> RawPeer:
        """As somebody who knows where the Tub is, and not what its furls are."""
        tub = client_tub(name)
        broker = await tub.getBrokerForTubRef(SturdyRef(furl).getTubRef())
        peer = cls(tub, broker)
        broker.notifyOnDisconnect(peer.lost.append, True)
        return peer

    async def reference(self, furl: str) -> int:
        """The object number of what a furl names: now the peer is known."""
        rref = await self.tub.getReference(furl)
        self.broker.keep = rref
        return int(rref.tracker.clid)

    def write(self, data: bytes) -> None:
        self.broker.transport.write(data)

    def write_record(self, data: bytes) -> None:
        """In a TLS record of its own."""
        TLSMemoryBIOProtocol.write(self.broker.transport.protocol, data)

    def pour(self, head: bytes, pieces: Iterator[bytes]) -> _Pouring:
        """Write it all, as fast as it is taken."""
        self.write(head)
        self.pouring = _Pouring(self.broker, pieces)
        self.broker.transport.registerProducer(self.pouring, False)
        return self.pouring

    async def close(self) -> None:
        self.broker.transport.abortConnection()
        await self.tub.stopService()


def zeros(size: int) -> Iterator[bytes]:
    """Pieces of 1 MiB."""
    piece = bytes(MiB)
    return (piece for _ in range(size // MiB))


def main(directory: Path) -> None:
    with LoopbackHelper(directory, Settings()) as helper:
        hanging = reactor_loop.now(lambda: helper.register(Hanging()))
        print(json.dumps({"pid": int(Path("/proc/self").resolve().name), "furl": helper.furl,
                          "streaming_furl": helper.streaming_furl, "hanging_furl": hanging}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
