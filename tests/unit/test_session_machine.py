"""helper/session.py under any order of events, against a model of what a client may rely on.

The machine is client and driver at once: it makes calls, right and wrong, and does (or delays) what it is
commanded. At the end everything outstanding is done, and every call must have been answered exactly once. The
helper may stop or be killed at any time, and starts again with what was recorded and what is durable.
"""

from __future__ import annotations

import hashlib
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helper import errors, events
from helper.ciphertext import CiphertextHashes
from helper.parameters import Parameters
from helper.session import ENDED, Limits, Session, State

LIMITS = Limits(credit=300, pushing_lag=100, largest_message=120, contact_after=60)
CONTENT = hashlib.shake_128(b"ciphertext").digest(4096)
INDEXES = [b"storage-index-16", b"another-si-of-16"]
#: 0 and 1 seldom come: they are for what ends most uploads, or few runs would get far. (Hypothesis prefers ends.)
SELDOM = st.integers(0, 63).map(lambda x: (x + 40) % 64)
lengths = st.integers(1, LIMITS.largest_message)


def hashes_of(data: bytes) -> tuple[bytes, bytes]:
    return hashlib.sha256(b"flat" + data).digest(), hashlib.sha256(b"root" + data).digest()


class SessionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.waiting: dict[int, Any] = {}  # call: the event that brought it
        self.handed = bytearray()
        self.stores: list[int] = []  # offsets at which what the driver was given to store ends
        self.compares: list[events.Compare] = []
        self.completes: list[events.Complete] = []
        self.durable = 0
        self.placing = False
        self.in_a_second = 0  # of the last PushedTo
        self.told: bytes | None = None  # the storage index that servers may know
        self.told_early: bytes | None = None
        self.assigned: bytes | None = None
        self.adopted: bytes | None = None  # the file that was taken instead
        self.record = State.OPEN
        self.decided: tuple[events.FinishReceived, bytes] | None = None  # finish and UEB, once they are recorded
        self.unplaced = True
        self.dropped = False
        self.nothing_under_way()

    def nothing_under_way(self) -> None:
        self.compares.clear()
        self.completes.clear()
        self.sealing = self.recording = self.publishing = self.recording_result = self.abandoning = False

    @initialize(size=st.none() | st.integers(56, 800), segment=st.sampled_from([16, 90, 200]), enough=st.booleans())
    def begin(self, size: int | None, segment: int, enough: bool) -> None:
        self.size = size
        self.session = Session(Parameters(3, 2, 4, segment, size), LIMITS)
        self.enough = enough
        self.tell(events.StagingEnough(enough))

    # -- telling the session ---------------------------------------------------------------------------------

    def tell(self, event: Any, call: int | None = None) -> None:
        before = self.seen()
        refused = False
        for command in self.session.handle(event):
            match command:
                case events.Refuse(number, error):
                    self.waiting.pop(number)
                    assert error.code in errors.BY_CODE
                    assert error.text()
                    refused |= number == call
                case events.Reply(number, fields):
                    self.check_reply(self.waiting.pop(number), fields)
                case events.Store(data):
                    assert not self.dropped
                    self.handed += data
                    self.stores.append(len(self.handed))
                    assert CONTENT.startswith(bytes(self.handed))
                case events.Compare(_call, offset, data):
                    assert offset + len(data) <= self.session.durable
                    self.compares.append(command)
                case events.Complete(size):
                    assert size == len(self.handed) == self.session.durable
                    self.completes.append(command)
                case events.ForgetCompletion():
                    assert self.session.state is State.OPEN
                case _:
                    self.carry_out(command)
        if refused:  # protocol.txt §3.4
            assert self.seen() == before

    def carry_out(self, command: events.Command) -> None:
        """What is done with shares and spool."""
        match command:
            case events.BeginPlacing():
                assert not self.placing
                self.placing = True
            case events.UseStorageIndex(storage_index):
                assert self.told_early is None
                assert self.session.state not in ENDED
                assert self.decided is None or storage_index == self.decided[0].storage_index
                self.told_early = storage_index
                self.learn(storage_index)
            case events.SealShares(storage_index):
                assert self.placing
                self.learn(storage_index)
                self.sealing = True
            case events.RecordPublishing():
                self.recording = True
            case events.PublishShares():
                assert self.decided is not None
                self.publishing = True
            case events.RecordResult():
                self.recording_result = True
            case events.AbandonShares():
                assert not self.publishing or self.session.state is State.EXPIRED
                self.publishing = self.sealing = False
                self.abandoning = True
            case events.DropSpool():
                self.dropped = True

    def learn(self, storage_index: bytes) -> None:
        """Servers are told a storage index: one that the client has assigned, or that of a finish that is right."""
        assert self.told in (None, storage_index)
        assert storage_index == self.session.storage_index
        self.told = storage_index

    def seen(self) -> tuple[object, ...]:
        """Everything about the upload that anybody can observe."""
        s = self.session
        return (s.state, s.received, s.durable, s.credit, s.pushed, s.paused, s.storage_index, s.storage_index_needed,
                s.ueb, s.error, len(self.handed), self.placing, self.told)

    def check_reply(self, event: Any, fields: Any) -> None:
        match event:
            case events.PutReceived(_call, offset, data):
                assert offset + len(data) <= fields["durable"] == self.session.durable <= len(self.handed)
                assert self.handed[offset:offset + len(data)] == data
                # An answer that says so must say so truly, and no other answer says anything else.
                needed = self.session.state is State.OPEN and self.session.storage_index is None and not self.enough
                assert fields.get("storage-index-needed", 0) == int(needed)
                assert set(fields) <= {"durable", "credit", "storage-index-needed"}
            case events.FinishReceived():
                if fields.get("code") == "waiting":
                    assert self.session.state is State.PUBLISHING
                else:
                    assert self.session.state is State.FINISHED
                    assert fields["ueb"] == b"UEB of %d" % event.size
                    assert self.told == event.storage_index
                    assert (event.crypttext_hash, event.crypttext_root_hash) == hashes_of(bytes(self.handed))
            case events.AssignReceived(_call, storage_index):
                assert self.assigned in (None, storage_index)
                self.assigned = storage_index
            case events.AbortReceived():
                assert self.session.state in ENDED
            case events.AdoptReceived(_call, storage_index):
                assert self.session.state is State.DEDUPLICATED
                assert self.decided is None
                assert self.adopted in (None, storage_index)
                self.adopted = storage_index

    def call(self, make: Any, *arguments: Any) -> None:
        number, self.calls = self.calls, self.calls + 1
        event = make(number, *arguments)
        self.waiting[number] = event
        self.tell(event, number)

    # -- what a client does -----------------------------------------------------------------------------------

    @rule(length=lengths)
    def send_the_next_bytes(self, length: int) -> None:
        start = self.session.received
        self.call(events.PutReceived, start, CONTENT[start:start + length])

    @rule(back=st.integers(1, 400), length=lengths)
    def send_bytes_again_and_perhaps_some_more(self, back: int, length: int) -> None:
        start = max(0, self.session.received - back)
        self.call(events.PutReceived, start, CONTENT[start:start + length])

    @rule(back=st.integers(1, 400), length=lengths, where=st.integers(0, 119))
    def send_other_bytes(self, back: int, length: int, where: int) -> None:
        start = max(0, self.session.received - back)
        data = bytearray(CONTENT[start:start + length])
        held = min(length, self.session.received - start)
        if held:  # nothing tells a helper that new bytes are wrong
            data[where % held] ^= 1
            self.call(events.PutReceived, start, bytes(data))

    @rule(offset=st.sampled_from([-1, 2**53, 2**63]) | st.integers(1, 50), length=st.sampled_from([0, 1, 121]))
    def send_nonsense(self, offset: int, length: int) -> None:
        start = self.session.received + offset if 0 < offset < 100 else offset
        self.call(events.PutReceived, start, bytes(length))

    @rule(storage_index=st.sampled_from([*INDEXES, b"", b"short"]))
    def assign(self, storage_index: bytes) -> None:
        self.call(events.AssignReceived, storage_index)

    @rule(storage_index=st.sampled_from([INDEXES[0], INDEXES[0], INDEXES[1], b"short"]),
          off=st.sampled_from([0, 0, 0, 0, 1, -1, -2**54]),
          wrong=st.sampled_from(["", "", "", "flat", "root", "short"]))
    def finish(self, storage_index: bytes, off: int, wrong: str) -> None:
        flat, root = hashes_of(CONTENT[:self.session.received])
        flat, root = (bytes(32) if wrong == "flat" else flat), (bytes(32) if wrong == "root" else root)
        self.call(events.FinishReceived, self.session.received + off, storage_index, flat,
                  root[:20] if wrong == "short" else root)

    @rule()
    def finish_as_it_should_be(self) -> None:
        self.call(events.FinishReceived, self.session.received, self.assigned or INDEXES[0],
                  *hashes_of(CONTENT[:self.session.received]))

    @rule(mind=SELDOM, storage_index=st.sampled_from(INDEXES))
    def adopt(self, mind: int, storage_index: bytes) -> None:
        if mind == 0:
            self.call(events.AdoptReceived, storage_index)

    @rule(mind=SELDOM)
    def abort(self, mind: int) -> None:
        if mind == 0:
            self.call(events.AbortReceived)

    # -- what happens -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.session.durable < len(self.handed) and not self.dropped)
    @rule(part=st.floats(0, 1))
    def bytes_become_durable(self, part: float) -> None:
        left = len(self.handed) - self.session.durable
        self.tell(events.Stored(self.session.durable + max(1, int(left * part))))

    @precondition(lambda self: self.placing)
    @rule(part=st.sampled_from([0.0, 0.5, 0.9, 1.0, 1.0]), in_a_second=st.sampled_from([0, 0, 150, 1000]))
    def shares_are_pushed(self, part: float, in_a_second: int) -> None:
        self.in_a_second = in_a_second
        self.tell(events.PushedTo(int(part * self.session.durable), in_a_second))

    @precondition(lambda self: self.compares)
    @rule()
    def bytes_are_compared(self) -> None:
        compare = self.compares.pop(0)
        same = self.handed[compare.offset:compare.offset + len(compare.data)] == compare.data
        self.tell(events.Compared(compare.call, same))

    @precondition(lambda self: self.completes)
    @rule()
    def the_last_segment_is_hashed(self) -> None:
        size = self.completes.pop(0).size
        flat, root = hashes_of(CONTENT[:size])
        self.tell(events.Completed(CiphertextHashes(size, flat, root), b"UEB of %d" % size))

    @precondition(lambda self: self.sealing)
    @rule()
    def shares_are_ready(self) -> None:
        self.sealing = False
        self.tell(events.SharesReady())

    @precondition(lambda self: self.recording)
    @rule()
    def the_decision_is_recorded(self) -> None:
        self.recording = False
        self.record_decision()
        self.tell(events.PublishRecorded())

    def record_decision(self) -> None:
        assert self.session.finish is not None
        assert self.session.ueb is not None
        self.decided = self.session.finish, self.session.ueb
        self.record = State.PUBLISHING

    @precondition(lambda self: self.publishing)
    @rule()
    def enough_shares_close(self) -> None:
        self.publishing = False
        self.tell(events.AnswerRuleMet())

    @precondition(lambda self: self.recording_result)
    @rule()
    def the_result_is_recorded(self) -> None:
        self.recording_result = False
        self.record = State.FINISHED
        self.tell(events.ResultRecorded())

    @precondition(lambda self: self.abandoning)
    @rule()
    def shares_are_let_go(self) -> None:
        self.abandoning = False
        self.tell(events.Abandoned())

    @precondition(lambda self: self.placing)
    @rule(mind=SELDOM)
    def servers_are_lost(self, mind: int) -> None:
        if mind == 0 or self.session.state is State.PUBLISHING:
            self.tell(events.TooFewServers(1, 2))

    @rule(enough=st.booleans())
    def staging_servers_come_or_go(self, enough: bool) -> None:
        self.enough = enough
        self.tell(events.StagingEnough(enough))

    @rule(mind=SELDOM)
    def nobody_calls(self, mind: int) -> None:
        self.tell(events.IdleFor({0: 500, 1: 50}.get(mind, 5), 400, 40))

    @rule(mind=SELDOM)
    def something_breaks(self, mind: int) -> None:
        if mind == 0:
            self.tell(events.StoreFailed("EIO"))
        elif mind == 1:
            self.tell(events.Failed(errors.InternalError("KeyError")))

    @precondition(lambda self: self.session.can_let_go)
    @rule(messages=st.integers(0, 3))
    def others_want_the_memory(self, messages: int) -> None:
        """Messages for which there was no room in the spool, the last ones that were to be stored, are let go."""
        ends = [end for end in [self.session.durable, *self.stores] if self.session.durable <= end]
        keep = ends[max(0, len(ends) - 1 - messages)]
        unstored = len(self.handed) - keep
        self.driver_lets_go_of_all_beyond(keep)
        self.tell(events.MemoryWanted(unstored))
        assert self.session.received == keep

    def driver_lets_go_of_all_beyond(self, offset: int) -> None:
        del self.handed[offset:]
        self.stores = [end for end in self.stores if end <= offset]

    @rule()
    def the_disk_and_servers_keep_up(self) -> None:
        if self.session.durable < len(self.handed) and not self.dropped:
            self.tell(events.Stored(len(self.handed)))
        if self.placing:
            self.in_a_second = 0
            self.tell(events.PushedTo(self.session.durable))
        while self.compares:
            self.bytes_are_compared()

    # -- restarts of the helper ---------------------------------------------------------------------------------

    @rule(mind=st.integers(0, 9), part=st.floats(0, 1), landed=st.booleans(), unplaced=st.booleans())
    def the_helper_stops_and_starts_again(self, mind: int, part: float, landed: bool, unplaced: bool) -> None:
        """Or is killed. What is on its way to the disk then has `landed` there, or has not; so has a part of the
        bytes that nobody was told about."""
        if mind > 2:
            return
        if mind == 0:
            self.stop()
        self.waiting.clear()  # with the connections
        if landed and self.recording:
            self.record_decision()
        if landed and self.recording_result:
            self.record = State.FINISHED
        before, state = self.session, self.session.state if self.session.state in ENDED else self.record
        assert state not in ENDED or self.dropped
        durable = before.durable + int(part * (len(self.handed) - before.durable))
        self.unplaced = state is not State.FINISHED or unplaced
        if state in ENDED or not self.unplaced:
            durable = 0
        if self.decided is None or state in ENDED:
            self.driver_lets_go_of_all_beyond(durable)
            self.told = self.assigned  # stock servers have dropped their shares; staging servers never knew it
            self.durable = durable
        if state in ENDED:
            self.record = state
        finish, ueb = self.decided or (None, None)
        if finish is not None:
            finish = attrs.evolve(finish, call=-1)
        self.nothing_under_way()
        self.placing, self.told_early = False, None
        self.session = Session(before.parameters, LIMITS)
        self.tell(events.Resumed(
            state.value, durable, self.known_index(), finish, ueb,
            before.error if state in ENDED else None, self.unplaced and state not in ENDED))
        assert self.session.state is (State.OPEN if self.decided is None and state not in ENDED else state)
        self.tell(events.StagingEnough(self.enough))

    def known_index(self) -> bytes | None:
        """As it is recorded."""
        return self.adopted or (self.assigned if self.decided is None else self.decided[0].storage_index)

    def stop(self) -> None:
        state = self.session.state
        self.tell(events.Stopping())
        assert not self.waiting  # each is told to come again
        for event in (events.Stored(len(self.handed)), events.StoreFailed("EIO"), events.TooFewServers(1, 2),
                      events.IdleFor(500, 400, 40), events.Failed(errors.InternalError("KeyError"))):
            assert not self.session.handle(event)
        self.finish_as_it_should_be()
        self.call(events.AbortReceived)
        assert not self.waiting
        assert self.session.state is state

    # -- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def bounds_hold(self) -> None:
        s = self.session
        assert self.durable <= s.durable <= len(self.handed) <= s.received
        assert s.received - s.durable <= LIMITS.credit
        assert 0 <= s.credit <= LIMITS.credit
        assert self.size is None or s.received <= self.size
        assert s.received <= len(CONTENT)
        assert (s.error is not None) == (s.state in ENDED)
        held = sum(len(e.data) for e in self.waiting.values() if isinstance(e, events.PutReceived))
        assert held <= 2 * LIMITS.credit + LIMITS.largest_message
        # Bytes wait for servers only where pushing can go on, is behind, and more bytes may come.
        if s.paused:
            assert self.placing
            assert s.state is State.OPEN
            assert s.storage_index is not None or self.enough
            assert s.durable - s.pushed > max(LIMITS.pushing_lag, min(self.in_a_second, 2 * LIMITS.pushing_lag),
                                              2 * s.parameters.full_segment_size)
        # Placing waits for nothing but bytes.
        assert self.placing or s.durable < LIMITS.contact_after or s.state in ENDED or not self.unplaced
        self.durable = s.durable

    def teardown(self) -> None:
        """Everything that is under way happens at last: every call must get its answer."""
        if not hasattr(self, "session"):
            return
        for _round in range(20):
            self.the_disk_and_servers_keep_up()
            for pending, happen in (("completes", self.the_last_segment_is_hashed), ("sealing", self.shares_are_ready),
                                    ("recording", self.the_decision_is_recorded),
                                    ("publishing", self.enough_shares_close),
                                    ("recording_result", self.the_result_is_recorded),
                                    ("abandoning", self.shares_are_let_go)):
                while getattr(self, pending):
                    happen()
        if self.session.state is State.OPEN:
            self.call(events.AbortReceived)
            self.shares_are_let_go()
        assert not self.waiting
        assert self.session.state in (*ENDED, State.FINISHED)


SessionMachine.TestCase.settings = settings(stateful_step_count=60)
TestSessionMachine = SessionMachine.TestCase
