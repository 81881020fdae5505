"""Reads annotations, for the comparison with values and with other annotations."""

from __future__ import annotations

import types
import typing
from collections.abc import Awaitable
from typing import Any, get_args, get_origin

_QUALIFIERS = (typing.ClassVar, typing.Final, typing.Required, typing.NotRequired)

_DEEPEST = 20
"""How many names for each other are followed: a name may stand for itself."""


def named_type(annotation: Any) -> Any:
    """The type that an annotation stands for: that of a ``NewType``, an alias or a qualifier."""
    for _ in range(_DEEPEST):
        if annotation is None:
            return type(None)
        if isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):  # ``type X = ...``, from Python 3.12 on
            annotation = annotation.__value__
        elif get_origin(annotation) in _QUALIFIERS:
            annotation = get_args(annotation)[0]
        else:
            return annotation
    return Any


def members(annotation: Any) -> tuple[Any, ...] | None:
    """The members of a union; ``None`` for anything else."""
    is_union = get_origin(annotation) in (typing.Union, types.UnionType)
    return get_args(annotation) if is_union else None


def is_typed_dict(annotation: Any) -> bool:
    """Whether an annotation is a typed dictionary, also one of ``typing_extensions``."""
    is_class = isinstance(annotation, type) and dict in annotation.__mro__
    return is_class and hasattr(annotation, "__required_keys__")


def is_unpacked(part: Any) -> bool:
    """Whether an argument of a tuple stands for several, as ``*tuple[str, ...]`` does."""
    return get_origin(part) is typing.Unpack or getattr(part, "__unpacked__", False)


def awaited(returns: Any) -> Any:
    """The annotation of a result, of which a function may return the awaitable."""
    origin, arguments = get_origin(returns) or returns, get_args(returns)
    if isinstance(origin, type) and issubclass(origin, Awaitable):
        return arguments[-1] if arguments else Any
    return returns
