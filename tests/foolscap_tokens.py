"""Tokens and calls as Foolscap puts them on the wire, well-formed or not."""

from __future__ import annotations

from helper.token_stream import CLOSE, INT, OPEN, STRING


def token(kind: int, number: int = 0, body: bytes = b"") -> bytes:
    """One token; the number of a STRING is its length, if none is given."""
    number = number or len(body)
    digits = bytearray()
    while number:
        digits.append(number & 0x7F)
        number >>= 7
    return bytes(digits) + bytes([kind]) + body


def string(body: bytes) -> bytes:
    return token(STRING, body=body)


def call_head(request: int, obj: int, method: bytes) -> bytes:
    """The beginning of a call, up to its method's name."""
    return token(OPEN, 2 * request) + string(b"call") + token(INT, request) + token(INT, obj) + string(method)


def begun_call(request: int, obj: int, method: bytes, *arguments: bytes, count: int | None = None) -> bytes:
    """A call up to its arguments, which are given as tokens; `count` if there are to be more or others."""
    return (call_head(request, obj, method) + token(OPEN, 2 * request + 1) + string(b"arguments")
            + token(INT, len(arguments) if count is None else count) + b"".join(arguments))


def end_of_call(request: int) -> bytes:
    return token(CLOSE, 2 * request + 1) + token(CLOSE, 2 * request)


def call(request: int, obj: int, method: bytes, *arguments: bytes) -> bytes:
    """A whole call."""
    return begun_call(request, obj, method, *arguments) + end_of_call(request)
