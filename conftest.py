"""The profiles of all tests that draw their examples."""

from __future__ import annotations

from hypothesis import settings

# A change is judged by the same examples each time. Chance finds what nobody thought of, on demand.
settings.register_profile("core", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("all", max_examples=500, deadline=None, print_blob=True)
settings.load_profile("core")  # scripts/test --properties takes "all"
