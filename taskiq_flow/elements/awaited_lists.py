"""Opens the lists that groups map over, as soon as they are there."""

from __future__ import annotations

from typing import Any

from taskiq_flow.dataflow.axes import Axis, Path
from taskiq_flow.dataflow.ready_set import COMPLETED
from taskiq_flow.dataflow.rows import Row, Zipped
from taskiq_flow.elements.cells import ABSENT
from taskiq_flow.elements.ends import ElementEnds
from taskiq_flow.elements.group import Cursor, Group, Within
from taskiq_flow.elements.groups import Groups
from taskiq_flow.elements.lists import Lists


class AwaitedLists:
    """Opens the lists of one run's groups, and knows which groups wait for one.

    ``lists_at``: how many positions lead to the lists that the reader is given; ``None`` if it is
    given none.
    """

    def __init__(
        self, groups: Groups, lists: Lists, ends: ElementEnds, lists_at: int | None
    ) -> None:
        self._groups = groups
        self._lists = lists
        self._ends = ends
        self._lists_at = lists_at
        self._parked: dict[tuple[Axis, Path], list[tuple[Group, Path]]] = {}  # by what is awaited

    def open_outermost(self, group: Group) -> None:
        """Open the outermost list of a group, if it is there."""
        row = self._lists.row_of(group, ())
        if row is not None:
            self._open(group, (), row)

    def reach(self, group: Group, prefix: Path) -> None:
        """Open the list of a group at a position that was let in, or wait until it is there."""
        if all(mapped.is_dead for mapped in group.tree):  # what leads to the list may be gone
            return
        worst = COMPLETED
        for axis, place in group.awaits.items():
            at = place(prefix)
            if self._lists.row(axis, at) is not None:
                continue
            outcome = self._outcome_at(axis, at)
            if outcome is None:
                group.parked.add(prefix)
                self._parked.setdefault((axis, at), []).append((group, prefix))
                return
            worst = min(worst, outcome)
        row = self._lists.row_of(group, prefix)
        if worst == COMPLETED and row is not None:
            self._open(group, prefix, row)
        else:
            self._ends.never_reach(group, prefix, worst)

    def unpark(self, axis: Axis, at: Path) -> None:
        """Try again where groups wait for a list. It is there now, or never will be."""
        parked = self._parked.pop((axis, at), ())
        for group, prefix in sorted(parked, key=lambda each: each[0].number):
            group.parked.discard(prefix)
            self.reach(group, prefix)

    def _outcome_at(self, axis: Axis, at: Path) -> int | None:
        """How the element ended that should have given a list. ``None`` if it may still."""
        opener = self._groups.openers.get(axis)
        outcome: Any = ABSENT if opener is None else opener.outcomes.around(at)
        return None if outcome is ABSENT else outcome

    def _open(self, group: Group, prefix: Path, row: Row | Zipped) -> None:
        cursor = group.cursors[prefix] = Cursor(prefix, row)
        if not prefix:
            group.root = cursor
        alive = [mapped for mapped in group.tree if not mapped.is_dead]
        for mapped in alive:
            mapped.within[prefix] = Within(row)
            for key in mapped.keys if prefix else ():
                self._groups.cells[key].open(prefix)
            if prefix and self._lists_at is not None:
                self._groups.returned[mapped.plan.node].open(prefix)
        if row.length == 0:
            self._ends.leave(group, cursor)
        for mapped in alive:
            self._ends.check(mapped, prefix)
