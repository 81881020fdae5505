"""Functions that taskiq calls in the event loop and awaits, and that are no coroutine functions."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def awaited_by_taskiq(function: F) -> F:
    """Mark a function that is no coroutine function: taskiq calls it in the loop, and awaits it."""
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001
    return function


def is_awaited_by_taskiq(function: object) -> bool:
    """Whether taskiq calls a function in the event loop. It calls others in a thread."""
    if sys.version_info >= (3, 12):
        return inspect.iscoroutinefunction(function)
    return asyncio.iscoroutinefunction(function)
