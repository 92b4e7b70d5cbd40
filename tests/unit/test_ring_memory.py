"""What all upload handles together hold that is not at the helper yet (client_shim/gateway/ring_memory.py)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client_shim.gateway.ring_memory import SHARE_MIN, RingMemory, RingPart
from client_shim.window import WINDOW_MAX

STEPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 500_000)), max_size=60)


@given(limit=st.integers(1, 2_000_000), steps=STEPS)
def test_no_more_than_the_limit_is_held_and_nobody_waits_for_room_that_is_there(
        limit: int, steps: list[tuple[int, int]]) -> None:
    memory = RingMemory(limit)
    waiting: set[int] = set()
    parts = [RingPart(memory, lambda i=i: waiting.discard(i)) for i in range(6)]  # type: ignore[misc]
    for i, wanted in steps:
        part = parts[i]
        if wanted % 3 == 0:
            part.hold(part.held // 2)
        else:
            room = part.room(WINDOW_MAX)
            if not memory.free:
                waiting.add(i)
            holders = sum(each.held > 0 for each in parts)
            assert part.held + room <= max(part.held, SHARE_MIN, limit // max(1, holders))
            part.hold(part.held + min(room, wanted))
        assert memory.held == sum(each.held for each in parts) <= limit
        assert not (waiting and memory.free), "somebody waits, and there is room"
    for part in parts:
        part.leave()
    assert memory.held == 0


def test_who_leaves_waits_no_more() -> None:
    memory = RingMemory(10)
    told: list[int] = []
    first, second = RingPart(memory, lambda: told.append(1)), RingPart(memory, lambda: told.append(2))
    first.hold(10)
    assert second.room(10) == 0
    second.leave()
    first.leave()
    assert told == []


def test_a_ring_that_was_there_before_may_be_larger() -> None:
    memory = RingMemory(10)
    part = RingPart(memory, lambda: None)
    part.hold(25)
    assert part.room(100) == memory.free == 0
