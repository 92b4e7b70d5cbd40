"""What is allocated on stock servers: exactly what is needed if the size was declared; else a bound that grows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from grid_tools import (
    CONTAINER_HEADER,
    LEASE,
    SERVERS,
    K,
    MiB,
    N,
    SharedGrid,
    assert_healthy,
    assert_stored,
    by_stock,
    check,
    client_directory,
    download,
    further_helper,
    helper_furl,
    leases_of,
    payload,
    put,
    starts_with_and_zeros_after,
    storage_index,
    wait_for,
)

from client_shim.blocking import UploadFile
from client_shim.local_grid import LocalGrid
from client_shim.local_node import NodeProcess
from helper.placement import AllocationPolicy

MAX_SEGMENT = 128 * 1024
#: The bounds are 1, 8, 64 MiB, and each is left when half of it has come.
BOUND = MiB
POLICY = AllocationPolicy(K, N, MAX_SEGMENT, BOUND)


@pytest.fixture(scope="module")
def helper(shared: SharedGrid) -> Iterator[NodeProcess]:
    with further_helper(shared.grid, "small-bounds-helper", settings="[helper]\nfirst-bound = 1 MiB\n") as helper:
        yield helper


@pytest.fixture
def client(helper: NodeProcess, tmp_path: Path) -> Path:
    return client_directory(tmp_path / "client", helper_furl(helper), max_segment=MAX_SEGMENT)


def file_size_for(received: int) -> int:
    """Of the file of a share that was allocated when so much had come."""
    return CONTAINER_HEADER + POLICY.bounded(received, None, 1).share_size + LEASE


def wait_for_sizes(grid: LocalGrid, expected: int) -> None:
    """Every server has a share of this size under way."""

    def all_have_it() -> bool:
        try:
            sizes = {share.server: share.path.stat().st_size for share in grid.incoming_shares()}
        except FileNotFoundError:  # aborted since it was listed
            return False
        return list(sizes.values()) == [expected] * SERVERS

    wait_for(f"shares of {expected} bytes on all servers", all_have_it)


@pytest.mark.parametrize("size", [
    56, BOUND // 2 - 1, BOUND // 2, BOUND - 1, BOUND, BOUND + 1, 4 * BOUND, 8 * BOUND + 1])
def test_pipe_that_ends_around_a_bound(shared: SharedGrid, client: Path, size: int) -> None:
    data = os.urandom(size)
    cap = put(client, "-", stdin=data).cap
    assert_stored(shared, cap, data)
    stock = by_stock(cap, data, MAX_SEGMENT)
    assert stock.cap.decode() == cap
    for share in shared.grid.shares(storage_index(cap)):
        assert starts_with_and_zeros_after(share, stock.shares[share.number])


def test_two_growths_in_one_upload(shared: SharedGrid, client: Path) -> None:
    data = os.urandom(6 * MiB + 4321)
    with UploadFile(client) as f:
        f.write(data[:300_000])
        wait_for_sizes(shared.grid, file_size_for(300_000))
        f.write(data[300_000:2 * MiB])
        wait_for_sizes(shared.grid, file_size_for(2 * MiB))
        f.write(data[2 * MiB:6 * MiB])
        wait_for_sizes(shared.grid, file_size_for(6 * MiB))
        f.write(data[6 * MiB:])
    assert len({file_size_for(received) for received in (300_000, 2 * MiB, 6 * MiB)}) == 3
    assert_stored(shared, f.cap, data)
    stock = by_stock(f.cap, data, MAX_SEGMENT)
    for share in shared.grid.shares(storage_index(f.cap)):
        assert share.path.stat().st_size == file_size_for(6 * MiB)
        assert share.bytes_on_disk < len(data), "it is sparse"
        assert starts_with_and_zeros_after(share, stock.shares[share.number])
        assert leases_of(share) == 1, "an aborted allocation leaves no lease"


def test_growth_at_full_speed(shared: SharedGrid, client: Path) -> None:
    data = os.urandom(20 * MiB)
    cap = put(client, "-", stdin=data).cap
    assert download(shared.plain_client, cap) == data
    assert_healthy(check(shared.plain_client, cap))


@pytest.mark.parametrize("size", [56, 100_000, MAX_SEGMENT, 5 * MiB + 1])
def test_declared_size_is_allocated_exactly(shared: SharedGrid, client: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(data := os.urandom(size))
    cap = put(client, tmp_path / "file").cap
    stock = by_stock(cap, data, MAX_SEGMENT)
    shares = shared.grid.shares(storage_index(cap))
    assert len(shares) == N
    for share in shares:
        assert leases_of(share) == 1
        assert share.path.stat().st_size == CONTAINER_HEADER + stock.allocated_size + LEASE
        assert payload(share) == stock.shares[share.number]
