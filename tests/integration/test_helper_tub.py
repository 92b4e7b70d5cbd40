"""The main Tub of a real helper node keeps to its bounds."""

from __future__ import annotations

import os

import pytest
import reactor_loop
from foolscap_tokens import begun_call, call_head, token
from grid_tools import MiB, SharedGrid, assert_stored, helper_furl, upload_as_stock
from threat_helper import RawPeer, peak_memory, zeros

from helper.interfaces import LARGEST_MESSAGE_MAX
from helper.token_stream import STRING


@pytest.mark.parametrize("known", [False, True], ids=["stranger", "known"])
def test_s8_a_peer_that_announces_too_much_is_disconnected_and_others_go_on(shared: SharedGrid, known: bool) -> None:
    furl = helper_furl(shared.grid.helper)

    async def attack() -> None:
        peer = await RawPeer.connect(furl)
        if known:
            obj = await peer.reference(furl)
            head = begun_call(5, obj, b"upload_chk", token(STRING, LARGEST_MESSAGE_MAX + 1))
        else:
            head = call_head(1, 0, b"")[:-1] + token(STRING, 256 * MiB)
        await peer.pour(head, zeros(256 * MiB)).done
        await reactor_loop.turns(lambda: bool(peer.lost))
        await peer.close()

    with peak_memory(shared.grid.helper.pid) as grown:
        reactor_loop.run(attack)
    assert grown() < 50 * MiB
    data = os.urandom(MiB)
    assert_stored(shared, upload_as_stock(shared.grid.client, data), data)
