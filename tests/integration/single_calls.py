"""Uploads whose calls (protocol.txt §4) a test makes one by one, and what becomes of their files."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Self

import attrs
import pytest
import reactor_loop
from allmydata.util import base32, hashutil
from foolscap.api import Tub
from grid_tools import MAX_SEGMENT, MiB, by_stock, download, wait_for
from oracle import Encoded, encode
from twisted.internet.defer import Deferred

from client_shim.cipher import Encryptor
from client_shim.errors import HelperRefused
from client_shim.helper_edge import HelperAnswer, HelperLink, connect, make_tub
from client_shim.local_config import GridOptions
from client_shim.local_node import NodeProcess
from client_shim.server_order import order_of, parse_seeds
from client_shim.verify import cap_of
from helper.ciphertext import CiphertextHasher, CiphertextHashes
from helper.parameters import Parameters


@attrs.frozen(eq=False)
class File:
    """A plaintext, its key, and what both become. Declared or not, the size is that of `plaintext`."""

    plaintext: bytes = attrs.field(repr=False)
    parameters: Parameters
    key: bytes = attrs.field(factory=lambda: os.urandom(16), repr=False)

    @cached_property
    def ciphertext(self) -> bytes:
        return Encryptor(self.key).encrypt(self.plaintext)

    @cached_property
    def hashes(self) -> CiphertextHashes:
        hasher = CiphertextHasher(self.parameters.k, self.parameters.max_segment_size, self.parameters.size)
        hasher.update(self.ciphertext)
        return hasher.hashes()

    @cached_property
    def by_stock(self) -> Encoded:
        """What stock's encoder makes of it."""
        p = self.parameters
        return encode(self.plaintext, p.k, p.n, p.max_segment_size, key=self.key, layout=2)

    @property
    def cap(self) -> str:
        """Stock's."""
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
        hashes = self.hashes
        return hashes.size, self.storage_index, hashes.crypttext_hash, hashes.crypttext_root_hash

    def cap_from(self, finished: HelperAnswer) -> str:
        """What a client makes of the answer to `finish`."""
        ueb = finished.fields["ueb"]
        assert isinstance(ueb, bytes)
        return cap_of(self.key, self.parameters, self.hashes, ueb).decode()

    def check(self, cap: str, reader: NodeProcess) -> None:
        """The cap is the one stock makes, and a stock client reads at it what was sent, byte for byte."""
        assert cap == by_stock(cap, self.plaintext, self.parameters.max_segment_size).cap.decode()
        assert download(reader, cap) == self.plaintext


def new_file(options: GridOptions, size: int, *, happy: int | None = None, declared: bool = False) -> File:
    """Random bytes with a random key."""
    parameters = Parameters(options.k, happy or options.happy, options.n, MAX_SEGMENT, size if declared else None)
    return File(os.urandom(size), parameters)


def new_tub() -> Tub:
    """A client's, started; to be stopped by `stop_tub`."""
    def make() -> Tub:
        tub = make_tub()
        tub.startService()
        return tub

    return reactor_loop.now(make)


def stop_tub(tub: Tub) -> None:
    """End its connections."""
    async def stop() -> None:
        await tub.stopService()

    reactor_loop.run(stop)


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

    def __enter__(self) -> Self:
        self._tub = new_tub()
        self._link = reactor_loop.run(lambda: connect(self._tub, self._furl), 30)
        return self

    def __exit__(self, *_exc: object) -> None:
        stop_tub(self._tub)

    def open(self) -> HelperAnswer:
        """Then says where readers will look, as clients do."""
        answer = self._call(lambda link: link.open(self.upload_id, self.file.parameters.to_wire()))
        seeds = answer.fields["permutation-seeds"]
        assert isinstance(seeds, bytes)
        order = order_of(self.file.storage_index, parse_seeds(seeds))
        self._call(lambda link: link.order(self.upload_id, order))
        return answer

    def put(self, start: int, end: int) -> int:
        """Sends these bytes, one message after the other; returns the length that is durable then."""
        durable = start
        for offset in range(start, end, MiB // 2):
            data = self.file.ciphertext[offset:min(end, offset + MiB // 2)]
            answer = self._call(lambda link, at=offset, d=data: link.put_ciphertext(self.upload_id, at, d))
            durable = answer.number("durable")
        return durable

    def begin_put(self, start: int, end: int) -> Pending:
        """Sends these bytes as one message and goes on."""
        data = self.file.ciphertext[start:end]
        return self._begin(lambda link: link.put_ciphertext(self.upload_id, start, data))

    def status(self) -> HelperAnswer:
        return self._call(lambda link: link.status(self.upload_id))

    @property
    def state(self) -> str:
        return self.status().text("state")

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
        return self._begin(self._finish)

    def abort(self) -> HelperAnswer:
        return self._call(lambda link: link.abort(self.upload_id))

    def send_all(self) -> None:
        """From `open` to the last byte."""
        self.open()
        self.put(0, len(self.file.plaintext))

    def _finish(self, link: HelperLink) -> Awaitable[HelperAnswer]:
        return link.finish(self.upload_id, *self.file.finish_arguments)

    def _begin(self, call: Callable[[HelperLink], Awaitable[HelperAnswer]]) -> Pending:
        pending = Pending()

        async def answered() -> HelperAnswer:
            return await call(self._link)

        reactor_loop.now(lambda: Deferred.fromCoroutine(answered()).addBoth(pending.outcome.append) and None)
        return pending

    def _call(self, call: Callable[[HelperLink], Awaitable[HelperAnswer]]) -> HelperAnswer:
        return reactor_loop.run(lambda: call(self._link), 60)


def refusal_of(call: Callable[[], object]) -> HelperRefused:
    """What a call is refused with, as it must be."""
    with pytest.raises(HelperRefused) as caught:
        call()
    return caught.value
