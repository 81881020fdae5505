"""Tasks of a broker that runs them in this process, plain callables among them.

A callable is registered with an engine, or by a run whose graph has got it since, and unregistered
when no node of it is left. The broker refers to it weakly, and keeps none of its defaults, so that
graphs can be collected.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from taskiq import AsyncTaskiqDecoratedTask, InMemoryBroker
from taskiq_dependencies.dependency import Dependency

from taskiq_flow.completion.embedding import embed, forget
from taskiq_flow.dataflow.tasks import Task, TaskInfo, called_function, default_name, task_info
from taskiq_flow.processes.child_main import FUNCTION
from taskiq_flow.processes.in_process import runs_in_process

# Of threads that register callables of the same name, at one broker or several. One that runs
# others' code when it collects garbage may come back here.
_REGISTERING = threading.RLock()


def embedded(broker: InMemoryBroker, given: Task) -> AsyncTaskiqDecoratedTask[Any, Any] | None:
    """The broker's own task, whose function takes the values of calls, which no message has.

    ``given``: as the user has given it. A plain callable is registered. ``None`` for a task of
    another broker, which this one does not know. The caller holds a node of the task.
    """
    if not isinstance(given, AsyncTaskiqDecoratedTask):
        with _REGISTERING:
            task = _as_task(broker, given)
        embed(broker, task, given)
    elif (own := broker.find_task(given.task_name)) is not None:
        embed(broker, task := own)
    else:
        return None
    return task


def return_type_of(task: Task) -> Any:
    """What a task's annotation says that it returns, ``None`` if nothing does."""
    if isinstance(task, AsyncTaskiqDecoratedTask):
        return task.return_type
    return annotations_of(task_info(task).signature).get("return")


def _as_task(
    broker: InMemoryBroker, function: Callable[..., Any]
) -> AsyncTaskiqDecoratedTask[Any, Any]:
    """A plain callable as a task of the broker. The caller holds a node of the callable."""
    module = getattr(function, "__module__", None) or __name__
    usual_name = f"{module}:{default_name(function)}"
    for name in (usual_name, f"{usual_name}#{id(function):x}"):
        task = broker.find_task(name)
        if task is None:
            return _register(broker, name, function)
        stands_for = getattr(task.original_func, "stands_for", None)
        if stands_for is not None and stands_for() is task_info(function):
            return task
    raise AssertionError(f"{name!r} is taken, by a callable that {function!r} is not")


def _register(
    broker: InMemoryBroker, name: str, function: Callable[..., Any]
) -> AsyncTaskiqDecoratedTask[Any, Any]:
    # Not a finalizer, which would outlive the broker.
    reference = weakref.ref(task_info(function), partial(_unregister, weakref.ref(broker), name))
    stand_in = _stand_in(task_info(function), reference)
    task = broker.register_task(stand_in, task_name=name)
    del globals()[stand_in.__name__]  # where taskiq puts every function, for process pools
    return task


def _unregister(
    broker_reference: weakref.ref[InMemoryBroker], name: str, stands_for: weakref.ref[TaskInfo]
) -> None:
    broker = broker_reference()
    if broker is None:
        return
    task = broker.local_task_registry.get(name)
    if task is None or getattr(task.original_func, "stands_for", None) is not stands_for:
        return  # the user has registered a task of their own under the name
    broker.local_task_registry.pop(name, None)
    forget(broker.receiver, name)  # or it would be taken for another of the same name


def _stand_in(info: TaskInfo, reference: weakref.ref[TaskInfo]) -> Callable[..., Any]:
    """A function of the same signature, for taskiq to rename and keep instead of the user's own."""
    function = info.task

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        return await _alive(reference)(*args, **kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        return _alive(reference)(*args, **kwargs)

    async def call_for_items(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with contextlib.aclosing(_alive(reference)(*args, **kwargs)) as items:
            async for item in items:
                yield item

    stand_in: Callable[..., Any] = call_async if _is_async(function) else call
    if inspect.isasyncgenfunction(called_function(function)):
        stand_in = call_for_items
    signature = _without_defaults(info.signature)
    stand_in.__name__ = stand_in.__qualname__ = default_name(function)
    stand_in.__annotations__ = annotations_of(signature)
    vars(stand_in).update(__signature__=signature, stands_for=reference)
    if (own := runs_in_process(function)) is not None:
        vars(stand_in)[FUNCTION] = own
    return stand_in


def _without_defaults(signature: inspect.Signature) -> inspect.Signature:
    """The signature for taskiq, which keeps it: a default may refer to its own function.

    The defaults that taskiq injects stay, as it reads them. The stand-in never uses the others.
    """
    return signature.replace(
        parameters=[
            p
            if p.default is p.empty or isinstance(p.default, Dependency)
            else p.replace(default=None)
            for p in signature.parameters.values()
        ]
    )


def _alive(info: weakref.ref[TaskInfo]) -> Callable[..., Any]:
    alive = info()
    if alive is None:
        raise ReferenceError("the callable was collected with its graph, after its run")
    return alive.task


def annotations_of(signature: inspect.Signature) -> dict[str, Any]:
    """What taskiq reads to parse arguments and to inject; it fails on one it cannot evaluate."""
    hints = {name: p.annotation for name, p in signature.parameters.items()}
    hints["return"] = signature.return_annotation
    return {
        name: hint
        for name, hint in hints.items()
        if hint is not inspect.Signature.empty and not isinstance(hint, str)
    }


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(called_function(function))
