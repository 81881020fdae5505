"""Digests of values and of functions, which are the same in every process."""

from __future__ import annotations

import functools
import hashlib
import inspect
import ipaddress
import re
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from types import CodeType, FunctionType
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from taskiq_flow.values.arrays import library
from taskiq_flow.values.handle import ResultHandle
from taskiq_flow.values.inspection import slots_of

_BY_THEIR_TEXT = frozenset(
    {
        *(type(None), type(...), bool, int, float, complex, str, bytes),
        *(Decimal, UUID, datetime, date, time, timedelta, timezone),
        *(ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface),
        *(ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface),
    }
)
"""Types whose values are the same if they are written the same."""

_MADE_FROM: dict[type, Callable[[Any], Iterable[Any]]] = {
    range: lambda value: (value.start, value.stop, value.step),
    slice: lambda value: (value.start, value.stop, value.step),
    Fraction: lambda value: (value.numerator, value.denominator),
    re.Pattern: lambda value: (value.pattern, value.flags),
    deque: lambda value: (value.maxlen, *value),
}
"""What tells the values of a type apart."""

_UNKNOWN = "of which it cannot be told whether another one is the same"


def digest_of_parts(parts: Iterable[bytes]) -> str:
    """32 hexadecimal digits that differ for different parts (BLAKE2b; RFC 7693)."""
    return hashlib.blake2b(b"".join(map(_framed, parts)), digest_size=16).hexdigest()


def digest_of(value: Any) -> bytes:
    """Eight bytes that differ for different values. Empty if a value has no digest."""
    try:
        return hashlib.blake2b(_of(value), digest_size=8).digest()
    except Exception:  # of a type that is not known, nested too deeply, ...
        return b""


def _of(value: Any) -> bytes:
    """Bytes that differ for different values, and are the same in every process.

    Dicts and sets are compared without their order. What is passed on of a value counts: all fields
    of a model, extra and private ones included, and attributes that a subclass adds.
    """
    kind = type(value)
    parts: Iterable[bytes]
    if kind in _BY_THEIR_TEXT or isinstance(value, PurePath):
        parts = [_text(value).encode("utf-8", "surrogatepass")]
    elif kind in _MADE_FROM:
        parts = map(_of, _MADE_FROM[kind](value))
    elif isinstance(value, Enum):
        parts = map(_of, (value.name, value.value))
    elif isinstance(value, (list, tuple)):
        parts = map(_of, value)
    elif isinstance(value, (set, frozenset)):
        parts = sorted(map(_of, value))
    elif isinstance(value, dict):
        pairs = [_joined(b":", [_of(key), _of(part)]) for key, part in value.items()]
        parts = pairs if isinstance(value, OrderedDict) else sorted(pairs)
    elif isinstance(value, BaseModel):
        own = {name: getattr(value, name) for name in kind.model_fields}
        hidden = (value.__pydantic_extra__, value.__pydantic_private__)
        parts = [_of(own), *map(_of, hidden if any(hidden) else ())]
    elif (names := _fields_of(value)) is not None:
        parts = [_of({name: getattr(value, name) for name in names})]
    else:
        parts = _parts_of_other(value)
    added = _added_attributes(value)
    return _joined(f"{kind.__module__}.{kind.__qualname__}".encode(), [*parts, *added])


def _parts_of_other(value: Any) -> list[bytes]:
    if (found := _parts_of_buffer(value)) is not None:
        return found
    if inspect.isfunction(value) or inspect.isclass(value):
        return [of_function(value)]
    kind = type(value)
    raise TypeError(f"it is a {kind.__module__}.{kind.__qualname__}, {_UNKNOWN}")


def _text(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return hex(value)


def _parts_of_buffer(value: Any) -> list[bytes] | None:
    """What tells an array from another: its type, shape and bytes, in whichever layout.

    ``None`` for other values, and for arrays of NumPy's whose bytes may differ though they are
    equal: of objects, of fields with gaps between them, of numbers that do not fill their bytes.
    """
    if type(value) is bytearray:
        return [_of_buffer(value)]
    if type(value) is array:
        return [value.typecode.encode(), _of_buffer(value)]
    if type(value).__module__ != "numpy":
        return None
    numpy = library("numpy")
    if type(value) is not numpy.ndarray and not isinstance(value, numpy.generic):
        return None
    dtype = value.dtype
    if dtype.hasobject or dtype.kind == "T" or not _is_dense(dtype):
        return None
    whole = numpy.ascontiguousarray(value)
    flat = whole.reshape(-1).view(numpy.uint8) if whole.size else b""
    return [repr(dtype).encode(), repr(value.shape).encode(), _of_buffer(flat)]


def _is_dense(dtype: Any) -> bool:
    """Whether each byte of an element counts."""
    if dtype.subdtype is not None:
        return _is_dense(dtype.subdtype[0])
    if dtype.names is not None:
        fields = [dtype[name] for name in dtype.names]
        return sum(f.itemsize for f in fields) == dtype.itemsize and all(map(_is_dense, fields))
    return dtype.char not in "gG"  # long doubles have ten bytes of sixteen


def _of_buffer(value: Any) -> bytes:
    return hashlib.blake2b(value).digest()


def _added_attributes(value: Any) -> list[bytes]:
    """The attributes that an object of a subclass has beyond what its base class holds."""
    kind = type(value)
    if kind in _BY_THEIR_TEXT or kind in _MADE_FROM:
        return []
    if isinstance(value, (Enum, BaseModel, PurePath, FunctionType, type)):
        return []
    stored = {name: getattr(value, name) for name in slots_of(kind) if hasattr(value, name)}
    stored |= getattr(value, "__dict__", {})
    known = {*(_fields_of(value) or ()), "_attrs_cached_hash", "__orig_class__"}
    added = {name: part for name, part in stored.items() if name not in known}
    return [_of(added)] if added else []


def of_named(what: str, values: Mapping[Any, Any]) -> bytes:
    """Bytes that differ for different dicts. Raises ``TypeError``, which says of which value."""
    parts = []
    for name, value in values.items():
        try:
            parts.append(_joined(b":", [_of(name), _of(value)]))
        except TypeError as error:
            raise TypeError(f"{what} {name!r}: {error}") from None
    return _joined(b"named", sorted(parts))


def _fields_of(value: Any) -> list[str] | None:
    """The names of the fields of a dataclass's or an attrs class's object; ``None`` for others."""
    if isinstance(value, (type, ResultHandle)):  # a handle says where a value is, not what it is
        return None
    if is_dataclass(value):
        return [field.name for field in fields(value)]
    found = getattr(type(value), "__attrs_attrs__", None)
    return None if found is None else [field.name for field in found]


def of_function(function: Callable[..., Any]) -> bytes:
    """A function's own code, its defaults, and the variables that it has closed over.

    The code of functions that it calls does not count, nor do global variables.
    """
    if isinstance(function, functools.partial):
        made_with = [_of(list(function.args)), _of(function.keywords)]
        return _joined(b"partial", [of_function(function.func), *made_with])
    if inspect.ismethod(function):
        return _joined(b"method", [_of(function.__self__), of_function(function.__func__)])
    if not inspect.isfunction(function):
        if inspect.isbuiltin(function) and not inspect.ismodule(function.__self__):
            return _joined(b"bound", [_of(function.__self__), function.__name__.encode()])
        if inspect.isclass(function) and "<locals>" in function.__qualname__:
            raise TypeError(f"it is a class made within a function, {_UNKNOWN}")
        if inspect.isbuiltin(function) or inspect.isclass(function):
            return name_of_function(function).encode()
        return _joined(b"call", [_of(function), of_function(type(function).__call__)])
    code = function.__code__
    names, defaults = code.co_varnames[: code.co_argcount], function.__defaults__ or ()
    by_name = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    made_with = [
        of_named("the default of", by_name | (function.__kwdefaults__ or {})),
        of_named("variable", dict(zip(code.co_freevars, cells, strict=True))),
    ]
    return _joined(b"function", [_of_code(code), *made_with])


def _of_code(code: CodeType) -> bytes:
    constants = [_of_code(c) if isinstance(c, CodeType) else _of(c) for c in code.co_consts]
    names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    told = _of([*names, *counts, code.co_code, code.co_exceptiontable])
    return _joined(b"code", [told, *constants])


def name_of_function(function: Any) -> str:
    """The module and the name of a function, or of the class of another callable."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _joined(tag: bytes, parts: Iterable[bytes]) -> bytes:
    return _framed(tag) + _framed(b"".join(map(_framed, parts)))


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(8, "big") + part
