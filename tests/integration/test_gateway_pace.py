"""How soon the answer comes after the last byte, also on a slow link; how little that depends on others."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gateway_tools import curl, curl_command, curl_result, gateway_running
from grid_tools import PATIENCE, MiB, SharedGrid, assert_stored, client_directory, download, shared_grid
from slow_link import SlowLink, location, through

from client_shim.blocking import UploadFile
from client_shim.local_node import NodeProcess

#: Bytes a second, and seconds one way.
RATE, DELAY = 100_000, 0.05
#: Bytes between curl's standard input and the grid: a second's worth in the client's window, 128 KiB in curl and the
#: pipe before it, and what the kernels hold: 70 to 100 KB, and 3 MB without receive_window.py. That is three seconds;
#: more if this machine's kernel remembers of other loopback connections that they lost or reordered segments
#: (`ip tcp_metrics`), and gives the sender a larger buffer from the start.
WAITING_MAX = 340_000


@pytest.fixture(scope="module")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    return shared_grid(pytestconfig, tmp_path_factory)


@pytest.fixture(scope="module")
def gateway(shared: SharedGrid) -> Iterator[NodeProcess]:
    with gateway_running(shared.grid.client.directory) as gateway:
        yield gateway


def client_through(shared: SharedGrid, path: Path, link: SlowLink) -> Path:
    client = client_directory(path, through(shared.grid.helper_furl, link))
    (client / "private").mkdir()
    return client


@pytest.mark.timeout(600)
@pytest.mark.long
@pytest.mark.parametrize("mib", [2, 20])
def test_a_slow_link_to_the_helper(shared: SharedGrid, tmp_path: Path, mib: int) -> None:
    """What waits between curl's standard input and the helper is little, whatever the kernel would buffer."""
    data = os.urandom(mib * MiB)
    with SlowLink(*location(shared.grid.helper_furl), rate=RATE, delay=DELAY) as link:
        with gateway_running(client_through(shared, tmp_path / "client", link)) as gateway:
            process = subprocess.Popen(curl_command(gateway, "uri", "-T", "-"), stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert process.stdin is not None
            for start in range(0, len(data), 16 * 1024):
                process.stdin.write(data[start:start + 16 * 1024])
                process.stdin.flush()
            last_written = time.monotonic()
            out, err = process.communicate(timeout=PATIENCE)
            seconds = time.monotonic() - last_written
        print(f"\n{mib} MiB at {RATE} B/s: last byte into curl's standard input to cap {seconds:.2f} s")
    cap = curl_result(subprocess.CompletedProcess([], process.returncode, out, err)).body.decode()
    assert_stored(shared, cap, data)
    assert seconds <= WAITING_MAX / RATE


def at_a_pace(data: bytes) -> Iterator[bytes]:
    """Pieces as a program makes them, 4 MB a second; a file of many megabytes as fast as it can be read."""
    began = time.monotonic()
    for start in range(0, len(data), 64 * 1024):
        yield data[start:start + 64 * 1024]
        if len(data) < 100 * MiB:
            time.sleep(max(0.0, began + start / 4_000_000 - time.monotonic()))


def upload_by_gateway(gateway: NodeProcess, data: bytes) -> tuple[float, bytes]:
    """Seconds from the last byte to the answer; the cap."""
    parts = urlsplit(gateway.web_url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE) as connection:
        connection.sendall(b"PUT /uri HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
                           b"Connection: close\r\n\r\n")
        for piece in at_a_pace(data):
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        last_written = time.monotonic()
        connection.sendall(b"0\r\n\r\n")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        seconds = time.monotonic() - last_written
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return seconds, body


def upload_by_program(client: Path, data: bytes) -> float:
    """Seconds from the last byte to the cap."""
    f = UploadFile(client)
    for piece in at_a_pace(data):
        f.write(piece)
    last_written = time.monotonic()
    f.close()
    return time.monotonic() - last_written


@pytest.mark.long
@pytest.mark.parametrize("mib", [1, 4, 512])
def test_last_byte_to_answer(shared: SharedGrid, gateway: NodeProcess, mib: int) -> None:
    data = os.urandom(mib * MiB)
    by_program, by_gateway = [], []
    for _ in range(5):
        by_program.append(upload_by_program(shared.grid.client.directory, data))
        seconds, cap = upload_by_gateway(gateway, data)
        by_gateway.append(seconds)
    assert download(shared.plain_client, cap.decode()) == data
    print(f"\n{mib} MiB: last byte to cap {statistics.median(by_program):.3f} s by the program's interface, "
          f"{statistics.median(by_gateway):.3f} s by the gateway")
    assert statistics.median(by_gateway) <= statistics.median(by_program) + 0.1


@pytest.mark.long
def test_slow_clients_do_not_slow_others(gateway: NodeProcess) -> None:
    """Threat S11: hundreds of heads and bodies of which a byte comes now and then."""
    data = os.urandom(8 * MiB)

    def seconds() -> float:
        began = time.monotonic()
        assert curl(gateway, "uri", "-T", "-", stdin=data).status == 200
        return time.monotonic() - began

    parts = urlsplit(gateway.web_url)
    alone = min(seconds() for _ in range(3))
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((parts.hostname or "", parts.port or 0)))
                for _ in range(400)]
        for index, each in enumerate(slow):
            each.sendall(b"GET /uri HTTP/1.1\r\nX: " if index % 2 else
                         b"PUT /uri?t=x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")

        def seconds_beside_them() -> float:
            for each in slow:
                each.send(b"x")
            return seconds()

        beside = min(seconds_beside_them() for _ in range(3))
    print(f"\n8 MiB in {alone:.2f} s, beside {len(slow)} slow clients in {beside:.2f} s")
    assert beside <= alone / 0.8 + 0.1
