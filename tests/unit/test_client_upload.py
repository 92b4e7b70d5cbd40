"""A client's upload (client_shim/upload.py), against a whole helper in memory, honest or lying."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import attrs
import pytest
from allmydata import uri
from fakes import Fault
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from world import (
    KEY,
    SMALL,
    ProcessClock,
    Stuck,
    WireLink,
    World,
    begin,
    expected,
    outcome,
    plaintext,
    with_size,
    write_all,
)

from client_shim.cipher import Encryptor, PlaintextDigests
from client_shim.disclosure import RevealStorageIndex
from client_shim.errors import (
    DeclaredSize,
    HelperLost,
    HelperMisbehaved,
    HelperRefused,
    HelperUnreachable,
    UploadClosed,
    UploadError,
    UploadInterrupted,
    Waiting,
    WrongUEB,
)
from client_shim.helper_upload import WAITING_PATIENCE
from client_shim.upload import PIECE, WORTH_A_THREAD, Progress, StreamingUpload
from client_shim.window import WINDOW_MIN
from helper.foolscap_edge import WireAnswer
from helper.interfaces import LARGEST_MESSAGE
from helper.parameters import Parameters

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(5000)
CAP = expected(DATA, PARAMETERS).cap


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def fails(world: World, call: Any, kind: type[UploadError]) -> Any:
    with pytest.raises(kind) as caught:
        world.run(call)
    return caught.value


def assert_failed_for_good(world: World, upload: StreamingUpload, error: UploadError) -> None:
    """Every later call raises the same error; abort does not."""
    for call in (upload.write(b"more"), upload.close(), upload.open(), upload.write(b"")):
        assert fails(world, call, UploadError) is error
    world.run(upload.abort())
    assert fails(world, upload.close(), UploadError) is error


def check_key_use(link: WireLink, key: bytes, data: bytes) -> None:
    """What went over the wire is the one ciphertext of `data`, every byte at its own offset and at no other."""
    ciphertext = Encryptor(key).encrypt(data)
    for method, arguments in link.sent:
        if method == "put_ciphertext":
            _upload_id, offset, sent = arguments
            assert sent == ciphertext[offset:offset + len(sent)]


# -- any way to write -----------------------------------------------------------------------------------------


@given(data=st.data(), size=st.integers(0, 4000), declared=st.booleans())
def test_any_split_into_writes_gives_the_same_cap(data: st.DataObject, size: int, declared: bool) -> None:
    content = plaintext(size)
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=12)))
    largest = data.draw(st.sampled_from([16384, 100, 7]))
    parameters = Parameters(*data.draw(st.sampled_from([(1, 1, 1), (2, 3, 3), (3, 7, 10)])), 500)
    with World(settings=attrs.evolve(SMALL, largest_message=largest)) as world:
        link = world.link()
        upload = world.upload(with_size(parameters, size if declared else None), link)
        for start, end in zip([0, *cuts], [*cuts, size], strict=True):
            world.run(upload.write(content[start:end]))
        assert world.run(upload.close()) == expected(content, parameters).cap
        check_key_use(link, KEY, content)
        world.wait(1)
        if size > 55:
            world.check_shares(expected(content, parameters))
        else:
            assert not link.sent


def test_one_huge_write(world: World) -> None:
    parameters = Parameters(3, 7, 10, 128 * 1024)
    content = plaintext(1_500_000)
    assert world.run(write_all(world.upload(parameters), content, len(content))) == expected(content, parameters).cap


@pytest.mark.parametrize("view", [True, False])
def test_what_was_written_may_be_changed_afterwards(world: World, view: bool) -> None:
    upload = world.upload(PARAMETERS)
    for start in range(0, len(DATA), 40):
        buffer = bytearray(DATA[start:start + 40])
        written: Any = memoryview(buffer) if view else buffer
        world.run(upload.write(written))
        buffer[:] = bytes(len(buffer))
    assert world.run(upload.close()) == CAP


def test_without_a_given_key_every_upload_has_its_own(world: World) -> None:
    caps = set()
    for _ in range(3):
        link = world.link()

        async def connect(link: WireLink = link) -> WireLink:
            return link

        cap = world.run(write_all(StreamingUpload(connect, PARAMETERS, world.clock), DATA))
        caps.add(cap)
        check_key_use(link, uri.from_string(cap).key, DATA)
    assert len(caps) == 3


def test_upload_ids_are_32_bytes_and_all_different(world: World) -> None:
    link = world.link()
    for _ in range(3):
        world.run(world.upload(PARAMETERS, link).write(DATA[:100]))
    opened = [arguments[0] for method, arguments in link.sent if method == "open"]
    assert {len(upload_id) for upload_id in opened} == {32}
    assert len(set(opened)) == 3


def test_the_storage_index_is_told_right_after_open(world: World) -> None:
    link = world.link()
    world.run(world.upload(PARAMETERS, link).write(DATA[:100]))
    assert link.methods() == ["open", "assign", "put_ciphertext"]


def test_a_helper_that_needs_no_storage_index_is_not_told(world: World) -> None:
    link = world.link()
    link.lie = lambda method, wire: ({**wire[0], b"storage-index-needed": 0}, wire[1]) if method == "open" else wire
    assert world.put(DATA, PARAMETERS, link) == CAP
    assert "assign" not in link.methods()


SEEDS = b"".join(bytes([20]) + bytes([i]) * 20 for i in range(10))


def telling(open_fields: dict[bytes, Any], later: int | None = None) -> Callable[[str, WireAnswer], Any]:
    """Changes the answer to open, and says in that to the first put_ciphertext whether the SI is needed."""
    told: list[str] = []

    def lie(method: str, wire: WireAnswer) -> Any:
        told.append(method)
        if method == "open":
            return {**wire[0], **open_fields}, wire[1]
        if method == "put_ciphertext" and later is not None and told.count(method) == 1:
            return {**wire[0], b"storage-index-needed": later}, wire[1]
        return ({b"code": b"ok", b"state": b"open"}, []) if method == "order" else wire

    return lie


@pytest.mark.parametrize(("reveal", "needed", "later", "assigned"), [
    (RevealStorageIndex.AUTO, 1, 1, True), (RevealStorageIndex.AUTO, 0, None, False),
    (RevealStorageIndex.AUTO, 0, 0, False), (RevealStorageIndex.AUTO, 0, 1, True),
    (RevealStorageIndex.EARLY, 0, 1, True), (RevealStorageIndex.EARLY, 1, None, True),
    (RevealStorageIndex.AT_COMPLETION, 1, 1, False)])
def test_when_the_storage_index_is_told(world: World, reveal: RevealStorageIndex, needed: int, later: int | None,
                                        assigned: bool) -> None:
    link = world.link()
    link.lie = telling({b"storage-index-needed": needed}, later)
    assert world.run(write_all(world.upload(PARAMETERS, link, reveal=reveal), DATA)) == CAP
    assert link.methods().count("assign") == int(assigned)


def test_a_refused_assign_in_mid_stream_ends_the_upload(world: World) -> None:
    world.run(world.upload(PARAMETERS).write(DATA))
    link = world.link()
    link.lie = telling({b"storage-index-needed": 0}, later=1)
    assert fails(world, write_all(world.upload(PARAMETERS, link), DATA), HelperRefused).code == "storage-index-busy"


@pytest.mark.parametrize("seeds", [b"\x05abc", 7])
def test_malformed_seeds_end_the_upload(world: World, seeds: Any) -> None:
    link = world.link()
    link.lie = telling({b"permutation-seeds": seeds})
    upload = world.upload(PARAMETERS, link)
    assert_failed_for_good(world, upload, fails(world, upload.write(DATA), HelperMisbehaved))
    world.check_nothing_left()


def test_digests_see_all_plaintext(world: World) -> None:
    digests = PlaintextDigests(b"k" * 16, 1000)
    world.run(write_all(world.upload(PARAMETERS, digests=digests), DATA[:4500], 77))
    assert len(digests) == 5
    assert all(digests.matches(i, DATA[:4500][1000 * i:1000 * (i + 1)]) for i in range(5))


# -- small files ----------------------------------------------------------------------------------------------


async def no_helper() -> WireLink:
    raise AssertionError("there was no need to connect")


@pytest.mark.parametrize("size", [0, 1, 54, 55])
@pytest.mark.parametrize("declared", [True, False])
def test_up_to_55_bytes_need_no_helper(world: World, size: int, declared: bool) -> None:
    upload = StreamingUpload(no_helper, with_size(PARAMETERS, size if declared else None), world.clock)
    world.run(upload.open())
    for byte in DATA[:size]:
        world.run(upload.write(bytes([byte])))
    cap = world.run(upload.close())
    assert uri.from_string(cap).data == DATA[:size]
    assert cap == expected(DATA[:size], PARAMETERS).cap
    assert isinstance(fails(world, upload.close(), UploadError), UploadClosed)


def test_the_56th_byte_needs_one(world: World) -> None:
    link = world.link()
    upload = world.upload(PARAMETERS, link)
    world.run(upload.open())
    world.run(upload.write(DATA[:55]))
    assert not link.sent
    world.run(upload.write(DATA[55:56]))
    assert link.methods()[0] == "open"
    assert world.run(upload.close()) == expected(DATA[:56], PARAMETERS).cap


def test_a_size_that_is_known_to_need_one_is_opened_at_once(world: World) -> None:
    link = world.link()
    upload = world.upload(with_size(PARAMETERS, 56), link)
    world.run(upload.open())
    world.run(upload.open())
    assert link.methods() == ["open", "assign"]


# -- declared sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("declared", "came"), [(5000, 4999), (5000, 0), (5000, 55), (55, 54), (56, 55), (10, 0)])
def test_fewer_bytes_than_declared_end_the_upload(world: World, declared: int, came: int) -> None:
    upload = world.upload(with_size(PARAMETERS, declared))
    world.run(upload.open())
    if came:
        world.run(upload.write(DATA[:came]))
    error = fails(world, upload.close(), DeclaredSize)
    assert (error.declared, error.came) == (declared, came)
    assert "fewer" in error.text()
    assert_failed_for_good(world, upload, error)
    world.check_nothing_left()


@pytest.mark.parametrize(("declared", "came"), [(4999, 5000), (100, 5000), (0, 1), (55, 56)])
def test_more_bytes_than_declared_end_the_upload(world: World, declared: int, came: int) -> None:
    link = world.link()
    upload = world.upload(with_size(PARAMETERS, declared), link)
    world.run(upload.write(DATA[:came - 1][:declared]))
    error = fails(world, upload.write(DATA[declared:came]), DeclaredSize)
    assert (error.declared, error.came) == (declared, came)
    assert "more" in error.text()
    assert_failed_for_good(world, upload, error)
    world.check_nothing_left()
    check_key_use(link, KEY, DATA)


# -- the window -----------------------------------------------------------------------------------------------


def test_a_write_waits_when_the_window_is_full_and_goes_on_when_bytes_are_durable(world: World) -> None:
    upload = world.upload(PARAMETERS)
    world.run(upload.write(plaintext(100)))
    world.hold_work()
    data = plaintext(200_000, seed=1)
    results = outcome(begin(upload.write(data)))
    world.turn()
    assert not results
    progress = upload.progress
    assert WINDOW_MIN * 3 // 4 < progress.sent - progress.durable <= WINDOW_MIN
    assert progress.accepted == 200_100
    world.release_work()
    world.wait(60)
    assert results == [None]
    assert world.run(upload.close()) == expected(plaintext(100) + data, PARAMETERS).cap


def test_no_more_than_the_credit_is_on_its_way() -> None:
    with World(settings=attrs.evolve(SMALL, credit=10_000)) as world:
        upload = world.upload(PARAMETERS)
        world.run(upload.write(plaintext(100)))
        world.hold_work()
        results = outcome(begin(upload.write(plaintext(50_000))))
        world.turn()
        assert upload.progress.sent - upload.progress.durable <= 10_000
        world.release_work()
        world.wait(60)
        assert results == [None]


@pytest.mark.parametrize("largest", [1, 1000, 16384, LARGEST_MESSAGE])
def test_messages_are_no_larger_than_the_helper_wants(largest: int) -> None:
    with World(settings=attrs.evolve(SMALL, largest_message=largest)) as world:
        link = world.link()
        data = plaintext(600 if largest == 1 else 200_000)
        assert world.put(data, PARAMETERS, link, write_size=70_000) == expected(data, PARAMETERS).cap
        lengths = [len(arguments[2]) for method, arguments in link.sent if method == "put_ciphertext"]
        assert max(lengths) <= largest


def test_small_writes_are_gathered_while_something_is_on_its_way(world: World) -> None:
    link = world.link(latency=0.05)
    upload = world.upload(PARAMETERS, link)
    for start in range(0, 40_000, 100):
        world.run(upload.write(plaintext(40_000)[start:start + 100]))
    world.run(upload.close())
    assert link.methods().count("put_ciphertext") <= 6


def test_what_is_left_of_a_write_is_sent_when_nothing_is_on_its_way_any_more(world: World) -> None:
    """Nobody has to write again for it."""
    link = world.link(latency=0.05)
    upload = world.upload(PARAMETERS, link)
    world.run(upload.write(DATA[:100]))
    world.run(upload.write(DATA[100:200]))
    world.wait(1)
    assert upload.progress.durable == 200


@pytest.mark.parametrize(("rate", "size"), [(100_000, 1_000_000), (20_000, 200_000)])
def test_close_costs_about_a_second_on_a_slow_link(world: World, rate: int, size: int) -> None:
    link = world.link(latency=0.05, rate=rate)
    parameters = attrs.evolve(PARAMETERS, max_segment_size=10_000)
    upload = world.upload(parameters, link)
    data = plaintext(size)
    for start in range(0, size, 10_000):
        world.run(upload.write(data[start:start + 10_000]))
    before = world.clock.seconds()
    assert world.run(upload.close()) == expected(data, parameters).cap
    assert world.clock.seconds() - before <= max(1.5, 1.2 * WINDOW_MIN / rate)


def test_progress_only_goes_forward_and_ends_at_the_size(world: World) -> None:
    seen: list[Progress] = []
    upload = world.upload(with_size(PARAMETERS, 5000), world.link(latency=0.01), on_progress=seen.append)
    world.run(write_all(upload, DATA, 500))
    for before, after in pairwise(seen):
        assert before.durable <= after.durable
        assert before.sent <= after.sent
    for progress in seen:
        assert progress.durable <= progress.sent <= progress.accepted
    assert seen[-1] == upload.progress == Progress(5000, 5000, 5000, 5000)


# -- errors ---------------------------------------------------------------------------------------------------


def test_a_refusal_during_write_ends_the_upload_and_it_is_aborted_at_the_helper(world: World) -> None:
    link = world.link()
    upload = world.upload(PARAMETERS, link)
    world.run(upload.write(DATA[:1000]))
    link.lie = lambda method, wire: ({b"code": b"spool-failed", b"text": b"no room", b"reason": b"x"}, []) \
        if method == "put_ciphertext" else wire
    world.hold_work()
    results = outcome(begin(upload.write(plaintext(200_000))))
    world.release_work()
    world.wait(10)
    error = results[0].value
    assert isinstance(error, HelperRefused)
    assert (error.code, error.text(), error.fields()) == ("spool-failed", "no room", {"reason": "x"})
    assert "abort" in link.methods()
    assert_failed_for_good(world, upload, error)
    assert link.methods().count("abort") == 1
    world.check_nothing_left()


def test_an_error_between_two_calls_is_raised_by_the_next_and_told_at_once(world: World) -> None:
    link = world.link(latency=0.1)
    told: list[int] = []
    upload = world.upload(PARAMETERS, link, on_failed=lambda: told.append(1))
    world.run(upload.write(DATA[:1000]))
    assert not told
    link.lie = lambda method, wire: ({b"code": b"internal-error"}, []) if method == "put_ciphertext" else wire
    world.wait(1)
    assert told == [1]
    error = fails(world, upload.write(b"x"), HelperRefused)
    assert error.code == "internal-error"
    assert_failed_for_good(world, upload, error)
    world.check_nothing_left()


def test_a_refusal_during_close_ends_the_upload(world: World) -> None:
    link = world.link()
    upload = world.upload(PARAMETERS, link)
    for server in world.grid.servers[:4]:
        server.refuse_from_now_on()
    error = fails(world, write_all(upload, DATA), HelperRefused)
    assert error.code == "too-few-servers"
    assert error.fields() == {"have": 6, "need": 7}
    assert_failed_for_good(world, upload, error)
    world.check_nothing_left()


def test_a_refused_open_ends_the_upload(world: World) -> None:
    world.wait(60)
    world.grid.servers = world.grid.servers[:6]
    upload = world.upload(PARAMETERS)
    error = fails(world, upload.write(DATA), HelperRefused)
    assert error.code == "too-few-servers"
    assert_failed_for_good(world, upload, error)


def test_a_refused_assign_ends_the_upload(world: World) -> None:
    world.run(world.upload(PARAMETERS).write(DATA))
    other = world.upload(PARAMETERS)  # the same key, so the same storage index
    error = fails(world, write_all(other, DATA), HelperRefused)
    assert error.code == "storage-index-busy"
    assert_failed_for_good(world, other, error)


def test_a_helper_that_cannot_be_reached_ends_the_upload(world: World) -> None:
    async def connect() -> WireLink:
        raise HelperUnreachable("ConnectionRefusedError")

    upload = StreamingUpload(connect, PARAMETERS, world.clock)
    error = fails(world, upload.write(DATA), HelperUnreachable)
    assert_failed_for_good(world, upload, error)


@pytest.mark.parametrize("method", ["open", "assign", "put_ciphertext", "finish"])
def test_a_connection_that_stays_broken_ends_the_upload(world: World, method: str) -> None:
    link = world.link()
    link.breaks = lambda called, _count: called == method
    upload = world.upload(PARAMETERS, link, patience=60)
    before = world.clock.seconds()
    error = fails(world, write_all(upload, DATA), HelperLost)
    assert error.seconds == 60
    assert 60 <= world.clock.seconds() - before < 61
    assert_failed_for_good(world, upload, error)


def test_without_patience_a_connection_that_breaks_while_a_write_waits_ends_the_wait(world: World) -> None:
    link = world.link()
    upload = world.upload(PARAMETERS, link, patience=0)
    world.run(upload.write(DATA))
    world.hold_work()
    results = outcome(begin(upload.write(plaintext(200_000))))
    world.turn()
    assert not results
    link.cut()
    assert isinstance(results[0].value, HelperLost)


class Links:
    """A new link to the helper whenever one is wanted; the first breaks instead of its call number `breaks_at`, or,
    if `answered`, instead of answer number `breaks_at`."""

    def __init__(self, world: World, breaks_at: int, answered: bool) -> None:
        self.world = world
        self.made: list[WireLink] = []
        self._breaks_at = breaks_at
        self._answered = answered
        self._delivered = 0

    async def connect(self) -> WireLink:
        link = self.world.link(latency=0.01)
        if not self.made:
            if self._answered:
                link.lie = self._cut_at_answer
            else:
                link.breaks = lambda _method, count: count == self._breaks_at
        self.made.append(link)
        return link

    def _cut_at_answer(self, method: str, wire: WireAnswer) -> WireAnswer:
        self._delivered += 1
        if self._delivered == self._breaks_at + 1:
            self.made[0].cut()
            return {b"code": b"helper-stopping"}, []
        return wire


@pytest.mark.parametrize("answered", [True, False])
def test_cut_at_every_call_to_a_whole_helper(answered: bool) -> None:
    settings = attrs.evolve(SMALL, largest_message=700, credit=3000)
    for number in range(11):
        with World(settings=settings) as world:
            links = Links(world, number, answered)
            upload = StreamingUpload(links.connect, PARAMETERS, world.clock, key=KEY)
            assert world.run(write_all(upload, DATA, 900)) == CAP
            assert len(links.made) == 2
            for link in links.made:
                check_key_use(link, KEY, DATA)
            world.wait(1)
            world.check_shares(expected(DATA, PARAMETERS))


def test_a_lost_helper_is_told_between_calls(world: World) -> None:
    told: list[int] = []
    link = world.link()
    upload = world.upload(PARAMETERS, link, patience=0, on_failed=lambda: told.append(1))
    world.run(upload.write(DATA))
    link.cut()
    assert told == [1]
    error = fails(world, upload.close(), HelperLost)
    assert_failed_for_good(world, upload, error)


def test_a_lost_helper_after_the_end_is_no_failure(world: World) -> None:
    told: list[int] = []
    link = world.link()
    upload = world.upload(PARAMETERS, link, on_failed=lambda: told.append(1), on_paused=lambda *_: told.append(2))
    assert world.run(write_all(upload, DATA)) == CAP
    link.cut()
    world.wait(4000)
    assert not told


# -- abort ----------------------------------------------------------------------------------------------------


def test_abort_twice_and_every_later_call_says_it_is_closed(world: World) -> None:
    link = world.link()
    upload = world.upload(PARAMETERS, link)
    world.run(upload.write(DATA))
    world.run(upload.abort())
    world.check_nothing_left()
    world.run(upload.abort())
    assert link.methods().count("abort") == 1
    for call in (upload.write(b"x"), upload.close(), upload.open()):
        fails(world, call, UploadClosed)


def test_two_aborts_at_once_both_wait_for_the_helper(world: World) -> None:
    link = world.link(latency=0.5)
    upload = world.upload(PARAMETERS, link)
    world.run(upload.write(DATA))
    first, second = outcome(begin(upload.abort())), outcome(begin(upload.abort()))
    world.wait(0.9)
    assert not first
    assert not second
    world.wait(0.2)
    assert first == second == [None]
    assert link.methods().count("abort") == 1


def test_abort_ends_a_write_that_waits(world: World) -> None:
    upload = world.upload(PARAMETERS)
    world.run(upload.write(DATA))
    world.hold_work()
    results = outcome(begin(upload.write(plaintext(200_000))))
    world.turn()
    assert not results
    world.run(upload.abort())
    assert isinstance(results[0].value, UploadClosed)
    world.release_work()
    world.turn()
    world.check_nothing_left()


def test_abort_ends_a_close_that_waits(world: World) -> None:
    upload = world.upload(PARAMETERS)
    world.run(upload.write(DATA))
    world.hold_work()
    results = outcome(begin(upload.close()))
    world.turn()
    world.run(upload.abort())
    assert isinstance(results[0].value, UploadClosed)
    world.release_work()
    world.turn()
    world.check_nothing_left()


LONG_PARAMETERS = Parameters(3, 7, 10, 256 * 1024)


@pytest.mark.parametrize("sizes", [[WORTH_A_THREAD - 1, WORTH_A_THREAD, 57, 3 * PIECE + 1], [2 * PIECE], [1] * 60],
                         ids=["mixed", "whole pieces", "bytes"])
def test_what_a_thread_encrypts_is_what_we_would(world: World, sizes: list[int]) -> None:
    """In order, whether a piece goes to the thread or is too short for it."""
    data = plaintext(sum(sizes))
    asked = []

    def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        asked.append(len(arguments[0]))
        return deferLater(world.clock, 0.01, function, *arguments)

    upload = world.upload(LONG_PARAMETERS, in_thread=in_thread)
    start = 0
    for size in sizes:
        world.run(upload.write(data[start:start + size]))
        start += size
    assert world.run(upload.close()) == expected(data, LONG_PARAMETERS).cap
    assert all(WORTH_A_THREAD <= size <= PIECE for size in asked)
    assert sum(asked) >= sum(size for size in sizes if size >= PIECE)


@pytest.mark.parametrize("threads", [True, False])
def test_the_memory_of_a_write_may_be_used_again_when_it_is_taken(world: World, threads: bool) -> None:
    """For a literal's bytes, for less than a piece, and for more; not before the last of it is encrypted."""
    sizes = [40, 5, 100, WORTH_A_THREAD, PIECE + 70_000]
    data = plaintext(sum(sizes))
    buffer, taken = bytearray(max(sizes)), 0

    def on_taken() -> None:
        nonlocal taken
        taken += 1
        buffer[:] = bytes(len(buffer))

    def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return deferLater(world.clock, 0.01, function, *arguments)

    upload = world.upload(LONG_PARAMETERS, on_taken=on_taken, in_thread=in_thread if threads else None)
    start = 0
    for number, size in enumerate(sizes, 1):
        buffer[:size] = data[start:start + size]
        world.run(upload.write(memoryview(buffer)[:size]))
        assert taken == number
        start += size
    assert world.run(upload.close()) == expected(data, LONG_PARAMETERS).cap


def test_abort_while_a_thread_encrypts(world: World) -> None:
    link = world.link()
    thread: list[Deferred[None]] = []

    def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        thread.append(Deferred())
        return thread[-1].addCallback(lambda _none: function(*arguments))

    upload = world.upload(LONG_PARAMETERS, link, in_thread=in_thread)
    results = outcome(begin(upload.write(plaintext(PIECE))))
    world.wait(1)
    assert len(thread) == 1
    world.run(upload.abort())
    sent = link.methods().count("put_ciphertext")
    thread[0].callback(None)
    world.wait(1)
    assert isinstance(results[0].value, UploadClosed)
    assert link.methods().count("put_ciphertext") == sent == 0
    world.check_nothing_left()


def test_nothing_more_is_sent_after_abort(world: World) -> None:
    link = world.link(latency=0.1)
    upload = world.upload(PARAMETERS, link)
    world.run(upload.write(DATA[:1000]))
    world.run(upload.write(DATA[1000:1100]))  # waits for the answer to the first
    world.wait(0.15)  # the answer is on its way
    world.run(upload.abort())
    world.wait(5)
    assert link.methods()[-1] == "abort"
    assert link.methods().count("put_ciphertext") == 1


def test_abort_before_anything_was_written(world: World) -> None:
    link = world.link()
    upload = world.upload(PARAMETERS, link)
    world.run(upload.abort())
    assert not link.sent
    fails(world, upload.write(DATA), UploadClosed)


def test_abort_after_close_changes_nothing(world: World) -> None:
    link = world.link()
    upload = world.upload(PARAMETERS, link)
    assert world.run(write_all(upload, DATA)) == CAP
    world.run(upload.abort())
    assert "abort" not in link.methods()
    world.wait(1)
    world.check_shares(expected(DATA, PARAMETERS))
    fails(world, upload.write(b"x"), UploadClosed)
    fails(world, upload.close(), UploadClosed)


def test_abort_while_the_helper_is_being_found(world: World) -> None:
    async def connect() -> WireLink:
        return await Deferred()

    upload = StreamingUpload(connect, PARAMETERS, world.clock)
    results = outcome(begin(upload.write(DATA)))
    world.run(upload.abort())
    assert isinstance(results[0].value, UploadClosed)
    fails(world, upload.write(DATA), UploadClosed)


def test_abort_while_the_upload_is_being_opened_does_not_leave_it_open(world: World) -> None:
    link = world.link(latency=1.0)
    upload = world.upload(PARAMETERS, link)
    results = outcome(begin(upload.write(DATA)))
    world.wait(1.5)
    assert link.methods() == ["open"]
    world.run(upload.abort())
    world.wait(5)
    assert isinstance(results[0].value, UploadClosed)
    assert link.methods() == ["open", "abort"]
    assert world.only_upload().session.state.value == "aborted"


def test_abort_when_the_helper_is_gone_does_not_fail(world: World) -> None:
    link = world.link()
    upload = world.upload(PARAMETERS, link)
    world.run(upload.write(DATA))
    link.cut()
    world.run(upload.abort())


def test_calls_wait_for_those_before_them(world: World) -> None:
    upload = world.upload(PARAMETERS, world.link(latency=0.1))
    pending = [outcome(begin(upload.write(DATA[start:start + 1000]))) for start in range(0, 5000, 1000)]
    cap = outcome(begin(upload.close()))
    world.wait(5)
    assert pending == [[None]] * 5
    assert cap == [CAP]


def test_calls_that_wait_when_one_before_them_fails_fail_too(world: World) -> None:
    upload = world.upload(with_size(PARAMETERS, 1500), world.link(latency=0.1))
    pending = [outcome(begin(upload.write(DATA[start:start + 1000]))) for start in range(0, 3000, 1000)]
    cap = outcome(begin(upload.close()))
    world.wait(5)
    assert pending[0] == [None]
    assert all(results[0].value is pending[1][0].value for results in (*pending[1:], cap))


# -- a helper that lies ---------------------------------------------------------------------------------------


def with_ueb(change: Callable[[bytes], Any]) -> Callable[[str, WireAnswer], Any]:
    def lie(method: str, wire: WireAnswer) -> Any:
        if method != "finish":
            return wire
        ueb = wire[0][b"ueb"]
        assert isinstance(ueb, bytes)
        told = change(ueb)
        return {**wire[0], b"ueb": told} if told is not None else {b"code": b"ok"}, wire[1]

    return lie


UEB_FIELDS = sorted(expected(DATA, PARAMETERS).ueb_data)


def changed(field: str, how: str) -> Callable[[bytes], bytes]:
    def change(ueb: bytes) -> bytes:
        fields = uri.unpack_extension(ueb)
        if how == "missing":
            del fields[field]
        elif isinstance(fields[field], int):
            fields[field] += 1
        elif how == "shorter":
            fields[field] = fields[field][:-1]
        else:
            fields[field] = bytes([fields[field][0] ^ 1]) + fields[field][1:]
        return bytes(uri.pack_extension(fields))

    return change


LIES: dict[str, Callable[[bytes], Any]] = {
    **{f"{field} {how}": changed(field, how) for field in UEB_FIELDS for how in ("changed", "missing", "shorter")
       if not (field == "share_root_hash" and how == "changed")},
    "a field more": lambda ueb: uri.pack_extension({**uri.unpack_extension(ueb), "color": b"blue"}),
    "another order": lambda ueb: b"".join(sorted(ueb.split(b",")[:-1], reverse=True)),
    "another file's": lambda _ueb: expected(plaintext(5000, seed=1), PARAMETERS).ueb,
    "a shorter file's": lambda _ueb: expected(DATA[:4999], PARAMETERS).ueb,
    "another code's": lambda _ueb: expected(DATA, attrs.evolve(PARAMETERS, k=4)).ueb,
    "another segment size's": lambda _ueb: expected(DATA, attrs.evolve(PARAMETERS, max_segment_size=999)).ueb,
    "empty": lambda _ueb: b"",
    "garbage": lambda _ueb: b"\xff" * 300,
    "a number": lambda _ueb: 5,
    "none at all": lambda _ueb: None,
    "trailing bytes": lambda ueb: ueb + b"x",
    "twice": lambda ueb: ueb + ueb,
    "not UTF-8": lambda ueb: b"\xff:1:a," + ueb,
    "a size that is no number": lambda ueb: ueb.replace(b"size:4:5000", b"size:4:5o00"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_the_ueb_gives_no_cap(world: World, name: str) -> None:
    link = world.link()
    link.lie = with_ueb(LIES[name])
    upload = world.upload(PARAMETERS, link)
    error = fails(world, write_all(upload, DATA), WrongUEB)
    assert error.field in error.text()
    assert_failed_for_good(world, upload, error)


def test_the_field_that_differs_is_named(world: World) -> None:
    for field in set(UEB_FIELDS) - {"share_root_hash"}:
        link = world.link()
        link.lie = with_ueb(changed(field, "changed"))
        assert fails(world, write_all(world.upload(PARAMETERS, link), DATA), WrongUEB).field == field
        world.wait(1)


def test_a_lie_about_the_shares_of_the_file_gives_another_cap_that_reads_as_nothing(world: World) -> None:
    """share_root_hash covers what only the helper made: with another one readers find no valid share."""
    link = world.link()
    link.lie = with_ueb(changed("share_root_hash", "changed"))
    cap = world.put(DATA, PARAMETERS, link)
    assert cap != CAP
    assert uri.from_string(cap).key == KEY


@given(ueb=st.binary(max_size=200) | st.lists(st.tuples(st.sampled_from([
    *(name.encode() for name in UEB_FIELDS), b"x"]), st.binary(max_size=40) | st.integers(-9, 10**6).map(
        lambda i: b"%d" % i))).map(lambda fields: b"".join(b"%s:%d:%s," % (k, len(v), v) for k, v in fields)))
@settings(max_examples=settings().max_examples // 2)
def test_no_ueb_but_the_right_one_gives_a_cap(ueb: bytes) -> None:
    with World() as world:
        link = world.link()
        link.lie = with_ueb(lambda _ueb: ueb)
        fails(world, write_all(world.upload(PARAMETERS, link), DATA[:100]), WrongUEB)


@pytest.mark.parametrize(("method", "answer"), [
    ("open", {b"code": b"ok"}), ("open", {b"code": b"ok", b"credit": b"many", b"largest-message": 1}),
    ("open", {b"code": b"ok", b"credit": 1, b"storage-index-needed": 0}), ("put_ciphertext", {b"code": b"ok"}),
    ("put_ciphertext", {b"code": b"ok", b"durable": b"all"}),
    ("put_ciphertext", 5), ("open", None), ("finish", {b"code": 5, b"x": [1]}), ("assign", {b"a" * 100: 1}),
])
def test_answers_that_are_not_of_the_protocol_end_the_upload(world: World, method: str, answer: Any) -> None:
    link = world.link()
    link.lie = lambda called, wire: (answer, []) if called == method else wire
    upload = world.upload(PARAMETERS, link)
    error = fails(world, write_all(upload, DATA), HelperMisbehaved)
    assert_failed_for_good(world, upload, error)


@pytest.mark.parametrize("fields", [
    {b"credit": 0, b"largest-message": 0}, {b"credit": -5, b"largest-message": -1},
    {b"credit": 2**60, b"largest-message": 2**60}, {b"credit": 1, b"largest-message": 1}])
def test_strange_limits_do_no_harm(world: World, fields: dict[bytes, int]) -> None:
    link = world.link()
    link.lie = lambda method, wire: ({**wire[0], **fields}, wire[1]) if method == "open" else wire
    assert world.put(DATA[:300], PARAMETERS, link) == expected(DATA[:300], PARAMETERS).cap


def test_a_helper_that_claims_too_much_to_be_durable_makes_no_strange_progress(world: World) -> None:
    link = world.link()
    link.lie = lambda method, wire: ({**wire[0], b"durable": 2**60}, []) if method == "put_ciphertext" else wire
    seen: list[Progress] = []
    upload = world.upload(PARAMETERS, link, on_progress=seen.append)
    world.run(write_all(upload, DATA))
    assert all(progress.durable <= progress.sent for progress in seen)


def test_what_a_helper_says_is_made_printable(world: World) -> None:
    link = world.link()
    link.lie = lambda method, wire: (
        {b"code": b"\x1b[31mred", b"text": b"line\nline\x07\xff", b"reason": b"\x00"}, []) if method == "open" else wire
    error = fails(world, world.upload(PARAMETERS, link).write(DATA), HelperRefused)
    assert (str(error) + "".join(map(str, error.fields().values()))).isprintable()


# -- waiting --------------------------------------------------------------------------------------------------


def test_while_the_helper_waits_for_servers_finish_is_asked_again(world: World) -> None:
    for server in world.grid.servers[:4]:
        server.plan("publish", 1, Fault.DISCONNECT)
    link = world.link()
    results = outcome(begin(write_all(world.upload(PARAMETERS, link), DATA)))
    world.wait(30)
    assert not results
    assert 2 < link.methods().count("finish") <= 31
    for server in world.grid.servers:
        server.reconnect()
    world.wait(10)
    assert results == [CAP]


def test_a_clock_that_is_set_does_not_end_patience(world: World) -> None:
    link = world.link()
    link.lie = lambda method, wire: ({b"code": b"waiting", b"have": 3, b"need": 7}, []) if method == "finish" else wire
    clock = ProcessClock(world.clock)
    results = outcome(begin(write_all(world.upload(PARAMETERS, link, clock=clock), DATA)))
    world.wait(30)
    for jump in (2 * WAITING_PATIENCE, -3 * WAITING_PATIENCE):
        clock.shift(jump)
        world.wait(30)
        assert not results
    link.lie = lambda _method, wire: wire
    world.wait(10)
    assert results == [CAP]


def test_patience_ends(world: World) -> None:
    link = world.link()
    link.lie = lambda method, wire: ({b"code": b"waiting", b"have": 3, b"need": 7}, []) if method == "finish" else wire
    upload = world.upload(PARAMETERS, link)
    with pytest.raises(Waiting) as caught:
        world.run(write_all(upload, DATA), patience=2 * WAITING_PATIENCE)
    error = caught.value
    assert (error.have, error.need) == (3, 7)
    assert WAITING_PATIENCE <= error.seconds <= WAITING_PATIENCE + 5
    assert_failed_for_good(world, upload, error)


@pytest.mark.parametrize("during", ["the wait", "the call"])
def test_clocks_that_jump_do_not_use_patience_up(world: World, during: str) -> None:
    """Nor does a machine that sleeps; while it is awake it counts as before."""
    link = world.link(latency=0.25)
    link.lie = lambda method, wire: ({b"code": b"waiting", b"have": 3, b"need": 7}, []) if method == "finish" else wire
    results = outcome(begin(write_all(world.upload(PARAMETERS, link), DATA)))
    world.wait(10)
    for _ in range(5):
        asked = link.methods().count("finish")
        while not results and link.methods().count("finish") == asked:
            world.wait(0.05)
        world.wait(0.6 if during == "the wait" else 0.0)  # an answer takes half a second, the wait a whole one
        world.clock.advance(86400)
        world.wait(10)
    assert not results
    link.lie = lambda _method, wire: wire
    world.wait(5)
    assert results == [CAP]


def test_abort_while_the_helper_waits_for_servers(world: World) -> None:
    link = world.link()
    link.lie = lambda method, wire: ({b"code": b"waiting", b"have": 3, b"need": 7}, []) if method == "finish" else wire
    upload = world.upload(PARAMETERS, link)
    results = outcome(begin(write_all(upload, DATA)))
    world.wait(5)
    world.run(upload.abort())
    world.wait(2)
    assert isinstance(results[0].value, UploadClosed)


# -- one key, one ciphertext ------------------------------------------------------------------------------------


@given(data=st.data(), size=st.integers(56, 3000))
def test_no_offset_ever_carries_two_ciphertexts(data: st.DataObject, size: int) -> None:
    """Whatever breaks, and whatever a program does with an upload that has failed."""
    content = plaintext(size)
    breaks_at = data.draw(st.none() | st.integers(0, 12))
    refused_at = data.draw(st.none() | st.integers(0, 12))
    calls = data.draw(st.lists(st.sampled_from(["write", "write", "write", "wait", "close", "abort", "open"]),
                               max_size=20))
    with World(settings=attrs.evolve(SMALL, largest_message=100, credit=300)) as world:
        link = world.link(latency=0.1)
        link.breaks = lambda _method, count: count == breaks_at
        link.lie = lambda _method, wire: (
            {b"code": b"internal-error"}, []) if len(link.answers) == refused_at else wire
        upload = world.upload(PARAMETERS, link)
        written, pending = 0, []
        for call in calls:
            if call == "write":
                pending.append(outcome(begin(upload.write(content[written:written + 150]))))
                written += 150
            elif call == "wait":
                world.wait(0.15)
            else:
                pending.append(outcome(begin(getattr(upload, call)())))
        pending.append(outcome(begin(upload.abort())))
        world.wait(600)
        assert all(pending)
        check_key_use(link, KEY, content)
        for results in pending:
            failure = results[0]
            assert not hasattr(failure, "value") or isinstance(failure.value, UploadError)


def test_stuck_is_noticed(world: World) -> None:
    """The harness itself: a helper that never answers is not waited for."""
    with pytest.raises(Stuck):
        world.run(Deferred(), patience=5)


# -- calls that end before they are done ------------------------------------------------------------------------------


def check_interrupted(world: World, upload: StreamingUpload, kind: str) -> None:
    for call in (upload.write(b"more"), upload.close()):
        with pytest.raises(UploadInterrupted) as caught:
            world.run(call)
        assert caught.value.reason == kind
    world.wait(1)
    world.check_nothing_left()


def test_a_write_that_is_cancelled_leaves_no_hole(world: World) -> None:
    upload = world.upload(PARAMETERS, world.link(rate=10_000))
    world.run(upload.write(DATA))
    writing = begin(upload.write(plaintext(500_000)))
    world.wait(1)
    results = outcome(writing)
    writing.cancel()
    world.turn()
    assert results[0].type is CancelledError
    check_interrupted(world, upload, "CancelledError")


def test_a_write_that_is_cancelled_before_its_turn_is_missed_by_those_behind_it(world: World) -> None:
    upload = world.upload(PARAMETERS, world.link(rate=10_000))
    first, second, third = (begin(upload.write(plaintext(200_000, seed))) for seed in range(3))
    results = [outcome(d) for d in (first, second, third)]
    second.cancel()
    world.wait(100)
    assert [r[0].type for r in results] == [UploadInterrupted, CancelledError, UploadInterrupted]
    check_interrupted(world, upload, "CancelledError")


def test_a_close_that_is_cancelled_gives_no_cap_later(world: World) -> None:
    upload = world.upload(PARAMETERS)
    world.run(upload.write(DATA))
    for server in world.grid.servers:
        server.latency = 3.0
    closing = begin(upload.close())
    world.wait(1)
    outcome(closing)
    closing.cancel()
    world.wait(60)
    check_interrupted(world, upload, "CancelledError")


@pytest.mark.parametrize("taken", [0, 5000])
def test_what_cannot_be_written_ends_the_upload(world: World, taken: int) -> None:
    upload = world.upload(PARAMETERS)
    world.run(upload.write(DATA[:taken]))
    with pytest.raises(TypeError):
        world.run(upload.write(["no bytes"]))  # type: ignore[arg-type]
    check_interrupted(world, upload, "TypeError")
