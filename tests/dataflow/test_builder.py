"""The builder: the same graph, node by node or as one chain."""

from collections.abc import Callable

import pytest

from taskiq_flow import (
    DAG,
    BindingError,
    CycleError,
    DAGBuilder,
    DuplicateOutputError,
)


def load(source: str) -> str:
    return source


def process(raw: str, strict: int = 0) -> str:
    return raw * strict


def save(clean: str) -> None: ...


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


def test_a_builder_may_build_and_go_on() -> None:
    builder = DAGBuilder().node(load, "raw")
    first = builder.build()
    second = builder.node(process, "clean").build()
    assert (len(first.nodes), len(second.nodes)) == (1, 2)
    assert first.nodes[0] is second.nodes[0]
    assert first.external_inputs == ["source"]


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
