"""Only this file decides which elements of mapped nodes exist. The ready set says when they start.

It has no clock and no broker. It lets positions in when nothing else may start, as far as there is
room, and forgets them when all of their elements have ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from taskiq_flow.dataflow.axes import Axis, ElementPlan, MappedNode, lists_of
from taskiq_flow.dataflow.binding import Binding, Task
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import COMPLETED, FAILED, SKIPPED, Gate, Join, ReadySet
from taskiq_flow.dataflow.rows import Row, Source, is_list
from taskiq_flow.errors import OutputShapeError
from taskiq_flow.values.isolation import Take

LET_IN_AT_ONCE = 64
"""Positions that are let in without a node that may start, before the caller has its turn."""


class Element:
    """A mapped node at one position: a node like any other, which exists while it is needed."""

    __slots__ = ("_elements", "index", "node", "task_name")

    def __init__(self, node: DAGNode, index: int, elements: Elements) -> None:
        self.node = node
        self.index = index
        self.task_name = f"{node.task_name}[{index}]"
        self._elements = elements

    @property
    def task(self) -> Task:
        """What is sent to the broker."""
        return self.node.task

    @property
    def binding(self) -> Binding:
        """How keys reach the task's parameters."""
        return self.node.binding

    @property
    def outputs(self) -> list[str]:
        """The output keys."""
        return self.node.outputs

    def store(self, result: Any, values: dict[str, Any]) -> None:
        """Put what the task returned into the rows of the output keys, at this position.

        Raises ``OutputShapeError`` if it cannot be split into them.
        """
        stored: dict[str, Any] = {}
        self.node.store(result, stored)
        self._elements.store(self, result, stored)

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the task's call."""
        return self.node.arguments(values)

    @property
    def join(self) -> Join:
        """When the element may start, by what it depends on itself."""
        return self.node.join

    @property
    def dependencies(self) -> list[str]:
        """The names of what the element depends on."""
        return self._elements.dependencies(self)

    @property
    def source_values(self) -> list[Any]:
        """What the element is given of sources. Another value makes it another element."""
        return self._elements.source_values(self)

    def inputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The element's own inputs by key. ``values``: those of nodes as wholes."""
        return self._elements.inputs(self, values)

    def __repr__(self) -> str:
        return f"<Element {self.task_name}>"


class Caller(Protocol):
    """Who carries out what becomes of elements: the run."""

    def restored(self, element: Element) -> bool:
        """Whether an earlier engine has completed an element; then it is stored."""

    def skip(self, elements: Sequence[Element]) -> None:
        """Elements that are let in never run, because of what they depend on."""

    def known(self, node: DAGNode, count: int) -> None:
        """The lists of a node's axis are there: it has so many elements."""

    def gathered(self, node: DAGNode, *, is_whole: bool) -> None:
        """All elements of a node have ended. ``is_whole``: none is missing because of a failure."""

    def source_failed(self, error: BaseException) -> None:
        """A source that is mapped over has raised an error."""

    def forget(self, name: str) -> None:
        """An element was skipped by a condition, and no node will ask why any more."""

    def unread(self) -> int:
        """How many elements the reader has still to read, if they are yielded."""

    def uneven(self, node: DAGNode, error: OutputShapeError) -> None:
        """The lists that a node takes together differ in length."""


@dataclass(slots=True, eq=False)
class _Mapped:
    """A mapped node in this run.

    ``counts_as_completed``: whether a list that it maps over is a node's, which has completed then;
    a rule such as ``"any"`` counts it. ``pending``: its elements that have not ended, by position.
    ``outcomes``: how others ended, for those that did not complete. ``returned``: what the task
    returned, by position, if that is split into several keys. ``let_in``, ``ended``: how many
    elements.
    """

    plan: MappedNode
    gate: Gate | None
    priority: float
    counts_as_completed: bool
    pending: dict[int, Element] = field(default_factory=dict)
    outcomes: dict[int, int] = field(default_factory=dict)
    returned: dict[int, Any] = field(default_factory=dict)
    let_in: int = 0
    ended: int = 0
    has_failures: bool = False
    is_open: bool = False
    is_known: bool = False
    is_gathered: bool = False


@dataclass(slots=True, eq=False)
class _Group:
    """Mapped nodes whose elements are let in together. ``alive``: by position, those not ended.

    ``first``: the nodes that take no elements of another node of the group. ``foreign``: the nodes
    of other groups whose elements it takes. ``lists``: the keys of its axis; ``sources``: those of
    them that are sources and that no other group reads. ``room``: how many positions may be alive.
    ``next``: the position that is let in next.
    """

    members: list[_Mapped]
    first: list[_Mapped]
    axis: Axis
    foreign: list[_Mapped]
    lists: list[str]
    room: float
    sources: list[str] = field(default_factory=list)
    next: int = 0
    alive: dict[int, int] = field(default_factory=dict)
    is_open: bool = False


class Elements:
    """The elements of one run's mapped nodes, as nodes of a ready set.

    A mapped node itself is a node of the ready set that no task is sent for: it starts when the
    lists that it maps over are there, and ends when all of its elements have ended.

    ``sources``: by key, the inputs of the run that are read while it goes on. ``take``: makes of
    such a value one that its source does not change any more. ``limit``: how many nodes may run at
    once. ``keeps``: whether whole lists are kept of keys that no node takes whole.
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
        keeps: bool,
    ) -> None:
        self._plan = plan
        self._ready = ready
        self._caller = caller
        self._keeps = keeps
        self._limit = math.inf if limit is None else limit
        self._sources = sources
        self._lists = {key: Row.of_source(source, take) for key, source in sources.items()}
        self._source_keys = plan.lists()
        self._rows: dict[str, dict[int, Any]] = {}
        self._mapped: dict[DAGNode, _Mapped] = {}
        for node, mapped in plan.mapped.items():
            gate = None if node.max_parallel is None else Gate(node.max_parallel)
            counts = any(key in producers for key in mapped.lists)
            self._mapped[node] = _Mapped(mapped, gate, priority.get(node, 0.0), counts)
            self._rows.update((key, {}) for key in node.outputs)
        self._groups = [self._group(members) for members in plan.groups]
        self._zips = any(mapped.zips for mapped in plan.mapped.values())
        self._readers = {
            key: [n for n, group in enumerate(self._groups) if key in group.lists]
            for key in sources
        }
        self._read_together = {key: self._connected(key) for key in sources}
        for key, readers in self._readers.items():
            if len(readers) == 1:
                self._groups[readers[0]].sources.append(key)
        self._read_later = {
            other
            for mapped in plan.mapped.values()
            for other in mapped.by_element.values()
            if plan.mapped[other].group != mapped.group
        }
        self._gathered = 0  # mapped nodes whose elements have all ended
        self.has_more = False
        """Whether ``pop`` has stopped early, and is to be called again."""
        self.is_stopped = False
        """Whether nothing more is to be read or let in."""
        self.waits_for_reader = False
        """Whether more would be let in if the reader had read more."""

    def _group(self, members: Sequence[MappedNode]) -> _Group:
        own = {mapped.node for mapped in members}
        lists = lists_of(members[0].axis)
        windows = [self._sources[key].window for key in lists if key in self._sources]
        rooms = [math.inf if window is None else window for window in windows]
        all_taken = {o: None for mapped in members for o in mapped.by_element.values()}
        first = [m for m in members if own.isdisjoint(m.by_element.values())]
        return _Group(
            [self._mapped[m.node] for m in members],
            [self._mapped[m.node] for m in first],
            members[0].axis,
            [self._mapped[other] for other in all_taken if other not in own],
            lists,
            min(rooms, default=2 * self._limit),
        )

    # Lists

    def check(self, values: Mapping[str, Any], keys: Iterable[str], of: DAGNode) -> None:
        """Take the lists that are mapped over among what a node gives under these keys.

        Raises ``OutputShapeError`` if one cannot be mapped over.
        """
        for key in keys:
            if key in self._source_keys:
                if not is_list(values[key]):
                    raise OutputShapeError(
                        f"node {of.task_name!r} gives {key!r}, which is mapped over, as a "
                        f"{type(values[key]).__name__}; return a list",
                        task_name=of.task_name,
                    )
                self._lists[key] = Row(values[key])

    def take_inputs(self, values: Mapping[str, Any]) -> None:
        """Take the lists that are mapped over among the inputs of the run."""
        for key in self._source_keys:
            if key in values:
                self._lists[key] = Row(values[key])

    def append(self, key: str, value: Any) -> None:
        """An async source has given one more value."""
        self._lists[key].append(value)
        if self._zips:  # another list has ended, perhaps, and this one goes on
            self._gather_ended()

    def end(self, key: str) -> None:
        """An async source has ended."""
        self._lists[key].is_ended = True
        self._gather_ended()

    def has_room(self, key: str) -> bool:
        """Whether a source may be read further."""
        known = self._lists[key].known
        growing = {n for n in self._read_together[key] if self._may_grow(self._groups[n])}
        governing = [
            self._groups[n]
            for n in self._readers[key]
            if n in growing and not self._plan.waits_for[n] & growing
        ]
        return bool(governing) and all(
            self._has_room(group, known - group.next) for group in governing
        )

    def _connected(self, key: str) -> set[int]:
        """The numbers of the groups that read a source, or another that is zipped with it.

        One that waits for another of them says nothing about room: it would wait for itself.
        """
        found, keys = set[int](), {key}
        while True:
            more = {n for n, group in enumerate(self._groups) if not keys.isdisjoint(group.lists)}
            if more == found:
                return found
            found = more
            keys.update(other for n in found for other in self._groups[n].lists)

    def _may_grow(self, group: _Group) -> bool:
        """Whether further positions may come: its lists have not ended, or are not there yet."""
        if group.is_open:
            return self._length(group.axis) is None
        return not all(self._ready.has_ended(member.plan.node) for member in group.members)

    def _has_room(self, group: _Group, more: int = 0) -> bool:
        """Whether a further position may exist. ``more``: that are there and not let in."""
        alive, unread = len(group.alive) + more, self._caller.unread()
        if alive < group.room <= alive + unread:
            self.waits_for_reader = True
        return alive + unread < group.room

    def close(self) -> Iterable[Callable[[], None]]:
        """What closes the sources that are generators. Each may raise whatever these raise."""
        return [self._lists[key].close for key in self._sources]

    # What elements ask

    def inputs(self, element: Element, values: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of an element by key. A key without a value is left out."""
        plan, index = self._mapped[element.node].plan, element.index
        found = {key: values[key] for key in plan.whole_keys if key in values}
        for key in plan.lists:
            found[key] = self._lists[key][index]
        for key in plan.by_element:
            row = self._rows[key]
            if index in row:
                found[key] = row[index]
        return found

    def store(self, element: Element, result: Any, stored: Mapping[str, Any]) -> None:
        """Put what an element gives into the rows of its keys."""
        for key, value in stored.items():
            self._rows[key][element.index] = value
        if self._keeps and len(stored) > 1:
            self._mapped[element.node].returned[element.index] = result

    def dependencies(self, element: Element) -> list[str]:
        """The names of what an element depends on."""
        plan = self._mapped[element.node].plan
        by_element = dict.fromkeys(plan.by_element.values())
        return [
            *(other.task_name for other in plan.whole),
            *(f"{other.task_name}[{element.index}]" for other in by_element),
        ]

    def returned(self, node: DAGNode) -> dict[int, Any]:
        """What a node's tasks have returned so far, by position."""
        outputs = node.outputs
        return self._rows[outputs[0]] if len(outputs) == 1 else self._mapped[node].returned

    def row(self, key: str) -> dict[int, Any]:
        """The values of a mapped node's key, by position, as far as they are kept."""
        return self._rows[key]

    def source_values(self, element: Element) -> list[Any]:
        """What an element is given of sources."""
        keys = self._mapped[element.node].plan.lists
        return [self._lists[key][element.index] for key in keys if key in self._sources]

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
            else:
                return node
        self.has_more = True
        return None

    def ended(self, element: Element) -> None:
        """An element has ended, and the ready set has been told so."""
        mapped, index = self._mapped[element.node], element.index
        outcome = self._ready.outcome(element)
        del mapped.pending[index]
        self._ready.forget(element)
        self._note_end(mapped, index, outcome)

    def _open(self, mapped: _Mapped) -> None:
        """The lists of a node's axis are there."""
        mapped.is_open = True
        group = self._groups[mapped.plan.group]
        group.is_open = all(member.is_open for member in group.members)
        if group.is_open:
            self._gather_ended()

    def _let_in_the_last(self) -> None:
        """Let in the last positions of an axis before others go on, so that all end together.

        Without a limit there is nothing to choose between.
        """
        if self._limit == math.inf or self._ready.is_full:
            return
        for group in self._groups:
            length = self._length(group.axis) if group.is_open else None
            while length is not None and 0 < length - group.next <= self._limit:
                if not self._may_let_in(group):
                    break
                self._let_in(group)

    def _let_in_one(self) -> bool:
        """Let in one more position, of the last group that has one. ``False`` if there is none."""
        if self._ready.is_full:
            return False
        for group in reversed(self._groups):
            if group.is_open and self._may_let_in(group):
                self._let_in(group)
                return True
        return False

    def _is_there(self, group: _Group) -> bool:
        """Whether the group's next position exists. A source is read for it, if there is room."""
        length = self._length(group.axis)
        if length is not None:
            return group.next < length
        has_ended = False
        try:
            for key in group.lists:
                row = self._lists[key]
                if not row.is_ended and row.known <= group.next and self.has_room(key):
                    row.read()
                    has_ended = has_ended or row.is_ended
        except BaseException as error:  # the source's own
            self._caller.source_failed(error)
            if isinstance(error, Exception):
                return False
            raise
        # A list may have ended, also one that others map over, or goes on while another has ended.
        if has_ended or self._length(group.axis) is not None:
            self._gather_ended()
        return group.next < self._known(group.axis)

    def _known(self, axis: Axis) -> int:
        """How many positions of an axis are there so far."""
        if isinstance(axis, str):
            return self._lists[axis].known
        return min(map(self._known, axis))

    def _length(self, axis: Axis) -> int | None:
        """How many positions an axis has in all; ``None`` if that is not known yet.

        Axes that are taken together end with the shortest, once it is known which that is.
        """
        if isinstance(axis, str):
            row = self._lists[axis]
            return row.known if row.is_ended else None
        lengths = {part: self._length(part) for part in axis}
        shortest = min((n for n in lengths.values() if n is not None), default=None)
        if shortest is None or any(
            length is None and self._known(part) <= shortest for part, length in lengths.items()
        ):
            return None
        return shortest

    def _is_even(self, axis: Axis) -> bool:
        """Whether axes that are taken together have the same length."""
        if isinstance(axis, str):
            return True
        return len({self._length(part) for part in axis}) == 1 and all(map(self._is_even, axis))

    def _may_let_in(self, group: _Group) -> bool:
        return (
            self._has_room(group)
            and any(map(self._could_start, group.first))
            and self._is_there(group)
            and all(other.let_in > group.next for other in group.foreign)
        )

    def _could_start(self, mapped: _Mapped) -> bool:
        """Whether an element of a node might start at once if it were let in."""
        if mapped.gate is not None and not mapped.gate.is_open:
            return False
        return mapped.plan.node.join == "any" or all(map(self._ready.has_ended, mapped.plan.whole))

    def _let_in(self, group: _Group) -> None:
        index = group.next
        group.next += 1
        group.alive[index] = len(group.members)
        never_run: list[Element] = []
        for mapped in group.members:
            mapped.let_in += 1
            element = Element(mapped.plan.node, index, self)
            if self._caller.restored(element):
                self._note_end(mapped, index, COMPLETED)
            elif not self._add(element, mapped):
                never_run.append(element)
        if never_run:
            self._caller.skip(never_run)

    def _add(self, element: Element, mapped: _Mapped) -> bool:
        index = element.index
        pending: list[Any] = list(mapped.plan.whole)
        ended = [COMPLETED] if mapped.counts_as_completed else []
        for node in mapped.plan.by_element.values():
            other = self._mapped[node]
            if index in other.pending:
                pending.append(other.pending[index])
            else:
                ended.append(other.outcomes.get(index, COMPLETED))
        mapped.pending[index] = element
        return self._ready.add(
            element,
            pending,
            mapped.priority,
            mapped.plan.node.join,
            ended=ended,
            gate=mapped.gate,
        )

    def _note_end(self, mapped: _Mapped, index: int, outcome: int) -> None:
        group = self._groups[mapped.plan.group]
        mapped.ended += 1
        if outcome != COMPLETED:
            mapped.outcomes[index] = outcome
            mapped.has_failures = mapped.has_failures or outcome == FAILED
        group.alive[index] -= 1
        if not group.alive[index]:
            del group.alive[index]
            self._release(group, index)
        self._gather_if_ended(mapped)

    def _release(self, group: _Group, index: int) -> None:
        """Drop the values at a position that nobody will ask for any more."""
        for mapped in group.members:
            node = mapped.plan.node
            if node not in self._read_later:
                if mapped.outcomes.pop(index, None) == SKIPPED:
                    self._caller.forget(f"{node.task_name}[{index}]")
                for key in node.outputs:
                    if not self._keeps and key not in self._plan.gathered:
                        self._rows[key].pop(index, None)
        for key in group.sources:
            self._lists[key].drop(index)

    def _gather_ended(self) -> None:
        for mapped in self._mapped.values():
            self._gather_if_ended(mapped)

    def _gather_if_ended(self, mapped: _Mapped) -> None:
        plan = mapped.plan
        if mapped.is_gathered or not self._groups[plan.group].is_open:
            return
        length = self._length(plan.axis)
        if length is not None and not mapped.is_known:
            mapped.is_known = True
            self._caller.known(plan.node, length)
        if length is None or mapped.ended < length:
            return
        mapped.is_gathered = True
        self._gathered += 1
        is_even = self._is_even(plan.axis)
        if plan.zips and not is_even:
            self._caller.uneven(plan.node, self._uneven_error(plan))
        self._caller.gathered(plan.node, is_whole=is_even and not mapped.has_failures)

    def _uneven_error(self, plan: MappedNode) -> OutputShapeError:
        axes: dict[str, Axis] = {key: key for key in plan.lists}
        axes |= {key: self._mapped[node].plan.axis for key, node in plan.by_element.items()}
        lengths = {key: self._length(axis) for key, axis in axes.items()}
        listed = ", ".join(
            f"{key!r} has {'more' if length is None else length}" for key, length in lengths.items()
        )
        return OutputShapeError(
            f"node {plan.node.task_name!r} maps over lists together that differ in length: "
            f"{listed}; give them the same length",
            task_name=plan.node.task_name,
        )
