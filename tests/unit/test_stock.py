"""helper/stock.py with storage servers that answer strangely. With real ones: tests/contracts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, succeed
from world import begin, outcome

from helper.placement import Allocation
from helper.sinks import Granted, ServerRefused, Target
from helper.stock import StockServer, StockSink

STORAGE_V1 = b"http://allmydata.org/tahoe/protocols/storage/v1"
TARGET = Target(b"s" * 32, bytes(16))


@attrs.frozen
class Rref:
    """A remote reference whose answers the test gives."""

    answers: dict[str, Any]

    def callRemote(self, method: str, *_arguments: Any) -> Deferred[Any]:
        return succeed(self.answers[method])


@attrs.frozen
class Native:
    """As much of an allmydata NativeStorageServer as is used."""

    rref: Rref
    name: str | bytes = "v0-abcd"

    def get_rref(self) -> Rref:
        return self.rref

    def get_name(self) -> str | bytes:
        return self.name

    def get_serverid(self) -> bytes:
        return b"v0-abcd"

    def get_lease_seed(self) -> bytes:
        return bytes(20)


def server(**answers: Any) -> StockServer:
    return StockServer(Native(Rref(answers)), lambda _si, _seed: (b"r" * 32, b"c" * 32))


def result(make: Callable[[], Deferred[Any]]) -> Any:
    (answer,) = outcome(begin(make()))
    return answer


@pytest.mark.parametrize(("version", "space"), [
    ({STORAGE_V1: {b"available-space": 5}}, 5), ({STORAGE_V1: {b"available-space": 0}}, 0),
    ({STORAGE_V1: {b"available-space": None}}, None), ({STORAGE_V1: {b"available-space": b"5"}}, None),
    ({STORAGE_V1: {}}, None), ({STORAGE_V1: 5}, None), ({}, None)])
def test_free_space_is_what_it_says_or_unknown(version: Any, space: int | None) -> None:
    assert result(server(get_version=version).free_space) == space


@pytest.mark.parametrize("version", [None, 5, b"version", []])
def test_a_version_that_is_none_is_an_error(version: Any) -> None:
    result(server(get_version=version).free_space).trap(ServerRefused)


def test_writers_that_were_not_asked_for_are_not_used() -> None:
    strange = server(allocate_buckets=({7, 8}, {1: "writer 1", 9: "writer 9"}), get_buckets={7: "r", 8: "r"})
    granted = result(lambda: strange.allocate(TARGET, [0, 1, 2], Allocation(10, 10)))
    assert granted == Granted({1: StockSink("writer 1")}, {})


def test_a_share_that_it_says_to_have_and_does_not_show_is_refused() -> None:
    strange = server(allocate_buckets=({0, 1}, {}), get_buckets={1: "reader"})
    granted = result(lambda: strange.allocate(TARGET, [0, 1, 2], Allocation(10, 10)))
    assert set(granted.existing) == {1}


@pytest.mark.parametrize("answer", [None, 5, (), (set(), {}, 5), ({0}, None), (None, {})])
def test_an_answer_of_another_shape_fails_the_request(answer: Any) -> None:
    strange = server(allocate_buckets=answer)
    assert hasattr(result(lambda: strange.allocate(TARGET, [0], Allocation(10, 10))), "value")


def test_without_a_storage_index_it_cannot_be_asked_for_room() -> None:
    with pytest.raises(ValueError, match="storage index"):
        server().allocate(Target(b"s" * 32), [0], Allocation(10, 10))


@pytest.mark.parametrize("readers", [None, 5])
def test_shares_that_are_no_mapping_fail_the_request(readers: Any) -> None:
    strange = server(get_buckets=readers)
    assert hasattr(result(lambda: begin(strange.existing_shares(TARGET.storage_index or b"", [0]))), "value")


def test_it_stages_nothing() -> None:
    assert not server().stages
    assert not StockSink("writer").prepared
    assert StockSink("writer").held == 0


@pytest.mark.parametrize(("name", "text"), [("abcd", "abcd"), (b"abcd", "abcd"), (b"ab\xff", "ab\ufffd")])
def test_names_are_text(name: str | bytes, text: str) -> None:
    assert StockServer(Native(Rref({}), name), lambda _si, _seed: (b"", b"")).name == text
