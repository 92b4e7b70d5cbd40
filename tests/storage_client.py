"""What a helper node has of Tahoe-LAFS to talk to storage servers, in a process of its own.

As a program: connects to the servers of the furls given, as the node would. For each line of its standard input, which
is the number of a server and a size, asks that server to `tell` so many bytes and prints how many came.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
from allmydata.client import _valid_config
from allmydata.node import config_from_string, create_tub
from allmydata.storage_client import StorageFarmBroker
from allmydata.util import base32
from foolscap.connections import tcp
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred

from helper.service import bound_to_servers

reactor: Any = _reactor
TESTS = Path(__file__).parent


@attrs.define
class StorageClient:
    """A context manager: that program, running."""

    furls: list[str]
    pid: int = 0
    _process: Any = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([sys.executable, __file__, *self.furls], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True,
                                         env={**os.environ, "PYTHONPATH": str(TESTS.parent)})
        self.pid = self._process.pid
        assert self._process.stdout.readline() == "running\n"
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _traceback: TracebackType | None) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)

    def ask(self, server: int, size: int) -> int:
        """How many bytes the server told; -1 if the call failed."""
        self._process.stdin.write(f"{json.dumps([server, size])}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def server_id(number: int) -> bytes:
    return b"v0-" + base32.b2a(bytes([number]) * 32)


def main(furls: list[str]) -> None:
    config = config_from_string("", "", "[client]\nforce_foolscap = true\n", _valid_config())
    broker = StorageFarmBroker(
        True, lambda overrides: create_tub({}, {"tcp": "tcp"}, {"tcp": tcp.default()}, overrides), config)
    bound_to_servers(broker)
    broker.set_static_servers({server_id(number).decode(): {"ann": {
        "anonymous-storage-FURL": furl, "nickname": str(number)}} for number, furl in enumerate(furls)})
    reactor.callWhenRunning(broker.startService)
    threading.Thread(target=_ask_as_told, args=[broker], daemon=True).start()
    print("running", flush=True)
    reactor.run()


def _ask_as_told(broker: StorageFarmBroker) -> None:
    for line in sys.stdin:
        reactor.callFromThread(_ask, broker.servers, *json.loads(line))
    reactor.callFromThread(reactor.stop)


def _ask(servers: Any, number: int, size: int) -> None:
    def told(data: bytes) -> None:
        print(len(data), flush=True)

    def failed(_failure: object) -> None:
        print(-1, flush=True)

    def connected(_server: object = None) -> None:
        if not waiting.called and server.get_rref() is not None:
            waiting.callback(server.get_rref())

    server, waiting = servers[server_id(number)], Deferred()
    server.on_status_changed(connected)
    waiting.addCallback(lambda rref: rref.callRemote("tell", size)).addCallbacks(told, failed)
    connected()


if __name__ == "__main__":
    main(sys.argv[1:])
