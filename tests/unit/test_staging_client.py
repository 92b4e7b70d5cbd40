"""helper/staging_client.py with plugins that answer strangely, late or not at all. With real ones: tests/contracts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from foolscap.api import DeadReferenceError
from staging_node import NAME, SECRETS, SI, SIZE, Node
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from world import begin, outcome

from helper.interfaces import SIZE_MAX
from helper.layout import DATA_OFFSET
from helper.placement import Allocation
from helper.sinks import Granted, ServerRefused, Target
from helper.staging_client import StagedSink, StagingStorageServer, staging_name
from helper.staging_plugin import FoolscapStagingServer
from helper.stock import StockServer, StockShare

SECRET = b"s" * 32
OK: dict[bytes, Any] = {b"code": b"ok"}
READER = {3: "reader"}


@attrs.frozen
class Rref:
    """A remote reference whose answers the test gives; exceptions are failures."""

    answers: dict[str, Any]
    asked: list[tuple[Any, ...]] = attrs.field(factory=list)

    def callRemote(self, method: str, *arguments: Any) -> Deferred[Any]:
        self.asked.append((method, *arguments))
        answer = self.answers[method]
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)


@attrs.define(eq=False)
class Link:
    """A StagingLink."""

    rref: Any
    later: list[tuple[bytes, int]] = attrs.field(factory=list)

    def abort_later(self, name: bytes, *shnums: int) -> None:
        self.later += [(name, shnum) for shnum in shnums]


@attrs.frozen
class Native:
    """As much of an allmydata NativeStorageServer as is used."""

    readers: dict[int, Any]
    asked: list[tuple[Any, ...]] = attrs.field(factory=list)

    def get_rref(self) -> Rref:
        return Rref({"get_buckets": self.readers, "add_lease": None}, self.asked)

    def get_name(self) -> str:
        return "v0-abcd"

    def get_serverid(self) -> bytes:
        return b"v0-abcd"

    def get_lease_seed(self) -> bytes:
        return bytes(20)


def server_at(rref: Any, readers: dict[int, Any] | None = None) -> StagingStorageServer:
    stock = StockServer(Native({} if readers is None else readers), lambda _si, _seed: SECRETS)
    return StagingStorageServer(stock, Link(rref))


def server(readers: dict[int, Any] | None = None, **answers: Any) -> StagingStorageServer:
    return server_at(Rref(answers), readers)


def sink(at: StagingStorageServer) -> StagedSink:
    return StagedSink(at, NAME, 3, 68, False)


def result(d: Deferred[Any]) -> Any:
    (answer,) = outcome(begin(d))
    return answer


def refused(d: Deferred[Any]) -> str:
    """Why, as the helper says it."""
    failure = result(d)
    failure.trap(ServerRefused)
    return str(failure.value)


# -- names --------------------------------------------------------------------------------------------------


def test_a_name_is_of_one_upload_on_one_server() -> None:
    names = {staging_name(secret, server_id) for secret in (SECRET, b"t" * 32) for server_id in (b"v0-a", b"v0-b")}
    assert len(names) == 4
    assert {len(name) for name in names} == {32}
    assert not any(SECRET in name for name in names)
    assert staging_name(SECRET, b"v0-a") in names
    # protocol.txt §15.1
    assert staging_name(bytes(range(32)), b"v0-example").hex() == (
        "74d06d24244877ccc0e972fc2bcd02414761da940f7e7f02f328dcd42020338f")


# -- answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "space"), [
    ({b"available-space": 5}, 5), ({b"available-space": 0}, 0), ({b"available-space": b"5"}, None), ({}, None)])
def test_free_space_is_what_it_says_or_unknown(fields: dict[bytes, Any], space: int | None) -> None:
    assert result(server(get_version={**OK, **fields}).free_space()) == space


@pytest.mark.parametrize(("answer", "said"), [
    (None, "no code"), (5, "no code"), ({}, "no code"), ({b"code": 5}, "no code"), ([], "no code"),
    ({b"code": b"stopping"}, "stopping"), ({b"code": b"\xff"}, "\ufffd"),
    ({b"code": b"no-space", b"text": b"a secret"}, "no-space")])
def test_an_answer_that_is_not_ok_is_a_refusal_and_only_its_code_is_repeated(answer: Any, said: str) -> None:
    at = server(get_version=answer, stage=(answer, []), write=answer, held=(answer, []), prepare=answer)
    one = sink(at)
    for d in (at.free_space(), at.allocate(Target(SECRET), [0], Allocation(0, SIZE_MAX)), one.write(0, b"x"),
              one.touch(), one.seal(SI, SIZE)):
        assert refused(d) == f"refused: {said}"


def test_shares_that_were_not_asked_for_are_not_used() -> None:
    held = [(0, b"growing", 68, 68), (1, b"prepared", 500, 500), (7, b"growing", 68, 68), (2, b"assigning", 600, 600),
            (4, b"never heard of", 2**62, 0)]
    at = server(stage=(OK, held))
    granted = result(at.allocate(Target(SECRET), [0, 1, 2, 3, 4], Allocation(0, SIZE_MAX)))
    name = staging_name(SECRET, at.server_id)
    assert granted == Granted({
        0: StagedSink(at, name, 0, 68, False), 1: StagedSink(at, name, 1, 500, True),
        2: StagedSink(at, name, 2, 600, True), 4: StagedSink(at, name, 4, SIZE_MAX, False)}, {})


def test_where_all_shares_are_there_nothing_is_staged() -> None:
    at = server(READER)
    granted = result(at.allocate(Target(SECRET, SI), [3], Allocation(0, SIZE_MAX)))
    assert (set(granted.sinks), set(granted.existing)) == (set(), {3})
    assert at.stock.native.asked == [("get_buckets", SI), ("add_lease", SI, *SECRETS)]


def test_where_no_share_is_there_none_gets_a_lease() -> None:
    at = server({4: "reader"}, stage=(OK, [(3, b"growing", 68, 68)]))
    assert set(result(at.allocate(Target(SECRET, SI), [3], Allocation(0, SIZE_MAX))).sinks) == {3}
    assert at.stock.native.asked == [("get_buckets", SI)]


@pytest.mark.parametrize("answer", [None, 5, (), (OK,), (OK, [], 5), (OK, None), (OK, [5]), (OK, [(0, b"growing")])])
def test_an_answer_of_another_shape_fails_the_request(answer: Any) -> None:
    at = server(stage=answer)
    assert hasattr(result(at.allocate(Target(SECRET), [0], Allocation(0, SIZE_MAX))), "value")


# -- publishing ---------------------------------------------------------------------------------------------


def test_only_the_share_itself_is_published() -> None:
    at = server(assign=(OK, [(3, b"assigned")]))
    assert result(sink(at).publish(SI)) is None
    assert at.link.rref.asked == [("assign", NAME, SI, [3])]


@pytest.mark.parametrize(("held", "prepared"), [(DATA_OFFSET + 1, False), (0, True), (SIZE, True)])
def test_a_share_that_the_server_said_it_held_is_what_publishing_gives(held: int, prepared: bool) -> None:
    answer = OK, [(3, b"assigned")]
    there, missing = server(READER, assign=answer), server(assign=answer)
    assert isinstance(result(StagedSink(there, NAME, 3, held, prepared).publish(SI)), StockShare)
    assert "did not publish" in refused(StagedSink(missing, NAME, 3, held, prepared).publish(SI))


@pytest.mark.parametrize("answer", [
    (OK, [(3, b"already-there")]), (OK, [(3, b"unknown")]), ({b"code": b"unknown-staging"}, [])])
def test_a_share_that_stands_there_gets_our_lease_and_is_what_publishing_gives(answer: Any) -> None:
    at = server(READER, assign=answer)
    assert isinstance(result(sink(at).publish(SI)), StockShare)
    assert at.stock.native.asked == [("get_buckets", SI), ("add_lease", SI, *SECRETS)]
    assert "did not publish" in refused(sink(server({4: "reader"}, assign=answer)).publish(SI))


@pytest.mark.parametrize(("answer", "said"), [
    ((OK, [(3, b"busy")]), "busy"), ((OK, [(3, b"failed")]), "failed"), ((OK, [(3, b"not-prepared")]), "not-prepared"),
    ((OK, [(3, b"\xff")]), "\ufffd"), ((OK, [(4, b"assigned")]), ""), ((OK, []), ""),
    (({b"code": b"storage-index-conflict"}, []), "storage-index-conflict"), ((None, []), "no code")])
def test_any_other_outcome_is_a_refusal_also_if_some_share_stands_there(answer: Any, said: str) -> None:
    assert refused(sink(server(READER, assign=answer)).publish(SI)) == f"did not publish a share: {said}"


# -- letting go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "again"), [
    (OK, False), ({b"code": b"stopping"}, False), (None, False), (ValueError("strange"), False),
    (DeadReferenceError("gone"), True)])
def test_an_abort_never_fails_and_is_kept_for_later_if_the_connection_is_lost(answer: Any, again: bool) -> None:
    link = Link(Rref({"abort": answer}))
    at = StagingStorageServer(StockServer(Native({}), lambda _si, _seed: SECRETS), link)
    assert result(sink(at).abort()) is None
    assert link.rref.asked == [("abort", NAME, [3])]
    assert link.later == ([(NAME, 3)] if again else [])


def test_an_abort_while_the_plugin_is_away_is_kept_for_later() -> None:
    link = Link(None)
    at = StagingStorageServer(StockServer(Native({}), lambda _si, _seed: SECRETS), link)
    assert result(sink(at).abort()) is None
    assert link.later == [(NAME, 3)]


# -- a share that is being assigned -------------------------------------------------------------------------


@attrs.frozen
class LocalRref:
    """Calls the plugin without a wire."""

    plugin: FoolscapStagingServer

    def callRemote(self, method: str, *arguments: Any) -> Deferred[Any]:
        d: Deferred[Any] = maybeDeferred(getattr(self.plugin, f"remote_{method}"), *arguments)
        return d


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.stop()


def test_a_share_that_is_found_again_while_it_is_being_assigned_is_complete(node: Node) -> None:
    """The connection was lost before the answer, and is back before the node's slow disk has done its part."""
    readers: dict[int, Any] = {}
    at = server_at(LocalRref(FoolscapStagingServer(node.staging)), readers)
    name = staging_name(SECRET, at.server_id)
    node.full_share(3, name)
    node.threads.hold()
    lost = outcome(StagedSink(at, name, 3, DATA_OFFSET, False).publish(SI))
    found = outcome(at.allocate(Target(SECRET, SI), [3], Allocation(0, SIZE_MAX)))
    (granted,) = found
    again = granted.sinks[3]
    assert (again.held, again.prepared) == (SIZE, True)
    assert outcome(again.seal(SI, SIZE)) == [None]
    published = outcome(again.publish(SI))
    assert not published
    readers |= READER
    node.threads.release()
    assert lost == [None]
    assert isinstance(published[0], StockShare)
    assert node.share_file(3) is not None


def test_a_share_that_is_being_assigned_cannot_be_sealed_with_another_size(node: Node) -> None:
    at = server_at(LocalRref(FoolscapStagingServer(node.staging)))
    name = staging_name(SECRET, at.server_id)
    node.full_share(3, name)
    node.threads.hold()
    published = outcome(StagedSink(at, name, 3, DATA_OFFSET, False).publish(SI))
    assert refused(StagedSink(at, name, 3, SIZE, True).seal(SI, SIZE - 1)) == "refused: wrong-size"
    node.threads.release()
    assert published == [None]
