"""A file that is stored already is found, looked at, and taken: protocol.txt §4.8 to §4.10, §9.1."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import attrs
import oracle
import pytest
from allmydata import uri
from allmydata.util import hashutil
from dedup_worlds import (
    DATA,
    PARAMETERS,
    SECRET,
    Reader,
    SlowWorld,
    dedup_of,
    key_of,
    put_as_stock,
    shares_on,
    store,
    stream,
    streaming,
)
from fakes import FakeStagingServer, Fault, damaged
from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from world import SMALL, WireLink, World, begin, expected, outcome, plaintext, write_all

from client_shim.dedup import READ_PATIENCE, Content, ContentHasher, Dedup, Outcome, candidates_of, ueb_fits
from client_shim.errors import HelperRefused, UploadClosed
from client_shim.helper_upload import LOOK_UP_PATIENCE
from client_shim.sealed_records import FileRecord, seal
from helper.dedup import SEARCHES_EACH, SEARCHES_MAX
from helper.dedup_store import LEASE_DURATION
from helper.foolscap_edge import WireAnswer
from helper.parameters import Parameters
from helper.segments import Geometry

PUBLISHED, EXISTING, STREAMED_BEFORE = Outcome.PUBLISHED, Outcome.EXISTING, Outcome.STREAMED_BEFORE
ID = b"u" * 32
GRIDS = {"staging": 10, "stock": 0, "mixed": 5}
grids = pytest.mark.parametrize("staging", GRIDS.values(), ids=GRIDS)


def assert_new(world: World, cap: bytes, before: set[tuple[str, bytes, int]], data: bytes = DATA) -> None:
    """The upload was published as if nothing had been looked for."""
    world.wait(60)
    assert Reader(world).file(cap) == data
    si = uri.from_string(cap).get_storage_index()
    assert {shnum for _server, each, shnum in shares_on(world) - before if each == si} == set(range(10))
    assert not world.grid.leftovers()
    assert not world.spool_files()


# -- hits -----------------------------------------------------------------------------------------------------------


@grids
@pytest.mark.parametrize("size", [56, 999, 1000, 1001, 1002, 1003, 5500, 20_000])
def test_what_stock_has_put_is_found_and_nothing_of_the_upload_stays(staging: int, size: int) -> None:
    data = plaintext(size)
    with World(10, staging=staging) as world:
        stocks = put_as_stock(world, data)
        before = shares_on(world)
        assert stream(world, data) == (stocks.cap, EXISTING)
        assert shares_on(world) == before
        assert not world.grid.leftovers()
        assert not world.spool_files()
        assert all(server.leases == [stocks.storage_index] for server in world.grid.servers)
        assert world.uploads.counters["deduplicated"] == world.uploads.counters["deduplicated_existing"] == 1


@grids
@pytest.mark.parametrize("settle", [True, False], ids=["settled", "back to back"])
def test_what_was_streamed_before_is_found(staging: int, settle: bool) -> None:
    with World(10, staging=staging) as world:
        first, how = stream(world, settle=settle)
        assert how is PUBLISHED
        for _ in range(3):
            assert stream(world, settle=settle) == (first, STREAMED_BEFORE)
        world.wait(60)
        assert len(shares_on(world)) == 10
        assert not world.grid.leftovers()
        assert not world.spool_files()
        assert world.uploads.counters["deduplicated_streamed_before"] == 3


def test_file_whose_last_shares_are_being_placed_is_whole() -> None:
    with World(10) as world:
        world.grid.servers[0].hang()
        first, how = stream(world, settle=False)
        assert how is PUBLISHED
        assert len(shares_on(world)) < 10
        assert stream(world, settle=False) == (first, STREAMED_BEFORE)


def test_a_file_on_servers_that_are_full_is_found() -> None:
    with World(12) as world:
        stocks = put_as_stock(world)
        for server in world.grid.in_order(stocks.storage_index)[:3]:
            server.writable = False
        assert stream(world) == (stocks.cap, EXISTING)


def test_every_segment_may_be_the_one_that_is_read() -> None:
    with World(10) as world:
        put_as_stock(world)
        reader = Reader(world)
        for segment in range(6):
            assert stream(world, dedup=dedup_of(reader, segment=segment))[1] is EXISTING
        assert [(start, end) for _cap, start, end in reader.reads] == [
            (0, 1002), (1002, 2004), (2004, 3006), (3006, 4008), (4008, 5010), (5010, 5500)]


def test_trust_reads_nothing() -> None:
    with World(10) as world:
        stocks = put_as_stock(world)
        assert stream(world, dedup=Dedup(SECRET, None)) == (stocks.cap, EXISTING)


def test_a_records_life_is_renewed_by_a_hit() -> None:
    with World(10, attrs.evolve(SMALL, sweep_interval=86400)) as world:
        first, _how = stream(world)
        for _ in range(3):
            world.wait(LEASE_DURATION - 86400 * 3)
            assert stream(world) == (first, STREAMED_BEFORE)
        world.wait(LEASE_DURATION + 86400 * 2)
        assert world.run(world.uploads._dedup.records.count()) == 0
        assert stream(world)[1] is PUBLISHED


# -- misses ---------------------------------------------------------------------------------------------------------


def test_off_makes_no_call_of_its_own() -> None:
    """What is in the others: test_s6_the_same_plaintext_twice_has_nothing_in_common_on_the_wire."""
    with World(10) as world:
        put_as_stock(world)
        link = world.link()
        upload = world.upload(PARAMETERS, link)
        world.run(write_all(upload, DATA))
        assert upload.outcome is PUBLISHED
        assert {*link.methods()} == {"open", "assign", "put_ciphertext", "finish"}


@pytest.mark.parametrize("parameters", [
    attrs.evolve(PARAMETERS, k=4), attrs.evolve(PARAMETERS, n=9), attrs.evolve(PARAMETERS, max_segment_size=500)],
    ids=["k", "N", "segment size"])
def test_other_parameters_are_another_file(parameters: Parameters) -> None:
    with World(10) as world:
        first, _how = stream(world)
        put_as_stock(world)
        second, how = stream(world, parameters=parameters)
        assert how is PUBLISHED
        assert first != second
        assert stream(world, parameters=parameters) == (second, STREAMED_BEFORE)


def test_other_secret_is_another_file() -> None:
    with World(10) as world:
        first, _how = stream(world)
        second, how = stream(world, dedup=dedup_of(Reader(world), b"another secret"))
        assert (how, first == second) == (PUBLISHED, False)


@pytest.mark.parametrize("by", ["stock", "stream"])
@pytest.mark.parametrize("shnum", [0, 5, 9])
def test_one_share_is_missing(by: str, shnum: int) -> None:
    with World(10) as world:
        cap = put_as_stock(world).cap if by == "stock" else stream(world)[0]
        si = uri.from_string(cap).get_storage_index()
        for server in world.grid.servers:
            server.published.pop((si, shnum), None)
        before = shares_on(world)
        again, how = stream(world)
        assert (how, again == cap) == (PUBLISHED, False)
        assert_new(world, again, before)
        assert world.run(world.uploads._dedup.records.count()) == 1, "the old record is gone, a new one is there"
        assert stream(world) == (again, STREAMED_BEFORE)


def test_too_few_servers_have_them() -> None:
    """All shares are there, but on six servers, of seven that are wanted."""
    with World(10) as world:
        encoded = expected(DATA, PARAMETERS, key_of())
        for shnum, share in encoded.shares.items():
            store(world.grid.servers[shnum % 6], encoded.storage_index, shnum, share)
        assert stream(world)[1] is PUBLISHED
        assert stream(world, parameters=attrs.evolve(PARAMETERS, happy=6))[1] is EXISTING


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DISCONNECT, Fault.REFUSE])
def test_a_holder_that_does_not_answer(fault: Fault) -> None:
    with World(10) as world:
        put_as_stock(world)
        world.grid.servers[3].plan("look", 1, fault)
        before = shares_on(world)
        assert stream(world)[1] is PUBLISHED
        assert len(shares_on(world) - before) == 10


def test_servers_that_hang_do_not_hold_up_a_miss() -> None:
    """Six of ten: as soon as the others have nothing, seven cannot have it."""
    with World(10) as world:
        upload = streaming(world, dedup_of(Reader(world)))
        world.run(upload.write(DATA))
        for server in world.grid.servers[:6]:
            server.plan("look", 1, Fault.HANG)
        link = world.link()
        world.run(link.open(ID, PARAMETERS.to_wire()))
        began = world.clock.seconds()
        assert world.run(link.look_up(ID, bytes(16))).fields["records"] == 0
        assert world.clock.seconds() == began


@pytest.mark.parametrize(("latency", "found"), [(0.45, True), (0.55, False), (2.0, False)])
def test_a_server_that_could_make_it_whole_is_waited_for_a_second(latency: float, found: bool) -> None:
    """For its shares and the UEB of one: two answers."""
    with World(10) as world:
        encoded = put_as_stock(world)
        world.grid.servers[0].latency = latency
        link = world.link()
        world.run(link.open(ID, PARAMETERS.to_wire()))
        began = world.clock.seconds()
        fields = world.run(link.look_up(ID, encoded.storage_index)).fields
        assert fields == ({"records": 0, "ueb": encoded.ueb} if found else {"records": 0})
        assert world.clock.seconds() - began == pytest.approx(2 * latency if found else 1.0)


def test_leases_that_cannot_be_made() -> None:
    with World(10) as world:
        put_as_stock(world)
        world.grid.servers[3].plan("lease", 1, Fault.REFUSE)
        before = shares_on(world)
        cap, how = stream(world)
        assert how is PUBLISHED
        assert_new(world, cap, before)


# -- forged answers -------------------------------------------------------------------------------------------------

Lie = Callable[[dict[bytes, Any], World], None]


def lying(world: World, lie: Lie) -> WireLink:
    """A helper that says something else."""
    link = world.link()

    def told(method: str, wire: WireAnswer) -> WireAnswer:
        fields = dict(wire[0])
        if method == "look_up":
            lie(fields, world)
        return fields, wire[1]

    link.lie = told
    return link


def garbage_file(world: World, key: bytes | None = None) -> oracle.Encoded:
    """Somebody stores other bytes under the key of our file."""
    return put_as_stock(world, plaintext(len(DATA), seed=1), key=key or key_of())


def claims_other_content(fields: dict[bytes, Any], world: World) -> None:
    fields[b"ueb"] = garbage_file(world).ueb


def claims_another_size(fields: dict[bytes, Any], world: World) -> None:
    fields[b"ueb"] = put_as_stock(world, DATA[:-1], key=key_of()).ueb


def claims_another_segment_size(fields: dict[bytes, Any], world: World) -> None:
    fields[b"ueb"] = put_as_stock(world, DATA, attrs.evolve(PARAMETERS, max_segment_size=500), key=key_of()).ueb


def claims_other_k(fields: dict[bytes, Any], world: World) -> None:
    fields[b"ueb"] = put_as_stock(world, DATA, attrs.evolve(PARAMETERS, k=4), key=key_of()).ueb


def claims_what_is_not_there(fields: dict[bytes, Any], _world: World) -> None:
    fields[b"ueb"] = expected(DATA, PARAMETERS, key_of()).ueb


def answers_garbage(fields: dict[bytes, Any], _world: World) -> None:
    fields[b"ueb"] = b"garbage"
    fields |= {b"records": 2, b"record-1": b"garbage", b"storage-index-1": b"x", b"ueb-1": b"", b"record-2": 5}


def answers_numbers(fields: dict[bytes, Any], _world: World) -> None:
    fields |= {b"ueb": 5, b"records": b"many", b"record-1": 1, b"storage-index-1": 2, b"ueb-1": 3}


def tells(fields: dict[bytes, Any], record: bytes, encoded: oracle.Encoded, storage_index: bytes | None = None) -> None:
    fields |= {b"records": 1, b"record-1": record, b"ueb-1": encoded.ueb,
               b"storage-index-1": storage_index or encoded.storage_index}


def record_for(encoded: oracle.Encoded, convergent_key: bytes | None = None, **changes: Any) -> bytes:
    record = FileRecord(encoded.key, encoded.ueb_hash, 3, 10, len(DATA))
    return seal(attrs.evolve(record, **changes), convergent_key or key_of(), bytes(24))


def tells_a_record_of_other_content(fields: dict[bytes, Any], world: World) -> None:
    """By somebody who has the same file and secret."""
    encoded = garbage_file(world, b"a random key 16b")
    tells(fields, record_for(encoded), encoded)


def tells_a_tampered_record(fields: dict[bytes, Any], world: World) -> None:
    encoded = put_as_stock(world, key=b"a random key 16b")
    record = bytearray(record_for(encoded))
    record[40] ^= 1
    tells(fields, bytes(record), encoded)


def tells_a_truncated_record(fields: dict[bytes, Any], world: World) -> None:
    encoded = put_as_stock(world, key=b"a random key 16b")
    tells(fields, record_for(encoded)[:-1], encoded)


def tells_another_files_record(fields: dict[bytes, Any], world: World) -> None:
    encoded = put_as_stock(world, key=b"a random key 16b")
    tells(fields, record_for(encoded, b"other file's key"), encoded)


def tells_records_swapped(fields: dict[bytes, Any], world: World) -> None:
    one, other = put_as_stock(world, key=b"a random key 16b"), put_as_stock(world, key=b"another key, 16b")
    tells(fields, record_for(one), other)


def tells_another_storage_index(fields: dict[bytes, Any], world: World) -> None:
    one, other = put_as_stock(world, key=b"a random key 16b"), put_as_stock(world, key=b"another key, 16b")
    tells(fields, record_for(one), one, other.storage_index)


def tells_other_numbers(fields: dict[bytes, Any], world: World) -> None:
    encoded = put_as_stock(world, key=b"a random key 16b")
    tells(fields, record_for(encoded, size=len(DATA) - 1), encoded)


def tells_a_record_of_what_is_gone(fields: dict[bytes, Any], _world: World) -> None:
    encoded = expected(DATA, PARAMETERS, b"a random key 16b")
    tells(fields, record_for(encoded), encoded)


LIES = [claims_other_content, claims_another_size, claims_another_segment_size, claims_other_k,
        claims_what_is_not_there, answers_garbage, answers_numbers, tells_a_record_of_other_content,
        tells_a_tampered_record, tells_a_truncated_record, tells_another_files_record, tells_records_swapped,
        tells_another_storage_index, tells_other_numbers, tells_a_record_of_what_is_gone]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_lie_is_seen_and_the_upload_is_published(lie: Lie) -> None:
    with World(10) as world:
        link = lying(world, lie)
        cap, how = stream(world, link=link)
        assert how is PUBLISHED
        assert "adopt" not in link.methods()
        world.wait(60)
        assert Reader(world).file(cap) == DATA
        assert not world.spool_files()


def test_the_truth_in_the_same_words_is_believed() -> None:
    """So it is not for their form that the lies above are refused; but the helper does not know of this file."""
    with World(10) as world:
        encoded = put_as_stock(world, key=b"a random key 16b")
        link = lying(world, lambda fields, _world: tells(fields, record_for(encoded), encoded))
        cap, how = stream(world, link=link)
        assert "adopt" in link.methods()
        assert how is PUBLISHED
        assert cap != encoded.cap


def test_a_helper_that_adopts_what_was_read_cannot_lose_it() -> None:
    with World(10) as world:
        encoded = put_as_stock(world, key=b"a random key 16b")
        link = lying(world, lambda fields, _world: tells(fields, record_for(encoded), encoded))
        honest = link.lie
        link.lie = lambda method, wire: ({b"code": b"ok"}, []) if method == "adopt" else honest(method, wire)
        upload = streaming(world, dedup_of(Reader(world)), link=link)
        assert world.run(write_all(upload, DATA)) == encoded.cap
        assert Reader(world).file(encoded.cap) == DATA


def test_garbage_that_stands_at_the_convergent_index_is_not_taken() -> None:
    with World(10) as world:
        garbage = garbage_file(world)
        before = shares_on(world)
        reader = Reader(world)
        cap, how = stream(world, dedup=dedup_of(reader))
        assert reader.reads, "the helper believes it"
        assert (how, cap == garbage.cap) == (PUBLISHED, False)
        assert_new(world, cap, before)


@pytest.mark.parametrize("what", ["two files", "not a share", "other UEB fields"])
def test_shares_that_are_not_of_one_file_are_no_file(what: str) -> None:
    with World(10) as world:
        encoded = put_as_stock(world)
        place = next((s, p) for s in world.grid.servers for p in s.published)
        server, (si, shnum) = place
        share = server.published[si, shnum]
        if what == "two files":
            other = expected(plaintext(len(DATA), seed=1), PARAMETERS, encoded.key)
            store(server, si, shnum, other.shares[shnum])
        elif what == "not a share":
            store(server, si, shnum, b"garbage" * 100)
        else:
            server.published[si, shnum] = damaged(share, len(share.data) - 20)
        reader = Reader(world)
        assert stream(world, dedup=dedup_of(reader))[1] is PUBLISHED
        assert not [cap for cap, *_range in reader.reads if cap == encoded.cap]


# -- reading --------------------------------------------------------------------------------------------------------


def test_a_reader_that_hangs_is_waited_for_two_seconds() -> None:
    with World(10) as world:
        put_as_stock(world)
        reading: list[float] = []

        def hang(_cap: bytes, _start: int, _end: int) -> Deferred[bytes]:
            reading.append(world.clock.seconds())
            return Deferred()

        upload = streaming(world, Dedup(SECRET, hang))
        for start in range(0, len(DATA), 1000):
            world.run(upload.write(DATA[start:start + 1000]))
        began = world.clock.seconds()
        world.run(upload.close())
        assert len(reading) == 1
        assert READ_PATIENCE <= world.clock.seconds() - began < READ_PATIENCE + 1
        assert upload.outcome is PUBLISHED


def test_a_reader_that_fails_and_a_candidate_that_can_be_read() -> None:
    with World(10) as world:
        first, _how = stream(world)
        bad = put_as_stock(world, key=b"a random key 16b")
        link = lying(world, lambda fields, _world: fields.update({
            b"records": 2, b"record-2": fields[b"record-1"], b"ueb-2": fields[b"ueb-1"],
            b"storage-index-2": fields[b"storage-index-1"], b"record-1": record_for(bad), b"ueb-1": bad.ueb,
            b"storage-index-1": bad.storage_index}))
        for server in world.grid.servers:
            for place in [p for p in server.published if p[0] == bad.storage_index]:
                del server.published[place]
        assert stream(world, link=link) == (first, STREAMED_BEFORE)


def test_abort_while_it_is_read() -> None:
    with World(10) as world:
        put_as_stock(world)
        before = shares_on(world)
        upload = streaming(world, Dedup(SECRET, lambda *_range: Deferred()))
        world.run(upload.write(DATA))
        closing = outcome(begin(upload.close()))
        world.wait(0.5)
        world.run(upload.abort())
        world.wait(10)
        assert closing[0].check(UploadClosed)
        assert shares_on(world) == before
        assert not world.spool_files()


# -- the calls ------------------------------------------------------------------------------------------------------


def refusal(world: World, call: Any) -> str:
    with pytest.raises(HelperRefused) as caught:
        world.run(call)
    return caught.value.code


def test_calls_for_uploads_that_are_not_there_ask_nobody() -> None:
    with World(10) as world:
        link = world.link()
        assert refusal(world, link.look_up(ID, bytes(16))) == "unknown-upload"
        assert refusal(world, link.adopt(ID, bytes(16))) == "unknown-upload"
        assert refusal(world, link.leave_record(ID, bytes(16), b"record")) == "unknown-upload"
        assert not any(server.requests("look") for server in world.grid.servers)


def test_bounds() -> None:
    with World(10) as world:
        link = world.link()
        world.run(link.open(ID, PARAMETERS.to_wire()))
        for index in (b"", bytes(15), bytes(17)):
            assert refusal(world, link.look_up(ID, index)) == "bad-storage-index"
            assert refusal(world, link.adopt(ID, index)) == "bad-storage-index"
            assert refusal(world, link.leave_record(ID, index, b"record")) == "bad-storage-index"
        assert refusal(world, link.leave_record(ID, bytes(16), b"record")) == "not-finished"
        assert refusal(world, link.adopt(ID, bytes(16))) == "not-offered"
        world.run(link.look_up(ID, bytes(16)))
        assert refusal(world, link.adopt(ID, bytes(16))) == "not-offered"
        assert world.run(link.status(ID)).fields["state"] == b"open", "refused calls change nothing"


def test_bounds_of_a_record() -> None:
    with World(10) as world:
        link = world.link()
        world.run(write_all(world.upload(PARAMETERS, link), DATA))
        upload_id = link.sent[0][1][0]
        for record in (b"", bytes(257)):
            assert refusal(world, link.leave_record(upload_id, bytes(16), record)) == "bad-argument"
        world.run(link.leave_record(upload_id, bytes(16), bytes(256)))
        world.run(link.leave_record(upload_id, bytes(16), b"another"))
        assert world.run(world.uploads._dedup.records.count()) == 1


def test_an_upload_that_has_ended_is_not_looked_up() -> None:
    with World(10) as world:
        link = world.link()
        world.run(write_all(world.upload(PARAMETERS, link), DATA))
        finished = link.sent[0][1][0]
        assert refusal(world, link.look_up(finished, bytes(16))) == "already-finishing"
        assert refusal(world, link.adopt(finished, bytes(16))) == "already-finishing"
        world.run(link.open(ID, PARAMETERS.to_wire()))
        world.run(link.abort(ID))
        assert refusal(world, link.look_up(ID, bytes(16))) == "aborted"
        assert refusal(world, link.leave_record(ID, bytes(16), b"record")) == "aborted"


def adopted(world: World, upload_id: bytes = ID) -> oracle.Encoded:
    """An upload that was deduplicated before its first byte."""
    encoded = put_as_stock(world)
    link = world.link()
    world.run(link.open(upload_id, PARAMETERS.to_wire()))
    answer = world.run(link.look_up(upload_id, encoded.storage_index))
    assert answer.fields == {"ueb": encoded.ueb, "records": 0}
    assert world.run(link.adopt(upload_id, encoded.storage_index)).fields["state"] == b"deduplicated"
    return encoded


@pytest.mark.parametrize("restart", [True, False])
def test_the_answer_to_adopt_may_be_asked_for_again(restart: bool) -> None:
    with World(10) as world:
        encoded = adopted(world)
        if restart:
            world.restart()
        link = world.link()
        assert world.run(link.adopt(ID, encoded.storage_index)).fields["state"] == b"deduplicated"
        assert refusal(world, link.adopt(ID, bytes(16))) == "storage-index-conflict"
        assert refusal(world, link.finish(ID, 60, bytes(16), bytes(32), bytes(32))) == "deduplicated"
        assert refusal(world, link.put_ciphertext(ID, 0, b"more")) == "deduplicated"
        status = world.run(link.status(ID))
        assert (status.fields["state"], status.fields["reason"]) == (b"deduplicated", b"deduplicated")
        assert world.run(link.open(ID, PARAMETERS.to_wire())).fields["state"] == b"deduplicated"
        assert world.run(link.abort(ID)).fields["state"] == b"deduplicated"


def test_an_offer_does_not_outlive_the_helper() -> None:
    with World(10) as world:
        encoded = put_as_stock(world)
        world.run(world.link().open(ID, PARAMETERS.to_wire()))
        world.run(world.link().look_up(ID, encoded.storage_index))
        world.restart()
        assert refusal(world, world.link().adopt(ID, encoded.storage_index)) == "not-offered"
        assert world.run(world.link().look_up(ID, encoded.storage_index)).fields["ueb"] == encoded.ueb
        world.run(world.link().adopt(ID, encoded.storage_index))


def test_an_upload_is_looked_up_four_times() -> None:
    with World(10) as world:
        link = world.link()
        world.run(link.open(ID, PARAMETERS.to_wire()))
        for _ in range(SEARCHES_EACH + 3):
            assert world.run(link.look_up(ID, bytes(16))).fields == {"records": 0}
        assert {server.requests("look") for server in world.grid.servers} == {SEARCHES_EACH}


def test_few_searches_go_on_at_a_time() -> None:
    with World(10) as world:
        for server in world.grid.servers:
            server.hang()
        link = world.link()
        for number in range(50):
            world.run(link.open(bytes([number]) * 32, PARAMETERS.to_wire()))
        answers = [outcome(begin(link.look_up(bytes([number]) * 32, bytes(16)))) for number in range(50)]
        world.wait(0.5)
        assert {server.requests("look") for server in world.grid.servers} == {SEARCHES_MAX}
        world.wait(0.6)
        assert [answer[0].fields for answer in answers] == [{"records": 0}] * 50
        assert max(server.requests("look") for server in world.grid.servers) <= 2 * SEARCHES_MAX


def test_opening_alone_asks_no_server() -> None:
    with World(10) as world:
        for number in range(100):
            world.run(world.link().open(bytes([number]) * 32, PARAMETERS.to_wire()))
        assert not any(server.asked or server.requests("look") for server in world.grid.servers)


# -- a helper that does not know these calls, or does not answer ----------------------------------------------------


def test_a_helper_that_does_not_look_up_is_not_asked() -> None:
    with World(10) as world:
        put_as_stock(world)
        link = world.link()
        link.lie = lambda _method, wire: ({k: v for k, v in wire[0].items() if k != b"looks-up"}, wire[1])
        assert stream(world, link=link)[1] is PUBLISHED
        assert "look_up" not in link.methods()


def test_a_helper_that_does_not_answer_look_up() -> None:
    with World(10) as world:
        put_as_stock(world)
        link = world.link()
        arrive = link._arrive
        link._arrive = lambda d, method, arguments: (  # type: ignore[method-assign]
            None if method == "look_up" else arrive(d, method, arguments))
        upload = streaming(world, dedup_of(Reader(world)), link=link)
        world.run(upload.write(DATA))
        began = world.clock.seconds()
        world.run(upload.close())
        assert upload.outcome is PUBLISHED
        assert LOOK_UP_PATIENCE <= world.clock.seconds() - began < LOOK_UP_PATIENCE + 1


# -- records --------------------------------------------------------------------------------------------------------


def test_the_newest_records_of_a_file_are_kept_and_told_first() -> None:
    with World(10) as world:
        files = []
        for number in range(6):
            world.wait(1)
            link = world.link()
            key = bytes([number]) * 16
            world.run(write_all(world.upload(PARAMETERS, link, key), DATA))
            world.run(link.leave_record(link.sent[0][1][0], bytes(16), b"record %d" % number))
            files.append(hashutil.storage_index_hash(key))
            world.wait(60)
        link = world.link()
        world.run(link.open(ID, PARAMETERS.to_wire()))
        fields = world.run(link.look_up(ID, bytes(16))).fields
        assert [fields.get(f"record-{i}") for i in range(1, 6)] == [
            b"record 5", b"record 4", b"record 3", b"record 2", None]
        assert [fields[f"storage-index-{i}"] for i in range(1, 5)] == files[:1:-1]
        assert fields["records"] == 4


def test_records_are_bounded_in_all() -> None:
    with World(10, attrs.evolve(SMALL, sealed_records_max=10)) as world:
        for number in range(30):
            link = world.link()
            world.run(write_all(world.upload(PARAMETERS, link, os.urandom(16)), plaintext(100)))
            world.run(link.leave_record(link.sent[0][1][0], bytes([number]) * 16, b"record"))
            world.wait(1)
            assert world.run(world.uploads._dedup.records.count()) <= 10
        assert world.run(world.uploads._dedup.records.find(bytes([29]) * 16)), "the newest is there"


def test_records_are_there_after_a_restart() -> None:
    with World(10) as world:
        first, _how = stream(world)
        world.restart()
        assert stream(world) == (first, STREAMED_BEFORE)


def test_the_ledger_does_not_name_the_convergent_index() -> None:
    with World(10) as world:
        stream(world)
        world.stop()
        content = b"".join(path.read_bytes() for path in world.directory.glob("ledger*"))
        assert hashutil.storage_index_hash(key_of()) not in content
        assert key_of() not in content
        world.start()


# -- before the first byte ------------------------------------------------------------------------------------------


def content_of(data: bytes, parameters: Parameters = PARAMETERS) -> Content:
    hasher = ContentHasher(parameters, SECRET)
    hasher.update(data)
    return hasher.end()


@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_is_known_before_is_looked_for_before_anything_is_sent(there: bool) -> None:
    with World(10) as world:
        stocks = put_as_stock(world) if there else expected(DATA, PARAMETERS, key_of())
        link = world.link()
        upload = world.upload(PARAMETERS, link, key_of(), dedup=dedup_of(Reader(world)))
        found = world.run(upload.find(content_of(DATA)))
        assert "put_ciphertext" not in link.methods()
        if there:
            assert (found, upload.outcome) == (stocks.cap, EXISTING)
            world.run(upload.abort())
            assert "abort" not in link.methods()
        else:
            assert found is None
            assert world.run(write_all(upload, DATA)) == stocks.cap
            assert link.methods().count("look_up") == 1
            assert "leave_record" not in link.methods()


def test_a_file_that_was_streamed_does_not_do_for_one_who_wants_stocks_cap() -> None:
    with World(10) as world:
        stream(world)
        upload = world.upload(PARAMETERS, None, key_of(), dedup=dedup_of(Reader(world)))
        assert world.run(upload.find(content_of(DATA))) is None


# -- what is computed while streaming -------------------------------------------------------------------------------


@given(st.integers(0, 4000), st.lists(st.integers(1, 1500), max_size=10), st.sampled_from([None, "declared"]),
       st.integers(1, 5))
def test_content_in_any_pieces(size: int, cuts: list[int], declared: str | None, k: int) -> None:
    parameters = attrs.evolve(PARAMETERS, k=k, size=size if declared else None)
    data = plaintext(size)
    hasher = ContentHasher(parameters, SECRET)
    rest = data
    for cut in cuts:
        hasher.update(rest[:cut])
        rest = rest[cut:]
    hasher.update(rest)
    content = hasher.end()
    assert content.size == size
    if size > 55:
        stocks = oracle.encode(data, k, parameters.n, 1000, SECRET, keep=False)
        assert content.convergent_key == stocks.key
        assert content.convergent_index == stocks.storage_index
        assert content.segment.segment_size == stocks.segment_size
        assert content.segment.matches(data[content.segment.number * stocks.segment_size:][:stocks.segment_size])


@given(st.dictionaries(st.sampled_from(["ueb", "records", *(f"{name}-{i}" for i in range(1, 6)
                                                            for name in ("ueb", "record", "storage-index"))]),
                       st.integers(0, 2**63) | st.binary(max_size=300)))
def test_no_answer_makes_the_client_stumble(fields: dict[str, int | bytes]) -> None:
    content = attrs.evolve(content_of(DATA), convergent_key=bytes(16), size=5500)
    assert list(candidates_of(fields, content, PARAMETERS)) == []


@given(st.sampled_from(["size", "segment_size", "num_segments", "needed_shares", "total_shares", "codec_name",
                        "codec_params", "tail_codec_params", "crypttext_hash", "crypttext_root_hash",
                        "share_root_hash"]), st.binary(max_size=31))
def test_every_field_of_a_ueb_is_looked_at(name: str, value: bytes) -> None:
    encoded = expected(DATA, PARAMETERS, key_of())
    geometry = Geometry.for_file(3, 10, 1000, len(DATA))
    assert ueb_fits(encoded.ueb, geometry)
    fields = uri.unpack_extension(encoded.ueb)
    changed = fields | {name: fields[name] + 1 if isinstance(fields[name], int) else value}
    assume(changed != fields)
    assert not ueb_fits(uri.pack_extension(changed), geometry)
    del fields[name]
    assert not ueb_fits(uri.pack_extension(fields), geometry)


# -- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["stock", "stream"])
@pytest.mark.parametrize("staging", [10, 0], ids=["staging", "stock"])
@pytest.mark.parametrize("orderly", [False, True], ids=["kill", "stop"])
def test_helper_that_ends_at_every_step_of_the_decision(by: str, staging: int, orderly: bool) -> None:
    """Either the old or the new file is complete, and the cap is of that one."""
    outcomes: Counter[Outcome] = Counter()
    for step in count(1):
        with SlowWorld(10, staging=staging) as world:
            old = put_as_stock(world).cap if by == "stock" else stream(world)[0]
            before = shares_on(world)
            upload = streaming(world, dedup_of(Reader(world)))
            world.run(upload.write(DATA))
            ended = world.end_after(step, orderly)
            cap = world.run(upload.close())
            world.run(upload.settle(10))
            if not ended:
                break
            world.wait(200)
            outcomes[upload.outcome] += 1
            if upload.outcome is PUBLISHED:
                assert cap != old
                assert_new(world, cap, before)
            else:
                assert cap == old
                assert shares_on(world) == before
                assert not world.spool_files()
                assert not world.grid.leftovers()
            assert Reader(world).file(old) == DATA
    assert {*outcomes} == {PUBLISHED, EXISTING if by == "stock" else STREAMED_BEFORE}
    assert outcomes.total() > 15


@pytest.mark.parametrize("staging", [10, 0], ids=["staging", "stock"])
def test_helper_that_ends_at_every_step_of_leaving_a_record(staging: int) -> None:
    """The file is complete, and found again if the record came to be written."""
    outcomes: Counter[Outcome] = Counter()
    for step in count(0):
        with SlowWorld(10, staging=staging) as world:
            upload = streaming(world, dedup_of(Reader(world)))
            cap = world.run(write_all(upload, DATA))
            ended = world.end_after(step, orderly=False)
            world.run(upload.settle(10))
            if not ended:
                break
            world.wait(200)
            assert Reader(world).file(cap) == DATA
            again, how = stream(world)
            outcomes[how] += 1
            assert (again == cap) == (how is STREAMED_BEFORE)
    assert {*outcomes} == {PUBLISHED, STREAMED_BEFORE}


@pytest.mark.parametrize("method", ["look_up", "adopt", "leave_record"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_connection_that_breaks(method: str, when: str) -> None:
    """The answer is lost with the connection, or the call is."""
    with World(10) as world:
        old = None if method == "leave_record" else stream(world)[0]
        links: list[WireLink] = []

        async def connect() -> WireLink:
            link = world.link()
            links.append(link)
            if len(links) == 1:
                def told(called: str, wire: WireAnswer) -> WireAnswer:
                    if called == method and when == "after":
                        link.cut()
                    return wire

                link.lie = told
                link.breaks = lambda called, _count: called == method and when == "before"
            return link

        upload = streaming(world, dedup_of(Reader(world)))
        upload._helper._helper._connect = connect
        cap = world.run(write_all(upload, DATA))
        world.run(upload.settle(10))
        world.wait(60)
        assert Reader(world).file(cap) == DATA
        if method == "adopt":
            assert (cap, upload.outcome) == (old, STREAMED_BEFORE)
        else:
            assert (cap == old, upload.outcome) == (False, PUBLISHED)
        assert not world.spool_files()
        assert not world.grid.leftovers()


def test_ledger_that_cannot_be_written_while_a_file_is_adopted() -> None:
    """The other file is complete: that is no reason not to answer. What was acknowledged stays until it is recorded."""
    with World(10) as world:
        old = stream(world)[0]
        upload = streaming(world, dedup_of(Reader(world)))
        world.run(upload.write(DATA))
        world.wait(5)
        apply = world.ledger._file.apply
        world.ledger._file.apply = _no_space  # type: ignore[method-assign]
        assert world.run(upload.close()) == old
        assert world.spool_files()
        world.ledger._file.apply = apply  # type: ignore[method-assign]
        world.wait(60)
        assert not world.spool_files()


def _no_space(_changes: object) -> None:
    raise OSError(28, "No space left on device")


def test_staging_servers_are_among_the_fakes() -> None:
    with World(10, staging=10) as world:
        assert all(isinstance(server, FakeStagingServer) for server in world.grid.servers)
