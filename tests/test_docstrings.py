"""The examples in docstrings of public names do what they say, and none of them is missing."""

from __future__ import annotations

import asyncio
import doctest
import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
from taskiq import InMemoryBroker

import taskiq_flow
import taskiq_flow.testing
from taskiq_flow.listeners.hook_events import HookEvent
from taskiq_flow.values.codec import ValueCodec

NAMES = {name: getattr(taskiq_flow, name) for name in taskiq_flow.__all__}
NAMES |= {name: getattr(taskiq_flow.testing, name) for name in taskiq_flow.testing.__all__}
NAMES |= {"ValueCodec": ValueCodec}
"""What an example may use without importing it, beside ``asyncio`` and ``InMemoryBroker``."""

NO_EXAMPLE = {
    *("Event", "Join", "NO_FALLBACK"),  # no class and no function
    *("EventJournal", "Journal", "Lease", "EventBatch"),  # for authors of journals
    "Leftover",  # what inventory() returns
    "TrackingStorage",  # for authors of storages
    "inventory",  # needs a server
    "OrdersChecked",  # what check_orders() returns
    "replay",  # in the example of record()
}


def needs_example(name: str, item: Any) -> bool:
    """Errors need none, nor do events: examples of listeners and hooks receive some."""
    if name in NO_EXAMPLE or item in get_args(taskiq_flow.Event) + get_args(HookEvent):
        return False
    return not (inspect.isclass(item) and issubclass(item, Exception))


def examples() -> dict[str, doctest.DocTest]:
    finder = doctest.DocTestFinder()
    globs = {**NAMES, "InMemoryBroker": InMemoryBroker, "asyncio": asyncio}
    found = [*finder.find(taskiq_flow, "taskiq_flow", globs={})]
    for name, item in NAMES.items():
        if inspect.isclass(item) or inspect.isfunction(item):
            found += finder.find(item, name, globs=globs)
    return {test.name: test for test in found if test.examples}


EXAMPLES = examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_stands_below_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "redis://" in (EXAMPLES[name].docstring or ""):
        pytest.importorskip("taskiq_redis")
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    doctest.DocTestRunner().run(EXAMPLES[name], out=told.append, clear_globs=False)
    assert told == []


@pytest.mark.parametrize(
    "name", sorted(name for name, item in NAMES.items() if needs_example(name, item))
)
def test_a_public_name_has_an_example(name: str) -> None:
    assert name in EXAMPLES


def test_help_begins_with_an_example() -> None:
    assert "taskiq_flow" in EXAMPLES
