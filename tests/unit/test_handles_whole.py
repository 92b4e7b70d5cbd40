"""Upload handles with a whole helper behind them, its spool and ledger on a disk, and storage servers that keep what
they are given: in the end every share is the oracle's.
"""

from __future__ import annotations

from random import Random

import attrs
import pytest
from handles_world import GatewayWorld
from hypothesis import given, settings
from hypothesis import strategies as st
from world import SMALL, WireLink, World, expected, plaintext

from client_shim.errors import HelperUnreachable
from client_shim.gateway.handle_errors import HandleFailed, HelperAway
from client_shim.gateway.handles import Handle, Writer
from helper.parameters import Parameters

PARAMETERS = Parameters(3, 7, 10, 1000)


class Both:
    """A helper and a gateway, in one time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.links: list[WireLink] = []
        self.gateway = GatewayWorld(PARAMETERS, connect=self.connect, clock=world.clock)
        self.gateway.cut = self.cut

    async def connect(self) -> WireLink:
        if self.world.process.ended:
            raise HelperUnreachable("ConnectionRefusedError")
        self.links.append(self.world.link())
        return self.links[-1]

    def cut(self) -> None:
        links, self.links = self.links, []
        for link in links:
            link.cut()

    def take_over(self, handle: Handle) -> Writer:
        for _attempt in range(100):
            try:
                writer: Writer = self.gateway.result(handle.take_over())
            except HelperAway:
                self.gateway.wait(10)
            else:
                return writer
        raise AssertionError("the helper does not come back")


@given(seed=st.integers(0, 2**32), staging=st.sampled_from([0, 10]))
@settings(max_examples=25)
def test_every_share_is_right_whatever_dies(seed: int, staging: int) -> None:
    draw = Random(seed)
    with World(10, attrs.evolve(SMALL, largest_message=200), staging) as world:
        both = Both(world)
        with both.gateway as gateway:
            handle = gateway.create()
            content = b""
            for stretch in range(draw.randint(1, 6)):
                handle = gateway.handles.get(handle.id)
                writer = both.take_over(handle)
                assert len(content) >= writer.offset
                content = content[:writer.offset]
                for piece in range(draw.randint(1, 5)):
                    more = plaintext(draw.choice([1, 30, 100, 900, 3000]), stretch * 100 + piece)
                    content += more
                    gateway.result(writer.write(more))
                    gateway.wait(draw.choice([0, 0, 0.01, 1]))
                what = draw.choice(["cut", "gateway", "helper", "both", "nothing"])
                if what in ("helper", "both"):
                    world.restart()
                if what in ("gateway", "both"):
                    gateway.restart()
                if what == "cut":
                    both.cut()
            handle = gateway.handles.get(handle.id)
            writer = both.take_over(handle)
            more = plaintext(500, 7)
            content = content[:writer.offset] + more
            gateway.result(writer.write(more))
            encoded = expected(content, PARAMETERS)
            assert gateway.result(writer.close()) == encoded.cap
            world.wait(60)
            world.check_shares(encoded)


def test_a_declared_size_with_a_whole_helper() -> None:
    data = plaintext(5000)
    with World() as world:
        both = Both(world)
        with both.gateway as gateway:
            handle = gateway.create(len(data))
            writer = both.take_over(handle)
            gateway.result(writer.write(data[:2000]))
            gateway.restart()
            writer = both.take_over(gateway.handles.get(handle.id))
            gateway.result(writer.write(data[writer.offset:]))
            assert gateway.result(writer.close()) == expected(data, attrs.evolve(PARAMETERS, size=len(data))).cap


@pytest.mark.parametrize("asleep", [False, True])
def test_an_upload_that_is_cancelled_leaves_nothing(asleep: bool) -> None:
    with World() as world:
        both = Both(world)
        with both.gateway as gateway:
            handle = gateway.create()
            writer = both.take_over(handle)
            gateway.result(writer.write(plaintext(5000)))
            gateway.result(writer.settle())
            if asleep:
                writer.release()
                gateway.wait(200)
            gateway.result(handle.cancel())
            world.wait(60)
            world.check_nothing_left()


def test_more_than_the_helper_gives_one_upload() -> None:
    with World(settings=attrs.evolve(SMALL, upload_quota=3000)) as world:
        both = Both(world)
        with both.gateway as gateway:
            handle = gateway.create()
            writer = both.take_over(handle)
            gateway.result(writer.write(plaintext(5000)))
            error = gateway.error(writer.settle())
            assert isinstance(error, HandleFailed)
            assert error.why == "quota-exceeded"
