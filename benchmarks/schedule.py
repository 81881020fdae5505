"""How long a workflow takes on paper, and with nothing but timers.

List scheduling (Graham, 1966): whenever a slot is free, the first ready node of a list starts. The
engine's list is by the longest remaining path, insertion order among equals.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Sequence

from benchmarks.workload import Workflow


def remaining_paths(workflow: Workflow) -> list[float]:
    """Seconds from each node's start to the end of the longest path behind it."""
    successors = workflow.successors
    longest = [0.0] * len(workflow.nodes)
    for node in reversed(_order(workflow)):
        behind = max((longest[after] for after in successors[node]), default=0.0)
        longest[node] = workflow.seconds[node] + behind
    return longest


def critical_path(workflow: Workflow) -> float:
    """Seconds that the longest path takes: the whole, if nothing limits what runs at once."""
    return max(remaining_paths(workflow))


def first_come(workflow: Workflow, slots: int) -> float:
    """Seconds on paper if nodes start in the order in which they became ready."""
    return on_paper(workflow, slots, None)


def longest_first(workflow: Workflow, slots: int) -> float:
    """Seconds on paper if the node with the longest remaining path starts first."""
    return on_paper(workflow, slots, remaining_paths(workflow))


def on_paper(workflow: Workflow, slots: int, priority: Sequence[float] | None) -> float:
    """Seconds on paper. ``priority``: by node, the highest starts first; ``None``: first come."""
    ready = _Ready(workflow, priority)
    running: list[tuple[float, int]] = []
    now = 0.0
    while True:
        while len(running) < slots and ready.queue:
            node = ready.pop()
            heapq.heappush(running, (now + workflow.seconds[node], node))
        if not running:
            return now
        now = running[0][0]
        while running and running[0][0] == now:
            ready.complete(heapq.heappop(running)[1])


async def with_timers(workflow: Workflow, slots: int | None = None) -> float:
    """Seconds that the schedule takes if each node is a timer of the event loop and no more."""
    loop = asyncio.get_running_loop()
    ready = _Ready(workflow, remaining_paths(workflow))
    over = loop.create_future()
    free = math.inf if slots is None else slots
    left = len(workflow.nodes)

    def start_ready() -> None:
        nonlocal free
        while free and ready.queue:
            node = ready.pop()
            free -= 1
            loop.call_later(workflow.seconds[node], complete, node)

    def complete(node: int) -> None:
        nonlocal free, left
        free += 1
        left -= 1
        ready.complete(node)
        start_ready()
        if not left:
            over.set_result(None)

    start = time.perf_counter()
    start_ready()
    await over
    return time.perf_counter() - start


class _Ready:
    """Nodes that wait for nothing, in the order of their priority or of their coming."""

    def __init__(self, workflow: Workflow, priority: Sequence[float] | None) -> None:
        self._priority = priority
        self._successors = workflow.successors
        self._missing = [len(before) for before in workflow.predecessors]
        self._came = 0
        self.queue: list[tuple[float, int]] = []
        for node, missing in enumerate(self._missing):
            if not missing:
                self._push(node)

    def _push(self, node: int) -> None:
        self._came += 1
        rank = self._came if self._priority is None else -self._priority[node]
        heapq.heappush(self.queue, (rank, node))

    def pop(self) -> int:
        return heapq.heappop(self.queue)[1]

    def complete(self, node: int) -> None:
        for after in self._successors[node]:
            self._missing[after] -= 1
            if not self._missing[after]:
                self._push(after)


def _order(workflow: Workflow) -> list[int]:
    ready = _Ready(workflow, None)
    order = []
    while ready.queue:
        order.append(ready.pop())
        ready.complete(order[-1])
    return order
