"""Upload handles whose file is stored already, with a whole helper behind them: protocol.txt §4.8, §9.1.

The gateway may end and start again at any moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest
from allmydata import uri
from dedup_worlds import DATA, PARAMETERS, Reader, SlowWorld, dedup_of, key_of, put_as_stock, shares_on
from handles_world import GatewayWorld
from hypothesis import given, settings
from hypothesis import strategies as st
from test_handles_whole import Both
from world import SMALL, World, begin, outcome, plaintext

from client_shim.dedup import Dedup, DedupMode, Outcome
from client_shim.gateway.handle_records import HandleState
from client_shim.gateway.handles import Handle
from client_shim.gateway.journal import JournalFile

SHORT = DATA[:700]  # less than a segment


@contextmanager
def two(mode: DedupMode = DedupMode.ON, kind: type[World] = World) -> Iterator[tuple[World, Both]]:
    with kind(10, SMALL, 10) as world:
        both = Both(world)
        reader = Reader(world)

        def dedup(wanted: DedupMode) -> Dedup | None:
            return None if wanted is DedupMode.OFF else dedup_of(reader)

        both.gateway.dedup, both.gateway.dedup_mode = dedup, mode
        with both.gateway:
            yield world, both


def send(both: Both, handle: Handle, data: bytes, cuts: tuple[int, ...] = ()) -> Handle:
    """All of `data`, with an end of the gateway after so many bytes of it; the handle as it is then."""
    gateway = both.gateway
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        writer = both.take_over(gateway.handles.get(handle.id))
        assert writer.offset == start
        gateway.result(writer.write(data[start:end]))
        gateway.result(writer.settle())
        assert_no_plaintext(gateway, data)
        if end < len(data):
            gateway.restart()
    return gateway.handles.get(handle.id)


def close(both: Both, handle: Handle) -> bytes:
    cap: bytes = both.gateway.result(both.take_over(handle).close())
    return cap


def assert_no_plaintext(gateway: GatewayWorld, data: bytes) -> None:
    """Nor eight bytes of it."""
    stored, parts = gateway.journal_bytes(), {data[at:at + 8] for at in range(len(data) - 7)}
    assert len(stored) > 8
    assert not any(stored[at:at + 8] in parts for at in range(len(stored) - 7))


CUTS = [(), (1,), (60,), (699,), (999, 1000, 1003), (64, 1002, 2004), (5499,), (30, 31, 500, 2500)]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("data", [DATA, SHORT], ids=["long", "short"])
def test_a_file_of_stock_is_taken_over_restarts(data: bytes, cuts: tuple[int, ...], declared: bool) -> None:
    cuts = tuple(cut for cut in cuts if cut < len(data))
    with two() as (world, both):
        encoded = put_as_stock(world, data)
        before = shares_on(world)
        handle = send(both, both.gateway.create(len(data) if declared else None), data, cuts)
        assert close(both, handle) == encoded.cap
        assert both.gateway.handles.get(handle.id).status.outcome is Outcome.EXISTING
        world.wait(60)
        assert shares_on(world) == before
        assert not world.spool_files()
        assert_no_plaintext(both.gateway, data)
        assert contents(both.gateway) == [b""]
        both.gateway.restart()
        status = both.gateway.handles.get(handle.id).status
        assert (status.cap, status.outcome) == (encoded.cap, Outcome.EXISTING)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_file_of_stock_is_taken_whatever_was_lost_on_the_way(seed: int) -> None:
    """Whatever was not durable comes again, from where the handle says."""
    draw = Random(seed)
    data = plaintext(draw.choice([700, 1000, 1003, 5500]), seed)
    with two() as (world, both):
        encoded, gateway = put_as_stock(world, data), both.gateway
        handle = gateway.create(draw.choice([None, len(data)]))
        for _life in range(draw.randint(1, 6)):
            writer = both.take_over(gateway.handles.get(handle.id))
            offset = writer.offset
            for _piece in range(draw.randint(0, 5)):
                piece = data[offset:offset + draw.choice([1, 30, 100, 900])]
                gateway.result(writer.write(piece))
                offset += len(piece)
                gateway.wait(draw.choice([0, 0, 0.001, 0.01, 1]))
            match draw.choice(["gateway", "gateway", "cut", "helper"]):
                case "gateway":
                    gateway.restart()
                case "helper":
                    world.restart()
                case _:
                    both.cut()
        writer = both.take_over(gateway.handles.get(handle.id))
        gateway.result(writer.write(data[writer.offset:]))
        assert gateway.result(writer.close()) == encoded.cap


def test_what_waits_at_rest_is_taken_up_too() -> None:
    with two() as (world, both):
        encoded = put_as_stock(world, SHORT)
        handle = send(both, both.gateway.create(), SHORT[:300])
        both.gateway.result(both.gateway.handles.get(handle.id).take_over()).release()
        both.gateway.wait(600)
        assert handle._stream is None
        writer = both.take_over(handle)
        both.gateway.result(writer.write(SHORT[300:]))
        assert both.gateway.result(writer.close()) == encoded.cap


def test_a_streamed_file_is_found_by_the_next() -> None:
    with two() as (world, both):
        first = send(both, both.gateway.create(), DATA, (1234,))
        cap = close(both, first)
        assert first.status.outcome is Outcome.PUBLISHED
        world.wait(60)
        before = shares_on(world)
        second = send(both, both.gateway.create(), DATA, (77,))
        assert close(both, second) == cap
        assert second.status.outcome is Outcome.STREAMED_BEFORE
        world.wait(60)
        assert shares_on(world) == before


def test_off_looks_for_nothing_and_keeps_nothing() -> None:
    with two() as (world, both):
        encoded = put_as_stock(world)
        handle = send(both, both.gateway.create(dedup=DedupMode.OFF), DATA[:3000])
        assert contents(both.gateway) == [b""]
        both.gateway.restart()
        writer = both.take_over(both.gateway.handles.get(handle.id))
        both.gateway.result(writer.write(DATA[3000:]))
        cap = both.gateway.result(writer.close())
        assert cap != encoded.cap
        assert Reader(world).file(cap) == DATA
        assert both.gateway.handles.get(handle.id).status.outcome is Outcome.PUBLISHED
        assert world.uploads.counters["looked_up"] == 0
        assert world.uploads.counters["records_left"] == 0


def test_a_mode_of_its_own_goes_before_the_gateways() -> None:
    with two(DedupMode.OFF) as (world, both):
        encoded = put_as_stock(world)
        assert close(both, send(both, both.gateway.create(dedup=DedupMode.ON), DATA, (2000,))) == encoded.cap


def test_what_is_damaged_costs_only_the_deduplication() -> None:
    with two() as (world, both):
        put_as_stock(world)
        gateway = both.gateway
        handle = send(both, gateway.create(), DATA[:3000])
        gateway.kill()
        file = JournalFile(gateway.directory / "journal.sqlite")
        file.open()
        file._database._db.execute("UPDATE handles SET content = CAST(x'00' || substr(content, 2) AS BLOB)")
        file._database._db.commit()
        file.close()
        gateway.start()
        writer = both.take_over(gateway.handles.get(handle.id))
        gateway.result(writer.write(DATA[3000:]))
        cap = gateway.result(writer.close())
        assert Reader(world).file(cap) == DATA
        assert gateway.handles.get(handle.id).status.outcome is Outcome.PUBLISHED


def test_another_content_under_its_key_is_not_taken() -> None:
    with two() as (world, both):
        other = put_as_stock(world, bytes(len(DATA)), key=key_of())
        cap = close(both, send(both, both.gateway.create(), DATA, (2000,)))
        assert cap != other.cap
        assert Reader(world).file(cap) == DATA


@pytest.mark.parametrize("what", ["gateway", "both", "helper"])
def test_the_end_is_the_same_whatever_ends_while_it_is_taken(what: str) -> None:
    """After every further moment of the end of an upload, until all is done before that."""
    moments = 0
    while ended_after(what, moments):
        moments += 1
    assert moments > 10


def ended_after(what: str, moments: int) -> bool:
    """Whether there were so many."""
    with two(kind=SlowWorld) as (world, both):
        encoded = put_as_stock(world)
        before = shares_on(world)
        gateway = both.gateway
        handle = send(both, gateway.create(), DATA)
        closing = outcome(begin(both.take_over(handle).close()))
        for _ in range(moments):
            due = gateway._next_due()
            if due is None or closing:
                break
            world.clock.advance(max(0.0, due - world.clock.seconds()))
        done = bool(closing)
        if what in ("helper", "both"):
            both.cut()
            world.restart()
        if what in ("gateway", "both"):
            gateway.restart()
        handle = gateway.handles.get(handle.id)
        if handle.record.state is HandleState.OPEN:
            cap = close(both, handle)
        else:
            cap = gateway.result(gateway.result(handle.take_over()).close())
        world.wait(60)
        assert Reader(world).file(cap) == DATA
        if handle.status.outcome is Outcome.EXISTING:
            assert cap == encoded.cap
            assert shares_on(world) == before
        else:
            assert uri.from_string(cap).key != uri.from_string(encoded.cap).key
            assert len(shares_on(world) - before) == PARAMETERS.n
        assert not world.spool_files()
        return not done


def contents(gateway: GatewayWorld) -> list[bytes]:
    """What the journal knows of plaintexts."""
    return [content for (content,) in gateway.file._database.read("SELECT content FROM handles")]


def rows(gateway: GatewayWorld) -> list[int]:
    """Where rows of the ring begin."""
    return [start for (start,) in gateway.file._database.read("SELECT start FROM ring ORDER BY start")]


@pytest.mark.parametrize(("size", "mode", "kept"), [
    (None, DedupMode.ON, True), (None, DedupMode.OFF, False), (len(DATA), DedupMode.ON, False)])
def test_ciphertext_stays_only_of_what_may_turn_out_to_be_short(size: int | None, mode: DedupMode, kept: bool) -> None:
    with two() as (world, both):
        gateway = both.gateway
        handle = send(both, gateway.create(size, dedup=mode), DATA[:300])
        gateway.result(handle.take_over()).release()
        gateway.wait(600)
        assert bool(rows(gateway)) == kept
        connections = len(both.links)
        gateway.restart()
        gateway.wait(10)
        handle = gateway.handles.get(handle.id)
        assert len(both.links) <= connections, "what is at the helper wakes nobody"
        assert handle._stream is None
        assert handle.status.offset == 300
        writer = both.take_over(handle)
        for start in range(300, 3000, 300):
            gateway.result(writer.write(DATA[start:start + 300]))
            gateway.result(writer.settle())
        assert min(rows(gateway)) > 1500, "it is longer than a segment"
        gateway.result(writer.write(DATA[3000:]))
        assert Reader(world).file(gateway.result(writer.close())) == DATA


def test_nothing_is_kept_of_what_has_expired() -> None:
    with two() as (world, both):
        encoded = put_as_stock(world)
        gateway = both.gateway
        handle = send(both, gateway.create(), DATA[:3000])
        gateway.result(handle._adopts(encoded.cap, Outcome.EXISTING))
        gateway.result(handle.expire())
        assert contents(gateway) == [b""]
        (record,) = gateway.result(handle._journal.records())
        assert (record.state, record.adopting, record.outcome, record.key) == (HandleState.EXPIRED, None, None, None)
        assert record == handle.record
