"""What a graph shows of itself, under the names that it has for those who come from pipelines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.render import Orientation


class DAGVisualizer:
    """Drawings of a graph, and what they show.

    >>> dag = DAGBuilder().node(abs, inputs=["x"]).node(hex, inputs=["abs"]).node(len).build()
    >>> DAGVisualizer.detect_critical_path(dag)
    ['abs', 'hex']
    >>> DAGVisualizer.find_parallelizable_groups(dag)
    [['abs', 'len'], ['hex']]
    """

    @staticmethod
    def to_json(dag: DAG) -> str:
        """The same as ``dag.to_json()``."""
        return dag.to_json()

    @staticmethod
    def to_dot(dag: DAG) -> str:
        """The same as ``dag.to_dot()``."""
        return dag.to_dot()

    @staticmethod
    def print_ascii(dag: DAG, file: TextIO | None = None) -> None:
        """The same as ``dag.print()``."""
        dag.print(sys.stdout if file is None else file)

    @staticmethod
    def detect_critical_path(dag: DAG) -> list[str]:
        """The names of the nodes along the longest path, by their ``expected_seconds``."""
        plan = dag.plan()
        remaining = plan.remaining_path()
        path: list[str] = []
        after: Sequence[DAGNode] = dag.roots
        while after:
            node = max(after, key=remaining.__getitem__)
            path.append(node.task_name)
            after = plan.successors.get(node, ())
        return path

    @staticmethod
    def find_parallelizable_groups(dag: DAG) -> list[list[str]]:
        """The names of the nodes by level: none of a level depends on another of it."""
        return [[node.task_name for node in level] for level in dag.get_parallel_levels()]


class MermaidGenerator:
    """Mermaid flowcharts of a graph.

    >>> dag = DAGBuilder().node(abs, inputs=["x"]).build()
    >>> print(MermaidGenerator(dag).to_mermaid())
    flowchart TB
        i0(["x"])
        n0["abs"]
        i0 --> n0
    """

    def __init__(self, dag: DAG) -> None:
        self._dag = dag

    def to_mermaid(self, orientation: Orientation = "TB") -> str:
        """The same as ``dag.to_mermaid(orientation)``."""
        return self._dag.to_mermaid(orientation)
