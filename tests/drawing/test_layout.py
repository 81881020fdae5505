"""Layouts: what is one box, what stands in it, where it lies."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from taskiq_flow import DAGBuilder
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.drawing.diagram import stem
from taskiq_flow.drawing.layout import (
    BAR_HEIGHT,
    LABEL_HEIGHT,
    LABEL_SIZE,
    LINE_HEIGHT,
    LINE_SIZE,
    MOST_BOXES,
    MOST_WHOLE,
    Layout,
    lay_out,
)
from taskiq_flow.drawing.texts import width
from tests.commands import ROOT
from tests.dataflow.graphs import graph, node
from tests.drawing.pictures import box_of, overlaps, share_through_boxes

pytest.importorskip("pygraphviz")


def crop(*tiles: object) -> None: ...
def compute(*tiles: object) -> None: ...


def merge(*tiles: object) -> None: ...


def test_a_layout_that_is_made_in_a_process_of_its_own_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = tiles(1), tiles(MOST_WHOLE)
    here = [laid_out(dag, fold=False) for dag in (small, large)]
    assert laid_out(small, fold=False, apart=True) == here[0]
    monkeypatch.setattr("taskiq_flow.drawing.graphviz.placed", None)
    assert laid_out(large, fold=False, apart=True) == here[1]


@pytest.mark.parametrize(("name", "value"), [("executable", None), ("frozen", True)])
def test_a_program_with_python_within_it_does_not_begin_once_more(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    large = tiles(MOST_WHOLE)
    here = laid_out(large, fold=False)
    monkeypatch.setattr(sys, name, value, raising=False)
    monkeypatch.setattr("subprocess.run", None)
    assert laid_out(large, fold=False, apart=True) == here


def sorted_parts(load: object) -> list[object]:
    return [load]


def bool_of(load: object) -> bool:
    return bool(load)


def laid_out(dag: DAG, **options: Any) -> Layout:
    return lay_out(dag.diagram(), **options)


def tiles(count: int, name: Callable[[int], str | None] = lambda _: None) -> DAG:
    """``load``, then a ``crop`` and a ``compute`` for each tile, then ``merge``."""
    builder = DAGBuilder().node(abs, name="load", inputs=["x"])
    crops = [builder.add_task(crop, name=name(n), inputs=["load"]).task_name for n in range(count)]
    last = [builder.add_task(compute, inputs=[one]).task_name for one in crops]
    return builder.node(merge, inputs=last).build()


def drawn(layout: Layout) -> list[str]:
    """The boxes as texts, and the edges between them."""
    return [" ".join(filter(None, (box.label, box.suffix))) for box in layout.boxes]


def edges(layout: Layout) -> set[tuple[str, str]]:
    labels = {box.id: box.label for box in layout.boxes}
    return {(labels[edge.start], labels[edge.end]) for edge in layout.edges}


def test_equal_nodes_are_one_box() -> None:
    layout = laid_out(tiles(4), fold=True)
    assert drawn(layout) == ["x", "load", "crop ×4", "compute ×4", "merge"]
    assert box_of(layout, "crop_3").members == ("crop", "crop_2", "crop_3", "crop_4")
    assert edges(layout) == {
        *(("x", "load"), ("load", "crop"), ("crop", "compute"), ("compute", "merge")),
    }
    assert layout.is_folded


def test_above_forty_boxes_are_folded_unless_it_is_refused() -> None:
    few, many = (tiles(count) for count in (MOST_WHOLE // 2 - 1, MOST_WHOLE // 2))
    assert (len(few.nodes), laid_out(few).is_folded) == (MOST_WHOLE, False)
    assert laid_out(many).is_folded
    assert not laid_out(many, fold=False).is_folded
    assert laid_out(few, fold=True).is_folded


def test_a_group_is_called_by_what_its_names_share_or_else_by_its_task() -> None:
    numbered = laid_out(tiles(3, lambda number: f"crop_ID000{number}"), fold=True)
    assert "crop_ID ×3" in drawn(numbered)
    named = laid_out(
        tiles(3, lambda number: f"of the {('north', 'south', 'west')[number]}"), fold=True
    )
    assert "crop ×3" in drawn(named)


@pytest.mark.parametrize(
    ("name", "shared"),
    [("part_2", "part"), ("part", "part"), ("a_0_12", "a"), ("x-7 (3)", "x)"), ("42", "42")],
)
def test_the_stem_of_a_name_has_no_numbers(name: str, shared: str) -> None:
    assert stem(name) == shared


def test_nodes_of_other_tasks_rules_or_neighbours_are_not_equal() -> None:
    builder = DAGBuilder().node(abs, name="load", inputs=["x"])
    rules: list[dict[str, Any]] = [{}, {"fallback": 0}, {"when": bool_of}, {}]
    for number, options in enumerate(rules):
        builder.node(crop, name=f"crop_{number}", inputs=["load"], **options)
    builder.node(lambda load: load, name="lambda_1").node(lambda load: -load, name="lambda_2")
    builder.node(merge, inputs=["crop_3"])
    builder.node(sorted_parts, name="m_1", inputs=["load"], map_over="load")
    builder.node(sorted_parts, name="m_2", inputs=["load"], map_over="load", flatten=True)
    layout = laid_out(builder.build(), fold=True)
    assert not layout.is_folded


def test_a_box_says_what_a_node_maps_over_its_rules_and_its_keys() -> None:
    builder = DAGBuilder().node(len, name="embed", inputs=["pages"], map_over="pages")
    builder.node(sum, name="total", inputs=["embed"], fallback=0, outputs=["sum", "mean"])
    layout = laid_out(builder.build())
    assert drawn(layout) == ["pages", "embed ×pages", "total"]
    assert [box.kind for box in layout.boxes] == ["input", "map", "node"]
    assert box_of(layout, "total").lines == ("else 0", "all of embed", "gives sum, mean")
    assert [edge.label for edge in layout.edges] == ["", "all of embed"]


def test_equal_maps_are_one_box() -> None:
    builder = DAGBuilder()
    for number in range(3):
        builder.node(len, name=f"part_{number}", inputs=[f"in_{number}"], map_over=f"in_{number}")
    layout = laid_out(builder.build(), fold=True)
    assert drawn(layout) == ["in_0, in_1, in_2", "part ×3"]
    assert layout.boxes[1].lines == ("each ×",)


def optional(path: str, rate: int = 3, *, mono: bool = False) -> None: ...


def test_inputs_of_the_same_boxes_are_one() -> None:
    layout = laid_out(DAGBuilder().node(optional, name="load").build())
    assert drawn(layout) == ["path, rate?, mono?", "load"]
    assert layout.boxes[0].members == ("path", "rate", "mono")


def test_orders_and_edges_that_are_implied_are_told() -> None:
    dag = graph(node("a"), node("b", "a"), node("c", "b", "a"), node("d"), edges=[("c", "d")])
    layout = laid_out(dag)
    labels = {box.id: box.label for box in layout.boxes}
    found = [(labels[edge.start], labels[edge.end], edge.is_order) for edge in layout.edges]
    assert found == [("a", "b", False), ("b", "c", False), ("c", "d", True)]
    assert [(labels[start], labels[end]) for start, end in layout.implied] == [("a", "c")]


def test_a_layout_is_json_with_the_names_as_they_are() -> None:
    names = ["lone \ud800 surrogate", "<b>&\"'", "🎉", "שלום"]
    layout = laid_out(graph(*map(node, names)))
    data = json.loads(json.dumps(layout.to_dict()))
    assert [name for box in data["boxes"] for name in box["members"]] == names
    assert {*data} == {
        *("width", "height", "orientation", "is_folded", "boxes", "edges", "implied")
    }


def test_an_edge_leads_from_its_start_to_its_end() -> None:
    layout = laid_out(graph(node("a"), node("b", "a")))
    first, second = layout.boxes
    points = layout.edges[0].points
    assert (len(points) - 2) % 3 == 0
    assert points[0][0] == pytest.approx(first.x + first.width, abs=1)
    assert points[-1][0] == pytest.approx(second.x, abs=1)
    assert all(first.y <= y <= first.y + first.height for _, y in points)


def chain(count: int) -> DAG:
    names = [f"a_step_of_the_chain_{number}" for number in range(count)]
    return graph(node(names[0]), *map(node, names[1:], names))


def test_a_graph_that_is_too_wide_from_left_to_right_goes_from_top_to_bottom() -> None:
    assert laid_out(chain(4)).orientation == "LR"
    assert laid_out(chain(30)).orientation == "TB"
    assert laid_out(chain(30), orientation="LR").width > 3000
    assert laid_out(chain(30)).width < 300


def test_a_drawing_that_is_too_large_is_refused_with_a_remedy() -> None:
    many = graph(*(node(f"n{number}") for number in range(MOST_BOXES + 1)))
    assert len(laid_out(many).boxes) == 1
    with pytest.raises(
        ValueError, match=r"2,001 boxes.* at most 2,000 .* fold=True, or .*part_for"
    ):
        laid_out(many, fold=False)
    with pytest.raises(
        ValueError, match=r"edges pass .* at most .* and 2,500 are laid out: draw a part"
    ):
        laid_out(dense(700, 6), fold=True)


@pytest.mark.parametrize("shows_states", [False, True])
def test_what_is_written_fits_in_its_box(shows_states: bool) -> None:
    builder = DAGBuilder().node(len, name="embed", inputs=["pages"], map_over="pages", fallback=0)
    builder.node(sum, name="W" * 60, inputs=["embed"], outputs=["a_long_key", "another_long_key"])
    layout = laid_out(builder.build(), shows_states=shows_states)
    for box in layout.boxes:
        sign = 18 * (shows_states and box.kind != "input")
        size = LINE_SIZE if box.kind == "input" else LABEL_SIZE
        label = width(f"{box.label} {box.suffix}".strip(), size)
        assert (
            max(label, *(width(line, LINE_SIZE) for line in box.lines), 0) + sign < box.width - 16
        )
        lines = LABEL_HEIGHT + LINE_HEIGHT * len(box.lines)
        assert box.height >= (lines if box.kind != "input" else LINE_HEIGHT)
    assert box_of(layout, "embed").height == 45 + BAR_HEIGHT * shows_states


def test_the_end_of_a_long_name_is_in_the_box() -> None:
    name = "stage_out_local_condorpool_of_a_site_with_a_long_name_17"
    (box,) = laid_out(graph(node(name))).boxes
    assert box.label.startswith("stage_")
    assert "…" in box.label
    assert box.label.endswith("_17")
    assert box.members == (name,)
    assert box.width < 260


def recorded(number: int) -> DAG:
    """A recorded workflow; nodes whose names differ in numbers only have the same task."""
    text = (ROOT / "benchmarks" / "workflow_graphs.json").read_text("utf-8")
    workflow = json.loads(text)[number]
    before: dict[str, list[str]] = {one["name"]: [] for one in workflow["nodes"]}
    for start, end in workflow["edges"]:
        before[end].append(start)
    tasks = {stem(name): partial(crop) for name in before}
    builder = DAGBuilder()
    for name, inputs in before.items():
        builder.node(tasks[stem(name)], name=name, inputs=inputs)
    return builder.build()


def dense(count: int, most: int) -> DAG:
    """As a build is: many edges, most of which others imply."""
    chance = random.Random(1)
    names = [f"object_{number}" for number in range(count)]
    before = [names[max(0, n - 80) : n // 10 * 10] for n in range(count)]
    return graph(
        *(node(a, *chance.sample(b, min(len(b), most))) for a, b in zip(names, before, strict=True))
    )


GRAPHS: dict[str, Callable[[], DAG]] = {
    "somospie": partial(recorded, 0),
    "eht-difmap": partial(recorded, 1),
    "1,000 nodes": partial(tiles, 499),
    "400 edges": partial(dense, 120, 6),
}


@pytest.mark.parametrize("fold", [None, False])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_workflow_is_laid_out_within_a_second_and_without_overlaps(
    name: str, fold: bool | None
) -> None:
    diagram = GRAPHS[name]().diagram()
    begun = time.process_time()
    layout = lay_out(diagram, fold=fold)
    assert time.process_time() - begun <= 1.0
    if len(layout.boxes) <= 100:
        assert not overlaps(layout)
        assert share_through_boxes(layout) < 0.01
        assert layout == lay_out(diagram, fold=fold)
