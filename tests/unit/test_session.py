"""The rules of one upload (helper/session.py), as playbooks: events in, exact commands out.

Each playbook is named for the rule that it shows. All of them together take every transition there is.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from helper import errors
from helper.ciphertext import CiphertextHashes
from helper.events import (
    Abandoned,
    AbandonShares,
    AbortReceived,
    AdoptReceived,
    AnswerRuleMet,
    AssignReceived,
    BeginPlacing,
    Command,
    Compare,
    Compared,
    Complete,
    Completed,
    DropSpool,
    Failed,
    FinishReceived,
    ForgetCompletion,
    ForgetStorageIndex,
    IdleFor,
    MemoryWanted,
    PublishRecorded,
    PublishShares,
    PushedTo,
    PutReceived,
    RecordPublishing,
    RecordResult,
    Refuse,
    Reply,
    ResultRecorded,
    Resumed,
    SealShares,
    SharesReady,
    StagingEnough,
    Stopping,
    Store,
    Stored,
    StoreFailed,
    TooFewServers,
    TooFewShares,
    UseStorageIndex,
    YieldIndex,
)
from helper.interfaces import SIZE_MAX
from helper.parameters import Parameters
from helper.session import TRANSITIONS, Limits, Session, State

SI = b"storage-index-16"
OTHER_SI = b"another-si-of-16"
HASHES = (b"c" * 32, b"r" * 32)
UEB = b"the UEB"
LIMITS = Limits(credit=1000, pushing_lag=200, largest_message=400, contact_after=50)
PARAMETERS = Parameters(3, 7, 10, 90)
DATA = bytes(range(256)) * 8


@attrs.frozen
class Refused:
    """A Refuse in a form that can be compared."""

    call: int
    code: str
    fields: dict[str, int | str]


def refused(call: int, code: str, **fields: int | str) -> Refused:
    return Refused(call, code, fields)


def comparable(command: object) -> object:
    if isinstance(command, Refuse):
        return Refused(command.call, command.error.code, command.error.fields())
    return command


class Playbook:
    """Tells a session events and checks that it answers with exactly the commands expected."""

    def __init__(self, parameters: Parameters = PARAMETERS, limits: Limits = LIMITS) -> None:
        self.session = Session(parameters, limits)
        self.taken: set[tuple[State, State]] = set()

    def on(self, event: object, *commands: object) -> None:
        """`event` happens, and exactly `commands` are what is to be done about it."""
        said = [comparable(command) for command in self._tell(event)]
        assert said == list(commands)

    def given(self, *events: object) -> None:
        """`events` happened; what is done about them is another playbook's business."""
        for event in events:
            self._tell(event)

    def _tell(self, event: object) -> list[Command]:
        before = self.session.state
        commands = self.session.handle(event)
        if self.session.state is not before and not isinstance(event, Resumed):  # that is where a session begins
            self.taken.add((before, self.session.state))
        return commands

    def is_as(self, **values: object) -> None:
        """The session's attributes have these values."""
        assert {name: getattr(self.session, name) for name in values} == values

    def durable(self, size: int) -> None:
        """`size` bytes are received and durable."""
        offset = 0
        while offset < size:
            end = min(size, offset + LIMITS.largest_message)
            self.given(put(1000 + offset, offset, end - offset), Stored(end))
            offset = end


Play = Callable[[Playbook], None]
PLAYBOOKS: dict[str, tuple[Play, Callable[[], Playbook]]] = {}


def playbook(parameters: Parameters = PARAMETERS, limits: Limits = LIMITS) -> Callable[[Play], Play]:
    """Adds a playbook to those that are played."""

    def add(play: Play) -> Play:
        assert play.__name__ not in PLAYBOOKS
        PLAYBOOKS[play.__name__] = play, lambda: Playbook(parameters, limits)
        return play

    return add


def put(call: int, offset: int, length: int) -> PutReceived:
    return PutReceived(call, offset, DATA[offset:offset + length])


def finish(call: int, size: int, si: bytes = SI, hashes: tuple[bytes, bytes] = HASHES) -> FinishReceived:
    return FinishReceived(call, size, si, *hashes)


def completed(size: int, hashes: tuple[bytes, bytes] = HASHES) -> Completed:
    return Completed(CiphertextHashes(size, *hashes), UEB)


def acknowledged(call: int, durable: int, credit: int = 1000) -> Reply:
    return Reply(call, {"durable": durable, "credit": credit})


def needing(call: int, durable: int, credit: int = 1000) -> Reply:
    """An acknowledgement that also asks for the storage index."""
    return Reply(call, {"durable": durable, "credit": credit, "storage-index-needed": 1})


def state_is(call: int, state: str) -> Reply:
    return Reply(call, {"state": state})


def result(call: int) -> Reply:
    return Reply(call, {"state": "finished", "ueb": UEB})


END = (AbandonShares(), DropSpool())


def to_completing(p: Playbook, size: int = 100) -> None:
    """finish (call 50) is accepted; hashes are being compared."""
    p.durable(size)
    p.given(finish(50, size))
    p.is_as(state=State.COMPLETING)


def to_sealing(p: Playbook, size: int = 100) -> None:
    to_completing(p, size)
    p.given(completed(size))
    p.is_as(state=State.COMPLETING)


def to_ready(p: Playbook) -> None:
    to_sealing(p)
    p.given(SharesReady())
    p.is_as(state=State.READY)


def to_publishing(p: Playbook) -> None:
    to_ready(p)
    p.given(PublishRecorded())
    p.is_as(state=State.PUBLISHING)


def to_finished(p: Playbook) -> None:
    to_publishing(p)
    p.given(AnswerRuleMet(), ResultRecorded())
    p.is_as(state=State.FINISHED)


# -- the whole way ----------------------------------------------------------------------------------------


@playbook()
def the_whole_way(p: Playbook) -> None:
    p.on(put(1, 0, 40), Store(DATA[:40]))
    p.on(Stored(40), needing(1, 40))
    p.on(AssignReceived(2, SI), state_is(2, "open"), UseStorageIndex(SI))
    p.on(put(3, 40, 60), Store(DATA[40:100]))
    p.on(Stored(100), acknowledged(3, 100), BeginPlacing())
    p.on(finish(4, 100), Complete(100))
    p.on(PushedTo(100))
    p.on(completed(100), SealShares(SI))
    p.on(SharesReady(), RecordPublishing())
    p.on(PublishRecorded(), PublishShares())
    p.on(AnswerRuleMet(), RecordResult())
    p.on(ResultRecorded(), result(4))
    p.is_as(state=State.FINISHED, received=100, durable=100, error=None)


@playbook()
def the_whole_way_without_a_storage_index_until_finish(p: Playbook) -> None:
    p.on(StagingEnough(True))
    p.on(put(1, 0, 40), Store(DATA[:40]))
    p.on(Stored(40), acknowledged(1, 40))
    p.on(put(3, 40, 60), Store(DATA[40:100]))
    p.on(Stored(100), acknowledged(3, 100), BeginPlacing())
    p.on(PushedTo(100))
    p.on(finish(4, 100), Complete(100))
    p.on(completed(100), SealShares(SI))
    p.on(SharesReady(), RecordPublishing())
    p.on(PublishRecorded(), PublishShares())
    p.on(AnswerRuleMet(), RecordResult())
    p.on(ResultRecorded(), result(4))
    p.is_as(state=State.FINISHED, received=100, durable=100, error=None, storage_index=SI)


@playbook()
def finish_without_assign_tells_the_storage_index_once_the_hashes_are_right(p: Playbook) -> None:
    p.durable(200)
    p.on(finish(4, 200), Complete(200))
    p.on(completed(200), SealShares(SI))


@playbook(limits=attrs.evolve(LIMITS, contact_after=150))
def servers_are_contacted_for_a_small_file_once_its_hashes_are_right(p: Playbook) -> None:
    p.on(put(1, 0, 149), Store(DATA[:149]))
    p.on(Stored(149), needing(1, 149))
    p.on(finish(4, 149), Complete(149))
    p.on(completed(149), BeginPlacing(), SealShares(SI))


# -- acknowledgement ----------------------------------------------------------------------------------------


@playbook()
def acknowledged_only_when_stored(p: Playbook) -> None:
    p.on(put(1, 0, 10), Store(DATA[:10]))
    p.on(put(2, 10, 10), Store(DATA[10:20]))
    p.is_as(received=20, durable=0, credit=980)
    p.on(Stored(9))
    p.on(Stored(15), needing(1, 15, 995))
    p.on(Stored(20), needing(2, 20))


@playbook()
def one_sync_acknowledges_all_that_it_covers_in_order(p: Playbook) -> None:
    p.given(put(1, 0, 10), put(2, 10, 10), put(3, 20, 10))
    p.on(Stored(30), needing(1, 30), needing(2, 30), needing(3, 30))


@playbook()
def durable_never_goes_back(p: Playbook) -> None:
    p.given(put(1, 0, 30), Stored(30))
    p.on(Stored(10))
    p.is_as(durable=30)


@playbook()
def a_gap_is_refused_and_says_what_was_expected(p: Playbook) -> None:
    p.on(put(1, 1, 10), refused(1, "offset-gap", expected=0, came=1))
    p.given(put(2, 0, 10))
    p.on(put(3, 11, 10), refused(3, "offset-gap", expected=10, came=11))
    p.is_as(received=10)
    p.on(put(4, 10, 10), Store(DATA[10:20]))


# -- bytes that come twice ------------------------------------------------------------------------------------


@playbook()
def identical_bytes_may_be_repeated(p: Playbook) -> None:
    p.durable(20)
    p.on(put(2, 5, 10), Compare(2, 5, DATA[5:15]))
    p.on(Compared(2, same=True), needing(2, 20))
    p.is_as(received=20)


@playbook()
def different_bytes_at_a_held_offset_are_refused_and_change_nothing(p: Playbook) -> None:
    p.durable(20)
    p.on(PutReceived(2, 5, b"other"), Compare(2, 5, b"other"))
    p.on(Compared(2, same=False), refused(2, "conflicting-data", offset=5, length=5))
    p.is_as(received=20, durable=20, state=State.OPEN)
    p.on(put(3, 20, 5), Store(DATA[20:25]))


@playbook()
def a_message_may_repeat_some_bytes_and_bring_new_ones(p: Playbook) -> None:
    p.durable(20)
    p.on(put(2, 15, 10), Compare(2, 15, DATA[15:20]))
    p.on(Compared(2, same=True), Store(DATA[20:25]))
    p.is_as(received=25)
    p.on(Stored(25), needing(2, 25))


@playbook()
def new_bytes_behind_different_ones_are_not_taken(p: Playbook) -> None:
    p.durable(20)
    p.on(PutReceived(2, 15, bytes(10)), Compare(2, 15, bytes(5)))
    p.on(Compared(2, same=False), refused(2, "conflicting-data", offset=15, length=10))
    p.is_as(received=20)


@playbook()
def bytes_are_compared_once_they_are_durable(p: Playbook) -> None:
    p.given(put(1, 0, 20))
    p.on(put(2, 0, 10))
    p.on(Stored(9))
    p.on(Stored(20), needing(1, 20), Compare(2, 0, DATA[:10]))
    p.on(Compared(2, same=True), needing(2, 20))


@playbook()
def what_was_received_and_stored_during_the_comparison_is_compared_before_the_answer(p: Playbook) -> None:
    p.given(put(1, 0, 10), Stored(10))
    p.on(PutReceived(2, 0, DATA[:10] + b"X" * 10), Compare(2, 0, DATA[:10]))
    p.given(put(3, 10, 10))
    p.on(Stored(20), needing(3, 20))
    p.on(Compared(2, same=True), Compare(2, 10, b"X" * 10))
    p.on(Compared(2, same=False), refused(2, "conflicting-data", offset=0, length=20))


@playbook()
def what_was_received_during_the_comparison_is_compared_too(p: Playbook) -> None:
    p.durable(20)
    p.on(put(2, 10, 30), Compare(2, 10, DATA[10:20]))
    p.on(put(3, 20, 10), Store(DATA[20:30]))
    p.on(Compared(2, same=True))
    p.on(Stored(30), needing(3, 30), Compare(2, 20, DATA[20:30]))
    p.on(Compared(2, same=True), Store(DATA[30:40]))
    p.on(Stored(40), needing(2, 40))


@playbook()
def repeats_are_accepted_after_finish_but_nothing_new(p: Playbook) -> None:
    to_publishing(p)
    p.on(put(2, 90, 10), Compare(2, 90, DATA[90:100]))
    p.on(Compared(2, same=True), acknowledged(2, 100))
    p.on(put(3, 90, 20), refused(3, "already-finishing", state="publishing"))
    p.on(put(4, 100, 1), refused(4, "already-finishing", state="publishing"))


@playbook()
def nothing_is_taken_once_finished(p: Playbook) -> None:
    to_finished(p)
    p.on(put(3, 0, 10), refused(3, "already-finishing", state="finished"))


# -- bounds -----------------------------------------------------------------------------------------------


@playbook()
def more_than_the_credit_is_refused(p: Playbook) -> None:
    p.given(put(1, 0, 400), put(2, 400, 400))
    p.is_as(credit=200)
    p.on(put(3, 800, 201), refused(3, "credit-exceeded", limit=1000, came=1001))
    p.on(put(4, 800, 200), Store(DATA[800:1000]))
    p.is_as(credit=0)
    p.on(Stored(400), needing(1, 400, 400), BeginPlacing())
    p.on(put(5, 1000, 400), Store(DATA[1000:1400]))


@playbook()
def repeats_that_wait_count_against_a_credit_too(p: Playbook) -> None:
    p.given(put(1, 0, 400), put(2, 0, 400), put(3, 0, 400))
    p.on(put(4, 0, 400), refused(4, "credit-exceeded", limit=1000, came=1200))
    p.on(put(5, 0, 200))
    p.on(put(6, 400, 400), Store(DATA[400:800]))


@playbook(attrs.evolve(PARAMETERS, max_segment_size=30))
def what_waits_for_servers_is_given_up_when_others_want_the_memory(p: Playbook) -> None:
    p.given(StagingEnough(True), put(1, 0, 300), Stored(300))
    p.on(put(2, 300, 100))
    p.on(put(3, 400, 100))
    p.on(put(4, 350, 100))  # a repeat
    p.is_as(received=500, durable=300, paused=True)
    p.on(MemoryWanted(0), *(refused(call, "memory-short") for call in (2, 3, 4)))
    p.is_as(received=300, durable=300, paused=False, credit=1000)
    p.on(put(5, 400, 100), refused(5, "offset-gap", expected=300, came=400))
    p.on(put(6, 300, 100))
    p.on(PushedTo(300), Store(DATA[300:400]))
    p.on(Stored(400), Reply(6, {"durable": 400, "credit": 1000}))


@playbook()
def what_is_on_its_way_to_the_disk_is_not_given_up(p: Playbook) -> None:
    p.given(put(1, 0, 100), put(2, 100, 100), put(3, 200, 100))
    p.on(MemoryWanted(100), refused(3, "memory-short"))
    p.is_as(received=200)
    p.on(put(4, 200, 50), Store(DATA[200:250]))
    p.on(Stored(200), needing(1, 200, 950), needing(2, 200, 950), BeginPlacing())


@playbook()
def a_finish_that_needs_what_is_given_up_is_refused_too(p: Playbook) -> None:
    p.given(put(1, 0, 100), put(2, 100, 100), finish(3, 200))
    p.on(MemoryWanted(100), refused(2, "memory-short"), ForgetCompletion(), refused(3, "memory-short"))
    p.is_as(state=State.OPEN, received=100, storage_index=None)
    p.given(Stored(100), put(4, 100, 100))
    p.on(finish(5, 200))
    p.on(Stored(200), Reply(4, {"durable": 200, "credit": 1000}), Complete(200))


@playbook()
def an_upload_that_is_complete_or_over_gives_up_nothing(p: Playbook) -> None:
    assert p.session.can_let_go
    p.given(put(1, 0, 100), Stored(100), finish(2, 100), completed(100))
    assert not p.session.can_let_go
    p.given(AbortReceived(3))
    assert not p.session.can_let_go


@playbook()
def a_message_larger_than_announced_is_refused(p: Playbook) -> None:
    p.on(put(1, 0, 401), refused(1, "message-too-large", limit=400, came=401))
    p.on(put(2, 0, 400), Store(DATA[:400]))


@playbook()
def an_empty_message_is_refused(p: Playbook) -> None:
    p.on(put(1, 0, 0), refused(1, "bad-argument", field="data", expected="1 to 400 bytes", came="0 bytes"))


@playbook()
def offsets_out_of_bounds_are_refused(p: Playbook) -> None:
    expected = f"a number from 0 to {SIZE_MAX - 1}"
    p.on(PutReceived(1, -1, b"a"), refused(1, "bad-argument", field="offset", expected=expected, came="-1"))
    p.on(PutReceived(2, SIZE_MAX, b"a"),
         refused(2, "bad-argument", field="offset", expected=expected, came=str(SIZE_MAX)))
    p.on(PutReceived(3, SIZE_MAX - 1, b"a"), refused(3, "offset-gap", expected=0, came=SIZE_MAX - 1))


@playbook(attrs.evolve(PARAMETERS, size=100))
def more_than_the_declared_size_is_refused(p: Playbook) -> None:
    p.on(put(1, 0, 101), refused(1, "size-exceeded", declared=100, came=101))
    p.on(put(2, 0, 100), Store(DATA[:100]))
    p.on(Stored(100), needing(2, 100), BeginPlacing())
    p.on(put(3, 100, 1), refused(3, "size-exceeded", declared=100, came=101))
    p.on(put(4, 99, 2), refused(4, "size-exceeded", declared=100, came=101))


# -- backpressure -------------------------------------------------------------------------------------------


@playbook()
def what_is_durable_is_acknowledged_however_large_the_lag_the_rest_waits(p: Playbook) -> None:
    p.given(AssignReceived(1, SI))
    p.on(put(2, 0, 150), Store(DATA[:150]))
    p.on(Stored(150), acknowledged(2, 150), BeginPlacing())
    p.on(put(3, 150, 100), Store(DATA[150:250]))  # what is not durable yet does not count
    p.on(Stored(250), acknowledged(3, 250))
    p.on(put(4, 250, 50))
    p.is_as(paused=True, received=300)
    p.on(put(5, 300, 50))
    p.on(PushedTo(49))
    p.is_as(paused=True)
    p.on(PushedTo(50), Store(DATA[250:300]), Store(DATA[300:350]))
    p.is_as(paused=False)
    p.on(Stored(350), acknowledged(4, 350), acknowledged(5, 350))


@playbook()
def without_a_storage_index_nothing_waits_for_servers(p: Playbook) -> None:
    for i in range(10):
        p.on(put(i, 100 * i, 100), Store(DATA[100 * i:100 * (i + 1)]))
        p.on(Stored(100 * (i + 1)), needing(i, 100 * (i + 1)), *([BeginPlacing()] if i == 0 else []))
    p.is_as(paused=False, pushed=0)


@playbook(limits=attrs.evolve(LIMITS, contact_after=600))
def before_servers_are_contacted_nothing_waits_for_them(p: Playbook) -> None:
    p.given(AssignReceived(1, SI), StagingEnough(True))
    for i in range(6):
        p.on(put(10 + i, 100 * i, 100), Store(DATA[100 * i:100 * (i + 1)]))
    p.on(Stored(599), *(acknowledged(10 + i, 599, 999) for i in range(5)))
    p.on(Stored(600), acknowledged(15, 600), BeginPlacing())
    p.on(put(20, 600, 10))
    p.is_as(paused=True)


@playbook(attrs.evolve(PARAMETERS, max_segment_size=300))
def segments_larger_than_the_lag_do_not_deadlock(p: Playbook) -> None:
    """A segment is pushed whole: until its last byte is durable, the lag cannot become smaller."""
    p.given(AssignReceived(1, SI))
    for i in range(7):  # more than the pushing lag, as long as it is less than two segments
        p.on(put(10 + i, 100 * i, 100), Store(DATA[100 * i:100 * (i + 1)]))
        p.given(Stored(100 * (i + 1)))
    p.on(put(20, 700, 100))
    p.is_as(paused=True)
    p.on(PushedTo(300), Store(DATA[700:800]))


@playbook()
def when_servers_are_lost_and_the_position_goes_back_more_waits(p: Playbook) -> None:
    p.given(AssignReceived(1, SI))
    p.durable(200)
    p.given(PushedTo(180))
    p.on(put(3, 200, 100), Store(DATA[200:300]))
    p.on(Stored(300), acknowledged(3, 300))
    p.on(PushedTo(0))
    p.on(put(4, 300, 10))
    p.is_as(paused=True)


@playbook()
def the_lag_may_be_what_servers_take_in_a_second_up_to_twice_the_setting(p: Playbook) -> None:
    p.given(AssignReceived(1, SI))
    p.durable(400)
    p.on(put(3, 400, 100))
    p.on(PushedTo(101, 298))
    p.on(PushedTo(101, 299), Store(DATA[400:500]))
    p.on(Stored(500), acknowledged(3, 500))
    p.on(PushedTo(99, 10_000))
    p.on(put(4, 500, 10))
    p.is_as(paused=True)
    p.on(PushedTo(100, 0))
    p.on(PushedTo(100, 10_000), Store(DATA[500:510]))


# -- staging servers ----------------------------------------------------------------------------------------


@playbook()
def until_it_is_known_whether_staging_servers_are_enough_the_index_is_needed(p: Playbook) -> None:
    p.is_as(storage_index_needed=True)
    p.on(StagingEnough(False))
    p.is_as(storage_index_needed=True)
    p.on(StagingEnough(True))
    p.is_as(storage_index_needed=False)


@playbook()
def where_staging_servers_are_enough_placing_begins_without_a_storage_index(p: Playbook) -> None:
    p.given(StagingEnough(True))
    p.on(put(1, 0, 49), Store(DATA[:49]))
    p.on(Stored(49), acknowledged(1, 49))
    p.on(put(2, 49, 1), Store(DATA[49:50]))
    p.on(Stored(50), acknowledged(2, 50), BeginPlacing())
    p.is_as(storage_index=None)


@playbook()
def where_staging_servers_are_enough_the_lag_holds_bytes_back_without_a_storage_index(p: Playbook) -> None:
    p.given(StagingEnough(True))
    p.durable(250)
    p.on(put(2, 250, 50))
    p.on(put(3, 300, 50))
    p.is_as(paused=True, storage_index=None)
    p.on(PushedTo(50), Store(DATA[250:300]), Store(DATA[300:350]))
    p.is_as(paused=False)
    p.on(Stored(300), acknowledged(2, 300, 950))


@playbook()
def when_staging_servers_become_too_few_the_next_answer_asks_for_the_index(p: Playbook) -> None:
    p.given(StagingEnough(True), put(1, 0, 60))
    p.on(Stored(60), acknowledged(1, 60), BeginPlacing())
    p.on(put(2, 60, 10), Store(DATA[60:70]))
    p.on(StagingEnough(False))
    p.is_as(storage_index_needed=True)
    p.on(Stored(70), needing(2, 70))
    p.on(put(3, 0, 10), Compare(3, 0, DATA[:10]))
    p.on(Compared(3, same=True), needing(3, 70))
    p.on(StagingEnough(True))
    p.on(put(4, 70, 10), Store(DATA[70:80]))
    p.on(Stored(80), acknowledged(4, 80))


@playbook()
def bytes_that_waited_for_servers_wait_no_more_when_pushing_waits_for_the_index(p: Playbook) -> None:
    p.given(StagingEnough(True))
    p.durable(250)
    p.given(put(2, 250, 60), put(3, 310, 40))
    p.is_as(paused=True)
    p.on(StagingEnough(False), Store(DATA[250:310]), Store(DATA[310:350]))
    p.is_as(paused=False)
    p.on(put(4, 350, 100), Store(DATA[350:450]))
    p.on(Stored(450), needing(2, 450), needing(3, 450), needing(4, 450))


@playbook()
def the_lag_holds_bytes_back_again_when_staging_servers_become_enough(p: Playbook) -> None:
    p.durable(400)
    p.on(put(2, 400, 10), Store(DATA[400:410]))
    p.on(StagingEnough(True))
    p.on(put(3, 410, 10))
    p.is_as(paused=True)
    p.on(PushedTo(210), Store(DATA[410:420]))


@playbook()
def once_the_index_is_known_staging_servers_change_nothing(p: Playbook) -> None:
    p.given(AssignReceived(1, SI))
    p.durable(250)
    p.given(put(2, 250, 10))
    for enough in (True, False, True):
        p.on(StagingEnough(enough))
        p.is_as(paused=True, storage_index_needed=False)


@playbook()
def after_finish_staging_servers_change_nothing(p: Playbook) -> None:
    p.given(StagingEnough(True), put(1, 0, 100), finish(2, 100))
    p.on(StagingEnough(False))
    p.is_as(storage_index_needed=False)
    p.on(Stored(100), acknowledged(1, 100), BeginPlacing(), Complete(100))
    for event in (completed(100), SharesReady(), PublishRecorded(), AnswerRuleMet(), ResultRecorded()):
        p.on(StagingEnough(True))
        p.on(StagingEnough(False))
        p.given(event)
    p.on(StagingEnough(True))
    p.is_as(state=State.FINISHED)


@playbook()
def after_the_end_staging_servers_change_nothing(p: Playbook) -> None:
    p.given(StagingEnough(True))
    p.durable(250)
    p.given(put(2, 250, 10), AbortReceived(3))
    p.on(StagingEnough(False))
    p.is_as(state=State.ABORTED, storage_index_needed=False)


# -- assign -----------------------------------------------------------------------------------------------


@playbook()
def an_early_assign_waits_with_the_servers_until_there_is_something_to_push(p: Playbook) -> None:
    p.is_as(storage_index_needed=True)
    p.on(AssignReceived(1, SI), state_is(1, "open"), UseStorageIndex(SI))
    p.is_as(storage_index_needed=False, placing=False)
    p.given(put(2, 0, 49))
    p.on(Stored(49), acknowledged(2, 49))
    p.given(put(3, 49, 1))
    p.on(Stored(50), acknowledged(3, 50), BeginPlacing())
    p.given(put(4, 50, 1))
    p.on(Stored(51), acknowledged(4, 51))


@playbook()
def an_assign_after_placing_began_is_told_at_once_and_the_lag_counts_from_then_on(p: Playbook) -> None:
    p.given(put(1, 0, 300))
    p.on(Stored(300), needing(1, 300), BeginPlacing())
    p.on(put(2, 300, 100), Store(DATA[300:400]))
    p.on(AssignReceived(3, SI), state_is(3, "open"), UseStorageIndex(SI))
    p.on(put(4, 400, 100))
    p.is_as(paused=True)
    p.on(Stored(400), acknowledged(2, 400, 900))
    p.on(PushedTo(200), Store(DATA[400:500]))


@playbook()
def an_assign_is_told_once(p: Playbook) -> None:
    p.on(AssignReceived(1, SI), state_is(1, "open"), UseStorageIndex(SI))
    p.on(AssignReceived(2, SI), state_is(2, "open"))
    p.durable(60)
    p.on(AssignReceived(3, SI), state_is(3, "open"))
    p.on(finish(4, 60), Complete(60))
    p.on(AssignReceived(5, SI), state_is(5, "completing"))


@playbook()
def an_assign_is_told_also_where_staging_servers_are_enough(p: Playbook) -> None:
    p.given(StagingEnough(True))
    p.on(AssignReceived(1, SI), state_is(1, "open"), UseStorageIndex(SI))
    p.on(AssignReceived(2, OTHER_SI), refused(2, "storage-index-conflict"))


@playbook()
def assign_while_completing_is_told_at_once(p: Playbook) -> None:
    to_completing(p)
    p.on(AssignReceived(1, OTHER_SI), refused(1, "storage-index-conflict"))
    p.on(AssignReceived(2, SI), state_is(2, "completing"), UseStorageIndex(SI))
    p.on(AssignReceived(3, SI), state_is(3, "completing"))
    p.on(completed(100), SealShares(SI))
    p.on(AssignReceived(4, SI), state_is(4, "completing"))


@playbook()
def assign_of_a_sealed_upload_is_told_until_it_is_published(p: Playbook) -> None:
    to_ready(p)
    p.on(AssignReceived(1, SI), state_is(1, "ready"), UseStorageIndex(SI))


@playbook()
def assign_while_publishing_tells_servers_nothing_new(p: Playbook) -> None:
    to_publishing(p)
    p.on(AssignReceived(1, SI), state_is(1, "publishing"))
    p.given(AnswerRuleMet())
    p.on(AssignReceived(2, SI), state_is(2, "publishing"))
    p.given(ResultRecorded())
    p.on(AssignReceived(3, SI), state_is(3, "finished"))


@playbook()
def assign_may_be_repeated(p: Playbook) -> None:
    p.durable(60)
    p.given(AssignReceived(1, SI))
    p.on(AssignReceived(2, SI), state_is(2, "open"))
    to_finished_from_here(p, 60)
    p.on(AssignReceived(3, SI), state_is(3, "finished"))


def to_finished_from_here(p: Playbook, size: int) -> None:
    p.given(finish(90, size), completed(size), SharesReady(), PublishRecorded(), AnswerRuleMet(),
            ResultRecorded())
    p.is_as(state=State.FINISHED)


@playbook()
def another_storage_index_is_refused(p: Playbook) -> None:
    p.given(AssignReceived(1, SI))
    p.on(AssignReceived(2, OTHER_SI), refused(2, "storage-index-conflict"))
    p.durable(100)
    p.on(finish(3, 100, OTHER_SI), refused(3, "storage-index-conflict"))
    p.is_as(state=State.OPEN, storage_index=SI)
    p.on(finish(4, 100), Complete(100))


@playbook()
def a_storage_index_of_another_length_is_refused(p: Playbook) -> None:
    p.on(AssignReceived(1, SI[:15]), refused(1, "bad-storage-index", expected=16, came=15))
    p.on(AssignReceived(2, b""), refused(2, "bad-storage-index", expected=16, came=0))
    p.durable(100)
    p.on(finish(3, 100, SI + b"x"), refused(3, "bad-storage-index", expected=16, came=17))
    p.is_as(storage_index=None)


@playbook()
def assign_while_hashes_are_compared_is_not_forgotten_if_they_differ(p: Playbook) -> None:
    p.given(put(1, 0, 100), finish(2, 100))
    p.on(AssignReceived(3, SI), state_is(3, "completing"), UseStorageIndex(SI))
    p.on(Stored(100), acknowledged(1, 100), BeginPlacing(), Complete(100))
    p.on(completed(100, (b"x" * 32, b"y" * 32)),
         ForgetCompletion(), refused(2, "hash-mismatch", field="crypttext_hash"))
    p.is_as(state=State.OPEN, storage_index=SI, storage_index_needed=False)
    p.on(AssignReceived(5, SI), state_is(5, "open"))
    p.on(AssignReceived(4, OTHER_SI), refused(4, "storage-index-conflict"))


# -- finish -----------------------------------------------------------------------------------------------


@playbook()
def finish_waits_until_everything_received_is_durable(p: Playbook) -> None:
    p.given(put(1, 0, 60), put(2, 60, 40))
    p.on(finish(3, 100))
    p.is_as(state=State.COMPLETING)
    p.on(Stored(40))
    p.on(Stored(60), acknowledged(1, 60, 960), BeginPlacing())
    p.on(Stored(100), acknowledged(2, 100), Complete(100))


@playbook()
def finish_before_durable_tells_servers_nothing_until_the_hashes_are_right(p: Playbook) -> None:
    """A refused finish changes nothing: so its storage index must not have reached a server."""
    p.given(put(1, 0, 100), finish(2, 100, OTHER_SI, (b"x" * 32, b"y" * 32)))
    p.on(Stored(100), acknowledged(1, 100), BeginPlacing(), Complete(100))
    p.on(completed(100), ForgetCompletion(), refused(2, "hash-mismatch", field="crypttext_hash"))
    p.is_as(state=State.OPEN, storage_index=None, storage_index_needed=True)
    p.on(finish(3, 100, SI), Complete(100))
    p.on(completed(100), SealShares(SI))


@playbook()
def an_assigned_upload_is_placed_while_finish_waits(p: Playbook) -> None:
    p.given(AssignReceived(1, SI), put(2, 0, 100), finish(3, 100))
    p.on(Stored(60), BeginPlacing())
    p.on(Stored(100), acknowledged(2, 100), Complete(100))


@playbook()
def finish_releases_what_the_lag_held_back(p: Playbook) -> None:
    """Shares end only when everything is durable, and no more bytes come that could outrun the servers."""
    p.given(AssignReceived(1, SI))
    p.durable(250)
    p.on(put(2, 250, 60))
    p.on(put(3, 310, 40))
    p.is_as(paused=True)
    p.on(finish(4, 350), Store(DATA[250:310]), Store(DATA[310:350]))
    p.is_as(paused=False, durable=250)
    p.on(Stored(310), acknowledged(2, 310, 960))
    p.on(Stored(350), acknowledged(3, 350), Complete(350))
    p.on(completed(350), SealShares(SI))


@playbook()
def a_refused_finish_releases_nothing(p: Playbook) -> None:
    p.given(AssignReceived(1, SI))
    p.durable(250)
    p.given(put(2, 250, 60))
    p.on(finish(3, 309), refused(3, "size-mismatch", expected=310, came=309))
    p.on(finish(4, 310, OTHER_SI), refused(4, "storage-index-conflict"))
    p.is_as(paused=True)


@playbook()
def the_lag_holds_bytes_back_again_after_a_finish_with_wrong_hashes(p: Playbook) -> None:
    p.given(AssignReceived(1, SI))
    p.durable(250)
    p.given(finish(2, 250, hashes=(b"x" * 32, HASHES[1])), completed(250))
    p.is_as(state=State.OPEN)
    p.on(put(3, 250, 10))
    p.on(PushedTo(50), Store(DATA[250:260]))


@playbook()
def finish_of_another_size_than_received_is_refused(p: Playbook) -> None:
    p.durable(100)
    for call, size in ((1, 99), (2, 101), (3, -1), (4, SIZE_MAX + 1)):
        p.on(finish(call, size), refused(call, "size-mismatch", expected=100, came=size))
    p.is_as(state=State.OPEN, storage_index=None)
    p.on(put(5, 100, 10), Store(DATA[100:110]))
    p.on(finish(6, 110))


@playbook(attrs.evolve(PARAMETERS, size=100))
def finish_of_another_size_than_declared_is_refused(p: Playbook) -> None:
    p.durable(90)
    p.on(finish(1, 90), refused(1, "size-mismatch", expected=100, came=90))
    p.on(finish(2, 100), refused(2, "size-mismatch", expected=90, came=100))
    p.given(put(3, 90, 10), Stored(100))
    p.on(finish(4, 100), Complete(100))


@playbook()
def finish_of_a_literal_file_is_refused(p: Playbook) -> None:
    p.on(finish(1, 0), refused(1, "literal-size", limit=55, came=0))
    p.durable(55)
    p.on(finish(2, 55), refused(2, "literal-size", limit=55, came=55))
    p.given(put(3, 55, 1), Stored(56))
    p.on(finish(4, 56), Complete(56))


@playbook()
def finish_with_hashes_of_another_length_is_refused(p: Playbook) -> None:
    p.durable(100)
    p.on(finish(1, 100, hashes=(b"c" * 31, b"r" * 32)),
         refused(1, "bad-argument", field="crypttext_hash", expected="32 bytes", came="31 bytes"))
    p.on(finish(2, 100, hashes=(b"c" * 32, b"")),
         refused(2, "bad-argument", field="crypttext_root_hash", expected="32 bytes", came="0 bytes"))
    p.is_as(state=State.OPEN)


@playbook()
def finish_with_wrong_hashes_is_refused_and_the_upload_goes_on(p: Playbook) -> None:
    p.durable(100)
    for call, hashes, field in ((1, (b"x" * 32, HASHES[1]), "crypttext_hash"),
                                (2, (HASHES[0], b"x" * 32), "crypttext_root_hash")):
        p.on(finish(call, 100, hashes=hashes), Complete(100))
        p.on(completed(100), ForgetCompletion(), refused(call, "hash-mismatch", field=field))
        p.is_as(state=State.OPEN, received=100, durable=100, credit=1000, storage_index=None, ueb=None, error=None)
    p.on(put(3, 100, 50), Store(DATA[100:150]))
    p.on(Stored(150), needing(3, 150))
    p.on(finish(4, 150), Complete(150))
    p.on(completed(150), SealShares(SI))
    p.on(SharesReady(), RecordPublishing())


@playbook()
def finish_may_be_repeated_while_it_is_under_way_and_all_are_answered(p: Playbook) -> None:
    p.given(put(1, 0, 100))
    p.on(finish(2, 100))
    p.on(finish(3, 100))
    p.given(Stored(100))
    p.on(finish(4, 100))
    p.given(completed(100))
    p.on(finish(5, 100))
    p.given(SharesReady())
    p.on(finish(6, 100))
    p.given(PublishRecorded())
    p.on(finish(7, 100))
    p.on(AnswerRuleMet(), RecordResult())
    p.on(ResultRecorded(), *(result(call) for call in range(2, 8)))
    p.on(finish(8, 100), result(8))
    p.on(finish(9, 100), result(9))


@playbook()
def a_repeat_of_finish_must_ask_for_the_same(p: Playbook) -> None:
    to_completing(p)
    p.on(finish(2, 99), refused(2, "size-mismatch", expected=100, came=99))
    p.on(finish(3, 100, OTHER_SI), refused(3, "storage-index-conflict"))
    p.on(finish(4, 100, hashes=(b"x" * 32, HASHES[1])), refused(4, "hash-mismatch", field="crypttext_hash"))
    p.on(finish(5, 100, hashes=(HASHES[0], b"x" * 32)), refused(5, "hash-mismatch", field="crypttext_root_hash"))
    p.given(completed(100), SharesReady(), PublishRecorded())
    p.on(finish(6, 100, OTHER_SI), refused(6, "storage-index-conflict"))
    p.on(AnswerRuleMet(), RecordResult())
    p.on(ResultRecorded(), result(50))
    p.on(finish(7, 100, hashes=(b"x" * 32, HASHES[1])), refused(7, "hash-mismatch", field="crypttext_hash"))


@playbook()
def all_repeats_of_a_finish_with_wrong_hashes_are_refused(p: Playbook) -> None:
    p.durable(100)
    wrong = (b"x" * 32, HASHES[1])
    p.given(finish(1, 100, hashes=wrong), finish(2, 100, hashes=wrong))
    p.on(completed(100), ForgetCompletion(),
         *(refused(call, "hash-mismatch", field="crypttext_hash") for call in (1, 2)))


@playbook()
def nothing_new_is_taken_while_completing(p: Playbook) -> None:
    to_completing(p)
    p.on(put(2, 100, 1), refused(2, "already-finishing", state="completing"))


# -- abort ------------------------------------------------------------------------------------------------


def aborted_from(p: Playbook, *refusals: Refused) -> None:
    """abort lets go of everything; calls that waited get to know."""
    p.on(AbortReceived(80), *refusals, *END)
    p.is_as(state=State.ABORTED)
    p.on(Abandoned(), state_is(80, "aborted"))
    p.on(AbortReceived(81), state_is(81, "aborted"))
    p.on(put(82, 0, 10), refused(82, "aborted"))
    p.on(finish(83, 100), refused(83, "aborted"))
    p.on(AssignReceived(84, SI), refused(84, "aborted"))


@playbook()
def abort_while_open_answers_everything_that_waits(p: Playbook) -> None:
    p.durable(20)
    p.given(put(1, 20, 10), put(2, 0, 10))
    aborted_from(p, refused(1, "aborted"), refused(2, "aborted"))
    p.on(Stored(30))
    p.on(Compared(2, same=True))


@playbook()
def abort_while_completing(p: Playbook) -> None:
    to_completing(p)
    aborted_from(p, refused(50, "aborted"))
    p.on(completed(100))


@playbook()
def abort_while_shares_are_completed(p: Playbook) -> None:
    to_sealing(p)
    aborted_from(p, refused(50, "aborted"))
    p.on(SharesReady())


@playbook()
def abort_when_ready(p: Playbook) -> None:
    to_ready(p)
    aborted_from(p, refused(50, "aborted"))
    p.on(PublishRecorded())


@playbook()
def abort_of_bytes_held_back_forgets_them(p: Playbook) -> None:
    p.given(AssignReceived(1, SI))
    p.durable(250)
    p.on(put(2, 250, 10))
    aborted_from(p, refused(2, "aborted"))
    p.on(PushedTo(250))


@playbook()
def abort_while_publishing_is_refused(p: Playbook) -> None:
    to_publishing(p)
    p.on(AbortReceived(1), refused(1, "already-publishing", state="publishing"))
    p.on(AnswerRuleMet(), RecordResult())
    p.on(ResultRecorded(), result(50))


@playbook()
def abort_when_finished_is_refused(p: Playbook) -> None:
    to_finished(p)
    p.on(AbortReceived(1), refused(1, "already-publishing", state="finished"))


@playbook()
def abort_is_answered_when_servers_have_let_go(p: Playbook) -> None:
    p.on(AbortReceived(1), *END)
    p.on(AbortReceived(2))
    p.on(Abandoned(), state_is(1, "aborted"), state_is(2, "aborted"))
    p.on(AbortReceived(3), state_is(3, "aborted"))


@playbook()
def abort_of_a_failed_or_expired_upload_says_so(p: Playbook) -> None:
    p.given(Failed(errors.HelperStopping()))
    p.on(AbortReceived(1))
    p.on(Abandoned(), state_is(1, "failed"))
    p.on(AbortReceived(2), state_is(2, "failed"))


# -- a file that is stored already --------------------------------------------------------------------------

OTHER_FILE = b"file elsewhere.."


@playbook()
def adopting_another_file_ends_the_upload(p: Playbook) -> None:
    p.durable(20)
    p.given(put(1, 20, 10), put(2, 0, 10))
    p.on(AdoptReceived(3, OTHER_FILE), refused(1, "deduplicated"), refused(2, "deduplicated"), *END,
         state_is(3, "deduplicated"))
    p.is_as(state=State.DEDUPLICATED, adopted_index=OTHER_FILE)
    p.on(AdoptReceived(4, OTHER_FILE), state_is(4, "deduplicated"))
    p.on(AdoptReceived(5, SI), refused(5, "storage-index-conflict"))
    for event in (put(6, 20, 10), finish(6, 20), AssignReceived(6, SI)):
        p.on(event, refused(6, "deduplicated"))
    p.on(AbortReceived(7))
    p.on(Abandoned(), state_is(7, "deduplicated"))
    p.on(Stored(30))


@playbook()
def adopting_before_the_first_byte(p: Playbook) -> None:
    p.on(AdoptReceived(1, OTHER_FILE), *END, state_is(1, "deduplicated"))


@playbook()
def adopting_after_the_storage_index_was_assigned(p: Playbook) -> None:
    p.given(AssignReceived(1, SI))
    p.durable(100)
    p.on(AdoptReceived(2, OTHER_FILE), *END, state_is(2, "deduplicated"))


@playbook()
def adopting_after_finish_is_refused(p: Playbook) -> None:
    to_completing(p)
    p.on(AdoptReceived(1, OTHER_FILE), refused(1, "already-finishing", state="completing"))
    p.given(completed(100), SharesReady(), PublishRecorded(), AnswerRuleMet())
    p.on(AdoptReceived(2, OTHER_FILE), refused(2, "already-finishing", state="publishing"))
    p.on(ResultRecorded(), result(50))
    p.on(AdoptReceived(3, OTHER_FILE), refused(3, "already-finishing", state="finished"))


@playbook()
def adopting_after_the_end_is_refused(p: Playbook) -> None:
    p.given(AbortReceived(1))
    p.on(AdoptReceived(2, OTHER_FILE), refused(2, "aborted"))
    p.is_as(state=State.ABORTED)


@playbook()
def adopting_while_the_helper_stops(p: Playbook) -> None:
    p.given(Stopping())
    p.on(AdoptReceived(1, OTHER_FILE), refused(1, "helper-stopping"))
    p.is_as(state=State.OPEN)


@playbook()
def an_adopted_file_is_known_after_a_restart(p: Playbook) -> None:
    p.on(Resumed("deduplicated", 0, OTHER_FILE, None, None, errors.Deduplicated(), unplaced=False))
    p.on(AdoptReceived(1, OTHER_FILE), state_is(1, "deduplicated"))
    p.on(AdoptReceived(2, SI), refused(2, "storage-index-conflict"))
    p.on(AbortReceived(3), state_is(3, "deduplicated"))
    p.on(finish(4, 100), refused(4, "deduplicated"))


# -- too few servers ----------------------------------------------------------------------------------------

TOO_FEW = {"have": 4, "need": 7}


@playbook()
def too_few_servers_while_open_end_the_upload(p: Playbook) -> None:
    p.given(AssignReceived(1, SI))
    p.durable(100)
    p.given(put(2, 100, 10))
    p.on(TooFewServers(4, 7), refused(2, "too-few-servers", **TOO_FEW), *END)
    p.is_as(state=State.FAILED)
    p.on(put(3, 110, 10), refused(3, "too-few-servers", **TOO_FEW))
    p.on(finish(4, 110), refused(4, "too-few-servers", **TOO_FEW))


@playbook()
def too_few_shares_end_the_upload(p: Playbook) -> None:
    p.given(put(2, 0, 10))
    p.on(TooFewShares(2, 3), refused(2, "too-few-shares", have=2, need=3), *END)


@playbook()
def too_few_servers_while_completing_end_the_upload(p: Playbook) -> None:
    to_sealing(p)
    p.on(TooFewServers(4, 7), refused(50, "too-few-servers", **TOO_FEW), *END)


@playbook()
def too_few_servers_when_ready_end_the_upload(p: Playbook) -> None:
    to_ready(p)
    p.on(TooFewServers(4, 7), refused(50, "too-few-servers", **TOO_FEW), *END)
    p.on(PublishRecorded())


@playbook()
def too_few_servers_while_publishing_make_finish_wait(p: Playbook) -> None:
    to_publishing(p)
    waiting: dict[str, int | str | bytes] = {"code": "waiting", "state": "publishing", "have": 4, "need": 7}
    p.on(TooFewServers(4, 7), Reply(50, waiting))
    p.is_as(state=State.PUBLISHING)
    p.on(finish(51, 100))
    p.on(TooFewServers(4, 7), Reply(51, waiting))
    p.on(TooFewServers(4, 7))
    p.on(finish(52, 100))
    p.on(AnswerRuleMet(), RecordResult())
    p.on(ResultRecorded(), result(52))


@playbook()
def too_few_servers_later_change_no_end(p: Playbook) -> None:
    to_finished(p)
    p.on(TooFewServers(4, 7))
    p.on(finish(51, 100), result(51))


@playbook()
def too_few_servers_after_abort_change_nothing(p: Playbook) -> None:
    p.given(AbortReceived(1))
    p.on(TooFewServers(4, 7))
    p.is_as(state=State.ABORTED)


# -- expiry -----------------------------------------------------------------------------------------------


@playbook()
def an_idle_upload_expires(p: Playbook) -> None:
    p.durable(10)
    p.on(IdleFor(9999, 10_000, 100))
    p.on(IdleFor(10_000, 10_000, 100), *END)
    p.is_as(state=State.EXPIRED)
    p.on(put(2, 10, 1), refused(2, "expired", idle_seconds=10_000))
    p.on(Abandoned())
    p.on(AbortReceived(3), state_is(3, "expired"))


@playbook()
def an_idle_upload_without_a_byte_expires_sooner(p: Playbook) -> None:
    p.on(IdleFor(99, 10_000, 100))
    p.on(IdleFor(100, 10_000, 100), *END)


@playbook()
def an_upload_that_is_finishing_does_not_expire(p: Playbook) -> None:
    to_completing(p)
    p.on(IdleFor(10_000, 10_000, 100))
    p.given(completed(100), SharesReady())
    p.on(IdleFor(10_000, 10_000, 100))
    p.given(PublishRecorded(), AnswerRuleMet())
    p.on(ResultRecorded(), result(50))
    p.on(IdleFor(10_000, 10_000, 100))


@playbook()
def an_upload_that_cannot_be_published_expires(p: Playbook) -> None:
    to_completing(p)
    p.given(completed(100), SharesReady(), PublishRecorded())
    p.on(IdleFor(9999, 10_000, 100))
    p.on(IdleFor(10_000, 10_000, 100), refused(50, "expired", idle_seconds=10_000), *END)
    p.is_as(state=State.EXPIRED)
    p.on(finish(51, 100), refused(51, "expired", idle_seconds=10_000))
    for late in (AnswerRuleMet(), ResultRecorded(), TooFewServers(4, 7), SharesReady(), completed(100)):
        p.on(late)
    p.on(AbortReceived(52))
    p.on(Abandoned(), state_is(52, "expired"))


# -- faults of the helper -------------------------------------------------------------------------------------


@playbook()
def a_spool_that_fails_ends_the_upload(p: Playbook) -> None:
    p.durable(10)
    p.given(put(1, 10, 10))
    p.on(StoreFailed("ENOSPC"), refused(1, "spool-failed", reason="ENOSPC"), *END)
    p.on(put(2, 20, 10), refused(2, "spool-failed", reason="ENOSPC"))


@playbook()
def a_spool_that_fails_while_finish_waits_ends_the_upload(p: Playbook) -> None:
    p.given(put(1, 0, 100), finish(2, 100))
    p.on(StoreFailed("EIO"), refused(1, "spool-failed", reason="EIO"), refused(2, "spool-failed", reason="EIO"), *END)


@playbook()
def a_fault_before_publication_ends_the_upload(p: Playbook) -> None:
    to_ready(p)
    p.on(Failed(errors.InternalError("KeyError")), refused(50, "internal-error", kind="KeyError"), *END)


@playbook()
def a_second_fault_changes_nothing(p: Playbook) -> None:
    p.given(Failed(errors.InternalError("KeyError")))
    p.on(Failed(errors.HelperStopping()))
    p.on(StoreFailed("EIO"))
    p.on(put(1, 0, 1), refused(1, "internal-error", kind="KeyError"))


@playbook()
def after_publication_began_faults_do_not_take_it_back(p: Playbook) -> None:
    to_publishing(p)
    p.on(StoreFailed("EIO"))
    p.on(Failed(errors.InternalError("KeyError")))
    p.on(AnswerRuleMet(), RecordResult())
    p.on(ResultRecorded(), result(50))
    p.on(StoreFailed("EIO"))
    p.on(Failed(errors.InternalError("KeyError")))


@playbook()
def what_is_told_late_changes_nothing(p: Playbook) -> None:
    to_finished(p)
    for event in (SharesReady(), PublishRecorded(), AnswerRuleMet(), ResultRecorded(), completed(100), Stored(100),
                  PushedTo(100)):
        p.on(event)
    p.is_as(state=State.FINISHED)


@playbook()
def the_result_is_recorded_before_it_is_told(p: Playbook) -> None:
    to_publishing(p)
    p.on(AnswerRuleMet(), RecordResult())
    p.is_as(state=State.PUBLISHING)
    p.on(finish(51, 100))
    p.on(AbortReceived(52), refused(52, "already-publishing", state="publishing"))
    p.on(ResultRecorded(), result(50), result(51))


@playbook()
def too_few_servers_while_the_result_is_recorded_take_nothing_back(p: Playbook) -> None:
    to_publishing(p)
    p.given(AnswerRuleMet(), TooFewServers(4, 7))
    p.on(finish(51, 100))
    p.on(ResultRecorded(), result(51))


# -- another wants the storage index -----------------------------------------------------------------------------


@playbook()
def an_open_upload_yields_its_storage_index_and_may_take_it_again(p: Playbook) -> None:
    p.given(put(1, 0, 100), Stored(100), AssignReceived(2, SI))
    p.on(YieldIndex(), ForgetStorageIndex())
    p.is_as(state=State.OPEN, storage_index=None, assigned_index=None, storage_index_needed=True)
    p.on(YieldIndex())
    p.on(AssignReceived(3, SI), state_is(3, "open"), UseStorageIndex(SI))


@playbook()
def what_waits_for_servers_with_a_storage_index_does_not_wait_without(p: Playbook) -> None:
    p.given(AssignReceived(1, SI), put(2, 0, 300), Stored(300), put(3, 300, 10))
    p.is_as(paused=True)
    p.on(YieldIndex(), ForgetStorageIndex(), Store(DATA[300:310]))


@playbook()
def an_upload_that_is_completed_keeps_its_storage_index(p: Playbook) -> None:
    p.given(AssignReceived(1, SI), put(2, 0, 100), Stored(100), finish(3, 100))
    p.on(YieldIndex())
    p.is_as(storage_index=SI)


# -- the helper starts again ------------------------------------------------------------------------------------

BEFORE_PUBLISHING = (State.OPEN, State.COMPLETING, State.READY)
DECIDED = finish(-1, 100)  # as recorded; nobody waits for an answer to it


def resumed(state: State, durable: int, si: bytes | None = None, error: errors.StreamingError | None = None) -> Resumed:
    """As recorded before publication was decided."""
    return Resumed(state.value, durable, si, None, None, error, unplaced=True)


def resumed_decided(state: State, durable: int = 100, error: errors.StreamingError | None = None, *,
                    unplaced: bool = True) -> Resumed:
    """As recorded since: of an upload of 100 bytes."""
    return Resumed(state.value, durable, SI, DECIDED, UEB, error, unplaced)


@playbook()
def resumed_with_few_bytes_it_is_open_and_no_server_is_contacted(p: Playbook) -> None:
    p.on(resumed(State.OPEN, 49))
    p.is_as(state=State.OPEN, received=49, durable=49, credit=1000, storage_index_needed=False, error=None)
    p.on(put(1, 50, 10), refused(1, "offset-gap", expected=49, came=50))
    p.on(put(2, 49, 10), Store(DATA[49:59]))
    p.on(Stored(59), acknowledged(2, 59), BeginPlacing())


@playbook()
def resumed_with_more_bytes_servers_are_contacted_at_once_and_once(p: Playbook) -> None:
    p.on(resumed(State.OPEN, 50), BeginPlacing())
    p.on(put(1, 50, 50), Store(DATA[50:100]))
    p.on(Stored(100), acknowledged(1, 100))


@playbook()
def resumed_it_is_known_as_before_whether_the_storage_index_is_needed(p: Playbook) -> None:
    p.given(attrs.evolve(resumed(State.OPEN, 49), staging_enough=False))
    p.is_as(storage_index_needed=True)
    p.on(put(1, 49, 10), Store(DATA[49:59]))
    p.on(Stored(59), needing(1, 59), BeginPlacing())


@playbook()
def resumed_without_knowing_it_no_storage_index_is_needed_before_it_is_known(p: Playbook) -> None:
    p.given(resumed(State.OPEN, 49))
    p.is_as(storage_index_needed=False)
    p.on(StagingEnough(False))
    p.is_as(storage_index_needed=True)


@playbook()
def resumed_with_a_storage_index_servers_are_told_it_before_they_are_contacted(p: Playbook) -> None:
    p.on(resumed(State.OPEN, 50, SI), UseStorageIndex(SI), BeginPlacing())
    p.is_as(storage_index_needed=False)
    p.on(AssignReceived(1, SI), state_is(1, "open"))
    p.on(AssignReceived(2, OTHER_SI), refused(2, "storage-index-conflict"))
    p.on(finish(3, 50, OTHER_SI), refused(3, "literal-size", limit=55, came=50))
    p.on(put(4, 50, 50), Store(DATA[50:100]))
    p.on(Stored(100), acknowledged(4, 100))
    p.on(finish(5, 100, OTHER_SI), refused(5, "storage-index-conflict"))


@playbook()
def resumed_with_a_storage_index_and_few_bytes(p: Playbook) -> None:
    p.on(resumed(State.OPEN, 0, SI), UseStorageIndex(SI))
    p.on(put(1, 0, 50), Store(DATA[:50]))
    p.on(Stored(50), acknowledged(1, 50), BeginPlacing())


@playbook()
def an_early_storage_index_outlives_a_refused_finish_after_a_restart(p: Playbook) -> None:
    p.given(resumed(State.OPEN, 100, SI), finish(1, 100, hashes=(b"x" * 32, HASHES[1])), completed(100))
    p.is_as(state=State.OPEN, storage_index=SI, assigned_index=SI)


@playbook()
def what_is_resumed_is_compared_with_what_is_sent_again(p: Playbook) -> None:
    p.given(resumed(State.OPEN, 100))
    p.on(PutReceived(1, 90, bytes(20)), Compare(1, 90, bytes(10)))
    p.on(Compared(1, same=False), refused(1, "conflicting-data", offset=90, length=20))
    p.on(put(2, 90, 20), Compare(2, 90, DATA[90:100]))
    p.on(Compared(2, same=True), Store(DATA[100:110]))
    p.on(Stored(110), acknowledged(2, 110))


@playbook()
def the_lag_counts_from_what_was_resumed(p: Playbook) -> None:
    p.given(resumed(State.OPEN, 300, SI))
    p.on(put(1, 300, 10))
    p.is_as(paused=True)
    p.on(PushedTo(99))
    p.on(PushedTo(100), Store(DATA[300:310]))


@playbook()
def resumed_as_completing_it_is_open_again(p: Playbook) -> None:
    p.on(resumed(State.COMPLETING, 100), BeginPlacing())
    p.is_as(state=State.OPEN, finish=None, storage_index=None)
    p.on(put(1, 100, 10), Store(DATA[100:110]))
    p.on(Stored(110), acknowledged(1, 110))
    p.on(finish(2, 110), Complete(110))
    p.on(completed(110), SealShares(SI))


@playbook()
def resumed_as_ready_it_is_open_again_and_may_be_finished_as_before(p: Playbook) -> None:
    p.on(resumed(State.READY, 100), BeginPlacing())
    p.is_as(state=State.OPEN)
    p.on(finish(2, 100), Complete(100))
    p.on(completed(100), SealShares(SI))
    p.on(SharesReady(), RecordPublishing())
    p.on(PublishRecorded(), PublishShares())
    p.on(AnswerRuleMet(), RecordResult())
    p.on(ResultRecorded(), result(2))


@playbook()
def resumed_as_open_it_may_be_aborted_and_servers_are_waited_for(p: Playbook) -> None:
    p.given(resumed(State.OPEN, 100, SI))
    p.on(AbortReceived(1), *END)
    p.on(AbortReceived(2))
    p.on(Abandoned(), state_is(1, "aborted"), state_is(2, "aborted"))


@playbook()
def resumed_as_open_it_expires(p: Playbook) -> None:
    p.given(resumed(State.OPEN, 10))
    p.on(IdleFor(9999, 10_000, 100))
    p.on(IdleFor(10_000, 10_000, 100), *END)


@playbook()
def resumed_as_publishing_it_is_published_though_nobody_asks(p: Playbook) -> None:
    p.on(resumed_decided(State.PUBLISHING), UseStorageIndex(SI), BeginPlacing(), Complete(100))
    p.is_as(state=State.PUBLISHING, received=100, durable=100, storage_index=SI, error=None)
    p.on(completed(100), SealShares(SI), PublishShares())
    p.on(completed(100))  # it is told whenever there are more blocks
    p.on(SharesReady())
    p.on(AnswerRuleMet(), RecordResult())
    p.on(ResultRecorded())
    p.on(finish(1, 100), result(1))


@playbook()
def resumed_as_publishing_every_finish_waits_for_the_result(p: Playbook) -> None:
    p.given(resumed_decided(State.PUBLISHING))
    p.on(finish(1, 100))
    p.given(completed(100))
    p.on(finish(2, 100))
    p.on(finish(3, 101), refused(3, "size-mismatch", expected=100, came=101))
    p.on(finish(4, 100, OTHER_SI), refused(4, "storage-index-conflict"))
    p.on(finish(5, 100, hashes=(HASHES[0], b"x" * 32)), refused(5, "hash-mismatch", field="crypttext_root_hash"))
    p.given(AnswerRuleMet())
    p.on(ResultRecorded(), result(1), result(2))


@playbook()
def resumed_as_publishing_other_calls_are_answered_as_before(p: Playbook) -> None:
    p.given(resumed_decided(State.PUBLISHING))
    p.on(AbortReceived(1), refused(1, "already-publishing", state="publishing"))
    p.on(AssignReceived(2, SI), state_is(2, "publishing"))
    p.on(AssignReceived(3, OTHER_SI), refused(3, "storage-index-conflict"))
    p.on(put(4, 100, 1), refused(4, "already-finishing", state="publishing"))
    p.on(put(5, 90, 10), Compare(5, 90, DATA[90:100]))
    p.on(Compared(5, same=True), acknowledged(5, 100))
    p.on(IdleFor(9999, 10_000, 100))
    p.on(StoreFailed("EIO"))
    p.on(Failed(errors.InternalError("KeyError")))
    p.on(finish(6, 100))
    p.on(TooFewServers(4, 7), Reply(6, {"code": "waiting", "state": "publishing", "have": 4, "need": 7}))


@playbook()
def resumed_as_publishing_with_another_ueb_nothing_is_published(p: Playbook) -> None:
    p.given(resumed_decided(State.PUBLISHING), finish(1, 100), finish(2, 100))
    differs = {"kind": "spool-differs"}
    p.on(attrs.evolve(completed(100), ueb=b"another"),
         refused(1, "internal-error", **differs), refused(2, "internal-error", **differs))
    p.is_as(state=State.PUBLISHING, ueb=UEB)
    p.on(completed(100))
    p.on(finish(3, 100), refused(3, "internal-error", **differs))
    p.on(put(4, 0, 10), refused(4, "internal-error", **differs))
    p.on(AbortReceived(5), refused(5, "already-publishing", state="publishing"))


@playbook()
def resumed_as_finished_the_last_shares_are_placed_and_the_result_is_there(p: Playbook) -> None:
    p.on(resumed_decided(State.FINISHED), UseStorageIndex(SI), BeginPlacing(), Complete(100))
    p.on(finish(1, 100), result(1))
    p.on(completed(100), SealShares(SI), PublishShares())
    p.on(SharesReady())
    p.on(AnswerRuleMet())
    p.on(finish(2, 100), result(2))


@playbook()
def resumed_as_finished_with_another_ueb_the_result_stays(p: Playbook) -> None:
    p.given(resumed_decided(State.FINISHED))
    p.on(attrs.evolve(completed(100), ueb=b"another"))
    p.on(completed(100))
    p.on(finish(1, 100), result(1))
    p.is_as(state=State.FINISHED, error=None)


@playbook()
def resumed_as_finished_without_ciphertext_only_the_result_is_there(p: Playbook) -> None:
    p.on(resumed_decided(State.FINISHED, 0, unplaced=False))
    p.is_as(state=State.FINISHED, received=100, durable=100, storage_index=SI)
    p.on(finish(1, 100), result(1))
    p.on(finish(2, 99), refused(2, "size-mismatch", expected=100, came=99))
    p.on(AssignReceived(3, SI), state_is(3, "finished"))
    p.on(put(4, 0, 10), refused(4, "already-finishing", state="finished"))
    p.on(AbortReceived(5), refused(5, "already-publishing", state="finished"))


@playbook()
def a_result_outlives_a_spool_that_was_damaged(p: Playbook) -> None:
    p.on(resumed_decided(State.FINISHED, 0, errors.SpoolFailed("damaged"), unplaced=False))
    p.on(finish(1, 100), result(1))
    p.is_as(error=None)


def test_uploads_that_have_ended_stay_so_after_a_restart() -> None:
    for state, error in ((State.ABORTED, errors.Aborted()), (State.EXPIRED, errors.Expired(10_000)),
                         (State.FAILED, errors.TooFewServers(4, 7))):
        p = Playbook()
        p.on(Resumed(state.value, 0, SI, None, None, error, unplaced=False))
        refuses_everything_but_abort(p, state, error)


def test_an_upload_that_cannot_be_resumed_has_failed() -> None:
    for state in BEFORE_PUBLISHING:
        p = Playbook()
        p.on(resumed(state, 0, SI, errors.SpoolFailed("damaged")))
        refuses_everything_but_abort(p, State.FAILED, errors.SpoolFailed("damaged"))


def refuses_everything_but_abort(p: Playbook, state: State, error: errors.StreamingError) -> None:
    p.is_as(state=state)
    p.on(put(1, 0, 10), Refused(1, error.code, error.fields()))
    p.on(AssignReceived(2, SI), Refused(2, error.code, error.fields()))
    p.on(finish(3, 100), Refused(3, error.code, error.fields()))
    p.on(AbortReceived(4), state_is(4, state.value))
    for event in (IdleFor(10**9, 10_000, 100), StoreFailed("EIO"), TooFewServers(4, 7)):
        p.on(event)
    p.is_as(state=state, storage_index_needed=False)


@playbook()
def publishing_that_cannot_be_resumed_is_still_publishing(p: Playbook) -> None:
    """Some shares may have been closed before: nobody may be told that the upload is gone."""
    p.on(resumed_decided(State.PUBLISHING, 0, errors.SpoolFailed("damaged"), unplaced=False))
    p.is_as(state=State.PUBLISHING)
    for call, event in ((1, put(1, 0, 10)), (2, AssignReceived(2, SI)), (3, finish(3, 100))):
        p.on(event, refused(call, "spool-failed", reason="damaged"))
    p.on(AbortReceived(4), refused(4, "already-publishing", state="publishing"))
    p.on(IdleFor(9999, 10_000, 100))  # it was not empty, though nothing of it can be read
    p.on(IdleFor(10_000, 10_000, 100), *END)
    p.on(finish(5, 100), refused(5, "expired", idle_seconds=10_000))


@playbook()
def stopping_after_a_restart_refuses_what_waits(p: Playbook) -> None:
    p.given(resumed_decided(State.PUBLISHING), finish(1, 100), put(2, 0, 10))
    stopped(p, 2, 1)


# -- the helper stops -----------------------------------------------------------------------------------------


def stopped(p: Playbook, *unanswered: int) -> None:
    """The helper stops: what is unanswered is refused, as is every later call; nothing else is done any more."""
    state = p.session.state
    p.on(Stopping(), *(refused(call, "helper-stopping") for call in unanswered))
    for event in (Stored(2000), Compared(3, same=True), PushedTo(100), StagingEnough(False), completed(100),
                  SharesReady(), PublishRecorded(), AnswerRuleMet(), ResultRecorded(), TooFewServers(4, 7),
                  TooFewShares(2, 3), Abandoned(), IdleFor(10**9, 10_000, 100), StoreFailed("EIO"),
                  Failed(errors.InternalError("KeyError"))):
        p.on(event)
    p.on(put(90, 0, 10), refused(90, "helper-stopping"))
    p.on(AssignReceived(91, SI), refused(91, "helper-stopping"))
    p.on(finish(92, 100), refused(92, "helper-stopping"))
    p.on(AbortReceived(93), refused(93, "helper-stopping"))
    p.is_as(state=state)


@playbook()
def stopping_while_open_refuses_what_is_not_durable_and_ends_nothing(p: Playbook) -> None:
    p.durable(250)
    p.given(AssignReceived(1, SI), put(2, 250, 10), put(3, 10, 10))
    p.is_as(paused=True)
    stopped(p, 2, 3)


@playbook()
def stopping_before_any_call(p: Playbook) -> None:
    stopped(p)


@playbook()
def stopping_while_finish_waits_for_bytes(p: Playbook) -> None:
    p.given(put(1, 0, 100), finish(2, 100), finish(3, 100))
    stopped(p, 1, 2, 3)


@playbook()
def stopping_while_hashes_are_compared(p: Playbook) -> None:
    to_completing(p)
    stopped(p, 50)


@playbook()
def stopping_while_shares_are_completed(p: Playbook) -> None:
    to_sealing(p)
    stopped(p, 50)


@playbook()
def stopping_when_ready(p: Playbook) -> None:
    """The decision may be on its way to the disk: then the next run publishes."""
    to_ready(p)
    stopped(p, 50)


@playbook()
def stopping_while_publishing(p: Playbook) -> None:
    to_publishing(p)
    stopped(p, 50)


@playbook()
def stopping_while_the_result_is_recorded(p: Playbook) -> None:
    to_publishing(p)
    p.given(AnswerRuleMet())
    stopped(p, 50)


@playbook()
def stopping_when_finished(p: Playbook) -> None:
    to_finished(p)
    stopped(p)


@playbook()
def stopping_while_servers_let_go_of_an_aborted_upload(p: Playbook) -> None:
    p.given(AbortReceived(1), AbortReceived(2))
    stopped(p, 1, 2)
    p.is_as(state=State.ABORTED)


@playbook()
def stopping_when_failed(p: Playbook) -> None:
    p.given(Failed(errors.InternalError("KeyError")), Abandoned())
    stopped(p)


@playbook()
def stopping_when_expired(p: Playbook) -> None:
    p.given(IdleFor(100, 10_000, 100))
    stopped(p)


# -- all of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_playbook(name: str) -> None:
    play, make = PLAYBOOKS[name]
    play(make())


def test_the_playbooks_take_every_transition_there_is() -> None:
    taken: set[tuple[State, State]] = set()
    for play, make in PLAYBOOKS.values():
        p = make()
        play(p)
        taken |= p.taken
    assert taken == {(before, after) for before, afters in TRANSITIONS.items() for after in afters}


@pytest.mark.parametrize("state", State)
def test_a_transition_that_is_not_in_the_table_is_a_bug(state: State) -> None:
    session = Session(PARAMETERS, LIMITS)
    session.state = state
    for other in set(State) - TRANSITIONS[state]:
        with pytest.raises(RuntimeError, match=f"no transition from {state.value} to {other.value}"):
            session._go(other)
