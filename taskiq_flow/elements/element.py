"""The elements of mapped nodes, as nodes that a run sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from taskiq_flow.dataflow.axes import Path, element_name
from taskiq_flow.dataflow.binding import Binding
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import Join
from taskiq_flow.dataflow.tasks import Task
from taskiq_flow.events import Failure


class Owner(Protocol):
    """Knows the values that elements take, and stores the values that they give."""

    def store(self, element: Element, result: Any) -> None:
        """Put what an element gives into the rows of its keys. Raises ``OutputShapeError``."""

    def dependencies(self, element: Element) -> list[str]:
        """The names of what an element depends on."""

    def source_values(self, element: Element) -> list[Any]:
        """The values of sources that an element takes."""


class Element:
    """A mapped node at one path: a node like any other, which exists while it is needed."""

    __slots__ = ("_elements", "node", "path", "task", "task_name")

    def __init__(self, node: DAGNode, path: Path, elements: Owner) -> None:
        self.node = node
        self.path = path
        self.task: Task = node.task
        self.task_name = element_name(node.task_name, path)
        self._elements = elements

    @property
    def index(self) -> int | Path:
        """The place in the node's list; the path for one that lies within other lists."""
        return self.path[0] if len(self.path) == 1 else self.path

    @property
    def binding(self) -> Binding:
        """How keys reach the task's parameters."""
        return self.node.binding

    @property
    def outputs(self) -> list[str]:
        """The output keys."""
        return self.node.outputs

    def store(self, result: Any, values: dict[str, Any]) -> None:
        """Put what the task returned into the rows of the output keys, at this path.

        Raises ``OutputShapeError`` if it cannot be split into them.
        """
        self._elements.store(self, result)

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the task's call."""
        return self.node.arguments(values)

    @property
    def join(self) -> Join:
        """When the element may start, by what it depends on itself."""
        return self.node.join

    @property
    def dependencies(self) -> list[str]:
        """The names of what the element depends on."""
        return self._elements.dependencies(self)

    @property
    def source_values(self) -> list[Any]:
        """The values of sources that the element takes. Other values make another element."""
        return self._elements.source_values(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_name}>"


class Unreached(Element):
    """The elements of a node within a path that leads to no list, because of how others ended."""

    __slots__ = ("outcome",)

    def __init__(self, node: DAGNode, path: Path, elements: Owner, outcome: int) -> None:
        super().__init__(node, path, elements)
        self.outcome = outcome


def place_of(failure: Failure) -> Path:
    """The place of a failed element in its lists. A node's own failure comes first."""
    if failure.index is None:
        return ()
    return failure.index if isinstance(failure.index, tuple) else (failure.index,)


def failure_within(failure: Failure, at: Path) -> Failure:
    """The same failure for those within a path: its index is counted from there."""
    rest = place_of(failure)[len(at) :]
    index = (rest[0] if len(rest) == 1 else rest) if rest else None
    return replace(failure, index=index)


class Gathering:
    """The end of a node's elements within a path. Nodes wait for it that take these together."""

    __slots__ = ("task_name",)

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
