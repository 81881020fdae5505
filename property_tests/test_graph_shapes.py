"""All ways to declare a graph mean the same: names, keys, inputs, outputs, edges without data."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from property_tests.model import GraphSpec, evaluate
from property_tests.stage import Stage
from property_tests.strategies import DELAYS, LIMITS, graphs
from taskiq_flow import DAG, DAGNode, ExecutionEngine
from tests.virtual_clock import virtually

GRAPHS = graphs(varied=True)


@given(GRAPHS, LIMITS, DELAYS, st.data())
@virtually
async def test_any_graph_gives_what_a_sequential_evaluation_gives_of_what_is_asked_for(
    graph: GraphSpec, limit: int | None, reading: int, data: st.DataObject
) -> None:
    """To a slow reader, which compares each value and then changes it."""
    keys = [key for node in graph for key in node.outputs]
    some = st.sets(st.sampled_from(keys), max_size=3) if keys else st.just(set[str]())
    outputs = data.draw(st.none() | some)
    stage, expected = Stage(graph), evaluate(graph)
    engine = ExecutionEngine(stage.broker, stage.dag, limit)
    left = set(expected.results) if outputs is None else graph.needed_for(outputs)
    needed = frozenset(left)
    async for name, value in engine.execute_async(graph.inputs, outputs=outputs):
        left.remove(name)
        assert value == expected.results[name]
        if isinstance(value, (list, dict)):
            value.clear()
        await asyncio.sleep(reading)
    assert not left
    stage.check_nothing_is_left()
    assert stage.executions == dict.fromkeys(needed, 1)
    for name in needed:
        before = [stage.ended[other.name] for other in graph.waits_for[name]]
        assert stage.started[name] >= max(before, default=0)
    if limit is None:
        assert stage.started == {name: expected.starts[name] for name in needed}


@given(graphs(varied=True, failing=True), LIMITS)
@virtually
async def test_execute_gives_every_output_key_its_value(
    graph: GraphSpec, limit: int | None
) -> None:
    stage = Stage(graph)
    engine = ExecutionEngine(stage.broker, stage.dag, limit, on_error="collect")
    values, expected = (await engine.execute(graph.inputs)), evaluate(graph)
    assert {*values} == {key for node in graph for key in node.outputs}
    assert {key: values[key] for key in expected.values} == expected.values
    for node in graph:
        if node.name not in expected.results:
            assert {values[key].task_name for key in node.outputs} == {node.name}


@given(st.lists(st.sampled_from(["a", "b", "a_2", "a_3", "a_2_2", ""]), max_size=12))
def test_names_are_unique_and_the_first_of_a_name_keeps_it(names: list[str]) -> None:
    dag = DAG()
    nodes = [DAGNode(print, inputs=[], name=name) for name in names]
    for node in nodes:
        dag.add_node(node)
    given = [node.task_name for node in nodes]
    assert len(set(given)) == len(given)
    assert [node.task_name for node in dag.nodes] == given
    for place, (name, node) in enumerate(zip(names, nodes, strict=True)):
        assert dag.get_node(node.task_name) is node
        assert (node.task_name == name) == (name not in given[:place])
        assert node.task_name.startswith(name)
