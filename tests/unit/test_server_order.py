"""The order of servers that the client tells instead of the storage index: that in which stock readers ask."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from allmydata.node import config_from_string
from allmydata.storage_client import StorageFarmBroker
from hypothesis import given
from hypothesis import strategies as st

from client_shim.errors import HelperMisbehaved
from client_shim.server_order import SERVERS_MAX, order_of, parse_seeds


@attrs.frozen
class Server:
    """As much of an IServer as a broker asks when it sorts."""

    seed: bytes

    def get_permutation_seed(self) -> bytes:
        return self.seed

    def get_longname(self) -> bytes:
        return b"v0-" + self.seed

    def is_connected(self) -> bool:
        return True

    def on_status_changed(self, _callback: Any) -> None:
        pass


def packed(seeds: list[bytes]) -> bytes:
    return b"".join(bytes([len(seed)]) + seed for seed in seeds)


def indices(order: bytes) -> list[int]:
    return [int.from_bytes(order[i:i + 2], "big") for i in range(0, len(order), 2)]


@given(storage_index=st.binary(min_size=16, max_size=16),
       seeds=st.lists(st.binary(min_size=1, max_size=32), max_size=30, unique=True))
def test_it_is_the_order_of_tahoes_storage_broker(storage_index: bytes, seeds: list[bytes]) -> None:
    broker = StorageFarmBroker(True, None, config_from_string("", "", ""))
    for number, seed in enumerate(seeds):
        broker.test_add_server(b"v0-%d" % number, Server(seed))
    stock = [server.seed for server in broker.get_servers_for_psi(storage_index)]
    assert [seeds[i] for i in indices(order_of(storage_index, parse_seeds(packed(seeds))))] == stock


@given(seeds=st.lists(st.binary(max_size=255), max_size=300))
def test_every_list_of_seeds_is_read_and_ordered_whole(seeds: list[bytes]) -> None:
    assert parse_seeds(packed(seeds)) == seeds
    assert sorted(indices(order_of(bytes(16), seeds))) == list(range(len(seeds)))


@given(seeds=st.lists(st.binary(min_size=1, max_size=40), min_size=1), data=st.data())
def test_seeds_that_are_cut_off(seeds: list[bytes], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(seeds[-1])))
    with pytest.raises(HelperMisbehaved, match=f"end within seed {len(seeds) - 1}"):
        parse_seeds(packed(seeds)[:-cut])


def test_more_servers_than_an_order_can_name() -> None:
    most = [b""] * SERVERS_MAX
    assert len(order_of(bytes(16), parse_seeds(packed(most)))) == 64 * 1024
    with pytest.raises(HelperMisbehaved, match="32769 storage servers, at most 32768"):
        parse_seeds(packed([*most, b""]))


def test_another_storage_index_another_order() -> None:
    seeds = [bytes([i]) * 20 for i in range(20)]
    assert order_of(bytes(16), seeds) != order_of(b"\x01" * 16, seeds)
