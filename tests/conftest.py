"""For all tests: how many examples Hypothesis tries. HYPOTHESIS_PROFILE=thorough tries ten times as many.

A failing example is printed with the decorator that repeats it (@reproduce_failure), and the profile is in
the report's first lines. A test that needs fewer takes a part of `settings.default.max_examples`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# too_slow measures the machine, not the test
settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
