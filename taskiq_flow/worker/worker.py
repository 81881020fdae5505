"""A worker's side: it tells engines how their tasks end, and heeds what they revoke."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from taskiq import AsyncBroker, NoResultError, TaskiqMessage, TaskiqResult

from taskiq_flow.cleanup import until_ended
from taskiq_flow.errors import ResultUnavailableError, SerializationError, TaskLostError
from taskiq_flow.reconnect import Outages, ride_out
from taskiq_flow.transport.deliveries import Deliveries, Delivery
from taskiq_flow.transport.notice import LABEL, REFERENCES_LABEL, Kind, Notice, ReplyTo
from taskiq_flow.transport.protocol import REVOCATION_LIFE, Notifier
from taskiq_flow.values.handle import Reference
from taskiq_flow.values.references import is_referred_to, read_result
from taskiq_flow.values.results import failed
from taskiq_flow.worker.execution import (
    REFUSAL,
    REQUEUE_COUNT,
    Attempt,
    Refusal,
    RevokedError,
    current,
    guarded,
)
from taskiq_flow.worker.log import shorten_errors_of_tasks

logger = logging.getLogger("taskiq_flow")

BEAT = 0.5
"""Seconds between two notices of what a worker executes and holds."""

BEAT_PATIENCE = 5.0
"""Seconds that one of them may take: a connection whose other end is gone does not answer."""

TELLING_PATIENCE = 1.0
"""Seconds for which a task's end may be held up by telling the engine, which can ask for itself."""

GRACE = 1.0
"""Seconds that the worker's own tasks are given to end when they are cancelled."""


_NOT_TOLD = {"labels", "log"}  # which an engine has no use for


class Worker:
    """What a ``FlowMiddleware`` does where tasks are executed.

    ``inline_limit``: bytes up to which a result travels with its notice. ``outages``: how the
    broker, the result backend and the notifier say that a server is away. ``deliveries``: what the
    broker gives to this worker, where that can be seen.
    """

    def __init__(
        self,
        broker: AsyncBroker,
        notifier: Notifier,
        inline_limit: int,
        outages: Outages,
        deliveries: Deliveries | None = None,
    ) -> None:
        self._broker = broker
        self._notifier = notifier
        self._inline_limit = inline_limit
        self._outages = outages
        self._deliveries = Deliveries(broker) if deliveries is None else deliveries
        self._attempts: set[Attempt] = set()
        self._by_name: defaultdict[str, set[Attempt]] = defaultdict(set)  # as of ``Attempt.names``
        self._revoked: dict[str, float] = {}  # when each run was heard of, the earliest first
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        backend = broker.result_backend
        self._backend = backend
        self._save_only = backend.set_result
        self._save_and_publish = notifier.saver(backend)
        # A result that travels with its notice would stay in a backend that deletes what is read.
        self._inlines = getattr(backend, "keep_results", True)

    async def open(self) -> None:
        """Begin to hear of revocations, to report, and to save in place of the result backend."""
        await self._notifier.open()
        await self._notifier.subscribe_to_revocations(self._revoke)
        self._backend.set_result = self._save  # type: ignore[method-assign]
        self._deliveries.on_acknowledged = self._acknowledged
        shorten_errors_of_tasks()
        self._start(self._beat())

    async def aclose(self) -> None:
        """Stop all of that. What is still executed is left for others to execute again."""
        self._is_closed = True
        self._backend.set_result = self._save_only  # type: ignore[method-assign]
        for task in self._tasks:
            task.cancel()
        await until_ended(self._tasks, GRACE)
        await self._notifier.aclose()

    # The life of an attempt, in the asyncio task that executes it

    async def begin(self, message: TaskiqMessage) -> TaskiqMessage:
        """Before a task is executed: note it, and put values in the places of references."""
        label = message.labels.get(LABEL)
        if label is None:
            return message
        attempt = Attempt(message, ReplyTo.of(label))
        current.set(attempt)
        self._attempts.add(attempt)
        for name in attempt.names:
            self._by_name[name].add(attempt)
        executing: Any = asyncio.current_task()
        executing.add_done_callback(partial(self._left, attempt))
        attempt.function = self._guard(message.task_name)
        if any(name in self._revoked for name in attempt.names):
            attempt.revoke()
            return _refused(message, RevokedError())
        if attempt.tells_begin:
            self._tell_when_begun(attempt)
        if REFERENCES_LABEL not in message.labels:
            return message
        try:
            return await self._resolved(message)
        except Exception as error:  # whatever the result backend raises is the task's failure
            return _refused(message, error)

    def _tell_when_begun(self, attempt: Attempt) -> None:
        def tell() -> None:
            self._start(self._publish(attempt, Notice.begun([attempt.task_id])))

        def tell_from_thread() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the worker gone
                loop.call_soon_threadsafe(tell)

        loop = asyncio.get_running_loop()
        if attempt.has_begun:
            tell()
        else:
            attempt.on_begun = tell_from_thread

    async def send_again(self, message: TaskiqMessage) -> TaskiqMessage:
        """Somebody sends a task; if it is the one being executed, it is tried once more."""
        attempt = current.get()
        if attempt is not None and attempt.task_id == message.task_id:
            attempt.is_superseded = True
            message.args, message.kwargs = attempt.args, attempt.kwargs
            if attempt.references is not None:
                message.labels[REFERENCES_LABEL] = attempt.references
            await self._publish(attempt, Notice(Kind.AGAIN, attempt.task_id))
        return message

    def note_error(self, message: TaskiqMessage, error: BaseException) -> None:
        """What the task itself raised, whatever middlewares make of it."""
        if (attempt := _attempt_of(message)) is not None:
            attempt.raised = error

    async def end(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """After a task was executed: see to the outcomes that taskiq does not save."""
        attempt = _attempt_of(message)
        if attempt is None or not isinstance(result.error, NoResultError):
            return
        attempt.is_reported = True
        if attempt.is_revoked or attempt.is_superseded:
            return
        is_left_to_others = not isinstance(attempt.raised, NoResultError)
        was_requeued = message.labels.get(REQUEUE_COUNT) != attempt.requeues
        if is_left_to_others or was_requeued:
            await self._publish(attempt, Notice(Kind.AGAIN, attempt.task_id))
        else:
            await self._report(attempt, failed(result.error))

    async def _save(self, task_id: str, result: TaskiqResult[Any]) -> None:
        """In place of the result backend's ``set_result``: save, and tell the engine."""
        attempt = current.get()
        if attempt is None or attempt.task_id != task_id:
            await self._save_only(task_id, result)
            return
        attempt.is_reported = True
        if not (attempt.is_revoked or attempt.is_superseded):
            await self._report(attempt, result)

    def _left(self, attempt: Attempt, executing: asyncio.Task[Any]) -> None:
        """The asyncio task is over. If nothing was reported, something has got in the way."""
        self._attempts.discard(attempt)
        for name in attempt.names:
            self._by_name[name].discard(attempt)
            if not self._by_name[name]:
                del self._by_name[name]
        if self._is_closed:
            return
        if not attempt.is_acknowledged:  # what the engine was told is final: it must not come again
            self._start(self._acknowledge(attempt))
        if attempt.is_reported:
            return
        cancelled = executing.cancelled()
        error = asyncio.CancelledError() if cancelled else executing.exception()
        logger.error("task %r ended without a result", attempt.task_id, exc_info=error)
        lost = TaskLostError(
            f"task {attempt.task_id!r} ended on its worker without a result; a middleware of the "
            f"worker's broker raised {error!r}"
        )
        self._start(self._report(attempt, failed(lost)))

    def _acknowledged(self, delivery: Delivery) -> None:
        """Handle an acknowledgement by taskiq. If no task began, taskiq knows none of that name."""
        if (attempt := current.get()) is not None:
            attempt.is_acknowledged = True
            return
        reply_to = delivery.read(self._broker)
        if reply_to is None:
            return
        message = self._broker.formatter.loads(delivery.data)
        unknown = TaskLostError(
            f"the worker that was given task {message.task_id!r} knows no task named "
            f"{message.task_name!r}; have its process import the module where it is defined"
        )
        self._start(self._report(Attempt(message, reply_to), failed(unknown)))

    async def _acknowledge(self, attempt: Attempt) -> None:
        task_id = attempt.task_id
        try:
            await ride_out(
                lambda: self._deliveries.acknowledge(task_id),
                self._outages,
                f"{task_id} cannot be acknowledged yet",
            )
        except Exception as error:  # whatever the client raises; it comes again, and is told again
            logger.warning("%s was not acknowledged: %r", task_id, error)

    # What an attempt needs

    def _guard(self, task_name: str) -> Callable[..., Any] | None:
        """Wrap the function of a task, unless it is wrapped. Returns the wrapper."""
        task = self._broker.find_task(task_name)
        if task is None:
            return None
        task.original_func = function = guarded(task.original_func)
        return function

    async def _resolved(self, message: TaskiqMessage) -> TaskiqMessage:
        """The message with values in the places of references, each result read once."""
        places = json.loads(message.labels[REFERENCES_LABEL])
        args, kwargs = list(message.args), dict(message.kwargs)
        held = [(args if isinstance(place, int) else kwargs, place) for place in places]
        references = [Reference(**container[place]) for container, place in held]
        task_ids = list({reference.task_id for reference in references})
        results = await asyncio.gather(*map(self._read, task_ids))
        values = dict(zip(task_ids, results, strict=True))
        for (container, place), reference in zip(held, references, strict=True):
            container[place] = reference.of(values[reference.task_id])
        # A task that requeues itself sends this message, in which nothing is a reference any more.
        labels = {k: v for k, v in message.labels.items() if k != REFERENCES_LABEL}
        return message.model_copy(update={"args": args, "kwargs": kwargs, "labels": labels})

    async def _read(self, task_id: str) -> Any:
        return await ride_out(
            lambda: read_result(self._backend, task_id, None),
            self._outages,
            f"the result of {task_id} cannot be read yet",
        )

    # What is told

    async def _report(self, attempt: Attempt, result: TaskiqResult[Any]) -> None:
        """Save a task's outcome and tell the engine; if it cannot be saved, tell that."""
        task_id = attempt.task_id
        try:
            await ride_out(
                lambda: self._save_and_tell(attempt, result),
                self._outages,
                f"the result of {task_id} cannot be saved yet",
            )
        except Exception as error:  # of the value, of the serializer, of the server
            logger.exception("the result of %s cannot be saved", task_id)
            instead = failed(self._why_not_saved(attempt, result, error))
            try:
                await self._save_only(task_id, instead)
            except Exception as again:  # the notice carries it all the same
                logger.warning("nor can it be saved that it cannot be: %r", again)
            body = instead.model_dump_json().encode()
            await self._publish(attempt, Notice(Kind.RESULT, task_id, body))

    async def _save_and_tell(self, attempt: Attempt, result: TaskiqResult[Any]) -> None:
        reply_to = attempt.reply_to
        if self._save_and_publish is not None:
            await self._save_and_publish(
                attempt.task_id,
                result,
                reply_to.channel,
                lambda size: self._notice(attempt, result, size).sealed(reply_to.key),
            )
            return
        await self._save_only(attempt.task_id, result)
        await self._publish(attempt, self._notice(attempt, result, None))

    def _notice(self, attempt: Attempt, result: TaskiqResult[Any], size: int | None) -> Notice:
        """The notice of a result, with it if it is small. ``size``: as it is stored, in bytes."""
        task_id = attempt.task_id
        if isinstance(result.error, NoResultError):
            return Notice(Kind.NO_RESULT, task_id)
        if is_referred_to(result, attempt.reply_to.limit, size):
            return Notice(Kind.REFERENCE, task_id)
        if self._inlines and (size is None or size <= self._inline_limit):
            try:
                body = result.model_dump_json(exclude=_NOT_TOLD).encode()
            except ValueError:  # of a text that is no Unicode, say, which the backend may store
                return Notice(Kind.SAVED, task_id)
            if len(body) <= self._inline_limit:
                return Notice(Kind.RESULT, task_id, body)
        return Notice(Kind.SAVED, task_id)

    async def _publish(self, attempt: Attempt, notice: Notice) -> None:
        """Tell the engine, if that can be done now: a notice is a hint."""
        reply_to = attempt.reply_to
        try:
            async with asyncio.timeout(TELLING_PATIENCE):
                await self._notifier.publish(reply_to.channel, notice.sealed(reply_to.key))
        except Exception as error:  # of the server, or of the client that finds it too large
            logger.warning("the engine could not be told of %s: %r", attempt.task_id, error)

    def _why_not_saved(
        self, attempt: Attempt, result: TaskiqResult[Any], error: Exception
    ) -> Exception:
        name = attempt.node_name
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
            f"{error!r}"
        )

    async def _beat(self) -> None:
        """Tell the broker and the engines, again and again, what is here."""
        while True:
            await asyncio.sleep(BEAT)
            for tell in (self._deliveries.renew, self._tell_what_is_here):
                try:
                    async with asyncio.timeout(BEAT_PATIENCE):
                        await tell()
                except self._outages as error:
                    logger.debug("nobody can be told what is here: %r", error)
                except Exception:  # not foreseen; without this loop, what is here counts as lost
                    logger.exception("telling what is here failed")

    async def _tell_what_is_here(self) -> None:
        """Tell engines of their tasks that are executed, or wait for it, in this process."""
        here: list[Attempt | Delivery] = [*self._attempts, *self._deliveries.of_engines()]
        await self._tell_of(here, Notice.here)
        await self._tell_of(
            [a for a in self._attempts if a.tells_begin and a.has_begun], Notice.begun
        )

    async def _tell_of(
        self, tasks: Iterable[Attempt | Delivery], notice: Callable[[Iterable[str]], Notice]
    ) -> None:
        by_engine: defaultdict[tuple[str, bytes], set[str]] = defaultdict(set)
        for task in tasks:
            if task.reply_to is not None:
                by_engine[task.reply_to.channel, task.reply_to.key].add(task.task_id)
        for (channel, key), task_ids in by_engine.items():
            await self._notifier.publish(channel, notice(task_ids).sealed(key))

    def _revoke(self, run: str) -> None:
        """A run, or one task, is over: what runs of it is cancelled, what comes will be refused."""
        now = asyncio.get_running_loop().time()
        self._revoked.pop(run, None)
        self._revoked[run] = now
        for earliest in tuple(itertools.islice(self._revoked, 2)):  # more go than come
            if now - self._revoked[earliest] > REVOCATION_LIFE:
                del self._revoked[earliest]
        for attempt in self._by_name.get(run, ()):
            attempt.revoke()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _attempt_of(message: TaskiqMessage) -> Attempt | None:
    attempt = current.get()
    return attempt if attempt is not None and attempt.task_id == message.task_id else None


def _refused(message: TaskiqMessage, error: Exception) -> TaskiqMessage:
    return message.model_copy(update={"kwargs": {**message.kwargs, REFUSAL: Refusal(error)}})
