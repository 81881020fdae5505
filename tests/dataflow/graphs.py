"""Small graphs of nodes that take anything and do nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskiq_flow import DAG, DAGNode


def task(*args: Any) -> None: ...


def node(name: str, *inputs: str, outputs: Iterable[str] | None = None) -> DAGNode:
    return DAGNode(task, name=name, inputs=inputs, outputs=outputs)


def graph(*nodes: DAGNode, edges: Iterable[tuple[str, str]] = ()) -> DAG:
    dag = DAG()
    for one in nodes:
        dag.add_node(one)
    for start, end in edges:
        dag.add_edge(start, end)
    return dag
