"""What a helper shows of itself (helper/status.py, status_page.py), and what `tahoe-stream status` makes of it.

The snapshots are of whole helpers (world.py) in all sorts of trouble. Page and command line are tried over a real web
port on loopback.
"""

from __future__ import annotations

import errno
import http.client
import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import attrs
import pytest
import reactor_loop
from click.testing import CliRunner, Result
from fakes import FakeGrid
from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.template import flattenString
from world import KEY, SI, SMALL, World, begin, expected, outcome, plaintext, write_all

from client_shim.cipher import Encryptor
from client_shim.cli import main
from client_shim.status import FORMAT, table
from helper.parameters import Parameters
from helper.room import RoomStatus
from helper.session import State
from helper.shares import ShareStatus
from helper.status import (
    ENDED_SHOWN_FOR,
    JSON_FORMAT,
    NOT_READ_YET,
    SHARES_MAX,
    HelperStatus,
    UploadStatus,
    as_json,
    in_progress,
    snapshot,
    statistics,
    still_placing,
)
from helper.status_page import PAGE, StatusPage, page_of
from helper.upload import hashed_name

reactor: Any = _reactor  # it has more interfaces than its declared type

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(20_000)
CIPHERTEXT = Encryptor(KEY).encrypt(DATA)
ID = b"u" * 32


def only(world: World) -> UploadStatus:
    (upload,) = snapshot(world.uploads).uploads
    return upload


def begin_upload(world: World, length: int = 5000, upload_id: bytes = ID, size: int | None = None) -> None:
    """Open an upload and send its first bytes; they are acknowledged."""
    link = world.link()
    opened = world.run(link.open(upload_id, attrs.evolve(PARAMETERS, size=size).to_wire()))
    if opened.number("storage-index-needed"):
        world.run(link.assign(upload_id, SI))
    for offset in range(0, length, 1000):
        world.run(link.put_ciphertext(upload_id, offset, CIPHERTEXT[offset:min(length, offset + 1000)]))
        world.wait(0.1)


def send(world: World, offset: int) -> list[Any]:
    """A message; its answer will be in the list."""
    return outcome(begin(world.link().put_ciphertext(ID, offset, CIPHERTEXT[offset:offset + 1000])))


def page(status: HelperStatus) -> ET.Element:
    """The page, which must be well-formed."""
    pages: list[bytes] = []
    flattenString(None, page_of(status)).addCallback(pages.append)
    return ET.fromstring(pages[0])


def text_of(status: HelperStatus) -> str:
    return " ".join(" ".join(page(status).itertext()).split())


# -- snapshots -----------------------------------------------------------------------------------------------


def test_a_helper_that_does_nothing() -> None:
    with World(servers=9, staging=4, settings=attrs.evolve(SMALL, free_disk=1234)) as world:
        status = snapshot(world.uploads)
        assert status.uploads == ()
        assert (status.servers, status.staging_servers, status.not_listed, status.on_disk) == (9, 4, 0, 0)
        assert status.states == dict.fromkeys((state.value for state in State), 0)
        assert status.waiting == {"servers": 0, "room": 0, "disk": 0, NOT_READ_YET: 0}
        assert (status.room.stored, status.room.reserved, status.room.quota) == (0, 0, None)
        assert status.room.disk_left_free == 1234
        assert status.room.disk_free == pytest.approx(world.spool.free(), abs=2**30)
        assert "Uploads: none" in text_of(status)


@pytest.mark.parametrize("staging", [0, 10])
def test_an_upload_in_progress(staging: int) -> None:
    with World(staging=staging) as world:
        begin_upload(world, size=20_000)
        world.wait(100)
        upload = only(world)
        assert (upload.upload, upload.state) == (hashed_name(ID)[:8], "open")
        assert (upload.size, upload.received, upload.durable, upload.spooled) == (20_000, 5000, 5000, 5000)
        assert upload.pushed == 4 * 1002
        assert (upload.waits_for, upload.error) == ("", None)
        assert (upload.idle, upload.open) == (100, 100)
        assert [s.shnum for s in upload.shares] == list(range(10))
        assert {s.server for s in upload.shares} == {server.name for server in world.grid.servers}
        assert {(s.state, s.position) for s in upload.shares} == {("pushing", 4008)}
        status = snapshot(world.uploads)
        assert (status.room.stored, status.room.reserved) == (5000, 15_000)
        assert status.on_disk == sum(path.stat().st_size for path in world.spool_files()) > 5000
        assert status.states["open"] == 1


def test_calls_end_idleness() -> None:
    with World() as world:
        begin_upload(world)
        for call in ("status", "open"):
            world.wait(1000)
            assert only(world).idle == 1000
            link = world.link()
            world.run(link.status(ID) if call == "status" else link.open(ID, PARAMETERS.to_wire()))
            assert only(world).idle == 0
        assert only(world).open >= 2000


def test_an_upload_that_waits_for_servers() -> None:
    with World(staging=10) as world:
        begin_upload(world, 3000)
        for server in world.grid.servers[:4]:
            server.hang()
        answers = [send(world, offset) for offset in range(3000, 10_000, 1000)]
        world.wait(1)
        answers += [send(world, offset) for offset in range(10_000, 20_000, 1000)]
        world.wait(5)
        assert not answers[-1]
        told = only(world)
        assert told.waits_for == "servers"
        assert told.received is not None
        assert told.durable is not None
        assert told.received > told.durable >= SMALL.pushing_lag
        assert told.pushed == 2 * 1002
        assert snapshot(world.uploads).waiting["servers"] == 1
        assert statistics(world.uploads)["streaming_helper.waiting_for_servers"] == 1
        for server in world.grid.servers[:4]:
            server.disconnect()
            server.reconnect()
        world.wait(100)
        assert answers[-1][0].number("durable") == 20_000
        assert only(world).waits_for == ""


def test_uploads_that_wait_for_room_come_first() -> None:
    with World(staging=10, settings=attrs.evolve(SMALL, spool_quota=30_000, free_disk=0)) as world:
        first = world.upload(PARAMETERS)
        world.run(first.write(DATA))
        second = world.upload(PARAMETERS, key=b"o" * 16)
        outcome(begin(write_all(second, DATA)))
        world.wait(60)
        status = snapshot(world.uploads)
        assert [upload.waits_for for upload in status.uploads] == ["room", ""]
        assert status.room.quota == 30_000
        assert status.waiting["room"] == 1
        assert "1 for room" in text_of(status)


def test_an_upload_whose_disk_is_full() -> None:
    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def pwritev(self, fd: int, views: list[memoryview], position: int) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with World(system=Full(), settings=attrs.evolve(SMALL, free_disk=0)) as world:
        outcome(begin(write_all(world.upload(PARAMETERS), DATA)))
        world.wait(60)
        told = only(world)
        assert told.waits_for == "disk: ENOSPC (No space left on device)"
        assert told.durable == 0
        stats = statistics(world.uploads)
        assert (stats["streaming_helper.waiting_for_disk"], stats["streaming_helper.waiting"]) == (1, 1)


def test_a_disk_that_does_not_say_how_much_is_free() -> None:
    class Gone:
        gone = False

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def statvfs(self, path: str) -> Any:
            if self.gone:
                raise FileNotFoundError(errno.ENOENT, "gone")
            return os.statvfs(path)

    system = Gone()
    with World(system=system) as world:
        system.gone = True
        assert snapshot(world.uploads).room.disk_free is None
        assert "unknown free" in text_of(snapshot(world.uploads))


def test_shares_on_servers_that_are_away_or_full() -> None:
    with World(servers=12, staging=10) as world:
        full = world.grid.staging[0]
        full.refuse_from_now_on()
        begin_upload(world)
        gone = world.grid.staging[1]
        gone.disconnect()
        world.wait(10)
        status = snapshot(world.uploads)
        (upload,) = status.uploads
        assert {s.server for s in upload.shares if s.state == "away"} == {gone.name}
        assert full.name not in {s.server for s in upload.shares}
        assert (status.servers, status.staging_servers) == (11, 9)
        stats = statistics(world.uploads)
        assert stats["streaming_helper.shares_lost"] == stats["streaming_helper.shares_rehomed"] == 1


def test_uploads_that_have_ended_are_shown_for_an_hour() -> None:
    with World() as world:
        world.put(DATA, PARAMETERS)
        world.wait(10)
        begin_upload(world, upload_id=b"v" * 32)
        world.run(world.link().abort(b"v" * 32))
        aborted, finished = sorted(snapshot(world.uploads).uploads, key=lambda u: u.state)
        assert (finished.state, finished.error, finished.size) == ("finished", None, 20_000)
        assert (aborted.state, aborted.error) == ("aborted", "aborted")
        assert {(s.state, s.position) for s in finished.shares} == {("closed", 20_000)}
        assert (finished.spooled, aborted.spooled) == (0, 0)
        assert not any(map(in_progress, (aborted, finished)))
        world.wait(ENDED_SHOWN_FOR - SMALL.sweep_interval)
        assert len(snapshot(world.uploads).uploads) == 2
        world.wait(2 * SMALL.sweep_interval)
        status = snapshot(world.uploads)
        assert status.uploads == ()
        assert status.not_listed == 0
        assert (status.states["finished"], status.states["aborted"]) == (1, 1), "counted as long as it is known"


def test_one_that_places_its_last_shares_is_in_progress() -> None:
    with World() as world:
        hanging = world.grid.in_order(SI)[0]
        hanging.hang()
        world.put(DATA, PARAMETERS)
        told = only(world)
        assert told.state == "finished"
        assert still_placing(told)
        assert in_progress(told)
        assert "placing the last shares" in text_of(snapshot(world.uploads))
        world.wait(200)
        assert not still_placing(only(world))


def test_what_has_not_been_read_since_a_restart() -> None:
    with World(staging=10) as world:
        begin_upload(world)
        world.wait(10)
        world.kill()
        world.hold_work()
        world.start()
        told = only(world)
        assert (told.waits_for, told.state) == (NOT_READ_YET, "open")
        assert (told.received, told.durable, told.pushed) == (None, None, None)
        assert told.spooled > 5000, "what its file takes"
        status = snapshot(world.uploads)
        assert status.waiting[NOT_READ_YET] == 1
        assert statistics(world.uploads)["streaming_helper.not_read_yet"] == 1
        assert "not read yet" in text_of(status)
        world.release_work()
        world.wait(10)
        told = only(world)
        assert (told.waits_for, told.durable, told.spooled) == ("", 5000, 5000)
        assert told.idle == 20


def test_of_very_many_only_some_are_listed() -> None:
    with World() as world:
        for number in range(9):
            world.run(world.link().open(bytes([number]) * 32, PARAMETERS.to_wire()))
            if number >= 5:
                world.run(world.link().abort(bytes([number]) * 32))
        status = snapshot(world.uploads, live_max=3, ended_max=2)
        assert [upload.upload for upload in status.uploads] == [
            hashed_name(bytes([number]) * 32)[:8] for number in (0, 1, 2, 8, 7)]
        assert status.not_listed == 4
        assert "4 more are not listed" in text_of(status)


def test_of_those_with_very_many_shares_even_fewer_are_listed() -> None:
    wide = attrs.evolve(PARAMETERS, n=250)
    with World() as world:
        for number in range(SHARES_MAX // 250 + 2):
            world.run(world.link().open(bytes([number]) * 32, wide.to_wire()))
        status = snapshot(world.uploads)
        assert (len(status.uploads), status.not_listed) == (SHARES_MAX // 250, 2)


def test_statistics_are_numbers_with_stable_names() -> None:
    with World() as world:
        begin_upload(world)
        stats = statistics(world.uploads)
        assert all(type(value) is int for value in stats.values())
        assert {name.removeprefix("streaming_helper.") for name in stats} == {
            "open", "opened", "resumed", "finished", "aborted", "failed", "expired", "bytes_received",
            "bytes_pushed_again", "shares_lost", "shares_rehomed", "servers_stalled", "deduplicated",
            "deduplicated_existing", "deduplicated_streamed_before", "looked_up", "messages_given_up", "records_left",
            "waiting", "waiting_for_servers", "waiting_for_room", "waiting_for_disk", "not_read_yet",
            "spool_stored", "spool_reserved", "spool_on_disk",
            *(f"uploads_{state.value}" for state in State)}
        assert (stats["streaming_helper.uploads_open"], stats["streaming_helper.spool_stored"]) == (1, 5000)


# -- JSON and page -------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>&\"'\x1b[2J"
STATUS = HelperStatus(
    uploads=(
        UploadStatus("qluihtna", "open", None, 6_000_000, 5_000_000, 4_000_000, 5_000_000, "room", 3, 200, None, (
            ShareStatus(0, "v0-aaaa", "pushing", 4_000_000), ShareStatus(1, EVIL, "away", 0))),
        UploadStatus("abcdefgh", "publishing", 1000, None, None, None, 1040, NOT_READ_YET, 7300, 7400, None, ()),
        UploadStatus("bcdefghi", "failed", 1000, 900, 800, 0, 0, "", 60, 90, "too-few-servers", ())),
    not_listed=2, states={"open": 1, "publishing": 1, "failed": 1, "finished": 0},
    waiting={"servers": 0, "room": 1, "disk": 0, NOT_READ_YET: 1},
    room=RoomStatus(5_000_000, 200, 10_000_000, 3_000_000_000, 268_435_456), on_disk=5_001_040, servers=10,
    staging_servers=7)


def test_the_json_is_what_it_was() -> None:
    """A field that is renamed or removed, or has another type, needs another JSON_FORMAT."""
    assert JSON_FORMAT == FORMAT == 1
    assert json.loads(json.dumps(as_json(STATUS))) == {
        "format": 1,
        "uploads": [
            {"upload": "qluihtna", "state": "open", "size": None, "received": 6_000_000, "durable": 5_000_000,
             "pushed": 4_000_000, "spooled": 5_000_000, "waits-for": "room", "idle": 3, "open": 200, "error": None,
             "shares": [{"number": 0, "server": "v0-aaaa", "state": "pushing", "position": 4_000_000},
                        {"number": 1, "server": EVIL, "state": "away", "position": 0}]},
            {"upload": "abcdefgh", "state": "publishing", "size": 1000, "received": None, "durable": None,
             "pushed": None, "spooled": 1040, "waits-for": "not read yet", "idle": 7300, "open": 7400, "error": None,
             "shares": []},
            {"upload": "bcdefghi", "state": "failed", "size": 1000, "received": 900, "durable": 800, "pushed": 0,
             "spooled": 0, "waits-for": "", "idle": 60, "open": 90, "error": "too-few-servers", "shares": []}],
        "uploads-not-listed": 2,
        "states": {"open": 1, "publishing": 1, "failed": 1, "finished": 0},
        "waiting": {"servers": 0, "room": 1, "disk": 0, "not-read-yet": 1},
        "spool": {"stored": 5_000_000, "reserved": 200, "quota": 10_000_000, "disk-free": 3_000_000_000,
                  "disk-left-free": 268_435_456, "on-disk": 5_001_040},
        "servers": {"connected": 10, "staging": 7}, "not-recording": ""}


def test_the_page_is_escaped_and_loads_nothing_from_elsewhere() -> None:
    plain = attrs.evolve(STATUS.uploads[0], shares=(ShareStatus(1, EVIL.replace("\x1b", ""), "away", 0),))
    root = page(attrs.evolve(STATUS, uploads=(plain, *STATUS.uploads[1:])))
    assert not list(root.iter("script"))
    assert any("<script>alert(1)</script>&\"'" in text for text in root.itertext())
    links = [value for element in root.iter() for name, value in element.items() if name in ("href", "src")]
    assert links
    assert all(link.startswith("/") and not link.startswith("//") for link in links)


def test_what_the_page_says() -> None:
    text = text_of(attrs.evolve(STATUS, uploads=STATUS.uploads[1:]))
    for part in ("Uploads: 1 open, 1 publishing, 1 failed", "Waiting: 1 for room, 1 not read yet",
                 "Spool: 5.00 MB stored, 200 B reserved, quota 10.00 MB", "3.00 GB free",
                 "Storage servers: 10 connected, 7 of them staging", "2 more are not listed",
                 "failed (too-few-servers)", "abcdefgh publishing 1000 B unknown"):
        assert part in text


# -- over a web port -----------------------------------------------------------------------------------------


@contextmanager
def web_port(root: Resource) -> Iterator[str]:
    """The URL of a web port that serves `root`, in the reactor's thread."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    number = listening.getsockname()[1]

    async def listen() -> Any:
        endpoint = AdoptedStreamServerEndpoint(reactor, listening.detach(), socket.AF_INET)
        return await endpoint.listen(Site(root))

    port = reactor_loop.run(listen)
    try:
        yield f"http://127.0.0.1:{number}/"
    finally:
        reactor_loop.run(port.stopListening)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a real helper with an upload in progress."""
    from loopback import LoopbackHelper

    with LoopbackHelper(tmp_path_factory.mktemp("helper"), grid=FakeGrid(reactor, 10, staging=10)) as helper:

        async def begin_upload() -> None:
            link = await reactor_connect(helper)
            await link.open(ID, PARAMETERS.to_wire())
            await link.put_ciphertext(ID, 0, CIPHERTEXT[:3000])
            await reactor_loop.turns(lambda: snapshot(helper.uploads).uploads[0].pushed == 2004)

        helper.run(begin_upload)
        root = Resource()
        root.putChild(PAGE, StatusPage(helper.uploads))
        with web_port(root) as url:
            yield url


async def reactor_connect(helper: Any) -> Any:
    from client_shim.helper_edge import connect

    return await connect(helper.client, helper.furl)


@attrs.frozen
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: str


def ask(url: str, path: str, method: str = "GET") -> Answer:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read().decode())
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/streaming", "/streaming/", "/streaming?t=json"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_page_is_served(url: str, path: str, method: str) -> None:
    answer = ask(url, path, method)
    assert answer.status == 200
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    kind = "application/json" if "json" in path else "text/html"
    assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert (hashed_name(ID)[:8] in answer.body) is (method == "GET")


@pytest.mark.parametrize(("method", "path", "status"), [
    ("POST", "/streaming", 405), ("PUT", "/streaming?t=json", 405), ("DELETE", "/streaming", 405),
    ("GET", "/streaming/below", 404), ("GET", "/streaming?t=%3Cscript%3E", 400)])
def test_nothing_else_is(url: str, method: str, path: str, status: int) -> None:
    answer = ask(url, path, method)
    assert answer.status == status
    assert "<script>" not in answer.body


# -- the command line ----------------------------------------------------------------------------------------


def node_directory(path: Path, node_url: str | None) -> Path:
    (path / "tahoe.cfg").touch()
    if node_url is not None:
        (path / "node.url").write_text(node_url + "\n")
    return path


def status(directory: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["status", "-d", str(directory), *options])


def test_a_table_for_people(url: str, tmp_path: Path) -> None:
    told = status(node_directory(tmp_path, url))
    assert (told.exit_code, told.stderr) == (0, "")
    lines = told.stdout.splitlines()
    assert lines[0] == "uploads: 1 open"
    assert lines[1].startswith("spool:   3.00 kB stored, 0 B reserved, no quota; its disk has ")
    assert lines[2:5] == ["servers: 10 connected, 10 of them staging", "",
                          "UPLOAD    STATE  SIZE     RECEIVED  DURABLE  PUSHED   PUBLISHED  IDLE"
                          + lines[4].partition("IDLE")[2]]
    assert lines[5].split()[:9] == [hashed_name(ID)[:8], "open", "unknown", "3.00", "kB", "3.00", "kB", "2.00", "kB"]
    assert len(lines) == 6


def test_shares_below_each_upload(url: str, tmp_path: Path) -> None:
    lines = status(node_directory(tmp_path, url), "-v").stdout.splitlines()
    assert len(lines) == 16
    for number, line in enumerate(lines[6:]):
        assert line.startswith(f"    share {number} on server")
        assert line.endswith(": pushing, 2.00 kB")


def test_json_as_the_helper_gives_it(url: str, tmp_path: Path) -> None:
    told = status(node_directory(tmp_path, url), "--json")
    assert told.exit_code == 0
    assert json.loads(told.stdout)["uploads"][0]["upload"] == hashed_name(ID)[:8]
    assert told.stdout.count("\n") > 10


def test_a_proxy_in_the_environment_is_not_asked(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert status(node_directory(tmp_path, url)).exit_code == 0


def failed_with(code: str, directory: Path) -> str:
    """`status` fails, in both ways of telling so. Returns the text."""
    told, as_json = status(directory), status(directory, "--json")
    assert (told.exit_code, as_json.exit_code) == (1, 1)
    assert told.stdout == as_json.stdout == ""
    line = json.loads(as_json.stderr)
    assert (line["event"], line["code"], line["where"]) == ("failed", code, str(directory))
    assert told.stderr == f"tahoe-stream: {code}: {line['text']}\n"
    return str(line["text"])


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    assert "no such directory" in failed_with("no-node-directory", tmp_path / "missing")
    assert "no tahoe.cfg" in failed_with("no-node-directory", tmp_path)
    (tmp_path / "file").touch()
    failed_with("no-node-directory", tmp_path / "file")
    assert "no URL" in failed_with("no-node-directory", node_directory(tmp_path, "file:///etc/passwd"))


def test_a_node_that_does_not_run(tmp_path: Path) -> None:
    assert "no node.url" in failed_with("node-not-running", node_directory(tmp_path, None))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        port = bound.getsockname()[1]
        assert "nothing listens" in failed_with(
            "node-not-running", node_directory(tmp_path, f"http://127.0.0.1:{port}/"))


class Says(Resource):
    isLeaf = True  # noqa: N815

    def __init__(self, code: int, body: bytes) -> None:
        super().__init__()
        self._code, self._body = code, body

    def render_GET(self, request: Any) -> bytes:
        request.setResponseCode(self._code)
        return self._body


@pytest.mark.parametrize(("answered", "body", "code", "text"), [
    (404, b"", "no-streaming-helper", "is no streaming helper"),
    (500, b"oops", "status-unreadable", "expected status 200, got status 500"),
    (200, b"<html>", "status-unreadable", "expected JSON"),
    (200, b"\xff", "status-unreadable", "not UTF-8"),
    (200, b"[]", "status-unreadable", "expected format 1, got none"),
    (200, b'{"format": 2}', "status-unreadable", "expected format 1, got format 2"),
])
def test_a_node_that_is_something_else(tmp_path: Path, answered: int, body: bytes, code: str, text: str) -> None:
    with web_port(Says(answered, body)) as url:
        assert text in failed_with(code, node_directory(tmp_path, url))


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    lines = list(table(as_json(STATUS), verbose=True))
    assert all(line.isprintable() for line in lines)
    assert "    share 1 on <script>alert(1)</script>&\"'?[2J: away, 0 B" in lines


def test_a_helper_that_cannot_record_anything_says_so_first() -> None:
    status = attrs.evolve(STATUS, not_recording="ledger: SQLITE_FULL")
    assert as_json(status)["not-recording"] == "ledger: SQLITE_FULL"
    page_text = text_of(attrs.evolve(status, uploads=()))
    assert "Nothing can be recorded now (ledger: SQLITE_FULL): new uploads are refused" in page_text
    lines = list(table(as_json(status), verbose=False))
    assert lines[0] == "records: none can be written now (ledger: SQLITE_FULL): new uploads are refused"
    assert lines[1].startswith("uploads: ")


def test_the_table_word_for_word() -> None:
    out = io.StringIO()
    for line in table(as_json(STATUS), verbose=False):
        print(line, file=out)
    assert out.getvalue() == (
        "uploads: 1 open, 1 publishing, 1 failed\n"
        "waiting: 1 for room, 1 not read yet\n"
        "spool:   5.00 MB stored, 200 B reserved, quota 10.00 MB; its disk has 3.00 GB free, of which 268.44 MB are "
        "to be left free\n"
        "servers: 10 connected, 7 of them staging\n"
        "\n"
        "UPLOAD    STATE                    SIZE     RECEIVED  DURABLE  PUSHED   PUBLISHED  IDLE         WAITS FOR\n"
        "qluihtna  open                     unknown  6.00 MB   5.00 MB  4.00 MB  0 of 2     3 seconds    room\n"
        "abcdefgh  publishing               1000 B   unknown   unknown  unknown  -          121 minutes  not read yet\n"
        "bcdefghi  failed: too-few-servers  1000 B   900 B     800 B    0 B      -          60 seconds   -\n"
        "and 2 more\n")


def test_the_caps_of_uploads_that_are_watched_are_right() -> None:
    """Looking changes nothing."""
    with World(staging=5) as world:

        def look() -> None:
            as_json(snapshot(world.uploads))
            statistics(world.uploads)

        world.watch = look
        assert world.put(DATA, PARAMETERS) == expected(DATA, PARAMETERS).cap
