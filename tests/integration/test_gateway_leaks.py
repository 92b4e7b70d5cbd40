"""A body that streams through the gateway is on no disk and fills no memory; nothing secret is in its log.

Threat S12: a web server that stores bodies in temporary files.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from gateway_tools import (
    curl,
    curl_command,
    curl_result,
    gateway_running,
    in_directory,
    new_directory,
)
from grid_tools import (
    PATIENCE,
    SERVERS,
    MiB,
    SharedGrid,
    download,
    request,
    shared_grid,
    uploads_open,
    wait_for,
    wait_for_incoming,
)
from test_no_leaks import MARKER, NEEDLES, holding, open_files_holding, plaintext, secrets_of, spellings

from client_shim.local_node import NodeProcess

#: MiB by which the gateway may grow, whatever the size of the body.
GROWTH_MAX = 64


@pytest.fixture(scope="module")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    return shared_grid(pytestconfig, tmp_path_factory)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("read-only")
    directory.chmod(0o500)
    return directory


@pytest.fixture(scope="module")
def gateway(shared: SharedGrid, temporary: Path) -> Iterator[NodeProcess]:
    with gateway_running(shared.grid.client.directory, temporary) as gateway:
        yield gateway


def memory(node: NodeProcess, which: str) -> float:
    """MiB; VmRSS now, VmHWM at most so far."""
    status = Path(f"/proc/{node.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(which)).split()[1]) / 1024


@pytest.mark.timeout(900)
def test_a_long_body_is_nowhere(shared: SharedGrid, gateway: NodeProcess, temporary: Path,
                                pytestconfig: pytest.Config) -> None:
    mib = 1024 if pytestconfig.getoption("--long") else 256
    assert curl(gateway, "uri", "-T", "-", stdin=plaintext(5 * MiB)).status == 200  # everything is loaded
    before, opened = memory(gateway, "VmRSS"), uploads_open(shared.grid.helper)
    Path(f"/proc/{gateway.pid}/clear_refs").write_text("5")  # VmHWM begins anew
    process = subprocess.Popen(curl_command(gateway, "uri", "-T", "-"), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    piece = MARKER * (MiB // len(MARKER))
    half = threading.Event()
    go_on = threading.Event()

    def feed() -> None:
        assert process.stdin is not None
        for number in range(mib):
            if number == mib // 2:
                half.set()
                go_on.wait(PATIENCE)
            process.stdin.write(piece)
        process.stdin.flush()

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    assert half.wait(600)
    # While it is under way: also what has been unlinked, or never had a name.
    assert uploads_open(shared.grid.helper) == opened + 1
    assert open_files_holding(NEEDLES, gateway.pid, shared.grid.helper.pid, shared.grid.client.pid) == []
    assert holding(NEEDLES, temporary, gateway.directory, shared.grid.client.directory,
                   shared.grid.helper.directory) == []
    go_on.set()
    feeder.join(600)
    assert not feeder.is_alive()
    out, err = process.communicate(timeout=PATIENCE)
    cap = curl_result(subprocess.CompletedProcess([], process.returncode, out, err)).body.decode()
    growth = memory(gateway, "VmHWM") - before
    print(f"\n{mib} MiB chunked: the gateway had {before:.0f} MiB, and grew by {growth:.0f} MiB at most")
    assert growth < GROWTH_MAX
    assert holding(NEEDLES, temporary, shared.grid.basedir) == []
    for start in (0, mib // 2 * MiB, mib * MiB - 1000):
        assert download(shared.plain_client, cap, start, start + 1000) == (MARKER * 64)[start % len(MARKER):][:1000]


def test_nothing_secret_is_logged(shared: SharedGrid, gateway: NodeProcess, tmp_path: Path) -> None:
    directory = new_directory(shared.grid.client)
    secrets: list[bytes | str] = [directory, directory.split(":")[2], quote(directory, safe=""), "a-secret-name"]
    data = plaintext(MiB)
    (tmp_path / "file").write_bytes(data)
    path = in_directory(directory, "a-secret-name")
    caps = [curl(gateway, "uri", "-T", "-", stdin=data).body.decode(),
            curl(gateway, path, "-T", "-", stdin=data).body.decode(),
            curl(gateway, path, "-T", "-", stdin=data).body.decode(),
            curl(gateway, "uri", "-F", f"file=@{tmp_path / 'file'}").headers["tahoe-cap"]]
    for cap in caps:
        secrets += secrets_of(cap)
        assert request(gateway, "GET", f"/uri/{quote(cap, safe='')}") == data
    refused = [curl(gateway, f"{path}?replace=false", "-T", "-", stdin=data).status,
               curl(gateway, path, "-T", "-", "-H", "Origin: https://evil.example", stdin=data).status,
               curl(gateway, f"{path}/below", "-T", "-", stdin=data).status,
               curl(gateway, f"uri/{quote(directory, safe='')}?t=nonsense").status]
    assert refused == [409, 403, 409, 400]
    opened = uploads_open(shared.grid.helper)
    process = subprocess.Popen(curl_command(gateway, path, "-T", "-"), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(plaintext(2 * MiB))
    process.stdin.flush()
    wait_for_incoming(shared.grid, SERVERS)
    process.kill()
    process.communicate()
    wait_for("the end of the upload", lambda: uploads_open(shared.grid.helper) <= opened)

    def log() -> bytes:
        return gateway.log_path.read_bytes()

    assert wait_for("the line of the request that was cut", lambda: b"PUT put-child gone" in log())
    assert b"PUT put-uri 200 received 1048576 sent " in log()
    assert b"PUT put-child 201 " in log()
    for secret in secrets:
        for spelling in spellings(secret):
            assert spelling not in log(), secret
    assert b"evil.example" not in log()
