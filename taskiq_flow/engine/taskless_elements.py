"""The elements that no task is sent for: they are given their values, or are restored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from taskiq_flow.dataflow.axes import Path, element_name
from taskiq_flow.dataflow.element_plan import MappedNode
from taskiq_flow.dataflow.items import ItemsNode
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.ready_set import COMPLETED, FAILED, SKIPPED
from taskiq_flow.elements.cells import ABSENT
from taskiq_flow.elements.element import Element
from taskiq_flow.elements.lists import Lists
from taskiq_flow.elements.values import ElementValues
from taskiq_flow.engine.earlier_elements import EarlierElements, source_digest
from taskiq_flow.engine.mapped_callbacks import MappedCallbacks
from taskiq_flow.engine.replay import Replay
from taskiq_flow.engine.run_events import RunEvents
from taskiq_flow.engine.run_spec import RunSpec
from taskiq_flow.errors import NODE_ERRORS
from taskiq_flow.journal.records import GIVEN, record
from taskiq_flow.journal.writer import LogWriter


class TasklessElements:
    """Completes the elements of one run that need no task, as they are let in.

    These are the items of generators, the inputs of many runs, and what earlier engines have
    completed. ``deliver``: gives the reader the value of an element. ``replay``: the order of those
    that earlier engines have completed. ``log``: of a run with a journal. ``input_node``: gives the
    inputs of many runs. ``is_resumed``: whether earlier engines may have completed elements.
    """

    def __init__(
        self,
        spec: RunSpec,
        lists: Lists,
        values: ElementValues,
        earlier: EarlierElements,
        caller: MappedCallbacks,
        *,
        deliver: Callable[[Any, Any], None],
        events: RunEvents,
        replay: Replay,
        log: LogWriter[Any] | None,
        input_node: DAGNode | None,
        is_resumed: bool,
    ) -> None:
        self._spec = spec
        self._lists = lists
        self._values = values
        self._earlier = earlier
        self._caller = caller
        self._deliver = deliver
        self._events = events
        self._replay = replay
        self._log = log
        self._input_node = input_node
        self._is_resumed = is_resumed

    def complete_without_task(self, element: Element) -> int | None:
        """Complete an element that needs no task. Returns how it has ended; ``None`` if it has not.

        In a resumed run, ends the run if the element was given something else before.
        """
        node, before = element.node, b""
        if self._is_resumed:
            before = self._earlier.digest(element)
            if (error := self._earlier.change(element, before)) is not None:
                self._caller.end_unless_over(error)
        if (key := node.given_key) is not None:
            if node is self._input_node and self._log is not None and not before:
                self._log.append(record(GIVEN, element.task_name, 0, source_digest(element)))
            return self._store_given(element, self._values.mapped_value(element, key))
        return self._restore_earlier(element) if self._is_resumed else None

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

    def passed_over_within(self, mapped: MappedNode, path: Path) -> None:
        """Tell of the elements within such a position, of which the journal has the names."""
        passed, name = self._spec.earlier.passed_over, mapped.node.task_name
        paths = [] if passed is None else passed.within(name, path[0])
        for depth in range(len(path), len(mapped.axes)):
            lists = Counter(place[:depth] for place in {other[: depth + 1] for other in paths})
            for within in sorted(lists) or ([path] if depth == len(path) else []):
                self._events.elements_known(element_name(name, within), lists[within])
        for place in paths:
            self._events.kept(Element(mapped.node, place, self._values))

    def _store_given(self, element: Element, value: Any) -> int:
        """Give an element its value, without a task. Returns how it has ended."""
        try:
            element.store(value, {})
        except NODE_ERRORS as error:  # of one run's inputs, also of user code within them
            self._caller.fail_unsent(element, error)
            return FAILED
        node = element.node
        if isinstance(node, ItemsNode):
            self._lists.drop_item(node.given_key, element.path)
            if not self._earlier.has_item(element):
                self._earlier.add_new(element)
                if self._spec.items:
                    self._deliver(element, value)
            elif self._spec.earlier.is_replayed:
                self._replay.add(element, value)
        return COMPLETED

    def _restore_earlier(self, element: Element) -> int | None:
        """Store what an earlier engine has completed. What cannot be yet is when it would start."""
        if not self._can_be_restored(element):
            return None
        outcome = self._caller.restore_element(element)
        if outcome is None and self._earlier.was_skipped(element):
            self._caller.skip_again(element)
            return SKIPPED
        if outcome is None:
            self._earlier.add_new(element)
        return outcome

    def _can_be_restored(self, element: Element) -> bool:
        """Whether it is the element's turn, and what it gives is there.

        A filter of lists gives what it was given.
        """
        if self._replay.is_late(element) and self._earlier.has_ended(element):
            return False
        key = element.node.filtered
        return key is None or self._values.mapped_value(element, key) is not ABSENT
