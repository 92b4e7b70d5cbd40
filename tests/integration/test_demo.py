"""`tahoe-stream demo`, on a small grid."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client_shim.demo import MIB, run_demo


@pytest.fixture(autouse=True)
def temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo builds its grid."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # else tempfile remembers the old one
    return tmp_path


def processes_mentioning(path: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(path) in command and int(process.name) != os.getpid():
            found.append(command)
    return found


@pytest.mark.parametrize(("stock_servers", "told"), [
    (False, ["with the plugin tahoe-streaming-staging-v1", "Nobody but the client knows a storage index."]),
    (True, ["the client must reveal the storage index at once",
            "The helper has known the storage index from the start."]),
])
def test_demo_tells_the_story(temporary_directory: Path, stock_servers: bool, told: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    status = run_demo(size=6 * MIB, storage_nodes=3, k=1, happy=7, n=3, rate=4 * MIB, stock_servers=stock_servers,
                      out=out, err=err)
    story = err.getvalue()
    assert status == 0, story
    cap = out.getvalue()
    assert cap.startswith("URI:CHK:")
    assert cap.endswith(f":1:3:{6 * MIB}\n")
    assert cap.count("\n") == 1, "the cap alone on standard output"
    for expected in (
        "3 storage nodes",
        "happy = 3",
        "6 processes, all connected after",
        "Streaming 6 MiB of random bytes, at no more than 4 MiB/s",
        "the first block is on a server's disk;",
        "the last byte, 6.0 MiB in all. The stream is still open",
        "and 3 of 3 servers hold",
        "from the last byte to the cap",
        "6.0 MiB came back, SHA-256",
        "healthy: 3 good shares of 3, on 3 servers.",
        "Cleaned up: every process was stopped",
        *told,
    ):
        assert expected in story
    assert cap.strip() not in story
    assert list(temporary_directory.iterdir()) == []
    assert processes_mentioning(temporary_directory) == []


def test_tiny_file_is_kept_in_its_cap(temporary_directory: Path) -> None:
    file = temporary_directory / "tiny"
    file.write_bytes(b"x" * 55)
    out, err = io.StringIO(), io.StringIO()
    assert run_demo(file, storage_nodes=1, k=1, happy=1, n=1, out=out, err=err) == 0, err.getvalue()
    assert out.getvalue().startswith("URI:LIT:")
    assert "So small a file is kept in the cap itself" in err.getvalue()
    assert "55 bytes came back" in err.getvalue()


@pytest.mark.parametrize(
    ("name", "reason"), [("no-such-file", "No such file or directory"), (".", "it is a directory")]
)
def test_unreadable_source_is_refused_at_once(temporary_directory: Path, name: str, reason: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert run_demo(temporary_directory / name, out=out, err=err) == 1
    assert f"failed: cannot read {temporary_directory / name}: {reason}" in err.getvalue()
    assert "Building" not in err.getvalue()
    assert out.getvalue() == ""


@pytest.mark.parametrize(("number", "options"), [
    pytest.param(signal.SIGINT, ["--stock-servers"], marks=pytest.mark.long), (signal.SIGTERM, [])])
def test_signal_in_mid_stream_cleans_up(temporary_directory: Path, number: signal.Signals,
                                        options: list[str]) -> None:
    command = [sys.executable, "-m", "client_shim.cli", "demo", "--storage-nodes", "1", *options, "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert demo.stdin is not None
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdin.write(os.urandom(4 * MIB))
        demo.stdin.flush()
        for line in demo.stderr:
            if b"first block" in line:
                break
        assert processes_mentioning(temporary_directory)
        demo.send_signal(number)
        rest = demo.stderr.read().decode()
        assert demo.wait(60) == 1
        assert f"interrupted by {number.name}" in rest
        assert "Traceback" not in rest
        assert demo.stdout.read() == b""
    assert list(temporary_directory.iterdir()) == []
    assert processes_mentioning(temporary_directory) == []
