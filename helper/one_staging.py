"""The shares of one upload on this server, and who is at work on them."""

from __future__ import annotations

from pathlib import Path

import attrs
from twisted.internet.defer import DeferredLock

from helper import staging_errors as errors
from helper.layout import DATA_OFFSET
from helper.staged_share import StagedShare


@attrs.define(eq=False)
class Staging:
    """One staging. `name` is that of its directory; `touched` and `recorded_touch` say when somebody last
    called for it, in seconds of the node's uptime (uptime.py)."""

    name: str
    directory: Path
    touched: float
    recorded_touch: float = 0.0
    shares: dict[int, StagedShare] = attrs.Factory(dict)
    #: Held while shares come or go, so that a new one never meets the removal of an old one or of the directory.
    structure: DeferredLock = attrs.Factory(DeferredLock)
    #: Calls under way: while there are any the staging neither expires nor is forgotten.
    users: int = 0
    #: Bytes admitted that are not yet in any share's length.
    being_written: int = 0

    @property
    def used(self) -> int:
        """Bytes of share data, those being written among them."""
        return sum(share.length for share in self.shares.values()) + self.being_written

    @property
    def empty(self) -> bool:
        """Whether no share has a byte."""
        return self.used == DATA_OFFSET * len(self.shares)

    def live(self) -> list[StagedShare]:
        """The shares that are not being removed, by number."""
        return [share for _shnum, share in sorted(self.shares.items()) if not share.removed]

    def find(self, shnum: int) -> StagedShare:
        """Raises UnknownStaging if there is no such share."""
        share = self.shares.get(shnum)
        if share is None or share.removed:
            raise errors.UnknownStaging
        return share
