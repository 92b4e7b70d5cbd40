"""What the tests of staging servers share: grids that have them, uploads made call by call, what is on their disks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import attrs
import pytest
import reactor_loop
from allmydata.util import base32, hashutil
from foolscap.api import Tub
from grid_tools import BLOCKS_OFFSET, CONTAINER_HEADER, SharedGrid, spool_of, wait_for
from oracle import Encoded, encode
from twisted.internet.defer import Deferred

from client_shim.cipher import Encryptor
from client_shim.errors import HelperRefused
from client_shim.helper_edge import HelperAnswer, HelperLink, connect, make_tub
from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid, ShareFile
from client_shim.local_node import NodeProcess
from client_shim.server_order import order_of, parse_seeds
from helper.ciphertext import CiphertextHasher
from helper.parameters import Parameters

MiB = 1024 * 1024
MAX_SEGMENT = MiB

#: Five servers, one of which may be lacking, as OPTIONS of grid_tools; all have the plugin.
STAGING = GridOptions(storage_nodes=5, k=3, happy=4, n=5, staging_nodes=5)
#: Half of the servers have it. They are enough for this happiness, and not for MIXED_HIGH_HAPPY.
MIXED = GridOptions(storage_nodes=6, k=3, happy=3, n=6, staging_nodes=3)
MIXED_HIGH_HAPPY = 5

#: Stock's own files in a storage directory, which come and go; and the staging server's records.
_NOT_SHARES = ("staging.sqlite", "lease_checker", "bucket_counter")


@attrs.frozen
class File:
    """A plaintext, its key, and what both become. Declared or not, the size is that of `plaintext`."""

    plaintext: bytes
    parameters: Parameters
    key: bytes = attrs.field(factory=lambda: os.urandom(16))

    @cached_property
    def ciphertext(self) -> bytes:
        return Encryptor(self.key).encrypt(self.plaintext)

    @cached_property
    def by_stock(self) -> Encoded:
        """What stock's encoder makes of it."""
        p = self.parameters
        return encode(self.plaintext, p.k, p.n, p.max_segment_size, key=self.key, layout=2)

    @property
    def cap(self) -> str:
        return str(self.by_stock.cap.decode())

    @property
    def storage_index(self) -> bytes:
        return bytes(hashutil.storage_index_hash(self.key))

    @property
    def index_name(self) -> str:
        """The storage index as directories are named."""
        return str(base32.b2a(self.storage_index).decode())

    @property
    def finish_arguments(self) -> tuple[int, bytes, bytes, bytes]:
        hasher = CiphertextHasher(self.parameters.k, self.parameters.max_segment_size, self.parameters.size)
        hasher.update(self.ciphertext)
        hashes = hasher.hashes()
        return hashes.size, self.storage_index, hashes.crypttext_hash, hashes.crypttext_root_hash


def new_file(options: GridOptions, size: int, happy: int | None = None) -> File:
    """Random bytes with a random key, of a size that is not declared."""
    parameters = Parameters(options.k, happy or options.happy, options.n, MAX_SEGMENT)
    return File(os.urandom(size), parameters)


class Pending:
    """A call whose answer nobody waits for yet."""

    def __init__(self) -> None:
        self.outcome: list[Any] = []

    @property
    def refusal(self) -> str | None:
        """The code it was refused with, once it is answered."""
        value = self._answered()
        error = getattr(value, "value", None)
        return error.code if isinstance(error, HelperRefused) else None

    @property
    def answer(self) -> HelperAnswer:
        """Waits for it. Raises if it was refused."""
        value = self._answered()
        if hasattr(value, "raiseException"):
            value.raiseException()
        assert isinstance(value, HelperAnswer)
        return value

    def _answered(self) -> Any:
        return wait_for("an answer of the helper", lambda: self.outcome)[0]


class Caller:
    """One upload, call by call, over a connection of its own (a context manager)."""

    def __init__(self, furl: str, file: File, upload_id: bytes | None = None) -> None:
        self.file = file
        self.upload_id = upload_id or os.urandom(32)
        self._furl = furl
        self._tub: Tub | None = None
        self._link: HelperLink | None = None

    def __enter__(self) -> Self:
        async def connected() -> HelperLink:
            self._tub = make_tub()
            self._tub.startService()
            return await connect(self._tub, self._furl)

        self._link = reactor_loop.run(connected, 30)
        return self

    def __exit__(self, *_exc: object) -> None:
        async def stop() -> None:
            if self._tub is not None:
                await self._tub.stopService()

        reactor_loop.run(stop)

    def open(self) -> HelperAnswer:
        """Then says where readers will look, as clients do."""
        answer = self._call(lambda link: link.open(self.upload_id, self.file.parameters.to_wire()))
        seeds = answer.fields["permutation-seeds"]
        assert isinstance(seeds, bytes)
        order = order_of(self.file.storage_index, parse_seeds(seeds))
        self._call(lambda link: link.order(self.upload_id, order))
        return answer

    def put(self, start: int, end: int) -> int:
        """Sends these bytes of the ciphertext; returns the durable length when they are."""
        durable = start
        for offset in range(start, end, MiB // 2):
            data = self.file.ciphertext[offset:min(end, offset + MiB // 2)]
            answer = self._call(lambda link, at=offset, d=data: link.put_ciphertext(self.upload_id, at, d))
            durable = answer.number("durable")
        return durable

    def status(self) -> HelperAnswer:
        return self._call(lambda link: link.status(self.upload_id))

    @property
    def state(self) -> str:
        value = self.status().fields["state"]
        assert isinstance(value, bytes)
        return value.decode()

    def assign(self) -> HelperAnswer:
        return self._call(lambda link: link.assign(self.upload_id, self.file.storage_index))

    def finish(self) -> HelperAnswer:
        """Asks again while the answer is `waiting`."""
        def answered() -> HelperAnswer | None:
            answer = self._call(self._finish)
            return None if answer.code == "waiting" else answer

        return wait_for("the result", answered)

    def begin_finish(self) -> Pending:
        """Calls `finish` and goes on."""
        link, pending = self._linked, Pending()

        def begin() -> None:
            Deferred.fromCoroutine(_awaited(self._finish(link))).addBoth(pending.outcome.append)

        reactor_loop.now(begin)
        return pending

    def abort(self) -> HelperAnswer:
        return self._call(lambda link: link.abort(self.upload_id))

    def send_all(self) -> None:
        """From `open` to the last byte."""
        self.open()
        self.put(0, len(self.file.plaintext))

    @property
    def _linked(self) -> HelperLink:
        if self._link is None:
            raise ValueError("not connected")
        return self._link

    def _finish(self, link: HelperLink) -> Awaitable[HelperAnswer]:
        return link.finish(self.upload_id, *self.file.finish_arguments)

    def _call(self, call: Callable[[HelperLink], Awaitable[HelperAnswer]]) -> HelperAnswer:
        link = self._linked
        return reactor_loop.run(lambda: call(link), 60)


def refusal_of(call: Callable[[], HelperAnswer]) -> str:
    """The code that a call is refused with."""
    with pytest.raises(HelperRefused) as caught:
        call()
    return str(caught.value.code)


async def _awaited(awaitable: Awaitable[HelperAnswer]) -> HelperAnswer:
    return await awaitable


# -- what is on disk ---------------------------------------------------------------------------------------


def trees(grid: LocalGrid) -> list[set[str]]:
    """What lies in each server's storage directory: files and, on staging servers, directories, empty ones too.

    (Stock servers leave empty directories behind when a share is aborted.)"""
    return [set(_tree(node.directory / "storage", server < grid.options.staging_nodes))
            for server, node in enumerate(grid.storage)]


def _tree(root: Path, with_directories: bool) -> Iterator[str]:
    for directory, subdirectories, names in os.walk(root):
        entries = [*names, *subdirectories] if with_directories else names
        for name in entries:
            if not name.startswith(_NOT_SHARES):
                yield str(Path(directory, name).relative_to(root))


def wait_for_trees(grid: LocalGrid, helper: NodeProcess, before: list[set[str]]) -> None:
    """What an upload that was given up leaves behind is nothing, on servers and in the spool."""
    def same() -> bool:
        return trees(grid) == before and not spool_of(helper)

    try:
        wait_for("nothing to be left", same, 20)
    finally:
        assert trees(grid) == before


def staged_to(grid: LocalGrid, segments: int, shares: int, k: int = 3) -> list[ShareFile]:
    """Waits until so many shares hold the blocks of so many full segments: those shares."""
    size = CONTAINER_HEADER + BLOCKS_OFFSET + segments * -(-MAX_SEGMENT // k)

    def held() -> list[ShareFile] | None:
        staged = [share for share in grid.staged_shares() if _size(share) >= size]
        return staged if len(staged) >= shares else None

    return wait_for(f"{shares} staged shares of {segments} segments", held)


def _size(share: ShareFile) -> int:
    try:
        return share.path.stat().st_size
    except FileNotFoundError:
        return 0  # published, or given up, this very moment


def prepared_on(node: NodeProcess) -> bool:
    """Whether a staging server's records say that it has a share that lacks only its name."""
    path = node.directory / "storage" / "staging" / "staging.sqlite"
    with closing(sqlite3.connect(path, timeout=20)) as records:
        return bool(records.execute("SELECT count(*) FROM staged WHERE state = 'prepared'").fetchone()[0])


def statistic(node: NodeProcess, name: str) -> int:
    """One of a node's counters."""
    return int(node.read_json("statistics?t=json")["stats"][name])


def pushed_again(helper: NodeProcess) -> int:
    """Bytes of shares that a helper had to send a second time."""
    return statistic(helper, "streaming_helper.bytes_pushed_again")


def wait_published(shared: SharedGrid, file: File, helper: NodeProcess | None = None) -> list[ShareFile]:
    """Waits until every share is in its place and the spool is empty, for `finish` is answered before: the shares,
    which are byte for byte stock's."""
    numbers = set(range(file.parameters.n))
    wait_for("every share", lambda: {s.number for s in shared.grid.shares(file.index_name)} == numbers)
    wait_for("an empty spool", lambda: not spool_of(helper or shared.grid.helper))
    assert not shared.grid.staged_shares()
    shares = shared.grid.shares(file.index_name)
    assert sorted(share.number for share in shares) == sorted(numbers), "each is on one server"
    return shares


@contextmanager
def restarted_helper(shared: SharedGrid) -> Iterator[Callable[[], None]]:
    """Call what is given to start the grid's helper again, after it has ended; it runs when the block is left."""
    helper = shared.grid.helper

    def start() -> None:
        helper.start()
        helper.wait_ready()
        shared.grid.wait_connected(helper, len(shared.grid.storage))

    try:
        yield start
    finally:
        helper.resume()
        if not helper.running:
            helper.kill()
            start()
