"""A graph that runs for each of many inputs, as one graph that is mapped over them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.subgraph import Subgraph
from taskiq_flow.errors import (
    InputConflictError,
    InputError,
    MissingInputError,
    UnusedInputWarning,
    warn,
)
from taskiq_flow.suggestions import did_you_mean

SOURCE: Final = "(inputs)"
"""The key of the inputs that the graph is run with."""

_NAME = "inputs"


class InputNode(DAGNode):
    """Gives the inputs of one of many runs of a graph. It has no task that is sent.

    ``required``, ``optional``: the external inputs of the graph that runs. ``others``: those that
    only the rest of the graph takes. ``produced``: the keys that nodes give.
    """

    __slots__ = ("_has_warned", "_others", "_produced", "_required")

    def __init__(
        self,
        name: str,
        required: list[str],
        optional: list[str],
        others: Collection[str],
        produced: Collection[str],
    ) -> None:
        super().__init__(
            _given,
            name=name,
            inputs=[SOURCE],
            outputs=[*required, *optional] or [name],
            map_over=SOURCE,
        )
        self._required = required
        self._others = others
        self._produced = produced
        self._has_warned = False

    @property
    def given_key(self) -> str:
        """The key of the inputs of all runs."""
        return SOURCE

    def store(self, result: Any, values: dict[str, Any]) -> None:
        """Put what one run is given under its keys. Raises ``InputError``."""
        if not isinstance(result, Mapping):
            raise InputError(
                f"a run was given a {type(result).__name__} for its inputs; it is a mapping of "
                "keys to values"
            )
        if conflicts := [key for key in result if key in self._produced]:
            raise InputConflictError(
                f"a run was given {conflicts[0]!r}, which a node of its own graph produces; leave "
                "it out",
                keys=conflicts,
            )
        if missing := [key for key in self._required if key not in result]:
            raise MissingInputError(
                f"a run was not given {missing[0]!r}{did_you_mean(missing[0], map(str, result))}; "
                f"its inputs are {', '.join(map(repr, result)) or 'empty'}",
                keys=missing,
            )
        known = {*self.outputs, *self._others}
        unused = [key for key in result if key not in known]
        if unused and not self._has_warned:
            self._has_warned = True
            meant = did_you_mean(unused[0], known)
            warn(f"a run was given {unused[0]!r}, which no node takes{meant}", UnusedInputWarning)
        values.update((key, result[key]) for key in self.outputs if key in result)


def _given(inputs: Any) -> Any:
    return inputs


def graph_of_many(whole: DAG, outputs: Iterable[str] | None = None) -> DAG:
    """A graph in which each node of another runs once for each element of ``SOURCE``.

    ``outputs``: only what these keys need. Raises ``GraphError`` for a graph that cannot be mapped,
    and ``MissingNodeError`` for a key that no node gives.
    """
    dag = whole if outputs is None else whole.part_for(outputs)
    plan = dag.plan()
    name = _NAME
    while any(name in (node.task_name, *node.outputs) for node in dag.nodes):
        name += "_"
    required = list(plan.required)
    optional = [key for key in plan.optional if key not in plan.required]
    node = InputNode(name, required, optional, whole.external_inputs, whole.outputs)
    graph = DAG(whole.name)
    graph.add_node(node)
    for part in Subgraph(dag, "", None, None, dict.fromkeys(node.outputs, 1)).nodes():
        graph.add_node(part)
    return graph
