"""What the listeners of one run are told of it: this file makes the events.

A run asks for events that every node sends only if ``Listeners.are_present``; else it counts them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, Generic, TypeVar

from taskiq_flow.dataflow.passing import PassingNode
from taskiq_flow.dispatch.dispatcher import RunnableNode
from taskiq_flow.engine.call_text import item_text
from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.node_run import NodeRun
from taskiq_flow.engine.run_spec import RunSpec
from taskiq_flow.engine.run_state import SkipReason
from taskiq_flow.events import (
    ElementsKnown,
    NodeBegan,
    NodeCompleted,
    NodeFailed,
    NodeFellBack,
    NodeRetried,
    NodeSkipped,
    NodeStarted,
    Outcome,
    RunFinished,
    RunStarted,
    Source,
)
from taskiq_flow.previews import Preview
from taskiq_flow.values.inspection import NEVER_CHANGE

N = TypeVar("N", bound=RunnableNode)


class RunEvents(Generic[N]):
    """Makes the events of one run and gives them to its listeners.

    ``hand_over``: makes of a node's value what a listener is given of it.
    """

    def __init__(
        self, run_id: str, listeners: Listeners, hand_over: Callable[[N, Any], Any]
    ) -> None:
        self._run_id = run_id
        self._hand_over = hand_over
        self._now = asyncio.get_running_loop().time
        self.listeners = listeners

    # The run

    def started(
        self,
        spec: RunSpec[N],
        name: str | None,
        tags: tuple[str, ...],
        *,
        in_memory: bool,
        origin: str | None,
    ) -> None:
        """The run begins. ``name``, ``origin``: of its graph.

        ``in_memory``: on an ``InMemoryBroker``.
        """
        graph = spec.describe()
        mapped = {} if spec.elements is None else spec.elements.mapped
        self.listeners.tell(
            RunStarted(
                self._run_id,
                self._now(),
                graph.task_names,
                time.time(),
                graph.edges,
                {
                    node.task_name: len(how.axes)
                    for node, how in mapped.items()
                    if not isinstance(node, PassingNode)
                },
                graph.expected,
                graph.tasks,
                graph.outputs,
                kind=graph.kind,
                in_memory=in_memory,
                name=name,
                tags=tags,
                origin=origin,
            )
        )

    def finished(self, outcome: Outcome, error: BaseException | None) -> None:
        """The run has ended."""
        self.listeners.tell(RunFinished(self._run_id, self._now(), outcome, error))

    # Attempts

    def sent(self, node_run: NodeRun[N]) -> None:
        """A task is sent."""
        node, at, number = node_run.node, self._now(), node_run.number
        node_run.note_sent(at, number)
        if node_run.falls_back:
            return  # listeners have been told ``NodeFellBack``
        if number == 1:
            self.listeners.note((NodeStarted, at, node, node_run.task_id, 1))
        else:
            waits_since, error, index = node_run.suspended_at, node_run.error, node.index
            delay = 0.0 if waits_since is None else at - waits_since
            name, task_id = node.task_name, node_run.task_id
            self.listeners.tell(
                NodeRetried(self._run_id, at, name, task_id, number, error, index, delay)
            )

    def labels(self, node_run: NodeRun[N]) -> tuple[Context, dict[str, str]]:
        """Ask for the labels of a message. Returns the context in which to send it, and them."""
        node, at, number = node_run.node, self._now(), node_run.number
        return self.listeners.sending(
            NodeStarted(self._run_id, at, node.task_name, node_run.task_id, node.index, number)
        )

    def began(self, node_run: NodeRun[N], now: float, worker: str) -> None:
        """A worker has begun an attempt."""
        node_run.told_began_at = now
        node_run.workers += (worker,)
        self.listeners.note(
            (NodeBegan, now, node_run.node, node_run.task_id, node_run.number, worker)
        )

    def resent(self, node_run: NodeRun[N]) -> None:
        """A middleware of the broker has sent an attempt's task once more."""
        node, number, at = node_run.node, node_run.number, self._now()
        node_run.note_sent(at, number)
        self.listeners.tell(
            NodeRetried(
                self._run_id, at, node.task_name, node_run.task_id, number, index=node.index
            )
        )

    def fell_back(self, node_run: NodeRun[N], error: BaseException) -> None:
        """A node's task has failed for good, and its fallback takes its place."""
        node, task_id, attempts = node_run.node, node_run.task_id, node_run.attempts
        at, name, index = self._now(), node.task_name, node.index
        number, run_id = node_run.number, self._run_id
        self.listeners.tell(NodeFellBack(run_id, at, name, task_id, error, attempts, index, number))

    # How nodes end

    def completed(
        self, node: N, value: Any, source: Source, node_run: NodeRun[N] | None = None
    ) -> None:
        """A node has its value. What listeners are given of that is made when they ask."""
        now, number, task_id = self._now(), 0, ""
        queued = ran = None
        if node_run is not None:
            task_id = node_run.task_id
            if source == "task" or source == "fallback":  # noqa: PLR1714 - this is faster
                number = node_run.number
                queued, ran = node_run.spans(now, number)
        hand_over = None if type(value) in NEVER_CHANGE else self._hand_over
        self.listeners.note(
            (NodeCompleted, now, node, task_id, number, value, source, queued, ran, hand_over)
        )

    def kept(self, node: N) -> None:
        """The journal has the value of a node, which is not read, as nobody asks for it."""
        if not self.listeners.are_present:
            self.listeners.seq += 1
            return
        unread = Preview(kind="", size=0, text="", cut=True)
        self.listeners.note(
            (NodeCompleted, self._now(), node, "", 0, unread, "journal", None, None, None)
        )

    def failed(self, node_run: NodeRun[N], error: BaseException) -> None:
        """A node has failed for good."""
        node, at = node_run.node, self._now()
        name, index, attempts = node.task_name, node.index, node_run.attempts
        task_id, number = node_run.task_id, node_run.number
        times, run_id = node_run.spans(at, number), self._run_id
        item = item_text(node_run) if self.listeners.are_present else None
        self.listeners.tell(
            NodeFailed(run_id, at, name, task_id, error, attempts, index, number, *times, item=item)
        )

    def failed_unsent(self, node: N, error: BaseException) -> None:
        """A node has failed for which no task was sent."""
        at, name = self._now(), node.task_name
        self.listeners.tell(NodeFailed(self._run_id, at, name, "", error, 0, node.index))

    def skipped(
        self, node: N, because_of: tuple[str, ...], reason: SkipReason, attempt: int
    ) -> NodeSkipped:
        """A node does not run. Returns the event, which a reader may be given as well."""
        at, name = self._now(), node.task_name
        event = NodeSkipped(self._run_id, at, name, because_of, reason, node.index, attempt)
        self.listeners.tell(event)
        return event

    def elements_known(self, name: str, count: int) -> None:
        """A node maps over so many elements."""
        self.listeners.tell(ElementsKnown(self._run_id, self._now(), name, count))
