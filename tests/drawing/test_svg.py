"""Graphs as SVG: any name is text, states have signs, and nothing is loaded or run."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ElementsKnown,
    ExecutionEngine,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeSkipped,
    RunFinished,
    RunView,
)
from taskiq_flow.drawing.theme import SIGNS
from tests.dataflow.graphs import graph, node
from tests.drawing.test_layout import tiles
from tests.views.test_pictures import NAMES
from tests.views.test_run_view import ODD, began, completed, sent, started, view_of

pytest.importorskip("pygraphviz")

SVG = "{http://www.w3.org/2000/svg}"


def read(svg: str) -> ET.Element:
    svg.encode()
    return ET.fromstring(svg)  # noqa: S314 - our own


def box_with(svg: ET.Element, name: str) -> ET.Element:
    """The group of a box, by the first line of what is shown where the pointer rests."""
    groups = svg.findall(f"./{SVG}g/{SVG}g")
    return next(g for g in groups if (g.findtext(f"{SVG}title") or "").split("\n")[0] == name)


def classes(box: ET.Element, tag: str) -> list[str]:
    return [element.get("class", "") for element in box.iter(f"{SVG}{tag}")]


def texts(element: ET.Element) -> list[str]:
    return [(text.text or "").strip("\u2068\u2069") for text in element.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", [*NAMES, "lone \udc80", "a --> b; node [x]", "\u202eturned"])
def test_any_name_is_text(name: str) -> None:
    dag = graph(node(name), node("other", name, f"in {name}", outputs=[f"out {name}"]))
    svg = read(dag.to_svg(view_of(started(*[one.task_name for one in dag.nodes]))))
    assert {element.tag.removeprefix(SVG) for element in svg.iter()} == {
        *("svg", "title", "style", "rect", "path", "polygon", "text", "g"),
    }
    assert len(svg.findall(f".//{SVG}polygon")) == 2
    assert "other" in texts(svg)


def test_the_whole_name_is_shown_where_the_pointer_rests() -> None:
    name = "a name that is too long for its box " * 5
    assert name in (box_with(read(graph(node(name)).to_svg()), name).findtext(f"{SVG}title") or "")


def test_conditions_rules_fallbacks_maps_and_orders_are_drawn() -> None:
    builder = DAGBuilder().node(len, name="embed", inputs=["pages"], map_over="pages")
    builder.node(sum, name="total", inputs=["embed"], fallback=0)
    builder.node(lambda total=0: total, name="shown", join="ended", when=lambda: True)
    dag = builder.build()
    dag.add_node(node("last"))
    dag.add_edge("shown", "last")
    svg = read(dag.to_svg())
    found = texts(svg)
    for text in ("embed\u2069 ×pages", "else 0", "all of embed", "join ended", "when lambda"):
        assert text in found
    assert len([kind for kind in classes(svg, "path") if kind == "edge order"]) == 1
    assert classes(box_with(svg, "embed ×pages"), "rect") == ["box", "box"]


def everything() -> tuple[DAG, RunView]:
    dag = graph(*(node(state) for state in (*SIGNS, "pending")))
    view = view_of(
        started(*SIGNS, "pending"),
        *(sent(name, 0.0) for name in ("completed", "failed", "running", "queued", "cancelled")),
        sent("interrupted", 0.0),
        *(began("running", 0.0), completed("completed", 1.0)),
        NodeFailed("r", 1.0, "failed", "", ODD, 1, attempt=1),
        NodeSkipped("r", 1.0, "skipped", ("failed",)),
    )
    view.nodes["cancelled"].state = "cancelled"
    view.nodes["interrupted"].state = "interrupted"
    return dag, view


def test_each_state_has_a_sign_and_a_colour() -> None:
    dag, view = everything()
    svg = read(dag.to_svg(view))
    for state, sign in SIGNS.items():
        box = box_with(svg, state)
        assert sign in texts(box)
        assert classes(box, "rect") == [f"box {state}"]
        assert f"sign {state}" in classes(box, "text")
        assert (box.findtext(f"{SVG}title") or "").endswith(f"\n{state}")
    assert texts(box_with(svg, "pending")) == ["pending"]
    head = texts(svg)[0]
    assert head.startswith("r\u2069: running  ·  ✓ 1 completed  ·  ✗ 1 failed")


def test_a_group_has_a_bar_of_the_states_of_its_nodes() -> None:
    dag = tiles(4)
    names = [one.task_name for one in dag.nodes]
    view = view_of(
        started(*names),
        *(completed("load", 1.0), sent("crop", 1.0), began("crop", 1.0), completed("crop", 2.0)),
        *(sent("crop_2", 1.0), NodeFailed("r", 2.0, "crop_2", "", ODD, 1, attempt=1)),
    )
    box = box_with(read(dag.to_svg(view, fold=True)), "crop, crop_2, crop_3, crop_4")
    bars = [rect for rect in box.iter(f"{SVG}rect") if "bar" in (rect.get("class") or "")]
    assert [bar.get("class") for bar in bars] == ["bar completed", "bar failed", "bar pending"]
    widths = [float(bar.get("width", "")) for bar in bars]
    assert widths[0] == widths[1] == pytest.approx(widths[2] / 2, abs=0.2)
    assert "1 ✗ · 2/4" in texts(box)
    assert "1 completed, 1 failed, 2 pending" in (box.findtext(f"{SVG}title") or "")
    assert "✗" in texts(box)


def test_a_group_runs_only_while_the_run_does() -> None:
    dag = tiles(4)
    view = view_of(
        started(*(one.task_name for one in dag.nodes)),
        *(completed("load", 1.0), sent("crop", 1.0), began("crop", 1.0), completed("crop", 2.0)),
    )

    def group() -> list[str]:
        svg = read(dag.to_svg(view, fold=True))
        return classes(box_with(svg, "crop, crop_2, crop_3, crop_4"), "rect")

    assert group()[0] == "box running"
    view.apply(sent("crop_2", 2.0))
    view.note_status("interrupted")
    assert group() == [*["box interrupted"] * 2, *(f"bar {state}" for state in ONE_OF_EACH)]
    view.apply(RunFinished("r", 3.0, "cancelled", None))
    assert group()[0] == "box cancelled"
    view.nodes["crop_2"].state = "pending"
    assert group()[0] == "box pending"


ONE_OF_EACH = ("completed", "interrupted", "pending")


def test_a_mapped_node_has_a_bar_of_the_states_of_its_elements() -> None:
    dag = DAGBuilder().node(len, name="m", inputs=["pages"], map_over="pages").build()
    view = view_of(started("m", mapped={"m": 1}), ElementsKnown("r", 1.0, "m", 4))
    view.apply(NodeBegan("r", 1.0, "m[0]", "", "host:7", 0))
    view.apply(NodeCompleted("r", 2.0, "m[0]", "", 7, index=0, attempt=1))
    box = box_with(read(dag.to_svg(view)), "m ×pages")
    assert "1/4" in texts(box)
    assert "●" in texts(box)


def test_the_state_of_a_run_does_not_move_the_boxes() -> None:
    dag, view = everything()
    before = dag.to_svg(RunView())
    after = dag.to_svg(view)
    place = re.compile(r'<rect class="box[^"]*" (x=[^>]*)>')
    assert place.findall(before) == place.findall(after)


def test_a_view_of_a_run_of_another_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="run 'r', which has none of the nodes of this graph"):
        graph(node("a")).to_svg(view_of(started("b")))


def test_a_view_draws_its_run_without_the_graph() -> None:
    view = RunView()

    class Watching:
        def on_event(self, event: object) -> None:
            view.apply(event)  # type: ignore[arg-type]

    builder = DAGBuilder().node(abs, inputs=["xs"], map_over="xs").node(sum, inputs=["abs"])
    broker = InMemoryBroker()
    engine = ExecutionEngine(broker, builder.build(), listeners=[Watching()])
    engine.execute_sync({"xs": [-1, 2]})
    svg = read(view.to_svg())
    assert "2/2" in texts(box_with(svg, "abs ×"))
    assert "✓" in texts(box_with(svg, "sum"))
    assert len(svg.findall(f".//{SVG}path")) == 1


def test_a_view_draws_its_run_whatever_the_order_of_the_names() -> None:
    view = view_of(started("b", "a_2", "a_1", edges={"b": ("a_1", "a_2")}))
    assert box_with(read(view.to_svg(fold=True)), "a_1, a_2") is not None


def test_an_ended_run_and_an_empty_graph_are_drawn() -> None:
    view = view_of(started("a"), completed("a", 1.0), RunFinished("r", 1.0, "completed", None))
    assert "r\u2069: completed  ·  ✓ 1 completed" in texts(read(graph(node("a")).to_svg(view)))
    assert read(DAG().to_svg()).findall(f".//{SVG}text") == []


def test_nothing_is_loaded_nothing_is_run_and_the_page_around_is_left_alone() -> None:
    svg = everything()[0].to_svg(everything()[1])
    assert not re.search(r"<script|href|url\(|@import|@font-face|\bon\w+=|\bid=", svg)
    style = read(svg).findtext(f"{SVG}style") or ""
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    for part in (light, dark.strip(" {}\n")):
        selectors = re.findall(r"([^{}]+)\{", part)
        assert selectors
        for selector in ",".join(selectors).split(","):
            assert selector.strip().startswith(".taskiq-flow-graph ")
    assert "$" not in style


def test_the_same_graph_gives_the_same_bytes() -> None:
    dag, view = everything()
    assert dag.to_svg(view) == dag.to_svg(view)
    assert tiles(3).to_svg(fold=True) == tiles(3).to_svg(fold=True)


def test_notebooks_show_a_picture_and_text() -> None:
    bundle = tiles(2)._repr_mimebundle_(include=None, exclude=None)
    assert list(bundle) == ["image/svg+xml", "text/plain"]
    assert read(bundle["image/svg+xml"]).tag == f"{SVG}svg"


def test_notebooks_show_a_graph_that_is_not_complete() -> None:
    dag = graph(node("a", "b"), node("b", "a"))
    assert dag._repr_mimebundle_() == {"text/plain": "<DAG of 2 nodes: a, b>"}
