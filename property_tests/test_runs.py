"""Any graph, any run times, any limit: the same as a sequential evaluation, only sooner."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from property_tests.model import GraphSpec, evaluate
from property_tests.stage import Stage
from property_tests.strategies import DELAYS, LIMITS, graphs
from property_tests.virtual_clock import run_virtually
from hypothesis import strategies as st

from taskiq_flow import ExecutionEngine

Pairs = list[tuple[str, Any]]


async def _read(stage: Stage, limit: int | None, reading: int) -> Pairs:
    """Run a graph, with a reader that takes its time for each pair."""
    pairs = []
    async for pair in ExecutionEngine(stage.broker, stage.dag, limit).execute_async():
        pairs.append(pair)
        await asyncio.sleep(reading)
    await stage.check_nothing_is_left()
    return pairs


def _run(graph: GraphSpec, limit: int | None, reading: int) -> tuple[Stage, Pairs]:
    async def main() -> tuple[Stage, Pairs]:
        stage = Stage(graph)
        return stage, await _read(stage, limit, reading)

    return run_virtually(main())


@given(graphs(), LIMITS, DELAYS)
def test_a_run_gives_the_values_of_a_sequential_evaluation(
    graph: GraphSpec, limit: int | None, reading: int
) -> None:
    stage, pairs = _run(graph, limit, reading)
    assert dict(pairs) == evaluate(graph).results
    assert len(pairs) == len(graph.nodes)
    assert all(stage.executions[node.name] == 1 for node in graph)
    assert stage.traffic.most_in_flight <= (limit or len(graph.nodes))


@given(graphs(), LIMITS, DELAYS)
def test_pairs_come_in_order_of_completion_and_behind_those_of_their_inputs(
    graph: GraphSpec, limit: int | None, reading: int
) -> None:
    stage, pairs = _run(graph, limit, reading)
    names = [name for name, _ in pairs]
    ends = [stage.ended[name] for name in names]
    assert ends == sorted(ends)
    place = {name: number for number, name in enumerate(names)}
    for name in names:
        assert all(place[before.name] < place[name] for before in graph.waits_for[name])


@given(graphs(), DELAYS)
def test_without_a_limit_each_node_starts_when_its_last_input_ends(
    graph: GraphSpec, reading: int
) -> None:
    stage, _ = _run(graph, None, reading)
    expected = evaluate(graph)
    assert stage.started == expected.starts
    assert stage.ended == expected.ends


@given(graphs(), st.integers(1, 4), DELAYS)
def test_under_a_limit_no_node_waits_while_there_is_room(
    graph: GraphSpec, limit: int, reading: int
) -> None:
    stage, _ = _run(graph, limit, reading)
    spans = [(stage.started[node.name], stage.ended[node.name]) for node in graph]
    for node in graph:
        before = graph.waits_for[node.name]
        ready = max((int(stage.ended[other.name]) for other in before), default=0)
        for second in range(ready, int(stage.started[node.name])):
            assert sum(start <= second < end for start, end in spans) == limit
