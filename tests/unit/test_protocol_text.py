"""protocol.txt says what the code does: its example, its codes, its states, and the sections that are cited."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from allmydata.util import hashutil
from Crypto.Cipher import ChaCha20_Poly1305
from staging_node import NAME, Node

from client_shim.cipher import Encryptor, convergent_key
from client_shim.dedup import READ_PATIENCE
from client_shim.sealed_records import FileRecord, seal
from client_shim.verify import cap_of
from helper import staging_errors
from helper.connection_memory import TO_STORAGE_SERVERS, ConnectionBounds
from helper.dedup import SEARCHES_EACH, SEARCHES_MAX
from helper.dedup_records import place_of
from helper.dedup_search import UEBS_READ
from helper.dedup_store import LEASE_DURATION
from helper.encoder import Encoder
from helper.errors import BY_CODE
from helper.interfaces import LARGEST_MESSAGE_MAX, RECORD_MAX, RECORDS_TOLD_MAX
from helper.parameters import Parameters
from helper.session import TRANSITIONS, State
from helper.settings import Settings
from helper.spool import Spool
from helper.staged_share import Outcome
from helper.staging_records import StagedState
from helper.token_stream import KNOWN_PEER, OPEN_CHARGE, STORAGE_SERVER, STRANGER, TOKEN_CHARGE
from helper.uploads import hashed_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "protocol.txt").read_text(encoding="utf-8")

KEY = bytes(range(16))
PLAINTEXT = b"Streaming uploads for Tahoe-LAFS, wanted since 2008 (#320).\n"


def section(number: int) -> str:
    """The body of a section, from its heading to the next."""
    match = re.search(rf"^§{number} +[A-Z].*?(?=^§{number + 1} +[A-Z]|\Z)", TEXT, re.M | re.S)
    assert match is not None
    return match.group(0)


def example(label: str) -> str:
    """A value of the worked example: the rest of its line and what is indented under it."""
    match = re.search(rf"^    {label} +(\S+(?: \S+)*)((?:\n {{17}}\S+)*)$", section(12), re.M)
    assert match is not None, label
    return (match.group(1) + match.group(2)).replace("\n" + " " * 17, "")


def test_worked_example() -> None:
    ciphertext = Encryptor(KEY).encrypt(PLAINTEXT)
    done = Encoder(2, 3, 1048576).complete(ciphertext)
    ours = {
        "plaintext": PLAINTEXT.decode().rstrip("\n"),
        "ciphertext": ciphertext.hex(),
        "name": hashed_name(bytes(range(32))),
        "SI": hashutil.storage_index_hash(KEY).hex(),
        "flat hash": done.hashes.crypttext_hash.hex(),
        "root hash": done.hashes.crypttext_root_hash.hex(),
        "UEB hash": hashutil.uri_extension_hash(done.ueb).hex(),
        "header": done.layout.header().hex(),
        "share size": str(done.layout.share_size),
        "cap": cap_of(KEY, Parameters(2, 2, 3, 1048576), done.hashes, done.ueb).decode(),
    }
    assert {label: example(label) for label in ours} == ours
    assert f"ueb of {len(done.ueb)} bytes" in section(12)


def test_worked_example_of_a_sealed_record() -> None:
    key = convergent_key(2, 3, 1048576, len(PLAINTEXT), bytes(range(32, 64)), [PLAINTEXT])
    record = FileRecord(KEY, bytes.fromhex(example("UEB hash")), 2, 3, len(PLAINTEXT))
    tag, = re.findall(r'tagged_hash\("([^"]+)"', section(4))
    ours = {
        "conv. key": key.hex(),
        "conv. SI": hashutil.storage_index_hash(key).hex(),
        "cipher key": hashutil.tagged_hash(" ".join(tag.split()).encode(), key).hex(),
        "left": seal(record, key, bytes(range(24))).hex(),
    }
    assert {label: example(re.escape(label)) for label in ours} == ours
    cipher = ChaCha20_Poly1305.new(key=bytes.fromhex(example("cipher key")), nonce=bytes(range(24)))
    cipher.update(b"TSr1" + bytes.fromhex(example(r"conv\. SI")))
    left = bytes.fromhex(example("left"))
    assert cipher.decrypt_and_verify(left[28:-16], left[-16:]) == (
        KEY + record.ueb_hash + bytes([0, 2, 0, 3]) + len(PLAINTEXT).to_bytes(8, "big"))
    assert record.cap.decode() == example("cap")


def test_numbers_of_records() -> None:
    text = section(4)
    assert f"1 to {RECORD_MAX} bytes" in text
    assert f"keeps the {RECORDS_TOLD_MAX} newest" in text
    assert f"{Settings().sealed_records_max:,} (a setting)" in text
    assert f"UEBs of up to {UEBS_READ} shares" in " ".join(text.split())
    assert f"It looks up {SEARCHES_MAX} at a time, and {SEARCHES_EACH} times" in " ".join(text.split())
    assert (Settings().look_up_patience, READ_PATIENCE, LEASE_DURATION) == (1, 2, 31 * 86400)


def test_place_of_records() -> None:
    tag, = re.findall(r'SHA-256 of\s+"(.*?)" and the convergent SI', section(4))
    assert place_of(b"i" * 16) == hashlib.sha256(tag.encode() + b"i" * 16).digest()


def test_worked_example_of_a_spool_record(tmp_path: Path) -> None:
    from twisted.internet.defer import maybeDeferred

    spool = Spool(tmp_path / "spool", maybeDeferred)
    spool.start()
    spool.file("one", lambda _durable: None, pytest.fail).append(Encryptor(KEY).encrypt(PLAINTEXT))
    assert (tmp_path / "spool" / "one").read_bytes()[:32].hex() == example("record")
    spool.stop()


def test_codes_are_those_of_the_code() -> None:
    codes = [*re.findall(r"^    ([a-z]+(?:-[a-z]+)+)  ", section(5), re.M), "aborted", "expired", "deduplicated"]
    assert sorted(codes) == sorted({*codes} & {*BY_CODE}) == sorted(BY_CODE)


def test_fields_of_codes() -> None:
    for code, cls in BY_CODE.items():
        line = re.search(rf"^    {code} +(.*)$", section(5), re.M)
        assert line is not None, code
        listed = set(re.findall(r"[a-z-]+", line.group(1).split("(")[0])) - {"none"}
        fields = {a.name.replace("_", "-") for a in cls.__attrs_attrs__}  # type: ignore[attr-defined]
        assert listed == fields, code


def test_directory_of_a_staging(tmp_path: Path) -> None:
    tag, = re.findall(r'SHA-256\("(.*?)" \+ name\)', section(15))
    node = Node(tmp_path / "node")
    node.stage(NAME, [0])
    digest = hashlib.sha256(tag.encode() + NAME).digest()
    (directory,) = [path.name for path in node.staged_files() if path.is_dir()]
    assert directory == base64.b32encode(digest).decode().lower().rstrip("=")
    node.stop()


def test_codes_and_states_of_staging() -> None:
    listed = dict(re.findall(r"^    ([a-z]+(?:-[a-z]+)*)  +(.*)$", section(18), re.M))
    ours = {code: cls for code, cls in staging_errors.BY_CODE.items() if code not in BY_CODE}
    assert set(listed) == set(ours)
    for code, cls in ours.items():
        fields = {a.name.replace("_", "-") for a in cls.__attrs_attrs__}  # type: ignore[attr-defined]
        assert set(listed[code].split(", ")) - {"none"} == fields, code
    states = re.findall(r"^    ([a-z]+)   +\S", section(17), re.M)
    assert states == [state.value for state in StagedState]
    outcomes = re.findall(r"^    ([a-z-]+)   +\S", section(16), re.M)
    assert outcomes == [outcome.value for outcome in Outcome]


def test_codes_of_staging_that_are_those_of_part_1() -> None:
    sentence = section(18).split("as in §5")[0].split("\n\n")[-1]
    assert set(re.findall(r"[a-z]+(?:-[a-z]+)+", sentence)) == {*staging_errors.BY_CODE} & {*BY_CODE}


def test_statistics_of_staging(tmp_path: Path) -> None:
    node = Node(tmp_path / "storage")
    listed = section(17).split("§17.1")[1]
    assert {*re.findall(r"[a-z_]+", listed)} >= {*node.staging.statistics()}
    node.stop()


def test_states_and_transitions() -> None:
    listed = re.findall(r"^    ([a-z]+)   +\S", section(6).split("§6.2")[0], re.M)
    assert listed == [state.value for state in State]
    transitions = set()
    for line in re.findall(r"^    ([a-z, ]+?) +-> (\w+)", section(6), re.M):
        transitions |= {(State(source.strip()), State(line[1])) for source in line[0].split(",")}
    assert transitions == {(a, b) for a, then in TRANSITIONS.items() for b in then}


def test_cited_sections_exist() -> None:
    headings = set(re.findall(r"^§(\d+(?:\.\d+)?) ", TEXT, re.M))
    cited = {}
    for path in [*ROOT.glob("helper/*.py"), *ROOT.glob("client_shim/*.py"), ROOT / "protocol.txt"]:
        for number in re.findall(r"§(\d+(?:\.\d+)?)", re.sub(r"(DESIGN|RELIABILITY|STYLE) §[\d.]+", "",
                                                            path.read_text(encoding="utf-8"))):
            cited.setdefault(number, path.name)
    missing = {number: where for number, where in cited.items() if number not in headings}
    assert not missing
    assert len(cited) > 10


def test_bounds_of_connections() -> None:
    text = section(10).partition("§10.5")[2].partition("§10.6")[0]
    bounds = ConnectionBounds()
    for number in (KNOWN_PEER.name, KNOWN_PEER.value, KNOWN_PEER.argument, KNOWN_PEER.number, KNOWN_PEER.depth,
                   KNOWN_PEER.children, KNOWN_PEER.message, STRANGER.message, STRANGER.children, STRANGER.depth,
                   TOKEN_CHARGE, OPEN_CHARGE, bounds.in_all, bounds.each, bounds.calls, bounds.always,
                   bounds.unhindered, bounds.reserve, int(bounds.patience), bounds.connections, bounds.strangers,
                   STORAGE_SERVER.value, STORAGE_SERVER.message, STORAGE_SERVER.argument, TO_STORAGE_SERVERS.in_all,
                   TO_STORAGE_SERVERS.reserve, TO_STORAGE_SERVERS.unhindered, TO_STORAGE_SERVERS.outgoing,
                   bounds.outgoing):
        assert re.search(rf"(?<![\d,]){number:,}(?![\d,]*\d)", text), number
    assert {STRANGER.name, STRANGER.value, STRANGER.argument} == {KNOWN_PEER.name}
    assert KNOWN_PEER.argument == LARGEST_MESSAGE_MAX
