"""Only this file decides whether a node may start.

A node may start when its dependencies have ended as its join rule asks, and fewer nodes than the
limit are running. The ready set has no clock and no broker: its caller adds nodes, starts those
that it returns, and reports how each one ended.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Generic, Literal, Self, TypeVar

N = TypeVar("N", bound=Hashable)

Join = Literal["all", "any", "none_failed", "ended"]
"""When a node may start. ``"all"``: all of its dependencies have completed. ``"any"``: one has
completed; the others may still run. ``"none_failed"``: all have ended, and none has failed.
``"ended"``: all have ended, whichever way."""


class Gate:
    """How many of some nodes may be ready or running at once.

    ``limit``: at least 1. ``within``: those that are. The others wait in the order in which they
    became ready.
    """

    __slots__ = ("limit", "waiting", "within")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.within: set[Any] = set()
        self.waiting: deque[Any] = deque()

    @property
    def is_open(self) -> bool:
        """Whether one more node would be ready at once."""
        return len(self.within) < self.limit


# The state of a node. Above READY it is the number of dependencies that have not ended.
# A node that never runs because of its dependencies ends like them: FAILED or SKIPPED. The run
# reports both as skipped. The outcomes are in order: of several, ``min`` is the worst.
READY, RUNNING, SUSPENDED, COMPLETED, SKIPPED, FAILED = 0, -1, -2, -3, -4, -5


class ReadySet(Generic[N]):
    """Decides which node starts next, in a graph that may grow while it runs.

    ``pop`` returns the next node to start. ``complete``, ``fail`` and ``skip`` report how it ended.

    A node whose join rule can no longer be met never runs. It ends when the last of its
    dependencies has ended, so that nodes always end in an order that follows the edges: as failed
    if one of them has failed, otherwise as skipped. ``complete``, ``fail``, ``skip`` and ``add``
    report such nodes to the caller.

    ``limit``: how many nodes may run at once; ``None`` for any number. Nodes without a task count
    only until they are suspended, and start in spite of it. Without a limit, nodes start in the
    order in which they became ready. With a limit, the ready node of the highest priority
    starts first, and among equals the one that was added first (list scheduling; Graham, 1966).

    ``unfinished``: the number of nodes that were added and have not ended.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.unfinished = 0
        self._limit = limit
        self._state: dict[N, int] = {}
        # Of the graph that ``of_graph`` was given. Some may be no nodes of it, where only a part of
        # the graph runs.
        self._successors: Mapping[N, Iterable[N]] = {}
        self._added_successors: dict[N, list[N]] = {}  # by ``add``
        self._joins: dict[N, Join] = {}  # where it is not "all"
        self._worst: dict[N, int] = {}  # waiting node → FAILED or SKIPPED, as a dependency ended
        self._no_tasks: Collection[N] = ()
        self._queue: deque[N] = deque()  # the ready nodes, for which there is no limit
        self._queue_up = self._queue.append if limit is None else self._queue_by_rank
        self._heap: list[tuple[float, int, N]] = []  # the ready nodes, with a limit
        self._rank: dict[N, tuple[float, int]] = {}  # the place in the heap, with a limit
        self._gates: dict[N, Gate] = {}  # of the nodes that have one
        # Whether a node that waits only counts: no failures, no gates and no "any" so far.
        self._only_counts = True
        self._added = 0
        self._running = 0

    @classmethod
    def of_graph(
        cls,
        nodes: Iterable[N],
        predecessors: Mapping[N, Collection[N]],
        successors: Mapping[N, Iterable[N]],
        priority: Mapping[N, float],
        limit: int | None = None,
        joins: Mapping[N, Join] = MappingProxyType({}),
        completed: Collection[N] = (),
        no_tasks: Collection[N] = (),
    ) -> Self:
        """The ready set of a whole graph, which the caller has validated.

        ``predecessors`` and ``successors`` hold the same edges in both directions; neither may
        change later. ``joins``: the rules other than ``"all"``. ``completed``: nodes that an
        earlier run completed, together with everything that they depend on. ``no_tasks``: nodes
        that are suspended as soon as they start.
        """
        ready = cls(limit)
        ready._no_tasks = no_tasks
        ready._successors = successors
        ready._joins = dict(joins)
        ready._only_counts = "any" not in joins.values()
        ready._state = state = dict.fromkeys(nodes, READY)
        for node, dependencies in predecessors.items():
            if node in state:
                state[node] = len(dependencies)
        ready._added = len(state)
        for node in completed:
            state[node] = COMPLETED
        for other in {other for node in completed for other in successors.get(node, ())}:
            if state.get(other, COMPLETED) != COMPLETED:
                dependencies = predecessors[other]
                waits_for = sum(before not in completed for before in dependencies)
                is_met = joins.get(other) == "any" and waits_for < len(dependencies)
                state[other] = 0 if is_met else waits_for
        ready.unfinished = len(state) - len(completed)
        if limit is not None:
            ready._rank = {
                node: (-priority.get(node, 0.0), number)
                for number, (node, waits_for) in enumerate(state.items(), 1)
                if waits_for != COMPLETED
            }
        at_once = [node for node, waits_for in state.items() if waits_for == READY]
        if limit is None:
            ready._queue.extend(at_once)
        else:
            for node in at_once:
                ready._queue_up(node)
        return ready

    def add(
        self,
        node: N,
        after: Iterable[N] = (),
        priority: float = 0.0,
        join: Join = "all",
        *,
        ended: Iterable[int] = (),
        gate: Gate | None = None,
    ) -> bool:
        """Add a node that depends on the nodes ``after``, which were added before it.

        ``ended``: the outcomes of further dependencies, which have ended and may be forgotten.
        ``gate``: limits how many nodes with the same gate may be ready or running.

        Returns ``False`` if the node will never run, because all of its dependencies have ended
        and its join rule is not met. Raises ``ValueError`` if the node was added before, or if a
        dependency was not.
        """
        state = self._state
        if node in state:
            raise ValueError(f"{node!r} was added before")
        dependencies = dict.fromkeys(after)
        try:
            outcomes = [*ended, *map(state.__getitem__, dependencies)]
        except KeyError as error:
            missing = error.args[0]
            raise ValueError(f"{node!r} waits for {missing!r}, which is not in the set") from None
        self.unfinished += 1
        if self._limit is not None:
            self._added += 1
            self._rank[node] = (-priority, self._added)
        if join != "all":
            self._joins[node] = join
            self._only_counts = False
        if gate is not None:
            self._gates[node] = gate
            self._only_counts = False
        if join == "any" and COMPLETED in outcomes:
            self._enqueue(node)
            return True
        if outcomes and (worst := min(outcomes)) < COMPLETED:
            self._note_worst(node, worst)
        waits_for = 0
        for dependency in dependencies:
            if state[dependency] > COMPLETED:
                waits_for += 1
                self._added_successors.setdefault(dependency, []).append(node)
        state[node] = waits_for
        return waits_for > 0 or self._enqueue_or_end(node)

    def add_behind(self, node: N, dependency: N, priority: float) -> None:
        """``add`` a node that depends on one node alone, which was added and has not ended."""
        self.unfinished += 1
        self._state[node] = 1
        if self._limit is not None:
            self._added += 1
            self._rank[node] = (-priority, self._added)
        self._added_successors.setdefault(dependency, []).append(node)

    def add_ready(self, node: N, priority: float) -> None:
        """``add`` a node that waits for nothing, and has no gate."""
        self.unfinished += 1
        self._state[node] = READY
        if self._limit is not None:
            self._added += 1
            self._rank[node] = (-priority, self._added)
        self._queue_up(node)

    def add_suspended(self, node: N) -> None:
        """Add a node that never starts. Its end is reported as that of a started one."""
        if node in self._state:
            raise ValueError(f"{node!r} was added before")
        self.unfinished += 1
        self._state[node] = SUSPENDED
        if self._limit is not None:
            self._added += 1
            self._rank[node] = (0.0, self._added)

    def pop(self) -> N | None:
        """Start the next node: it is running from now on. ``None`` if none may start now."""
        if self._queue:
            node = self._queue.popleft()
        elif self._heap and self._running != self._limit:
            node = heapq.heappop(self._heap)[2]
        else:
            return None
        self._state[node] = RUNNING
        self._running += 1
        return node

    @property
    def is_full(self) -> bool:
        """Whether as many nodes are running as may run at once."""
        return self._running == self._limit

    @property
    def places_left(self) -> float:
        """How many more nodes may run at once."""
        return math.inf if self._limit is None else self._limit - self._running

    @property
    def may_start(self) -> bool:
        """Whether a node that is ready may start: there is a place, or it needs none."""
        return self._running != self._limit or bool(self._queue)

    def in_progress(self) -> list[N]:
        """The nodes that are running or suspended, in the order in which they were added."""
        return [node for node, state in self._state.items() if state in (RUNNING, SUSPENDED)]

    def has_started(self, node: N) -> bool:
        """Whether a node is running, is suspended or has ended."""
        return self._state[node] < READY

    def is_suspended(self, node: N) -> bool:
        """Whether a node has started, and is not counted as running."""
        return self._state[node] == SUSPENDED

    def has_ended(self, node: N) -> bool:
        """Whether a node has completed, failed or was skipped."""
        return self._state[node] <= COMPLETED

    def outcome(self, node: N) -> int:
        """How a node has ended: ``COMPLETED``, ``SKIPPED`` or ``FAILED``."""
        state = self._state[node]
        if state > COMPLETED:
            raise ValueError(f"{node!r} has not ended")
        return state

    def complete(self, node: N) -> list[N]:
        """Report that a started node completed. Returns the nodes that will therefore never run.

        There are such nodes if another of their dependencies failed or was skipped earlier.
        """
        state = self._state
        if not self._only_counts or state.get(node) != RUNNING:
            return self.end(node, COMPLETED)
        # The usual case, in one frame.
        state[node] = COMPLETED
        self._running -= 1
        self.unfinished -= 1
        if self._limit is not None:
            del self._rank[node]
        successors = self._successors.get(node, ())
        if self._added_successors and (added := self._added_successors.pop(node, None)):
            successors = (*successors, *added) if successors else added
        for successor in successors:
            waits_for = state.get(successor, READY) - 1
            if waits_for >= READY:
                state[successor] = waits_for
                if waits_for == READY:
                    self._queue_up(successor)
        return []

    def fail(self, node: N) -> list[N]:
        """Report that a started node failed. Returns the nodes that will therefore never run."""
        return self.end(node, FAILED)

    def skip(self, node: N) -> list[N]:
        """Report that a started node is skipped. Returns the nodes that will never run either."""
        return self.end(node, SKIPPED)

    def end(self, node: N, outcome: int) -> list[N]:
        """Report how a started node ended. Returns the nodes that will therefore never run."""
        state = self._state.get(node)
        if state == RUNNING:
            self._running -= 1
        elif state != SUSPENDED:
            raise ValueError(f"{node!r} is not running")
        if self._gates:
            self._leave_gate(node)
        self._record_end(node, outcome)
        never_run: list[N] = []
        self._release_successors(node, never_run)
        for other in never_run:  # grows while it is iterated, as their successors never run either
            self._release_successors(other, never_run)
        return never_run

    def suspend(self, node: N, *, keeps_gate: bool = False) -> None:
        """Stop counting a running node as running, until it is queued again.

        ``keeps_gate``: whether it counts for its gate all the same.
        """
        if self._state.get(node) != RUNNING:
            raise ValueError(f"{node!r} is not running")
        self._running -= 1
        self._state[node] = SUSPENDED
        if self._gates and not keeps_gate:
            self._leave_gate(node)

    def requeue(self, node: N) -> None:
        """Make a suspended node ready again; it starts in its turn."""
        if self._state.get(node) != SUSPENDED:
            raise ValueError(f"{node!r} is not suspended")
        self._enqueue(node)

    def forget(self, node: N) -> int:
        """Remove a node that has ended. No node that depends on it can be added any more.

        Returns its outcome.
        """
        outcome = self._state[node]
        if outcome > COMPLETED:
            raise ValueError(f"{node!r} has not ended")
        del self._state[node]
        if not self._only_counts:
            self._joins.pop(node, None)
            self._gates.pop(node, None)
        return outcome

    def _release_successors(self, node: N, never_run: list[N]) -> None:
        """Tell the successors of a node that it has ended. Appends to ``never_run``."""
        state = self._state
        outcome = state[node]
        for successors in (self._successors.get(node, ()), self._added_successors.pop(node, ())):
            for successor in successors:
                waits_for = state.get(successor, READY)
                if waits_for <= READY:  # its rule is "any", and another dependency completed first
                    continue
                if outcome != COMPLETED:
                    self._note_worst(successor, outcome)
                elif self._joins.get(successor) == "any":
                    self._worst.pop(successor, None)
                    self._enqueue(successor)
                    continue
                state[successor] = waits_for - 1
                if waits_for == 1 and not self._enqueue_or_end(successor):
                    never_run.append(successor)

    def _note_worst(self, node: N, outcome: int) -> None:
        self._worst[node] = min(outcome, self._worst.get(node, SKIPPED))
        self._only_counts = False

    def _enqueue_or_end(self, node: N) -> bool:
        """Queue a node whose dependencies have all ended, or end it if it will never run.

        Returns whether it was queued.
        """
        worst, join = self._worst.pop(node, COMPLETED), self._joins.get(node)
        if worst == COMPLETED or join == "ended" or (worst == SKIPPED and join == "none_failed"):
            self._enqueue(node)
            return True
        self._record_end(node, worst)
        return False

    def _record_end(self, node: N, outcome: int) -> None:
        self._state[node] = outcome
        self.unfinished -= 1
        if self._limit is not None:
            del self._rank[node]

    def _leave_gate(self, node: N) -> None:
        gate = self._gates.get(node)
        if gate is None or node not in gate.within:
            return
        gate.within.remove(node)
        if gate.waiting:
            other = gate.waiting.popleft()
            gate.within.add(other)
            self._queue_up(other)

    def _enqueue(self, node: N) -> None:
        self._state[node] = READY
        gate = self._gates.get(node) if self._gates else None
        if gate is not None and node not in gate.within:
            if not gate.is_open:
                gate.waiting.append(node)
                return
            gate.within.add(node)
        self._queue_up(node)

    def _queue_by_rank(self, node: N) -> None:
        if node in self._no_tasks:
            self._queue.append(node)
        else:
            heapq.heappush(self._heap, (*self._rank[node], node))
