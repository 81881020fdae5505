"""Plain callables as tasks of a broker that runs them in this process."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask

from taskiq_flow.dataflow.binding import signature_of
from taskiq_flow.dataflow.node import default_name


def as_task(
    broker: AsyncBroker, function: Callable[..., Any]
) -> AsyncTaskiqDecoratedTask[Any, Any]:
    """A plain callable as a task of the broker, registered once for as long as the broker lives."""
    module = getattr(function, "__module__", None) or __name__
    first_name = name = f"{module}:{default_name(function)}"
    for number in itertools.count(2):
        task = broker.find_task(name)
        if task is None:
            return broker.register_task(_stand_in(function), task_name=name)
        stands_for = getattr(task.original_func, "stands_for", None)
        # A bound method is a new object each time it is looked up.
        if stands_for is function or (inspect.ismethod(function) and stands_for == function):
            return task
        name = f"{first_name}#{number}"
    raise AssertionError("itertools.count does not end")


def _stand_in(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the same signature, for taskiq to rename instead of the user's own."""

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    stand_in = functools.wraps(function)(call_async if _is_async(function) else call)
    stand_in.__annotations__ = _annotations(function)
    stand_in.__module__ = __name__  # where taskiq leaves the renamed function as an attribute
    vars(stand_in)["stands_for"] = function
    return stand_in


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """What taskiq reads to parse arguments and to inject; it fails on one it cannot evaluate."""
    signature = signature_of(function)
    hints = {name: p.annotation for name, p in signature.parameters.items()}
    hints["return"] = signature.return_annotation
    return {
        name: hint
        for name, hint in hints.items()
        if hint is not inspect.Signature.empty and not isinstance(hint, str)
    }


def _is_async(function: Callable[..., Any]) -> bool:
    if inspect.iscoroutinefunction(function):
        return True
    return inspect.iscoroutinefunction(type(function).__call__)
