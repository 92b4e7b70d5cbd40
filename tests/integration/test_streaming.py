"""Files that were streamed are ordinary Tahoe files: stock clients read, verify and repair them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from grid_tools import (
    BLOCKS_OFFSET,
    CONTAINER_HEADER,
    DEAD_FURL,
    MAX_SEGMENT,
    SEGMENT,
    SERVERS,
    TAHOE,
    K,
    MiB,
    N,
    SharedGrid,
    assert_healthy,
    assert_stored,
    by_stock,
    check,
    client_directory,
    convergence_secret,
    download,
    end_of,
    feed,
    give_convergence_secret,
    payload,
    put,
    put_in_progress,
    repair,
    starts_with_and_zeros_after,
    storage_index,
    upload_as_stock,
    wait_for,
)
from oracle import cap_for

from client_shim.blocking import UploadFile
from client_shim.local_grid import ShareFile

BLOCK = SEGMENT // K
#: From the smallest file that has shares to several segments with an odd end.
SIZES = [56, 100_000, MiB - 1, SEGMENT, SEGMENT + 1, 5 * MiB + 12_345]


def stream_file(shared: SharedGrid, directory: Path, data: bytes) -> str:
    (directory / "file").write_bytes(data)
    return put(shared.grid.client.directory, directory / "file").cap


def stream_pipe(shared: SharedGrid, _directory: Path, data: bytes) -> str:
    return put(shared.grid.client.directory, "-", stdin=data).cap


def write_in_pieces(shared: SharedGrid, data: bytes, size: int | None) -> str:
    with UploadFile(shared.grid.client.directory, size) as f:
        for start in range(0, len(data), 77_777):
            f.write(data[start:start + 77_777])
    return f.cap


def assert_shares_are_stocks(shared: SharedGrid, cap: str, data: bytes, *, exact: bool) -> None:
    """On the disks of the servers is what stock's encoder makes, and its cap is ours."""
    stock = by_stock(cap, data)
    assert stock.cap.decode() == cap
    shares = shared.grid.shares(storage_index(cap))
    assert sorted(share.number for share in shares) == list(range(N))
    assert {share.server for share in shares} == set(range(SERVERS))
    for share in shares:
        if exact:
            assert payload(share) == stock.shares[share.number]
        else:
            assert starts_with_and_zeros_after(share, stock.shares[share.number])


@pytest.mark.parametrize("size", SIZES)
def test_file_of_declared_size(shared: SharedGrid, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    cap = stream_file(shared, tmp_path, data)
    assert_stored(shared, cap, data)
    assert_shares_are_stocks(shared, cap, data, exact=True)


@pytest.mark.parametrize("size", SIZES)
def test_pipe_of_unknown_size(shared: SharedGrid, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    cap = stream_pipe(shared, tmp_path, data)
    assert_stored(shared, cap, data)
    assert_shares_are_stocks(shared, cap, data, exact=False)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("size", [56, 100_000, 3 * SEGMENT])
def test_program_with_the_blocking_file(shared: SharedGrid, size: int, declared: bool) -> None:
    data = os.urandom(size)
    cap = write_in_pieces(shared, data, size if declared else None)
    assert_stored(shared, cap, data)
    assert_shares_are_stocks(shared, cap, data, exact=declared)


@pytest.mark.parametrize(("k", "n", "size"), [
    (1, 1, 2 * MiB + 3), (2, 3, 2 * MiB + 3), (3, 10, 2 * MiB + 3), (71, 255, 300_000)])
def test_other_encodings(shared: SharedGrid, tmp_path: Path, k: int, n: int, size: int) -> None:
    servers = min(n, SERVERS)
    directory = client_directory(tmp_path / "client", shared.grid.helper_furl, k=k, happy=servers, n=n)
    data = os.urandom(size)
    cap = put(directory, "-", stdin=data).cap
    stock = by_stock(cap, data)
    assert stock.cap.decode() == cap
    # `finish` is answered 50 ms after the last share closed, if there are enough.
    shares = wait_for("every share", lambda: at_least(n, shared.grid.shares(storage_index(cap))))
    for share in shares:
        assert starts_with_and_zeros_after(share, stock.shares[share.number])
    for reader in shared.readers:
        assert download(reader, cap) == data
    assert_healthy(check(shared.plain_client, cap), shares=n, servers=servers)


def at_least(count: int, shares: list[ShareFile]) -> list[ShareFile] | None:
    return shares if len(shares) >= count else None


def test_the_same_file_twice_has_two_caps(shared: SharedGrid) -> None:
    data = os.urandom(1000)
    one, other = (put(shared.grid.client.directory, "--dedup=off", "-", stdin=data) for _ in range(2))
    assert one.cap != other.cap


def test_ranges_of_a_download(shared: SharedGrid, tmp_path: Path) -> None:
    data = os.urandom(3 * SEGMENT + 999)
    cap = stream_pipe(shared, tmp_path, data)
    ends = [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, len(data) - 1, len(data)]
    for reader in shared.readers:
        for start, end in pairwise(ends):
            assert download(reader, cap, start, end) == data[start:end]
        assert download(reader, cap, 12_345, 2 * SEGMENT + 54_321) == data[12_345:2 * SEGMENT + 54_321]


# -- --convergent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [56, 100_000, 2 * SEGMENT, 3 * MiB + 7])
def test_convergent_cap_is_that_of_tahoe_put(shared: SharedGrid, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    plain = shared.plain_client
    directory = client_directory(tmp_path / "client", shared.grid.helper_furl)
    secret = convergence_secret(plain)
    give_convergence_secret(directory, secret)

    cap = put(directory, "--convergent", tmp_path / "file").cap
    assert cap == cap_for(data, K, N, MAX_SEGMENT, secret).decode()
    assert_stored(shared, cap, data)
    assert_shares_are_stocks(shared, cap, data, exact=True)

    # A stock client without a helper, which finds the shares there.
    tahoe_put = subprocess.run([*TAHOE, "-d", plain.directory, "put", tmp_path / "file"], capture_output=True,
                               check=True, timeout=60)
    assert cap == tahoe_put.stdout.decode().strip()


def test_convergent_file_that_a_stock_client_uploaded_before(shared: SharedGrid, tmp_path: Path) -> None:
    data = os.urandom(2 * MiB + 3)
    (tmp_path / "file").write_bytes(data)
    directory = client_directory(tmp_path / "client", shared.grid.helper_furl)
    give_convergence_secret(directory, convergence_secret(shared.plain_client))
    theirs = upload_as_stock(shared.plain_client, data)
    assert put(directory, "--convergent", tmp_path / "file").cap == theirs
    assert_stored(shared, theirs, data)


# -- small files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 55])
def test_literal_needs_no_helper(shared: SharedGrid, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    directory = client_directory(tmp_path / "client", DEAD_FURL)
    give_convergence_secret(directory, convergence_secret(shared.plain_client))
    caps = {put(directory, "-", stdin=data).cap, put(directory, tmp_path / "file").cap,
            put(directory, "--convergent", tmp_path / "file").cap}
    with UploadFile(directory) as f:
        f.write(data)
    (cap,) = {*caps, f.cap}
    assert cap.startswith("URI:LIT:")
    assert cap == upload_as_stock(shared.plain_client, data)
    assert download(shared.plain_client, cap) == data


def test_one_byte_more_needs_the_helper(tmp_path: Path) -> None:
    directory = client_directory(tmp_path / "client", DEAD_FURL)
    put(directory, "--json", "-", stdin=bytes(56)).failed_with("helper-unreachable")


# -- repair ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [stream_file, stream_pipe])
def test_stock_repair_of_a_lost_share(shared: SharedGrid, tmp_path: Path,
                                      stream: Callable[[SharedGrid, Path, bytes], str]) -> None:
    data = os.urandom(2 * SEGMENT + 777)
    cap = stream(shared, tmp_path, data)
    lost, *others = sorted(shared.grid.shares(storage_index(cap)), key=lambda share: share.number)
    lost.path.unlink()
    results = check(shared.plain_client, cap)
    assert not results["healthy"]
    assert results["count-shares-good"] == N - 1

    told = repair(shared.plain_client, cap)
    assert told["repair-attempted"]
    assert told["repair-successful"]
    assert_healthy(told["post-repair-results"]["results"])
    assert_stored(shared, cap, data)

    # What repair made is right: read it, with no more others than needed.
    for share in others[:N - K]:
        share.path.unlink()
    for reader in shared.readers:
        assert download(reader, cap) == data


# -- blocks are on the servers' disks while the stream is open ---------------------------------------------

HALF = 4 * MiB
FULL_SEGMENTS = HALF // SEGMENT


def half_on_disk(shared: SharedGrid, known: set[Path]) -> dict[int, bytes]:
    """Waits until every server holds the blocks of every full segment of the first half: what is on the disks."""

    def look() -> dict[int, bytes] | None:
        held = {}
        for share in shared.grid.incoming_shares():
            if share.path not in known and (blocks := read_blocks(share)) is not None:
                held[share.number] = blocks
        return held if len(held) == N else None

    return wait_for("the first half on all servers", look)


def read_blocks(share: ShareFile) -> bytes | None:
    with share.path.open("rb", buffering=0) as f:
        start, length = CONTAINER_HEADER + BLOCKS_OFFSET, FULL_SEGMENTS * BLOCK
        for end in range(BLOCK, length + 1, BLOCK):
            if not any(os.pread(f.fileno(), 64, start + end - 64)):
                return None
        # Only now: a write that we came upon would be seen in part.
        return os.pread(f.fileno(), length, start)


def assert_was_on_disk(held: dict[int, bytes], cap: str, data: bytes) -> None:
    stock = by_stock(cap, data)
    for number, blocks in held.items():
        assert blocks == stock.shares[number][BLOCKS_OFFSET:BLOCKS_OFFSET + len(blocks)]


@pytest.mark.parametrize("declared", [True, False])
def test_blocks_are_on_disk_at_half_way(shared: SharedGrid, declared: bool) -> None:
    data = os.urandom(2 * HALF)
    known = {share.path for share in shared.grid.incoming_shares()}
    finished = {share.path for share in shared.grid.shares()}
    with UploadFile(shared.grid.client.directory, len(data) if declared else None) as f:
        f.write(data[:HALF])
        held = half_on_disk(shared, known)
        assert {share.path for share in shared.grid.shares()} == finished, "nothing can be read yet"
        f.write(data[HALF:])
    assert_was_on_disk(held, f.cap, data)
    assert_stored(shared, f.cap, data)


def test_blocks_are_on_disk_while_the_pipe_is_open(shared: SharedGrid) -> None:
    data = os.urandom(2 * HALF)
    known = {share.path for share in shared.grid.incoming_shares()}
    with put_in_progress(shared.grid.client.directory, "-") as process:
        feed(process, data[:HALF])
        held = half_on_disk(shared, known)
        cap = end_of(process, data[HALF:]).cap
    assert_was_on_disk(held, cap, data)
    assert_stored(shared, cap, data)


def test_helper_met_nothing_unexpected(shared: SharedGrid) -> None:
    """In all tests so far; this module is the last."""
    log = shared.grid.helper.log_path.read_text()
    assert "Traceback" not in log
    assert "Unhandled" not in log
