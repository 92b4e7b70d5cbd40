"""Reads a file back from any k of its shares, by the words of the share layout alone."""

from __future__ import annotations

import struct

import zfec
from Crypto.Cipher import AES

from helper.parameters import Parameters

#: layout v2: version, block size, data size, then offsets of data, plaintext hash tree, crypttext hash tree,
#: block hashes, share hashes, URI extension
_HEADER = struct.Struct(">LQQQQQQQQ")


def read_file(shares: dict[int, bytes], key: bytes, parameters: Parameters) -> bytes:
    """The plaintext. `shares`: k of them, whole, by number."""
    headers = {shnum: _HEADER.unpack_from(share) for shnum, share in shares.items()}
    extension = _extension(next(iter(shares.values())))
    size, segment_size = int(extension[b"size"]), int(extension[b"segment_size"])
    k, n = parameters.k, parameters.n
    decoder = zfec.Decoder(k, n)
    ciphertext = bytearray()
    for start in range(0, size, segment_size):
        length = min(segment_size, size - start)
        block = -(-length // k)
        numbers = sorted(shares)
        blocks = []
        for shnum in numbers:
            at = headers[shnum][3] + start // segment_size * headers[shnum][1]
            blocks.append(shares[shnum][at:at + block])
        ciphertext += b"".join(decoder.decode(blocks, numbers))[:length]
    return AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0).decrypt(bytes(ciphertext))


def _extension(share: bytes) -> dict[bytes, bytes]:
    """The URI extension block: name:netstring, one after the other."""
    at = _HEADER.unpack_from(share)[8]
    length = int.from_bytes(share[at:at + 8], "big")
    data, fields = share[at + 8:at + 8 + length], {}
    while data:
        name, rest = data.split(b":", 1)
        size, rest = rest.split(b":", 1)
        fields[name], data = rest[:int(size)], rest[int(size) + 1:]
    return fields
