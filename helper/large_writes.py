"""Long byte strings on their way through TLS to a socket.

Twisted copies them five times on that way, 16 KiB at a time and in eight turns of the reactor for a megabyte; what the
socket does not take at once it joins with all that waits behind it, over and over. Here a long string is encrypted
where it is, goes to the socket at once as far as that takes it, and what waits is handed to the kernel piece by piece
(sendmsg) when there is room.

What is used of Twisted, most of it private, is named below; where it is not as expected, a string goes the ordinary way
(tests/unit/test_allmydata_names.py says so before).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import ref

from OpenSSL import SSL
from twisted.protocols.tls import BufferingTLSTransport
from twisted.python.failure import Failure

#: So much is encrypted before it is handed on; memory of this size is still in the processor's cache then.
CHUNK = 64 * 1024
#: So many pieces that wait are offered to the socket at a time: 4 MiB, which is more than it takes.
OFFERED = 64
#: What TLS adds to a chunk: some 30 bytes to each record of 16 KiB.
OVERHEAD = 1024

#: Attributes of transports that are relied on: of the TLS layer, and of the socket's below it.
TLS_ATTRIBUTES = ("_aggregator", "_appSendBuffer", "_bufferedWrite", "_handshakeDone", "_lostTLSConnection",
                  "_tlsConnection", "_tlsShutdownFinished")
SOCKET_ATTRIBUTES = ("_tempDataBuffer", "_tempDataLen", "connected", "dataBuffer", "disconnecting", "doWrite", "offset",
                     "protocol", "socket", "writeSomeData")


def tls_layer(transport: Any, socket_attributes: Sequence[str], tls_attributes: Sequence[str]) -> Any:
    """That of a connection on which startTLS was called, if both have what is relied on; else None. The first have to
    have `protocol` among them."""
    if not all(hasattr(transport, name) for name in socket_attributes):
        return None
    tls = transport.protocol
    known = isinstance(tls, BufferingTLSTransport) and all(hasattr(tls, name) for name in tls_attributes)
    return tls if known else None


class LargeWrites:
    """Writes long byte strings to the socket of a TLS connection. `tcp` is one on which startTLS was called."""

    def __init__(self, tcp: Any) -> None:
        self._tcp = tcp
        self._tls = tcp.protocol
        write_piece_by_piece(tcp)

    @classmethod
    def over(cls, transport: Any) -> LargeWrites | None:
        """None if this is another kind of transport."""
        return None if tls_layer(transport, SOCKET_ATTRIBUTES, TLS_ATTRIBUTES) is None else cls(transport)

    def write(self, data: bytes) -> None:
        """After everything that was written before, as `transport.write` does it."""
        tls, tcp = self._tls, self._tcp
        if tls._lostTLSConnection or tls.disconnecting or not tcp.connected:
            return  # as those would drop it
        tls._aggregator.flush()
        if not tls._handshakeDone or tls._appSendBuffer:
            tcp.write(data)  # waits there for its turn
            return
        for start in range(0, len(data), CHUNK):
            if not self._encrypt(data, start, min(start + CHUNK, len(data))):
                return
            self._send(tls._tlsConnection.bio_read(CHUNK + OVERHEAD))

    def _encrypt(self, data: bytes, start: int, end: int) -> bool:
        """Into OpenSSL's memory. Whether it took all of it."""
        tls = self._tls
        with memoryview(data) as view:
            while start < end:
                try:
                    start += tls._tlsConnection.send(view[start:end])
                except SSL.WantReadError:
                    tls._bufferedWrite(data[start:])  # goes on when something has come from the peer
                    return False
                except SSL.Error:
                    tls._tlsShutdownFinished(Failure())
                    return False
        return True

    def _send(self, encrypted: bytes) -> None:
        """To the socket, if nothing waits to be sent before it. What that does not take waits, in order."""
        tcp = self._tcp
        if not tcp.dataBuffer and not tcp._tempDataBuffer:
            sent = tcp.writeSomeData(encrypted)
            if not isinstance(sent, int):  # the connection is gone, as the reactor will find out and tell
                sent = 0
            if sent == len(encrypted):
                return
            encrypted = encrypted[sent:]
        self._tls.transport.write(encrypted)


def write_piece_by_piece(tcp: Any) -> None:
    """Let a connection hand what waits for its socket to the kernel without joining it, where the system can."""
    if hasattr(tcp.socket, "sendmsg"):
        tcp.doWrite = partial(_write_pieces, ref(tcp))  # weak, or it would stay until all garbage is looked for


def _write_pieces(transport: ref[Any]) -> object:
    """In place of `doWrite`, which the reactor calls when the socket takes more: send what waits, as far as it is
    taken, in order. What belongs to the end of it all (producers, a connection that is to be closed), and to errors, is
    left to Twisted's own way."""
    tcp = transport()
    if tcp is None:
        return None
    in_twisteds_way = partial(type(tcp).doWrite, tcp)
    waiting: list[bytes] = tcp._tempDataBuffer  # behind what is left of dataBuffer
    if len(waiting) < 2 or not tcp.connected:
        return in_twisteds_way()
    begun = len(tcp.dataBuffer) - tcp.offset
    offered: list[bytes | memoryview] = [*waiting[:OFFERED]]
    if begun:
        offered.insert(0, memoryview(tcp.dataBuffer)[tcp.offset:])
    try:
        sent: int = tcp.socket.sendmsg(offered)
    except BlockingIOError:
        return None
    except OSError:
        return in_twisteds_way()  # which meets the same error, and says what it means
    if sent < begun:
        tcp.offset += sent
        return None
    sent -= begun
    tcp.dataBuffer, tcp.offset = b"", 0
    whole = 0
    while whole < len(waiting) and sent >= len(waiting[whole]):
        sent -= len(waiting[whole])
        whole += 1
    if sent:
        tcp.dataBuffer, tcp.offset = waiting[whole], sent
        whole += 1
    tcp._tempDataLen -= sum(map(len, waiting[:whole]))
    del waiting[:whole]
    return None if waiting or tcp.dataBuffer else in_twisteds_way()
