"""Uploads by upload ID (helper/uploads.py): opening, finding, two at once, expiry, forgetting, counting."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import pytest
from fakes import FakeServer, FakeStagingServer, Fault
from twisted.internet.defer import Deferred, succeed
from twisted.logger import capturedLogs, formatEvent
from world import KEY, SI, SMALL, WireLink, World, begin, expected, outcome, plaintext

from client_shim.cipher import Encryptor
from client_shim.errors import HelperLost, HelperRefused
from client_shim.helper_edge import HelperAnswer
from helper import errors, events, uploads
from helper.ciphertext import CiphertextHasher
from helper.interfaces import SEEDS_MAX
from helper.parameters import Parameters
from helper.settings import Settings
from helper.status import snapshot
from helper.upload_records import PUT_UPLOAD, UploadRecord, record_of
from helper.uploads import YIELD_AFTER, hashed_name
from helper.wal_database import Change

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(3000)
CIPHERTEXT = Encryptor(KEY).encrypt(DATA)
HOUR, DAY = 3600, 86400


def an_id(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


class Caller:
    """Calls a helper by hand, with one upload ID."""

    def __init__(self, world: World, number: int = 1, link: WireLink | None = None) -> None:
        self.world = world
        self.upload_id = an_id(number)
        self.link = link or world.link()

    def __call__(self, method: str, *arguments: Any) -> HelperAnswer:
        answer: HelperAnswer = self.world.run(getattr(self.link, method)(self.upload_id, *arguments))
        return answer

    def begin(self, method: str, *arguments: Any) -> list[Any]:
        """Does not wait: the result will be in the list."""
        return outcome(begin(getattr(self.link, method)(self.upload_id, *arguments)))

    def refusal(self, method: str, *arguments: Any) -> HelperRefused:
        with pytest.raises(HelperRefused) as caught:
            self(method, *arguments)
        return caught.value

    def open(self, parameters: Parameters = PARAMETERS) -> HelperAnswer:
        return self("open", parameters.to_wire())

    def put_all(self) -> HelperAnswer:
        return self("put_ciphertext", 0, CIPHERTEXT)

    def finish(self) -> HelperAnswer:
        return self("finish", *finish_arguments())

    def state(self) -> str:
        return bytes(self("status").fields["state"]).decode()


def finish_arguments(data: bytes = CIPHERTEXT, si: bytes = SI) -> tuple[int, bytes, bytes, bytes]:
    hasher = CiphertextHasher(PARAMETERS.k, PARAMETERS.max_segment_size)
    hasher.update(data)
    hashes = hasher.hashes()
    return len(data), si, hashes.crypttext_hash, hashes.crypttext_root_hash


def seeds(servers: Sequence[FakeServer]) -> bytes:
    """Their permutation seeds, each after a byte with its length."""
    return b"".join(bytes([len(server.permutation_seed)]) + server.permutation_seed for server in servers)


def complete(world: World, number: int = 1) -> Caller:
    caller = Caller(world, number)
    caller.open()
    caller.put_all()
    caller.finish()
    return caller


# -- finding ------------------------------------------------------------------------------------------------

CALLS: dict[str, tuple[Any, ...]] = {
    "put_ciphertext": (0, b"data"), "status": (), "assign": (SI,), "order": (b"",), "finish": finish_arguments(),
    "abort": ()}


def aborted(caller: Caller) -> None:
    caller.open()
    caller("abort")
    caller.world.wait(caller.world.settings.result_retention + 2 * caller.world.settings.sweep_interval)


def expired(caller: Caller) -> None:
    caller.open()
    caller.world.wait(caller.world.settings.empty_expiry + 2 * caller.world.settings.sweep_interval)
    assert caller.refusal("finish", *finish_arguments()).code == "expired"
    caller.world.wait(caller.world.settings.result_retention + 2 * caller.world.settings.sweep_interval)


def finished(caller: Caller) -> None:
    caller.open()
    caller.put_all()
    caller.finish()
    caller.world.wait(caller.world.settings.result_retention + 2 * caller.world.settings.sweep_interval)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("then", [aborted, expired, finished])
def test_an_id_that_never_was_and_one_that_was_forgotten_get_the_same_answer(
        world: World, method: str, then: Callable[[Caller], None]) -> None:
    known, unknown = Caller(world, 1), Caller(world, 2)
    then(known)
    one, other = known.refusal(method, *CALLS[method]), unknown.refusal(method, *CALLS[method])
    assert one.code == other.code == "unknown-upload"
    assert (one.text(), one.fields()) == (other.text(), other.fields())


@pytest.mark.parametrize("method", ["open", *CALLS])
@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_malformed_id_is_refused(world: World, method: str, length: int) -> None:
    caller = Caller(world)
    caller.upload_id = bytes(length)
    arguments = CALLS.get(method, (PARAMETERS.to_wire(),))
    refusal = caller.refusal(method, *arguments)
    assert refusal.code == "bad-upload-id"
    assert refusal.fields() == {"expected": 32, "came": length}


def test_ten_thousand_probes_leave_nothing(world: World) -> None:
    link = world.link()
    before = vars(world.uploads).copy()
    sizes = {name: len(value) for name, value in before.items() if hasattr(value, "__len__")}
    for number in range(2000):
        for method, arguments in CALLS.items():
            assert Caller(world, number, link).refusal(method, *arguments).code == "unknown-upload"
    assert {name: len(value) for name, value in vars(world.uploads).items() if hasattr(value, "__len__")} == sizes
    assert not world.spool_files()
    assert not any(server.asked for server in world.grid.servers)


def test_refused_calls_on_an_open_upload_leave_nothing_either(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller.put_all()
    sizes = {name: len(value) for name, value in vars(world.uploads).items() if hasattr(value, "__len__")}
    for number in range(100):
        assert caller.refusal("assign", b"si %d" % number).code == "bad-storage-index"
        wrong = finish_arguments(si=number.to_bytes(16, "big"))
        assert caller.refusal("finish", wrong[0] + 1, *wrong[1:]).code == "size-mismatch"
    assert {name: len(value) for name, value in vars(world.uploads).items() if hasattr(value, "__len__")} == sizes


# -- opening ------------------------------------------------------------------------------------------------


def test_open_says_what_the_client_may_do(world: World) -> None:
    answer = Caller(world).open(attrs.evolve(PARAMETERS, size=3000))
    assert answer.code == "ok"
    assert answer.fields == {
        "state": b"open", "received": 0, "durable": 0, "credit": SMALL.credit, "pushed": 0, "paused": 0,
        "waits-for": b"", "storage-index-needed": 1, "looks-up": 1, "size": 3000,
        "largest-message": SMALL.largest_message,
        "quota": PARAMETERS.largest_size, "servers": 10,
        "permutation-seeds": seeds(world.grid.in_order(bytes(16)))}
    assert answer.shares == []


def test_open_may_be_repeated_with_the_same_parameters_in_any_state(world: World) -> None:
    caller = Caller(world)
    first = caller.open()
    assert caller.open() == first
    caller.put_all()
    assert caller.open().fields["durable"] == 3000
    caller("assign", SI)
    assert caller.open().fields["storage-index-needed"] == 0
    caller.finish()
    assert caller.open().fields["state"] == b"finished"
    assert len(caller.open().shares) == 10
    assert world.uploads.counters["opened"] == 1


@pytest.mark.parametrize(("field", "value"), [("k", 2), ("happy", 6), ("n", 9), ("max_segment_size", 999), ("size", 5)])
def test_a_repeated_open_with_other_parameters_is_refused(world: World, field: str, value: int) -> None:
    caller = Caller(world)
    caller.open()
    refusal = caller.refusal("open", attrs.evolve(PARAMETERS, **{field: value}).to_wire())
    assert refusal.code == "parameters-differ"
    before = getattr(PARAMETERS, field)
    assert refusal.fields() == {
        "field": field.replace("_", "-"), "expected": -1 if before is None else before, "came": value}
    assert caller.state() == "open"


@pytest.mark.parametrize("wrong", [{b"k": 0}, {b"k": 11}, {b"happy": 11}, {b"n": 257}, {b"max-segment-size": 2**23 + 1},
                                   {b"size": -1}, {b"size": 2**53 + 1}, {b"color": 1}])
def test_bad_parameters_are_refused_and_open_nothing(world: World, wrong: dict[bytes, int]) -> None:
    caller = Caller(world)
    assert caller.refusal("open", {**PARAMETERS.to_wire(), **wrong}).code == "bad-argument"
    assert caller.refusal("status").code == "unknown-upload"


def test_two_opens_of_one_id_at_once_are_one_upload(world: World) -> None:
    for server in world.grid.servers[5:]:
        server.disconnect()
    caller = Caller(world)
    first, second = caller.begin("open", PARAMETERS.to_wire()), caller.begin("open", PARAMETERS.to_wire())
    other = caller.begin("open", attrs.evolve(PARAMETERS, k=2).to_wire())
    world.wait(1)
    for server in world.grid.servers[5:]:
        server.reconnect()
    world.wait(1)
    assert first[0] == second[0]
    assert other[0].value.code == "parameters-differ"
    assert world.uploads.counters["opened"] == 1


def test_a_helper_that_just_started_waits_ten_seconds_for_servers_and_then_says_how_many(world: World) -> None:
    for server in world.grid.servers[6:]:
        server.disconnect()
    results = Caller(world).begin("open", PARAMETERS.to_wire())
    world.wait(9.9)
    assert not results
    world.wait(0.3)
    refusal = results[0].value
    assert refusal.code == "too-few-servers"
    assert refusal.fields() == {"have": 6, "need": 7}
    assert "6" in refusal.text()
    assert Caller(world).refusal("status").code == "unknown-upload"


def test_a_clock_that_is_set_back_makes_nobody_wait_for_servers_for_long(world: World) -> None:
    world.wait(60)
    world.grid.servers = world.grid.servers[:6]
    world.process.shift(-DAY)
    results = Caller(world).begin("open", PARAMETERS.to_wire())
    world.wait(10.2)
    assert results[0].value.code == "too-few-servers"


def test_a_helper_that_runs_for_long_says_so_at_once(world: World) -> None:
    world.wait(60)
    world.grid.servers = world.grid.servers[:6]
    results = Caller(world).begin("open", PARAMETERS.to_wire())
    world.turn()
    assert results[0].value.code == "too-few-servers"


def test_full_and_read_only_servers_do_not_count(world: World) -> None:
    world.wait(60)
    for server in world.grid.servers[:4]:
        server.writable = False
    refusal = Caller(world).refusal("open", PARAMETERS.to_wire())
    assert refusal.fields() == {"have": 6, "need": 7}


def test_too_many_uploads_are_refused_until_one_ends() -> None:
    with World(settings=attrs.evolve(SMALL, uploads_max=3)) as world:
        for number in range(3):
            Caller(world, number).open()
        refusal = Caller(world, 4).refusal("open", PARAMETERS.to_wire())
        assert (refusal.code, refusal.fields()) == ("too-many-uploads", {"limit": 3})
        Caller(world, 1).open()  # a repeat is no new upload
        Caller(world, 0)("abort")
        Caller(world, 4).open()


def test_opening_costs_the_grid_nothing(world: World) -> None:
    for number in range(50):
        caller = Caller(world, number)
        caller.open()
        caller("put_ciphertext", 0, bytes(SMALL.contact_after - 1))
        caller("assign", number.to_bytes(16, "big"))
    world.wait(10)
    assert not any(server.asked for server in world.grid.servers)


# -- staging servers, and in which order servers are asked -------------------------------------------------


@pytest.mark.parametrize(("staging", "needed"), [(0, 1), (6, 1), (7, 0), (10, 0)])
def test_open_and_status_and_answers_say_whether_the_storage_index_is_needed(staging: int, needed: int) -> None:
    with World(staging=staging) as world:
        caller = Caller(world)
        assert caller.open().fields["storage-index-needed"] == needed
        answer = caller("put_ciphertext", 0, CIPHERTEXT)
        assert answer.fields.get("storage-index-needed") == (1 if needed else None)
        assert caller("status").fields["storage-index-needed"] == needed
        assert caller.open().fields["storage-index-needed"] == needed
        caller("assign", SI)
        assert caller("status").fields["storage-index-needed"] == 0
        assert "storage-index-needed" not in caller("put_ciphertext", 0, CIPHERTEXT).fields
        caller.finish()
        world.wait(1)
        world.check_shares(expected(DATA, PARAMETERS))


def test_with_fewer_servers_than_shares_those_that_stage_count_with_what_they_get() -> None:
    """7 servers for 10 shares: each gets one or two of them."""
    for staging, needed in ((7, 0), (6, 1)):
        with World(servers=7, staging=staging) as world:
            assert Caller(world).open().fields["storage-index-needed"] == needed


def order_of(servers: Sequence[FakeServer], world: World) -> bytes:
    """As the client sends it."""
    told = world.grid.in_order(bytes(16))
    return b"".join(told.index(server).to_bytes(2, "big") for server in servers)


def test_servers_are_asked_in_the_order_that_the_client_wants() -> None:
    with World(servers=15, staging=15) as world:
        wanted = sorted(world.grid.servers, key=lambda server: server.server_id)
        caller = Caller(world)
        assert caller.open().fields["permutation-seeds"] == seeds(world.grid.in_order(bytes(16)))
        assert caller("order", order_of(wanted, world)).fields == {"state": b"open"}
        assert caller("order", order_of(wanted, world)).fields == {"state": b"open"}  # may be repeated
        caller.put_all()
        world.wait(1)
        asked = [[a.shnum for a in server.allocations()] for server in wanted]
        assert asked == [*([shnum] for shnum in range(10)), *([] for _ in range(5))]
        caller.finish()


def test_an_order_that_comes_late_changes_nothing_but_new_homes() -> None:
    with World(servers=15, staging=15) as world:
        caller = Caller(world)
        caller.open()
        caller.put_all()
        world.wait(1)
        wanted = sorted((s for s in world.grid.servers if not s.allocations()), key=lambda server: server.server_id)
        others = [s for s in world.grid.servers if s.allocations()]
        caller("order", order_of([*wanted, *others], world))
        assert not any(server.allocations() for server in wanted)
        assert isinstance(others[0], FakeStagingServer)
        others[0].staged.clear()  # it has forgotten: the share needs another home
        caller("put_ciphertext", 3000, bytes(3000))
        world.wait(1)
        assert [len(server.allocations()) for server in wanted] == [1, 0, 0, 0, 0]


def test_an_upload_without_an_order_asks_servers_in_one_of_its_own() -> None:
    """The order in which readers of some storage index would be asked would give that index away."""
    first = set()
    for number in range(8):
        with World(servers=15, staging=15) as world:
            caller = Caller(world, number)
            caller.open()
            caller.put_all()
            world.wait(1)
            first.add(next(s.name for s in world.grid.servers if 0 in [a.shnum for a in s.allocations()]))
            caller("abort")
    assert len(first) > 1


@pytest.mark.parametrize("change", [
    lambda order: order[:-1], lambda order: order[:-2], lambda order: order + order[:2], lambda order: b"",
    lambda order: order[:2] * 10, lambda order: order[:-2] + b"\x00\x0a", lambda order: order[:-2] + b"\xff\xff",
    lambda order: order + b"\x00"])
def test_an_order_that_is_no_permutation_is_refused(world: World, change: Callable[[bytes], bytes]) -> None:
    caller = Caller(world)
    caller.open()
    order = order_of(world.grid.servers, world)
    refusal = caller.refusal("order", change(order))
    assert refusal.code == "bad-argument"
    assert refusal.fields() == {
        "field": "order", "expected": "each number below 10 once, in two bytes",
        "came": f"{len(change(order))} bytes that are not that"}
    caller("order", order)


def test_the_order_of_an_ended_upload_is_refused(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller("abort")
    assert caller.refusal("order", order_of(world.grid.servers, world)).code == "aborted"


def test_the_order_of_a_finished_upload_is_accepted_and_changes_nothing(world: World) -> None:
    caller = complete(world)
    world.wait(1)
    assert caller("order", order_of(world.grid.servers, world)).fields == {"state": b"finished"}


def test_the_order_refers_to_the_servers_of_open_also_when_others_come(world: World) -> None:
    caller = Caller(world)
    first = caller.open().fields["permutation-seeds"]
    world.grid.servers.append(FakeServer("another", world.clock))
    assert caller.open().fields["permutation-seeds"] == first
    assert caller.refusal("order", b"".join(i.to_bytes(2, "big") for i in range(11))).code == "bad-argument"
    caller("order", b"".join(i.to_bytes(2, "big") for i in range(10)))


def test_of_very_many_servers_as_many_are_told_as_fit_in_an_answer() -> None:
    fitting = SEEDS_MAX // 21
    with World(servers=fitting + 5) as world:
        caller = Caller(world)
        answer = caller.open()
        assert answer.fields["permutation-seeds"] == seeds(world.grid.in_order(bytes(16))[:fitting])
        assert answer.fields["servers"] == fitting + 5
        caller("order", b"".join(i.to_bytes(2, "big") for i in reversed(range(fitting))))
        caller.put_all()
        caller.finish()


# -- one storage index --------------------------------------------------------------------------------------


def test_two_uploads_cannot_have_one_storage_index(world: World) -> None:
    one, other = Caller(world, 1), Caller(world, 2)
    one.open()
    other.open()
    one("assign", SI)
    assert other.refusal("assign", SI).code == "storage-index-busy"
    other.put_all()
    assert other.refusal("finish", *finish_arguments()).code == "storage-index-busy"
    assert other.state() == "open"
    one("assign", SI)


@pytest.mark.parametrize("staging", [0, 5, 10])
def test_an_upload_that_nobody_calls_for_yields_its_storage_index(staging: int) -> None:
    """A client was killed and is run again with the same file. The first may be alive nevertheless, and go on."""
    with World(staging=staging) as world:
        world.wait(YIELD_AFTER)
        one, other = Caller(world, 1), Caller(world, 2)
        one.open()
        one("assign", SI)
        one("put_ciphertext", 0, CIPHERTEXT[:2000])
        world.wait(YIELD_AFTER - 1)
        other.open()
        assert other.refusal("assign", SI).code == "storage-index-busy"
        world.wait(1)
        other("assign", SI)
        other.put_all()
        assert {record.name: record.storage_index for record in world.records()} == {
            hashed_name(one.upload_id): None, hashed_name(other.upload_id): SI}
        assert other.finish().fields["ueb"] == expected(DATA, PARAMETERS).ueb
        world.wait(10)
        world.check_shares(expected(DATA, PARAMETERS))
        status = one("status").fields
        assert (status["state"], status["storage-index-needed"]) == (b"open", int(staging < 7))
        one("put_ciphertext", 2000, CIPHERTEXT[2000:])
        assert one.finish().fields["ueb"] == expected(DATA, PARAMETERS).ueb
        world.wait(10)
        world.check_shares(expected(DATA, PARAMETERS))
        assert not world.grid.leftovers()


def test_a_clock_that_is_set_back_keeps_no_storage_index_for_long(world: World) -> None:
    world.wait(YIELD_AFTER)
    one, other = Caller(world, 1), Caller(world, 2)
    one.open()
    one("assign", SI)
    world.process.shift(-DAY)
    world.wait(YIELD_AFTER)
    other.open()
    other("assign", SI)


def test_an_upload_that_has_yielded_waits_for_its_turn(world: World) -> None:
    world.wait(YIELD_AFTER)
    one, other = Caller(world, 1), Caller(world, 2)
    for caller in (one, other):
        caller.open()
        caller.put_all()
    one("assign", SI)
    world.wait(YIELD_AFTER)
    other("assign", SI)
    for method, arguments in (("assign", (SI,)), ("finish", finish_arguments())):
        assert one.refusal(method, *arguments).code == "storage-index-busy"
    other("abort")
    assert one.finish().fields["ueb"]


def test_an_upload_keeps_its_storage_index_while_a_call_for_it_waits_or_it_is_to_be_published(world: World) -> None:
    world.wait(YIELD_AFTER)
    one, other = Caller(world, 1), Caller(world, 2)
    one.open()
    one("assign", SI)
    other.open()
    world.hold_work()
    waiting = one.begin("put_ciphertext", 0, CIPHERTEXT)
    world.wait(10 * YIELD_AFTER)
    assert other.refusal("assign", SI).code == "storage-index-busy"
    world.release_work()
    world.wait(1)
    assert waiting
    for server in world.grid.servers:
        server.plan("publish", 1, Fault.HANG)
    one.begin("finish", *finish_arguments())
    world.wait(50)
    assert one.state() == "publishing"
    world.wait(10 * YIELD_AFTER)
    assert other.refusal("assign", SI).code == "storage-index-busy"


def test_after_a_start_clients_have_time_to_come_back_to_their_storage_index(world: World) -> None:
    one, other = Caller(world, 1), Caller(world, 2)
    one.open()
    one("assign", SI)
    one.put_all()
    world.wait(10 * YIELD_AFTER)
    world.restart()
    one, other = Caller(world, 1), Caller(world, 2)
    other.open()
    world.wait(YIELD_AFTER - 2)
    assert other.refusal("assign", SI).code == "storage-index-busy"
    world.wait(3)
    other("assign", SI)


def test_a_storage_index_is_free_again_when_its_upload_has_ended(world: World) -> None:
    one, other = Caller(world, 1), Caller(world, 2)
    one.open()
    one("assign", SI)
    one("abort")
    other.open()
    other("assign", SI)


def test_a_refused_finish_does_not_keep_others_from_its_storage_index(world: World) -> None:
    one, other = Caller(world, 1), Caller(world, 2)
    one.open()
    one.put_all()
    size, si, flat, root = finish_arguments()
    assert one.refusal("finish", size + 1, si, flat, root).code == "size-mismatch"
    assert one.refusal("finish", size, si, flat, bytes(32)).code == "hash-mismatch"
    other.open()
    other("assign", si)
    assert one.refusal("finish", size, si, flat, root).code == "storage-index-busy"
    one("finish", size, bytes(16), flat, root)


def test_the_same_file_may_be_uploaded_twice_one_after_the_other(world: World) -> None:
    ueb = complete(world, 1).finish().fields["ueb"]
    world.wait(1)
    assert complete(world, 2).finish().fields["ueb"] == ueb == expected(DATA, PARAMETERS).ueb
    world.wait(1)
    world.check_shares(expected(DATA, PARAMETERS))


# -- finish -------------------------------------------------------------------------------------------------


def test_finish_with_wrong_hashes_changes_nothing_and_the_upload_can_go_on(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller("put_ciphertext", 0, CIPHERTEXT[:2500])
    before = caller("status")
    size, si, flat, root = finish_arguments(CIPHERTEXT[:2500])
    assert caller.refusal("finish", size, si, root, flat).code == "hash-mismatch"
    assert caller("status") == before
    caller("put_ciphertext", 2500, CIPHERTEXT[2500:])
    assert caller.finish().fields["ueb"] == expected(DATA, PARAMETERS).ueb
    world.wait(1)
    world.check_shares(expected(DATA, PARAMETERS))


def test_a_refused_finish_that_came_before_its_bytes_were_durable_changes_nothing(world: World) -> None:
    caller = Caller(world)
    caller.open()
    world.hold_work()
    stored = caller.begin("put_ciphertext", 0, CIPHERTEXT)
    size, _si, flat, root = finish_arguments()
    refused = caller.begin("finish", size, bytes(16), root, flat)
    world.turn()
    world.release_work()
    world.turn()
    assert stored[0].fields["durable"] == 3000
    assert refused[0].value.code == "hash-mismatch"
    assert not any(server.asked for server in world.grid.servers)
    caller.finish()
    world.wait(1)
    world.check_shares(expected(DATA, PARAMETERS))


def test_finish_may_be_repeated_and_tells_the_shares_of_the_moment(world: World) -> None:
    slow = world.grid.servers[0]
    slow.latency = 5.0
    caller = complete(world)
    before = caller.finish()
    assert {share.state for share in before.shares} > {"closed"}
    world.wait(120)
    after = caller.finish()
    assert after.fields == before.fields == {"state": b"finished", "ueb": expected(DATA, PARAMETERS).ueb}
    assert {share.state for share in after.shares} == {"closed"}
    assert {share.position for share in after.shares} == {3000}


# -- ends ---------------------------------------------------------------------------------------------------


def test_results_are_kept_for_a_while_and_then_forgotten(world: World) -> None:
    caller = complete(world)
    world.wait(SMALL.result_retention - HOUR)
    assert caller.finish().fields["ueb"]
    assert caller.state() == "finished"
    assert len(world.records()) == 1
    world.wait(HOUR + 2 * SMALL.sweep_interval)  # a call does not change how long
    assert caller.refusal("status").code == "unknown-upload"
    assert caller.refusal("finish", *finish_arguments()).code == "unknown-upload"
    assert not world.records()


def test_a_clock_that_jumps_ends_nothing(world: World) -> None:
    empty, begun, done = Caller(world, 1), Caller(world, 2), complete(world, 3)
    empty.open()
    begun.open()
    begun.put_all()
    for _ in range(5):
        world.clock.advance(30 * DAY)
        world.turn()
    by_name = world.uploads._by_name
    for caller in (empty, begun):
        assert 0 < by_name[hashed_name(caller.upload_id)].idle <= 10 * SMALL.sweep_interval
    assert 0 < by_name[hashed_name(done.upload_id)].over_for <= 10 * SMALL.sweep_interval
    assert (empty.state(), begun.state(), done.state()) == ("open", "open", "finished")
    assert len(world.records()) == 3
    world.wait(SMALL.empty_expiry + 2 * SMALL.sweep_interval)  # time that goes by counts as before
    assert (empty.state(), begun.state(), done.state()) == ("expired", "open", "finished")


def test_a_clock_that_goes_back_makes_nothing_immortal(world: World) -> None:
    caller = Caller(world)
    caller.open()
    world.process.shift(-DAY)
    world.wait(SMALL.empty_expiry + 3 * SMALL.sweep_interval)
    assert caller.state() == "expired"


def test_only_so_many_results_are_kept_and_those_of_uploads_that_anybody_gives_up_go_first(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "REMEMBERED_MAX", 500)
    with World(settings=attrs.evolve(SMALL, uploads_max=20_000)) as world:
        done = complete(world, 2 * uploads.REMEMBERED_MAX)
        world.wait(2 * SMALL.sweep_interval)
        link = world.link()
        for number in range(uploads.REMEMBERED_MAX + 20):
            Caller(world, number, link).open()
            Caller(world, number, link)("abort")
        world.wait(2 * SMALL.sweep_interval)
        assert done.state() == "finished"
        assert Caller(world, 20).refusal("status").code == "unknown-upload"
        assert Caller(world, 21).state() == "aborted"


def test_a_sweep_that_fails_is_not_the_last(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(world)
    caller.open()
    with monkeypatch.context() as m:
        m.setattr(world.uploads._uptime, "step", lambda: {}["a bug"])
        world.wait(3 * SMALL.sweep_interval)
    assert {e["log_failure"].type for e in world.errors} == {KeyError}
    world.errors.clear()
    world.wait(SMALL.empty_expiry + 2 * SMALL.sweep_interval)
    assert caller.state() == "expired"


def test_a_bug_with_one_upload_keeps_no_other_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    callers = [Caller(world, number) for number in range(2)]
    for caller in callers:
        caller.open()
    monkeypatch.setattr(world.uploads._by_name[hashed_name(callers[0].upload_id)], "time_passes", lambda _s: {}["bug"])
    world.wait(SMALL.empty_expiry + 2 * SMALL.sweep_interval)
    assert callers[1].state() == "expired"
    assert world.errors
    world.errors.clear()


def test_idle_uploads_expire(world: World) -> None:
    empty, begun = Caller(world, 1), Caller(world, 2)
    empty.open()
    begun.open()
    begun.put_all()
    begun("assign", SI)
    world.wait(SMALL.empty_expiry + 2 * SMALL.sweep_interval)
    assert empty.state() == "expired"
    assert begun.state() == "open"
    assert empty("status").fields["reason"] == b"expired"
    assert world.grid.leftovers()
    world.wait(SMALL.idle_expiry + 2 * SMALL.sweep_interval)
    refusal = begun.refusal("put_ciphertext", 3000, b"more")
    assert refusal.code == "expired"
    assert int(refusal.fields()["idle-seconds"]) >= 7 * DAY
    world.check_nothing_left()


def test_any_call_keeps_an_upload_from_expiring(world: World) -> None:
    caller = Caller(world)
    caller.open()
    for call in (caller.open, caller.state, caller.open):
        world.wait(SMALL.empty_expiry - 2 * SMALL.sweep_interval)
        call()
    world.wait(SMALL.empty_expiry - 2 * SMALL.sweep_interval)
    assert caller.state() == "open"


def test_abort_leaves_nothing_and_says_so_again(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller("assign", SI)
    caller.put_all()
    assert world.spool_files()
    assert caller("abort").fields == {"state": b"aborted"}
    world.check_nothing_left()
    assert caller("abort").fields == {"state": b"aborted"}
    assert caller("status").fields["reason"] == b"aborted"
    assert caller.refusal("put_ciphertext", 0, CIPHERTEXT).code == "aborted"


def test_abort_waits_for_servers_but_not_for_ever(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller("assign", SI)
    caller.put_all()
    world.grid.servers[3].hang()
    before = world.clock.seconds()
    caller("abort")
    assert world.clock.seconds() - before == pytest.approx(5)
    assert world.grid.leftovers() == ["server3"]


def test_when_the_last_share_is_closed_the_spool_is_empty(world: World) -> None:
    complete(world)
    world.wait(1)
    assert not world.spool_files()


def test_an_upload_that_is_forgotten_takes_nothing_with_it_that_still_hangs() -> None:
    """A hung server keeps a share, and so the spool, from being done with; but not for ever."""
    for_ever = 100 * DAY
    patient = attrs.evolve(SMALL, stall_least=for_ever, stall_most=for_ever, placing_patience=for_ever)
    with World(settings=patient) as world:
        world.grid.servers[0].plan("publish", 1, Fault.HANG)
        complete(world)
        world.wait(HOUR)
        assert world.spool_files()
        world.wait(SMALL.result_retention + 2 * SMALL.sweep_interval)
        assert not world.spool_files()


# -- counting -----------------------------------------------------------------------------------------------


def test_counters(world: World) -> None:
    complete(world, 1)
    caller = Caller(world, 2)
    caller.open()
    caller("put_ciphertext", 0, bytes(1000))
    caller("put_ciphertext", 500, bytes(500))  # a repeat
    caller.refusal("put_ciphertext", 2000, bytes(100))
    assert counted(world) == {"opened": 2, "finished": 1, "bytes_received": 4000}
    assert {name for name, value in world.uploads.get_stats().items() if value} == {
        "streaming_helper.opened", "streaming_helper.finished", "streaming_helper.bytes_received",
        "streaming_helper.open"}


def counted(world: World) -> dict[str, int]:
    """The counters that are not 0."""
    return {name: value for name, value in world.uploads.counters.items() if value}


def test_uploads_without_a_result_are_counted_by_how_they_ended(world: World) -> None:
    aborted, failed, expired = (Caller(world, number) for number in range(3))
    aborted.open()
    aborted("abort")
    failed.open()
    failed("assign", SI)
    for server in world.grid.servers:
        server.refuse_from_now_on()
    failed("put_ciphertext", 0, bytes(1000))
    world.wait(60)
    assert failed.state() == "failed"
    expired.open()
    world.wait(SMALL.empty_expiry + 2 * SMALL.sweep_interval)
    assert expired.state() == "expired"
    counters = counted(world)
    assert (counters["aborted"], counters["failed"], counters["expired"]) == (1, 1, 1)


def test_what_servers_do_to_shares_is_counted(world: World) -> None:
    caller = Caller(world)
    caller.open()
    refusing, hanging = world.grid.in_order(SI)[:2]
    refusing.refuse_from_now_on()
    hanging.hang()
    caller("assign", SI)
    caller("put_ciphertext", 0, bytes(1000))
    world.wait(120)
    counters = counted(world)
    assert counters["servers_stalled"] == 1
    assert counters["shares_lost"] == counters["shares_rehomed"] >= 2


def test_uploads_that_are_resumed_are_counted_if_anything_is_left_to_do_for_them(world: World) -> None:
    complete(world, 1)
    Caller(world, 2).open()
    aborted = Caller(world, 3)
    aborted.open()
    aborted("abort")
    Caller(world, 4).open()
    world.wait(1)
    world.restart()
    assert counted(world) == {"resumed": 2}
    assert world.uploads.get_stats()["streaming_helper.open"] == 2


def test_an_upload_whose_finish_is_asked_for_twice_is_counted_once(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller.put_all()
    for results in [caller.begin("finish", *finish_arguments()) for _ in range(3)]:
        world.wait(1)
        assert results[0].fields["state"] == b"finished"
    assert world.uploads.counters["finished"] == 1


def test_an_upload_that_is_finished_while_nobody_asks_is_counted(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller.put_all()
    for server in world.grid.servers:
        server.plan("publish", 1, Fault.DISCONNECT)
    assert caller("finish", *finish_arguments()).code == "waiting"
    for server in world.grid.servers:
        server.reconnect()
    world.wait(60)
    assert caller.state() == "finished"
    assert world.uploads.counters["finished"] == 1


@pytest.mark.parametrize(("away", "soon"), [(60, 6), (DAY, 61)])
def test_servers_that_are_gone_for_long_are_looked_for_less_often(world: World, away: int, soon: int) -> None:
    caller = Caller(world)
    caller.open()
    caller.put_all()
    for server in world.grid.servers:
        server.plan("publish", 1, Fault.DISCONNECT)
    assert caller("finish", *finish_arguments()).code == "waiting"
    world.wait(away)
    assert caller.state() == "publishing"
    for server in world.grid.servers:
        server.reconnect()
    world.wait(soon)
    assert caller.state() == "finished"


# -- the helper stops ---------------------------------------------------------------------------------------


def test_a_helper_that_stops_refuses_every_call_and_keeps_everything(world: World) -> None:
    one, other, done = Caller(world, 1), Caller(world, 2), complete(world, 3)
    one.open()
    one("assign", bytes(16))
    one.put_all()
    other.open()
    world.wait(1)
    world.hold_work()
    waiting = [one.begin("put_ciphertext", 3000, bytes(10)), one.begin("put_ciphertext", 0, CIPHERTEXT)]
    world.turn()
    assert waiting == [[], []]
    held, files = world.grid.leftovers(), world.spool_files()
    assert held
    assert files
    world.uploads.stop()
    world.turn()
    assert [results[0].value.code for results in waiting] == ["helper-stopping"] * 2
    for caller in (one, other, done):
        for method, arguments in {**CALLS, "open": (PARAMETERS.to_wire(),)}.items():
            assert caller.refusal(method, *arguments).code == "helper-stopping"
    assert Caller(world, 4).refusal("open", PARAMETERS.to_wire()).code == "helper-stopping"
    world.release_work()
    world.wait(HOUR)
    assert (world.grid.leftovers(), world.spool_files()) == (held, files)
    assert sorted(r.state for r in world.records()) == ["finished", "open", "open"]
    assert not world.clock.getDelayedCalls()


def test_what_fails_while_the_helper_stops_takes_nothing_with_it(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller.put_all()
    upload = world.only_upload()
    world.uploads.stop()
    upload.store_failed("EIO")
    upload.tell(events.Failed(errors.InternalError("KeyError")))
    world.stop()
    world.start()
    assert Caller(world)("status").fields["durable"] == 3000
    Caller(world).finish()


def test_a_finish_that_waits_when_the_helper_stops_can_be_repeated(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller.put_all()
    world.grid.servers[3].hang()
    for server in world.grid.servers:
        server.plan("publish", 1, Fault.HANG)
    waiting = caller.begin("finish", *finish_arguments())
    world.wait(9)  # later it would be told of servers that do not answer
    assert waiting == []
    before = world.clock.seconds()
    world.stop()
    assert world.clock.seconds() == before  # it waits for no server
    world.start()
    assert Caller(world).finish().fields["ueb"] == expected(DATA, PARAMETERS).ueb


def test_an_abort_that_waits_for_servers_when_the_helper_stops_is_refused_and_stays(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller("assign", SI)
    caller.put_all()
    world.grid.servers[3].hang()
    waiting = caller.begin("abort")
    world.turn()
    world.uploads.stop()
    world.turn()
    assert waiting[0].value.code == "helper-stopping"
    world.stop()
    world.start()
    assert Caller(world)("abort").fields == {"state": b"aborted"}


# -- the ledger fails ---------------------------------------------------------------------------------------


def broken_from(world: World, first: Callable[[UploadRecord], bool], *, hangs: bool = False) -> None:
    """Start the helper again with a ledger whose disk fails (or `hangs`) from the first record on that is as `first`
    says, until `World.mend_ledger`."""
    broken = False

    def apply(file_apply: Callable[[list[Change]], None], changes: list[Change]) -> Deferred[None] | None:
        nonlocal broken
        if not broken and any(
                first(record_of(row)) for change in changes if change.sql == PUT_UPLOAD for row in change.rows):
            broken = True
            if not hangs:
                world.break_ledger(OSError(errno.EIO, "broken"))
        if broken and hangs:
            return Deferred()
        file_apply(changes)
        return None

    def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if function == world._ledger_file.apply:
            return world.in_thread(apply, function, *arguments, process=world.process)
        return world.in_thread(function, *arguments, process=world.process)

    world.stop()
    world.start(in_ledger_thread=in_thread)


def test_an_upload_that_cannot_be_recorded_is_not_opened(world: World) -> None:
    broken_from(world, lambda _record: True)
    caller = Caller(world)
    for _ in range(2):
        refusal = caller.refusal("open", PARAMETERS.to_wire())
        assert refusal.code == "spool-failed"
        assert refusal.fields() == {"reason": "ledger: EIO (Input/output error)"}
        assert caller.refusal("put_ciphertext", 0, CIPHERTEXT).code == "unknown-upload"
    assert not world.spool_files()
    assert world.uploads.get_stats()["streaming_helper.open"] == 0
    assert world.uploads.room.used == 0
    assert snapshot(world.uploads).not_recording == "ledger: EIO (Input/output error)"
    world.mend_ledger()
    world.wait(10)
    assert snapshot(world.uploads).not_recording == ""
    caller.open()
    caller.put_all()
    assert caller.finish().fields["ueb"] == expected(DATA, PARAMETERS).ueb


def test_a_repeated_open_of_an_upload_that_could_not_be_recorded_is_refused_like_the_first(world: World) -> None:
    """Its client had lost the connection, and repeated it before the ledger failed."""
    broken_from(world, lambda _record: True)
    caller = Caller(world)
    both = [caller.begin("open", PARAMETERS.to_wire()) for _ in range(2)]
    world.wait(1)
    world.mend_ledger()
    world.wait(10)
    assert [answers[0].value.code for answers in both] == ["spool-failed", "spool-failed"]
    caller.open()
    caller.put_all()
    assert caller.finish().fields["ueb"] == expected(DATA, PARAMETERS).ueb


def test_a_storage_index_that_cannot_be_recorded_is_not_acknowledged_before_it_is(world: World) -> None:
    broken_from(world, lambda record: record.storage_index is not None)
    caller = Caller(world)
    caller.open()
    waiting = caller.begin("assign", SI)
    world.wait(60)
    assert waiting == []
    world.mend_ledger()
    world.wait(10)
    assert waiting[0].fields == {"state": b"open"}
    assert [record.storage_index for record in world.records()] == [SI]


def test_ciphertext_goes_on_while_nothing_can_be_recorded(world: World) -> None:
    caller = Caller(world)
    caller.open()
    world.break_ledger()
    world.wait(2 * SMALL.sweep_interval)
    caller.put_all()
    other = Caller(world, 2)
    assert other.refusal("open", PARAMETERS.to_wire()).code == "spool-failed"
    waiting = caller.begin("assign", SI)
    world.turn()
    world.restart()
    assert waiting[0].check(HelperLost)
    assert Caller(world)("status").number("durable") == len(CIPHERTEXT)


@pytest.mark.parametrize("staging", [0, 10])
@pytest.mark.parametrize("pause", [10, HOUR])
def test_a_finish_whose_decision_cannot_be_recorded_waits_and_nothing_is_published(staging: int, pause: float) -> None:
    with World(10, staging=staging) as world, capturedLogs() as logged:
        broken_from(world, lambda record: record.state == "publishing")
        caller = Caller(world)
        caller.open()
        caller.put_all()
        waiting = caller.begin("finish", *finish_arguments())
        world.wait(pause)
        status = caller("status")
        assert (status.fields["state"], status.fields["paused"]) == (b"ready", 1)
        assert status.fields["waits-for"] == b"disk: ledger: EIO (Input/output error)"
        assert snapshot(world.uploads).waiting["disk"] == 1
        assert not any(server.published for server in world.grid.servers)
        world.mend_ledger()
        world.wait(10)
        assert waiting[0].fields["ueb"] == expected(DATA, PARAMETERS).ueb
        world.wait(200)
        world.check_shares(expected(DATA, PARAMETERS))
        assert not world.spool_files()
    texts = [formatEvent(event) for event in logged]
    assert ("nothing can be recorded now, ledger: EIO (Input/output error): what should be waits, new uploads are "
            "refused, and it is tried again every 5.0 s") in texts
    short = hashed_name(an_id(1))[:8]
    assert f"upload {short} waits for the disk of its records, ledger: EIO (Input/output error)" in texts
    assert any(text.startswith(f"upload {short} goes on after ") for text in texts)
    assert texts.count("the ledger is written again: all that waited is recorded") == 1


@pytest.mark.parametrize("staging", [0, 10])
def test_a_helper_killed_while_the_decision_cannot_be_recorded_has_published_nothing(staging: int) -> None:
    with World(10, staging=staging) as world:
        broken_from(world, lambda record: record.state == "publishing")
        caller = Caller(world)
        caller.open()
        caller.put_all()
        caller.begin("finish", *finish_arguments())
        world.wait(10)
        world.restart()
        assert not any(server.published for server in world.grid.servers)
        assert Caller(world).state() == "open"
        assert Caller(world).finish().fields["ueb"] == expected(DATA, PARAMETERS).ueb


def test_an_upload_may_be_aborted_while_nothing_can_be_recorded(world: World) -> None:
    broken_from(world, lambda record: record.state == "publishing")
    caller = Caller(world)
    caller.open()
    caller.put_all()
    waiting = caller.begin("finish", *finish_arguments())
    world.wait(10)
    aborted = caller.begin("abort")
    world.wait(60)
    assert waiting[0].value.code == "aborted"
    assert not aborted, "what is on the disk may be the decision to publish"
    assert world.spool_files()  # until it is recorded: the next run might find the upload open
    world.mend_ledger()
    world.wait(10)
    assert aborted[0].fields == {"state": b"aborted"}
    world.check_nothing_left()
    assert [record.state for record in world.records()] == ["aborted"]


def test_an_abort_is_answered_when_no_later_run_can_publish_the_upload_any_more(world: World) -> None:
    """The decision is on the disk, and its sync has not returned."""

    def in_ledger_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        result = function(*arguments)
        return Deferred() if "publishing" in {r.state for r in world.records()} else succeed(result)

    world.kill()
    world.start(in_ledger_thread)
    caller = Caller(world)
    caller.open()
    caller.put_all()
    waiting = caller.begin("finish", *finish_arguments())
    world.wait(10)
    aborted = caller.begin("abort")
    world.wait(60)
    assert waiting[0].value.code == "aborted"
    assert not aborted
    world.restart()
    world.wait(10)
    assert Caller(world).state() == "finished", "it was not answered, so it need not have been"


def test_nothing_expires_while_nothing_can_be_recorded() -> None:
    with World(settings=attrs.evolve(SMALL, empty_expiry=1500)) as world:
        caller = Caller(world)
        caller.open()
        world.break_ledger()
        world.wait(2 * HOUR)
        world.mend_ledger()
        world.wait(10)
        assert caller.state() == "open"


#: Numbers of ten servers in their order.
ORDER = b"".join(number.to_bytes(2, "big") for number in range(10))


@pytest.mark.parametrize(("method", "argument"), [("open", PARAMETERS.to_wire()), ("assign", SI), ("order", ORDER)],
                         ids=["open", "assign", "order"])
def test_a_helper_that_stops_while_nothing_can_be_recorded_says_so_to_who_waits(
        world: World, method: str, argument: object) -> None:
    """Seed 34283 of the simulation: the last two were refused as if the disk were to blame for good."""
    caller = Caller(world)
    caller.open()
    world.break_ledger()
    world.wait(2 * SMALL.sweep_interval)
    waiting = caller.begin(method, argument)
    world.wait(10)
    assert waiting == []
    world.uploads.stop()
    world.run(world.ledger.close())
    world.turn()
    assert waiting[0].value.code == "helper-stopping"


@pytest.mark.parametrize("staging", [0, 10])
def test_a_result_that_cannot_be_recorded_is_answered_all_the_same(staging: int) -> None:
    with World(10, staging=staging) as world:
        broken_from(world, lambda record: record.state == "finished")
        caller = Caller(world)
        caller.open()
        caller.put_all()
        assert caller.finish().fields["ueb"] == expected(DATA, PARAMETERS).ueb
        assert caller.state() == "finished"
        world.wait(200)
        assert world.spool_files()
        world.restart()
        (record,) = world.records()
        assert record.state == "publishing"
        world.mend_ledger()
        assert Caller(world).finish().fields["ueb"] == expected(DATA, PARAMETERS).ueb
        world.wait(200)
        world.check_shares(expected(DATA, PARAMETERS))


def test_a_result_that_is_recorded_late_ends_the_spool_then(world: World) -> None:
    broken_from(world, lambda record: record.state == "finished")
    caller = Caller(world)
    caller.open()
    caller.put_all()
    caller.finish()
    world.wait(60)
    assert world.spool_files()
    world.mend_ledger()
    world.wait(60)
    assert [record.state for record in world.records()] == ["finished"]
    assert not world.spool_files()
    assert world.uploads.room.used == 0


def test_a_kill_before_the_result_is_durable_loses_nothing(world: World) -> None:
    broken_from(world, lambda record: record.state == "finished", hangs=True)
    caller = Caller(world)
    caller.open()
    caller.put_all()
    waiting = caller.begin("finish", *finish_arguments())
    world.wait(60)
    assert waiting == []
    world.check_shares(expected(DATA, PARAMETERS))  # all of them are closed
    world.restart()
    assert Caller(world).finish().fields["ueb"] == expected(DATA, PARAMETERS).ueb
    world.wait(200)
    world.check_shares(expected(DATA, PARAMETERS))
    assert not world.spool_files()


# -- names --------------------------------------------------------------------------------------------------


def test_the_name_of_an_upload_is_a_hash_of_its_id(world: World) -> None:
    caller = Caller(world)
    caller.open()
    caller.put_all()
    (path,) = world.spool_files()
    assert path.name == hashed_name(an_id(1))
    assert len(path.name) == 52
    assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyz234567")


def test_settings_of_these_tests_are_the_defaults_but_for_sizes() -> None:
    assert Settings().server_wait == SMALL.server_wait == 10
    assert Settings().result_retention == SMALL.result_retention
