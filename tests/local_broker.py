"""A broker with a queue, a worker and a result store of its own, all in this process.

It is to the engine what any broker with workers elsewhere is: what it runs is out of reach, and
what came of it stands in a result backend. The worker is taskiq's own receiver.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Executor
from typing import Any

from taskiq import AsyncBroker, AsyncResultBackend, BrokerMessage, TaskiqResult
from taskiq.receiver import Receiver


class Store(AsyncResultBackend[Any]):
    """Results as bytes; can be made to fail for a while."""

    def __init__(self, *, keep_results: bool = True) -> None:
        self.results: dict[str, bytes] = {}
        self.keep_results = keep_results
        self.failures_to_come = 0
        self.questions = 0

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.results[task_id] = pickle.dumps(result)

    async def is_result_ready(self, task_id: str) -> bool:
        self.questions += 1
        await asyncio.sleep(0)
        if self.failures_to_come:
            self.failures_to_come -= 1
            raise ConnectionError("the store is away")
        return task_id in self.results

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[Any]:  # noqa: FBT002 - taskiq's signature
        await asyncio.sleep(0)
        stored = self.results[task_id] if self.keep_results else self.results.pop(task_id)
        result: TaskiqResult[Any] = pickle.loads(stored)  # noqa: S301 - written above
        return result


class LocalBroker(AsyncBroker):
    """A queue in memory, listened to by a worker in a task of its own."""

    def __init__(self, store: Store | None = None) -> None:
        super().__init__()
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.store = store or Store()
        self.with_result_backend(self.store)

    async def kick(self, message: BrokerMessage) -> None:
        await asyncio.sleep(0)
        self.queue.put_nowait(message.message)

    async def listen(self) -> AsyncGenerator[bytes, None]:
        while True:
            yield await self.queue.get()

    @contextlib.asynccontextmanager
    async def worker(self, slots: int = 100, pool: Executor | None = None) -> AsyncIterator[None]:
        """Work while the block runs, on so many tasks at once, on sync ones in the pool."""
        receiver = Receiver(self, pool, max_async_tasks=slots, run_startup=False)
        stop = asyncio.Event()
        listening = asyncio.ensure_future(receiver.listen(stop))
        try:
            yield
        finally:
            stop.set()
            await listening
