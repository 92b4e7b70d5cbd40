"""A file that is stored already is found by an upload handle, whose gateway was killed meanwhile: on a real grid."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from gateway_tools import curl, gateway_of
from grid_tools import (
    MAX_SEGMENT,
    SEGMENT,
    K,
    N,
    SharedGrid,
    assert_stored,
    client_directory,
    convergence_secret,
    give_convergence_secret,
    share_paths,
    shared_grid,
    spool_of,
    upload_as_stock,
    wait_for,
)
from oracle import cap_for

from client_shim.local_node import NodeProcess

TUS = ("-H", "Tus-Resumable: 1.0.0")
#: More than a segment, and less.
SIZES = [3 * SEGMENT + 4321, pytest.param(100_000, marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    return shared_grid(pytestconfig, tmp_path_factory)


@pytest.fixture
def directory(shared: SharedGrid, tmp_path: Path) -> Path:
    """A client with the convergence secret of a stock client, which reads for it."""
    directory = client_directory(tmp_path / "client", shared.grid.helper_furl)
    give_convergence_secret(directory, convergence_secret(shared.grid.client))
    shutil.copy(shared.grid.client.directory / "node.url", directory)
    return directory


def settled(shared: SharedGrid) -> set[Path]:
    """Every share, once uploads have left nothing but those."""
    wait_for("nothing to be under way", lambda: not (shared.grid.unfinished_shares() or spool_of(shared.grid.helper)))
    return share_paths(shared.grid)


def assert_no_plaintext(directory: Path, data: bytes) -> None:
    """Samples of it are nowhere in what the gateway has stored."""
    stored = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    half = len(data) // 2
    for start in (0, half - 200, half, len(data) - 100):
        assert not any(data[at:at + 8] in stored for at in range(start, start + 90))


def restarted(gateway: NodeProcess) -> None:
    gateway.kill()
    gateway.start()
    gateway.wait_ready()


@pytest.mark.parametrize("size", SIZES)
def test_tus(shared: SharedGrid, directory: Path, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    stocks = upload_as_stock(shared.grid.client, data)
    assert stocks == cap_for(data, K, N, MAX_SEGMENT, convergence_secret(shared.grid.client)).decode()
    before = settled(shared)
    half = size // 2
    (tmp_path / "half").write_bytes(data[:half])
    (tmp_path / "rest").write_bytes(data[half:])
    gateway = gateway_of(directory)
    restarted(gateway)
    try:
        answer = curl(gateway, "uploads/", "-X", "POST", *TUS, "-H", f"Upload-Length: {size}")
        path = answer.headers["location"].lstrip("/")
        patch = ("-X", "PATCH", *TUS, "-H", "Content-Type: application/offset+octet-stream")
        assert curl(gateway, path, *patch, "-H", "Upload-Offset: 0", "-T", str(tmp_path / "half")).status == 204
        restarted(gateway)
        assert_no_plaintext(directory, data)
        assert curl(gateway, path, "--head", *TUS).headers["upload-offset"] == str(half)
        answer = curl(gateway, path, *patch, "-H", f"Upload-Offset: {half}", "-T", str(tmp_path / "rest"))
        assert (answer.status, answer.headers["tahoe-cap"], answer.headers["tahoe-dedup"]) == (204, stocks, "existing")
        assert settled(shared) == before, "no new share on any server"
        restarted(gateway)
        fields = curl(gateway, path, "--head", *TUS).headers
        assert (fields["tahoe-cap"], fields["tahoe-dedup"]) == (stocks, "existing")
        assert_no_plaintext(directory, data)
    finally:
        gateway.kill()


@pytest.mark.parametrize("size", SIZES)
def test_draft_of_unknown_length(shared: SharedGrid, directory: Path, tmp_path: Path, size: int) -> None:
    """Found under the key of stock; with dedup=off it is not; and what was streamed is found by the next."""
    data = os.urandom(size)
    (tmp_path / "half").write_bytes(data[:size // 2])
    (tmp_path / "rest").write_bytes(data[size // 2:])
    gateway = gateway_of(directory)

    def upload(query: str = "") -> tuple[str, str]:
        """Cap and outcome."""
        answer = curl(gateway, f"uploads/{query}", "-H", "Upload-Complete: ?0", "--data-binary",
                      f"@{tmp_path / 'half'}")
        path, offset = answer.headers["location"].lstrip("/"), answer.headers["upload-offset"]
        restarted(gateway)
        answer = curl(gateway, path, "-X", "PATCH", "-H", "Content-Type: application/partial-upload",
                      "-H", "Upload-Complete: ?1", "-H", f"Upload-Offset: {offset}", "-T", str(tmp_path / "rest"))
        assert answer.status == 200
        assert curl(gateway, path, "--head").headers["tahoe-dedup"] == answer.headers["tahoe-dedup"]
        settled(shared)
        return answer.body.decode(), answer.headers["tahoe-dedup"]

    restarted(gateway)
    try:
        first, second = upload(), upload()
        assert (first[1], second) == ("published", (first[0], "streamed-before"))
        off = upload("?dedup=off")
        assert off[1] == "published"
        assert off[0] != first[0]
        stocks = upload_as_stock(shared.grid.client, data)
        assert upload() == (stocks, "existing")
        assert_stored(shared, first[0], data)
        assert_no_plaintext(directory, data)
    finally:
        gateway.kill()
