"""Without pygraphviz, graphs are drawn as text."""

from __future__ import annotations

import sys

import pytest

from taskiq_flow import ConfigurationError, RunView
from tests.dataflow.graphs import graph, node


@pytest.fixture(autouse=True)
def _no_pygraphviz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    monkeypatch.delitem(sys.modules, "taskiq_flow.drawing.graphviz", raising=False)


def test_the_error_names_the_extra_and_what_needs_nothing() -> None:
    for draw in (graph(node("a")).to_svg, RunView().to_svg):
        with pytest.raises(
            ConfigurationError, match=r"pip install 'taskiq-flow\[draw\]'; dag\.print"
        ):
            draw()


def test_text_stays() -> None:
    dag = graph(node("a"), node("b", "a"))
    bundle = dag._repr_mimebundle_()
    assert list(bundle) == ["text/plain"]
    assert bundle["text/plain"].startswith("nodes: 2, edges: 1")
    assert dag.to_mermaid()
    assert dag.to_dot()
    assert dag.to_json()
