"""The helper's settings, and `streaming.cfg` in its node directory.

Sizes and durations are spelt as Tahoe spells them (`1 MiB`, `7 days`; also `10 seconds`). Settings that
stock Tahoe does not know cannot stand in tahoe.cfg: a stock node refuses to start on an unknown key.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from allmydata.util.abbreviate import parse_abbreviated_size
from allmydata.util.time_format import parse_duration

from helper.interfaces import LARGEST_MESSAGE, LARGEST_MESSAGE_MAX, LARGEST_MESSAGE_MIN

MiB = 1024 * 1024
GiB = 1024 * MiB

FILE_NAME = "streaming.cfg"
SECTION = "helper"


class SettingsError(Exception):
    """streaming.cfg cannot be used; the text names the file, the key and what was expected."""


@attrs.frozen
class Settings:
    """Sizes in bytes, durations in seconds."""

    #: Bytes of one upload that may be received and not yet durable: bounds memory.
    credit: int = 8 * MiB
    #: Bytes that may be durable and not yet on enough servers before put_ciphertext waits.
    pushing_lag: int = 4 * MiB
    #: Largest `data` of one put_ciphertext.
    largest_message: int = LARGEST_MESSAGE
    #: Bytes that are durable before a storage server is contacted: small uploads that are given up cost none.
    contact_after: int = 64 * 1024
    #: File size for which shares are first allocated when the size is unknown (protocol.txt §8.4).
    first_bound: int = 1 * GiB
    #: Uploads open at a time.
    uploads_max: int = 10_000
    #: An upload with data that is idle for so long is given up.
    idle_expiry: int = 7 * 86400
    #: An upload without a byte that is idle for so long is given up.
    empty_expiry: int = 3600
    #: How often expired uploads are looked for.
    sweep_interval: int = 300
    #: How long the answer of a finished, failed or aborted upload can be asked for again.
    result_retention: int = 7 * 86400
    #: How long `open` and placement wait for storage servers after the node has started.
    server_wait: int = 10


def _size(text: str) -> int:
    """Tahoe wants no space between number and unit."""
    value = parse_abbreviated_size(re.sub(r"(?<=[0-9]) +(?=[A-Za-z])", "", text))
    if value is None:
        raise ValueError("empty")
    return int(value)


_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


def _duration(text: str) -> int:
    """Tahoe knows days, months and years only."""
    match = re.fullmatch(r"([0-9]+) *([a-z]+?)s?", text)
    if match is not None and match[2] in _SECONDS:
        return int(match[1]) * _SECONDS[match[2]]
    return int(parse_duration(text))


def _count(text: str) -> int:
    return int(text)


@attrs.frozen
class _Key:
    """How one key of streaming.cfg is read."""

    field: str
    parse: Callable[[str], int]
    expected: str
    least: int = 1
    most: int | None = None


_SIZE = "a size such as 4 MiB"
_DURATION = "a duration such as 7 days"
_KEYS = {
    "credit": _Key("credit", _size, f"{_SIZE}, at least 64 kiB", least=65536),
    "pushing-lag": _Key("pushing_lag", _size, _SIZE),
    "largest-message": _Key("largest_message", _size, f"{_SIZE}, 16 kiB to 4 MiB",
                            LARGEST_MESSAGE_MIN, LARGEST_MESSAGE_MAX),
    "contact-after": _Key("contact_after", _size, _SIZE),
    "first-bound": _Key("first_bound", _size, _SIZE),
    "uploads-max": _Key("uploads_max", _count, "a number"),
    "idle-expiry": _Key("idle_expiry", _duration, _DURATION),
    "empty-expiry": _Key("empty_expiry", _duration, _DURATION),
    "sweep-interval": _Key("sweep_interval", _duration, _DURATION),
    "result-retention": _Key("result_retention", _duration, _DURATION),
    "server-wait": _Key("server_wait", _duration, "a duration such as 10 seconds", least=0),
}


def read_settings(node_directory: Path) -> Settings:
    """The settings in `streaming.cfg` of a node directory; defaults where it or a key is missing.

    Raises SettingsError for an unknown section or key and for a value that cannot be used.
    """
    path = node_directory / FILE_NAME
    # no default section: keys in [DEFAULT] would be taken, or ignored, without a word
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        with path.open(encoding="utf-8-sig") as f:
            parser.read_file(f)
    except FileNotFoundError:
        return Settings()
    except (OSError, configparser.Error, UnicodeDecodeError) as e:
        raise SettingsError(f"{path}: cannot be read: {e}") from e
    for section in parser.sections():
        if section != SECTION:
            raise SettingsError(f"{path}: unknown section [{section}]; expected [{SECTION}]")
    values: dict[str, Any] = {}
    for key, text in (parser.items(SECTION) if parser.has_section(SECTION) else ()):
        known = _KEYS.get(key)
        if known is None:
            raise SettingsError(f"{path}: unknown key {key!r} in [{SECTION}]; known are {', '.join(sorted(_KEYS))}")
        values[known.field] = _parse(path, key, known, text)
    return Settings(**values)


def _parse(path: Path, key: str, known: _Key, text: str) -> int:
    try:
        value = known.parse(text)
    except ValueError as e:
        raise SettingsError(f"{path}: {key} = {text!r}: expected {known.expected}") from e
    if value < known.least or (known.most is not None and value > known.most):
        raise SettingsError(f"{path}: {key} = {text!r}: expected {known.expected}")
    return value
