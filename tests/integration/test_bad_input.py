"""What a client may not do is refused by a real helper with a code and a clear text, and changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import reactor_loop
from allmydata.util import hashutil
from foolscap.api import Tub
from grid_tools import (
    MAX_SEGMENT,
    OPTIONS,
    PATIENCE,
    SEGMENT,
    SERVERS,
    K,
    MiB,
    N,
    SharedGrid,
    assert_stored,
    client_directory,
    further_helper,
    helper_furl,
    put,
    share_paths,
    uploads_open,
    wait_for,
    wait_until_clean,
)
from oracle import encode

from client_shim.cipher import Encryptor
from client_shim.errors import HelperLost, HelperMisbehaved, HelperRefused
from client_shim.helper_edge import HelperAnswer, HelperLink, connect, make_tub
from client_shim.verify import cap_of
from helper.ciphertext import CiphertextHasher, CiphertextHashes
from helper.interfaces import LARGEST_MESSAGE, LARGEST_MESSAGE_MAX
from helper.parameters import Parameters

PARAMETERS = Parameters(K, OPTIONS.happy, N, MAX_SEGMENT)
#: Less than a helper contacts storage servers for.
DATA = os.urandom(50_000)


@pytest.fixture(scope="module")
def tub() -> Iterator[Tub]:
    tub = reactor_loop.now(make_tub)
    reactor_loop.now(tub.startService)
    yield tub
    reactor_loop.run(tub.stopService)


@pytest.fixture(scope="module")
def link(shared: SharedGrid, tub: Tub) -> HelperLink:
    return reactor_loop.run(lambda: connect(tub, shared.grid.helper_furl), PATIENCE)


@attrs.define
class Upload:
    """An upload at the helper, by hand."""

    link: HelperLink
    upload_id: bytes = attrs.field(factory=lambda: os.urandom(32))
    key: bytes = attrs.field(factory=lambda: os.urandom(16))

    def call(self, method: str, *arguments: Any) -> HelperAnswer:
        return ask(self.link, method, self.upload_id, *arguments)

    def refused(self, code: str, method: str, *arguments: Any, **values: int | str) -> str:
        """Check that a call is refused with `code` and `values`, and changes nothing. Returns the text."""
        before = self.call("status")
        text = refusal(self.link, code, method, self.upload_id, *arguments, **values)
        assert self.call("status") == before
        return text

    def open(self, parameters: Parameters = PARAMETERS) -> HelperAnswer:
        return self.call("open", parameters.to_wire())

    def put(self, offset: int, ciphertext: bytes) -> HelperAnswer:
        return self.call("put_ciphertext", offset, ciphertext)

    @property
    def storage_index(self) -> bytes:
        return bytes(hashutil.storage_index_hash(self.key))

    def encrypt(self, data: bytes) -> bytes:
        return Encryptor(self.key).encrypt(data)


@pytest.fixture
def upload(shared: SharedGrid, link: HelperLink) -> Iterator[Upload]:
    """An open upload that holds nothing; aborted after the test, when nothing of it may be left."""
    shares = share_paths(shared.grid)
    upload = Upload(link)
    upload.open()
    yield upload
    if upload.call("status").fields["state"] != b"finished":
        upload.call("abort")
        wait_until_clean(shared.grid, shared.grid.helper, shares)


def ask(link: HelperLink, method: str, *arguments: Any) -> HelperAnswer:
    call: Callable[..., Awaitable[HelperAnswer]] = getattr(link, method)
    return reactor_loop.run(lambda: call(*arguments), PATIENCE)


def refusal(link: HelperLink, code: str, method: str, *arguments: Any, **values: int | str) -> str:
    with pytest.raises(HelperRefused) as caught:
        ask(link, method, *arguments)
    error = caught.value
    assert error.code == code
    for name, value in values.items():
        assert error.values[name] == value, name
    assert len(error.explanation) > 20
    return error.explanation


def hashes_of(ciphertext: bytes, parameters: Parameters = PARAMETERS) -> CiphertextHashes:
    hasher = CiphertextHasher(parameters.k, parameters.max_segment_size, parameters.size)
    hasher.update(ciphertext)
    return hasher.hashes()


# -- upload IDs --------------------------------------------------------------------------------------------

#: Every call with good arguments, but for the upload ID.
CALLS = [
    ("open", (PARAMETERS.to_wire(),)),
    ("put_ciphertext", (0, b"x")),
    ("status", ()),
    ("assign", (bytes(16),)),
    ("finish", (100, bytes(16), bytes(32), bytes(32))),
    ("abort", ()),
]


@pytest.mark.parametrize(("method", "arguments"), CALLS)
def test_malformed_upload_id(shared: SharedGrid, link: HelperLink, method: str, arguments: tuple[Any, ...]) -> None:
    for length in (0, 31, 33, 64):
        text = refusal(link, "bad-upload-id", method, bytes(length), *arguments, expected=32, came=length)
        assert "32 random bytes" in text
    assert uploads_open(shared.grid.helper) == 0


@pytest.mark.parametrize(("method", "arguments"), CALLS[1:])
def test_unknown_upload_id(shared: SharedGrid, link: HelperLink, method: str, arguments: tuple[Any, ...]) -> None:
    unknown = os.urandom(32)
    refusal(link, "unknown-upload", method, unknown, *arguments)
    refusal(link, "unknown-upload", "status", unknown)
    assert uploads_open(shared.grid.helper) == 0


# -- open --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "field"), [
    ({b"k": 0}, "k"),
    ({b"k": N + 1}, "k"),
    ({b"k": -1}, "k"),
    ({b"happy": 0}, "happy"),
    ({b"happy": N + 1}, "happy"),
    ({b"n": 0}, "n"),
    ({b"n": 257, b"happy": 1}, "n"),
    ({b"n": 2}, "k"),
    ({b"max-segment-size": 0}, "max-segment-size"),
    ({b"max-segment-size": 8 * MiB + 1}, "max-segment-size"),
    ({b"size": -1}, "size"),
    ({b"size": 2**53 + 1}, "size"),
    ({b"colour": 1}, "parameters"),
    ({b"k": None}, "k"),
    ({b"max-segment-size": None}, "max-segment-size"),
])
def test_bad_parameters(shared: SharedGrid, link: HelperLink, change: dict[bytes, int | None], field: str) -> None:
    upload_id = os.urandom(32)
    wire = {key: value for key, value in {**PARAMETERS.to_wire(), **change}.items() if value is not None}
    text = refusal(link, "bad-argument", "open", upload_id, wire, field=field)
    assert field in text
    assert "expected" in text
    refusal(link, "unknown-upload", "status", upload_id)
    assert uploads_open(shared.grid.helper) == 0


@pytest.mark.parametrize("change", [{"k": 2}, {"happy": 3}, {"n": 4}, {"max_segment_size": 12345}, {"size": 1000}])
def test_known_id_with_other_parameters(upload: Upload, change: dict[str, int]) -> None:
    field = next(iter(change)).replace("_", "-")
    other = attrs.evolve(PARAMETERS, **change)
    text = upload.refused("parameters-differ", "open", other.to_wire(), field=field)
    assert field in text
    again = upload.open()
    assert again.fields["received"] == 0


# -- put_ciphertext ----------------------------------------------------------------------------------------


def test_offset_gap(upload: Upload) -> None:
    upload.refused("offset-gap", "put_ciphertext", 1, b"x", expected=0, came=1)
    upload.put(0, DATA)
    text = upload.refused("offset-gap", "put_ciphertext", 50_001, b"x", expected=50_000, came=50_001)
    assert "50000" in text
    assert "50001" in text
    assert upload.put(50_000, b"x").fields["durable"] == 50_001


def test_different_bytes_at_a_held_offset(upload: Upload) -> None:
    upload.put(0, DATA)
    changed = bytearray(DATA)
    changed[-1] ^= 1
    upload.refused("conflicting-data", "put_ciphertext", 0, bytes(changed), offset=0, length=50_000)
    upload.refused("conflicting-data", "put_ciphertext", 49_999, bytes(changed[-1:]), offset=49_999, length=1)
    # new bytes that begin with different old ones
    upload.refused("conflicting-data", "put_ciphertext", 40_000, bytes(changed[40_000:]) + b"new", offset=40_000)
    assert upload.put(0, DATA).fields["durable"] == 50_000, "the identical bytes are answered as the first time"
    assert upload.put(40_000, DATA[40_000:] + b"new").fields["durable"] == 50_003


@pytest.mark.parametrize("size", [LARGEST_MESSAGE + 1, LARGEST_MESSAGE_MAX])
def test_oversized_message(upload: Upload, size: int) -> None:
    text = upload.refused("message-too-large", "put_ciphertext", 0, bytes(size), limit=LARGEST_MESSAGE,
                          came=size)
    assert str(size) in text
    assert upload.put(0, bytes(LARGEST_MESSAGE)).fields["durable"] == LARGEST_MESSAGE


def test_message_beyond_the_schema(shared: SharedGrid, link: HelperLink) -> None:
    """Our own side does not send it; the helper's side drops a peer that does (protocol.txt §10.5)."""
    own_tub = reactor_loop.now(make_tub)
    reactor_loop.now(own_tub.startService)
    try:
        own_link = reactor_loop.run(lambda: connect(own_tub, shared.grid.helper_furl), PATIENCE)
        upload = Upload(own_link)
        upload.open()
        before = upload.call("status")
        with pytest.raises(HelperMisbehaved, match="outside the agreed bounds"):
            upload.put(0, bytes(LARGEST_MESSAGE_MAX + 1))
        assert upload.call("status") == before
        own_link._rref.tracker.interface = None  # a client that does not check
        with pytest.raises(HelperLost):
            upload.put(0, bytes(LARGEST_MESSAGE_MAX + 1))
    finally:
        reactor_loop.run(own_tub.stopService)
    same = Upload(link, upload.upload_id)  # nobody else was disconnected
    assert same.call("status") == before
    same.call("abort")


def test_empty_message_and_impossible_offsets(upload: Upload) -> None:
    upload.refused("bad-argument", "put_ciphertext", 0, b"", field="data")
    upload.refused("bad-argument", "put_ciphertext", -1, b"x", field="offset")
    upload.refused("bad-argument", "put_ciphertext", 2**53, b"x", field="offset")


# -- sizes -------------------------------------------------------------------------------------------------


def test_more_than_declared(link: HelperLink) -> None:
    upload = Upload(link)
    upload.open(attrs.evolve(PARAMETERS, size=1000))
    upload.refused("size-exceeded", "put_ciphertext", 0, bytes(1001), declared=1000, came=1001)
    upload.put(0, bytes(999))
    upload.refused("size-exceeded", "put_ciphertext", 999, bytes(2), declared=1000, came=1001)
    finish = (upload.storage_index, bytes(32), bytes(32))
    upload.refused("size-mismatch", "finish", 999, *finish, expected=1000, came=999)
    upload.refused("size-mismatch", "finish", 1000, *finish, expected=999, came=1000)
    upload.call("abort")


def test_size_that_disagrees_with_what_came(upload: Upload) -> None:
    upload.put(0, DATA)
    for size in (49_999, 50_001, 2**53):
        text = upload.refused("size-mismatch", "finish", size, upload.storage_index, bytes(32), bytes(32),
                              expected=50_000, came=size)
        assert "50000" in text


@pytest.mark.parametrize("size", [0, 1, 55])
def test_literal_size(upload: Upload, size: int) -> None:
    if size:
        upload.put(0, bytes(size))
    text = upload.refused("literal-size", "finish", size, upload.storage_index, bytes(32), bytes(32),
                          limit=55, came=size)
    assert "URI:LIT" in text


# -- storage indexes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 15, 17, 32])
def test_storage_index_of_wrong_length(upload: Upload, length: int) -> None:
    upload.put(0, DATA)
    upload.refused("bad-storage-index", "assign", bytes(length), expected=16, came=length)
    upload.refused("bad-storage-index", "finish", len(DATA), bytes(length), bytes(32), bytes(32),
                   expected=16, came=length)
    assert upload.call("status").fields["storage-index-needed"] == 1


def test_another_storage_index(upload: Upload, link: HelperLink) -> None:
    upload.put(0, DATA)
    upload.call("assign", upload.storage_index)
    upload.refused("storage-index-conflict", "assign", bytes(16))
    upload.refused("storage-index-conflict", "finish", len(DATA), bytes(16), bytes(32), bytes(32))
    upload.call("assign", upload.storage_index)

    other = Upload(link)
    other.open()
    other.refused("storage-index-busy", "assign", upload.storage_index)
    other.call("abort")


# -- finish ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assigned", [True, False])
@pytest.mark.parametrize("size", [50_000, 2 * MiB + 1])
def test_wrong_hashes_and_then_the_right_ones(shared: SharedGrid, upload: Upload, size: int, assigned: bool) -> None:
    data = os.urandom(size)
    ciphertext = upload.encrypt(data)
    if assigned:
        upload.call("assign", upload.storage_index)
    for offset in range(0, size, MiB):
        upload.put(offset, ciphertext[offset:offset + MiB])
    wait_for_pushed(upload, size if assigned else 0)
    hashes = hashes_of(ciphertext)
    flat, root = hashes.crypttext_hash, hashes.crypttext_root_hash
    wrong = bytes(32)
    index = upload.storage_index
    assert "crypttext_hash" in upload.refused("hash-mismatch", "finish", size, index, wrong, root,
                                              field="crypttext_hash")
    upload.refused("hash-mismatch", "finish", size, index, flat, wrong, field="crypttext_root_hash")
    upload.refused("bad-argument", "finish", size, index, flat[:31], root, field="crypttext_hash")
    upload.refused("bad-argument", "finish", size, index, flat, root + b"x", field="crypttext_root_hash")

    answer = upload.call("finish", size, index, flat, root)
    stock = encode(data, K, N, MAX_SEGMENT, key=upload.key, layout=2)
    assert answer.fields["ueb"] == stock.ueb
    cap = cap_of(upload.key, PARAMETERS, hashes, stock.ueb)
    assert cap == stock.cap
    assert {share.shnum for share in answer.shares if share.state == "closed"} >= set(range(K))
    assert_stored(shared, cap.decode(), data)

    assert upload.call("finish", size, index, flat, root).fields["ueb"] == stock.ueb, "a repeat"
    finished = upload.call("status")
    assert finished.fields["state"] == b"finished"
    upload.refused("hash-mismatch", "finish", size, index, wrong, root)
    upload.refused("already-finishing", "put_ciphertext", size, b"more", state="finished")
    upload.refused("already-publishing", "abort", state="finished")


def wait_for_pushed(upload: Upload, size: int) -> None:
    """Until then status changes by itself."""
    full = size // SEGMENT * SEGMENT
    wait_for("blocks on the servers", lambda: int(upload.call("status").fields["pushed"]) >= full)
    settled = wait_for("the last share", lambda: (answer := upload.call("status")) and (
        all(share.position >= full for share in answer.shares) and answer))
    assert upload.call("status") == settled


def test_hashes_of_a_file_that_goes_on(shared: SharedGrid, upload: Upload) -> None:
    """A refused `finish` may be followed by more bytes, and by `finish` of those."""
    data = os.urandom(100_000)
    ciphertext = upload.encrypt(data)
    upload.put(0, ciphertext[:60_000])
    upload.refused("hash-mismatch", "finish", 60_000, upload.storage_index, bytes(32), bytes(32))
    upload.put(60_000, ciphertext[60_000:])
    hashes = hashes_of(ciphertext)
    answer = upload.call("finish", len(data), upload.storage_index, hashes.crypttext_hash,
                         hashes.crypttext_root_hash)
    ueb = answer.fields["ueb"]
    assert isinstance(ueb, bytes)
    assert_stored(shared, cap_of(upload.key, PARAMETERS, hashes, ueb).decode(), data)


def test_after_an_abort(upload: Upload) -> None:
    upload.put(0, DATA)
    upload.call("abort")
    for method, arguments in CALLS[1:]:
        if method not in ("status", "abort"):
            upload.refused("aborted", method, *arguments)
    assert upload.call("abort").fields["state"] == b"aborted"
    assert upload.call("status").fields["reason"] == b"aborted"


# -- too few servers ---------------------------------------------------------------------------------------


def test_too_few_servers_at_start_up(shared: SharedGrid, tub: Tub) -> None:
    wanted = SERVERS + 1
    with further_helper(shared.grid, "starting-helper", start=False) as helper:
        helper.start()
        started = time.monotonic()
        helper.wait_ready()
        link = reactor_loop.run(lambda: connect(tub, helper_furl(helper)), PATIENCE)
        connected = time.monotonic()
        # enough of them: answered as soon as they are connected
        enough = Upload(link)
        servers = enough.open().fields["servers"]
        assert isinstance(servers, int)
        assert OPTIONS.happy <= servers <= SERVERS
        assert time.monotonic() - connected < 8
        refusal(link, "too-few-servers", "open", os.urandom(32),
                attrs.evolve(PARAMETERS, n=wanted, happy=wanted).to_wire(), have=SERVERS, need=wanted)
        waited = time.monotonic() - started
        print(f"\ntoo few servers at start-up: said after {waited:.1f} s")
        assert 8 < waited < 20
        refusal(link, "too-few-servers", "open", os.urandom(32),
                attrs.evolve(PARAMETERS, n=wanted, happy=wanted).to_wire(), have=SERVERS, need=wanted)
        assert time.monotonic() - started - waited < 2, "from now on it does not wait"
        enough.call("abort")


def test_too_few_servers(shared: SharedGrid, link: HelperLink, tmp_path: Path) -> None:
    wanted = SERVERS + 2
    text = refusal(link, "too-few-servers", "open", os.urandom(32),
                   attrs.evolve(PARAMETERS, n=wanted, happy=wanted).to_wire(), have=SERVERS, need=wanted)
    assert f"{SERVERS} storage servers" in text
    assert f"asks for {wanted}" in text

    directory = client_directory(tmp_path / "client", shared.grid.helper_furl, n=wanted, happy=wanted)
    told = put(directory, "--json", "-", stdin=bytes(100)).failed_with("too-few-servers")
    assert (told["have"], told["need"]) == (SERVERS, wanted)
