"""Any graph, any run times, any limit: the same as a sequential evaluation, only sooner."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from hypothesis import given, settings

from property_tests.model import GraphSpec, evaluate
from property_tests.stage import Stage
from property_tests.strategies import DELAYS, LIMITS, graphs
from taskiq_flow import ExecutionEngine
from tests.virtual_clock import run_virtually

Pairs = list[tuple[str, Any]]


async def _read(stage: Stage, limit: int | None, reading: int) -> Pairs:
    """Run a graph, with a reader that takes its time for each pair."""
    pairs = []
    async for pair in ExecutionEngine(stage.broker, stage.dag, limit).execute_async():
        pairs.append(pair)
        await asyncio.sleep(reading)
    stage.check_nothing_is_left()
    return pairs


def _run(graph: GraphSpec, limit: int | None, reading: int) -> tuple[Stage, Pairs]:
    async def main() -> tuple[Stage, Pairs]:
        stage = Stage(graph)
        return stage, await _read(stage, limit, reading)

    return run_virtually(main())


@settings(max_examples=2 * settings().max_examples)  # half of them without a limit
@given(graphs(), LIMITS, DELAYS)
def test_a_run_gives_the_values_of_a_sequential_evaluation_as_soon_as_its_limit_allows(
    graph: GraphSpec, limit: int | None, reading: int
) -> None:
    stage, pairs = _run(graph, limit, reading)
    expected = evaluate(graph)
    assert dict(pairs) == expected.results
    assert len(pairs) == len(graph.nodes)
    assert all(stage.executions[node.name] == 1 for node in graph)
    ends = [stage.ended[name] for name, _ in pairs]
    assert ends == sorted(ends)
    place = {name: number for number, (name, _) in enumerate(pairs)}
    for node in graph:
        assert all(place[before.name] < place[node.name] for before in graph.waits_for[node.name])
    if limit is None:
        assert stage.started == expected.starts
        assert stage.ended == expected.ends
    else:
        _check_no_node_waits_while_there_is_room(graph, stage, limit)
        _check_the_longest_path_goes_first(graph, stage)


def _check_no_node_waits_while_there_is_room(graph: GraphSpec, stage: Stage, limit: int) -> None:
    sent, ready = stage.traffic.sent, _ready(graph, stage)
    assert stage.traffic.most_in_flight <= limit
    spans = [(sent[node.name], stage.ended[node.name]) for node in graph]
    for node in graph:
        for second in range(int(ready[node.name]), int(sent[node.name])):
            assert sum(start <= second < end for start, end in spans) == limit


def _check_the_longest_path_goes_first(graph: GraphSpec, stage: Stage) -> None:
    sent, ready = stage.traffic.sent, _ready(graph, stage)
    path = dict.fromkeys(sent, 1)
    for node in reversed(graph.in_order):
        for before in graph.waits_for[node.name]:
            path[before.name] = max(path[before.name], 1 + path[node.name])
    for first, second in itertools.permutations(sent, 2):
        if ready[second] < sent[first] < sent[second]:
            assert path[first] >= path[second]


def _ready(graph: GraphSpec, stage: Stage) -> dict[str, float]:
    """When all that each node waits for had ended."""
    return {
        name: max((stage.ended[other.name] for other in before), default=0)
        for name, before in graph.waits_for.items()
    }
