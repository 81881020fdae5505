"""Inputs are read as the annotations of the parameters say that take them."""

from __future__ import annotations

import re
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from taskiq_flow import DAGBuilder, InputError
from taskiq_flow.cli.exits import CommandError
from taskiq_flow.cli.inputs import read_inputs
from taskiq_flow.dataflow.type_check import annotations_of_inputs
from tests.cli import flows
from tests.cli.conftest import Run

TEXTS = [
    ("number=5", 5),
    ("flag=yes", True),
    ("day=2026-11-26", date(2026, 11, 26)),
    ("place=/tmp/x", Path("/tmp/x")),  # noqa: S108 - nothing is written there
    ("colour=red", flows.Colour.RED),
    ('point={"x": "3"}', flows.Point(x=3)),
    ('words=["a", "b"]', ["a", "b"]),
    ("text=5", "5"),
    ('text=["a"]', '["a"]'),
    ("text=a=b", "a=b"),
    ("text=", ""),
    ("either=5", 5),
    ("either=null", None),
    ("anything=5", "5"),
    ("bare=5", "5"),
]


@pytest.mark.parametrize(("pair", "value"), TEXTS, ids=[pair for pair, _ in TEXTS])
def test_a_text_becomes_what_the_annotation_says(pair: str, value: Any) -> None:
    found = read_inputs(flows.typed, [pair], [], None)
    assert found == {pair.partition("=")[0]: value}
    assert [*map(type, found.values())] == [type(value)]


@pytest.mark.parametrize("pair", ["number=five", "words=a", "words=5", "point={}", "either=x"])
def test_a_text_that_cannot_be_read_names_key_text_and_type(pair: str) -> None:
    key, _, text = pair.partition("=")
    with pytest.raises(InputError, match=f"the input {key!r} is {text!r}, which cannot be read as"):
        read_inputs(flows.typed, [pair], [], None)


def test_what_is_mapped_over_is_a_list_of_what_the_task_takes() -> None:
    assert read_inputs(flows.mapped, ["numbers=[2, 4]"], [], None) == {"numbers": [2, 4]}
    whole = DAGBuilder().node(lambda days: days, name="all", map_over="days").build()
    assert annotations_of_inputs(whole.plan()) == {"days": list[Any]}
    rows = DAGBuilder().node(flows.odd, inputs={"number": "rows"}, map_over={"rows": 2}).build()
    assert read_inputs(rows, ["rows=[[2], []]"], [], None) == {"rows": [[2], []]}


def test_json_is_read_as_the_annotation_says_too(tmp_path: Path) -> None:
    documents = ['day="2026-11-26"', 'words=["a"]', 'anything={"a": [1, null]}', "text=null"]
    file = tmp_path / "inputs.json"
    file.write_text('{"number": "5", "words": 1, "unknown": [2]}')
    assert read_inputs(flows.typed, [], documents[:3], str(file)) == {
        "number": 5,
        "unknown": [2],
        "day": date(2026, 11, 26),
        "words": ["a"],
        "anything": {"a": [1, None]},
    }
    for document, shown in ((documents[3], "null"), ("words=[1]", "[1]"), ("number=[]", "[]")):
        key = document.partition("=")[0]
        text = f"the input {key!r} is {re.escape(shown)}, which cannot be read as"
        with pytest.raises(InputError, match=text):
            read_inputs(flows.typed, [], [document], None)
    file.write_text('{"number": "five"}')
    with pytest.raises(InputError, match="the input 'number' is \"five\", which cannot be read"):
        read_inputs(flows.typed, [], [], str(file))


def test_all_items_of_a_list_are_checked() -> None:
    with pytest.raises(InputError, match=r"cannot be read as list\[int\]: 1: Input should be"):
        read_inputs(flows.mapped, ['numbers=[2, "a"]'], [], None)
    assert read_inputs(flows.mapped, ['numbers=[2, "4"]'], [], None) == {"numbers": [2, 4]}


@pytest.mark.parametrize(
    ("texts", "documents", "file", "words"),
    [
        (["text"], [], None, "--input 'text' has no '='; write --input key=value"),
        ([], ["text={"], None, "--input-json text is no JSON"),
        (["text=a", "text=b"], [], None, "the input 'text' is given twice"),
        ([], [], "none.json", "--input-file none.json cannot be read"),
        ([], [], __file__, "is no JSON"),
    ],
)
def test_what_is_not_written_as_an_input_is_refused(
    texts: list[str], documents: list[str], file: str | None, words: str
) -> None:
    with pytest.raises(CommandError) as caught:
        read_inputs(flows.typed, texts, documents, file)
    assert words in str(caught.value)


def test_other_options_replace_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text('{"number": 1, "text": "a"}')
    assert read_inputs(flows.typed, ["number=2"], [], str(file)) == {"number": 2, "text": "a"}
    file.write_text("[1]")
    with pytest.raises(CommandError, match="holds a list; write a JSON object"):
        read_inputs(flows.typed, [], [], str(file))
    with pytest.raises(CommandError, match="the input 'number' is given twice"):
        read_inputs(flows.typed, ["number=2"], ["number=3"], None)


def test_a_run_takes_inputs_from_standard_input(folder: Path, run: Run) -> None:
    (folder / "inputs.json").write_text('{"url": "a.org"}')
    done = run("run", "flows:nightly", "--input-file", "-", stdin=str(folder / "inputs.json"))
    assert done.output == "fetch: <h1>Tides</h1> read at a.org\ntitle: Tides\n"


def test_an_input_that_nobody_takes_is_refused(run: Run) -> None:
    done = run("run", "flows:nightly", "-i", "url=a.org", "-i", "tilte=x", "--quiet")
    assert (done.code, done.output) == (3, "")
    assert "the run was given 'tilte', which no node takes" in done.errors


def test_one_of_a_file_is_a_warning_in_one_line(folder: Path, run: Run) -> None:
    (folder / "inputs.json").write_text('{"url": "a.org", "tilte": "x"}')
    done = run("run", "flows:nightly", "--input-file", str(folder / "inputs.json"), "--quiet")
    assert done.code == 0
    assert done.errors.startswith("warning: the run was given 'tilte', which no node takes")
    assert done.errors.count("\n") == 1


def test_a_standard_input_that_is_closed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CommandError, match="standard input is closed; give a file"):
        read_inputs(flows.nightly, [], [], "-")
