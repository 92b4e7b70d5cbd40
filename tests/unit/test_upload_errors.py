"""Texts of what is wrong with requests for upload handles."""

from __future__ import annotations

import inspect

import pytest

from client_shim.gateway import upload_errors as e
from client_shim.gateway.errors import GatewayError

TEXTS: list[tuple[GatewayError, str]] = [
    (e.MissingField("Upload-Offset", "the offset of the body"),
     "the request has no field Upload-Offset: expected the offset of the body"),
    (e.BadField("Upload-Length", "digits"), "the field Upload-Length is not as it should be: expected digits"),
    (e.WrongVersion("1.0.0"), "the field Tus-Resumable must name a version that is spoken here: expected 1.0.0"),
    (e.WrongMediaType("a/b"), "the body has another Content-Type: expected a/b"),
    (e.WrongMethod("HEAD or PATCH"), "this is not possible here: expected HEAD or PATCH"),
    (e.OffsetMismatch(5, 4), "the offset of the request is not that of the upload: expected 5, got 4"),
    (e.InconsistentLength(5, 4), "the lengths given for the upload differ: expected 5, got 4"),
    (e.Concatenation(), "uploads cannot be put together out of parts here: expected no Upload-Concat"),
    (e.UnknownAlgorithm("sha1,md5"), "the checksum's algorithm is not known here: expected one of sha1,md5"),
    (e.ChecksumMismatch(), "the body does not have the checksum that came with it; nothing of it was taken"),
    (e.ChecksumBodyTooLarge(9), "a body with Upload-Checksum has at most 9 bytes here; send smaller ones"),
    (e.ChecksumMemoryFull(),
     "too many bodies with Upload-Checksum are on their way at present; nothing of this one was taken"),
    (e.BadLink("a cap"), "the file could not be linked into its directory: expected a cap"),
    (e.LinkRefused(409), "the client node answered 409"),
]


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=lambda value: getattr(value, "code", ""))
def test_texts(error: GatewayError, text: str) -> None:
    assert error.text() == text


def test_all_texts_are_tested() -> None:
    errors = {each for _name, each in inspect.getmembers(e, inspect.isclass) if each.__module__ == e.__name__}
    assert errors == {type(error) for error, _text in TEXTS}
