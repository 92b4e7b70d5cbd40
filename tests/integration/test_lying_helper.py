"""A helper that stores something else than it was sent, or tells of another file, gets no cap printed (threat S2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from grid_tools import (
    SEGMENT,
    MiB,
    SharedGrid,
    Transcript,
    by_stock,
    client_directory,
    download,
    give_convergence_secret,
    put,
    spool_of,
    wait_for,
)
from lying_helper import Liar, LieAboutCiphertext, lying_helper

SIZE = 3 * MiB


def put_through(shared: SharedGrid, liar: Liar, directory: Path, *arguments: str | Path,
                stdin: bytes = b"") -> Transcript:
    """By the command line; everything that the helper was given is on its servers then."""
    with lying_helper(shared.grid.helper_furl, liar) as recorder:
        client = client_directory(directory, recorder.furl)
        give_convergence_secret(client, bytes(32))
        transcript = put(client, "--json", *arguments, stdin=stdin)
    wait_for("an empty spool", lambda: not spool_of(shared.grid.helper))
    assert liar.ueb, "the helper has made a file of it"
    return transcript


def test_without_a_lie_there_is_a_cap(shared: SharedGrid, tmp_path: Path) -> None:
    """And the file behind it: the lies below are all that is wrong there."""
    data = os.urandom(SIZE)
    cap = put_through(shared, Liar(), tmp_path / "client", "-", stdin=data).cap
    assert by_stock(cap, data).cap.decode() == cap
    assert download(shared.plain_client, cap) == data


def flip_a_bit(at: int) -> LieAboutCiphertext:
    def flip(ciphertext: bytes) -> bytes:
        changed = bytearray(ciphertext)
        changed[at] ^= 1
        return bytes(changed)

    return flip


def swap_two_segments(ciphertext: bytes) -> bytes:
    return ciphertext[SEGMENT:2 * SEGMENT] + ciphertext[:SEGMENT] + ciphertext[2 * SEGMENT:]


@pytest.mark.parametrize(("lie", "source"), [
    pytest.param(flip_a_bit(0), "a pipe", id="a bit of the first byte"),
    pytest.param(flip_a_bit(SIZE - 1), "a file", id="a bit of the last byte"),
    pytest.param(flip_a_bit(SEGMENT), "convergent", id="a bit of the second segment, convergent"),
    pytest.param(swap_two_segments, "a pipe", id="two segments swapped"),
])
def test_s2_a_helper_that_stores_something_else(
        shared: SharedGrid, tmp_path: Path, lie: LieAboutCiphertext, source: str) -> None:
    data = os.urandom(SIZE)
    file = tmp_path / "file"
    file.write_bytes(data)
    arguments = {"a pipe": ["-"], "a file": [file], "convergent": ["--convergent", file]}[source]
    liar = Liar(about_ciphertext=lie)
    transcript = put_through(shared, liar, tmp_path / "client", *arguments, stdin=data if source == "a pipe" else b"")
    assert transcript.failed_with("wrong-ueb")["field"] == "crypttext_hash"


def test_s2_a_helper_that_tells_of_another_file(shared: SharedGrid, tmp_path: Path) -> None:
    """Of the same size and parameters, which is whole on the grid."""
    other = Liar()
    assert put_through(shared, other, tmp_path / "other", "-", stdin=os.urandom(SIZE)).cap
    liar = Liar(about_ueb=lambda _ueb: other.ueb)
    transcript = put_through(shared, liar, tmp_path / "client", "-", stdin=os.urandom(SIZE))
    transcript.failed_with("wrong-ueb")
