"""TLS connections that are read from in large pieces, at less cost: the bytes, and their order, are the same.

Twisted has OpenSSL decrypt one TLS record at a time, 16 KiB, and hands each on by itself; Foolscap then looks at the
beginning of what it has got of a string, for each. Here all that one read of the socket has brought is handed on at
once, and a read may bring more.

What is used of Twisted and pyOpenSSL is named below; where it is not as expected, the connection is read from in the
ordinary way (tests/unit/test_allmydata_names.py says so before).
"""

from __future__ import annotations

from functools import cache
from typing import Any
from weakref import WeakMethod

from OpenSSL import SSL

from helper.large_writes import tls_layer

#: The most that a TLS record holds (RFC 8446, section 5.1).
RECORD = 16 * 1024

#: Attributes that are relied on: of the socket's transport, and of the TLS layer above it.
SOCKET_ATTRIBUTES = ("bufferSize", "protocol")
TLS_ATTRIBUTES = ("_tlsConnection",)


def read_in_large_pieces(transport: Any, size: int) -> bool:
    """Let a connection on which startTLS was called read so many bytes at a time, at least RECORD. Returns whether it
    is one of those that can; a repeat does nothing."""
    tls = tls_layer(transport, SOCKET_ATTRIBUTES, TLS_ATTRIBUTES)
    connection = None if tls is None else tls._tlsConnection
    if not isinstance(connection, SSL.Connection):
        return False
    if not isinstance(getattr(connection.recv, "__self__", None), _Records):
        connection.recv = _Records(connection, size).recv  # type: ignore[method-assign, assignment]
    transport.bufferSize = size
    return True


class _Records:
    """Its `recv` takes the place of a connection's."""

    def __init__(self, connection: SSL.Connection, size: int) -> None:
        self._recv_into = WeakMethod(connection.recv_into)  # or neither would go before all garbage is looked for
        self._buffer = _buffer(size)
        self._error: SSL.Error | None = None

    def recv(self, _size: int) -> bytes:
        """What there is, of as many records as fit. Raises as the `recv` of a connection does, and WantReadError if
        there is nothing."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        recv_into = self._recv_into()
        if recv_into is None:
            raise SSL.ZeroReturnError
        length = 0
        with memoryview(self._buffer) as buffer:
            while length + RECORD <= len(buffer):
                try:
                    length += recv_into(buffer[length:length + RECORD])
                except SSL.WantReadError:
                    if not length:
                        raise
                    break
                except SSL.Error as e:
                    if not length:
                        raise
                    self._error = e  # for the next call: what came before it is good
                    break
            return bytes(buffer[:length])


@cache
def _buffer(size: int) -> bytearray:
    """Of all connections: what is in it is copied before another is read from."""
    return bytearray(size)
