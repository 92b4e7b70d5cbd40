"""`tahoe-stream put` as people and programs see it."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from allmydata import uri
from grid_tools import (
    DEAD_FURL,
    SERVERS,
    TAHOE_STREAM,
    MiB,
    SharedGrid,
    assert_stored,
    client_directory,
    download,
    end_of,
    feed,
    further_helper,
    helper_furl,
    put,
    put_in_progress,
    share_paths,
    spool_of,
    start_put,
    wait_for,
    wait_for_incoming,
    wait_until_clean,
)
from recording_helper import recording_helper
from slow_link import SlowLink, location, through

from client_shim.local_node import NodeProcess

#: Prints so many random bytes, then exits with a status.
COMMAND = "import os, sys; sys.stdout.buffer.write(os.urandom(int(sys.argv[1]))); sys.stdout.flush(); {end}"

#: Tells its process ID, prints 2 MiB, and waits.
ENDLESS_COMMAND = """
import os, sys, time
print(os.getpid(), file=sys.stderr, flush=True)
sys.stdout.buffer.write(bytes(2**21))
sys.stdout.flush()
time.sleep(1000)
"""


@pytest.fixture
def client(shared: SharedGrid) -> Path:
    return shared.grid.client.directory


# -- what is printed ---------------------------------------------------------------------------------------


def test_cap_alone_on_standard_output(shared: SharedGrid, client: Path) -> None:
    data = os.urandom(200_000)
    transcript = put(client, "-", stdin=data)
    assert re.fullmatch(rf"URI:CHK:[a-z2-7]{{26}}:[a-z2-7]{{52}}:3:5:{len(data)}\n", transcript.out)
    assert transcript.err == "", "standard error is not a terminal"
    assert transcript.status == 0
    assert download(shared.grid.client, transcript.cap) == data


def test_standard_input_is_the_default(shared: SharedGrid, client: Path) -> None:
    assert download(shared.grid.client, put(client, stdin=b"x" * 100).cap) == b"x" * 100


def test_file_as_standard_input(shared: SharedGrid, client: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data := os.urandom(150_000))
    command = [*TAHOE_STREAM, "put", "-d", str(client), "-"]
    with (tmp_path / "file").open("rb") as stdin:
        done = subprocess.run(command, stdin=stdin, capture_output=True, check=True, timeout=60)
    assert download(shared.grid.client, done.stdout.decode().strip()) == data


def test_named_pipe(shared: SharedGrid, client: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    data = os.urandom(2 * MiB)
    with put_in_progress(client, tmp_path / "fifo") as process:
        with (tmp_path / "fifo").open("wb") as f:
            f.write(data)
        assert download(shared.grid.client, end_of(process).cap) == data


def test_nothing_as_standard_input(client: Path) -> None:
    """As from cron."""
    process = start_put(client, "-", stdin=subprocess.DEVNULL)
    assert end_of(process).cap == "URI:LIT:"


def test_json_lines(client: Path, tmp_path: Path) -> None:
    size = 3 * MiB
    (tmp_path / "file").write_bytes(os.urandom(size))
    transcript = put(client, "--json", tmp_path / "file")
    assert transcript.cap
    events = transcript.events
    assert events[0] == {"event": "started", "size": size}
    (last_byte,) = [event for event in events if event["event"] == "last-byte"]
    # what is acknowledged while the upload is completed is progress, too
    assert {event["event"] for event in events[1:-1] if event is not last_byte} <= {"progress"}
    durable = [event["bytes_durable"] for event in events if "bytes_durable" in event]
    assert durable == sorted(durable)
    for event in events[1:]:
        assert event["size"] == size
        assert event["bytes_accepted"] >= event["bytes_sent"] >= event["bytes_durable"]
    assert last_byte["bytes_accepted"] == size
    assert events[-1]["event"] == "finished"
    assert events[-1]["bytes_durable"] == size
    assert 0 <= events[-1]["seconds_from_last_byte"] < 30
    assert events[-1]["dedup"] == "published"


def test_json_lines_of_unknown_size(client: Path) -> None:
    events = put(client, "--json", "-", stdin=os.urandom(70_000)).events
    assert events[0] == {"event": "started", "size": None}
    assert events[-1]["event"] == "finished"
    assert events[-1]["bytes_durable"] == 70_000


@pytest.mark.parametrize("known", [True, False])
def test_progress_bar_on_a_terminal(shared: SharedGrid, tmp_path: Path, known: bool) -> None:
    size = 3 * MiB
    (tmp_path / "file").write_bytes(os.urandom(size))
    source: list[str | Path] = [tmp_path / "file"] if known else ["--from-command", "--", "cat", tmp_path / "file"]
    furl = shared.grid.helper_furl
    with SlowLink(*location(furl), rate=2_000_000, delay=0.005) as link:
        directory = client_directory(tmp_path / "client", through(furl, link))
        out, shown = run_on_terminal(directory, *source)
    assert out.startswith(b"URI:CHK:")
    frames = [frame for frame in shown.split("\r") if frame.strip()]
    assert len(frames) >= 3, "it moves"
    assert "3.00M" in frames[-1], "all bytes, at the end"
    moving = " ".join(frames[1:])
    assert re.search(r"[0-9.]+[kM]B?/s", moving), "a rate"
    assert "00:0" in moving, "the time it has taken"
    if known:
        assert re.search(r"[0-9]+%\|", moving)
        assert re.search(r"<00:0[0-9]", moving), "the time left"
    else:
        assert "<" not in moving
        assert "%" not in moving


def run_on_terminal(directory: Path, *arguments: str | Path) -> tuple[bytes, str]:
    """Standard output, and what a `put` shows on the terminal that is its standard error."""
    ours, theirs = pty.openpty()
    try:
        termios.tcsetwinsize(theirs, (24, 100))
        command = [*TAHOE_STREAM, "put", "-d", str(directory), *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # EIO: the other side was closed
            pass
        out, _err = process.communicate(timeout=60)
    finally:
        os.close(ours)
    assert process.returncode == 0, shown
    return out, shown.decode()


def test_starts_quickly(client: Path, record_property: Callable[[str, object], None]) -> None:
    """Nothing but start-up: ten bytes are a literal cap."""
    seconds = []
    for _ in range(5):
        before = time.monotonic()
        assert put(client, "-", stdin=b"ten bytes!").cap.startswith("URI:LIT:")
        seconds.append(time.monotonic() - before)
    record_property("startup_seconds", round(min(seconds), 3))
    print(f"\n`put` of ten bytes, from start to end: {min(seconds):.2f} s at best, {max(seconds):.2f} s at worst")
    assert min(seconds) < 2


# -- errors ------------------------------------------------------------------------------------------------


def test_error_for_people(tmp_path: Path) -> None:
    transcript = put(tmp_path / "nowhere", "-")
    assert (transcript.status, transcript.out) == (1, "")
    assert transcript.err == (f"tahoe-stream: bad-node-directory: {tmp_path}/nowhere cannot be used as a client "
                              "node's directory: there is no tahoe.cfg in it\n")


def test_unknown_node_directory(tmp_path: Path) -> None:
    told = put(tmp_path / "nowhere", "--json", "-", stdin=bytes(100)).failed_with("bad-node-directory")
    assert told["where"] == str(tmp_path / "nowhere")


def test_node_without_a_helper(shared: SharedGrid) -> None:
    told = put(shared.plain_client.directory, "--json", "-", stdin=bytes(100)).failed_with("no-helper-configured")
    assert str(shared.plain_client.directory / "tahoe.cfg") in told["text"]


def test_helper_that_is_not_running(tmp_path: Path) -> None:
    before = time.monotonic()
    directory = client_directory(tmp_path / "client", DEAD_FURL)
    told = put(directory, "--json", "-", stdin=bytes(100)).failed_with("helper-unreachable")
    assert "is it running" in told["text"]
    assert time.monotonic() - before < 20


def test_furl_that_is_none(tmp_path: Path) -> None:
    directory = client_directory(tmp_path / "client", "http://127.0.0.1:3456/")
    put(directory, "--json", "-", stdin=bytes(100)).failed_with("bad-furl")


def test_furl_with_another_swissnum(shared: SharedGrid, tmp_path: Path) -> None:
    tub = shared.grid.helper_furl.rpartition("/")[0]
    directory = client_directory(tmp_path / "client", f"{tub}/{'a' * 32}")
    transcript = put(directory, "--json", "-", stdin=bytes(100))
    transcript.failed_with("helper-unreachable")
    assert "a" * 32 not in transcript.err


@pytest.mark.parametrize("name", ["missing", "."])
def test_file_that_cannot_be_read(client: Path, tmp_path: Path, name: str) -> None:
    told = put(client, "--json", tmp_path / name).failed_with("os-error")
    assert str(tmp_path) in told["text"] or "directory" in told["text"]


def test_cap_that_cannot_be_printed(client: Path) -> None:
    command = [*TAHOE_STREAM, "put", "-d", str(client), "-"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, input=bytes(100), stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == 1
    assert b"No space left" in done.stderr


# -- a regular file's size is declared ---------------------------------------------------------------------


@pytest.mark.parametrize(("change", "came"), [(-1, 5 * MiB - 1), (3, 5 * MiB + 3)])
def test_file_whose_size_changes_while_it_is_read(shared: SharedGrid, tmp_path: Path, change: int,
                                                  came: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(5 * MiB))
    shares = share_paths(shared.grid)

    def at_first_ciphertext(method: str, offset: int) -> None:
        # The client waits for its acknowledgement, and has not read far.
        if method == "put_ciphertext" and offset == 0:
            os.truncate(file, 5 * MiB + change)

    with recording_helper(shared.grid.helper_furl, at_first_ciphertext) as recorder:
        directory = client_directory(tmp_path / "client", recorder.furl)
        told = put(directory, "--json", file).failed_with("declared-size")
    assert (told["declared"], told["came"]) == (5 * MiB, came)
    assert recorder.uploads[0].parameters[b"size"] == 5 * MiB
    assert recorder.uploads[0].length <= 5 * MiB
    assert recorder.uploads[0].calls[-1] == "abort"
    wait_until_clean(shared.grid, shared.grid.helper, shares)


# -- --from-command ----------------------------------------------------------------------------------------


def python(end: str, size: int) -> tuple[str, ...]:
    return "--from-command", "--", sys.executable, "-c", COMMAND.format(end=end), str(size)


@pytest.mark.parametrize("size", [0, 40, 3 * MiB + 1])
def test_command_that_succeeds(shared: SharedGrid, client: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(data := os.urandom(size))
    cap = put(client, "--from-command", "--", "cat", tmp_path / "file").cap
    assert download(shared.plain_client, cap) == data


@pytest.mark.parametrize("size", [0, 40, 100_000, 3 * MiB])
def test_command_that_fails(shared: SharedGrid, client: Path, size: int) -> None:
    shares = share_paths(shared.grid)
    told = put(client, "--json", *python("sys.exit(3)", size)).failed_with("command-failed")
    assert told["status"] == 3
    assert "exited with status 3" in told["text"]
    wait_until_clean(shared.grid, shared.grid.helper, shares)


def test_command_that_is_killed(client: Path) -> None:
    told = put(client, "--json", *python("os.kill(os.getpid(), 9)", 100)).failed_with("command-failed")
    assert "was killed by signal 9" in told["text"]


def test_command_that_does_not_exist(client: Path) -> None:
    told = put(client, "--json", "--from-command", "--", "/no/such/command").failed_with("os-error")
    assert "/no/such/command" in told["text"]


def test_options_of_the_command_are_its_own(shared: SharedGrid, client: Path) -> None:
    command = ("printf", "%s %s", "--json", "-d")
    assert download(shared.plain_client, put(client, "--from-command", "--", *command).cap) == b"--json -d"


@pytest.mark.parametrize(("arguments", "complaint"), [
    (("--from-command",), "needs a command"),
    (("--from-command", "--convergent", "--", "true"), "cannot be read twice"),
    (("--convergent", "-"), "needs a regular file"),
    (("a", "b"), "one FILE only"),
    (("--patience", "a while", "a"), "'a while': expected a duration such as 1 hour"),
    (("--patience=-1 days", "a"), "'-1 days': expected a duration such as 1 hour"),
    (("--reveal-storage-index", "later", "a"), "'later' is not one of 'auto', 'early', 'at-completion'"),
])
def test_misuse(client: Path, arguments: tuple[str, ...], complaint: str) -> None:
    transcript = put(client, *arguments)
    assert transcript.status == 2, "as click does; nothing was tried"
    assert transcript.out == ""
    assert complaint in transcript.err


# -- the storage index ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "setting", "early"), [
    ("early", None, True), ("at-completion", None, False), ("at-completion", "early", False),
    (None, "early", True), (None, "at-completion", False)])
def test_when_the_storage_index_is_told(shared: SharedGrid, tmp_path: Path, option: str | None, setting: str | None,
                                        early: bool) -> None:
    data = os.urandom(300_000)
    with recording_helper(shared.grid.helper_furl) as recorder:
        directory = client_directory(tmp_path / "client", recorder.furl)
        if setting is not None:
            (directory / "streaming.cfg").write_text(f"[client]\nreveal-storage-index = {setting}\n")
        arguments = () if option is None else (f"--reveal-storage-index={option}",)
        cap = put(directory, *arguments, "-", stdin=data).cap
        (upload,) = recorder.uploads
    assert ("assign" in upload.calls) is early
    assert upload.storage_indexes == {uri.from_string(cap.encode()).get_storage_index()}
    assert download(shared.grid.client, cap) == data


def test_setting_that_cannot_be_used(shared: SharedGrid, tmp_path: Path) -> None:
    directory = client_directory(tmp_path / "client", shared.grid.helper_furl)
    (directory / "streaming.cfg").write_text("[client]\nreveal-storage-index = later\n")
    told = put(directory, "--json", "-", stdin=bytes(100)).failed_with("bad-node-directory")
    assert "reveal-storage-index = 'later': expected auto or early or at-completion" in told["text"]


# -- a connection that breaks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [pytest.param(True, marks=pytest.mark.long), False])
def test_connection_that_breaks_is_a_pause(shared: SharedGrid, tmp_path: Path, declared: bool) -> None:
    (tmp_path / "file").write_bytes(data := os.urandom(6 * MiB))
    furl = shared.grid.helper_furl
    with SlowLink(*location(furl), rate=2_000_000, delay=0.005) as link:
        directory = client_directory(tmp_path / "client", through(furl, link))
        process = start_put(directory, "--json", tmp_path / "file" if declared else "-")
        if not declared:
            feed(process, data[:4 * MiB])
        wait_for_incoming(shared.grid, SERVERS)
        link.drop()
        transcript = end_of(process, None if declared else data[4 * MiB:])
        assert link.cut() == 2, "another connection"
    assert download(shared.grid.client, transcript.cap) == data
    events = transcript.events
    told = [event for event in events if event["event"] in ("paused", "resumed")]
    assert [event["event"] for event in told] == ["paused", "resumed"]
    assert told[0]["code"] == "helper-lost"
    assert told[0]["patience"] == 3600
    assert told[1]["seconds"] < 10
    durable = [event["bytes_durable"] for event in events if "bytes_durable" in event]
    assert durable == sorted(durable)


# -- signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_mid_stream(shared: SharedGrid, client: Path, number: signal.Signals) -> None:
    shares = share_paths(shared.grid)
    with put_in_progress(client, "-") as process:
        feed(process, os.urandom(3 * MiB))
        wait_for_incoming(shared.grid, servers=4)
        process.send_signal(number)
        assert process.wait(30) == 1
        transcript = end_of(process)
    assert transcript.out == ""
    assert transcript.err == f"tahoe-stream: interrupted by {number.name}; the upload was aborted\n"
    wait_until_clean(shared.grid, shared.grid.helper, shares)


def test_signal_ends_the_command_too(shared: SharedGrid, client: Path, tmp_path: Path) -> None:
    shares = share_paths(shared.grid)
    with put_in_progress(client, "--from-command", "--", sys.executable, "-c", ENDLESS_COMMAND) as process:
        assert process.stderr is not None
        pid = int(process.stderr.readline())
        wait_for_incoming(shared.grid, servers=1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 1
        assert end_of(process).out == ""
    assert not Path(f"/proc/{pid}").exists() or b"time.sleep" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    wait_until_clean(shared.grid, shared.grid.helper, shares)


def test_signal_before_the_first_byte(client: Path) -> None:
    with put_in_progress(client, "--json", "-") as process:
        assert process.stderr is not None
        process.stderr.readline()  # "started"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 1
        transcript = end_of(process)
    assert transcript.failed_with("interrupted")["text"] == "SIGINT"


def test_signal_while_pass_one_reads(client: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    os.truncate(file, 1 << 40)  # a hole; reading it would take an hour

    def reading() -> bool:
        for fd in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # files are opened and closed while we look
                if os.readlink(fd) == str(file):
                    return not (fd.parent.parent / "fdinfo" / fd.name).read_text().startswith("pos:\t0\n")
        return False

    with put_in_progress(client, "--json", "--convergent", file) as process:
        wait_for("pass one", reading)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
        assert end_of(process).failed_with("interrupted")["text"] == "SIGTERM"


@pytest.fixture(scope="module")
def hung_helper(shared: SharedGrid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """It takes connections (the kernel does) and says nothing."""
    with further_helper(shared.grid, "hung-helper") as helper:
        helper.suspend()
        yield helper


def connections_to(port: int) -> int:
    """How many established TCP connections there are."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[2].endswith(f":{port:04X}") and fields[3] == "01" for fields in lines)


def test_signal_while_connecting_to_a_helper_that_hangs(hung_helper: NodeProcess, tmp_path: Path) -> None:
    directory = client_directory(tmp_path / "client", helper_furl(hung_helper))
    with put_in_progress(directory, "--json", "-") as process:
        feed(process, bytes(100))
        wait_for("a connection", lambda: connections_to(location(helper_furl(hung_helper))[1]))
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 1
        end_of(process).failed_with("interrupted")


@pytest.mark.long
def test_helper_that_hangs_is_given_up(hung_helper: NodeProcess, tmp_path: Path) -> None:
    directory = client_directory(tmp_path / "client", helper_furl(hung_helper))
    before = time.monotonic()
    told = put(directory, "--json", "-", stdin=bytes(100)).failed_with("helper-unreachable")
    assert "no answer for 30 seconds" in told["text"]
    assert time.monotonic() - before < 45


@pytest.mark.long
def test_signal_in_mid_stream_to_a_helper_that_hangs(hung_helper: NodeProcess, tmp_path: Path) -> None:
    directory = client_directory(tmp_path / "client", helper_furl(hung_helper))
    hung_helper.resume()
    with put_in_progress(directory, "--json", "-") as process:
        feed(process, bytes(200_000))
        wait_for("ciphertext at the helper", lambda: spool_of(hung_helper))
        hung_helper.suspend()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
        end_of(process).failed_with("interrupted")


# -- --verify ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40, 100_000, 5 * MiB + 9])
def test_verify(shared: SharedGrid, client: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(data := os.urandom(size))
    for arguments in (["-"], [tmp_path / "file"], ["--convergent", tmp_path / "file"]):
        transcript = put(client, "--json", "--verify", *arguments, stdin=data)
        assert [e["event"] for e in transcript.events[-2:]] == ["verified", "finished"]
        assert download(shared.plain_client, transcript.cap) == data


def test_verify_with_the_client_node_down(shared: SharedGrid, tmp_path: Path) -> None:
    directory = client_directory(tmp_path / "client", shared.grid.helper_furl)
    put(directory, "--json", "--verify", "-", stdin=bytes(100)).failed_with("bad-node-directory")
    (directory / "node.url").write_text("http://127.0.0.1:1/\n")
    transcript = put(directory, "--json", "--verify", "-", stdin=os.urandom(100_000))
    assert "did not answer" in transcript.failed_with("verify-failed")["text"]
    assert "finished" not in {event["event"] for event in transcript.events}
    assert "URI:" not in transcript.err


def test_verify_of_a_file_that_cannot_be_read(shared: SharedGrid, client: Path, tmp_path: Path) -> None:
    """The shares are gone when they are read: the node's answer, an error page, quotes the cap."""
    directory = client_directory(tmp_path / "client", shared.grid.helper_furl)
    (directory / "node.url").write_text(f"{shared.grid.introducer.web_url}\n")  # a node, but no client
    transcript = put(directory, "--json", "--verify", "-", stdin=os.urandom(100_000))
    assert "answered 404" in transcript.failed_with("verify-failed")["text"]
    assert "URI:" not in transcript.err


def test_verified_is_stored(shared: SharedGrid, client: Path) -> None:
    data = os.urandom(2 * MiB)
    assert_stored(shared, put(client, "--verify", "-", stdin=data).cap, data)
