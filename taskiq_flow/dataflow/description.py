"""The description of a graph that listeners get when a run begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.passing import PassingNode
from taskiq_flow.dataflow.tasks import default_name
from taskiq_flow.events import GraphKind


@dataclass(frozen=True, slots=True)
class Description:
    """A graph by the names of its nodes, as ``RunStarted`` has it. Runs share it."""

    task_names: tuple[str, ...] = ()
    edges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kind: GraphKind = "dataflow"


def described(
    nodes: Sequence[DAGNode],
    predecessors: Mapping[DAGNode, Sequence[DAGNode]],
    kind: GraphKind = "dataflow",
) -> Description:
    """Describe a graph. The node that gives many runs their inputs is none that a user declared."""
    nodes = [node for node in nodes if not isinstance(node, PassingNode)]
    return Description(
        task_names=tuple(node.task_name for node in nodes),
        edges={
            node.task_name: names
            for node, others in predecessors.items()
            if (names := tuple([o.task_name for o in others if not isinstance(o, PassingNode)]))
        },
        expected={
            node.task_name: node.expected_seconds for node in nodes if node.expected_seconds != 1
        },
        tasks={
            node.task_name: task
            for node in nodes
            if (task := default_name(node.task)) != node.task_name
        },
        outputs={
            node.task_name: tuple(node.outputs)
            for node in nodes
            if tuple(node.outputs) != (node.task_name,)
        },
        kind=kind,
    )
