"""Only this file decides which elements of mapped nodes exist. The ready set says when they start.

It has no clock and no broker. It lets positions in when nothing else may start, as far as there is
room, and forgets them when all of their elements have ended.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from taskiq_flow.dataflow.axes import Path, lists_of
from taskiq_flow.dataflow.element_plan import ElementPlan, MappedNode
from taskiq_flow.dataflow.items import Opening
from taskiq_flow.dataflow.ready_set import COMPLETED, FAILED, ReadySet
from taskiq_flow.elements.additions import Additions
from taskiq_flow.elements.awaited_lists import AwaitedLists
from taskiq_flow.elements.element import Element, Unreached
from taskiq_flow.elements.ends import ElementEnds, EndsListener
from taskiq_flow.elements.generator_items import GeneratorItems
from taskiq_flow.elements.group import Cursor, Group, Mapped
from taskiq_flow.elements.groups import Groups
from taskiq_flow.elements.lists import Lists
from taskiq_flow.elements.room import Backlog, Room
from taskiq_flow.elements.values import ElementValues
from taskiq_flow.errors import NODE_ERRORS

LET_IN_AT_ONCE = 64
"""``pop`` returns after it has let in so many positions of which no node may start yet. It is
called again when others have had their turn."""


class ElementsCallbacks(Backlog, Protocol):
    """What elements have the run do, and ask it."""

    def source_failed(self, error: BaseException) -> None:
        """A source that is mapped over has raised an error."""

    def look_again(self) -> None:
        """Call ``pop`` again soon. With nothing unfinished, the run ends then."""


class Taskless(Protocol):
    """Handles the elements for which no task is sent."""

    def complete_without_task(self, element: Element) -> int | None:
        """Complete an element that needs no task. Returns how it has ended; ``None`` if it has not.

        It is asked of elements that are given their values, and of all of a resumed run.
        """

    def passed_over(self, element: Element) -> None:
        """An element of a position that is passed over."""

    def passed_over_within(self, mapped: MappedNode, path: Path) -> None:
        """The elements that a node has within a position that is passed over."""


class Elements:
    """The elements of one run's mapped nodes, as nodes of a ready set.

    A mapped node itself is a node of the ready set that no task is sent for: it starts when the
    outermost lists that it maps over are there, and ends when all of its elements have ended.

    ``listener``: is told what has ended. ``limit``: how many nodes may run at once. ``lists_at``:
    how many positions lead to the lists that the reader is given; ``None`` if it is given none.
    ``items``: whether the reader is given elements. ``is_resumed``: whether earlier engines may
    have completed elements. ``tells_positions``: whether the listener is told of each position of
    an outermost list that has ended. ``passed_over``: by the first node there, the positions of
    these at which nothing is left to do.
    """

    def __init__(
        self,
        plan: ElementPlan,
        ready: ReadySet[Any],
        groups: Groups,
        lists: Lists,
        values: ElementValues,
        listener: EndsListener,
        taskless: Taskless,
        caller: ElementsCallbacks,
        *,
        limit: float,
        lists_at: int | None,
        items: bool,
        is_resumed: bool,
        tells_positions: bool,
        passed_over: Mapping[str, Collection[int]],
    ) -> None:
        self._predecessors = plan.predecessors
        self._is_resumed = is_resumed
        self._ready = ready
        self._lists = lists
        self._values = values
        self._skip = listener.skip
        self._taskless = taskless
        self._caller = caller
        self._limit = limit
        self._mapped, self._groups = groups.mapped, groups.groups
        for group in groups.roots if passed_over else ():
            if group.members:
                name = group.members[0].plan.node.task_name
                group.passed_over = passed_over.get(name, ())
        self._read_by = [lists.sources.keys() & lists_of(group.axis) for group in self._groups]
        self.room = Room(plan, groups, lists, ready, caller)
        self.ends = ElementEnds(
            plan,
            groups,
            lists,
            values,
            ready,
            listener,
            lists_at,
            tells_positions=tells_positions,
        )
        self._awaited = AwaitedLists(groups, lists, self.ends, lists_at)
        self.generator_items = GeneratorItems(
            plan,
            groups,
            lists,
            ready,
            self.room,
            self.ends,
            self._awaited,
            skip=listener.skip,
            unread=caller.unread if items else None,
            free=self._free,
        )
        # The last one comes first. Items alone have no turn: they are let in at once.
        self._in_turn = [group for group in self._groups[::-1] if group.is_taken]
        self._with_tails = [g for g in self._in_turn if g.members] if limit < math.inf else []
        self._add = Additions(ready).add
        self._zips = any(planned.zips for planned in plan.mapped.values())
        has_gates = any(mapped.gate is not None for mapped in self._mapped.values())
        self._only_ends_make_room = not has_gates

    # Async sources

    def append(self, key: str, value: Any) -> None:
        """Append a value that an async source has given."""
        self.room.lets_in_none = False
        self._lists.source(key).append(value)
        self._check_value(key, value)
        if self._zips:  # another list has ended, perhaps, and this one goes on
            self.ends.check_roots()

    def end(self, key: str) -> None:
        """End the list of an async source."""
        self.room.lets_in_none = False
        self._lists.source(key).is_ended = True
        self.ends.check_roots()

    def _check_value(self, key: str, value: Any) -> None:
        if (error := self._lists.source_error(key, value)) is not None:
            self._caller.source_failed(error)

    def stop(self) -> None:
        """Read nothing more, and let no more elements in."""
        self.ends.is_stopped = True
        self.room.lets_in_none = False

    # Which node is next

    def pop(self) -> Any:
        """Start the next node or element. ``None`` if none may start now."""
        if self.room.lets_in_none:  # so only elements can be ready
            return self._ready.pop()
        self.room.waits_for_reader = False
        # Under a limit the answer is known most often: a node has started in the place of another.
        if self._ready.may_start or self.generator_items.to_let_in:
            return self._pop()
        return None

    def _pop(self) -> Any:
        ready, ends = self._ready, self.ends
        left = LET_IN_AT_ONCE
        while left > 0:
            if ends.is_stopped:
                return None
            is_full = ready.is_full
            if self._with_tails and not is_full:
                self._let_in_the_last()
            node = ready.pop()
            if node is None:
                gathered = ends.gathered
                let_in = self._let_in_more(left, is_full=is_full)
                left -= max(1, let_in)
                # A list that turns out to have ended lets nodes start that take it whole.
                if not let_in and gathered == ends.gathered:
                    if not ready.unfinished:
                        self._caller.look_again()
                    self.room.lets_in_none = not is_full and self._only_ends_make_room
                    return None
            elif type(node) is Element:  # as most are
                return node
            elif node in self._mapped:
                left -= 1
                ready.suspend(node)
                self._open(self._mapped[node])
            elif isinstance(node, Opening):
                left -= 1
                self.generator_items.wait_for_row(node)
            else:
                return node
        self._caller.look_again()
        return None

    def ended(self, element: Element) -> None:
        """Handle the end of an element that has ended in the ready set."""
        mapped, path = self._mapped[element.node], element.path
        if isinstance(element, Unreached):
            self.room.lets_in_none = False
            self.ends.end_within(mapped, path, element.outcome, is_reached=False)
            return
        del mapped.pending[path]
        outcome = self._ready.forget(element)
        if outcome == COMPLETED and not (mapped.gives_items or mapped.opens):
            # In a frame less, as most elements end.
            if self.ends.end(mapped, path):
                self.room.lets_in_none = False
        else:
            self.room.lets_in_none = False
            self._note_end(mapped, path, outcome)

    def _open(self, mapped: Mapped) -> None:
        """Open a node whose outermost lists are there. It ends if they never will be."""
        makers = self._predecessors.get(mapped.plan.node, ())
        outcome = min(map(self._ready.outcome, makers), default=COMPLETED)
        if outcome < COMPLETED:
            self.ends.never(mapped, outcome)
            return
        mapped.is_open = True
        root = mapped.ancestors[0]
        if root.root is None and all(member.is_open for member in root.members):
            self._awaited.open_outermost(root)
        for group in mapped.ancestors[1:]:
            for axis in group.places:
                self._awaited.unpark(axis, ())
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

    def _let_in_more(self, most: int, *, is_full: bool) -> int:
        """Let in items, and a position of a node that may start. Returns how many."""
        let_in = self._let_in_items(most) if self.generator_items.to_let_in else 0
        return let_in if is_full else let_in + self._let_in_one()

    def _let_in_items(self, most: int) -> int:
        """Let in items that generators have given. They need no place and no room."""
        let_in, rows = 0, self.generator_items.to_let_in
        for group, path in list(rows):
            if (cursor := group.cursors.get(path)) is None:  # it is not open yet
                continue
            while cursor.next < cursor.row.known and let_in < most and not self.ends.is_stopped:
                self._let_in(group, cursor)
                let_in += 1
            if cursor.next == cursor.row.known:
                del rows[group, path]
        return let_in

    def _let_in_one(self) -> bool:
        """Let in one more position, of the first group that has one. ``False`` if there is none."""
        for group in self._in_turn:
            if not group.cursors or len(group.alive) >= group.room:
                continue
            if (cursor := self._next(group)) is not None:
                self._let_in(group, cursor)
                return True
        return False

    def _next(self, group: Group) -> Cursor | None:
        """The list of which a group may let in one more position."""
        cursors = list(group.cursors.values())
        if not (group.depth == 1 and self._read_by[group.number]):  # else there may be more to read
            cursors = [cursor for cursor in cursors if cursor.next < cursor.row.known]
        if not (cursors and self.room.has_room_for_one(group) and self._is_worth_it(group)):
            return None
        for cursor in cursors:
            if self._read_up_to(group, cursor) and self._are_let_in(group, cursor):
                return cursor
        return None

    def _is_worth_it(self, group: Group) -> bool:
        """Whether an element might start at once if one more position were let in."""
        return any(map(self._could_start, group.first)) or any(
            self.room.has_room_for_one(child) and not child.cursors for child in group.leads_to
        )

    def _free(self, group: Group) -> float:
        """How many more positions of a group could begin at once."""
        if not self._is_worth_it(group):
            return 0
        gates = [m.gate.limit - len(m.gate.within) for m in group.first if m.gate is not None]
        return max(0, min(self.room.left(group), self._ready.places_left, *gates))

    def _could_start(self, mapped: Mapped) -> bool:
        """Whether an element of a node might start at once if it were let in."""
        if mapped.gate is not None and not mapped.gate.is_open:
            return False
        return mapped.plan.node.join == "any" or all(map(self._ready.has_ended, mapped.plan.whole))

    def _read_up_to(self, group: Group, cursor: Cursor) -> bool:
        """Read sources as far as a cursor's next position, if there is room. Whether it exists."""
        length = cursor.row.length
        if length is not None:
            return cursor.next < length
        keys = self._read_by[group.number]
        if group.depth > 1 or not keys:
            return cursor.next < cursor.row.known
        has_ended = has_read = False
        try:
            for key in keys:
                row = self._lists.source(key)
                if not row.is_ended and row.known <= cursor.next and self.room.has_room(key):
                    if row.read():
                        has_read = True
                        self._check_value(key, row[row.known - 1])
                    has_ended = has_ended or row.is_ended
        except BaseException as error:  # the source's own
            self._caller.source_failed(error)
            if isinstance(error, NODE_ERRORS):
                return False
            raise
        # A list may have ended, or goes on while another one has ended with which others take it.
        if has_ended or (has_read and self._zips):
            self.ends.check_roots()
        return not self.ends.is_stopped and cursor.next < cursor.row.known

    def _are_let_in(self, group: Group, cursor: Cursor) -> bool:
        """Whether the elements of other groups exist that the next position takes."""
        if not group.foreign:
            return True
        path = (*cursor.prefix, cursor.next)
        for taking in group.foreign:
            if not (taking.of and taking.of.ancestors[-1].has_let_in(taking.project(path))):
                return False
        return True

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
        if group.lists:
            self.ends.order.begin(group, path)
        never_run: list[Element] = []
        for mapped in group.members:
            if mapped.is_dead:
                continue
            element = Element(mapped.plan.node, path, self._values)
            if mapped.is_given or self._is_resumed:
                outcome = self._taskless.complete_without_task(element)
                if outcome is not None:
                    self._note_end(mapped, path, outcome)
                    continue
            mapped.pending[path] = element
            if not self._add(element, mapped, are_alive=not never_run):
                never_run.append(element)
        if never_run:
            self._skip(never_run)
        for child in group.children:
            self._awaited.reach(child, path)

    def _pass_over(self, group: Group, path: Path) -> None:
        alive = [mapped for mapped in group.tree if not mapped.is_dead]
        for mapped in alive:
            if len(mapped.plan.axes) == 1:
                self._taskless.passed_over(Element(mapped.plan.node, path, self._values))
            else:
                self._taskless.passed_over_within(mapped.plan, path)
        for mapped in alive:
            self.ends.end(mapped, path)

    # Ends

    def _note_end(self, mapped: Mapped, path: Path, outcome: int) -> None:
        """An element has ended."""
        if outcome != COMPLETED:
            mapped.outcomes.put(path, outcome)
        if mapped.gives_items:
            element = Element(mapped.plan.node, path, self._values)
            self.generator_items.end_row(element, outcome)
        for axis in mapped.opens:
            self._awaited.unpark(axis, path)
        self.ends.end(mapped, path, has_failures=outcome == FAILED)
