"""The life of one upload as rules: events in, commands out; protocol.txt §6.  (pure)

No sockets, files, clocks, threads or randomness: the driver (uploads.py) tells what happened and carries
out what is decided. State names go over the wire and into records: never change one silently.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from helper import errors
from helper.events import (
    Abandoned,
    AbandonShares,
    AbortReceived,
    AdoptReceived,
    AnswerRuleMet,
    AssignReceived,
    BeginPlacing,
    CannotComplete,
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
from helper.interfaces import HASH_SIZE, LITERAL_MAX, SIZE_MAX, STORAGE_INDEX_SIZE
from helper.parameters import Parameters


class State(enum.Enum):
    """protocol.txt §6.1."""

    OPEN = "open"  # takes ciphertext
    COMPLETING = "completing"  # finish accepted; hashes compared, shares being completed
    READY = "ready"  # enough shares complete and acknowledged; last moment to give up
    PUBLISHING = "publishing"  # decided; shares are being closed; cannot be aborted
    FINISHED = "finished"  # the answer rule is met and the result known
    DEDUPLICATED = "deduplicated"  # the client took a file that was there before; that is its result
    ABORTED = "aborted"
    FAILED = "failed"
    EXPIRED = "expired"


#: protocol.txt §6.2: every transition there is.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.OPEN: frozenset({State.COMPLETING, State.DEDUPLICATED, State.ABORTED, State.FAILED, State.EXPIRED}),
    State.COMPLETING: frozenset({State.OPEN, State.READY, State.ABORTED, State.FAILED}),
    State.READY: frozenset({State.PUBLISHING, State.ABORTED, State.FAILED}),
    State.PUBLISHING: frozenset({State.FINISHED, State.EXPIRED}),
    State.FINISHED: frozenset(),
    State.DEDUPLICATED: frozenset(),
    State.ABORTED: frozenset(),
    State.FAILED: frozenset(),
    State.EXPIRED: frozenset(),
}

ENDED = frozenset({State.DEDUPLICATED, State.ABORTED, State.FAILED, State.EXPIRED})
_BEFORE_PUBLISHING = frozenset({State.OPEN, State.COMPLETING, State.READY})


#: The pushing lag may become what servers take in a second, but no more than so many times the setting.
LAG_MOST = 2


@attrs.frozen
class Limits:
    """What bounds one upload; bytes."""

    credit: int
    pushing_lag: int
    largest_message: int
    contact_after: int
    quota: int = SIZE_MAX


@attrs.define
class _Overlap:
    """A put_ciphertext call that repeats bytes already received."""

    put: PutReceived
    compared_to: int  # offset up to which the bytes have been, or are being, compared
    comparing: bool = False


class Session:
    """The rules of one upload. Feed every event to `handle`; carry out the commands in order."""

    def __init__(self, parameters: Parameters, limits: Limits) -> None:
        self.parameters = parameters
        self.limits = limits
        self.state = State.OPEN
        self.received = 0  # bytes accepted, in order
        self.durable = 0
        self.pushed = 0
        self._pushed_in_a_second = 0
        self.placing = False
        self.staging_enough: bool | None = False  # None after a restart that does not know it
        self.storage_index: bytes | None = None
        self.error: errors.StreamingError | None = None
        self.ueb: bytes | None = None
        self._handed = 0  # bytes given to the spool
        self._held: deque[bytes] = deque()  # received, waiting for the pushing lag to shrink
        self._unanswered: deque[tuple[int, int]] = deque()  # (call, end offset) of puts, in order
        self._overlaps: dict[int, _Overlap] = {}
        self.finish: FinishReceived | None = None
        self._finish_calls: list[int] = []
        self._abort_calls: list[int] = []
        self._abandoned = False
        self._stopping = False
        self._publish_again = False  # shares are to be published that an earlier run did not get to
        self.assigned_index: bytes | None = None  # early; that of `finish` may still be refused with its hashes
        self.adopted_index: bytes | None = None  # of the file that was taken instead
        self._handlers: dict[type, Callable[[Any], list[Command]]] = {
            PutReceived: self._put, Stored: self._stored, StoreFailed: self._store_failed,
            Compared: self._compared, PushedTo: self._pushed_to, StagingEnough: self._staging_changed,
            AssignReceived: self._assign, YieldIndex: self._yield_index, AdoptReceived: self._adopt,
            FinishReceived: self._finish_received, Completed: self._completed, SharesReady: self._shares_ready,
            PublishRecorded: self._publish_recorded, AnswerRuleMet: self._answer_rule_met,
            ResultRecorded: self._result_recorded, Resumed: self._resumed, Stopping: self._stop,
            TooFewServers: self._too_few_servers, TooFewShares: self._too_few_servers, AbortReceived: self._abort,
            Abandoned: self._was_abandoned, IdleFor: self._idle_for, Failed: self._failed,
            CannotComplete: self._cannot_complete, MemoryWanted: self._memory_wanted,
        }

    def handle(self, event: object) -> list[Command]:
        """What to do about an event."""
        if self._stopping:
            return self._after_stopping(event)
        return self._handlers[type(event)](event)

    @property
    def credit(self) -> int:
        """Bytes that may still be sent before an answer comes (protocol.txt §7)."""
        return max(0, self.limits.credit - (self.received - self.durable))

    @property
    def storage_index_needed(self) -> bool:
        """Whether pushing waits for the client to reveal the storage index (protocol.txt §4.4)."""
        # While it is not known the client keeps it to itself: what was revealed cannot be taken back.
        return self.state is State.OPEN and self.storage_index is None and self.staging_enough is False

    @property
    def paused(self) -> bool:
        """Whether received bytes wait because too few servers keep up."""
        return bool(self._held)

    # -- ciphertext --------------------------------------------------------------------------------

    def _put(self, put: PutReceived) -> list[Command]:
        error = self._refusal_of_put(put)
        if error is not None:
            return [Refuse(put.call, error)]
        if put.offset < self.received:
            self._overlaps[put.call] = _Overlap(put, put.offset)
            return self._compare_held()
        return self._accept(put)

    def _refusal_of_put(self, put: PutReceived) -> errors.StreamingError | None:
        end = put.offset + len(put.data)
        if self.error is not None:
            return self.error
        if len(put.data) > self.limits.largest_message:
            return errors.MessageTooLarge(self.limits.largest_message, len(put.data))
        if not put.data:
            return errors.BadArgument("data", f"1 to {self.limits.largest_message} bytes", "0 bytes")
        if put.offset < 0 or end > SIZE_MAX:
            return errors.BadArgument("offset", f"a number from 0 to {SIZE_MAX - len(put.data)}", str(put.offset))
        if end > self.limits.quota:
            return errors.QuotaExceeded(self.limits.quota, end)
        declared = self.parameters.size
        if declared is not None and end > declared:
            return errors.SizeExceeded(declared, end)
        if put.offset > self.received:
            return errors.OffsetGap(self.received, put.offset)
        if self.state is not State.OPEN and (end > self.received or self.state is State.FINISHED):
            return errors.AlreadyFinishing(self.state.value)
        if self.received + max(0, end - self.received) - self.durable > self.limits.credit:
            return errors.CreditExceeded(self.limits.credit, end - self.durable)
        repeated = sum(len(overlap.put.data) for overlap in self._overlaps.values())
        if put.offset < self.received and repeated + len(put.data) > self.limits.credit:
            return errors.CreditExceeded(self.limits.credit, repeated + len(put.data))
        return None

    def _accept(self, put: PutReceived) -> list[Command]:
        self.received = put.offset + len(put.data)
        self._unanswered.append((put.call, self.received))
        self._held.append(put.data)
        return self._release()

    def _release(self) -> list[Command]:
        """Hand received bytes to the spool while the pushing lag allows (protocol.txt §7)."""
        # Fast servers would wait for the disk in turns with it, if there were no more for them than slow ones need.
        limit = min(max(self.limits.pushing_lag, self._pushed_in_a_second), LAG_MOST * self.limits.pushing_lag)
        # A segment is pushed whole: with less than two in the lag nothing could ever move.
        limit = max(limit, 2 * self.parameters.full_segment_size)
        # After `finish` no more bytes come, and what is held must become durable before shares can end.
        limited = self.placing and self.state is State.OPEN and not self.storage_index_needed
        commands: list[Command] = []
        while self._held and not (limited and self.durable - self.pushed > limit):
            data = self._held.popleft()
            self._handed += len(data)
            commands.append(Store(data))
        return commands

    def _stored(self, event: Stored) -> list[Command]:
        self.durable = max(self.durable, event.durable)
        if self.state in ENDED:
            return []
        commands: list[Command] = []
        while self._unanswered and self._unanswered[0][1] <= self.durable:
            call, _end = self._unanswered.popleft()
            commands.append(self._durable_answer(call))
        commands += self._compare_held()
        if self.durable >= self.limits.contact_after:
            commands += self._begin_placing()
        if self.state is State.COMPLETING:
            commands += self._complete_when_durable()
        return commands

    def _durable_answer(self, call: int) -> Reply:
        fields: dict[str, int | str | bytes] = {"durable": self.durable, "credit": self.credit}
        if self.storage_index_needed:
            fields["storage-index-needed"] = 1
        return Reply(call, fields)

    def _compare_held(self) -> list[Command]:
        """Ask for the comparison of repeats whose held part is durable."""
        commands: list[Command] = []
        for call, overlap in self._overlaps.items():
            put = overlap.put
            end = min(put.offset + len(put.data), self.received)
            if not overlap.comparing and end <= self.durable and overlap.compared_to < end:
                start, overlap.compared_to, overlap.comparing = overlap.compared_to, end, True
                commands.append(Compare(call, start, put.data[start - put.offset:end - put.offset]))
        return commands

    def _compared(self, event: Compared) -> list[Command]:
        overlap = self._overlaps.get(event.call)
        if overlap is None:  # refused meanwhile, with the upload
            return []
        overlap.comparing = False
        put = overlap.put
        end = put.offset + len(put.data)
        if not event.same:
            del self._overlaps[event.call]
            return [Refuse(put.call, errors.ConflictingData(put.offset, len(put.data)))]
        if overlap.compared_to < min(end, self.received):
            return self._compare_held()  # more was received while we compared
        del self._overlaps[event.call]
        if end <= self.received:
            return [self._durable_answer(put.call)]
        rest = PutReceived(put.call, self.received, put.data[self.received - put.offset:])
        return self._put(rest)

    def _pushed_to(self, event: PushedTo) -> list[Command]:
        self.pushed, self._pushed_in_a_second = event.position, event.in_a_second
        return self._release()

    def _staging_changed(self, event: StagingEnough) -> list[Command]:
        self.staging_enough = event.enough
        return self._release()

    def _store_failed(self, event: StoreFailed) -> list[Command]:
        if self.state not in _BEFORE_PUBLISHING:
            return []  # over, or every byte was durable before
        return self._end(State.FAILED, errors.SpoolFailed(event.reason))

    @property
    def can_let_go(self) -> bool:
        """Whether what is not durable yet may be forgotten: nothing of it was acknowledged, nor is all of it hashed."""
        return self.state in (State.OPEN, State.COMPLETING) and self.ueb is None and self.error is None

    def _memory_wanted(self, event: MemoryWanted) -> list[Command]:
        if not self.can_let_go:
            raise ValueError(f"an upload that is {self.state.value} needs what it has")
        self._held.clear()
        self._handed -= event.unstored
        self.received = self._handed
        error = errors.MemoryShort()
        calls = [call for call, end in self._unanswered if end > self.received]
        self._unanswered = deque((call, end) for call, end in self._unanswered if end <= self.received)
        calls += self._overlaps
        self._overlaps.clear()
        commands: list[Command] = [Refuse(call, error) for call in calls]
        if self.finish is not None and self.received < self.finish.size:
            commands += self._reopen(error)
        return commands

    # -- storage index -------------------------------------------------------------------------------

    def _assign(self, event: AssignReceived) -> list[Command]:
        if self.error is not None:
            return [Refuse(event.call, self.error)]
        error = self._refusal_of_index(event.storage_index)
        if error is not None:
            return [Refuse(event.call, error)]
        commands: list[Command] = [Reply(event.call, {"state": self.state.value})]
        if self.assigned_index is None and self.state in _BEFORE_PUBLISHING:
            commands.append(UseStorageIndex(event.storage_index))
        self.storage_index = self.assigned_index = event.storage_index
        return commands

    def _yield_index(self, _event: YieldIndex) -> list[Command]:
        if self.state is not State.OPEN or self.assigned_index is None:
            return []
        self.storage_index = self.assigned_index = None
        return [ForgetStorageIndex(), *self._release()]

    def _refusal_of_index(self, storage_index: bytes) -> errors.StreamingError | None:
        if len(storage_index) != STORAGE_INDEX_SIZE:
            return errors.BadStorageIndex(STORAGE_INDEX_SIZE, len(storage_index))
        if self.storage_index is not None and storage_index != self.storage_index:
            return errors.StorageIndexConflict()
        return None

    def _begin_placing(self) -> list[Command]:
        if self.placing:
            return []
        self.placing = True
        return [BeginPlacing()]

    def _adopt(self, event: AdoptReceived) -> list[Command]:
        if self.adopted_index is not None:
            if event.storage_index != self.adopted_index:
                return [Refuse(event.call, errors.StorageIndexConflict())]
            return [Reply(event.call, {"state": self.state.value})]
        if self.error is not None:
            return [Refuse(event.call, self.error)]
        if self.state is not State.OPEN:
            return [Refuse(event.call, errors.AlreadyFinishing(self.state.value))]
        self.adopted_index = event.storage_index
        return [*self._end(State.DEDUPLICATED, errors.Deduplicated()),
                Reply(event.call, {"state": self.state.value})]

    # -- completion ------------------------------------------------------------------------------------

    def _finish_received(self, event: FinishReceived) -> list[Command]:
        error = self._refusal_of_finish(event)
        if error is not None:
            return [Refuse(event.call, error)]
        if self.state is State.FINISHED:
            return [self._result(event.call)]
        self._finish_calls.append(event.call)
        if self.state is not State.OPEN:
            return []
        self.finish = event
        self.storage_index = event.storage_index
        self._go(State.COMPLETING)
        return [*self._release(), *self._complete_when_durable()]

    def _refusal_of_finish(self, event: FinishReceived) -> errors.StreamingError | None:
        if self.error is not None:
            return self.error
        if 0 <= event.size <= LITERAL_MAX:
            return errors.LiteralSize(LITERAL_MAX, event.size)
        for field in ("crypttext_hash", "crypttext_root_hash"):
            length = len(getattr(event, field))
            if length != HASH_SIZE:
                return errors.BadArgument(field, f"{HASH_SIZE} bytes", f"{length} bytes")
        error = self._refusal_of_index(event.storage_index)
        if error is not None:
            return error
        expected = self.received if self.parameters.size is None else self.parameters.size
        for size in (expected, self.received):
            if event.size != size:
                return errors.SizeMismatch(size, event.size)
        if self.finish is not None:  # a repeat: what was accepted once must be asked for again
            for field in ("crypttext_hash", "crypttext_root_hash"):
                if getattr(event, field) != getattr(self.finish, field):
                    return errors.HashMismatch(field)
        return None

    def _complete_when_durable(self) -> list[Command]:
        if self.finish is None or self.ueb is not None or self.durable < self.finish.size:
            return []
        return [Complete(self.finish.size)]

    def _completed(self, event: Completed) -> list[Command]:
        if self.finish is not None and self._publish_again:
            self._publish_again = False
            if event.ueb != self.ueb:  # the spool was verified: a bug, or another version's
                if self.state is State.FINISHED:
                    return []  # its result is known and stays; only the last shares are not placed
                self.error = errors.InternalError("spool-differs")
                return self._refuse_all(self.error)
            return [SealShares(self.finish.storage_index), PublishShares()]
        if self.state is not State.COMPLETING or self.finish is None or self.ueb is not None:
            return []  # ended meanwhile, or told twice
        for field in ("crypttext_hash", "crypttext_root_hash"):
            if getattr(event.hashes, field) != getattr(self.finish, field):
                return self._reopen(errors.HashMismatch(field))
        self.ueb = event.ueb
        return [*self._begin_placing(), SealShares(self.finish.storage_index)]

    def _reopen(self, error: errors.StreamingError) -> list[Command]:
        """`finish` is refused after all."""
        calls, self._finish_calls = self._finish_calls, []
        self.finish, self.storage_index = None, self.assigned_index
        self._go(State.OPEN)
        return [ForgetCompletion(), *(Refuse(call, error) for call in calls)]

    def _shares_ready(self, _event: SharesReady) -> list[Command]:
        if self.state is not State.COMPLETING:
            return []
        self._go(State.READY)
        return [RecordPublishing()]

    def _publish_recorded(self, _event: PublishRecorded) -> list[Command]:
        if self.state is not State.READY:
            return []
        self._go(State.PUBLISHING)
        return [PublishShares()]

    def _answer_rule_met(self, _event: AnswerRuleMet) -> list[Command]:
        return [RecordResult()] if self.state is State.PUBLISHING else []

    def _result_recorded(self, _event: ResultRecorded) -> list[Command]:
        if self.state is not State.PUBLISHING:
            return []
        self._go(State.FINISHED)
        self.error = None
        calls, self._finish_calls = self._finish_calls, []
        return [self._result(call) for call in calls]

    def _result(self, call: int) -> Reply:
        return Reply(call, {"state": self.state.value, "ueb": self.ueb or b""})

    # -- restarts of the helper ----------------------------------------------------------------------------------

    def _resumed(self, event: Resumed) -> list[Command]:
        """protocol.txt §11: up to ready an upload is open again; from publishing on it is published."""
        self.received = self.durable = self._handed = event.durable
        self.staging_enough = event.staging_enough
        state = State(event.state)
        # What an earlier run could not let go of expires.
        self._abandoned = state in ENDED or event.error is not None
        if state is State.DEDUPLICATED:
            self.adopted_index = event.storage_index
        if event.error is not None and state is not State.FINISHED:  # a result is one whatever became of the spool
            self.state, self.error = (State.FAILED if state in _BEFORE_PUBLISHING else state), event.error
            return []
        self.storage_index = event.storage_index
        if state in _BEFORE_PUBLISHING:
            self.assigned_index = event.storage_index
            commands: list[Command] = [] if event.storage_index is None else [UseStorageIndex(event.storage_index)]
            return [*commands, *(self._begin_placing() if self.durable >= self.limits.contact_after else [])]
        self.state, self.finish, self.ueb = state, event.finish, event.ueb
        if event.finish is not None:  # all of it was durable; the spool may be gone since
            self.received = self.durable = self._handed = event.finish.size
        if not event.unplaced or self.finish is None:
            return []
        self._publish_again = True
        return [UseStorageIndex(self.finish.storage_index), *self._begin_placing(), Complete(self.finish.size)]

    def _stop(self, _event: Stopping) -> list[Command]:
        self._stopping = True
        error = errors.HelperStopping()
        if self.error is None:
            self.error = error
        aborts, self._abort_calls = self._abort_calls, []
        return [*self._refuse_all(error), *(Refuse(call, error) for call in aborts)]

    def _after_stopping(self, event: object) -> list[Command]:
        """What breaks or ends now is not recorded any more: doing anything about it, as dropping the spool, would
        lose what the next run goes on with."""
        if isinstance(event, PutReceived | AssignReceived | AdoptReceived | FinishReceived | AbortReceived):
            return [Refuse(event.call, errors.HelperStopping())]
        return []

    # -- ends ----------------------------------------------------------------------------------------

    def _too_few_servers(self, event: TooFewServers | TooFewShares) -> list[Command]:
        if self.state in _BEFORE_PUBLISHING:
            error = errors.TooFewShares if isinstance(event, TooFewShares) else errors.TooFewServers
            return self._end(State.FAILED, error(event.have, event.need))
        if self.state is State.PUBLISHING:
            calls, self._finish_calls = self._finish_calls, []
            waiting: dict[str, int | str | bytes] = {
                "code": "waiting", "state": self.state.value, "have": event.have, "need": event.need}
            return [Reply(call, waiting) for call in calls]
        return []

    def _abort(self, event: AbortReceived) -> list[Command]:
        if self.state in ENDED:
            if self._abandoned:
                return [Reply(event.call, {"state": self.state.value})]
            self._abort_calls.append(event.call)
            return []
        if self.state not in _BEFORE_PUBLISHING:
            return [Refuse(event.call, errors.AlreadyPublishing(self.state.value))]
        self._abort_calls.append(event.call)
        return self._end(State.ABORTED, errors.Aborted())

    def _was_abandoned(self, _event: Abandoned) -> list[Command]:
        self._abandoned = True
        calls, self._abort_calls = self._abort_calls, []
        return [Reply(call, {"state": self.state.value}) for call in calls]

    def _idle_for(self, event: IdleFor) -> list[Command]:
        publishing = self.state is State.PUBLISHING  # what was there may not be readable any more
        limit = event.limit if self.received or publishing else event.limit_if_empty
        if not (publishing or self.state is State.OPEN) or event.seconds < limit:
            return []
        return self._end(State.EXPIRED, errors.Expired(event.seconds))

    def _failed(self, event: Failed) -> list[Command]:
        return self._end(State.FAILED, event.error) if self.state in _BEFORE_PUBLISHING else []

    def _cannot_complete(self, event: CannotComplete) -> list[Command]:
        if self.state is State.PUBLISHING:  # as if the spool had been found damaged at a restart
            self.error = event.error
            return self._refuse_all(event.error)
        return self._failed(Failed(event.error))

    def _end(self, state: State, error: errors.StreamingError) -> list[Command]:
        self._go(state)
        self.error = error
        return [*self._refuse_all(error), AbandonShares(), DropSpool()]

    def _refuse_all(self, error: errors.StreamingError) -> list[Command]:
        """Refuse every call that is not answered."""
        calls = [call for call, _end in self._unanswered]
        calls += [*self._overlaps, *self._finish_calls]
        self._unanswered.clear()
        self._overlaps.clear()
        self._finish_calls = []
        self._held.clear()
        return [Refuse(call, error) for call in calls]

    def _go(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"no transition from {self.state.value} to {state.value}")
        self.state = state
