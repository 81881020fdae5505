"""A run of a graph with mapped nodes: it has elements, reads sources and drives generators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from taskiq import TaskiqResult

from taskiq_flow.dataflow.element import Element
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.items import ItemsNode
from taskiq_flow.dataflow.ready_set import COMPLETED, ReadySet
from taskiq_flow.engine.generating import Generating
from taskiq_flow.engine.mapped_nodes import RUN_ENDED, MappedNodes, is_missing
from taskiq_flow.engine.node_run import NodeRun
from taskiq_flow.engine.replay import Replay
from taskiq_flow.engine.run import N, Run
from taskiq_flow.engine.run_spec import PLAIN_OPTIONS
from taskiq_flow.engine.run_state import as_whole
from taskiq_flow.engine.sender import RestOfStart
from taskiq_flow.engine.start_loop import StartLoop
from taskiq_flow.events import Item, NodeFailure, NodeSkipped


class MappedRun(Run[N]):
    """A run whose nodes are partly mapped. ``RunSpec.elements`` has their plan."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._replay_in_order = Replay(self._spec, self._plan, self.stream)
        self._mapped = MappedNodes(
            self._spec,
            self._ready,
            self._state,
            self,
            stream=self.stream,
            events=self._events,
            replay=self._replay_in_order,
            log=self._log,
            limit=self._max_parallel,
            collects=self._collects,
        )
        pop = self._mapped.pop
        self._generating: Generating[N] | None = None
        if self._plan.generators:
            self._generating = self._begin_generating()
            self._send = self._send_or_generate
            pop = self._generating.pop
        self._start_loop = StartLoop(pop, self._start_node, self._end)
        self._wake = self._wake_and_make_room
        self._deliver = self._deliver_element

    @property
    def _plan(self) -> ElementPlan:
        if self._spec.elements is None:
            raise AssertionError("no node of the run is mapped")
        return self._spec.elements

    def _ready_set(self) -> ReadySet[Any]:
        spec, plan = self._spec, self._plan
        edges: Any = plan
        no_tasks = dict.fromkeys((*plan.mapped, *plan.openings.values()))
        return ReadySet.of_graph(
            dict.fromkeys((*spec.nodes, *no_tasks)),
            edges.predecessors,
            edges.successors,
            spec.priority,
            self._max_parallel,
            spec.joins,
            self._restored,
            no_tasks,
        )

    def _begin(self) -> None:
        self._mapped.start()

    def take(self) -> tuple[str, Any]:
        """The next result of ``stream``, for the reader."""
        node, value = self.stream.unread.popleft()
        if self._mapped.waits_for_reader:
            self._loop.call_soon(self.advance)
        if isinstance(node, Element):
            return node.node.task_name, Item(node.index, self._handed_over(node, value))
        if isinstance(node, str):  # ``RUN_ENDED``
            return RUN_ENDED, Item(*value)
        return node.task_name, self._handed_over(node, value)

    # Elements

    def _node_run(self, node: N) -> NodeRun[N]:
        spec = self._spec
        options = spec.options.get(as_whole(node), PLAIN_OPTIONS)
        inputs = self._mapped.inputs(node, self._values)
        node_run = NodeRun(node, self, options, inputs, spec.earlier)
        if self._generating is not None:
            node_run.gives_items = self._mapped.gives_items(node)
        return node_run

    def _start_node(self, node: N) -> RestOfStart | None:
        if node.task_name in self._spec.earlier.results:
            self._restore_started(node)
            return None
        return super()._start_node(node)

    def _wake_and_make_room(self) -> None:
        self._start_loop.wake()
        self._mapped.make_room()

    def _store(self, node: N, value: Any) -> Any:
        return self._mapped.store(node, value, self._values)

    def _note_end(self, node: N) -> None:
        self._mapped.ended(node)

    def skip_nodes(self, nodes: Sequence[N]) -> None:
        """Nodes that never run, because of what they depend on."""
        for node in nodes:
            if isinstance(as_whole(node), ItemsNode):  # its generator was skipped, or has failed
                self._note_end(node)
            else:
                super().skip_nodes([node])

    def fail_unsent(self, node: Any, error: BaseException) -> None:
        """A mapped node has failed, or an element of it, for which no task was sent."""
        name, index = node.task_name, node.index
        self._state.add_failure(node, error)
        self._events.failed_unsent(node, error)
        if self._on_error == "raise":
            self._end(self._state.node_failed(name, "", 0, ""))
        elif self._collects:
            deliver = self._deliver if isinstance(node, Element) else self.stream.deliver
            deliver(node, NodeFailure(name, "", error, 0, index))

    def _deliver_element(self, node: Any, value: Any) -> None:
        """Give the reader what a node gives; what an element gives, if items are asked for."""
        if self._mapped.gives_items(node):
            if isinstance(value, (NodeFailure, NodeSkipped)):
                self._mapped.hold_back(node, value)
            return  # its items are delivered
        is_yielded = True
        if isinstance(node, Element):
            is_list = len(node.path) == self._spec.lists_at
            if is_missing(value) and not is_list:
                self._mapped.missing(node, value)
            is_yielded = bool(self._spec.items or is_list)
        if is_yielded:
            self.stream.deliver(node, value)

    # Generators

    def _begin_generating(self) -> Generating[N]:
        return Generating(
            self.run_id,
            self._mapped,
            self._ready,
            self._completions,
            remembers=self._log is not None or self._dispatcher.may_repeat,
            is_elsewhere=self._dispatcher.is_elsewhere,
            block=self._block,
            advance=partial(self._loop.call_soon, self.advance),
        )

    def _send_or_generate(self, node_run: NodeRun[N]) -> RestOfStart | None:
        if self._generating is not None:
            self._generating.sending(node_run)
        return self._sender.send(node_run)

    def settle(self, node_run: NodeRun[N], task_id: str, result: TaskiqResult[Any]) -> None:
        """Handle the result of an attempt, unless it is kept until its generator has its turn."""
        is_present = not self._is_over and task_id == node_run.task_id
        generating = self._generating
        if generating is None or not is_present or not generating.keeps_end(node_run, result):
            super().settle(node_run, task_id, result)

    def began(self, node_run: NodeRun[N], task_id: str, worker: str) -> None:
        """A worker has begun to execute an attempt."""
        is_present = node_run.is_expected and task_id == node_run.task_id and not self._is_over
        if self._generating is not None and is_present:
            self._generating.begun(node_run)
        super().began(node_run, task_id, worker)

    def items(
        self, node_run: NodeRun[N], task_id: str, first: int, items: Sequence[Any], digest: bytes
    ) -> None:
        """Handle items that a generator has given: start what maps over them."""
        generating = self._generating
        if self._is_over or not node_run.is_expected or task_id != node_run.task_id:
            return
        try:
            if generating is None or not generating.take(node_run, first, items, digest):
                return
            self._set_timer(node_run, node_run.on_items(self._loop.time()))
            self.advance()
            if node_run.is_expected and not self._is_over:
                generating.grant(node_run)
        except BaseException as error:  # of the journal's serializer, say
            self._end(error)
            raise

    def _block(self, node_run: NodeRun[N]) -> None:
        """A generator may make no more: until it may, others have its place."""
        self._timers.cancel(node_run)
        self._suspended.add(node_run, keeps_gate=True)
        self.advance()

    def _go_on(self, node_run: NodeRun[N]) -> None:
        generating = self._generating
        if generating is None:
            return
        if (ended := generating.kept_end(node_run)) is not None:
            self.settle(node_run, node_run.task_id, ended)
            return
        self._set_timer(node_run, node_run.on_items(self._loop.time()))
        generating.grant(node_run)

    def _drop_inputs_and_claim(self, node_run: NodeRun[N]) -> None:
        super()._drop_inputs_and_claim(node_run)
        if self._generating is not None:
            self._generating.forget(node_run)
            self._suspended.node_runs.pop(node_run.node, None)

    # The end

    def _stop(self) -> None:
        super()._stop()
        if self._generating is not None:
            self._generating.stop()
        self._reading = self._mapped.stop()

    def _close_sources(self) -> None:
        self._mapped.close()

    def end_unless_over(self, error: BaseException) -> None:
        """End the run with an error, if it has not ended."""
        if not self._is_over:
            self._end(error)

    # Restoring what earlier engines have completed

    def restore_element(self, element: Element) -> int | None:
        """Store what an earlier engine has completed. Returns how it has ended, if it has."""
        if element.task_name not in self._spec.earlier.results:
            return None
        return self._restore(element)

    def skip_again(self, element: Any) -> None:
        """A condition has skipped an element for an earlier engine."""
        self._tell_skip(element, *self._state.reason_to_skip(element))

    def _restore_started(self, node: Any) -> None:
        """Restore an element that could not be before those that it depends on had ended."""
        is_there = self._restore(node) == COMPLETED
        never_run = self._ready.complete(node) if is_there else self._ready.skip(node)
        self.skip_nodes(never_run)
        self._note_end(node)
        self.advance()

    def _replay(self, node: Any, value: Any) -> None:
        self._replay_in_order.add(node, value)
