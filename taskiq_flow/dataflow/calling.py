"""How a task's function is called: what its annotations and its kind ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from taskiq_flow.dataflow.tasks import (
    called_function,
    default_name,
    is_generator_function,
    signature_of,
)
from taskiq_flow.values.call import Calling
from taskiq_flow.values.fitting import Signature


def calling_of(function: Callable[..., Any], *, converts: bool = True) -> Calling:
    """How a function is called. ``converts``: whether values are made to fit its annotations."""
    called = called_function(function)
    gives_items = inspect.isgeneratorfunction(called)
    if not converts:
        return Calling(None, gives_items=gives_items)
    signature = Signature(
        default_name(function),
        signature_of(function),
        returns_items=is_generator_function(function),
    )
    return Calling(signature, gives_items=gives_items)
