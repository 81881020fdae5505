"""Ends lists, gatherings and mapped nodes when the last of their elements has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from taskiq_flow.dataflow.axes import Path, element_name
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import COMPLETED, FAILED, SKIPPED, ReadySet
from taskiq_flow.dataflow.rows import Zipped
from taskiq_flow.elements.element import Element, Unreached
from taskiq_flow.elements.end_order import EndOrder
from taskiq_flow.elements.group import Cursor, Gathers, Group, Mapped
from taskiq_flow.elements.groups import Groups
from taskiq_flow.elements.lists import Lists
from taskiq_flow.elements.values import ElementValues, sizes_after
from taskiq_flow.errors import OutputShapeError


class EndsListener(Protocol):
    """Is told what has ended of a run's elements."""

    def skip(self, elements: Sequence[Any]) -> None:
        """These elements will never run, because a dependency failed or was skipped."""

    def known(self, node: DAGNode, within: Path, count: int) -> None:
        """A node has ``count`` elements, or lists of elements, within a path."""

    def gathered(self, node: DAGNode, *, is_whole: bool, is_cut: bool) -> None:
        """All elements of a node have ended. ``is_whole``: none is missing because of a failure.

        ``is_cut``: further ones are, as a generator has failed whose items it maps over.
        """

    def never(self, node: DAGNode, outcome: int) -> None:
        """A node ends without elements, as its outermost lists have ended so."""

    def gathered_within(self, name: str) -> None:
        """Elements within a path have ended, and some of them have failed."""

    def listed(self, element: Element, *, is_whole: bool) -> None:
        """All elements within a path have ended, of which the reader is given the list."""

    def cut(self, element: Unreached) -> None:
        """All elements within a path have ended. Others are missing, as a generator has failed."""

    def position_ended(
        self, name: str, path: Path, skipped: Sequence[str], *, has_failures: bool
    ) -> None:
        """All that is at a position of an outermost list has ended.

        ``name``: of the first node there; ``skipped``: of those that a condition has skipped.
        """

    def forget(self, name: str) -> None:
        """Forget why an element has not completed: no node will ask for it any more."""

    def uneven(self, node: DAGNode, error: OutputShapeError) -> None:
        """The outermost lists that a node takes together differ in length."""

    def uneven_ahead(self, node: Any, error: OutputShapeError) -> None:
        """Lists that a node takes together differ in length. Its own list ends behind others."""

    def uneven_within(self, element: Element, error: OutputShapeError) -> None:
        """The lists that a node takes together within a path differ in length."""


class ElementEnds:
    """Counts the elements of one run that have ended, and ends what waits for all of them.

    ``lists_at``: how many positions lead to the lists that the reader is given; ``None`` if it is
    given none. ``tells_positions``: whether the listener is told of each position that has ended.
    """

    def __init__(
        self,
        plan: ElementPlan,
        groups: Groups,
        lists: Lists,
        values: ElementValues,
        ready: ReadySet[Any],
        listener: EndsListener,
        lists_at: int | None,
        *,
        tells_positions: bool,
    ) -> None:
        self._tells_positions = tells_positions
        self._plan = plan
        self._mapped, self._cells = groups.mapped, groups.cells
        self._roots = groups.roots
        self._lists = lists
        self._values = values
        self._ready = ready
        self._listener = listener
        self._lists_at = lists_at
        self.order = EndOrder(groups, ready, lists_at or 0, self._go_on)
        self._without: dict[tuple[Mapped, Path], int] = {}  # lists that will never be there
        self.gathered = 0
        """Mapped nodes whose elements have all ended."""
        self.is_stopped = False
        """Whether nothing more is to be read, let in or gathered."""

    def end(self, mapped: Mapped, path: Path, *, has_failures: bool = False) -> bool:
        """All that a node has at a path has ended. Count it in the list around it.

        Returns whether the position has ended with it, or perhaps the list.
        """
        prefix, is_last = path[:-1], False
        holder, around = mapped.holders[len(prefix)], mapped.within.get(prefix)
        if has_failures:
            if holder is not None and not prefix and self._tells_positions:
                holder.failed.add(path)
            if around is not None:
                around.has_failures = True
        if holder is not None:  # before the positions around it end, with which all of it goes
            alive = holder.alive[path]
            alive.discard(mapped)
            if not alive:
                is_last = True
                self._release(holder, path)
        if around is not None:
            around.ended += 1
            if around.ended >= around.row.known:  # else others are left, also if it has an end
                is_last = True
                self.check(mapped, prefix)
        if mapped.lists_behind and not prefix:
            is_last = True
            self.order.ended(mapped.plan.node, path)
        return is_last

    def check(self, mapped: Mapped, path: Path) -> None:
        """End the list of a node's elements within a path if all of them have ended."""
        within = mapped.within.get(path)
        length = None if within is None else within.row.length
        if within is None or length is None or (not path and not mapped.is_open):
            return
        plan = mapped.plan
        if not within.is_known:
            within.is_known = True
            self._listener.known(plan.node, path, length)
        if within.ended < length or self.is_stopped:
            return
        row, is_cut = within.row, within.row.is_cut
        differing = row if isinstance(row, Zipped) and not (is_cut or row.is_even) else None
        if len(path) == self.order.depth and self.order.has_to_wait(mapped, path):
            if differing is not None:
                self._tell_uneven_ahead(mapped, path, differing)
            return
        if differing is not None:
            fixed_at = path[: mapped.ancestors[len(path)].fixed_by]
            mapped.within[fixed_at].uneven = differing
        del mapped.within[path]
        uneven = within.uneven
        # It fails further out where that fixes the lists, and yet what takes this part is skipped.
        is_uneven = differing is not None or uneven is not None
        has_failures = within.has_failures or is_cut or is_uneven
        if path:
            outcome = FAILED if has_failures else COMPLETED
            self.end_within(mapped, path, outcome, is_cut=is_cut, uneven=uneven)
            return
        self.gathered += 1
        if uneven is not None:
            self._listener.uneven(plan.node, self._uneven_error(plan.node, uneven))
        self._listener.gathered(plan.node, is_whole=not has_failures, is_cut=is_cut)
        self.order.ended(plan.node)

    def _tell_uneven_ahead(self, mapped: Mapped, path: Path, row: Zipped) -> None:
        node: Any = mapped.plan.node
        if path:
            node = Element(node, path, self._values)
        self._listener.uneven_ahead(node, self._uneven_error(node, row))

    def check_roots(self) -> None:
        """Check all groups of outermost lists, one of which may have ended."""
        for group in self._roots:
            if group.root is not None:
                self.check_cursor(group, ())

    def check_cursor(self, group: Group, prefix: Path) -> None:
        """Check a list that a group reads. It may have ended."""
        cursor = group.cursors.get(prefix)
        if cursor is not None and cursor.next == cursor.row.length:
            self.leave(group, cursor)
        for mapped in group.tree:
            self.check(mapped, prefix)

    def leave(self, group: Group, cursor: Cursor) -> None:
        """Close a cursor whose positions are all let in. A list zipped with others may go on."""
        del group.cursors[cursor.prefix]
        if isinstance(cursor.row, Zipped):
            for _, row in cursor.row.rows:
                row.left_by[group.number] = cursor.next
            if not cursor.row.is_even:
                self._drop_left(group, cursor.prefix)
        else:
            cursor.row.left_by[group.number] = cursor.next

    def never(self, mapped: Mapped, outcome: int) -> None:
        """A node will have no elements, as its outermost lists have ended so."""
        mapped.is_dead = True
        self._end_without(mapped, (), outcome)
        for group in mapped.holders:
            if group is not None:
                group.held.remove(mapped)
                for path, alive in list(group.alive.items()):
                    alive.discard(mapped)
                    if not alive:
                        self._release(group, path)
                if not group.held:
                    self._drop_left(group, ())

    def never_reach(self, group: Group, prefix: Path, outcome: int) -> None:
        """There will be no list at a position: each node within ends there, once."""
        for axis, place in group.places.items():
            if (row := self._lists.row(axis, place(prefix))) is not None:
                row.left_by[group.number] = 0
        for mapped in group.tree:
            if mapped.is_dead:
                continue
            mapped.outcomes.put(prefix, outcome)
            self._end_without(mapped, prefix, outcome)
        self._drop_left(group, prefix)

    def _end_without(self, mapped: Mapped, at: Path, outcome: int) -> None:
        """A node will have no list at a place: end what it has there, once, when it may end."""
        if self.order.has_to_wait(mapped, at):
            self._without[mapped, at] = outcome
            return
        within = [each for depth, each in mapped.gathers.items() if depth > len(at) or not at]
        if at:
            for gathers in within:
                gathers.outcomes.put(at, outcome)
            self._listener.skip([Unreached(mapped.plan.node, at, self._values, outcome)])
        else:
            self._listener.never(mapped.plan.node, outcome)
        for gathers in within:
            for path in [path for path in gathers.pending if path[: len(at)] == at]:
                self._end_gathering(gathers, path, outcome)

    def _go_on(self, mapped: Mapped, at: Path) -> None:
        """All has ended behind which a node's list at a place ends."""
        outcome = self._without.pop((mapped, at), None)
        if outcome is None:
            self.check(mapped, at)
        else:
            self._end_without(mapped, at, outcome)

    def end_within(
        self,
        mapped: Mapped,
        path: Path,
        outcome: int,
        *,
        is_reached: bool = True,
        is_cut: bool = False,
        uneven: Zipped | None = None,
    ) -> None:
        """All elements within a path have ended, or there will be none."""
        if uneven is not None:
            element = Element(mapped.plan.node, path, self._values)
            self._listener.uneven_within(element, self._uneven_error(element, uneven))
        if is_reached and is_cut and uneven is None:
            self._listener.cut(Unreached(mapped.plan.node, path, self._values, FAILED))
        if is_reached and uneven is None and len(path) == self._lists_at:
            element = Element(mapped.plan.node, path, self._values)
            self._listener.listed(element, is_whole=outcome != FAILED)
        if (gathers := mapped.gathers.get(len(path))) is not None:
            if is_reached:
                joins, sizes = mapped.plan.node.flatten, sizes_after(mapped.plan.sizes, len(path))
                for key, cells in gathers.values.items():
                    cells.put(path, self._cells[key].lists(path, sizes, joins=joins))
            if outcome == FAILED:
                self._listener.gathered_within(element_name(mapped.plan.node.task_name, path))
            self._settle(gathers, path, outcome)
        self.end(mapped, path, has_failures=outcome == FAILED)

    def _settle(self, gathers: Gathers, path: Path, outcome: int) -> None:
        gathers.outcomes.put(path, outcome)
        self._end_gathering(gathers, path, outcome)

    def _end_gathering(self, gathers: Gathers, path: Path, outcome: int) -> None:
        gathering = gathers.pending.pop(path, None)
        if gathering is not None:
            never_run = self._ready.end(gathering, outcome)
            self._ready.forget(gathering)
            self._listener.skip(never_run)

    def _release(self, group: Group, path: Path) -> None:
        """Drop what is at a position of which everything has ended."""
        del group.alive[path]
        if self._tells_positions and group.depth == 1 and group.members:
            self._tell_position(group, path)
        self._values.drop(group, path, self._listener.forget)

    def _drop_left(self, group: Group, prefix: Path) -> None:
        """Drop what a group never takes of lists within a path, as it reads these no further."""
        self._values.drop_left(group, prefix, self._listener.forget)

    def _tell_position(self, group: Group, path: Path) -> None:
        first = group.members[0].plan.node.task_name
        skipped = [
            mapped.plan.node.task_name
            for mapped in group.members
            if mapped.outcomes.root and mapped.outcomes.get(path) == SKIPPED
        ]
        has_failures = path in group.failed
        group.failed.discard(path)
        self._listener.position_ended(first, path, skipped, has_failures=has_failures)

    def _uneven_error(self, node: DAGNode | Element, uneven: Zipped) -> OutputShapeError:
        outputs = {i.given_key: i.outputs[0] for i in self._plan.generators.values()}
        listed = ", ".join(
            f"{outputs.get(key, key)!r} has {'more' if row.length is None else row.length}"
            for key, row in sorted(uneven.rows, key=lambda each: each[0])
        )
        return OutputShapeError(
            f"node {node.task_name!r} maps over lists together that differ in length: "
            f"{listed}; give them the same length",
            task_name=node.task_name,
        )
