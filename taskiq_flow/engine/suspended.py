"""Nodes that have begun and wait: for their next attempt, an answer, or another's result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from taskiq_flow.cache.results import PendingResult
from taskiq_flow.dataflow.condition import is_true
from taskiq_flow.dataflow.ready_set import ReadySet
from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.engine.node_run import NodeRun, Verdict
from taskiq_flow.engine.timers import Timers
from taskiq_flow.errors import NODE_ERRORS


class Suspended:
    """Holds the nodes of one run that wait. A suspended node has no place of ``max_parallel``.

    A node whose condition is being awaited keeps its place; each other one is suspended.
    ``timers``: of the run's nodes. ``advance``: starts what may start. ``carry_out``: carries out
    the verdict after a condition has answered. ``end``: ends the run with an error.
    """

    def __init__(
        self,
        ready: ReadySet[Any],
        timers: Timers,
        *,
        advance: Callable[[], None],
        carry_out: Callable[[NodeRun, Verdict], None],
        end: Callable[[BaseException], None],
    ) -> None:
        self._ready = ready
        self._timers = timers
        self._advance = advance
        self._carry_out = carry_out
        self._end = end
        self._is_stopped = False
        self._pending_results: dict[
            NodeRun, tuple[PendingResult, Callable[[object], None]]
        ] = {}  # by node: what it waits for, and the callback there
        self.node_runs: dict[RunnableNode, NodeRun] = {}
        self.answers: set[asyncio.Future[object]] = set()  # of async conditions

    def add(self, node_run: NodeRun, *, keeps_gate: bool = False) -> None:
        """Suspend a node until the ready set has it queued again."""
        self._ready.suspend(node_run.node, keeps_gate=keeps_gate)
        self.node_runs[node_run.node] = node_run

    def wait(self, node_run: NodeRun, seconds: float) -> None:
        """Start a node again after ``seconds``."""
        self._add_unless_suspended(node_run)
        self._timers.set(node_run, seconds, self._start_again)
        self._advance()

    def wait_for(self, node_run: NodeRun, pending: PendingResult) -> None:
        """Start a node again when there is a result that another one computes."""

        def start_again(_: object) -> None:
            del self._pending_results[node_run]
            self._start_again(node_run)

        # Gives up its place of ``max_parallel``, which the other node may need.
        self._add_unless_suspended(node_run)
        self._pending_results[node_run] = pending, start_again
        pending.wait(start_again)
        self._advance()

    def _add_unless_suspended(self, node_run: NodeRun) -> None:
        if self._ready.is_suspended(node_run.node):  # it is a generator that was blocked
            self.node_runs[node_run.node] = node_run
        else:
            self.add(node_run)

    def _start_again(self, node_run: NodeRun) -> None:
        if not self._is_stopped:
            self._ready.requeue(node_run.node)
            self._advance()

    def ask(self, node_run: NodeRun, answer: Awaitable[object]) -> None:
        """Await the answer of a condition, in a context of its own."""
        future = copy_context().run(asyncio.ensure_future, answer)
        if self._is_stopped:  # the condition itself may have cancelled the run
            future.cancel()
        self.answers.add(future)
        future.add_done_callback(partial(self._answered, node_run))

    def _answered(self, node_run: NodeRun, future: asyncio.Future[object]) -> None:
        self.answers.discard(future)
        try:
            verdict = node_run.on_answer(is_wanted=is_true(future.result()))
        except NODE_ERRORS as error:  # of the condition
            verdict = node_run.on_error(error)
        except BaseException as error:  # an order to stop, which asyncio has raised already
            self._end(error)
            return
        self._carry_out(node_run, verdict)

    def stop(self) -> None:
        """Start nothing again. ``answers`` has what is still to end."""
        self._is_stopped = True
        for answer in self.answers:
            answer.cancel()
        for pending, callback in self._pending_results.values():
            pending.leave(callback)
