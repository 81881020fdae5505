"""Looks at values: whether anybody can change them, and whether they can be read only once."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Coroutine,
    Generator,
    Iterator,
    Sequence,
)
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from io import BytesIO, StringIO
from itertools import groupby, islice
from types import MemberDescriptorType
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from taskiq_flow.errors import SerializationError
from taskiq_flow.previews import ItemCount

NEVER_CHANGE = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, type(...), range),
        *(datetime, date, time, timedelta, timezone, Decimal, Fraction, UUID),
        ItemCount,
    }
)
"""Types of values that nobody can change, so that everybody may have them."""

ONCE_ONLY = (Iterator, AsyncIterator, Coroutine)
"""Types of values that can be read once, so that a second taker would find nothing."""

_READ_AGAIN = (BytesIO, StringIO)
"""Iterators of which a copy reads from where the original stood."""


def never_change(values: Any) -> bool:
    """Whether all of these are of immutable types. Runs at the speed of C."""
    return NEVER_CHANGE.issuperset(map(type, values))


_RUNS = 64
"""Runs of values of one type after which the values are taken to be of many."""


def types_of(values: Sequence[Any]) -> set[type]:
    """The types of values. Long runs of one type take less time than single values in a set."""
    if len(values) < _RUNS:
        return set(map(type, values))
    rest = iter(values)
    found = {kind for kind, _ in islice(groupby(rest, type), _RUNS)}
    found.update(map(type, rest))
    return found


def refuse_once_only(value: Any) -> None:
    """Raise ``SerializationError`` for an iterator or a coroutine."""
    if isinstance(value, ONCE_ONLY) and type(value) not in _READ_AGAIN:
        what, remedy = f"a {type_name(value)}", "make a list of it, as in 'return list(...)'"
        if isinstance(value, Generator):  # also one that may be awaited, as a coroutine may
            what = "a generator"
        elif isinstance(value, AsyncIterator):
            what = "an async generator" if isinstance(value, AsyncGenerator) else what
            remedy = "make a list of it, as in 'return [each async for each in ...]'"
        elif isinstance(value, Coroutine):
            remedy = "await it"
        elif hasattr(value, "read"):
            remedy = "pass on its content, as in 'return file.read()', or its path"
        raise SerializationError(
            f"{what} can be read once only, and nobody after its first reader would find anything "
            f"in it; {remedy}",
            value_type=type(value),
        )


def changed_meanwhile(value: Any, how: str, error: RuntimeError) -> SerializationError:
    """The error of a value that could not be ``how``, as Python tells it of a dictionary."""
    return SerializationError(
        f"a {type_name(value)} could not be {how}: {error}; if another thread changes it "
        "meanwhile, pass on a copy",
        value_type=type(value),
    )


def type_name(value: Any) -> str:
    """The full name of a value's type; without its module if that is ``builtins``."""
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def slots_of(kind: type) -> tuple[str, ...]:
    """The names of a class's slots, as they are stored: a private one has its class's name."""
    return tuple(
        name
        for base in kind.__mro__
        for name, part in vars(base).items()
        if isinstance(part, MemberDescriptorType) and name not in _COPIED_ALREADY
    )


_COPIED_ALREADY = ("__dict__", "__pydantic_fields_set__")


def is_frozen(value: Any) -> bool:
    """Whether no attribute of a model or a dataclass can be set."""
    kind = type(value)
    if issubclass(kind, BaseModel):
        return bool(kind.model_config.get("frozen")) and not value.__pydantic_private__
    parameters = getattr(kind, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen
