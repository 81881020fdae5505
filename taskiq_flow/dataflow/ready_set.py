"""Only this file decides whether a node may start.

A node may start when every dependency of it has completed and fewer nodes than the limit are
running. The ready set has neither a clock nor a broker: it is told what was added and how it
ended, and says which node is next.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Generic, Self, TypeVar

N = TypeVar("N", bound=Hashable)

# A node's state: above zero, the number of dependencies that have not ended yet; else one of these.
READY, RUNNING, COMPLETED, BROKEN = 0, -1, -2, -3


class ReadySet(Generic[N]):
    """Who may start now, over a graph that may grow while it runs.

    Nodes are added with the nodes they wait for. ``pop`` hands out the next that may start;
    ``complete`` and ``fail`` report how it ended. A node behind a failure is skipped once all that
    it waits for has ended, so that nodes always end in an order that follows the edges.

    ``limit``: how many nodes may run at once, ``None`` for any number. Without a limit nodes start
    in the order in which they became ready; with one, the ready node of the highest priority goes
    first, and the one added first among equals (list scheduling; Graham, 1966).
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._state: dict[N, int] = {}
        self._successors: Mapping[N, Iterable[N]] = {}
        self._dependents: dict[N, list[N]] = {}  # those that came later
        self._behind_failure: set[N] = set()
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
    ) -> Self:
        """The ready set of a graph that is known whole and was checked, without looking twice.

        ``predecessors`` and ``successors`` say the same in both directions and are not changed.
        """
        ready = cls(limit)
        ready._successors = successors
        for node in nodes:
            if limit is not None:
                ready._rank[node] = (-priority.get(node, 0.0), ready._added)
            ready._added += 1
            ready._state[node] = waits_for = len(predecessors.get(node, ()))
            if not waits_for:
                ready._resolve(node)
        return ready

    def add(self, node: N, after: Iterable[N] = (), priority: float = 0.0) -> bool:
        """Take in a node that waits for the nodes of ``after``, all of which were added before.

        Returns ``False`` if the node is skipped at once: all that it waits for has ended, and not
        all of it well. Raises ``ValueError`` for a node that is known already or a dependency that
        is not.
        """
        if node in self._state:
            raise ValueError(f"{node!r} was added before")
        dependencies = dict.fromkeys(after)
        for dependency in dependencies:
            if dependency not in self._state:
                raise ValueError(f"{node!r} waits for {dependency!r}, which is not in the set")
        unresolved = 0
        for dependency in dependencies:
            state = self._state[dependency]
            if state == BROKEN:
                self._behind_failure.add(node)
            elif state != COMPLETED:
                self._dependents.setdefault(dependency, []).append(node)
                unresolved += 1
        if self._limit is not None:
            self._rank[node] = (-priority, self._added)
        self._added += 1
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

        Returns the nodes that are skipped now because they also wait for one that failed.
        """
        return self._end(node, COMPLETED)

    def fail(self, node: N) -> list[N]:
        """Report that a running node failed. Returns the nodes that are skipped now, in order."""
        return self._end(node, BROKEN)

    def forget(self, node: N) -> None:
        """Drop what is known of a node that has ended; no node may be added behind it any more."""
        if self._state[node] not in (COMPLETED, BROKEN):
            raise ValueError(f"{node!r} has not ended")
        del self._state[node]

    def _end(self, node: N, outcome: int) -> list[N]:
        if self._state.get(node) != RUNNING:
            raise ValueError(f"{node!r} is not running")
        self._running -= 1
        self._state[node] = outcome
        self._ended += 1
        skipped: list[N] = []
        self._release(node, skipped)
        for other in skipped:  # grows while it is walked: what is behind a skipped node follows
            self._release(other, skipped)
        return skipped

    def _release(self, node: N, skipped: list[N]) -> None:
        """Take an ended node off what waits for it; add to ``skipped`` what can never run now."""
        state = self._state
        broken = state[node] == BROKEN
        for dependents in (self._successors.get(node, ()), self._dependents.pop(node, ())):
            for dependent in dependents:
                if broken:
                    self._behind_failure.add(dependent)
                state[dependent] -= 1
                if state[dependent] == READY and not self._resolve(dependent):
                    skipped.append(dependent)

    def _resolve(self, node: N) -> bool:
        """Decide over a node that waits for nothing any more: ready, or skipped."""
        if node in self._behind_failure:
            self._behind_failure.discard(node)
            self._state[node] = BROKEN
            self._ended += 1
            self._rank.pop(node, None)
            return False
        if self._limit is None:
            self._queue.append(node)
        else:
            heapq.heappush(self._heap, (*self._rank.pop(node), node))
        return True
