"""Tells how a node is declared whose task is called for each item of a list."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from inspect import Parameter
from typing import Any, get_args, get_origin

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.node_arguments import check_named
from taskiq_flow.suggestions import closest, did_you_mean


def check_map_over(
    node: DAGNode, taken: Collection[str], producers: Collection[str], nodes: Iterable[DAGNode]
) -> None:
    """Raise ``BindingError`` for a key in ``map_over=`` that the node does not take.

    ``taken``: the keys that it takes; ``producers``: those that nodes give.
    """
    name = node.task_name
    hint = partial(_hint, node, producers, nodes)
    check_named(f"map_over of node {name!r}", node.map_over, taken, name, hint)


def _hint(
    node: DAGNode,
    producers: Collection[str],
    nodes: Iterable[DAGNode],
    key: str,
    taken: Collection[str],
) -> str:
    is_known = key in producers or any(key in other.binding.keys for other in nodes)
    hint = did_you_mean(key, taken)
    if hint and not is_known:  # a misspelt key
        return hint
    free = [name for name, given in _by_name(node) if name == given and name not in producers]
    similar = closest(key, free)
    if similar is None and len(free) != 1:
        return hint
    return f"; write {how_to_map(node, similar or free[0], key)}"


def how_to_map(node: DAGNode, parameter: str, key: str) -> str:
    """What a node is given so that its parameter takes an item of the list ``key``."""
    inputs = {name: given for name, given in _by_name(node) if name != given}
    inputs[parameter] = key
    keys = list(dict.fromkeys((*(k for k in node.map_over if k != parameter), key)))
    over = json.dumps(key if keys == [key] else keys, ensure_ascii=False)
    if inputs == {key: key}:
        return f"map_over={over}"
    return f"inputs={json.dumps(inputs, ensure_ascii=False)}, map_over={over}"


def _by_name(node: DAGNode) -> Sequence[tuple[str, str]]:
    """The parameters that are passed by name, with their keys."""
    return node.binding.keyword + node.binding.optional_keyword


def item_of(annotation: Any) -> Any:
    """The annotation of an item of a list or a tuple. ``Parameter.empty`` if it is neither."""
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    is_list = isinstance(origin, type) and issubclass(origin, Sequence)
    if not is_list or issubclass(origin, (str, bytes, bytearray)):
        return Parameter.empty
    is_uniform = len(arguments) == 1 or arguments[1:] == (Ellipsis,)
    return arguments[0] if is_uniform else Any
