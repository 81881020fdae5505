"""Checking the inputs of a run against its graph."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

from taskiq_flow.dataflow.map_hints import how_to_map
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.plan import FAILURES, Plan
from taskiq_flow.dataflow.rows import Source, as_source, not_lists
from taskiq_flow.dataflow.tasks import task_info
from taskiq_flow.errors import (
    InputConflictError,
    InputError,
    MissingInputError,
    UnusedInputWarning,
    warn,
)
from taskiq_flow.suggestions import closest, did_you_mean


def as_inputs(inputs: Any) -> dict[str, Any]:
    """A run's inputs by key. Raises ``TypeError`` for anything but a mapping or ``None``."""
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"inputs is a {type(inputs).__name__}; it is a mapping of keys to values, as in "
            "{'source': 'data.csv'}"
        )
    for key in inputs:
        if not isinstance(key, str):
            raise TypeError(f"inputs holds the key {key!r}; keys are strings")
    return dict(inputs)


def check_inputs(values: Mapping[str, Any], whole: Plan, plan: Plan) -> list[str]:
    """Check a run's inputs. ``whole``: the graph; ``plan``: the part of it that is to run.

    Returns the keys that no node takes. Raises ``InputConflictError`` or ``MissingInputError``.
    """
    if conflicts := [key for key in values if key in whole.producers]:
        listed = ", ".join(
            f"{key!r} (node {whole.producers[key].task_name!r})" for key in conflicts
        )
        raise InputConflictError(
            f"the run was given {listed}, which its own nodes produce; leave them out, or rename "
            "the nodes' outputs",
            keys=conflicts,
        )
    unused = [key for key in values if key not in whole.required and key not in whole.optional]
    if missing := [key for key in plan.required if key not in values]:
        meant = {key: given for key in missing for given in unused if did_you_mean(given, [key])}
        others = [key for key in unused if key not in meant.values()]
        raise MissingInputError(
            "; ".join(_missing(plan.required[k], k, meant.get(k), whole, values) for k in missing)
            + (f"; no node takes the given {_listed(others)}" if others else ""),
            keys=missing,
        )
    return unused


def warn_of_unused(keys: Iterable[str], whole: Plan) -> None:
    """Issue an ``UnusedInputWarning`` for each key that a run was given and no node takes."""
    for key in keys:
        warn(_unused(key, whole), UnusedInputWarning)


def refuse_unused(keys: Iterable[str], whole: Plan) -> None:
    """Raise ``InputError`` for keys that no node takes or gives."""
    unused = [key for key in keys if not any(key in known for known in _keys(whole))]
    if unused:
        raise InputError("; ".join(_unused(key, whole) for key in unused), keys=unused)


def _keys(whole: Plan) -> tuple[Mapping[str, DAGNode], ...]:
    return whole.required, whole.optional, whole.producers


def _unused(key: str, whole: Plan) -> str:
    external = dict.fromkeys((*whole.required, *whole.optional))
    return (
        f"the run was given {key!r}, which no node takes{did_you_mean(key, external)}"
        f"; external inputs: {_listed(external)}"
    )


def sources_among(
    values: Mapping[str, Any], plan: Plan, limit: int | None, nodes: Iterable[DAGNode]
) -> dict[str, Source]:
    """The inputs that are mapped over and have no length, such as generators.

    ``limit``: how many nodes the engine has in flight at most. ``nodes``: those that run. Raises
    ``InputError`` if an input cannot be mapped over, if such a one is also taken whole, and if two
    of them are the same iterator.
    """
    if plan.elements is None:
        return {}
    sources: dict[str, Source] = {}
    for key in plan.elements.lists():
        if key not in values:  # a node gives it
            continue
        source = as_source(values[key], limit)
        if source is not None:
            sources[key] = source
            continue
        for found in not_lists(values[key], plan.elements.depths[key]):
            raise _not_mappable(key, values[key], found, plan.elements.depths[key])
    for key in sources.keys() & plan.elements.lists_within():
        raise InputError(
            f"{key!r} is read once more for each element of another list, and the run was given a "
            f"{type(values[key]).__name__}, which is read once; give it a list",
            keys=[key],
        )
    _check_distinct({key: value for key, value in values.items() if key in sources})
    for node in nodes:
        for key in (*node.required_keys, *node.optional_keys):
            if key in sources and key not in node.map_over:
                raise InputError(
                    f"node {node.task_name!r} takes {key!r} whole, and the run was given a "
                    f"{type(values[key]).__name__}, which is read once; give it a list",
                    keys=[key],
                )
    return sources


def _check_distinct(sources: Mapping[str, Any]) -> None:
    """Raise ``InputError`` if each of two keys would have a part of what one iterator gives."""
    keys: dict[int, str] = {}
    for key, source in sources.items():
        first = keys.setdefault(id(source), key)
        if first != key and _is_read_once(source):
            raise InputError(
                f"the run was given the same {type(source).__name__} as {first!r} and as {key!r}, "
                "which is read once; give it under one key, and have all nodes map over that one",
                keys=[first, key],
            )


def _is_read_once(source: Any) -> bool:
    """Whether a source is an iterator, or gives the same one to each of its readers."""
    if isinstance(source, (Iterator, AsyncIterator)):
        return True
    if isinstance(source, AsyncIterable):
        return aiter(source) is aiter(source)
    return iter(source) is iter(source)


def _not_mappable(key: str, value: Any, found: Any, depth: int) -> InputError:
    kind = type(found).__name__
    what = f"{key!r}, which is mapped over, as a {kind}; give it a list, or an iterable"
    if found is not value:
        what = (
            f"{key!r}, which is mapped over {depth} levels deep, and one of its lists is a {kind}; "
            "give it lists of lists"
        )
    return InputError(f"the run was given {what}", keys=[key])


def _missing(node: DAGNode, key: str, given: str | None, whole: Plan, values: Iterable[str]) -> str:
    """What is wrong about a key without a value.

    ``given``: a key like it that no node takes; ``values``: those that the run was given.
    """
    who, known = f"node {node.task_name!r} needs", list(whole.producers)
    if key not in {*node.binding.keys, *node.waits_for}:  # the parameters of a condition are keys
        who, known = f"the condition of node {node.task_name!r} takes", [*node.binding.keys, *known]
    hint = did_you_mean(key, known) or _how_to_give(key, whole) + _default_hint(node, key)
    if key in node.map_over and (key, key) in node.binding.keyword:
        whole_list = closest(key, [*whole.producers, *values])
        if whole_list is not None:
            hint = f"; write {how_to_map(node, key, whole_list)}"
    if given is not None:
        hint = f"; it was given {given!r}, which no node takes{did_you_mean(given, [key])}"
    return f"{who} {key!r}, which no node produces and the run was not given{hint}"


def _how_to_give(key: str, whole: Plan) -> str:
    if key.endswith(FAILURES):
        name, names = key.removesuffix(FAILURES), [node.task_name for node in whole.order]
        return f"; no node is called {name!r}{did_you_mean(name, names)}"
    return f"; pass it as an input, or add a node with output={key!r}"


def _default_hint(node: DAGNode, key: str) -> str:
    """How to have the default of a parameter that ``inputs=`` gives a key, if it has one."""
    if key not in node.binding.required_keys:
        return ""
    name = next((name for name, bound in node.binding.keyword if bound == key), key)
    for parameter in task_info(node.task).parameters[0]:
        if parameter.name == name and parameter.default is not parameter.empty:
            return f", or leave it out of inputs=: parameter {name!r} has a default"
    return ""


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, keys)) or "none"
