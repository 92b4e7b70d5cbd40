"""The life of a helper node, and what an upload does when the helper or storage servers end or hang."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import attrs
import pytest
from grid_tools import (
    HAPPY,
    SEGMENT,
    SERVERS,
    TAHOE_STREAM,
    K,
    MiB,
    N,
    SharedGrid,
    assert_healthy,
    assert_stored,
    by_stock,
    check,
    client_directory,
    download,
    end_of,
    feed,
    further_helper,
    helper_furl,
    put,
    put_in_progress,
    servers_restored,
    share_paths,
    spool_of,
    storage_index,
    uploads_open,
    wait_for,
    wait_for_incoming,
    wait_until_clean,
)
from slow_link import SlowLink, location, through

from client_shim.blocking import UploadFile
from client_shim.errors import HelperLost, HelperRefused
from client_shim.local_config import client_config, write_client
from client_shim.local_node import NodeProcess
from helper.codec import describe_code


@attrs.frozen
class HelperNode:
    """A helper node's directory; processes are started in it by the test."""

    shared: SharedGrid
    node: NodeProcess

    @property
    def directory(self) -> Path:
        return self.node.directory

    @property
    def pid_file(self) -> Path:
        return self.directory / "running.process"

    @contextmanager
    def process(self, *options: str, stdin: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
        """`tahoe-stream helper run`, connected to the grid; killed, if need be, when the block is left."""
        (self.directory / "node.url").unlink(missing_ok=True)
        process = start(self.directory, *options, stdin=stdin)
        try:
            wait_for("the web port", lambda: (self.directory / "node.url").exists() or process.poll() is not None)
            assert process.poll() is None, end_of(process)
            wait_for("the servers", lambda: "Connected" in str(self.node.read_json("?t=json")["servers"]))
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def helper(shared: SharedGrid, tmp_path: Path) -> Iterator[HelperNode]:
    """Each test has a new one."""
    with further_helper(shared.grid, f"helper-of-{tmp_path.name}", start=False) as node:
        yield HelperNode(shared, node)


def start(directory: Path, *options: str, stdin: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [*TAHOE_STREAM, "helper", "run", *options, str(directory)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def refused(directory: Path) -> str:
    """What it says when it does not start."""
    process = start(directory)
    try:
        status = process.wait(60)
        transcript = end_of(process)
    finally:
        process.kill()
        process.communicate()
    assert status == 1
    assert "Traceback" not in transcript.err
    return transcript.err


def children_of(pid: int) -> Sequence[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# -- start and end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_in_order(helper: HelperNode, number: signal.Signals) -> None:
    """As `tahoe run` does it: everything is shut down, then twistd ends the process by the signal that it got."""
    with helper.process() as process:
        assert helper.pid_file.exists()
        assert children_of(process.pid) == []
        assert put(client_of(helper), "-", stdin=os.urandom(100_000)).cap
        process.send_signal(number)
        assert process.wait(30) == -number
        transcript = end_of(process)
    assert "Server Shut Down" in transcript.out
    assert "Traceback" not in transcript.out + transcript.err
    assert not helper.pid_file.exists()
    assert spool_of(helper.node) == []


def client_of(helper: HelperNode) -> Path:
    directory = helper.directory.parent / f"client-of-{helper.directory.name}"
    return directory if directory.exists() else client_directory(directory, helper_furl(helper.node))


def test_second_start_is_refused(helper: HelperNode) -> None:
    with helper.process() as process:
        complaint = refused(helper.directory)
        assert "ERROR" in complaint
        assert str(process.pid) in complaint, "which process is in the way"
        assert process.poll() is None
        assert helper.pid_file.exists()
        assert put(client_of(helper), "-", stdin=bytes(100)).cap, "the first one works on"


@pytest.mark.parametrize(("text", "named"), [
    ("[helper]\nfirst-bund = 1 GiB\n", "first-bund"),
    ("[helper]\nfirst-bound = huge\n", "'huge'"),
    ("[storage]\nfirst-bound = 1 GiB\n", "[storage]"),
    ("first-bound = 1 GiB\n", "cannot be read"),
])
def test_settings_that_cannot_be_used(helper: HelperNode, text: str, named: str) -> None:
    (helper.directory / "streaming.cfg").write_text(text)
    complaint = refused(helper.directory)
    assert named in complaint
    assert str(helper.directory / "streaming.cfg") in complaint
    assert not helper.pid_file.exists()


def test_unknown_key_in_tahoe_cfg(helper: HelperNode) -> None:
    with (helper.directory / "tahoe.cfg").open("a") as f:
        f.write("colour = red\n")
    assert "colour" in refused(helper.directory)
    assert not helper.pid_file.exists()


def test_node_that_is_no_helper(shared: SharedGrid, tmp_path: Path) -> None:
    config = client_config(shared.grid.options, "plain", "", force_foolscap=False)
    write_client(tmp_path / "plain", config, shared.grid.introducer_furl)
    complaint = refused(tmp_path / "plain")
    assert "is not a helper" in complaint
    assert "[helper]\n    enabled = true" in complaint
    assert not (tmp_path / "plain" / "running.process").exists()


def test_directory_of_no_client_node(shared: SharedGrid, tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing", shared.grid.introducer.directory):
        complaint = refused(directory)
        assert f"{directory} is not the directory of a Tahoe client node" in complaint


def test_ends_when_standard_input_closes(helper: HelperNode) -> None:
    with helper.process() as process:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert process.wait(30) == 0
    assert not helper.pid_file.exists()


def test_may_outlive_standard_input(helper: HelperNode) -> None:
    with helper.process("--allow-stdin-close", stdin=subprocess.DEVNULL) as process:
        assert put(client_of(helper), "-", stdin=bytes(100)).cap
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM


def test_the_log_tells_which_erasure_code_is_in_use(shared: SharedGrid) -> None:
    assert f"erasure code: {describe_code(3, 10)}" in shared.grid.helper.log_path.read_text()


def test_furls_stay_over_a_restart(helper: HelperNode) -> None:
    furls = []
    for _ in range(2):
        with helper.process() as process:
            furls.append([(helper.directory / "private" / name).read_text()
                          for name in ("helper.furl", "streaming-helper.furl")])
            assert put(client_of(helper), "-", stdin=bytes(100)).cap
            process.terminate()
            assert process.wait(30) == -signal.SIGTERM
    assert furls[0] == furls[1]


# -- the helper ends during an upload ----------------------------------------------------------------------


@pytest.mark.parametrize(("number", "codes"), [
    (signal.SIGTERM, {"helper-stopping", "helper-lost"}),  # whether something waits for an answer at that moment
    (signal.SIGKILL, {"helper-lost"}),
])
def test_helper_that_ends_in_mid_stream(helper: HelperNode, number: signal.Signals, codes: set[str]) -> None:
    grid = helper.shared.grid
    shares = share_paths(grid)
    with helper.process() as process, put_in_progress(
            client_of(helper), "--json", "--patience=0 seconds", "-") as upload:
        feed(upload, os.urandom(3 * MiB))
        wait_for_incoming(grid, HAPPY)
        assert len(spool_of(helper.node)) == 1
        process.send_signal(number)
        process.wait(30)
        assert len(spool_of(helper.node)) == 1
        # Nothing more is written to it: it waits for input.
        assert upload.wait(30) == 1
        end_of(upload).failed_with(*codes)
    with helper.process():
        # The upload is there still, but the key went with the client that made it.
        assert uploads_open(helper.node) == 1
        assert put(client_of(helper), "-", stdin=bytes(100)).cap
    wait_for("its shares to be let go of", lambda: not grid.incoming_shares())
    assert len(share_paths(grid)) == len(shares) + N


def test_program_whose_helper_ends(helper: HelperNode) -> None:
    with helper.process() as process:
        f = UploadFile(client_of(helper), patience=1)
        f.write(os.urandom(200_000))
        process.kill()
        process.wait(30)
        with pytest.raises(HelperLost):
            write_forever(f)
        with pytest.raises(HelperLost):
            f.close()


def write_forever(f: UploadFile) -> NoReturn:
    while True:
        f.write(bytes(100_000))


# -- the client ends during an upload ----------------------------------------------------------------------


@pytest.fixture
def impatient_helper(shared: SharedGrid) -> Iterator[NodeProcess]:
    """Gives up uploads that are idle for three seconds."""
    settings = "[helper]\nidle-expiry = 3 seconds\nempty-expiry = 3 seconds\nsweep-interval = 1 second\n"
    with further_helper(shared.grid, "impatient-helper", settings=settings) as helper:
        yield helper


def test_killed_client_is_swept_at_expiry(shared: SharedGrid, impatient_helper: NodeProcess, tmp_path: Path) -> None:
    shares = share_paths(shared.grid)
    with put_in_progress(client_directory(tmp_path / "client", helper_furl(impatient_helper)), "-") as process:
        feed(process, os.urandom(2 * MiB))
        wait_for_incoming(shared.grid, SERVERS)
    assert len(spool_of(impatient_helper)) == 1
    wait_until_clean(shared.grid, impatient_helper, shares)


def test_link_that_breaks(shared: SharedGrid, impatient_helper: NodeProcess, tmp_path: Path) -> None:
    furl = helper_furl(impatient_helper)
    shares = share_paths(shared.grid)
    with SlowLink(*location(furl), rate=5_000_000, delay=0.01) as link:
        directory = client_directory(tmp_path / "client", through(furl, link))
        with put_in_progress(directory, "--json", "--patience=2 seconds", "-") as process:
            feed(process, os.urandom(2 * MiB))
            wait_for_incoming(shared.grid, SERVERS)
            link.cut()
            assert process.wait(30) == 1
            assert end_of(process).failed_with("helper-lost")["seconds"] == 2
    wait_until_clean(shared.grid, impatient_helper, shares)


# -- disks that are full -----------------------------------------------------------------------------------


@contextmanager
def files_limited(node: NodeProcess, size: int) -> Iterator[None]:
    """The node's process cannot write files beyond `size` bytes: a write says that the file is too big."""
    before = resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, before)


def test_helper_whose_disk_is_full(shared: SharedGrid, tmp_path: Path) -> None:
    shares = share_paths(shared.grid)
    with further_helper(shared.grid, "full-helper") as helper:
        directory = client_directory(tmp_path / "client", helper_furl(helper))
        with files_limited(helper, 2 * MiB):
            told = put(directory, "--json", "-", stdin=os.urandom(5 * MiB)).failed_with("spool-failed")
            assert "EFBIG" in told["text"]
            assert str(helper.directory) not in told["text"]
            wait_until_clean(shared.grid, helper, shares)
            assert put(directory, "-", stdin=os.urandom(MiB)).cap, "what fits is stored"
        data = os.urandom(3 * MiB)
        assert_stored(shared, put(directory, "-", stdin=data).cap, data)


@pytest.mark.parametrize("full", ["at once", "in mid-stream"])
def test_storage_server_whose_disk_is_full(shared: SharedGrid, full: str) -> None:
    data = os.urandom(6 * MiB)
    victim = shared.grid.storage[3]
    with ExitStack() as limits:
        def limit() -> None:
            limits.enter_context(files_limited(victim, 200_000))

        if full == "at once":
            limit()
            cap = put(shared.grid.client.directory, "-", stdin=data).cap
        else:
            cap = half_then_rest(shared, data, False, limit)
        wait_for_shares(shared, cap, N)
        assert {share.server for share in shared.grid.shares(storage_index(cap))} == set(range(SERVERS)) - {3}
    assert download(shared.plain_client, cap) == data
    assert_healthy(check(shared.plain_client, cap), servers=SERVERS - 1)
    if full == "at once":
        # A stock server leaves behind what it could not allocate, until it starts again.
        with servers_restored(shared, victim):
            victim.kill()
    wait_for("shares to be aborted", lambda: not shared.grid.incoming_shares())


# -- storage servers end or hang during an upload ----------------------------------------------------------


def half_then_rest(shared: SharedGrid, data: bytes, declared: bool, between: Callable[[], None],
                   client: Path | None = None) -> str:
    """Streams `data`; `between` is called when the servers hold blocks of the first half."""
    with UploadFile(client or shared.grid.client.directory, len(data) if declared else None) as f:
        f.write(data[:len(data) // 2])
        wait_for_incoming(shared.grid, SERVERS, SEGMENT // K)
        between()
        f.write(data[len(data) // 2:])
    return f.cap


def wait_for_shares(shared: SharedGrid, cap: str, count: int) -> None:
    """On servers' disks: `finish` is answered before the last ones."""
    wait_for("every share", lambda: len({s.number for s in shared.grid.shares(storage_index(cap))}) == count)
    wait_for("an empty spool", lambda: not spool_of(shared.grid.helper))


@pytest.mark.parametrize("declared", [pytest.param(True, marks=pytest.mark.long), False])
def test_storage_server_killed_in_mid_stream(shared: SharedGrid, declared: bool) -> None:
    data = os.urandom(6 * MiB + 77)
    victim = shared.grid.storage[2]
    with servers_restored(shared, victim):
        cap = half_then_rest(shared, data, declared, victim.kill)
        assert by_stock(cap, data).cap.decode() == cap
        wait_for_shares(shared, cap, N)
        homes = {share.number: share.server for share in shared.grid.shares(storage_index(cap))}
        assert set(homes.values()) == set(range(SERVERS)) - {2}, "the lost share has a new home"
        for reader in shared.readers:
            shared.grid.wait_connected(reader)
            assert download(reader, cap) == data
            assert_healthy(check(reader, cap), servers=SERVERS - 1)
    assert_healthy(check(shared.plain_client, cap), servers=SERVERS - 1)


def test_too_many_storage_servers_killed(shared: SharedGrid, tmp_path: Path) -> None:
    """They are waited for, but not for ever."""
    victims = shared.grid.storage[:2]
    shares = share_paths(shared.grid)

    def kill() -> None:
        for victim in victims:
            victim.kill()

    settings = "[helper]\naway-patience = 1 second\nneeded-patience = 3 seconds\n"
    with further_helper(shared.grid, "impatient-helper", settings=settings) as helper:
        client = client_directory(tmp_path / "client", helper_furl(helper))
        with servers_restored(shared, *victims):
            with pytest.raises(HelperRefused) as caught:
                half_then_rest(shared, os.urandom(6 * MiB), False, kill, client)
            assert caught.value.code == "too-few-servers"
            assert dict(caught.value.values) == {"have": SERVERS - 2, "need": HAPPY}
        wait_until_clean(shared.grid, helper, shares)


@pytest.mark.parametrize("declared", [True, False])
def test_storage_server_that_hangs_from_the_beginning(shared: SharedGrid, declared: bool) -> None:
    data = os.urandom(6 * MiB + 5)
    victim = shared.grid.storage[1]
    with servers_restored(shared, victim):
        f = UploadFile(shared.grid.client.directory, len(data) if declared else None)
        victim.suspend()
        f.write(data)
        before = time.monotonic()
        f.close()
        print(f"\nwith a hung server, {len(data)} bytes at once: last byte to cap {time.monotonic() - before:.2f} s")
        assert time.monotonic() - before < 10
        assert by_stock(f.cap, data).cap.decode() == f.cap
        assert download(shared.plain_client, f.cap) == data
    wait_for_shares(shared, f.cap, N)
    assert_stored(shared, f.cap, data)


def test_storage_server_that_hangs_in_mid_stream(shared: SharedGrid) -> None:
    data = os.urandom(24 * MiB)
    victim = shared.grid.storage[4]
    with servers_restored(shared, victim):
        cap = half_then_rest(shared, data, False, victim.suspend)
        assert download(shared.plain_client, cap) == data
    wait_for_shares(shared, cap, N)
    assert_stored(shared, cap, data)


def test_uploads_open_are_none_at_the_end(shared: SharedGrid) -> None:
    assert uploads_open(shared.grid.helper) == 0
