"""What staging servers (helper/sinks.py) do beyond other storage servers: the fake one, and the real plugin.

The real one is helper.staging_client over a loopback Foolscap connection to helper.staging_plugin, beside
allmydata's own storage server (tests/server_benches.py).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import oracle
import pytest
from allmydata.storage.server import DEFAULT_RENEWAL_TIME
from server_benches import BENCHES, LEASE_SECRETS, SI, TARGET, PluginBench, StagingBench
from twisted.internet.abstract import FileDescriptor

from helper.interfaces import SIZE_MAX
from helper.layout import DATA_OFFSET
from helper.placement import Allocation
from helper.sinks import CONNECTION_LOST, Granted, ShareSink, Target
from helper.staged_share import SYNC_INTERVAL
from helper.staging_plugin import READ_SIZE

MiB = 1024 * 1024

SECRET = TARGET.staging_secret
#: While the storage index may not be told.
NAMELESS = Target(SECRET)
OTHER = Target(b"another upload's secret, 32 byte")
HEADER = b"\0\0\0\2" + b"h" * (DATA_OFFSET - 4)
SHARE = HEADER + b"0123456789"
#: Refusals arrive as some exception of the server's choosing.
Refused = Exception


@pytest.fixture(params=[name for name in BENCHES if "staging" in name])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StagingBench]:
    """A server with a megabyte of room."""
    bench = BENCHES[request.param](tmp_path / "storage")
    bench.make(1_000_000)
    yield bench  # type: ignore[misc]
    bench.stop()


def allocate(bench: StagingBench, shnums: Sequence[int], target: Target = NAMELESS, size: int = 0) -> Granted:
    return bench.run(lambda: bench.server.allocate(target, shnums, Allocation(size, SIZE_MAX)))


def sink(bench: StagingBench, shnum: int = 0, target: Target = NAMELESS) -> ShareSink:
    return allocate(bench, [shnum], target).sinks[shnum]


def write(bench: StagingBench, one: ShareSink, share: bytes = SHARE) -> None:
    bench.run(lambda: one.write(DATA_OFFSET, share[DATA_OFFSET:]))
    bench.run(lambda: one.write(0, share[:DATA_OFFSET]))


def sealed(bench: StagingBench, shnum: int = 0, target: Target = NAMELESS, share: bytes = SHARE) -> ShareSink:
    one = sink(bench, shnum, target)
    write(bench, one, share)
    bench.run(lambda: one.seal(SI, len(share)))
    return one


def fails(bench: StagingBench, call: Callable[[], Awaitable[object]],
          kind: type[Exception] | tuple[type[Exception], ...] = Refused) -> None:
    with pytest.raises(kind):
        bench.run(call)


# -- asking for room ----------------------------------------------------------------------------------------


def test_it_takes_shares_without_a_storage_index_and_a_size(bench: StagingBench) -> None:
    assert bench.server.stages
    granted = allocate(bench, [0, 1, 4])
    assert set(granted.sinks) == {0, 1, 4}
    assert not granted.existing
    assert [(s.held, s.prepared) for s in granted.sinks.values()] == [(DATA_OFFSET, False)] * 3


def test_without_a_storage_index_nothing_is_there_already(bench: StagingBench) -> None:
    one = sealed(bench)
    bench.run(lambda: one.publish(SI))
    granted = allocate(bench, [0])
    assert set(granted.sinks) == {0}
    assert not granted.existing
    assert granted.sinks[0].held == DATA_OFFSET


def test_with_a_storage_index_what_is_there_is_found_and_the_rest_is_staged(bench: StagingBench) -> None:
    one = sealed(bench, 1)
    bench.run(lambda: one.publish(SI))
    granted = allocate(bench, [0, 1, 2], TARGET)
    assert set(granted.sinks) == {0, 2}
    assert set(granted.existing) == {1}
    assert bench.open_shares() == 2


def test_a_share_is_found_again_with_and_without_the_storage_index(bench: StagingBench) -> None:
    write(bench, sink(bench))
    assert sink(bench, target=TARGET).held == sink(bench).held == len(SHARE)
    assert bench.open_shares() == 1


def test_shares_of_other_uploads_are_other_shares(bench: StagingBench) -> None:
    write(bench, sink(bench))
    assert sink(bench, target=OTHER).held == DATA_OFFSET
    assert sink(bench).held == len(SHARE)
    assert bench.open_shares() == 2


def test_shares_that_do_not_fit_are_refused_together_and_leave_nothing(bench: StagingBench) -> None:
    fails(bench, lambda: bench.server.allocate(NAMELESS, [0, 1], Allocation(600_000, SIZE_MAX)))
    assert not bench.open_shares()
    allocate(bench, [0], size=600_000)


def test_a_share_that_is_there_is_found_again_on_a_full_server(bench: StagingBench) -> None:
    write(bench, sink(bench))
    bench.set_capacity(0)
    assert sink(bench).held == len(SHARE)
    fails(bench, lambda: bench.server.allocate(NAMELESS, [1], Allocation(0, SIZE_MAX)))


def test_what_is_staged_takes_room(bench: StagingBench) -> None:
    before = bench.run(bench.server.free_space)
    write(bench, sink(bench), HEADER + random.Random(0).randbytes(100_000))
    after = bench.run(bench.server.free_space)
    assert before is not None
    assert after is not None
    assert before - 200_000 < after <= before - 100_000


# -- writing ------------------------------------------------------------------------------------------------


def test_a_share_grows_without_gaps(bench: StagingBench) -> None:
    one = sink(bench)
    fails(bench, lambda: one.write(DATA_OFFSET + 1, b"x"))
    bench.run(lambda: one.write(DATA_OFFSET, b"01234"))
    fails(bench, lambda: one.write(DATA_OFFSET + 6, b"6789"))
    bench.run(lambda: one.write(DATA_OFFSET + 5, b"56789"))
    bench.run(lambda: one.write(0, HEADER))
    bench.run(lambda: one.seal(SI, len(SHARE)))
    bench.run(lambda: one.publish(SI))
    assert bench.content(0) == SHARE


def test_what_was_written_past_the_end_is_cut_off(bench: StagingBench) -> None:
    one = sink(bench)
    write(bench, one, SHARE + b"too much")
    bench.run(lambda: one.seal(SI, len(SHARE)))
    bench.run(lambda: one.publish(SI))
    assert bench.content(0) == SHARE


def test_a_write_for_which_there_is_no_room_is_refused_and_can_be_repeated(bench: StagingBench) -> None:
    one = sink(bench)
    bench.run(lambda: one.write(DATA_OFFSET, b"01234"))
    bench.set_capacity(100_000)
    fails(bench, lambda: one.write(DATA_OFFSET + 5, bytes(150_000)))
    assert sink(bench).held == DATA_OFFSET + 5
    bench.set_capacity(1_000_000)
    bench.run(lambda: one.write(DATA_OFFSET + 5, b"56789"))
    bench.run(lambda: one.write(0, HEADER))
    bench.run(lambda: one.seal(SI, len(SHARE)))
    bench.run(lambda: one.publish(SI))
    assert bench.content(0) == SHARE


def test_a_server_that_has_become_read_only_takes_nothing_and_keeps_what_it_has(bench: StagingBench) -> None:
    done, half = sealed(bench, 0), sink(bench, 1)
    bench.run(lambda: half.write(DATA_OFFSET, b"01234"))
    bench.make_read_only()
    fails(bench, lambda: bench.server.allocate(NAMELESS, [2], Allocation(0, SIZE_MAX)))
    fails(bench, lambda: half.write(DATA_OFFSET + 5, b"56789"))
    assert sink(bench, 1).held == DATA_OFFSET + 5
    assert bench.run(lambda: done.publish(SI)) is None
    assert bench.content(0) == SHARE


# -- sealing ------------------------------------------------------------------------------------------------


def test_sealing_may_be_repeated_with_the_same_size_only(bench: StagingBench) -> None:
    one = sealed(bench)
    bench.run(lambda: one.seal(SI, len(SHARE)))
    fails(bench, lambda: one.seal(SI, len(SHARE) - 1))
    fails(bench, lambda: one.seal(SI, len(SHARE) + 1))
    bench.run(lambda: one.seal(SI, len(SHARE)))
    bench.run(lambda: one.publish(SI))
    assert bench.content(0) == SHARE


@pytest.mark.parametrize("size", [0, DATA_OFFSET, len(SHARE) + 1])
def test_a_share_cannot_be_sealed_with_a_size_that_it_has_not(bench: StagingBench, size: int) -> None:
    one = sink(bench)
    write(bench, one)
    fails(bench, lambda: one.seal(SI, size))
    assert not sink(bench).prepared


def test_a_share_without_its_header_cannot_be_sealed(bench: StagingBench) -> None:
    one = sink(bench)
    bench.run(lambda: one.write(DATA_OFFSET, b"0123456789"))
    fails(bench, lambda: one.seal(SI, len(SHARE)))
    bench.run(lambda: one.write(0, HEADER))
    bench.run(lambda: one.seal(SI, len(SHARE)))


def test_a_sealed_share_takes_no_more_bytes(bench: StagingBench) -> None:
    one = sealed(bench)
    fails(bench, lambda: one.write(len(SHARE), b"more"))
    fails(bench, lambda: one.write(0, HEADER))
    bench.run(lambda: one.publish(SI))
    assert bench.content(0) == SHARE


def test_a_sealed_share_is_known_as_such(bench: StagingBench) -> None:
    sealed(bench)
    again = sink(bench)
    assert again.prepared
    assert again.held == len(SHARE)
    assert bench.run(lambda: again.publish(SI)) is not None  # what we have not written here is to be read
    assert bench.content(0) == SHARE


# -- publishing ---------------------------------------------------------------------------------------------


def test_a_share_that_is_not_sealed_is_not_published_and_stays(bench: StagingBench) -> None:
    one = sink(bench)
    write(bench, one)
    fails(bench, lambda: one.publish(SI))
    assert bench.content(0) is None
    bench.run(lambda: one.seal(SI, len(SHARE)))
    assert bench.run(lambda: one.publish(SI)) is None


def test_each_share_is_published_for_itself(bench: StagingBench) -> None:
    one, other = sealed(bench, 0), sealed(bench, 1)
    half = sink(bench, 2)
    assert bench.run(lambda: one.publish(SI)) is None
    assert (bench.content(0), bench.content(1), bench.content(2)) == (SHARE, None, None)
    assert bench.open_shares() == 2
    bench.run(lambda: half.write(DATA_OFFSET, b"goes on"))
    assert bench.run(lambda: other.publish(SI)) is None
    assert bench.content(1) == SHARE


def test_publishing_where_a_share_stands_gives_that_one_and_drops_the_own(bench: StagingBench) -> None:
    encoded = oracle.encode(random.Random(1).randbytes(1000), 3, 5, 128, key=bytes(16), layout=2)
    first = sealed(bench, 2, OTHER, encoded.shares[2])
    own = sealed(bench, 2)
    assert bench.run(lambda: first.publish(SI)) is None
    existing = bench.run(lambda: own.publish(SI))
    assert existing is not None
    assert bench.run(existing.read_ueb) == encoded.ueb
    assert bench.run(lambda: existing.read_block(0, 43, 43)) == encoded.shares[2][DATA_OFFSET:DATA_OFFSET + 43]
    assert bench.content(2) == encoded.shares[2]
    assert not bench.open_shares()


def test_publishing_again_after_the_answer_was_lost_gives_the_share_that_was_published(bench: StagingBench) -> None:
    encoded = oracle.encode(random.Random(1).randbytes(1000), 3, 5, 128, key=bytes(16), layout=2)
    one = sealed(bench, 2, share=encoded.shares[2])
    bench.run(lambda: one.publish(SI))
    for _ in range(2):
        published = bench.run(lambda: one.publish(SI))
        assert published is not None
        assert bench.run(published.read_ueb) == encoded.ueb
    bench.disconnect()
    bench.reconnect()
    found = allocate(bench, [2], TARGET)
    assert not found.sinks
    assert bench.run(found.existing[2].read_ueb) == encoded.ueb


def test_what_was_never_staged_cannot_be_published(bench: StagingBench) -> None:
    one = sealed(bench)
    bench.run(one.abort)
    fails(bench, lambda: one.publish(SI))
    assert bench.content(0) is None


def test_while_a_stock_writer_has_the_share_open_publishing_fails_and_can_be_repeated(bench: StagingBench) -> None:
    writer = bench.stock_writer(0)
    one = sealed(bench)
    fails(bench, lambda: one.publish(SI))
    assert bench.content(0) is None
    bench.run(writer.abort)
    assert bench.run(lambda: one.publish(SI)) is None
    assert bench.content(0) == SHARE


def test_a_stock_writer_that_was_faster_is_not_replaced(bench: StagingBench) -> None:
    writer = bench.stock_writer(0)
    one = sealed(bench)
    bench.run(lambda: writer.write(0, b"theirs"))
    fails(bench, lambda: one.publish(SI))
    bench.run(lambda: writer.publish(SI))
    assert bench.run(lambda: one.publish(SI)) is not None
    content = bench.content(0)
    assert content is not None
    assert content.startswith(b"theirs")
    assert not bench.open_shares()


def test_a_published_share_has_the_lease_of_its_uploader(tmp_path: Path) -> None:
    bench = PluginBench(tmp_path / "storage")
    bench.make(1_000_000)
    try:
        one = sealed(bench)
        bench.run(lambda: one.publish(SI))
        (lease,) = bench.share_file(0).get_leases()
        assert lease.is_renew_secret(LEASE_SECRETS[0])
        assert lease.is_cancel_secret(LEASE_SECRETS[1])
        assert lease.get_age() < 60
        assert lease.get_expiration_time() - lease.get_grant_renew_time_time() == DEFAULT_RENEWAL_TIME
    finally:
        bench.stop()


def test_a_share_that_was_there_has_the_lease_of_who_uploads_it_again(tmp_path: Path) -> None:
    """Whether that is found out when the share is begun or when it is published."""
    bench = PluginBench(tmp_path / "storage")
    bench.make(1_000_000)

    def age_lease() -> None:
        (lease,) = bench.share_file(0).get_leases()
        bench.share_file(0).renew_lease(LEASE_SECRETS[0], lease.get_expiration_time() - 86400, allow_backdate=True)

    try:
        one, again = sealed(bench), sealed(bench, target=OTHER)
        bench.run(lambda: one.publish(SI))
        age_lease()
        assert bench.run(lambda: again.publish(SI)) is not None
        (lease,) = bench.share_file(0).get_leases()
        assert lease.get_age() < 60
        age_lease()
        granted = allocate(bench, [0], TARGET)
        assert set(granted.existing) == {0}
        (lease,) = bench.share_file(0).get_leases()
        assert lease.get_age() < 60
    finally:
        bench.stop()


# -- losing the connection ----------------------------------------------------------------------------------


def test_shares_are_kept_when_the_connection_is_lost(bench: StagingBench) -> None:
    one = sink(bench)
    bench.run(lambda: one.write(DATA_OFFSET, b"01234"))
    bench.disconnect()
    assert bench.open_shares() == 1
    bench.reconnect()
    again = sink(bench)
    assert (again.held, again.prepared) == (DATA_OFFSET + 5, False)
    bench.run(lambda: again.write(DATA_OFFSET + 5, b"56789"))
    bench.run(lambda: again.write(0, HEADER))
    bench.run(lambda: again.seal(SI, len(SHARE)))
    assert bench.run(lambda: again.publish(SI)) is not None
    assert bench.content(0) == SHARE


def test_sealed_shares_are_kept_when_the_connection_is_lost(bench: StagingBench) -> None:
    sealed(bench)
    bench.disconnect()
    bench.reconnect()
    again = sink(bench, target=TARGET)
    assert (again.held, again.prepared) == (len(SHARE), True)
    bench.run(lambda: again.seal(SI, len(SHARE)))
    assert bench.run(lambda: again.publish(SI)) is not None
    assert bench.content(0) == SHARE


def test_while_it_is_away_every_request_fails_as_one_whose_connection_was_lost(bench: StagingBench) -> None:
    server, one = bench.server, sink(bench)
    bench.disconnect()
    for call in (server.free_space, one.touch, lambda: one.write(0, HEADER), lambda: one.seal(SI, len(SHARE)),
                 lambda: one.publish(SI), lambda: server.allocate(NAMELESS, [0], Allocation(0, SIZE_MAX)),
                 lambda: server.allocate(TARGET, [0], Allocation(0, SIZE_MAX))):
        fails(bench, call, CONNECTION_LOST)


def test_what_is_staged_is_removed_and_nothing_else(bench: StagingBench) -> None:
    sealed(bench, 0)
    write(bench, sink(bench, 1))
    write(bench, sink(bench, 0, OTHER))
    published = sealed(bench, 2)
    bench.run(lambda: published.publish(SI))
    for _ in range(2):  # it may be repeated
        bench.run(lambda: bench.server.remove_staged(NAMELESS, range(10)))
    assert bench.open_shares() == 1
    assert sink(bench, 0, OTHER).held == len(SHARE)
    assert bench.content(2) == SHARE
    assert [s.held for s in allocate(bench, [0, 1]).sinks.values()] == [DATA_OFFSET] * 2
    server = bench.server
    bench.disconnect()
    fails(bench, lambda: server.remove_staged(NAMELESS, range(10)), CONNECTION_LOST)


def test_who_asks_too_late_to_be_told_of_the_loss_is_told_at_once(bench: StagingBench) -> None:
    server = bench.server
    told: list[int] = []
    bench.disconnect()

    async def watch() -> None:
        server.on_disconnect(lambda: told.append(1))()  # cancelling is always safe
        server.on_disconnect(lambda: told.append(2))

    bench.run(watch)
    bench.wait_for(lambda: 2 in told)


def test_an_abort_while_it_is_away_happens_when_it_is_back(bench: StagingBench) -> None:
    one, other = sink(bench, 0), sink(bench, 1)
    write(bench, one)
    bench.disconnect()
    bench.run(one.abort)  # never fails
    assert bench.open_shares() == 2
    bench.reconnect()
    again = sink(bench, 0)
    assert again.held == DATA_OFFSET  # a new one
    assert sink(bench, 1).held == other.held


def test_an_abort_leaves_nothing(bench: StagingBench) -> None:
    one = sealed(bench)
    bench.run(one.abort)
    assert not bench.open_shares()
    again = sink(bench)
    assert (again.held, again.prepared) == (DATA_OFFSET, False)
    if isinstance(bench, PluginBench):
        bench.run(again.abort)
        assert [p.name for p in Path(bench.storage.storedir, "staging").iterdir() if p.is_dir()] == []


# -- connections --------------------------------------------------------------------------------------------


def test_only_who_was_given_the_staging_server_is_read_from_in_large_pieces(bench: StagingBench) -> None:
    if not isinstance(bench, PluginBench):
        pytest.skip("it has no connections")
    sizes = {broker.transport.bufferSize for broker in bench.connections}
    assert sizes == {READ_SIZE, FileDescriptor.bufferSize}


# -- being killed -------------------------------------------------------------------------------------------


def test_after_a_kill_what_was_synced_is_held_and_the_rest_can_be_written_again(bench: StagingBench) -> None:
    bench.set_capacity(50 * MiB)
    data = random.Random(2).randbytes(5 * MiB)  # so that what follows a sync is too little to begin another
    one = sink(bench)
    for start in range(0, len(data), MiB):
        bench.run(partial(one.write, DATA_OFFSET + start, data[start:start + MiB]))
    assert sink(bench).held == DATA_OFFSET + len(data)
    bench.kill()
    bench.reconnect()
    again = sink(bench)
    start = again.held - DATA_OFFSET
    assert len(data) - SYNC_INTERVAL < start < len(data)
    assert not again.prepared
    fails(bench, lambda: again.write(DATA_OFFSET + start + 1, b"x"))
    bench.run(lambda: again.write(again.held, data[start:]))
    bench.run(lambda: again.write(0, HEADER))
    bench.run(lambda: again.seal(SI, DATA_OFFSET + len(data)))
    bench.run(lambda: again.publish(SI))
    assert bench.content(0) == HEADER + data


def test_after_a_kill_a_sealed_share_is_whole(bench: StagingBench) -> None:
    sealed(bench)
    bench.kill()
    bench.reconnect()
    again = sink(bench)
    assert (again.held, again.prepared) == (len(SHARE), True)
    assert bench.run(lambda: again.publish(SI)) is not None
    assert bench.content(0) == SHARE


def test_after_a_kill_a_share_that_never_was_synced_begins_anew(bench: StagingBench) -> None:
    write(bench, sink(bench))
    bench.kill()
    bench.reconnect()
    again = sink(bench)
    assert (again.held, again.prepared) == (DATA_OFFSET, False)
    write(bench, again)
    bench.run(lambda: again.seal(SI, len(SHARE)))
    bench.run(lambda: again.publish(SI))
    assert bench.content(0) == SHARE
