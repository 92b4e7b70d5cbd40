"""One helper with its disk, its clients and its servers, moved step by step."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import attrs
from dedup_worlds import store
from forgetful_disk import ForgetfulDisk, PowerFailed
from twisted.internet.defer import Deferred, succeed
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from world import SMALL

from helper.foolscap_edge import StreamingHelper
from helper.ledger import Ledger
from helper.ledger_file import LEDGER_NAME, LedgerFile, Recorded
from helper.parameters import Parameters
from helper.session import State
from helper.settings import Settings
from helper.spool import ASIDE, Spool
from helper.upload import Upload
from helper.uploads import Uploads
from helper.wal_database import Change
from simulation import invariants
from simulation.clients import Client
from simulation.clocks import QuickClock, SettableClock
from simulation.faults import INJECT, FaultKind
from simulation.links import FaultyLink
from simulation.schedule import File, Planned, Schedule
from simulation.servers import SimulatedGrid, Unsteady

_QUICK_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
#: Whoever runs the helper starts it again after so many seconds when it could not start.
OPERATOR_NOTICES = 15.0


class SimulatedLedgerFile(LedgerFile):
    """The real one. `fails`: "" or when the next change fails: "before" or "after" it is durable. From then on it is
    `broken`, and cannot be opened anew, until somebody says that it is not."""

    fails = ""
    broken = False
    failed: Callable[[], None] = staticmethod(lambda: None)

    def apply(self, changes: Iterable[Change]) -> None:
        self._check()
        fails, self.fails = self.fails, ""
        if fails != "before":
            super().apply(changes)
        if fails:
            self.broken = True
            self.failed()
            self._check()

    def reopen(self) -> Recorded:
        self._check()
        return super().reopen()

    def _check(self) -> None:
        if self.broken:
            raise sqlite3.OperationalError("disk I/O error")

    def state_of(self, storage_index: bytes) -> list[str]:
        """States recorded of the uploads of a storage index."""
        return [state for (state,) in self.select(
            "SELECT state FROM uploads WHERE storage_index = ?", storage_index)]


@attrs.frozen
class Seams:
    """What a deliberate bug can be put in at: `system` stands between the spool and its disk."""

    system: Callable[[ForgetfulDisk], Any] = lambda disk: disk
    ledger_file: type[SimulatedLedgerFile] = SimulatedLedgerFile


NO_BUGS = Seams()


@attrs.frozen
class LostShare:
    """One that was stored, and when it was lost (seconds)."""

    storage_index: bytes
    shnum: int
    server_id: bytes
    at: float


class SimulatedWorld:
    """A schedule's world; use it as a context manager. `step` moves it; see run.py."""

    def __init__(self, schedule: Schedule, watch: Callable[[str], None] = lambda _line: None,
                 seams: Seams = NO_BUGS) -> None:
        self.schedule = schedule
        self.choose = random.Random(f"run {schedule.seed}")
        self.settings: Settings = _settings(schedule)
        self.clock = QuickClock()
        self.clock.rightNow = 1e9
        self.grid = SimulatedGrid(self.clock, schedule.stock_servers, schedule.staging_servers)
        for server in self.servers:
            server.delay = self._server_delay
        self.clients = [Client(number, program, self) for number, program in enumerate(schedule.programs)]
        self.steps = 0
        self.fired_kinds: Counter[FaultKind] = Counter()
        self.transitions: Counter[tuple[str, str]] = Counter()
        self.liars: set[Unsteady] = set()
        self.running = False
        self.ledger_failed = False
        self.ended = 0  # how often the helper's process has
        self.thread_delay = 0.0
        self.published = 0  # shares, when it was looked last
        self._watch = watch
        self._seams = seams
        self._planned = list(schedule.faults)
        self._failures_to_come: dict[str, list[Planned]] = {}
        self._in_call: tuple[Planned, bool, float] | None = None
        self._servers_to_go: dict[str, Planned] = {}  # by the state of an upload at which they do
        self._links: list[FaultyLink] = []
        self._waiting_for_helper: list[Deferred[None]] = []
        self._strangers: list[bytes] = []  # uploads that are only there to take room
        self._ahead = 0.0  # of the helper's clock
        self._was_up, self._up_since = 0.0, 0.0  # how long the helper was, in runs before, and since when it is now
        self.lost: list[LostShare] = []
        self._losses_to_come: list[Planned] = []
        self.times_set_forward = 0  # the helper's clock, while it ran
        self.process = SettableClock(self.clock)
        self.failures: list[LogEvent] = []
        self._violations: list[invariants.Violation] = []  # seen where an error would be taken for one of a callback

    @property
    def servers(self) -> list[Unsteady]:
        return cast(list[Unsteady], self.grid.servers)

    def __enter__(self) -> Self:
        globalLogPublisher.addObserver(cast(ILogObserver, self._observe))
        self.directory = Path(tempfile.mkdtemp(prefix="tahoe-stream-simulation", dir=_QUICK_DISK))
        (self.directory / "spool").mkdir()
        self.disk = ForgetfulDisk(self.directory / "spool", self.choose)
        self.disk.on_failure = self._disk_failed
        for file in self.schedule.stored:
            self._put(file)
        for client in self.clients:
            client.start()
        self.start()
        return self

    def _put(self, file: File) -> None:
        encoded = invariants.encoding_of(file)
        servers = self.grid.in_order(encoded.storage_index)
        for shnum, share in encoded.shares.items():
            store(servers[shnum % len(servers)], encoded.storage_index, shnum, share)

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _traceback: TracebackType | None) -> None:
        globalLogPublisher.removeObserver(cast(ILogObserver, self._observe))
        if self.running:
            self._end_process()
        shutil.rmtree(self.directory)

    def _observe(self, event: LogEvent) -> None:
        if "before" in event and "after" in event:
            self.transitions[event["before"], event["after"]] += 1
            if event["after"] in self._servers_to_go:
                self._servers_go(event["after"], self._servers_to_go.pop(event["after"]))
            self.note(f"upload {event['upload']}: {event['before']} -> {event['after']} ({event.get('code')})")
        if event.get("log_failure") is not None:
            self.failures.append(event)

    def note(self, line: str) -> None:
        """For the trace."""
        self._watch(f"{self.steps:5} {self.clock.seconds() - 1e9:12.4f}  {line}")

    # -- steps -------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Everything that is due at the next moment at which anything is; then what is planned. False if nothing is
        due any more."""
        due = self.clock.due()
        if due is None:
            return False
        self.steps += 1
        self.clock.advance(max(0.0, due - self.clock.rightNow))
        while self._planned and self._planned[0].step <= self.steps:
            planned = self._planned.pop(0)
            INJECT[planned.kind](self, planned)
        invariants.check_step(self)
        if self._violations:
            raise self._violations[0]
        return True

    @property
    def faults_left(self) -> bool:
        return bool(self._planned)

    def later(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        """Something that happens outside of every process."""
        self.clock.callLater(seconds, function, *args)

    def fired(self, planned: Planned) -> None:
        """A fault has really happened."""
        self.fired_kinds[planned.kind] += 1
        self.note(f"FAULT {planned.kind.value} ({planned.amount:.3f}, target {planned.target})")

    def duration(self, typical: float) -> float:
        """Some seconds: mostly few."""
        return typical * self.choose.random() ** 3 * 2 if typical else 0.0

    # -- the helper's process ------------------------------------------------------------------------------------

    def start(self) -> None:
        """The helper's process begins, if it can."""
        if self.running:
            return
        self.process = SettableClock(self.clock, self._ahead)
        in_thread = partial(self._in_thread, self.process)
        self.spool = Spool(self.directory / "spool", in_thread, self._seams.system(self.disk))
        self.ledger_file = self._seams.ledger_file(self.directory / LEDGER_NAME)
        self.ledger = Ledger(self.ledger_file, in_thread, self.process)
        try:
            self.spool.start()
            recorded = self.ledger.open()
        except OSError as e:
            self.note(f"the helper cannot start: {e}")
            self.spool.stop()
            self.later(OPERATOR_NOTICES, self.start)
            return
        self.running, self._up_since = True, self.clock.seconds()
        invariants.check_spool_size(self)
        self.uploads = Uploads(self.settings, self.spool, self.ledger, self.grid.seen_by(self.process), self.process,
                               in_thread)
        self.uploads.start(recorded)
        self.edge = StreamingHelper(self.uploads)
        self.note("the helper runs")
        waiting, self._waiting_for_helper = self._waiting_for_helper, []
        for d in waiting:
            d.callback(None)

    def when_running(self) -> Deferred[None]:
        """Fires when there is a helper to connect to."""
        if self.running:
            return succeed(None)
        self._waiting_for_helper.append(Deferred())
        return self._waiting_for_helper[-1]

    def kill(self, power: bool = False, away: float = 0.0) -> None:
        """The helper's process ends at once, with its machine if the power fails; it starts again after `away`
        seconds."""
        self._end_process()
        if power:
            self.disk.fail_power()
        self.later(away, self.start)

    def go_by_unseen(self, seconds: float) -> None:
        """So much more time goes by for the helper, which does not run, than for anybody else."""
        self._ahead += seconds

    @property
    def up(self) -> float:
        """Seconds for which the helper ran."""
        return self._was_up + (self.clock.seconds() - self._up_since if self.running else 0.0)

    def stop(self, away: float) -> None:
        """The helper's process ends in good order."""
        self.uploads.stop()
        process = self.process

        def closed(_result: object) -> None:
            if self.process is process and self.running:
                self.kill(away=away)

        self.ledger.close().addBoth(closed)

    def _end_process(self) -> None:
        self._was_up = self.up
        self.running = False
        self.ended += 1
        self.times_set_forward += self.process.times_set_forward
        self.process.end()
        self._ahead = self.process.ahead
        self._in_call, self.disk.calls_left = None, None
        self.spool.stop()
        for fd in list(self.disk._descriptors):
            self.disk.close(fd)
        self.ledger_file.close()
        self.grid.client_died()
        for server in self.servers:
            server.client_died()
        links, self._links = self._links, []
        for link in links:
            link.cut()
        self.note("the helper is gone")

    def _in_thread(self, process: SettableClock, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run `function` later, and answer later still, if the process lives."""
        d: Deferred[Any] = Deferred()
        self.clock.callLater(self.duration(self.schedule.thread) + self.thread_delay, self._work, process, d, function,
                             args)
        return d

    def _work(self, process: SettableClock, d: Deferred[Any], function: Callable[..., Any],
              args: tuple[Any, ...]) -> None:
        if process.ended:
            return
        if self._in_call is not None:
            self.disk.calls_left = int(self._in_call[0].amount * 1000) % 7
        result: Any
        try:
            result = function(*args)
        except PowerFailed:
            self._died_in_call()
            return
        except Exception:  # noqa: BLE001 (handed on, as a thread pool does)
            result = Failure()
        self.disk.calls_left = None

        def answer() -> None:
            if not process.ended:
                d.callback(result)

        self.clock.callLater(self.duration(self.schedule.thread), answer)

    def _died_in_call(self) -> None:
        assert self._in_call is not None
        planned, power, away = self._in_call
        self.fired(planned)
        self.kill(power, away)

    # -- faults --------------------------------------------------------------------------------------------------

    def kill_in_call(self, planned: Planned, power: bool, away: float) -> None:
        """At one of the next system calls of a thread."""
        self._in_call = planned, power, away

    def ledger_fails(self, planned: Planned) -> None:
        """At its next change, and for a while."""
        if not self.running:
            return
        file = self.ledger_file
        file.fails = "before" if planned.target % 2 else "after"

        def failed() -> None:
            self.ledger_failed = True
            self.fired(planned)
            self.later(60 * planned.amount ** 2, mend)

        def mend() -> None:
            file.broken = False

        file.failed = failed

    def disk_fails(self, call: str, number: int, planned: Planned) -> None:
        """The next such call fails."""
        self.disk.failures.setdefault(call, []).append(number)
        self._failures_to_come.setdefault(call, []).append(planned)

    def _disk_failed(self, call: str) -> None:
        self.fired(self._failures_to_come[call].pop(0))

    def want_memory(self, planned: Planned, tries: int = 30) -> None:
        """As soon as an upload has waited for long enough to give its messages up."""
        if self.running:
            before = self.uploads.counters["messages_given_up"]
            self.uploads.memory_wanted()
            if self.uploads.counters["messages_given_up"] > before:
                self.fired(planned)
                return
        if tries:
            self.later(3.0, self.want_memory, planned, tries - 1)

    def servers_go_when(self, state: str, planned: Planned) -> None:
        """At the next moment at which an upload gets into that state."""
        self._servers_to_go[state] = planned

    def _servers_go(self, state: str, planned: Planned) -> None:
        """Most of them. An upload that is ready does not stay so for long unless its decision cannot be recorded."""
        if state == "ready":
            self.ledger_fails(planned)
        self.fired(planned)
        left = int(planned.amount * len(self.servers) / 2)
        for server in self.servers[left:]:
            server.gone = True
            self.later(0.0, server.disconnect)

    def lose_share_of_next(self, planned: Planned) -> None:
        """Of the next file that is stored; those that are there already count."""
        self._losses_to_come.append(planned)
        for file in self.schedule.stored:
            self._is_stored(file)

    def _is_stored(self, file: File) -> None:
        losses, self._losses_to_come = self._losses_to_come, []
        for planned in losses:
            self.later(planned.amount, self._lose_share, file, planned)

    def _lose_share(self, file: File, planned: Planned) -> None:
        """Wherever it is; no other is lost of the same file."""
        storage_index = invariants.index_of(file)
        copies = self.grid.copies(storage_index)
        if not copies or any(lost.storage_index == storage_index for lost in self.lost):
            return
        shnum = sorted(copies)[planned.target % len(copies)]
        for server, _share in copies[shnum]:
            del server.published[storage_index, shnum]
            self.lost.append(LostShare(storage_index, shnum, server.server_id, self.clock.seconds()))
        self.fired(planned)

    @property
    def files(self) -> list[File]:
        """All that may be stored."""
        return [*self.schedule.stored, *(client.file for client in self.clients)]

    def being_placed(self, storage_index: bytes) -> bool:
        """Whether this helper has finished the file, and places its last shares yet."""
        if not self.running:
            return False
        upload = self.uploads._by_index.get(storage_index)
        return (upload is not None and upload.session.state is State.FINISHED
                and self.uploads._room.stored(upload.name) > 0)

    def give_up_connection(self, server: Unsteady, seconds: float) -> None:
        """A server that hangs is noticed after a while."""

        def give_up() -> None:
            if server.hung:
                server.disconnect()
                self.come_back(server, 1.0)

        self.later(seconds, give_up)

    def come_back(self, server: Unsteady, seconds: float) -> None:
        """A server that is not connected will be."""

        def back() -> None:
            if not (server.connected or server.gone):
                server.reconnect()
                self.grid.changed()

        self.later(seconds, back)

    def exhaust_spool(self, seconds: float) -> None:
        """Another upload reserves all that is left of the quota, and is aborted after a while."""
        if not self.running or (left := self.settings.spool_quota - self.uploads._room.used) <= 0:
            return
        upload_id = self.choose.randbytes(32)
        self.edge.remote_open(upload_id, Parameters(1, 1, 1, 100, left).to_wire())
        self._strangers.append(upload_id)
        self.later(seconds, self._end_stranger, upload_id)

    def _end_stranger(self, upload_id: bytes) -> None:
        if not self.running:
            self.later(1.0, self._end_stranger, upload_id)
        elif upload_id in self._strangers:
            self._strangers.remove(upload_id)
            self.edge.remote_abort(upload_id)

    def disk_has_room(self) -> None:
        self.disk.room = None

    def threads_are_quick(self) -> None:
        self.thread_delay = 0.0

    def heal(self) -> None:
        """Faults stop, and whatever they have left is repaired."""
        self.note("faults stop")
        self._planned.clear()
        self._servers_to_go.clear()
        self._failures_to_come.clear()
        self._losses_to_come.clear()
        self._in_call, self.thread_delay = None, 0.0
        self.disk.failures.clear()
        self.disk.room = None
        self.disk.takes = lambda size: size
        if self.running:
            self.ledger_file.fails = ""
            self.ledger_file.broken = False
            if (any(upload.session.error and not upload.over for upload in self.uploads._by_name.values())
                    and self.choose.random() < 0.2):
                self.kill(away=1.0)  # its disk has failed, and it waits for an operator; who may never come
        for upload_id in list(self._strangers):
            self._end_stranger(upload_id)
        for client in self.clients:
            client.disarm()
        for server in self.servers:
            server.plan_none()
            server.capacity, server.delay, server.lie = None, self._server_delay, 0
            if server.hung:
                server.disconnect()
            self.come_back(server, 0.5)  # also if a fault that has struck it already breaks its connection yet

    def _server_delay(self) -> float:
        return self.duration(self.schedule.server)

    # -- clients -------------------------------------------------------------------------------------------------

    def link_for(self, client: Client, delay: Callable[[], float],
                 on_answer: Callable[[str, tuple[Any, ...], Any], None]) -> FaultyLink:
        link = FaultyLink(self.clock, self.edge, self.settings.largest_message, self.choose, delay, on_answer,
                          partial(self.sent, client), client.arrived)
        self._links = [*(old for old in self._links if not old._cut), link]
        self.note(f"client {client.number} connects")
        return link

    def upload_of(self, client: Client) -> Upload | None:
        """A client's upload, if the helper runs, knows it and has read it through."""
        if not self.running:
            return None
        upload = self.uploads._by_name.get(client.name)
        return None if upload is None or upload in self.uploads._recovery.waiting else upload

    def acknowledged(self, client: Client, offset: int, data: bytes, durable: int | bytes) -> None:
        """The helper has answered a put_ciphertext."""
        self._note_violation(invariants.check_acknowledged, client, offset, data, durable)

    def cap_given(self, client: Client) -> None:
        """A client has got its cap."""
        self.note(f"client {client.number} has its cap")
        self._note_violation(invariants.check_cap, client)
        self._is_stored(client.result)

    def sent(self, client: Client, offset: int, data: bytes) -> None:
        """A client has sent ciphertext."""
        self._note_violation(invariants.check_sent, client, offset, data)

    def _note_violation(self, check: Callable[..., None], *arguments: Any) -> None:
        try:
            check(self, *arguments)
        except invariants.Violation as e:
            self._violations.append(e)

    def spool_files(self) -> list[str]:
        return sorted(name for name in os.listdir(self.directory / "spool") if name not in ("lock", ASIDE))


def _settings(schedule: Schedule) -> Settings:
    # A client whose clock is set back waits so much longer, as Twisted does: its upload must not have expired then.
    # Else a shorter time will do, which takes fewer steps. Ten jumps of the helper's clock count for less than it.
    set_back = any(planned.kind is FaultKind.CLIENT_CLOCK_BACK for planned in schedule.faults)
    expiry, sweep_interval = (302_400, 21_600) if set_back else (86_400, 3600)
    return Settings(
        credit=schedule.credit, pushing_lag=schedule.pushing_lag, contact_after=schedule.contact_after,
        largest_message=200, first_bound=512, idle_expiry=expiry, empty_expiry=expiry, sweep_interval=sweep_interval,
        result_retention=30 * 86400, server_wait=SMALL.server_wait, spool_quota=schedule.spool_quota, free_disk=0)
