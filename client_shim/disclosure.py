"""What a helper is told of the storage index before `finish`, and when: protocol.txt §4.4, §4.7.  (pure)"""

from __future__ import annotations

from enum import Enum

import attrs

from client_shim.server_order import order_of, parse_seeds


class RevealStorageIndex(Enum):
    """When a storage index is told. The values are those of the setting and of the command line."""

    AUTO = "auto"
    """When the helper says that shares cannot go to storage servers without it."""
    EARLY = "early"
    """Right after `open`."""
    AT_COMPLETION = "at-completion"
    """With `finish`, though that then may take as long as pushing the whole file."""


@attrs.frozen
class Assign:
    """Call `assign`."""

    storage_index: bytes


@attrs.frozen
class Order:
    """Call `order`. A hint: the upload goes on if it is refused."""

    order: bytes


Statement = Assign | Order


class Disclosure:
    """Decides what is said, once; and what was said and not answered, so has to be said again after a disconnect."""

    def __init__(self, reveal: RevealStorageIndex, storage_index: bytes) -> None:
        self._reveal = reveal
        self._storage_index = storage_index
        self._assigned = False
        self._unanswered: list[Statement] = []

    @property
    def unanswered(self) -> list[Statement]:
        return list(self._unanswered)

    def opened(self, needed: bool, permutation_seeds: bytes | None) -> list[Statement]:
        """What to say now that `open` was answered so. Raises HelperMisbehaved for malformed seeds."""
        seeds = None if permutation_seeds is None else parse_seeds(permutation_seeds)
        if self._reveal is RevealStorageIndex.EARLY:
            needed = True
        elif self._reveal is RevealStorageIndex.AT_COMPLETION:
            needed = False
        if needed:
            return self._assign()
        return [] if seeds is None else self._say(Order(order_of(self._storage_index, seeds)))

    def answer_says_needed(self) -> list[Statement]:
        """What to say now that an answer had storage-index-needed = 1."""
        return self._assign() if self._reveal is not RevealStorageIndex.AT_COMPLETION else []

    def answered(self, statement: Statement) -> None:
        """`statement` was answered, and need not be said again."""
        if statement in self._unanswered:
            self._unanswered.remove(statement)

    def _assign(self) -> list[Statement]:
        if self._assigned:
            return []
        self._assigned = True
        self._unanswered.clear()  # an order says less
        return self._say(Assign(self._storage_index))

    def _say(self, statement: Statement) -> list[Statement]:
        self._unanswered.append(statement)
        return [statement]
