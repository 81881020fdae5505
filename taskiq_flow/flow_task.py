"""A taskiq task whose result is gathered in this process instead of in a result backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from taskiq import AsyncResultBackend, AsyncTaskiqTask, TaskiqResult, TaskiqResultTimeoutError

from taskiq_flow.cleanup import to_the_end

T = TypeVar("T")


class FlowTask(AsyncTaskiqTask[T]):
    """The outcome of a run, with the methods of a taskiq task.

    What the run raises becomes the result's ``error``, as with any task of taskiq.

    >>> async def main():
    ...     total = await MapReduce.map_reduce(InMemoryBroker(), abs, [1, -2, "x"], sum)
    ...     result = await total.wait_result(timeout=10)
    ...     return result.is_err, type(result.error).__name__
    >>> asyncio.run(main())
    (True, 'NodeFailedError')
    """

    def __init__(self, task_id: str, gather: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._gathered = Gathered(gather)
        self._waiting = 0
        super().__init__(task_id, self._gathered)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id!r}, {self._state()}>"

    def _state(self) -> str:
        if not self._gathered.has_begun:
            return "not waited for yet"
        return "done" if self._gathered.task().done() else "in progress"

    def cancel(self) -> None:
        """Stop the run; its result becomes an error that says so."""
        self._gathered.task().cancel()

    async def wait_result(
        self,
        check_interval: float = 0.2,
        timeout: float = -1.0,
        with_logs: bool = False,
    ) -> TaskiqResult[T]:
        """Wait for the result, ``timeout`` seconds at the most if that is above zero.

        It is pushed, so ``check_interval`` has no effect. Raises ``TaskiqResultTimeoutError``; the
        run goes on then. If the only one who waits is cancelled, so is the run, as it is with any
        coroutine that is awaited.
        """
        gathering = self._gathered.task()
        self._waiting += 1
        try:
            await asyncio.wait([gathering], timeout=timeout if timeout > 0 else None)
        except asyncio.CancelledError:
            if self._waiting == 1:
                self.cancel()
                await to_the_end(asyncio.wait([gathering]))
            raise
        finally:
            self._waiting -= 1
        if not gathering.done():
            raise TaskiqResultTimeoutError(timeout=timeout)
        return await self.get_result(with_logs=with_logs)


class Gathered(AsyncResultBackend[T], Generic[T]):
    """The result backend of one task: an asyncio task that starts when somebody first asks."""

    def __init__(self, gather: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._gather = gather
        self._task: asyncio.Task[TaskiqResult[T]] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether somebody has asked."""
        return self._task is not None

    def task(self) -> asyncio.Task[TaskiqResult[T]]:
        """What gathers the result."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(_result_of(self._gather))
        return self._task

    async def set_result(self, task_id: str, result: TaskiqResult[T]) -> None:
        raise TypeError(f"the result of {task_id!r} is gathered, not set")

    async def is_result_ready(self, task_id: str) -> bool:
        return self.task().done()

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[T]:
        return self.task().result()


async def _result_of(gather: Callable[[], Coroutine[Any, Any, T]]) -> TaskiqResult[T]:
    """What taskiq makes of a task's end: a value, or an error in its place."""
    value: Any = None
    error: BaseException | None = None
    start = time.monotonic()
    try:
        value = await gather()
    except (Exception, asyncio.CancelledError) as raised:  # whatever ended the run is its result
        error = raised
    return TaskiqResult(
        is_err=error is not None,
        return_value=value,
        execution_time=round(time.monotonic() - start, 2),
        error=error,
    )
