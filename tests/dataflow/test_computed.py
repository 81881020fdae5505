"""Nodes that the engine computes itself: no task is sent, and all else is as for other nodes."""

from __future__ import annotations

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    DAGNode,
    DataflowPipeline,
    ExecutionEngine,
    MemoryJournal,
    NodeCompleted,
    NodeFailedError,
    NodeStarted,
    Pipeline,
    Retry,
)
from taskiq_flow.dataflow.computed import ComputedNode, as_list, chunks
from tests.recording import Recorder


def one() -> list[int]:
    return [1]


def two() -> list[int]:
    return [2]


def graph(*nodes: DAGNode) -> DAG:
    dag = DAG()
    for node in nodes:
        dag.add_node(node)
    dag.validate()
    return dag


def pair() -> DAG:
    return graph(
        DAGNode(one),
        DAGNode(two),
        ComputedNode(as_list, name="both", inputs=["one", "two"]),
        DAGNode(len, name="count", inputs=["both"]),
    )


async def test_it_has_the_values_of_others_and_sends_no_task(broker: InMemoryBroker) -> None:
    told = Recorder()
    engine = ExecutionEngine(broker, pair(), listeners=[told], retry=Retry(2))
    assert (await engine.execute())["both"] == [[1], [2]]
    started = [event.task_name for event in told.events if isinstance(event, NodeStarted)]
    assert sorted(started) == ["count", "one", "two"]
    (event,) = [e for e in told.events if isinstance(e, NodeCompleted) and e.task_name == "both"]
    assert (event.result, event.task_id, event.attempt) == ([[1], [2]], "", 0)


async def test_what_a_reader_does_to_a_value_does_not_reach_the_list(
    broker: InMemoryBroker,
) -> None:
    seen = []
    async for name, result in ExecutionEngine(broker, pair()).execute_async():
        if name in ("one", "two"):
            result.append("changed")
        seen.append((name, result))
    assert dict(seen)["both"] == [[1], [2]]


async def test_a_journal_has_it(broker: InMemoryBroker) -> None:
    engine = ExecutionEngine(broker, pair(), journal=MemoryJournal())
    results = await engine.execute(run_id="r")
    assert dict([pair async for pair in engine.resume("r")]) == results


async def test_it_can_be_mapped_over_and_be_part_of_a_graph_that_is_mapped(
    broker: InMemoryBroker,
) -> None:
    cut = graph(
        ComputedNode(chunks, name="parts", inputs=["items"], given={"size": 2}),
        DAGNode(sum, name="sums", inputs=["parts"], map_over="parts"),
    )
    engine = ExecutionEngine(broker, cut)
    assert (await engine.execute({"items": [1, 2, 3]}))["sums"] == [3, 3]
    many = [results async for results in engine.execute_many([{"items": [1]}], whole=True)]
    assert many == [(0, {"parts": [[1]], "sums": [1]})]
    whole = DAGBuilder().add_graph(cut, "cut", inputs={"items": "lists"}, map_over="lists").build()
    results = await ExecutionEngine(broker, whole).execute({"lists": [[1, 2, 3], []]})
    assert results["cut/sums"] == [[3, 3], []]


async def test_a_value_that_its_function_cannot_take_fails_it(broker: InMemoryBroker) -> None:
    dag = graph(ComputedNode(chunks, name="parts", inputs=["items"], given={"size": 2}))
    with pytest.raises(NodeFailedError, match="parts") as failure:
        await ExecutionEngine(broker, dag, retry=3).execute({"items": 7})
    assert isinstance(failure.value.__cause__, TypeError)


async def test_what_it_looks_into_is_a_value_where_results_go_by_reference(
    broker: InMemoryBroker,
) -> None:
    pipeline = (
        DataflowPipeline(broker)
        .add_dataflow_task(two)
        .map(sorted, "two", "copies", chunk_config=1)
        .reduce(sum, "two", "total", initial=5, chunk_size=1)
    )
    results = await ExecutionEngine(broker, pipeline.dag, pass_by="reference").execute()
    assert await results["total"].get() == 7
    assert results["copies"] == [2]


async def test_what_it_passes_on_stays_where_it_is(broker: InMemoryBroker) -> None:
    dag = Pipeline(broker).group([abs, float]).dag
    results = await ExecutionEngine(broker, dag, pass_by="reference").execute({"input": -1})
    assert [await handle.get() for handle in results["group"]] == [1, -1.0]
