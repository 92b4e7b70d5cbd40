"""helper/large_reads.py: what a connection receives is what it would receive without, in fewer pieces."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from reactor_loop import run, turns
from tub_link import Link
from twisted.internet.defer import gatherResults
from twisted.internet.testing import StringTransport

from helper.large_reads import RECORD, _Records, read_in_large_pieces

SIZE = 4 * RECORD


class Script:
    """Stands for an SSL.Connection: what OpenSSL has, record by record, or why there is nothing."""

    def __init__(self, records: list[bytes | type[SSL.Error]]) -> None:
        self._left = list(records)

    def recv_into(self, buffer: memoryview) -> int:
        if not self._left:
            raise SSL.WantReadError
        first = self._left.pop(0)
        if isinstance(first, type):
            raise first
        buffer[:len(first)] = first
        return len(first)

    def recv(self, _size: int) -> bytes:
        buffer = bytearray(RECORD)
        return bytes(buffer[:self.recv_into(memoryview(buffer))])


def all_of(recv: Any) -> tuple[bytes, list[tuple[int, type[SSL.Error]]]]:
    """Bytes, and errors with the length of what came before, until there is nothing."""
    received, errors = b"", []
    while True:
        try:
            received += recv(2**15)
        except SSL.WantReadError:
            return received, errors
        except SSL.Error as error:
            errors.append((len(received), type(error)))


@given(st.lists(st.one_of(
    st.tuples(st.integers(1, 255), st.sampled_from([1, 100, RECORD - 1, RECORD])).map(lambda r: bytes([r[0]]) * r[1]),
    st.sampled_from([SSL.ZeroReturnError, SSL.Error, SSL.SysCallError]))))
def test_bytes_and_errors_come_in_the_same_order(records: list[bytes | type[SSL.Error]]) -> None:
    plain, swift = Script(records), Script(records)
    assert all_of(_Records(swift, SIZE).recv) == all_of(plain.recv)  # type: ignore[arg-type]


def test_records_come_together_as_far_as_there_is_room() -> None:
    connection = Script([bytes(RECORD)] * 9)
    recv = _Records(connection, SIZE).recv  # type: ignore[arg-type]
    assert [len(recv(1)) for _ in range(3)] == [SIZE, SIZE, RECORD]
    with pytest.raises(SSL.WantReadError):
        recv(1)


def test_a_connection_that_is_gone() -> None:
    records = _Records(Script([b"x"]), SIZE)  # type: ignore[arg-type]
    with pytest.raises(SSL.ZeroReturnError):
        records.recv(1)


def test_a_connection_without_tls_stays_as_it_is() -> None:
    assert not read_in_large_pieces(StringTransport(), SIZE)


def pieces_seen(link: Link) -> list[int]:
    """Lengths of what its receiver is given from now on."""
    lengths: list[int] = []
    received = link.receiver.handleData

    def note(data: bytes) -> None:
        lengths.append(len(data))
        received(data)

    link.receiver.handleData = note
    return lengths


def test_strings_of_all_lengths_arrive_in_fewer_pieces() -> None:
    source = random.Random(1)
    sent = [(i, source.randbytes(length)) for i, length in enumerate([0, 1, RECORD, SIZE, 1_000_000, 3_000_000])]
    with Link() as link:
        assert read_in_large_pieces(link.receiver.transport, SIZE)
        assert read_in_large_pieces(link.receiver.transport, SIZE)
        assert link.receiver.transport.bufferSize == SIZE
        lengths = pieces_seen(link)

        async def send() -> None:
            await gatherResults([link.target.callRemote("take", *each) for each in sent])

        run(send)
    assert link.sink.received == sent
    assert RECORD < max(lengths) <= SIZE


def test_what_came_before_the_end_arrives() -> None:
    """Also if it comes with the end in one read."""
    with Link() as link:
        read_in_large_pieces(link.receiver.transport, SIZE)

        async def send() -> None:
            link.receiver.transport.pauseProducing()
            link.target.callRemoteOnly("take", 1, bytes(3 * RECORD))
            link.broker.transport.loseConnection()
            link.receiver.transport.resumeProducing()
            await turns(lambda: bool(link.receiver.disconnected))

        run(send)
    assert link.sink.received == [(1, bytes(3 * RECORD))]
