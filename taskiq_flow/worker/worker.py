"""The worker's side: reports results to engines and cancels the tasks that they revoke."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from taskiq import AsyncBroker, NoResultError, TaskiqMessage, TaskiqResult

from taskiq_flow.cleanup import end
from taskiq_flow.dataflow.tasks import is_generator_function, original_function
from taskiq_flow.errors import TaskLostError, describe
from taskiq_flow.generators.grant import ITEMS_LABEL
from taskiq_flow.giving_way import give_way
from taskiq_flow.processes.awaited import is_awaited_by_taskiq
from taskiq_flow.processes.name import process_name
from taskiq_flow.reconnect import IsOutage, retry_through_outage, text_of
from taskiq_flow.transport.deliveries import Deliveries, Delivery
from taskiq_flow.transport.notice import (
    LABEL,
    REQUEUE_COUNT,
    Kind,
    Notice,
    ReplyTo,
    workers_channel,
)
from taskiq_flow.transport.protocol import REVOCATION_LIFE, Notifier
from taskiq_flow.values.call import Delivered
from taskiq_flow.values.results import failed
from taskiq_flow.values.store import ValueStore
from taskiq_flow.values.wire import VALUES, Wire
from taskiq_flow.worker import absence
from taskiq_flow.worker.absence import AbsentEngines
from taskiq_flow.worker.arguments import Arguments
from taskiq_flow.worker.execution import (
    REFUSAL,
    Execution,
    Refusal,
    RevokedError,
    current,
    guarded,
)
from taskiq_flow.worker.generators import Generators
from taskiq_flow.worker.heartbeat import Heartbeat
from taskiq_flow.worker.log import shorten_errors_of_tasks
from taskiq_flow.worker.reports import Reports
from taskiq_flow.worker.saving import LaterSaves

logger = logging.getLogger("taskiq_flow")

GRACE = 1.0
"""Seconds within which the worker's own asyncio tasks end when they are cancelled."""

REMOVAL_INTERVAL = 3600.0
"""Seconds between two removals of old values from the store."""


class Worker:
    """Reports the executions of one worker process to the engines that sent the tasks.

    ``is_outage``: whether an error of the broker, the result backend or the notifier says that its
    server cannot serve now. The worker waits for the end of an outage, however long it takes.
    ``deliveries``: the messages that this worker holds, if its broker shows them.
    ``wire``: encodes and decodes values. ``inline_limit``: bytes up to which a result travels with
    its notice. ``max_deliveries``: how often a message is delivered before its task counts as lost.
    ``prefix``: of channels. ``others_may_repeat``: whether another middleware may send a task
    again. ``sees_saved``: whether a middleware is told when a result is saved.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        notifier: Notifier,
        is_outage: IsOutage,
        deliveries: Deliveries | None = None,
        *,
        inline_limit: int,
        max_deliveries: int,
        prefix: str,
        wire: Wire,
        others_may_repeat: bool,
        sees_saved: bool,
    ) -> None:
        self._name = process_name()
        self._broker = broker
        self._notifier = notifier
        self._is_outage = is_outage
        self._max_deliveries = max_deliveries
        self._deliveries = Deliveries(broker) if deliveries is None else deliveries
        self._executions: set[Execution] = set()
        self._by_name: defaultdict[str, set[Execution]] = defaultdict(set)  # by ``Execution.names``
        # Those executing and not acknowledged whose tasks no engine has sent.
        self._of_no_engine: set[asyncio.Task[Any]] = set()
        self._revoked: dict[str, float] = {}  # loop time of each revocation, oldest first
        self._wire = wire
        self._absent = AbsentEngines(self._drop_tasks_of)
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        backend = broker.result_backend
        self._backend = backend
        self._workers_channel = workers_channel(prefix)
        notifier.on_unheard = self._note_unheard
        self._reports = Reports(backend, notifier, is_outage, wire, inline_limit)
        self._arguments = Arguments(broker, is_outage, wire, others_may_repeat=others_may_repeat)
        self._saves_later = not sees_saved
        self._later = LaterSaves(
            self._deliveries, self._executions, self._reports.report, self._acknowledge
        )
        self._generators = Generators(notifier, is_outage, wire, prefix)
        self._heartbeat = Heartbeat(
            notifier,
            is_outage,
            self._deliveries,
            self._executions,
            self._generators.ask_engines,
            name=self._name,
            prefix=prefix,
        )

    async def open(self) -> None:
        """Subscribe to revocations, start the heartbeat, replace the backend's ``set_result``."""
        await self._notifier.open()
        await self._notifier.subscribe_to_revocations(self._revoke)
        self._backend.set_result = self._save  # type: ignore[method-assign]
        self._deliveries.on_acknowledged = self._acknowledged
        self._deliveries.trace()
        shorten_errors_of_tasks()
        if self._wire.store is not None:
            self._wire.store.serve_worker()
            self._start(self._remove_old_values(self._wire.store))
        self._start(self._heartbeat.run())

    async def aclose(self) -> None:
        """Undo ``open``. The messages of unfinished tasks are delivered to other workers."""
        self._is_closed = True
        self._backend.set_result = self._reports.save_only  # type: ignore[method-assign]
        await end(self._tasks, GRACE)
        try:
            async with asyncio.timeout(GRACE):
                await self._deliveries.aclose()
        except Exception as error:  # the server may be away; what is left is removed in time
            logger.debug("the worker has left something on the server: %s", text_of(error))
        await self._notifier.aclose()

    # Hooks of an execution, called in its asyncio task

    async def begin(self, message: TaskiqMessage) -> TaskiqMessage:
        """Register an execution, and replace references in its arguments by their values."""
        executing: Any = asyncio.current_task()
        self._later.begun()
        label = message.labels.get(LABEL)
        if label is None:
            self._of_no_engine.add(executing)
            executing.add_done_callback(partial(self._ended_for_no_engine, message.task_id))
            return self._of_somebody_else(message)
        execution = Execution(message, ReplyTo.of(label), self._deliveries.executed())
        current.set(execution)
        self._executions.add(execution)
        for name in execution.names:
            self._by_name[name].add(execution)
        executing.add_done_callback(partial(self._ended, execution))
        execution.function = self._guard(message.task_name)
        if not is_awaited_by_taskiq(execution.function):
            give_way(executing)  # it runs in a thread
        channel, here = execution.reply_to.channel, [execution.task_id]
        if channel in self._revoked and await self._absent.is_back(
            channel, lambda: self._reports.publish(execution, Notice.of_tasks(Kind.HERE, here))
        ):
            self._revoked.pop(channel, None)  # another task may have found out at the same time
        if not self._revoked.keys().isdisjoint(execution.names):
            execution.revoke()
            return _refused(message, RevokedError())
        if execution.tells_begin_at_once:
            self._tell_when_begun(execution)
        delivery = self._deliveries.redelivery_of(execution.task_id)
        if delivery is not None and (refusal := await self._refusal_of(execution, delivery)):
            return _refused(message, refusal)
        try:
            if ITEMS_LABEL in message.labels:
                await self._generators.send_items(execution, message)
            call = await self._arguments.call_of(message)
        except Exception as error:  # of a value, or of the result backend
            return _refused(message, error)
        # In place, as ``Context.requeue`` sends this very message.
        message.kwargs[VALUES] = Delivered.of(message.kwargs.get(VALUES) or {}, call)
        return message

    async def _refusal_of(self, execution: Execution, delivery: Delivery) -> Exception | None:
        """Why a task is not executed whose message was delivered before. ``None`` if it is."""
        task_id, name = execution.task_id, execution.node_name
        if await retry_through_outage(
            lambda: self._backend.is_result_ready(task_id),
            self._is_outage,
            "results cannot be looked for yet",
            math.inf,
        ):
            await self._reports.publish(execution, Notice(Kind.SAVED, task_id))
            execution.revoke()
            return RevokedError()
        return self._delivered_too_often(delivery, f"node {name!r}, task {task_id!r}")

    def _of_somebody_else(self, message: TaskiqMessage) -> TaskiqMessage:
        """The message of a task that no engine has sent, refused if it was delivered too often."""
        task = self._broker.find_task(message.task_name)
        if task is not None and is_generator_function(original_function(task)):
            self._guard(message.task_name)  # gives the list: no generator can be saved
        delivery = self._deliveries.executed()
        if delivery is None:
            return message
        what = f"task {message.task_id!r} ({message.task_name})"
        if (error := self._delivered_too_often(delivery, what)) is None:
            return message
        self._guard(message.task_name)
        message.labels["retry_on_error"] = False  # or it would kill as many workers once more
        return _refused(message, error)

    def _delivered_too_often(self, delivery: Delivery, what: str) -> TaskLostError | None:
        """The error of a task whose message was delivered too often, if it was."""
        if delivery.number <= self._max_deliveries:
            return None
        delivery.read(self._broker)
        logger.error(
            "task %s is given up: its message was delivered %d times without an end",
            delivery.task_id,
            delivery.number - 1,
        )
        return TaskLostError(
            f"the message of {what} was delivered {delivery.number - 1} times and the task never "
            "ended: it kills its worker, or its workers were killed or lost their connection each "
            "time; FlowMiddleware(max_deliveries=) says how often to try"
        )

    def _tell_when_begun(self, execution: Execution) -> None:
        def tell() -> None:
            notice = Notice.of_tasks(Kind.BEGUN, [execution.task_id], self._name)
            execution.telling = self._start(self._reports.publish(execution, notice))

        def tell_from_thread() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell)

        loop = asyncio.get_running_loop()
        if execution.has_begun:
            tell()
        else:
            execution.on_begun = tell_from_thread

    async def send_again(self, message: TaskiqMessage) -> TaskiqMessage:
        """Note that a task is sent again from within its own execution, and tell its engine."""
        if (execution := _execution_of(message.task_id)) is not None:
            execution.is_superseded = True
            message.args, message.kwargs = execution.args, execution.kwargs
            await execution.when_told()
            await self._reports.publish(execution, Notice(Kind.AGAIN, execution.task_id))
        return message

    def note_error(self, message: TaskiqMessage, error: BaseException) -> None:
        """Note what the task itself raised: middlewares may replace the error of its result."""
        if (execution := _execution_of(message.task_id)) is not None:
            execution.raised = error

    async def end(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Report a ``NoResultError``, for which taskiq saves no result."""
        execution = _execution_of(message.task_id)
        if execution is None or not isinstance(result.error, NoResultError):
            return
        execution.is_reported = True
        if execution.is_over:
            return
        # A middleware has put the error in place of what the task raised, to send it again itself.
        is_left_to_others = not isinstance(execution.raised, NoResultError)
        # ``Context.requeue`` has sent the task again, and ends it with this error.
        was_requeued = message.labels.get(REQUEUE_COUNT) != execution.requeues
        if is_left_to_others or was_requeued:
            await execution.when_told()
            await self._reports.publish(execution, Notice(Kind.AGAIN, execution.task_id))
        else:
            await self._reports.report(execution, failed(result.error))

    async def _save(self, task_id: str, result: TaskiqResult[Any]) -> None:
        """Replaces the result backend's ``set_result``: save the result and tell the engine."""
        if (execution := _execution_of(task_id)) is None:
            await self._reports.save_only(task_id, result)
            return
        execution.is_reported = True
        if execution.is_over:
            return
        delivery = execution.delivery
        if delivery is not None and self._saves_later and self._later.takes(execution, result):
            saving = self._start(self._later.save(execution, delivery, result))
            self._deliveries.acknowledged_behind(delivery, saving)
            execution.saving = saving
            return
        await self._reports.report(execution, result)

    def _ended(self, execution: Execution, executing: asyncio.Task[Any]) -> None:
        """Called at the end of the asyncio task. Without a result, report a middleware's error.

        An execution goes on until its result is saved.
        """
        if execution.saving is not None and not execution.saving.done():
            execution.saving.add_done_callback(lambda _: self._ended(execution, executing))
            return
        self._executions.discard(execution)
        for name in execution.names:
            self._by_name[name].discard(execution)
            if not self._by_name[name]:
                del self._by_name[name]
        if execution.sink is not None:
            self._generators.forget(execution)
        if self._is_closed:
            return
        if not execution.is_acknowledged:  # the result is final: no redelivery
            acknowledge = partial(self._deliveries.acknowledge, execution.task_id)
            self._start(self._acknowledge(execution.task_id, acknowledge))
        if execution.is_reported:
            return
        cancelled = executing.cancelled()
        error = asyncio.CancelledError() if cancelled else executing.exception()
        logger.error("task %r ended without a result", execution.task_id, exc_info=error)
        lost = TaskLostError(
            f"task {execution.task_id!r} ended on its worker without a result; a middleware of the "
            f"worker's broker raised {describe(error) if error else 'nothing'}"
        )
        self._start(self._reports.report(execution, failed(lost)))

    def _ended_for_no_engine(self, task_id: str, executing: asyncio.Task[Any]) -> None:
        """Called at the end of the asyncio task. An unacknowledged message is delivered again."""
        if executing in self._of_no_engine:
            self._of_no_engine.discard(executing)
            self._deliveries.drop_task(task_id)

    def _acknowledged(self, delivery: Delivery, error: Exception | None) -> None:
        """Handle an acknowledgement by taskiq. Without an execution, the task is unknown here."""
        if error is not None:
            delivery.read(self._broker)
            acknowledge = partial(self._deliveries.let_go, delivery)
            self._start(self._acknowledge(delivery.task_id or "a message", acknowledge))
        if (execution := current.get()) is not None:
            execution.is_acknowledged = True
            return
        executing: Any = asyncio.current_task()
        self._of_no_engine.discard(executing)
        reply_to = delivery.read(self._broker)
        if reply_to is None:
            return
        message = self._broker.formatter.loads(delivery.data)
        unknown = TaskLostError(
            f"the worker that was given task {message.task_id!r} knows no task named "
            f"{message.task_name!r}; have its process import the module where it is defined. If "
            "its workers are being replaced by newer ones, give the node a retry=: a later attempt "
            "may reach one that knows the task"
        )
        self._start(self._reports.report(Execution(message, reply_to), failed(unknown)))

    async def _acknowledge(self, name: str, acknowledge: Callable[[], Awaitable[None]]) -> None:
        try:
            await retry_through_outage(
                acknowledge, self._is_outage, "tasks cannot be acknowledged yet", math.inf
            )
        except Exception as error:  # whatever the client raises; the message is redelivered
            logger.warning("%s was not acknowledged: %s", name, text_of(error))

    def _guard(self, task_name: str) -> Callable[..., Any] | None:
        """Wrap the function of a task, unless it is wrapped. Returns the wrapper."""
        task = self._broker.find_task(task_name)
        if task is None:
            return None
        task.original_func = function = guarded(task.original_func)
        return function

    async def _remove_old_values(self, store: ValueStore) -> None:
        """Remove old objects from the store once an hour, until cancelled."""
        while True:
            try:
                await store.remove_old()
            except Exception as error:  # whatever fsspec and its client raise
                logger.warning(
                    "old values in store %s were not removed: %s; trying again in an hour",
                    store.address,
                    text_of(error),
                )
            await asyncio.sleep(REMOVAL_INTERVAL)

    def _note_unheard(self, channel: str) -> None:
        if channel != self._workers_channel:  # engines listen there only if they hear of no worker
            self._absent.note(channel)

    def _revoke(self, name: str) -> None:
        """Cancel the executions that have a name among ``Execution.names``, and refuse others."""
        now = asyncio.get_running_loop().time()
        self._revoked.pop(name, None)
        self._revoked[name] = now
        for earliest in tuple(itertools.islice(self._revoked, 2)):  # more go than come
            if now - self._revoked[earliest] > REVOCATION_LIFE:
                del self._revoked[earliest]
        for execution in self._by_name.get(name, ()):
            execution.revoke()

    def _drop_tasks_of(self, channel: str) -> None:
        """Revoke the tasks of an engine on whose channel nobody has listened for long."""
        if channel not in self._revoked:
            logger.warning(
                "no engine has listened on %s for %g s; its tasks are dropped, but for those of "
                "runs with a journal",
                channel,
                absence.ENGINE_PATIENCE,
            )
            self._revoke(channel)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _execution_of(task_id: str) -> Execution | None:
    execution = current.get()
    return execution if execution is not None and execution.task_id == task_id else None


def _refused(message: TaskiqMessage, error: Exception) -> TaskiqMessage:
    return message.model_copy(update={"kwargs": {**message.kwargs, REFUSAL: Refusal(error)}})
