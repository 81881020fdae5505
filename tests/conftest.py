"""What every test has: an outer limit, a fresh embedded broker, and a look at what is left over."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator

import pytest
from taskiq import InMemoryBroker

TIME_LIMIT = 20.0
"""Seconds that a test may take; one that hangs fails instead."""


@pytest.fixture(autouse=True)
async def nothing_is_left_over() -> AsyncIterator[None]:
    """Limit each test's time; afterwards no asyncio task of it may be left."""
    before = asyncio.all_tasks()
    async with asyncio.timeout(TIME_LIMIT):
        yield
        gc.collect()
        while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(left, timeout=1.0)
            assert not {task for task in left if not task.done()}


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


@pytest.fixture(autouse=True)
def taskiq_is_quiet() -> None:
    """taskiq logs the traceback of every task that fails, which is what many tests are about."""
    logging.getLogger("taskiq").setLevel(logging.CRITICAL)
