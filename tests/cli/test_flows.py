"""Graphs and brokers are found by their names, and what is wrong about a name is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from taskiq_flow import DAGBuilder
from taskiq_flow.cli.exits import Code, CommandError
from taskiq_flow.cli.flows import broker_at, broker_of, flow_at
from tests.cli import flows

HERE = "tests.cli.flows"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (HERE, "does not name a graph; write module:name, as in flows:nightly"),
        ("tests/cli/flows.py:nightly", f"write its name, as in {HERE}:nightly"),
        ("tests.cli.flow:nightly", "there is no module 'tests.cli.flow' in"),
        (f"{HERE}:nightli", f"{HERE} has no 'nightli'; did you mean 'nightly'?"),
        (f"{HERE}:zzz", f"{HERE} has no 'zzz'; it has nightly, halves, mapped,"),
        (f"{HERE}:something", f"{HERE}:something is an object of type int; name a DAG,"),
        (f"{HERE}:Colour", "is the class Colour; name a DAG,"),
        (f"{HERE}:needs", "is the function needs(url); name a DAG,"),
    ],
)
def test_a_name_without_a_graph_is_refused(where: str, words: str) -> None:
    with pytest.raises(CommandError) as caught:
        flow_at(where)
    assert words in str(caught.value)
    assert caught.value.code is Code.USAGE


BROKEN = [
    ("import sys; sys.exit(0)", "{0} cannot be imported: SystemExit: 0\n\nTraceback (most"),
    ("def f(:", "{0} cannot be imported: SyntaxError: invalid syntax ({0}.py, line 1)\n\n  File"),
    ("def flow(): return 1 / 0", "{0}:flow() fails: ZeroDivisionError: division by zero\n\nTrace"),
    ("def flow(): exit('no')", "{0}:flow() fails: SystemExit: no\n\nTraceback (most recent"),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_what_the_users_code_raises_is_told_from_that_code_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, words = BROKEN[number]
    module = f"broken_{number}"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(CommandError) as caught:
        flow_at(f"{module}:flow")
    told = str(caught.value)
    assert told.startswith(words.format(module))
    assert f"{module}.py" in told
    assert "importlib" not in told
    assert caught.value.code is Code.USAGE


def test_a_folder_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(CommandError, match="the working directory is gone; change to another"):
        flow_at(f"{HERE}:nightly")


def test_a_flow_may_be_a_graph_a_builder_an_engine_or_a_function() -> None:
    assert flow_at(f"{HERE}:nightly").dag is flows.nightly
    assert [node.task_name for node in flow_at(f"{HERE}:make").dag.nodes] == ["fetch"]
    found = flow_at(f"{HERE}:engine")
    assert found.dag is flows.halves
    assert found.options["on_error"] == "collect"


def test_a_pipeline_is_a_flow_with_its_options() -> None:
    found = flow_at(f"{HERE}:pipeline")
    assert [node.task_name for node in found.dag.nodes] == ["fetch", "title"]
    assert (found.options["run_timeout"], found.options["broker"]) == (30, flows.broker)
    found = flow_at(f"{HERE}:chosen")
    assert found.dag.external_inputs == ["url"]
    assert found.options["on_error"] == "continue"


def test_a_broker_is_named_in_the_same_way() -> None:
    assert broker_at(f"{HERE}:broker") is flows.broker
    with pytest.raises(CommandError, match="is an object of type DAG; name a taskiq broker"):
        broker_at(f"{HERE}:nightly")
    assert type(broker_of(DAGBuilder().node(flows.fetch).build())).__name__ == "InMemoryBroker"
