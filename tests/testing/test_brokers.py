"""Tasks of a broker with workers elsewhere are run in this process by a user's test."""

from __future__ import annotations

from typing import Annotated

import pytest
from taskiq import TaskiqDepends
from taskiq_redis import RedisStreamBroker

from taskiq_flow import DAGBuilder, ExecutionEngine, NodeFailedError, Retry, broker_for
from taskiq_flow.testing import in_memory
from tests.virtual_clock import run_virtually

broker = broker_for("redis://nowhere.invalid")


class Settings:
    word = "set"


@broker.task
async def load(source: str) -> list[str]:
    if not source:
        raise LookupError("no source")
    return [source, source]


@broker.task
def count(load: list[str], settings: Annotated[Settings, TaskiqDepends()]) -> str:
    return f"{len(load)} {settings.word}"


@broker.task(task_name="my.name", priority=3)
def named(count: str) -> str:
    return count.upper()


def engine() -> ExecutionEngine:
    builder = DAGBuilder().node(load, retry=Retry(attempts=2)).node(count).node(named, output="n")
    return ExecutionEngine(in_memory(broker), builder.build())


def test_tasks_of_a_redis_broker_are_run_in_this_process() -> None:
    results = run_virtually(engine().execute({"source": "a"}))
    assert results == {"load": ["a", "a"], "count": "2 set", "n": "2 SET"}


def test_a_failure_is_that_of_the_task() -> None:
    with pytest.raises(NodeFailedError) as caught:
        run_virtually(engine().execute({"source": ""}))
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.attempts == 2


def test_the_original_broker_and_its_tasks_are_left_as_they_are() -> None:
    before = {name: (task.broker, task.original_func) for name, task in tasks().items()}
    run_virtually(engine().execute({"source": "a"}))
    after = {name: (task.broker, task.original_func) for name, task in tasks().items()}
    assert after == before
    assert isinstance(load.broker, RedisStreamBroker)


def tasks() -> dict:  # type: ignore[type-arg]
    return broker.get_all_tasks()
