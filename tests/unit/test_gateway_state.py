"""The gateway's own directory and its settings."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from client_shim.dedup import DedupMode
from client_shim.gateway.errors import BadStateDirectory, GatewayRunning
from client_shim.gateway.service import url_of
from client_shim.gateway.settings import DEFAULT_LISTEN, GatewaySettings, read_gateway_settings
from client_shim.gateway.state import StateDirectory
from helper.streaming_cfg import FILE_NAME, SettingsError


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "private" / "aliases").write_text("tahoe: URI:DIR2:a\n")
    (tmp_path / "private" / "api_auth_token").write_text("token")
    return tmp_path


def test_it_is_a_node_directory_for_the_command_line(node: Path) -> None:
    state = StateDirectory(node)
    state.take()
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((state.path / "lock").stat().st_mode) == 0o600
    assert (state.path / "private" / "aliases").read_text() == "tahoe: URI:DIR2:a\n"
    assert (state.path / "private" / "api_auth_token").read_text() == "token"
    assert not (state.path / "node.url").exists()
    state.listening("http://127.0.0.1:1234/")
    assert (state.path / "node.url").read_text() == "http://127.0.0.1:1234/\n"
    state.release()
    assert not (state.path / "node.url").exists()
    state.release()


def test_aliases_that_are_replaced_are_the_nodes(node: Path) -> None:
    state = StateDirectory(node)
    state.take()
    new = state.path / "private" / "aliases.new"
    new.write_text("other: URI:DIR2:b\n")
    new.replace(state.path / "private" / "aliases")
    state.release()
    assert (node / "private" / "aliases").read_text() == "other: URI:DIR2:b\n"
    state.take()
    assert (state.path / "private" / "aliases").read_text() == "other: URI:DIR2:b\n"
    state.release()


def test_one_gateway_at_a_time(node: Path) -> None:
    first, second = StateDirectory(node), StateDirectory(node)
    first.take()
    first.listening("http://127.0.0.1:1234/")
    with pytest.raises(GatewayRunning) as caught:
        second.take()
    assert caught.value.text() == f"another gateway runs on {node}; one client node has one gateway"
    second.release()
    assert (node / "streaming" / "node.url").exists(), "of the first one"
    first.release()
    second.take()
    second.release()


def test_what_a_killed_gateway_left(node: Path) -> None:
    state = StateDirectory(node)
    state.path.mkdir(mode=0o755)
    (state.path / "node.url").write_text("http://127.0.0.1:1/\n")
    (state.path / "private").symlink_to("/nowhere")
    state.take()
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    assert not (state.path / "node.url").exists()
    assert (state.path / "private").readlink() == Path("../private")
    state.release()


def test_what_cannot_be_used(node: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "lock"
    (node / "streaming").mkdir()
    (node / "streaming" / "lock").symlink_to(elsewhere)
    with pytest.raises(BadStateDirectory):
        StateDirectory(node).take()
    assert not elsewhere.exists()
    os.unlink(node / "streaming" / "lock")
    (node / "streaming" / "private").mkdir()
    with pytest.raises(BadStateDirectory, match="File exists"):
        StateDirectory(node).take()
    (node / "streaming" / "private").rmdir()
    state = StateDirectory(node)
    state.take()  # the lock was given back
    state.release()
    with pytest.raises(BadStateDirectory, match="No such file"):
        StateDirectory(node / "nowhere").take()


@pytest.mark.parametrize(("address", "url"), [
    (IPv4Address("TCP", "127.0.0.1", 80), "http://127.0.0.1:80/"),
    (IPv4Address("TCP", "0.0.0.0", 80), "http://127.0.0.1:80/"),
    (IPv4Address("TCP", "192.0.2.1", 80), "http://192.0.2.1:80/"),
    (IPv6Address("TCP", "::", 80), "http://[::1]:80/"),
    (IPv6Address("TCP", "2001:db8::1", 80), "http://[2001:db8::1]:80/"),
    (UNIXAddress("/run/x"), None)])
def test_urls(address: object, url: str | None) -> None:
    assert url_of(address) == url  # type: ignore[arg-type]


# -- settings ------------------------------------------------------------------------------------------------


def test_without_a_file_all_defaults(tmp_path: Path) -> None:
    assert read_gateway_settings(tmp_path) == GatewaySettings()
    assert GatewaySettings().listen == DEFAULT_LISTEN == "tcp:3457:interface=127.0.0.1"


def test_all_settings(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("""
[client]
patience = 1 hour
[gateway]
listen = tcp:8080:interface=192.0.2.1
head-timeout = 10 seconds
body-timeout = 2 hours
idle-timeout = 5 seconds
helper-wait = 0 seconds
connections-max = 20
connections-per-host = 10
dedup = trust
hosts = uploads.example, other.example
allow-origins = https://a.example http://B.example:8080
""")
    assert read_gateway_settings(tmp_path) == GatewaySettings(
        "tcp:8080:interface=192.0.2.1", 10, 7200, 5, 0, 20, 10, DedupMode.TRUST, ("uploads.example", "other.example"),
        ("https://a.example", "http://b.example:8080"))


@pytest.mark.parametrize(("line", "complaint"), [
    ("listen =", "listen = '': expected a Twisted endpoint such as tcp:3457:interface=127.0.0.1"),
    ("head-timeout = 0 seconds", "head-timeout = '0 seconds': expected a duration such as 30 seconds"),
    ("connections-max = none", "connections-max = 'none': expected a number of connections"),
    ("allow-origins = *", ("allow-origins = '*': expected origins such as https://uploads.example, "
                          "with spaces between them")),
    ("allow-origins = https://a.example/", ("allow-origins = 'https://a.example/': expected origins such as "
                                           "https://uploads.example, with spaces between them")),
    ("allow-origins = null", ("allow-origins = 'null': expected origins such as https://uploads.example, "
                             "with spaces between them")),
])
def test_what_cannot_be_set(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / FILE_NAME).write_text(f"[gateway]\n{line}\n")
    with pytest.raises(SettingsError) as caught:
        read_gateway_settings(tmp_path)
    assert str(caught.value) == f"{tmp_path / FILE_NAME}: {complaint}"
