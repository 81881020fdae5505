"""The worker's side: reports results to engines and cancels the tasks that they revoke."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from taskiq import AsyncBroker, NoResultError, TaskiqMessage, TaskiqResult

from taskiq_flow.cleanup import until_ended
from taskiq_flow.dataflow.binding import parameters_of
from taskiq_flow.errors import ResultUnavailableError, SerializationError, TaskLostError
from taskiq_flow.generators.grant import ITEMS_LABEL, Grant
from taskiq_flow.generators.messages import Receipt
from taskiq_flow.processes.name import process_name
from taskiq_flow.reconnect import IsOutage, retry_through_outage, text_of
from taskiq_flow.transport.deliveries import Deliveries, Delivery
from taskiq_flow.transport.notice import (
    LABEL,
    Kind,
    Notice,
    ReplyTo,
    receipts_channel,
    workers_channel,
)
from taskiq_flow.transport.protocol import REVOCATION_LIFE, Notifier
from taskiq_flow.transport.systems import fullness_of
from taskiq_flow.values.call import Call, Delivered
from taskiq_flow.values.handle import Reference
from taskiq_flow.values.isolation import Take, isolated
from taskiq_flow.values.references import as_stored, is_referred_to, stored_result
from taskiq_flow.values.results import failed
from taskiq_flow.values.size import read_off_loop
from taskiq_flow.values.store import ValueStore, folder_of
from taskiq_flow.values.wire import VALUES, Wire, is_encoded_result
from taskiq_flow.worker import absence
from taskiq_flow.worker.absence import AbsentEngines
from taskiq_flow.worker.execution import (
    REFUSAL,
    REQUEUE_COUNT,
    Execution,
    Refusal,
    RevokedError,
    current,
    guarded,
)
from taskiq_flow.worker.items import LATER, SOON, SinkToEngine
from taskiq_flow.worker.log import shorten_errors_of_tasks

logger = logging.getLogger("taskiq_flow")

T = TypeVar("T")

BEAT = 0.5
"""Seconds between two heartbeats. A heartbeat names the tasks that a worker executes or holds."""

PRESENCE_BEATS = 4
"""Every so many heartbeats a worker says that it is there, also if it has no task."""

HEARTBEAT_TIMEOUT = 5.0
"""Seconds that a heartbeat may take: a half-open connection never answers."""

HEARTBEAT_BYTES = 32_768
"""Bytes of one heartbeat at the most. NATS takes no message above a megabyte by default."""

PUBLISH_TIMEOUT = 1.0
"""Seconds that a notice may delay the end of its task. The engine polls for what is missed."""

GRACE = 1.0
"""Seconds within which the worker's own asyncio tasks end when they are cancelled."""

FULL_TIMEOUT = 60.0
"""Seconds for which a result waits for room on its server before its task fails."""

READ_AT_ONCE = 32
"""Results that one task is given by reference and that are read at the same time."""

REMOVAL_INTERVAL = 3600.0
"""Seconds between two removals of old values from the store."""

_NOT_PUBLISHED = {"labels", "log"}  # fields of a result that engines do not use


class Worker:
    """Reports the executions of one worker process to the engines that sent the tasks.

    ``is_outage``: whether an error of the broker, the result backend or the notifier says that its
    server cannot serve now. The worker waits for the end of an outage, however long it takes.
    ``deliveries``: the messages that this worker holds, if its broker shows them.
    ``wire``: encodes and decodes values. ``inline_limit``: bytes up to which a result travels with
    its notice. ``max_deliveries``: how often a message is delivered before its task counts as lost.
    ``prefix``: of channels. ``others_may_repeat``: whether another middleware may send a task
    again.
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
    ) -> None:
        self._broker = broker
        self._notifier = notifier
        self._is_outage = is_outage
        self._is_full = fullness_of(broker.result_backend)
        self._inline_limit = inline_limit
        self._max_deliveries = max_deliveries
        self._deliveries = Deliveries(broker) if deliveries is None else deliveries
        self._executions: set[Execution] = set()
        self._by_name: defaultdict[str, set[Execution]] = defaultdict(set)  # by ``Execution.names``
        # Those executing and not acknowledged whose tasks no engine has sent.
        self._of_no_engine: set[asyncio.Task[Any]] = set()
        self._revoked: dict[str, float] = {}  # loop time of each revocation, oldest first
        self._wire = wire
        self._others_may_repeat = others_may_repeat
        self._injects: dict[str, bool] = {}  # by task: whether taskiq injects parameters
        self._absent = AbsentEngines(self._drop_tasks_of)
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        backend = broker.result_backend
        self._backend = backend
        self._save_only = backend.set_result
        self._workers_channel = workers_channel(prefix)
        self._receipts_channel = receipts_channel(prefix)
        self._hears_receipts = False
        self._subscribing = asyncio.Lock()
        self._generators: defaultdict[str, set[Execution]] = defaultdict(set)  # by task id
        notifier.on_unheard = self._note_unheard
        self._save_and_publish = notifier.saver(backend)
        # A backend that deletes on reading would keep results that travel with their notices.
        self._inlines = getattr(backend, "keep_results", True)

    async def open(self) -> None:
        """Subscribe to revocations, start the heartbeat, replace the backend's ``set_result``."""
        self._name = process_name()
        await self._notifier.open()
        await self._notifier.subscribe_to_revocations(self._revoke)
        self._backend.set_result = self._save  # type: ignore[method-assign]
        self._deliveries.on_acknowledged = self._acknowledged
        self._deliveries.trace()
        shorten_errors_of_tasks()
        if self._wire.store is not None:
            self._wire.store.serve_worker()
            self._start(self._remove_old_values(self._wire.store))
        self._start(self._beat())

    async def aclose(self) -> None:
        """Undo ``open``. The messages of unfinished tasks are delivered to other workers."""
        self._is_closed = True
        self._backend.set_result = self._save_only  # type: ignore[method-assign]
        for task in self._tasks:
            task.cancel()
        await until_ended(self._tasks, GRACE)
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
        label = message.labels.get(LABEL)
        if label is None:
            self._of_no_engine.add(executing)
            executing.add_done_callback(partial(self._ended_for_no_engine, message.task_id))
            return self._unless_given_up(message)
        execution = Execution(message, ReplyTo.of(label), self._deliveries.executed())
        current.set(execution)
        self._executions.add(execution)
        for name in execution.names:
            self._by_name[name].add(execution)
        executing.add_done_callback(partial(self._ended, execution))
        execution.function = self._guard(message.task_name)
        channel = execution.reply_to.channel
        if channel in self._revoked and await self._absent.is_back(
            channel, partial(self._publish_here, execution)
        ):
            self._revoked.pop(channel, None)  # another task may have found out at the same time
        if any(name in self._revoked for name in execution.names):
            execution.revoke()
            return _refused(message, RevokedError())
        if execution.tells_begin:
            self._tell_when_begun(execution)
        delivery = self._deliveries.redelivery_of(execution.task_id)
        if delivery is not None and (refusal := await self._refusal_of(execution, delivery)):
            return _refused(message, refusal)
        try:
            if ITEMS_LABEL in message.labels:
                await self._send_items(execution, message)
            call = await self._call_of(message)
        except Exception as error:  # of a value, or of the result backend
            return _refused(message, error)
        # In place, as ``Context.requeue`` sends this very message.
        message.kwargs[VALUES] = Delivered.of(message.kwargs.get(VALUES) or {}, call)
        return message

    async def _send_items(self, execution: Execution, message: TaskiqMessage) -> None:
        """Have the items of a task that is a generator sent one by one."""
        async with self._subscribing:
            if not self._hears_receipts:
                await self._through_outage(
                    lambda: self._notifier.subscribe(self._receipts_channel, self._hear_receipt),
                    "what engines have of generators' items cannot be heard yet",
                )
                self._hears_receipts = True
        reply_to, task_id = execution.reply_to, execution.task_id
        execution.sink = SinkToEngine(
            task_id,
            execution.node_name,
            Grant.of(message.labels[ITEMS_LABEL]),
            wire=self._wire,
            channel=self._receipts_channel,
            publish=lambda notice: self._notifier.publish(
                reply_to.channel, notice.sealed(reply_to.key)
            ),
            most_bytes=self._notifier.most_bytes,
        )
        message.labels.pop("timeout", None)  # the engine counts the time of each item
        self._generators[task_id].add(execution)

    async def _refusal_of(self, execution: Execution, delivery: Delivery) -> Exception | None:
        """Why a task is not executed whose message was delivered before. ``None`` if it is."""
        task_id, name = execution.task_id, execution.node_name
        if await self._through_outage(
            lambda: self._backend.is_result_ready(task_id), "results cannot be looked for yet"
        ):
            await self._publish(execution, Notice(Kind.SAVED, task_id))
            execution.revoke()
            return RevokedError()
        return self._delivered_too_often(delivery, f"node {name!r}, task {task_id!r}")

    def _unless_given_up(self, message: TaskiqMessage) -> TaskiqMessage:
        """The message of a task that no engine has sent, refused if it was delivered too often."""
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
            execution.telling = self._start(self._publish(execution, notice))

        def tell_from_thread() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell)

        loop = asyncio.get_running_loop()
        if execution.has_begun:
            tell()
        else:
            execution.on_begun = tell_from_thread

    async def _when_told(self, execution: Execution) -> None:
        """Wait until the engine can know that a task has begun, before it hears how that ended."""
        if execution.telling is not None and not execution.telling.done():
            await asyncio.wait([execution.telling])  # takes ``PUBLISH_TIMEOUT`` at the most

    async def send_again(self, message: TaskiqMessage) -> TaskiqMessage:
        """Note that a task is sent again from within its own execution, and tell its engine."""
        execution = current.get()
        if execution is not None and execution.task_id == message.task_id:
            execution.is_superseded = True
            message.args, message.kwargs = execution.args, execution.kwargs
            await self._when_told(execution)
            await self._publish(execution, Notice(Kind.AGAIN, execution.task_id))
        return message

    def note_error(self, message: TaskiqMessage, error: BaseException) -> None:
        """Note what the task itself raised: middlewares may replace the error of its result."""
        if (execution := _execution_of(message)) is not None:
            execution.raised = error

    async def end(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Report a ``NoResultError``, for which taskiq saves no result."""
        execution = _execution_of(message)
        if execution is None or not isinstance(result.error, NoResultError):
            return
        execution.is_reported = True
        if execution.is_revoked or execution.is_superseded:
            return
        is_left_to_others = not isinstance(execution.raised, NoResultError)
        was_requeued = message.labels.get(REQUEUE_COUNT) != execution.requeues
        if is_left_to_others or was_requeued:
            await self._when_told(execution)
            await self._publish(execution, Notice(Kind.AGAIN, execution.task_id))
        else:
            await self._report(execution, failed(result.error))

    async def _save(self, task_id: str, result: TaskiqResult[Any]) -> None:
        """Replaces the result backend's ``set_result``: save the result and tell the engine."""
        execution = current.get()
        if execution is None or execution.task_id != task_id:
            await self._save_only(task_id, result)
            return
        execution.is_reported = True
        if not (execution.is_revoked or execution.is_superseded):
            await self._report(execution, result)

    def _ended(self, execution: Execution, executing: asyncio.Task[Any]) -> None:
        """The asyncio task has ended. If it reported no result, report what a middleware raised."""
        self._executions.discard(execution)
        for name in execution.names:
            self._by_name[name].discard(execution)
            if not self._by_name[name]:
                del self._by_name[name]
        if execution.sink is not None:
            self._generators[execution.task_id].discard(execution)
            if not self._generators[execution.task_id]:
                del self._generators[execution.task_id]
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
            f"worker's broker raised {error!r}"
        )
        self._start(self._report(execution, failed(lost)))

    def _ended_for_no_engine(self, task_id: str, executing: asyncio.Task[Any]) -> None:
        """The asyncio task has ended. If taskiq did not acknowledge the message, it comes again."""
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
        self._start(self._report(Execution(message, reply_to), failed(unknown)))

    async def _acknowledge(self, name: str, acknowledge: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._through_outage(acknowledge, "tasks cannot be acknowledged yet")
        except Exception as error:  # whatever the client raises; the message is redelivered
            logger.warning("%s was not acknowledged: %s", name, text_of(error))

    # Helpers of ``begin``

    def _guard(self, task_name: str) -> Callable[..., Any] | None:
        """Wrap the function of a task, unless it is wrapped. Returns the wrapper."""
        task = self._broker.find_task(task_name)
        if task is None:
            return None
        task.original_func = function = guarded(task.original_func)
        return function

    async def _call_of(self, message: TaskiqMessage) -> Call:
        """The arguments of a task's call. Each result that is referred to is read once.

        Raises ``SerializationError``, or what the result backend raises.
        """
        wire, task_id, sent = self._wire, message.task_id, message.kwargs
        if not wire.is_encoded(sent):
            sent = {name: value for name, value in sent.items() if name != VALUES}
            return Call(message.task_name, list(message.args), sent, self._copy_of(message))
        args, kwargs = await read_off_loop(sent, wire.decode_call, task_id, sent)
        places = [(place, Reference(**given)) for place, given in wire.references_of(sent)]
        task_ids = list({reference.task_id for _, reference in places})
        at_once = asyncio.Semaphore(READ_AT_ONCE)
        results = await asyncio.gather(*(self._read(task_id, at_once) for task_id in task_ids))
        values = dict(zip(task_ids, results, strict=True))
        for (argument, *within), reference in places:
            target: Any = args if isinstance(argument, int) else kwargs
            *around, last = argument, *within
            for key in around:
                target = target[key]
            target[last] = reference.of(values[reference.task_id])
        return Call(message.task_name, args, kwargs)

    def _copy_of(self, message: TaskiqMessage) -> Take | None:
        """How a task is given plain values, which its message holds as they were sent.

        They are copied if the message may be sent again: by a middleware, or by the task itself.
        """
        if self._others_may_repeat:
            return isolated
        injects = self._injects.get(message.task_name)
        if injects is None:  # read once, as reading a signature takes longer than a short task
            task = self._broker.find_task(message.task_name)
            injects = task is not None and bool(parameters_of(task)[1])
            self._injects[message.task_name] = injects
        return isolated if injects else None

    async def _read(self, task_id: str, at_once: asyncio.Semaphore) -> Any:
        async with at_once:
            result = await self._through_outage(
                lambda: stored_result(self._backend, task_id, None, self._wire),
                "results cannot be read yet",
            )
        result.raise_for_error()  # which may look like an outage, and is none
        return result.return_value

    # Reporting

    async def _report(self, execution: Execution, result: TaskiqResult[Any]) -> None:
        """Save a result and tell the engine. If saving fails, report an error that says why."""
        task_id = execution.task_id
        result = await self._encoded(execution, result)
        await self._when_told(execution)
        try:
            await self._through_outage(
                lambda: self._when_there_is_room(lambda: self._save_and_tell(execution, result)),
                "results cannot be saved yet",
            )
        except Exception as error:  # of the value, of the serializer, of the server
            logger.exception("the result of %s cannot be saved", task_id)
            instead = failed(self._why_not_saved(execution, result, error))
            try:
                await self._save_only(task_id, instead)
            except Exception as again:  # the notice carries the error
                logger.warning(
                    "the error in place of the result of %s cannot be saved: %s",
                    task_id,
                    text_of(again),
                )
            body = instead.model_dump_json().encode()
            await self._publish(execution, Notice(Kind.RESULT, task_id, body))

    async def _encoded(self, execution: Execution, result: TaskiqResult[Any]) -> TaskiqResult[Any]:
        """A result as it is stored. One whose value cannot be carried is a failure."""
        name, task_id = execution.node_name, execution.task_id
        what, folder = f"the result of node {name!r}", folder_of(execution.reply_to.run)
        try:
            return await as_stored(self._wire, self._backend, folder, task_id, result, what)
        except ResultUnavailableError as error:
            return failed(error)
        except SerializationError as error:
            return failed(
                SerializationError(f"the result of node {name!r} is not carried: {error}")
            )

    async def _save_and_tell(self, execution: Execution, result: TaskiqResult[Any]) -> None:
        reply_to = execution.reply_to
        if self._save_and_publish is not None:
            await self._save_and_publish(
                execution.task_id,
                result,
                reply_to.channel,
                lambda size: self._notice(execution, result, size).sealed(reply_to.key),
                execution.delivery,
            )
            return
        await self._save_only(execution.task_id, result)
        notice = await read_off_loop(result.return_value, self._notice, execution, result, None)
        await self._publish(execution, notice)

    def _notice(self, execution: Execution, result: TaskiqResult[Any], size: int | None) -> Notice:
        """The notice of a result, with its value if small. ``size``: bytes of the stored result."""
        task_id = execution.task_id
        if isinstance(result.error, NoResultError):
            return Notice(Kind.NO_RESULT, task_id)
        if is_referred_to(result, execution.reply_to.limit, size):
            return Notice(Kind.REFERENCE, task_id)
        if self._inlines and (size is None or size <= self._inline_limit):
            try:
                hidden = {"log"} if is_encoded_result(result) else _NOT_PUBLISHED
                body = result.model_dump_json(exclude=hidden).encode()
            except ValueError:  # e.g. a lone surrogate, which the backend may be able to store
                return Notice(Kind.SAVED, task_id)
            if len(body) <= self._inline_limit:
                return Notice(Kind.RESULT, task_id, body)
        return Notice(Kind.SAVED, task_id)

    async def _publish_here(self, execution: Execution) -> None:
        await self._publish(execution, Notice.of_tasks(Kind.HERE, [execution.task_id]))

    async def _publish(self, execution: Execution, notice: Notice) -> None:
        """Send a notice, if that is possible now: the engine finds out without it, too."""
        reply_to = execution.reply_to
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await self._notifier.publish(reply_to.channel, notice.sealed(reply_to.key))
        except Exception as error:  # of the server, or of a client that refuses the size
            logger.warning(
                "the notice of %s was not published: %s", execution.task_id, text_of(error)
            )

    def _why_not_saved(
        self, execution: Execution, result: TaskiqResult[Any], error: Exception
    ) -> Exception:
        name = execution.node_name
        serializer: Any = getattr(self._backend, "serializer", None)
        try:
            content = result.model_dump(mode="json")
            if serializer is not None:
                serializer.dumpb(content)
        except Exception as cause:  # whatever a value or a serializer raises
            kind = type(result.return_value)
            return SerializationError(
                f"node {name!r} returned a {kind.__module__}.{kind.__qualname__}, which "
                f"{type(self._backend).__name__} cannot store ({cause}); return plain data "
                "(numbers, strings, lists, dicts, models)"
            )
        return ResultUnavailableError(
            f"the result of node {name!r} could not be stored in {type(self._backend).__name__}: "
            f"{text_of(error)}"
        )

    async def _when_there_is_room(self, call: Callable[[], Awaitable[T]]) -> T:
        """Wait for room on the server, for a bounded time: a result may be too large for ever."""
        what = "the server of results has no room"
        return await retry_through_outage(call, self._is_full, what, FULL_TIMEOUT)

    async def _through_outage(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        return await retry_through_outage(call, self._is_outage, what, math.inf)

    async def _beat(self) -> None:
        """Renew the claims on held messages and send heartbeats, until cancelled."""
        usual = (self._deliveries.renew, self._send_heartbeat)
        for number in itertools.count():
            beats = usual if number % PRESENCE_BEATS else (*usual, self._say_present)
            await asyncio.sleep(BEAT)
            for beat in beats:
                try:
                    async with asyncio.timeout(HEARTBEAT_TIMEOUT):
                        await beat()
                except Exception as error:  # nothing may end it: healthy tasks would be lost
                    if self._is_outage(error):
                        logger.debug("the heartbeat was not sent: %s", text_of(error))
                    else:
                        logger.exception("the heartbeat failed")

    async def _remove_old_values(self, store: ValueStore) -> None:
        """Remove from time to time what is too old in the store, until cancelled."""
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

    async def _say_present(self) -> None:
        await self._notifier.publish(self._workers_channel, b"")

    def _note_unheard(self, channel: str) -> None:
        if channel != self._workers_channel:  # engines listen there only if they hear of no worker
            self._absent.note(channel)

    async def _send_heartbeat(self) -> None:
        """Name to each engine its tasks that are executed or held in this process."""
        here: list[Execution | Delivery] = [*self._executions, *self._deliveries.of_engines()]
        await self._publish_each(Kind.HERE, here)
        begun = [
            e for e in self._executions if e.tells_begin and e.has_begun and not e.is_superseded
        ]
        await self._publish_each(Kind.BEGUN, begun)
        waiting = [e for e in self._executions if e.is_waiting]
        await self._publish_each(Kind.WAITING, waiting)
        await self._ask_engines()

    async def _publish_each(self, kind: Kind, tasks: Iterable[Execution | Delivery]) -> None:
        by_engine: defaultdict[tuple[str, bytes], set[str]] = defaultdict(set)
        for task in tasks:
            if task.reply_to is not None:
                by_engine[task.reply_to.channel, task.reply_to.key].add(task.task_id)
        for (channel, key), task_ids in by_engine.items():
            worker = self._name if kind is Kind.BEGUN else ""
            for some in _in_pieces(task_ids):
                notice = Notice.of_tasks(kind, some, worker)
                await self._notifier.publish(channel, notice.sealed(key))

    def _hear_receipt(self, data: bytes) -> None:
        """Handle what an engine says of a generator's items. What is invalid is ignored."""
        try:
            for execution in tuple(self._generators.get(Notice.task_named_in(data), ())):
                notice = Notice.opened(data, execution.reply_to.key)
                if notice is None or execution.sink is None:
                    logger.warning(
                        "a notice on %s is not sealed with its key; ignored",
                        self._receipts_channel,
                    )
                elif notice.kind is Kind.RECEIPT:
                    execution.sink.hear(Receipt.unpacked(notice.body))
                elif notice.kind is Kind.UNWANTED:
                    execution.revoke()
        except Exception:  # of one receipt, which must not stop the others
            logger.exception("a notice on %s could not be handled", self._receipts_channel)

    async def _ask_engines(self) -> None:
        """Ask the engines of generators that wait, or whose items may have been lost."""
        for execution in [e for some in self._generators.values() for e in some]:
            sink = execution.sink
            if sink is None or (question := sink.question()) is None:
                continue
            reply_to, notice = execution.reply_to, sink.notice_of(question)
            await self._notifier.publish(reply_to.channel, notice.sealed(reply_to.key))
            silence = (sink.note_asked() - SOON) * LATER * BEAT
            if silence > absence.ENGINE_PATIENCE:
                logger.warning(
                    "no engine has answered generator %r for %g s; it is closed",
                    execution.task_id,
                    absence.ENGINE_PATIENCE,
                )
                execution.revoke()

    def _revoke(self, run: str) -> None:
        """Cancel the executions of a run or a task, and refuse those to come."""
        now = asyncio.get_running_loop().time()
        self._revoked.pop(run, None)
        self._revoked[run] = now
        for earliest in tuple(itertools.islice(self._revoked, 2)):  # more go than come
            if now - self._revoked[earliest] > REVOCATION_LIFE:
                del self._revoked[earliest]
        for execution in self._by_name.get(run, ()):
            execution.revoke()

    def _drop_tasks_of(self, channel: str) -> None:
        """Nobody has listened on an engine's channel for long: its tasks are for nobody."""
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


def _in_pieces(task_ids: Iterable[str]) -> Iterator[list[str]]:
    """The ids in lists whose notices a server takes."""
    piece: list[str] = []
    size = 0
    for task_id in task_ids:
        length = 6 * len(task_id) + 4  # as JSON, which writes some characters as six
        if piece and size + length > HEARTBEAT_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(task_id)
        size += length
    if piece:
        yield piece


def _execution_of(message: TaskiqMessage) -> Execution | None:
    execution = current.get()
    return execution if execution is not None and execution.task_id == message.task_id else None


def _refused(message: TaskiqMessage, error: Exception) -> TaskiqMessage:
    return message.model_copy(update={"kwargs": {**message.kwargs, REFUSAL: Refusal(error)}})
