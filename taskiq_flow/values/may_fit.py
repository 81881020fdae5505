"""Compares two annotations: whether some value of one fits the other.

They do not fit only if no value of the first fits the second, and pydantic's lax mode converts none
of them. What these rules do not know is let pass. An empty collection does not count as a value:
``list[str]`` does not fit ``list[date | None]`` because of ``[]``.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import deque
from collections.abc import (
    Callable,
    Collection,
    Container,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Reversible,
    Sequence,
    Sized,
)
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from inspect import Parameter
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, RootModel

from taskiq_flow.values.annotations import is_typed_dict, is_unpacked, members, named_type

_NUMBERS = (bool, int, float, Decimal, Fraction)

# What pydantic's lax mode converts into a class, besides that class.
_CONVERTED: dict[type, tuple[type, ...]] = {
    type(None): (),
    bool: (*_NUMBERS, str, bytes),
    int: (*_NUMBERS, str, bytes),
    float: (*_NUMBERS, str, bytes),
    complex: (*_NUMBERS, str),
    str: (bytes, bytearray),
    bytes: (str, bytearray),
    Decimal: (*_NUMBERS, str),
    Fraction: (*_NUMBERS, str),
    date: (*_NUMBERS, str, bytes),
    datetime: (*_NUMBERS, str, bytes, date),
    time: (*_NUMBERS, str, bytes),
    timedelta: (*_NUMBERS, str, bytes),
    UUID: (str, bytes),
}

_TEXT_IN_JSON = (date, time, timedelta, UUID, PurePath, Decimal)
"""Without ``FlowMiddleware`` these arrive as text, which pydantic parses."""

_NO_SUBCLASS = (type(None), bool, *_CONVERTED, bytearray, range)

_COLLECTIONS = (list, tuple, set, frozenset, deque, AbstractSet, MutableSet, MutableSequence)
"""pydantic converts any iterable into these, except for text and mappings."""

_ABSTRACT = (
    Sequence,
    Collection,
    Container,
    Iterable,
    Iterator,
    Reversible,
    Sized,
    Mapping,
    MutableMapping,
    *_COLLECTIONS[5:],
)
_TEXT = (str, bytes, bytearray)
_DEEPEST = 20


def may_fit(produced: Any, wanted: Any) -> bool:
    """Whether some value of one annotation fits another, or pydantic converts it.

    Also true whenever that cannot be told.
    """
    try:
        return _may_fit(produced, wanted, 0)
    except Exception:  # classes of the user's may raise anything when they are asked
        return True


def _may_fit(  # noqa: PLR0911 - one case for each form of an annotation
    produced: Any, wanted: Any, depth: int
) -> bool:
    produced, wanted = _plain(produced), _plain(wanted, is_wanted=True)
    if depth > _DEEPEST or produced is Any or wanted is Any or wanted in (object, Parameter.empty):
        return True
    if (parts := members(produced)) is not None:
        return any(_may_fit(part, wanted, depth + 1) for part in parts)
    if (parts := members(wanted)) is not None:
        return any(_may_fit(produced, part, depth + 1) for part in parts)
    if get_origin(wanted) is Literal:
        return _may_be_literal(produced, get_args(wanted))
    if get_origin(produced) is Literal:
        return any(_may_fit(type(value), wanted, depth + 1) for value in get_args(produced))
    start, end = get_origin(produced) or produced, get_origin(wanted) or wanted
    if not (isinstance(start, type) and isinstance(end, type)):
        return True
    return _class_may_fit(start, end) and _items_may_fit(produced, wanted, start, end, depth)


def _plain(annotation: Any, *, is_wanted: bool = False) -> Any:
    """An annotation without what says nothing about its values; ``Any`` if it is not known."""
    for _ in range(_DEEPEST):
        annotation = named_type(annotation)
        if get_origin(annotation) is Annotated:
            annotation, *extras = get_args(annotation)
            if is_wanted and any(hasattr(e, "__get_pydantic_core_schema__") for e in extras):
                return Any
        elif isinstance(annotation, TypeVar):
            if annotation.__constraints__:
                return Union[annotation.__constraints__]  # noqa: UP007 - of any number
            annotation = Any if annotation.__bound__ is None else annotation.__bound__
        elif is_typed_dict(annotation):
            return dict[str, Any]
        else:
            known = isinstance(annotation, type) or get_origin(annotation) is not None
            return annotation if known else Any
    return Any


def _may_be_literal(produced: Any, values: tuple[Any, ...]) -> bool:
    if any(isinstance(value, Enum) for value in values):
        return True
    if get_origin(produced) is Literal:
        return any(value in values or isinstance(value, Enum) for value in get_args(produced))
    start = get_origin(produced) or produced
    return not isinstance(start, type) or any(_class_may_fit(start, type(v)) for v in values)


def _class_may_fit(  # noqa: C901, PLR0911 - one case for each kind of class
    start: type, end: type
) -> bool:
    """Whether an instance of one class may be one of another, or be converted into it."""
    if _may_be(start, end) or issubclass(start, Enum) or issubclass(end, Enum):
        return True
    if _customised(end):
        return True
    if issubclass(start, _TEXT_IN_JSON) and _class_may_fit(str, end):
        return True
    if _has_fields(end):
        return _is_mapping(start) or (_has_fields(start) and _has_the_fields_of(start, end))
    if issubclass(end, Mapping) or end in (Mapping, MutableMapping):
        # Without FlowMiddleware a model arrives as a dictionary.
        return _is_mapping(start) or _has_fields(start)
    if hasattr(end, "_fields") and issubclass(end, tuple) and _is_mapping(start):
        return True
    if end in _COLLECTIONS or (issubclass(end, tuple) and end is not tuple):
        is_other = issubclass(start, (*_TEXT, Mapping)) or _is_closed(start)
        return start in _ABSTRACT or (not is_other and hasattr(start, "__iter__"))
    if end is Sequence:
        return not issubclass(start, Mapping) and hasattr(start, "__iter__")
    if end in _CONVERTED:
        if end in (bool, int, float, complex) and any(
            name in dir(start) for name in ("__int__", "__index__", "__float__", "__complex__")
        ):
            return start is not complex
        return any(_may_be(start, source) for source in _CONVERTED[end])
    if issubclass(end, PurePath):
        return _may_be(start, str) or hasattr(start, "__fspath__")
    return not _is_judged(end)


def _may_be(start: type, end: type) -> bool:
    """Whether an instance of ``start`` may be an instance of ``end``."""
    if getattr(end, "_is_protocol", False) or getattr(start, "_is_protocol", False):
        known = end in _ABSTRACT or end in _NO_SUBCLASS
        if not (known and (start in _ABSTRACT or start in _NO_SUBCLASS)):
            return True
    if start is object or issubclass(start, end) or issubclass(end, start):
        return True
    if start in (int, float) and end in (float, complex):
        return True
    if start in _ABSTRACT and end in _ABSTRACT:
        return True  # a class of both, as list is a Sequence and Reversible
    if _is_abstract(end) or _is_abstract(start):
        other = start if _is_abstract(end) else end
        return not (other in _NO_SUBCLASS or other in (*_COLLECTIONS, dict))
    return any(issubclass(sub, end) for sub in _subclasses(start))


def _is_mapping(kind: type) -> bool:
    """Whether an instance may be a mapping: that of an abstract class, or of a known subclass."""
    if issubclass(kind, Mapping) or kind is object:
        return True
    if getattr(kind, "_is_protocol", False) or _is_abstract(kind):
        return not _has_fields(kind) and _may_be(kind, Mapping)
    return any(issubclass(sub, Mapping) for sub in _subclasses(kind))


def _subclasses(kind: type) -> Iterator[type]:
    """The subclasses of a class that have been defined so far."""
    subclasses: list[type] = type.__subclasses__(kind)
    for sub in subclasses:
        yield sub
        yield from _subclasses(sub)


def _is_abstract(kind: type) -> bool:
    return kind in _ABSTRACT or inspect.isabstract(kind)


def _is_closed(kind: type) -> bool:
    return kind in _NO_SUBCLASS and kind is not range


def _is_judged(kind: type) -> bool:
    """Whether nothing but its own instances becomes an instance of a class."""
    if kind in _ABSTRACT or kind.__module__ == "builtins":
        return True
    is_users = kind.__module__.partition(".")[0] not in ("typing", "collections", "numbers", "os")
    return is_users and type(kind) is type


def _customised(kind: type) -> bool:
    """Whether a class says by itself what pydantic makes an instance from."""
    if issubclass(kind, BaseModel):
        own = kind.__get_pydantic_core_schema__.__func__  # type: ignore[attr-defined]
        if own is not BaseModel.__get_pydantic_core_schema__.__func__:  # type: ignore[attr-defined]
            return True
        if issubclass(kind, RootModel) or kind.model_config.get("from_attributes"):
            return True
    elif hasattr(kind, "__get_pydantic_core_schema__") or hasattr(kind, "__get_validators__"):
        return True
    decorators = getattr(kind, "__pydantic_decorators__", None)
    return bool(decorators and (decorators.model_validators or decorators.root_validators))


def _has_fields(kind: type) -> bool:
    """Whether pydantic makes an instance from a dictionary of fields."""
    is_model = issubclass(kind, BaseModel) and kind is not BaseModel
    return is_model or dataclasses.is_dataclass(kind)


def _has_the_fields_of(start: type, end: type) -> bool:
    """Whether a dictionary of one class's fields has those that another requires."""
    given, wanted = _fields(start), _fields(end)
    return (
        given is None or wanted is None or {n for n, needed in wanted.items() if needed} <= {*given}
    )


def _fields(kind: type) -> dict[str, bool] | None:
    """The fields of a class, and whether each is required; ``None`` if that cannot be told."""
    if issubclass(kind, BaseModel):
        fields = kind.model_fields
        open_ = kind.model_config.get("extra") == "allow" or kind.model_computed_fields
        if open_ or any(
            f.alias or f.validation_alias or f.serialization_alias for f in fields.values()
        ):
            return None
        return {name: field.is_required() for name, field in fields.items()}
    if dataclasses.is_dataclass(kind):
        empty = dataclasses.MISSING
        return {
            f.name: f.init and f.default is empty and f.default_factory is empty
            for f in dataclasses.fields(kind)
        }
    return None


def _items_may_fit(  # noqa: PLR0911 - one case for each kind of collection
    produced: Any, wanted: Any, start: type, end: type, depth: int
) -> bool:
    """Whether the items of one collection may be those of another."""
    takes = get_args(wanted)
    if not takes or not _is_collection(end):
        return True
    if end is start and issubclass(end, Callable):  # type: ignore[arg-type]
        return True
    if issubclass(end, Mapping):
        gives = get_args(produced) if issubclass(start, Mapping) else ()
        if len(gives) != 2 or len(takes) != 2:  # noqa: PLR2004 - keys and values
            return True
        keys = _may_fit(gives[0], takes[0], depth + 1) or _may_fit(str, takes[0], depth + 1)
        return keys and _may_fit(gives[1], takes[1], depth + 1)
    is_fixed = end is tuple and takes[-1] is not Ellipsis
    gives = get_args(produced)
    if is_fixed and start is tuple and gives and gives[-1] is not Ellipsis:
        if any(map(is_unpacked, (*gives, *takes))):
            return True
        pairs = zip(gives, takes, strict=False)
        return len(gives) == len(takes) and all(_may_fit(*pair, depth + 1) for pair in pairs)
    wanted_items = takes if is_fixed else takes[:1]
    if any(map(is_unpacked, wanted_items)):
        return True
    return all(
        _may_fit(item, part, depth + 1) for item in _items(start, gives) for part in wanted_items
    )


def _is_collection(kind: type) -> bool:
    return kind in (*_COLLECTIONS, *_ABSTRACT) or kind.__module__ in ("builtins", "collections")


def _items(kind: type, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types of all that iterating over a collection gives; none if they cannot be told."""
    if kind is str:
        return (str,)
    if issubclass(kind, BaseModel) and kind.__iter__ is BaseModel.__iter__:
        return (tuple[str, Any],)
    if not _is_collection(kind) or any(map(is_unpacked, arguments)):
        return ()
    if kind is tuple and Ellipsis not in arguments:
        return arguments
    return arguments[:1]
