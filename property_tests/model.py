"""Random graphs as plain data, and what a sequential evaluation makes of them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Parameter, Signature
from typing import Any, Literal

Form = Literal["undeclared", "by name", "by position", "spelled out"]
Returns = Literal["number", "list", "tuple", "mapping"]

DEFAULT = -1
"""What an optional parameter has when nobody provides its key."""


class BrokenError(Exception):
    """What a node that is meant to fail raises."""


@dataclass(frozen=True)
class NodeSpec:
    """One node. ``index``: its place in a topological order; ``name``: the one in its graph.

    ``required``, ``optional``: input keys; ``after``: indices of nodes that it waits for without
    taking anything from them. ``sending``, ``seconds``, ``cleaning``: how long it takes to send
    it, to run it, and to end either when it is cancelled.
    """

    index: int
    name: str
    given_name: str
    outputs: tuple[str, ...]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    after: tuple[int, ...] = ()
    form: Form = "by position"
    returns: Returns = "number"
    sending: int = 0
    seconds: int = 0
    cleaning: int = 0
    fails: bool = False

    @cached_property
    def signature(self) -> Signature:
        """The parameters of its task."""
        required = [self.parameter(key) for key in self.required]
        either_way = Parameter.POSITIONAL_OR_KEYWORD
        return Signature(
            [Parameter(name, either_way) for name in required]
            + [Parameter(key, either_way, default=DEFAULT) for key in self.optional]
        )

    def parameter(self, key: str) -> str:
        """The name of the parameter that takes a key."""
        if self.form in ("undeclared", "by name"):
            return key
        return f"p{self.required.index(key)}"

    @property
    def keys(self) -> tuple[str, ...]:
        """All that it takes, if it is there."""
        return (*self.required, *self.optional)

    @property
    def inputs(self) -> list[str] | dict[str, str] | None:
        """Its inputs, as they are declared."""
        if self.form == "undeclared":
            return None
        if self.form == "spelled out":
            return {self.parameter(key): key for key in reversed(self.required)}
        return list(self.required if self.form == "by position" else reversed(self.required))

    def result(self, arguments: Mapping[str, Any]) -> Any:
        """What its task returns: as good as unique to the node and what it was given."""
        # On its way to a task a tuple becomes a list, which JSON does not tell from it either.
        seed = zlib.crc32(json.dumps([self.index, dict(arguments)], sort_keys=True).encode())
        parts = [seed + number for number in range(len(self.outputs))]
        if self.returns == "number":
            return seed
        if self.returns == "mapping":
            return dict(zip(self.outputs, parts, strict=True))
        return parts if self.returns == "list" else tuple(parts)

    def keyed(self, result: Any) -> dict[str, Any]:
        """What its task returned, by output key."""
        if len(self.outputs) == 1:
            return {self.outputs[0]: result}
        return result if isinstance(result, dict) else dict(zip(self.outputs, result, strict=True))


@dataclass(frozen=True)
class GraphSpec:
    """A graph: its nodes as they are added, and the inputs of its runs."""

    nodes: tuple[NodeSpec, ...]
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def in_order(self) -> list[NodeSpec]:
        """The nodes, each behind those it waits for."""
        return sorted(self.nodes, key=lambda node: node.index)

    @cached_property
    def waits_for(self) -> dict[str, list[NodeSpec]]:
        """The direct dependencies of each node, by name."""
        producers = {key: node for node in self.nodes for key in node.outputs}
        by_index = {node.index: node for node in self.nodes}
        return {
            node.name: list(
                dict.fromkeys(
                    [producers[key] for key in node.keys if key in producers]
                    + [by_index[index] for index in node.after]
                )
            )
            for node in self.nodes
        }

    def behind(self, name: str) -> set[str]:
        """All that depend on a node, directly or not."""
        found = {name}
        for node in self.in_order:
            if any(before.name in found for before in self.waits_for[node.name]):
                found.add(node.name)
        return found - {name}

    def needed_for(self, keys: Iterable[str]) -> set[str]:
        """All nodes without which these output keys cannot be had."""
        found = {node.name for node in self.nodes if not set(node.outputs).isdisjoint(keys)}
        for node in reversed(self.in_order):
            if node.name in found:
                found.update(before.name for before in self.waits_for[node.name])
        return found

    def __iter__(self) -> Iterator[NodeSpec]:
        return iter(self.nodes)


@dataclass
class Expected:
    """What becomes of a graph. Results by name, values by output key; names of the broken.

    ``starts``, ``ends``: seconds, where nothing limits how many nodes run at once.
    """

    results: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    failures: set[str] = field(default_factory=set)
    skipped: dict[str, set[str]] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)


def evaluate(graph: GraphSpec) -> Expected:
    """The reference: one node after the other, with nothing in between."""
    expected = Expected()
    given = dict(graph.inputs)
    for node in graph.in_order:
        before = graph.waits_for[node.name]
        start = max((expected.ends[other.name] for other in before), default=0)
        expected.ends[node.name] = start
        bad = {b.name for b in before if b.name in expected.failures or b.name in expected.skipped}
        if bad:
            expected.skipped[node.name] = bad
            continue
        start += node.sending
        expected.starts[node.name] = start
        expected.ends[node.name] = start + node.seconds
        if node.fails:
            expected.failures.add(node.name)
            continue
        arguments = {node.parameter(key): given[key] for key in node.required}
        arguments |= {key: given.get(key, DEFAULT) for key in node.optional}
        expected.results[node.name] = result = node.result(arguments)
        expected.values |= node.keyed(result)
        given |= node.keyed(result)
    return expected
