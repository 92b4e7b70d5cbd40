"""When bytes are taken from a connection, and how many the kernel may hold before: receive_window.py on a socket."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from client_shim.gateway.receive_window import LARGEST, PAUSE, ReceiveWindow, is_loopback


class Reading:
    """Of one connection; what is no TCP socket is only paused and resumed."""

    def __init__(self, transport: Any, clock: IReactorTime) -> None:
        self._transport = transport
        self._clock = clock
        self._window = ReceiveWindow()
        self._socket: socket.socket | None = None  # if what it holds is decided here
        self._wanted = True
        self._resting: IDelayedCall | None = None

    def begin(self, peer: str) -> None:
        """The connection is made; `peer` is its other end's address."""
        handle = getattr(self._transport, "getHandle", lambda: None)()
        if not isinstance(handle, socket.socket) or handle.family not in (socket.AF_INET, socket.AF_INET6):
            return
        if not is_loopback(peer):
            _offer(handle, LARGEST)  # the network between has latency, and its own ideas
            return
        self._socket = handle
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window.size)
        self._acknowledge_when_read()

    def end(self) -> None:
        """The connection is lost."""
        self._socket = None
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def length_is_known(self) -> None:
        """Of the body that comes."""
        if self._socket is not None and self._window.be_fast(self._clock.seconds()):
            _offer(self._socket, self._window.size)

    def took(self, length: int) -> None:
        """So many bytes came."""
        if self._socket is None:
            return
        if self._window.took(length, self._clock.seconds()):
            _offer(self._socket, self._window.size)
        if self._window.slow and self._resting is None:
            self._transport.pauseProducing()
            self._resting = self._clock.callLater(PAUSE, self._rested)

    def pause(self) -> None:
        """Take nothing, until `resume`."""
        self._wanted = False
        self._transport.pauseProducing()

    def resume(self) -> None:
        """Take what comes: what came before was dealt with."""
        self._wanted = True
        self._window.wanted(self._clock.seconds())
        if self._resting is None:
            self._read()

    def _rested(self) -> None:
        self._resting = None
        if self._wanted:
            self._read()

    def _read(self) -> None:
        self._acknowledge_when_read()
        self._transport.resumeProducing()

    def _acknowledge_when_read(self) -> None:
        """The kernel goes back to acknowledging at once every now and then, of which the sender makes a high rate."""
        if self._socket is not None and self._window.slow:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)


def _offer(handle: socket.socket, size: int) -> None:
    """Advertise a window of so many bytes."""
    # Twice as much: what small segments occupy beside their bytes must not make the kernel drop them.
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * size)
    # It never offers more than it could when the connection was made, unless it is told to.
    handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, size)
