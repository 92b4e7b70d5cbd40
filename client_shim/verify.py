"""What the client checks before it hands out a cap: protocol.txt §9.  (pure)"""

from __future__ import annotations

from allmydata import uri
from allmydata.util import hashutil

from client_shim.errors import WrongUEB
from helper.ciphertext import CiphertextHashes
from helper.parameters import Parameters
from helper.segments import Geometry
from helper.ueb import make_ueb


def cap_of(key: bytes, parameters: Parameters, hashes: CiphertextHashes, ueb: bytes) -> bytes:
    """The read cap of a finished upload. Raises WrongUEB if `ueb` is not that of this ciphertext.

    Every field but share_root_hash is recomputed from what was sent. That one covers blocks that only the
    helper made; were it wrong, readers would find no valid blocks, never wrong plaintext.
    """
    geometry = Geometry.for_file(parameters.k, parameters.n, parameters.max_segment_size, hashes.size)
    try:
        fields = uri.unpack_extension(ueb)
        share_root_hash = fields["share_root_hash"]
    except (KeyError, ValueError, AssertionError, UnicodeDecodeError) as e:
        raise WrongUEB("its form") from e
    if len(share_root_hash) != 32:
        raise WrongUEB("share_root_hash")
    expected = make_ueb(geometry, hashes.crypttext_hash, hashes.crypttext_root_hash, share_root_hash)
    if ueb != expected:
        ours = uri.unpack_extension(expected)
        wrong = [name for name in ours if fields.get(name) != ours[name]]
        raise WrongUEB(wrong[0] if wrong else "its form")
    cap = uri.CHKFileURI(key, hashutil.uri_extension_hash(ueb), parameters.k, parameters.n, hashes.size)
    return bytes(cap.to_string())
