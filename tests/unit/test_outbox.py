"""Where ciphertext is between the encryptor and the helper's disk, whatever happens to connections."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import plaintext

from client_shim.errors import HelperMisbehaved
from client_shim.outbox import Message, Outbox
from client_shim.window import WINDOW_MIN, SendWindow

CIPHERTEXT = plaintext(1_000_000)


def held(outbox: Outbox) -> int:
    """Bytes that it keeps."""
    kept = sum(len(m.data) for m in (*outbox._again, *outbox._on_their_way))
    return kept + outbox._unsent_length


@given(data=st.data())
def test_any_history(data: st.DataObject) -> None:
    """A helper that keeps what was durable at each disconnect, and some of what was on its way."""
    outbox = Outbox()
    received = bytearray()  # by the helper
    on_their_way: list[Message] = []
    added, now, connected = 0, 0.0, False
    steps = st.sampled_from(["add", "add", "send", "send", "answer", "cut", "connect"])
    for step in data.draw(st.lists(steps, min_size=5, max_size=80)):
        now += 0.1
        if step == "add" and not (connected and outbox.must_wait):
            size = data.draw(st.integers(1, 50_000))
            outbox.add(CIPHERTEXT[added:added + size])
            added = min(len(CIPHERTEXT), added + size)
        elif step == "send":
            while (message := outbox.next_message(now)) is not None:
                assert connected
                assert message.data == CIPHERTEXT[message.offset:message.end]
                assert message.offset == (on_their_way[-1].end if on_their_way else len(received))
                on_their_way.append(message)
            assert sum(len(m.data) for m in on_their_way) <= max(WINDOW_MIN, 20_000)
        elif step == "answer" and on_their_way:
            message = on_their_way.pop(0)
            received += message.data
            outbox.acknowledged(message, len(received), now)
            assert outbox.durable == len(received)
        elif step == "cut" and connected:
            for message in on_their_way[:data.draw(st.integers(0, len(on_their_way)))]:
                received += message.data
            on_their_way.clear()
            outbox.disconnected()
            connected = False
            assert outbox.next_message(now) is None
            assert outbox.must_wait
        elif step == "connect" and not connected:
            # less room than before, so that not all can be sent again at once
            credit = data.draw(st.integers(5_000, WINDOW_MIN))
            outbox.connected(SendWindow(credit, 20_000), len(received))
            connected = True
        assert outbox.durable <= len(received) <= outbox.sent <= added
        assert held(outbox) == added - outbox.durable
    assert bytes(received) == CIPHERTEXT[:len(received)]


def test_less_than_a_message_waits_for_more_until_nothing_is_on_its_way() -> None:
    outbox = Outbox()
    outbox.connected(SendWindow(10**6, 1000), 0)
    outbox.add(CIPHERTEXT[:1500])
    first = outbox.next_message(0.0)
    assert first == Message(0, CIPHERTEXT[:1000])
    assert outbox.next_message(0.0) is None
    assert not outbox.must_wait
    outbox.acknowledged(first, 1000, 1.0)
    assert outbox.next_message(1.0) == Message(1000, CIPHERTEXT[1000:1500])


def test_a_piece_that_makes_a_message_is_sent_uncopied() -> None:
    outbox = Outbox()
    outbox.connected(SendWindow(10**6, 1000), 0)
    pieces = [CIPHERTEXT[:370], CIPHERTEXT[370:1370], CIPHERTEXT[1370:2120], CIPHERTEXT[2120:2869]]
    for piece in pieces:
        outbox.add(piece)
    assert outbox.next_message(0.0) == Message(0, pieces[0])
    for piece in pieces[1:3]:
        message = outbox.next_message(0.0)
        assert message is not None
        assert message.data is piece
    assert outbox.next_message(0.0) is None  # 749 wait for more
    outbox.add(CIPHERTEXT[2869:3618])  # no message by itself
    assert outbox.next_message(0.0) == Message(2120, CIPHERTEXT[2120:3120])


def test_when_no_more_comes_it_waits_for_nothing() -> None:
    outbox = Outbox()
    outbox.connected(SendWindow(10**6, 1000), 0)
    outbox.add(CIPHERTEXT[:1500])
    outbox.complete()
    assert [m and m.end for m in (outbox.next_message(0.0), outbox.next_message(0.0))] == [1000, 1500]


def test_what_was_not_sent_again_yet_comes_after_what_was() -> None:
    outbox = Outbox()
    outbox.connected(SendWindow(10_000, 2500), 0)
    outbox.add(CIPHERTEXT[:10_000])
    while outbox.next_message(0.0) is not None:
        pass
    for _ in range(3):
        outbox.disconnected()
        outbox.connected(SendWindow(4000, 1000), 0)
        assert [m and m.offset for m in (outbox.next_message(0.0), outbox.next_message(0.0))] == [0, 1000]


def test_what_is_sent_again_is_cut_to_the_new_window() -> None:
    outbox = Outbox()
    outbox.connected(SendWindow(10**6, 10_000), 0)
    outbox.add(CIPHERTEXT[:20_000])
    while outbox.next_message(0.0) is not None:
        pass
    outbox.disconnected()
    outbox.connected(SendWindow(10**6, 4096), 500)
    again = []
    while (message := outbox.next_message(0.0)) is not None:
        again.append(message)
    assert max(len(m.data) for m in again) == 4096
    assert again[0].offset == 500
    assert b"".join(m.data for m in again) == CIPHERTEXT[500:20_000]


@pytest.mark.parametrize("durable", [0, 999, 2001, 2**53])
def test_a_durable_length_that_cannot_be(durable: int) -> None:
    outbox = Outbox()
    outbox.connected(SendWindow(10**6, 1000), 0)
    outbox.add(CIPHERTEXT[:2000])
    first = outbox.next_message(0.0)
    assert first is not None
    outbox.next_message(0.0)
    outbox.acknowledged(first, 1000, 0.0)
    outbox.disconnected()
    with pytest.raises(HelperMisbehaved, match=str(durable)):
        outbox.connected(SendWindow(10**6, 1000), durable)


@given(floor=st.integers(0, 5000), pieces=st.lists(st.integers(1, 30_000), max_size=6), had=st.integers(0, 200_000),
       more=st.integers(0, 10_000), largest=st.integers(1_000, 20_000))
def test_a_new_process_goes_on_with_the_ring(floor: int, pieces: list[int], had: int, more: int, largest: int) -> None:
    """Whatever part of the ring the helper has: the rest is sent, in order, and then what is new."""
    ends = [floor + sum(pieces[:i + 1]) for i in range(len(pieces))]
    end = ends[-1] if ends else floor
    outbox = Outbox(floor, [CIPHERTEXT[a:b] for a, b in zip([floor, *ends], ends, strict=False)])
    assert (outbox.durable, outbox.sent) == (floor, end)
    assert outbox.must_wait
    received = min(floor + had, end)
    outbox.connected(SendWindow(WINDOW_MIN, largest), received)
    assert outbox.durable == received
    outbox.add(CIPHERTEXT[end:end + more])
    outbox.complete()
    while (message := outbox.next_message(0.0)) is not None:
        assert message.offset == received
        assert message.data == CIPHERTEXT[message.offset:message.end]
        received = message.end
        outbox.acknowledged(message, received, 0.1)
    assert received == outbox.durable == end + more
    assert not outbox.must_wait
    assert held(outbox) == 0


@pytest.mark.parametrize("durable", [99, 301])
def test_a_ring_that_the_helper_contradicts(durable: int) -> None:
    outbox = Outbox(100, [CIPHERTEXT[100:300]])
    with pytest.raises(HelperMisbehaved, match=f"{durable} bytes are durable"):
        outbox.connected(SendWindow(WINDOW_MIN, 1000), durable)
