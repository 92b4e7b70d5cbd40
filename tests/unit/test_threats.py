"""Threats to a helper's Tub, each carried out against a helper in a process of its own (protocol.txt §10.5)."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import reactor_loop
from foolscap.api import SturdyRef
from foolscap_tokens import begun_call, call, call_head, string, token
from loopback import LoopbackHelper, client_tub
from threat_helper import RawPeer, ThreatenedHelper, peak_memory, zeros
from world import expected

from client_shim.errors import HelperRefused
from client_shim.helper_edge import HelperLink, connect
from client_shim.upload import StreamingUpload
from helper.bounded_broker import NEGOTIATION_BYTES, ConnectionBounds
from helper.interfaces import LARGEST_MESSAGE_MAX, SIZE_MAX, MiB
from helper.parameters import Parameters
from helper.token_stream import CLOSE, INT, LONGINT, OPEN, STRING

#: What one connection may add to an idle helper.
ALLOWED = 50 * MiB
HUGE = 256 * MiB

PARAMETERS = Parameters(3, 7, 10, 128 * 1024)


@pytest.fixture(scope="module")
def threatened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreatenedHelper]:
    with ThreatenedHelper(tmp_path_factory.mktemp("threatened")) as helper:
        yield helper


async def upload_meanwhile(helper: ThreatenedHelper) -> None:
    """Somebody else streams a file, and gets the right cap. (The fake servers of that helper keep the shares.)"""
    tub = client_tub("somebody else")

    async def link() -> HelperLink:
        return await connect(tub, helper.furl)

    data, key = os.urandom(300_000), os.urandom(16)
    upload = StreamingUpload(link, PARAMETERS, reactor_loop.reactor, key=key)
    for start in range(0, len(data), 100_000):
        await upload.write(data[start:start + 100_000])
    assert await upload.close() == expected(data, PARAMETERS, key).cap
    await tub.stopService()


Attack = Callable[[ThreatenedHelper, RawPeer], Any]


async def method_name(_helper: ThreatenedHelper, peer: RawPeer) -> None:
    head = call_head(1, 0, b"")[:-1] + token(STRING, HUGE)
    await peer.pour(head, zeros(HUGE)).done


def get_reference(name: bytes) -> bytes:
    """Of a call of getReferenceByName, all but its end."""
    return begun_call(1, 0, b"getReferenceByName", string(b"name"), name, count=0)


async def name_in_furl(_helper: ThreatenedHelper, peer: RawPeer) -> None:
    await peer.pour(get_reference(token(STRING, HUGE)), zeros(HUGE)).done


async def large_number(_helper: ThreatenedHelper, peer: RawPeer) -> None:
    await peer.pour(token(OPEN) + string(b"call") + token(LONGINT, HUGE), zeros(HUGE)).done


async def argument_name(helper: ThreatenedHelper, peer: RawPeer) -> None:
    obj = await peer.reference(helper.hanging_furl)
    await peer.pour(begun_call(5, obj, b"hang", token(STRING, HUGE), count=0), zeros(HUGE)).done


async def argument(helper: ThreatenedHelper, peer: RawPeer) -> None:
    obj = await peer.reference(helper.hanging_furl)
    await peer.pour(begun_call(5, obj, b"hang", token(STRING, LARGEST_MESSAGE_MAX + 1)), zeros(HUGE)).done


def begun_list(obj: int) -> bytes:
    return begun_call(5, obj, b"hang", token(OPEN, 4) + string(b"list"))


async def many_small_tokens(helper: ThreatenedHelper, peer: RawPeer) -> None:
    obj = await peer.reference(helper.hanging_furl)
    await peer.pour(begun_list(obj), (token(INT, 5) * 4000 for _ in range(10_000))).done


async def many_lists(helper: ThreatenedHelper, peer: RawPeer) -> None:
    obj = await peer.reference(helper.hanging_furl)
    empty = token(OPEN, 9) + string(b"list") + token(CLOSE, 9)
    await peer.pour(begun_list(obj), (empty * 4000 for _ in range(1000))).done


async def deep_lists(helper: ThreatenedHelper, peer: RawPeer) -> None:
    obj = await peer.reference(helper.hanging_furl)
    await peer.pour(begun_list(obj), ((token(OPEN, 9) + string(b"list")) * 1000 for _ in range(1000))).done


#: These go beyond a bound: who does it is disconnected.
VIOLATIONS: list[Attack] = [method_name, name_in_furl, large_number, argument_name, argument, many_small_tokens,
                            many_lists, deep_lists]


@pytest.mark.parametrize("attack", VIOLATIONS, ids=lambda attack: attack.__name__)
def test_s8_a_violation_takes_no_memory_and_ends_the_connection(
        threatened: ThreatenedHelper, attack: Attack) -> None:
    async def go() -> None:
        peer = await RawPeer.connect(threatened.furl)
        await attack(threatened, peer)
        await reactor_loop.turns(lambda: bool(peer.lost))
        await peer.close()

    with peak_memory(threatened.pid) as grown:
        reactor_loop.run(go)
        reactor_loop.run(partial(upload_meanwhile, threatened))
    assert grown() < ALLOWED


def test_s8_records_of_two_bytes_take_little_more_memory_than_bytes(threatened: ThreatenedHelper) -> None:
    async def go() -> None:
        peer = await RawPeer.connect(threatened.furl)
        obj = await peer.reference(threatened.hanging_furl)
        peer.write_record(begun_call(5, obj, b"hang", token(STRING, LARGEST_MESSAGE_MAX)))
        await upload_meanwhile(threatened)
        with peak_memory(threatened.pid) as grown:
            for _ in range(400):
                for _ in range(1000):
                    peer.write_record(b"xx")
                await call_meanwhile(threatened)
            assert not peer.lost
            assert grown() < 8 * MiB
        await peer.close()

    reactor_loop.run(go, patience=60)


async def call_meanwhile(helper: ThreatenedHelper) -> None:
    """One call by somebody else."""
    tub = client_tub("somebody else")
    rref = await tub.getReference(helper.hanging_furl)
    assert await rref.callRemote("tell", 5) == bytes(5)
    await tub.stopService()


def test_s8_calls_without_answers_are_not_read_beyond_a_bound(threatened: ThreatenedHelper) -> None:
    async def go() -> int:
        peer = await RawPeer.connect(threatened.furl)
        obj = await peer.reference(threatened.hanging_furl)
        calls = (call(5 + i, obj, b"hang", string(bytes(MiB))) for i in range(256))
        pouring = peer.pour(b"", calls)
        before = -1
        while pouring.poured != before:  # as long as any is read
            before = pouring.poured
            await upload_meanwhile(threatened)
        assert not peer.lost
        poured: int = pouring.poured
        await peer.close()
        return poured

    with peak_memory(threatened.pid) as grown:
        assert 15 * MiB < reactor_loop.run(go, patience=60) < 40 * MiB
    assert grown() < ALLOWED


def test_s8_who_does_not_read_answers_is_not_read_either(threatened: ThreatenedHelper) -> None:
    async def go() -> int:
        peer = await RawPeer.connect(threatened.furl)
        obj = await peer.reference(threatened.hanging_furl)
        peer.broker.transport.pauseProducing()
        calls = (call(5 + i, obj, b"tell", token(INT, 100_000)) for i in range(100_000))
        pouring = peer.pour(b"", (b"".join(chunk) for chunk in by_hundreds(calls)))
        before = -1
        while pouring.poured != before:
            before = pouring.poured
            await upload_meanwhile(threatened)
        poured: int = pouring.poured
        await peer.close()
        return poured

    with peak_memory(threatened.pid) as grown:
        reactor_loop.run(go, patience=60)
    assert grown() < ALLOWED


def by_hundreds(items: Iterator[bytes]) -> Iterator[list[bytes]]:
    for first in items:
        yield list(chain([first], (item for item, _ in zip(items, range(99), strict=False))))


def test_s8_many_connections_that_say_nothing_do_not_keep_others_out(threatened: ThreatenedHelper) -> None:
    _, port = SturdyRef(threatened.furl).locationHints[0].rsplit(":", 1)
    with peak_memory(threatened.pid) as grown, ExitStack() as stack:
        many = []
        for _ in range(2 * ConnectionBounds().strangers):
            many.append(stack.enter_context(socket.create_connection(("127.0.0.1", int(port)))))
            many[-1].sendall(b"x" * NEGOTIATION_BYTES)
        reactor_loop.run(partial(upload_meanwhile, threatened))
        many[0].settimeout(20)
        with pytest.raises(ConnectionResetError):
            many[0].recv(1)  # the oldest made room
        assert grown() < ALLOWED


# -- other threats at this edge ----------------------------------------------------------------------------


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[LoopbackHelper]:
    with LoopbackHelper(tmp_path) as helper:
        yield helper


def test_s5_probes_for_upload_ids_leave_no_state_and_get_one_answer(helper: LoopbackHelper) -> None:
    link = helper.connect()
    hashes = bytes(32)
    ended = bytes(32)
    helper.run(lambda: link.open(ended, PARAMETERS.to_wire()))

    async def probe() -> set[tuple[str, str, str]]:
        answers = set()
        for i in range(10_000):
            upload_id = i.to_bytes(32, "big") if i else b"\xff" * 32
            method = (link.status, link.abort, partial(link.put_ciphertext, offset=0, data=b"x"),
                      partial(link.assign, storage_index=bytes(16)),
                      partial(link.finish, size=100, storage_index=bytes(16), crypttext_hash=hashes,
                              crypttext_root_hash=hashes))[i % 5]
            try:
                await method(upload_id)
            except HelperRefused as refused:
                answers.add((refused.code, refused.text(), repr(refused.fields())))
        return answers

    def state() -> tuple[int, list[str]]:
        gc.collect()
        return len(helper.uploads._by_name), sorted(os.listdir(helper.directory / "spool"))

    before = reactor_loop.now(state)
    answers = helper.run(probe)
    assert [code for code, _text, _fields in answers] == ["unknown-upload"]
    assert reactor_loop.now(state) == before


NUMBERS: list[Any] = [-2**64, -2**63 - 1, -2**63, -2**31 - 1, -1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1,
                      2**64, 2**80, 2**448, 0.5, float("nan"), float("inf"), True, None, b"0", "0", [0]]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@pytest.mark.parametrize("method", ["put_ciphertext", "finish", "open"])
def test_s18_numbers_out_of_bounds_are_refused_and_change_nothing(
        helper: LoopbackHelper, method: str, number: Any) -> None:
    upload_id = bytes(range(32))
    link = helper.connect()
    helper.run(lambda: link.open(upload_id, PARAMETERS.to_wire()))
    helper.run(lambda: link.put_ciphertext(upload_id, 0, b"first"))
    arguments = {
        "put_ciphertext": (upload_id, number, b"data"),
        "finish": (upload_id, number, bytes(16), bytes(32), bytes(32)),
        "open": (bytes(32), {**PARAMETERS.to_wire(), b"size": number}),
    }[method]

    async def send() -> str:
        tub = client_tub("another client")
        try:
            rref = await tub.getReference(helper.streaming_furl)
            fields, _shares = await rref.callRemote(method, *arguments, _useSchema=False)
            return str(fields[b"code"].decode())
        except Exception as e:  # noqa: BLE001 (by Foolscap's schema or by our bounds, at either end)
            return type(e).__name__
        finally:
            await tub.stopService()

    came = helper.run(send)
    in_bounds = method == "open" and type(number) is int and 0 <= number <= SIZE_MAX
    assert came in ({"ok", "spool-full"} if in_bounds else {
        "bad-argument", "offset-gap", "size-mismatch", "RemoteException", "DeadReferenceError", "Violation"})
    assert helper.run(lambda: link.status(upload_id)).number("received") == 5
