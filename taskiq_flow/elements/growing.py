"""The rows of items that a generator gives, while they grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from taskiq_flow.dataflow.axes import Axis, Path, parts_of
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.rows import Row
from taskiq_flow.elements.group import Group
from taskiq_flow.elements.groups import Groups


class GrowingRows:
    """The rows of one generator: one for each of its elements, or one for a node that runs once.

    ``axis``: of the items. ``rows``: by path, those that have begun. ``is_zipped``: whether items
    are taken together with elements of other lists. ``own``: the group whose positions are items,
    and which has no other nodes.
    """

    def __init__(
        self, node: DAGNode, plan: ElementPlan, layout: Groups, rows: dict[Path, Row]
    ) -> None:
        self.node = node
        self.axis: Axis = (plan.generators[node].given_key, 1)
        mapped = layout.mapped.get(node)
        self._most_open = 1 if mapped is None or mapped.gate is None else mapped.gate.limit
        self.rows = rows
        readers = {n for n, g in enumerate(layout.groups) if self.axis in g.places}
        self.is_zipped = any(len(layout.groups[number].places) > 1 for number in readers)
        self._readers = [layout.groups[number] for number in sorted(readers)]
        self._takers = [group for group in self._readers if group.is_taken]
        self.own = next((group for group in self._readers if not group.is_taken), None)
        # One that waits for what cannot go on while this generator waits says nothing about room:
        # it would wait for itself. Nor does one around which another waits so, as it has no
        # positions then.
        held_up = self._held_up(plan, layout)
        self._bounding = [
            group
            for group in self._takers
            if self.axis in group.straight
            and not any(plan.groups[each.number].waits_for & held_up for each in group.with_outer())
        ]

    def _held_up(self, plan: ElementPlan, layout: Groups) -> set[int]:
        """The groups that may have to wait while an element of the generator waits for room.

        These are the groups that read its items, and those that read a list that it maps over
        itself: of elements that wait only so many are open, and a list is read only as far as all
        of its readers have room.
        """
        mapped = plan.mapped.get(self.node)
        lists = {part for axis in (mapped.axes if mapped else ()) for part in parts_of(axis)}
        lists.add(self.axis)
        found: set[int] = set()
        while True:
            more = {n for n, g in enumerate(layout.groups) if lists & {*parts_of(g.axis)}}
            if more == found:
                return found
            found = more
            lists.update(part for n in found for part in parts_of(layout.groups[n].axis))

    def begun(self, path: Path) -> Row:
        """The row at a path, which begins now if it has not."""
        row = self.rows.get(path)
        if row is None:
            row = self.rows[path] = Row()
        return row

    def end(self, path: Path, *, is_cut: bool) -> None:
        """A row has all of its items. ``is_cut``: because its generator has failed."""
        row = self.begun(path)
        row.is_ended, row.is_cut = True, is_cut

    def readers_at(self, path: Path) -> Iterator[tuple[Group, Path]]:
        """The groups that read a row within other lists, each with where it does."""
        for group in self._readers:
            for prefix in self._prefixes(group, path) if group.depth > 1 else ():
                yield group, prefix

    @property
    def enough(self) -> int:
        """How many more items a generator is told of at least, so that it is not told of each."""
        return max(1, self.node.window // 2)

    @property
    def spare(self) -> int:
        """How many items it may still make, at most, when it is told of as many."""
        return self.node.window - self.enough

    def lead(
        self, path: Path, unread: int | None, free: Callable[[Group], float], in_flight: int
    ) -> float:
        """How many more items may be made now.

        ``unread``: how many elements the reader has still to read; ``None`` if it is given none.
        ``free``: how many more positions of a group could begin at once. Items for these are
        awaited, and are no lead. The generators ``in_flight`` share them.
        """
        row = self.rows.get(path)
        least = math.inf
        if self._takers:
            sharing = max(self._most_open, in_flight)
            least = min(
                (
                    self._let_in(group, path)
                    + (free(group) // sharing if len(group.places) == 1 else 0)
                    for group in self._bounding
                ),
                default=math.inf,
            )
        elif unread is not None:
            least = self._let_in(self._readers[0], path) - unread
        return least + self.node.window - (0 if row is None else row.known)

    def _let_in(self, group: Group, path: Path) -> float:
        """How many items of a row a group has let in: any number, if it reads it no further."""
        row = self.rows.get(path)
        if row is not None and group.number in row.left_by:
            return math.inf
        cursor = group.root if group.depth == 1 else group.cursors.get(path)
        if cursor is not None:
            return cursor.next
        return math.inf if group.never_reads(path) else 0

    def _prefixes(self, group: Group, path: Path) -> list[Path]:
        if self.axis in group.straight:
            return [path] if path in group.cursors else []
        place = group.places[self.axis]
        return [prefix for prefix in group.cursors if place(prefix) == path]
