"""Executing a task's function: where its arguments come from, and what becomes of its result.

The values of a call in this process do not stand in its message, which is empty. The middleware of
the broker sets the call for the asyncio task that executes it, and the wrapper around the task's
function takes it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol, Self

from taskiq_flow.processes.awaited import awaited_by_taskiq
from taskiq_flow.processes.own_thread import in_own_thread, listed_in_own_thread
from taskiq_flow.values.called import CalledAsyncGenerator, CalledGenerator
from taskiq_flow.values.copying import COPY
from taskiq_flow.values.fitting import Signature
from taskiq_flow.values.inspection import NEVER_CHANGE, refuse_once_only
from taskiq_flow.values.isolation import Take
from taskiq_flow.values.listed import listed


class Drives(Protocol):
    """Passes on the items of a generator. Returns how many there are."""

    async def drive(self, items: AsyncGenerator[Any, Any]) -> int:
        """Those of an async generator."""

    def drive_in_thread(self, items: Generator[Any, Any, Any]) -> int:
        """Those of a generator that runs in the thread of the caller."""

    def close(self) -> None:
        """Nobody takes any more items."""


class Call:
    """The arguments of one call of a task.

    ``take``: copies each argument when the task is executed, where others than the engine may have
    it executed once more with the same arguments. ``sink``: takes the items of a generator one by
    one, if that is asked for. ``task_id``: of a task whose broker runs it in this process.
    """

    __slots__ = ("_args", "_is_taken", "_kwargs", "_take", "_task_name", "sink", "task_id")

    def __init__(
        self,
        task_name: str,
        args: list[Any],
        kwargs: dict[str, Any],
        take: Take | None = None,
        sink: Drives | None = None,
        task_id: str = "",
    ) -> None:
        self.task_id = task_id
        self.sink = sink
        self._task_name = task_name
        # Not as a tuple, which the garbage collector would have to follow for each node in flight.
        self._args: list[Any] | None = args  # both are ``None`` when they are forgotten
        self._kwargs: dict[str, Any] | None = kwargs
        self._take = take
        # On the object, as a thread has a copy of the context.
        self._is_taken = False

    def once_more(self) -> Call:
        """The same call, for a further execution of the task. This one is over."""
        again = Call(self._task_name, [], {}, self._take, self.sink, self.task_id)
        again._args, again._kwargs = self._args, self._kwargs
        self.forget()
        return again

    def forget(self) -> None:
        """Let go of the values. What the task has started may hold its context, and so this."""
        self._args = self._kwargs = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Call, (self._task_name, self._args, self._kwargs, self._take)

    def is_of(self, task_name: str) -> bool:
        """Whether this is the call of that task, and has not been taken.

        What the task's function calls or sends inherits the context in which its own call is.
        """
        return not self._is_taken and task_name == self._task_name

    def taken(self) -> tuple[list[Any], dict[str, Any]]:
        """The positional and keyword arguments. Called once.

        Raises ``RuntimeError`` if they are forgotten, as those of a run that is over.
        """
        args, kwargs, take = self._args, self._kwargs, self._take
        if args is None or kwargs is None:
            raise RuntimeError(f"task {self._task_name!r} is not executed: its run is over")
        self._is_taken = True
        return (args, kwargs) if take is None else with_each(take, args, kwargs)


def with_each(
    function: Callable[[Any], Any], args: list[Any], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call, each as ``function`` makes it."""
    named = {name: function(value) for name, value in kwargs.items()} if kwargs else {}
    return list(map(function, args)), named


class Delivered(dict[str, Any]):
    """The call of a message that has arrived, in the place of what stood for it in the message.

    As a dictionary it is that very content, so that a message which is sent again stays as it was.
    """

    call: Call

    @classmethod
    def of(cls, content: Mapping[str, Any], call: Call) -> Self:
        """What stands for a call in its message, and the call."""
        delivered = cls(content)
        delivered.call = call
        return delivered


present: ContextVar[Call | None] = ContextVar("present", default=None)
"""The call that the current asyncio task executes, also in the thread of its function."""


class Calling:
    """How one task's function is executed: with arguments and a result that fit its annotations.

    ``signature``: ``None`` where values are not converted. ``gives_items``: whether it is a
    generator function, whose result is the list of its items.
    """

    __slots__ = ("_fitted", "gives_items", "signature")

    def __init__(self, signature: Signature | None, *, gives_items: bool) -> None:
        self.signature = signature
        self.gives_items = gives_items
        checks = signature is not None and signature.checks_arguments
        self._fitted = signature.arguments if signature is not None and checks else None

    def arguments(self, call: Call) -> tuple[list[Any], dict[str, Any]]:
        """The arguments with which the function is called. May raise ``AnnotationError``."""
        taken = call.taken()
        return taken if self._fitted is None else self._fitted(*taken)

    def result(self, value: Any) -> Any:
        """The task's result. May raise ``AnnotationError`` or ``SerializationError``."""
        kind = type(value)
        if kind not in NEVER_CHANGE and kind not in COPY:  # which hold no type of iterators
            refuse_once_only(value)
        return value if self.signature is None else self.signature.result(value)

    async def awaited(self, value: Awaitable[Any]) -> Any:
        """As ``result``, for a function that has returned an awaitable, or is an async one."""
        return self.result(await value)


def taking_calls(
    function: Callable[..., Any], task_name: str, calling: Calling
) -> Callable[..., Any]:
    """Wrap a task's function so that it takes the present call, if that is its own."""
    wrap = partial(_call_for_items, function, task_name, calling)
    if inspect.isasyncgenfunction(function):
        return wrapping(wrap(CalledAsyncGenerator, _items_of), function)
    if calling.gives_items:
        return wrapping(wrap(CalledGenerator, _items_in_thread), function)
    if inspect.iscoroutinefunction(function):

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            call = present.get()
            if call is None or not call.is_of(task_name):
                return await function(*args, **kwargs)
            own_args, own_kwargs = calling.arguments(call)
            return calling.result(await function(*own_args, **kwargs, **own_kwargs))

        return wrapping(call_async, function)

    def call_sync(*args: Any, **kwargs: Any) -> Any:
        call = present.get()
        if call is None or not call.is_of(task_name):
            return function(*args, **kwargs)
        own_args, own_kwargs = calling.arguments(call)
        try:
            value = function(*own_args, **kwargs, **own_kwargs)
            if inspect.isawaitable(value):
                return calling.awaited(value)
            return calling.result(value)
        except StopIteration as error:  # no asyncio future can carry it: the task would never end
            raise RuntimeError("the task raised StopIteration") from error

    return wrapping(call_sync, function)


def _call_for_items(
    function: Callable[..., Any],
    task_name: str,
    calling: Calling,
    called: Callable[[Any, Callable[[Any], Awaitable[Any]]], Any],
    items_of: Callable[[Callable[[], Any], Drives | None], Awaitable[Any]],
) -> Callable[..., Any]:
    """Wrap a generator function. ``called``: what it gives where others call it.

    ``items_of``: gives the list, or drives a sink, of the generator that it makes.
    """

    async def items_of_call(call: Call, kwargs: dict[str, Any]) -> Any:
        own_args, own_kwargs = calling.arguments(call)
        return await items_of(partial(function, *own_args, **kwargs, **own_kwargs), call.sink)

    def call_for_items(*args: Any, **kwargs: Any) -> Any:
        call = present.get()
        if call is None or not call.is_of(task_name):
            return called(function(*args, **kwargs), _itself)
        return items_of_call(call, kwargs)

    return awaited_by_taskiq(call_for_items)


async def _items_of(make: Callable[[], Any], sink: Drives | None) -> Any:
    return await (listed(make()) if sink is None else sink.drive(make()))


async def _items_in_thread(make: Callable[[], Any], sink: Drives | None) -> Any:
    """As ``_items_of``, of a generator function, which runs in a thread of its own.

    One of the broker's threads would be held while the generator waits, and may be needed by the
    tasks that it waits for.
    """
    if sink is None:
        return await listed_in_own_thread(make, waits=False)
    return await in_own_thread(lambda: sink.drive_in_thread(make()), sink.close, waits=False)


async def _itself(items: Any) -> Any:
    """What taskiq makes of a generator that no engine has sent."""
    return items


_WRAPS = "taskiq_flow_wraps"


def wrapping(call: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Note that ``call`` wraps a task's own function."""
    functools.update_wrapper(call, function)
    setattr(call, _WRAPS, function)
    wrapper: Callable[..., Any] = call
    return wrapper


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """A task's own function, without the wrapper of this package."""
    own: Callable[..., Any] = getattr(function, _WRAPS, function)
    return own


def is_wrapped(function: Callable[..., Any]) -> bool:
    """Whether a task's function has the wrapper of this package around it."""
    return hasattr(function, _WRAPS)
