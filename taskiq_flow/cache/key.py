"""What tells one call of a task from all others: its name, its code and everything it is given."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from types import CodeType
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from taskiq import AsyncTaskiqDecoratedTask

from taskiq_flow.dataflow.binding import Task, original_function
from taskiq_flow.values.handle import ResultHandle

_BY_THEIR_TEXT = frozenset(
    {
        *(type(None), type(...), bool, int, float, complex, str, bytes),
        *(Decimal, UUID, datetime, date, time, timedelta),
    }
)
"""Types whose values are the same if they are written the same."""


def cache_key(task: Task, args: Iterable[Any], kwargs: Mapping[str, Any]) -> str:
    """The key of a call: 32 hexadecimal digits (BLAKE2b; RFC 7693).

    Raises ``TypeError``, naming the type, if the task or what it is given holds anything of which
    it cannot be told whether it is the same as another time.
    """
    function = original_function(task)
    name = task.task_name if isinstance(task, AsyncTaskiqDecoratedTask) else _name(function)
    parts = [name.encode(), _of_function(function), _of([*args]), _of(dict(kwargs))]
    return hashlib.blake2b(b"".join(map(_framed, parts)), digest_size=16).hexdigest()


def digest_of(value: Any) -> bytes:
    """What tells a value from others, in eight bytes; empty if that cannot be told."""
    try:
        return hashlib.blake2b(_of(value), digest_size=8).digest()
    except Exception:  # of a type that is not known, nested too deeply, ...
        return b""


def _of(value: Any) -> bytes:
    """A value, spelled so that different ones are spelled differently, in every process."""
    kind = type(value)
    parts: Iterable[bytes]
    if kind in _BY_THEIR_TEXT or isinstance(value, PurePath):
        parts = [repr(value).encode("utf-8", "surrogatepass")]
    elif isinstance(value, Enum):
        parts = [value.name.encode()]
    elif isinstance(value, (list, tuple)):
        parts = map(_of, value)
    elif isinstance(value, (set, frozenset)):
        parts = sorted(map(_of, value))
    elif isinstance(value, dict):
        parts = sorted(_joined(b":", [_of(key), _of(part)]) for key, part in value.items())
    elif isinstance(value, BaseModel) or _is_data(value):
        own = kind.model_fields if isinstance(value, BaseModel) else [f.name for f in fields(kind)]
        parts = [_of({name: getattr(value, name) for name in own})]
    elif inspect.isfunction(value):
        parts = [_of_function(value)]
    else:
        raise TypeError(
            f"of a {kind.__module__}.{kind.__qualname__} it cannot be told whether another one is "
            "the same"
        )
    return _joined(f"{kind.__module__}.{kind.__qualname__}".encode(), parts)


def _is_data(value: Any) -> bool:
    # A handle says where a value is, not what it is.
    return is_dataclass(value) and not isinstance(value, (type, ResultHandle))


def _of_function(function: Callable[..., Any]) -> bytes:
    """What a function does, as far as it is its own code: not what the functions do that it calls.

    What it was made with, its defaults and what it has closed over, is a part of it.
    """
    if isinstance(function, functools.partial):
        made_with = [_of(list(function.args)), _of(function.keywords)]
        return _joined(b"partial", [_of_function(function.func), *made_with])
    if inspect.ismethod(function):
        return _joined(b"method", [_of(function.__self__), _of_function(function.__func__)])
    if not inspect.isfunction(function):
        if inspect.isbuiltin(function) or inspect.isclass(function):
            return _name(function).encode()
        return _joined(b"call", [_of(function), _of_function(type(function).__call__)])
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    made_with = [_of(function.__defaults__), _of(function.__kwdefaults__), _of(cells)]
    return _joined(b"function", [_of_code(function.__code__), *made_with])


def _of_code(code: CodeType) -> bytes:
    constants = [_of_code(c) if isinstance(c, CodeType) else _of(c) for c in code.co_consts]
    names = [" ".join(part).encode() for part in (code.co_names, code.co_varnames)]
    return _joined(b"code", [code.co_code, *names, *constants])


def _name(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _joined(tag: bytes, parts: Iterable[bytes]) -> bytes:
    return _framed(tag) + _framed(b"".join(map(_framed, parts)))


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(8, "big") + part


def is_large(value: Any, most: int = 1_000) -> bool:
    """Whether a value has more than ``most`` parts, so that its key takes long to compute.

    A part is an element of a collection, or a thousand characters or bytes of a text.
    """
    pending, parts = [value], 0
    while pending and parts <= most:
        part = pending.pop()
        if isinstance(part, (str, bytes)):
            parts += len(part) // 1_000
        elif isinstance(part, dict):
            parts += len(part)
            pending.extend(itertools.islice(part.values(), most))
        elif isinstance(part, (list, tuple, set, frozenset)):
            parts += len(part)
            pending.extend(itertools.islice(part, most))
    return parts > most
