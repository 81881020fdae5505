"""Copies of plain data: containers of Python's own types, dataclasses, attrs classes and models.

Only what can be changed is copied. An object of any other type is its own copy.
"""

from __future__ import annotations

import copy
import sys
from array import array
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import is_dataclass
from functools import partial
from gc import get_referents
from io import BytesIO, StringIO
from itertools import chain
from operator import is_
from types import MappingProxyType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import BaseModel

from taskiq_flow.values.copying_tables import (
    array_copy,
    pandas_array_copy,
    pandas_index_copy,
    pandas_table_copy,
    polars_column_copy,
    polars_table_copy,
    record_copy,
)
from taskiq_flow.values.handle import ResultHandle
from taskiq_flow.values.inspection import (
    NEVER_CHANGE,
    ONCE_ONLY,
    is_frozen,
    never_change,
    refuse_once_only,
    slots_of,
    types_of,
)


class Copies(dict[int, Any]):
    """Copies a value for one taker: the copies made so far, by the ids of their originals."""

    __slots__ = ()

    detaches = False
    """Whether the value's owner goes on to change it, so that the memory of arrays is copied."""

    def of(self, value: Any) -> Any:
        """The copy of a value, or of a part of one.

        Raises ``SerializationError`` for one that can be read once only.
        """
        kind = type(value)
        if kind in NEVER_CHANGE:
            return value
        copy_of = COPY.get(kind) or copy_other(kind)
        if copy_of is _itself:
            return value
        known = self.get(id(value))
        return copy_of(value, self) if known is None else known


class DetachedCopies(Copies):
    """Copies a value that its owner goes on to change."""

    __slots__ = ()

    detaches = True


Copy = Callable[[Any, Copies], Any]
"""Copies values of one type."""


def _are_fixed(values: Collection[Any]) -> bool:
    """Whether no copy is made of any of these: members of sets, keys, or tuples of such."""
    if never_change(values):
        return True
    kinds = {
        kind
        for kind in set(map(type, values)) - NEVER_CHANGE
        if (COPY.get(kind) or copy_other(kind)) is not _itself
    }
    if kinds != {tuple}:
        return not kinds
    return never_change(chain.from_iterable(part for part in values if type(part) is tuple))


def _itself(value: Any, _: Copies) -> Any:
    return value


def _list(value: list[Any], copies: Copies) -> list[Any]:
    made: list[Any]
    if (flat := flat_copy(value)) is not None:
        copies[id(value)] = made = flat[0]
        return made
    copies[id(value)] = made = value.copy()
    made[:] = [copies.of(part) for part in value]
    return made


def _tuple(value: tuple[Any, ...], copies: Copies) -> tuple[Any, ...]:
    if never_change(value):
        return value
    made = tuple(copies.of(part) for part in value)
    return value if _are_same(made, value) else made


def _own_tuple(value: Any, copies: Copies) -> Any:
    """A tuple of the user's class, with its attributes. Its class is not called."""
    attributes = getattr(value, "__dict__", {})
    parts = tuple(tuple.__iter__(value))
    own_parts = _tuple(parts, copies)
    if own_parts is parts and not attributes:
        return value
    made: Any = tuple.__new__(type(value), own_parts)
    if attributes:
        made.__dict__.update(_dict(attributes, copies))
    return made


def _partial(value: partial[Any], copies: Copies) -> Any:
    made: Any = partial.__new__(type(value), value.func)
    copies[id(value)] = made
    parts = (value.func, value.args, value.keywords, vars(value))
    made.__setstate__(_tuple(parts, copies))
    return made


def _proxy(value: MappingProxyType[Any, Any], copies: Copies) -> MappingProxyType[Any, Any]:
    """A view of a mapping: itself, unless the mapping holds anything that can be changed."""
    (mapping,) = get_referents(value)
    made = copies.of(mapping)
    return value if _are_same(made.values(), mapping.values()) else MappingProxyType(made)


def _dict(value: Any, copies: Copies) -> Any:
    copies[id(value)] = made = value.copy()
    if not _are_fixed(value):
        made.clear()
        for key, part in value.items():
            made[copies.of(key)] = copies.of(part)
    elif not never_change(value.values()):
        for key, part in value.items():
            made[key] = copies.of(part)
    return made


def _set(value: set[Any], copies: Copies) -> set[Any]:
    copies[id(value)] = made = value.copy()
    if not _are_fixed(value):
        made.clear()
        made.update(copies.of(part) for part in value)
    return made


def _frozenset(value: frozenset[Any], copies: Copies) -> frozenset[Any]:
    if _are_fixed(value):
        return value
    made = [copies.of(part) for part in value]
    return value if _are_same(made, value) else frozenset(made)


def _dict_view(value: Any, copies: Copies, method: str) -> Any:
    """The keys, values or items of a dictionary: those of a copy, as it may change any time."""
    (mapping,) = get_referents(value)
    return getattr(copies.of(mapping), method)()


def _memoryview(value: memoryview, copies: Copies) -> memoryview:
    if copies.detaches and type(value.obj) is not bytes and value.nbytes:
        with suppress(ValueError):  # of a format that Python makes no views of, say of fields
            form: Any = value.format
            return memoryview(value.tobytes()).cast(form, value.shape or ())
    return value.toreadonly()  # a view of its own, as one can be released


def _deque(value: deque[Any], copies: Copies) -> deque[Any]:
    copies[id(value)] = made = value.copy()
    for place, part in enumerate(value):
        made[place] = copies.of(part)
    return made


def _shallow(value: Any, _: Copies) -> Any:
    return copy.copy(value)


def _object(value: Any, copies: Copies, slots: tuple[str, ...]) -> Any:
    """An object of a class of plain data, or a container of the user's, with its attributes.

    Its class is not called. Items and attributes are read where they are stored, as its own code
    may make new ones each time. What cannot be copied is no plain data.
    """
    try:
        made = copy.copy(value)
    except Exception:  # whatever its own code raises
        return value
    if made is value or type(made) is not type(value):
        return value
    copies[id(value)] = made
    has_changed = False
    for name, part in getattr(value, "__dict__", {}).items():
        if (own := copies.of(part)) is not part:
            made.__dict__[name] = own
            has_changed = True
    for name in slots:
        part = getattr(value, name, None)
        if (own := copies.of(part)) is not part:
            object.__setattr__(made, name, own)
            has_changed = True
    _copy_items(value, made, copies)
    if not has_changed and is_frozen(value):
        copies[id(value)] = value
        return value
    return made


def _copy_items(value: Any, made: Any, copies: Copies) -> None:
    if isinstance(value, dict):
        for key, part in dict.items(value):
            dict.__setitem__(made, key, copies.of(part))
    elif isinstance(value, list):
        parts = [copies.of(part) for part in list.__iter__(value)]
        list.__setitem__(made, slice(None), parts)
    elif isinstance(value, set):
        members = [copies.of(part) for part in set.__iter__(value)]
        set.clear(made)
        set.update(made, members)
    elif isinstance(value, deque):
        for place, part in enumerate(deque.__iter__(value)):
            deque.__setitem__(made, place, copies.of(part))


_DICT_VIEWS = ("keys", "values", "items")

COPY: dict[type, Copy] = {
    list: _list,
    tuple: _tuple,
    dict: _dict,
    OrderedDict: _dict,
    defaultdict: _dict,
    Counter: _dict,
    deque: _deque,
    set: _set,
    frozenset: _frozenset,
    memoryview: _memoryview,
    **{type(getattr({}, name)()): partial(_dict_view, method=name) for name in _DICT_VIEWS},
    bytearray: _shallow,
    array: _shallow,
    BytesIO: _shallow,
    StringIO: _shallow,
    MappingProxyType: _proxy,
    ResultHandle: _itself,
}
"""How values of common types are copied, those of libraries once one has come."""

_others: WeakKeyDictionary[type, Copy] = WeakKeyDictionary()
"""How values of other types are copied, found when the first one comes."""


def copy_other(kind: type) -> Copy:
    """How values of any other type are copied."""
    copy_of = _others.get(kind)
    if copy_of is None:
        copy_of = _others[kind] = _copy_of(kind)
    return copy_of


def _copy_of(kind: type) -> Copy:
    if issubclass(kind, ONCE_ONLY):
        return lambda value, _: refuse_once_only(value)
    if issubclass(kind, tuple) and not hasattr(kind, "n_sequence_fields"):  # as of struct_time
        return _own_tuple
    if issubclass(kind, partial):
        return _partial
    if is_dataclass(kind) or hasattr(kind, "__attrs_attrs__") or issubclass(kind, _PLAIN_DATA):
        return partial(_object, slots=slots_of(kind))
    for library, names, copy_of in _OF_LIBRARIES:
        # Another thread may be importing it: then it has no such class yet.
        module = sys.modules.get(library)
        classes = [getattr(module, name) for name in names if hasattr(module, name)]
        if kind in classes:  # it stays as long as the library: found sooner there
            COPY[kind] = copy_of
        if issubclass(kind, tuple(classes)):
            return copy_of
    return _itself


_PLAIN_DATA = (
    *(list, dict, set, deque, bytearray, BaseModel),
    *(SimpleNamespace, UserDict, UserList, ChainMap),
)


_OF_LIBRARIES: list[tuple[str, tuple[str, ...], Copy]] = [
    ("numpy", ("ndarray",), array_copy),
    ("numpy", ("void",), record_copy),
    ("pandas", ("DataFrame", "Series"), pandas_table_copy),
    ("pandas.api.extensions", ("ExtensionArray",), pandas_array_copy),
    ("pandas", ("Index",), pandas_index_copy),
    ("polars", ("DataFrame",), polars_table_copy),
    ("polars", ("Series",), polars_column_copy),
]


def _are_same(own: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(map(is_, own, others))


def flat_copy(value: Any) -> tuple[Any, Callable[[Any], Any]] | None:
    """A copy of a flat value, and what makes another one; ``None`` if the value is not flat."""
    kind = type(value)
    if kind is dict:
        is_flat = never_change(value.values()) and _are_fixed(value)
        return (value.copy(), dict.copy) if is_flat else None
    if kind is not list and kind is not tuple:
        return None
    kinds = types_of(value)
    if NEVER_CHANGE.issuperset(kinds):
        return (value, tuple) if kind is tuple else (value.copy(), list.copy)
    if kind is tuple or kinds != {dict}:
        return None
    rows = _flat_rows(value)
    return None if rows is None else (rows, _rows)


_PIECE = 1024
"""Rows that are looked at together."""


def _flat_rows(rows: list[dict[Any, Any]]) -> list[dict[Any, Any]] | None:
    """A copy of dictionaries; ``None`` if anything in them can be changed."""
    if not _are_flat(_rows(rows[:1])):
        return None  # as most often, at once
    made = _rows(rows)
    pieces = (made[start : start + _PIECE] for start in range(0, len(made), _PIECE))
    return made if all(map(_are_flat, pieces)) else None


def _are_flat(rows: list[dict[Any, Any]]) -> bool:
    # In Python 3.13 this would miss the values of ``vars(some)`` itself, but not of its copy.
    return never_change(get_referents(*rows))


def _rows(value: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    return list(map(dict.copy, value))
