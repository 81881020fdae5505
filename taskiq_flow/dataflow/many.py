"""A graph that runs for each of many inputs, as one graph that is mapped over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.subgraph import Subgraph
from taskiq_flow.errors import InputError, MissingInputError
from taskiq_flow.suggestions import did_you_mean

SOURCE: Final = "(inputs)"
"""The key of the inputs that the graph is run with."""

_NAME = "inputs"


class InputNode(DAGNode):
    """Gives the inputs of one of many runs of a graph. It has no task that is sent.

    ``required``, ``optional``: the external inputs of the graph, of which there is at least one
    output: a graph without any is given ``SOURCE`` itself.
    """

    __slots__ = ("_required",)

    gives_inputs = True

    def __init__(self, name: str, required: list[str], optional: list[str]) -> None:
        super().__init__(
            _given,
            name=name,
            inputs=[SOURCE],
            outputs=[*required, *optional] or [name],
            map_over=SOURCE,
        )
        self._required = required

    def store(self, result: Any, values: dict[str, Any]) -> None:
        """Put what one run is given under its keys. Raises ``InputError``."""
        name = self.task_name
        if not isinstance(result, Mapping):
            raise InputError(
                f"a run was given a {type(result).__name__} for its {name}; it is a mapping of "
                "keys to values"
            )
        if missing := [key for key in self._required if key not in result]:
            raise MissingInputError(
                f"a run was not given {missing[0]!r}{did_you_mean(missing[0], map(str, result))}; "
                f"its {name} are {', '.join(map(repr, result)) or 'empty'}",
                keys=missing,
            )
        values.update((key, result[key]) for key in self.outputs if key in result)


def _given(inputs: Any) -> Any:
    return inputs


def graph_of_many(dag: DAG) -> DAG:
    """A graph in which each node of another runs once for each element of ``SOURCE``.

    Raises ``GraphError`` for a graph that cannot be mapped.
    """
    plan = dag.plan()
    name = _NAME
    while any(name in (node.task_name, *node.outputs) for node in dag.nodes):
        name += "_"
    required = list(plan.required)
    optional = [key for key in plan.optional if key not in plan.required]
    node = InputNode(name, required, optional)
    graph = DAG()
    graph.add_node(node)
    for part in Subgraph(dag, "", None, None, dict.fromkeys(node.outputs, 1)).nodes():
        graph.add_node(part)
    return graph
