"""A run of a graph with mapped nodes: it has elements and reads sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.items import ItemsNode
from taskiq_flow.dataflow.ready_set import Join, ReadySet
from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.elements.element import Element
from taskiq_flow.engine.mapped_lists import RUN_ENDED, is_missing
from taskiq_flow.engine.mapped_nodes import MappedNodes
from taskiq_flow.engine.node_run import NodeRun
from taskiq_flow.engine.run import Run
from taskiq_flow.engine.run_spec import PLAIN_OPTIONS
from taskiq_flow.engine.run_state import SkipReason, as_whole
from taskiq_flow.engine.start_loop import RestOfStart
from taskiq_flow.events import Item, NodeFailure, NodeSkipped
from taskiq_flow.notes import new_item
from taskiq_flow.values.inspection import NEVER_CHANGE


class MappedRun(Run):
    """A run whose nodes are partly mapped. ``RunSpec.elements`` has their plan."""

    def _prepared(self) -> tuple[Callable[[], Any], Callable[[Any], RestOfStart | None]]:
        self._mapped = MappedNodes(
            self._spec,
            self._ready,
            self._state,
            self,
            stream=self.stream,
            events=self._events,
            replay=self._replay,
            log=self._log,
            limit=self._settings.max_parallel,
            collects=self._collects,
        )
        self._lists_at, self._gives_items = self._spec.lists_at, bool(self._spec.items)
        self._room = self._mapped.room
        return self._mapped.pop, self._starter

    @property
    def _plan(self) -> ElementPlan:
        if self._spec.elements is None:
            raise AssertionError("no node of the run is mapped")
        return self._spec.elements

    def _ready_set(self) -> ReadySet[Any]:
        spec, plan = self._spec, self._plan
        edges: Any = plan
        no_tasks = dict.fromkeys((*plan.mapped, *plan.openings.values()))
        # A mapped node starts whichever way its lists have ended: it ends behind other nodes too.
        joins: dict[Any, Join] = {**spec.joins, **dict.fromkeys(plan.mapped, "ended")}
        return ReadySet.of_graph(
            dict.fromkeys((*spec.nodes, *no_tasks)),
            edges.predecessors,
            edges.successors,
            spec.priority,
            self._settings.max_parallel,
            joins,
            self._restored,
            no_tasks,
        )

    def _begin(self) -> None:
        self._mapped.start()
        if self._spec.ahead is not None:
            self._spec.ahead.when_fewer = self._look_after_reading

    def take(self) -> tuple[str, Any]:
        """The next result of ``stream``, for the reader."""
        node, value = self.stream.unread.popleft()
        if self._room.waits_for_reader:
            self._look_after_reading()
        if isinstance(node, Element):
            if type(value) not in NEVER_CHANGE:
                value = self._to_reader(node, value)
            path = node.path
            return node.node.task_name, new_item(path[0] if len(path) == 1 else path, value)
        if isinstance(node, str):  # ``RUN_ENDED``
            return RUN_ENDED, Item(*value)
        return node.task_name, self._to_reader(node, value)

    def read_ahead(self, count: int) -> None:
        """As of any run. With fewer of them there may be more room."""
        is_less = count < self.stream.read_ahead
        super().read_ahead(count)
        if is_less and self._room.waits_for_reader:
            self._look_after_reading()

    def _look_after_reading(self) -> None:
        """There may be more room, as the reader has read more."""
        self._room.waits_for_reader = self._room.lets_in_none = False  # until known anew
        self._loop.call_soon(self.advance)

    # Elements

    def _node_run(self, node: RunnableNode) -> NodeRun:
        spec = self._spec
        declared: Any = node.node if isinstance(node, Element) else node
        options = spec.options.get(declared, PLAIN_OPTIONS)
        inputs = self._mapped.inputs(node)
        return NodeRun(node, self, options, inputs, spec.earlier)

    def _start_or_restore(self, node: RunnableNode) -> RestOfStart | None:
        if isinstance(node, Element) and self._mapped.earlier.was_skipped(node):
            never_run = self._ready.skip(node)
            self.skip_again(node)
            self._go_on_after(node, never_run)
            return None
        return super()._start_or_restore(node)

    def advance(self) -> None:
        """After every change: start what may start, read sources as there is room, or end."""
        super().advance()
        if self._mapped.reads_async_sources and not self._is_over:
            self._mapped.make_room()

    def _store(self, node: Any, value: Any) -> Any:
        return self._mapped.store(node, value)

    def _note_end(self, node: Any) -> None:
        self._mapped.ended(node)

    def _tell_skip(
        self, node: RunnableNode, because_of: tuple[str, ...], reason: SkipReason, attempt: int = 0
    ) -> None:
        if not isinstance(as_whole(node), ItemsNode):  # its generator was skipped, or has failed
            super()._tell_skip(node, because_of, reason, attempt)

    def fail_unsent(self, node: Any, error: BaseException) -> None:
        """A mapped node has failed, or an element of it, for which no task was sent."""
        name, index = node.task_name, node.index
        self._state.add_failure(node, error)
        self._events.failed_unsent(node, error)
        if self._on_error == "raise":
            self.end(self._state.node_failed(name, "", 0, ""))
        elif self._collects:
            self._deliver(node, NodeFailure(name, "", error, 0, index))

    def fail_ahead(self, node: Any, error: BaseException) -> None:
        """A mapped node will fail when others have ended. Not every run waits for that."""
        if self._on_error == "raise":
            self.fail_unsent(node, error)

    def _deliver(self, node: Any, value: Any) -> None:
        """Give the reader what a node gives; what an element gives, if items are asked for."""
        if isinstance(node, Element):
            is_list = len(node.path) == self._lists_at
            if not is_list and isinstance(value, (NodeFailure, NodeSkipped)) and is_missing(value):
                self._mapped.mapped_lists.missing(node, value)
            if not (is_list or self._gives_items):
                return
        self.stream.put((node, value))

    # The end

    def _stop(self) -> None:
        super()._stop()
        self._reading = self._mapped.stop()

    def _close_sources(self) -> None:
        self._mapped.close()

    def _forget_values(self) -> None:
        super()._forget_values()
        self._mapped.forget()

    # Restoring what earlier engines have completed

    def restore_element(self, element: Element) -> int | None:
        """Store what an earlier engine has completed. Returns how it has ended, if it has."""
        if element.task_name not in self._spec.earlier.results:
            return None
        return self._restore(element)

    def skip_again(self, element: Any) -> None:
        """A condition has skipped an element for an earlier engine. Nothing there has failed."""
        self._tell_skip(element, self._state.skipped_dependencies(element), "condition")
