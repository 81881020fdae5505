"""The graph: its edges follow from keys, its order is stable, its mistakes are named."""

import time
from collections.abc import Callable, Iterable
from io import StringIO
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    BindingError,
    CycleError,
    DAGNode,
    DuplicateOutputError,
    MissingNodeError,
)
from tests.dataflow.graphs import graph, node, task

SECONDS = 4.0
"""Processor time that 20,000 nodes may take, on any machine."""


def load(source: str, rate: int = 16000) -> None: ...


def clean(raw: str) -> None: ...


class Service:
    def __call__(self) -> None: ...

    def method(self) -> None: ...


def diamond() -> DAG:
    return graph(node("a"), node("b", "a"), node("c", "a"), node("d", "b", "c"))


def chain(length: int) -> DAG:
    return graph(*(node(f"n{i}", *([f"n{i - 1}"] if i else [])) for i in range(length)))


def names(nodes: Iterable[DAGNode]) -> list[str]:
    return [one.task_name for one in nodes]


def levels(dag: DAG) -> list[list[str]]:
    return [names(level) for level in dag.get_parallel_levels()]


def edges(dag: DAG) -> set[tuple[str, str]]:
    return {(start.task_name, end.task_name) for start, end in dag.edges}


# What follows from the keys

GRAPHS: dict[str, tuple[Callable[[], DAG], set[tuple[str, str]], list[list[str]]]] = {
    "empty": (DAG, set(), []),
    "single": (lambda: graph(node("a", "x")), set(), [["a"]]),
    "chain": (lambda: chain(3), {("n0", "n1"), ("n1", "n2")}, [["n0"], ["n1"], ["n2"]]),
    "diamond": (
        diamond,
        {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")},
        [["a"], ["b", "c"], ["d"]],
    ),
    "uneven arms": (
        lambda: graph(node("a"), node("x", "a"), node("y", "x"), node("d", "a", "y")),
        {("a", "x"), ("x", "y"), ("a", "d"), ("y", "d")},
        [["a"], ["x"], ["y"], ["d"]],
    ),
    "unconnected parts": (
        lambda: graph(node("a"), node("p"), node("b", "a"), node("q", "p"), node("alone")),
        {("a", "b"), ("p", "q")},
        [["a", "p", "alone"], ["b", "q"]],
    ),
    "an edge beside a key": (
        lambda: graph(node("a"), node("b", "a"), edges=[("a", "b"), ("a", "b")]),
        {("a", "b")},
        [["a"], ["b"]],
    ),
    "an ordering": (
        lambda: graph(node("a"), node("b"), edges=[("b", "a")]),
        {("b", "a")},
        [["b"], ["a"]],
    ),
    "an optional key": (
        lambda: graph(DAGNode(load, "raw"), node("rate")),
        {("rate", "load")},
        [["rate"], ["load"]],
    ),
}


@pytest.mark.parametrize(("make", "edges_", "levels_"), GRAPHS.values(), ids=GRAPHS)
def test_edges_levels_and_order_follow_from_keys(
    make: Callable[[], DAG], edges_: set[tuple[str, str]], levels_: list[list[str]]
) -> None:
    dag = make()
    all_names, order = names(dag.nodes), names(dag.topological_sort())
    assert edges(dag) == edges_
    assert levels(dag) == levels_
    assert sorted(order) == sorted(all_names)
    assert all(order.index(start) < order.index(end) for start, end in edges_)
    starts, ends = {start for start, _ in edges_}, {end for _, end in edges_}
    assert names(dag.roots) == [name for name in all_names if name not in ends]
    assert names(dag.leaves) == [name for name in all_names if name not in starts]


def test_outputs_are_all_keys_that_nodes_give() -> None:
    assert graph(node("a", outputs=["x", "y"]), node("b")).outputs == ["x", "y", "b"]


@pytest.mark.parametrize(
    ("nodes", "external"),
    [
        ([], []),
        ([node("a", "x", "y"), node("b", "x", "a")], ["x", "y"]),
        ([DAGNode(load, "raw")], ["source", "rate"]),
        ([DAGNode(load, "raw", [])], ["source"]),
        ([DAGNode(load, "raw"), DAGNode(task, "rate", [])], ["source"]),
        ([DAGNode(load, "raw"), node("b", "rate")], ["source", "rate"]),
    ],
)
def test_keys_that_no_node_gives_are_external_inputs(
    nodes: list[DAGNode], external: list[str]
) -> None:
    assert graph(*nodes).external_inputs == external


def test_what_a_graph_shows_may_be_changed_without_changing_it() -> None:
    dag = diamond()
    dag.nodes.clear()
    dag.edges.clear()
    dag.topological_sort().clear()
    dag.get_parallel_levels()[0].clear()
    dag.roots.clear()
    dag.outputs.clear()
    dag.external_inputs.append("x")
    assert names(dag.nodes) == names(dag.topological_sort()) == ["a", "b", "c", "d"]
    assert (len(dag.edges), names(dag.roots), dag.external_inputs) == (4, ["a"], [])


# Names


@pytest.mark.parametrize(
    ("added", "numbered"),
    [
        (["a", "a", "b", "a"], ["a", "a_2", "b", "a_3"]),
        (["a", "a_2", "a", "a_2"], ["a", "a_2", "a_3", "a_2_2"]),
    ],
)
def test_the_second_node_of_a_name_gets_a_number(added: list[str], numbered: list[str]) -> None:
    dag = graph(*map(node, added))
    assert names(dag.nodes) == dag.outputs == numbered


def test_a_node_is_found_by_its_name() -> None:
    first = node("a")
    dag = graph(first, first, DAGNode(load), DAGNode(load))  # adding it twice changes nothing
    assert dag.get_node("load_2") is dag.nodes[2]
    with pytest.raises(MissingNodeError, match="no node 'b'; it has 'a', 'load', 'load_2'"):
        dag.get_node("b")


@pytest.mark.parametrize(
    ("length", "listed"), [(0, "has none$"), (10, "'n9'$"), (11, "'n9' and 1 more$")]
)
def test_a_long_list_of_names_is_cut_in_a_message(length: int, listed: str) -> None:
    with pytest.raises(MissingNodeError, match=listed):
        chain(length).get_node("x")


# Edges without data


@pytest.mark.parametrize("refer", [lambda n: n, lambda n: n.task, lambda n: n.task_name])
@pytest.mark.parametrize(
    "tasks",
    [
        (load, clean),
        (InMemoryBroker().register_task(load, "l"), InMemoryBroker().register_task(clean, "c")),
        (Service(), Service().method),
    ],
    ids=["functions", "tasks", "objects"],
)
def test_an_edge_names_its_ends_by_node_by_task_or_by_name(
    refer: Callable[[DAGNode], Any], tasks: tuple[Any, Any]
) -> None:
    first, second = (DAGNode(one, inputs=[]) for one in tasks)
    dag = graph(second, first)
    dag.add_edge(from_task=refer(first), to_task=refer(second))
    assert dag.edges == {(first, second)}
    assert dag.topological_sort() == [first, second]


def test_an_edge_may_name_a_method_that_is_looked_up_again() -> None:
    service = Service()
    dag = graph(DAGNode(service.method, inputs=[]), DAGNode(clean))
    dag.add_edge(clean, service.method)
    assert edges(dag) == {("clean", "method")}


def test_an_edge_may_be_added_before_its_nodes() -> None:
    dag = DAG()
    dag.add_edge("a", "b")
    dag.add_node(node("b"))
    dag.add_node(node("a"))
    assert edges(dag) == {("a", "b")}


@pytest.mark.parametrize("missing", ["x", node("x"), node("a"), load])
@pytest.mark.parametrize("side", ["from_task", "to_task"])
def test_an_edge_to_what_is_not_in_the_graph_is_an_error(missing: Any, side: str) -> None:
    dag = diamond()
    dag.add_edge(**{"from_task": "a", "to_task": "a", side: missing})
    with pytest.raises(MissingNodeError, match=r"not in the graph|has no node") as caught:
        dag.validate()
    assert caught.value.reference is missing


def test_an_edge_by_a_task_of_two_nodes_is_an_error_that_names_them() -> None:
    dag = graph(DAGNode(load), DAGNode(load), DAGNode(clean))
    dag.add_edge(load, clean)
    with pytest.raises(MissingNodeError, match="of 'load', 'load_2'; name one of them") as caught:
        dag.validate()
    assert caught.value.reference is load


# Mistakes


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [(["x"], ["x"], "x"), (["a"], ["y", "a"], "a"), (["b"], None, "b")],
)
def test_an_output_key_that_two_nodes_give_is_an_error(
    first: list[str], second: list[str] | None, key: str
) -> None:
    dag = graph(node("a", outputs=first), node("between"), node("b", outputs=second))
    with pytest.raises(DuplicateOutputError, match="give one of them another output=") as caught:
        dag.validate()
    assert (caught.value.key, caught.value.task_names) == (key, ["a", "b"])
    assert f"'a' and 'b' both declare the output {key!r}" in str(caught.value)


@pytest.mark.parametrize(
    "ask",
    [
        DAG.validate,
        DAG.topological_sort,
        DAG.get_parallel_levels,
        lambda dag: dag.edges,
        lambda dag: dag.roots,
        lambda dag: dag.leaves,
        lambda dag: dag.outputs,
        lambda dag: dag.external_inputs,
        lambda dag: dag.print(StringIO()),
    ],
)
def test_a_graph_with_a_mistake_answers_nothing(ask: Callable[[DAG], object]) -> None:
    with pytest.raises(BindingError, match="'clean'"):
        ask(graph(DAGNode(clean, inputs=["x", "y"])))


def edges_along(cycle: list[str]) -> set[tuple[str, str]]:
    return set(zip(cycle, cycle[1:] + cycle[:1], strict=True))


def ring(length: int) -> DAG:
    return graph(*(node(f"n{i}", f"n{(i - 1) % length}") for i in range(length)))


@pytest.mark.parametrize("length", [1, 2, 3, 1000, 20_000])
def test_a_cycle_is_an_error_that_names_the_nodes_along_it(length: int) -> None:
    dag = ring(length)
    with pytest.raises(CycleError, match=r"remove one of these|another output=") as caught:
        dag.validate()
    cycle = caught.value.cycle
    assert sorted(cycle) == sorted(names(dag.nodes))
    assert edges_along(cycle) == {(f"n{i}", f"n{(i + 1) % length}") for i in range(length)}


@pytest.mark.parametrize(
    ("length", "shown"), [(1, r"n0 -> n0;"), (2, r"n(.) -> n. -> n\1;"), (1000, r"\.\.\. 990 more")]
)
def test_a_cycle_is_shown_in_short(length: int, shown: str) -> None:
    with pytest.raises(CycleError, match=shown) as caught:
        ring(length).validate()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("end", "length"), [("a", 1), ("b", 2), ("d", 3)])
def test_an_edge_without_data_can_close_a_cycle(end: str, length: int) -> None:
    dag = diamond()
    dag.add_edge(end, "a")
    with pytest.raises(CycleError) as caught:
        dag.validate()
    assert len(caught.value.cycle) == length
    assert edges_along(caught.value.cycle) <= edges(diamond()) | {(end, "a")}


# Growing


def test_a_graph_may_grow_after_it_was_validated() -> None:
    dag = graph(node("b", "a"))
    dag.validate()
    assert dag.external_inputs == ["a"]
    dag.add_node(node("a"))
    assert (edges(dag), dag.external_inputs) == ({("a", "b")}, [])
    dag.add_node(node("c"))
    assert levels(dag) == [["a", "c"], ["b"]]
    dag.add_edge("b", "c")
    assert levels(dag) == [["a"], ["b"], ["c"]]


def test_a_mistake_may_be_mended_by_adding_what_was_missing() -> None:
    dag = graph(node("a"), edges=[("b", "a")])
    with pytest.raises(MissingNodeError):
        dag.validate()
    dag.add_node(node("b"))
    dag.validate()


# Size


def test_a_very_deep_chain_is_validated_and_sorted() -> None:
    dag = chain(20_000)
    start = time.process_time()
    dag.validate()
    assert names(dag.topological_sort()[:2]) == ["n0", "n1"]
    assert len(dag.get_parallel_levels()) == 20_000
    assert time.process_time() - start < SECONDS


def test_a_very_wide_fan_is_validated_and_sorted() -> None:
    start = time.process_time()
    dag = graph(node("root"), *(node(f"n{i}", "root") for i in range(20_000)))
    assert [len(level) for level in dag.get_parallel_levels()] == [1, 20_000]
    assert (len(dag.edges), len(dag.leaves), names(dag.roots)) == (20_000, 20_000, ["root"])
    assert time.process_time() - start < SECONDS


def test_very_many_nodes_of_one_name_get_their_numbers_in_time() -> None:
    start = time.process_time()
    dag = graph(*(DAGNode(task, inputs=[]) for _ in range(20_000)))
    assert dag.nodes[-1].task_name == "task_20000"
    assert time.process_time() - start < SECONDS
