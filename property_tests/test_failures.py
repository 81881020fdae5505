"""Whatever fails: exactly what depends on it is skipped, and no result that arrived is lost."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given

from property_tests.model import BrokenError, Expected, GraphSpec, evaluate
from property_tests.stage import Stage
from property_tests.strategies import DELAYS, LIMITS, graphs
from taskiq_flow import (
    ExecutionEngine,
    NodeFailedError,
    RunError,
)
from taskiq_flow.engine.run_spec import OnError
from tests.virtual_clock import run_virtually

GRAPHS = graphs(most_nodes=15, failing=True)


class Outcome:
    """What a reader that takes its time for each pair gets of a run."""

    def __init__(self, graph: GraphSpec) -> None:
        self.stage = Stage(graph)
        self.pairs: list[tuple[str, Any]] = []
        self.error: RunError | None = None

    async def read(self, on_error: OnError, limit: int | None, reading: int) -> None:
        engine = ExecutionEngine(self.stage.broker, self.stage.dag, limit, on_error=on_error)
        try:
            async for pair in engine.execute_async():
                self.pairs.append(pair)
                await asyncio.sleep(reading)
        except RunError as error:
            self.error = error
        self.stage.check_nothing_is_left()


def _run(graph: GraphSpec, on_error: OnError, limit: int | None, reading: int) -> Outcome:
    async def main() -> Outcome:
        outcome = Outcome(graph)
        await outcome.read(on_error, limit, reading)
        return outcome

    return run_virtually(main())


@given(GRAPHS, LIMITS, DELAYS)
def test_raise_ends_the_run_at_the_first_failure_and_keeps_what_had_arrived(
    graph: GraphSpec, limit: int | None, reading: int
) -> None:
    outcome, expected = _run(graph, "raise", limit, reading), evaluate(graph)
    if not expected.failures:
        assert outcome.error is None
        assert dict(outcome.pairs) == expected.results
        return
    error = outcome.error
    assert isinstance(error, NodeFailedError)
    _check_first_failure(graph, error, expected)
    _check_what_had_arrived(outcome, error, expected)


def _check_first_failure(graph: GraphSpec, error: NodeFailedError, expected: Expected) -> None:
    assert error.task_name in expected.failures
    assert error.failures == {error.task_name: error.__cause__}
    assert isinstance(error.__cause__, BrokenError)
    assert str(error.__cause__) == error.task_name
    assert len(error.skipped) == len(set(error.skipped))
    assert set(error.skipped) == graph.behind(error.task_name)


def _check_what_had_arrived(outcome: Outcome, error: NodeFailedError, expected: Expected) -> None:
    stage = outcome.stage
    names = [name for name, _ in outcome.pairs]
    over = stage.ended[error.task_name]
    assert all(expected.results[name] == result for name, result in outcome.pairs)
    assert len(names) == len(set(names))
    keys = {key for name in names for key in stage.dag.get_node(name).outputs}
    assert error.results == {key: expected.values[key] for key in keys}
    assert all(stage.ended[name] <= over for name in names)
    ended_before = {name for name, end in stage.ended.items() if end < over}
    assert ended_before <= {*names}
    assert all(start <= over for start in stage.started.values())
    assert all(stage.executions[name] == 1 for name in stage.started)
    assert set(stage.started) >= {*names, error.task_name, *stage.cancelled}
