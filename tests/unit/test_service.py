"""The service of a helper node that cannot be started: it has to end all the same (helper/service.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import reactor_loop
from twisted.internet.defer import maybeDeferred

from helper.ledger_file import LedgerUnusable
from helper.service import SPOOL_DIRECTORY, StreamingHelperService
from helper.settings import Settings
from helper.spool import Spool, SpoolLocked


class NoGrid:
    """Follows nobody."""

    def follow(self, _introducer_clients: list[Any]) -> None:
        """As helper.grid.TahoeGrid."""

    def stop(self) -> None:
        """As helper.grid.TahoeGrid."""


def start_in_vain(directory: Path, error: type[Exception]) -> None:
    service = StreamingHelperService(Settings(), directory, cast(Any, NoGrid()), [])

    async def start() -> None:
        try:
            service.startService()
        finally:
            await service.stopService()

    with pytest.raises(error):
        reactor_loop.run(start)


def test_a_service_whose_spool_another_process_has_can_be_stopped(tmp_path: Path) -> None:
    other = Spool(tmp_path / SPOOL_DIRECTORY, maybeDeferred)
    other.start()
    start_in_vain(tmp_path, SpoolLocked)
    other.stop()


def test_a_service_whose_ledger_is_missing_can_be_stopped_and_lets_go_of_the_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path / SPOOL_DIRECTORY, maybeDeferred)
    spool.start()
    (tmp_path / SPOOL_DIRECTORY / ("a" * 52)).write_bytes(b"ciphertext")
    spool.stop()
    start_in_vain(tmp_path, LedgerUnusable)
    spool.start()
    assert spool.names() == ["a" * 52]
    spool.stop()
