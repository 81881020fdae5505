"""Finds what must run again of an earlier run, as its inputs will be others, and what must not."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from taskiq_flow.dataflow.axes import Path, parted
from taskiq_flow.dataflow.element_plan import MappedNode
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.plan import Plan

_Places = dict[DAGNode, set[Path]]
"""By node, paths of elements, and all that lies within these. The empty path is all of a node."""


def stale(plan: Plan, completed: Collection[str], failed: Iterable[str]) -> list[str]:
    """The names of completed nodes and elements whose inputs will be others.

    ``failed``: what is tried again. A node with ``join="ended"`` may have completed without it; so
    may, with the result of that one, whatever depends on it.
    """
    missing: _Places = {  # what was not there
        node: {path for _, path in places} for node, places in _by_node(plan, failed).items()
    }
    if not missing:
        return []
    names = _by_node(plan, completed)
    changed: _Places = {}  # what was there, and will be another
    found: list[str] = []
    for node in plan.order:
        was_missing = _touched(plan, node, missing)
        touched = _touched(plan, node, changed)
        if node.join == "ended":
            touched |= was_missing
        elif node.join != "any":
            missing.setdefault(node, set()).update(was_missing)
        for name, path in names.get(node, ()):
            if any(_overlap(path, other) for other in touched):
                found.append(name)
                changed.setdefault(node, set()).add(path)
    return found


def settled(plan: Plan, completed: Collection[str]) -> list[DAGNode]:
    """The nodes that were skipped, or have skipped elements, without which another has completed.

    What is missing of them stays skipped: a result that came now would not be in that of the other.
    ``completed``: nodes and elements whose results are kept, without those that are ``stale``.
    """
    names = _by_node(plan, completed)
    mapped = {} if plan.elements is None else plan.elements.mapped
    found: dict[DAGNode, None] = {}
    for node in names:
        if node.join == "any":
            continue
        for other in plan.predecessors.get(node, ()):
            is_missing = other in mapped or other not in names
            is_taken_whole = node not in mapped or other in mapped[node].whole
            if is_missing and is_taken_whole and not other.is_computed:
                found[other] = None
    return [*found]


def _by_node(plan: Plan, names: Iterable[str]) -> dict[DAGNode, list[tuple[str, Path]]]:
    """The names of nodes and elements, each with its path, by the nodes of the graph."""
    by_name = {node.task_name: node for node in plan.order}
    found: dict[DAGNode, list[tuple[str, Path]]] = {}
    for name in names:
        owner = plan.node_of(name)
        if owner in by_name:
            path = () if owner == name else parted(name)[1]
            found.setdefault(by_name[owner], []).append((name, path))
    return found


def _touched(plan: Plan, node: DAGNode, places: _Places) -> set[Path]:
    """The paths of a node at which it depends on these places."""
    mapped = None if plan.elements is None else plan.elements.mapped.get(node)
    found: set[Path] = set()
    generators = {} if plan.elements is None else plan.elements.generators
    for other in plan.predecessors.get(node, ()):
        if places.get(other):
            found |= _paths(mapped, generators.get(other, other), places[other])
    return found


def _paths(mapped: MappedNode | None, other: DAGNode, places: set[Path]) -> set[Path]:
    if mapped is None or other in mapped.whole or other not in mapped.producers:
        return {()}
    found: set[Path] = set()
    for taken in mapped.taken:
        if taken.producer is other:
            is_straight = taken.at == tuple(range(len(taken.at)))
            found |= {path[: len(taken.at)] if is_straight else () for path in places}
    return found


def _overlap(path: Path, other: Path) -> bool:
    shorter = min(len(path), len(other))
    return path[:shorter] == other[:shorter]
