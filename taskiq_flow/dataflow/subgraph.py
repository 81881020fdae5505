"""A graph as a part of another one: its nodes under other names, and its keys under other keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.node_arguments import check_named
from taskiq_flow.dataflow.options import MapOver, mapped_keys
from taskiq_flow.errors import GraphError


class Subgraph:
    """The nodes of a graph, as they stand in another one under the prefix ``name``, if it has one.

    ``inputs``: external input of the graph → key of the other; the same key where nothing is said.
    ``outputs``: output of the graph → key of the other, where that is not ``name/key``.
    ``map_over``: keys of the other graph; the whole graph runs once for each of their elements.

    Raises ``BindingError`` for a key that the graph has not, and ``GraphError`` for a graph that
    cannot be mapped in this way.
    """

    def __init__(
        self,
        dag: DAG,
        name: str,
        inputs: Mapping[str, str] | None,
        outputs: Mapping[str, str] | None,
        map_over: MapOver | None,
    ) -> None:
        _check_arguments(dag, name, inputs, outputs)
        self._dag = dag
        self._name = name
        self._inputs = dict(inputs or {})
        self._outputs = dict(outputs or {})
        external = dag.external_inputs
        check_named(f"inputs of the graph {name!r}", self._inputs, external, name)
        check_named(f"outputs of the graph {name!r}", self._outputs, dag.outputs, name)
        if twice := [key for key, count in Counter(self._outputs.values()).items() if count > 1]:
            raise GraphError(
                f"outputs of the graph {name!r} names {twice[0]!r} for several of its keys; give "
                "each another one"
            )
        factors = mapped_keys(name, map_over)
        if len(factors) > 1:
            raise GraphError(
                f"map_over of the graph {name!r} is a Product; map it over one list, and give its "
                "nodes the other one whole"
            )
        self._mapped = factors[0] if factors else {}
        if external:  # without any, all that is mapped over is how often the graph runs
            known = [self._inputs.get(key, key) for key in external]
            check_named(f"map_over of the graph {name!r}", self._mapped, known, name)
        self._levels = max(self._mapped.values(), default=0)

    def nodes(self) -> list[DAGNode]:
        """The nodes for the other graph, in the order of the graph."""
        before: dict[DAGNode, list[DAGNode]] = {}
        for earlier, later in self._orderings() if self._mapped else ():
            before.setdefault(later, []).append(earlier)
        return [self._node(node, before.get(node, ())) for node in self._dag.nodes]

    def orderings(self) -> list[tuple[str, str]]:
        """The edges without data, by the names of the nodes in the other graph.

        Those of a mapped graph hold within each element, and are keys of its nodes.
        """
        pairs = [] if self._mapped else self._orderings()
        return [(self._named(earlier), self._named(later)) for earlier, later in pairs]

    def _orderings(self) -> list[tuple[DAGNode, DAGNode]]:
        edges = self._dag.resolved_orderings().items()
        return [(earlier, later) for later, others in edges for earlier in others]

    def _named(self, node: DAGNode) -> str:
        return self._prefixed(node.task_name)

    def _prefixed(self, name: str) -> str:
        return f"{self._name}/{name}" if self._name else name

    def _key(self, key: str) -> str:
        plan = self._dag.plan()
        if key in plan.producers:
            return self._outputs.get(key, self._prefixed(key))
        if key in plan.failure_keys:
            return self._prefixed(key)
        return self._inputs.get(key, key)

    def _node(self, node: DAGNode, before: Iterable[DAGNode]) -> DAGNode:
        keys = {key: self._key(key) for key in (*node.required_keys, *node.optional_keys)}
        self._check_alike(node, keys)
        keys |= {key: self._key(key) for key in node.outputs}
        factors = node.factors
        if self._mapped:
            waited_for = {self._key(other.outputs[0]): self._levels for other in before}
            factors = self._factors(node, waited_for)
        else:
            factors = tuple({keys[key]: n for key, n in factor.items()} for factor in factors)
        return node.renamed(self._named(node), keys, factors)

    def _check_alike(self, node: DAGNode, keys: Mapping[str, str]) -> None:
        """Raise ``GraphError`` if keys that become one are taken in several ways."""
        levels: dict[str, int] = {}
        for key, new in keys.items():
            count = node.map_over.get(key, 0)
            if levels.setdefault(new, count) != count:
                raise GraphError(
                    f"inputs of the graph {self._name!r} names {new!r} for several keys of its "
                    f"node {node.task_name!r}, which maps over some of them and not over others; "
                    "give it another key for these"
                )

    def _factors(self, node: DAGNode, waited_for: Mapping[str, int]) -> tuple[dict[str, int], ...]:
        """What a node maps over in a graph that is mapped: the graph's elements first."""
        plan = self._dag.plan()
        given = {*plan.producers, *plan.failure_keys}
        levels: dict[str, int] = {}
        for key in (*node.map_over, *node.required_keys, *node.optional_keys):
            new, own = self._key(key), node.map_over.get(key, 0)
            if key in given:
                levels[new] = self._levels + own
            elif new in self._mapped:
                if own and self._mapped[new] < self._levels:
                    raise self._error(node, f"maps over {key!r}, which is mapped fewer levels deep")
                levels[new] = self._mapped[new] + own
        levels.update({key: n for key, n in waited_for.items() if key not in levels})
        further: list[dict[str, int]] = []
        for number, factor in enumerate(node.factors):
            keys = {self._key(key): n for key, n in factor.items()}
            outer = [key for key in keys if key not in levels]
            if outer and len(outer) < len(keys):
                raise self._error(node, "takes lists of the element and of the whole together")
            if outer or number:
                further.append({key: levels.get(key, n) for key, n in keys.items()})
        apart = {key for factor in further for key in factor}
        first = {key: n for key, n in levels.items() if key not in apart}
        first |= self._in_common(node, apart & levels.keys(), levels)
        if given.isdisjoint(node.binding.keys) and not waited_for:
            first = {**first, **{key: n for key, n in self._mapped.items() if key not in first}}
        return (first or dict(self._mapped), *further)

    def _in_common(
        self, node: DAGNode, apart: AbstractSet[str], levels: Mapping[str, int]
    ) -> dict[str, int]:
        """The outer levels that the first factor has of keys of later ones.

        It has some where the node is of a graph that is mapped within the one that is mapped here.
        """
        return {
            new: levels[new] - node.map_over[key] + count
            for factor in node.factors[:1]
            for key, count in factor.items()
            if (new := self._key(key)) in apart
        }

    def _error(self, node: DAGNode, what: str) -> GraphError:
        graph = f"the graph {self._name!r}" if self._name else "the graph"
        return GraphError(
            f"{graph} is mapped over {', '.join(map(repr, self._mapped))}, and "
            f"its node {node.task_name!r} {what}, which it cannot then; do that outside of it"
        )


def _check_arguments(dag: Any, name: Any, inputs: Any, outputs: Any) -> None:
    """Raise ``TypeError`` for what cannot be a graph, its name, or a mapping of keys."""
    if not isinstance(dag, DAG):
        raise TypeError(f"dag is {dag!r}; give the graph, as builder.build() returns it")
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; give a string")
    for argument, given in (("inputs", inputs), ("outputs", outputs)):
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise TypeError(f"{argument} is {given!r}; give a mapping of keys to keys")
        for key in (*given, *given.values()):
            if not isinstance(key, str):
                raise TypeError(f"{argument} holds {key!r}; keys are strings")
