"""A run of a graph with generators, whose items are taken while their tasks run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from taskiq import TaskiqResult

from taskiq_flow.dispatch.encoding import RunnableNode
from taskiq_flow.engine.generating import Generating
from taskiq_flow.engine.mapped_run import MappedRun
from taskiq_flow.engine.node_run import NodeRun
from taskiq_flow.engine.start_loop import RestOfStart
from taskiq_flow.events import NodeFailure, NodeSkipped


class GeneratingRun(MappedRun):
    """A run some of whose nodes are generators. ``ElementPlan.generators`` has them."""

    def _prepared(self) -> tuple[Callable[[], Any], Callable[[Any], RestOfStart | None]]:
        _, start = super()._prepared()
        self._generating = Generating(
            self.run_id,
            self._mapped,
            self._ready,
            self._completions,
            remembers=self._log is not None or self._dispatcher.may_repeat,
            is_elsewhere=self._dispatcher.is_elsewhere,
            block=self._block,
            limit=self._limit_item,
            pause=self._timers.cancel,
            advance=partial(self._loop.call_soon, self.advance),
        )
        return self._generating.pop, start

    def _node_run(self, node: RunnableNode) -> NodeRun:
        node_run = super()._node_run(node)
        node_run.gives_items = self._mapped.gives_items(node)
        return node_run

    def _deliver(self, node: Any, value: Any) -> None:
        """Give the reader what a node gives, but of a generator, whose items it has already."""
        if not self._mapped.gives_items(node):
            super()._deliver(node, value)
        elif isinstance(value, (NodeFailure, NodeSkipped)):
            self._mapped.mapped_lists.hold_back(node, value)

    def _send(self, node_run: NodeRun) -> RestOfStart | None:
        self._generating.sending(node_run)
        return super()._send(node_run)

    def settle(self, node_run: NodeRun, result: TaskiqResult[Any]) -> None:
        """Handle the result of an attempt, unless it is kept until its generator has its turn."""
        if self._is_over or not self._generating.keeps_end(node_run, result):
            super().settle(node_run, result)

    def began(self, node_run: NodeRun, worker: str) -> None:
        """A worker has begun to execute an attempt."""
        if not self._is_over:
            self._generating.begun(node_run, worker)
        super().began(node_run, worker)

    def items(self, node_run: NodeRun, first: int, items: Sequence[Any], digest: bytes) -> None:
        """Handle items that a generator has given: start what maps over them."""
        if self._is_over:
            return
        try:
            if not self._generating.take(node_run, first, items, digest):
                return
            self._limit_item(node_run)
            self.advance()
            if node_run.is_expected and not self._is_over:
                self._generating.grant(node_run)
        except BaseException as error:  # of the journal's serializer, say
            self.end(error)
            raise

    def _block(self, node_run: NodeRun) -> None:
        """A generator may make no more: until it may, others have its place."""
        self._suspended.add(node_run, keeps_gate=True)
        self.advance()

    def _limit_item(self, node_run: NodeRun) -> None:
        """The time begins in which a generator has to make its next item."""
        self._set_timer(node_run, node_run.on_items(self._events.now()))

    def _on_attempt_timeout(self, node_run: NodeRun) -> None:
        if not self._generating.keeps_timeout(node_run):
            super()._on_attempt_timeout(node_run)

    def _make_items(self, node_run: NodeRun) -> None:
        if (ended := self._generating.kept_end(node_run)) is not None:
            self.settle(node_run, ended)
            return
        self._limit_item(node_run)
        self._generating.grant(node_run)

    def _release(self, node_run: NodeRun) -> None:
        super()._release(node_run)
        if node_run.gives_items:
            self._generating.forget(node_run)
            self._suspended.node_runs.pop(node_run.node, None)

    def _stop(self) -> None:
        super()._stop()
        self._generating.stop()
