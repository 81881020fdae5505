"""The profiles of all property tests, and silence about tasks that are meant to fail."""

from __future__ import annotations

import logging

import pytest
from hypothesis import settings

for name, examples in {"core": 100, "all": 500}.items():
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        derandomize=False,  # chance finds what nobody thought of; the blob brings a failure back
        print_blob=True,
    )
settings.load_profile("core")  # scripts/test --properties takes "all"

logging.getLogger("taskiq").setLevel(logging.CRITICAL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hundreds of examples take longer than one test may, where the machine is busy."""
    for item in items:
        if "property_tests" in item.path.parts:
            item.add_marker(pytest.mark.timeout(180))
