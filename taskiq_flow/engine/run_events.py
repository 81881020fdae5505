"""What the listeners of one run are told of it: this file makes the events.

A run asks for events that every node sends only if ``Listeners.are_present``; else it counts them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

from taskiq_flow.clock import clock_of
from taskiq_flow.dataflow.passing import PassingNode
from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.engine.call_text import item_text
from taskiq_flow.engine.listeners import Listeners
from taskiq_flow.engine.node_run import NodeRun
from taskiq_flow.engine.run_spec import RunSettings, RunSpec
from taskiq_flow.engine.run_state import SkipReason
from taskiq_flow.events import (
    ElementsKnown,
    NodeBegan,
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
from taskiq_flow.notes import BEGAN, COMPLETED, SENT, Attempt
from taskiq_flow.previews import Preview
from taskiq_flow.values.inspection import NEVER_CHANGE


class RunEvents:
    """Makes the events of one run and gives them to its listeners.

    ``hand_over``: makes of a node's value what a listener is given of it. ``now``: the clock of
    ``Event.at``.
    """

    def __init__(
        self, run_id: str, listeners: Listeners, hand_over: Callable[[RunnableNode, Any], Any]
    ) -> None:
        self._run_id = run_id
        self._hand_over = hand_over
        self.now = clock_of(asyncio.get_running_loop())
        self.listeners = listeners
        self._notes = listeners.notes  # each node adds three: ``note`` would be a call for each

    # The run

    def started(self, spec: RunSpec, settings: RunSettings, *, in_memory: bool) -> None:
        """The run begins. ``in_memory``: on an ``InMemoryBroker``."""
        graph = spec.describe()
        mapped = {} if spec.elements is None else spec.elements.mapped
        self.listeners.tell(
            RunStarted(
                self._run_id,
                self.now(),
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
                name=settings.name,
                tags=settings.tags,
                origin=settings.origin,
                on_error=settings.on_error,
            )
        )

    def finished(self, outcome: Outcome, error: BaseException | None) -> None:
        """The run has ended."""
        self.listeners.tell(RunFinished(self._run_id, self.now(), outcome, error))

    # Attempts

    def sent(self, node_run: NodeRun) -> None:
        """A task is sent."""
        clock, node, number = self.now, node_run.node, node_run.attempt
        at = clock()  # the interpreter calls a local faster than an attribute
        # ``node_run.number`` is a call, and every node comes here: most say at once what it would.
        if number == 1 and node_run.told is None and node_run.sent_node is node:
            attempt = node_run.told = Attempt(node, node_run.task_id, number, at)
            notes, listeners = self._notes, self.listeners
            notes += (SENT, at, attempt, None)
            if not listeners.is_scheduled:
                listeners.schedule()
        else:
            self._sent_again(node_run, at)

    def _sent_again(self, node_run: NodeRun, at: float) -> None:
        """A task is sent that is not the first one of its node."""
        node, task_id, number = node_run.node, node_run.task_id, node_run.number
        node_run.told = Attempt(node, task_id, number, at)
        if node_run.falls_back:
            return  # listeners have been told ``NodeFellBack``
        waits_since, error = node_run.suspended_at, node_run.error
        delay = 0.0 if waits_since is None else at - waits_since
        name, index = node.task_name, node.index
        self.listeners.tell(
            NodeRetried(self._run_id, at, name, task_id, number, error, index, delay)
        )

    def labels(self, node_run: NodeRun) -> tuple[Context, dict[str, str]]:
        """Ask for the labels of a message. Returns the context in which to send it, and them."""
        node, at, number = node_run.node, self.now(), node_run.number
        return self.listeners.sending(
            NodeStarted(self._run_id, at, node.task_name, node_run.task_id, node.index, number)
        )

    def began(self, node_run: NodeRun, now: float, worker: str) -> None:
        """A worker has begun an attempt. It is told once for each worker."""
        attempt = node_run.told
        if attempt is None or attempt.task_id != node_run.task_id:  # nobody listened before
            attempt = Attempt(node_run.node, node_run.task_id, node_run.number)
            node_run.told = attempt
        if attempt.began_at is None:
            attempt.began_at, attempt.worker = now, worker
            notes, listeners = self._notes, self.listeners
            notes += (BEGAN, now, attempt, None)
            if not listeners.is_scheduled:
                listeners.schedule()
        elif worker != attempt.worker and worker not in attempt.later_workers:
            attempt.began_at = now
            attempt.later_workers += (worker,)
            node, task_id, number = node_run.node, node_run.task_id, node_run.number
            name, index, run_id = node.task_name, node.index, self._run_id
            self.listeners.tell(NodeBegan(run_id, now, name, task_id, worker, index, number))

    def resent(self, node_run: NodeRun) -> None:
        """A middleware of the broker has sent an attempt's task once more."""
        node, number, at = node_run.node, node_run.number, self.now()
        node_run.told = Attempt(node, node_run.task_id, number, at)
        self.listeners.tell(
            NodeRetried(
                self._run_id, at, node.task_name, node_run.task_id, number, index=node.index
            )
        )

    def fell_back(self, node_run: NodeRun, error: BaseException) -> None:
        """A node's task has failed for good, and its fallback takes its place."""
        node, task_id, attempts = node_run.node, node_run.task_id, node_run.attempts
        at, name, index = self.now(), node.task_name, node.index
        number, run_id = node_run.number, self._run_id
        node_run.told = None
        self.listeners.tell(NodeFellBack(run_id, at, name, task_id, error, attempts, index, number))

    # How nodes end

    def completed(
        self, node: RunnableNode, value: Any, source: Source, node_run: NodeRun | None = None
    ) -> None:
        """A node has its value. What listeners are given of that is made when they ask."""
        clock = self.now
        now = clock()
        attempt = None if node_run is None else node_run.told
        if attempt is None or source != "task" or attempt.task_id != node_run.task_id:  # type: ignore[union-attr]
            attempt = self._ending(node, source, node_run)
        began_at, sent_at = attempt.began_at, attempt.sent_at
        if began_at is None or sent_at is None:
            attempt.queued = attempt.ran = None
        else:
            attempt.queued, attempt.ran = began_at - sent_at, now - began_at
        attempt.value, attempt.source = value, source
        attempt.hand_over = None if type(value) in NEVER_CHANGE else self._hand_over
        notes, listeners = self._notes, self.listeners
        notes += (COMPLETED, now, attempt, None)
        if not listeners.is_scheduled or node_run is None:  # of the journal come very many at once
            listeners.schedule()

    def _ending(self, node: RunnableNode, source: Source, node_run: NodeRun | None) -> Attempt:
        """The attempt with which a node ends, if it is not the one that was told last."""
        if node_run is None:
            return Attempt(node, "", 0)
        if source not in ("task", "fallback"):
            return Attempt(node, node_run.task_id, 0)
        told = node_run.told
        if told is not None and told.task_id == node_run.task_id:
            return told
        return Attempt(node, node_run.task_id, node_run.number)

    def kept(self, node: RunnableNode) -> None:
        """The journal has the value of a node, which is not read, as nobody asks for it."""
        if not self.listeners.are_present:
            self.listeners.passed += 1
            return
        attempt = Attempt(node, "", 0)
        attempt.complete(Preview(kind="", size=0, text="", cut=True), "journal", None, None)
        self.listeners.note(COMPLETED, self.now(), attempt)

    def failed(self, node_run: NodeRun, error: BaseException) -> None:
        """A node has failed for good."""
        node, at = node_run.node, self.now()
        name, index, task_id = node.task_name, node.index, node_run.task_id
        number, run_id, after = node_run.number, self._run_id, node_run.fell_back_after
        queued, ran = self._spans(node_run, at)
        item = item_text(node_run) if self.listeners.are_present else None
        attempts = number  # nothing else is executed
        self.listeners.tell(
            NodeFailed(
                *(run_id, at, name, task_id, error, attempts, index, number, queued, ran),
                item=item,
                after=after,
            )
        )

    def _spans(self, node_run: NodeRun, now: float) -> tuple[float | None, float | None]:
        """How long the last attempt, which ends now, has waited, and has run."""
        told = node_run.told
        if told is None or told.sent_at is None or told.began_at is None:
            return None, None
        if told.number != node_run.number:
            return None, None
        return told.began_at - told.sent_at, now - told.began_at

    def failed_unsent(self, node: RunnableNode, error: BaseException) -> None:
        """A node has failed for which no task was sent."""
        at, name = self.now(), node.task_name
        self.listeners.tell(NodeFailed(self._run_id, at, name, "", error, 0, node.index))

    def skipped(
        self, node: RunnableNode, because_of: tuple[str, ...], reason: SkipReason, attempt: int
    ) -> NodeSkipped:
        """A node does not run. Returns the event, which a reader may be given as well."""
        at, name = self.now(), node.task_name
        event = NodeSkipped(self._run_id, at, name, because_of, reason, node.index, attempt)
        self.listeners.tell(event)
        return event

    def elements_known(self, name: str, count: int) -> None:
        """A node maps over so many elements."""
        self.listeners.tell(ElementsKnown(self._run_id, self.now(), name, count))
