"""Yields once more what earlier engines have completed, each value after what it was made of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.elements.element import Element
from taskiq_flow.engine.result_stream import ResultStream
from taskiq_flow.engine.run_spec import RunSpec
from taskiq_flow.engine.run_state import as_declared, as_whole


class Replay:
    """The order in which a run yields what earlier engines have completed.

    Some nodes are late: their results are restored when they would start, and are yielded after
    all that they depend on. These nodes take lists, which are gathered while the run goes on, or
    may run without a dependency, which is told as skipped once more, or depend on a late node.
    All other results are yielded as soon as they are restored.
    """

    def __init__(self, spec: RunSpec, stream: ResultStream) -> None:
        self._spec = spec
        self._generators = {} if spec.elements is None else spec.elements.generators
        self._stream = stream
        earlier = spec.earlier
        self._late = _late(spec) if earlier.results or earlier.finished else set()

    def is_late(self, node: Any) -> bool:
        """Whether a node, or an element, is restored when it would start."""
        declared, earlier = as_declared(as_whole(node)), self._spec.earlier
        is_told = earlier.is_replayed or declared.filtered is not None  # as a skip
        if node.task_name in earlier.results and not is_told:
            return False
        return declared in self._late

    def add(self, node: Any, value: Any) -> None:
        """Yield the value of a node or an element that was restored, if the reader asks for it."""
        is_element = isinstance(node, Element) and len(node.path) != self._spec.lists_at
        if as_whole(node) in self._generators or (is_element and not self._spec.items):
            return  # of a generator, the items are yielded, and their list
        if self.is_late(node):
            self._stream.deliver(node, value)
        else:
            self._stream.unread.append((node, value))


def _late(spec: RunSpec) -> set[Any]:
    """The nodes that are restored when they would start."""
    plan, found = spec.elements, set[Any]()
    for node in spec.nodes:
        before: set[Any] = {*spec.predecessors.get(node, ())}
        goes_without = bool(before) and node.join != "all"
        if goes_without or before & found or (plan is not None and _lists(node, before, plan)):
            found.add(node)
    return found


def _lists(node: DAGNode, before: Collection[DAGNode], plan: ElementPlan) -> set[DAGNode]:
    """The nodes of which a node takes lists that are gathered."""
    lists = {other for other in before if other in plan.mapped or other in plan.generators}
    mapped = plan.mapped.get(node)
    if mapped is None:
        return lists
    listed = {t.producer for t in mapped.taken if t.is_failures or len(t.at) < t.own}
    return lists - {as_declared(n) for n in mapped.producers.keys() - listed - {*mapped.whole}}
