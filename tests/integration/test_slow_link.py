"""The link that users have: slow, long, with small buffers. `close` takes a moment all the same."""

from __future__ import annotations

import os
import time
from pathlib import Path

import attrs
import pytest
from grid_tools import SharedGrid, assert_healthy, check, client_directory, download
from slow_link import SlowLink, location, through

from client_shim.blocking import UploadFile

MB = 1_000_000
MiB = 1024 * 1024
#: One way; the round trip takes twice as long.
DELAY = 0.05


@attrs.frozen
class Measured:
    """Seconds."""

    total: float
    """From the first byte accepted to the cap."""
    close: float
    longest_write: float
    cap: str
    data: bytes


def measure(shared: SharedGrid, directory: Path, rate: float, size: int, piece: int) -> Measured:
    """Upload `size` random bytes in writes of `piece` over a link of `rate` bytes/s."""
    furl = shared.grid.helper_furl
    data = os.urandom(size)
    longest, first_accepted = 0.0, None
    with SlowLink(*location(furl), rate=rate, delay=DELAY) as link:
        f = UploadFile(client_directory(directory / "client", through(furl, link)))
        for start in range(0, size, piece):
            before = time.monotonic()
            f.write(data[start:start + piece])
            after = time.monotonic()
            longest = max(longest, after - before)
            first_accepted = first_accepted or after
        last_written = time.monotonic()
        f.close()
        end = time.monotonic()
        assert link.cut() == 1, "one connection, over the link"
    assert first_accepted is not None
    measured = Measured(end - first_accepted, end - last_written, longest, f.cap, data)
    print(f"\n{size / MB:.1f} MB at {rate / MB} MB/s and {2 * DELAY * 1000:.0f} ms: last write to cap "
          f"{measured.close:.2f} s; longest write {longest:.2f} s; {size / measured.total / rate:.3f} of the link used")
    return measured


def assert_stored(shared: SharedGrid, measured: Measured) -> None:
    assert download(shared.plain_client, measured.cap) == measured.data
    assert_healthy(check(shared.plain_client, measured.cap))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mib", [2, pytest.param(20, marks=pytest.mark.long)])
def test_close_on_a_slow_link(shared: SharedGrid, tmp_path: Path, mib: int) -> None:
    measured = measure(shared, tmp_path, rate=0.1 * MB, size=mib * MiB, piece=16 * 1024)
    assert measured.close <= 3
    assert_stored(shared, measured)


@pytest.mark.long
def test_a_fast_long_link_is_used(shared: SharedGrid, tmp_path: Path) -> None:
    size, rate = 120 * MB, 10 * MB
    measured = measure(shared, tmp_path, rate=rate, size=size, piece=256 * 1024)
    assert measured.close <= 3
    assert size / measured.total >= 0.9 * rate
    assert_stored(shared, measured)
