"""How much of a body the kernel may hold between a program on this machine and us: what we take in a moment.  (pure)

A program that writes into a socket sees its bytes taken as soon as the kernel has them, and over loopback the kernel
would take 3 MB: half a minute of an upload that the helper takes at 100 kB/s. Both ends' buffers follow from what we
offer: the window that we advertise, and the size of a segment, by which the sender's kernel reckons its own.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

#: Bytes of a listening socket's receive buffer, which connections inherit. Both kernels together then hold some 150 KB.
SMALLEST = 4096
#: And what is never exceeded; enough for some 400 MB/s.
LARGEST = 512 * 1024
#: Bytes of a TCP segment, as on Ethernet. Over loopback 64 KiB were usual, and the sender's buffer 20 of them at least.
SEGMENT = 1460
#: The buffer holds what was taken in so many seconds. The kernels hold ten times or more of it in all.
WORTH = 0.005
#: Seconds between two decisions: long enough that the first bytes, which fill what is empty, do not look like a rate.
INTERVAL = 0.5


def is_loopback(host: str) -> bool:
    """Whether a peer with this address is on this machine."""
    try:
        address = ip_address(host)
    except ValueError:
        return True  # not of the internet at all
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


class ReceiveWindow:
    """Decides on the receive buffer of one connection. It only grows: the sender's kernel would give nothing back."""

    def __init__(self) -> None:
        self.size = SMALLEST
        self._since: float | None = None
        self._taken = 0

    def took(self, length: int, now: float) -> bool:
        """So many bytes were taken at `now` (seconds). Returns whether `size` has grown."""
        if self._since is None:
            self._since = now
        self._taken += length
        seconds = now - self._since
        if seconds < INTERVAL:
            return False
        wanted = min(LARGEST, int(self._taken / seconds * WORTH))
        self._since, self._taken = now, 0
        if wanted <= self.size or (wanted < 2 * self.size and wanted < LARGEST):
            return False
        self.size = wanted
        return True
