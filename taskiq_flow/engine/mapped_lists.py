"""The lists that mapped nodes give, and what stands in them where elements are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from taskiq_flow.dataflow.axes import Path, element_name
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.items import ItemsNode
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import ReadySet
from taskiq_flow.elements.cells import Cells
from taskiq_flow.elements.element import Element, Unreached
from taskiq_flow.elements.values import ElementValues
from taskiq_flow.engine.earlier_elements import EarlierElements
from taskiq_flow.engine.mapped_callbacks import MappedCallbacks
from taskiq_flow.engine.run_events import RunEvents
from taskiq_flow.engine.run_spec import RunSpec
from taskiq_flow.engine.run_state import RunState, as_declared, as_whole
from taskiq_flow.errors import OutputShapeError
from taskiq_flow.events import NodeFailure, NodeSkipped
from taskiq_flow.journal.finished import Finished, FinishedRecords
from taskiq_flow.journal.records import KNOWN, record
from taskiq_flow.journal.writer import LogWriter

Missing = NodeFailure | NodeSkipped

RUN_ENDED: Final = "run ended"
"""In place of a node: one of many runs has ended."""


class MappedLists:
    """Gives lists to the nodes that take them and to the reader when their elements have ended.

    It is the ``EndsListener`` of one run. ``deliver``: gives the reader the value of a node.
    ``log``: of a run with a journal. ``input_node``: gives the inputs of many runs. ``collects``:
    whether the reader is given failures in the places of values.

    ``held_back``: how generators have failed or were skipped, until their last items are delivered.
    """

    def __init__(
        self,
        spec: RunSpec,
        plan: ElementPlan,
        ready: ReadySet[Any],
        state: RunState,
        values: ElementValues,
        earlier: EarlierElements,
        caller: MappedCallbacks,
        *,
        deliver: Callable[[Any, Any], None],
        events: RunEvents,
        log: LogWriter[Any] | None,
        input_node: DAGNode | None,
        collects: bool,
    ) -> None:
        self._spec = spec
        self._plan = plan
        self._ready = ready
        self._state = state
        self._values = values
        self._earlier = earlier
        self._caller = caller
        self._deliver = deliver
        self._events = events
        self._log = log
        self._input_node = input_node
        self._collects = collects
        self.held_back: dict[tuple[DAGNode, Path], tuple[Any, Missing]] = {}
        self._missing: dict[DAGNode, Cells] = {}  # if these are collected
        self._uneven: set[DAGNode] = set()
        self._finished = FinishedRecords()

    # For the run

    def missing(self, element: Element, what: Missing) -> None:
        """Under ``"collect"``, an element has failed, or was skipped because of a failure."""
        if self._spec.lists_at is not None:
            node = self._plan.generators.get(element.node, element.node)
            cells = self._missing.setdefault(node, Cells())
            if cells.place_of(element.path) == element.path:  # else all around it is missing
                cells.put(element.path, what)

    def hold_back(self, node: Any, value: Missing) -> None:
        """A generator has failed, or was skipped: this is delivered behind its last item."""
        path = node.path if isinstance(node, Element) else ()
        if path and is_missing(value):
            self.missing(node, value)
        self.held_back[self._plan.generators[as_whole(node)], path] = node, value

    def element_ended(self, element: Element) -> None:
        """Deliver what was held back until an element has ended."""
        self._deliver_held_back(element.node, element.path)
        self._drop_missing(element)

    def write_rest(self) -> None:
        """Write the records of positions that wait for others. Called once, at the run's end."""
        if self._log is not None:
            for finished in self._finished.rest():
                self._log.append(finished)

    # For the elements, as their ``EndsListener``

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
        if node is not self._input_node:  # which listeners are not told of
            self._events.elements_known(name, count)

    def uneven(self, node: DAGNode, error: OutputShapeError) -> None:
        """A node takes lists together that differ in length."""
        self._uneven.add(node)
        if node not in self._plan.generators:  # it is told behind its last item
            self._caller.fail_unsent(as_declared(node), error)

    def uneven_ahead(self, node: Any, error: OutputShapeError) -> None:
        """A node will fail once others have ended, as lists that it takes differ in length."""
        if as_whole(node) not in self._plan.generators:
            self._caller.fail_ahead(as_declared(node), error)

    def uneven_within(self, element: Element, error: OutputShapeError) -> None:
        """A node takes lists together within a path that differ in length."""
        if element.node not in self._plan.generators:  # it is told behind its last item
            self._caller.fail_unsent(element, error)
            self._drop_missing(element)

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

    def never(self, node: DAGNode, outcome: int) -> None:
        """A node has ended without elements, as its outermost lists have ended so."""
        never_run = self._ready.end(node, outcome)
        self._deliver_held_back(node, ())  # first, as lists may end behind the node
        self._caller.skip_nodes([node, *never_run])

    def gathered_within(self, name: str) -> None:
        """Elements within a path have ended, and some of them have failed."""
        self._state.incomplete.add(name)

    def cut(self, element: Unreached) -> None:
        """A generator has failed: the list that an element has is not whole."""
        if self._is_own_row(element.node, element.path):
            self._deliver_held_back(element.node, element.path)
        elif self._collects:
            self.missing(element, self._cut(element))

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
            self._deliver(element, self._values.whole(element.node, element.path, missing))
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
        if self._input_node is not None and name == self._input_node.task_name:
            for cells in self._missing.values():
                cells.drop(path)
            self._earlier.position_ended(path)
            self._deliver(RUN_ENDED, (path, had_ended))

    def forget(self, name: str) -> None:
        """An element has not completed, and no node will ask why any more."""
        self._state.forget(name)

    def _give_lists(self, node: DAGNode, *, is_whole: bool, is_cut: bool) -> None:
        """Give what takes a node's lists as wholes: nodes, and the reader."""
        store = self._state.values if is_whole else self._state.partial
        if self._spec.lists_at == 0 or not self._plan.gathered.isdisjoint(node.outputs):
            for key in node.outputs:
                store[key] = self._values.lists(key, node)
        self._state.sort_failures(node.task_name)
        is_given = is_whole or (self._collects and node not in self._uneven)
        cut: NodeSkipped | None = None
        if is_cut and self._is_own_row(node, ()):
            is_given = False  # the reader is given the failure of the generator
        elif is_cut and node not in self._uneven:
            cut = self._events.skipped(node, *self._state.reason_to_skip(node), 0)
        if self._spec.lists_at == 0 and is_given and self._earlier.is_list_new(node, ()):
            missing = self._missing.pop(node, None)
            self._deliver(node, cut or self._values.whole(node, (), missing))
        self._deliver_held_back(node, ())

    def _deliver_held_back(self, items: DAGNode, path: Path) -> None:
        found = self.held_back.pop((items, path), None)
        if found is not None and (self._spec.items or len(path) == self._spec.lists_at):
            self._deliver(*found)

    def _drop_missing(self, element: Element) -> None:
        """Drop what is missing of a list that is not delivered."""
        if len(element.path) == self._spec.lists_at and element.node in self._missing:
            self._missing[element.node].drop(element.path)

    def _is_own_row(self, node: DAGNode, path: Path) -> bool:
        """Whether a path leads to the items that one generator gives. It tells of its failure."""
        if not isinstance(node, ItemsNode):
            return False
        mapped = self._plan.mapped.get(node.generator)
        return len(path) == (0 if mapped is None else len(mapped.axes))

    def _cut(self, node: Any) -> NodeSkipped:
        """What stands in the place of a list of which elements are missing."""
        because_of, reason = self._state.reason_to_skip(node)
        name, at = node.task_name, self._events.now()
        return NodeSkipped(self._state.run_id, at, name, because_of, reason, node.index)

    def _note_finished(
        self, log: LogWriter[Any], name: str, path: Path, skipped: Sequence[str]
    ) -> None:
        if self._input_node is not None:  # its reader is not given it again: it is written at once
            finished_input = Finished.at(name, path[0], skipped)
            log.append(finished_input.encoded(element_name(name, path)))
        elif (finished := self._finished.add(name, path[0], skipped)) is not None:
            log.append(finished)


def is_missing(value: Any) -> bool:
    """Whether a failure is what stands in the place of a value in a list."""
    is_skipped = isinstance(value, NodeSkipped) and value.reason == "failure"
    return is_skipped or isinstance(value, NodeFailure)
