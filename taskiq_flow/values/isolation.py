"""Values for tasks and readers in one process: each taker gets an object of its own.

Only plain data is copied: containers of Python's own types, dataclasses, attrs classes and models,
nested. NumPy arrays become views that cannot be written to, as in Ray; tables become lazy copies.
Immutable values and objects of any other type are handed on as they are.
"""

from __future__ import annotations

import copy
import sys
from array import array
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import partial
from gc import get_referents
from io import BytesIO, StringIO
from itertools import chain, groupby, islice
from operator import is_
from types import MappingProxyType, MemberDescriptorType, SimpleNamespace
from typing import Any, Literal, TypeAlias
from uuid import UUID
from weakref import WeakKeyDictionary

from pydantic import BaseModel

from taskiq_flow.errors import SerializationError
from taskiq_flow.values.handle import ResultHandle

Sharing = Literal["isolated", "shared", "encoded"]
"""``"isolated"``: each taker of a value has its own. ``"shared"``: all have the same object.
``"encoded"``: each taker is given what the codec makes of it, as if it were elsewhere."""

NEVER_CHANGE = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, type(...), range),
        *(datetime, date, time, timedelta, timezone, Decimal, Fraction, UUID),
    }
)
"""Types of values that nobody can change, so that everybody may have them."""

ONCE_ONLY = (Iterator, AsyncIterator, Coroutine)
"""Types of values that can be read once, so that a second taker would find nothing."""

Copy = Callable[[Any, dict[int, Any]], Any]
"""Copies a value. The dictionary has the copies of what encloses it, by the ids of originals."""

Take: TypeAlias = Callable[[Any], Any]
"""Makes of a value what one of its takers is given."""


def shared(value: Any) -> Any:
    """The value itself."""
    return value


def isolated(value: Any) -> Any:
    """What one taker of a value is given.

    Raises ``SerializationError`` for a value that can be read once only (an iterator, a coroutine),
    alone or within another one, and for one that is nested more deeply than Python's recursion.
    """
    return value if type(value) in NEVER_CHANGE else _own(value, {})


def detached(value: Any) -> Any:
    """What is taken of a value that its owner goes on to change: arrays are copied as well.

    Raises as ``isolated`` does.
    """
    return value if type(value) in NEVER_CHANGE else _own(value, _Detached())


def detaching(take: Take) -> Take:
    """``take``, for values that their owner goes on to change, as the items of a generator."""
    return detached if isinstance(take, Isolation) else take


class _Detached(dict[int, Any]):
    """The copies of a value whose owner goes on to change it."""


def _own(value: Any, copies: dict[int, Any]) -> Any:
    try:
        return _copied(value, copies)
    except RecursionError:
        raise SerializationError(
            f"a {type_name(value)} is nested too deeply to be copied; flatten it, or give the "
            "engine values='shared'",
            value_type=type(value),
        ) from None


class Isolation:
    """``isolated`` for the values of one run: a value with many takers is looked through once.

    It remembers how flat values are copied, of which no part can be changed: a tuple of numbers
    needs no copy, a list of numbers one of the list alone.
    """

    def __init__(self) -> None:
        self._flat: dict[int, tuple[Any, Take]] = {}  # by id; the value keeps its id from others

    def __call__(self, value: Any) -> Any:
        """What one taker of a value is given. Raises as ``isolated`` does."""
        kind = type(value)
        if kind in NEVER_CHANGE:
            return value
        if kind not in _MAY_BE_FLAT:
            return isolated(value)
        if self.is_flat(value):
            return self._flat[id(value)][1](value)
        flat = _flat_copy(value)
        if flat is None:
            return isolated(value)
        if len(self._flat) == _REMEMBERED:
            del self._flat[next(iter(self._flat))]  # the oldest
        made, copy_of = flat
        self._flat[id(value)] = value, copy_of
        return made

    def kept(self, value: Any) -> Any:
        """As a call, for the run itself, which changes nothing: its copy is known to be flat.

        The value is not, if it comes once more: its owner may have changed it.
        """
        made = self(value)
        if (known := self._flat.pop(id(value), None)) is not None:
            self._flat[id(made)] = made, known[1]
        return made

    def forget(self, value: Any) -> None:
        """A task has returned this value, and may have changed it since it was looked through."""
        if self._flat and type(value) is not tuple:
            self._flat.pop(id(value), None)

    def is_flat(self, value: Any) -> bool:
        """Whether this value was found to be flat."""
        known = self._flat.get(id(value))
        return known is not None and known[0] is value


_MAY_BE_FLAT = frozenset({list, tuple, dict})

_REMEMBERED = 32
"""How many values an ``Isolation`` remembers, and holds for so long."""


def _flat_copy(value: Any) -> tuple[Any, Take] | None:
    """A copy of a flat value, and what makes another one; ``None`` if the value is not flat."""
    kind = type(value)
    if kind is dict:
        is_flat = _never_change(value.values()) and _are_fixed(value)
        return (value.copy(), dict.copy) if is_flat else None
    if kind is not list and kind is not tuple:
        return None
    kinds = _types_of(value)
    if NEVER_CHANGE.issuperset(kinds):
        return (value, shared) if kind is tuple else (value.copy(), list.copy)
    if kind is tuple or kinds != {dict}:
        return None
    rows = _flat_rows(value)
    return None if rows is None else (rows, _rows)


_RUNS = 64
"""Runs of values of one type after which the values are taken to be of many."""


def _types_of(values: Sequence[Any]) -> set[type]:
    """The types of values. Long runs of one type take less time than single values in a set."""
    if len(values) < _RUNS:
        return set(map(type, values))
    rest = iter(values)
    found = {kind for kind, _ in islice(groupby(rest, type), _RUNS)}
    found.update(map(type, rest))
    return found


_PIECE = 256
"""Rows that are copied and looked at together, while they are in the processor's cache."""


def _flat_rows(rows: list[dict[Any, Any]]) -> list[dict[Any, Any]] | None:
    """A copy of dictionaries; ``None`` if anything in them can be changed."""
    made: list[dict[Any, Any]] = []
    for start in range(0, len(rows), _PIECE):
        own = list(map(dict.copy, rows[start : start + _PIECE]))
        # Of the copies: in Python 3.13 this would miss the values of ``vars(some)`` itself.
        if not _never_change(get_referents(*own)):
            return None
        made += own
    return made


def _rows(value: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    return list(map(dict.copy, value))


def refuse_once_only(value: Any) -> None:
    """Raise ``SerializationError`` for an iterator or a coroutine."""
    if isinstance(value, ONCE_ONLY) and type(value) not in _COPY:
        remedy = "make a list of it, as in 'return list(...)', or await it"
        if hasattr(value, "read"):
            remedy = "pass on its content, as in 'return file.read()', or its path"
        raise SerializationError(
            f"a {type_name(value)} can be read once only, and nobody after its first reader would "
            f"find anything in it; {remedy}",
            value_type=type(value),
        )


def type_name(value: Any) -> str:
    """The full name of a value's type; without its module if that is ``builtins``."""
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in NEVER_CHANGE:
        return value
    copy_of = _copies(kind)
    if copy_of is _itself:
        return value
    known = copies.get(id(value))
    return copy_of(value, copies) if known is None else known


def _copies(kind: type) -> Copy:
    """How values of a type are copied."""
    copy_of = _COPY.get(kind)
    if copy_of is None:
        copy_of = _others.get(kind)
        if copy_of is None:
            copy_of = _others[kind] = _copy_of(kind)
    return copy_of


def _never_change(values: Any) -> bool:
    """Whether all of these are of immutable types. Runs at the speed of C."""
    return NEVER_CHANGE.issuperset(map(type, values))


def _are_fixed(values: Collection[Any]) -> bool:
    """Whether no copy is made of any of these: members of sets, keys, or tuples of such."""
    if _never_change(values):
        return True
    kinds = {kind for kind in set(map(type, values)) - NEVER_CHANGE if _copies(kind) is not _itself}
    if kinds != {tuple}:
        return not kinds
    return _never_change(chain.from_iterable(part for part in values if type(part) is tuple))


def _itself(value: Any, _: dict[int, Any]) -> Any:
    return value


def _list(value: list[Any], copies: dict[int, Any]) -> list[Any]:
    made: list[Any]
    if (flat := _flat_copy(value)) is not None:
        copies[id(value)] = made = flat[0]
        return made
    copies[id(value)] = made = value.copy()
    made[:] = [_copied(part, copies) for part in value]
    return made


def _tuple(value: tuple[Any, ...], copies: dict[int, Any]) -> tuple[Any, ...]:
    if _never_change(value):
        return value
    made = tuple(_copied(part, copies) for part in value)
    return value if _are_same(made, value) else made


def _own_tuple(value: Any, copies: dict[int, Any]) -> Any:
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


def _partial(value: partial[Any], copies: dict[int, Any]) -> Any:
    made: Any = partial.__new__(type(value), value.func)
    copies[id(value)] = made
    parts = (value.func, value.args, value.keywords, vars(value))
    made.__setstate__(_tuple(parts, copies))
    return made


def _proxy(value: MappingProxyType[Any, Any], copies: dict[int, Any]) -> MappingProxyType[Any, Any]:
    """A view of a mapping: itself, unless the mapping holds anything that can be changed."""
    (mapping,) = get_referents(value)
    made = _copied(mapping, copies)
    return value if _are_same(made.values(), mapping.values()) else MappingProxyType(made)


def _dict(value: Any, copies: dict[int, Any]) -> Any:
    copies[id(value)] = made = value.copy()
    if not _are_fixed(value):
        made.clear()
        for key, part in value.items():
            made[_copied(key, copies)] = _copied(part, copies)
    elif not _never_change(value.values()):
        for key, part in value.items():
            made[key] = _copied(part, copies)
    return made


def _set(value: set[Any], copies: dict[int, Any]) -> set[Any]:
    copies[id(value)] = made = value.copy()
    if not _are_fixed(value):
        made.clear()
        made.update(_copied(part, copies) for part in value)
    return made


def _frozenset(value: frozenset[Any], copies: dict[int, Any]) -> frozenset[Any]:
    if _are_fixed(value):
        return value
    made = [_copied(part, copies) for part in value]
    return value if _are_same(made, value) else frozenset(made)


def _dict_view(value: Any, copies: dict[int, Any], method: str) -> Any:
    """The keys, values or items of a dictionary: those of a copy, as it may change any time."""
    (mapping,) = get_referents(value)
    return getattr(_copied(mapping, copies), method)()


def _memoryview(value: memoryview, copies: dict[int, Any]) -> memoryview:
    if isinstance(copies, _Detached) and type(value.obj) is not bytes and value.nbytes:
        with suppress(ValueError):  # of a format that Python makes no views of, say of fields
            form: Any = value.format
            return memoryview(value.tobytes()).cast(form, value.shape or ())
    return value.toreadonly()  # a view of its own, as one can be released


def _deque(value: deque[Any], copies: dict[int, Any]) -> deque[Any]:
    copies[id(value)] = made = value.copy()
    for place, part in enumerate(value):
        made[place] = _copied(part, copies)
    return made


def _shallow(value: Any, _: dict[int, Any]) -> Any:
    return copy.copy(value)


def _object(value: Any, copies: dict[int, Any], slots: tuple[str, ...]) -> Any:
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
        if (own := _copied(part, copies)) is not part:
            made.__dict__[name] = own
            has_changed = True
    for name in slots:
        part = getattr(value, name, None)
        if (own := _copied(part, copies)) is not part:
            object.__setattr__(made, name, own)
            has_changed = True
    _copy_items(value, made, copies)
    if not has_changed and _is_frozen(value):
        copies[id(value)] = value
        return value
    return made


def _copy_items(value: Any, made: Any, copies: dict[int, Any]) -> None:
    if isinstance(value, dict):
        for key, part in dict.items(value):
            dict.__setitem__(made, key, _copied(part, copies))
    elif isinstance(value, list):
        parts = [_copied(part, copies) for part in list.__iter__(value)]
        list.__setitem__(made, slice(None), parts)
    elif isinstance(value, set):
        members = [_copied(part, copies) for part in set.__iter__(value)]
        set.clear(made)
        set.update(made, members)
    elif isinstance(value, deque):
        for place, part in enumerate(deque.__iter__(value)):
            deque.__setitem__(made, place, _copied(part, copies))


def slots_of(kind: type) -> tuple[str, ...]:
    """The names of a class's slots, as they are stored: a private one has its class's name."""
    return tuple(
        name
        for base in kind.__mro__
        for name, part in vars(base).items()
        if isinstance(part, MemberDescriptorType) and name not in _COPIED_ALREADY
    )


_COPIED_ALREADY = ("__dict__", "__pydantic_fields_set__")


def _is_frozen(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, BaseModel):
        return bool(kind.model_config.get("frozen")) and not value.__pydantic_private__
    parameters = getattr(kind, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def _array(value: Any, copies: dict[int, Any]) -> Any:
    """A view of an array, or a copy if it holds objects that can be changed. Both are read-only.

    It is a view also where nobody can write: the shape of an array can be set in any case.
    """
    numpy = sys.modules["numpy"]
    if value.dtype.hasobject and not _never_change(numpy.asarray(value).ravel().tolist()):
        copies[id(value)] = made = _own_view(value.copy(order="C"))
        _copy_cells(numpy.asarray(made).reshape(-1), copies)
    elif hasattr(value, "unshare_mask"):  # a masked array: setting its mask writes to no item
        ma = numpy.ma
        if value is ma.masked:
            return value
        made = ma.array(
            _own_view(_kept(value, copies)),
            mask=ma.nomask if value.mask is ma.nomask else value.mask.copy(),
            fill_value=None if value.dtype.names is None else value.fill_value,
            copy=False,
            keep_mask=False,
            hard_mask=value.hardmask,
        )
    else:
        made = _own_view(_kept(value, copies))
    made.flags.writeable = False
    return made


def _kept(value: Any, copies: dict[int, Any]) -> Any:
    """An array whose memory stays as it is: a copy if its owner goes on to write there."""
    if isinstance(copies, _Detached):
        memory = value
        while isinstance(memory, sys.modules["numpy"].ndarray):
            if memory.flags.writeable:
                return value.copy(order="K")
            memory = memory.base
    return value


def _own_view(value: Any) -> Any:
    """A view of an array. Its fields have names of their own, as these can be set."""
    return value.view() if value.dtype.names is None else value.view(_own_dtype(value.dtype))


def _own_dtype(dtype: Any) -> Any:
    return dtype.newbyteorder("|")  # a copy, with all that a dtype has


def _record(value: Any, copies: dict[int, Any]) -> Any:
    """An element of an array with named fields, of which it is a view."""
    made = sys.modules["numpy"].array([value], _own_dtype(value.dtype))
    _copy_cells(made, copies)
    return made[0]


def _copy_cells(made: Any, copies: dict[int, Any]) -> None:
    """Put copies in the places of the Python objects in an array, also in its named fields."""
    if made.dtype.names is not None:
        for name in made.dtype.names:
            _copy_cells(made[name], copies)
    elif made.dtype.hasobject:
        for place in sys.modules["numpy"].ndindex(made.shape):
            made[place] = _copied(made[place], copies)


def _pandas_table(value: Any, copies: dict[int, Any]) -> Any:
    """A table or column: copied when it is written to, or now where pandas cannot do that."""
    pandas = sys.modules["pandas"]
    copies_on_write = int(pandas.__version__.partition(".")[0]) >= 3 or (  # noqa: PLR2004
        pandas.options.mode.copy_on_write is True
    )
    made = value.copy(deep=not copies_on_write)
    if isinstance(value, pandas.Series):
        _copy_column(value, made.iloc, slice(None), copies)
    else:
        for place, kind in enumerate(value.dtypes):
            if kind == "object":
                _copy_column(value.iloc[:, place], made.iloc, (slice(None), place), copies)
    return made


def _pandas_array(value: Any, copies: dict[int, Any]) -> Any:
    made = value.copy()
    _copy_column(value, made, slice(None), copies)
    return made


def _pandas_index(value: Any, _: dict[int, Any]) -> Any:
    return value.view()  # its names can be set, its labels cannot


def _copy_column(column: Any, made: Any, place: Any, copies: dict[int, Any]) -> None:
    """Write copies of a pandas column's cells to a place of ``made``, if any can be changed."""
    if column.dtype == "object" and not _never_change(cells := column.tolist()):
        own = sys.modules["numpy"].empty(len(cells), object)
        for row, cell in enumerate(cells):
            own[row] = _copied(cell, copies)
        made[place] = own


def _polars_table(value: Any, copies: dict[int, Any]) -> Any:
    """A table: shares what nobody writes to, which polars does with all but Python objects."""
    made = value.clone()
    for place, column in enumerate(value.get_columns()):
        made.replace_column(place, _polars_column(column, copies))
    return made


def _polars_column(value: Any, copies: dict[int, Any]) -> Any:
    polars = sys.modules["polars"]
    if value.dtype != polars.Object:
        return value.clone()
    cells = [_copied(cell, copies) for cell in value]
    return polars.Series(value.name, cells, dtype=polars.Object)


_DICT_VIEWS = ("keys", "values", "items")

_COPY: dict[type, Copy] = {
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

_others: WeakKeyDictionary[type, Copy] = WeakKeyDictionary()
"""How values of other types are copied, found when the first one comes."""


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
        if any(issubclass(kind, getattr(module, name, ())) for name in names):
            return copy_of
    return _itself


_PLAIN_DATA = (
    *(list, dict, set, deque, bytearray, BaseModel),
    *(SimpleNamespace, UserDict, UserList, ChainMap),
)


_OF_LIBRARIES: list[tuple[str, tuple[str, ...], Copy]] = [
    ("numpy", ("ndarray",), _array),
    ("numpy", ("void",), _record),
    ("pandas", ("DataFrame", "Series"), _pandas_table),
    ("pandas.api.extensions", ("ExtensionArray",), _pandas_array),
    ("pandas", ("Index",), _pandas_index),
    ("polars", ("DataFrame",), _polars_table),
    ("polars", ("Series",), _polars_column),
]


def _are_same(own: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(map(is_, own, others))
