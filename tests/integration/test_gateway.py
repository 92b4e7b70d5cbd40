"""The gateway on a real grid: curl, the stock tahoe command, everything else passed on."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import pytest
from gateway_tools import (
    children,
    curl,
    curl_command,
    curl_result,
    gateway_of,
    gateway_running,
    in_directory,
    new_directory,
    raw_connection,
    tahoe,
)
from grid_tools import (
    PATIENCE,
    SERVERS,
    MiB,
    N,
    SharedGrid,
    answer_of,
    assert_stored,
    client_directory,
    download,
    further_helper,
    helper_furl,
    request,
    share_paths,
    shared_grid,
    uploads_open,
    wait_for,
    wait_for_incoming,
    wait_until_clean,
)

from client_shim.gateway.grid_content import SANDBOX
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


def test_a_file_that_is_stored_already_is_found(shared: SharedGrid, gateway: NodeProcess) -> None:
    data = os.urandom(300_000)
    first, again = (curl(gateway, "uri", "-T", "-", stdin=data) for _ in range(2))
    assert first.headers["tahoe-dedup"] == "published"
    shares = share_paths(shared.grid)
    assert (again.headers["tahoe-dedup"], again.body) == ("streamed-before", first.body)
    other = curl(gateway, "uri?dedup=off", "-T", "-", stdin=data)
    assert other.headers["tahoe-dedup"] == "published"
    assert other.body != first.body
    assert len(share_paths(shared.grid)) == len(shares) + N


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


# -- what is passed on ---------------------------------------------------------------------------------------


def as_told(node: NodeProcess, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[Any, ...]:
    """Status, body, and the fields that a client sees of an answer."""
    parts = urlsplit(node.web_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()
                  if name.lower() not in ("date", "x-content-type-options", "connection", "transfer-encoding")}
        return response.status, fields, response.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def things(shared: SharedGrid, gateway: NodeProcess) -> dict[str, str]:
    """Caps, by what they are of; and of a directory with all of them."""
    client = shared.grid.client
    caps = {"file": request(client, "PUT", "/uri", os.urandom(300_000)).decode(),
            "small": request(client, "PUT", "/uri", b"small").decode(),
            "mutable": request(client, "PUT", "/uri?format=SDMF", b"old").decode(),
            "sub": new_directory(client)}
    directory = new_directory(client)
    for name, cap in caps.items():
        request(client, "PUT", f"/{in_directory(directory, name)}?t=uri", cap.encode())
    return {**caps, "directory": directory}


READS = [
    ("GET", "/?t=json", {}), ("GET", "/tahoe.css", {}), ("HEAD", "/uri/{file}", {}), ("GET", "/uri/{file}", {}),
    ("GET", "/uri/{file}", {"Range": "bytes=1000-199999"}), ("GET", "/uri/{file}", {"Range": "bytes=-5"}),
    ("GET", "/file/{file}/@@named=/holiday.jpg", {}), ("GET", "/uri/{directory}/?t=json", {}),
    ("GET", "/uri/{directory}/file?t=json", {}), ("GET", "/uri/{directory}/nowhere", {}),
    ("GET", "/uri/{directory}", {}), ("GET", "/uri/{mutable}", {}), ("GET", "/uri/{small}", {}),
    ("GET", "/uri?uri={file}", {}), ("GET", "/uri/nonsense", {}), ("GET", "/nowhere", {}), ("PUT", "/nowhere", {}),
    ("GET", "/uri/{file}?t=nonsense", {}), ("OPTIONS", "/uri", {}), ("DELETE", "/uri/{directory}/nowhere", {}),
    ("GET", "/statistics?t=json&no=such", {"Accept": "text/plain"}), ("GET", "/uri/{directory}/file", {}),
    ("GET", "/uri/{directory}/file?filename=a.html", {}), ("GET", "/uri/{directory}/", {}),
    ("GET", "/uri/{file}?t=info", {}), ("GET", "/", {}), ("GET", "//uri/{file}", {}),
]
#: Of these, what a browser is to keep in a sandbox: what has the bytes of a file. A style sheet does not mind.
FILES = {"/tahoe.css", "/uri/{file}", "/file/{file}/@@named=/holiday.jpg", "/uri/{mutable}", "/uri/{small}",
         "/uri/{directory}/file", "/uri/{directory}/file?filename=a.html", "//uri/{file}"}
#: Of these, pages that have what changes from one request to the next.
CHANGING = {"/", "/uri/{file}?t=info"}


@pytest.mark.parametrize(("method", "path", "headers"), READS)
def test_answers_are_the_nodes(shared: SharedGrid, gateway: NodeProcess, things: dict[str, str], method: str,
                               path: str, headers: dict[str, str]) -> None:
    is_file, changes = path in FILES, path in CHANGING
    path = path.format(**{name: quote(cap, safe="") for name, cap in things.items()})
    client = shared.grid.client
    at_node, at_gateway = (as_told(node, method, path, None, headers) for node in (client, gateway))
    for told, node in ((at_node, client), (at_gateway, gateway)):
        if "location" in told[1]:  # it must lead to where the request was sent
            told[1]["location"] = urljoin(node.web_url, told[1]["location"]).replace(node.web_url, "/")
    assert at_gateway[1].pop("content-security-policy", None) == (SANDBOX if is_file else None)
    assert at_gateway[:2] == at_node[:2] or "t=json" in path or changes
    assert at_gateway[0] == at_node[0]
    if "statistics" not in path and not changes and path != "/?t=json" and "location" not in at_node[1]:
        assert at_gateway[2] == at_node[2]


#: PUTs that make no immutable file, or none at all.
PUTS = [
    "/uri?t=mkdir", "/uri?t=nonsense", "/uri?t=upload", "/uri?format=SDMF", "/uri?mutable=true", "/uri?format=nonsense",
    "/uri?mutable=nonsense", "/uri/{directory}", "/uri/{directory}/", "/uri/{directory}/sub", "/uri/{directory}//a",
    "/uri/{directory}/file/below", "/uri/{directory}/small/a/b", "/uri/{directory}/file?replace=nonsense",
    "/uri/{directory}/a?t=nonsense", "/uri/{directory}/file?offset=5", "/uri/{file}", "/uri/{mutable}",
    "/uri/nonsense/a",
    "/uri/{directory}/mutable", "/uri/{directory}/file?replace=false", "/uri/{directory}/mutable?replace=false",
    "/uri/{directory}/sub?replace=false", "/uri/{directory}/m?format=MDMF",
]


@pytest.mark.parametrize("path", PUTS)
def test_puts_that_do_not_stream_end_as_the_nodes_do(shared: SharedGrid, gateway: NodeProcess, things: dict[str, str],
                                                      path: str) -> None:
    path = path.format(**{name: quote(cap, safe="") for name, cap in things.items()})
    body = os.urandom(2000)
    at_gateway = as_told(gateway, "PUT", path, body, {})
    at_node = as_told(shared.grid.client, "PUT", path, body, {})
    if at_gateway[0] == 201:  # the second time it is there already
        assert at_node[0] == 200
    else:
        assert at_gateway[0] == at_node[0], (at_gateway, at_node)
        if at_node[0] >= 400:
            assert at_gateway[2].strip() == at_node[2].strip() or at_node[0] == 500
    if at_gateway[0] < 300 and "mutable" in path and "?" not in path:
        assert answer_of(shared.plain_client, "GET", path) == (200, body)


def test_mutable_files(shared: SharedGrid, gateway: NodeProcess) -> None:
    answer = curl(gateway, "uri?format=MDMF", "-T", "-", stdin=b"first")
    assert answer.body.startswith(b"URI:MDMF:")
    path = f"uri/{quote(answer.body.decode(), safe='')}"
    assert curl(gateway, path, "-T", "-", stdin=b"second").status == 200
    assert curl(gateway, path).body == b"second"


# -- forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 1000, MiB])
@pytest.mark.parametrize("file_format", ["chk", None, "sdmf"])
def test_the_form_of_the_welcome_page(shared: SharedGrid, gateway: NodeProcess, tmp_path: Path, size: int,
                                      file_format: str | None) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    fields = ["-F", f"file=@{tmp_path / 'file'}", "-F", "t=upload"]
    if file_format is not None:
        fields += ["-F", f"format={file_format}"]
    answer = curl(gateway, "uri", *fields)
    if file_format == "sdmf" and size == MiB:  # the file had to be streamed before its format was known
        assert answer.status == 400
        answer = curl(gateway, "uri?format=sdmf", *fields)
    assert answer.status == 200
    kind = "SSK" if file_format == "sdmf" else "CHK" if size > 55 else "LIT"
    cap = re.search(rf"URI:{kind}:[a-z0-9:]+", answer.body.decode())
    assert cap is not None
    assert download(shared.plain_client, cap.group()) == data


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["uri", "directory"])
def test_a_client_that_is_killed_leaves_nothing(shared: SharedGrid, gateway: NodeProcess, target: str) -> None:
    directory = new_directory(shared.grid.client)
    before = share_paths(shared.grid)
    path = "uri" if target == "uri" else in_directory(directory, "file")
    process = subprocess.Popen(curl_command(gateway, path, "-T", "-"), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(os.urandom(3 * MiB))
    process.stdin.flush()
    wait_for_incoming(shared.grid, SERVERS)  # streamed, though the end is not in sight
    process.kill()
    out, _err = process.communicate()
    assert b"URI:" not in out
    wait_until_clean(shared.grid, shared.grid.helper, before)
    assert children(shared.grid.client, directory) == {}


def test_a_gateway_that_is_stopped_gives_up_uploads_and_says_so(shared: SharedGrid, tmp_path: Path) -> None:
    before = share_paths(shared.grid)
    client = client_directory(tmp_path / "client", shared.grid.helper_furl)
    (client / "private").mkdir()
    with gateway_running(client) as gateway:
        process = subprocess.Popen(curl_command(gateway, "uri", "-T", "-"), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(os.urandom(3 * MiB))
        process.stdin.flush()
        wait_for_incoming(shared.grid, SERVERS)
        gateway.signal(signal.SIGTERM)
        out, _err = process.communicate(timeout=PATIENCE)
        assert b"URI:" not in out
        assert process.returncode != 0
        wait_for("the end of the gateway", lambda: not gateway.running)
        assert gateway.exit_status == 0
        assert not (gateway.directory / "node.url").exists()
    wait_until_clean(shared.grid, shared.grid.helper, before)


def test_a_second_gateway_refuses_and_says_why(shared: SharedGrid, gateway: NodeProcess) -> None:
    second = subprocess.run(gateway_of(shared.grid.client.directory).command, capture_output=True, timeout=PATIENCE,
                            check=False)
    assert second.returncode == 1
    assert second.stderr.decode() == (f"tahoe-stream: gateway-running: another gateway runs on "
                                      f"{shared.grid.client.directory}; one client node has one gateway\n")
    assert curl(gateway, "?t=json").status == 200


@pytest.mark.parametrize(("arguments", "code"), [
    (["--listen", "tcp:nonsense"], "cannot-listen"), (["--listen", "nonsense"], "cannot-listen"),
    (["--listen", "tcp:0:interface=192.0.2.1"], "cannot-listen")])
def test_places_where_one_cannot_listen(shared: SharedGrid, tmp_path: Path, arguments: list[str], code: str) -> None:
    client = client_directory(tmp_path / "client", shared.grid.helper_furl)
    (client / "private").mkdir()
    done = subprocess.run([*gateway_of(client).command, *arguments], capture_output=True, timeout=PATIENCE,
                          check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"tahoe-stream: {code}: ")


def test_a_client_node_without_a_helper(tmp_path: Path) -> None:
    client = client_directory(tmp_path / "client", "")
    done = subprocess.run(gateway_of(client).command, capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, b"no-helper-configured" in done.stderr) == (1, True)


def test_a_helper_that_is_away(shared: SharedGrid, tmp_path: Path) -> None:
    """New uploads are refused after a while; one in progress goes on when it is back."""
    with further_helper(shared.grid, "helper-that-goes") as helper:
        client = client_directory(tmp_path / "client", helper_furl(helper))
        (client / "private").mkdir()
        (client / "streaming.cfg").write_text("[gateway]\nhelper-wait = 2 seconds\n")
        with gateway_running(client) as gateway:
            data = os.urandom(2 * MiB)
            process = subprocess.Popen(curl_command(gateway, "uri", "-T", "-"), stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert process.stdin is not None
            process.stdin.write(data[:MiB])
            process.stdin.flush()
            wait_for("the upload", lambda: uploads_open(helper))
            helper.kill()
            answer = curl(gateway, "uri", "-T", "-", "-D", "-", stdin=data)
            assert (answer.status, answer.sent_continue) == (503, False)
            assert int(answer.headers["retry-after"]) > 0
            assert b"helper-unreachable" not in answer.body
            assert b"no connection to the helper" in answer.body
            helper.start()
            helper.wait_ready()
            shared.grid.wait_connected(helper)
            out, err = process.communicate(data[MiB:], timeout=PATIENCE)
            cap = curl_result(subprocess.CompletedProcess([], process.returncode, out, err)).body.decode()
            assert download(shared.plain_client, cap) == data


def test_malformed_requests_on_a_real_socket(gateway: NodeProcess) -> None:
    """Threat S17: the answer arrives although there are unread bytes, and then the connection ends."""
    for head in (b"PUT /uri HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                 b"PUT /uri HTTP/1.1\r\nHost: localhost\r\nContent-Length: +3\r\n\r\n",
                 b"GET /uri HTTP/1.1\nHost: localhost\n\n",
                 b"GET /" + b"a" * 200_000,
                 b"PUT /uri HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 300000\r\n\r\n"):
        with raw_connection(gateway) as connection:
            connection.sendall(head + bytes(300_000))
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        assert re.match(rb"HTTP/1\.1 4[0-9][0-9] ", answer), answer
        assert b"Connection: close" in answer
        assert answer.count(b"HTTP/1.1") == 1


def test_other_sites_may_not_write(shared: SharedGrid, gateway: NodeProcess, things: dict[str, str]) -> None:
    """Threats S15 and S16, also for what is passed on."""
    path = f"uri/{quote(things['directory'], safe='')}"
    for fields in (["-H", "Origin: https://evil.example"], ["-H", "Sec-Fetch-Site: cross-site"],
                   ["-H", "Host: evil.example"]):
        for target, arguments in (("uri", ["-T", "-"]), (f"{path}?t=mkdir&name=x", ["-X", "POST"]),
                                  (f"{path}/file", ["-X", "DELETE"]), (f"{path}/new", ["-T", "-"])):
            answer = curl(gateway, target, *fields, *arguments, stdin=b"data of a page")
            assert answer.status == 403
            assert "access-control-allow-origin" not in answer.headers
    assert children(shared.grid.client, things["directory"]).keys() >= {"file", "sub"}
    assert "x" not in children(shared.grid.client, things["directory"])
