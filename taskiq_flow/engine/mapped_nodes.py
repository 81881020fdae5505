"""The mapped nodes of one run: what becomes of their elements, and the lists that these give."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import ChainMap
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from taskiq_flow.dataflow.axes import Path, element_name
from taskiq_flow.dataflow.cells import ABSENT, Cells
from taskiq_flow.dataflow.element import Element, Unreached
from taskiq_flow.dataflow.elements import Elements
from taskiq_flow.dataflow.items import ItemsNode
from taskiq_flow.dataflow.many import SOURCE
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import COMPLETED, FAILED, SKIPPED, ReadySet
from taskiq_flow.engine.earlier_elements import EarlierElements, source_digest
from taskiq_flow.engine.feeder import Feeder
from taskiq_flow.engine.replay import Replay
from taskiq_flow.engine.result_stream import ResultStream
from taskiq_flow.engine.run_events import RunEvents
from taskiq_flow.engine.run_spec import NO_SESSIONS, RunSpec
from taskiq_flow.engine.run_state import RunState, as_declared, as_whole
from taskiq_flow.errors import NODE_ERRORS, OutputShapeError
from taskiq_flow.events import NodeFailure, NodeSkipped
from taskiq_flow.generators.grant import NO_ITEMS, Grant, with_item
from taskiq_flow.journal.finished import Finished, FinishedRecords
from taskiq_flow.journal.records import GIVEN, KNOWN, record
from taskiq_flow.journal.writer import LogWriter
from taskiq_flow.values.digest import digest_of

logger = logging.getLogger("taskiq_flow")

Missing = NodeFailure | NodeSkipped

RUN_ENDED: Final = "run ended"
"""In place of a node: one of many runs has ended."""

DECLINED: Final = object()
"""A filter has left an element out."""


class Caller(Protocol):
    """The run, as its mapped nodes need it."""

    def restore_element(self, element: Element) -> int | None:
        """Store what an earlier engine has completed. Returns how it has ended, if it has."""

    def skip_again(self, element: Element) -> None:
        """A condition has skipped an element for an earlier engine."""

    def skip_nodes(self, nodes: Sequence[Any]) -> None:
        """Nodes that never run, because of what they depend on."""

    def fail_unsent(self, node: Any, error: BaseException) -> None:
        """A mapped node has failed, or an element of it, for which no task was sent."""

    def advance(self) -> None:
        """Start what may start, or end."""

    def end_unless_over(self, error: BaseException) -> None:
        """End the run with an error, if it has not ended."""


class MappedNodes:
    """Lets elements in, and gathers what they give into the values of their nodes.

    ``stream``: where the reader is given values. ``replay``: the order of those that earlier
    engines have completed. ``log``: of a run with a journal. ``limit``: how many nodes may run at
    once. ``collects``: whether the reader is given failures in the places of values.
    """

    def __init__(
        self,
        spec: RunSpec[Any],
        ready: ReadySet[Any],
        state: RunState[Any],
        caller: Caller,
        *,
        stream: ResultStream[Any],
        events: RunEvents[Any],
        replay: Replay,
        log: LogWriter[Any] | None,
        limit: int | None,
        collects: bool,
    ) -> None:
        if spec.elements is None:
            raise ValueError("no node of the run is mapped")
        self._spec = spec
        self._log = log
        self._plan = spec.elements
        self._ready = ready
        self._state = state
        self._collects = collects
        self._caller = caller
        self._stream = stream
        self._deliver: Callable[[Any, Any], None] = stream.deliver
        self._events = events
        self._replay = replay
        self._is_resumed = spec.earlier is not NO_SESSIONS
        self._earlier = EarlierElements(spec, self._plan, state.run_id)
        self._given = next((n for n in self._plan.mapped if n.given_key == SOURCE), None)
        self._held_back: dict[tuple[DAGNode, Path], tuple[Any, Missing]] = {}  # of generators
        self._loop = asyncio.get_running_loop()
        self._missing: dict[DAGNode, Cells] = {}  # if these are collected
        self._uneven: set[DAGNode] = set()
        self._finished = FinishedRecords()
        passed_over = spec.earlier.passed_over
        self._elements = Elements(
            self._plan,
            ready,
            self,
            priority=spec.priority,
            producers={key for node in spec.nodes for key in node.outputs},
            sources=spec.sources,
            take=spec.take,
            limit=limit,
            lists_at=spec.lists_at,
            items=bool(spec.items),
            is_resumed=self._is_resumed,
            tells_positions=log is not None or spec.ahead is not None,
            passed_over={} if passed_over is None else passed_over.positions,
        )
        state.elements = self._elements.values
        self.room = self._elements.room
        self.pop: Callable[[], Any] = self._elements.pop
        self._feeders = [
            self._feeder(key, source.items)
            for key, source in spec.sources.items()
            if isinstance(source.items, AsyncIterable)
        ]

    def _feeder(self, key: str, items: AsyncIterable[Any]) -> Feeder:
        def take(value: Any) -> None:
            self._elements.append(key, value)
            self._caller.advance()

        def ended() -> None:
            self._elements.end(key)
            self._caller.advance()

        has_room = functools.partial(self._elements.room.has_room, key)
        return Feeder(
            items, take=take, has_room=has_room, ended=ended, fail=self._caller.end_unless_over
        )

    # For the run

    def start(self) -> None:
        """Take the lists of the run's inputs, and begin to read async sources."""
        self._elements.lists.take_inputs(self._spec.inputs)
        for feeder in self._feeders:
            feeder.start()

    @property
    def reads_async_sources(self) -> bool:
        """Whether ``make_room`` has anything to do."""
        return bool(self._feeders)

    def make_room(self) -> None:
        """Elements have ended, or were read: look again whether sources may be read further."""
        for feeder in self._feeders:
            feeder.make_room()

    def stop(self) -> list[asyncio.Task[None]]:
        """Read nothing more of sources. Returns the asyncio tasks that are still to end."""
        if self._log is not None:
            for finished in self._finished.rest():
                self._log.append(finished)
        self._elements.stop()
        for feeder in self._feeders:
            feeder.stop()
        return [feeder.task for feeder in self._feeders if feeder.task is not None]

    def close(self) -> None:
        """Close the sources that are generators."""
        for close in self._elements.lists.close():
            try:
                close()
            except Exception:  # of the generator's own code; the run has ended already
                logger.exception("a source of run %r raised when it was closed", self._state.run_id)

    def look_again(self) -> None:
        """Call ``pop`` again soon, or end the run."""
        self._loop.call_soon(self._caller.advance)

    # Generators

    def gives_items(self, node: Any) -> bool:
        """Whether a node's items are taken one by one, while its task runs."""
        generators = self._plan.generators
        return bool(generators) and as_whole(node) in generators

    def begin_items(self, node: Any, *, remembers: bool) -> Grant:
        """A generator is about to be sent: take what earlier engines have of its items.

        ``remembers``: whether it may be executed once more.
        """
        items: list[Any] = []
        results = self._spec.earlier.results
        while (name := self._item_name(node, len(items))) in results:
            items.append(results[name])
        if items:
            self._elements.generator_items.take(node, items)
        digest = b""
        if remembers:
            digest = functools.reduce(with_item, map(digest_of, items), NO_ITEMS)
        return Grant(len(items), digest)

    def take_items(self, node: Any, first: int, items: Sequence[Any], attempt: int) -> None:
        """A generator has given more items. Raises what the journal's serializer raises."""
        if self._log is not None:
            for index, item in enumerate(items, first):
                self._log.append(self._log.completion(self._item_name(node, index), attempt, item))
        self._elements.generator_items.take(node, items)

    def hold_back(self, node: Any, value: Missing) -> None:
        """A generator has failed, or was skipped: this is delivered behind its last item."""
        path = node.path if isinstance(node, Element) else ()
        if path and is_missing(value):
            self.missing(node, value)
        self._held_back[self._plan.generators[as_whole(node)], path] = node, value

    def _deliver_held_back(self, items: DAGNode, path: Path) -> None:
        found = self._held_back.pop((items, path), None)
        if found is not None and (self._spec.items or len(path) == self._spec.lists_at):
            self._deliver(*found)

    def lead(self, node: Any) -> float:
        """How many items a generator may still make now."""
        return self._elements.generator_items.lead(node)

    def enough(self, node: Any) -> int:
        """How many more items a generator is told of at least."""
        return self._elements.generator_items.enough(node)

    def _item_name(self, node: Any, index: int) -> str:
        path = node.path if isinstance(node, Element) else ()
        return element_name(as_whole(node).task_name, (*path, index))

    def inputs(self, node: Any, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The inputs of a node by key. ``values``: of the nodes that are whole."""
        if self._state.partial and node.join == "ended":
            values = ChainMap(self._state.partial, self._state.values)
        return self._elements.values.inputs(node, values) if isinstance(node, Element) else values

    def store(self, node: Any, value: Any) -> Any:
        """Store what a node gives. Returns what its reader is given, or ``DECLINED``.

        Raises ``OutputShapeError``, with nothing stored.
        """
        if self._plan.generators and self.gives_items(node):
            return self._all_items(node, value)
        if isinstance(node, Element):
            if (key := node.node.filtered) is not None:
                value = self._elements.values.mapped_value(node, key) if value else ABSENT
                if value is ABSENT:
                    return DECLINED
            self._elements.values.store(node, value)
            return value
        stored: dict[str, Any] = {}
        node.store(value, stored)
        self._elements.lists.check(stored, node.outputs, node)
        self._state.values.update(stored)
        return value

    def _all_items(self, node: Any, value: Any) -> int:
        """A generator has ended. ``value``: how many items it gave, or all of them."""
        count = value
        if isinstance(value, list):
            count = len(value)
            self._elements.generator_items.take(node, value)
        elif node.task_name in self._spec.earlier.results:
            self.begin_items(node, remembers=False)
        if node in self._plan.openings and self._ready.has_ended(node):  # for an earlier engine
            self._elements.generator_items.ended(node)
        return int(count)

    def ended(self, node: Any) -> None:
        """A node has ended, and the ready set has been told so."""
        if isinstance(node, Element):
            if self._held_back:
                self._deliver_held_back(node.node, node.path)
                if len(node.path) == self._spec.lists_at and node.node in self._missing:
                    self._missing[node.node].drop(node.path)
            self._elements.ended(node)
        elif node in self._plan.openings:
            self._elements.generator_items.ended(node)
        elif node in self._plan.mapped:  # it has no lists
            self._elements.ends.never(node)
            self._deliver_held_back(node, ())
            self._replay.was_yielded(as_declared(node))

    def missing(self, element: Element, what: Missing) -> None:
        """Under ``"collect"``, an element has failed, or was skipped because of a failure."""
        if self._spec.lists_at is not None:
            node = self._plan.generators.get(element.node, element.node)
            cells = self._missing.setdefault(node, Cells())
            if cells.place_of(element.path) == element.path:  # else all around it is missing
                cells.put(element.path, what)

    # For the elements

    def restored(self, element: Element) -> int | None:
        """Store what an earlier engine has completed, or what a run is given."""
        node, before = element.node, b""
        if self._is_resumed:
            before = self._earlier.digest(element)
            if (error := self._earlier.change(element, before)) is not None:
                self._caller.end_unless_over(error)
        if (key := node.given_key) is not None:
            if node is self._given and self._log is not None and not before:
                self._log.append(record(GIVEN, element.task_name, 0, source_digest(element)))
            return self._pass_on(element, self._elements.values.mapped_value(element, key))
        if not self._is_resumed or not self._can_be_restored(element):
            return None  # if it was completed, it is restored when it would start
        outcome = self._caller.restore_element(element)
        if outcome is None and self._earlier.is_finished(element):
            self._caller.skip_again(element)
            return SKIPPED
        if outcome is None:
            self._earlier.add_new(element)
        return outcome

    def passed_over(self, element: Element) -> None:
        """Tell of an element that is not let in, as nobody asks for what it gave."""
        if (error := self._earlier.change(element, self._earlier.digest(element))) is not None:
            self._caller.end_unless_over(error)
        passed = self._spec.earlier.passed_over
        if element.node.given_key is not None or passed is None:
            return
        if passed.is_skipped(element.node.task_name, element.path):
            self._events.skipped(element, (), "condition", 0)
        else:
            self._events.kept(element)

    def _pass_on(self, element: Element, value: Any) -> int:
        """Give an element its value, without a task. Returns how it has ended."""
        try:
            element.store(value, {})
        except NODE_ERRORS as error:  # of one run's inputs, also of user code within them
            self._caller.fail_unsent(element, error)
            return FAILED
        node = element.node
        if isinstance(node, ItemsNode):
            self._elements.lists.drop_item(node.given_key, element.path)
            is_restored = self._earlier.has_item(element)
            if not is_restored:
                self._earlier.add_new(element)
            if self._spec.items and (self._spec.earlier.is_replayed or not is_restored):
                self._deliver(element, value)
        return COMPLETED

    def _can_be_restored(self, element: Element) -> bool:
        """Whether what the element gives is there. A filter of lists gives what it was given."""
        key = element.node.filtered
        return key is None or self._elements.values.mapped_value(element, key) is not ABSENT

    def skip(self, elements: Sequence[Element]) -> None:
        """Elements that never run, because of what they depend on."""
        self._caller.skip_nodes(elements)

    def known(self, node: DAGNode, within: Path, count: int) -> None:
        """A node maps over so many elements within a path, or over so many lists of them."""
        if isinstance(node, ItemsNode):  # its generator tells how many items it has given
            return
        name = element_name(node.task_name, within)
        if not self._spec.sources.keys().isdisjoint(self._plan.mapped[node].lists):
            if (error := self._earlier.missing_items(name, count)) is not None:
                self._caller.end_unless_over(error)
            elif self._log is not None and self._spec.earlier.lengths.get(name) != count:
                self._log.append(record(KNOWN, name, 0, str(count).encode()))
        if node is not self._given:  # which listeners are not told of
            self._events.elements_known(name, count)

    def gathered_within(self, name: str) -> None:
        """Elements within a path have ended, and some of them have failed."""
        self._state.incomplete.add(name)

    def cut(self, element: Unreached) -> None:
        """A generator has failed: the list that an element has is not whole."""
        if self._is_own_row(element.node, element.path):
            self._deliver_held_back(element.node, element.path)
        elif self._collects:
            self.missing(element, self._cut(element))

    def _is_own_row(self, node: DAGNode, path: Path) -> bool:
        """Whether a path leads to the items that one generator gives. It tells of its failure."""
        if not isinstance(node, ItemsNode):
            return False
        mapped = self._plan.mapped.get(node.generator)
        return len(path) == (0 if mapped is None else len(mapped.axes))

    def _cut(self, node: Any) -> NodeSkipped:
        """What stands in the place of a list of which elements are missing."""
        because_of, reason = self._state.reason_to_skip(node)
        name, at = node.task_name, self._loop.time()
        return NodeSkipped(self._state.run_id, at, name, because_of, reason, node.index)

    def listed(self, element: Element, *, is_whole: bool) -> None:
        """The elements of a node within one run have ended."""
        if element.node in self._plan.generators:
            return
        missing = self._missing.get(element.node, Cells())
        instead = missing.get(element.path)
        if is_missing(instead):  # of the items of a generator, it is delivered already
            if not self._is_own_row(element.node, element.path):
                self._deliver(element, instead)
        elif (is_whole or self._collects) and self._earlier.is_list_new(element.node, element.path):
            self._deliver(element, self._elements.values.whole(element.node, element.path, missing))
        missing.drop(element.path)

    def position_ended(
        self, name: str, path: Path, skipped: Sequence[str], *, has_failures: bool
    ) -> None:
        """All that is at a position has ended. Delivers the end of one of many runs.

        With that, whether it had ended before, without a failure.
        """
        had_ended = not has_failures and path[0] in self._spec.earlier.finished.get(name, ())
        if self._log is not None and not (has_failures or had_ended):
            self._note_finished(self._log, name, path, skipped)
        if self._given is not None and name == self._given.task_name:
            for cells in self._missing.values():
                cells.drop(path)
            self._earlier.position_ended(path)
            self._deliver(RUN_ENDED, (path, had_ended))

    def _note_finished(
        self, log: LogWriter[Any], name: str, path: Path, skipped: Sequence[str]
    ) -> None:
        if self._given is not None:  # its reader is not given it again, so it is written at once
            finished_input = Finished.at(name, path[0], skipped)
            log.append(finished_input.encoded(element_name(name, path)))
        elif (finished := self._finished.add(name, path[0], skipped)) is not None:
            log.append(finished)

    def source_failed(self, error: BaseException) -> None:
        """A source has raised an error, which the reader gets as it is."""
        self._caller.end_unless_over(error)

    def forget(self, name: str) -> None:
        """An element has not completed, and no node will ask why any more."""
        self._state.forget(name)

    def unread(self) -> int:
        """How many elements the reader has still to read, if they are yielded."""
        is_read = self._spec.items or self._spec.ahead is not None
        return len(self._stream) if is_read else 0

    def ahead(self) -> int:
        """How many of many runs have ended, and wait for an earlier one to be read."""
        return 0 if self._spec.ahead is None else self._spec.ahead()

    def uneven(self, node: DAGNode, error: OutputShapeError) -> None:
        """A node takes lists together that differ in length."""
        self._uneven.add(node)
        if node not in self._plan.generators:  # it is told behind its last item
            self._caller.fail_unsent(as_declared(node), error)

    def uneven_within(self, element: Element, error: OutputShapeError) -> None:
        """A node takes lists together within a path that differ in length."""
        if element.node not in self._plan.generators:  # it is told behind its last item
            self._caller.fail_unsent(element, error)
            if len(element.path) == self._spec.lists_at and element.node in self._missing:
                self._missing[element.node].drop(element.path)

    def gathered(self, node: DAGNode, *, is_whole: bool, is_cut: bool) -> None:
        """All elements of a node have ended: its lists are as whole as they will be."""
        if node not in self._plan.generators:
            self._give_lists(node, is_whole=is_whole, is_cut=is_cut)
        if is_whole:
            never_run = self._ready.complete(node)
        else:
            self._state.incomplete.add(node.task_name)
            never_run = self._ready.fail(node)
        self._caller.skip_nodes(never_run)

    def _give_lists(self, node: DAGNode, *, is_whole: bool, is_cut: bool) -> None:
        """Give what takes a node's lists as wholes: nodes, and the reader."""
        store = self._state.values if is_whole else self._state.partial
        if self._spec.lists_at == 0 or not self._plan.gathered.isdisjoint(node.outputs):
            for key in node.outputs:
                store[key] = self._elements.values.lists(key, node)
        self._state.sort_failures(node.task_name)
        is_given = is_whole or (self._collects and node not in self._uneven)
        if is_cut:  # the reader is given the failure of the generator
            is_given = is_given and not self._is_own_row(node, ())
        if self._spec.lists_at == 0 and is_given and self._earlier.is_list_new(node, ()):
            missing = self._missing.pop(node, None)
            whole = self._cut(node) if is_cut else self._elements.values.whole(node, (), missing)
            self._deliver(node, whole)
        self._deliver_held_back(node, ())
        self._replay.was_yielded(as_declared(node))


def is_missing(value: Any) -> bool:
    """Whether a failure is what stands in the place of a value in a list."""
    is_skipped = isinstance(value, NodeSkipped) and value.reason == "failure"
    return is_skipped or isinstance(value, NodeFailure)
