"""Fixtures of the integration tests: real grids of real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid

MakeGrid = Callable[[GridOptions], LocalGrid]


@pytest.fixture
def make_grid(tmp_path: Path) -> Iterator[MakeGrid]:
    """Call it with GridOptions for a started grid; all of them are stopped after the test."""
    grids: list[LocalGrid] = []

    def make(options: GridOptions) -> LocalGrid:
        grid = LocalGrid(tmp_path / f"grid-{len(grids)}", options)
        grids.append(grid)
        grid.start()
        return grid

    yield make
    for grid in grids:
        grid.stop()
