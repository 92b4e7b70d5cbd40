"""For all tests: how many examples Hypothesis tries. HYPOTHESIS_PROFILE=thorough tries ten times as many.

A failing example is printed with the decorator that repeats it (@reproduce_failure).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, settings

# too_slow measures the machine, not the test
settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--schedules", type=int, default=5000, help="how many schedules the simulation runs")
    parser.addoption("--rounds", type=int, default=20, help="how often tests/integration/test_kills.py kills (20)")
    parser.addoption("--artefacts", metavar="DIR", help="where screenshots of the upload page go (default: a temporary "
                     "directory)")
    parser.addoption("--seed", type=int, help="of what test_kills.py draws by lot (default: another one each time)")


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if "long" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes: run with --long"))
