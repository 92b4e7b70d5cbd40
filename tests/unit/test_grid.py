"""The grid as the helper sees it (helper/grid.py): allmydata's own storage broker and servers; only the Tubs, and
what is at the other end of their connections, are the test's."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import reactor_loop
from allmydata.client import SecretHolder
from allmydata.node import config_from_string
from allmydata.storage_client import NativeStorageServer, StorageFarmBroker
from allmydata.util import base32, hashutil
from foolscap.api import DeadReferenceError
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from world import outcome

from helper.grid import TahoeGrid
from helper.sinks import StorageServer
from helper.staging_client import StagingStorageServer
from helper.staging_interfaces import PLUGIN_NAME
from helper.staging_links import RETRY_FIRST
from helper.stock import StockServer

STORAGE_V1 = b"http://allmydata.org/tahoe/protocols/storage/v1"
SI = b"storage-index-16"
MINUTE = 60.0


class Rref:
    """A remote reference to a storage server or plugin."""

    version: Any  # allmydata puts it here

    def __init__(self, space: int | None = None) -> None:
        self.alive = True
        self._space = space
        self._watchers: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def callRemote(self, method: str, *_arguments: Any) -> Deferred[Any]:
        if not self.alive:
            return fail(DeadReferenceError("Calling Stale Broker"))
        assert method == "get_version"
        return succeed({STORAGE_V1: {} if self._space is None else {b"available-space": self._space}})

    def notifyOnDisconnect(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._watchers.append((callback, arguments))

    def lose(self) -> None:
        self.alive = False
        for callback, arguments in self._watchers:
            callback(*arguments)


class BrokersTub(Service):
    """A Tub whose reconnectors connect when the test says so."""

    def __init__(self) -> None:
        self.connected: Callable[[Rref], None] = lambda _rref: None

    def connectTo(self, _furl: bytes, connected: Callable[[Rref], None]) -> Any:
        self.connected = connected
        return self  # the Reconnector

    def reset(self) -> None:
        pass

    def stopConnecting(self) -> None:
        pass


class Node:
    """A storage node; not announced at first, nor connected. `plugin` is where its plugin is, if it has one."""

    def __init__(self, world: Grid, number: int, plugin: str | None = None, space: int | None = None) -> None:
        digest = hashlib.sha256(b"%d" % number).digest()
        self.server_id = b"v0-" + base32.b2a(digest)
        self.seed = digest[:20]
        self.announcement: dict[str, Any] = {
            "service-name": "storage", "anonymous-storage-FURL": f"pb://{base32.b2a(self.seed).decode()}@tcp:h:1/x",
            "permutation-seed-base32": base32.b2a(self.seed).decode()}
        if plugin is not None:
            self.announcement["storage-options"] = [{"name": PLUGIN_NAME, "storage-server-FURL": plugin}]
        self._space = space
        self._grid = world
        self.rref = Rref()

    def add(self) -> None:
        """The broker gets to know it, without an introducer."""
        native = NativeStorageServer(
            self.server_id, self.announcement, self._grid.make_tub, {}, self._grid.config, None, None)
        native.start_connecting(None)
        self._grid.broker.test_add_server(self.server_id, native)

    def connect(self) -> None:
        self.rref = Rref(self._space)
        self._grid.broker.servers[self.server_id]._tub.connected(self.rref)

    def lose(self) -> None:
        self.rref.lose()


class FakeIntroducer:
    """As much of an IntroducerClient as the broker and the grid use of it."""

    def __init__(self) -> None:
        self._subscribers: list[tuple[str, Callable[..., None]]] = []

    def subscribe_to(self, service: str, callback: Callable[..., None]) -> None:
        self._subscribers.append((service, callback))

    def announce(self, node: Node) -> None:
        for service, callback in self._subscribers:
            if service == "storage":
                callback(node.server_id, node.announcement)


class Grid:
    """A TahoeGrid and the Tubs under it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.config = config_from_string("/nonexistent", "", "")
        self.broker = StorageFarmBroker(True, self.make_tub, self.config)
        self.secrets = SecretHolder(b"lease secret", b"convergence secret")
        self.attempts: dict[str, Deferred[Any]] = {}  # to reach plugins, by furl
        self.introducer = FakeIntroducer()
        self.grid = TahoeGrid(self.broker, self.secrets, self.clock, self._get_reference)

    def make_tub(self, _overrides: Any) -> BrokersTub:
        return BrokersTub()

    def _get_reference(self, furl: str) -> Deferred[Any]:
        assert furl not in self.attempts
        self.attempts[furl] = Deferred()
        return self.attempts[furl]

    def reach(self, furl: str) -> Rref:
        """The plugin at `furl`, which is being tried, is reached."""
        rref = Rref()
        self.attempts.pop(furl).callback(rref)
        return rref

    def refuse(self, furl: str) -> None:
        self.attempts.pop(furl).errback(Failure(ConnectError()))

    def stock(self, count: int) -> list[Node]:
        """Nodes without the plugin, known and connected."""
        nodes = [Node(self, i) for i in range(count)]
        for node in nodes:
            node.add()
            node.connect()
        return nodes

    def plugin_node(self, furl: str = "pb://plugin", number: int = 100) -> Node:
        """A node with the plugin, known and followed, not connected."""
        node = Node(self, number, furl)
        node.add()
        self.follow()
        return node

    def follow(self) -> None:
        self.grid.follow([self.introducer])

    def listed(self) -> list[StorageServer]:
        return self.grid.servers_for(SI)

    def kinds(self) -> list[type]:
        return [type(server) for server in self.listed()]


@pytest.fixture
def world() -> Grid:
    return Grid()


def in_reactor(test: Callable[..., None]) -> Callable[..., None]:
    """For tests in which allmydata uses Foolscap's eventual-send."""

    @functools.wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        reactor_loop.now(lambda: test(*arguments, **keywords))

    return run


# -- which servers are listed -------------------------------------------------------------------------------


def test_connected_servers_are_listed_in_the_order_in_which_readers_ask_them(world: Grid) -> None:
    nodes = world.stock(9)
    nodes[4].lose()
    del nodes[4]
    for si in (SI, bytes(16)):
        in_order = sorted(nodes, key=lambda node: hashlib.sha1(si + node.seed).digest())
        servers = world.grid.servers_for(si)
        assert [server.server_id for server in servers] == [node.server_id for node in in_order]
        assert [server.permutation_seed for server in servers] == [node.seed for node in in_order]
    assert world.grid.writable_count() == 8


@pytest.mark.parametrize(("space", "listed"), [(0, 0), (1, 1), (10**12, 1), (None, 1)])
def test_full_and_read_only_servers_are_not_listed(world: Grid, space: int | None, listed: int) -> None:
    node = Node(world, 1, space=space)
    node.add()
    assert world.grid.writable_count() == 0
    node.connect()
    assert world.grid.writable_count() == len(world.listed()) == listed


def test_every_connected_server_may_be_read(world: Grid) -> None:
    nodes = [*world.stock(3), Node(world, 50, space=0), Node(world, 51, "pb://plugin")]
    for node in nodes[3:]:
        node.add()
    assert {s.server_id for s in world.grid.readable_servers()} == {node.server_id for node in nodes[:3]}
    for node in nodes[3:]:
        node.connect()
    assert {s.server_id for s in world.grid.readable_servers()} == {node.server_id for node in nodes}
    nodes[0].lose()
    assert {s.server_id for s in world.grid.readable_servers()} == {node.server_id for node in nodes[1:]}


def test_a_node_without_the_plugin_is_stock_at_once(world: Grid) -> None:
    world.stock(1)
    assert world.kinds() == [StockServer]
    assert not world.attempts


def test_a_node_with_the_plugin_is_not_listed_while_that_is_being_tried(world: Grid) -> None:
    node = world.plugin_node()
    assert not world.attempts  # it is not connected
    node.connect()
    assert list(world.attempts) == ["pb://plugin"]
    assert world.kinds() == []
    assert world.grid.writable_count() == 0


def test_a_node_whose_plugin_is_reached_is_a_staging_server(world: Grid) -> None:
    node = world.plugin_node()
    node.connect()
    rref = world.reach("pb://plugin")
    (server,) = world.listed()
    assert isinstance(server, StagingStorageServer)
    assert server.server_id == node.server_id
    assert server.permutation_seed == node.seed
    assert server.link.rref is rref


def test_a_node_whose_plugin_is_not_reached_is_stock_also_while_it_is_tried_again(world: Grid) -> None:
    node = world.plugin_node()
    node.connect()
    world.refuse("pb://plugin")
    assert world.kinds() == [StockServer]
    assert not world.attempts
    world.clock.advance(RETRY_FIRST)
    assert list(world.attempts) == ["pb://plugin"]
    assert world.kinds() == [StockServer]
    world.reach("pb://plugin")
    assert world.kinds() == [StagingStorageServer]


def test_a_node_whose_plugin_is_lost_is_not_listed_until_it_is_known_what_it_is(world: Grid) -> None:
    node = world.plugin_node()
    node.connect()
    world.reach("pb://plugin").lose()
    assert world.kinds() == []
    world.reach("pb://plugin")
    assert world.kinds() == [StagingStorageServer]


def test_a_node_that_is_lost_is_not_listed_whatever_its_plugin(world: Grid) -> None:
    node = world.plugin_node()
    node.connect()
    world.reach("pb://plugin")
    node.lose()
    assert world.kinds() == []
    node.connect()
    assert world.kinds() == [StagingStorageServer]


def test_a_plugin_that_failed_is_tried_at_once_when_its_node_is_connected_anew(world: Grid) -> None:
    node = world.plugin_node()
    node.connect()
    world.refuse("pb://plugin")
    node.lose()
    node.connect()
    assert list(world.attempts) == ["pb://plugin"]


def test_lease_secrets_are_those_of_stock(world: Grid) -> None:
    world.stock(1)
    (server,) = world.listed()
    assert isinstance(server, StockServer)
    seed = server.native.get_lease_seed()
    assert server.lease_secrets(SI, seed) == (
        hashutil.bucket_renewal_secret_hash(
            hashutil.file_renewal_secret_hash(world.secrets.get_renewal_secret(), SI), seed),
        hashutil.bucket_cancel_secret_hash(
            hashutil.file_cancel_secret_hash(world.secrets.get_cancel_secret(), SI), seed))


# -- announcements ------------------------------------------------------------------------------------------


@in_reactor
def test_announced_servers_are_noticed_and_their_plugins_asked_for(world: Grid) -> None:
    world.broker.use_introducer(world.introducer)
    world.follow()
    results = outcome(world.grid.when_connected(2, MINUTE))
    stock, staging = Node(world, 1), Node(world, 2, "pb://plugin")
    for node in (stock, staging):
        world.introducer.announce(node)
    world.clock.advance(0)
    stock.connect()
    assert not results
    staging.connect()
    assert not results
    world.reach("pb://plugin")
    assert results == [2]
    assert set(world.kinds()) == {StockServer, StagingStorageServer}


@in_reactor
def test_a_node_that_announces_its_plugin_elsewhere_is_reached_there(world: Grid) -> None:
    world.broker.use_introducer(world.introducer)
    world.follow()
    before, after = Node(world, 1, "pb://plugin"), Node(world, 1, "pb://moved")
    world.introducer.announce(before)
    world.clock.advance(0)
    before.connect()
    world.reach("pb://plugin")
    world.introducer.announce(after)
    world.clock.advance(0)
    assert world.kinds() == []
    back = outcome(world.grid.when_back(after.server_id, MINUTE))
    after.connect()
    assert world.kinds() == []
    rref = world.reach("pb://moved")
    (server,) = back
    assert isinstance(server, StagingStorageServer)
    assert server.link.rref is rref


@in_reactor
def test_a_node_that_has_lost_its_plugin_is_stock(world: Grid) -> None:
    world.broker.use_introducer(world.introducer)
    world.follow()
    before, after = Node(world, 1, "pb://plugin"), Node(world, 1)
    world.introducer.announce(before)
    world.clock.advance(0)
    before.connect()
    world.reach("pb://plugin")
    world.introducer.announce(after)
    world.clock.advance(0)
    after.connect()
    assert world.kinds() == [StockServer]


# -- waiting for enough servers -----------------------------------------------------------------------------


def test_when_enough_are_connected_nothing_is_waited_for(world: Grid) -> None:
    world.stock(3)
    for count in (0, 2, 3):
        assert outcome(world.grid.when_connected(count, MINUTE)) == [3]
    assert not world.clock.getDelayedCalls()


def test_the_wait_ends_when_the_last_of_them_connects(world: Grid) -> None:
    nodes = [Node(world, i) for i in range(3)]
    for node in nodes:
        node.add()
    world.follow()
    two, three = outcome(world.grid.when_connected(2, MINUTE)), outcome(world.grid.when_connected(3, MINUTE))
    nodes[0].connect()
    assert (two, three) == ([], [])
    nodes[1].connect()
    assert (two, three) == ([2], [])
    nodes[0].lose()
    nodes[2].connect()
    assert three == []
    nodes[0].connect()
    assert three == [3]
    assert not world.clock.getDelayedCalls()


def test_the_wait_ends_in_time_and_says_how_many_there_are(world: Grid) -> None:
    nodes = world.stock(3)
    world.follow()
    results = outcome(world.grid.when_connected(4, MINUTE))
    world.clock.advance(MINUTE - 1)
    nodes[0].lose()
    assert not results
    world.clock.advance(1)
    assert results == [2]
    Node(world, 9).add()
    assert results == [2]


def test_a_wait_of_no_time_ends_in_the_next_turn(world: Grid) -> None:
    world.stock(3)
    results = outcome(world.grid.when_connected(4, 0))
    world.clock.advance(0)
    assert results == [3]


def test_a_cancelled_wait_for_servers_says_how_many_there_are(world: Grid) -> None:
    world.stock(3)
    d = world.grid.when_connected(4, MINUTE)
    results = outcome(d)
    d.cancel()
    d.cancel()
    assert results == [3]
    assert not world.clock.getDelayedCalls()


# -- waiting for a server that was lost ---------------------------------------------------------------------


def test_a_server_is_back_when_its_node_and_its_plugin_are(world: Grid) -> None:
    node = world.plugin_node()
    node.connect()
    rref = world.reach("pb://plugin")
    node.lose()
    rref.lose()
    results = outcome(world.grid.when_back(node.server_id, MINUTE))
    assert not results
    node.connect()
    assert not results
    new = world.reach("pb://plugin")
    (server,) = results
    assert isinstance(server, StagingStorageServer)
    assert server.link.rref is new
    assert not world.clock.getDelayedCalls()


def test_a_server_is_back_when_its_plugin_is_back_before_its_node(world: Grid) -> None:
    node = world.plugin_node()
    node.connect()
    rref = world.reach("pb://plugin")
    node.lose()
    rref.lose()
    results = outcome(world.grid.when_back(node.server_id, MINUTE))
    world.reach("pb://plugin")
    assert not results
    node.connect()
    assert isinstance(results[0], StagingStorageServer)


class CountingBroker:
    """A storage broker that counts how often it is asked for servers."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def get_servers_for_psi(self, *arguments: Any, **keywords: Any) -> Any:
        self.asked += 1
        return self._broker.get_servers_for_psi(*arguments, **keywords)


def test_a_change_of_one_server_is_looked_at_once_however_many_uploads_wait(world: Grid) -> None:
    away, comes, *_others = world.stock(4)
    for node in (away, comes):
        node.lose()
    broker = CountingBroker(world.broker)
    grid = TahoeGrid(broker, world.secrets, world.clock, lambda _furl: Deferred())
    grid.follow([world.introducer])
    waiting = [outcome(grid.when_back(away.server_id, MINUTE)) for _ in range(500)]
    enough = [outcome(grid.when_connected(3, MINUTE)) for _ in range(500)]
    back = outcome(grid.when_back(comes.server_id, MINUTE))
    broker.asked = 0
    comes.connect()
    assert back[0].server_id == comes.server_id
    assert enough == [[3]] * 500
    assert not any(waiting)
    assert broker.asked <= 2
    broker.asked = 0
    away.connect()
    assert all(waiting)
    assert broker.asked <= 2
    assert not world.clock.getDelayedCalls()


def test_a_server_that_comes_back_without_its_plugin_is_stock(world: Grid) -> None:
    node = world.plugin_node()
    node.connect()
    world.reach("pb://plugin").lose()
    results = outcome(world.grid.when_back(node.server_id, MINUTE))
    world.refuse("pb://plugin")
    assert isinstance(results[0], StockServer)


def test_only_the_server_itself_is_waited_for(world: Grid) -> None:
    node, other = world.plugin_node(), world.plugin_node("pb://other", 101)
    results = outcome(world.grid.when_back(node.server_id, MINUTE))
    other.connect()
    world.reach("pb://other")
    world.stock(3)
    assert not results
    node.connect()
    world.reach("pb://plugin")
    assert [server.server_id for server in results] == [node.server_id]


def test_a_server_that_stays_away_is_none(world: Grid) -> None:
    node = world.plugin_node()
    results = outcome(world.grid.when_back(node.server_id, MINUTE))
    world.clock.advance(MINUTE - 1)
    assert not results
    world.clock.advance(1)
    assert results == [None]
    node.connect()
    world.reach("pb://plugin")
    assert results == [None]


def test_a_cancelled_wait_for_a_server_gives_none(world: Grid) -> None:
    node = world.plugin_node()
    d = world.grid.when_back(node.server_id, MINUTE)
    results = outcome(d)
    d.cancel()
    assert results == [None]
    assert not world.clock.getDelayedCalls()
    node.connect()
    world.reach("pb://plugin")
    assert results == [None]


def test_a_wait_that_ends_may_end_others(world: Grid) -> None:
    """As when the first server that is back makes an upload give up all that it waits for."""
    node = world.plugin_node()
    waits = [world.grid.when_back(node.server_id, MINUTE) for _ in range(3)]
    results: list[Any] = []

    def first(server: StorageServer | None) -> None:
        results.append(server is not None)
        waits[1].cancel()

    waits[0].addCallback(first)
    waits[1].addCallback(results.append)
    waits[2].addCallback(lambda server: results.append(server is not None))
    node.connect()
    world.reach("pb://plugin")
    assert results == [True, None, True]
    assert not world.clock.getDelayedCalls()


# -- stopping -----------------------------------------------------------------------------------------------


def test_after_stop_no_plugin_is_tried(world: Grid) -> None:
    node = world.plugin_node()
    node.connect()
    world.refuse("pb://plugin")
    world.grid.stop()
    assert not world.clock.getDelayedCalls()
    node.lose()
    node.connect()
    assert not world.attempts
