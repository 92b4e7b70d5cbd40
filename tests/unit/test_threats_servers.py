"""Threat S8 (Foolscap's memory) from storage servers, to which the node connects by itself (protocol.txt §10.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import pytest
import reactor_loop
from foolscap.api import Referenceable, Tub
from foolscap_tokens import call_head, string, token
from storage_client import StorageClient
from threat_helper import RawPeer, peak_memory, zeros
from twisted.internet.defer import Deferred

from helper.interfaces import MiB
from helper.token_stream import CLOSE, INT, LONGINT, OPEN, STORAGE_SERVER, STRING

#: What a server may add to an idle node.
ALLOWED = 50 * MiB
HUGE = 256 * MiB

HONEST, MALICIOUS = 0, 1


class Server(Referenceable):  # type: ignore[misc]
    """Answers get_version, if it does, as a storage server does; `asked` fires when it was asked."""

    def __init__(self, answers: bool) -> None:
        self.asked: Deferred[None] = Deferred()
        self._answers = answers

    def remote_get_version(self) -> object:
        if not self.asked.called:
            self.asked.callback(None)
        return {b"application-version": b"honest"} if self._answers else Deferred()

    def remote_tell(self, size: int) -> bytes:
        return bytes(size)


@attrs.frozen
class Servers:
    """Two storage servers, and a node that is connected to them."""

    client: StorageClient
    malicious: Tub
    server: Server

    def peer(self) -> RawPeer:
        """The malicious one's end of the connection, on which the node waits for an answer."""
        (broker,) = self.malicious.brokers.values()
        peer = RawPeer(self.malicious, broker)
        broker.notifyOnDisconnect(peer.lost.append, True)
        return peer


@pytest.fixture
def servers() -> Iterator[Servers]:
    tubs = [reactor_loop.now(lambda name=name: reactor_loop.listening_tub(name)) for name in ("honest", "malicious")]
    objects = [Server(answers=True), Server(answers=False)]
    furls = [reactor_loop.now(lambda tub=tub, obj=obj: str(tub.registerReference(obj)))
             for tub, obj in zip(tubs, objects, strict=True)]
    with StorageClient(furls) as client:
        reactor_loop.run(lambda: objects[MALICIOUS].asked)
        yield Servers(client, tubs[MALICIOUS], objects[MALICIOUS])

    async def stop() -> None:
        for tub in tubs:
            await tub.stopService()

    reactor_loop.run(stop)


Attack = Callable[[RawPeer], Deferred[int]]


def method_name(peer: RawPeer) -> Deferred[int]:
    return peer.pour(call_head(1, 1, b"")[:-1] + token(STRING, HUGE), zeros(HUGE)).done


def large_number(peer: RawPeer) -> Deferred[int]:
    return peer.pour(token(OPEN) + string(b"call") + token(LONGINT, HUGE), zeros(HUGE)).done


def begun_answer(peer: RawPeer, kind: bytes = b"answer") -> bytes:
    """To what the node has asked."""
    (request,) = peer.broker.activeLocalCalls
    return token(OPEN, 1) + string(kind) + token(INT, request)


def answer(peer: RawPeer) -> Deferred[int]:
    return peer.pour(begun_answer(peer) + token(STRING, HUGE), zeros(HUGE)).done


def error(peer: RawPeer) -> Deferred[int]:
    return peer.pour(begun_answer(peer, b"error") + token(STRING, HUGE), zeros(HUGE)).done


def dictionary(peer: RawPeer) -> bytes:
    return begun_answer(peer) + token(OPEN, 2) + string(b"dict")


def many_answers_in_one(peer: RawPeer) -> Deferred[int]:
    """Each of them within its bound."""
    largest = token(STRING, STORAGE_SERVER.value)
    return peer.pour(dictionary(peer), (piece for _ in range(28) for piece in (
        largest, *zeros(STORAGE_SERVER.value)))).done


def many_small_tokens(peer: RawPeer) -> Deferred[int]:
    return peer.pour(dictionary(peer), (token(INT, 5) * 4000 for _ in range(10_000))).done


def many_lists(peer: RawPeer) -> Deferred[int]:
    empty = token(OPEN, 9) + string(b"list") + token(CLOSE, 9)
    return peer.pour(dictionary(peer), (empty * 4000 for _ in range(1000))).done


def deep_lists(peer: RawPeer) -> Deferred[int]:
    return peer.pour(dictionary(peer), ((token(OPEN, 9) + string(b"list")) * 1000 for _ in range(1000))).done


ATTACKS: list[Attack] = [method_name, large_number, answer, error, many_answers_in_one, many_small_tokens, many_lists,
                         deep_lists]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_s8_a_storage_server_that_answers_too_much_is_disconnected(servers: Servers, attack: Attack) -> None:
    """It takes no memory, and other servers are asked as before."""
    assert servers.client.ask(HONEST, 100) == 100

    async def go() -> None:
        peer = servers.peer()
        await attack(peer)
        await reactor_loop.turns(lambda: bool(peer.lost))

    with peak_memory(servers.client.pid) as grown:
        reactor_loop.run(go)
    assert grown() < ALLOWED
    assert servers.client.ask(HONEST, 100) == 100


def test_the_largest_block_comes_through_and_what_no_server_has_to_say_does_not(servers: Servers) -> None:
    """A segment of the largest size, where k is 1."""
    assert servers.client.ask(HONEST, 8 * MiB) == 8 * MiB
    assert servers.client.ask(HONEST, STORAGE_SERVER.value) == STORAGE_SERVER.value
    assert servers.client.ask(HONEST, STORAGE_SERVER.value + 1) == -1
