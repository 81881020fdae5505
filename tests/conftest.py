"""What every test has: a fresh embedded broker, and a look at what it has left over."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from taskiq import InMemoryBroker

from tests.commands import Scripts
from tests.virtual_clock import start_tasks_eagerly

FOLDER = Path(__file__).parent


def pytest_collection() -> None:
    """Import the tests without looking for garbage: nearly all that they make stays."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Have each collection after a test look at what is younger than the tests, which is little."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have async tests leave nothing over. Others get no event loop, which takes a millisecond."""
    for item in items:
        if not isinstance(item, pytest.Function) or FOLDER not in item.path.parents:
            continue
        if inspect.iscoroutinefunction(item.function):
            item.fixturenames.insert(0, "nothing_is_left_over")


@pytest.fixture
async def nothing_is_left_over() -> AsyncIterator[None]:
    """After a test no asyncio task of it is left, once what it dropped is collected."""
    start_tasks_eagerly(asyncio.get_running_loop())
    before = asyncio.all_tasks()
    yield
    gc.collect()  # has the event loop close generators that were dropped
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        await asyncio.wait(left, timeout=10.0)  # a server may be slow to hear that a run is over
    assert not {task for task in left if not task.done()}
    gc.freeze()  # the next test's collections look at what is younger than this


@pytest.fixture(scope="session")
def scripts() -> Iterator[Scripts]:
    with Scripts() as scripts:
        yield scripts


@pytest.fixture
async def broker() -> AsyncIterator[InMemoryBroker]:
    broker = InMemoryBroker()
    yield broker
    await broker.shutdown()


@pytest.fixture(scope="session", autouse=True)
def taskiq_is_quiet() -> None:
    """taskiq logs the traceback of every task that fails, which is what many tests are about."""
    logging.getLogger("taskiq").setLevel(logging.CRITICAL)


@pytest.fixture
def plain_task_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids of tasks end with the attempt, as if nobody had chosen the run's id before."""
    monkeypatch.setattr("taskiq_flow.engine.starting.new_task_suffix", lambda: "")
