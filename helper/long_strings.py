"""Foolscap connections that send long byte strings at half the cost, with the very same tokens.

Foolscap looks every string up in its vocabulary of short words, for which all of a megabyte is hashed. Twisted then
copies it five times on its way through TLS to the socket, 16 KiB at a time and in eight turns of the reactor. Here a
long string is not looked up, is encrypted where it is, and goes to the socket at once as far as that takes it.

Used for what sends shares (helper) and ciphertext (client). What is used of Twisted, most of it private, is named
below; where it is not as expected, a string goes the ordinary way (tests/unit/test_allmydata_names.py says so before).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foolscap.banana import STRING, int2b128
from foolscap.broker import Broker
from OpenSSL import SSL
from twisted.protocols.tls import BufferingTLSTransport
from twisted.python.failure import Failure

#: A byte string that is longer is in no vocabulary (foolscap.vocab), and worth the trouble.
LONG = 16 * 1024
#: So much is encrypted before it is handed on; memory of this size is still in the processor's cache then.
CHUNK = 64 * 1024
#: Bytes offered to the socket at a time (Twisted: 128 KiB). With a megabyte, helper and storage nodes of a local grid
#: spend a twentieth less, and throughput is as much higher; with more, nothing is gained.
SEND_LIMIT = 1024 * 1024
#: What TLS adds to a chunk: some 30 bytes to each record of 16 KiB.
OVERHEAD = 1024

#: Attributes of transports that are relied on: of the TLS layer, and of the socket's below it.
TLS_ATTRIBUTES = ("_aggregator", "_appSendBuffer", "_bufferedWrite", "_handshakeDone", "_lostTLSConnection",
                  "_tlsConnection", "_tlsShutdownFinished")
SOCKET_ATTRIBUTES = ("_tempDataBuffer", "dataBuffer", "disconnecting", "protocol", "writeSomeData", "SEND_LIMIT")


class LongStrings(Broker):  # type: ignore[misc]
    """A Foolscap connection, over TLS or not."""

    _swift: SwiftTransport | None = None

    def connectionMade(self) -> None:
        self._swift = SwiftTransport.over(self.transport)
        super().connectionMade()

    def sendToken(self, obj: Any) -> None:
        if type(obj) is not bytes or len(obj) <= LONG:
            super().sendToken(obj)
            return
        write = self.transport.write
        int2b128(len(obj), write)
        write(STRING)
        if self._swift is None:
            write(obj)
        else:
            self._swift.write(obj)


def tls_layer(transport: Any, socket_attributes: Sequence[str], tls_attributes: Sequence[str]) -> Any:
    """That of a connection on which startTLS was called, if both have what is relied on; else None. The first have to
    have `protocol` among them."""
    if not all(hasattr(transport, name) for name in socket_attributes):
        return None
    tls = transport.protocol
    known = isinstance(tls, BufferingTLSTransport) and all(hasattr(tls, name) for name in tls_attributes)
    return tls if known else None


class SwiftTransport:
    """Writes long byte strings to the socket of a TLS connection. `tcp` is one on which startTLS was called."""

    def __init__(self, tcp: Any) -> None:
        self._tcp = tcp
        self._tls = tcp.protocol
        # What the socket did not take at once it is given whole when it takes more: not in many turns of the reactor.
        tcp.SEND_LIMIT = SEND_LIMIT

    @classmethod
    def over(cls, transport: Any) -> SwiftTransport | None:
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
