"""How much a storage node lets staged shares grow: protocol.txt §16.2, §16.3, §16.5."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from helper import staging_errors as errors
from helper.one_staging import Staging

#: Kept free by writes and counted for every new share, so that shares can still be prepared; bytes.
SPARE_PER_SHARE = 64 * 1024


class Room:
    """The space that `stock`, the node's StorageServer, has for us. `bytes_per_staging` is a limit."""

    def __init__(self, stock: Any, bytes_per_staging: int) -> None:
        self._stock = stock
        self._bytes_per_staging = bytes_per_staging
        #: Bytes admitted that the file system may not have taken yet.
        self._being_written = 0

    def available(self) -> int | None:
        """Bytes beyond reserved_space, less what stock writers have allocated and what is being written here.
        None if the platform cannot tell."""
        space = self._stock.get_available_space()
        return None if space is None else int(space - self._stock.allocated_size() - self._being_written)

    def check(self, staging: Staging, grows: int, takes: int, spare: int) -> None:
        """Share data is to grow by `grows`, which takes `takes` bytes of the file system and must leave `spare`.

        Raises ReadOnly, StagingFull, NoSpace.
        """
        if self._stock.readonly_storage:
            raise errors.ReadOnly
        if staging.used + grows > self._bytes_per_staging:
            raise errors.StagingFull(self._bytes_per_staging, staging.used + grows)
        space = self.available()
        if space is not None and takes and takes > space - spare:
            raise errors.NoSpace(max(0, space - spare), takes)

    @contextmanager
    def admit(self, staging: Staging, grows: int, takes: int, spare: int) -> Iterator[None]:
        """As `check`; and for as long as they are being written, they are taken."""
        self.check(staging, grows, takes, spare)
        staging.being_written += grows
        self._being_written += takes
        try:
            yield
        finally:
            staging.being_written -= grows
            self._being_written -= takes
