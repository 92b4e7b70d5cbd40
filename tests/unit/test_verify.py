"""A helper that lies or errs never gets a cap out of the client: protocol.txt §9."""

from __future__ import annotations

import random

import attrs
import oracle
import pytest
from allmydata import uri
from allmydata.util import hashutil
from hypothesis import given
from hypothesis import strategies as st

from client_shim.cipher import Encryptor
from client_shim.errors import WrongUEB
from client_shim.verify import cap_of
from helper.ciphertext import CiphertextHasher, CiphertextHashes
from helper.parameters import Parameters

KEY = bytes(range(16))
SIZE = 2500
PARAMETERS = Parameters(3, 7, 10, 1000)
PLAINTEXT = random.Random("verify").randbytes(SIZE)
STOCK = oracle.encode(PLAINTEXT, 3, 10, 1000, key=KEY, keep=False)


def hashes_of(plaintext: bytes, parameters: Parameters = PARAMETERS) -> CiphertextHashes:
    hasher = CiphertextHasher(parameters.k, parameters.max_segment_size)
    hasher.update(Encryptor(KEY).encrypt(plaintext))
    return hasher.hashes()


HASHES = hashes_of(PLAINTEXT)


def refused_field(ueb: bytes) -> str:
    """The field that cap_of says differs."""
    with pytest.raises(WrongUEB) as caught:
        cap_of(KEY, PARAMETERS, HASHES, ueb)
    return caught.value.field


def pack(fields: list[tuple[bytes, bytes]]) -> bytes:
    """As uri.pack_extension, but with any keys, in any order, any number of times."""
    return b"".join(b"%b:%d:%b," % (key, len(value), value) for key, value in fields)


FIELDS: list[tuple[bytes, bytes]] = [
    (key.encode(), b"%d" % value if isinstance(value, int) else value)
    for key, value in sorted(uri.unpack_extension(STOCK.ueb).items())]


def test_our_packing_is_stocks() -> None:
    assert pack(FIELDS) == STOCK.ueb
    assert len(FIELDS) == 11


def test_the_right_ueb_gives_stocks_cap() -> None:
    cap = cap_of(KEY, PARAMETERS, HASHES, STOCK.ueb)
    assert cap == STOCK.cap
    parsed = uri.from_string(cap)
    assert (parsed.key, parsed.size, parsed.needed_shares, parsed.total_shares) == (KEY, SIZE, 3, 10)
    assert parsed.uri_extension_hash == hashutil.uri_extension_hash(STOCK.ueb)


@pytest.mark.parametrize("size", [56, 57, 999, 1000, 1001, 1002, 1003, 9018])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (2, 3), (3, 10), (71, 255)])
def test_caps_of_many_shapes(k: int, n: int, size: int) -> None:
    parameters, plaintext = Parameters(k, 1, n, 1000), random.Random(size).randbytes(size)
    stock = oracle.encode(plaintext, k, n, 1000, key=KEY, keep=False)
    assert cap_of(KEY, parameters, hashes_of(plaintext, parameters), stock.ueb) == stock.cap


def test_only_the_share_root_hash_is_the_helpers_word() -> None:
    """It covers blocks that only the helper made. Another one gives another cap, that of an unreadable file."""
    other = pack([(key, bytes(32) if key == b"share_root_hash" else value) for key, value in FIELDS])
    cap = cap_of(KEY, PARAMETERS, HASHES, other)
    assert cap != STOCK.cap
    assert uri.from_string(cap).uri_extension_hash == hashutil.uri_extension_hash(other)


@pytest.mark.parametrize("key", [key for key, _value in FIELDS if key != b"share_root_hash"])
def test_every_other_field(key: bytes) -> None:
    value = dict(FIELDS)[key]
    changed = [value + b"1", b"1" + value, value[:-1] + bytes([value[-1] ^ 1])]
    if not value.isdigit():
        changed += [b"", value[:-1]]
    for wrong in changed:
        assert refused_field(pack([(k, wrong if k == key else v) for k, v in FIELDS])) == key.decode()
    missing = refused_field(pack([(k, v) for k, v in FIELDS if k != key]))
    assert missing == key.decode()


@pytest.mark.parametrize("key", [b"size", b"segment_size", b"num_segments", b"needed_shares", b"total_shares"])
@pytest.mark.parametrize("form", [b"0%b", b" %b", b"%b ", b"+%b", b"%b\n"])
def test_numbers_spelt_differently(key: bytes, form: bytes) -> None:
    """The number is the same, the bytes and so the hash are not."""
    assert refused_field(pack([(k, form % v if k == key else v) for k, v in FIELDS])) == "its form"


@pytest.mark.parametrize("key", [b"size", b"segment_size", b"num_segments", b"needed_shares", b"total_shares"])
@pytest.mark.parametrize("value", [b"", b"x", b"1.0", b"9" * 5000, b"\xff"])
def test_numbers_that_are_none(key: bytes, value: bytes) -> None:
    assert refused_field(pack([(k, value if k == key else v) for k, v in FIELDS])) == "its form"


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_share_root_hash_of_another_length(length: int) -> None:
    assert refused_field(pack([(k, bytes(length) if k == b"share_root_hash" else v) for k, v in FIELDS])) == (
        "share_root_hash")


@pytest.mark.parametrize("ueb", [
    b"",
    pack([(k, v) for k, v in FIELDS if k != b"share_root_hash"]),
    STOCK.ueb + b"\0",
    STOCK.ueb + b",",
    STOCK.ueb[:-1],
    pack(FIELDS[::-1]),
    pack([*FIELDS, FIELDS[0]]),
    pack([FIELDS[0], *FIELDS]),
    pack([*FIELDS, (b"plaintext_hash", bytes(32))]),
    pack([*FIELDS, (b"", b"")]),
    pack([*FIELDS, (b"\xff\xfe", b"")]),
    STOCK.ueb.replace(b"size:4:", b"size:04:"),
    STOCK.ueb.replace(b"size:4:", b"size:-4:"),
    STOCK.ueb.replace(b"size:4:", b"size:99999999999999999999:"),
    b"share_root_hash:32:" + bytes(32) + b",",
    b":-1:",
    b":" * 8192,
    b"a:0:," * 1600,
])
def test_other_forms(ueb: bytes) -> None:
    assert refused_field(ueb)


def test_every_truncation() -> None:
    for length in range(len(STOCK.ueb)):
        refused_field(STOCK.ueb[:length])


def shows_the_same_file(ueb: bytes) -> bool:
    """Whether nothing but the 32 bytes of the share root hash differs from the right UEB."""
    start = STOCK.ueb.index(b"share_root_hash:32:") + len(b"share_root_hash:32:")
    return (len(ueb) == len(STOCK.ueb) and ueb[:start] == STOCK.ueb[:start]
            and ueb[start + 32:] == STOCK.ueb[start + 32:])


@given(st.lists(st.tuples(st.integers(0, len(STOCK.ueb)), st.integers(0, 3), st.binary(max_size=4)),
                min_size=1, max_size=4))
def test_no_edited_ueb_gives_a_cap(edits: list[tuple[int, int, bytes]]) -> None:
    ueb = STOCK.ueb
    for position, removed, inserted in edits:
        ueb = ueb[:position] + inserted + ueb[position + removed:]
    if shows_the_same_file(ueb):
        assert uri.from_string(cap_of(KEY, PARAMETERS, HASHES, ueb)).key == KEY
    else:
        refused_field(ueb)


NETSTRINGISH = st.lists(st.one_of(
    st.binary(max_size=40), st.sampled_from([b":", b",", b"-1", b"32", b"share_root_hash:32:" + bytes(32) + b","]),
    st.integers(-100, 100).map(lambda i: b"k:%d:" % i),
    st.sampled_from(FIELDS).map(lambda field: pack([field])))).map(b"".join)


@given(st.binary(max_size=400) | NETSTRINGISH)
def test_garbage_gives_no_cap(ueb: bytes) -> None:
    refused_field(ueb)


@pytest.mark.parametrize("other", [
    PLAINTEXT[:-1], PLAINTEXT + b"x", PLAINTEXT[:-1] + bytes([PLAINTEXT[-1] ^ 1]),
    bytes([PLAINTEXT[0] ^ 1]) + PLAINTEXT[1:],
], ids=["shorter", "longer", "last", "first"])
def test_another_files_ueb(other: bytes) -> None:
    """Right in itself, under the same key even, but not of what was sent."""
    refused_field(oracle.encode(other, 3, 10, 1000, key=KEY, keep=False).ueb)


@pytest.mark.parametrize("parameters", [
    attrs.evolve(PARAMETERS, k=2), attrs.evolve(PARAMETERS, n=11), attrs.evolve(PARAMETERS, max_segment_size=2000)])
def test_encoded_otherwise_than_asked(parameters: Parameters) -> None:
    refused_field(oracle.encode(
        PLAINTEXT, parameters.k, parameters.n, parameters.max_segment_size, key=KEY, keep=False).ueb)
