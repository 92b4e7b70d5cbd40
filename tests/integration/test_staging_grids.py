"""Files streamed to grids of staging servers, and of both kinds of server, are ordinary Tahoe files: stock clients
read, verify, lease and repair them. Grids of stock servers only: test_streaming.py."""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import quote

import attrs
import pytest
from allmydata.storage.immutable import ShareFile as Container
from allmydata.util import base32, hashutil
from grid_tools import (
    OPTIONS,
    SEGMENT,
    MiB,
    SharedGrid,
    assert_healthy,
    assert_stored,
    by_stock,
    check,
    client_directory,
    download,
    payload,
    put,
    repair,
    request,
    running_grid,
    shared_grid,
    spool_of,
    starts_with_and_zeros_after,
    storage_index,
    wait_for,
)
from recording_helper import recording_helper
from staging_tools import MIXED, MIXED_HIGH_HAPPY, STAGING, statistic

from client_shim.blocking import UploadFile
from client_shim.local_config import GridOptions
from client_shim.local_grid import ShareFile

DAY = 86400


@attrs.frozen
class Place:
    """A grid, and a directory whose uploads go there with the encoding of `options`."""

    shared: SharedGrid
    options: GridOptions
    client: Path

    @property
    def servers(self) -> int:
        return len(self.shared.grid.storage)

    def wait_stored(self, cap: str) -> list[ShareFile]:
        """`finish` is answered before the last shares are in their place."""
        index = storage_index(cap)
        wait_for("every share", lambda: len(self.shared.grid.shares(index)) == self.options.n)
        wait_for("an empty spool", lambda: not spool_of(self.shared.grid.helper))
        assert not self.shared.grid.staged_shares()
        return sorted(self.shared.grid.shares(index), key=lambda share: share.number)


@pytest.fixture(scope="module")
def places(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Place]:
    """By name; the grids are started when they are needed."""
    stock = shared_grid(pytestconfig, tmp_path_factory)
    staging = running_grid(pytestconfig, tmp_path_factory, "staging-grid", STAGING)
    mixed = running_grid(pytestconfig, tmp_path_factory, "mixed-grid", MIXED)
    happier = client_directory(tmp_path_factory.mktemp("clients") / "happier", mixed.grid.helper_furl,
                               k=MIXED.k, happy=MIXED_HIGH_HAPPY, n=MIXED.n)
    return {"stock": Place(stock, OPTIONS, stock.grid.client.directory),
            "staging": Place(staging, STAGING, staging.grid.client.directory),
            "mixed": Place(mixed, MIXED, mixed.grid.client.directory),
            "mixed, too few stage": Place(mixed, attrs.evolve(MIXED, happy=MIXED_HIGH_HAPPY), happier)}


def stream(place: Place, data: bytes, declared: bool) -> str:
    with UploadFile(place.client, len(data) if declared else None) as f:
        for start in range(0, len(data), 777_777):
            f.write(data[start:start + 777_777])
    return f.cap


def assert_is_stocks(place: Place, cap: str, data: bytes, exact: bool) -> None:
    """Cap and shares are those of stock's encoder; shares on staging servers have exactly their bytes, others if
    the size was declared (`exact`)."""
    stock = by_stock(cap, data)
    assert stock.cap.decode() == cap
    shares = place.wait_stored(cap)
    assert [share.number for share in shares] == list(range(place.options.n))
    assert {share.server for share in shares} == set(range(place.servers))
    for share in shares:
        if exact or share.server < place.options.staging_nodes:
            assert payload(share) == stock.shares[share.number]
        else:
            assert starts_with_and_zeros_after(share, stock.shares[share.number])


CASES = [("staging", 56), ("staging", MiB), ("staging", SEGMENT), ("staging", SEGMENT + 1),
         ("staging", 3 * SEGMENT + 12_345), ("mixed", MiB), ("mixed", 2 * SEGMENT + 1),
         ("mixed, too few stage", MiB), ("mixed, too few stage", 2 * SEGMENT + 1)]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "unknown"])
@pytest.mark.parametrize(("where", "size"), CASES)
def test_stock_clients_read_and_verify(places: dict[str, Place], where: str, size: int, declared: bool) -> None:
    place, data = places[where], os.urandom(size)
    cap = stream(place, data, declared)
    assert_is_stocks(place, cap, data, declared)
    assert_stored(place.shared, cap, data, place.options.n, place.servers)


@pytest.mark.long
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "unknown"])
@pytest.mark.parametrize("where", ["staging", "mixed", "mixed, too few stage"])
def test_long_file(places: dict[str, Place], where: str, declared: bool) -> None:
    place, data = places[where], os.urandom(200 * MiB + 1)
    cap = stream(place, data, declared)
    assert by_stock(cap, data).cap.decode() == cap
    place.wait_stored(cap)
    assert_stored(place.shared, cap, data, place.options.n, place.servers)


@pytest.mark.parametrize("where", ["staging", "mixed"])
def test_stock_repair_of_a_lost_share(places: dict[str, Place], where: str) -> None:
    place, data = places[where], os.urandom(2 * SEGMENT + 777)
    cap = stream(place, data, False)
    lost, *others = place.wait_stored(cap)
    lost.path.unlink()
    client = place.shared.plain_client
    assert check(client, cap)["count-shares-good"] == place.options.n - 1
    told = repair(client, cap)
    assert told["repair-successful"]
    assert_healthy(told["post-repair-results"]["results"], place.options.n, place.servers)
    # What repair made is right: read it, with no more others than needed.
    for share in others[:place.options.n - place.options.k]:
        share.path.unlink()
    for reader in place.shared.readers:
        assert download(reader, cap) == data


# -- leases ------------------------------------------------------------------------------------------------


def stock_secrets(place: Place, index: bytes, server: int) -> tuple[bytes, bytes]:
    """Renewal and cancel secret as a stock uploader in the helper's node makes them (allmydata.immutable.upload)."""
    secret = base32.a2b((place.shared.grid.helper.directory / "private" / "secret").read_bytes().strip())
    seed = base32.a2b((place.shared.grid.storage[server].directory / "my_nodeid").read_bytes().strip())
    renew = hashutil.file_renewal_secret_hash(hashutil.my_renewal_secret_hash(secret), index)
    cancel = hashutil.file_cancel_secret_hash(hashutil.my_cancel_secret_hash(secret), index)
    return hashutil.bucket_renewal_secret_hash(renew, seed), hashutil.bucket_cancel_secret_hash(cancel, seed)


@pytest.mark.parametrize("where", ["staging", "mixed"])
def test_leases_are_those_of_a_stock_upload(places: dict[str, Place], where: str) -> None:
    place = places[where]
    cap = stream(place, os.urandom(100_000), False)
    index = base32.a2b(storage_index(cap).encode())
    for share in place.wait_stored(cap):
        (lease,) = Container(str(share.path)).get_leases()
        renew, cancel = stock_secrets(place, index, share.server)
        assert lease.is_renew_secret(renew)
        assert lease.is_cancel_secret(cancel)
        assert abs(lease.get_expiration_time() - (time.time() + 31 * DAY)) < 600
    request(place.shared.grid.client, "POST",
            f"/uri/{quote(cap, safe='')}?t=check&add-lease=true&output=JSON")
    for share in place.wait_stored(cap):
        leases = list(Container(str(share.path)).get_leases())
        assert len(leases) == 2, "a stock client has added its own"
        renew, _cancel = stock_secrets(place, index, share.server)
        assert [lease.is_renew_secret(renew) for lease in leases] == [True, False]


# -- when the helper is told the storage index -------------------------------------------------------------


@pytest.mark.parametrize("reveal", ["early", "at-completion", "auto"])
@pytest.mark.parametrize("where", ["staging", "stock", "mixed", "mixed, too few stage"])
def test_reveal_storage_index(places: dict[str, Place], tmp_path: Path, where: str, reveal: str) -> None:
    place, data = places[where], os.urandom(2 * SEGMENT + 99)
    o = place.options
    with recording_helper(place.shared.grid.helper_furl) as recorder:
        directory = client_directory(tmp_path / "client", recorder.furl, k=o.k, happy=o.happy, n=o.n)
        cap = put(directory, "--reveal-storage-index", reveal, "-", stdin=data).cap
    (upload,) = recorder.uploads
    told_early = reveal == "early" or (reveal == "auto" and where in ("stock", "mixed, too few stage"))
    assert upload.calls.count("assign") == told_early
    assert upload.calls.count("order") == (not told_early)
    assert upload.calls[-1] == "finish"
    assert upload.storage_indexes == {by_stock(cap, data).storage_index}
    assert_is_stocks(place, cap, data, exact=where == "stock" and reveal == "at-completion")
    assert download(place.shared.plain_client, cap) == data


def test_staging_servers_met_nothing_unexpected(places: dict[str, Place]) -> None:
    """In all tests of this module, which is why it is the last."""
    for where in ("staging", "mixed"):
        grid = places[where].shared.grid
        for node in (grid.helper, *grid.storage):
            assert "Traceback" not in node.log_path.read_text()
        for node in grid.storage[:grid.options.staging_nodes]:
            assert statistic(node, "streaming_staging.staged_now") == 0
            assert statistic(node, "streaming_staging.write_failed") == 0
