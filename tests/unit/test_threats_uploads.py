"""Threats to uploads and to the room that they take, each carried out against a whole helper (see test_threats.py).

Who attacks has the helper's furl, as every client has.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from allmydata.util import hashutil
from fakes import FakeServer
from world import KEY, SI, SMALL, WireLink, World, begin, expected, outcome, plaintext, write_all

from client_shim.cipher import Encryptor, convergent_key
from client_shim.errors import HelperRefused
from client_shim.helper_edge import HelperAnswer
from helper.ciphertext import CiphertextHasher
from helper.interfaces import STORAGE_INDEX_SIZE, UPLOAD_ID_SIZE, MiB
from helper.parameters import Parameters
from helper.pipeline import RECENT_BLOCKS_MAX
from helper.pushing import IN_FLIGHT_MAX, IN_FLIGHT_PER_SHARE_MAX, WRITE_TARGET

PARAMETERS = Parameters(3, 7, 10, 1000)
DATA = plaintext(20_000)


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def refused(world: World, call: Any) -> str:
    """The code with which a call is refused."""
    with pytest.raises(HelperRefused) as caught:
        world.run(call)
    return caught.value.code


# -- S3: who knows the storage index -------------------------------------------------------------------------


def guesses(storage_index: bytes, key: bytes) -> list[bytes]:
    """Upload IDs that a lazy client might have derived from a storage index, or from the key."""
    guessed = []
    for known in (storage_index, key):
        guessed += [known + bytes(16), bytes(16) + known, known * 2, hashlib.sha256(known).digest(),
                    hashutil.tagged_hash(b"tahoe-stream upload ID v1:", known), hashutil.storage_index_hash(known) * 2]
    return guessed


@pytest.mark.parametrize("staging", [0, 10], ids=["stock", "staging"])
def test_s3_who_knows_the_storage_index_but_not_the_id_can_do_nothing_to_the_upload(staging: int) -> None:
    with World(staging=staging) as world:
        victim = world.upload(PARAMETERS)
        world.run(victim.write(DATA[:5000]))
        attacker = world.link()
        for guess in guesses(SI, KEY):
            assert len(guess) == UPLOAD_ID_SIZE
            for call in (attacker.put_ciphertext(guess, 0, b"poison"), attacker.put_ciphertext(guess, 5000, b"poison"),
                         attacker.status(guess), attacker.abort(guess), attacker.assign(guess, SI),
                         attacker.order(guess, b""), attacker.finish(guess, 5000, SI, bytes(32), bytes(32))):
                assert refused(world, call) == "unknown-upload"
        assert world.run(write_all(victim, DATA[5000:])) == expected(DATA, PARAMETERS).cap
        world.wait(1)
        world.check_shares(expected(DATA, PARAMETERS))


@pytest.mark.parametrize("staging", [0, 10], ids=["stock", "staging"])
def test_s3_an_upload_of_the_attackers_own_never_gets_the_storage_index_of_another(staging: int) -> None:
    """On stock servers the victim has told it right after open; on staging servers at finish."""
    with World(staging=staging) as world:
        victim = world.upload(PARAMETERS)
        world.run(victim.write(DATA))
        cap = begin(victim.close()) if staging else None
        attacker, own = world.link(), b"a" * UPLOAD_ID_SIZE
        poison = bytes(1000)
        world.run(attacker.open(own, PARAMETERS.to_wire()))
        world.run(attacker.put_ciphertext(own, 0, poison))
        hasher = CiphertextHasher(PARAMETERS.k, PARAMETERS.max_segment_size)
        hasher.update(poison)
        hashes = hasher.hashes()
        if cap is None:
            for call in (attacker.assign(own, SI),
                         attacker.finish(own, 1000, SI, hashes.crypttext_hash, hashes.crypttext_root_hash)):
                assert refused(world, call) == "storage-index-busy"
            cap = begin(victim.close())
        assert world.run(cap) == expected(DATA, PARAMETERS).cap
        world.wait(1)
        world.check_shares(expected(DATA, PARAMETERS))
        before = {server.name: dict(server.published) for server in world.grid.servers}
        # Afterwards he may put shares of his own beside it, as with any stock upload. What is there stays as it is.
        world.run(attacker.finish(own, 1000, SI, hashes.crypttext_hash, hashes.crypttext_root_hash))
        world.wait(60)
        assert all(before[server.name].items() <= server.published.items() for server in world.grid.servers)


def test_s3_a_storage_index_is_bound_once(world: World) -> None:
    link, upload_id = world.link(), b"i" * UPLOAD_ID_SIZE
    world.run(link.open(upload_id, PARAMETERS.to_wire()))
    world.run(link.put_ciphertext(upload_id, 0, DATA[:1000]))
    world.run(link.assign(upload_id, SI))
    other = hashutil.storage_index_hash(b"another key 1234")
    assert len(other) == STORAGE_INDEX_SIZE
    for call in (link.assign(upload_id, other), link.finish(upload_id, 1000, other, bytes(32), bytes(32))):
        assert refused(world, call) == "storage-index-conflict"
    assert world.only_upload().session.storage_index == SI
    world.restart()
    link = world.link()
    assert refused(world, link.assign(upload_id, other)) == "storage-index-conflict"
    assert world.run(link.assign(upload_id, SI)).code == "ok"


# -- S6: what is sent of a plaintext ---------------------------------------------------------------------------

#: So many equal bytes in a row are no coincidence among some hundred thousand (five would be, once in a few hundred
#: runs), and nothing that identifies a file is shorter.
WINDOW = 8


def windows(values: list[bytes]) -> set[bytes]:
    return {value[at:at + WINDOW] for value in values for at in range(len(value) - WINDOW + 1)}


def sent_by(link: WireLink) -> list[bytes]:
    """Every byte string that went to the helper, but the names of parameters, and numbers of servers."""
    return [argument for method, arguments in link.sent for argument in arguments
            if isinstance(argument, bytes) and (method != "order" or argument is arguments[0])]


@pytest.mark.parametrize("staging", [0, 10], ids=["stock", "staging"])
def test_s6_the_same_plaintext_twice_has_nothing_in_common_on_the_wire(staging: int) -> None:
    with World(staging=staging) as world:
        sent, caps = [], []
        for _ in range(2):
            link = world.link()
            caps.append(world.run(write_all(world.upload(PARAMETERS, link, key=None), DATA)))
            sent.append(windows(sent_by(link)))
            assert {"open", "put_ciphertext", "finish"} <= set(link.methods())
        assert not sent[0] & sent[1]
        orders = [arguments[1] for link in world._links for method, arguments in link.sent if method == "order"]
        assert len(orders) == len({*orders}) == (2 if staging else 0)
        assert len({cap.split(b":")[2] for cap in caps}) == 2
        # Nor is anything sent that somebody who has the file could compute.
        secret = b""  # the worst case: the convergence secret is known, too
        key = convergent_key(PARAMETERS.k, PARAMETERS.n, PARAMETERS.max_segment_size, len(DATA), secret, [DATA])
        hasher = CiphertextHasher(PARAMETERS.k, PARAMETERS.max_segment_size)
        hasher.update(Encryptor(key).encrypt(DATA))
        computable = [DATA, key, hashutil.storage_index_hash(key), Encryptor(key).encrypt(DATA),
                      hasher.hashes().crypttext_hash, hasher.hashes().crypttext_root_hash,
                      hashlib.sha256(DATA).digest(), hashutil.plaintext_hash(DATA),
                      *(hashutil.plaintext_segment_hash(DATA[at:at + 1002]) for at in range(0, len(DATA), 1002))]
        assert not windows(computable) & (sent[0] | sent[1])


# -- S10: filling the helper -------------------------------------------------------------------------------------

CAP = 100


@pytest.mark.parametrize("with_data", [False, True], ids=["empty", "with data"])
def test_s10_a_thousand_opens_by_one_client_end_at_the_cap_and_disturb_nobody(with_data: bool) -> None:
    settings = attrs.evolve(SMALL, uploads_max=CAP, empty_expiry=3600, idle_expiry=3600)
    with World(settings=settings) as world:
        victim = world.upload(PARAMETERS)
        world.run(victim.write(DATA[:5000]))
        before = world.spool.used
        attacker, results = world.link(), []
        for i in range(1000):
            upload_id = i.to_bytes(UPLOAD_ID_SIZE, "big")
            try:
                world.run(attacker.open(upload_id, PARAMETERS.to_wire()))
                if with_data:
                    world.run(attacker.put_ciphertext(upload_id, 0, bytes(200)))
                results.append("ok")
            except HelperRefused as error:
                results.append(error.code)
        assert results == ["ok"] * (CAP - 1) + ["too-many-uploads"] * (1000 - CAP + 1)
        assert (len(world.spool_files()) > 1) == with_data
        world.wait(3000)
        world.run(victim.write(DATA[5000:6000]))
        world.wait(3600 - 3000 + settings.sweep_interval)  # one sweep after they have expired
        assert world.spool.used <= before + 1100
        assert len(world.spool_files()) == 1
        assert world.run(write_all(victim, DATA[6000:])) == expected(DATA, PARAMETERS).cap
        for i in range(CAP):
            world.run(attacker.open(b"new" + i.to_bytes(UPLOAD_ID_SIZE - 3, "big"), PARAMETERS.to_wire()))


class SmallDisk:
    """Stands for `os` in a spool on a disk with so many bytes of room."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.directory: Path | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @property
    def free(self) -> int:
        assert self.directory is not None
        return self.size - sum(path.stat().st_size for path in self.directory.iterdir())

    def statvfs(self, directory: Path) -> Any:
        self.directory = directory
        return attrs.make_class("Statvfs", ["f_bavail", "f_frsize"])(self.free, 1)


def test_s10_the_disk_is_never_filled_beyond_its_floor() -> None:
    """Many uploads at once take what they can get, while earlier bytes of others are still being written."""
    floor, disk = 100_000, SmallDisk(400_000)
    with World(settings=attrs.evolve(SMALL, free_disk=floor, room_patience=600), system=disk) as world:
        links = [world.link() for _ in range(20)]
        ids = [i.to_bytes(UPLOAD_ID_SIZE, "big") for i in range(20)]
        for link, upload_id in zip(links, ids, strict=True):
            world.run(link.open(upload_id, PARAMETERS.to_wire()))
        lowest = disk.size

        def watch() -> None:
            nonlocal lowest
            lowest = min(lowest, disk.free)

        world.watch = watch
        answers = []
        for at in range(10):
            for link, upload_id in zip(links, ids, strict=True):
                answers.append(outcome(begin(link.put_ciphertext(upload_id, at * 3000, bytes(3000)))))
        world.wait(60)
        stored = sum(isinstance(answer[0], HelperAnswer) for answer in answers if answer)
        assert 3000 * stored > (disk.size - floor) - 20 * 3000  # what there was was used
        headers = 32 * len(answers)
        assert floor - headers <= lowest < floor + 20 * 3000


# -- S19: much work for little ---------------------------------------------------------------------------------


@pytest.mark.parametrize("staging", [0, 10], ids=["stock", "staging"])
def test_s19_ten_thousand_opens_ask_no_storage_server_for_anything(staging: int) -> None:
    with World(staging=staging) as world:
        asked: list[str] = []
        for server in world.grid.servers:
            watch_requests(server, asked)
        link = world.link()
        for i in range(10_000):
            upload_id = i.to_bytes(UPLOAD_ID_SIZE, "big")
            opened = begin(link.open(upload_id, attrs.evolve(PARAMETERS, size=1000 if i % 2 else None).to_wire()))
            if i % 100 == 0:  # a little less than what it takes
                stored = begin(link.put_ciphertext(upload_id, 0, bytes(world.settings.contact_after - 1)))
                world.run(opened)
                world.run(stored)
        world.turn()
        assert world.uploads.counters["opened"] == 10_000
        world.wait(60)
        assert asked == []
        # What it takes is one request for each server, for all of its shares together.
        world.run(link.put_ciphertext(bytes(UPLOAD_ID_SIZE), world.settings.contact_after - 1, b"x"))
        if not staging:
            world.run(link.assign(bytes(UPLOAD_ID_SIZE), SI))
        world.wait(1)
        assert sorted(set(asked)) == sorted(asked)
        assert len(asked) == (10 if staging else 20)  # stock ones are asked for their free space before


def watch_requests(server: FakeServer, asked: list[str]) -> None:
    """Note everything that a server is asked for from now on, but who watches its connection."""
    request = server.request

    def watched(operation: str, *arguments: Any, **options: Any) -> Any:
        asked.append(f"{server.name} {operation}")
        return request(operation, *arguments, **options)

    server.request = watched  # type: ignore[method-assign]


# -- S20: servers that do not read -------------------------------------------------------------------------------


@pytest.mark.parametrize("staging", [0, 10], ids=["stock", "staging"])
def test_s20_what_three_of_ten_servers_do_not_take_is_not_held_for_them(staging: int) -> None:
    """Unanswered bytes of each server are bounded, and so are blocks kept for them; the upload ends well meanwhile."""
    data = plaintext(24 * MiB)
    parameters = Parameters(3, 7, 10, 256 * 1024)
    block = -(-256 * 1024 // 3)
    settings = attrs.evolve(SMALL, credit=MiB, pushing_lag=MiB, first_bound=1 << 30)
    with World(settings=settings, staging=staging) as world:
        stalled = world.grid.servers[2:5]
        upload = world.upload(parameters)
        world.run(upload.write(data[:2 * MiB]))
        for server in stalled:
            server.hang()
        most = {server.name: 0 for server in world.grid.servers}
        in_all = blocks = 0

        def watch() -> None:
            nonlocal in_all, blocks
            for server in world.grid.servers:
                most[server.name] = max(most[server.name], server.unanswered_bytes)
            in_all = max(in_all, sum(server.unanswered_bytes for server in world.grid.servers))
            if (working := world.only_upload()._working) is not None:
                blocks = max(blocks, len(working.pipeline._recent) * parameters.n * block)

        world.watch = watch
        for start in range(2 * MiB, len(data), MiB):
            world.run(upload.write(data[start:start + MiB]))
        began = world.clock.seconds()
        assert world.run(upload.close()) == expected(data, parameters).cap
        assert world.clock.seconds() - began < 1
        assert max(most.values()) <= IN_FLIGHT_PER_SHARE_MAX + WRITE_TARGET
        assert all(most[server.name] for server in stalled)
        assert in_all <= IN_FLIGHT_MAX + 10 * WRITE_TARGET
        assert blocks <= RECENT_BLOCKS_MAX + parameters.n * block
        world.check_shares(expected(data, parameters), missing=3)
