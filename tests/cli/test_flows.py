"""Graphs and brokers are found by their names, and what is wrong about a name is said."""

from __future__ import annotations

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
