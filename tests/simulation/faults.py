"""The kinds of faults, and how each is brought about. To add one: a line in FaultKind and one in INJECT."""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fakes import Fault

from simulation.servers import StagingServer, Unsteady

if TYPE_CHECKING:
    from simulation.schedule import Planned
    from simulation.simulated_world import SimulatedWorld


class FaultKind(enum.Enum):
    """What goes wrong."""

    REQUEST_LOST = "a request, and all after it on its connection, is lost"
    ANSWER_LOST = "an answer, and all after it on its connection, is lost"
    MESSAGE_REPEATED = "a message arrives twice"
    MESSAGE_DELAYED = "a message takes long"
    OTHER_BYTES = "a message is repeated with other bytes"
    FINISH_GARBLED = "finish brings a wrong hash"
    LINK_CUT = "the connection of a client breaks"
    CLIENT_SLOW = "a client's connection becomes slow"
    SERVER_HANGS = "a storage server answers nothing any more, until its connection is given up"
    SERVER_SLOW = "a storage server becomes slow"
    SERVER_FULL = "a storage server is full"
    SERVER_REFUSES = "a storage server fails a request"
    SERVER_LOSES_ANSWER = "a storage server's connection breaks after a request"
    SERVER_RESTARTS = "a storage server is killed and comes back"
    SERVERS_GONE = "storage servers are gone for good when an upload is ready, or is being published"
    SERVER_LIES = "a storage server lies about lengths"
    SHARE_LOST = "a share of a file that is stored is lost"
    DISK_FULL = "the spool's disk is full"
    SPOOL_EXHAUSTED = "the spool's quota is used up"
    MEMORY_WANTED = "others want the memory of messages that wait"
    DISK_WRITE_FAILS = "a write to the spool fails (EIO)"
    DISK_SYNC_FAILS = "a sync of the spool fails (EIO)"
    DISK_NAME_SYNC_FAILS = "a sync of the spool's directory fails (EIO)"
    SHORT_WRITES = "the disk takes a byte at a time, or a few"
    DISK_SLOW = "what is asked of threads takes long"
    LEDGER_FAILS = "the ledger fails (EIO), for a while"
    HELPER_STOPPED = "the helper is stopped in good order, and started"
    HELPER_KILLED = "the helper is killed, and started"
    HELPER_AWAY = "the helper is killed, and days later by its clock it is started"
    HELPER_KILLED_IN_CALL = "the helper is killed in the middle of what a thread does, and started"
    POWER_FAILS = "the helper's machine loses its power, and starts again"
    POWER_FAILS_IN_CALL = "the same in the middle of what a thread does"
    CLOCK_FORWARD = "the helper's clock is set forward by up to six days"
    CLOCK_BACK = "the helper's clock is set back by up to three days"
    CLIENT_CLOCK_FORWARD = "a client's clock is set forward by up to three days"
    CLIENT_CLOCK_BACK = "a client's clock is set back by up to a day and a half"


DAY = 86400.0
_JUMP = 3 * DAY

Inject = Callable[["SimulatedWorld", "Planned"], None]


def _arm(fate: str) -> Inject:
    """Something happens to the next message of a client's connection."""

    def inject(world: SimulatedWorld, planned: Planned) -> None:
        client = world.clients[planned.target % len(world.clients)]
        amount = {"lose request": 10.0, "lose answer": 10.0, "delay": 5.0, "other bytes": 1000.0}.get(fate, 0.0)
        client.arm(fate, amount * planned.amount, lambda: world.fired(planned))

    return inject


def _cut(world: SimulatedWorld, planned: Planned) -> None:
    client = world.clients[planned.target % len(world.clients)]
    if client.link is not None and not client.link.dead:
        world.fired(planned)
        client.link.cut()


def _slow_client(world: SimulatedWorld, planned: Planned) -> None:
    client = world.clients[planned.target % len(world.clients)]
    client.slowness = 2 * planned.amount
    world.fired(planned)


def _server(world: SimulatedWorld, planned: Planned) -> Unsteady:
    """Rather one that has to do with an upload."""
    servers = [server for server in world.servers if server.asked] or world.servers
    return servers[planned.target % len(servers)]


def _hang(world: SimulatedWorld, planned: Planned) -> None:
    server = _server(world, planned)
    if server.connected:
        server.hang()
        world.fired(planned)
        world.give_up_connection(server, 5 + 60 * planned.amount)


def _slow_server(world: SimulatedWorld, planned: Planned) -> None:
    server, slowness = _server(world, planned), 3 * planned.amount
    server.delay = lambda: slowness
    world.fired(planned)


def _fill_server(world: SimulatedWorld, planned: Planned) -> None:
    server = _server(world, planned)
    server.capacity = int(300 * planned.amount)
    world.fired(planned)


def _next_request(fault: Fault) -> Inject:
    def inject(world: SimulatedWorld, planned: Planned) -> None:
        _server(world, planned).plan_next(fault)
        world.fired(planned)

    return inject


def _restart_server(world: SimulatedWorld, planned: Planned) -> None:
    server = _server(world, planned)
    if not server.connected:
        return
    world.fired(planned)
    if isinstance(server, StagingServer):
        server.kill()
    else:
        server.disconnect()
    world.come_back(server, 30 * planned.amount)


def _gone(world: SimulatedWorld, planned: Planned) -> None:
    world.servers_go_when("ready" if planned.target % 2 else "publishing", planned)


def _lie(world: SimulatedWorld, planned: Planned) -> None:
    server = _server(world, planned)
    server.lie = int(200 * planned.amount) - 100
    world.liars.add(server)
    world.fired(planned)


def _disk_fails(call: str, number: int) -> Inject:
    def inject(world: SimulatedWorld, planned: Planned) -> None:
        world.disk_fails(call, number, planned)

    return inject


def _lose_share(world: SimulatedWorld, planned: Planned) -> None:
    """Of the next file that is stored, a little later."""
    world.lose_share_of_next(planned)


def _fill_disk(world: SimulatedWorld, planned: Planned) -> None:
    world.disk.room = int(500 * planned.amount)
    world.later(2 + 20 * planned.amount, world.disk_has_room)
    world.fired(planned)


def _exhaust_spool(world: SimulatedWorld, planned: Planned) -> None:
    world.exhaust_spool(1 + 900 * planned.amount ** 3)
    world.fired(planned)


def _want_memory(world: SimulatedWorld, planned: Planned) -> None:
    world.want_memory(planned)


def _short_writes(world: SimulatedWorld, planned: Planned) -> None:
    most = 1 + int(40 * planned.amount)
    world.disk.takes = lambda size: min(size, most)
    world.fired(planned)


def _slow_threads(world: SimulatedWorld, planned: Planned) -> None:
    world.thread_delay = 3 * planned.amount
    world.later(10 * planned.amount, world.threads_are_quick)
    world.fired(planned)


def _ledger_fails(world: SimulatedWorld, planned: Planned) -> None:
    world.ledger_fails(planned)


def _stop(world: SimulatedWorld, planned: Planned) -> None:
    if world.running:
        world.fired(planned)
        world.stop(away=30 * planned.amount)


def _kill(power: bool) -> Inject:
    def inject(world: SimulatedWorld, planned: Planned) -> None:
        if world.running:
            world.fired(planned)
            world.kill(power, away=30 * planned.amount)

    return inject


def _away(world: SimulatedWorld, planned: Planned) -> None:
    """For its clients it is soon back: they would not wait so long, and to the helper it is the same."""
    if world.running:
        world.fired(planned)
        world.kill(away=30 * planned.amount)
        world.go_by_unseen(10 * DAY * planned.amount)


def _kill_in_call(power: bool) -> Inject:
    def inject(world: SimulatedWorld, planned: Planned) -> None:
        world.kill_in_call(planned, power, away=30 * planned.amount)

    return inject


def _set_clock(sign: int) -> Inject:
    def inject(world: SimulatedWorld, planned: Planned) -> None:
        if sign > 0 and world.process.times_set_forward == 2:
            return  # each counts as idle time, if little: no limit stands any number of them
        world.process.set_forward(_jump(planned) * (2 if sign > 0 else -1))
        world.fired(planned)

    return inject


def _set_client_clock(sign: int) -> Inject:
    def inject(world: SimulatedWorld, planned: Planned) -> None:
        process = world.clients[planned.target % len(world.clients)].process
        if process.set_back - sign * _jump(planned) > _JUMP / 2:
            return  # it waits so long, as Twisted does, that its upload would expire
        process.set_forward(sign * _jump(planned))
        world.fired(planned)

    return inject


def _jump(planned: Planned) -> float:
    """Seconds; many are short."""
    return float(_JUMP * planned.amount ** 6)


INJECT: Mapping[FaultKind, Inject] = {
    FaultKind.REQUEST_LOST: _arm("lose request"),
    FaultKind.ANSWER_LOST: _arm("lose answer"),
    FaultKind.MESSAGE_REPEATED: _arm("repeat"),
    FaultKind.MESSAGE_DELAYED: _arm("delay"),
    FaultKind.OTHER_BYTES: _arm("other bytes"),
    FaultKind.FINISH_GARBLED: _arm("garble finish"),
    FaultKind.LINK_CUT: _cut,
    FaultKind.CLIENT_SLOW: _slow_client,
    FaultKind.SERVER_HANGS: _hang,
    FaultKind.SERVER_SLOW: _slow_server,
    FaultKind.SERVER_FULL: _fill_server,
    FaultKind.SERVER_REFUSES: _next_request(Fault.REFUSE),
    FaultKind.SERVER_LOSES_ANSWER: _next_request(Fault.LOSE_ANSWER),
    FaultKind.SERVER_RESTARTS: _restart_server,
    FaultKind.SERVERS_GONE: _gone,
    FaultKind.SERVER_LIES: _lie,
    FaultKind.SHARE_LOST: _lose_share,
    FaultKind.DISK_FULL: _fill_disk,
    FaultKind.SPOOL_EXHAUSTED: _exhaust_spool,
    FaultKind.MEMORY_WANTED: _want_memory,
    FaultKind.DISK_WRITE_FAILS: _disk_fails("pwritev", errno.EIO),
    FaultKind.DISK_SYNC_FAILS: _disk_fails("fdatasync", errno.EIO),
    FaultKind.DISK_NAME_SYNC_FAILS: _disk_fails("fsync", errno.EIO),
    FaultKind.SHORT_WRITES: _short_writes,
    FaultKind.DISK_SLOW: _slow_threads,
    FaultKind.LEDGER_FAILS: _ledger_fails,
    FaultKind.HELPER_STOPPED: _stop,
    FaultKind.HELPER_KILLED: _kill(power=False),
    FaultKind.HELPER_AWAY: _away,
    FaultKind.HELPER_KILLED_IN_CALL: _kill_in_call(power=False),
    FaultKind.POWER_FAILS: _kill(power=True),
    FaultKind.POWER_FAILS_IN_CALL: _kill_in_call(power=True),
    FaultKind.CLOCK_FORWARD: _set_clock(1),
    FaultKind.CLOCK_BACK: _set_clock(-1),
    FaultKind.CLIENT_CLOCK_FORWARD: _set_client_clock(1),
    FaultKind.CLIENT_CLOCK_BACK: _set_client_clock(-1),
}
