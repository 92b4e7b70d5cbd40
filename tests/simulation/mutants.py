"""Deliberate bugs, each of which the simulation must find: what it would not find it does not test.

What can be is put in at a seam: a disk that is asked otherwise, a ledger's file of another kind. For the rest a method
of ours is replaced for the time of a run. This is the one place of all tests where our code is patched.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import attrs
from twisted.internet.defer import DeferredList
from twisted.internet.task import deferLater

from client_shim import dedup, outbox, reconnect, window
from client_shim.errors import HelperLost
from helper import dedup as helper_dedup
from helper import (
    dedup_search,
    events,
    ledger,
    leftovers,
    placing,
    pushing,
    session,
    shares,
    spool,
    spool_file,
    spool_records,
    upload,
    uploads,
    uptime,
)
from helper.parameters import Parameters
from helper.session import State
from helper.spool_records import HEADER_SIZE, Recovered
from helper.upload import Answered
from helper.wal_database import Change
from simulation.simulated_world import NO_BUGS, Seams, SimulatedLedgerFile


@attrs.frozen
class Mutant:
    """A bug: what is put in at seams, and what is replaced while `active`."""

    seams: Seams = NO_BUGS
    active: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


class _Asked:
    """A disk that is asked something else than the spool asks it."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _NoDataSync(_Asked):
    def fdatasync(self, _fd: int) -> None:
        pass


class _NoDirectorySync(_Asked):
    def fsync(self, fd: int) -> None:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):
            self._real.fsync(fd)


class _SyncTriedAgain(_Asked):
    def fdatasync(self, fd: int) -> None:
        try:
            self._real.fdatasync(fd)
        except OSError:
            self._real.fdatasync(fd)


class _ErrorsOfWritesIgnored(_Asked):
    def pwritev(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        try:
            count: int = self._real.pwritev(fd, buffers, offset)
        except OSError:
            return sum(map(len, buffers))
        return count


class _LazyLedgerFile(SimulatedLedgerFile):
    """Says that a change is durable, and makes it with the next."""

    def open(self) -> bool:
        self._late: list[Change] = []
        return super().open()

    def apply(self, changes: Iterable[Change]) -> None:
        late, self._late = self._late, list(changes)
        super().apply(late)


# -- durability -------------------------------------------------------------------------------------------------


def _acknowledge_when_received(self: session.Session, put: events.PutReceived) -> list[events.Command]:
    self.received = put.offset + len(put.data)
    self._held.append(put.data)
    return [events.Reply(put.call, {"durable": self.received, "credit": self.credit}), *self._release()]


def _recover_by_size(read: Callable[[int, int], bytes], size: int) -> Recovered:
    """Whatever length the file has was stored."""
    starts, ends = array("Q"), array("Q")
    position = offset = 0
    while position < size:
        header = spool_records._unpacked(read(position, min(HEADER_SIZE, size - position)))
        length = size - position - HEADER_SIZE if header is None else header.length
        length = min(length, size - position - HEADER_SIZE)
        if length <= 0:
            break
        starts.append(offset)
        offset += length
        ends.append(offset)
        position += HEADER_SIZE + length
    return Recovered(starts, ends, position)


def _write_once(fd: int, pieces: list[bytes], position: int, system: Any = os) -> None:
    system.pwritev(fd, [memoryview(piece) for piece in pieces], position)


def _publish_before_the_ledger(real: Callable[[upload.Upload], None]) -> Callable[[upload.Upload], None]:
    def record_publishing(self: upload.Upload) -> None:
        self.tell(events.PublishRecorded())
        self._services.clock.callLater(0.05, _if_alive, self, real)

    return record_publishing


def _if_alive(self: upload.Upload, record: Callable[[upload.Upload], None]) -> None:
    if self.session.finish is not None:
        record(self)


def _forgotten_when_it_fails(self: ledger.Ledger, _failure: Any, batch: Any) -> None:
    self._committed(None, batch)


def _drop_at_once(self: upload.Upload, remove: Callable[[], None]) -> None:
    if self.over or self.session.error is None:
        remove()


# -- what peers do -----------------------------------------------------------------------------------------------


def _overlap_accepted(self: upload.Upload, call: int, _offset: int, _data: bytes) -> None:
    self._services.clock.callLater(0, self.tell, events.Compared(call, True))


def _encrypted_again(real: Callable[[outbox.Outbox], None]) -> Callable[[outbox.Outbox], None]:
    """What has to be sent again is made anew, of a plaintext that has changed meanwhile."""

    def disconnected(self: outbox.Outbox) -> None:
        real(self)
        for message in list(self._again)[:1]:
            self._again[0] = outbox.Message(message.offset, bytes([message.data[0] ^ 1]) + message.data[1:])

    return disconnected


def _forgotten_when_lost(self: outbox.Outbox) -> None:
    self._window = None
    self._on_their_way.clear()


async def _not_looked_for(self: reconnect.Reconnecting) -> None:
    raise HelperLost()


async def _patience_by_the_clock(self: reconnect.Reconnecting, greet: Any, patience: float) -> None:
    began = self._clock.seconds()
    while not await self._once(greet):
        await deferLater(self._clock, reconnect.BACKOFF_MAX)
        if self._clock.seconds() - began > patience:
            raise HelperLost(int(patience))


def _never_idle(self: session.Session, _event: events.IdleFor) -> list[events.Command]:
    return []


def _uptime_by_the_clock(self: uptime.Uptime, _recorded: float) -> None:
    self._looked = self.seconds = self._clock.seconds()


def _published_for_ever(self: session.Session, event: events.IdleFor) -> list[events.Command]:
    return [] if self.state is State.PUBLISHING else _IDLE_FOR(self, event)


_IDLE_FOR = session.Session._idle_for


# -- shares ------------------------------------------------------------------------------------------------------


def _begins_where_others_are(self: placing.ShareHomes, share: shares.Share, _sink: Any) -> None:
    size = self._pipeline.segment_size
    if size is not None:
        share.next_segment = share.segments_held = self.durable // size


def _shares_left_behind(self: pushing.SharePusher) -> Any:
    self.stop()
    return DeferredList([])


async def _staged_unrecorded(_self: upload.Upload, _server_id: bytes) -> None:
    pass


def _answered_too_early(self: pushing.SharePusher) -> bool:
    return any(s.state is shares.ShareState.CLOSED for s in self._shares)


def _ready_too_early(self: session.Session, event: events.Completed) -> list[events.Command]:
    commands = _COMPLETED(self, event)
    if self.state is State.COMPLETING and self.ueb is not None:
        self._go(State.READY)
        commands.append(events.RecordPublishing())
    return commands


_COMPLETED = session.Session._completed


# -- files that are stored already --------------------------------------------------------------------------------


def _some_will_do(homes: Mapping[int, Any], parameters: Parameters) -> bool:
    return len(homes) >= parameters.k


async def _believed(_self: dedup.Finder, *_arguments: Any) -> bool:
    return True


def _placed_for_ever(self: uploads.Uploads, storage_index: bytes) -> bytes | None:
    """What it has placed once is there."""
    upload = self._by_index.get(storage_index)
    return None if upload is None or upload.session.state is not State.FINISHED else upload.session.ueb


def _taken_unasked(real: Callable[..., Awaitable[Answered]]) -> Callable[..., Awaitable[Answered]]:
    """Whoever asks for a file wants it."""

    async def look_up(self: uploads.Uploads, upload_id: bytes, convergent_index: bytes) -> Answered:
        answered = await real(self, upload_id, convergent_index)
        if "ueb" in answered.fields:
            await self.adopt(upload_id, convergent_index)
        return answered

    return look_up


def _replacing(where: Any, name: str, function: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: patch.object(where, name, function)


def _wrapping(where: Any, name: str, wrap: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def active() -> Iterator[None]:
        with patch.object(where, name, wrap(getattr(where, name))):
            yield

    return active


def _everywhere(name: str, function: Any, *modules: Any) -> Callable[[], AbstractContextManager[Any]]:
    """Wherever it was imported."""

    @contextmanager
    def active() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for module in modules:
                stack.enter_context(patch.object(module, name, function))
            yield

    return active


MUTANTS: dict[str, Mutant] = {
    "acknowledged before fdatasync": Mutant(active=_replacing(session.Session, "_accept", _acknowledge_when_received)),
    "no fdatasync": Mutant(Seams(system=_NoDataSync)),
    "no fsync of the directory": Mutant(Seams(system=_NoDirectorySync)),
    "a failed fdatasync is tried again": Mutant(Seams(system=_SyncTriedAgain)),
    "errors of writes are ignored": Mutant(Seams(system=_ErrorsOfWritesIgnored)),
    "short writes are taken for whole ones": Mutant(active=_replacing(spool_file, "pwrite_all", _write_once)),
    "the offset is the size of the file": Mutant(active=_replacing(spool, "recover", _recover_by_size)),
    "the ledger says durable too early": Mutant(Seams(ledger_file=_LazyLedgerFile)),
    "what the ledger could not take is forgotten": Mutant(
        active=_replacing(ledger.Ledger, "_commit_failed", _forgotten_when_it_fails)),
    "a ledger that has failed is never tried again": Mutant(
        active=_replacing(ledger.Ledger, "_retry", lambda _self: None)),
    "published before the ledger knows": Mutant(
        active=_wrapping(upload.Upload, "_record_publishing", _publish_before_the_ledger)),
    "ciphertext dropped before the end is recorded": Mutant(
        active=_replacing(upload.Upload, "when_end_recorded", _drop_at_once)),
    "an overlap is accepted unseen": Mutant(active=_replacing(upload.Upload, "_compare", _overlap_accepted)),
    "the window is ignored": Mutant(active=_replacing(window.SendWindow, "may_send", lambda _self, _length: True)),
    "encrypted again after a change": Mutant(active=_wrapping(outbox.Outbox, "disconnected", _encrypted_again)),
    "what was on its way is forgotten": Mutant(active=_replacing(outbox.Outbox, "disconnected", _forgotten_when_lost)),
    "a lost helper is not looked for": Mutant(
        active=_replacing(reconnect.Reconnecting, "_find_again", _not_looked_for)),
    "patience goes by the clock": Mutant(active=_replacing(reconnect.Reconnecting, "_again", _patience_by_the_clock)),
    "idle time goes by the clock": Mutant(  # it is no longer min(elapsed, …)
        active=lambda: patch.object(uptime, "min", lambda elapsed, _most: elapsed, create=True)),
    "time in which the helper was down is idle time": Mutant(
        active=_replacing(uptime.Uptime, "begin", _uptime_by_the_clock)),
    "nothing ever expires": Mutant(active=_replacing(session.Session, "_idle_for", _never_idle)),
    "publication never expires": Mutant(active=_replacing(session.Session, "_idle_for", _published_for_ever)),
    "a share with a new server begins where others are": Mutant(
        active=_replacing(placing.ShareHomes, "_go_on", _begins_where_others_are)),
    "shares are left behind": Mutant(active=_replacing(pushing.SharePusher, "abandon", _shares_left_behind)),
    "staged before it is recorded where": Mutant(
        active=_replacing(upload.Upload, "_will_stage_on", _staged_unrecorded)),
    "servers that were away are not told": Mutant(
        active=_replacing(leftovers.Leftovers, "look", lambda _self: None)),
    "answered with too few shares": Mutant(
        active=_replacing(pushing.SharePusher, "_closed_enough", _answered_too_early)),
    "a file is taken although a share is missing": Mutant(
        active=_everywhere("is_whole", _some_will_do, dedup_search, helper_dedup)),
    "a record is believed without a look at the shares": Mutant(
        active=_replacing(uploads.Uploads, "_being_placed", _placed_for_ever)),
    "a file is taken unseen": Mutant(active=_replacing(dedup.Finder, "_is_right", _believed)),
    "a file is taken before the client wants it": Mutant(
        active=_wrapping(uploads.Uploads, "look_up", _taken_unasked)),
    "decided with too few shares": Mutant(active=_replacing(session.Session, "_completed", _ready_too_early)),
}
