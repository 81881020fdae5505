"""The values that elements take, and the values that they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from taskiq_flow.dataflow.axes import Path, element_name
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import COMPLETED, FAILED, Join
from taskiq_flow.elements.cells import ABSENT, Cells
from taskiq_flow.elements.element import Element, failure_within, place_of
from taskiq_flow.elements.group import Dropping, Group, Mapped, Taking
from taskiq_flow.elements.groups import Groups
from taskiq_flow.elements.lists import Lists
from taskiq_flow.events import Failure


class ElementValues:
    """The values of one run's elements, by the keys and paths at which they are taken.

    ``lists_at``: how many positions lead to the lists that the reader is given; ``None`` if it is
    given none.
    """

    def __init__(
        self, plan: ElementPlan, groups: Groups, lists: Lists, lists_at: int | None
    ) -> None:
        self._plan = plan
        self._mapped, self._cells, self._returned = groups.mapped, groups.cells, groups.returned
        self._lists = lists
        self._lists_at = lists_at
        for mapped in self._mapped.values():
            for taking in mapped.taking:
                taking.value_at = self._reader(taking, mapped.plan.node.join)
            if len(mapped.taking) == 1 and not mapped.plan.whole_keys:
                mapped.takes_row = mapped.taking[0].row

    def _reader(self, taking: Taking, join: Join) -> Callable[[Path], Any]:
        """What gives the values of a mapped key, by their places."""
        if taking.is_listed:
            return partial(self._lists.value, taking.axis)
        if taking.failures is not None:
            return partial(_failures, taking.failures)
        if taking.gathers is None:
            if taking.at == (0,):
                taking.row = self._cells[taking.key].root
            return self._cells[taking.key].get
        cells = taking.gathers.values[taking.key].get
        outcomes = taking.gathers.outcomes
        return cells if join == "ended" else partial(_if_completed, outcomes, cells)

    def inputs(self, element: Element, values: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of an element by key. A key without a value is left out."""
        mapped, path = self._mapped[element.node], element.path
        if (row := mapped.takes_row) is not None:
            value = row.get(path[0], ABSENT)
            return {} if value is ABSENT else {mapped.taking[0].key: value}
        found = {}
        for key in mapped.plan.whole_keys:
            if key in values:
                found[key] = values[key]
        for taking in mapped.taking:
            row = taking.row
            if row is not None:
                value = row.get(path[0], ABSENT)
            else:
                value = taking.value_at(taking.project(path))
            if value is not ABSENT:
                found[taking.key] = value
        return found

    def add_failure(self, element: Element, failure: Failure) -> None:
        """Record a failure of an element, or of all that a node has within a path."""
        node = self._plan.generators.get(element.node, element.node)
        for depth, cells in self._mapped[node].failures.items():
            at = element.path[:depth]
            if len(at) == depth:
                found = cells.get(at)
                cells.put(at, [failure] if found is ABSENT else [*found, failure])

    def store(self, element: Element, result: Any) -> None:
        """Put what an element gives into the rows of its keys. Raises ``OutputShapeError``."""
        node, path = element.node, element.path
        mapped = self._mapped[node]
        if mapped.row is not None:
            mapped.row[path[0]] = result
            return
        stored: dict[str, Any] = {}
        node.store(result, stored)
        lists = mapped.lists
        if lists:
            lists = [key for key in lists if key in stored]
        for key in lists:
            self._lists.check_value(key, stored[key], element)
        for key, value in stored.items():
            self._cells[key].put(path, value)
        for key in lists:
            self._lists.put(key, path, stored[key])
        if self._lists_at is not None and len(stored) > 1:
            self._returned[node].put(path, result)

    def mapped_value(self, element: Element, key: str) -> Any:
        """The value that an element takes of a key that its node maps over, or ``ABSENT``."""
        takings = self._mapped[element.node].taking
        taking = next(taking for taking in takings if taking.key == key)
        return taking.value_at(taking.project(element.path))

    def dependencies(self, element: Element) -> list[str]:
        """The names of what an element depends on."""
        mapped, path = self._mapped[element.node], element.path
        names = [other.task_name for other in mapped.plan.whole]
        for taken in mapped.plan.taken:
            if taken.producer is not None:
                at = tuple(path[i] for i in taken.at[: taken.own] if i < len(path))
                producer = self._mapped[taken.producer]
                at = () if producer.is_dead else producer.outcomes.place_of(at)
                names.append(element_name(taken.producer.task_name, at))
        return list(dict.fromkeys(names))

    def returned(self, node: DAGNode) -> Iterator[tuple[Path, Any]]:
        """The values that a node's tasks have returned, by path. Some are dropped already."""
        return self._returned[node].items_within((), len(self._mapped[node].plan.axes))

    def whole(self, node: DAGNode, within: Path, missing: Cells | None) -> list[Any]:
        """The values that a node's tasks have returned within a path, as lists.

        ``missing``: failures and skips, which stand in the places of values.
        """
        plan = self._mapped[node].plan
        cells = self._returned[node]
        if missing is not None:
            cells = cells.merged(missing, len(plan.axes))
        joins = node.flatten and node.output is not None
        return cells.lists(within, sizes_after(plan.sizes, len(within)), joins=joins)

    def lists(self, key: str, node: DAGNode) -> list[Any]:
        """The values of a mapped node's key, as lists. Values that were dropped are left out."""
        return self._cells[key].lists((), self._mapped[node].plan.sizes, joins=node.flatten)

    def forget(self) -> None:
        """Let go of all values. The run is over."""
        held = [*self._cells.values(), *self._returned.values()]
        for mapped in self._mapped.values():
            held += mapped.failures.values()
            for gathers in mapped.gathers.values():
                held += gathers.values.values()
        for cells in held:
            cells.root.clear()
        self._lists.forget()

    def source_values(self, element: Element) -> list[Any]:
        """The values of sources that an element takes."""
        mapped = self._mapped[element.node]
        return [
            self._lists.value(taking.axis, taking.project(element.path))
            for taking in mapped.taking
            if taking.is_listed and taking.key in self._lists.sources
        ]

    def drop(self, group: Group, path: Path, forget: Callable[[str], None]) -> None:
        """Drop the values at a position of a group that has ended, where nobody needs them later.

        ``forget``: called with the name of each element that has not completed.
        """
        for dropping in group.drops:
            if not dropping.is_shared or dropping.is_due(path, self._lists.lets_in):
                _drop(dropping, path, forget)
        for dropping in group.left:
            if self._is_left(dropping, path):
                _drop(dropping, path, forget)
        self._lists.drop(group, path)

    def drop_left(self, group: Group, prefix: Path, forget: Callable[[str], None]) -> None:
        """Drop what is at positions that a group never lets in, where others have done with it.

        It reads no list within ``prefix`` any more.
        """
        group.leaves_some = True
        for dropping in group.drops:
            for path in dropping.due(prefix, group.depth, self._lists.lets_in):
                _drop(dropping, path, forget)
        for items in group.items:
            for dropping in items.left:
                for cells in dropping.cells if group in dropping.groups else ():
                    for path, _ in [*cells.items_within(prefix, items.depth)]:
                        if len(path) == items.depth and self._is_left(dropping, path):
                            _drop(dropping, path, forget)
        self._lists.drop_left(group)

    def _is_left(self, dropping: Dropping, path: Path) -> bool:
        """Whether none of these groups lets in a position that has ended in another one."""
        for group in dropping.groups:
            if not group.leaves_some or self._lists.lets_in(group, path):
                return False
        return True


def _failures(cells: Cells, at: Path) -> list[Failure]:
    found = cells.get(at)
    failures = [] if found is ABSENT else sorted(found, key=place_of)
    return [failure_within(failure, at) for failure in failures]


def _if_completed(outcomes: Cells, values: Callable[[Path], Any], at: Path) -> Any:
    """What was gathered at a place, unless elements are missing there."""
    return values(at) if outcomes.around(at) == COMPLETED else ABSENT


def _drop(dropping: Dropping, path: Path, forget: Callable[[str], None]) -> None:
    if len(path) == 1:
        index = path[0]
        for cells in dropping.cells:
            cells.root.pop(index, None)
    else:
        for cells in dropping.cells:
            cells.drop(path)
    for mapped in dropping.nodes:
        if mapped.outcomes.root or mapped.gathers:
            _drop_outcomes(mapped, path, len(path), forget)


def _drop_outcomes(mapped: Mapped, path: Path, depth: int, forget: Callable[[str], None]) -> None:
    """Drop how the elements of a node within a path have ended, if it came to be there."""
    if mapped.outcomes.place_of(path) != path:
        return
    name = mapped.plan.node.task_name
    for inner, _ in mapped.outcomes.items_within(path, len(mapped.plan.axes)):
        forget(element_name(name, inner))
    mapped.outcomes.drop(path)
    for length, gathers in mapped.gathers.items():
        if length >= depth:
            for inner, outcome in gathers.outcomes.items_within(path, length):
                if outcome == FAILED:
                    forget(element_name(name, inner))
            gathers.outcomes.drop(path)


def sizes_after(sizes: Sequence[int], depth: int) -> Sequence[int]:
    """The sizes of the levels that begin after so many axes."""
    for number, size in enumerate(sizes):
        if depth < size:
            return (size - depth, *sizes[number + 1 :])
        depth -= size
    return ()
