"""The URI extension block, all 11 fields as stock writes them (allmydata.immutable.encode).  (pure)"""

from __future__ import annotations

from allmydata import uri

from helper.segments import Geometry

_CODEC_NAME = b"crs"  # allmydata.codec.CRSEncoder.ENCODER_TYPE


def make_ueb(geometry: Geometry, crypttext_hash: bytes, crypttext_root_hash: bytes,
             share_root_hash: bytes) -> bytes:
    """The packed URI extension block. Each hash is 32 bytes."""
    return bytes(uri.pack_extension({
        "codec_name": _CODEC_NAME,
        "codec_params": _codec_params(geometry, geometry.segment_size),
        "tail_codec_params": _codec_params(geometry, geometry.padded_tail_size),
        "size": geometry.size,
        "segment_size": geometry.segment_size,
        "num_segments": geometry.num_segments,
        "needed_shares": geometry.k,
        "total_shares": geometry.n,
        "crypttext_hash": crypttext_hash,
        "crypttext_root_hash": crypttext_root_hash,
        "share_root_hash": share_root_hash,
    }))


def ueb_size(geometry: Geometry) -> int:
    """Bytes of the packed block; hashes do not change it."""
    empty = bytes(32)
    return len(make_ueb(geometry, empty, empty, empty))


def _codec_params(geometry: Geometry, data_size: int) -> bytes:
    return b"%d-%d-%d" % (data_size, geometry.k, geometry.n)
