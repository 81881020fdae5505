"""Timelines and traces of reports: each part of a node's time where it was, whatever its name."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskiq_flow import (
    ElementsKnown,
    Event,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFellBack,
    NodeSkipped,
    NodeStarted,
    RunFinished,
    RunReport,
    RunView,
)
from taskiq_flow.views.node_times import Span
from taskiq_flow.views.node_view import MOST_ATTEMPTS
from taskiq_flow.views.timeline import MOST_ROWS
from tests.views.test_run_view import ODD, began, completed, retried, sent, started, view_of

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [
    '<b>&"bold"</b>',
    "<script>alert(1)</script>",
    "]]>",
    "👩‍👩‍👧 family 🎉",
    "שלום עולם",
    "line\nbreak\x00\x1b[31m",
    "\u202eturned",
    "lone \udc80 surrogate",
    "￾",
    "日本語" * 20,
    "a" * 500,
    "",
]


def report_of(*events: Event) -> RunReport:
    return RunReport.of(view_of(*events))


def ran(name: str, send: float, begin: float, end: float) -> tuple[Event, ...]:
    return sent(name, send), began(name, begin), completed(name, end)


def spans(report: RunReport, name: str) -> list[tuple[str, float, float, int]]:
    return [(s.part, s.start, s.end, s.attempt) for s in report.nodes[name].spans]


def retrying() -> RunReport:
    return report_of(
        started("a", "b", edges={"b": ("a",)}, at=100.0),
        *(sent("a", 100.25), began("a", 101.0), retried("a", 104.0, 2, delay=0.5)),
        *(began("a", 104.5, 2), completed("a", 106.0, attempt=2)),
        *(sent("b", 106.0), began("b", 106.5), completed("b", 107.0)),
        RunFinished("r", 107.0, "completed", None),
    )


# Spans


def test_the_spans_of_a_node_are_where_they_were() -> None:
    assert spans(retrying(), "a") == [
        ("waiting", 0.0, 0.25, 1),
        ("queued", 0.25, 1.0, 1),
        ("running", 1.0, 3.5, 1),
        ("waiting", 3.5, 4.0, 2),
        ("queued", 4.0, 4.5, 2),
        ("running", 4.5, 6.0, 2),
    ]


def test_spans_add_up_to_the_times_of_the_node_and_to_the_time_of_the_run() -> None:
    report = retrying()
    for times in report.nodes.values():
        for part in ("waiting", "queued", "running"):
            total = sum(s.end - s.start for s in times.spans if s.part == part)
            assert total == pytest.approx(getattr(times, part), abs=0.001)
    total = sum(s.end - s.start for times in report.nodes.values() for s in times.spans)
    assert total == pytest.approx(report.seconds, abs=0.001)


def test_a_fallback_is_an_attempt_after_the_others() -> None:
    report = report_of(
        *(started("a"), sent("a", 0.0), began("a", 1.0)),
        NodeFellBack("r", 2.0, "a", "", ODD, 1, attempt=2),
        *(began("a", 3.0, 2), completed("a", 4.0, attempt=2)),
    )
    assert [s[1:] for s in spans(report, "a")] == [(0, 1, 1), (1, 2, 1), (2, 3, 2), (3, 4, 2)]


def test_what_is_in_flight_has_spans_until_the_last_event() -> None:
    report = report_of(started("a", "b"), sent("a", 0.0), sent("b", 0.0), began("b", 3.0))
    assert spans(report, "a") == [("queued", 0.0, 3.0, 1)]
    assert spans(report, "b") == [("queued", 0.0, 3.0, 1)]


def test_where_no_begin_is_told_the_time_from_the_sending_is_running() -> None:
    report = report_of(started("a"), sent("a", 1.0), completed("a", 3.0))
    assert spans(report, "a") == [("waiting", 0.0, 1.0, 1), ("running", 1.0, 3.0, 1)]


def test_a_mapped_node_is_one_row_from_its_first_element_to_its_last() -> None:
    events: list[Event] = [started("m", mapped={"m": 1}), ElementsKnown("r", 1.0, "m", 2)]
    for index, at in enumerate((2.0, 4.0)):
        events += [
            NodeStarted("r", at, f"m[{index}]", "", index),
            NodeBegan("r", at + 1, f"m[{index}]", "", "host:7", index),
            NodeCompleted("r", at + 2, f"m[{index}]", "", 7, index=index, attempt=1),
        ]
    report = report_of(*events)
    parts = [span[:3] for span in spans(report, "m")]
    assert parts == [("waiting", 0.0, 2.0), ("queued", 2.0, 3.0), ("running", 3.0, 6.0)]


def test_of_very_many_attempts_the_last_are_held() -> None:
    view = view_of(started("a"), sent("a", 0.0))
    for number in range(2, 2 * MOST_ATTEMPTS):
        view.apply(retried("a", float(number), number, delay=0.0))
    times = RunReport.of(view).nodes["a"]
    assert len(view.nodes["a"].earlier) == MOST_ATTEMPTS
    assert times.spans[-1].attempt == 2 * MOST_ATTEMPTS - 2


# Timelines


def drawn(report: RunReport) -> ET.Element:
    svg = report.to_svg()
    svg.encode()
    return ET.fromstring(svg)  # noqa: S314 - our own


def bars(svg: ET.Element, kind: str) -> list[dict[str, str]]:
    found = svg.findall(f"./{SVG}g/{SVG}rect[@class='{kind}']")
    return [dict(rect.items()) for rect in found]


def test_each_part_has_its_shade_and_its_place() -> None:
    svg = drawn(retrying())
    assert [len(bars(svg, kind)) for kind in ("waiting", "queued", "running")] == [2, 3, 3]
    first, second, third = bars(svg, "running")
    assert float(first["x"]) + float(first["width"]) < float(second["x"])
    assert float(third["x"]) + float(third["width"]) == pytest.approx(780, abs=0.2)
    assert first["y"] == second["y"] != third["y"]


def test_the_critical_path_is_marked() -> None:
    svg = drawn(
        report_of(
            *(started("slow", "tiny"), *ran("slow", 0.0, 0.0, 9.0), *ran("tiny", 0.0, 0.0, 1.0))
        )
    )
    assert len(bars(svg, "path")) == 1
    labels = [text.text for text in svg.findall(f".//{SVG}text[@class='critical']")]
    assert labels == ["\u2068slow\u2069"]


def test_a_failed_node_is_told_by_a_sign_and_not_by_colour_alone() -> None:
    svg = drawn(
        report_of(
            *(started("a", "b"), sent("a", 0.0), began("a", 0.0)),
            NodeFailed("r", 1.0, "a", "", ODD, 1, attempt=1),
            NodeSkipped("r", 1.0, "b", ("a",)),
        )
    )
    assert len(bars(svg, "failed")) == 1
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert "✗ failed, 1.0 s" in texts
    assert "– skipped" in texts  # noqa: RUF001 - a dash


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_text(name: str) -> None:
    report = report_of(started(name), *ran(name, 0.0, 1.0, 2.0))
    svg = drawn(report)
    assert {element.tag.removeprefix(SVG) for element in svg.iter()} == {
        *("svg", "title", "style", "rect", "line", "text", "g"),
    }
    json.loads(report.to_trace())
    label = next(text.text for text in svg.iter(f"{SVG}text") if "\u2068" in (text.text or ""))
    assert label is not None
    assert len(label) <= 30


def test_nothing_is_loaded_and_nothing_is_run() -> None:
    svg = retrying().to_svg()
    assert "prefers-color-scheme: dark" in svg
    assert not re.search(r"<script|href|url\(|@import|@font-face|\bon\w+=", svg)


def test_of_many_nodes_those_that_took_longest_have_a_row() -> None:
    names = [f"n{number}" for number in range(MOST_ROWS + 5)]
    events = [e for number, name in enumerate(names) for e in ran(name, 0.0, 0.0, number + 1.0)]
    svg = drawn(report_of(started(*names), *events))
    assert len(svg.findall(f"{SVG}g")) == MOST_ROWS
    assert any("5 more nodes took less time" in (t.text or "") for t in svg.iter(f"{SVG}text"))


@pytest.mark.parametrize("seconds", [0.0, 1e-7, 0.0123, 1.0, 9.99, 61.0, 7_300.0, 1e6, 1e9])
def test_an_axis_has_a_few_ticks_within_the_picture(seconds: float) -> None:
    svg = drawn(report_of(started("a"), *ran("a", 0.0, 0.0, seconds)))
    ticks = [float(line.get("x1", "")) for line in svg.iter(f"{SVG}line")]
    assert 1 <= len(ticks) <= 9
    assert max(ticks) <= 780


def test_a_run_of_which_nothing_is_known_has_pictures() -> None:
    report = RunReport.of(RunView())
    assert drawn(report).findall(f"{SVG}g") == []
    assert [event["ph"] for event in json.loads(report.to_trace())["traceEvents"]] == ["M"]


def test_the_same_run_gives_the_same_bytes() -> None:
    assert retrying().to_svg() == retrying().to_svg()
    assert retrying().to_trace() == retrying().to_trace()


# Traces


def slices(report: RunReport) -> list[dict[str, Any]]:
    events = json.loads(report.to_trace())["traceEvents"]
    return [event for event in events if event["ph"] == "X"]


def test_a_slice_says_what_it_is() -> None:
    found = slices(retrying())
    assert [event["name"] for event in found[:3]] == ["a (waiting)", "a (queued)", "a"]
    assert (found[2]["ts"], found[2]["dur"], found[2]["cat"]) == (1_000_000, 2_500_000, "running")
    assert found[2]["args"] == {"state": "completed", "attempt": 1, "critical path": True}


def test_nodes_one_after_the_other_share_a_track_and_others_do_not() -> None:
    report = report_of(
        started("a", "b", "c", edges={"c": ("a",)}),
        *(*ran("a", 0.0, 0.0, 1.0), *ran("b", 0.0, 0.0, 3.0), *ran("c", 1.0, 1.0, 2.0)),
    )
    tracks = {event["name"]: event["tid"] for event in slices(report)}
    assert tracks == {"a": 1, "b": 2, "c": 1}


moments = st.floats(0, 10, allow_nan=False)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(moments, min_size=3, max_size=3).map(sorted), min_size=1, max_size=12))
def test_slices_of_a_track_do_not_overlap(runs: list[list[float]]) -> None:
    names = [f"n{number}" for number in range(len(runs))]
    events = [event for name, times in zip(names, runs, strict=True) for event in ran(name, *times)]
    tracks: dict[int, list[tuple[int, int]]] = {}
    for event in slices(report_of(started(*names), *events)):
        assert event["dur"] >= 0
        tracks.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for found in tracks.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(found)))


def test_a_span_is_plain_data() -> None:
    assert RunReport.of(view_of(started("a"), *ran("a", 0.0, 0.0, 1.0))).nodes["a"].spans == (
        Span("running", 0.0, 1.0, 1),
    )
