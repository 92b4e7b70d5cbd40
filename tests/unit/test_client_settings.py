"""Section [client] of streaming.cfg, and what a user reads when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from client_shim.dedup import DedupMode
from client_shim.disclosure import RevealStorageIndex
from client_shim.errors import BadNodeDirectory
from client_shim.node_config import read_node_config
from client_shim.settings import ClientSettings, read_client_settings
from helper.streaming_cfg import FILE_NAME, SettingsError


def write(directory: Path, text: str) -> Path:
    path = directory / FILE_NAME
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_all_defaults(tmp_path: Path) -> None:
    assert read_client_settings(tmp_path) == ClientSettings(RevealStorageIndex.AUTO, 3600)


@pytest.mark.parametrize("section", ["helper", "gateway"])
def test_sections_of_others_are_left_alone(tmp_path: Path, section: str) -> None:
    write(tmp_path, f"[{section}]\nanything = at all\n[client]\nreveal-storage-index = early\n")
    assert read_client_settings(tmp_path).reveal is RevealStorageIndex.EARLY


@pytest.mark.parametrize("reveal", RevealStorageIndex)
def test_reveal_storage_index(tmp_path: Path, reveal: RevealStorageIndex) -> None:
    write(tmp_path, f"[client]\nreveal-storage-index = {reveal.value}\n")
    assert read_client_settings(tmp_path).reveal is reveal


@pytest.mark.parametrize(("text", "seconds"), [
    ("1 hour", 3600), ("0 seconds", 0), ("90 minutes", 5400), ("7days", 7 * 86400), ("1 mo", 31 * 86400)])
def test_patience(tmp_path: Path, text: str, seconds: int) -> None:
    write(tmp_path, f"[client]\npatience = {text}\n")
    assert read_client_settings(tmp_path) == ClientSettings(patience=seconds)


@pytest.mark.parametrize("mode", DedupMode)
def test_dedup(tmp_path: Path, mode: DedupMode) -> None:
    write(tmp_path, f"[client]\ndedup = {mode.value}\n")
    assert read_client_settings(tmp_path) == ClientSettings(dedup=mode)
    assert ClientSettings().dedup is DedupMode.ON


@pytest.mark.parametrize(("text", "complaint"), [
    ("[client]\ndedup = yes\n", "dedup = 'yes': expected on or trust or off"),
    ("[client]\nreveal-storage-index = later\n",
     "reveal-storage-index = 'later': expected auto or early or at-completion"),
    ("[client]\nreveal-storage-index = EARLY\n",
     "reveal-storage-index = 'EARLY': expected auto or early or at-completion"),
    ("[client]\npatience = 5\n", "patience = '5': expected a duration such as 1 hour"),
    ("[client]\npatience = -1 days\n", "patience = '-1 days': expected a duration such as 1 hour"),
    ("[clients]\n", "unknown section [clients]; known are [client], [gateway], [helper]"),
    ("[client]\nreveal = early\n", "unknown key 'reveal' in [client]; known are dedup, patience, reveal-storage-index"),
])
def test_what_cannot_be_used(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        read_client_settings(tmp_path)
    assert str(caught.value) == f"{path}: {complaint}"


def test_a_node_directory_brings_its_settings(tmp_path: Path) -> None:
    (tmp_path / "tahoe.cfg").write_text("[client]\n")
    assert read_node_config(tmp_path).settings == ClientSettings()
    write(tmp_path, "[client]\nreveal-storage-index = at-completion\n")
    assert read_node_config(tmp_path).settings.reveal is RevealStorageIndex.AT_COMPLETION
    path = write(tmp_path, "[cleint]\n")
    with pytest.raises(BadNodeDirectory) as caught:
        read_node_config(tmp_path)
    assert caught.value.reason.startswith(f"{path}: unknown section [cleint]")
