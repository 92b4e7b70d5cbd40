"""What is known of a plaintext, stored and taken up again (gateway/resumable_content.py): as in one pass."""

from __future__ import annotations

from random import Random

import pytest
from allmydata.util import hashutil
from hypothesis import given
from hypothesis import strategies as st
from world import plaintext

from client_shim.cipher import Encryptor, convergent_key
from client_shim.dedup import Content, ContentHasher
from client_shim.gateway.resumable_content import ResumableContentHasher
from client_shim.gateway.resumable_hash import ResumableSHA256
from helper.parameters import Parameters
from helper.segments import segment_size_for

SECRET = b"a convergence secret............"
KEY = bytes(range(16))
MAX_SEGMENT = 200
SIZES = [0, 1, 55, 56, 63, 64, 65, 198, 199, 200, 201, 202, 402, 403, 1000, 1001]


def parameters(size: int | None) -> Parameters:
    return Parameters(3, 7, 10, MAX_SEGMENT, size)


def hashed(data: bytes, size: int | None, cuts: list[int], choose: Random) -> tuple[Content, list[bytes]]:
    """What is known after it was stored and taken up at every cut, and all that was stored."""
    def below(count: int) -> int:
        return choose.randrange(count)

    hasher = ResumableContentHasher(parameters(size), SECRET, below)
    stored = [hasher.sealed(KEY)]
    ends = sorted(min(cut, len(data)) for cut in cuts)
    for start, end in zip([0, *ends], [*ends, len(data)], strict=True):
        hasher = ResumableContentHasher.unsealed(parameters(size), SECRET, KEY, stored[-1], start, below)
        hasher.update(data[start:end])
        stored.append(hasher.sealed(KEY))
    return hasher.end(data if hasher.needs_all else b""), stored


@given(size=st.one_of(st.sampled_from(SIZES), st.integers(0, 1500)), cuts=st.lists(st.integers(0, 1500), max_size=6),
       declared=st.booleans(), seed=st.integers(0, 1000))
def test_any_split_is_as_one_pass(size: int, cuts: list[int], declared: bool, seed: int) -> None:
    data = plaintext(size, seed)
    content, stored = hashed(data, size if declared else None, cuts, Random(seed))
    assert content.size == size
    assert content.convergent_key == convergent_key(3, 10, MAX_SEGMENT, size, SECRET, [data])
    once = ContentHasher(parameters(size if declared else None), SECRET)
    once.update(data)
    assert content.convergent_index == once.end().convergent_index
    segment = segment_size_for(MAX_SEGMENT, 3, size)
    assert content.segment.segment_size == segment
    piece = data[content.segment.number * segment:][:segment]
    assert piece or not size
    assert content.segment.matches(piece)
    assert not content.segment.matches(bytes(len(piece)) if any(piece) else b"\1")
    for sealed in stored:
        assert not any(data[at:at + 8] in sealed for at in range(size - 7))


def test_a_state_in_the_clear_would_be_found() -> None:
    """What seals is what hides: the state of SHA-256 has the end of what it has seen in it."""
    hasher = ResumableSHA256()
    hasher.update(plaintext(130))
    assert plaintext(130)[-2:] in hasher.state()
    hasher.update(plaintext(60, 1))
    assert plaintext(60, 1)[:8] in hasher.state()


def test_the_key_is_stocks() -> None:
    data = plaintext(1000)
    content, _stored = hashed(data, None, [500], Random(0))
    stock = hashutil.convergence_hasher(3, 10, segment_size_for(MAX_SEGMENT, 3, 1000), SECRET)
    stock.update(data)
    assert content.convergent_key == stock.digest()


def test_all_is_needed_only_of_what_is_shorter_than_a_segment_and_was_not_declared() -> None:
    for size in SIZES:
        for declared in (size, None):
            hasher = ResumableContentHasher(parameters(declared), SECRET)
            for at in range(size):
                if declared is not None:
                    assert not hasher.needs_all, (size, at)
                hasher.update(b"x")
            assert hasher.needs_all == (declared is None and size <= 198), size
            if hasher.needs_all and size:
                with pytest.raises(ValueError, match=f"expected all {size} bytes of a short file, got 0"):
                    hasher.end()


def test_two_states_of_one_moment_share_nothing() -> None:
    """Journals keep older pages: two states under one key stream would give the difference of what is in them."""
    hasher = ResumableContentHasher(parameters(None), SECRET)
    hasher.update(plaintext(150))
    one, other = hasher.sealed(KEY), hasher.sealed(KEY)
    assert not any(one[at:at + 4] in other for at in range(len(one) - 3))


def test_nothing_is_sealed_with_the_key_stream_of_the_file() -> None:
    hasher = ResumableContentHasher(parameters(None), SECRET)
    hasher.update(plaintext(50))
    sealed = hasher.sealed(KEY)
    assert not any(plaintext(50)[at:at + 8] in Encryptor(KEY).encrypt(sealed[start:])
                   for at in range(43) for start in (0, 24))


def test_what_is_no_state_is_refused() -> None:
    hasher = ResumableContentHasher(parameters(None), SECRET)
    hasher.update(plaintext(150))
    sealed = hasher.sealed(KEY)
    assert ResumableContentHasher.unsealed(parameters(None), SECRET, KEY, sealed, 150).size == 150
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1:] for at in range(len(sealed))]
    for bad in [b"", sealed[:-1], sealed + b"\0", sealed[:60], *changed]:
        with pytest.raises(ValueError, match=r"state|MAC"):
            ResumableContentHasher.unsealed(parameters(None), SECRET, KEY, bad, 150)
    for key, size in [(bytes(16), 150), (KEY, 149)]:
        with pytest.raises(ValueError, match="MAC"):
            ResumableContentHasher.unsealed(parameters(None), SECRET, key, sealed, size)
