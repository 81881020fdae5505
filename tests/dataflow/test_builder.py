"""The builder: the same graph, node by node or as one chain."""

from collections.abc import Callable
from typing import Any

import pytest

from taskiq_flow import (
    DAG,
    BindingError,
    CycleError,
    DAGBuilder,
    DAGNode,
    DuplicateOutputError,
)


def load(source: str) -> str:
    return source


def process(raw: str, strict: int = 0) -> str:
    return raw * strict


def save(clean: str) -> None: ...


EVERYTHING: dict[str, Any] = {
    "task": process,
    "inputs": {"raw": "text"},
    "outputs": ["clean", "dirty"],
    "name": "sort",
    "metadata": {"team": "audio"},
    "expected_seconds": 4.0,
}


def declared(node: DAGNode) -> dict[str, Any]:
    return {
        "task": node.task,
        "inputs": dict(node.binding.keyword),
        "outputs": node.outputs,
        "name": node.task_name,
        "metadata": node.metadata,
        "expected_seconds": node.expected_seconds,
    }


def chained() -> DAG:
    return (
        DAGBuilder()
        .node(load, output="raw", inputs=[])
        .node(process, output="clean", inputs=["raw"])
        .node(save, output="saved", inputs=["clean"])
        .build()
    )


def step_by_step() -> DAG:
    builder = DAGBuilder()
    builder.add_task(load, output="raw", inputs=[])
    builder.add_task(process, output="clean", inputs=["raw"])
    builder.add_task(save, output="saved", inputs=["clean"])
    return builder.build()


def by_position() -> DAG:
    builder = DAGBuilder().node(load, "raw", []).node(process, "clean", ["raw"])
    builder.add_task(save, "saved", ["clean"])
    return builder.build()


def backwards() -> DAG:
    return (
        DAGBuilder()
        .node(save, output="saved", inputs=["clean"])
        .node(process, output="clean", inputs=["raw"])
        .node(load, output="raw", inputs=[])
        .build()
    )


@pytest.mark.parametrize("build", [chained, step_by_step, by_position, backwards])
def test_a_chain_and_steps_build_the_same_graph(build: Callable[[], DAG]) -> None:
    dag = build()
    order = dag.topological_sort()
    assert [node.task_name for node in order] == ["load", "process", "save"]
    assert [node.output for node in order] == ["raw", "clean", "saved"]
    assert dag.edges == {(order[0], order[1]), (order[1], order[2])}
    assert dag.external_inputs == ["source"]


def test_adding_a_task_returns_its_node() -> None:
    builder = DAGBuilder()
    node = builder.add_task(load, output="raw")
    assert isinstance(node, DAGNode)
    assert builder.build().nodes == [node]


def test_adding_a_node_returns_the_builder() -> None:
    builder = DAGBuilder()
    assert builder.node(load) is builder


def test_all_that_a_node_may_have_can_be_said_in_both_ways() -> None:
    builder = DAGBuilder()
    node = builder.add_task(**EVERYTHING)
    chained_node = DAGBuilder().node(**EVERYTHING).build().nodes[0]
    assert declared(node) == declared(chained_node) == EVERYTHING


def test_tasks_of_one_name_are_numbered_as_they_were_added() -> None:
    builder = DAGBuilder().node(load).node(load)
    third = builder.add_task(load)
    assert third.task_name == "load_3"
    assert [node.task_name for node in builder.build().nodes] == ["load", "load_2", "load_3"]


def test_a_builder_may_build_and_go_on() -> None:
    builder = DAGBuilder().node(load, "raw")
    first = builder.build()
    second = builder.node(process, "clean").build()
    assert (len(first.nodes), len(second.nodes)) == (1, 2)
    assert first.nodes[0] is second.nodes[0]
    assert first.external_inputs == ["source"]


def test_two_builders_know_nothing_of_each_other() -> None:
    first, second = DAGBuilder().node(load), DAGBuilder().node(load)
    assert [node.task_name for node in first.build().nodes] == ["load"]
    assert [node.task_name for node in second.build().nodes] == ["load"]


def test_an_empty_builder_builds_an_empty_graph() -> None:
    assert DAGBuilder().build().nodes == []


@pytest.mark.parametrize(
    ("builder", "error"),
    [
        (DAGBuilder().node(load, inputs=["a", "b"]), BindingError),
        (DAGBuilder().node(load, "x").node(save, "x"), DuplicateOutputError),
        (DAGBuilder().node(load, "a", ["b"]).node(save, "b", ["a"]), CycleError),
    ],
)
def test_a_mistake_is_told_when_the_graph_is_built(
    builder: DAGBuilder, error: type[Exception]
) -> None:
    with pytest.raises(error):
        builder.build()


def test_a_mistake_does_not_spoil_the_builder() -> None:
    builder = DAGBuilder()
    builder.add_task(load, inputs=["a", "b"])
    for _ in range(2):
        with pytest.raises(BindingError):
            builder.build()
