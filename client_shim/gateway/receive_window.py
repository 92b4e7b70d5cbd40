"""How much of a body the kernel may hold between a program on this machine and us: what we take in a moment.  (pure)

A program that writes into a socket sees its bytes taken as soon as the kernel has them, and over loopback the kernel
would take 3 MB: half a minute of an upload that the helper takes at 100 kB/s. Both ends' buffers follow from what we
offer: the window that we advertise, and the size of a segment, by which the sender's kernel reckons its own. That
multiplies it by the congestion window, and never makes it smaller. A congestion window grows with what is in flight
(cubic), or with the rate at which segments were acknowledged (BBR), which over loopback is a gigabyte a second even if
it is two segments now and two later: 440 KB then waited in the sender's kernel. So until a body of unknown length has
shown that it is fast, we take a segment of it a millisecond, and acknowledge when we take: 70 KB. Who knows the length
has all of it already, and does not wait for what was written last.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

#: Bytes of the receive buffer of a body that is slow, or too new to tell: one segment. Both kernels together then hold
#: some 80 KB.
SMALLEST = 2048
#: And of a listening socket's, which connections inherit: two, as a sender takes half of the first window that it is
#: offered for the largest segment.
LISTENING = 4096
#: Seconds between two reads from such a body. It is fast when FAST_BYTES of it were taken in FAST_SECONDS and whoever
#: takes them never waited for STALL seconds. The first window and a message of an upload (protocol.txt §7.2), or two
#: windows of a handle, are taken at once on any link, and are less.
PAUSE = 0.001
FAST_BYTES, FAST_SECONDS, STALL = 136 * 1024, 0.5, 0.05
#: Bytes of the receive buffer of a fast body, at first.
FAST = 64 * 1024
#: And what is never exceeded; enough for some 400 MB/s.
LARGEST = 512 * 1024
#: Bytes of a TCP segment, as on Ethernet. Over loopback 64 KiB were usual, and the sender's buffer 20 of them at least.
SEGMENT = 1460
#: The buffer of a fast body holds what was taken in so many seconds. The kernels hold ten times or more of it in all.
WORTH = 0.005
#: Seconds between two decisions on it.
INTERVAL = 0.1


def is_loopback(host: str) -> bool:
    """Whether a peer with this address is on this machine."""
    try:
        address = ip_address(host)
    except ValueError:
        return True  # not of the internet at all
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


class ReceiveWindow:
    """Decides on the receive buffer (bytes) of one connection, and whether reads pause between each other. It only
    grows: the sender's kernel would give nothing back. Times in seconds, from any clock."""

    def __init__(self) -> None:
        self.size = SMALLEST
        self.slow = True
        """Whether the next read comes PAUSE seconds after the last, at the earliest."""
        self._since = float("-inf")
        self._taken = 0  # since then
        self._last = float("-inf")

    def took(self, length: int, now: float) -> bool:
        """So many bytes were taken. Returns whether `size` has grown."""
        if self.slow and now - self._since >= FAST_SECONDS:
            self._since, self._taken = now, 0
        self._last = now
        self._taken += length
        if self.slow:
            return self._taken >= FAST_BYTES and self.be_fast(now)
        seconds = now - self._since
        if seconds < INTERVAL:
            return False
        wanted = min(LARGEST, int(self._taken / seconds * WORTH))
        self._since, self._taken = now, 0
        if wanted <= self.size or (wanted < 2 * self.size and wanted < LARGEST):
            return False
        self.size = wanted
        return True

    def be_fast(self, now: float) -> bool:
        """The body is fast, or need not show it. Returns whether `size` has grown."""
        if not self.slow:
            return False
        self.slow = False
        self.size = FAST
        self._since, self._taken = now, 0
        return True

    def wanted(self, now: float) -> None:
        """What was taken last has been dealt with, and more is wanted."""
        if now - self._last >= STALL and self.slow:
            self._since = float("-inf")
