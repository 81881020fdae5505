"""What earlier engines have reached of a run's elements, held against the elements of now."""

from __future__ import annotations

from typing import Any

from taskiq_flow.dataflow.axes import Path, element_name, parted
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.outer_groups import outer_groups
from taskiq_flow.elements.element import Element
from taskiq_flow.engine.run_spec import RunSpec
from taskiq_flow.engine.run_state import as_declared
from taskiq_flow.errors import GraphChangedError
from taskiq_flow.values.digest import digest_of


class EarlierElements:
    """Says which elements are new, and whether those that are not are still the same.

    A run is resumed with the same items in the same order. What differs is a ``GraphChangedError``.
    """

    def __init__(self, spec: RunSpec, plan: ElementPlan, run_id: str) -> None:
        self._spec = spec
        self._earlier = spec.earlier
        self._plan = plan
        self._run_id = run_id
        groups = outer_groups(plan) if spec.earlier.finished else []
        self._outer = {node: group.name for group in groups for node in group.all_nodes}
        self._new: dict[Path, set[DAGNode]] = {}  # by which of many inputs they are of
        self._sent: dict[str, int] = {}  # by node: the last item of a source
        for node, path in map(parted, spec.earlier.digests):
            for depth, index in enumerate(path):
                name = element_name(node, path[:depth])
                self._sent[name] = max(index, self._sent.get(name, -1))

    # Elements that are new

    def add_new(self, element: Element) -> None:
        """No earlier engine has completed an element."""
        if not self._earlier.is_replayed:  # else its list is given anyway
            place = element.path[: self._spec.lists_at or 0]
            self._new.setdefault(place, set()).add(element.node)

    def position_ended(self, path: Path) -> None:
        """One of many runs has ended: forget its elements."""
        self._new.pop(path, None)

    def is_list_new(self, node: DAGNode, place: Path) -> bool:
        """Whether a list was not whole before, or the reader asks for all lists once more."""
        earlier, mapped = self._earlier, self._plan.mapped
        if earlier.is_replayed or not earlier.results:
            return True
        new = self._new.get(place, ())
        before = map(as_declared, mapped[node].producers)  # an empty list is as new as what gave it
        return node in new or any(
            other in new if other in mapped else other.task_name not in earlier.results
            for other in before
        )

    def has_ended(self, element: Element) -> bool:
        """Whether an element has completed before, or was skipped by a condition."""
        return element.task_name in self._earlier.results or self.was_skipped(element)

    def was_skipped(self, element: Element) -> bool:
        """Whether an element that has not completed was skipped before, as all there has ended."""
        finished = self._earlier.finished
        if not finished or element.task_name in self._earlier.results:
            return False
        name = self._outer.get(element.node.task_name)
        return name is not None and element.path[0] in finished.get(name, ())

    def has_item(self, element: Element) -> bool:
        """Whether the journal has an item, or the whole list of its generator."""
        results = self._earlier.results
        if not results:
            return False
        whole = element_name(element.node.task_name, element.path[:-1])
        return not results.keys().isdisjoint((whole, element.task_name))

    # Whether the elements are the same

    def digest(self, element: Element) -> bytes:
        """Of what an element was given of a source before; empty if of nothing."""
        digests = self._earlier.digests
        return digests.get(element.task_name, b"") if digests else b""

    def change(self, element: Element, before: bytes) -> GraphChangedError | None:
        """The error of an element that there was not before, or not with these items."""
        if (error := self._changed_item(element, before)) is not None:
            return error
        return None if element.node.given_key is not None else self._added_item(element)

    def _changed_item(self, element: Element, before: bytes) -> GraphChangedError | None:
        """The error of an element that was given another item of a source before."""
        if not before or not (now := source_digest(element)) or now == before:
            return None
        node = element.node.task_name
        return GraphChangedError(
            f"item {element.path[0]} of node {node!r} is not the one with which run "
            f"{self._run_id!r} was begun; resume it with the same items in the same order, or "
            "begin another",
            changed=[element.task_name],
        )

    def _added_item(self, element: Element) -> GraphChangedError | None:
        """The error of an element that lies behind the end of a list as it was before."""
        node, lengths = element.node, self._earlier.lengths
        for depth, index in enumerate(element.path if lengths else ()):
            name = element_name(node.task_name, element.path[:depth])
            count = lengths.get(name)
            if count is not None and index >= count and (depth or self._was_taken_whole(node)):
                return self._other_length(name, "more items than", count)
        return None

    def _was_taken_whole(self, node: DAGNode) -> bool:
        """Whether another node has completed with the list of a mapped one as it was then."""
        results = self._earlier.results
        return any(other.task_name in results for other in self._spec.successors.get(node, ()))

    def missing_items(self, name: str, count: int) -> GraphChangedError | None:
        """The error of a list of a source, now of ``count`` items, that had more before."""
        sent = max(self._sent.get(name, -1) + 1, self._earlier.lengths.get(name, 0))
        return self._other_length(name, "fewer items than", sent) if count < sent else None

    def _other_length(self, name: str, how: str, count: int) -> GraphChangedError:
        return GraphChangedError(
            f"node {name!r} maps over {how} the {count} with which run {self._run_id!r} was begun; "
            "resume it with the same items in the same order, or begin another",
            changed=[name],
        )


def source_digest(node: Any) -> bytes:
    """What tells an element from one that was made of another value of a source.

    Empty for nodes that are given nothing of a source, and for values that have no digest.
    """
    values = node.source_values if isinstance(node, Element) else []
    return digest_of(values) if values else b""
