"""The gateway on a real grid: curl, the stock tahoe command, everything else passed on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_tools import children, curl, gateway_running, in_directory, new_directory, tahoe
from grid_tools import MiB, SharedGrid, answer_of, assert_stored, download, shared_grid

from client_shim.local_node import NodeProcess


@pytest.fixture(scope="module")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    return shared_grid(pytestconfig, tmp_path_factory)


@pytest.fixture(scope="module")
def gateway(shared: SharedGrid) -> Iterator[NodeProcess]:
    with gateway_running(shared.grid.client.directory) as gateway:
        yield gateway


@pytest.mark.parametrize("size", [0, 1, 55, 56, 100_000, 3 * MiB + 17])
def test_curl_puts_a_file(shared: SharedGrid, gateway: NodeProcess, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    answer = curl(gateway, "uri", "-T", str(tmp_path / "file"))
    assert answer.status == answer_of(shared.grid.client, "PUT", "/uri", data)[0]
    assert answer.headers["content-type"].startswith("text/")
    assert answer.headers["referrer-policy"] == "no-referrer"
    if size > 55:
        assert_stored(shared, answer.body.decode(), data)
    else:
        assert answer.body.startswith(b"URI:LIT:")
        assert download(shared.plain_client, answer.body.decode()) == data


@pytest.mark.parametrize("size", [0, 55, 56, 2 * MiB + 3])
def test_curl_puts_a_pipe(shared: SharedGrid, gateway: NodeProcess, size: int) -> None:
    data = os.urandom(size)
    answer = curl(gateway, "uri", "-T", "-", stdin=data)
    assert (answer.status, answer.sent_continue) == (200, True)
    assert download(shared.plain_client, answer.body.decode()) == data


def test_stock_commands_use_the_gateway(shared: SharedGrid, gateway: NodeProcess, tmp_path: Path) -> None:
    data = os.urandom(MiB + 1)
    (tmp_path / "file").write_bytes(data)
    cap = tahoe(gateway.directory, "put", tmp_path / "file").decode().strip()
    assert_stored(shared, cap, data)
    assert tahoe(gateway.directory, "get", cap) == data
    tahoe(gateway.directory, "create-alias", "mine")
    tahoe(gateway.directory, "put", tmp_path / "file", "mine:sub/file")
    assert tahoe(gateway.directory, "ls", "mine:sub") == b"file\n"
    assert tahoe(shared.grid.client.directory, "get", "mine:sub/file") == data


def test_put_into_a_directory(shared: SharedGrid, gateway: NodeProcess) -> None:
    directory = new_directory(shared.grid.client)
    path = in_directory(directory, "new", "ä b%2F", "file")
    first, second = os.urandom(100_000), os.urandom(100_000)
    answer = curl(gateway, path, "-T", "-", stdin=first)
    assert answer.status == 201
    assert download(shared.plain_client, answer.body.decode()) == first
    answer = curl(gateway, path, "-T", "-", stdin=second)
    assert answer.status == 200
    assert answer_of(shared.plain_client, "GET", f"/{path}") == (200, second)
    assert children(shared.plain_client, directory).keys() == {"new"}
