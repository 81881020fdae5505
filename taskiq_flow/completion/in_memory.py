"""Completions of an ``InMemoryBroker``: the result itself is handed over when the task ends.

A middleware on the broker sees each task begin and end, in this process and on this loop, so that
nothing depends on the broker's store, which keeps the newest hundred results only. Behind the push
stands a slow sweep that finds the tasks of whose end the middleware was never told.
"""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq import AsyncBroker, NoResultError, TaskiqMessage, TaskiqMiddleware, TaskiqResult

from taskiq_flow.completion.protocol import Observer, failed
from taskiq_flow.completion.waiting import until_ended
from taskiq_flow.errors import ConfigurationError, TaskLostError

SWEEP_INTERVAL = 1.0
"""Seconds between two looks at the tasks in flight."""

CANCEL_GRACE = 5.0
"""Seconds that cancelled tasks are given to end before the run stops waiting for them."""

_REQUEUE_COUNT = "X-Taskiq-requeue"  # the label in which ``Context.requeue`` counts


class Execution:
    """One expected task on its way through the broker, over all of its attempts."""

    __slots__ = (
        "expected",
        "node",
        "observer",
        "requeues",
        "resent",
        "revoked",
        "superseded",
        "taken",
        "worker",
    )

    def __init__(
        self, node: Any, observer: Observer[Any], expected: dict[str, Execution]
    ) -> None:
        self.node = node
        self.observer = observer
        self.expected = expected
        self.resent = -1  # the first time that it is sent does not count
        self.requeues = 0
        self.taken = 0  # sweeps that found the task taken by the broker and not begun
        self.revoked = False
        self.worker: asyncio.Task[Any] | None = None  # runs the newest attempt
        self.superseded: set[asyncio.Task[Any]] | None = None  # ran attempts that were sent again

    def supersede(self) -> None:
        """The attempt that runs in this asyncio task is not the last one."""
        task = asyncio.current_task()
        if task is not None:
            self.superseded = {*(self.superseded or ()), task}

    def is_superseded(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether the attempt that runs in this asyncio task was sent again."""
        return self.superseded is not None and task in self.superseded


class InMemoryHooks(TaskiqMiddleware):
    """The middleware: one on each broker, first in its list, shared by all runs on it.

    The hooks that every task passes are coroutines, which taskiq tells from results faster.
    """

    def __init__(self) -> None:
        super().__init__()
        self.executions: dict[str, Execution] = {}

    @classmethod
    def of(cls, broker: AsyncBroker) -> InMemoryHooks:
        """The hooks of a broker, put in place at the first call."""
        for middleware in broker.middlewares:
            if isinstance(middleware, cls):
                return middleware
        hooks = cls()
        hooks.set_broker(broker)
        # A new list, as a task may be walking through the present one. First in it: called before
        # the others when a task begins and behind them when it ends, so that theirs is what counts.
        broker.middlewares = [hooks, *broker.middlewares]
        return hooks

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Notice that an attempt is sent again: by a retry middleware, before the attempt ends."""
        execution = self.executions.get(message.task_id)
        if execution is None:
            return message
        if execution.revoked:
            raise asyncio.CancelledError
        execution.resent += 1
        if execution.resent:
            execution.supersede()
            execution.observer.retried(execution.node, message.task_id)
        return message

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Remember who runs the task; keep a revoked one from running at all."""
        execution = self.executions.get(message.task_id)
        if execution is None:
            return message
        if execution.revoked:
            raise asyncio.CancelledError
        execution.worker = asyncio.current_task()
        if execution.superseded is not None:
            # A broker that runs tasks in place begins the new attempt inside the old one's task.
            execution.superseded.discard(execution.worker)  # type: ignore[arg-type]
        return message

    def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        """Tell «not yet» from «failed», both of which may look like a ``NoResultError``."""
        execution = self.executions.get(message.task_id)
        if execution is None:
            return
        if not isinstance(exception, NoResultError):
            if isinstance(result.error, NoResultError):  # a middleware will have it sent again
                execution.supersede()
        elif int(message.labels.get(_REQUEUE_COUNT, 0)) > execution.requeues:
            execution.requeues += 1
            execution.supersede()
            execution.observer.retried(execution.node, message.task_id)

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Hand the result over, unless the task was sent again or nobody wants it any more."""
        execution = self.executions.get(message.task_id)
        if execution is None or execution.revoked:
            return
        if execution.superseded and execution.is_superseded(asyncio.current_task()):
            return
        del self.executions[message.task_id], execution.expected[message.task_id]
        execution.observer.settle(execution.node, message.task_id, result)


class InMemoryCompletions:
    """The completions of one run on an ``InMemoryBroker``."""

    def __init__(self, broker: AsyncBroker, observer: Observer[Any]) -> None:
        self._executions = InMemoryHooks.of(broker).executions
        self._observer = observer
        self._expected: dict[str, Execution] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._arm()

    def expect(self, task_id: str, node: Any, return_type: Any) -> None:  # noqa: ARG002
        """Watch for a task. Its result is taken as it is, whatever it is annotated with."""
        if task_id in self._executions:
            raise ConfigurationError(
                f"task id {task_id!r} is in use on this broker; give each run a run_id of its own"
            )
        execution = Execution(node, self._observer, self._expected)
        self._executions[task_id] = self._expected[task_id] = execution

    def sent(self, task_id: str) -> None:
        """From now on the task is missed if it does not begin."""
        execution = self._expected.get(task_id)
        if execution is not None:
            execution.taken = 1

    def forget(self, task_id: str) -> None:
        """Stop watching for a task that could not be sent."""
        if self._expected.pop(task_id, None) is not None:
            del self._executions[task_id]

    def revoke(self) -> None:
        """Cancel the tasks that run, and have those that were only sent end as they begin."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for execution in self._expected.values():
            execution.revoked = True
            if execution.worker is not None:
                execution.worker.cancel()

    async def aclose(self) -> None:
        """Revoke, and wait for the cancelled tasks to end, for a bounded time."""
        self.revoke()
        if not self._expected:
            return
        await asyncio.sleep(0)  # whatever was sent has begun by then, and ended as it was revoked
        workers = [e.worker for e in self._expected.values() if e.worker is not None]
        await until_ended(workers, CANCEL_GRACE)
        for task_id in list(self._expected):
            self.forget(task_id)

    def _arm(self) -> None:
        self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_INTERVAL, self._sweep)

    def _sweep(self) -> None:
        """Settle the tasks of whose end nobody told: a middleware raised, or nothing ever began."""
        self._arm()
        for task_id, execution in list(self._expected.items()):
            error = self._what_became_of(task_id, execution)
            if error is not None:
                self.forget(task_id)
                self._observer.settle(execution.node, task_id, failed(error))

    def _what_became_of(self, task_id: str, execution: Execution) -> BaseException | None:
        worker = execution.worker
        if worker is None:
            if execution.taken > 1:
                return TaskLostError(
                    f"task {task_id!r} was taken by the broker and never began: its message could "
                    "not be read back, or it was cancelled first; see the log of 'taskiq'"
                )
            execution.taken *= 2  # from one sweep to the next the loop has begun what it could
            return None
        if not worker.done() or execution.is_superseded(worker):
            return None
        if worker.cancelled():
            return asyncio.CancelledError(f"task {task_id!r} was cancelled on its worker")
        return worker.exception() or TaskLostError(
            f"task {task_id!r} ended without a result; a middleware of the broker swallowed it"
        )
