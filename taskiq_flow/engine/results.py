"""The results of a run by output keys, as ``execute`` returns them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.events import Item, NodeFailure, NodeSkipped


def store_result(dag: DAG, results: dict[str, Any], name: str, result: Any) -> None:
    """Store what a node gives, by its output keys. Elements are not stored."""
    node = dag.get_node(name)
    if isinstance(result, (NodeFailure, NodeSkipped)):
        results.update(dict.fromkeys(node.outputs, result))
        return
    plan = dag.plan()
    if isinstance(result, Item) and _gives_elements(plan.by_items, node):
        return
    elements = plan.elements
    levels = 0 if elements is None else elements.levels.get(node.outputs[0], 0)
    if levels and len(node.outputs) > 1:
        results.update(_lists_by_key(node, result, levels))
    else:
        node.store(result, results)


def _gives_elements(plan: ElementPlan | None, node: DAGNode) -> bool:
    """Whether an ``Item`` of a node is an element, and not what its task has returned."""
    return plan is not None and (node in plan.mapped or node in plan.generators)


def _lists_by_key(node: DAGNode, returned: Iterable[Any], levels: int) -> dict[str, list[Any]]:
    """The lists of a mapped node with several outputs, of what each of its elements returned.

    ``levels``: of lists within lists.
    """
    lists: dict[str, list[Any]] = {key: [] for key in node.outputs}
    for result in returned:
        given: dict[str, Any] = {}
        is_missing = isinstance(result, (NodeFailure, NodeSkipped))
        if is_missing:
            given = dict.fromkeys(node.outputs, result)
        elif levels > 1:
            given = {**_lists_by_key(node, result, levels - 1)}
        else:
            node.store(result, given)
        for key, value in given.items():
            if node.flatten and levels == 1 and not is_missing:
                lists[key] += value
            else:
                lists[key].append(value)
    return lists
