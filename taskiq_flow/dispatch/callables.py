"""Plain callables as tasks of a broker that runs them in this process.

A callable is registered when it is first needed and for as long as it lives: one that was made for
a single run goes with it, and so does what it holds.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from taskiq import AsyncTaskiqDecoratedTask, InMemoryBroker

from taskiq_flow.dataflow.binding import Task, signature_of
from taskiq_flow.dataflow.node import default_name

Reference = Callable[[], Callable[..., Any] | None]
"""Gives the callable, or ``None`` once nobody else holds it."""


def as_task(
    broker: InMemoryBroker, function: Callable[..., Any]
) -> AsyncTaskiqDecoratedTask[Any, Any]:
    """A plain callable as a task of the broker."""
    # A bound method is a new object each time it is looked up: its object tells it from others.
    owner = function.__self__ if inspect.ismethod(function) else function
    module = getattr(function, "__module__", None) or __name__
    usual_name = f"{module}:{default_name(function)}"
    for name in (usual_name, f"{usual_name}#{id(owner):x}"):
        task = broker.find_task(name)
        if task is None:
            return _register(broker, name, function, owner)
        stands_for: Reference = getattr(task.original_func, "stands_for", _nothing)
        if stands_for() == function:
            return task
    raise AssertionError(f"{name!r} is taken, by a callable that {function!r} is not")


def return_type_of(task: Task) -> Any:
    """What a task's annotation says that it returns, ``None`` if nothing does."""
    if isinstance(task, AsyncTaskiqDecoratedTask):
        return task.return_type
    return _annotations(signature_of(task)).get("return")


def _register(
    broker: InMemoryBroker, name: str, function: Callable[..., Any], owner: object
) -> AsyncTaskiqDecoratedTask[Any, Any]:
    reference: Reference
    try:
        reference = (
            weakref.WeakMethod(function) if inspect.ismethod(function) else weakref.ref(function)
        )
        weakref.finalize(owner, _unregister, weakref.ref(broker), name)
    except TypeError:  # of a kind that cannot be referenced weakly, as built-in methods are
        reference = lambda: function  # noqa: E731 - a function of two lines says no more
    return broker.register_task(_stand_in(function, reference), task_name=name)


def _unregister(broker_reference: weakref.ref[InMemoryBroker], name: str) -> None:
    broker = broker_reference()
    if broker is None:
        return
    broker.local_task_registry.pop(name, None)
    # What taskiq's receiver has learned of the task would be taken for another of the same name.
    receiver = broker.receiver
    receiver.known_tasks.discard(name)
    for learned in (receiver.task_signatures, receiver.task_hints, receiver.dependency_graphs):
        learned.pop(name, None)


def _stand_in(function: Callable[..., Any], reference: Reference) -> Callable[..., Any]:
    """A function of the same signature, for taskiq to rename and keep instead of the user's own."""

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        return await _alive(reference)(*args, **kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return _alive(reference)(*args, **kwargs)
        except StopIteration as error:  # no asyncio future can carry it: the task would never end
            raise RuntimeError("the task raised StopIteration") from error

    stand_in = call_async if _is_async(function) else call
    signature = signature_of(function)
    stand_in.__name__ = stand_in.__qualname__ = default_name(function)
    stand_in.__annotations__ = _annotations(signature)
    vars(stand_in).update(__signature__=signature, stands_for=reference)
    return stand_in


def _alive(reference: Reference) -> Callable[..., Any]:
    function = reference()
    if function is None:
        raise ReferenceError("the callable is gone, as its graph and its run are")
    return function


def _annotations(signature: inspect.Signature) -> dict[str, Any]:
    """What taskiq reads to parse arguments and to inject; it fails on one it cannot evaluate."""
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


def _nothing() -> None:
    return None
