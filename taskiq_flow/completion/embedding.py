"""What an ``InMemoryBroker`` executes for a task, and what its receiver knows of it."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from taskiq import AsyncTaskiqDecoratedTask, InMemoryBroker
from taskiq.receiver import Receiver
from taskiq_dependencies import DependencyGraph

from taskiq_flow.dataflow.calling import calling_of
from taskiq_flow.dataflow.tasks import Task, task_info
from taskiq_flow.values.call import is_wrapped, taking_calls, unwrapped


def embed(
    broker: InMemoryBroker, task: AsyncTaskiqDecoratedTask[Any, Any], given: Task | None = None
) -> None:
    """Have a task's function take the values of calls, which no message has.

    ``given``: the callable that the task stands for, if it does. Does nothing to a task that was
    given here before.
    """
    present, given = task.original_func, task if given is None else given
    if not is_wrapped(present):
        calling = calling_of(given, converts=broker.receiver.validate_params)
        task.original_func = taking_calls(present, task.task_name, calling)
        if not task_info(given).parameters[1]:
            _learn(broker.receiver, task)
    forget_other(broker.receiver, task)


def forget_other(receiver: Receiver, task: AsyncTaskiqDecoratedTask[Any, Any]) -> None:
    """Have the receiver look at a task anew that it knows by another function, or not whole.

    Nothing else of it is removed, as the loop of another thread may be about to call the task.
    """
    name = task.task_name
    if name in receiver.known_tasks:
        graph = receiver.dependency_graphs.get(name)
        if graph is None or unwrapped(graph.target) is not unwrapped(task.original_func):
            receiver.known_tasks.discard(name)


def forget(receiver: Receiver, name: str) -> None:
    """Remove what the receiver has learned of a task that is no more."""
    receiver.known_tasks.discard(name)
    for learned in (receiver.task_signatures, receiver.task_hints, receiver.dependency_graphs):
        learned.pop(name, None)


def _learn(receiver: Receiver, task: AsyncTaskiqDecoratedTask[Any, Any]) -> None:
    """Have the receiver know a task, as it does else when the task's first call waits.

    Of a task that is injected nothing. What others are injected may have annotations with names
    that are defined later, and taskiq leaves out what it cannot evaluate.
    """
    name, function = task.task_name, task.original_func
    try:
        signature, hints = inspect.signature(function), get_type_hints(function)
        graph = DependencyGraph(function)
    except Exception:  # of a name that is not defined yet
        return
    receiver.task_signatures[name] = signature
    receiver.task_hints[name] = hints
    receiver.dependency_graphs[name] = graph
    receiver.known_tasks.add(name)  # last: from now on it does not look at the task again
