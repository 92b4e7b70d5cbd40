"""What must hold in every schedule: after every step, when something is acknowledged, and at the end."""

from __future__ import annotations

import random
from collections import defaultdict
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

from allmydata.util.happinessutil import servers_of_happiness
from allmydata.util.hashutil import storage_index_hash
from world import expected, with_size

from client_shim.upload import PATIENCE
from helper.session import ENDED, State
from helper.spool_records import HEADER_SIZE, recover
from simulation.faults import FaultKind
from simulation.reader import read_file

if TYPE_CHECKING:
    from oracle import Encoded

    from simulation.clients import Client
    from simulation.schedule import File
    from simulation.simulated_world import SimulatedWorld

_SERVER_FAULTS = frozenset(kind for kind in FaultKind if kind.name.startswith("SERVER"))


class Violation(AssertionError):
    """Something that must hold does not."""


def require(condition: object, what: str) -> None:
    """Raises Violation."""
    if not condition:
        raise Violation(what)


# -- after every step ------------------------------------------------------------------------------------------


def check_step(world: SimulatedWorld) -> None:
    """What can be looked at quickly."""
    for client in world.clients:
        link = client.link
        if link is not None and not link.dead:
            most = max(world.settings.credit, world.settings.largest_message)
            require(link.unanswered <= most, f"client {client.number} has {link.unanswered} bytes on their way, credit "
                                             f"{world.settings.credit}")
        if client.looked_at is not None and not client.over:
            client.placed_meanwhile |= {si for si in map(index_of, world.files) if world.being_placed(si)}
        _check_upload(world, client)
    published = sum([len(server.published) for server in world.servers])
    if published != world.published:
        world.published = published
        check_decisions(world)


def _check_upload(world: SimulatedWorld, client: Client) -> None:
    if not world.running or world.uploads._stopping:
        return
    upload = world.upload_of(client)
    if upload is None:
        require(not client.opened or client.name in world.uploads._by_name,
                f"the upload of client {client.number} was opened, and is unknown")
        return
    session = upload.session
    state = session.state
    if not upload.idle and not upload.over:
        client.called_for = world.up
    if upload._working is not None:
        pipeline = upload._working.pipeline
        require(len(pipeline._recent) <= pipeline._recent_max, "too many blocks in memory")
    seen = session, state, session.received, session.durable, client.acknowledged, session.error
    if client.seen == seen:
        return
    client.seen = seen
    require(session.received - session.durable <= world.settings.credit,
            f"{session.received - session.durable} bytes are received and not durable, credit {world.settings.credit}")
    if session.error is not None and state in (State.PUBLISHING, State.FINISHED):
        # of an earlier run, and its spool cannot be read: it is tried again after the next start
        require(may_fail(world, client, session.error.code), f"an upload that is {state.value} has {session.error}")
        return
    if state in ENDED:
        _check_end(world, client, state, "" if session.error is None else session.error.code)
        if state is State.DEDUPLICATED:
            _check_adopted(world, client, session.adopted_index)
        return
    require(session.durable >= client.acknowledged,
            f"{client.acknowledged} bytes of client {client.number} were acknowledged, {session.durable} are left")
    require(session.durable >= client.seen_durable, f"{client.seen_durable} bytes were durable, now {session.durable}")
    client.seen_durable = session.durable
    require(session.received <= client.upload.progress.sent, "more was received than was sent")
    require(session.error is None, f"an upload that is {state.value} has an error: {session.error}")


def _check_adopted(world: SimulatedWorld, client: Client, storage_index: bytes | None) -> None:
    """Of its own file nothing will be left, so the other must be there: all of it when it was looked for, unless the
    helper is about to place the rest; and any k of its shares give the content."""
    file = next((file for file in world.files if index_of(file) == storage_index), None)
    require(file is not None, f"client {client.number} has taken a file that nobody has")
    assert file is not None
    require(file.data == client.file.data, f"client {client.number} has taken another content")
    placed_meanwhile = storage_index in client.placed_meanwhile  # then the helper does not look what has become of it
    _check_placed(world, client, client.file.parameters.happy, file,
                  lost_after=None if placed_meanwhile else client.looked_at)
    if not placed_meanwhile:
        present = set(world.grid.copies(index_of(file))) | {shnum for shnum, _server_id in _lost(
            world, file, client.looked_at)}
        require(len(present) == file.parameters.n, f"client {client.number} has taken a file with shares "
                                                   f"{sorted(present)} of {file.parameters.n}")
    _check_readable(world, client, file)


def _lost(world: SimulatedWorld, file: File, since: float | None) -> list[tuple[int, bytes]]:
    """Share numbers and the servers that had them, of what was stored and lost since then."""
    return [(lost.shnum, lost.server_id) for lost in world.lost
            if lost.storage_index == index_of(file) and (since is None or lost.at >= since)]


def encoding_of(file: File) -> Encoded:
    """What stock makes of it."""
    return expected(file.data, with_size(file.parameters, None), file.key)


def index_of(file: File) -> bytes:
    """The storage index."""
    return _index_of_key(file.key)


@lru_cache(maxsize=16)  # asked at every step
def _index_of_key(key: bytes) -> bytes:
    return bytes(storage_index_hash(key))


def _check_end(world: SimulatedWorld, client: Client, state: State, code: str) -> None:
    if state is State.FAILED:
        require(may_fail(world, client, code), f"the upload of client {client.number} failed for no reason: {code}")
    elif state is State.DEDUPLICATED:
        require(client.adopts or client.died, f"client {client.number} has taken no other file")
    elif state is State.ABORTED:
        require(client.wants_nothing or client.crash, f"client {client.number} has aborted nothing")
    else:  # one that was adopted, which could not be recorded, expires too (protocol.txt §4.9)
        require(client.wants_nothing or client.adopts,
                f"the upload of client {client.number} expired, and it is still wanted")
        jumps = world.times_set_forward + world.process.times_set_forward
        least = world.settings.idle_expiry - (2 + 2 * jumps) * world.settings.sweep_interval
        require(world.up - client.called_for >= least,
                f"the upload of client {client.number} expired after {world.up - client.called_for} s")


def may_fail(world: SimulatedWorld, client: Client, code: str) -> bool:
    """Whether something has happened that excuses the failure of an upload."""
    if code == "spool-failed":
        return bool(world.disk.hurt & {client.name, "spool"}) or (world.ledger_failed and not client.opened)
    if code == "waiting-too-long":
        return FaultKind.SERVERS_GONE in world.fired_kinds
    if code in ("too-few-servers", "too-few-shares"):
        return bool(_SERVER_FAULTS & set(world.fired_kinds))
    if code in ("spool-full", "quota-exceeded"):
        kinds = {FaultKind.SPOOL_EXHAUSTED, FaultKind.DISK_FULL}
        return bool(kinds & set(world.fired_kinds)) or world.settings.spool_quota < 5000
    if code == "hash-mismatch":
        return client.garbled
    if code == "helper-lost":  # what it was about to do waits, as Twisted does, while its client looks for it
        return world.process.set_back > PATIENCE / 2
    return False


def check_decisions(world: SimulatedWorld) -> None:
    """A share that is published was decided upon, and that is recorded."""
    if not world.running or world.uploads._stopping:
        return
    put_before = set(map(index_of, world.schedule.stored))
    for storage_index in {si for server in world.servers for si, _shnum in server.published} - put_before:
        states = world.ledger_file.state_of(storage_index)
        require(set(states) & {"publishing", "finished"}, f"a share is published, and the ledger says {states}")
    if not _SERVER_FAULTS & set(world.fired_kinds) and not world.ended:
        for client in world.clients:
            _check_complete(world, client)


def _check_complete(world: SimulatedWorld, client: Client) -> None:
    """Once one share is published, so many are complete that all the rest can fail to follow."""
    encoded = expected(client.file.data, with_size(client.file.parameters, None), client.file.key)
    if client.decided or not world.grid.copies(encoded.storage_index):
        return
    client.decided = True
    sharemap = defaultdict(set)
    for server in world.servers:
        for shnum, data in server.written_of(encoded.storage_index):
            if data == encoded.shares.get(shnum):
                sharemap[shnum].add(server.server_id)
    p = client.file.parameters
    require(servers_of_happiness(sharemap) >= p.happy and len(sharemap) >= p.k,
            f"it was decided to publish with shares {sorted(sharemap)} complete")


# -- when something happens -------------------------------------------------------------------------------------


def check_sent(_world: SimulatedWorld, client: Client, offset: int, data: bytes) -> None:
    """However often bytes are sent, they are the same: nothing else was ever encrypted at that place."""
    require(client.ciphertext[offset:offset + len(data)] == data,
            f"client {client.number} sends two ciphertexts at offset {offset}")


def check_acknowledged(world: SimulatedWorld, client: Client, offset: int, data: bytes, durable: int | bytes) -> None:
    """Bytes are acknowledged: should the power fail now, they are there."""
    end = offset + len(data)
    require(isinstance(durable, int) and durable >= end, f"bytes up to {end} are acknowledged, {durable!r} durable")
    require(client.ciphertext[offset:end] == data, f"other bytes at {offset} than those held are acknowledged")
    assert isinstance(durable, int)
    client.acknowledged = max(client.acknowledged, durable)
    upload = world.upload_of(client)
    if upload is None or upload._working is None or upload.over:
        return
    held = ciphertext_in(world.disk.synced(client.name))
    require(len(held) >= client.acknowledged and client.ciphertext.startswith(held),
            f"{client.acknowledged} bytes are acknowledged; after a power failure {len(held)} would be left, "
            f"{'right' if client.ciphertext.startswith(held) else 'wrong'} ones")


def ciphertext_in(content: bytes) -> bytes:
    """What is in a spool file."""
    found = recover(lambda position, length: content[position:position + length], len(content))
    parts = []
    for number, (start, end) in enumerate(zip(found.starts, found.ends, strict=True)):
        at = (number + 1) * HEADER_SIZE + start
        parts.append(content[at:at + end - start])
    return b"".join(parts)


def check_spool_size(world: SimulatedWorld) -> None:
    """The spool knows how much it takes on the disk."""
    sizes = [(world.directory / "spool" / name).stat().st_size for name in world.spool_files()]
    require(world.spool.used == sum(sizes), f"the spool counts {world.spool.used} bytes, its files have {sum(sizes)}")


def check_cap(world: SimulatedWorld, client: Client) -> None:
    """A cap is what stock would give, and the file is on enough servers."""
    file = client.result
    encoded = expected(file.data, with_size(file.parameters, None), file.key)
    require(client.cap == encoded.cap, "the cap is not the oracle's")
    require(file.data == client.file.data, "the cap is that of another content")
    _check_placed(world, client, client.file.parameters.happy, file)


def _check_placed(world: SimulatedWorld, client: Client, happy: int, file: File,
                  lost_after: float | None = None) -> None:
    """What was lost since then (default: ever) counts as if it were there."""
    encoded = expected(file.data, with_size(file.parameters, None), file.key)
    copies = world.grid.copies(encoded.storage_index)
    sharemap = defaultdict(set)
    for shnum, found in copies.items():
        for server, share in found:
            require(share.data == encoded.shares[shnum], f"share {shnum} on {server.name} is not the oracle's")
            sharemap[shnum].add(server.server_id)
    for shnum, server_id in _lost(world, file, lost_after):
        sharemap[shnum].add(server_id)
    require(len(sharemap) >= client.file.parameters.k, f"only shares {sorted(sharemap)} are placed")
    require(servers_of_happiness(sharemap) >= happy, f"servers of happiness are fewer than {happy}")


# -- at the end -------------------------------------------------------------------------------------------------


def check_clients(world: SimulatedWorld) -> None:
    """Everybody has a cap, or an error for a reason."""
    for client in world.clients:
        if client.crash is not None:
            raise Violation(f"client {client.number} crashed:\n{client.crash.getTraceback()}")
        require(client.over, f"client {client.number} is stuck at {client.upload.progress}")
        if client.error is not None and not client.aborting:
            require(may_fail(world, client, client.error.code),
                    f"client {client.number} failed for no reason: {client.error}; {client.refusals[-3:]}")


def leftovers(world: SimulatedWorld) -> list[str]:
    """Names of servers with shares that nobody has ended."""
    return [server.name for server in world.servers if server.has_leftovers and not server.gone]


def _check_readable(world: SimulatedWorld, client: Client, result: File) -> None:
    placed = world.grid.copies(expected(result.data, with_size(result.parameters, None), result.key).storage_index)
    choices = list(combinations(sorted(placed), result.parameters.k))
    for shnums in random.Random(world.schedule.seed).sample(choices, min(3, len(choices))):
        shares = {shnum: placed[shnum][0][1].data for shnum in shnums}
        require(read_file(shares, result.key, result.parameters) == client.file.data,
                f"shares {shnums} do not give the file back")


def check_end(world: SimulatedWorld) -> None:
    """Everything is over: what was promised can be read, and nothing else is left."""
    check_clients(world)
    for client in world.clients:
        encoded = expected(client.file.data, with_size(client.file.parameters, None), client.file.key)
        copies = world.grid.copies(encoded.storage_index)
        if client.cap is not None:
            _check_placed(world, client, client.file.parameters.happy, client.result)
            _check_readable(world, client, client.result)
        upload = world.upload_of(client)
        if upload is not None and upload.session.state in ENDED:
            # One that expired while it was published has left ordinary shares, if some were closed.
            require(not copies or (upload.session.state is State.EXPIRED and upload._record.finish),
                    f"an upload that is {upload.session.state.value} has left shares {sorted(copies)}")
    require(not world.spool_files() and world.spool.used == 0,
            f"{len(world.spool_files())} spool files and {world.spool.used} bytes are left")
    require(not leftovers(world), f"unfinished shares are left on {leftovers(world)}")
    require(world.uploads._room.used == 0, f"{world.uploads._room.used} bytes of room are left to nobody")
    for event in world.failures:
        failure = event["log_failure"]
        if not failure.check(OSError) and getattr(failure.value, "code", "") != "spool-failed":
            raise Violation(f"an error was logged:\n{failure.getTraceback()}")
