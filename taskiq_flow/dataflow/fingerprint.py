"""Comparing a graph with the graph that a run was started with."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.plan import Plan
from taskiq_flow.dataflow.tasks import default_name, original_function

Fingerprints = Mapping[str, str]
"""Node name → a digest of the node's declaration."""


def fingerprints(plan: Plan) -> dict[str, str]:
    """The fingerprints of all nodes of a graph.

    A fingerprint covers the name of the task, the keys, the rules and the dependencies. It leaves
    out the code of the task, as fixing a failed task is the usual reason to resume a run.
    """
    return {node.task_name: _fingerprint(node, plan) for node in plan.order}


def _fingerprint(node: DAGNode, plan: Plan) -> str:
    binding = node.binding
    declared: tuple[Any, ...] = (
        default_name(node.task),
        node.outputs,
        binding.positional,
        [position for position, _ in binding.fixed],
        binding.keyword,
        binding.optional_keyword,
        [key for key, _ in binding.optional_positional],
        binding.var_args,
        node.join,
        node.required_keys,
        node.optional_keys,
        node.when is not None,
        sorted(before.task_name for before in plan.predecessors.get(node, ())),
    )
    if fixed := _fixed_values(node):
        declared = (*declared, [(name, _text(value)) for name, value in fixed.items()])
    if node.map_over:
        declared = (*declared, ("map_over", *node.map_over))
        if len(node.factors) > 1 or any(levels > 1 for levels in node.map_over.values()):
            declared = (*declared, node.factors)
        if node.flatten or node.filter:
            declared = (*declared, "flatten" if node.flatten else "filter")
    if node.is_generator:  # the journal has its items one by one
        declared = (*declared, "generator")
    return hashlib.blake2b(repr(declared).encode(), digest_size=8).hexdigest()


def _fixed_values(node: DAGNode) -> dict[str, Any]:
    """The arguments that are the same in every run: of ``given=``, and of a ``partial``.

    Those that a ``partial`` has fixed by position have numbers as names.
    """
    fixed: dict[str, Any] = {}
    function: Any = original_function(node.task)
    while isinstance(function, functools.partial):
        fixed = {
            **{str(n): arg for n, arg in enumerate(function.args)},
            **function.keywords,
            **fixed,
        }
        function = function.func
    return {**fixed, **node.given}


def _text(value: Any) -> str:
    """A value as text that is the same in every process; an object's is that of its class."""
    return json.dumps(value, sort_keys=True, skipkeys=True, default=_class_of)


def _class_of(value: Any) -> str:
    kind = type(value)
    named = value if hasattr(value, "__qualname__") else kind
    return f"{named.__module__}.{named.__qualname__}"


@dataclass(frozen=True, slots=True)
class Changes:
    """How a graph differs from an earlier one, as names of nodes in order."""

    added: list[str]
    removed: list[str]
    changed: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        parts = {"added": self.added, "removed": self.removed, "changed": self.changed}
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)


def changes(before: Fingerprints, now: Fingerprints) -> Changes:
    """The differences between two versions of a graph."""
    return Changes(
        added=[name for name in now if name not in before],
        removed=[name for name in before if name not in now],
        changed=[name for name in now if name in before and before[name] != now[name]],
    )


def with_dependents(plan: Plan, names: Iterable[str]) -> set[str]:
    """The nodes of these names and all that depend on them, directly or not."""
    wanted, found = set(names), set[str]()
    for node in plan.order:
        dependencies = (other.task_name for other in plan.predecessors.get(node, ()))
        if node.task_name in wanted or not found.isdisjoint(dependencies):
            found.add(node.task_name)
    return found
