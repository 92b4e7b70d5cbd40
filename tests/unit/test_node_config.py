"""What is read from a client node's directory, and what a user reads when it cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from allmydata.client import _Client
from allmydata.util import base32
from hypothesis import given
from hypothesis import strategies as st

from client_shim.errors import BadNodeDirectory, NoHelperConfigured
from client_shim.node_config import read_node_config
from helper.parameters import Parameters

FURL = "pb://abc@tcp:127.0.0.1:1/swissnum"


def node(directory: Path, cfg: str = "[client]\n") -> Path:
    (directory / "private").mkdir()
    (directory / "tahoe.cfg").write_text(cfg, encoding="utf-8")
    return directory


def reason(directory: Path) -> str:
    with pytest.raises(BadNodeDirectory) as caught:
        read_node_config(directory)
    assert caught.value.where == str(directory)
    return caught.value.reason


@pytest.mark.parametrize("cfg", ["", "[node]\nnickname = x\n", "[client]\n"])
def test_defaults_are_tahoes(tmp_path: Path, cfg: str) -> None:
    stock = _Client.DEFAULT_ENCODING_PARAMETERS
    config = read_node_config(node(tmp_path, cfg))
    assert config.directory == tmp_path
    assert config.parameters == Parameters(stock["k"], stock["happy"], stock["n"], stock["max_segment_size"])
    assert config.parameters.size is None


def test_everything(tmp_path: Path) -> None:
    config = read_node_config(node(tmp_path, (
        "\ufeff[node]\nnickname = 100%\n[client]\nshares.needed = 1\nshares.happy = 2\nshares.total = 4\n"
        f"shares._max_immutable_segment_size_for_testing = 4096\nhelper.furl = {FURL}\n")))
    assert config.parameters == Parameters(1, 2, 4, 4096)
    assert config.helper_furl == FURL


@pytest.mark.parametrize("line", ["", "helper.furl =", "helper.furl = None", "helper.furl =   "])
def test_no_helper(tmp_path: Path, line: str) -> None:
    config = read_node_config(node(tmp_path, f"[client]\n{line}\n"))
    with pytest.raises(NoHelperConfigured) as caught:
        _ = config.helper_furl
    assert caught.value.where == str(tmp_path / "tahoe.cfg")


def test_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".tahoe").mkdir()
    node(tmp_path / ".tahoe")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_node_config(Path("~/.tahoe")).directory == tmp_path / ".tahoe"


# -- directories that cannot be used --------------------------------------------------------------------


def test_no_configuration(tmp_path: Path) -> None:
    assert reason(tmp_path) == "there is no tahoe.cfg in it"
    assert reason(tmp_path / "nowhere") == "there is no tahoe.cfg in it"


def test_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert reason(tmp_path / "file") == "tahoe.cfg cannot be read (NotADirectoryError)"


@pytest.mark.parametrize(("content", "kind"), [
    (b"shares.needed = 3\n", "MissingSectionHeaderError"),
    (b"[client]\n[client]\n", "DuplicateSectionError"),
    (b"[client]\na = 1\na = 2\n", "DuplicateOptionError"),
    (b"[client]\nwhat\n", "ParsingError"),
    (b"[client]\n# \xe9\n", "UnicodeDecodeError"),
])
def test_malformed_configuration(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "tahoe.cfg").write_bytes(content)
    assert reason(tmp_path) == f"tahoe.cfg cannot be read ({kind})"


@pytest.mark.parametrize(("line", "expected"), [
    ("shares.needed = three", "shares.needed = 'three' in tahoe.cfg is not a number"),
    ("shares.happy =", "shares.happy = '' in tahoe.cfg is not a number"),
    ("shares.total = 1.5", "shares.total = '1.5' in tahoe.cfg is not a number"),
    ("shares._max_immutable_segment_size_for_testing = 1 MiB",
     "shares._max_immutable_segment_size_for_testing = '1 MiB' in tahoe.cfg is not a number"),
    ("shares.needed = 0", "encoding parameters in tahoe.cfg: k: expected a number from 1 to 256, got 0"),
    ("shares.needed = 11", "encoding parameters in tahoe.cfg: k: expected a number from 1 to 10, got 11"),
    ("shares.happy = 11", "encoding parameters in tahoe.cfg: happy: expected a number from 1 to 10, got 11"),
    ("shares.total = 257", "encoding parameters in tahoe.cfg: n: expected a number from 1 to 256, got 257"),
    ("shares._max_immutable_segment_size_for_testing = 8388609",
     "encoding parameters in tahoe.cfg: max-segment-size: expected a number from 1 to 8388608, got 8388609"),
])
def test_bad_parameters(tmp_path: Path, line: str, expected: str) -> None:
    assert reason(node(tmp_path, f"[client]\n{line}\n")) == expected


# -- what else a node directory holds -------------------------------------------------------------------


@given(secret=st.binary(min_size=1, max_size=64))
def test_convergence_secret(tmp_path_factory: pytest.TempPathFactory, secret: bytes) -> None:
    config = read_node_config(node(tmp_path_factory.mktemp("node")))
    (config.directory / "private" / "convergence").write_bytes(base32.b2a(secret) + b"\n")
    assert config.convergence_secret() == secret


@pytest.mark.parametrize("content", [b"not base32!", b"ABC1", "é".encode(), b"a", b"ab cd", b"aaaa\nbbbb"])
def test_malformed_convergence_secret(tmp_path: Path, content: bytes) -> None:
    config = read_node_config(node(tmp_path))
    (tmp_path / "private" / "convergence").write_bytes(content)
    with pytest.raises(BadNodeDirectory) as caught:
        config.convergence_secret()
    assert caught.value.reason == "private/convergence is not base32"
    assert str(caught.value).endswith(f"{tmp_path} cannot be used as a client node's directory: {caught.value.reason}")
    assert caught.value.__suppress_context__  # allmydata's own text quotes the secret


def test_node_that_never_ran(tmp_path: Path) -> None:
    config = read_node_config(node(tmp_path))
    with pytest.raises(BadNodeDirectory) as caught:
        config.convergence_secret()
    assert caught.value.reason == f"private{os.sep}convergence cannot be read"
    with pytest.raises(BadNodeDirectory) as caught:
        config.node_url()
    assert caught.value.reason == "node.url cannot be read"


@pytest.mark.parametrize("content", [
    "http://127.0.0.1:3456", "http://127.0.0.1:3456/", "http://127.0.0.1:3456/\n", " http://127.0.0.1:3456//\n"])
def test_node_url(tmp_path: Path, content: str) -> None:
    config = read_node_config(node(tmp_path))
    (tmp_path / "node.url").write_text(content)
    assert config.node_url() == "http://127.0.0.1:3456/"
