"""The outcome of a pipeline's run, as a task of taskiq."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

from taskiq import AsyncResultBackend, AsyncTaskiqTask, TaskiqResult

from taskiq_flow.engine.run_handle import RunHandle

T = TypeVar("T")


class PipelineTask(AsyncTaskiqTask[T]):
    """A run of a pipeline, as ``kiq`` returns it: a task of taskiq whose result is the pipeline's.

    ``await task`` gives the result, or raises what the run raises; in what ``wait_result`` returns
    that is the ``error``. ``run``: the ``RunHandle``, with ``status``, ``results``, ``failures``
    and ``events()``. A task that nobody holds any more goes on to its end.

    >>> async def main():
    ...     task = await Pipeline(InMemoryBroker()).call_next(abs).call_next(hex).kiq(-7)
    ...     return (await task.wait_result(timeout=10)).return_value, await task, task.run.results
    >>> asyncio.run(main())
    ('0x7', '0x7', {'abs': 7, 'hex': '0x7'})
    """

    def __init__(self, run: RunHandle, result_of: Callable[[Mapping[str, Any]], T]) -> None:
        self.run = run
        self._results = _Results(run, result_of)
        super().__init__(run.task_id, self._results)

    @property
    def pipeline_id(self) -> str:
        """The id of the run, which is its ``task_id`` as well."""
        return self.task_id

    def cancel(self) -> None:
        """Stop the run. Whoever waits for it gets ``RunCancelledError``."""
        self.run.cancel()

    async def wait_result(
        self,
        check_interval: float = 0.2,
        timeout: float = -1.0,
        with_logs: bool = False,
    ) -> TaskiqResult[T]:
        """Wait for the result, ``timeout`` seconds at the most if that is above zero.

        It is pushed, so ``check_interval`` has no effect. Raises ``TaskiqResultTimeoutError``; the
        run goes on then.
        """
        return self._results.of(await self.run.wait_result(timeout=timeout))

    def __await__(self) -> Generator[Any, None, T]:
        return self._value().__await__()

    async def _value(self) -> T:
        return self._results.result_of(await self.run)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id!r}, {self.run.status}>"


class _Results(AsyncResultBackend[T]):
    """The result backend of one task. It takes the result out of those of the run's nodes."""

    def __init__(self, run: RunHandle, result_of: Callable[[Mapping[str, Any]], T]) -> None:
        self._run = run
        self.result_of = result_of

    async def set_result(self, task_id: str, result: TaskiqResult[T]) -> None:
        raise TypeError(f"the result of pipeline {task_id!r} is that of its run, and is not set")

    async def is_result_ready(self, task_id: str) -> bool:
        return await self._run.is_ready()

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[T]:
        return self.of(await self._run.get_result(with_logs=with_logs))

    def of(self, whole: TaskiqResult[dict[str, Any]]) -> TaskiqResult[T]:
        """The result of the run, with the value of this one."""
        value: Any = None if whole.is_err else self.result_of(whole.return_value)
        return TaskiqResult(
            is_err=whole.is_err,
            return_value=value,
            execution_time=whole.execution_time,
            error=whole.error,
        )
