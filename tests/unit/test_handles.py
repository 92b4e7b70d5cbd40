"""Upload handles (client_shim/gateway/handles.py) over a real journal, and a helper that may be lost at any moment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway_world import PARAMETERS, GatewayWorld
from world import KEY, begin, expected, outcome, plaintext

from client_shim.cipher import Encryptor

DATA = plaintext(5000)
CAP = expected(DATA, PARAMETERS).cap


@pytest.fixture
def world() -> Iterator[GatewayWorld]:
    with GatewayWorld() as world:
        yield world


def test_one_writer_writes_and_closes(world: GatewayWorld) -> None:
    handle = world.create()
    writer = world.result(handle.take_over())
    assert writer.offset == 0
    for start in range(0, len(DATA), 700):
        world.result(writer.write(DATA[start:start + 700]))
    assert world.result(writer.settle()) == len(DATA)
    assert world.result(writer.close()) == CAP
    assert world.result(writer.close()) == CAP
    assert handle.status.cap == CAP


def test_kill_and_resume(world: GatewayWorld) -> None:
    handle = world.create()
    writer = world.result(handle.take_over())
    world.result(writer.write(DATA[:2000]))
    world.restart()
    handle = world.handles.get(handle.id)
    writer = world.result(handle.take_over())
    offset = writer.offset
    print(offset)
    world.result(writer.write(DATA[offset:]))
    assert world.result(writer.close()) == CAP
