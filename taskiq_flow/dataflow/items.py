"""The items of a generator, as elements of a graph."""

from __future__ import annotations

from typing import Any

from taskiq_flow.dataflow.node import DAGNode


class ItemsNode(DAGNode):
    """Stands for a generator wherever its output is taken. It has an element for each item.

    ``generator``: the node of the task. ``given_key``: of the row of its items. ``levels``: how
    many levels of lists lead to an item. ``joins``: whether the items of several generators are
    joined to one list.
    """

    __slots__ = ("_given_key", "generator", "joins")

    def __init__(self, generator: DAGNode, given_key: str, levels: int) -> None:
        self.generator = generator
        self._given_key = given_key
        self.joins = generator.flatten
        super().__init__(
            _passed_on,
            name=generator.task_name,
            outputs=generator.outputs,
            inputs=[given_key],
            map_over={given_key: levels},
        )

    @property
    def given_key(self) -> str:
        """The key of the row of items, which only this node takes."""
        return self._given_key

    def store(self, result: Any, values: dict[str, Any]) -> None:
        """Put an item under the generator's output keys. Raises ``OutputShapeError``."""
        self.generator.store(result, values)


class Opening:
    """The beginning of a generator's row: nodes wait for it that map over the items.

    ``task_name``: of the generator, because of which such a node is skipped.
    """

    __slots__ = ("generator", "task_name")

    index = None
    map_over: tuple[str, ...] = ("",)
    """It is no node that runs."""

    def __init__(self, generator: DAGNode) -> None:
        self.generator = generator
        self.task_name = generator.task_name


def _passed_on(item: Any) -> Any:
    return item
