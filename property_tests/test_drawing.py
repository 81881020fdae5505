"""Drawings of any graph: nothing overlaps, no dependency is lost, nothing is drawn twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from property_tests.strategies import Edges, acyclic_edges
from taskiq_flow import DAG, DAGNode
from taskiq_flow.drawing.layout import Layout, lay_out
from tests.drawing.pictures import overlaps, share_through_boxes

pytest.importorskip("pygraphviz")

Pairs = set[tuple[str, str]]


def left(*_: object) -> None: ...
def right(*_: object) -> None: ...


@st.composite
def dags(draw: st.DrawFn) -> DAG:
    """Graphs of two tasks, some of whose nodes map, with inputs and orders."""
    edges: Edges = draw(acyclic_edges(most_nodes=12))
    dag = DAG()
    for number, before in enumerate(edges):
        bits = draw(st.integers(0, 15))
        orders = before[: bits % 3]
        keys = [f"n{other}" for other in before if other not in orders]
        given = [f"in{bits // 4}"] if bits & 1 else []
        node = DAGNode(
            left if bits & 2 else right,
            name=f"n{number}",
            inputs=[*keys, *given],
            map_over=given or None,
        )
        dag.add_node(node)
        for other in orders:
            dag.add_edge(f"n{other}", f"n{number}")
    return dag


def closure(pairs: Iterable[tuple[str, str]]) -> Pairs:
    after: dict[str, set[str]] = {}
    for start, end in pairs:
        after.setdefault(start, set()).add(end)
    found: Pairs = set()
    for start, first in after.items():
        pending = [*first]
        while pending:
            if (pair := (start, pending.pop())) not in found:
                found.add(pair)
                pending += after.get(pair[1], ())
    return found


def boxes_of(layout: Layout) -> dict[str, str]:
    return {name: box.id for box in layout.boxes if box.kind != "input" for name in box.members}


OPTIONS = st.fixed_dictionaries(
    {
        "fold": st.booleans(),
        "shows_states": st.booleans(),
        "orientation": st.sampled_from([None, "LR", "TB"]),
    }
)


@given(dags(), OPTIONS)
def test_nothing_overlaps_each_node_is_in_one_box_and_the_same_graph_gives_the_same_bytes(
    dag: DAG, options: dict[str, Any]
) -> None:
    layout = lay_out(dag.diagram(), **options)
    assert not overlaps(layout)
    assert share_through_boxes(layout) < 0.01
    members = [name for box in layout.boxes if box.kind != "input" for name in box.members]
    assert sorted(members) == sorted(node.task_name for node in dag.nodes)
    for box in layout.boxes:
        assert 0 <= box.x <= layout.width - box.width + 0.2
        assert 0 <= box.y <= layout.height - box.height + 0.2
    assert json.dumps(layout.to_dict()) == json.dumps(lay_out(dag.diagram(), **options).to_dict())


@given(dags(), OPTIONS)
def test_what_is_drawn_implies_each_edge_and_nothing_else_and_is_least(
    dag: DAG, options: dict[str, Any]
) -> None:
    layout = lay_out(dag.diagram(), **options)
    at = boxes_of(layout)
    drawn = {(edge.start, edge.end) for edge in layout.edges if edge.start in at.values()}
    real = {(at[before.task_name], at[after.task_name]) for before, after in dag.edges}
    assert closure(drawn) == closure(real)
    assert len(drawn) + sum(start in at.values() for start, _ in layout.implied) == len(real)
    for edge in drawn:
        assert edge not in closure(drawn - {edge})


@given(dags())
def test_nodes_in_a_box_are_of_one_task_and_have_equal_neighbours(dag: DAG) -> None:
    layout = lay_out(dag.diagram(), fold=True)
    whole = lay_out(dag.diagram(), fold=False)
    names = {at: name for name, at in boxes_of(whole).items()}
    at = boxes_of(layout)
    around: dict[str, list[tuple[str, str]]] = {name: [] for name in at}
    for edge in whole.edges:
        if edge.start in names:
            start, end = names[edge.start], names[edge.end]
            around[start].append(("after", at[end]))
            around[end].append(("before", at[start]))
    for box in layout.boxes:
        if box.kind != "input":
            nodes = [dag.get_node(name) for name in box.members]
            assert len({(node.task, bool(node.map_over)) for node in nodes}) == 1
            assert len({frozenset(around[name]) for name in box.members}) == 1


@given(dags(), st.data())
def test_an_unfolded_group_is_drawn_as_its_nodes_and_the_rest_is_as_it_was(
    dag: DAG, data: st.DataObject
) -> None:
    folded = lay_out(dag.diagram(), fold=True)
    groups = [box for box in folded.boxes if box.kind == "group"]
    if not groups:
        return
    group = data.draw(st.sampled_from(groups))
    layout = lay_out(dag.diagram(), fold=True, unfolded=[data.draw(st.sampled_from(group.members))])
    assert not overlaps(layout)
    rest = {box.members for box in folded.boxes if box.kind != "input"} - {group.members}
    shown = {box.members for box in layout.boxes if box.kind != "input"}
    assert shown == rest | {(name,) for name in group.members}
