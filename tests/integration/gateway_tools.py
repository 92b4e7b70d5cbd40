"""Gateways beside the client nodes of a grid, and what tests ask of them."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

import attrs
import reactor_loop
from grid_tools import PATIENCE, TAHOE, TAHOE_STREAM, answer_of
from single_calls import new_tub, stop_tub

from client_shim.errors import HelperRefused
from client_shim.helper_edge import connect
from client_shim.local_node import NodeProcess
from client_shim.node_config import read_node_config


def gateway_of(client: Path, *arguments: str) -> NodeProcess:
    """A gateway that is not started; its node directory is CLIENT/streaming."""
    directory = client / "streaming"
    directory.mkdir(exist_ok=True)
    command = (*TAHOE_STREAM, "gateway", "run", "-d", str(client), "--listen", "tcp:0:interface=127.0.0.1", *arguments)
    return NodeProcess("gateway", directory, command)


@contextmanager
def gateway_running(client: Path, temporary: Path | None = None) -> Iterator[NodeProcess]:
    """A gateway that listens; `temporary` is its TMPDIR. What its handles have in progress in the end is aborted at the
    helper, where it would stay for a week."""
    gateway = gateway_of(client)
    if temporary is not None:
        gateway.command = ("env", f"TMPDIR={temporary}", *gateway.command)
    try:
        gateway.start()
        gateway.wait_ready()
        yield gateway
    finally:
        gateway.stop()
        abort_handles(client)


def abort_handles(client: Path) -> None:
    """Abort at the helper what the journal of a gateway that does not run has."""
    journal = client / "streaming" / "journal.sqlite"
    upload_ids: list[bytes] = []
    if journal.exists():
        with closing(sqlite3.connect(journal)) as db:
            upload_ids = [row[0] for row in db.execute("SELECT upload_id FROM handles WHERE upload_id IS NOT NULL")]
    if not upload_ids:
        return
    tub = new_tub()
    link = reactor_loop.run(lambda: connect(tub, read_node_config(client).helper_furl), PATIENCE)
    for upload_id in upload_ids:
        with suppress(HelperRefused):  # it has a cap, or the helper never heard of it
            reactor_loop.run(lambda upload_id=upload_id: link.abort(upload_id), PATIENCE)
    stop_tub(tub)


@attrs.frozen
class HttpAnswer:
    """What curl got."""

    status: int
    body: bytes
    sent_continue: bool
    headers: Mapping[str, str]


def curl(gateway: NodeProcess, path: str, *arguments: str, stdin: bytes | None = None,
         timeout: float = PATIENCE) -> HttpAnswer:
    """Run curl on `path` (no leading slash)."""
    return curl_result(subprocess.run(curl_command(gateway, path, *arguments), input=stdin, capture_output=True,
                                      timeout=timeout, check=False))


def curl_command(gateway: NodeProcess, path: str, *arguments: str) -> list[str]:
    """How curl is called: its output is the body, then a line with the status."""
    return ["curl", "--silent", "--show-error", "--noproxy", "*", "--include", *arguments, gateway.web_url + path]


def curl_result(done: subprocess.CompletedProcess[bytes]) -> HttpAnswer:
    """What curl printed."""
    assert done.returncode == 0, (done.returncode, done.stderr)
    rest, informed = done.stdout, False
    while True:
        head, _, rest = rest.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        if status >= 200:
            break
        informed = informed or status == 100
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return HttpAnswer(status, rest, informed, headers)


def tahoe(directory: Path, *arguments: str | Path, stdin: bytes = b"") -> bytes:
    """Standard output of a stock `tahoe -d directory ...`, which must succeed."""
    done = subprocess.run([*TAHOE, "-d", str(directory), *map(str, arguments)], input=stdin, capture_output=True,
                          timeout=PATIENCE, check=False)
    assert done.returncode == 0, done
    return done.stdout


def new_directory(node: NodeProcess) -> str:
    """The write cap of a new, empty directory."""
    status, cap = answer_of(node, "PUT", "/uri?t=mkdir")
    assert status == 200
    return cap.decode()


def in_directory(cap: str, *names: str) -> str:
    """The path of a name in a directory (no leading slash)."""
    return "/".join(["uri", quote(cap, safe=""), *(quote(name, safe="") for name in names)])


def children(node: NodeProcess, cap: str) -> dict[str, str]:
    """Names in a directory, and their read caps."""
    status, text = answer_of(node, "GET", f"/{in_directory(cap)}?t=json")
    assert status == 200, text
    return {name: child[1].get("ro_uri", "") for name, child in json.loads(text)[1]["children"].items()}


@contextmanager
def raw_connection(gateway: NodeProcess) -> Iterator[socket.socket]:
    """A socket to a gateway."""
    parts = urlsplit(gateway.web_url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE) as connection:
        yield connection
