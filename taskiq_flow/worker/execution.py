"""One execution of a task on a worker, and the wrapper around its function that can stop it.

taskiq cannot skip a task: a middleware that raises leaves the message unacknowledged. An exception
from the task's own function is an ordinary result, so the wrapper around it refuses tasks.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from taskiq import NoResultError, TaskiqMessage

from taskiq_flow.dataflow.calling import calling_of
from taskiq_flow.generators.driver import drive, drive_in_thread
from taskiq_flow.processes.awaited import awaited_by_taskiq
from taskiq_flow.processes.own_thread import in_own_thread, listed_in_own_thread
from taskiq_flow.transport.deliveries import Delivery
from taskiq_flow.transport.notice import (
    BEGIN_LABEL,
    KEEP_LABEL,
    REQUEUE_COUNT,
    TELL_AT_ONCE,
    ReplyTo,
)
from taskiq_flow.values.call import Call, Calling, Delivered, wrapping
from taskiq_flow.values.called import CalledAsyncGenerator, CalledGenerator
from taskiq_flow.values.listed import listed
from taskiq_flow.values.wire import VALUES
from taskiq_flow.worker.items import SinkToEngine

T = TypeVar("T")

REFUSAL = "taskiq_flow_refusal"
"""The keyword argument with the ``Refusal`` of a task that is not to run.

An argument, as it has to reach functions in threads and in other processes as well.
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The error that a task raises instead of running. No message can carry one."""

    error: BaseException


class RevokedError(NoResultError):
    """The task's run is over.

    taskiq acknowledges its message and saves no result. Retry middlewares do not send it again.
    """

    __template__ = "the run of this task is over"

    def __reduce__(self) -> tuple[type[RevokedError], tuple[()]]:
        return type(self), ()


class Execution:
    """One execution of an engine's task. Created in the asyncio task that executes it.

    ``delivery``: the broker's message, where it is known. ``sink``: takes the items of a generator,
    if they are to be sent one by one.
    """

    sink: SinkToEngine | None = None

    def __init__(
        self, message: TaskiqMessage, reply_to: ReplyTo, delivery: Delivery | None = None
    ) -> None:
        self.delivery = delivery
        self.came_at = time.monotonic()
        self.task_id = message.task_id
        self.reply_to = reply_to
        self.args, self.kwargs = list(message.args), dict(message.kwargs)  # as sent
        self.requeues = message.labels.get(REQUEUE_COUNT)
        self.timeout = message.labels.get("timeout")  # seconds, which taskiq counts
        self.tells_begin = BEGIN_LABEL in message.labels
        self.tells_begin_at_once = message.labels.get(BEGIN_LABEL) == TELL_AT_ONCE
        self._pid = os.getpid()
        self.function: Callable[..., Any] | None = None  # the task's, guarded
        self._has_entered = False
        self.on_begun: Callable[[], object] = _nothing  # called in the thread of the function
        self.telling: asyncio.Task[None] | None = None  # the engine that it has begun
        self.is_revoked = False
        self.is_superseded = False  # the task was sent again: this result is not final
        self.is_reported = False
        self.is_waiting = False  # for tasks of its own, which no worker takes
        self.is_acknowledged = False
        self.saving: asyncio.Task[None] | None = None  # the result, while the next task may begin
        self.raised: BaseException | None = None
        self.names = [reply_to.run, reply_to.task(self.task_id)]
        if KEEP_LABEL not in message.labels:
            self.names.append(reply_to.channel)
        """The names by which a revocation may mean it: those of its run, the task and its engine.

        A run with a journal may be resumed: its tasks are executed though their engine is gone.
        """
        self._running: asyncio.Task[Any] | None = None  # within the task's function

    @property
    def node_name(self) -> str:
        """The name of the task's node, taken from the task's id."""
        return self.task_id.removeprefix(f"{self.reply_to.run_id}:").rpartition(":")[0]

    @property
    def is_over(self) -> bool:
        """Whether nobody takes the result of this execution: the task was revoked or sent again."""
        return self.is_revoked or self.is_superseded

    @property
    def is_running(self) -> bool:
        """Whether its function, a coroutine function, has begun and not ended."""
        return self._running is not None

    def revoke(self) -> None:
        """Cancel the function if it runs, once; if it has not begun, prevent it from running."""
        if not self.is_revoked and self._running is not None:
            self._running.cancel()
            if self.sink is not None:
                self.sink.close()  # its generator may go on in spite of that
        self.is_revoked = True

    async def when_told(self) -> None:
        """Wait until the engine was told that the task has begun. It hears of the end later."""
        if self.telling is not None and not self.telling.done():
            await asyncio.wait([self.telling])  # takes ``PUBLISH_TIMEOUT`` at the most

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the task's coroutine function so that ``revoke`` can cancel it."""
        self.enter()
        self._running = asyncio.current_task()
        try:
            return await function(*args, **kwargs)
        except asyncio.CancelledError:
            if self.is_revoked and self._running is not None:
                self._running.uncancel()
                raise RevokedError from None
            raise
        finally:
            self._running = None

    @property
    def has_begun(self) -> bool:
        """Whether it counts as running. A sync function does once a thread has begun with it.

        In a pool of processes the beginning cannot be seen: there it counts from its receipt.
        """
        in_thread = isinstance(self.function, _Guarded) and not self.function.is_pickled
        return self._has_entered or not in_thread

    def enter(self) -> None:
        """Note that the function begins. Raises ``RevokedError`` if the task is revoked."""
        # A process of a pool is forked while some execution is current, and inherits it.
        if self._pid != os.getpid():
            return
        if self.is_revoked:
            raise RevokedError
        if not self.has_begun:
            self._has_entered = True
            self.on_begun()


current: ContextVar[Execution | None] = ContextVar("current", default=None)
"""The execution of the worker's current asyncio task, also in the thread of its function."""


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a task's function: it can be refused and revoked, and is given what was sent.

    Never wraps twice.
    """
    if hasattr(function, _IS_GUARDED):
        return function
    calling = calling_of(function)
    if inspect.isasyncgenfunction(function):
        return _guarded_generator(function, CalledAsyncGenerator, listed, _sent, calling)
    if calling.gives_items:
        return _guarded_generator(
            function, CalledGenerator, _listed_in_thread, _sent_in_thread, calling
        )
    if inspect.iscoroutinefunction(function):
        return _guarded_async(function, calling)
    return _Guarded(function, calling)


_IS_GUARDED = "taskiq_flow_is_guarded"


async def _listed_in_thread(items: Generator[Any, Any, Any]) -> list[Any]:
    """The items of a generator, which runs in a thread of its own."""
    return await listed_in_own_thread(lambda: items, waits=True)


async def _sent(items: AsyncGenerator[Any, Any], sink: SinkToEngine) -> int:
    """Send the items of an async generator. Returns how many there are."""
    async with sink.sending():
        return await drive(items, sink)


async def _sent_in_thread(items: Generator[Any, Any, Any], sink: SinkToEngine) -> int:
    """The same for a generator, which runs in a thread of its own.

    One of the worker's pool would be held while the generator waits, and may be needed by the tasks
    that it waits for.
    """
    loop = asyncio.get_running_loop()
    async with sink.sending():
        return await in_own_thread(
            lambda: drive_in_thread(items, sink, loop), sink.close, waits=True
        )


def _guarded_generator(
    function: Callable[..., Any],
    called: Callable[[Any, Callable[[Any], Awaitable[Any]]], Any],
    in_list: Callable[[Any], Awaitable[list[Any]]],
    sent: Callable[[Any, SinkToEngine], Awaitable[int]],
    calling: Calling,
) -> Callable[..., Any]:
    """Wrap a generator function. Awaiting it gives the list, or sends the items.

    ``called``: what it gives where no engine has sent the task, and where others call it.
    """

    async def items_of(execution: Execution, call: Call, kwargs: dict[str, Any]) -> Any:
        own_args, own_kwargs = calling.arguments(call)
        make = partial(function, *own_args, **{**kwargs, **own_kwargs})
        if (sink := execution.sink) is not None:
            return await execution.run(lambda: sent(make(), sink))
        return calling.result(await execution.run(lambda: in_list(make())))

    def call(*args: Any, **kwargs: Any) -> Any:
        _refuse(kwargs)
        execution, delivered = current.get(), kwargs.pop(VALUES, None)
        if execution is None or not isinstance(delivered, Delivered):
            return called(function(*args, **kwargs), in_list)
        return items_of(execution, delivered.call, kwargs)

    setattr(call, _IS_GUARDED, True)
    return awaited_by_taskiq(wrapping(call, function))


def _guarded_async(function: Callable[..., Any], calling: Calling) -> Callable[..., Any]:
    """Wrap a coroutine function."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        _refuse(kwargs)
        execution, delivered = current.get(), kwargs.pop(VALUES, None)
        if execution is None or execution.is_running:  # then a task calls this one as a function
            return await function(*args, **kwargs)
        if not isinstance(delivered, Delivered):  # not sent by an engine
            return await execution.run(function, *args, **kwargs)
        own_args, own_kwargs = calling.arguments(delivered.call)
        value = await execution.run(function, *own_args, **{**kwargs, **own_kwargs})
        return calling.result(value)

    setattr(call, _IS_GUARDED, True)
    return wrapping(call, function)


class _Guarded:
    """The wrapper of a sync function. It is an object so that it can be pickled."""

    is_pickled = False
    """Whether it was sent to another process, where its beginning cannot be seen from here."""

    def __init__(self, function: Callable[..., Any], calling: Calling) -> None:
        wrapping(self, function)
        setattr(self, _IS_GUARDED, True)
        self._calling: Calling | None = calling

    def __getstate__(self) -> dict[str, Any]:
        self.is_pickled = True
        return {**vars(self), "_calling": None}  # its checks are functions, made anew over there

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _refuse(kwargs)
        execution, delivered = current.get(), kwargs.pop(VALUES, None)
        if execution is not None:
            execution.enter()
        function: Callable[..., Any] = vars(self)["__wrapped__"]
        if not isinstance(delivered, Delivered):
            return function(*args, **kwargs)
        if self._calling is None:
            self._calling = calling_of(function)
        calling = self._calling
        own_args, own_kwargs = calling.arguments(delivered.call)
        try:
            value = function(*own_args, **{**kwargs, **own_kwargs})
        except StopIteration as error:  # no future can carry it: the task would never end
            raise RuntimeError("the task raised StopIteration") from error
        return calling.awaited(value) if inspect.isawaitable(value) else calling.result(value)


def _nothing() -> None: ...


def _refuse(kwargs: dict[str, Any]) -> None:
    refusal = kwargs.get(REFUSAL)
    if isinstance(refusal, Refusal):
        raise refusal.error
