"""What it costs to send and to receive over bare TLS, and over Foolscap: between two processes, on loopback."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from foolscap.api import Referenceable, Tub
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from client_shim.local_ports import PortReservations
from helper import free_memory
from helper.long_strings import LongStrings
from helper.service import ARENAS, KEPT_MEMORY

reactor: Any = _reactor
PIECE = 1024 * 1024
IN_FLIGHT = 4


def tls_seconds(amount: int) -> tuple[float, float]:
    """Seconds of processor time of (sender, receiver) for so many bytes, blocking sockets."""
    return _pair("tls", str(amount))


def foolscap_seconds(amount: int, message: int) -> tuple[float, float]:
    """The same for Foolscap as the helper uses it, in messages of so many bytes, four of them in flight."""
    return _pair("foolscap", str(amount), str(message))


def _pair(*arguments: str) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.links"]
    with subprocess.Popen([*command, "receive", *arguments], stdout=subprocess.PIPE, text=True) as receiver:
        if receiver.stdout is None:
            raise RuntimeError("no pipe")
        where = receiver.stdout.readline().strip()
        sent = subprocess.run([*command, "send", *arguments, where], stdout=subprocess.PIPE, text=True, check=True)
        received = receiver.stdout.readline()
        receiver.kill()
    return float(sent.stdout), float(received)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _receive_tls(amount: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        certificate = Path(directory, "certificate")
        certificate.write_bytes(Tub().getCertData())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _address = listener.accept()
    with context.wrap_socket(connection, server_side=True) as tls:
        buffer = bytearray(PIECE)
        before, left = _cpu(), amount
        while left > 0:
            received = tls.recv_into(buffer)
            if not received:
                raise EOFError(f"{left} bytes are missing")
            left -= received
        print(_cpu() - before, flush=True)
        tls.sendall(b".")


def _send_tls(amount: int, where: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    piece = os.urandom(PIECE)
    with socket.create_connection(("127.0.0.1", int(where))) as connection, context.wrap_socket(connection) as tls:
        before = _cpu()
        for start in range(0, amount, PIECE):
            tls.sendall(piece[:min(PIECE, amount - start)])
        print(_cpu() - before, flush=True)
        tls.recv(1)  # a connection closed with something unread would be reset, and what it was sent be lost


class _Sink(Referenceable):  # type: ignore[misc]
    """Takes bytes and forgets them."""

    def __init__(self) -> None:
        self.begun = 0.0

    def remote_begin(self) -> None:
        self.begun = _cpu()

    def remote_write(self, _data: bytes) -> None:
        pass

    def remote_end(self) -> None:
        print(_cpu() - self.begun, flush=True)  # and then we are killed


def _receive_foolscap() -> None:
    tub, ports = Tub(), PortReservations()
    tub.brokerClass = LongStrings
    number = ports.reserve()
    tub.listenOn(f"tcp:{number}:interface=127.0.0.1")
    tub.setLocation(f"tcp:127.0.0.1:{number}")
    tub.startService()
    print(tub.registerReference(_Sink()), flush=True)
    reactor.run()
    ports.release()


def _send_foolscap(amount: int, message: int, furl: str) -> None:
    tub = Tub()
    tub.brokerClass = LongStrings
    tub.setOption("expose-remote-exception-types", False)

    async def send() -> None:
        tub.startService()
        sink = await tub.getReference(furl)
        await sink.callRemote("begin")
        before, waiting = _cpu(), list[Deferred[Any]]()
        for _ in range(amount // message):
            waiting.append(sink.callRemote("write", bytes(bytearray(message))))  # a new object each, as real ones are
            if len(waiting) == IN_FLIGHT:
                await waiting.pop(0)
        for each in waiting:
            await each
        print((_cpu() - before) * amount / (amount // message * message), flush=True)
        await sink.callRemote("end")

    def ended(result: object) -> None:
        if isinstance(result, Failure):
            result.printTraceback(sys.stderr)
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(send()).addBoth(ended))
    reactor.run()


def main(arguments: list[str]) -> None:
    """`send` and `receive`, the two ends; the sender's last argument is what the receiver has printed."""
    free_memory.keep(KEPT_MEMORY, ARENAS)
    match arguments:
        case ["receive", "tls", amount]:
            _receive_tls(int(amount))
        case ["send", "tls", amount, where]:
            _send_tls(int(amount), where)
        case ["receive", "foolscap", _amount, _message]:
            _receive_foolscap()
        case ["send", "foolscap", amount, message, where]:
            _send_foolscap(int(amount), int(message), where)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
