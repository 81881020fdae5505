"""The items of generators, on their way into the rows that mapped nodes read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from taskiq_flow.dataflow.axes import Path
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.items import Opening
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import COMPLETED, ReadySet
from taskiq_flow.elements.awaited_lists import AwaitedLists
from taskiq_flow.elements.element import Element
from taskiq_flow.elements.ends import ElementEnds
from taskiq_flow.elements.group import Group
from taskiq_flow.elements.groups import Groups
from taskiq_flow.elements.growing import GrowingRows
from taskiq_flow.elements.lists import Lists
from taskiq_flow.elements.room import Room


class GeneratorItems:
    """Begins, extends and ends the rows of one run's generators.

    ``skip``: called with nodes that never run. ``unread``: returns how many elements the reader has
    still to read; ``None`` if it is given none. ``free``: returns how many more positions of a
    group could begin at once.
    """

    def __init__(
        self,
        plan: ElementPlan,
        groups: Groups,
        lists: Lists,
        ready: ReadySet[Any],
        room: Room,
        ends: ElementEnds,
        awaited: AwaitedLists,
        *,
        skip: Callable[[Sequence[Any]], None],
        unread: Callable[[], int] | None,
        free: Callable[[Group], float],
    ) -> None:
        self._ready = ready
        self._room = room
        self._ends = ends
        self._awaited = awaited
        self._skip = skip
        self._unread = unread
        self._free = free
        self._growing = {
            node: GrowingRows(node, plan, groups, lists.rows[items.given_key, 1])
            for node, items in plan.generators.items()
        }
        self._opening: dict[DAGNode, Opening] = {}  # by generator, where nodes wait for it
        self.to_let_in: dict[tuple[Group, Path], None] = {}
        """The rows with new items, with the groups whose elements these become at once."""

    def take(self, node: Any, items: Iterable[Any]) -> None:
        """Append items of a generator, or of an element of one. Its row begins with the first.

        The generator must not change an item any more.
        """
        self._room.lets_in_none = False
        growing, path = self._growing_row(node)
        is_new = path not in growing.rows
        row = growing.begun(path)
        for item in items:
            row.append(item)
        if growing.own is not None:
            self.to_let_in[growing.own, path] = None
        if is_new:
            self._begin_row(growing, path)
        if growing.is_zipped:  # another list has ended, perhaps, and this one goes on
            self._check_readers(growing, path)

    def lead(self, node: Any, in_flight: int) -> float:
        """How many items a generator may still make now, of so many that are in flight."""
        growing, path = self._growing_row(node)
        unread = None if self._unread is None else self._unread()
        lead = growing.lead(path, unread, self._free, in_flight)
        if unread and lead < growing.enough:
            self._room.waits_for_reader = True
        return lead

    def enough(self, node: Any) -> int:
        """How many further items a generator is allowed at a time, at least."""
        return self._growing_row(node)[0].enough

    def spare(self, node: Any) -> int:
        """How many items a generator may still make, at most, when it is allowed more."""
        return self._growing_row(node)[0].spare

    def wait_for_row(self, opening: Opening) -> None:
        """End ``opening`` when the row of its generator begins, which may have happened already."""
        node = opening.generator
        self._ready.suspend(opening)
        if () in self._growing[node].rows:
            self._settle(opening, COMPLETED)
        elif self._ready.has_ended(node):
            self._settle(opening, self._ready.outcome(node))
        else:
            self._opening[node] = opening

    def end_row(self, node: Any, outcome: int) -> None:
        """End the row of a generator. One that has failed before its first item has none."""
        self._room.lets_in_none = False
        growing, path = self._growing_row(node)
        if outcome == COMPLETED and path not in growing.rows:
            growing.begun(path)
            self._begin_row(growing, path)
        if path in growing.rows:
            growing.end(path, is_cut=outcome != COMPLETED)
            self._check_readers(growing, path)
        elif growing.node in self._opening:
            self._settle(self._opening.pop(growing.node), outcome)

    def ended(self, node: DAGNode) -> None:
        """Handle the end of a generator that runs once and has ended in the ready set."""
        self.end_row(node, self._ready.outcome(node))

    def _growing_row(self, node: Any) -> tuple[GrowingRows, Path]:
        if isinstance(node, Element):
            return self._growing[node.node], node.path
        return self._growing[node], ()

    def _begin_row(self, growing: GrowingRows, path: Path) -> None:
        self._awaited.unpark(growing.axis, path)
        if growing.node in self._opening:
            self._settle(self._opening.pop(growing.node), COMPLETED)

    def _check_readers(self, growing: GrowingRows, path: Path) -> None:
        """Check the groups that read a row, which has grown or ended."""
        if not path:
            self._ends.check_roots()
        for group, prefix in growing.readers_at(path):
            self._ends.check_cursor(group, prefix)

    def _settle(self, opening: Opening, outcome: int) -> None:
        self._skip(self._ready.end(opening, outcome))
