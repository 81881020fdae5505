"""A broker whose queue, worker and results are in this process."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Executor
from typing import Any

from taskiq import AsyncBroker, AsyncResultBackend, BrokerMessage, TaskiqResult
from taskiq.receiver import Receiver


class LocalResults(AsyncResultBackend[Any]):
    """The result backend of a ``LocalBroker``: results as bytes, by task id.

    ``keep_results``: whether a result stays when it has been read. ``stored``: the bytes.
    ``failures_to_come``: so many times the backend is away, with ``ConnectionError``, when it is
    asked for a result. ``questions``: how often it was asked.

    >>> broker = LocalBroker(LocalResults(keep_results=False))
    >>> broker.results.failures_to_come = 2
    """

    def __init__(self, *, keep_results: bool = True) -> None:
        self.stored: dict[str, bytes] = {}
        self.keep_results = keep_results
        self.failures_to_come = 0
        self.questions = 0

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        """Store the result of a task."""
        self.stored[task_id] = pickle.dumps(result)

    async def is_result_ready(self, task_id: str) -> bool:
        """Whether there is a result. Raises ``ConnectionError`` if a failure is to come."""
        self.questions += 1
        await asyncio.sleep(0)
        if self.failures_to_come:
            self.failures_to_come -= 1
            raise ConnectionError("the result backend is away")
        return task_id in self.stored

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[Any]:
        """The result of a task. Raises ``KeyError`` if there is none."""
        await asyncio.sleep(0)
        stored = self.stored[task_id] if self.keep_results else self.stored.pop(task_id)
        result: TaskiqResult[Any] = pickle.loads(stored)  # noqa: S301 - written above
        return result


class LocalBroker(AsyncBroker):
    """A broker with a queue in memory. Its tasks are executed inside ``async with worker()``.

    Engines treat it as a broker with workers elsewhere, which an ``InMemoryBroker`` is not: tasks
    are sent as messages, their values are encoded, and results are read from a result backend. With
    a ``LocalFlowMiddleware`` results are pushed, and cancellations reach the worker. The worker is
    taskiq's own. All of it runs on a virtual clock, too.

    ``results``: the result backend. ``queue``: the messages that no worker has taken yet.

    >>> from taskiq_flow.testing import LocalBroker, LocalFlowMiddleware, run_virtually
    >>> broker = LocalBroker().with_middlewares(LocalFlowMiddleware())
    >>> @broker.task
    ... async def pair(number: int) -> tuple[int, int]:
    ...     await asyncio.sleep(60)
    ...     return number, 2 * number
    >>> async def main():
    ...     dag = DAGBuilder().node(pair).build()
    ...     async with broker.worker():
    ...         results = await ExecutionEngine(broker, dag).execute({"number": 4})
    ...     await broker.shutdown()
    ...     return results
    >>> run_virtually(main())
    {'pair': (4, 8)}
    """

    def __init__(self, results: LocalResults | None = None) -> None:
        super().__init__()
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.results = results or LocalResults()
        self.with_result_backend(self.results)

    async def kick(self, message: BrokerMessage) -> None:
        """Put a message into the queue."""
        await asyncio.sleep(0)
        self.queue.put_nowait(message.message)

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """Yield the messages of the queue."""
        while True:
            yield await self.queue.get()

    @contextlib.asynccontextmanager
    async def worker(self, slots: int = 100, pool: Executor | None = None) -> AsyncIterator[None]:
        """Execute tasks while the block runs, so many at once.

        At its end, the tasks that run are waited for, unless the block has raised.
        ``pool``: executes sync tasks; the event loop's default if it is left out.
        """
        receiver = Receiver(self, pool, max_async_tasks=slots, run_startup=False)
        stop = asyncio.Event()
        listening = asyncio.ensure_future(receiver.listen(stop))
        try:
            yield
        except BaseException:  # the tasks may wait for what the block has not come to
            listening.cancel()
            await asyncio.wait([listening])
            raise
        stop.set()
        await listening
