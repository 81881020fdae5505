"""Events as plain data: every one of them is JSON, whatever it is about."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pytest

from taskiq_flow import (
    ElementsKnown,
    Event,
    Gap,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    RunFinished,
    RunStarted,
)
from taskiq_flow.previews import LONGEST_TEXT, preview

ODD = ValueError("7 is odd")
SHOWN = {"type": "ValueError", "message": "7 is odd", "traceback": "ValueError: 7 is odd\n"}

EXAMPLES: dict[str, tuple[Event, dict[str, Any]]] = {
    "run.started": (
        RunStarted(
            "r",
            1.5,
            ("a", "b"),
            1.7e9,
            {"b": ("a",)},
            {"b": 1},
            {"b": 2.5},
            {"a": "load"},
            {"b": ("c", "d")},
            seq=1,
            kind="sequential",
            in_memory=True,
            on_error="collect",
            name="nightly",
            tags=("customer 7",),
            origin="flows:nightly",
        ),
        {
            "time": 1.7e9,
            "nodes": ["a", "b"],
            "edges": {"b": ["a"]},
            "mapped": {"b": 1},
            "expected": {"b": 2.5},
            "tasks": {"a": "load"},
            "outputs": {"b": ["c", "d"]},
            "kind": "sequential",
            "in_memory": True,
            "on_error": "collect",
            "name": "nightly",
            "tags": ["customer 7"],
            "origin": "flows:nightly",
        },
    ),
    "node.sent": (NodeStarted("r", 1.5, "a", "r:a:1", seq=2), {"attempt": 1, "task": "r:a:1"}),
    "node.began": (
        NodeBegan("r", 1.5, "a", "r:a:1", "host:7", seq=3),
        {"attempt": 1, "task": "r:a:1", "worker": "host:7"},
    ),
    "node.retried": (
        NodeRetried("r", 1.5, "a", "r:a:2", 2, ODD, delay=0.5, seq=4),
        {"attempt": 2, "task": "r:a:2", "delay": 0.5, "error": SHOWN},
    ),
    "node.fell_back": (
        NodeFellBack("r", 1.5, "a", "r:a:2", ODD, 2, attempt=3, seq=5),
        {"attempt": 3, "task": "r:a:2", "attempts": 2, "error": SHOWN},
    ),
    "node.completed": (
        NodeCompleted("r", 1.5, "a", "r:a:1", [7], "task", (0, 7), 1, 0.25, 0.5, seq=6),
        {
            "index": [0, 7],
            "attempt": 1,
            "task": "r:a:1",
            "source": "task",
            "queued": 0.25,
            "ran": 0.5,
            "value": {"kind": "list", "size": 3, "text": "[7]", "cut": False},
        },
    ),
    "node.failed": (
        NodeFailed("r", 1.5, "a", "r:a:1", ODD, 1, 7, 1, seq=7, item="'tides.txt'"),
        {
            "index": 7,
            "attempt": 1,
            "task": "r:a:1",
            "attempts": 1,
            "item": "'tides.txt'",
            "error": SHOWN,
        },
    ),
    "node.skipped": (
        NodeSkipped("r", 1.5, "a", ("b",), seq=8),
        {"attempt": 0, "because_of": ["b"], "reason": "failure"},
    ),
    "elements": (ElementsKnown("r", 1.5, "a", 7, seq=9), {"known": 7}),
    "run.ended": (
        RunFinished("r", 1.5, "failed", ODD, seq=10),
        {"outcome": "failed", "error": SHOWN},
    ),
    "gap": (Gap("r", 1.5, missed=3, seq=13), {"missed": 3}),
}


def as_json(event: Event) -> Any:
    """What another process reads, of a document that any parser takes."""
    return json.loads(json.dumps(event.to_dict(), allow_nan=False, ensure_ascii=False).encode())


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_event_is_plain_data_whose_type_says_what_it_is(kind: str) -> None:
    event, about = EXAMPLES[kind]
    expected = {"v": 1, "run": "r", "seq": event.seq, "type": kind, "at": 1.5, **about}
    if kind.startswith("node") or kind == "elements":
        expected["node"] = "a"
    assert as_json(event) == expected


def test_every_event_has_its_example() -> None:
    assert [type(event) for event, _ in EXAMPLES.values()] == [*get_args(Event)]


@pytest.mark.parametrize("kind", EXAMPLES)
def test_lone_surrogates_in_names_are_escaped(kind: str) -> None:
    event, _ = EXAMPLES[kind]
    changes: dict[str, Any] = {
        "run_id": "r\udc80",
        "task_name": "a\udc80",
        "task_id": "\udc80",
        "worker": "\udc80",
        "item": "\udc80",
        "because_of": ("\udc80",),
        "task_names": ("\udc80",),
        "mapped": {"\udc80": 1},
        "expected": {"\udc80": 2.5},
        "edges": {"\udc80": ("\udc80",)},
        "error": ValueError("\udc80"),
    }
    changes = {key: value for key, value in changes.items() if hasattr(event, key)}
    read = as_json(replace(event, **changes))
    assert read["run"] == "r\\udc80"
    assert "\udc80" not in json.dumps(read, ensure_ascii=False)


@dataclass
class Point:
    x: Any
    y: Any = None


class Silent:
    def __repr__(self) -> str:
        raise LookupError


class Endless(list[Any]):
    def __iter__(self) -> Any:
        while True:
            yield 7


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


VALUES: dict[str, tuple[Any, str, int]] = {
    "none": (None, "None", 4),
    "nan": (math.nan, "nan", 3),
    "infinities": ([math.inf, -math.inf], "[inf, -inf]", 11),
    "text as it is": ("<b>7</b>", "<b>7</b>", 8),
    "text of two bytes a letter": ("é" * 3, "ééé", 6),
    "a lone surrogate": ("\udc80", "\\udc80", 6),
    "bytes": (b"\x00", r"b'\x00'", 1),
    "a tuple": ((1,), "(1,)", 4),
    "nothing": ([set(), {}, (), []], "[set(), {}, (), []]", 19),
    "a dictionary": ({"a": [1, "b"]}, "{'a': [1, 'b']}", 15),
    "a dataclass": (Point(1), "Point(x=1, y=None)", 18),
    "an array": (np.zeros(3), "array([0., 0., 0.])", 24),
    "a class": (Point, repr(Point), len(repr(Point))),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_small_value_is_shown_whole(name: str) -> None:
    value, text, size = VALUES[name]
    expected = {"kind": type(value).__name__, "size": size, "text": text, "cut": False}
    assert preview(value) == expected


LARGE: dict[str, tuple[Any, int | None]] = {
    "a list": (list(range(10**6)), None),
    "a dictionary": ({"x" * 10**6: 1}, None),
    "text": ("x" * 10**7, 10**7),
    "text of two bytes a letter": ("é" * 10**6, None),
    "bytes": (b"x" * 10**7, 10**7),
    "an array": (np.zeros((1000, 1000)), 8 * 10**6),
    "without an end": (Endless(), None),
    "within itself": (itself(), None),
    "within a dataclass": (Point(list(range(10**6))), None),
    "raises": (Silent(), None),
    "raises within": ([1, Silent()], None),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_value_and_one_that_cannot_be_shown_are_cut(name: str) -> None:
    value, size = LARGE[name]
    shown = preview(value)
    assert len(shown["text"]) <= LONGEST_TEXT
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown["size"] == size or not shown["cut"]
    assert shown["cut"] == (name != "an array")


def test_an_integer_of_many_digits_is_told_by_its_bits() -> None:
    assert preview(10**10_000)["text"] == "<int of 33,220 bits>"


class MuteError(Exception):
    def __str__(self) -> str:
        raise LookupError


@pytest.mark.parametrize("error", [MuteError(), ValueError("x" * 10**6), KeyError("\udc80")])
def test_any_error_is_shown(error: Exception) -> None:
    read = as_json(RunFinished("r", 1.0, "failed", error))
    assert read["error"]["type"] == type(error).__name__
    assert len(json.dumps(read)) < 50_000


def test_an_error_shows_where_it_was_raised() -> None:
    try:
        raise ODD
    except ValueError as error:
        shown = as_json(NodeFailed("r", 1.0, "a", "r:a:1", error, 1))["error"]
    assert "test_an_error_shows_where_it_was_raised" in shown["traceback"]


def test_a_preview_of_an_event_has_what_it_is_about_and_not_what_all_of_its_kind_have() -> None:
    text = preview([NodeSkipped("r", 1.5, "a", ("b",), seq=8)])["text"]
    assert text == (
        "[NodeSkipped(run_id='r', at=1.5, task_name='a', because_of=('b',), reason='failure', "
        "index=None, attempt=0, seq=8)]"
    )
