"""Fixtures of the integration tests: real grids of real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_tools import fault_grid, restore
from grid_tools import SharedGrid, shared_grid

from client_shim.local_config import GridOptions
from client_shim.local_grid import LocalGrid

MakeGrid = Callable[[GridOptions], LocalGrid]


@pytest.fixture(scope="module")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    """The grid of stock servers; each test puts back what it broke."""
    return shared_grid(pytestconfig, tmp_path_factory)


@pytest.fixture
def grid(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGrid]:
    """The grid whose nodes are killed and made to fail (FAULT_GRID); a test that fails as well leaves it whole."""
    grid = fault_grid(pytestconfig, tmp_path_factory)
    yield grid
    restore(grid)


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
