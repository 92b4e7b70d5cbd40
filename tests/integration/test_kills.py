"""What is killed or away, and what becomes of uploads then.

Nodes of a real grid are killed (SIGKILL) at random moments and at named points, again and again, under uploads
in progress: nothing that was acknowledged is lost, every upload is completed, and stock clients read what was sent.

    pytest tests/integration/test_kills.py --rounds 200 --seed 7

repeats a run: what is killed when is drawn from the seed, though not how fast the machine is meanwhile.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import attrs
import pytest
import reactor_loop
from fault_tools import (
    FAULT_GRID,
    ByClient,
    CallByCall,
    MiB,
    Recorded,
    inject,
    injected,
    need_strace,
    runs_under_strace,
)
from foolscap.api import Tub
from grid_tools import (
    PATIENCE,
    by_stock,
    client_directory,
    download,
    end_of,
    feed,
    further_helper,
    helper_furl,
    put_in_progress,
    share_paths,
    spool_of,
    unfinished_paths,
    uploads_open,
    wait_for,
)
from single_calls import Caller, File, new_file, new_tub, refusal_of, stop_tub

from client_shim.errors import HelperRefused
from client_shim.local_grid import LocalGrid
from client_shim.local_node import NodeError, NodeProcess
from client_shim.node_config import NodeConfig, read_node_config

STOCK_SERVER = 4
assert STOCK_SERVER == FAULT_GRID.staging_nodes == FAULT_GRID.storage_nodes - 1
UPLOADS = 3
#: Of an upload's progress: a helper killed later than this may have nothing left to sync when it starts again.
MUCH_IS_LEFT = 0.5
#: What is downloaded is compared after so many rounds, when the readers are connected to everybody.
COMPARED_EVERY = 10


@attrs.frozen
class Point:
    """A process is killed when one of its threads makes a system call for the `when`th time."""

    call: str
    when: int
    early: bool = False
    """It is reached only at the beginning of an upload."""


@attrs.frozen
class Plan:
    """What is done in one round. Nodes are "helper", or the number of a storage server."""

    victim: str | int
    point: Point | None
    """None: at a random moment."""
    other: str | int | None
    """Killed too, at a random moment."""
    recovering: Point | None = None
    """The helper, when it starts again, is killed once more."""


HELPER_POINTS = [
    Point("fdatasync", 1), Point("fdatasync", 2),  # of ciphertext, and of the ledger's log
    Point("pwritev", 1), Point("pwritev", 2),  # ciphertext
    Point("pwrite64", 1), Point("pwrite64", 3),  # the ledger's log
    Point("fsync", 1, early=True),  # the name of a spool file
    Point("unlink", 1),  # of a spool file
]
STAGING_POINTS = [
    Point("mkdir", 1, early=True), Point("pwritev", 1), Point("fdatasync", 1), Point("pwrite64", 2),
    Point("ftruncate", 1), Point("fsync", 1), Point("fsync", 2), Point("link", 1), Point("unlink", 1),
]
STOCK_POINTS = [Point("rename", 1)]
RECOVERING = Point("fdatasync", 1)


def deck(rng: random.Random) -> list[Plan]:
    """A plan for each point, and as many at random moments as make it twenty."""
    plans = [Plan("helper", point, _other(rng, "helper")) for point in HELPER_POINTS]
    for point in STAGING_POINTS:
        staging = rng.randrange(FAULT_GRID.staging_nodes)
        plans.append(Plan(staging, point, _other(rng, staging)))
    plans += [Plan(STOCK_SERVER, point, _other(rng, STOCK_SERVER)) for point in STOCK_POINTS]
    plans += [Plan("helper", None, _other(rng, "helper")), Plan("helper", None, None, RECOVERING)]
    rng.shuffle(plans)
    return plans


def _other(rng: random.Random, victim: str | int) -> str | int | None:
    others = ["helper" if victim != "helper" else rng.randrange(FAULT_GRID.storage_nodes), None]
    return rng.choice(others)


class AtMoment:
    """Kills nodes when uploads, together, have made a random part of their progress."""

    def __init__(self, uploads: list[Recorded], victims: list[NodeProcess], moment: float) -> None:
        self.killed = threading.Event()
        self._uploads = uploads
        self._victims = victims
        self._moment = moment
        if not victims:
            self.killed.set()

    def __call__(self) -> None:
        if not self.killed.is_set() and self._progress() >= self._moment:
            self.killed.set()
            for victim in self._victims:
                victim.signal(signal.SIGKILL)

    def _progress(self) -> float:
        """From 0 to 1: bytes; that all were sent and that there is a cap weigh something, too."""
        sizes = sum(len(upload.file.plaintext) for upload in self._uploads)
        acknowledged = sum(upload.acknowledged for upload in self._uploads) / sizes
        ending = sum(upload.completing + bool(upload.cap) for upload in self._uploads) / (2 * len(self._uploads))
        return 0.75 * acknowledged + 0.25 * ending


@attrs.define
class Bench:
    """A grid, and clients that live in this process."""

    grid: LocalGrid
    tub: Tub
    config: NodeConfig
    deaths: list[NodeProcess] = attrs.field(factory=list)
    """Of the round."""
    uploads: list[Recorded] = attrs.field(factory=list)
    """Of the round."""
    helper_is_traced: bool = False
    """It was started under strace, so that its process is strace's."""

    def node(self, name: str | int) -> NodeProcess:
        return self.grid.helper if isinstance(name, str) else self.grid.storage[name]

    def play(self, plan: Plan, rng: random.Random) -> list[Recorded]:
        """One round. Returns its uploads, which have their caps."""
        self._begin_with_enough()
        self.deaths.clear()
        moment = self._new_uploads(plan, rng)
        with ExitStack() as straced:
            if plan.point is not None and plan.point.early:
                straced.enter_context(injected(self.node(plan.victim), *_kill_at(plan.point)))
            reactor_loop.now(lambda: [upload.begin() for upload in self.uploads])
            if plan.point is not None and not plan.point.early:
                self._tend("gates", plan, lambda: all(upload.at_gate for upload in self.uploads))
                straced.enter_context(injected(self.node(plan.victim), *_kill_at(plan.point)))
                reactor_loop.now(lambda: [upload.open_gate() for upload in self.uploads])
            self._tend("kills", plan, lambda: self._all_dead(plan) or self._go_on_killing(rng))
        self._tend("caps", plan, lambda: all(upload.over for upload in self.uploads))
        assert moment.killed.is_set(), "an upload that is over has passed every moment"
        return list(self.uploads)

    def _begin_with_enough(self) -> None:
        """Everybody runs who was killed in the round before, and one more server is connected than uploads need:
        `open` is refused where too few are, and one may be killed before it comes."""
        for node in (self.grid.helper, *self.grid.storage):
            node.wait_ready()
        self.grid.wait_connected(self.grid.helper, FAULT_GRID.happy + 1)

    def _go_on_killing(self, rng: random.Random) -> bool:
        """A server that was not connected when shares found their homes has had nothing to do yet, so reached no
        point: then there is another upload. Not done yet: False."""
        if all(upload.over for upload in self.uploads):
            self.uploads.append(CallByCall(self.tub, self.grid.helper_furl, _file(rng), rng))
            reactor_loop.now(self.uploads[-1].begin)
        return False

    def _all_dead(self, plan: Plan) -> bool:
        """Whether everybody has ended who was to be killed."""
        expected = [self.node(plan.victim)] * (2 if plan.recovering is not None else 1)
        expected += [] if plan.other is None else [self.node(plan.other)]
        return all(self.deaths.count(node) >= expected.count(node) for node in expected)

    def _new_uploads(self, plan: Plan, rng: random.Random) -> AtMoment:
        """Uploads that have not begun. Returns what kills at a random moment."""
        self.uploads = uploads = []
        at_random = [name for name in (plan.victim if plan.point is None else None, plan.other) if name is not None]
        latest = 1.0 if plan.recovering is None else MUCH_IS_LEFT
        moment = AtMoment(uploads, [self.node(name) for name in at_random], latest * rng.random())
        for number in range(UPLOADS):
            file = _file(rng)
            gated = plan.point is not None and not plan.point.early
            gate = rng.randint(0, len(file.plaintext) - MiB) if gated else None
            uploads.append(ByClient(self.config, file, rng, gate, moment) if number == 0 else
                           CallByCall(self.tub, self.grid.helper_furl, file, rng, gate, moment))
        return moment

    def _tend(self, what: str, plan: Plan, condition: Callable[[], bool]) -> None:
        """Wait for something, and start again meanwhile whoever was killed."""
        def tended() -> bool:
            for node in (self.grid.helper, *self.grid.storage):
                if not node.running:
                    assert node.exit_status == -signal.SIGKILL, node.log_tail()
                    node.kill()  # reaps it, and what is left of its process group
                    self.deaths.append(node)
                    self._start_again(node, plan)
            for upload in self.uploads:
                upload.over  # noqa: B018 (raises if it has failed)
            return condition()

        try:
            wait_for(what, tended, 2 * PATIENCE)
        except NodeError as error:
            for upload in self.uploads:
                error.add_note(str(upload))
            error.add_note(f"ended: {[node.name for node in self.deaths]}")
            raise

    def _start_again(self, node: NodeProcess, plan: Plan) -> None:
        if node is not self.grid.helper:
            node.start()
        elif plan.recovering is not None and self.deaths.count(node) == 1:
            with runs_under_strace(node, _killing(plan.recovering)):
                node.start()
            self.helper_is_traced = True
        else:
            node.start()
            self.helper_is_traced = False

    def restore(self) -> None:
        """After a round that has failed, too: no upload goes on, and the helper is not under strace."""
        reactor_loop.now(lambda: [upload.give_up() for upload in self.uploads])
        if self.helper_is_traced:
            self.grid.helper.stop()  # in order: then strace reaps the node

    def settle(self) -> None:
        """Everybody is up and connected, and nothing is left of uploads but their shares.

        And but for what was staged on a server just before the helper was killed, if that server was away when the
        upload ended: it expires there (protocol.txt §17).
        """
        for node in (self.grid.helper, *self.grid.storage):
            node.wait_ready()
        for node in (self.grid.helper, self.grid.client):
            self.grid.wait_connected(node)
        wait_for("an empty spool", lambda: not spool_of(self.grid.helper), 2 * PATIENCE)
        wait_for("no share that is being written", lambda: not self.grid.incoming_shares())

    def compare(self, uploads: list[Recorded]) -> None:
        """A stock client reads what was sent."""
        for upload in uploads:
            upload.file.check(upload.cap, self.grid.client)


def _file(rng: random.Random) -> File:
    return new_file(FAULT_GRID, rng.randint(MiB + 1, 4 * MiB), declared=rng.random() < 0.5)


def _kill_at(point: Point) -> tuple[str, str]:
    return point.call, f"signal=KILL:when={point.when}"


def _killing(point: Point) -> list[str]:
    return inject(*_kill_at(point))


@pytest.fixture
def bench(grid: LocalGrid) -> Iterator[Bench]:
    tub = new_tub()
    bench = Bench(grid, tub, read_node_config(grid.client.directory))
    yield bench
    bench.restore()
    stop_tub(tub)


@pytest.mark.timeout(3600)
def test_nothing_acknowledged_is_lost(bench: Bench, pytestconfig: pytest.Config) -> None:
    need_strace()
    rounds = pytestconfig.getoption("rounds")
    seed = pytestconfig.getoption("seed")
    seed = random.SystemRandom().getrandbits(32) if seed is None else seed
    print(f"\n{rounds} rounds, seed {seed}")
    rng = random.Random(seed)
    plans: list[Plan] = []
    uploads: list[Recorded] = []
    killed = count = 0
    for number in range(rounds):
        plans = plans or deck(rng)
        plan, began = plans.pop(), time.monotonic()
        try:
            new = bench.play(plan, rng)
            uploads += new
            print(f"round {number}, {plan}: {time.monotonic() - began:.1f} s")
        except Exception as error:
            error.add_note(f"round {number} of seed {seed}: {plan}")
            raise
        killed += len(bench.deaths)
        count += len(new)
        if number % COMPARED_EVERY == COMPARED_EVERY - 1 or number == rounds - 1:
            bench.settle()
            bench.compare(uploads)
            uploads.clear()
    print(f"{killed} processes were killed under {count} uploads; "
          f"{len(bench.grid.staged_shares())} staged shares are left to expire")
    for node in (bench.grid.helper, *bench.grid.storage):
        found = [traceback for traceback in tracebacks(node) if not tells_of_a_server_that_died(traceback)]
        assert not found, f"{node.name} has logged\n{''.join(found)}"


def tracebacks(node: NodeProcess) -> list[str]:
    """In its log, each with the line that it belongs to and all that follows of it."""
    return re.findall(r"^.*\n(?:\t.*\n)*?\t?Traceback.*\n(?:(?!\d{4}-|').*\n)*", node.log_path.read_text(), re.M)


def tells_of_a_server_that_died(traceback: str) -> bool:
    """Stock nodes, too, connect to storage servers. Of one that dies between its connection and its answer to
    get_version they log an unhandled error (allmydata.util.rrefutil expects other failures), and connect again."""
    return "in _no_get_version" in traceback and "DeadReferenceError" in traceback


# -- clients, and a helper that is away ------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [0, pytest.param(120, marks=pytest.mark.long)])
def test_put_waits_for_a_helper_that_was_killed(grid: LocalGrid, tmp_path: Path, seconds: int) -> None:
    data = os.urandom(5 * MiB)
    o, before = FAULT_GRID, unfinished_paths(grid)
    directory = client_directory(tmp_path / "client", grid.helper_furl, k=o.k, happy=o.happy, n=o.n)
    told = tmp_path / "told"
    with told.open("wb") as stderr, put_in_progress(directory, "--json", "-", stderr=stderr) as process:
        feed(process, data[:3 * MiB])
        wait_for("blocks on the servers", lambda: len(unfinished_paths(grid) - before) >= o.happy)
        grid.helper.kill()
        wait_for("a pause", lambda: '"paused"' in told.read_text())
        time.sleep(seconds)  # what is tested is that it may take so long
        grid.helper.start()
        transcript = attrs.evolve(end_of(process, data[3 * MiB:]), err=told.read_text())
    grid.helper.wait_ready()
    grid.wait_connected(grid.helper)
    assert by_stock(transcript.cap, data).cap.decode() == transcript.cap
    assert download(grid.client, transcript.cap) == data
    pause = [event for event in transcript.events if event["event"] in ("paused", "resumed")]
    assert [event["event"] for event in pause] == ["paused", "resumed"]
    assert pause[1]["seconds"] >= seconds


#: Seconds. An upload is given up soon, and soon nobody remembers it.
IDLE, REMEMBERED = 3, 4
IMPATIENT = (f"[helper]\nidle-expiry = {IDLE} seconds\nempty-expiry = {IDLE} seconds\nsweep-interval = 1 second\n"
             f"result-retention = {REMEMBERED} seconds\n")


def test_killed_client_leaves_nothing(grid: LocalGrid, tmp_path: Path) -> None:
    """Its upload cannot be read, and is swept: ciphertext, staged shares, and in the end its record. A client that is
    late is told so."""
    o, shares, before = FAULT_GRID, share_paths(grid), unfinished_paths(grid)
    with further_helper(grid, "impatient-helper", settings=IMPATIENT) as helper:
        directory = client_directory(tmp_path / "client", helper_furl(helper), k=o.k, happy=o.happy, n=o.n)
        late = Caller(helper_furl(helper), new_file(FAULT_GRID, 3 * MiB))
        with late:
            with put_in_progress(directory, "-") as process:
                feed(process, os.urandom(3 * MiB))
                late.open()
                late.put(0, 2 * MiB)
                wait_for("blocks on the servers", lambda: len(unfinished_paths(grid) - before) == 2 * o.staging_nodes)
                process.kill()
            assert len(spool_of(helper)) == 2
            assert share_paths(grid) == shares
            wait_for("both to be swept", lambda: not spool_of(helper) and not unfinished_paths(grid) - before)
            assert share_paths(grid) == shares
            for call in (lambda: late.put(2 * MiB, 3 * MiB), late.finish):
                refusal = refusal_of(call)
                assert refusal.code == "expired"
                assert f"idle for {refusal.values['idle-seconds']} seconds and has expired" in str(refusal)
            assert late.status().text("reason") == "expired"
            assert late.status().text("state") == "expired"
            wait_for("the record to go", lambda: refusal_of_status(late) == "unknown-upload")
        assert uploads_open(helper) == 0
        helper.stop()
        with closing(sqlite3.connect(helper.directory / "helper" / "streaming" / "ledger.sqlite")) as ledger:
            assert ledger.execute("SELECT count(*) FROM uploads").fetchone() == (0,)


def refusal_of_status(caller: Caller) -> str:
    """The code that `status` is refused with, if it is."""
    try:
        caller.status()
    except HelperRefused as refusal:
        return refusal.code
    return ""
