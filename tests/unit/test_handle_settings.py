"""The keys of section [gateway] that are about upload handles."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from client_shim.gateway.handle_settings import DAY, HANDLE_KEYS, HandleSettings, MiB
from helper.streaming_cfg import FILE_NAME, SettingsError, read_section


def read(directory: Path, text: str) -> HandleSettings:
    (directory / FILE_NAME).write_text(f"[gateway]\n{text}\n", encoding="utf-8")
    return HandleSettings(**read_section(directory, "gateway", HANDLE_KEYS))


def test_every_key_is_a_field() -> None:
    fields = {field.name for field in attrs.fields(HandleSettings)}
    assert {key.field for key in HANDLE_KEYS.values()} == fields - {"helper_wait"}


def test_values(tmp_path: Path) -> None:
    assert read(tmp_path, "") == HandleSettings()
    assert read(tmp_path, "handles-max = 5\nhandle-expiry = 2 days\nresult-retention = 60 seconds\nring-memory = 1 MiB"
                ) == HandleSettings(5, 2 * DAY, 60, MiB)


@pytest.mark.parametrize("line", ["handles-max = 0", "handle-expiry = 59 seconds", "handle-expiry = soon",
                                  "result-retention = 0 seconds", "ring-memory = 1 KiB", "ring-memory = much"])
def test_values_that_cannot_be(tmp_path: Path, line: str) -> None:
    with pytest.raises(SettingsError, match=r"expected a (number of uploads|duration|size) ?"):
        read(tmp_path, line)
