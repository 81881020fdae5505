"""Only this file decides whether a node may start.

A node may start when its dependencies have ended as its join rule asks, by default all of them
well, and fewer nodes than the limit are running. The ready set has neither a clock nor a broker: it
is told what was added and how it ended, and says which node is next.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Generic, Literal, Self, TypeVar

N = TypeVar("N", bound=Hashable)

Join = Literal["all", "any", "none_failed"]
"""When a node may start: all of its dependencies have completed; one has, and the others may still
run; all have ended, and none has failed or is behind a failure."""

# A node's state: above zero, the number of dependencies that have not ended yet; else one of these.
READY, RUNNING, SUSPENDED, COMPLETED, SKIPPED, BROKEN = 0, -1, -2, -3, -4, -5


class ReadySet(Generic[N]):
    """Who may start now, over a graph that may grow while it runs.

    Nodes are added with the nodes they wait for. ``pop`` hands out the next that may start;
    ``complete``, ``fail`` and ``skip`` report how it ended. A node whose join rule cannot be met
    any more is passed over once all that it waits for has ended, so that nodes always end in an
    order that follows the edges: as broken if one of these has failed or is broken itself, else as
    skipped.

    ``limit``: how many nodes may run at once, ``None`` for any number. Without a limit nodes start
    in the order in which they became ready; with one, the ready node of the highest priority goes
    first, and the one added first among equals (list scheduling; Graham, 1966).
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._state: dict[N, int] = {}
        self._successors: Mapping[N, Iterable[N]] = {}
        self._dependents: dict[N, list[N]] = {}  # those that came later
        self._joins: dict[N, Join] = {}  # where it is not "all"
        self._spoilt: dict[N, int] = {}  # the worst that a dependency has come to
        self._queue: deque[N] = deque()
        self._heap: list[tuple[float, int, N]] = []
        self._rank: dict[N, tuple[float, int]] = {}
        self._added = 0
        self._ended = 0
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
    ) -> Self:
        """The ready set of a graph that is known whole and was checked, without looking twice.

        ``predecessors`` and ``successors`` say the same in both directions and are not changed.
        ``joins``: the rules of nodes that have another than ``"all"``. ``completed``: nodes that
        had completed before, and with them all that they had waited for.
        """
        ready = cls(limit)
        ready._successors = successors
        ready._joins = dict(joins)
        for node in nodes:
            if limit is not None:
                ready._rank[node] = (-priority.get(node, 0.0), ready._added)
            ready._added += 1
            before = predecessors.get(node, ())
            waits_for = len(before)
            if completed:
                if node in completed:
                    ready._state[node] = COMPLETED
                    ready._ended += 1
                    continue
                waits_for = ready._still_to_come(node, before, completed)
            ready._state[node] = waits_for
            if not waits_for:
                ready._resolve(node)
        return ready

    def _still_to_come(self, node: N, before: Collection[N], completed: Collection[N]) -> int:
        left = sum(other not in completed for other in before)
        return 0 if left < len(before) and self._joins.get(node) == "any" else left

    def add(
        self, node: N, after: Iterable[N] = (), priority: float = 0.0, join: Join = "all"
    ) -> bool:
        """Take in a node that waits for the nodes of ``after``, all of which were added before.

        Returns ``False`` if the node is passed over at once: all that it waits for has ended, and
        not as its rule asks. Raises ``ValueError`` for a node that is known already or a dependency
        that is not.
        """
        if node in self._state:
            raise ValueError(f"{node!r} was added before")
        dependencies = dict.fromkeys(after)
        for dependency in dependencies:
            if dependency not in self._state:
                raise ValueError(f"{node!r} waits for {dependency!r}, which is not in the set")
        if self._limit is not None:
            self._rank[node] = (-priority, self._added)
        self._added += 1
        if join != "all":
            self._joins[node] = join
        states = [self._state[dependency] for dependency in dependencies]
        if join == "any" and COMPLETED in states:
            self._enqueue(node)
            return True
        unresolved = 0
        for dependency, state in zip(dependencies, states, strict=True):
            if state in (SKIPPED, BROKEN):
                self._spoil(node, state)
            elif state != COMPLETED:
                self._dependents.setdefault(dependency, []).append(node)
                unresolved += 1
        self._state[node] = unresolved
        return unresolved > 0 or self._resolve(node)

    def pop(self) -> N | None:
        """The next node that may start, which runs from now on; ``None`` if there is none now."""
        if self._limit is None:
            if not self._queue:
                return None
            node = self._queue.popleft()
        else:
            if not self._heap or self._running == self._limit:
                return None
            node = heapq.heappop(self._heap)[2]
        self._state[node] = RUNNING
        self._running += 1
        return node

    @property
    def may_start(self) -> bool:
        """Whether ``pop`` would give a node."""
        if self._limit is None:
            return bool(self._queue)
        return bool(self._heap) and self._running != self._limit

    @property
    def exhausted(self) -> bool:
        """Whether every node added so far has ended."""
        return self._ended == self._added

    @property
    def unfinished(self) -> int:
        """How many nodes were added and have not ended."""
        return self._added - self._ended

    def has_started(self, node: N) -> bool:
        """Whether a node is running or has ended."""
        return self._state[node] < READY

    def complete(self, node: N) -> list[N]:
        """Report that a running node gave its result.

        Returns the nodes that are passed over now because of another that they wait for.
        """
        return self._end(node, COMPLETED)

    def fail(self, node: N) -> list[N]:
        """Report that a running node failed. Returns the nodes that are passed over now."""
        return self._end(node, BROKEN)

    def skip(self, node: N) -> list[N]:
        """Report that a running node is not to run. Returns the nodes that are passed over now."""
        return self._end(node, SKIPPED)

    def suspend(self, node: N) -> None:
        """Take a running node out of those that run, until it is queued again."""
        if self._state.get(node) != RUNNING:
            raise ValueError(f"{node!r} is not running")
        self._running -= 1
        self._state[node] = SUSPENDED

    def requeue(self, node: N) -> None:
        """Have a suspended node started again, in its turn."""
        if self._state.get(node) != SUSPENDED:
            raise ValueError(f"{node!r} is not suspended")
        self._enqueue(node)

    def forget(self, node: N) -> None:
        """Drop what is known of a node that has ended; no node may be added behind it any more."""
        if self._state[node] > COMPLETED:
            raise ValueError(f"{node!r} has not ended")
        del self._state[node]
        self._joins.pop(node, None)

    def _end(self, node: N, outcome: int) -> list[N]:
        if self._state.get(node) != RUNNING:
            raise ValueError(f"{node!r} is not running")
        self._running -= 1
        self._state[node] = outcome
        self._ended += 1
        if self._rank:
            self._rank.pop(node, None)
        passed_over: list[N] = []
        self._release(node, passed_over)
        for other in passed_over:  # grows while it is walked: what is behind them follows
            self._release(other, passed_over)
        return passed_over

    def _release(self, node: N, passed_over: list[N]) -> None:
        """Take an ended node off what waits for it; add to ``passed_over`` what can't run now."""
        state, joins = self._state, self._joins
        outcome = state[node]
        for dependents in (self._successors.get(node, ()), self._dependents.pop(node, ())):
            for dependent in dependents:
                waits_for = state.get(dependent, READY)
                if waits_for <= READY:  # it did not wait for this one
                    continue
                if outcome != COMPLETED:
                    self._spoil(dependent, outcome)
                elif joins and joins.get(dependent) == "any":
                    self._spoilt.pop(dependent, None)
                    self._enqueue(dependent)
                    continue
                state[dependent] = waits_for - 1
                if waits_for == 1 and not self._resolve(dependent):
                    passed_over.append(dependent)

    def _spoil(self, node: N, outcome: int) -> None:
        self._spoilt[node] = min(outcome, self._spoilt.get(node, SKIPPED))

    def _resolve(self, node: N) -> bool:
        """Decide over a node that waits for nothing any more: ready, or passed over."""
        spoilt = self._spoilt.pop(node, None) if self._spoilt else None
        tolerated = spoilt == SKIPPED and self._joins.get(node) == "none_failed"
        if spoilt is not None and not tolerated:
            self._state[node] = spoilt
            self._ended += 1
            self._rank.pop(node, None)
            return False
        if self._limit is None:
            self._queue.append(node)
        else:
            self._enqueue(node)
        return True

    def _enqueue(self, node: N) -> None:
        self._state[node] = READY
        if self._limit is None:
            self._queue.append(node)
        else:
            heapq.heappush(self._heap, (*self._rank[node], node))
