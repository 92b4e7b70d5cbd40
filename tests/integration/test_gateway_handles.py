"""Upload handles of a real gateway on a real grid, and clients as they come from PyPI and npm; curl."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import resumable_upload
from gateway_tools import children, curl, gateway_of, gateway_running, new_directory
from grid_tools import (
    PATIENCE,
    MiB,
    SharedGrid,
    assert_stored,
    client_directory,
    download,
    shared_grid,
    spool_of,
    wait_for,
)
from recording_helper import RecordedUpload, recording_helper
from slow_link import SlowLink
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError, TusUploadFailed

from client_shim.local_node import NodeProcess

JAVASCRIPT = Path(__file__).parents[1] / "js"
TUS = {"Tus-Resumable": "1.0.0"}
SIZES = [0, 55, 56, 3 * MiB + 17]

needs_tus_js = pytest.mark.skipif(
    shutil.which("node") is None or not (JAVASCRIPT / "node_modules" / "tus-js-client").is_dir(),
    reason="tus-js-client is not installed: npm install in tests/js")


@pytest.fixture(scope="module")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    return shared_grid(pytestconfig, tmp_path_factory)


@pytest.fixture(scope="module")
def gateway(shared: SharedGrid) -> Iterator[NodeProcess]:
    with gateway_running(shared.grid.client.directory) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients look for proxies in the environment."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


def ask(url: str, method: str, headers: dict[str, str], body: Any = None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of an answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    try:
        connection.request(method, parts.path, body, headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def head(url: str) -> dict[str, str]:
    status, headers, _body = ask(url, "HEAD", TUS)
    assert status == 200
    return headers


def check_stored(shared: SharedGrid, url: str, data: bytes) -> str:
    """The upload at `url` is finished, and what its cap leads to is `data`."""
    fields = head(url)
    assert fields["upload-offset"] == fields["upload-length"] == str(len(data))
    cap = fields["tahoe-cap"]
    if len(data) > MiB:
        assert_stored(shared, cap, data)
    else:
        assert download(shared.plain_client, cap) == data
    return cap


# -- tuspy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_tuspy(shared: SharedGrid, gateway: NodeProcess, size: int) -> None:
    data = os.urandom(size)
    client = TusClient(gateway.web_url + "uploads/")
    metadata = {"filename": "file"} if size else None
    uploader = client.uploader(file_stream=io.BytesIO(data), chunk_size=MiB, metadata=metadata)
    uploader.upload()
    check_stored(shared, uploader.url, data)


def test_tuspy_with_checksums_resumes(shared: SharedGrid, gateway: NodeProcess) -> None:
    data = os.urandom(2 * MiB + 5)
    client = TusClient(gateway.web_url + "uploads/")
    first = client.uploader(file_stream=io.BytesIO(data), chunk_size=700_000, upload_checksum=True)
    first.upload_chunk()
    second = client.uploader(file_stream=io.BytesIO(data), chunk_size=700_000, url=first.url, upload_checksum=True)
    assert second.offset == 700_000
    second.upload()
    check_stored(shared, second.url, data)


def test_tuspy_is_told_of_a_bad_offset(gateway: NodeProcess) -> None:
    client = TusClient(gateway.web_url + "uploads/")
    uploader = client.uploader(file_stream=io.BytesIO(b"some bytes"), chunk_size=5)
    uploader.upload_chunk()
    uploader.offset = 3
    with pytest.raises(TusUploadFailed) as refusal:
        uploader.upload_chunk()
    assert refusal.value.status_code == 409
    assert ask(uploader.url, "DELETE", TUS)[0] == 204
    with pytest.raises(TusCommunicationError) as missing:
        client.uploader(file_stream=io.BytesIO(b"some bytes"), url=uploader.url)
    assert missing.value.status_code == 404


# -- resumable-upload --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("override", [False, True])
def test_resumable_upload(shared: SharedGrid, gateway: NodeProcess, tmp_path: Path, size: int, override: bool) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    client = resumable_upload.TusClient(gateway.web_url + "uploads", chunk_size=MiB, override_patch_method=override)
    check_stored(shared, client.upload_file(str(tmp_path / "file")), data)


def test_resumable_upload_resumes_and_links(shared: SharedGrid, gateway: NodeProcess, tmp_path: Path) -> None:
    data = os.urandom(2 * MiB + 5)
    (tmp_path / "file").write_bytes(data)
    directory = new_directory(shared.grid.client)
    client = resumable_upload.TusClient(gateway.web_url + "uploads", chunk_size=700_000, checksum="sha256")
    url = client.upload_file(str(tmp_path / "file"), metadata={"dircap": directory, "filename": "näme"},
                             stop_at=700_000)
    assert head(url)["upload-offset"] == "700000"
    client.resume_upload(str(tmp_path / "file"), url)
    assert children(shared.plain_client, directory) == {"näme": check_stored(shared, url, data)}
    client.delete_upload(url)
    assert ask(url, "HEAD", TUS)[0] == 404


# -- tus-js-client -----------------------------------------------------------------------------------------


class TusJs:
    """A process with tus-js-client, and what it has told."""

    def __init__(self, file: Path, endpoint: str | None, options: dict[str, Any], **further: Any) -> None:
        task = json.dumps({"endpoint": endpoint, "file": str(file), "options": options, **further})
        self._process = subprocess.Popen(["node", str(JAVASCRIPT / "tus_upload.cjs"), task], stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE)
        self.events: list[dict[str, Any]] = []

    def until(self, event: str) -> dict[str, Any]:
        """The next event of that name."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told: dict[str, Any] = json.loads(line)
            self.events.append(told)
            if told["event"] == event:
                return told
        raise AssertionError((event, self.events[-5:], self._process.communicate()[1]))

    def end(self) -> None:
        """It ends by itself."""
        _out, errors = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, (self.events[-5:], errors)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def requests(self) -> list[tuple[str, int]]:
        return [(told["method"], told["status"]) for told in self.events if told["event"] == "response"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(os.urandom(3 * MiB))
    return tmp_path / "file"


@needs_tus_js
@pytest.mark.parametrize("options", [{}, {"chunkSize": MiB}, {"uploadDataDuringCreation": True, "chunkSize": MiB}],
                         ids=str)
def test_tus_js_client(shared: SharedGrid, gateway: NodeProcess, file: Path, options: dict[str, Any]) -> None:
    client = TusJs(file, gateway.web_url + "uploads/", options | {"metadata": {"filename": "näme"}})
    url = client.until("url")["url"]
    cap = client.until("success")["cap"]
    client.end()
    assert cap == check_stored(shared, url, file.read_bytes())


@needs_tus_js
@pytest.mark.parametrize("chunk_size", [500_000, 4_000_000])
def test_tus_js_client_defers_the_length(shared: SharedGrid, gateway: NodeProcess, file: Path, chunk_size: int) -> None:
    options = {"uploadLengthDeferred": True, "chunkSize": chunk_size}
    client = TusJs(file, gateway.web_url + "uploads/", options, stream=True)
    url = client.until("url")["url"]
    cap = client.until("success")["cap"]
    client.end()
    assert cap == check_stored(shared, url, file.read_bytes())


def wait_until_some_came(shared: SharedGrid, others: set[str]) -> None:
    """The helper has ciphertext of an upload that is not one of `others`."""
    wait_for("ciphertext", lambda: set(spool_of(shared.grid.helper)) - others)


@needs_tus_js
@pytest.mark.parametrize("options", [{}, {"uploadLengthDeferred": True, "chunkSize": 2_000_000}], ids=str)
def test_tus_js_client_goes_on_after_a_cut(shared: SharedGrid, gateway: NodeProcess, file: Path,
                                           options: dict[str, Any]) -> None:
    parts, others = urlsplit(gateway.web_url), set(spool_of(shared.grid.helper))
    with SlowLink(parts.hostname or "", parts.port or 0, MiB, 0.01) as link:
        endpoint = f"http://127.0.0.1:{link.port}/uploads/"
        client = TusJs(file, endpoint, options, stream="uploadLengthDeferred" in options)
        url = client.until("url")["url"].replace(f":{link.port}", f":{parts.port}")
        wait_until_some_came(shared, others)
        link.drop()
        client.until("success")
        client.end()
    assert ("HEAD", 200) in client.requests
    check_stored(shared, url, file.read_bytes())


@needs_tus_js
def test_tus_js_client_goes_on_in_another_process(shared: SharedGrid, gateway: NodeProcess, file: Path) -> None:
    parts, others = urlsplit(gateway.web_url), set(spool_of(shared.grid.helper))
    with SlowLink(parts.hostname or "", parts.port or 0, MiB, 0.01) as link:
        client = TusJs(file, f"http://127.0.0.1:{link.port}/uploads/", {})
        url = client.until("url")["url"].replace(f":{link.port}", f":{parts.port}")
        wait_until_some_came(shared, others)
        client.kill()
    second = TusJs(file, None, {"uploadUrl": url})
    cap = second.until("success")["cap"]
    second.end()
    assert second.requests[0] == ("HEAD", 200)
    assert next(told["sent"] for told in second.events if told["event"] == "progress") > 0
    assert cap == check_stored(shared, url, file.read_bytes())


@needs_tus_js
def test_tus_js_client_aborts(shared: SharedGrid, gateway: NodeProcess, file: Path) -> None:
    client = TusJs(file, gateway.web_url + "uploads/", {"chunkSize": MiB}, abortAt=MiB, terminate=True)
    url = client.until("url")["url"]
    client.until("aborted")
    client.end()
    assert ask(url, "HEAD", TUS)[0] == 404
    wait_for("the helper to forget it", lambda: spool_of(shared.grid.helper) == [])


# -- curl --------------------------------------------------------------------------------------------------


def test_curl_speaks_the_draft(shared: SharedGrid, gateway: NodeProcess, tmp_path: Path) -> None:
    """As the README shows it."""
    data = os.urandom(2 * MiB)
    (tmp_path / "start").write_bytes(data[:MiB])
    (tmp_path / "rest").write_bytes(data[MiB:])
    answer = curl(gateway, "uploads/", "-H", "Upload-Complete: ?0", "--data-binary", f"@{tmp_path / 'start'}")
    assert (answer.status, answer.headers["upload-offset"]) == (201, str(MiB))
    path = answer.headers["location"].lstrip("/")
    answer = curl(gateway, path, "--head")
    assert (answer.status, answer.headers["upload-offset"], answer.headers["upload-complete"]) == (204, str(MiB), "?0")
    arguments = ["-X", "PATCH", "-H", "Content-Type: application/partial-upload", "-H", "Upload-Complete: ?1"]
    answer = curl(gateway, path, *arguments, "-H", f"Upload-Offset: {MiB}", "-T", str(tmp_path / "rest"))
    assert (answer.status, answer.headers["upload-complete"]) == (200, "?1")
    assert_stored(shared, answer.body.decode(), data)
    assert curl(gateway, path, "--head").headers["tahoe-cap"] == answer.body.decode()


def test_curl_is_told_of_the_upload_before_its_body_is_sent(shared: SharedGrid, gateway: NodeProcess) -> None:
    data = os.urandom(300_000)
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--noproxy", "*", "--include", "-X", "POST", "-T", "-",
         "-H", "Upload-Complete: ?1", "-H", "Upload-Draft-Interop-Version: 8", gateway.web_url + "uploads/"],
        input=data, capture_output=True, timeout=PATIENCE, check=True)
    informed, _, rest = done.stdout.partition(b"\r\n\r\n")
    assert informed.startswith(b"HTTP/1.1 104")
    location = next(line for line in informed.splitlines() if line.lower().startswith(b"location: "))
    assert location in rest
    assert download(shared.plain_client, rest.rsplit(b"\r\n\r\n", 1)[1].decode()) == data


# -- kills -------------------------------------------------------------------------------------------------


def append_until_killed(url: str, data: bytes, offset: int, gateway: NodeProcess, moment: float,
                        rng: random.Random) -> None:
    """A PATCH with all that is left, during which the gateway is killed: `moment` seconds after it has begun."""
    killer = threading.Timer(moment, gateway.kill)

    def body() -> Iterator[bytes]:
        killer.start()
        place = offset
        while place < len(data):
            length = rng.randrange(1, 200_000)
            yield data[place:place + length]
            place += length
            time.sleep(rng.random() * 0.012)  # so that twenty lives are needed

    fields = TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
    try:
        ask(url, "PATCH", fields | {"Transfer-Encoding": "chunked"}, _chunks(body()))
    except (OSError, http.client.HTTPException):
        pass
    killer.join()


def _chunks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Framed here, since http.client frames only what has no Transfer-Encoding yet, and only with encode_chunked."""
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def ciphertext_of(upload: RecordedUpload) -> bytes:
    """What was sent; no offset ever had two different bytes."""
    sent = bytearray()
    for offset, piece in upload.pieces:
        assert offset <= len(sent), "a gap"
        assert sent[offset:offset + len(piece)] == piece[:len(sent) - offset], f"two ciphertexts at {offset}"
        sent[offset:] = max(bytes(sent[offset:]), piece, key=len)
    return bytes(sent)


def test_gateway_is_killed_twenty_times(shared: SharedGrid, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    seed = pytestconfig.getoption("--seed")
    seed = random.randrange(2**32) if seed is None else seed
    print(f"--seed {seed}")
    rng = random.Random(seed)
    data = rng.randbytes(40 * MiB)
    with recording_helper(shared.grid.helper_furl) as recorder:
        directory = client_directory(tmp_path / "client", recorder.furl)
        gateway = gateway_of(directory)
        path, stated, kills, offsets = "", 0, 0, []
        try:
            while kills < 20:
                gateway.start()
                gateway.wait_ready()
                if not path:
                    fields = TUS | {"Upload-Length": str(len(data))}
                    path = ask(gateway.web_url + "uploads/", "POST", fields)[1]["location"].lstrip("/")
                offset = int(head(gateway.web_url + path)["upload-offset"])
                assert offset >= stated, "an offset went back"
                stated = offset
                offsets.append(offset)
                if offset < len(data):
                    append_until_killed(gateway.web_url + path, data, offset, gateway, rng.random() * 0.25, rng)
                else:
                    gateway.kill()
                kills += 1
            gateway.start()
            gateway.wait_ready()
            offset = int(head(gateway.web_url + path)["upload-offset"])
            assert stated <= offset
            fields = TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
            status, headers, _body = ask(gateway.web_url + path, "PATCH", fields, data[offset:])
            assert status == 204
        finally:
            gateway.kill()
    assert len(set(offsets)) > 5, "it was killed before anything came"
    (upload,) = recorder.uploads
    assert len(ciphertext_of(upload)) == len(data)
    received = download(shared.plain_client, headers["tahoe-cap"])
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
