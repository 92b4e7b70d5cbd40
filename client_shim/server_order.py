"""In which order readers of a file will ask the helper's storage servers: protocol.txt §4.7.  (pure)

The order says where shares should go and does not say what the storage index is.
"""

from __future__ import annotations

from allmydata.util import hashutil

from client_shim.errors import HelperMisbehaved

#: An index has two bytes, and an order at most 64 KiB.
SERVERS_MAX = 32 * 1024


def parse_seeds(field: bytes) -> list[bytes]:
    """The permutation seeds of the servers, from `permutation-seeds` of the answer to `open`.

    Raises HelperMisbehaved.
    """
    seeds: list[bytes] = []
    position = 0
    while position < len(field):
        end = position + 1 + field[position]
        if end > len(field):
            raise HelperMisbehaved(f"its permutation-seeds end within seed {len(seeds)}: {len(field)} bytes, "
                                   f"expected at least {end}")
        seeds.append(field[position + 1:end])
        position = end
    if len(seeds) > SERVERS_MAX:
        raise HelperMisbehaved(f"it names {len(seeds)} storage servers, at most {SERVERS_MAX} are expected")
    return seeds


def order_of(storage_index: bytes, seeds: list[bytes]) -> bytes:
    """The `order` of these servers: their indices, 2 bytes each, those asked first first."""
    asked_first = sorted(range(len(seeds)), key=lambda i: bytes(hashutil.permute_server_hash(storage_index, seeds[i])))
    return b"".join(index.to_bytes(2, "big") for index in asked_first)
