"""The ways to staging plugins (helper/staging_links.py), with a Tub whose connections the test makes and breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from foolscap.api import DeadReferenceError
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from helper.staging_interfaces import PLUGIN_NAME
from helper.staging_links import ABORTS_MAX, RETRY_FIRST, RETRY_MOST, PluginLink, StagingLinks, plugin_furl

FURL, OTHER_FURL = "pb://tub@tcp:127.0.0.1:1/plugin", "pb://tub@tcp:127.0.0.1:1/another"
NAME = b"n" * 32


class Rref:
    """A remote reference to a plugin, to which the test breaks the connection."""

    def __init__(self, furl: str) -> None:
        self.furl = furl
        self.alive = True
        self.asked: list[tuple[Any, ...]] = []
        self.unanswered: list[Deferred[Any]] = []
        self.holds = False  # whether answers wait
        self._watchers: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def callRemote(self, method: str, *arguments: Any) -> Deferred[Any]:
        if not self.alive:
            return fail(DeadReferenceError("Calling Stale Broker"))
        self.asked.append((method, *arguments))
        if not self.holds:
            return succeed({b"code": b"ok"})
        d: Deferred[Any] = Deferred()
        self.unanswered.append(d)
        return d

    def notifyOnDisconnect(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._watchers.append((callback, arguments))

    def die(self) -> None:
        """The connection is gone, and nobody knows it yet."""
        self.alive = False

    def lose(self) -> None:
        """The connection is gone, and all who want to know are told."""
        self.die()
        for callback, arguments in self._watchers:
            callback(*arguments)


class FakeTub:
    """Its getReference is answered when the test says so."""

    def __init__(self) -> None:
        self.attempts: list[tuple[str, Deferred[Any]]] = []

    def get_reference(self, furl: str) -> Deferred[Any]:
        d: Deferred[Any] = Deferred()
        self.attempts.append((furl, d))
        return d

    def connect(self) -> Rref:
        """The one attempt that is under way succeeds."""
        ((furl, d),) = self.attempts
        self.attempts.clear()
        rref = Rref(furl)
        d.callback(rref)
        return rref

    def refuse(self) -> None:
        """The one attempt that is under way fails."""
        ((_furl, d),) = self.attempts
        self.attempts.clear()
        d.errback(Failure(ConnectError()))

    @property
    def trying(self) -> list[str]:
        return [furl for furl, _d in self.attempts]


@attrs.define(eq=False)
class Node:
    """As much of an allmydata NativeStorageServer as is used."""

    server_id: bytes
    announcement: Any
    rref: object = attrs.field(factory=object)

    def get_serverid(self) -> bytes:
        return self.server_id

    def get_name(self) -> str:
        return self.server_id.decode()

    def get_announcement(self) -> Any:
        return self.announcement

    def get_rref(self) -> object:
        return self.rref

    def reconnect(self) -> None:
        """The node, not its plugin, is connected anew."""
        self.rref = object()


def announced(furl: Any = FURL, name: str = PLUGIN_NAME) -> dict[str, Any]:
    return {"nickname": "x", "storage-options": [{"name": "another-plugin", "storage-server-FURL": "pb://x"},
                                                 {"name": name, "storage-server-FURL": furl}]}


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.tub = FakeTub()
        self.changes = 0
        #: What a change makes its listener do.
        self.on_change: Callable[[], None] = lambda: None
        self.links = StagingLinks(self.tub.get_reference, self.clock, self._changed)
        self.node = Node(b"v0-abcd", announced())

    def _changed(self) -> None:
        self.changes += 1
        self.on_change()

    def link(self, node: Node | None = None) -> PluginLink:
        link = self.links.link(node or self.node)
        assert link is not None
        return link


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- announcements ------------------------------------------------------------------------------------------


def test_the_furl_is_found_in_the_announcement() -> None:
    assert plugin_furl(announced()) == FURL


@pytest.mark.parametrize("announcement", [
    None, 5, [], {}, {"storage-options": None}, {"storage-options": 5}, {"storage-options": {}},
    {"storage-options": []}, {"storage-options": [None, 5, "x", []]}, {"storage-options": [{}]},
    {"storage-options": [{"name": PLUGIN_NAME}]}, {"storage-options": [{"storage-server-FURL": FURL}]},
    announced(None), announced(5), announced([FURL]), announced(FURL.encode()), announced(name="another"),
    announced(name=PLUGIN_NAME + "2")])
def test_a_node_that_announces_no_plugin_has_none(bench: Bench, announcement: Any) -> None:
    assert bench.links.link(Node(b"v0-abcd", announcement)) is None
    assert not bench.tub.trying


# -- connecting ---------------------------------------------------------------------------------------------


def test_a_plugin_is_tried_once_and_told_when_it_is_reached(bench: Bench) -> None:
    link = bench.link()
    assert bench.link() is link
    assert bench.tub.trying == [FURL]
    assert (link.connecting, link.rref, bench.changes) == (True, None, 0)
    rref = bench.tub.connect()
    assert (link.connecting, link.rref, bench.changes) == (False, rref, 1)
    assert bench.link().rref is rref
    assert not bench.tub.trying
    assert not bench.clock.getDelayedCalls()


def test_every_node_has_its_own_link(bench: Bench) -> None:
    other = Node(b"v0-efgh", announced(OTHER_FURL))
    assert bench.link() is not bench.link(other)
    assert bench.tub.trying == [FURL, OTHER_FURL]


def test_a_reference_that_is_there_at_once_is_as_good(bench: Bench) -> None:
    rref = Rref(FURL)
    links = StagingLinks(lambda _furl: succeed(rref), bench.clock, bench._changed)
    link = links.link(bench.node)
    assert link is not None
    assert (link.rref, link.connecting, bench.changes) == (rref, False, 1)


# -- failing ------------------------------------------------------------------------------------------------


def test_a_plugin_that_cannot_be_reached_is_tried_again_later_and_later(bench: Bench) -> None:
    link = bench.link()
    delay = RETRY_FIRST
    for attempt in range(12):
        assert bench.tub.trying == [FURL]
        bench.tub.refuse()
        assert (link.rref, link.connecting, bench.changes) == (None, False, attempt + 1)
        bench.clock.advance(delay * 0.99)
        assert not bench.tub.trying
        bench.clock.advance(delay * 0.01)
        delay = min(RETRY_MOST, 2 * delay)
    assert delay == RETRY_MOST
    bench.tub.connect()
    assert not bench.clock.getDelayedCalls()


def test_looking_at_a_failed_link_does_not_try_it_again(bench: Bench) -> None:
    """Whoever is told of the failure looks at once: it must neither loop nor hide the node, which is stock now."""
    def look() -> None:
        bench.link()

    bench.on_change = look
    link = bench.link()
    bench.tub.refuse()
    bench.link()
    assert not bench.tub.trying
    assert not link.connecting
    assert len(bench.clock.getDelayedCalls()) == 1


def test_a_link_that_fails_at_once_does_not_loop(bench: Bench) -> None:
    attempts: list[str] = []

    def get_reference(furl: str) -> Deferred[Any]:
        attempts.append(furl)
        return fail(ConnectError())

    def look() -> None:
        links.link(bench.node)

    links = StagingLinks(get_reference, bench.clock, look)
    links.link(bench.node)
    assert len(attempts) == 1
    bench.clock.advance(RETRY_FIRST)
    assert len(attempts) == 2


def test_while_it_is_only_tried_again_the_node_stays_stock(bench: Bench) -> None:
    link = bench.link()
    bench.tub.refuse()
    bench.clock.advance(RETRY_FIRST)
    assert bench.tub.trying == [FURL]
    assert not link.connecting
    bench.tub.connect()
    assert link.rref is not None


def test_after_a_success_the_first_retry_comes_soon_again(bench: Bench) -> None:
    bench.link()
    bench.tub.refuse()
    bench.clock.advance(RETRY_FIRST)
    bench.tub.refuse()
    bench.clock.advance(2 * RETRY_FIRST)
    bench.tub.connect().lose()
    bench.tub.refuse()
    bench.clock.advance(RETRY_FIRST)
    assert bench.tub.trying == [FURL]


def test_a_node_that_is_connected_anew_is_tried_at_once(bench: Bench) -> None:
    link = bench.link()
    for _ in range(9):
        bench.tub.refuse()
        bench.clock.advance(RETRY_MOST)
    bench.tub.refuse()
    bench.node.reconnect()
    assert bench.link() is link
    assert bench.tub.trying == [FURL]
    assert link.connecting
    bench.tub.connect()
    assert not bench.clock.getDelayedCalls()


def test_a_node_that_is_connected_anew_keeps_a_plugin_that_never_went(bench: Bench) -> None:
    link = bench.link()
    rref = bench.tub.connect()
    bench.node.reconnect()
    assert bench.link().rref is link.rref is rref
    assert not bench.tub.trying


# -- another furl -------------------------------------------------------------------------------------------


def test_a_new_announcement_with_another_furl_leads_there(bench: Bench) -> None:
    link = bench.link()
    old = bench.tub.connect()
    again = Node(bench.node.server_id, announced(OTHER_FURL))
    assert bench.link(again) is link
    assert (link.rref, link.connecting) == (None, True)
    assert bench.tub.trying == [OTHER_FURL]
    new = bench.tub.connect()
    assert link.rref is new
    old.lose()
    assert link.rref is new
    assert not bench.tub.trying


def test_a_new_furl_while_the_old_one_is_tried(bench: Bench) -> None:
    link = bench.link()
    bench.link(Node(bench.node.server_id, announced(OTHER_FURL)))
    assert bench.tub.trying == [FURL]
    bench.tub.connect()
    assert (link.rref, link.connecting, bench.changes) == (None, True, 0)
    assert bench.tub.trying == [OTHER_FURL]
    new = bench.tub.connect()
    assert (link.rref, bench.changes) == (new, 1)


def test_a_new_furl_after_a_failure_is_tried_at_once(bench: Bench) -> None:
    bench.link()
    bench.tub.refuse()
    bench.link(Node(bench.node.server_id, announced(OTHER_FURL)))
    assert bench.tub.trying == [OTHER_FURL]
    bench.tub.connect()
    assert not bench.clock.getDelayedCalls()


# -- losing -------------------------------------------------------------------------------------------------


def test_a_plugin_that_is_lost_is_tried_at_once(bench: Bench) -> None:
    link = bench.link()
    bench.tub.connect().lose()
    assert (link.rref, link.connecting) == (None, True)
    assert bench.tub.trying == [FURL]
    back = bench.tub.connect()
    assert (link.rref, bench.changes) == (back, 2)


def test_a_loss_that_is_told_late_does_not_take_the_new_reference(bench: Bench) -> None:
    link = bench.link()
    first = bench.tub.connect()
    first.lose()
    back = bench.tub.connect()
    first.lose()
    assert link.rref is back


# -- aborts of what an absent server keeps ------------------------------------------------------------------


def test_an_abort_is_sent_at_once_while_connected(bench: Bench) -> None:
    link = bench.link()
    rref = bench.tub.connect()
    link.abort_later(NAME, 3)
    assert rref.asked == [("abort", NAME, [3])]


def test_aborts_wait_for_the_plugin_and_are_sent_once(bench: Bench) -> None:
    link = bench.link()
    link.abort_later(NAME, 3)
    bench.tub.refuse()
    link.abort_later(NAME, 4)
    bench.clock.advance(RETRY_FIRST)
    first = bench.tub.connect()
    assert first.asked == [("abort", NAME, [3]), ("abort", NAME, [4])]
    first.lose()
    assert bench.tub.connect().asked == []


def test_an_abort_over_a_connection_that_is_dead_unnoticed_waits(bench: Bench) -> None:
    """Foolscap fails calls before it tells of the loss."""
    link = bench.link()
    first = bench.tub.connect()
    first.die()
    link.abort_later(NAME, 3)
    first.lose()
    assert bench.tub.connect().asked == [("abort", NAME, [3])]


@pytest.mark.parametrize("told_first", [True, False])
def test_an_abort_whose_connection_is_lost_before_the_answer_is_sent_again(bench: Bench, told_first: bool) -> None:
    link = bench.link()
    first = bench.tub.connect()
    first.holds = True
    link.abort_later(NAME, 3)
    (answer,) = first.unanswered
    lost = Failure(ConnectionDone())
    if told_first:
        first.lose()
        second = bench.tub.connect()
        answer.errback(lost)
    else:
        answer.errback(lost)
        first.lose()
        second = bench.tub.connect()
    assert second.asked == [("abort", NAME, [3])]


def test_an_abort_that_fails_otherwise_is_not_repeated(bench: Bench) -> None:
    link = bench.link()
    first = bench.tub.connect()
    first.holds = True
    link.abort_later(NAME, 3)
    first.unanswered[0].errback(Failure(ValueError("no")))
    first.lose()
    assert bench.tub.connect().asked == []


def test_only_so_many_aborts_wait(bench: Bench) -> None:
    link = bench.link()
    for i in range(ABORTS_MAX + 5):
        link.abort_later(NAME, i)
    assert len(bench.tub.connect().asked) == ABORTS_MAX


# -- stopping -----------------------------------------------------------------------------------------------


def test_after_stop_nothing_is_tried(bench: Bench) -> None:
    other = Node(b"v0-efgh", announced(OTHER_FURL))
    bench.link()
    rref = bench.tub.connect()
    bench.link(other)
    bench.tub.refuse()
    bench.links.stop()
    assert not bench.clock.getDelayedCalls()
    rref.lose()
    other.reconnect()
    bench.link(other)
    assert not bench.tub.trying


def test_an_attempt_that_fails_after_stop_is_the_last(bench: Bench) -> None:
    bench.link()
    bench.links.stop()
    bench.tub.refuse()
    assert not bench.clock.getDelayedCalls()
