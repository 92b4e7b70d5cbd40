"""helper/token_stream.py: every bound at its limit and beyond; any split of the stream gives the same."""

from __future__ import annotations

from itertools import pairwise

import attrs
import pytest
from foolscap.banana import b1282int
from foolscap_tokens import begun_call, call, call_head, end_of_call, string, token
from hypothesis import given
from hypothesis import strategies as st

from helper.interfaces import LARGEST_MESSAGE_MAX, KiB
from helper.token_stream import (
    ABORT,
    CLOSE,
    ERROR,
    FLOAT,
    INT,
    KNOWN_PEER,
    LONGINT,
    LONGNEG,
    NEG,
    OPEN,
    OPEN_CHARGE,
    PING,
    PONG,
    STRANGER,
    STRING,
    TOKEN_CHARGE,
    VOCAB,
    OverBound,
    TokenBounds,
    TokenScanner,
)

SMALL = TokenBounds(name=10, value=20, argument=40, number=4, depth=5, children=8, message=100_000)


def refused(data: bytes, bounds: TokenBounds = SMALL) -> str:
    with pytest.raises(OverBound) as caught:
        TokenScanner().feed(data, bounds)
    assert caught.value.came > caught.value.limit
    return caught.value.what


def accepted(data: bytes, bounds: TokenBounds = SMALL) -> TokenScanner:
    scanner = TokenScanner()
    scanner.feed(data, bounds)
    return scanner


#: A place in the stream, the bound of a string there, and what is said of more.
ANSWER = token(OPEN) + string(b"answer") + token(INT, 1)
PLACES = {
    "at the top": (b"", SMALL.name),
    "type of a message": (token(OPEN), SMALL.name),
    "method": (call_head(1, 5, b"")[:-1], SMALL.name),
    "argument": (begun_call(1, 5, b"m"), SMALL.argument),
    "argument of an object of theirs": (call_head(1, 0, b"")[:-2] + token(NEG, 5) + string(b"m") + token(OPEN)
                                        + string(b"arguments") + token(INT, 1), SMALL.argument),
    "argument of the connection": (begun_call(1, 0, b"m"), SMALL.name),
    "in a list in an argument": (begun_call(1, 5, b"m", token(OPEN) + string(b"list")), SMALL.value),
    "in a list for the connection": (begun_call(1, 0, b"m", token(OPEN) + string(b"list")), SMALL.name),
    "answer": (ANSWER, SMALL.value),
    "in an answer": (ANSWER + token(OPEN) + string(b"list"), SMALL.value),
    "where the count should be": (call_head(1, 5, b"m") + token(OPEN) + string(b"arguments"), SMALL.value),
    "after a call of an object": (call(1, 5, b"m") + begun_call(2, 0, b"m"), SMALL.name),
    "object is no number": (call(1, 5, b"m") + token(OPEN) + string(b"call") + token(INT, 1) + string(b"x")
                            + string(b"m") + token(OPEN) + string(b"arg") + token(INT, 1), SMALL.name),
}


@pytest.mark.parametrize("place", PLACES)
def test_strings_are_bounded_by_their_place(place: str) -> None:
    before, limit = PLACES[place]
    bounds = attrs.evolve(SMALL, children=20)
    accepted(before + token(STRING, limit), bounds)
    assert refused(before + token(STRING, limit + 1), bounds) == "bytes of a string"


@pytest.mark.parametrize("kind", [LONGINT, LONGNEG])
def test_numbers(kind: int) -> None:
    accepted(ANSWER + token(kind, 4, b"1234"))
    assert refused(ANSWER + token(kind, 5)) == "bytes of a number"


def test_errors() -> None:
    accepted(token(ERROR, 10))
    assert refused(token(ERROR, 11)) == "bytes of an error"


def test_headers() -> None:
    accepted(bytes(64) + bytes([PING]))
    accepted(bytes(64))
    assert refused(bytes(65)) == "digits of a header"


def test_depth() -> None:
    accepted(token(OPEN) * 5)
    assert refused(token(OPEN) * 6) == "nested sequences"
    accepted((token(OPEN) + token(CLOSE)) * 100)


def test_children() -> None:
    accepted(token(OPEN) + token(INT) * 8 + token(CLOSE))
    assert refused(token(OPEN) + token(INT) * 9) == "tokens in a sequence"
    assert refused(token(OPEN) + (token(OPEN) + token(CLOSE)) * 9) == "tokens in a sequence"


def test_a_message_is_charged_for_its_objects() -> None:
    bounds = attrs.evolve(SMALL, message=2 * (OPEN_CHARGE + TOKEN_CHARGE) + 2 * TOKEN_CHARGE + 7)
    message = token(OPEN) * 2 + token(INT) + string(b"1234567") + token(CLOSE) * 2
    cuts = TokenScanner().feed(message * 2, bounds)
    assert [(cut.end, cut.message) for cut in cuts] == [
        (len(message), bounds.message), (2 * len(message), bounds.message)]
    assert refused(message, attrs.evolve(bounds, message=bounds.message - 1)) == "bytes of a message"


def test_a_body_is_charged_as_it_comes() -> None:
    scanner = accepted(begun_call(1, 5, b"m"))
    before = scanner.charge
    scanner.feed(token(STRING, 40), SMALL)
    assert scanner.charge == before + TOKEN_CHARGE
    scanner.feed(bytes(30), SMALL)
    assert scanner.charge == before + TOKEN_CHARGE + 30
    assert scanner.in_message
    scanner.feed(bytes(10) + end_of_call(1), SMALL)
    assert (scanner.charge, scanner.in_message) == (0, False)


@pytest.mark.parametrize("kind", [0x80, 0x8B, 0x8C, *range(0x90, 0x100)])
def test_unknown_tokens(kind: int) -> None:
    assert refused(token(kind, 1)) == "tokens of an unknown type"


def test_a_close_without_open() -> None:
    assert refused(token(CLOSE)) == "CLOSE tokens without OPEN"
    assert refused(token(OPEN) + token(CLOSE) * 2) == "CLOSE tokens without OPEN"


def test_what_our_protocol_needs_fits() -> None:
    accepted(call(1, 7, b"put_ciphertext", string(bytes(32)), token(LONGINT, 8, bytes(8)),
                  string(bytes(LARGEST_MESSAGE_MAX))), KNOWN_PEER)
    announcement = token(OPEN) + string(b"tuple") + string(bytes(1200)) + string(bytes(120)) + string(bytes(60))
    accepted(begun_call(1, 7, b"announce_v2", token(OPEN) + string(b"set") + (announcement + token(CLOSE)) * 1500),
             KNOWN_PEER)
    accepted(token(OPEN) + string(b"answer") + token(INT, 1) + token(OPEN) + string(b"list")
             + string(bytes(50 * KiB)), KNOWN_PEER)
    accepted(begun_call(1, 0, b"getReferenceByName", string(b"name"), string(bytes(32)), count=0), STRANGER)


# -- any split ----------------------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.builds(string, st.binary(max_size=20)),
    st.builds(token, st.sampled_from([INT, NEG, VOCAB, ABORT, PING, PONG]), st.integers(0, 2**40)),
    st.builds(lambda body: token(FLOAT, 0, b"") + body, st.binary(min_size=8, max_size=8)),
    st.builds(lambda body: token(LONGINT, len(body), body), st.binary(min_size=1, max_size=4)))
MESSAGES = st.lists(st.builds(
    lambda items: token(OPEN) + b"".join(items) + token(CLOSE),
    st.lists(st.one_of(LEAVES, st.builds(
        lambda items: token(OPEN) + b"".join(items) + token(CLOSE), st.lists(LEAVES, max_size=5))), max_size=5)))


@given(messages=MESSAGES, splits=st.lists(st.integers(0, 500)))
def test_any_split_gives_the_same_messages(messages: list[bytes], splits: list[int]) -> None:
    data = b"".join(messages)
    bounds = attrs.evolve(SMALL, name=20, children=100)
    whole = TokenScanner().feed(data, bounds)
    scanner = TokenScanner()
    pieces: list[tuple[int, int | None]] = []
    edges = [0, *sorted(min(split, len(data)) for split in splits), len(data)]
    for begin, end in pairwise(edges):
        pieces += [(begin + cut.end, cut.message) for cut in scanner.feed(data[begin:end], bounds)]
        assert scanner.token_end <= end - begin
    assert pieces == [(cut.end, cut.message) for cut in whole]
    ends = [end for end, message in pieces if message is not None]
    assert ends == [sum(map(len, messages[:i + 1])) for i in range(len(messages))]
    assert not scanner.in_message


@given(garbage=st.lists(st.binary(max_size=200)))
def test_garbage_is_accepted_or_over_a_bound(garbage: list[bytes]) -> None:
    scanner = TokenScanner()
    try:
        for piece in garbage:
            scanner.feed(piece, SMALL)
            assert 0 <= scanner.token_end <= len(piece)
            assert 0 <= scanner.charge <= SMALL.message
            assert scanner.depth <= SMALL.depth
    except OverBound:
        pass


@given(st.integers(0, 2**70))
def test_numbers_are_read_as_foolscap_reads_them(number: int) -> None:
    header = token(INT, number)[:-1]
    assert b1282int(header) == number
    scanner = TokenScanner()
    if number > SMALL.name:
        assert refused(header + bytes([STRING])) == "bytes of a string"
    else:
        scanner.feed(header + bytes([STRING]) + bytes(number), SMALL)
        assert not scanner.in_message
