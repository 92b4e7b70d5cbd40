"""The real faults of a system under a real helper and real storage nodes, by strace, a small tmpfs and a proxy: a disk
that fails, is full, takes less than it was given, or is slow; and a network that cuts, stalls and slows.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import reactor_loop
from fault_tools import FAULT_GRID, CallByCall, MiB, inject, injected, need_strace, runs_under_strace
from grid_tools import (
    by_stock,
    client_directory,
    download,
    end_of,
    feed,
    further_helper,
    helper_furl,
    put_in_progress,
    spool_of,
    storage_index,
    uploads_open,
    wait_for,
)
from single_calls import Caller, File, new_file, new_tub, refusal_of, stop_tub
from slow_link import SlowLink, location, through

from client_shim.blocking import UploadFile
from client_shim.local_grid import LocalGrid
from client_shim.local_node import NodeProcess

K, HAPPY, N = FAULT_GRID.k, FAULT_GRID.happy, FAULT_GRID.n
NO_SPACE = "disk: ENOSPC (No space left on device)"
LOGGED_NO_SPACE = "waits for the spool's disk, ENOSPC (No space left on device)"


@pytest.fixture
def helper(grid: LocalGrid, tmp_path: Path) -> Iterator[NodeProcess]:
    """A new one for each test."""
    with further_helper(grid, f"helper-of-{tmp_path.name}") as helper:
        yield helper


def file_of(size: int) -> File:
    return new_file(FAULT_GRID, size)


def spool_directory(helper: NodeProcess) -> Path:
    return helper.directory / "helper" / "streaming" / "spool"


@contextmanager
def begun(helper: NodeProcess, size: int = 3 * MiB) -> Iterator[tuple[Caller, Path]]:
    """An upload whose first MiB is durable, and its file in the spool."""
    before = set(spool_of(helper))
    with Caller(helper_furl(helper), file_of(size)) as upload:
        upload.open()
        assert upload.put(0, MiB) == MiB
        (name,) = set(spool_of(helper)) - before
        yield upload, spool_directory(helper) / name


def complete(grid: LocalGrid, upload: Caller, start: int) -> None:
    """Send the rest; a stock client reads the whole."""
    upload.put(start, len(upload.file.plaintext))
    upload.file.check(upload.file.cap_from(upload.finish()), grid.client)


# -- the helper's disk ---------------------------------------------------------------------------------------


def test_sync_that_fails_ends_one_upload(grid: LocalGrid, helper: NodeProcess) -> None:
    need_strace()
    with begun(helper) as (victim, path), begun(helper) as (other, _path):
        with injected(helper, "fdatasync", "error=EIO", path):
            refusal = refusal_of(lambda: victim.put(MiB, 2 * MiB))
            assert other.put(MiB, 2 * MiB) == 2 * MiB
        assert refusal.code == "spool-failed"
        assert dict(refusal.values) == {"reason": "EIO (Input/output error)"}
        assert victim.status().text("reason") == "spool-failed", "the disk is well again; the upload is not"
        complete(grid, other, 2 * MiB)
        with begun(helper) as (third, _path):
            complete(grid, third, MiB)
    wait_for("an empty spool", lambda: not spool_of(helper))


def test_disk_without_space_is_a_pause(grid: LocalGrid, helper: NodeProcess) -> None:
    need_strace()
    with begun(helper) as (victim, path), begun(helper) as (other, _path):
        with injected(helper, "pwritev", "error=ENOSPC", path):
            pending = victim.begin_put(MiB, 2 * MiB)
            wait_for("a pause", lambda: victim.status().text("waits-for") == NO_SPACE)
            complete(grid, other, MiB)
            assert victim.status().number("paused") == 1
            assert victim.status().number("durable") == MiB
            assert not pending.outcome
        assert pending.answer.number("durable") == 2 * MiB
        assert victim.status().text("waits-for") == ""
        complete(grid, victim, 2 * MiB)
    assert LOGGED_NO_SPACE in helper.log_path.read_text()


def test_disk_that_says_it_wrote_and_did_not(grid: LocalGrid, helper: NodeProcess) -> None:
    """The bytes that were acknowledged are gone, and no cap is made of what is there instead."""
    need_strace()
    with begun(helper) as (upload, path):
        with injected(helper, "pwritev", "retval=300", path):
            assert upload.put(MiB, 2 * MiB) == 2 * MiB

        def send_the_rest() -> None:
            upload.put(2 * MiB, 3 * MiB)
            upload.finish()

        assert refusal_of(send_the_rest).code in ("hash-mismatch", "spool-failed")
    with begun(helper) as (other, _path):
        complete(grid, other, MiB)


def test_disk_that_takes_twenty_milliseconds(grid: LocalGrid, tmp_path: Path) -> None:
    need_strace()
    data = os.urandom(16 * MiB)
    delay = inject("/^f(data)?sync$", "delay_exit=20000")
    with further_helper(grid, "slow-disk-helper", start=False) as helper, runs_under_strace(helper, delay):
        helper.start()
        helper.wait_ready()
        grid.wait_connected(helper)
        before = time.monotonic()
        with UploadFile(client_directory(tmp_path / "client", helper_furl(helper), k=K, happy=HAPPY, n=N)) as f:
            for start in range(0, len(data), MiB):
                f.write(data[start:start + MiB])
        seconds = time.monotonic() - before
        helper.stop()
    print(f"\n16 MiB through a helper whose syncs take 20 ms: {len(data) / seconds / 1e6:.1f} MB/s")
    assert download(grid.client, f.cap) == data


# -- file systems that are full ------------------------------------------------------------------------------


def mount(directory: Path, size: str) -> None:
    """A tmpfs of its own; the test is skipped where none may be mounted."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tahoe-stream-test", directory],
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")


def remount(directory: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", directory], check=True)


@contextmanager
def mounted(directory: Path, size: str) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    mount(directory, size)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def believes_in_space() -> list[str]:
    """A statfs that says that a TiB is free, whatever is; as quotas and thin volumes make it say."""
    numbers = (0x01021994, 4096, 1 << 28, 1 << 28, 1 << 28)  # f_type, f_bsize, f_blocks, f_bfree, f_bavail
    head = "".join(number.to_bytes(8, sys.byteorder).hex() for number in numbers)
    return inject("statfs", f"poke_exit=@arg2={head}")


@pytest.mark.parametrize("known", [True, False], ids=["known", "not known to be full"])
def test_full_disk_in_mid_upload(grid: LocalGrid, known: bool) -> None:
    """The writer pauses, the operator sees why, and when there is space the upload goes on."""
    if not known:
        need_strace()
    file = file_of(9 * MiB)
    settings = "[helper]\nfree-disk = 0\n"
    with ExitStack() as stack:
        helper = stack.enter_context(further_helper(grid, f"full-helper-{known}", settings=settings, start=False))
        stack.enter_context(mounted(spool_directory(helper), "4m"))
        if not known:
            stack.enter_context(runs_under_strace(helper, believes_in_space()))
        helper.start()
        helper.wait_ready()
        grid.wait_connected(helper)
        tub = new_tub()
        upload = CallByCall(tub, helper_furl(helper), file, random.Random(0))
        reactor_loop.now(upload.begin)
        with Caller(helper_furl(helper), file) as operator:
            operator.upload_id = upload.upload_id
            wait_for("a pause", lambda: upload.acknowledged > 2 * MiB and operator.status().number("paused"))
            wait_for("the reason", lambda: operator.status().text("waits-for") == ("room" if known else NO_SPACE))
            durable = operator.status().number("durable")
            assert durable <= 4 * MiB
            assert not upload.over
            remount(spool_directory(helper), "64m")
            wait_for("a cap", lambda: upload.over)
        assert ("waits for room in the spool" if known else LOGGED_NO_SPACE) in helper.log_path.read_text()
        file.check(upload.cap, grid.client)
        stop_tub(tub)
        helper.stop()


def test_full_disk_of_the_records(grid: LocalGrid) -> None:
    """The decision to publish cannot be recorded: it waits, the operator sees why, and it goes on by itself."""
    file, other = file_of(2 * MiB), file_of(MiB)
    with ExitStack() as stack:
        helper = stack.enter_context(
            further_helper(grid, "full-ledger-helper", settings="[helper]\nfree-disk = 0\n", start=False))
        directory = spool_directory(helper).parent
        stack.enter_context(mounted(directory, "8m"))
        helper.start()
        helper.wait_ready()
        grid.wait_connected(helper)
        upload = stack.enter_context(Caller(helper_furl(helper), file))
        late = stack.enter_context(Caller(helper_furl(helper), other))
        upload.open()
        upload.put(0, len(file.ciphertext))
        filler = directory / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as full:
            while full.write(bytes(4096)):
                pass
        pending = upload.begin_finish()
        wait_for("the reason", lambda: upload.status().text("waits-for") == "disk: ledger: SQLITE_FULL")
        assert upload.status().text("state") == "ready"
        assert dict(refusal_of(late.open).values) == {"reason": "ledger: SQLITE_FULL"}
        assert not pending.outcome
        filler.unlink()
        file.check(file.cap_from(pending.answer), grid.client)
        late.open()
        complete(grid, late, 0)
        assert "nothing can be recorded now, ledger: SQLITE_FULL" in helper.log_path.read_text()
        helper.stop()


def test_storage_node_whose_disk_is_full(grid: LocalGrid) -> None:
    data = os.urandom(10 * MiB)
    victim = grid.storage[1]
    with restarted_after(grid, victim):
        victim.stop()
        with mounted(victim.directory / "storage", "4m"):
            victim.start()
            victim.wait_ready()
            grid.wait_connected(grid.helper)
            cap = stream(grid, data)
            homes = all_shares(grid, cap)
            assert set(homes.values()) == set(range(len(grid.storage))) - {1}, "the share has another home"
            assert download(grid.client, cap) == data
            victim.stop()


def test_storage_node_whose_disk_fails(grid: LocalGrid) -> None:
    need_strace()
    data = os.urandom(12 * MiB)
    victim = grid.storage[2]
    with restarted_after(grid, victim):
        with injected(victim, "fdatasync", "error=EIO"):
            cap = stream(grid, data)
            homes = all_shares(grid, cap)
            assert set(homes.values()) == set(range(len(grid.storage))) - {2}
        assert download(grid.client, cap) == data
        victim.kill()


@contextmanager
def restarted_after(grid: LocalGrid, node: NodeProcess) -> Iterator[None]:
    try:
        yield
    finally:
        if node.running:
            node.stop()
        node.start()
        node.wait_ready()
        grid.wait_connected(grid.helper)
        grid.wait_connected(grid.client)


def stream(grid: LocalGrid, data: bytes) -> str:
    with UploadFile(grid.client.directory) as f:
        for start in range(0, len(data), MiB):
            f.write(data[start:start + MiB])
    assert by_stock(f.cap, data).cap.decode() == f.cap
    return f.cap


def all_shares(grid: LocalGrid, cap: str) -> dict[int, int]:
    """Which server each share is on, once all are in their places (`finish` is answered before)."""
    def found() -> dict[int, int]:
        return {share.number: share.server for share in grid.shares(storage_index(cap))}

    wait_for("every share", lambda: len(found()) == N)
    return found()


# -- the network between client and helper -------------------------------------------------------------------


def test_network_that_cuts_stalls_and_slows(grid: LocalGrid, tmp_path: Path) -> None:
    part = MiB
    data = os.urandom(6 * part)
    furl, before = grid.helper_furl, uploads_open(grid.helper)
    with SlowLink(*location(furl), rate=5_000_000, delay=0.002) as link:
        directory = client_directory(tmp_path / "client", through(furl, link), k=K, happy=HAPPY, n=N)
        with put_in_progress(directory, "--json", "-") as process:
            for number, fault in enumerate((link.drop, link.stall, link.slow, link.drop, link.stall)):
                feed(process, data[number * part:(number + 1) * part])
                wait_for("a connection to be cut", lambda: uploads_open(grid.helper) > before)
                fault()
                if fault == link.stall:
                    # Nothing is lost, and nobody is told: it just takes long.
                    wait_for("bytes that do not get through", link.waiting)
                    link.go_on()
            transcript = end_of(process, data[5 * part:])
    assert by_stock(transcript.cap, data).cap.decode() == transcript.cap
    assert download(grid.client, transcript.cap) == data
    durable = [event["bytes_durable"] for event in transcript.events if "bytes_durable" in event]
    assert durable == sorted(durable)
    assert [event["event"] for event in transcript.events if event["event"] in ("paused", "resumed")] == [
        "paused", "resumed"] * 2
