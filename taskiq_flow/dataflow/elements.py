"""Only this file decides which elements of mapped nodes exist. The ready set says when they start.

It has no clock and no broker. It lets positions in when nothing else may start, as far as there is
room, and forgets them when all of their elements have ended.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from taskiq_flow.dataflow.axes import Axis, Path, element_name, lists_of
from taskiq_flow.dataflow.cells import ABSENT
from taskiq_flow.dataflow.element import Element, Gathering, Unreached
from taskiq_flow.dataflow.element_ends import ElementEnds, Listener
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.element_values import ElementValues
from taskiq_flow.dataflow.groups import Cursor, Gathers, Group, Groups, Mapped, Within
from taskiq_flow.dataflow.growing import GrowingRows
from taskiq_flow.dataflow.items import Opening
from taskiq_flow.dataflow.lists import Lists
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import COMPLETED, FAILED, ReadySet
from taskiq_flow.dataflow.room import Reader, Room
from taskiq_flow.dataflow.rows import Row, Source, Zipped
from taskiq_flow.values.isolation import Take

LET_IN_AT_ONCE = 64
"""``pop`` returns after it has let in so many positions of which no node may start yet. It is
called again when others have had their turn."""


class Caller(Listener, Reader, Protocol):
    """The run, as the elements need it."""

    def restored(self, element: Element) -> int | None:
        """Store an element that an earlier engine has completed. ``None`` if none has."""

    def passed_over(self, element: Element) -> None:
        """An element of a position that is passed over."""

    def source_failed(self, error: BaseException) -> None:
        """A source that is mapped over has raised an error."""

    def look_again(self) -> None:
        """Call ``pop`` again soon. With nothing unfinished, the run ends then."""


class Elements:
    """The elements of one run's mapped nodes, as nodes of a ready set.

    A mapped node itself is a node of the ready set that no task is sent for: it starts when the
    outermost lists that it maps over are there, and ends when all of its elements have ended.

    ``sources``: by key, the inputs of the run that are read while it goes on. ``take``: makes of
    such a value one that its source does not change any more. ``limit``: how many nodes may run at
    once. ``lists_at``: how many positions lead to the lists that the reader is given; ``None`` if
    it is given none. ``items``: whether the reader is given elements. ``is_resumed``: whether
    earlier engines may have completed elements. ``tells_positions``: whether the run is told of
    each position of an outermost list that has ended. ``passed_over``: by the first node there, the
    positions of these at which nothing is left to do.
    """

    def __init__(
        self,
        plan: ElementPlan,
        ready: ReadySet[Any],
        caller: Caller,
        *,
        priority: Mapping[DAGNode, float],
        producers: Collection[str],
        sources: Mapping[str, Source],
        take: Take,
        limit: int | None,
        lists_at: int | None,
        items: bool,
        is_resumed: bool,
        tells_positions: bool,
        passed_over: Mapping[str, Collection[int]],
    ) -> None:
        self._are_items_read = items
        self._is_resumed = is_resumed
        self._ready = ready
        self._caller = caller
        self._lists_at = lists_at
        self._limit = math.inf if limit is None else limit
        groups = self._layout = Groups(
            plan,
            priority=priority,
            producers=producers,
            sources=sources,
            limit=self._limit,
            lists_at=lists_at,
        )
        self._mapped, self._groups = groups.mapped, groups.groups
        for group in groups.roots if passed_over else ():
            if group.members:
                name = group.members[0].plan.node.task_name
                group.passed_over = passed_over.get(name, ())
        self.lists = Lists(plan, groups.axes, sources, take)
        self._read_by = [sources.keys() & lists_of(group.axis) for group in self._groups]
        self.values = ElementValues(plan, groups, self.lists, lists_at)
        self.room = Room(plan, groups, self.lists, ready, caller)
        self.ends = ElementEnds(
            plan,
            groups,
            self.lists,
            self.values,
            ready,
            caller,
            lists_at,
            tells_positions=tells_positions,
        )
        # The last group comes first; while no more may run, only those whose elements have no task.
        self._in_turn = self._groups[::-1]
        self._passed_on = [group for group in self._in_turn if not group.is_taken]
        self._with_tails = [g for g in self._groups if g.members] if limit is not None else []
        self._zips = any(planned.zips for planned in plan.mapped.values())
        self._growing = {
            node: GrowingRows(node, plan, groups, self.lists.rows[items.given_key, 1])
            for node, items in plan.generators.items()
        }
        self._opening: dict[DAGNode, Opening] = {}  # by generator, where nodes wait for it
        self._parked: dict[tuple[Axis, Path], list[tuple[Group, Path]]] = {}  # by what is awaited

    # Items of generators

    def take_items(self, node: Any, items: Iterable[Any]) -> None:
        """Append items of a generator, or of an element of one. Its row begins with the first.

        The generator must not change an item any more.
        """
        growing, path = self._growing_row(node)
        is_new = path not in growing.rows
        row = growing.begun(path)
        for item in items:
            row.append(item)
        if is_new:
            self._begin_row(growing, path)
        if growing.is_zipped:  # another list has ended, perhaps, and this one goes on
            self._check_readers(growing, path)

    def _check_readers(self, growing: GrowingRows, path: Path) -> None:
        """Check the groups that read a row, which has grown or ended."""
        if not path:
            self.ends.check_roots()
        for group, prefix in growing.readers_at(path):
            self.ends.check_cursor(group, prefix)

    def lead(self, node: Any) -> float:
        """How many items a generator may still make now."""
        growing, path = self._growing_row(node)
        unread = self._caller.unread() if self._are_items_read else None
        lead = growing.lead(path, unread)
        if unread and lead < growing.enough:
            self.room.waits_for_reader = True
        return lead

    def enough(self, node: Any) -> int:
        """How many further items a generator is allowed at a time, at least."""
        return self._growing_row(node)[0].enough

    def drop_item(self, generator: DAGNode, path: Path) -> None:
        """Drop an item from its row. It has become an element."""
        self._growing[generator].begun(path[:-1]).drop(path[-1])

    def _growing_row(self, node: Any) -> tuple[GrowingRows, Path]:
        if isinstance(node, Element):
            return self._growing[node.node], node.path
        return self._growing[node], ()

    def _begin_row(self, growing: GrowingRows, path: Path) -> None:
        self._unpark(growing.axis, path)
        if growing.node in self._opening:
            self._settle_opening(self._opening.pop(growing.node), COMPLETED)

    def _end_row(self, node: Any, outcome: int) -> None:
        """End the row of a generator. One that has failed before its first item has none."""
        growing, path = self._growing_row(node)
        if outcome == COMPLETED and path not in growing.rows:
            growing.begun(path)
            self._begin_row(growing, path)
        if path in growing.rows:
            growing.end(path, is_cut=outcome != COMPLETED)
            self._check_readers(growing, path)
        elif growing.node in self._opening:
            self._settle_opening(self._opening.pop(growing.node), outcome)

    def _wait_for_row(self, opening: Opening) -> None:
        """End ``opening`` when the row of its generator begins, which may have happened already."""
        node = opening.generator
        self._ready.suspend(opening)
        if () in self._growing[node].rows:
            self._settle_opening(opening, COMPLETED)
        elif self._ready.has_ended(node):
            self._settle_opening(opening, self._ready.outcome(node))
        else:
            self._opening[node] = opening

    def _settle_opening(self, opening: Opening, outcome: int) -> None:
        self._caller.skip(self._ready.end(opening, outcome))

    # Async sources

    def append(self, key: str, value: Any) -> None:
        """Append a value that an async source has given."""
        self.lists.source(key).append(value)
        self._check_value(key, value)
        if self._zips:  # another list has ended, perhaps, and this one goes on
            self.ends.check_roots()

    def end(self, key: str) -> None:
        """End the list of an async source."""
        self.lists.source(key).is_ended = True
        self.ends.check_roots()

    def _check_value(self, key: str, value: Any) -> None:
        if (error := self.lists.source_error(key, value)) is not None:
            self._caller.source_failed(error)

    def stop(self) -> None:
        """Read nothing more, and let no more elements in."""
        self.ends.is_stopped = True

    # Which node is next

    def pop(self) -> Any:
        """Start the next node or element. ``None`` if none may start now."""
        self.room.waits_for_reader = False
        ready, ends = self._ready, self.ends
        for _ in range(LET_IN_AT_ONCE):
            if ends.is_stopped:
                return None
            is_full = ready.is_full
            if self._with_tails and not is_full:
                self._let_in_the_last()
            node = ready.pop()
            if node is None:
                groups = self._passed_on if is_full else self._in_turn
                gathered = ends.gathered
                # A list that turns out to have ended lets nodes start that take it whole.
                if not (groups and self._let_in_one(groups)) and gathered == ends.gathered:
                    if not ready.unfinished:
                        self._caller.look_again()
                    return None
            elif node in self._mapped:
                self._ready.suspend(node)
                self._open(self._mapped[node])
            elif isinstance(node, Opening):
                self._wait_for_row(node)
            else:
                return node
        self._caller.look_again()
        return None

    def generator_ended(self, node: DAGNode) -> None:
        """Handle the end of a generator that runs once and has ended in the ready set."""
        self._end_row(node, self._ready.outcome(node))

    def ended(self, element: Element) -> None:
        """Handle the end of an element that has ended in the ready set."""
        mapped, path = self._mapped[element.node], element.path
        if isinstance(element, Unreached):
            self.ends.end_within(mapped, path, element.outcome, is_reached=False)
            return
        del mapped.pending[path]
        self._note_end(mapped, path, self._ready.forget(element))

    def _open(self, mapped: Mapped) -> None:
        """Open a node whose outermost lists are there."""
        mapped.is_open = True
        root = mapped.ancestors[0]
        if root.root is None and all(member.is_open for member in root.members):
            row = self.lists.row_of(root, ())
            if row is not None:
                self._open_cursor(root, (), row)
        for group in mapped.ancestors[1:]:
            for axis in group.places:
                self._unpark(axis, ())
        self.ends.check(mapped, ())

    def _let_in_the_last(self) -> None:
        """Let in the last positions of an axis before others go on, so that all end together.

        Without a limit there is nothing to choose between.
        """
        for group in self._with_tails:
            if not group.cursors or group.let_in < group.last_from:
                continue
            while self._are_the_last(group) and (cursor := self._next(group)) is not None:
                self._let_in(group, cursor)

    def _are_the_last(self, group: Group) -> bool:
        """Whether no more positions are left in all lists of an axis than may run at once."""
        if group.parked or not (group.parent is None or self._has_let_in_all(group.parent)):
            return False
        left = 0
        for cursor in group.cursors.values():
            length = cursor.row.length
            if length is None:
                return False
            left += length - cursor.next
            if left > self._limit:
                group.last_from = group.let_in + left - self._limit
                return False
        return True

    def _has_let_in_all(self, group: Group) -> bool:
        """Whether all positions of a group were let in, in all its lists."""
        if group.cursors or group.parked:
            return False
        if group.parent is None:
            return group.root is not None
        return self._has_let_in_all(group.parent)

    def _let_in_one(self, groups: Sequence[Group]) -> bool:
        """Let in one more position, of the first group that has one. ``False`` if there is none."""
        for group in groups:
            if group.cursors and (cursor := self._next(group)) is not None:
                self._let_in(group, cursor)
                return True
        return False

    def _next(self, group: Group) -> Cursor | None:
        """The list of which a group may let in one more position."""
        if not (self.room.has_room_for_one(group) and self._is_worth_it(group)):
            return None
        for cursor in list(group.cursors.values()):
            if self._is_there(group, cursor) and self._are_let_in(group, cursor):
                return cursor
        return None

    def _is_worth_it(self, group: Group) -> bool:
        """Whether an element might start at once if one more position were let in."""
        return any(map(self._could_start, group.first)) or any(
            self.room.has_room_for_one(child) and not child.cursors for child in group.leads_to
        )

    def _could_start(self, mapped: Mapped) -> bool:
        """Whether an element of a node might start at once if it were let in."""
        if mapped.gate is not None and not mapped.gate.is_open:
            return False
        return mapped.plan.node.join == "any" or all(map(self._ready.has_ended, mapped.plan.whole))

    def _is_there(self, group: Group, cursor: Cursor) -> bool:
        """Whether the next position exists. A source is read for it, if there is room."""
        length = cursor.row.length
        if length is not None:
            return cursor.next < length
        keys = self._read_by[group.number]
        if group.depth > 1 or not keys:
            return cursor.next < cursor.row.known
        has_ended = False
        try:
            for key in keys:
                row = self.lists.source(key)
                if not row.is_ended and row.known <= cursor.next and self.room.has_room(key):
                    if row.read():
                        self._check_value(key, row[row.known - 1])
                    has_ended = has_ended or row.is_ended
        except BaseException as error:  # the source's own
            self._caller.source_failed(error)
            if isinstance(error, Exception):
                return False
            raise
        # A list may have ended, also one that others map over, or goes on while another has ended.
        if has_ended or cursor.row.length is not None:
            self.ends.check_roots()
        return not self.ends.is_stopped and cursor.next < cursor.row.known

    def _are_let_in(self, group: Group, cursor: Cursor) -> bool:
        """Whether the elements of other groups exist that the next position takes."""
        if not group.foreign:
            return True
        path = (*cursor.prefix, cursor.next)
        return all(
            taking.of is not None
            and self._was_let_in(taking.of.ancestors[-1], taking.project(path))
            for taking in group.foreign
        )

    def _was_let_in(self, group: Group, path: Path) -> bool:
        prefix = path[:-1]
        if group.parent is None:
            return group.root is not None and path[-1] < group.root.next
        if not self._was_let_in(group.parent, prefix):
            return False
        cursor = group.cursors.get(prefix)
        if cursor is not None:
            return path[-1] < cursor.next
        return prefix not in group.parked

    def _let_in(self, group: Group, cursor: Cursor) -> None:
        path = (*cursor.prefix, cursor.next)
        cursor.next += 1
        group.let_in += 1
        if cursor.next == cursor.row.length:
            self.ends.leave(group, cursor)
        if group.held:
            group.alive[path] = set(group.held)
        if group.passed_over and path[-1] in group.passed_over:
            self._pass_over(group, path)
        else:
            self._add_elements(group, path)

    def _add_elements(self, group: Group, path: Path) -> None:
        never_run: list[Element] = []
        for mapped in group.members:
            if mapped.is_dead:
                continue
            element = Element(mapped.plan.node, path, self.values)
            outcome = None
            if mapped.is_given or self._is_resumed:
                outcome = self._caller.restored(element)
            if outcome is not None:
                self._note_end(mapped, path, outcome)
            elif not self._add(element, mapped):
                never_run.append(element)
        if never_run:
            self._caller.skip(never_run)
        for child in group.children:
            self._reach(child, path)

    def _pass_over(self, group: Group, path: Path) -> None:
        alive = [mapped for mapped in group.tree if not mapped.is_dead]
        for mapped in alive:
            if len(mapped.plan.axes) == 1:
                self._caller.passed_over(Element(mapped.plan.node, path, self.values))
        for mapped in alive:
            self.ends.end(mapped, path, has_failures=False)

    def _add(self, element: Element, mapped: Mapped) -> bool:
        pending: list[Any] = list(mapped.plan.whole)
        ended = list(mapped.ended)
        path = element.path
        for taking in mapped.linked:
            of, at = taking.of, taking.project(path)
            if of is None:
                raise AssertionError(f"{taking.key!r} is linked to no node")
            if taking.gathers is not None:
                outcome = taking.gathers.outcomes.around(at)
                if outcome is ABSENT and of.is_dead:
                    outcome = self._ready.outcome(of.plan.node)
                if outcome is ABSENT:
                    pending.append(self._gathering(of, taking.gathers, at))
                else:
                    ended.append(outcome)
            elif at in of.pending:
                pending.append(of.pending[at])
            else:
                outcome = of.outcomes.around(at)
                ended.append(COMPLETED if outcome is ABSENT else outcome)
        mapped.pending[path] = element
        return self._ready.add(
            element,
            pending,
            mapped.priority,
            mapped.plan.node.join,
            ended=ended,
            gate=mapped.gate,
        )

    def _gathering(self, mapped: Mapped, gathers: Gathers, at: Path) -> Gathering:
        found = gathers.pending.get(at)
        if found is None:
            found = Gathering(element_name(mapped.plan.node.task_name, at))
            gathers.pending[at] = found
            self._ready.add_suspended(found)
        return found

    # Lists within lists

    def _reach(self, group: Group, prefix: Path) -> None:
        """Open the list of a group at a position that was let in, or wait until it is there."""
        worst = COMPLETED
        for axis, place in group.awaits.items():
            at = place(prefix)
            if self.lists.row(axis, at) is not None:
                continue
            outcome = self._outcome_at(axis, at)
            if outcome is None:
                group.parked.add(prefix)
                self._parked.setdefault((axis, at), []).append((group, prefix))
                return
            worst = min(worst, outcome)
        row = self.lists.row_of(group, prefix)
        if worst == COMPLETED and row is not None:
            self._open_cursor(group, prefix, row)
        else:
            self.ends.never_reach(group, prefix, worst)

    def _outcome_at(self, axis: Axis, at: Path) -> int | None:
        """How the element ended that should have given a list. ``None`` if it may still."""
        opener = self._layout.openers.get(axis)
        outcome: Any = ABSENT if opener is None else opener.outcomes.around(at)
        return None if outcome is ABSENT else outcome

    def _unpark(self, axis: Axis, at: Path) -> None:
        """Try again where groups wait for a list. It is there now, or never will be."""
        parked = self._parked.pop((axis, at), ())
        for group, prefix in sorted(parked, key=lambda each: each[0].number):
            group.parked.discard(prefix)
            self._reach(group, prefix)

    def _open_cursor(self, group: Group, prefix: Path, row: Row | Zipped) -> None:
        cursor = group.cursors[prefix] = Cursor(prefix, row)
        if not prefix:
            group.root = cursor
        alive = [mapped for mapped in group.tree if not mapped.is_dead]
        for mapped in alive:
            mapped.within[prefix] = Within(row)
            for key in mapped.keys if prefix else ():
                self._layout.cells[key].open(prefix)
            if prefix and self._lists_at is not None:
                self._layout.returned[mapped.plan.node].open(prefix)
        if row.length == 0:
            self.ends.leave(group, cursor)
        for mapped in alive:
            self.ends.check(mapped, prefix)

    # Ends

    def _note_end(self, mapped: Mapped, path: Path, outcome: int) -> None:
        """An element has ended."""
        if outcome != COMPLETED:
            mapped.outcomes.put(path, outcome)
        if self._growing and mapped.plan.node in self._growing:
            self._end_row(Element(mapped.plan.node, path, self.values), outcome)
        for axis in mapped.opens:
            self._unpark(axis, path)
        self.ends.end(mapped, path, has_failures=outcome == FAILED)
