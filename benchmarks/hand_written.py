"""The limit that the engine is held against: a loop written by hand for one graph, no engine.

It does what somebody would do who knows taskiq and has nothing else: a middleware's
``post_execute`` resolves a callback, and the loop sends with ``kiq()`` what that makes ready. It
checks nothing, cancels nothing, survives nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from taskiq import InMemoryBroker, TaskiqMessage, TaskiqMiddleware, TaskiqResult

from benchmarks.measure import Contestant
from benchmarks.shapes import NoOp, Shape, no_op


class Resolve(TaskiqMiddleware):
    """Hands each result to the loop when its task ends."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, int] = {}
        self.finished: list[tuple[int, Any]] = []
        self.something: asyncio.Future[None] | None = None

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Note the result and wake the loop. A coroutine, as taskiq is slower with functions."""
        self.finished.append((self.waiting.pop(message.task_id), result.return_value))
        if self.something is not None and not self.something.done():
            self.something.set_result(None)


async def run_by_hand(resolve: Resolve, task: NoOp, predecessors: Shape) -> Mapping[int, Any]:
    """Run ``task`` once per node, with its predecessors' results; return all results by node."""
    loop = asyncio.get_running_loop()
    successors: list[list[int]] = [[] for _ in predecessors]
    missing = [len(before) for before in predecessors]
    for node, before in enumerate(predecessors):
        for other in before:
            successors[other].append(node)
    results: dict[int, Any] = {}
    ready = [node for node, count in enumerate(missing) if not count]
    while len(results) < len(predecessors):
        for node in ready:
            sent = await task.kiq(*[results[other] for other in predecessors[node]])
            resolve.waiting[sent.task_id] = node
        if not resolve.finished:
            resolve.something = loop.create_future()
            await resolve.something
        finished, resolve.finished = resolve.finished, []
        ready = []
        for node, value in finished:
            results[node] = value
            for after in successors[node]:
                missing[after] -= 1
                if not missing[after]:
                    ready.append(after)
    return results


def by_hand(shape: Shape) -> Contestant:
    """A run of the shape by the loop, on a broker of its own."""
    resolve = Resolve()
    broker = InMemoryBroker().with_middlewares(resolve)
    task = no_op(broker)
    return lambda: run_by_hand(resolve, task, shape)
