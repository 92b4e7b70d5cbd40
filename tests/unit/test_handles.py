"""Upload handles (client_shim/gateway/handles.py) over a real journal and a helper that may be away."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import attrs
import pytest
from allmydata import uri
from handles_world import PARAMETERS, Died, GatewayWorld
from test_log_secrets import Everything
from twisted.internet.defer import Deferred
from world import KEY, begin, expected, outcome, plaintext

from client_shim.cipher import Encryptor
from client_shim.errors import HelperMisbehaved, StockHelper
from client_shim.gateway.handle_errors import (
    AlreadyComplete,
    BadMetadata,
    BadSize,
    Cancelled,
    GatewayStopping,
    HandleExpired,
    HandleFailed,
    HelperAway,
    JournalFailed,
    JournalUnusable,
    LinkFailed,
    NotComplete,
    SizeConflict,
    SizeExceeded,
    TakenOver,
    TooManyHandles,
    UnknownHandle,
)
from client_shim.gateway.handle_records import METADATA_MAX, HandleState
from client_shim.gateway.handle_settings import HandleSettings
from client_shim.gateway.handles import GRACE, REST_AFTER, SWEEP_INTERVAL, Handle, HandleOptions, LinkTarget, Writer
from client_shim.reconnect import BACKOFF_MAX
from helper.errors import StreamingError
from helper.interfaces import SIZE_MAX

DATA = plaintext(5000)
CAP = expected(DATA, PARAMETERS).cap


@pytest.fixture
def world() -> Iterator[GatewayWorld]:
    with GatewayWorld() as world:
        yield world


def writer_of(world: GatewayWorld, handle: Handle) -> Writer:
    writer: Writer = world.result(handle.take_over())
    return writer


def again(world: GatewayWorld, handle: Handle) -> Handle:
    """The same handle in another life of the gateway."""
    world.restart()
    return world.handles.get(handle.id)


def literal(data: bytes) -> bytes:
    return bytes(uri.LiteralFileURI(data).to_string())


# -- writing ---------------------------------------------------------------------------------------------------


def test_one_writer_writes_and_closes(world: GatewayWorld) -> None:
    handle = world.create()
    assert len(handle.id) == 52
    writer = writer_of(world, handle)
    assert writer.offset == 0
    for start in range(0, len(DATA), 700):
        world.result(writer.write(DATA[start:start + 700]))
    assert world.result(writer.settle()) == writer.offset == len(DATA)
    assert handle.status.rate > 0
    assert world.result(writer.close()) == CAP
    assert world.result(writer.close()) == CAP
    assert world.result(writer_of(world, handle).close()) == CAP
    status = handle.status
    assert (status.state, status.cap, status.size, status.offset) == (HandleState.FINISHED, CAP, len(DATA), len(DATA))
    assert again(world, handle).status.cap == CAP


@pytest.mark.parametrize("size", [0, 1, 55])
def test_up_to_55_bytes_need_no_helper_and_survive(world: GatewayWorld, size: int) -> None:
    world.helper.up = False
    handle = world.create(size)
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:size // 2]))
    assert world.result(writer.settle()) == size // 2
    handle = again(world, handle)
    writer = writer_of(world, handle)
    assert writer.offset == size // 2
    world.result(writer.write(DATA[size // 2:size]))
    assert world.result(writer.close()) == literal(DATA[:size])
    handle = again(world, handle)
    assert handle.status.cap == literal(DATA[:size])
    assert world.result(writer_of(world, handle).close()) == literal(DATA[:size])
    assert world.helper.connects == []


def test_the_helper_is_asked_at_byte_56(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:55]))
    world.result(writer.settle())
    assert world.helper.calls == []
    handle = again(world, handle)
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[55:56]))
    assert world.result(writer.settle()) == 56
    assert bytes(world.helper.only().received) == Encryptor(KEY).encrypt(DATA[:56])
    assert world.result(writer.close()) == expected(DATA[:56], PARAMETERS).cap


def test_a_declared_size_is_told_to_the_helper_and_kept_to(world: GatewayWorld) -> None:
    handle = world.create(100)
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:90]))
    assert isinstance(world.error(writer.write(DATA[90:101])), SizeExceeded)
    error = world.error(writer.close())
    assert isinstance(error, NotComplete)
    assert (error.declared, error.came) == (100, 90)
    assert isinstance(world.error(writer.set_size(99)), SizeConflict)
    world.result(writer.set_size(100))
    world.result(writer.write(DATA[90:100]))
    assert world.result(writer.close()) == expected(DATA[:100], attrs.evolve(PARAMETERS, size=100)).cap
    assert world.helper.only().wire[b"size"] == 100


def test_a_size_that_is_declared_later_survives(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:90]))
    for size in (-1, SIZE_MAX + 1):
        assert isinstance(world.error(writer.set_size(size)), BadSize)
    assert isinstance(world.error(writer.set_size(89)), SizeConflict)
    world.result(writer.set_size(100))
    handle = again(world, handle)
    assert handle.status.size == 100
    writer = writer_of(world, handle)
    assert isinstance(world.error(writer.set_size(101)), SizeConflict)
    world.result(writer.write(DATA[writer.offset:100]))
    assert world.result(writer.close()) == expected(DATA[:100], PARAMETERS).cap
    assert b"size" not in world.helper.only().wire


def test_nothing_follows_a_complete_file(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA))
    world.helper.up = False
    world.helper.cut()
    closing = outcome(begin(writer.close()))
    world.wait(1)
    assert handle.status.state is HandleState.COMPLETING
    assert isinstance(world.error(handle.take_over()), HelperAway)
    assert isinstance(closing[0].value, TakenOver)
    world.helper.up = True
    world.helper.fate = lambda method: "lost" if method == "finish" else "ok"
    later = writer_of(world, handle)
    assert later.offset == len(DATA)
    assert handle.status.state is HandleState.COMPLETING
    assert isinstance(world.error(later.write(b"more")), AlreadyComplete)
    world.helper.fate = lambda _method: "ok"
    assert world.result(later.close()) == CAP


def test_nothing_follows_while_it_is_being_journalled_that_the_file_is_complete(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA))
    world.result(writer.settle())
    closing = outcome(begin(writer.close()))  # its commit waits for a turn of the clock
    (newer,) = outcome(begin(handle.take_over()))
    assert handle.status.state is HandleState.OPEN
    assert isinstance(world.error(newer.write(b"more")), AlreadyComplete)
    assert isinstance(world.error(newer.set_size(len(DATA) + 1)), SizeConflict)
    assert world.result(newer.close()) == CAP
    assert isinstance(closing[0].value, TakenOver)
    assert world.helper.calls.count("finish") == 1


def test_two_handles_have_keys_and_upload_ids_of_their_own(world: GatewayWorld) -> None:
    first, second = world.create(), world.create()
    assert first.id != second.id
    assert first.record.key != second.record.key
    assert first.record.upload_id != second.record.upload_id


# -- one writer at a time --------------------------------------------------------------------------------------


def test_a_newer_writer_ends_the_older_one(world: GatewayWorld) -> None:
    handle = world.create()
    older = writer_of(world, handle)
    ended: list[StreamingError] = []
    older.on_ended = ended.append
    world.result(older.write(DATA[:300]))
    newer = writer_of(world, handle)
    assert newer.offset == 300
    assert [type(error) for error in ended] == [TakenOver]
    for call in (older.write(b"x"), older.settle(), older.close(), older.set_size(1)):
        assert isinstance(world.error(call), TakenOver)
    older.release()  # changes nothing
    world.result(newer.write(DATA[300:]))
    assert world.result(newer.close()) == CAP
    assert len(ended) == 1


def test_a_write_that_waits_ends_when_a_newer_writer_comes(world: GatewayWorld) -> None:
    handle = world.create()
    older = writer_of(world, handle)
    world.result(older.write(DATA[:100]))
    world.helper.up = False
    world.helper.cut()
    big = plaintext(1_000_000)
    waiting = outcome(begin(older.write(big)))
    world.wait(1)
    assert waiting == []
    claim = outcome(begin(handle.take_over()))
    assert isinstance(waiting[0].value, TakenOver)
    newest = outcome(begin(handle.take_over()))
    assert isinstance(claim[0].value, TakenOver)
    world.helper.up = True
    world.wait(60)
    writer = newest[0]
    assert 100 < writer.offset < 1_000_000
    content = (DATA[:100] + big)[:writer.offset] + DATA
    world.result(writer.write(DATA))
    assert world.result(writer.close()) == expected(content, PARAMETERS).cap


def test_released_it_goes_on_by_itself(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:1000]))
    writer.release()
    writer.release()
    assert not handle.status.writing
    assert isinstance(world.error(writer.write(b"x")), TakenOver)
    world.wait(5)
    assert handle.status.offset == 1000


# -- a helper that is away -------------------------------------------------------------------------------------


def test_a_writer_waits_for_a_helper_that_is_away(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:1000]))
    world.helper.up = False
    world.helper.cut()
    settling = outcome(begin(writer.settle()))
    world.wait(4000)
    assert settling == []
    assert handle.status.away == "helper-unreachable"
    world.helper.up = True
    world.wait(2 * BACKOFF_MAX)
    assert settling == [1000]
    assert handle.status.away == ""


def test_who_takes_over_is_sent_away_after_a_while(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:1000]))
    world.result(writer.settle())
    writer.release()
    world.helper.up = False
    world.helper.cut()
    before = world.clock.seconds()
    error = world.error(handle.take_over())
    assert isinstance(error, HelperAway)
    assert error.seconds > 0
    assert error.why == "helper-lost"
    assert world.clock.seconds() - before == world.settings.helper_wait
    world.helper.up = True
    world.wait(2 * BACKOFF_MAX)
    assert writer_of(world, handle).offset == 1000


def test_a_helper_that_was_never_there_is_waited_for(world: GatewayWorld) -> None:
    world.helper.up = False
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA))
    closing = outcome(begin(writer.close()))
    world.wait(4000)
    assert closing == []
    world.helper.up = True
    world.wait(2 * BACKOFF_MAX)
    assert closing == [CAP]


def test_a_wrong_furl_costs_no_upload() -> None:
    right: list[bool] = []

    async def connect() -> Any:
        if not right:
            raise StockHelper()
        return await world.helper.connect()

    with GatewayWorld(connect=connect) as world:
        handle = world.create()
        writer = writer_of(world, handle)
        world.result(writer.write(DATA))
        world.wait(100)
        error = world.error(handle.take_over())
        assert isinstance(error, HelperAway)
        assert error.why == "stock-helper"
        right.append(True)
        world.wait(2 * BACKOFF_MAX)
        assert world.result(writer_of(world, handle).close()) == CAP


# -- restarts --------------------------------------------------------------------------------------------------


def test_the_ring_is_sent_before_anybody_asks(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.helper.up = False
    world.result(writer.write(DATA[:3000]))
    world.wait(1)
    world.restart()
    world.helper.up = True
    world.wait(20)
    assert bytes(world.helper.only().received) == Encryptor(KEY).encrypt(DATA[:3000])


def test_what_is_complete_is_completed_before_anybody_asks(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.helper.up = False
    world.result(writer.write(DATA))
    begin(writer.close()).addErrback(lambda _failure: None)
    world.wait(1)
    world.restart()
    world.helper.up = True
    world.wait(20)
    assert world.handles.get(handle.id).status.cap == CAP


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_piece_of_work_of_the_journal(when: str) -> None:
    """Each time the client comes back, goes on from the offset stated with other bytes, and closes."""
    deaths: list[int] = []
    for piece in range(100):
        with GatewayWorld() as world:
            died = die_at(world, when, piece)
            cap, content = write_whatever_dies(world)
            assert cap == expected(content, PARAMETERS).cap
        if not died:
            break
        deaths.append(piece)
    assert len(deaths) > 8, "the journal works more often"


def write_whatever_dies(world: GatewayWorld) -> tuple[bytes, bytes]:
    """The cap, and the file as the client wrote it: each life other bytes where nothing was stated."""
    handle_id = None
    content = b""
    for life in range(3):
        with suppress(Died):
            if handle_id is None:
                handle_id = world.create().id
            handle = world.handles.get(handle_id)
            writer = writer_of(world, handle)
            if handle.status.state is HandleState.OPEN:
                more = plaintext(1500, life)
                content = content[:writer.offset] + more
                for start in range(0, len(more), 300):
                    world.result(writer.write(more[start:start + 300]))
                    world.wait(0.02)
                assert world.result(writer.settle()) == len(content)
            return world.result(writer.close()), content
        world.start()
    raise AssertionError("it dies once")


def test_a_stopped_gateway_has_all_that_it_took_in_its_journal(world: GatewayWorld) -> None:
    world.helper.up = False
    handle = world.create()
    writer = writer_of(world, handle)
    ended: list[StreamingError] = []
    writer.on_ended = ended.append
    taking = outcome(begin(writer.write(DATA)))
    world.result(world.handles.stop())
    assert taking == [None]
    assert [type(error) for error in ended] == [GatewayStopping]
    assert isinstance(world.error(handle.take_over()), GatewayStopping)
    with pytest.raises(GatewayStopping):
        world.handles.get(handle.id)
    world.helper.up = True
    handle = again(world, handle)
    assert writer_of(world, handle).offset == len(DATA)


# -- the upload has ended at the helper ------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["quota-exceeded", "spool-full", "expired", "internal-error"])
def test_a_refusal_ends_the_handle_for_good(world: GatewayWorld, code: str) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    ended: list[StreamingError] = []
    writer.on_ended = ended.append
    world.result(writer.write(DATA[:1000]))
    world.result(writer.settle())
    world.helper.fate = lambda method: code if method == "put_ciphertext" else "ok"
    world.result(writer.write(DATA[1000:2000]))
    error = world.error(writer.settle())
    assert isinstance(error, HandleFailed)
    assert error.why == code
    assert [type(each) for each in ended] == [HandleFailed]
    world.helper.fate = lambda _method: "ok"
    world.wait(1)
    for life in range(2):
        assert handle.status.state is HandleState.FAILED
        error = world.error(handle.take_over())
        assert isinstance(error, HandleFailed), life
        assert error.why == code
        assert handle.record.key is None
        handle = again(world, handle)


def test_an_upload_that_expired_while_nobody_wrote(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:1000]))
    world.result(writer.settle())
    writer.release()
    world.wait(REST_AFTER + 2 * SWEEP_INTERVAL)
    world.helper.only().ended = "expired"
    error = world.error(handle.take_over())
    assert isinstance(error, HandleFailed)
    assert error.why == "expired"


def test_a_helper_that_has_lost_what_it_acknowledged(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:1000]))
    world.result(writer.settle())
    writer.release()
    world.wait(REST_AFTER + 2 * SWEEP_INTERVAL)
    world.helper.status_fields = {"durable": 999}
    error = world.error(handle.take_over())
    assert isinstance(error, HandleFailed)
    assert error.why == HelperMisbehaved.code


def test_a_wrong_ueb_gives_no_cap(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA))
    world.result(writer.settle())
    world.helper.parameters = attrs.evolve(PARAMETERS, n=3)
    error = world.error(writer.close())
    assert isinstance(error, HandleFailed)
    assert error.why == "wrong-ueb"
    assert handle.status.cap is None


# -- cancel, expiry, limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["new", "short", "written", "away", "asleep", "completing", "finished", "failed"])
def test_cancel_at_any_time(world: GatewayWorld, moment: str) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    if moment != "new":
        world.result(writer.write(DATA[:20] if moment == "short" else DATA))
    if moment not in ("new", "short"):
        world.result(writer.settle())
    if moment == "asleep":
        writer.release()
        world.wait(REST_AFTER + 2 * SWEEP_INTERVAL)
    if moment in ("away", "completing"):
        world.helper.up = False
        world.helper.cut()
    closing: list[Any] = []
    if moment in ("completing", "finished"):
        closing = outcome(begin(writer.close()))
        world.wait(1)
    if moment == "failed":
        world.helper.fate = lambda _method: "spool-failed"
        world.error(writer.close())
        world.helper.fate = lambda _method: "ok"
    world.result(handle.cancel())
    world.result(handle.cancel())
    if moment == "completing":
        assert isinstance(closing[0].value, Cancelled)
    for _life in range(2):
        with pytest.raises(UnknownHandle):
            world.handles.get(handle.id)
        assert world.handles.all() == []
        world.restart()
    assert isinstance(world.error(handle.take_over()), StreamingError)
    if moment in ("written", "asleep"):
        assert world.helper.only().ended == "aborted"
    world.wait(100)
    if moment in ("new", "short"):
        assert world.helper.uploads == {}


def test_ids_that_cannot_be_are_unknown(world: GatewayWorld) -> None:
    handle = world.create()
    for wrong in ("", handle.id.upper(), handle.id[:-1], handle.id + "a", handle.id + "\n", "../" * 17 + "a", "a" * 52,
                  "\u0661" * 52, "%2e" * 18):
        with pytest.raises(UnknownHandle):
            world.handles.get(wrong)
    assert world.handles.get(handle.id) is handle


def test_idle_handles_rest_and_wake(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:1000]))
    world.result(writer.settle())
    writer.release()
    world.wait(REST_AFTER + 2 * SWEEP_INTERVAL)
    assert world.helper.link is not None
    assert world.helper.link._lost == [], "the link to the helper holds nothing of a handle that rests"
    assert handle.status.offset == 1000
    writer = writer_of(world, handle)
    assert writer.offset == 1000
    world.result(writer.write(DATA[1000:]))
    assert world.result(writer.close()) == CAP


def test_expiry(world: GatewayWorld) -> None:
    settings = world.settings
    idle, busy = world.create(metadata=b"about it"), world.create()
    writer = writer_of(world, idle)
    world.result(writer.write(DATA[:1000]))
    world.result(writer.settle())
    writer.release()
    assert idle.status.metadata == b"about it"
    due = idle.status.expires
    assert due == pytest.approx(world.epoch + world.clock.seconds() + settings.handle_expiry)
    writer_of(world, busy)
    world.wait(settings.handle_expiry - 60)
    assert world.handles.get(idle.id) is idle
    world.wait(60 + 2 * SWEEP_INTERVAL)
    for _life in range(2):
        with pytest.raises(HandleExpired):
            world.handles.get(idle.id)
        assert [status.id for status in world.handles.all()] == [busy.id]
        world.restart()
    assert world.helper.only().ended == "aborted"
    world.wait(settings.handle_expiry + GRACE + 2 * SWEEP_INTERVAL)
    with pytest.raises(UnknownHandle):
        world.handles.get(idle.id)


def test_results_are_forgotten_after_a_while(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA))
    assert world.result(writer.close()) == CAP
    writer.release()
    world.wait(world.settings.result_retention - 60)
    assert world.handles.get(handle.id).status.cap == CAP
    world.wait(60 + 2 * SWEEP_INTERVAL)
    with pytest.raises(UnknownHandle):
        world.handles.get(handle.id)


@pytest.mark.parametrize("jump", [365 * 24 * 3600, -365 * 24 * 3600])
def test_a_clock_that_jumps_expires_nothing_at_once(world: GatewayWorld, jump: float) -> None:
    handle = world.create()
    world.wait(GRACE + SWEEP_INTERVAL)
    world.epoch += jump
    world.wait(GRACE - 2 * SWEEP_INTERVAL)
    writer = writer_of(world, world.handles.get(handle.id))
    writer.release()
    world.wait(GRACE)
    assert world.handles.get(handle.id) is handle


def test_limits() -> None:
    with GatewayWorld(settings=HandleSettings(handles_max=2)) as world:
        ended = []
        for _ in range(3):
            handle = world.create(0)
            world.result(writer_of(world, handle).close())
            ended.append(handle)
            handle._writer.release()  # type: ignore[union-attr]
            world.wait(1)
        world.create()
        world.create()
        error = world.error(world.handles.create(_options()))
        assert isinstance(error, TooManyHandles)
        assert error.limit == 2
        world.wait(2 * SWEEP_INTERVAL)
        with pytest.raises(UnknownHandle):
            world.handles.get(ended[0].id)
        assert world.handles.get(ended[1].id) is ended[1]


def test_options_are_checked(world: GatewayWorld) -> None:
    assert isinstance(world.error(world.handles.create(_options(size=-1))), BadSize)
    assert isinstance(world.error(world.handles.create(_options(size=SIZE_MAX + 1))), BadSize)
    assert isinstance(world.error(world.handles.create(_options(metadata=bytes(METADATA_MAX + 1)))), BadMetadata)


def _options(**values: Any) -> Any:
    return HandleOptions(**values)


def test_all_handles_together_are_bounded() -> None:
    with GatewayWorld(settings=HandleSettings(ring_memory=300_000)) as world:
        world.helper.up = False
        handles = [world.create() for _ in range(8)]
        writers = [writer_of(world, handle) for handle in handles]
        for writer in writers:
            begin(writer.write(bytes(1_000_000))).addErrback(lambda _failure: None)
        world.wait(60)
        received = [handle.status.received for handle in handles]
        assert 250_000 < sum(received) <= 300_000
        assert len(world.journal_bytes()) < 4_000_000
        world.result(handles[0].cancel())  # makes room
        world.wait(1)
        assert sum(handle.status.received for handle in handles[1:]) > sum(received[1:])


# -- linking -----------------------------------------------------------------------------------------------------

LINK = LinkTarget(b"URI:DIR2:secret:secret", "name of the file")


def test_a_finished_file_is_linked(world: GatewayWorld) -> None:
    handle = world.create(link=LINK)
    writer = writer_of(world, handle)
    world.result(writer.write(DATA))
    assert world.result(writer.close()) == CAP
    assert world.linked == [(LINK, CAP)]
    assert handle.record.link is None
    world.restart()
    world.wait(10)
    assert world.linked == [(LINK, CAP)]


def test_killed_while_linking_it_is_linked_again(world: GatewayWorld) -> None:
    handle = world.create(link=LINK)
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:20]))
    link = world.link
    world.link = lambda _target, _cap: begin(_never())
    begin(writer.close()).addErrback(lambda _failure: None)
    world.wait(1)
    assert handle.status.state is HandleState.LINKING
    world.link = link
    handle = again(world, handle)
    world.wait(1)
    assert world.linked == [(LINK, literal(DATA[:20]))]
    assert handle.status.cap == literal(DATA[:20])


async def _never() -> None:
    await Deferred()


@pytest.mark.parametrize("kind", ["refused", "broken"])
def test_linking_that_fails_gives_the_cap(world: GatewayWorld, kind: str) -> None:
    world.link_fails = StockHelper() if kind == "refused" else ZeroDivisionError("URI:DIR2:secret")
    handle = world.create(link=LINK)
    writer = writer_of(world, handle)
    world.result(writer.write(DATA))
    with Everything() as everything:
        error = world.error(writer.close())
    assert isinstance(error, LinkFailed)
    assert error.cap == CAP
    assert error.why == ("stock-helper" if kind == "refused" else "internal-error")
    assert CAP.decode() not in error.text() + repr(error) + repr(error.fields())
    assert "secret" not in everything.text
    handle = again(world, handle)
    assert handle.status.cap == CAP
    assert isinstance(world.error(writer_of(world, handle).close()), LinkFailed)


# -- the journal -------------------------------------------------------------------------------------------------


def test_a_journal_that_fails_pauses_everything_and_costs_nothing(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:1000]))
    world.result(writer.settle())
    ended: list[StreamingError] = []
    writer.on_ended = ended.append
    full = [True]

    def fail(name: str) -> None:
        if full[0] and name == "apply":
            raise sqlite3.OperationalError("database or disk is full")

    world.fail_work = fail
    begin(writer.write(DATA[1000:2000])).addErrback(lambda _failure: None)
    world.wait(1)
    assert [type(error) for error in ended] == [JournalFailed]
    assert isinstance(world.error(world.handles.create(_options())), JournalFailed)
    with pytest.raises(JournalFailed):
        world.handles.get(handle.id)
    assert len(world.helper.seen) == 1000, "what is not in the journal is not sent"
    full[0] = False
    world.wait(30)
    handle = world.handles.get(handle.id)
    writer = writer_of(world, handle)
    assert writer.offset == 1000
    other = plaintext(4000, 7)
    world.result(writer.write(other))
    assert world.result(writer.close()) == expected(DATA[:1000] + other, PARAMETERS).cap


def test_a_journal_without_room_goes_on_when_there_is_some(world: GatewayWorld) -> None:
    """SQLite says so itself here, in the middle of a transaction."""
    world.helper.up = False
    handle = world.create()
    writer = writer_of(world, handle)
    world.result(writer.write(DATA[:50]))
    world.result(writer.settle())
    world.file._database._db.execute("PRAGMA max_page_count = 1")  # what it has now is the least it can be set to
    ended: list[StreamingError] = []
    writer.on_ended = ended.append
    big = plaintext(100_000, 1)
    begin(writer.write(big)).addErrback(lambda _failure: None)
    world.wait(1)
    (error,) = ended
    assert isinstance(error, JournalFailed)
    assert error.reason == "SQLITE_FULL"
    world.helper.up = True
    world.wait(30)  # it is opened anew, and has room
    writer = writer_of(world, world.handles.get(handle.id))
    assert writer.offset == 50
    world.result(writer.write(DATA))
    assert world.result(writer.close()) == expected(DATA[:50] + DATA, PARAMETERS).cap


def test_a_damaged_journal_stops_the_start(world: GatewayWorld) -> None:
    handle = world.create()
    writer = writer_of(world, handle)
    world.helper.up = False
    world.result(writer.write(DATA))
    world.wait(1)
    world.kill()
    path = world.directory / "journal.sqlite"
    journal = sqlite3.connect(path)
    journal.execute("UPDATE ring SET data = zeroblob(length(data))")
    journal.commit()
    journal.close()
    with pytest.raises(JournalUnusable, match="ciphertext is not what was written"):
        world.start()
    world.helper.up = True
    connects = len(world.helper.connects)
    world.wait(100)
    assert len(world.helper.connects) == connects, "nothing of it is sent"


def test_no_plaintext_is_ever_in_the_journal_and_no_secret_in_a_log(world: GatewayWorld) -> None:
    marker = b"Canary-0815-4711"
    secret = base64.b32encode(KEY).decode().lower().rstrip("=")
    small, large = world.create(metadata=b"m"), world.create(link=LINK)
    ids = [(handle.id, handle.record.upload_id) for handle in (small, large)]

    def look() -> None:
        assert marker not in world.journal_bytes()
        for handle_id, _upload_id in ids:
            assert handle_id.encode() in world.journal_bytes(), "the test looks at the right files"

    with Everything() as everything:
        writer = writer_of(world, small)
        world.result(writer.write(marker + b"!"))
        world.result(writer.settle())
        look()
        assert world.result(writer.close()) == literal(marker + b"!")
        look()
        assert literal(marker + b"!")[8:-3] not in world.journal_bytes()
        writer = writer_of(world, large)
        for _ in range(50):
            world.result(writer.write(marker * 10))
        look()
        world.helper.fate = lambda method: "internal-error" if method == "finish" else "ok"
        world.error(writer.close())
        world.restart()
        look()
        world.wait(100)
    text = everything.text
    for handle_id, upload_id in ids:
        assert handle_id not in text
        assert upload_id.hex() not in text  # type: ignore[union-attr]
        assert repr(upload_id)[2:-1] not in text
    for each in (secret, KEY.hex(), repr(KEY)[2:-1], "URI:", "name of the file"):
        assert each not in text


def die_at(world: GatewayWorld, when: str, piece: int) -> list[bool]:
    """The process ends at a piece of work of its journal; the list is not empty once it has."""
    left, died = [piece], []

    def work(_name: str) -> None:
        left[0] -= 1
        if left[0] < 0 and not died:
            died.append(True)
            world.kill()

    if when == "before":
        world.before_work = work
    else:
        world.after_work = work
    return died
