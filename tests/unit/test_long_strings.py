"""What a connection with helper/long_strings.py sends is what Foolscap and Twisted would send, byte for byte."""

from __future__ import annotations

import random
from typing import Any

import pytest
import reactor_loop
from foolscap.api import DeadReferenceError, Tub
from foolscap.broker import Broker
from foolscap.referenceable import TubRef
from foolscap.vocab import INITIAL_VOCAB_TABLES
from hypothesis import given
from hypothesis import strategies as st
from tub_link import Link
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.testing import StringTransport

from client_shim.certificate import new_certificate
from client_shim.helper_edge import make_tub
from helper.large_writes import CHUNK, LargeWrites
from helper.long_strings import LONG, LongStrings

LENGTHS = [0, 1, LONG - 1, LONG, LONG + 1, CHUNK - 1, CHUNK, CHUNK + 1, 1_000_000, 4 * 1024 * 1024]


def test_it_is_in_use_over_tls() -> None:
    with Link() as link:
        assert type(link.broker) is LongStrings
        assert isinstance(link.broker._large_writes, LargeWrites)


def test_every_tub_is_somebody_else() -> None:
    """By its certificate, which Foolscap accepts as one of its own."""
    tubs = [make_tub() for _ in range(3)]
    assert len({tub.tubID for tub in tubs}) == 3
    certificate = new_certificate()
    assert Tub(certData=certificate).tubID == Tub(certData=certificate).tubID


def test_strings_of_all_lengths_arrive_in_order() -> None:
    source = random.Random(1)
    sent = [(i, source.randbytes(length)) for i, length in enumerate(LENGTHS * 2)]
    with Link() as link:
        async def send() -> list[int]:
            answers: list[int] = await gatherResults([link.target.callRemote("take", *each) for each in sent])
            return answers

        assert reactor_loop.run(send) == [number for number, _data in sent]
    assert link.sink.received == sent


def test_strings_inside_other_things() -> None:
    sent = [b"a" * LONG, {b"key": b"b" * (LONG + 1)}, [b"c" * CHUNK, 7, b"short"], (b"d" * 100_000, b"e")]
    with Link() as link:
        async def send() -> None:
            await link.target.callRemote("take", 1, sent)

        reactor_loop.run(send)
    assert link.sink.received == [(1, sent)]


def test_a_peer_that_does_not_read_for_a_while() -> None:
    """More than sockets take: the rest waits in order, with what is written later, long or short."""
    source = random.Random(2)
    sent = [(i, source.randbytes(1_000_000 if i % 3 else 10)) for i in range(40)]
    with Link() as link:
        async def send() -> None:
            link.receiver.transport.pauseProducing()
            answers = [link.target.callRemote("take", *each) for each in sent]
            tcp = link.broker.transport
            assert tcp.dataBuffer or tcp._tempDataBuffer  # not everything could be sent
            link.receiver.transport.resumeProducing()
            await gatherResults(answers)

        reactor_loop.run(send)
    assert link.sink.received == sent


def test_a_connection_that_breaks_in_the_middle() -> None:
    with Link() as link:
        async def send() -> list[Deferred[Any]]:
            link.receiver.transport.pauseProducing()
            answers = [link.target.callRemote("take", i, bytes(1_000_000)) for i in range(20)]
            link.receiver.transport.abortConnection()
            for answer in answers:
                with pytest.raises(Exception, match=r"Connection|lost|closed"):
                    await answer
            with pytest.raises(DeadReferenceError):
                await link.target.callRemote("take", 99, bytes(1_000_000))
            return answers

        assert len(reactor_loop.run(send)) == 20
        assert link.sink.received == []


def test_a_lost_connection_takes_nothing() -> None:
    with Link() as link:
        writes = link.broker._large_writes

        async def lose() -> None:
            lost: Deferred[None] = Deferred()
            link.target.notifyOnDisconnect(lambda: lost.callback(None))
            link.broker.transport.loseConnection()
            writes.write(bytes(100_000))  # after that: as `transport.write`, it drops it
            await lost
            writes.write(bytes(100_000))

        reactor_loop.run(lose)
    assert link.sink.received == []


tokens = st.one_of(st.integers(-2**40, 2**40), st.floats(allow_nan=False),
                   st.sampled_from([0, 3, 300, LONG, LONG + 1, 50_000]).map(lambda length: b"x" * length),
                   st.sampled_from([b"none", b"list", b"call", b"arguments"]))


@given(st.lists(tokens))
def test_tokens_are_foolscaps(values: list[Any]) -> None:
    """Over a transport that is not TLS; it is the same code but for the last step."""
    streams = []
    for kind in (Broker, LongStrings):
        transport = StringTransport()
        broker = kind(TubRef("0" * 32, []), {})
        broker.makeConnection(transport)
        for value in values:
            broker.sendToken(value)
        streams.append(transport.value())
    assert streams[0] == streams[1]
    assert broker._large_writes is None


def test_no_word_of_a_vocabulary_is_long() -> None:
    assert max(len(word) for table in INITIAL_VOCAB_TABLES.values() for word in table) < LONG
