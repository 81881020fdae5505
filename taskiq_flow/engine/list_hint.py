"""Tells of ``map_over=`` where a task was given a list, and takes one of its items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskiq_flow.dataflow.map_hints import how_to_map
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.tasks import task_info
from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.errors import AnnotationError
from taskiq_flow.values.may_fit import may_fit


def explain_list(error: AnnotationError, node: RunnableNode, inputs: Mapping[str, Any]) -> None:
    """Add to the error of an argument that is a list how the task is called for each item."""
    if not isinstance(node, DAGNode) or error.key is None:
        return
    named = dict(node.binding.keyword + node.binding.optional_keyword)
    if (key := named.get(error.key)) is None:  # it was passed by position, or in another way
        return
    value, parameters = inputs.get(key), task_info(node.task).parameters[0]
    parameter = next((p for p in parameters if p.name == error.key), None)
    if parameter is None or type(value) not in (list, tuple) or not value:
        return
    if may_fit(type(value[0]), parameter.annotation):
        error.args = (
            f"{error}; to have it called for each item, write {how_to_map(node, error.key, key)}",
        )
