"""streaming.cfg: every key, every bound, and what an operator reads when it is wrong."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from helper.settings import FILE_NAME, Settings, SettingsError, read_settings

KiB, MiB, GiB = 1024, 1024**2, 1024**3
DAY = 86400

#: key, field, (text, value) pairs that are taken, texts that are not, what is expected instead
KEYS = [
    ("credit", "credit", [("64 KiB", 65536), ("8MiB", 8 * MiB), ("65536", 65536), ("1 GiB", GiB)],
     ["65535", "63 KiB", "0"], "a size such as 4 MiB, at least 64 kiB"),
    ("pushing-lag", "pushing_lag", [("1", 1), ("4 MiB", 4 * MiB), ("4 MB", 4_000_000)], ["0"],
     "a size such as 4 MiB"),
    ("largest-message", "largest_message", [("16 kiB", 16384), ("4 MiB", 4 * MiB)],
     ["16383", "4194305", "5 MiB"], "a size such as 4 MiB, 16 kiB to 4 MiB"),
    ("contact-after", "contact_after", [("1", 1), ("64 KiB", 65536)], ["0"], "a size such as 4 MiB"),
    ("first-bound", "first_bound", [("1", 1), ("1 GiB", GiB), ("2 TiB", 2 * 1024 * GiB)], ["0"],
     "a size such as 4 MiB"),
    ("spool-quota", "spool_quota", [("1", 1), ("2 TiB", 2 * 1024 * GiB)], ["0"], "a size such as 4 MiB"),
    ("upload-quota", "upload_quota", [("1", 1), ("10 GiB", 10 * GiB)], ["0"], "a size such as 4 MiB"),
    ("free-disk", "free_disk", [("0", 0), ("1 GiB", GiB)], ["-1"], "a size such as 4 MiB"),
    ("room-patience", "room_patience", [("10 minutes", 600)], ["0 seconds"], "a duration such as 7 days"),
    ("uploads-max", "uploads_max", [("1", 1), ("10000", 10_000)], ["0", "-1", "1 kiB", "1.5"], "a number"),
    ("connections-max", "connections_max", [("1", 1), ("10000", 10_000)], ["0", "10001"], "a number from 1 to 10000"),
    ("idle-expiry", "idle_expiry", [("7 days", 7 * DAY), ("1day", DAY), ("1 second", 1), ("2 months", 62 * DAY)],
     ["0 days", "-1 days", "7"], "a duration such as 7 days"),
    ("empty-expiry", "empty_expiry", [("1 hour", 3600), ("90 minutes", 5400), ("36hours", 36 * 3600)],
     ["0 seconds"], "a duration such as 7 days"),
    ("sweep-interval", "sweep_interval", [("5 minutes", 300), ("1 year", 365 * DAY)], ["0 hours"],
     "a duration such as 7 days"),
    ("result-retention", "result_retention", [("7 days", 7 * DAY), ("1 mo", 31 * DAY)], ["0 days"],
     "a duration such as 7 days"),
    ("away-patience", "away_patience", [("1 minute", 60)], ["0 seconds"], "a duration such as 7 days"),
    ("needed-patience", "needed_patience", [("10 minutes", 600)], ["0 seconds"], "a duration such as 7 days"),
    ("stall-servers", "stall_servers", [("3", 3)], ["0"], "a number"),
    ("stall-factor", "stall_factor", [("2", 2)], ["0"], "a number"),
    ("stall-least", "stall_least", [("10 seconds", 10)], ["0 seconds"], "a duration such as 7 days"),
    ("stall-most", "stall_most", [("60 seconds", 60)], ["0 seconds"], "a duration such as 7 days"),
    ("placing-patience", "placing_patience", [("1 day", DAY)], ["0 seconds"], "a duration such as 7 days"),
    ("look-up-patience", "look_up_patience", [("1 second", 1), ("5 seconds", 5)], ["0 seconds"],
     "a duration such as 1 second"),
    ("sealed-records-max", "sealed_records_max", [("0", 0), ("100000", 100_000)], ["-1"], "a number"),
    ("server-wait", "server_wait", [("10 seconds", 10), ("0 seconds", 0), ("1 minute", 60)], ["-1 seconds"],
     "a duration such as 10 seconds"),
]
NONSENSE = ["", "many", "4 parsecs", "MiB", "1 2", "-4 MiB", "4 MiB more", "0x10", "1e3", "days", "NaN"]


def write(directory: Path, text: str, encoding: str = "utf-8") -> Path:
    path = directory / FILE_NAME
    path.write_text(text, encoding=encoding)
    return path


def text_of_error(directory: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        read_settings(directory)
    return str(caught.value)


def test_without_a_file_all_defaults(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == Settings()


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "[helper]\n", "[helper]\n# credit = 1 MiB\n"])
def test_an_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    assert read_settings(tmp_path) == Settings()


def test_defaults_are_those_of_the_protocol() -> None:
    settings = Settings()
    assert settings.credit == 8 * MiB  # protocol.txt §7.1
    assert settings.pushing_lag == 4 * MiB  # §7.3
    assert settings.largest_message == 2 * MiB
    assert settings.contact_after == 64 * KiB  # §4.1
    assert settings.first_bound == GiB  # §8.4
    assert (settings.idle_expiry, settings.empty_expiry) == (7 * DAY, 3600)  # §6.2
    assert settings.result_retention == 7 * DAY  # §6.3
    assert settings.server_wait == 10  # §4.1
    assert settings.room_patience == 600  # §7.4
    assert settings.placing_patience == DAY  # §6.4
    assert (settings.away_patience, settings.needed_patience) == (60, 600)  # §8.6
    assert (settings.stall_servers, settings.stall_factor, settings.stall_least, settings.stall_most) == (3, 2, 10, 60)


def test_every_setting_has_a_key() -> None:
    assert [field for _key, field, *_rest in KEYS] == [a.name for a in attrs.fields(Settings)]


@pytest.mark.parametrize(("key", "field", "text", "value"), [
    (key, field, text, value) for key, field, good, *_rest in KEYS for text, value in good])
def test_key(tmp_path: Path, key: str, field: str, text: str, value: int) -> None:
    write(tmp_path, f"[helper]\n{key} = {text}\n")
    assert read_settings(tmp_path) == attrs.evolve(Settings(), **{field: value})


@pytest.mark.parametrize(("key", "text", "expected"), [
    (key, text, expected) for key, _field, _good, bad, expected in KEYS for text in [*bad, *NONSENSE]])
def test_bad_value(tmp_path: Path, key: str, text: str, expected: str) -> None:
    path = write(tmp_path, f"[helper]\n{key} = {text}\n")
    assert text_of_error(tmp_path) == f"{path}: {key} = {text!r}: expected {expected}"


def test_what_is_expected_is_accepted(tmp_path: Path) -> None:
    """The example in each error text is a value that can be used."""
    for key, _field, _good, _bad, expected in KEYS:
        example = expected.removeprefix("a size such as ").removeprefix("a duration such as ").partition(",")[0]
        write(tmp_path, f"[helper]\n{key} = {'5' if example.startswith('a number') else example}\n")
        read_settings(tmp_path)


def test_all_keys_at_once(tmp_path: Path) -> None:
    write(tmp_path, "[helper]\n" + "".join(f"{key}: {good[0][0]}\n" for key, _field, good, *_rest in KEYS))
    assert attrs.asdict(read_settings(tmp_path)) == {field: good[0][1] for _key, field, good, *_rest in KEYS}


def test_unknown_key(tmp_path: Path) -> None:
    path = write(tmp_path, "[helper]\ncredits = 1 MiB\n")
    known = ("away-patience, connections-max, contact-after, credit, empty-expiry, first-bound, free-disk, "
             "idle-expiry, largest-message, look-up-patience, needed-patience, placing-patience, pushing-lag, "
             "result-retention, room-patience, sealed-records-max, server-wait, spool-quota, stall-factor, "
             "stall-least, stall-most, stall-servers, sweep-interval, upload-quota, uploads-max")
    assert text_of_error(tmp_path) == f"{path}: unknown key 'credits' in [helper]; known are {known}"


@pytest.mark.parametrize("section", ["Helper", "clients", "DEFAULT", "default"])
def test_unknown_section(tmp_path: Path, section: str) -> None:
    for text in (f"[{section}]\ncredit = 1 MiB\n", f"[{section}]\n", f"[{section}]\ncredit = 1 MiB\n[helper]\n"):
        path = write(tmp_path, text)
        known = "[client], [gateway], [helper]"
        assert text_of_error(tmp_path) == f"{path}: unknown section [{section}]; known are {known}"


@pytest.mark.parametrize("section", ["client", "gateway"])
def test_sections_of_others_are_left_alone(tmp_path: Path, section: str) -> None:
    write(tmp_path, f"[{section}]\nanything = at all\n[helper]\nuploads-max = 5\n")
    assert read_settings(tmp_path) == attrs.evolve(Settings(), uploads_max=5)


@pytest.mark.parametrize("text", [
    "credit = 1 MiB\n",  # no section
    "[helper]\ncredit\n",
    "[helper\ncredit = 1 MiB\n",
    "[helper]\ncredit = 1 MiB\ncredit = 2 MiB\n",
    "[helper]\n[helper]\n",
    "[]\n",
])
def test_malformed_file(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert text_of_error(tmp_path).startswith(f"{path}: cannot be read: ")


def test_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path, "[helper]\n# \xe9\n", encoding="latin-1")
    assert text_of_error(tmp_path).startswith(f"{path}: cannot be read: 'utf-8' codec")


def test_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path, "\ufeff[helper]\nuploads-max = 5\n")
    assert read_settings(tmp_path).uploads_max == 5


def test_percent_signs_mean_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "[helper]\nuploads-max = %(credit)s\n")
    assert text_of_error(tmp_path) == f"{path}: uploads-max = '%(credit)s': expected a number"


def test_not_a_file(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.mkdir()
    assert text_of_error(tmp_path).startswith(f"{path}: cannot be read: [Errno 21]")
