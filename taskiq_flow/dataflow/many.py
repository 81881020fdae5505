"""A graph that runs for each of many inputs, as one graph that is mapped over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.inputs import check_inputs, warn_of_unused
from taskiq_flow.dataflow.passing import PassingNode
from taskiq_flow.dataflow.plan import Plan
from taskiq_flow.dataflow.subgraph import Subgraph
from taskiq_flow.errors import InputError

SOURCE: Final = "(inputs)"
"""The key of the inputs that the graph is run with."""

_NAME = "inputs"


class InputNode(PassingNode):
    """Gives the inputs of one of many runs of a graph.

    ``whole``: the graph. ``plan``: the part of it that runs.
    """

    __slots__ = ("_has_warned", "_plan", "_whole")

    def __init__(self, name: str, whole: Plan, plan: Plan) -> None:
        keys = dict.fromkeys((*plan.required, *plan.optional))
        super().__init__(SOURCE, name=name, outputs=[*keys] or [name])
        self._whole, self._plan = whole, plan
        self._has_warned = False

    def store(self, result: Any, values: dict[str, Any]) -> None:
        """Put what one run is given under its keys. Raises ``InputError``."""
        if not isinstance(result, Mapping):
            raise InputError(
                f"a run was given a {type(result).__name__} for its inputs; it is a mapping of "
                "keys to values"
            )
        if odd := [key for key in result if not isinstance(key, str)]:
            raise InputError(f"a run was given the key {odd[0]!r}; keys are strings", keys=odd)
        unused = check_inputs(result, self._whole, self._plan)
        if unused and not self._has_warned:
            self._has_warned = True
            warn_of_unused(unused, self._whole)
        values.update((key, result[key]) for key in self.outputs if key in result)


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
    node = InputNode(name, whole.plan(), plan)
    graph = DAG(whole.name)
    graph.add_node(node)
    for part in Subgraph(dag, "", None, None, dict.fromkeys(node.outputs, 1)).nodes():
        graph.add_node(part)
    return graph
