"""Shares, byte for byte those of stock's own encoder (tests/oracle.py)."""

from __future__ import annotations

import random

import oracle
import pytest
import zfec
from allmydata.util import hashutil
from hypothesis import given
from hypothesis import strategies as st

from helper.ciphertext import CiphertextHasher
from helper.codec import codec_for
from helper.encoder import Completion, Encoder
from helper.layout import DATA_OFFSET, HEADER_VERSION, ShareLayout
from helper.segments import Geometry, SegmentCutter, round_up
from helper.ueb import make_ueb, ueb_size

CODES = [(1, 1), (2, 3), (3, 10), (71, 255), (101, 256)]
KEY = bytes(range(16))


def full_segments(ciphertext: bytes, k: int, max_segment_size: int, declared: bool) -> tuple[list[bytes], bytes]:
    """What the helper encodes one by one, and what it completes with."""
    size = SegmentCutter(k, max_segment_size, len(ciphertext) if declared else None).segment_size(len(ciphertext))
    if size is None:
        return [], ciphertext
    count = len(ciphertext) // size
    return [ciphertext[i * size:(i + 1) * size] for i in range(count)], ciphertext[count * size:]


def block_offset(layout: ShareLayout, segment: int) -> int:
    """Where the block of a segment stands in every share."""
    return DATA_OFFSET + segment * layout.geometry.block_size


def encode_all(ciphertext: bytes, k: int, n: int, max_segment_size: int,
               declared: bool) -> tuple[Completion, list[list[bytes]]]:
    """The completion, and the n blocks of each segment, the tail included."""
    encoder = Encoder(k, n, max_segment_size, len(ciphertext) if declared else None)
    segments, tail = full_segments(ciphertext, k, max_segment_size, declared)
    blocks = [encoder.encode(segment) for segment in segments]
    completion = encoder.complete(tail)
    if completion.tail_blocks is not None:
        blocks.append(completion.tail_blocks)
    return completion, blocks


def shares_of(completion: Completion, blocks: list[list[bytes]]) -> dict[int, bytes]:
    """Whole shares, every part written at the offset that the layout gives for it."""
    layout = completion.layout
    shares = {}
    for shnum in range(layout.geometry.n):
        share = bytearray(layout.share_size)
        parts = [(0, layout.header()), (layout.trailer_offset, completion.trailer(shnum))]
        parts += [(block_offset(layout, i), segment[shnum]) for i, segment in enumerate(blocks)]
        for offset, data in parts:
            share[offset:offset + len(data)] = data
        shares[shnum] = bytes(share)
    return shares


def check_against_stock(k: int, n: int, max_segment_size: int, plaintext: bytes) -> None:
    stock = oracle.encode(plaintext, k, n, max_segment_size, key=KEY, layout=2)
    for declared in (False, True):
        completion, blocks = encode_all(stock.ciphertext, k, n, max_segment_size, declared)
        assert completion.ueb == stock.ueb
        assert completion.layout.share_size == stock.allocated_size
        assert shares_of(completion, blocks) == stock.shares
        assert completion.hashes.size == len(plaintext)


def sizes(k: int, segment: int) -> dict[str, int]:
    full = round_up(segment, k)
    return {
        "56": 56, "57": 57, "below": segment - 1, "segment": segment, "above": segment + 1,
        "full": full, "full+1": full + 1, "full-1": full - 1,
        "many": 17 * full + 100, "many-full": 16 * full, "many+1": 8 * full + 1,
    }


@pytest.mark.parametrize("segment", [1024, 4096])
@pytest.mark.parametrize(("k", "n"), CODES)
def test_shares_are_stocks(k: int, n: int, segment: int) -> None:
    source = random.Random(f"{k} {n} {segment}")
    for size in sizes(k, segment).values():
        check_against_stock(k, n, segment, source.randbytes(size))


@pytest.mark.parametrize("name", ["below", "segment", "above", "full", "full+1"])
def test_shares_are_stocks_at_the_default_segment_size(name: str) -> None:
    segment = 1024 * 1024
    check_against_stock(3, 10, segment, random.Random(name).randbytes(sizes(3, segment)[name]))


@st.composite
def small_files(draw: st.DrawFn) -> tuple[int, int, int, bytes]:
    n = draw(st.integers(1, 12))
    k = draw(st.integers(1, n))
    segment = draw(st.integers(60, 500))
    size = draw(st.one_of(st.integers(56, 3000), st.integers(1, 8).map(lambda i: max(56, i * round_up(segment, k)))))
    return k, n, segment, random.Random(draw(st.integers(0, 99))).randbytes(size)


@given(small_files())
def test_shares_of_any_small_file_are_stocks(file: tuple[int, int, int, bytes]) -> None:
    check_against_stock(*file)


def test_empty_file_cannot_be_completed() -> None:
    with pytest.raises(ValueError, match="at least one leaf"):
        Encoder(2, 3, 1024).complete(b"")


@pytest.mark.parametrize(("encoded", "tail"), [(0, 103), (0, 204), (1, 103), (3, 500)])
def test_a_tail_of_more_than_a_segment_is_refused(encoded: int, tail: int) -> None:
    encoder = Encoder(3, 10, 100)  # segments of 102
    for _ in range(encoded):
        encoder.encode(bytes(102))
    with pytest.raises(ValueError, match=f"a tail of {tail} bytes after {encoded} segments of 102"):
        encoder.complete(bytes(tail))
    assert encoder.complete(b"x").hashes.size == 102 * encoded + 1  # nothing was changed


@given(small_files(), st.data())
def test_complete_changes_nothing(file: tuple[int, int, int, bytes], data: st.DataObject) -> None:
    """`complete` at any point, with any tail, any number of times: what follows is as if it had not been."""
    k, n, max_segment_size, ciphertext = file
    size = round_up(max_segment_size, k)
    ciphertext = ciphertext.ljust(max_segment_size, b"x")  # a first full segment exists
    plain, plain_blocks = encode_all(ciphertext, k, n, max_segment_size, declared=False)
    segments, tail = full_segments(ciphertext, k, max_segment_size, declared=False)
    encoder = Encoder(k, n, max_segment_size)
    for number, segment in enumerate(segments):
        assert encoder.encode(segment) == plain_blocks[number]
        assert encoder.segments == number + 1
        for length in data.draw(st.lists(st.integers(0, size - 1), max_size=2)):
            so_far = ciphertext[:(number + 1) * size]
            early, _blocks = encode_all(so_far + bytes(length), k, n, max_segment_size, declared=False)
            completion = encoder.complete(bytes(length))
            assert completion.ueb == early.ueb
            assert [completion.trailer(i) for i in range(n)] == [early.trailer(i) for i in range(n)]
    again = encoder.complete(tail)
    assert again.ueb == plain.ueb
    assert again.tail_blocks == plain.tail_blocks
    assert [again.trailer(i) for i in range(n)] == [plain.trailer(i) for i in range(n)]


@given(small_files(), st.data())
def test_reencode_gives_the_same_blocks(file: tuple[int, int, int, bytes], data: st.DataObject) -> None:
    k, n, max_segment_size, ciphertext = file
    segments, tail = full_segments(ciphertext, k, max_segment_size, declared=False)
    encoder = Encoder(k, n, max_segment_size)
    for segment in segments:
        encoder.encode(segment)
    completion, blocks = encode_all(ciphertext, k, n, max_segment_size, declared=False)
    ueb = encoder.complete(tail).ueb
    for number, segment in enumerate([*segments, tail] if tail else segments):
        some = data.draw(st.lists(st.integers(0, n - 1), unique=True))
        assert encoder.reencode(segment, some) == [blocks[number][shnum] for shnum in some]
        for shnum in some:
            block_hash = hashutil.block_hash(blocks[number][shnum])
            assert completion.block_hash(number, shnum) == block_hash
            if number < len(segments):
                assert encoder.block_hash(number, shnum) == block_hash
    assert encoder.complete(tail).ueb == ueb  # remembered nothing


def test_block_hash_of_a_segment_not_yet_encoded() -> None:
    encoder = Encoder(1, 1, 100)
    encoder.encode(bytes(100))
    with pytest.raises(IndexError):
        encoder.block_hash(1, 0)


@st.composite
def any_k_of_n(draw: st.DrawFn) -> tuple[int, int, bytes, list[int]]:
    k, n = draw(st.one_of(st.sampled_from(CODES), st.integers(1, 20).flatmap(
        lambda n: st.tuples(st.integers(1, n), st.just(n)))))
    segment = random.Random(draw(st.integers(0, 99))).randbytes(draw(st.integers(1, 2000)))
    return k, n, segment, draw(st.permutations(range(n)))[:k]


@given(any_k_of_n())
def test_any_k_blocks_restore_a_segment(case: tuple[int, int, bytes, list[int]]) -> None:
    """Full segments, and tails that had to be padded."""
    k, n, segment, shnums = case
    blocks = codec_for(k, n).encode(segment)
    assert len(blocks) == n
    assert {len(block) for block in blocks} == {-(-len(segment) // k)}
    restored = b"".join(zfec.Decoder(k, n).decode([blocks[i] for i in shnums], shnums))
    assert restored[:len(segment)] == segment
    assert not any(restored[len(segment):])
    assert codec_for(k, n).encode(segment, shnums) == [blocks[i] for i in shnums]


@given(small_files(), st.data())
def test_any_k_shares_restore_a_file(file: tuple[int, int, int, bytes], data: st.DataObject) -> None:
    k, n, max_segment_size, ciphertext = file
    completion, blocks = encode_all(ciphertext, k, n, max_segment_size, declared=False)
    shares, geometry = shares_of(completion, blocks), completion.layout.geometry
    chosen = data.draw(st.permutations(range(n)))[:k]
    restored = b""
    for number in range(geometry.num_segments):
        last = number == geometry.num_segments - 1
        length = geometry.padded_tail_size // k if last else geometry.block_size
        start = block_offset(completion.layout, number)
        pieces = [shares[i][start:start + length] for i in chosen]
        segment = b"".join(zfec.Decoder(k, n).decode(pieces, chosen))
        restored += segment[:geometry.tail_size] if last else segment
    assert restored == ciphertext


# -- the parts ------------------------------------------------------------------------------------------


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    k = draw(st.integers(1, 256))
    return Geometry.for_file(
        k, draw(st.integers(k, 256)), draw(st.integers(1, 2**23)), draw(st.integers(1, 2**53)))


@given(geometries())
def test_geometry_adds_up(geometry: Geometry) -> None:
    assert geometry.segment_size % geometry.k == 0
    assert geometry.block_size * geometry.k == geometry.segment_size
    assert 1 <= geometry.tail_size <= geometry.segment_size
    assert geometry.size == (geometry.num_segments - 1) * geometry.segment_size + geometry.tail_size
    assert geometry.padded_tail_size % geometry.k == 0
    assert 0 <= geometry.padded_tail_size - geometry.tail_size < geometry.k
    blocks = (geometry.num_segments - 1) * geometry.block_size + geometry.padded_tail_size // geometry.k
    assert geometry.share_data_size == blocks


@given(st.integers(1, 20), st.integers(1, 1000), st.integers(1, 5000), st.data())
def test_cutter_agrees_with_the_whole_file(k: int, max_segment_size: int, size: int, data: st.DataObject) -> None:
    """Whatever is said of the segment size before the end is true at the end."""
    final = Geometry.for_file(k, 20, max_segment_size, size).segment_size
    seen = data.draw(st.integers(0, size))
    assert SegmentCutter(k, max_segment_size).segment_size(seen) in {None, final}
    assert SegmentCutter(k, max_segment_size, size).segment_size(seen) == final
    # it is known once there is a full segment that could be encoded
    if seen >= round_up(max_segment_size, k):
        assert SegmentCutter(k, max_segment_size).segment_size(seen) == final


@given(geometries(), st.binary(min_size=32, max_size=32))
def test_ueb_size_does_not_depend_on_hashes(geometry: Geometry, one: bytes) -> None:
    assert len(make_ueb(geometry, one, one[::-1], one)) == ueb_size(geometry)


@given(geometries())
def test_header_is_of_version_2_with_blocks_after_it(geometry: Geometry) -> None:
    layout = ShareLayout(geometry)
    header = layout.header()
    assert len(header) == DATA_OFFSET
    assert header.startswith(HEADER_VERSION)
    offsets = [int.from_bytes(header[i:i + 8], "big") for i in range(4, DATA_OFFSET, 8)]
    assert offsets[:3] == [geometry.block_size, geometry.share_data_size, DATA_OFFSET]
    assert offsets[3] == layout.trailer_offset
    assert offsets[3:] == sorted(offsets[3:])
    assert layout.share_size == offsets[-1] + 8 + ueb_size(geometry)


@given(small_files(), st.booleans())
def test_encoder_and_client_hash_the_same(file: tuple[int, int, int, bytes], declared: bool) -> None:
    k, n, max_segment_size, ciphertext = file
    hasher = CiphertextHasher(k, max_segment_size, len(ciphertext) if declared else None)
    hasher.update(ciphertext)
    assert encode_all(ciphertext, k, n, max_segment_size, not declared)[0].hashes == hasher.hashes()
