"""Blocks of many uploads: how much is held together, and whose turn it is."""

from __future__ import annotations

import attrs

from helper.block_memory import BlockMemory


@attrs.define(eq=False)
class Holder:
    granted_times: int = 0
    asked_to_make_room: int = 0

    def granted(self) -> None:
        self.granted_times += 1

    def make_room(self) -> None:
        self.asked_to_make_room += 1


def test_there_is_room_at_once() -> None:
    memory, holder = BlockMemory(100), Holder()
    memory.ask(holder, 60)
    assert holder.granted_times == 1
    assert memory.held == 60
    assert not memory.short


def test_those_who_wait_are_served_in_their_order_and_others_are_asked_for_room() -> None:
    memory = BlockMemory(100)
    first, second, third = holders = [Holder() for _ in range(3)]
    for holder in holders:
        memory.ask(holder, 60)
    assert [h.granted_times for h in holders] == [1, 0, 0]
    assert memory.short
    assert [h.asked_to_make_room for h in holders] == [1, 0, 0], "once, and only who has something"
    memory.holds(first, 50)
    assert memory.held == 50
    assert second.granted_times == 0
    memory.holds(first, 0)
    assert [h.granted_times for h in holders] == [1, 1, 0]
    memory.holds(second, 0)
    assert [h.granted_times for h in holders] == [1, 1, 1]
    assert not memory.short
    assert memory.held == 60
    memory.holds(third, 0)
    assert memory.held == 0


def test_small_requests_do_not_overtake_large_ones() -> None:
    memory = BlockMemory(100)
    holding, large, small = (Holder() for _ in range(3))
    memory.ask(holding, 60)
    memory.ask(large, 90)
    memory.ask(small, 10)
    assert (large.granted_times, small.granted_times) == (0, 0)
    memory.cancel(large)
    assert small.granted_times == 1


def test_more_than_the_limit_has_its_turn_when_nothing_is_held() -> None:
    memory = BlockMemory(100)
    huge, other = Holder(), Holder()
    memory.ask(other, 10)
    memory.ask(huge, 300)
    assert huge.granted_times == 0
    memory.holds(other, 0)
    assert huge.granted_times == 1


def test_who_asks_again_when_served_waits_for_the_others() -> None:
    memory = BlockMemory(100)
    greedy, patient = Holder(), Holder()
    memory.ask(greedy, 100)
    memory.ask(patient, 100)
    memory.ask(greedy, 100)
    memory.holds(greedy, 0)
    assert (greedy.granted_times, patient.granted_times) == (1, 1)
    memory.cancel(greedy)
    memory.cancel(greedy)
    memory.holds(patient, 0)
    assert greedy.granted_times == 1
    assert memory.held == 0
