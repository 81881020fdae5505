"""Completions of an ``InMemoryBroker``: the result itself is handed over when the task ends.

A middleware on the broker sees each task begin and end, in this process and on this loop, so that
nothing depends on the broker's store, which keeps the newest hundred results only. Behind the push
stands a slow sweep that finds the tasks of whose end the middleware was never told.
"""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq import (
    AsyncBroker,
    InMemoryBroker,
    NoResultError,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)

from taskiq_flow.cleanup import until_ended
from taskiq_flow.completion.protocol import Observer
from taskiq_flow.errors import ConfigurationError, TaskLostError
from taskiq_flow.values.copying import copied
from taskiq_flow.values.handle import Reference, ResultHandle
from taskiq_flow.values.references import is_referred_to
from taskiq_flow.values.results import failed

SWEEP_INTERVAL = 1.0
"""Seconds between two looks at the tasks in flight."""

CANCEL_GRACE = 5.0
"""Seconds that cancelled tasks are given to end before the run stops waiting for them."""

_REQUEUE_COUNT = "X-Taskiq-requeue"  # the label in which ``Context.requeue`` counts


class Execution:
    """One expected task on its way through the broker, over all of its attempts."""

    # Defaults of the class, not set for each of them: there is one for every node.
    requeues = 0
    sweeps = 0  # that found it taken by the broker and not begun
    scheduled = False  # somebody is to send it again, at a time of their own
    revoked = False
    tells_begin = False
    worker: asyncio.Task[Any] | None = None  # runs the newest attempt
    superseded: frozenset[asyncio.Task[Any] | None] = frozenset()  # ran attempts sent again

    def __init__(self, node: Any, observer: Observer[Any], expected: dict[str, Execution]) -> None:
        self.node = node
        self.observer = observer
        self.expected = expected  # where it stands among its run's own

    def revoke(self) -> None:
        """Cancel it where it runs, or keep it from running."""
        # Once only: a second cancellation would cut short what a task does on the first.
        if self.worker is not None and not self.revoked:
            self.worker.cancel()
        self.revoked = True

    def supersede(self) -> None:
        """The attempt that runs in this asyncio task is not the last one."""
        self.superseded |= {asyncio.current_task()}


class InMemoryHooks(TaskiqMiddleware):
    """The middleware: one on each broker, first in its list, shared by all runs on it.

    The hooks that every task passes are coroutines, which taskiq tells from results faster.
    """

    def __init__(self) -> None:
        super().__init__()
        self.executions: dict[str, Execution] = {}
        self.run_ids: set[str] = set()

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
        """Notice that an attempt is sent again: by a retry middleware, before the attempt ends.

        A run does not call this for what it sends itself.
        """
        execution = self.executions.get(message.task_id)
        if execution is None:
            return message
        if execution.revoked:
            raise asyncio.CancelledError
        execution.scheduled = False
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
        execution.sweeps = 0
        if execution.tells_begin:
            execution.observer.began(execution.node, message.task_id)
        if execution.superseded:
            # A broker that runs tasks in place begins the new attempt inside the old one's task.
            execution.superseded -= {execution.worker}
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
                worker = asyncio.current_task()
                execution.scheduled = worker not in execution.superseded
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
        if execution.superseded and asyncio.current_task() in execution.superseded:
            return
        del self.executions[message.task_id], execution.expected[message.task_id]
        execution.observer.settle(execution.node, message.task_id, result)


class InMemoryCompletions:
    """The completions of one run on an ``InMemoryBroker``."""

    tells_begin = True

    def __init__(
        self, broker: AsyncBroker, observer: Observer[Any], run_id: str, limit: int | None = None
    ) -> None:
        hooks = InMemoryHooks.of(broker)
        if run_id in hooks.run_ids:
            raise ConfigurationError(
                f"run id {run_id!r} is in use on this broker; give each run an id of its own"
            )
        hooks.run_ids.add(run_id)
        # A kick of somebody's own may hold a task back for as long as it likes.
        self._begins_at_once = type(broker).kick is InMemoryBroker.kick
        self._run_ids = hooks.run_ids
        self._run_id = run_id
        self._observer = observer if limit is None else _Referring(observer, limit)
        self._executions = hooks.executions
        self._expected: dict[str, Execution] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._arm()

    def expect(
        self,
        task_id: str,
        node: Any,
        return_type: Any,
        queue: str | None,
        *,
        tell_begin: bool = False,
    ) -> None:
        """Watch for a task. Its result is taken as it is, whatever it is annotated with."""
        execution = Execution(node, self._observer, self._expected)
        if tell_begin:
            execution.tells_begin = True
        self._executions[task_id] = self._expected[task_id] = execution

    def forget(self, task_id: str) -> bool:
        """Stop waiting for a task whose sending has failed, unless it is over by our own word.

        It may have been handed over all the same: then it is cancelled, or ends as it begins.
        """
        execution = self._expected.get(task_id)
        if execution is None or execution.revoked:
            return False
        if execution.worker is asyncio.current_task():  # a broker that runs tasks in place
            self._drop(task_id)
        else:
            execution.revoke()
        return True

    def _drop(self, task_id: str) -> None:
        self._executions.pop(task_id, None)
        self._expected.pop(task_id, None)

    def revoke_task(self, task_id: str) -> None:
        """Cancel a task that runs, or have it end as it begins; it is forgotten when it has."""
        execution = self._expected.get(task_id)
        if execution is not None:
            execution.revoke()

    def revoke(self) -> None:
        """Cancel the tasks that run, and have those that were only sent end as they begin."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for execution in self._expected.values():
            execution.revoke()

    async def aclose(self) -> None:
        """Revoke, and wait for the cancelled tasks to end, for a bounded time."""
        self.revoke()
        if self._expected:
            await asyncio.sleep(0)  # what was sent has begun by then, and ended as it was revoked
            workers = [e.worker for e in self._expected.values() if e.worker is not None]
            await until_ended(workers, CANCEL_GRACE)
            for task_id in list(self._expected):
                self._drop(task_id)
        self._run_ids.discard(self._run_id)

    def _arm(self) -> None:
        self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_INTERVAL, self._sweep)

    def _sweep(self) -> None:
        """Settle the tasks of whose end nobody told: a middleware raised, or nothing ever began."""
        self._arm()
        for task_id, execution in list(self._expected.items()):
            if execution.revoked:
                if execution.worker is not None and execution.worker.done():
                    self._drop(task_id)
                continue
            error = self._what_became_of(task_id, execution)
            if error is not None:
                self._drop(task_id)
                self._observer.settle(execution.node, task_id, failed(error))

    def _what_became_of(self, task_id: str, execution: Execution) -> BaseException | None:
        """The error of a task of which nothing runs and nothing will come; else ``None``."""
        worker = execution.worker
        if worker is not None and not worker.done():
            return None
        error = _ended_with(worker, task_id)
        if worker is not None and worker not in execution.superseded:
            return error or TaskLostError(
                f"task {task_id!r} ended without a result; a middleware of the broker swallowed it"
            )
        return self._unless_it_begins(task_id, execution, error)

    def _unless_it_begins(
        self, task_id: str, execution: Execution, error: BaseException | None
    ) -> BaseException | None:
        """What became of a task that was sent, or sent again, and has not begun."""
        waits_for_others = execution.scheduled and error is None
        being_sent = self._observer.is_being_sent(execution.node)
        if waits_for_others or being_sent or not self._begins_at_once:
            return None
        execution.sweeps += 1
        if execution.sweeps == 1:  # from one sweep to the next, the loop begins what it can
            return None
        return error or TaskLostError(
            f"task {task_id!r} was taken by the broker and never began: its message could not be "
            "read back, or it was cancelled first; see the log of 'taskiq'"
        )


class _Referring:
    """An observer that is given handles for results above a limit on their size.

    There is no result backend here that keeps them: a handle holds its result itself.
    """

    def __init__(self, observer: Observer[Any], limit: int) -> None:
        self.is_being_sent = observer.is_being_sent
        self.began = observer.began
        self.retried = observer.retried
        self._settle = observer.settle
        self._limit = limit

    def settle(self, node: Any, task_id: str, result: TaskiqResult[Any]) -> None:
        if is_referred_to(result, self._limit):
            value = result.return_value

            async def read() -> Any:
                return copied(value)

            handle = ResultHandle(Reference(task_id), read)
            result = result.model_copy(update={"return_value": handle})
        self._settle(node, task_id, result)


def _ended_with(worker: asyncio.Task[Any] | None, task_id: str) -> BaseException | None:
    """What an attempt's asyncio task raised, if there was one and it did."""
    if worker is None:
        return None
    if worker.cancelled():
        return asyncio.CancelledError(f"task {task_id!r} was cancelled on its worker")
    return worker.exception()
