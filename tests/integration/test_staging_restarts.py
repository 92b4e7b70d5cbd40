"""Storage nodes and helper that end in the middle of a streamed upload: it goes on, and little is sent again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import attrs
import pytest
from grid_tools import (
    PATIENCE,
    SEGMENT,
    MiB,
    SharedGrid,
    assert_stored,
    running_grid,
    servers_restored,
    spool_of,
    wait_for,
)
from single_calls import Caller, File, Pending, new_file, refusal_of
from staging_tools import (
    STAGING,
    prepared_on,
    pushed_again,
    restarted_helper,
    staged_to,
    statistic,
    trees,
    wait_for_trees,
    wait_published,
)

from client_shim.local_node import NodeError, NodeProcess

SERVERS = STAGING.storage_nodes
BLOCK = SEGMENT // STAGING.k
#: What a storage node may have taken and not synced when it is killed; protocol.txt §16.3.
UNSYNCED_MAX = 4 * MiB
BYTES_WRITTEN = "streaming_staging.bytes_written"
#: For how long (seconds) the last node works alone before its helper hears of it.
TURN = 1.0


@pytest.fixture(scope="module")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    return running_grid(pytestconfig, tmp_path_factory, "staging-grid", STAGING)


def assert_good(shared: SharedGrid, file: File) -> None:
    """Every share on a server of its own, and stock's."""
    shares = wait_published(shared, file)
    assert {share.server for share in shares} == set(range(SERVERS))
    for share in shares:
        content = share.path.read_bytes()
        assert content[12:12 + len(file.by_stock.shares[share.number])] == file.by_stock.shares[share.number]
    assert_stored(shared, file.cap, file.plaintext)


# -- storage nodes -----------------------------------------------------------------------------------------


def stop_and_start(node: NodeProcess) -> None:
    node.restart()


def kill_and_start(node: NodeProcess) -> None:
    node.kill()
    node.start()
    node.wait_ready()


@pytest.mark.parametrize("restart", [pytest.param(stop_and_start, marks=pytest.mark.long), kill_and_start])
def test_storage_node_restarted_in_mid_stream(shared: SharedGrid, restart: Callable[[NodeProcess], None]) -> None:
    """At rest: all that was sent is written, and the share has more than was synced."""
    victim, helper = shared.grid.storage[1], shared.grid.helper
    file = new_file(shared.grid.options, 21 * SEGMENT + 1000)
    sent_again, written = pushed_again(helper), statistic(victim, BYTES_WRITTEN)
    with Caller(shared.grid.helper_furl, file) as caller, servers_restored(shared, victim):
        caller.open()
        caller.put(0, 18 * SEGMENT)
        staged_to(shared.grid, 18, SERVERS)
        written = statistic(victim, BYTES_WRITTEN) - written
        restart(victim)
        caller.put(18 * SEGMENT, len(file.plaintext))
        staged_to(shared.grid, 21, SERVERS)
        assert caller.finish().fields["ueb"] == file.by_stock.ueb
    assert pushed_again(helper) - sent_again <= UNSYNCED_MAX
    written += statistic(victim, BYTES_WRITTEN)
    assert 21 * BLOCK <= written <= len(file.by_stock.shares[0]) + UNSYNCED_MAX
    assert_good(shared, file)


@pytest.mark.parametrize("restart", [pytest.param(stop_and_start, marks=pytest.mark.long), kill_and_start])
def test_storage_nodes_restarted_while_bytes_flow(shared: SharedGrid, restart: Callable[[NodeProcess], None]) -> None:
    """One after the other."""
    victims, helper = shared.grid.storage[2:4], shared.grid.helper
    file = new_file(shared.grid.options, 24 * SEGMENT + 7)
    sent_again = pushed_again(helper)
    with Caller(shared.grid.helper_furl, file) as caller, servers_restored(shared, *victims):
        caller.open()
        caller.put(0, 8 * SEGMENT)
        for i, victim in enumerate(victims, 1):
            staged_to(shared.grid, 4 * i, SERVERS)
            restart(victim)
            caller.put(8 * i * SEGMENT, 8 * (i + 1) * SEGMENT)
        caller.put(24 * SEGMENT, len(file.plaintext))
        assert caller.finish().fields["ueb"] == file.by_stock.ueb
        wait_published(shared, file)
    assert pushed_again(helper) - sent_again <= len(victims) * UNSYNCED_MAX
    assert_good(shared, file)


# -- the helper, in mid-stream -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_helper_ends_in_mid_stream(shared: SharedGrid, how: str) -> None:
    """What was acknowledged is kept, and staged shares go on where they were."""
    grid, helper = shared.grid, shared.grid.helper
    file = new_file(grid.options, 9 * SEGMENT + 77)
    acknowledged = 6 * SEGMENT
    with restarted_helper(shared) as start:
        with Caller(grid.helper_furl, file) as caller:
            caller.open()
            assert caller.put(0, acknowledged) == acknowledged
            staged_to(grid, 6, SERVERS)
        end(helper, how)
        start()
        with Caller(grid.helper_furl, file, caller.upload_id) as caller:
            status = caller.status()
            assert status.fields["state"] == b"open"
            assert status.fields["received"] == status.fields["durable"] == acknowledged
            assert caller.open().fields["durable"] == acknowledged, "open may be repeated"
            assert caller.put(acknowledged - 1000, len(file.plaintext)) == len(file.plaintext)
            assert caller.finish().fields["ueb"] == file.by_stock.ueb
        assert_good(shared, file)
        # What it pushed before, it has not pushed again: the counters are those of the new process.
        assert pushed_again(helper) == 0


def end(helper: NodeProcess, how: str) -> None:
    if how == "stopped":
        helper.stop()
    else:
        helper.kill()


# -- the helper, at every step of `finish` -----------------------------------------------------------------


@attrs.define
class Crash:
    """An upload whose happiness needs every server, with its helper at some step of `finish`.

    A suspended storage node does not answer; a suspended helper does not see an answer that is on its way. So each
    step of either can be stopped at, without a change of our code.
    """

    shared: SharedGrid
    caller: Caller

    def send_all(self) -> None:
        """Until every full segment is staged."""
        self.caller.send_all()
        staged_to(self.shared.grid, 4, SERVERS)

    def all_prepared_but_last(self) -> Pending:
        """`finish` waits for the last node, which is suspended; the others have prepared their shares."""
        self.last.suspend()
        finishing = self.caller.begin_finish()
        wait_for("shares to be prepared",
                 lambda: [s.state for s in self.caller.status().shares].count("ready") == SERVERS - 1)
        return finishing

    def all_prepared_and_nothing_decided(self) -> None:
        """The last node's answer is on its way to the helper, which is suspended."""
        self.all_prepared_but_last()
        # The last node gets the end of its share and answers, and then the helper hears that it has it, and says
        # prepare. They take turns until it has done that: nothing shows when an answer has left a node.
        self.helper.suspend()
        deadline = time.monotonic() + PATIENCE
        while not self.prepared_in_its_turn():
            assert time.monotonic() < deadline, "the last storage node prepares nothing"
            self.helper.resume()
            for _ in range(3):  # an answer shows that the helper has done what was due before the question
                self.caller.status()
            self.helper.suspend()
        self.last.resume()

    def prepared_in_its_turn(self) -> bool:
        """Now only the last node works, for a moment; whether it has prepared its share. It is suspended afterwards."""
        self.last.resume()
        with contextlib.suppress(NodeError):
            wait_for("the last storage node", lambda: prepared_on(self.last), timeout=TURN)
        self.last.suspend()
        return prepared_on(self.last)

    def decided_and_assigned(self, count: int) -> None:
        """Publication is decided, and `count` nodes have assigned their shares; others have the call in their
        sockets at most. The answer to `finish` has not been given."""
        self.all_prepared_and_nothing_decided()
        suspended = self.nodes[count:] if count < SERVERS else self.nodes[-1:]
        for node in suspended:
            node.suspend()
        self.helper.resume()
        wait_for("publication", lambda: self.caller.state == "publishing")
        self.wait_assigned(SERVERS - len(suspended))
        self.helper.suspend()
        if count == SERVERS:
            self.last.resume()
            self.wait_assigned(SERVERS)

    def wait_assigned(self, count: int) -> None:
        wait_for(f"{count} shares assigned",
                 lambda: len(self.shared.grid.shares(self.caller.file.index_name)) == count)

    @property
    def helper(self) -> NodeProcess:
        return self.shared.grid.helper

    @property
    def nodes(self) -> tuple[NodeProcess, ...]:
        return self.shared.grid.storage

    @property
    def last(self) -> NodeProcess:
        return self.nodes[-1]


def everywhere(shared: SharedGrid) -> File:
    return new_file(shared.grid.options, 4 * SEGMENT + 5, happy=SERVERS)


#: At which step it is killed, and what its client does then.
BEFORE_THE_DECISION = [("all prepared", "finish"), ("some prepared", "continue"), ("all prepared", "abort")]
ALSO_BEFORE = [("some prepared", "finish"), ("all prepared", "continue"), ("some prepared", "abort")]


@pytest.mark.parametrize(("step", "then"), [
    *BEFORE_THE_DECISION, *(pytest.param(*case, marks=pytest.mark.long) for case in ALSO_BEFORE)])
def test_helper_killed_when_shares_are_prepared(shared: SharedGrid, step: str, then: str) -> None:
    """Nothing is decided yet: after the restart the upload is open, and may be finished, continued or aborted."""
    grid, file, before = shared.grid, everywhere(shared), trees(shared.grid)
    with restarted_helper(shared) as start, servers_restored(shared, *grid.storage):
        with Caller(grid.helper_furl, file) as caller:
            crash = Crash(shared, caller)
            crash.send_all()
            if step == "some prepared":
                crash.all_prepared_but_last()
            else:
                crash.all_prepared_and_nothing_decided()
            grid.helper.kill()
            grid.storage[-1].resume()
        assert not grid.shares(file.index_name)
        start()
        assert not grid.shares(file.index_name)
        if then == "continue":
            file = attrs.evolve(file, plaintext=file.plaintext + bytes(2 * SEGMENT))
        with Caller(grid.helper_furl, file, caller.upload_id) as caller:
            status = caller.status()
            assert status.fields["state"] == b"open"
            if then == "abort":
                caller.abort()
                wait_for_trees(grid, grid.helper, before)
                return
            caller.put(status.number("durable"), len(file.plaintext))
            assert caller.finish().fields["ueb"] == file.by_stock.ueb
        assert_good(shared, file)


DEFAULT_CASES = [(0, "resumed"), (2, "restarted")]
LONG_CASES = [(0, "restarted"), (1, "resumed"), (1, "restarted"), (2, "resumed"), (4, "resumed"), (4, "restarted"),
              (5, "resumed"), (5, "restarted")]


@pytest.mark.parametrize(("assigned", "nodes"), [
    *DEFAULT_CASES, *(pytest.param(*case, marks=pytest.mark.long) for case in LONG_CASES)])
def test_helper_killed_while_shares_are_assigned(shared: SharedGrid, assigned: int, nodes: str) -> None:
    """It is decided: after the restart the helper completes it by itself, and a repeated finish has the answer."""
    grid, file = shared.grid, everywhere(shared)
    with restarted_helper(shared) as start, servers_restored(shared, *grid.storage):
        with Caller(grid.helper_furl, file) as caller:
            crash = Crash(shared, caller)
            crash.send_all()
            crash.decided_and_assigned(assigned)
            grid.helper.kill()
        for node in grid.storage[assigned:]:
            if nodes == "restarted":  # so that calls in its sockets are lost
                node.kill()
                node.start()
                node.wait_ready()
            else:
                node.resume()
        start()
        assert_good(shared, file)
        assert not spool_of(grid.helper)
        with Caller(grid.helper_furl, file, caller.upload_id) as caller:
            assert caller.state == "finished"
            assert caller.finish().fields["ueb"] == file.by_stock.ueb
            assert refusal_of(caller.abort).code == "already-publishing"
