"""Drawing a graph: as text for a terminal, for Mermaid and for Graphviz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskiq_flow.dataflow.node import DAGNode

Levels = Sequence[Sequence[DAGNode]]
Predecessors = Mapping[DAGNode, Sequence[DAGNode]]


def to_text(levels: Levels, predecessors: Predecessors) -> str:
    """The nodes level by level, each with what it waits for."""
    return ""


def to_mermaid(levels: Levels, predecessors: Predecessors) -> str:
    """A Mermaid flowchart."""
    return ""


def to_dot(levels: Levels, predecessors: Predecessors) -> str:
    """A digraph in Graphviz's DOT language."""
    return ""
