"""Large values are read in a thread, as reading them would block the event loop."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from taskiq_flow.giving_way import in_thread

T = TypeVar("T")

_SCALARS = frozenset({type(None), bool, int, float})

_TABLES = {"pandas", "polars", "pyarrow"}
"""Libraries whose tables tell their size in ways of their own."""


async def read_off_loop(value: Any, function: Callable[..., T], *args: Any) -> T:
    """Call a function that reads all of ``value``: in a thread if the value is large."""
    if is_large(value):
        return await in_thread(function, *args)
    return function(*args)


def is_large(value: Any, most: int = 1_000) -> bool:
    """Whether a value has more than ``most`` parts, so that reading it takes long.

    A part is an element of a collection, or a thousand characters or bytes of a text or an array.
    A table counts as large.
    """
    if type(value) in _SCALARS:  # spares them the questions below, which take longer
        return False
    pending, parts = [value], 0
    while pending and parts <= most:
        part = pending.pop()
        if isinstance(part, (str, bytes)):
            parts += len(part) // 1_000
        elif isinstance(part, dict):
            parts += len(part)
            pending.extend(itertools.islice(part.values(), most))
        elif isinstance(part, (list, tuple, set, frozenset, deque)):
            parts += len(part)
            pending.extend(itertools.islice(part, most))
        elif isinstance(part, BaseModel) or (is_dataclass(part) and not isinstance(part, type)):
            pending.append(getattr(part, "__dict__", {}))
        elif isinstance(part, bytearray):
            parts += len(part) // 1_000
        elif type(part).__module__.partition(".")[0] in _TABLES:
            parts = most + 1
        elif isinstance(size := getattr(part, "nbytes", None), int):
            parts += size // 1_000
    return parts > most
