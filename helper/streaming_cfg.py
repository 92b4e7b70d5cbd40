"""`streaming.cfg` of a node directory, as far as both sides read it: its sections, its values, its errors.

Settings that stock Tahoe does not know cannot stand in tahoe.cfg: a stock node refuses to start on an unknown
key. One node directory may be a helper's and a client's: each side reads its own section, and leaves alone those
that it knows to be another's. Sizes and durations are spelt as Tahoe spells them (`1 MiB`, `7 days`; also
`10 seconds`).
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from allmydata.util.abbreviate import parse_abbreviated_size
from allmydata.util.time_format import parse_duration

FILE_NAME = "streaming.cfg"

#: Every section that something of this package reads.
SECTIONS = ("client", "gateway", "helper")


class SettingsError(Exception):
    """streaming.cfg cannot be used; the text names the file, the key and what was expected."""


@attrs.frozen
class Key:
    """How one key is read. `parse` raises ValueError; a number must be at least `least` and at most `most`."""

    field: str
    parse: Callable[[str], Any]
    expected: str
    least: int = 1
    most: int | None = None

    def value(self, text: str) -> Any:
        """Raises ValueError for what `expected` does not describe."""
        value = self.parse(text)
        if isinstance(value, int) and (value < self.least or (self.most is not None and value > self.most)):
            raise ValueError("out of bounds")
        return value


def read_section(node_directory: Path, section: str, keys: Mapping[str, Key]) -> dict[str, Any]:
    """The values of one section, by `Key.field`; nothing where the file, the section or a key is missing.

    Raises SettingsError for a section or key that nobody knows, and for a value that cannot be used.
    """
    path = node_directory / FILE_NAME
    # no default section: keys in [DEFAULT] would be taken, or ignored, without a word
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        with path.open(encoding="utf-8-sig") as f:
            parser.read_file(f)
    except FileNotFoundError:
        return {}
    except (OSError, configparser.Error, UnicodeDecodeError) as e:
        raise SettingsError(f"{path}: cannot be read: {e}") from e
    for found in parser.sections():
        if found not in SECTIONS:
            known_sections = ", ".join(f"[{each}]" for each in SECTIONS)
            raise SettingsError(f"{path}: unknown section [{found}]; known are {known_sections}")
    values: dict[str, Any] = {}
    for name, text in (parser.items(section) if parser.has_section(section) else ()):
        key = keys.get(name)
        if key is None:
            raise SettingsError(f"{path}: unknown key {name!r} in [{section}]; known are {', '.join(sorted(keys))}")
        try:
            values[key.field] = key.value(text)
        except ValueError as e:
            raise SettingsError(f"{path}: {name} = {text!r}: expected {key.expected}") from e
    return values


def size_of(text: str) -> int:
    """Bytes. Tahoe wants no space between number and unit; we allow it. Raises ValueError."""
    value = parse_abbreviated_size(re.sub(r"(?<=[0-9]) +(?=[A-Za-z])", "", text))
    if value is None:
        raise ValueError("empty")
    return int(value)


_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


def duration_of(text: str) -> int:
    """Seconds. Tahoe knows days, months and years only; we know shorter ones too. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+) *([a-z]+?)s?", text)
    if match is not None and match[2] in _SECONDS:
        return int(match[1]) * _SECONDS[match[2]]
    return int(parse_duration(text))


def count_of(text: str) -> int:
    """A number. Raises ValueError."""
    return int(text)
