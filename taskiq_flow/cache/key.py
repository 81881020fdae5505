"""The keys of cached results: a task's name, its code, and everything that it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskiq import AsyncTaskiqDecoratedTask

from taskiq_flow.dataflow.tasks import Task, original_function, task_info
from taskiq_flow.processes.in_process import runs_in_process
from taskiq_flow.values.digest import digest_of_parts, name_of_function, of_function, of_named


def cache_key(task: Task, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
    """The key of a call: 32 hexadecimal digits (BLAKE2b; RFC 7693).

    Raises ``TypeError``, naming it, if the task or its arguments hold anything of which it cannot
    be told whether it is the same as another time.
    """
    function = original_function(task)
    function = runs_in_process(function) or function
    name = name_of_function(function)
    if isinstance(task, AsyncTaskiqDecoratedTask):
        name = task.task_name
    if injected := task_info(task).parameters[1]:
        raise TypeError(
            f"its parameter {min(injected)!r} is injected, and the engine does not know its value"
        )
    given = of_named("argument", {**dict(enumerate(args, 1)), **kwargs})
    parts = [name.encode(), of_function(function), given]
    return digest_of_parts(parts)
