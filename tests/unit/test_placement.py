"""Which server gets which share, when there are enough, and how much room is asked for."""

from __future__ import annotations

import random

import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helper.layout import ShareLayout
from helper.placement import (
    BOUND_FACTOR,
    FREE_SPACE_PARTS,
    AllocationPolicy,
    by_rank,
    first_placement,
    happiness,
    new_home,
    rule_met,
    rule_position,
    staging_first,
    staging_suffices,
)
from helper.segments import Geometry

GiB = 1024**3

server_ids = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"])
placements = st.dictionaries(st.integers(0, 9), server_ids, max_size=9)


# -- servers of happiness and the answer rule -----------------------------------------------------------


def maximum_matching(edges: list[tuple[int, bytes]]) -> int:
    """The most edges that share neither a share nor a server: happiness as Tahoe defines it, by trying."""
    if not edges:
        return 0
    (shnum, server), rest = edges[0], edges[1:]
    with_it = 1 + maximum_matching([e for e in rest if e[0] != shnum and e[1] != server])
    return max(with_it, maximum_matching(rest))


@given(placements)
def test_happiness_is_a_maximum_matching(placed: dict[int, bytes]) -> None:
    assert happiness(placed.values()) == maximum_matching(list(placed.items()))


@given(placements, st.integers(1, 10), st.integers(1, 7))
def test_rule(placed: dict[int, bytes], k: int, happy: int) -> None:
    enough = len(placed) >= k and maximum_matching(list(placed.items())) >= happy
    assert rule_met(placed, k, happy) == enough


@pytest.mark.parametrize(("placed", "k", "happy", "met"), [
    ({}, 1, 1, False),
    ({0: b"a"}, 1, 1, True),
    ({0: b"a"}, 2, 1, False),  # happy, but cannot be read
    ({0: b"a", 1: b"a"}, 2, 1, True),
    ({0: b"a", 1: b"a"}, 2, 2, False),  # readable, but on one server
    ({0: b"a", 1: b"b"}, 2, 2, True),
])
def test_rule_by_example(placed: dict[int, bytes], k: int, happy: int, met: bool) -> None:
    assert rule_met(placed, k, happy) is met


@given(st.dictionaries(st.integers(0, 9), st.tuples(server_ids, st.integers(0, 20)), max_size=9),
       st.integers(1, 10), st.integers(1, 7))
def test_rule_position(positions: dict[int, tuple[bytes, int]], k: int, happy: int) -> None:
    """The furthest position that enough shares have reached."""
    reached = [
        position for position in range(21)
        if rule_met({s: server for s, (server, at) in positions.items() if at >= position}, k, happy)]
    assert rule_position(positions, k, happy) == max(reached, default=0)


# -- first placement and new homes ----------------------------------------------------------------------


@given(st.integers(1, 256), st.lists(st.binary(min_size=1, max_size=3), unique=True, max_size=40))
def test_first_placement(n: int, servers: list[bytes]) -> None:
    placed = first_placement(n, servers)
    if not servers:
        assert placed == {}
        return
    assert sorted(placed) == list(range(n))
    assert set(placed.values()) <= set(servers)
    assert happiness(placed.values()) == min(n, len(servers))  # as many as there can be
    counts = [list(placed.values()).count(server) for server in servers]
    assert max(counts) - min(counts) <= 1
    assert [placed[i] for i in range(min(n, len(servers)))] == servers[:n]  # in the order given


@given(st.lists(server_ids, unique=True), st.dictionaries(server_ids, st.integers(0, 3)), st.sets(server_ids))
def test_new_home(servers: list[bytes], load: dict[bytes, int], tried: set[bytes]) -> None:
    home = new_home(servers, load, tried)
    candidates = [s for s in servers if s not in tried]
    if not candidates:
        assert home is None
        return
    assert home in candidates
    for other in candidates:
        mine, theirs = load.get(home, 0), load.get(other, 0)
        assert mine < theirs or (mine == theirs and servers.index(home) <= servers.index(other))


@given(st.integers(1, 20), st.integers(1, 6), st.data())
def test_placing_one_by_one_uses_every_server(n: int, count: int, data: st.DataObject) -> None:
    """Re-homing share after share loses no happiness that there could be."""
    servers = [b"%d" % i for i in range(count)]
    load: dict[bytes, int] = {}
    for _ in range(n):
        home = new_home(servers, load, set())
        assert home is not None
        load[home] = load.get(home, 0) + 1
    assert len(load) == min(n, count)
    assert max(load.values()) - min(load.get(s, 0) for s in servers) <= 1


# -- servers that stage, and the order that the client wants ---------------------------------------------

some_servers = st.lists(st.binary(min_size=1, max_size=2), unique=True, max_size=20)


@st.composite
def mixed(draw: st.DrawFn) -> tuple[list[bytes], set[bytes]]:
    """Servers, and those that stage; some that stage may not be among the servers."""
    servers = draw(some_servers)
    stages = draw(st.sets(st.sampled_from(servers))) if servers else set()
    return servers, stages | draw(st.sets(st.binary(min_size=3, max_size=3), max_size=2))


@given(mixed(), st.integers(1, 25))
def test_staging_first(servers_and_stages: tuple[list[bytes], set[bytes]], n: int) -> None:
    servers, stages = servers_and_stages
    chosen = staging_first(servers, stages, n)
    assert len(chosen) == len(set(chosen)) == min(n, len(servers))
    assert set(chosen) <= set(servers)
    staging = [s for s in chosen if s in stages]
    others = [s for s in chosen if s not in stages]
    assert chosen == staging + others
    # of each kind the first ones, in their order; others only when no staging one is left
    assert staging == [s for s in servers if s in stages][:len(staging)]
    assert others == [s for s in servers if s not in stages][:len(others)]
    assert not others or set(servers) & stages == set(staging)


@given(mixed(), st.integers(1, 25))
def test_staging_first_of_one_kind_changes_nothing(servers_and_stages: tuple[list[bytes], set[bytes]], n: int) -> None:
    servers, _stages = servers_and_stages
    assert staging_first(servers, set(), n) == staging_first(servers, set(servers), n) == servers[:n]


@given(mixed(), st.integers(1, 12), st.integers(1, 12), st.integers(1, 25))
def test_staging_suffices(servers_and_stages: tuple[list[bytes], set[bytes]], k: int, happy: int, n: int) -> None:
    """Counted, not placed: of m servers with shares the first s stage; share i goes to server i modulo m."""
    servers, stages = servers_and_stages
    m = min(n, len(servers))
    s = min(m, len(set(servers) & stages))
    staged = sum(1 for i in range(n) if i % m < s) if m else 0
    assert staging_suffices(k, happy, n, servers, stages) == (s >= happy and staged >= k)


@given(mixed(), st.integers(1, 12), st.integers(1, 12), st.integers(1, 25))
def test_one_more_staging_server_never_makes_them_too_few(
        servers_and_stages: tuple[list[bytes], set[bytes]], k: int, happy: int, n: int) -> None:
    servers, stages = servers_and_stages
    if staging_suffices(k, happy, n, servers, stages):
        assert staging_suffices(k, happy, n, [*servers, b"new!"], {*stages, b"new!"})
        for server in servers:
            assert staging_suffices(k, happy, n, servers, {*stages, server})


@pytest.mark.parametrize(("staging", "others", "suffices"), [
    (7, 3, True), (6, 4, False), (10, 0, True), (0, 10, False), (7, 0, True), (7, 30, True), (0, 0, False)])
def test_staging_suffices_by_example(staging: int, others: int, suffices: bool) -> None:
    """3 of 10, happy 7."""
    stages = {b"s%d" % i for i in range(staging)}
    servers = [*(b"o%d" % i for i in range(others)), *sorted(stages)]
    assert staging_suffices(3, 7, 10, servers, stages) is suffices


def test_happy_staging_servers_do_not_suffice_with_fewer_than_k_shares() -> None:
    """4 shares on 4 servers, of which 2 stage: happy 2, but 3 shares are needed to read the file."""
    servers = [b"a", b"b", b"c", b"d"]
    assert not staging_suffices(3, 2, 4, servers, {b"b", b"d"})
    assert staging_suffices(2, 2, 4, servers, {b"b", b"d"})


@given(some_servers, st.data())
def test_by_rank(servers: list[bytes], data: st.DataObject) -> None:
    ranked = data.draw(st.lists(st.sampled_from([*servers, b"gone", b"also gone"]), unique=True))
    ordered = by_rank(servers, ranked)
    assert sorted(ordered) == sorted(servers)
    named = [s for s in ranked if s in servers]
    assert ordered == [*named, *(s for s in servers if s not in ranked)]


@given(some_servers)
def test_by_no_rank_nothing_changes(servers: list[bytes]) -> None:
    assert by_rank(servers, []) == servers


# -- allocation -----------------------------------------------------------------------------------------


def real_share_size(policy: AllocationPolicy, size: int) -> int:
    """What a share of a file of that size takes."""
    return ShareLayout(Geometry.for_file(policy.k, policy.n, policy.max_segment_size, size)).share_size


@pytest.mark.parametrize(("k", "n"), [(1, 1), (2, 3), (3, 10), (71, 255), (101, 256)])
@pytest.mark.parametrize("size", [56, 57, 999, 1000, 1001, 1002, 1003, 17_100])
def test_exact_is_what_stock_allocates(k: int, n: int, size: int) -> None:
    policy = AllocationPolicy(k, n, 1000)
    stock = oracle.encode(random.Random(size).randbytes(size), k, n, 1000, key=bytes(16), layout=2, keep=False)
    allocation = policy.exact(size)
    assert allocation.share_size == stock.allocated_size
    assert allocation.file_bound == size


@st.composite
def policies(draw: st.DrawFn) -> AllocationPolicy:
    n = draw(st.integers(1, 256))
    segment = draw(st.sampled_from([1, 100, 1000, 4096, 131_072, 1_048_576, 8_388_608]) | st.integers(1, 2**23))
    return AllocationPolicy(draw(st.integers(1, n)), n, segment, draw(st.sampled_from([1000, 10**6, GiB])))


@given(policies(), st.integers(0, 10**13), st.none() | st.integers(0, 10**14), st.integers(1, 256), st.data())
def test_a_share_fits_for_every_size_up_to_the_bound(
        policy: AllocationPolicy, received: int, free: int | None, shares: int, data: st.DataObject) -> None:
    allocation = policy.bounded(received, free, shares)
    bound = allocation.file_bound
    assert bound <= policy.bounded(received, None, shares).file_bound
    if free is not None:
        assert allocation.share_size * shares <= free // FREE_SPACE_PARTS
    if not bound:
        assert allocation.share_size == 0
        return
    segment = policy.max_segment_size
    near = [bound, bound - 1, bound // segment * segment, bound // segment * segment - 1, segment, segment - 1,
            data.draw(st.integers(1, bound)), data.draw(st.integers(1, min(bound, 3 * segment)))]
    for size in near:
        if 1 <= size <= bound:
            assert real_share_size(policy, size) <= allocation.share_size


@pytest.mark.parametrize(("k", "n", "segment", "first_bound"), [
    (1, 1, 100, 5000), (3, 10, 1000, 5000), (2, 3, 99, 5000), (7, 9, 1, 5000), (9, 10, 1007, 5000),
    (1, 1, 1000, 3001), (3, 10, 1002, 4009),  # a tail of few bytes, so short numbers, at the bound
])
def test_a_share_fits_for_really_every_size(k: int, n: int, segment: int, first_bound: int) -> None:
    policy = AllocationPolicy(k, n, segment, first_bound)
    for free in (None, 8 * 4000, 8 * 1234, 8 * 2000 * 100):
        allocation = policy.bounded(0, free, 1)
        largest = max((real_share_size(policy, size) for size in range(1, allocation.file_bound + 1)), default=0)
        assert largest <= allocation.share_size


@given(policies(), st.integers(0, 10**15))
def test_bounds_are_a_series(policy: AllocationPolicy, received: int) -> None:
    bound = policy.bounded(received, None, 1).file_bound
    step, expected = 0, policy.first_bound
    while received * 2 >= expected:
        step, expected = step + 1, policy.first_bound * BOUND_FACTOR**(step + 1)
    assert bound == expected == policy.first_bound * 8**step
    assert received < bound / 2  # so that it does not grow at once
    assert not policy.growth_due(received, bound)


@given(policies(), st.integers(0, 10**12))
def test_growth_is_due_at_half_the_bound(policy: AllocationPolicy, half: int) -> None:
    assert policy.growth_due(half, 2 * half)
    assert policy.growth_due(half, 2 * half - 1)
    assert not policy.growth_due(half, 2 * half + 1)


@given(policies(), st.integers(0, 10**9), st.integers(1, 256))
def test_room_is_used_as_far_as_allowed(policy: AllocationPolicy, room: int, shares: int) -> None:
    """Where free space is the limit, no more could have been asked for (but for a few bytes)."""
    allocation = policy.bounded(0, room * FREE_SPACE_PARTS * shares, shares)
    assert allocation.share_size <= room
    if allocation.file_bound < policy.first_bound:
        slack = 64 + 32  # what is added for longer numbers, and the numbers themselves
        assert real_share_size(policy, allocation.file_bound + 1) + slack > room


def test_no_room() -> None:
    policy = AllocationPolicy(3, 10, 1_048_576)
    for free in (0, 7, 800):
        allocation = policy.bounded(0, free, 10)
        assert (allocation.share_size, allocation.file_bound) == (0, 0)
    assert policy.bounded(5, None, 0) == policy.bounded(5, None, 1)
    assert policy.bounded(5, 10**9, 0) == policy.bounded(5, 10**9, 1)


def test_allocation_by_example() -> None:
    """Numbers an operator can check: 3 of 10, 1 MiB segments."""
    policy = AllocationPolicy(3, 10, 1_048_576)
    first = policy.bounded(0, None, 1)
    assert first.file_bound == GiB
    assert GiB // 3 < first.share_size < GiB // 3 + 200_000  # hash trees: 3 of 2,048 nodes of 32 bytes
    assert policy.bounded(GiB // 2, None, 1).file_bound == 8 * GiB
    assert policy.bounded(4 * GiB, None, 1).file_bound == 64 * GiB
    limited = policy.bounded(0, 800_000_000, 2)
    assert limited.share_size <= 50_000_000
    assert 140_000_000 < limited.file_bound < 150_000_000
