"""Threats from storage servers, and to what is stored by helpers and staging nodes (see test_threats.py)."""

from __future__ import annotations

import os
import random
import re
import stat
import sys
from base64 import b32encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from fakes import FakeServer, FakeStagedSink, FakeStagingServer, ServerError, StagedData
from foolscap.api import RemoteException, Violation
from staging_node import BODY, NAME, Node, now
from test_staging_client import Link
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.python.failure import Failure
from world import SI, World, begin, expected, plaintext

from client_shim.errors import HelperRefused
from helper.interfaces import UPLOAD_ID_SIZE
from helper.layout import DATA_OFFSET
from helper.ledger_file import LEDGER_NAME, LedgerFile, LedgerUnusable
from helper.parameters import Parameters
from helper.placement import Allocation
from helper.sinks import Granted, StorageServer, Target
from helper.spool import Spool, SpoolLocked
from helper.staging import StagingLocked
from helper.staging_client import StagingStorageServer
from helper.staging_interfaces import STAGING_NAME_SIZE
from helper.staging_plugin import FoolscapStagingServer
from helper.stock import StockServer

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(20_000)
ENCODED = expected(DATA, PARAMETERS)

MakeServer = Callable[[str, Any], FakeServer]


@contextmanager
def grid_with(make: MakeServer, staging: int = 0) -> Iterator[tuple[World, Any]]:
    """Eleven servers, of which ten do; one of them, to which readers will go first, is that of `make`."""
    with World(11, staging=staging) as world:
        order = world.grid.in_order(SI)
        liar = make("liar", world.clock)
        liar.server_id = liar.permutation_seed = order[0].server_id
        world.grid.servers[world.grid.servers.index(order[0])] = liar
        yield world, liar


def check_done_without(world: World, liar: FakeServer, cap: bytes) -> None:
    """The upload is complete, and every share is on a server that has it."""
    assert cap == ENCODED.cap
    world.wait(600)
    liar.published.clear()
    liar.open.clear()
    world.check_shares(ENCODED)
    assert not world.spool_files()
    assert all(share.state == "closed" and share.server != liar.name
               for share in world.only_upload().status().shares)


# -- S7: a server that says that it has a share already ----------------------------------------------------------


@attrs.frozen
class ClaimedShare:
    """Says of itself what it is told to."""

    ueb: Callable[[], Deferred[Any]]
    block: Callable[[int], Deferred[Any]]

    def read_ueb(self) -> Deferred[Any]:
        return self.ueb()

    def read_block(self, segment: int, block_size: int, length: int) -> Deferred[Any]:
        return self.block(length)


async def answered(value: Any) -> Any:
    return value


def says(value: Any) -> Callable[..., Deferred[Any]]:
    return lambda *_arguments: begin(answered(value))


CLAIMS = {
    "no UEB": ClaimedShare(lambda: fail(ServerError("not there")), says(b"")),
    "another file's UEB": ClaimedShare(says(expected(DATA[:-1], PARAMETERS).ueb), says(b"")),
    "an empty UEB": ClaimedShare(says(b""), says(b"")),
    "no bytes for a UEB": ClaimedShare(says(5), says(b"")),
    "the UEB, and no blocks": ClaimedShare(says(ENCODED.ueb), lambda _length: fail(ServerError("not there"))),
    "the UEB, and other blocks": ClaimedShare(says(ENCODED.ueb), lambda length: begin(answered(bytes(length)))),
    "the UEB, and short blocks": ClaimedShare(says(ENCODED.ueb), says(b"x")),
    "the UEB, and no bytes for blocks": ClaimedShare(says(ENCODED.ueb), says([])),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_s7_a_server_that_says_it_has_a_share_already_is_not_counted_unverified(claim: str) -> None:
    class Liar(FakeServer):
        def _grant(self, target: Target, shnums: list[int], size: int) -> Granted:
            return Granted({}, dict.fromkeys(shnums, CLAIMS[claim]))

    with grid_with(Liar) as (world, liar):
        check_done_without(world, liar, world.put(DATA, PARAMETERS))
        assert liar.allocations()


class LyingStagingServer(FakeStagingServer):
    """Says of every share that it holds so much of it; agrees to everything, and publishes zeros."""

    claims: Sequence[tuple[int, bool]] = ()

    def _grant(self, target: Target, shnums: list[int], size: int) -> Granted:
        held, prepared = self.claims[min(len(self.allocations()) - 1, len(self.claims) - 1)]
        sinks: dict[int, Any] = {}
        for shnum in shnums:
            self.staged[target.staging_secret, shnum] = StagedData(bytearray(100_000))
            sinks[shnum] = FakeStagedSink(self, self.connection, target.staging_secret, shnum, held, prepared)
        return Granted(sinks, {})

    def request(self, operation: str, connection: int, perform: Callable[[], Any], refused: Any = None) -> Any:
        agree = perform if operation in ("allocate", "publish", "abort", "read") else lambda: None
        if operation == "publish":
            for share in self.staged.values():
                share.prepared = True
        return super().request(operation, connection, agree, refused)


@pytest.mark.parametrize(("held", "prepared"), [
    (0, True), (DATA_OFFSET, True), (13_278, True), (2**53, True), (DATA_OFFSET + 1002 // 3, False),
    (DATA_OFFSET + 6000, False), (13_278, False), (2**53, False)])
def test_s7_a_share_of_which_a_staging_server_says_that_it_holds_more_than_was_pushed_does_not_count(
        held: int, prepared: bool) -> None:
    """Of an upload that it sees for the first time."""
    class Liar(LyingStagingServer):
        claims = ((held, prepared),)

    with grid_with(Liar) as (world, liar):
        upload = world.upload(PARAMETERS)
        for start in range(0, len(DATA), 1000):
            world.run(upload.write(DATA[start:start + 1000]))
        check_done_without(world, liar, world.run(upload.close()))
        assert liar.allocations()


@pytest.mark.parametrize(("held", "prepared"), [(13_278, False), (2**53, False), (13_278, True), (0, True)])
def test_s7_nor_does_one_that_it_has_lost_when_it_comes_back(held: int, prepared: bool) -> None:
    class Liar(LyingStagingServer):
        claims = ((DATA_OFFSET, False), (held, prepared))

    with grid_with(Liar) as (world, liar):
        upload = world.upload(PARAMETERS)
        world.run(upload.write(DATA[:15_000]))
        world.wait(1)
        liar.disconnect()
        world.wait(1)
        liar.reconnect()
        world.wait(5)
        world.run(upload.write(DATA[15_000:]))
        check_done_without(world, liar, world.run(upload.close()))
        assert len(liar.allocations()) >= 2


@pytest.mark.parametrize("held", [DATA_OFFSET, 0, -(2**53), DATA_OFFSET + 1, DATA_OFFSET + 2000])
def test_s7_of_what_a_staging_server_says_it_has_lost_all_is_pushed_again(held: int) -> None:
    """Though it has it: it says less than what it acknowledged, and even synced."""
    class Forgetful(FakeStagingServer):
        def _grant(self, target: Target, shnums: list[int], size: int) -> Granted:
            granted = super()._grant(target, shnums, size)
            if len(self.allocations()) == 1:
                return granted
            return Granted({n: attrs.evolve(sink, held=held) for n, sink in granted.sinks.items()}, {})

    with World(10, staging=10) as world:
        forgetful = Forgetful("forgetful", world.clock)
        world.grid.servers[0] = forgetful
        upload = world.upload(PARAMETERS)
        world.run(upload.write(DATA[:15_000]))
        world.wait(1)
        pushed = sum(asked.size for asked in forgetful.asked)
        assert pushed > 4000
        for _ in range(3):
            forgetful.disconnect()
            world.wait(1)
            forgetful.reconnect()
            world.wait(5)
        world.run(upload.write(DATA[15_000:]))
        assert world.run(upload.close()) == ENCODED.cap
        world.wait(600)
        world.check_shares(ENCODED)
        assert len(forgetful.published) == 1
        assert not world.spool_files()


# -- S7: answers that are none ----------------------------------------------------------------------------------


class Strange:
    """Of no kind that anybody expects."""

    def __repr__(self) -> str:
        return "Strange()"


GARBAGE: list[Any] = [
    None, 0, -1, 2**2000, 1.5, True, b"", b"ok", "ok", (), [], {}, set(), Strange(), (None, None), [None], [[]],
    (1, 2, 3),
    {b"code": None}, {b"code": b"\xff" * 50}, {"code": "ok"}, {b"code": [b"ok"]}, ({}, {}), ({b"code": b"ok"},),
    Violation("outside of the schema"), RemoteException(Failure(ValueError("there"))),
    ValueError("strange"), AssertionError("strange")]
OK = {b"code": b"ok"}
GARBAGE_HELD: list[Any] = [
    (OK, None), (OK, 5), (OK, [5]), (OK, [()]), (OK, [(0, b"growing")]), (OK, [(b"0", 1, None, {})] * 10),
    (OK, [(n, b"growing", None, 0) for n in range(10)]), (OK, [(n, b"growing", b"68", 0) for n in range(10)]),
    (OK, [(n, None, 68, 68) for n in range(10)]), (OK, [(n, [], 68, 68) for n in range(10)]), (OK, []),
    (OK, [(n + 100, b"growing", 68, 68) for n in range(10)])]
GARBAGE_OUTCOMES: list[Any] = [
    (OK, None), (OK, 5), (OK, [5]), (OK, [(0,)]), (OK, []), (OK, [(n, None) for n in range(10)]),
    (OK, [(n, 5) for n in range(10)]), (OK, [(n, b"already-there") for n in range(10)]),
    (OK, [(n, b"unknown") for n in range(10)]), (OK, [([], b"assigned")])]


@attrs.frozen
class LaterRref:
    """A remote reference whose answers the test gives, in a later turn, as over a network."""

    clock: Any
    answers: dict[str, Callable[..., Any]]
    asked: list[str] = attrs.field(factory=list)

    def callRemote(self, method: str, *arguments: Any) -> Deferred[Any]:
        d: Deferred[Any] = Deferred()
        self.asked.append(method)
        answer = self.answers[method](*arguments)
        self.clock.callLater(0, d.errback if isinstance(answer, Exception) else d.callback, answer)
        return d

    def notifyOnDisconnect(self, _callback: Callable[[], None]) -> int:
        return 1

    def dontNotifyOnDisconnect(self, _marker: int) -> None:
        pass


@attrs.frozen
class Native:
    """As much of an allmydata NativeStorageServer as is used."""

    rref: Any

    def get_rref(self) -> Any:
        return self.rref

    def get_name(self) -> str:
        return "liar"

    def get_serverid(self) -> bytes:
        return b"v0-liar"

    def get_lease_seed(self) -> bytes:
        return bytes(20)


class Remote(FakeServer):
    """In a FakeGrid, what helper.stock and helper.staging_client make of answers."""

    real: StorageServer

    def free_space(self) -> Deferred[int | None]:
        return self.real.free_space()

    def allocate(self, target: Target, shnums: Sequence[int], allocation: Allocation) -> Deferred[Granted]:
        return self.real.allocate(target, shnums, allocation)

    def let_go(self, target: Target, shnums: Sequence[int]) -> None:
        self.real.let_go(target, shnums)

    def remove_staged(self, target: Target, shnums: Sequence[int]) -> Deferred[None]:
        return self.real.remove_staged(target, shnums)


def secrets(_si: bytes, _seed: bytes) -> tuple[bytes, bytes]:
    return bytes(32), bytes(32)


def put_and_check(world: World, liar: Remote, asked: list[str], method: str) -> None:
    cap = world.put(DATA, PARAMETERS)
    assert method in asked, asked
    assert cap == ENCODED.cap
    world.wait(600)
    world.check_shares(ENCODED, missing=1)
    assert not world.spool_files()
    assert not [s for s in world.grid.servers if s.open]


def garbage_id(value: Any) -> str:
    return repr(value)[:40]


@pytest.mark.parametrize("garbage", [*GARBAGE, *GARBAGE_HELD, *GARBAGE_OUTCOMES], ids=garbage_id)
@pytest.mark.parametrize("method", ["stage", "write", "prepare", "assign", "abort", "get_buckets"])
def test_s7_no_answer_of_a_staging_server_harms_an_upload(method: str, garbage: Any) -> None:
    if (method == "assign" and garbage in GARBAGE_HELD) or (method == "stage" and garbage in GARBAGE_OUTCOMES):
        pytest.skip("the same as others")

    def staged(_name: bytes, shnums: list[int], _size: int) -> Any:
        return OK, [(shnum, b"growing", DATA_OFFSET, DATA_OFFSET) for shnum in shnums]

    with grid_with(Remote, staging=11) as (world, liar):
        answers: dict[str, Any] = {
            "stage": staged, "write": lambda *_: OK, "prepare": lambda *_: OK, "abort": lambda *_: OK,
            "assign": lambda _name, _si, shnums: (OK, [(shnum, b"assigned") for shnum in shnums]),
            "get_buckets": lambda _si: {}}
        if method == "get_buckets":
            answers["assign"] = lambda _name, _si, shnums: (OK, [(shnum, b"already-there") for shnum in shnums])
        if method == "abort":
            answers["prepare"] = lambda *_: {b"code": b"write-failed"}
        answers[method] = lambda *_: garbage
        rref = LaterRref(world.clock, answers)
        liar.stages = True
        liar.real = StagingStorageServer(StockServer(Native(rref), secrets), Link(rref))
        put_and_check(world, liar, rref.asked, method)


VERSION = {b"http://allmydata.org/tahoe/protocols/storage/v1": {b"available-space": 10**12}}
GARBAGE_VERSIONS: list[Any] = [
    {b"http://allmydata.org/tahoe/protocols/storage/v1": space}
    for space in (None, 5, [], {}, {b"available-space": None}, {b"available-space": b"5"}, {b"available-space": -1},
                  {b"available-space": -(2**70)}, {b"available-space": 2**2000}, {b"available-space": True})]
#: Writers that are none are not among them: Foolscap's schema of RIStorageServer refuses those.
GARBAGE_ALLOCATIONS: list[Any] = [
    ({1, 2}, None), (None, {}), (5, 5), ({b"0"}, {}), (set(range(10)), {}), ([0], {}), (set(), {"0": Strange()})]


@pytest.mark.parametrize("garbage", [*GARBAGE, *GARBAGE_VERSIONS, *GARBAGE_ALLOCATIONS], ids=garbage_id)
@pytest.mark.parametrize("method", [
    "get_version", "allocate_buckets", "write", "close", "abort", "get_buckets", "read"])
def test_s7_no_answer_of_a_stock_server_harms_an_upload(method: str, garbage: Any) -> None:
    with grid_with(Remote) as (world, liar):
        answers: dict[str, Any] = {
            "get_version": lambda: VERSION, "write": lambda *_: None, "close": lambda: None, "abort": lambda: None,
            "allocate_buckets": lambda _si, _renew, _cancel, shnums, _size, _canary: (
                set(), dict.fromkeys(shnums, rref)),
            "get_buckets": lambda _si: dict.fromkeys(range(10), rref), "read": lambda _at, length: bytes(length)}
        if method in ("get_buckets", "read"):
            answers["allocate_buckets"] = lambda _si, _renew, _cancel, shnums, _size, _canary: (shnums, {})
        if method == "abort":
            answers["write"] = lambda *_: ValueError("failed")
        answers[method] = lambda *_: garbage
        rref = LaterRref(world.clock, answers)
        liar.real = StockServer(Native(rref), secrets)
        put_and_check(world, liar, rref.asked, method)


LENGTHS = [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("length", LENGTHS)
def test_s7_a_share_that_claims_to_have_a_huge_ueb_is_not_believed(length: int) -> None:
    """It is asked for so much, and whatever it gives does not fit."""
    numbers = (334, 6680, 68, 7000, 8000, 9000, 10_000, 11_000)
    header = b"\0\0\0\2" + b"".join(number.to_bytes(8, "big") for number in numbers)

    def read(at: int, size: int) -> Any:
        if at == 0:
            return header[:size]
        return length.to_bytes(8, "big")[-size:] if size <= 8 else b"x" * min(size, 1000)

    with grid_with(Remote) as (world, liar):
        rref = LaterRref(world.clock, {
            "get_version": lambda: VERSION, "get_buckets": lambda _si: dict.fromkeys(range(10), rref), "read": read,
            "allocate_buckets": lambda _si, _renew, _cancel, shnums, _size, _canary: (shnums, {})})
        liar.real = StockServer(Native(rref), secrets)
        put_and_check(world, liar, rref.asked, "read")


# -- S13: what lies on disks ---------------------------------------------------------------------------------------


def modes(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): stat.S_IMODE(path.lstat().st_mode)
            for path in [directory, *directory.rglob("*")]}


def test_s13_files_of_a_helper_are_for_its_owner_and_named_by_hashes() -> None:
    mask = os.umask(0)
    try:
        with World() as world:
            world.run(write_all_open(world))
            found = modes(world.directory)
            assert {name: mode for name, mode in found.items() if mode not in (0o600, 0o700)} == {}
            assert {name for name in found if not re.fullmatch(r"spool/[a-z2-7]{52}", name)} <= {
                ".", "spool", "spool/lock", LEDGER_NAME, f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}-shm"}
            assert len(world.spool_files()) == 1
    finally:
        os.umask(mask)


async def write_all_open(world: World) -> None:
    """An upload that is not completed."""
    await world.upload(PARAMETERS).write(DATA)


def test_s13_a_link_under_the_name_of_a_new_spool_file_is_not_followed(tmp_path: Path) -> None:
    from helper.uploads import hashed_name
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    with World() as world:
        upload_id = bytes(UPLOAD_ID_SIZE)
        (world.directory / "spool" / hashed_name(upload_id)).symlink_to(target)
        link = world.link()
        world.run(link.open(upload_id, PARAMETERS.to_wire()))
        with pytest.raises(HelperRefused) as caught:
            world.run(link.put_ciphertext(upload_id, 0, DATA[:1000]))
        assert caught.value.code == "spool-failed"
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("position", [0, 40, 500])
def test_s13_a_flipped_byte_is_found_at_the_next_start(position: int) -> None:
    with World() as world:
        link, upload_id = world.link(), bytes(UPLOAD_ID_SIZE)
        world.run(link.open(upload_id, PARAMETERS.to_wire()))
        world.run(link.put_ciphertext(upload_id, 0, DATA[:1000]))
        world.kill()
        (path,) = world.spool_files()
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)
        world.start()
        answer = world.run(world.link().status(upload_id))
        assert (answer.text("state"), answer.text("reason")) == ("failed", "spool-failed")


def test_s13_a_second_helper_on_the_same_files_is_refused() -> None:
    with World() as world:
        with pytest.raises(SpoolLocked):
            Spool(world.directory / "spool", maybeDeferred).start()
        with pytest.raises(LedgerUnusable, match="in use"):
            LedgerFile(world.directory / LEDGER_NAME).open()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "node")
    yield node
    node.stop()


def test_s13_staged_files_are_for_their_owner_and_named_by_hashes(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        node = Node(tmp_path / "node")
        node.full_share(0)
        node.stage(NAME, [1])
        found = modes(tmp_path / "node" / "staging")
        node.stop()
    finally:
        os.umask(mask)
    assert found.pop(".") == 0o700  # whatever is in it
    (directory,) = {name.split("/")[0] for name in found if "/" in name}
    assert re.fullmatch("[a-z2-7]{52}", directory)
    assert directory != b32encode(NAME).decode().lower().rstrip("=")
    prepared = found.pop(f"{directory}/0")
    assert prepared == 0o644  # as it will be among the shares
    assert set(found.values()) == {0o600, 0o700}


def test_s13_links_in_the_staging_directory_are_not_followed(tmp_path: Path, node: Node) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "0").write_bytes(b"precious")
    node.stage(NAME, [1])
    (directory,) = [path for path in node.staged_files() if path.is_dir()]
    (directory / "0").symlink_to(elsewhere / "0")
    node.stage(NAME, [0])
    node.write(NAME, 0, DATA_OFFSET, BODY)
    assert not (directory / "0").is_symlink()
    (directory.parent / ("a" * 52)).symlink_to(elsewhere)
    node.restart()
    assert (elsewhere / "0").read_bytes() == b"precious"
    node.stop()
    (directory.parent / "lock").unlink()
    (directory.parent / "lock").symlink_to(elsewhere / "0")
    with pytest.raises(OSError, match="symbolic link"):
        node.start()
    assert (elsewhere / "0").read_bytes() == b"precious"


def test_s13_a_second_node_on_the_same_staged_shares_is_refused(node: Node) -> None:
    node.full_share(0)
    node.stage(NAME, [1])
    first, before = node.staging, sorted(node.staged_files())
    with pytest.raises(StagingLocked):
        node.start()
    assert sorted(node.staged_files()) == before
    node.staging = first
    assert node.assign() == {0: "assigned"}


# -- S14: names and IDs -------------------------------------------------------------------------------------------

_LISTENERS: list[list[str]] = []
_PATH_EVENTS = re.compile(
    r"open|sqlite3\.connect|shutil\..*"
    r"|os\.(remove|rename|link|symlink|mkdir|rmdir|listdir|scandir|truncate|chmod|chown|utime)")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _LISTENERS and _PATH_EVENTS.fullmatch(event):
        for argument in arguments[:2]:
            if isinstance(argument, str | bytes | os.PathLike):
                _LISTENERS[-1].append(os.fsdecode(argument))


sys.addaudithook(_audit)  # sees every path that Python hands to the system, by whatever function


@contextmanager
def touched_paths() -> Iterator[list[str]]:
    paths: list[str] = []
    _LISTENERS.append(paths)
    try:
        yield paths
    finally:
        _LISTENERS.remove(paths)


def hostile(count: int, size: int) -> Iterator[bytes]:
    """IDs and names that might be taken for paths; a quarter of them of the right size."""
    choose = random.Random("hostile")
    parts = [b"..", b"/", b"../", b"%2f", b"%2e%2e", b"\0", b"/etc/passwd", b"~", b"-wal", b"lock", b"\xc0\xaf",
             "\u2215".encode(), b"\n", b"a" * 52, b"*", b"\\", b"ledger.sqlite", b"."]
    for number in range(count):
        name = b"".join(choose.choices(parts, k=choose.randint(0, 30)))
        if number % 4 == 0:
            name = name.ljust(size, b"/")[:size] if choose.random() < 0.7 else choose.randbytes(size)
        yield name if number != 1 else b"../" * (1 << 18)


#: Where the disk of staging_node.py keeps what was removed.
OF_THE_TEST = r"(\.\./)+node\.attic(/[0-9]+)?"


def outside(paths: list[str], directory: Path, allowed: str) -> list[str]:
    """Those that are neither in the directory under a name that is allowed, nor it or what is above it."""
    return [path for path in paths if not re.fullmatch(allowed, os.path.relpath(path, directory))]


def test_s14_no_upload_id_is_ever_a_path() -> None:
    with World() as world:
        edge = world.edge
        world.run(edge.remote_open(b"w" * UPLOAD_ID_SIZE, PARAMETERS.to_wire()))
        with touched_paths() as paths:
            opened = 0
            for upload_id in hostile(10_000, UPLOAD_ID_SIZE):
                fields, _shares = world.run(edge.remote_open(upload_id, PARAMETERS.to_wire()))
                if fields[b"code"] == b"ok":
                    opened += 1
                    world.run(edge.remote_put_ciphertext(upload_id, 0, b"x" * 100))
                for call in (edge.remote_put_ciphertext(upload_id, 100, b"y"), edge.remote_status(upload_id),
                             edge.remote_abort(upload_id)):
                    world.run(call)
    assert opened > 1000
    assert len(paths) > opened
    assert outside(paths, world.directory / "spool", r"\.|[a-z2-7]{52}") == []


def test_s14_no_staging_name_is_ever_a_path(node: Node) -> None:
    edge = FoolscapStagingServer(node.staging)
    node.full_share(7, b"w" * STAGING_NAME_SIZE)
    with touched_paths() as paths:
        staged = 0
        for number, name in enumerate(hostile(10_000, STAGING_NAME_SIZE)):
            answer, _held = now(answered_by(edge.remote_stage(name, [0], 0)))
            staged += answer[b"code"] == b"ok"
            for call in (edge.remote_write(name, 0, DATA_OFFSET, b"x"), edge.remote_held(name),
                         edge.remote_assign(name, name[:16], [number % 300]), edge.remote_abort(name, [])):
                now(answered_by(call))
    assert staged > 1000
    assert len(paths) > staged
    assert outside(paths, node.directory / "staging", rf"\.|[a-z2-7]{{52}}(/0)?|{OF_THE_TEST}") == []
    # Nor is a storage index: it is published where stock would publish it.
    hostile_index = b"../../../../etc/"
    with touched_paths() as paths:
        assert node.assign(b"w" * STAGING_NAME_SIZE, hostile_index) == {7: "assigned"}
    places = r"shares(/[a-z2-7]{2}(/[a-z2-7]{26}(/7)?)?)?|staging/[a-z2-7]{52}(/7)?"
    assert outside(paths, node.directory, rf"\.|{OF_THE_TEST}|{places}") == []


async def answered_by(d: Deferred[Any]) -> Any:
    return await d
