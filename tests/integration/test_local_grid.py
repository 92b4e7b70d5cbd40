"""LocalGrid itself, with stock nodes only."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid
from client_shim.local_node import NodeError, NodeProcess, http_get, poll_until
from client_shim.local_ports import PortReservations

SMALL = GridOptions(storage_nodes=3, k=1, happy=2, n=3, helper="stock")
TINY = GridOptions(storage_nodes=1, k=1, happy=1, n=1, helper=None)

#: Starts a one-server grid, suspends its storage node, says so, and waits to be killed.
GRID_IN_A_PROCESS = """
import sys
from pathlib import Path
from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid
grid = LocalGrid(Path(sys.argv[1]), GridOptions(storage_nodes=1, k=1, happy=1, n=1, helper=None))
grid.start()
grid.storage[0].suspend()
print(*(node.pid for node in grid.nodes), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGrid]:
    with LocalGrid(tmp_path_factory.mktemp("grid"), SMALL) as grid:
        yield grid


def request(node: NodeProcess, method: str, path: str, body: bytes | None = None) -> bytes:
    parts = urlsplit(node.web_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    assert response.status in (200, 201), content
    return content


def process_exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie whose parent is not us


def port_is_open(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname or "", parts.port or 0)) == 0


def tub_port(node: NodeProcess) -> int:
    lines = (node.directory / "tahoe.cfg").read_text().splitlines()
    location = next(line for line in lines if line.startswith("tub.location"))
    return int(location.rpartition(":")[2])


def test_file_goes_through_the_helper_and_comes_back(grid: LocalGrid) -> None:
    content = os.urandom(200_000)
    before = {share.path for share in grid.shares()}
    cap = request(grid.client, "PUT", "/uri", content).decode()
    assert request(grid.client, "GET", f"/uri/{cap}") == content

    new = [share for share in grid.shares() if share.path not in before]
    assert sorted(share.number for share in new) == [0, 1, 2]
    assert {share.server for share in new} == {0, 1, 2}
    assert all(share.holds_blocks() and share.bytes_on_disk >= len(content) for share in new)
    assert grid.incoming_shares() == []
    (storage_index,) = {share.storage_index for share in new}
    assert sorted(grid.shares(storage_index), key=repr) == sorted(new, key=repr)

    status = grid.helper.read_json("helper_status?t=json")
    assert status["chk_upload_helper.upload_requests"] == 1, "the client uploaded without the helper"


def test_further_client_without_helper(grid: LocalGrid) -> None:
    client = grid.add_client("foolscap-client", helper_furl="", force_foolscap=True)
    statuses = [server["connection_status"] for server in client.read_json("?t=json")["servers"]]
    assert all(status.startswith("Connected to") for status in statuses), "over HTTP it would be 'connected'"
    cap = request(client, "PUT", "/uri", b"x" * 1000).decode()
    assert request(grid.client, "GET", f"/uri/{cap}") == b"x" * 1000


def test_kill_and_restart_of_a_storage_node(grid: LocalGrid) -> None:
    node = grid.storage[1]
    old_pid, old_port = node.pid, tub_port(node)
    node.kill()
    assert not node.running
    assert not process_exists(old_pid)
    with pytest.raises(NodeError, match="storage-1 is not running"):
        _ = node.pid
    grid.wait_connected(grid.client, servers=2)

    node.start()
    node.wait_ready()
    assert node.pid != old_pid
    assert tub_port(node) == old_port
    grid.wait_connected(grid.client)


def test_suspended_node_does_not_answer_and_stops(grid: LocalGrid) -> None:
    node = grid.add_client("suspended")
    pid = node.pid
    node.suspend()
    with pytest.raises(TimeoutError):
        http_get(node.web_url, timeout=0.3)
    node.resume()
    assert "servers" in node.read_json("?t=json")
    node.suspend()
    node.stop()
    assert not process_exists(pid)


def test_nothing_is_left_after_stop(tmp_path: Path) -> None:
    grid = LocalGrid(tmp_path / "grid", TINY)
    with grid:
        pids = [node.pid for node in grid.nodes]
        urls = [node.web_url for node in grid.nodes]
        urls += [f"http://127.0.0.1:{tub_port(node)}/" for node in (grid.introducer, *grid.storage)]
        assert all(map(process_exists, pids))
        assert all(map(port_is_open, urls))
    assert not any(map(process_exists, pids))
    assert not any(map(port_is_open, urls))
    grid.stop()  # may be repeated
    with pytest.raises(NodeError, match="is not empty: a grid starts in a new directory"):
        grid.start()
    with pytest.raises(NodeError, match="this grid was built without a helper"):
        _ = grid.helper


def test_failed_start_cleans_up_and_shows_the_log(tmp_path: Path) -> None:
    options = GridOptions(storage_nodes=2, helper=None, storage_options_of={1: ["no_such_option = 1"]})
    grid = LocalGrid(tmp_path / "grid", options)
    pids: list[int] = []
    with pytest.raises(NodeError) as caught:
        grid.start(on_up=lambda node: pids.append(node.pid))
    text = str(caught.value)
    assert "node storage-1 ended with exit status" in text
    assert "no_such_option" in text.partition("run.log")[2], "the tail of the log is missing"
    assert pids
    assert not any(map(process_exists, pids))
    assert not any(node.running for node in grid.nodes)


def test_interrupted_start_cleans_up(tmp_path: Path) -> None:
    grid = LocalGrid(tmp_path / "grid", TINY)
    pids: list[int] = []

    def interrupt(node: NodeProcess) -> None:
        pids.append(node.pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grid.start(on_up=interrupt)
    assert pids == [pids[0]]
    assert not process_exists(pids[0])


def test_nodes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GRID_IN_A_PROCESS, str(tmp_path / "grid")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(process_exists, pids))
        parent.send_signal(signal.SIGKILL)
    # One of them is suspended; it ends too.
    poll_until(
        lambda: None if any(map(process_exists, pids)) else True,
        timeout=10,
        describe=lambda: f"still there: {[pid for pid in pids if process_exists(pid)]}",
    )


def test_missing_node_is_told_with_numbers(grid: LocalGrid) -> None:
    with pytest.raises(NodeError, match=r"node client is connected to 3 of 4 storage servers[\s\S]*waited 0.1 s"):
        grid.wait_connected(grid.client, servers=4, timeout=0.1)


def test_reserved_ports_are_kept_from_others_and_usable_by_nodes() -> None:
    mine, others = PortReservations(), PortReservations()
    try:
        port = mine.reserve()
        assert port not in [others.reserve() for _ in range(20)]
        with socket.socket() as outsider, pytest.raises(OSError, match="in use"):
            outsider.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)):  # sets SO_REUSEADDR, as Twisted does
            socket.create_connection(("127.0.0.1", port)).close()
    finally:
        mine.release()
        others.release()
