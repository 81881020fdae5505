"""The tasks of a broker with workers elsewhere, run in this process."""

from __future__ import annotations

from typing import Any

from taskiq import AsyncBroker, AsyncTaskiqDecoratedTask, InMemoryBroker

from taskiq_flow.values.call import unwrapped


def in_memory(broker: AsyncBroker, **options: Any) -> InMemoryBroker:
    """An ``InMemoryBroker`` that runs the tasks which ``broker`` has now.

    An engine on it runs graphs of these tasks as they are, without a server. Injected dependencies
    are those of ``broker``, its overrides included. Its middlewares and result backend are left
    out. ``options`` go to ``InMemoryBroker``.

    >>> from taskiq_flow.testing import in_memory
    >>> broker = broker_for("redis://localhost:6379")
    >>> @broker.task
    ... def double(number):
    ...     return 2 * number
    >>> dag = DAGBuilder().node(double).build()
    >>> ExecutionEngine(in_memory(broker), dag).execute_sync({"number": 4})
    {'double': 8}
    """
    twin = InMemoryBroker(**options)
    for name, task in broker.get_all_tasks().items():
        twin.local_task_registry[name] = AsyncTaskiqDecoratedTask(
            broker=twin,
            original_func=unwrapped(task.original_func),
            labels=dict(task.labels),
            task_name=name,
            return_type=task.return_type,
        )
    copy_dependencies(broker, twin)
    return twin


def copy_dependencies(broker: AsyncBroker, twin: AsyncBroker) -> None:
    """Have the tasks of ``twin`` given what those of ``broker`` are, overrides included."""
    twin.add_dependency_context(broker.custom_dependency_context)
    twin.dependency_overrides.update(broker.dependency_overrides)
