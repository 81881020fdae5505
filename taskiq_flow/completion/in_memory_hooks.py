"""The middleware of an ``InMemoryBroker``: it sees each task begin and end.

It is in this process and on this loop, so that nothing depends on the broker's store, which keeps
the newest hundred results only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from asyncio import current_task
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from taskiq import InMemoryBroker, NoResultError, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.brokers.inmemory_broker import InmemoryResultBackend

from taskiq_flow.completion.embedding import embed, forget_other
from taskiq_flow.completion.protocol import InFlight
from taskiq_flow.completion.threads import Threads
from taskiq_flow.dataflow.tasks import original_function
from taskiq_flow.generators.here import SinkHere
from taskiq_flow.processes.in_process import when_begun
from taskiq_flow.transport.notice import REQUEUE_COUNT
from taskiq_flow.values.call import Call, is_wrapped, present
from taskiq_flow.values.ended import how_ended
from taskiq_flow.values.handle import Reference, ResultHandle
from taskiq_flow.values.isolation import isolated
from taskiq_flow.values.references import refers

if TYPE_CHECKING:
    from taskiq_flow.completion.in_memory import InMemoryCompletions

logger = logging.getLogger("taskiq_flow")

RUN_LABEL = "taskiq_flow_run"
"""The label of a task that a run has sent: the run's id. Its message has no arguments."""


class Execution:
    """One expected task on its way through the broker, over all of its attempts."""

    # Defaults of the class, not set for each of them: there is one for every node.
    requeues = 0
    sweeps = 0  # that found it taken by the broker and not begun
    scheduled = False  # somebody is to send it again, at a time of their own
    revoked = False
    worker: asyncio.Task[Any] | None = None  # runs the newest attempt
    message: TaskiqMessage | None = None  # of that
    call: Call | None = None  # what the task is executed with
    limit: int | None = None  # bytes above which the run is given a handle in place of the value
    sink: SinkHere | None = None  # of a generator whose items are taken one by one
    superseded: frozenset[asyncio.Task[Any] | None] = frozenset()  # ran attempts sent again

    def __init__(
        self,
        task_id: str,
        in_flight: InFlight,
        completions: InMemoryCompletions,
        *,
        tells_begin: bool,
        begins_at_once: bool,
    ) -> None:
        self.task_id = task_id
        self.in_flight = in_flight
        self.completions = completions
        self.tells_begin = tells_begin
        self.begins_at_once = begins_at_once  # and tells so

    def revoke(self) -> None:
        """Cancel the task, or keep it from running."""
        if self.sink is not None:
            self.sink.close()
        # Once only: a second cancellation would cut short what a task does on the first.
        if self.worker is not None and not self.revoked:
            self.worker.cancel()
        self.revoked = True

    def how_ended(self, error: BaseException) -> str:
        """What the log says of an attempt that has raised an error."""
        message = self.message
        if message is None:
            return how_ended(error, None, None)
        task = self.completions.broker.find_task(message.task_name)
        function = None if task is None else original_function(task)
        if (stands_for := getattr(function, "stands_for", None)) is not None:
            own = stands_for()
            function = None if own is None else own.task
        return how_ended(error, function, message.labels.get("timeout"))

    def supersede(self, worker: asyncio.Task[Any] | None) -> None:
        """The attempt that runs in this asyncio task is not the last one."""
        self.superseded |= {worker}
        self.sweeps = 0


class InMemoryHooks(TaskiqMiddleware):
    """The middleware: one on each broker, first in its list, shared by all runs on it.

    The hooks that every task passes are coroutines, which taskiq tells from results faster.
    """

    broker: InMemoryBroker

    def __init__(self, broker: InMemoryBroker) -> None:
        super().__init__()
        self.set_broker(broker)
        self.executions: dict[str, Execution] = {}
        self.run_ids: set[str] = set()
        self._saved: list[str] = []  # tasks of runs whose results the broker has saved since
        self._runs_in_place = broker.await_inplace  # in the context of whoever sends a task
        self.is_started = False
        executor = broker.receiver.executor
        self.threads = None if executor is None else Threads(executor)
        broker.receiver.executor = self.threads or executor

    @classmethod
    def of(cls, broker: InMemoryBroker) -> InMemoryHooks:
        """The hooks of a broker, put in place at the first call."""
        with _PUTTING:
            for middleware in broker.middlewares:
                if isinstance(middleware, cls):
                    return middleware
            hooks = cls(broker)
            # A new list, as a task may be walking through the present one. First in it: called
            # before the others when a task begins and behind them when it ends, so that theirs is
            # what counts.
            broker.middlewares = [hooks, *broker.middlewares]
            _all_hooks.add(hooks)
        logging.getLogger("taskiq.receiver.receiver").addFilter(_ENGINES_TASKS)
        return hooks

    def startup(self) -> None:
        """The broker starts."""
        self.is_started = True

    def shutdown(self) -> None:
        """The broker ends."""
        self.is_started = False

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
        execution.supersede(current_task())
        execution.in_flight.resent(message.task_id)
        return message

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Note which asyncio task runs the task. A revoked task does not run."""
        task_id = message.task_id
        task = self.broker.find_task(message.task_name)
        execution = self.executions.get(task_id)
        if execution is None:  # not of an engine, but perhaps sent from within such a task
            if _is_of_run(message):
                logger.warning(
                    "task %r was sent again after its run had ended, and is not executed",
                    message.task_id,
                )
                raise asyncio.CancelledError
            when_begun.set(None)
            present.set(None)
            if task is not None:
                forget_other(self.broker.receiver, task)
            return message
        if execution.revoked:
            raise asyncio.CancelledError
        if task is not None and not is_wrapped(task.original_func):  # decorated anew since
            embed(self.broker, task)
        if execution.worker is not None:
            self._note_requeue(execution, message)
            execution.call = None if execution.call is None else execution.call.once_more()
        present.set(execution.call)
        execution.worker = current_task()
        execution.message = message
        if execution.begins_at_once:
            execution.in_flight.began(task_id, execution.completions.here)
        elif execution.tells_begin:
            self._tell_begin(execution, task_id)
        if execution.superseded:
            # A broker that runs tasks in place begins the new attempt inside the old one's task.
            execution.superseded -= {execution.worker}
        return message

    def _note_requeue(self, execution: Execution, message: TaskiqMessage) -> None:
        """Notice that a task has sent itself again, by whichever of its attempts comes first."""
        if int(message.labels.get(REQUEUE_COUNT, 0)) > execution.requeues:
            execution.requeues += 1
            execution.supersede(execution.worker)
            execution.in_flight.resent(message.task_id)

    def _tell_begin(self, execution: Execution, task_id: str) -> None:
        """Report that a task begins, when it has its thread or its place."""
        began, here = execution.in_flight.began, execution.completions.here
        loop = asyncio.get_running_loop()

        def begun() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the run is over
                loop.call_soon_threadsafe(began, task_id, here)

        when_begun.set(begun)

    def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        """Tell a task that is tried again from a failed one: both may raise ``NoResultError``."""
        execution = self.executions.get(message.task_id)
        if execution is None:
            return
        if isinstance(exception, (KeyboardInterrupt, SystemExit)):
            execution.in_flight.interrupted(exception)
        elif not isinstance(exception, NoResultError):
            if result.error is None:  # taskiq has left it out, as it is false
                result.error = exception
            if isinstance(result.error, NoResultError):  # a middleware will have it sent again
                worker = current_task()
                execution.scheduled = worker not in execution.superseded
                execution.supersede(worker)
        else:
            self._note_requeue(execution, message)

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Settle the task, unless it was sent again or is not expected any more.

        The broker saves its result right afterwards.
        """
        task_id = message.task_id
        if self._saved:
            self.forget_saved()
        execution = self.executions.get(task_id)
        if execution is None:
            if _is_of_run(message):
                self._saved.append(task_id)
            if self._runs_in_place:
                _go_on_with_sender()
            return
        if not execution.superseded or current_task() not in execution.superseded:
            if execution.limit is not None and not execution.revoked:
                result = await _referring(task_id, result, execution.limit)
            if not execution.revoked:
                execution.completions.drop(task_id)
                execution.in_flight.settle(task_id, result)
        self._saved.append(task_id)
        if self._runs_in_place:
            _go_on_with_sender()

    def forget_saved(self) -> None:
        """Remove results that runs have from the broker's store, which would keep them alive.

        Done when the next task ends: a hook that is called when a result is saved costs more.
        """
        backend = self.broker.result_backend
        if isinstance(backend, InmemoryResultBackend):
            for task_id in self._saved:
                backend.results.pop(task_id, None)
        self._saved.clear()


async def _referring(task_id: str, result: TaskiqResult[Any], limit: int) -> TaskiqResult[Any]:
    """The result with a handle for its value, if that is above the limit on its size.

    There is no result backend here that would keep the value: the handle itself holds it.
    """
    if not await refers(result, limit):
        return result
    value = result.return_value

    async def read() -> Any:
        return isolated(value)

    handle = ResultHandle(Reference(task_id), read)
    return result.model_copy(update={"return_value": handle})


class _EnginesTasks(logging.Filter):
    """Writes one line, instead of a traceback at ERROR, for a task that an engine has sent.

    The engine reports the error to whoever reads its run. A task that it has cancelled itself is
    no error at all.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        execution = None if error is None else _present_execution()
        if execution is None or error is None:
            return True
        record.levelno = logging.DEBUG if execution.revoked else logging.WARNING
        record.levelname = logging.getLevelName(record.levelno)
        record.msg, record.args = "task %r %s", (execution.task_id, execution.how_ended(error))
        record.exc_info = record.exc_text = None
        return logging.getLogger(record.name).isEnabledFor(record.levelno)


_ENGINES_TASKS = _EnginesTasks()

_PUTTING = threading.RLock()  # of threads that make an engine of one broker each

_all_hooks: WeakSet[InMemoryHooks] = WeakSet()


def _is_of_run(message: TaskiqMessage) -> bool:
    """Whether a run has sent this message, and not a task that has copied its labels."""
    run_id = message.labels.get(RUN_LABEL)
    return run_id is not None and message.task_id.startswith(f"{run_id}:")


def _go_on_with_sender() -> None:
    """A task has ended in the context of the one that has sent it: set the call of that one."""
    worker = current_task()
    present.set(None)
    for hooks in _all_hooks:
        for execution in reversed(hooks.executions.values()):
            if execution.worker is worker and not execution.revoked:
                present.set(execution.call)
                return


def _present_execution() -> Execution | None:
    """The execution of the running asyncio task, if an engine has sent what it runs."""
    call = present.get()
    if call is None:
        return None
    try:
        worker = current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None
    for hooks in _all_hooks:
        execution = hooks.executions.get(call.task_id)
        if execution is not None and execution.worker is worker:  # not one that it has started
            return execution
    return None
