"""Only this file decides which elements of mapped nodes exist. The ready set says when they start.

It has no clock and no broker. It lets positions in when nothing else may start, as far as there is
room, and forgets them when all of their elements have ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from taskiq_flow.dataflow.axes import (
    Axis,
    ElementPlan,
    Path,
    element_name,
    keys_of,
    lists_of,
)
from taskiq_flow.dataflow.cells import ABSENT, Cells
from taskiq_flow.dataflow.element import Element, Gathering, Unreached, failure_within, place_of
from taskiq_flow.dataflow.groups import Cursor, Gathers, Group, Groups, Mapped, Taking, Within
from taskiq_flow.dataflow.growing import GrowingRows
from taskiq_flow.dataflow.items import Opening
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import COMPLETED, FAILED, Join, ReadySet
from taskiq_flow.dataflow.rows import Row, Source, Zipped, not_lists
from taskiq_flow.errors import InputError, OutputShapeError
from taskiq_flow.events import Failure
from taskiq_flow.values.isolation import Take

LET_IN_AT_ONCE = 64
"""Positions that are let in without a node that may start, before the caller has its turn."""


class Caller(Protocol):
    """Who carries out what becomes of elements: the run."""

    def restored(self, element: Element) -> int | None:
        """How an element has ended for an earlier engine; then it is stored."""

    def skip(self, elements: Sequence[Any]) -> None:
        """Elements that are let in never run, because of what they depend on."""

    def known(self, node: DAGNode, within: Path, count: int) -> None:
        """It is known how many elements a node has within a path, or how many lists of them."""

    def gathered(self, node: DAGNode, *, is_whole: bool, is_cut: bool) -> None:
        """All elements of a node have ended. ``is_whole``: none is missing because of a failure.

        ``is_cut``: further ones are, as a generator has failed whose items it maps over.
        """

    def gathered_within(self, name: str) -> None:
        """Elements within a path have ended, and some of them have failed."""

    def listed(self, element: Element, *, is_whole: bool) -> None:
        """All elements within a path have ended, of which the reader is given the list."""

    def cut(self, element: Unreached) -> None:
        """All elements within a path have ended. Others are missing, as a generator has failed."""

    def position_ended(self, path: Path) -> None:
        """All that is at a path has ended, where the reader is given lists."""

    def source_failed(self, error: BaseException) -> None:
        """A source that is mapped over has raised an error."""

    def forget(self, name: str) -> None:
        """An element has not completed, and no node will ask why any more."""

    def unread(self) -> int:
        """How many elements the reader has still to read, if they are yielded."""

    def ahead(self) -> int:
        """How many of many runs have ended, and wait for an earlier one to be read."""

    def uneven(self, node: DAGNode, error: OutputShapeError) -> None:
        """The outermost lists that a node takes together differ in length."""

    def uneven_within(self, element: Element, error: OutputShapeError) -> None:
        """The lists that a node takes together within a path differ in length."""


class Elements:
    """The elements of one run's mapped nodes, as nodes of a ready set.

    A mapped node itself is a node of the ready set that no task is sent for: it starts when the
    outermost lists that it maps over are there, and ends when all of its elements have ended.

    ``sources``: by key, the inputs of the run that are read while it goes on. ``take``: makes of
    such a value one that its source does not change any more. ``limit``: how many nodes may run at
    once. ``lists_at``: how many positions lead to the lists that the reader is given; ``None`` if
    it is given none. ``items``: whether the reader is given elements.
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
    ) -> None:
        self._plan = plan
        self._are_items_read = items
        self._ready = ready
        self._caller = caller
        self._lists_at = lists_at
        self._limit = math.inf if limit is None else limit
        self._sources = sources
        self._source_keys = plan.lists()
        groups = self._layout = Groups(
            plan,
            priority=priority,
            producers=producers,
            sources=sources,
            limit=self._limit,
            lists_at=lists_at,
        )
        self._mapped, self._groups = groups.mapped, groups.groups
        self._cells, self._returned = groups.cells, groups.returned
        self._rows: dict[Axis, dict[Path, Row]] = {axis: {} for axis in groups.axes}
        for key, source in sources.items():
            self._rows[key, 1][()] = Row.of_source(source, take)
        self._passed_on = [group for group in self._groups if not group.is_taken]
        self._zips = any(planned.zips for planned in plan.mapped.values())
        self._roots = [n for n, group in enumerate(self._groups) if group.depth == 1]
        self._readers = {
            key: [n for n in self._roots if key in lists_of(self._groups[n].axis)]
            for key in sources
        }
        self._read_together = {key: self._connected(key) for key in sources}
        for key, readers in self._readers.items():
            users = {n for n, g in enumerate(plan.groups) if key in keys_of(g.axes)}
            for number in readers:
                if all(number in (n, *plan.groups[n].held_by) for n in users):
                    self._groups[number].sources.append(key)
        self._growing = {
            node: GrowingRows(node, plan, groups, self._rows[items.given_key, 1])
            for node, items in plan.generators.items()
        }
        self._opening: dict[DAGNode, Opening] = {}  # by generator, where nodes wait for it
        self._parked: dict[tuple[Axis, Path], list[tuple[Group, Path]]] = {}  # by what is awaited
        self._gathered = 0  # mapped nodes whose elements have all ended
        self.has_more = False
        """Whether ``pop`` has stopped early, and is to be called again."""
        self.is_stopped = False
        """Whether nothing more is to be read or let in."""
        self.waits_for_reader = False
        """Whether more would be let in if the reader had read more."""

    # Items of generators

    def take_items(self, node: Any, items: Iterable[Any]) -> None:
        """A generator, or an element of one, has given more items. Its row begins with the first.

        Each item is one that the generator does not change any more.
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
        """A row has grown, or has ended."""
        if not path:
            self._check_roots()
        for group, prefix in growing.readers_at(path):
            self._check_cursor(group, prefix)

    def lead(self, node: Any) -> float:
        """How many items a generator may still make now."""
        growing, path = self._growing_row(node)
        unread = self._caller.unread() if self._are_items_read else None
        lead = growing.lead(path, unread)
        if unread and lead < growing.enough:
            self.waits_for_reader = True
        return lead

    def enough(self, node: Any) -> int:
        """How many more items a generator is told of at least."""
        return self._growing_row(node)[0].enough

    def drop_item(self, generator: DAGNode, path: Path) -> None:
        """An item has become an element: its row need not have it any more."""
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
        """A generator has ended. There is no row if it has failed before its first item."""
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
        """Nodes map over the items of a generator: their row begins now, or later."""
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

    # Lists

    def check(self, values: Mapping[str, Any], keys: Iterable[str], of: Any) -> None:
        """Take the lists that are mapped over among what a node gives under these keys.

        Raises ``OutputShapeError`` if one cannot be mapped over.
        """
        for key in keys:
            if key in self._source_keys:
                self._check_lists(key, values[key], of)
                self._rows[key, 1][()] = Row(values[key])

    def _check_lists(self, key: str, value: Any, of: Any) -> None:
        depth = self._plan.depths.get(key, 0)
        for found in not_lists(value, depth) if depth else ():
            what = f"gives {key!r} as a {type(found).__name__}, and it is mapped over"
            if found is not value:
                what = (
                    f"gives {key!r}, which is mapped over {depth} levels deep, and one of its "
                    f"lists is a {type(found).__name__}"
                )
            elif (key, 1) not in self._rows:
                what = f"has flatten=True and gives {key!r} as a {type(found).__name__}"
            remedy = "a list" if depth == 1 else "lists of lists"
            raise OutputShapeError(
                f"node {of.task_name!r} {what}; return {remedy}", task_name=of.task_name
            )

    def take_inputs(self, values: Mapping[str, Any]) -> None:
        """Take the lists that are mapped over among the inputs of the run."""
        for key in self._source_keys:
            if key in values:
                self._rows[key, 1][()] = Row(values[key])

    def append(self, key: str, value: Any) -> None:
        """An async source has given one more value."""
        self._source(key).append(value)
        self._check_value(key, value)
        if self._zips:  # another list has ended, perhaps, and this one goes on
            self._check_roots()

    def end(self, key: str) -> None:
        """An async source has ended."""
        self._source(key).is_ended = True
        self._check_roots()

    def _source(self, key: str) -> Row:
        return self._rows[key, 1][()]

    def _check_value(self, key: str, value: Any) -> None:
        """A value of a source has lists within it, if these are mapped over."""
        depth = self._plan.depths.get(key, 0) - 1
        for found in not_lists(value, depth) if depth > 0 else ():
            error = InputError(
                f"the run was given {key!r}, whose values are mapped over, and one of them has a "
                f"{type(found).__name__}; give it lists",
                keys=[key],
            )
            self._caller.source_failed(error)
            break

    def has_room(self, key: str) -> bool:
        """Whether a source may be read further."""
        known = self._source(key).known
        growing = {n for n in self._read_together[key] if self._may_grow(self._groups[n])}
        governing = [
            self._groups[n]
            for n in self._readers[key]
            if n in growing and not self._plan.groups[n].waits_for & growing
        ]
        return bool(governing) and all(
            self._has_room(group, known - (group.root.next if group.root else 0))
            for group in governing
        )

    def _connected(self, key: str) -> set[int]:
        """The numbers of the groups that read a source, or another that is zipped with it.

        One that waits for another of them says nothing about room: it would wait for itself.
        """
        found, keys = set[int](), {key}
        lists = {n: set(lists_of(self._groups[n].axis)) for n in self._roots}
        while True:
            more = {n for n, own in lists.items() if not keys.isdisjoint(own)}
            if more == found:
                return found
            found = more
            keys.update(other for n in found for other in lists[n])

    def _may_grow(self, group: Group) -> bool:
        """Whether further positions may come: its lists have not ended, or are not there yet."""
        if group.root is not None:
            return group.root.row.length is None
        return not all(self._ready.has_ended(member.plan.node) for member in group.tree)

    def _has_room(self, group: Group, more: int = 0) -> bool:
        """Whether a further position may exist. ``more``: that are there and not let in."""
        alive, unread = len(group.alive) + more, self._caller.unread()
        if unread and group.items:  # those that it has not let in yet are in no room of its own
            ahead = max(items.let_in for items in group.items) - group.let_in
            unread = max(0, unread - max(0, ahead))
        if group.depth == 1:
            alive += self._caller.ahead()
        if alive < group.room <= alive + unread:
            self.waits_for_reader = True
        return alive + unread < group.room

    def close(self) -> Iterable[Callable[[], None]]:
        """What closes the sources that are generators. Each may raise whatever these raise."""
        return [self._source(key).close for key in self._sources]

    def _row(self, axis: Axis, at: Path) -> Row | None:
        """The list of an axis at a path; ``None`` if it is not there."""
        rows = self._rows[axis]
        row = rows.get(at)
        if row is None and isinstance(axis, tuple) and axis[1] > 1:
            around = self._row((axis[0], axis[1] - 1), at[:-1])
            if around is not None:
                row = rows[at] = Row(around[at[-1]])
        return row

    def _row_of(self, group: Group, prefix: Path) -> Row | Zipped | None:
        """What a group reads at a position of its parent; ``None`` if it is not there."""
        found = [(axis, self._row(axis, place(prefix))) for axis, place in group.places.items()]
        rows = [(axis[0], row) for axis, row in found if row and isinstance(axis, tuple)]
        if len(rows) < len(found):
            return None
        return rows[0][1] if len(rows) == 1 else Zipped(rows)

    # What elements ask

    def inputs(self, element: Element, values: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of an element by key. A key without a value is left out."""
        mapped, path = self._mapped[element.node], element.path
        found = {key: values[key] for key in mapped.plan.whole_keys if key in values}
        for taking in mapped.taking:
            value = self._taken(taking, path, element.join)
            if value is not ABSENT:
                found[taking.key] = value
        return found

    def _taken(self, taking: Taking, path: Path, join: Join) -> Any:
        """What the element at a path is given of a key that it maps over, or ``ABSENT``."""
        at = taking.project(path)
        if taking.is_listed:
            return self._listed(taking.axis, at)
        if taking.failures is not None:
            return self._failures(taking.failures, at)
        if taking.gathers is None:
            return self._cells[taking.key].get(at)
        if taking.gathers.outcomes.get(at) != COMPLETED and join != "ended":
            return ABSENT
        return taking.gathers.values[taking.key].get(at)

    def _listed(self, axis: Axis, path: Path) -> Any:
        row = self._row(axis, path[:-1])
        if row is None:
            raise KeyError(axis)
        return row[path[-1]]

    def add_failure(self, element: Element, failure: Failure) -> None:
        """An element has failed, or what a node has within a path."""
        node = self._plan.generators.get(element.node, element.node)
        for depth, cells in self._mapped[node].failures.items():
            at = element.path[:depth]
            if len(at) == depth:
                found = cells.get(at)
                cells.put(at, [failure] if found is ABSENT else [*found, failure])

    def _failures(self, cells: Cells, at: Path) -> list[Failure]:
        found = cells.get(at)
        failures = [] if found is ABSENT else sorted(found, key=place_of)
        return [failure_within(failure, at) for failure in failures]

    def store(self, element: Element, result: Any, stored: Mapping[str, Any]) -> None:
        """Put what an element gives into the rows of its keys. Raises ``OutputShapeError``."""
        node, path = element.node, element.path
        for key, value in stored.items():
            self._check_lists(key, value, element)
        for key, value in stored.items():
            self._cells[key].put(path, value)
            if (key, 1) in self._rows:
                self._rows[key, 1][path] = Row(value)
        if self._lists_at is not None and len(stored) > 1:
            self._returned[node].put(path, result)

    def mapped_value(self, element: Element, key: str) -> Any:
        """What an element is given of a key that its node maps over, or ``ABSENT``."""
        takings = self._mapped[element.node].taking
        taking = next(taking for taking in takings if taking.key == key)
        return self._taken(taking, element.path, element.join)

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
        """What a node's tasks have returned so far, by path, as far as it is kept."""
        return self._returned[node].items_within((), len(self._mapped[node].plan.axes))

    def whole(self, node: DAGNode, within: Path, missing: Cells | None) -> list[Any]:
        """What a node's tasks have returned within a path, as lists.

        ``missing``: what stands in the place of values.
        """
        plan = self._mapped[node].plan
        cells = self._returned[node]
        if missing is not None:
            cells = cells.merged(missing, len(plan.axes))
        joins = node.flatten and node.output is not None
        return cells.lists(within, _sizes_after(plan.sizes, len(within)), joins=joins)

    def lists(self, key: str, node: DAGNode) -> list[Any]:
        """The values of a mapped node's key, as lists, as far as they are kept."""
        return self._cells[key].lists((), self._mapped[node].plan.sizes, joins=node.flatten)

    def source_values(self, element: Element) -> list[Any]:
        """What an element is given of sources."""
        mapped = self._mapped[element.node]
        return [
            self._listed(taking.axis, taking.project(element.path))
            for taking in mapped.taking
            if taking.is_listed and taking.key in self._sources
        ]

    # Which node is next

    def pop(self) -> Any:
        """Start the next node or element. ``None`` if none may start now."""
        self.has_more = self.waits_for_reader = False
        for _ in range(LET_IN_AT_ONCE):
            if self.is_stopped:
                return None
            self._let_in_the_last()
            node = self._ready.pop()
            if node is None:
                gathered = self._gathered
                # A list that turns out to have ended lets nodes start that take it whole.
                if not self._let_in_one() and gathered == self._gathered:
                    return None
            elif node in self._mapped:
                self._ready.suspend(node)
                self._open(self._mapped[node])
            elif isinstance(node, Opening):
                self._wait_for_row(node)
            else:
                return node
        self.has_more = True
        return None

    def generator_ended(self, node: DAGNode) -> None:
        """A generator that runs once has ended, and the ready set has been told so."""
        self._end_row(node, self._ready.outcome(node))

    def ended(self, element: Element) -> None:
        """An element has ended, and the ready set has been told so."""
        mapped, path = self._mapped[element.node], element.path
        if isinstance(element, Unreached):
            self._end_within(mapped, path, element.outcome, is_reached=False)
            return
        outcome = self._ready.outcome(element)
        del mapped.pending[path]
        self._ready.forget(element)
        self._note_end(mapped, path, outcome)

    def never(self, node: DAGNode) -> None:
        """A mapped node has ended without its outermost lists, and the ready set was told so."""
        mapped, outcome = self._mapped[node], self._ready.outcome(node)
        mapped.is_dead = True
        for gathers in mapped.gathers.values():
            for path in list(gathers.pending):
                self._settle(gathers, path, outcome)
        for group in mapped.holders:
            if group is not None:
                group.held.remove(mapped)
                for path in list(group.alive):
                    self._count_down(group, path, mapped)

    def _open(self, mapped: Mapped) -> None:
        """The outermost lists that a node maps over are there."""
        mapped.is_open = True
        root = mapped.ancestors[0]
        if root.root is None and all(member.is_open for member in root.members):
            row = self._row_of(root, ())
            if row is not None:
                self._open_cursor(root, (), row)
        for group in mapped.ancestors[1:]:
            for axis in group.places:
                self._unpark(axis, ())
        self._check(mapped, ())

    def _let_in_the_last(self) -> None:
        """Let in the last positions of an axis before others go on, so that all end together.

        Without a limit there is nothing to choose between.
        """
        if self._limit == math.inf or self._ready.is_full:
            return
        for number in self._roots:
            group = self._groups[number]
            cursor = group.cursors.get(())
            length = None if cursor is None or not group.members else cursor.row.length
            while cursor is not None and length is not None:
                if not 0 < length - cursor.next <= self._limit or self._next(group) is None:
                    break
                self._let_in(group, cursor)

    def _let_in_one(self) -> bool:
        """Let in one more position, of the last group that has one. ``False`` if there is none."""
        is_full = self._ready.is_full
        for group in reversed(self._passed_on if is_full else self._groups):
            if group.cursors and (cursor := self._next(group)) is not None:
                self._let_in(group, cursor)
                return True
        return False

    def _next(self, group: Group) -> Cursor | None:
        """The list of which a group may let in one more position."""
        if not (self._has_room(group) and self._is_worth_it(group)):
            return None
        for cursor in list(group.cursors.values()):
            if self._is_there(group, cursor) and self._are_let_in(group, cursor):
                return cursor
        return None

    def _is_worth_it(self, group: Group) -> bool:
        """Whether an element might start at once if one more position were let in."""
        return any(map(self._could_start, group.first)) or any(
            self._has_room(child) and not child.cursors for child in group.leads_to
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
        if group.depth > 1:
            return cursor.next < cursor.row.known
        has_ended = False
        try:
            for key in self._sources.keys() & lists_of(group.axis):
                row = self._source(key)
                if not row.is_ended and row.known <= cursor.next and self.has_room(key):
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
            self._check_roots()
        return not self.is_stopped and cursor.next < cursor.row.known

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
            self._leave(group, cursor)
        if group.held:
            group.alive[path] = set(group.held)
        never_run: list[Element] = []
        for mapped in group.members:
            if mapped.is_dead:
                continue
            element = Element(mapped.plan.node, path, self)
            if (outcome := self._caller.restored(element)) is not None:
                self._note_end(mapped, path, outcome)
            elif not self._add(element, mapped):
                never_run.append(element)
        if never_run:
            self._caller.skip(never_run)
        for child in group.children:
            self._reach(child, path)

    def _add(self, element: Element, mapped: Mapped) -> bool:
        pending: list[Any] = list(mapped.plan.whole)
        ended = [COMPLETED] if mapped.counts_as_completed else []
        path = element.path
        for taking in mapped.taking:
            of = taking.of
            if of is None:
                continue
            if taking.is_listed:
                ended.append(COMPLETED)
                continue
            at = taking.project(path)
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
                outcome = of.outcomes.get(at)
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
        """The position exists at which a group has a list, or will have one."""
        worst = COMPLETED
        for axis, place in group.awaits.items():
            at = place(prefix)
            if self._row(axis, at) is not None:
                continue
            outcome = self._outcome_at(axis, at)
            if outcome is None:
                group.parked.add(prefix)
                self._parked.setdefault((axis, at), []).append((group, prefix))
                return
            worst = min(worst, outcome)
        row = self._row_of(group, prefix)
        if worst == COMPLETED and row is not None:
            self._open_cursor(group, prefix, row)
        else:
            self._never_reach(group, prefix, worst)

    def _outcome_at(self, axis: Axis, at: Path) -> int | None:
        """How the element has ended that was to give a list, if it gives none."""
        opener = self._layout.openers.get(axis)
        outcome: Any = ABSENT if opener is None else opener.outcomes.get(at)
        return None if outcome is ABSENT else outcome

    def _unpark(self, axis: Axis, at: Path) -> None:
        """A list is there, or never will be."""
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
                self._cells[key].open(prefix)
            if prefix and self._lists_at is not None:
                self._returned[mapped.plan.node].open(prefix)
        if row.length == 0:
            self._leave(group, cursor)
        for mapped in alive:
            self._check(mapped, prefix)

    def _leave(self, group: Group, cursor: Cursor) -> None:
        """A group has let in all positions. Of lists taken together, one may go on."""
        del group.cursors[cursor.prefix]
        if isinstance(cursor.row, Zipped):
            for _, row in cursor.row.rows:
                row.left_by.add(group.number)

    def _never_reach(self, group: Group, prefix: Path, outcome: int) -> None:
        """There will be no list at a position: each node within ends there, once."""
        for axis, place in group.places.items():
            if (row := self._row(axis, place(prefix))) is not None:
                row.left_by.add(group.number)
        for mapped in group.tree:
            if mapped.is_dead:
                continue
            mapped.outcomes.put(prefix, outcome)
            within = [each for depth, each in mapped.gathers.items() if depth > len(prefix)]
            for gathers in within:
                gathers.outcomes.put(prefix, outcome)
            self._caller.skip([Unreached(mapped.plan.node, prefix, self, outcome)])
            for gathers in within:
                for path in [at for at in gathers.pending if at[: len(prefix)] == prefix]:
                    self._end_gathering(gathers, path, outcome)

    # Ends

    def _note_end(self, mapped: Mapped, path: Path, outcome: int) -> None:
        """An element has ended."""
        if outcome != COMPLETED:
            mapped.outcomes.put(path, outcome)
        if self._growing and mapped.plan.node in self._growing:
            self._end_row(Element(mapped.plan.node, path, self), outcome)
        for axis in mapped.opens:
            self._unpark(axis, path)
        self._end(mapped, path, has_failures=outcome == FAILED)

    def _end_within(
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
            element = Element(mapped.plan.node, path, self)
            self._caller.uneven_within(element, self._uneven_error(element, uneven))
        if (gathers := mapped.gathers.get(len(path))) is not None:
            if is_reached:
                joins, sizes = mapped.plan.node.flatten, _sizes_after(mapped.plan.sizes, len(path))
                for key, cells in gathers.values.items():
                    cells.put(path, self._cells[key].lists(path, sizes, joins=joins))
            if outcome == FAILED:
                self._caller.gathered_within(element_name(mapped.plan.node.task_name, path))
            self._settle(gathers, path, outcome)
        if is_reached and is_cut and uneven is None:
            self._caller.cut(Unreached(mapped.plan.node, path, self, FAILED))
        if is_reached and uneven is None and len(path) == self._lists_at:
            self._caller.listed(Element(mapped.plan.node, path, self), is_whole=outcome != FAILED)
        self._end(mapped, path, has_failures=outcome == FAILED)

    def _settle(self, gathers: Gathers, path: Path, outcome: int) -> None:
        gathers.outcomes.put(path, outcome)
        self._end_gathering(gathers, path, outcome)

    def _end_gathering(self, gathers: Gathers, path: Path, outcome: int) -> None:
        gathering = gathers.pending.pop(path, None)
        if gathering is not None:
            never_run = self._ready.end(gathering, outcome)
            self._ready.forget(gathering)
            self._caller.skip(never_run)

    def _end(self, mapped: Mapped, path: Path, *, has_failures: bool) -> None:
        """What a node has at a path is complete: one more of what is around it has ended."""
        holder = mapped.holders[len(path) - 1]
        if holder is not None:  # before the positions around it end, with which all of it goes
            self._count_down(holder, path, mapped)
        around = mapped.within.get(path[:-1])
        if around is not None:
            around.ended += 1
            around.has_failures = around.has_failures or has_failures
            self._check(mapped, path[:-1])

    def _check(self, mapped: Mapped, path: Path) -> None:
        """Look whether all elements within a path have ended."""
        within = mapped.within.get(path)
        length = None if within is None else within.row.length
        if within is None or length is None or (not path and not mapped.is_open):
            return
        plan = mapped.plan
        if not within.is_known:
            within.is_known = True
            self._caller.known(plan.node, path, length)
        if within.ended < length or self.is_stopped:
            return
        row, is_cut = within.row, within.row.is_cut
        if isinstance(row, Zipped) and not (is_cut or row.is_even):
            fixed_at = path[: mapped.ancestors[len(path)].fixed_by]
            mapped.within[fixed_at].uneven = row
        del mapped.within[path]
        uneven = within.uneven
        has_failures = within.has_failures or is_cut or uneven is not None
        if path:
            outcome = FAILED if has_failures else COMPLETED
            self._end_within(mapped, path, outcome, is_cut=is_cut, uneven=uneven)
            return
        self._gathered += 1
        if uneven is not None:
            self._caller.uneven(plan.node, self._uneven_error(plan.node, uneven))
        self._caller.gathered(plan.node, is_whole=not has_failures, is_cut=is_cut)

    def _check_roots(self) -> None:
        """An outermost list may have ended."""
        for number in self._roots:
            group = self._groups[number]
            if group.root is not None:
                self._check_cursor(group, ())

    def _check_cursor(self, group: Group, prefix: Path) -> None:
        """A list that a group reads may have ended."""
        cursor = group.cursors.get(prefix)
        if cursor is not None and cursor.next == cursor.row.length:
            self._leave(group, cursor)
        for mapped in group.tree:
            self._check(mapped, prefix)

    def _count_down(self, group: Group, path: Path, mapped: Mapped) -> None:
        alive = group.alive[path]
        alive.discard(mapped)
        if not alive:
            del group.alive[path]
            self._release(group, path)

    def _release(self, group: Group, path: Path) -> None:
        """Drop the values at a path that nobody will ask for any more."""
        if group.depth == self._lists_at:
            self._caller.position_ended(path)
        for dropping in group.drops:
            if dropping.is_due(path):
                for cells in dropping.cells:
                    cells.drop(path)
                self._forget(dropping.mapped, path, group.depth)
        for axis in group.rows:
            self._rows[axis].pop(path, None)
        for axis in group.rows_within:
            rows = self._rows[axis]
            for at in [at for at in rows if at[: group.depth] == path]:
                del rows[at]
        for key in group.sources:
            self._source(key).drop(path[0])

    def _forget(self, mapped: Mapped, path: Path, depth: int) -> None:
        """Drop how the elements of a node within a path have ended."""
        name = mapped.plan.node.task_name
        for inner, _ in mapped.outcomes.items_within(path, len(mapped.plan.axes)):
            self._caller.forget(element_name(name, inner))
        mapped.outcomes.drop(path)
        for length, gathers in mapped.gathers.items():
            if length >= depth:
                for inner, outcome in gathers.outcomes.items_within(path, length):
                    if outcome == FAILED:
                        self._caller.forget(element_name(name, inner))
                gathers.outcomes.drop(path)

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


def _sizes_after(sizes: Sequence[int], depth: int) -> Sequence[int]:
    """The sizes of the levels that begin after so many axes."""
    for number, size in enumerate(sizes):
        if depth < size:
            return (size - depth, *sizes[number + 1 :])
        depth -= size
    return ()
