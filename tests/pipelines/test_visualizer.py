"""What a graph shows of itself."""

from __future__ import annotations

import io

import pytest

from taskiq_flow import DAG, DAGBuilder, DAGVisualizer, MermaidGenerator


def graph() -> DAG:
    def start() -> int:
        return 0

    return (
        DAGBuilder()
        .node(start)
        .node(lambda start: start, name="short")
        .node(lambda start: start, name="long", expected_seconds=5)
        .node(lambda short, long: long, name="end")
        .build()
    )


def test_it_shows_what_the_graph_does(capsys: pytest.CaptureFixture[str]) -> None:
    dag, file = graph(), io.StringIO()
    assert DAGVisualizer.to_json(dag) == dag.to_json()
    assert DAGVisualizer.to_dot(dag) == dag.to_dot()
    for orientation in ("TB", "LR"):
        drawn = MermaidGenerator(dag).to_mermaid(orientation=orientation)
        assert drawn == dag.to_mermaid(orientation)
    assert MermaidGenerator(dag).to_mermaid().startswith("flowchart TB")
    DAGVisualizer.print_ascii(dag)
    DAGVisualizer.print_ascii(dag, file)
    dag.print()
    assert capsys.readouterr().out == file.getvalue() * 2


def test_the_critical_path_is_the_longest_by_expected_seconds() -> None:
    assert DAGVisualizer.detect_critical_path(graph()) == ["start", "long", "end"]
    assert DAGVisualizer.detect_critical_path(DAG()) == []


def test_nodes_of_a_level_may_run_side_by_side() -> None:
    groups = DAGVisualizer.find_parallelizable_groups(graph())
    assert groups == [["start"], ["short", "long"], ["end"]]
