"""Runs are recorded in a file, and replayed from it without executing tasks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    NodeFailedError,
    Retry,
    SerializationError,
)
from taskiq_flow.testing import (
    LocalBroker,
    LocalNotices,
    ReplayError,
    record,
    replay,
    run_virtually,
)
from tests.local_flow import with_flow

executions: list[str] = []


class Pending(Exception):  # noqa: N818 - a user's name
    def __init__(self, code: int, day: date) -> None:
        super().__init__(code, day)
        self.code = code


async def load(source: str) -> list[date]:
    executions.append("load")
    await asyncio.sleep(3.0)
    if len(executions) == 1:
        raise Pending(7, date(2024, 2, 29))
    return [date(2024, 1, day) for day in (1, 2)]


async def weekday(day: date) -> int:
    executions.append("weekday")
    await asyncio.sleep(day.day)
    return day.weekday()


def count(weekday: list[int]) -> int:
    executions.append("count")
    return len(weekday)


def graph(**options: Any) -> DAG:
    return (
        DAGBuilder()
        .node(load, output="days", retry=Retry(2, wait=1.0, jitter=0.0, on=(Pending,)), **options)
        .node(weekday, inputs={"day": "days"}, map_over="days")
        .node(count, inputs=["weekday"])
        .build()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    executions.clear()
    return tmp_path / "run.json"


RESULTS = {"days": [date(2024, 1, 1), date(2024, 1, 2)], "weekday": [0, 1], "count": 2}


def test_a_replay_gives_what_was_recorded_when_it_was_and_executes_nothing(path: Path) -> None:
    recorded = run_virtually(record(path, InMemoryBroker(), graph(), {"source": "a"}))
    assert recorded == RESULTS
    executions.clear()
    outcome = replay(path, graph())
    assert outcome.results == RESULTS
    assert outcome.ended_at == {
        "load": 7.0,
        "weekday[0]": 8.0,
        "weekday": 9.0,
        "weekday[1]": 9.0,
        "count": 9.0,
    }
    assert outcome.attempts["load"] == 2
    assert executions == []


async def test_a_run_on_workers_is_recorded(path: Path) -> None:
    broker, board = LocalBroker(), LocalNotices()
    dag = DAGBuilder().node(broker.task(count), inputs=["weekday"]).build()
    with_flow(broker, board)
    await broker.startup()
    middlewares = list(broker.middlewares)
    async with broker.worker():
        assert await record(path, broker, dag, {"weekday": [1, 2]}) == {"count": 2}
    assert broker.middlewares == middlewares
    await broker.shutdown()
    assert replay(path, dag).results == {"count": 2}
    with pytest.raises(ReplayError, match="other arguments"):
        replay(path, dag, {"weekday": (1, 2)})


def test_a_failed_run_is_recorded_with_its_errors(path: Path) -> None:
    dag = DAGBuilder().node(load, retry=1).node(lambda: asyncio.sleep(60.0), name="wait").build()
    with pytest.raises(NodeFailedError):
        run_virtually(record(path, InMemoryBroker(), dag, {"source": "a"}))
    outcome = replay(path, dag)
    error = outcome.failures["load"]
    assert isinstance(error, Pending)
    assert (error.code, error.args[1]) == (7, date(2024, 2, 29))
    assert outcome.seconds == 3.0
    with pytest.raises(ReplayError, match="node 'wait' had not ended when the run in"):
        replay(path, dag, on_error="collect")


def test_fallbacks_and_skips_are_replayed(path: Path) -> None:
    def other(source: str) -> list[date]:
        return []

    dag = (
        DAGBuilder()
        .node(load, fallback=other)
        .node(count, inputs={"weekday": "load"}, when=lambda load: len(load) > 0)
        .build()
    )
    run_virtually(record(path, InMemoryBroker(), dag, {"source": "a"}))
    outcome = replay(path, dag)
    assert outcome.results["load"] == []
    assert list(outcome.skipped) == ["count"]


async def numbers(upto: int) -> AsyncIterator[int]:
    executions.append("numbers")
    for number in range(upto):
        yield number


def test_the_items_of_generators_are_recorded(path: Path) -> None:
    async def square(numbers: int) -> int:
        await asyncio.sleep(1.0)
        return numbers**2

    dag = DAGBuilder().node(numbers).node(square, map_over="numbers", max_parallel=1).build()
    recorded = run_virtually(record(path, InMemoryBroker(), dag, {"upto": 3}))
    assert recorded == {"numbers": [0, 1, 2], "square": [0, 1, 4]}
    executions.clear()
    outcome = replay(path, dag)
    assert outcome.results == {"numbers": [0, 1, 2], "square": [0, 1, 4]}
    assert outcome.ended_at["square"] == pytest.approx(3.0, abs=0.1)
    assert executions == []


def test_the_items_of_generators_within_a_map_are_recorded(path: Path) -> None:
    dag = DAGBuilder().node(numbers, inputs={"upto": "uptos"}, map_over="uptos").build()
    run_virtually(record(path, InMemoryBroker(), dag, {"uptos": [2, 0, 1]}))
    executions.clear()
    assert replay(path, dag).results == {"numbers": [[0, 1], [], [0]]}
    assert executions == []


def test_what_a_filter_lets_through_is_recorded(path: Path) -> None:
    def wanted(number: int) -> bool:
        executions.append("wanted")
        return number != 1

    dag = (
        DAGBuilder()
        .node(wanted, inputs={"number": "given"}, map_over="given", filter=True)
        .node(lambda n: -n, name="minus", inputs={"n": "wanted"}, map_over="wanted")
        .build()
    )
    recorded = run_virtually(record(path, InMemoryBroker(), dag, {"given": [0, 1, 2]}))
    executions.clear()
    assert replay(path, dag).results == recorded == {"wanted": [0, 2], "minus": [0, -2]}
    assert executions == []


def test_changed_inputs_and_unknown_nodes_are_errors_that_nothing_hides(path: Path) -> None:
    run_virtually(record(path, InMemoryBroker(), graph(), {"source": "a"}))
    with pytest.raises(ReplayError, match="node 'load' is given other arguments") as caught:
        replay(path, graph(fallback=[]), {"source": "b"}, on_error="collect")
    assert caught.value.task_name == "load"
    more = graph()
    wider = DAGBuilder().node(lambda: 1, name="audit").build()
    with pytest.raises(ReplayError, match=r"node 'audit' is run, and .* has none of it"):
        replay(path, wider, {})
    content = json.loads(path.read_text("utf-8"))
    content["attempts"] = [
        a for a in content["attempts"] if a["node"] != "load" or a["attempt"] < 2
    ]
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ReplayError, match="has 1 of its attempts, and this is number 2"):
        replay(path, more)


def test_what_is_no_recording_is_an_error(path: Path) -> None:
    for text in ("", "[]", '{"format": "other"}'):
        path.write_text(text, "utf-8")
        with pytest.raises(ReplayError, match="cannot be read as a recording"):
            replay(path, graph())
    with pytest.raises(FileNotFoundError):
        replay(path.with_name("none.json"), graph())


def test_what_cannot_be_recorded_is_an_error(path: Path) -> None:
    broker = InMemoryBroker()
    with pytest.raises(ValueError, match="pass_by='reference' cannot be recorded"):
        run_virtually(record(path, broker, graph(), {"source": "a"}, pass_by="reference"))
    dag = DAGBuilder().node(object, name="thing").build()
    with pytest.raises(SerializationError, match="the value of 'thing' cannot be recorded"):
        run_virtually(record(path, broker, dag))
    assert not path.exists()


def test_what_is_known_to_fail_is_told_before_anything_is_run(path: Path) -> None:
    def work(thing: object) -> None:
        executions.append("work")

    dag = DAGBuilder().node(work).build()
    with pytest.raises(SerializationError, match="the inputs cannot be recorded"):
        run_virtually(record(path, InMemoryBroker(), dag, {"thing": object()}))
    with pytest.raises(FileNotFoundError, match="is no directory"):
        run_virtually(record(path / "x.json", InMemoryBroker(), dag, {"thing": 1}))
    assert executions == []
