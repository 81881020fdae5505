"""Draws and checks graphs for commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from taskiq_flow.cli.exits import Code
from taskiq_flow.cli.flows import flow_at
from taskiq_flow.cli.output import show, width
from taskiq_flow.dataflow import DAG
from taskiq_flow.dataflow.dag import counted_nodes
from taskiq_flow.dataflow.render import WIDTH
from taskiq_flow.dataflow.type_check import check_types
from taskiq_flow.previews import one_line

GraphFormat = Literal["text", "svg", "mermaid", "dot", "json"]
"""How a graph is drawn."""

_DRAWN: Mapping[GraphFormat, Callable[[DAG], str]] = {
    "text": lambda dag: dag.to_text(width=min(width(WIDTH), WIDTH)),
    "svg": DAG.to_svg,
    "mermaid": DAG.to_mermaid,
    "dot": DAG.to_dot,
    "json": DAG.to_json,
}


async def show_graph(where: str, form: GraphFormat) -> Code:
    """Write a drawing of a graph."""
    show(_DRAWN[form](flow_at(where).dag).rstrip("\n"))
    return Code.COMPLETED


async def validate_graph(where: str) -> Code:
    """Check a graph. Raises ``GraphError`` for one that cannot run."""
    dag = flow_at(where).dag
    plan = dag.plan()
    check_types(plan, "error")
    show(f"{where} is valid: {counted_nodes(dag.nodes)}", wraps=True)
    optional = [f"{key}?" for key in plan.optional if key not in plan.required]
    takes = [*map(one_line, plan.required), *map(one_line, optional)]
    show(f"takes {', '.join(takes) or 'no inputs'}", wraps=True)
    show(f"gives {', '.join(map(one_line, plan.producers)) or 'nothing'}", wraps=True)
    return Code.COMPLETED
