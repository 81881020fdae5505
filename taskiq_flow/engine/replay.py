"""Yields once more what earlier engines have completed, each value after what it was made of."""

from __future__ import annotations

from typing import Any

from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.elements.element import Element
from taskiq_flow.engine.result_stream import ResultStream
from taskiq_flow.engine.run_spec import RunSpec
from taskiq_flow.engine.run_state import as_whole


class Replay:
    """The order in which a run with mapped nodes yields what earlier engines have completed.

    Lists are gathered while the run goes on. A node that takes them is yielded after them.
    """

    def __init__(self, spec: RunSpec[Any], plan: ElementPlan, stream: ResultStream[Any]) -> None:
        self._spec = spec
        self._generators = plan.generators
        self._stream = stream
        self._waiting: dict[Any, tuple[Any, set[Any]]] = {}  # by node: what comes before it

    def add(self, node: Any, value: Any) -> None:
        """Yield the value of a node as soon as what it was made of has been yielded."""
        is_element = isinstance(node, Element) and len(node.path) != self._spec.lists_at
        if self._gives_items(node) or (is_element and not self._spec.items):
            return  # of a generator, the items are yielded, and their list
        waits_for: set[Any] = set()
        if not isinstance(node, Element):
            before: Any = self._spec.predecessors.get(node, ())
            waits_for = {
                other
                for other in before
                if other.map_over or other in self._waiting or self._gives_items(other)
            }
        if waits_for:
            self._waiting[node] = value, waits_for
        else:
            self._stream.unread.append((node, value))

    def was_yielded(self, node: Any) -> None:
        """A node's value was yielded, if it is at all: go on with those that come after it."""
        ready = []
        for later, (_, waits_for) in self._waiting.items():
            if node in waits_for:
                waits_for.remove(node)
                ready += [] if waits_for else [later]
        for later in ready:
            self._stream.deliver(later, self._waiting.pop(later)[0])
            self.was_yielded(later)

    def _gives_items(self, node: Any) -> bool:
        return as_whole(node) in self._generators
