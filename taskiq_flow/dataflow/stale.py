"""Which results of an earlier run were made of failures that are tried again."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from taskiq_flow.dataflow.axes import MappedNode, Path, parted
from taskiq_flow.dataflow.dag import Plan
from taskiq_flow.dataflow.node import DAGNode

_Places = dict[DAGNode, set[Path]]
"""By node, paths of elements, and all that lies within these. The empty path is all of a node."""


def stale(plan: Plan, completed: Collection[str], failed: Iterable[str]) -> list[str]:
    """The names of completed nodes and elements whose inputs will be others.

    ``failed``: what is tried again. A node with ``join="ended"`` may have completed without it; so
    may, with the result of that one, whatever depends on it.
    """
    by_name = {node.task_name: node for node in plan.order}
    names: dict[DAGNode, list[tuple[str, Path]]] = {}
    missing: _Places = {}  # what was not there
    for name in completed:
        owner, path = _place(plan, name)
        if owner in by_name:
            names.setdefault(by_name[owner], []).append((name, path))
    for name in failed:
        owner, path = _place(plan, name)
        if owner in by_name:
            missing.setdefault(by_name[owner], set()).add(path)
    changed: _Places = {}  # what was there, and will be another
    found: list[str] = []
    for node in plan.order if missing else ():
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


def _place(plan: Plan, name: str) -> tuple[str, Path]:
    owner = plan.node_of(name)
    return (owner, ()) if owner == name else parted(name)


def _touched(plan: Plan, node: DAGNode, places: _Places) -> set[Path]:
    """The paths of a node at which it depends on these places."""
    mapped = None if plan.elements is None else plan.elements.mapped.get(node)
    found: set[Path] = set()
    for other in plan.predecessors.get(node, ()):
        if places.get(other):
            found |= _paths(mapped, other, places[other])
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
