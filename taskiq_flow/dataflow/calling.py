"""How a task's function is called: what its annotations and its kind ask for."""

from __future__ import annotations

import inspect

from taskiq_flow.dataflow.tasks import (
    Task,
    called_function,
    default_name,
    is_generator_function,
    original_function,
    task_info,
)
from taskiq_flow.values.call import Calling
from taskiq_flow.values.fitting import Signature


def calling_of(task: Task, *, converts: bool = True) -> Calling:
    """How a task's function is called.

    ``converts``: whether values are made to fit its annotations.
    """
    function = original_function(task)
    called = called_function(function)
    gives_items = inspect.isgeneratorfunction(called)
    if not converts:
        return Calling(None, gives_items=gives_items)
    signature = Signature(
        default_name(function),
        task_info(task).signature,  # which the nodes of the task have read
        returns_items=is_generator_function(function),
    )
    return Calling(signature, gives_items=gives_items)
