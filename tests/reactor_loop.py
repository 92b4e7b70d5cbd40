"""The real reactor in a thread of its own, for tests over real loopback connections.

Started once for the whole test run and never stopped: Twisted's reactor cannot be started twice.
client_shim.blocking runs it in the same way, and finds it running.
"""

from __future__ import annotations

import socket
import threading
import warnings
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, TypeVar

from foolscap.api import Tub
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.threads import blockingCallFromThread

T = TypeVar("T")
reactor: Any = _reactor  # it has more interfaces than its declared type

#: A test that needs longer hangs; seconds.
PATIENCE = 20

_starting = threading.Lock()


def start() -> None:
    """Let the reactor run, if it does not yet."""
    with _starting:
        if not reactor.running:
            running = threading.Event()
            reactor.callWhenRunning(running.set)
            threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False},
                             name="reactor of the tests", daemon=True).start()
            running.wait()


def run(call: Callable[[], Awaitable[T]], patience: float = PATIENCE) -> T:
    """The result of `call()`, made and awaited in the reactor's thread. TimeoutError after `patience` seconds."""
    start()

    async def awaited() -> T:
        return await call()

    def begin() -> Deferred[T]:
        d: Deferred[T] = Deferred.fromCoroutine(awaited())
        d.addTimeout(patience, reactor)
        return d

    result: T = blockingCallFromThread(reactor, begin)  # type: ignore[arg-type]
    return result


def now(call: Callable[[], T]) -> T:
    """The result of `call()`, called in the reactor's thread."""

    async def called() -> T:
        return call()

    return run(called)


async def turns(condition: Callable[[], bool]) -> None:
    """Let the reactor turn until `condition()` holds; `run` limits how long."""
    while not condition():
        turned: Deferred[None] = Deferred()
        reactor.callLater(0, turned.callback, None)
        await turned


@cache
def certificate(name: str) -> bytes:
    """A Tub's key and certificate, always the same for a name: making one takes a while."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Twisted uses what pyOpenSSL deprecates
        data: bytes = Tub().getCertData()
    return data


def listening_tub(name: str) -> Tub:
    """A started Tub on a loopback port that the system chose. In the reactor's thread."""
    tub = Tub(certData=certificate(name))
    tub.setOption("expose-remote-exception-types", False)
    tub.startService()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    port = listening.getsockname()[1]
    tub.listenOn(AdoptedStreamServerEndpoint(reactor, listening.detach(), socket.AF_INET))
    tub.setLocation(f"127.0.0.1:{port}")
    return tub
