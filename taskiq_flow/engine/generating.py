"""The generators of one run: what each of them may make, and what becomes of it meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from taskiq import TaskiqResult

from taskiq_flow.completion.protocol import Completions
from taskiq_flow.dataflow.ready_set import ReadySet
from taskiq_flow.engine.mapped_nodes import MappedNodes
from taskiq_flow.engine.node_run import NodeRun
from taskiq_flow.engine.run_state import as_whole
from taskiq_flow.engine.standstill import STANDSTILL, Standstill
from taskiq_flow.generators.grant import Grant
from taskiq_flow.values.results import failed

logger = logging.getLogger("taskiq_flow")


class Generating:
    """Takes the items of generators, and tells these how far they may go.

    ``remembers``: whether a generator may be executed more often than it is sent. ``block``: called
    for one that may make no more, and gives up its place until it is queued again. ``limit``,
    ``pause``: begin the time in which a generator has to make its next item, and end it, as it
    waits. ``advance``: has what may start be started soon. ``is_elsewhere``: whether generators
    hold places of workers.
    """

    def __init__(
        self,
        run_id: str,
        mapped: MappedNodes,
        ready: ReadySet[Any],
        completions: Completions,
        *,
        remembers: bool,
        is_elsewhere: bool,
        block: Callable[[NodeRun], None],
        limit: Callable[[NodeRun], None],
        pause: Callable[[NodeRun], None],
        advance: Callable[[], object],
    ) -> None:
        self._run_id = run_id
        self._mapped = mapped
        self._ready = ready
        self._completions = completions
        self._remembers = remembers
        self._block = block
        self._limit = limit
        self._pause = pause
        self._advance = advance
        self._in_flight: dict[NodeRun, Grant] = {}  # with the newest grant of each
        self._short: dict[NodeRun, None] = {}  # those that would be told of further items
        self._workers: dict[NodeRun, list[str]] = {}  # that have begun to execute its task
        self._ended_while_queued: dict[NodeRun, TaskiqResult[Any]] = {}
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.Handle | None = None
        self._has_warned = False
        self._standstill: Standstill | None = None
        if is_elsewhere:
            self._standstill = Standstill(self._let_one_go_on)

    # What becomes of tasks

    def sending(self, node_run: NodeRun) -> None:
        """The task of a node is sent, of whichever node."""
        if self._standstill is not None:
            self._standstill.sent(node_run)
        if node_run.gives_items:
            self._begin(node_run)

    def _begin(self, node_run: NodeRun) -> None:
        self._workers.pop(node_run, None)
        node_run.is_begun_anew = False
        grant = self._in_flight.get(node_run)
        if grant is None:
            remembers = self._remembers or node_run.options.retry is not None
            grant = self._mapped.begin_items(node_run.node, remembers=remembers)
            self._in_flight[node_run] = grant
        # At least one, after which it gives up its place for those that are to make room.
        may = grant.have + max(1, self._lead(node_run))
        self._set(node_run, Grant(grant.have, grant.digest, may))

    def begun(self, node_run: NodeRun, worker: str) -> None:
        """A worker executes the task of a node. It says so with each heartbeat."""
        if self._standstill is not None:
            self._standstill.begun(node_run)
        if node_run.gives_items and worker not in (known := self._workers.setdefault(node_run, [])):
            known.append(worker)
            if len(known) > 1:
                node_run.begin_anew()

    def take(self, node_run: NodeRun, first: int, items: Sequence[Any], digest: bytes) -> bool:
        """Take items in. ``False`` if they are not the next ones.

        Raises what the journal's serializer raises.
        """
        grant = self._in_flight.get(node_run)
        if grant is None or first != grant.have:
            return False
        if self._standstill is not None:
            self._standstill.moved(node_run)
        self._mapped.take_items(node_run.node, first, items, node_run.log_number)
        self._set(node_run, Grant(first + len(items), digest, grant.may))
        return True

    def keeps_end(self, node_run: NodeRun, result: TaskiqResult[Any]) -> bool:
        """A task has ended. Whether that is kept until its node, which is queued, has its turn."""
        if self._standstill is not None:
            self._standstill.moved(node_run)
        if self._is_queued(node_run):
            self._ended_while_queued[node_run] = result
            return True
        return False

    def keeps_timeout(self, node_run: NodeRun) -> bool:
        """The time of a task is over. Whether that is kept as well."""
        if self._is_queued(node_run):  # it was making items nevertheless
            self._completions.revoke_task(node_run.task_id)
            return self.keeps_end(node_run, failed(node_run.timed_out()))
        if self._standstill is not None:
            self._standstill.moved(node_run)
        return False

    def _is_queued(self, node_run: NodeRun) -> bool:
        """Whether a generator waits for its turn to make more items."""
        return node_run.is_blocked and not self._ready.is_suspended(node_run.node)

    def kept_end(self, node_run: NodeRun) -> TaskiqResult[Any] | None:
        """How the task ended of a node that has its turn again."""
        return self._ended_while_queued.pop(node_run, None)

    def forget(self, node_run: NodeRun) -> None:
        """A node has ended."""
        self._in_flight.pop(node_run, None)
        self._short.pop(node_run, None)
        self._workers.pop(node_run, None)

    def stop(self) -> None:
        """The run is over."""
        if self._looking is not None:
            self._looking.cancel()
        if self._standstill is not None:
            self._standstill.stop()

    # How far they may go

    def _lead(self, node_run: NodeRun) -> float:
        """How many items a generator may still make now."""
        return self._mapped.lead(node_run.node, len(self._in_flight))

    def grant(self, node_run: NodeRun) -> None:
        """Tell a generator what the run has of its items, and how many it may make."""
        grant = self._in_flight[node_run]
        may = grant.have + self._lead(node_run)
        if may - grant.may >= self._mapped.enough(node_run.node):
            self._set(node_run, Grant(grant.have, grant.digest, may))
        elif grant.have >= grant.may:
            self._pause(node_run)
            if not node_run.is_blocked:
                node_run.block()
                if self._standstill is not None:
                    self._standstill.watch()
                self._block(node_run)
        self._completions.grant(node_run.task_id, self._in_flight.get(node_run, grant))

    def pop(self) -> Any:
        """Start the next node. If none may start, generators may make more of what was let in."""
        node = self._mapped.pop()
        if node is None and self._looking is None:
            # Once for all results and items that are handled in one turn of the event loop.
            self._looking = self._loop.call_soon(self._let_go_on)
        return node

    def _let_go_on(self) -> None:
        self._looking = None
        for node_run in list(self._short):
            grant = self._in_flight[node_run]
            more = grant.have + self._lead(node_run) - grant.may
            if not node_run.is_expected or more < self._mapped.enough(node_run.node):
                continue
            if not node_run.is_blocked:
                self.grant(node_run)
            elif self._ready.is_suspended(node_run.node):
                self._ready.requeue(node_run.node)
                self._advance()

    def _let_one_go_on(self) -> bool:
        """Nothing moves: have the first one that waits make a window more."""
        waiting = [
            node_run
            for node_run in self._in_flight
            if node_run.is_blocked and node_run not in self._ended_while_queued
        ]
        if not waiting:
            return False
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%d generators of run %r have waited for room for %g s, and hold the places of "
                "workers that the tasks need which they wait for; they go on without room: give "
                "workers more places (--max-async-tasks), or the generators' node a smaller "
                "max_parallel=",
                len(waiting),
                self._run_id,
                STANDSTILL,
            )
        node_run, grant = waiting[0], self._in_flight[waiting[0]]
        may = grant.may + as_whole(node_run.node).window
        self._set(node_run, Grant(grant.have, grant.digest, may))
        self._limit(node_run)
        self._completions.grant(node_run.task_id, self._in_flight[node_run])
        return True

    def _set(self, node_run: NodeRun, grant: Grant) -> None:
        self._in_flight[node_run] = node_run.grant = grant
        # One that may still make more goes on without a look at it, of however many there are.
        if grant.may - grant.have > self._mapped.spare(node_run.node):
            self._short.pop(node_run, None)
        else:
            self._short[node_run] = None
