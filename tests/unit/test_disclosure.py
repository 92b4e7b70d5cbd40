"""When which mode tells what of the storage index."""

from __future__ import annotations

import pytest

from client_shim.disclosure import Assign, Disclosure, Order, RevealStorageIndex
from client_shim.errors import HelperMisbehaved
from client_shim.server_order import order_of

SI = bytes(range(16))
SEEDS = b"\x02ab\x02cd\x02ef"
ASSIGN = Assign(SI)
ORDER = Order(order_of(SI, [b"ab", b"cd", b"ef"]))

AUTO, EARLY, AT_COMPLETION = RevealStorageIndex


@pytest.mark.parametrize(("reveal", "needed", "seeds", "said"), [
    (AUTO, True, SEEDS, [ASSIGN]), (AUTO, True, None, [ASSIGN]), (AUTO, False, SEEDS, [ORDER]), (AUTO, False, None, []),
    (EARLY, True, SEEDS, [ASSIGN]), (EARLY, False, SEEDS, [ASSIGN]), (EARLY, False, None, [ASSIGN]),
    (AT_COMPLETION, True, SEEDS, [ORDER]), (AT_COMPLETION, False, SEEDS, [ORDER]), (AT_COMPLETION, True, None, []),
])
def test_after_open(reveal: RevealStorageIndex, needed: bool, seeds: bytes | None, said: list[object]) -> None:
    disclosure = Disclosure(reveal, SI)
    assert disclosure.opened(needed, seeds) == said
    assert disclosure.unanswered == said


@pytest.mark.parametrize(("reveal", "said"), [(AUTO, [ASSIGN]), (EARLY, []), (AT_COMPLETION, [])])
def test_when_it_is_needed_later(reveal: RevealStorageIndex, said: list[object]) -> None:
    disclosure = Disclosure(reveal, SI)
    disclosure.opened(False, SEEDS)
    assert disclosure.answer_says_needed() == said
    assert disclosure.answer_says_needed() == []


def test_the_storage_index_is_told_once() -> None:
    disclosure = Disclosure(AUTO, SI)
    disclosure.opened(True, SEEDS)
    disclosure.answered(ASSIGN)
    assert disclosure.answer_says_needed() == []
    assert disclosure.unanswered == []


def test_after_the_storage_index_the_order_says_nothing_more() -> None:
    disclosure = Disclosure(AUTO, SI)
    disclosure.opened(False, SEEDS)
    disclosure.answer_says_needed()
    assert disclosure.unanswered == [ASSIGN]
    disclosure.answered(ORDER)
    disclosure.answered(ASSIGN)
    assert disclosure.unanswered == []


@pytest.mark.parametrize("reveal", RevealStorageIndex)
def test_malformed_seeds_are_noticed_in_every_mode(reveal: RevealStorageIndex) -> None:
    with pytest.raises(HelperMisbehaved):
        Disclosure(reveal, SI).opened(False, b"\x05abc")


def test_the_order_does_not_hold_the_storage_index() -> None:
    (said,) = Disclosure(AT_COMPLETION, SI).opened(True, SEEDS)
    assert isinstance(said, Order)
    assert sorted(said.order) == [0, 0, 0, 0, 1, 2]
