"""A thousand uploads that are open and wait for their writers cost little memory, and the one that goes on no time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import pytest
import reactor_loop
from fault_tools import FAULT_GRID, MiB
from foolscap.api import Tub
from grid_tools import client_directory, further_helper, helper_furl, memory, spool_of, uploads_open, wait_for
from single_calls import new_file, new_tub, stop_tub
from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore

from client_shim.blocking import UploadFile
from client_shim.helper_edge import HelperLink, connect
from client_shim.local_grid import LocalGrid
from client_shim.local_node import NodeProcess
from helper.free_memory import INTERVAL

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

UPLOADS, CONNECTIONS = 1000, 10
EACH = MiB + MiB // 2
MEMORY_MAX = 256  # MiB
ACTIVE = 64 * MiB
#: Uploads that are being written at a time.
AT_ONCE = 20


@pytest.fixture
def helper(grid: LocalGrid) -> Iterator[NodeProcess]:
    with further_helper(grid, "busy-helper") as helper:
        yield helper


@attrs.frozen
class Idle:
    """Uploads that were begun, over a few connections."""

    links: list[HelperLink]
    ids: list[bytes]

    def each(self, call: Callable[[HelperLink, bytes], Awaitable[object]]) -> None:
        """Make a call, or several, for every upload."""
        def some() -> DeferredList:
            semaphore = DeferredSemaphore(AT_ONCE)
            return DeferredList([semaphore.run(call_later(call), self.links[i % len(self.links)], upload_id)
                                 for i, upload_id in enumerate(self.ids)], fireOnOneErrback=True)

        reactor_loop.run(some, 900)


def call_later(call: Callable[[HelperLink, bytes], Awaitable[object]]) -> Callable[..., object]:
    async def awaited(link: HelperLink, upload_id: bytes) -> None:
        await call(link, upload_id)

    return lambda link, upload_id: Deferred.fromCoroutine(awaited(link, upload_id))


def seconds_for_one(directory: Path, helper: NodeProcess) -> float:
    """The median of some uploads, one after the other."""
    def one() -> float:
        data = os.urandom(ACTIVE)
        began = time.monotonic()
        with UploadFile(directory) as f:
            for start in range(0, len(data), MiB):
                f.write(data[start:start + MiB])
        took = time.monotonic() - began
        wait_for("its last shares", lambda: uploads_open(helper) in (0, UPLOADS))
        return took

    return statistics.median(one() for _ in range(5))


def test_a_thousand_idle_uploads(grid: LocalGrid, helper: NodeProcess, tmp_path: Path) -> None:
    o = FAULT_GRID
    directory = client_directory(tmp_path / "client", helper_furl(helper), k=o.k, happy=o.happy, n=o.n)
    tubs: list[Tub] = [new_tub() for _ in range(CONNECTIONS)]
    file = new_file(FAULT_GRID, EACH)
    at_start = memory(helper, "VmRSS")
    alone = seconds_for_one(directory, helper)

    async def begin(link: HelperLink, upload_id: bytes) -> None:
        await link.open(upload_id, file.parameters.to_wire())
        for start in range(0, EACH, MiB // 2):
            await link.put_ciphertext(upload_id, start, file.ciphertext[start:start + MiB // 2])

    idle = Idle([reactor_loop.run(lambda tub=tub: connect(tub, helper_furl(helper)), 60) for tub in tubs],
                [os.urandom(32) for _ in range(UPLOADS)])
    began = time.monotonic()
    idle.each(begin)
    took = time.monotonic() - began
    wait_for("their first segments on the servers", lambda: sum(
        share.bytes_on_disk >= MiB // o.k for share in grid.staged_shares()) == o.staging_nodes * UPLOADS, 600)
    assert len(spool_of(helper)) == uploads_open(helper) == UPLOADS
    burst = memory(helper, "VmHWM")
    time.sleep(2 * INTERVAL)  # idle they are, and free memory is given back
    resting = memory(helper, "VmRSS")
    Path(f"/proc/{helper.pid}/clear_refs").write_text("5")  # the peak is now what is
    beside = seconds_for_one(directory, helper)
    peak = memory(helper, "VmHWM")
    print(f"\n{UPLOADS} uploads of {EACH} bytes over {CONNECTIONS} connections begun in {took:.0f} s; helper's memory "
          f"{at_start:.0f} MiB at its start, {burst:.0f} MiB at most meanwhile, {resting:.0f} MiB with all of them "
          f"idle, {peak:.0f} MiB at most with one active; one of {ACTIVE} bytes alone {alone:.2f} s, beside them "
          f"{beside:.2f} s ({100 * (beside / alone - 1):+.0f} %)")
    idle.each(lambda link, upload_id: link.abort(upload_id))
    wait_for("nothing to be left", lambda: not spool_of(helper) and not grid.staged_shares())
    for tub in tubs:
        stop_tub(tub)
    assert peak < MEMORY_MAX
