"""The items of a generator, as elements of a graph."""

from __future__ import annotations

from typing import Any

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.passing import PassingNode


class ItemsNode(PassingNode):
    """Stands for a generator wherever its output is taken. It has an element for each item.

    ``generator``: the node of the task. ``given_key``: of the row of its items. ``levels``: how
    many levels of lists lead to an item. ``joins``: whether the items of several generators are
    joined to one list.
    """

    __slots__ = ("generator", "joins")

    def __init__(self, generator: DAGNode, given_key: str, levels: int) -> None:
        self.generator = generator
        self.joins = generator.flatten
        super().__init__(
            given_key, name=generator.task_name, outputs=generator.outputs, levels=levels
        )

    def store(self, result: Any, values: dict[str, Any]) -> None:
        """Put an item under the generator's output keys. Raises ``OutputShapeError``."""
        self.generator.store(result, values)


class Opening:
    """The beginning of a generator's row. The nodes that map over its items wait for it.

    ``task_name``: of the generator. If that fails without an item, these nodes are skipped.
    """

    __slots__ = ("generator", "task_name")

    index = None

    def __init__(self, generator: DAGNode) -> None:
        self.generator = generator
        self.task_name = generator.task_name
