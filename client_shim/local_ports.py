"""TCP ports on 127.0.0.1 for nodes of a local grid."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

from client_shim.local_node import NodeError

LOWEST_PORT = 20000


class PortReservations:
    """Free TCP ports on 127.0.0.1, kept from other users of this class and from outgoing connections.

    A stock node whose Tub port is taken says nothing and runs on unreachable, so a port must not be lost between the
    moment it is chosen and that when its node, perhaps restarted, listens. Each port is held by a bound socket that
    does not listen: with SO_REUSEADDR on both sides, which Twisted sets, the node can listen beside it. Ports are taken
    from below the range the kernel uses for outgoing connections.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def reserve(self) -> int:
        """A port nobody uses."""
        for _ in range(1000):
            port = LOWEST_PORT + secrets.randbelow(_first_ephemeral_port() - LOWEST_PORT)
            if _is_free(port):
                holder = socket.socket()
                self._held.append(holder)
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    holder.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise NodeError(f"no free TCP port found from {LOWEST_PORT} to {_first_ephemeral_port() - 1}")

    def release(self) -> None:
        """Give all ports back."""
        while self._held:
            self._held.pop().close()


def _first_ephemeral_port() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 32768
    return first if first > LOWEST_PORT + 1000 else 65536


def _is_free(port: int) -> bool:
    # Without SO_REUSEADDR, so that a port another grid holds is refused.
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
