"""The graph's algorithms against their definitions: order, levels, cycles."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from property_tests.strategies import Edges, acyclic_edges, any_edges
from taskiq_flow import DAG, CycleError, DAGNode


def _task(**keys: object) -> None:
    """Takes whatever keys there are."""


def _graph(edges: Edges) -> tuple[DAG, list[DAGNode]]:
    """Node ``i`` waits for ``edges[i]``: for its output key, or without data for odd sums."""
    dag = DAG()
    nodes = []
    for index, before in enumerate(edges):
        keys = [f"node{other}" for other in before if (index + other) % 2 == 0]
        nodes.append(DAGNode(_task, inputs=keys, name=f"node{index}"))
        dag.add_node(nodes[-1])
    for index, before in enumerate(edges):
        for other in before:
            if (index + other) % 2:
                dag.add_edge(nodes[other], nodes[index])
    return dag, nodes


def _smallest_order(edges: Edges) -> list[int]:
    """Always the node that was added first among those that wait for none of what is left.

    Shorter than the graph if a cycle keeps the rest.
    """
    order: list[int] = []
    while True:
        ready = [i for i, before in enumerate(edges) if i not in order and {*before} <= {*order}]
        if not ready:
            return order
        order.append(ready[0])


def _depth(edges: Edges, index: int, known: dict[int, int]) -> int:
    if index not in known:
        known[index] = max((1 + _depth(edges, other, known) for other in edges[index]), default=0)
    return known[index]


@given(acyclic_edges())
def test_the_order_is_the_smallest_by_insertion(edges: Edges) -> None:
    dag, nodes = _graph(edges)
    assert dag.topological_sort() == [nodes[index] for index in _smallest_order(edges)]


@given(acyclic_edges())
def test_a_level_holds_the_nodes_with_the_same_longest_chain_before_them(edges: Edges) -> None:
    dag, nodes = _graph(edges)
    depths: Mapping[int, int] = {index: _depth(edges, index, {}) for index in range(len(edges))}
    assert dag.get_parallel_levels() == [
        [node for index, node in enumerate(nodes) if depths[index] == level]
        for level in range(1 + max(depths.values(), default=-1))
    ]


@given(acyclic_edges())
def test_edges_roots_and_leaves_are_those_declared(edges: Edges) -> None:
    dag, nodes = _graph(edges)
    declared = {(nodes[other], nodes[i]) for i, before in enumerate(edges) for other in before}
    assert dag.edges == declared
    assert dag.roots == [node for node in nodes if node not in {end for _, end in declared}]
    assert dag.leaves == [node for node in nodes if node not in {start for start, _ in declared}]


@given(any_edges())
def test_a_graph_is_refused_exactly_if_it_has_a_cycle_and_that_cycle_is_named(edges: Edges) -> None:
    dag, nodes = _graph(edges)
    if len(_smallest_order(edges)) == len(edges):
        dag.validate()
        return
    with pytest.raises(CycleError) as caught:
        dag.validate()
    _check_cycle(edges, nodes, caught.value.cycle)


@given(acyclic_edges(), st.data())
def test_a_cycle_put_into_any_graph_is_found(edges: Edges, data: st.DataObject) -> None:
    size = max(1, len(edges))
    along = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    closed = [set(before) for before in edges] or [set()]
    for index, node in enumerate(along):
        closed[node].add(along[index - 1])
    looped = tuple(tuple(sorted(before)) for before in closed)
    dag, nodes = _graph(looped)
    with pytest.raises(CycleError) as caught:
        dag.topological_sort()
    _check_cycle(looped, nodes, caught.value.cycle)


def _check_cycle(edges: Edges, nodes: list[DAGNode], cycle: list[str]) -> None:
    indices = [next(i for i, node in enumerate(nodes) if node.task_name == n) for n in cycle]
    assert len(set(indices)) == len(indices) > 0
    for place, index in enumerate(indices):
        assert indices[place - 1] in edges[index]
