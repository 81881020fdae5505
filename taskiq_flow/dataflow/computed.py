"""Nodes whose values the engine makes itself, of those of other nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.values.isolation import Take


class ComputedNode(DAGNode):
    """A node without a task: the engine calls its function, which must be quick and must not wait.

    Takes no options of tasks, such as retries. ``looks_into``: whether the function looks into the
    values, and not only passes them on; then they are passed by value.
    """

    is_computed = True

    __slots__ = ("looks_into",)

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        inputs: Iterable[str] = (),
        output: str | None = None,
        given: Mapping[str, Any] | None = None,
        looks_into: bool = True,
    ) -> None:
        super().__init__(function, output, inputs, name=name, given=given)
        self.has_policy = True
        self.looks_into = looks_into

    def computing(self, take: Take) -> Callable[[Mapping[str, Any]], Any]:
        """A function of the input values. ``take``: makes of a value what the function is given."""
        return partial(self._compute, take)

    def _compute(self, take: Take, values: Mapping[str, Any]) -> Any:
        keys = self.binding.keys
        args, kwargs = self.arguments({key: take(values[key]) for key in keys if key in values})
        return self.task(*args, **kwargs)


def as_list(*values: Any) -> list[Any]:
    """The values of several nodes as the list of one."""
    return list(values)


def chunks(items: Any, size: int) -> list[list[Any]]:
    """A list cut into lists of ``size`` elements; the last one may be shorter."""
    elements = list(items)
    return [elements[start : start + size] for start in range(0, len(elements), size)]


def with_first(items: Any, first: Any) -> list[Any]:
    """A list with one more element, which stands before the others."""
    return [first, *items]
