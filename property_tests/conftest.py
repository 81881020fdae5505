"""Silence about tasks that are meant to fail, and more time for each test."""

from __future__ import annotations

import logging

import pytest

logging.getLogger("taskiq").setLevel(logging.CRITICAL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hundreds of examples take longer than one test may, where the machine is busy."""
    for item in items:
        if "property_tests" in item.path.parts:
            item.add_marker(pytest.mark.timeout(180))
