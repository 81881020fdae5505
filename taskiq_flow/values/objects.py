"""The tags of objects of the user's classes.

Encoding calls a class's getters. Decoding calls no code of a class that is restored, except that
a generic model is parametrised as ``Model[int]`` is.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import operator
import types
import typing
from collections.abc import Iterable
from decimal import Decimal
from enum import Enum, Flag, FlagBoundary
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel, RootModel

from taskiq_flow.errors import SerializationError
from taskiq_flow.values.classes import MAIN, imported, kind_of
from taskiq_flow.values.tree import Decode, Decoder, Encoder, Handler, RefusedError

_ARGUMENTS: dict[str, Any] = {
    **{
        kind.__name__: kind
        for kind in (
            *(int, float, complex, str, bytes, bool, list, dict, set, frozenset, tuple),
            *(dt.datetime, dt.date, dt.time, dt.timedelta, Decimal, UUID, Path),
        )
    },
    "None": type(None),
    "Any": Any,
    "...": ...,
}
"""What a generic model may have as an argument, besides classes that are carried."""

_SCALARS = frozenset({int, str, bool, float, type(None)})
_BUILTINS = (list, dict, set, frozenset, tuple, str, bytes, bytearray, int, float, complex)


def find_object(cls: type) -> Handler | None:
    """The tag for objects of a class and its function, if the class is carried by its name."""
    return _ENCODE.get(kind_of(cls) or "")


def _reference(encoder: Encoder, cls: type) -> Any:
    """How a class is named: ``"module:qualname"``, or a list for a generic model's arguments."""
    generic = getattr(cls, "__pydantic_generic_metadata__", None)
    if generic and generic["origin"] is not None:
        return [
            _reference(encoder, generic["origin"]),
            *(_argument(encoder, part) for part in generic["args"]),
        ]
    module: str | None = cls.__module__
    if module == MAIN and not encoder.keeps_main and (module := encoder.script) is None:
        raise RefusedError(
            "its class is defined in __main__; move it to a module that both processes import"
        )
    if "<locals>" in cls.__qualname__:
        raise RefusedError("its class is local to a function; move it to a module")
    if imported(cls.__module__, cls.__qualname__) is not cls:
        raise RefusedError(
            f"its class is not found as {cls.__module__}.{cls.__qualname__}, its own name; move or "
            "rename it, or register it with the codec"
        )
    return f"{module}:{cls.__qualname__}"


def _argument(encoder: Encoder, argument: Any) -> Any:
    """The form of a generic model's argument: a name, or a list with a mark in front."""
    for name, known in _ARGUMENTS.items():
        if argument is known:
            return name
    if isinstance(argument, types.GenericAlias) and argument.__origin__ in _ARGUMENTS.values():
        return [
            "[]",
            *(_argument(encoder, part) for part in (argument.__origin__, *argument.__args__)),
        ]
    if isinstance(argument, types.UnionType):
        return ["|", *(_argument(encoder, part) for part in argument.__args__)]
    if typing.get_origin(argument) is typing.Union:
        return ["Union", *(_argument(encoder, part) for part in typing.get_args(argument))]
    if isinstance(argument, type) and kind_of(argument):
        return [kind_of(argument), _reference(encoder, argument)]
    raise RefusedError(
        f"its class is generic over {argument!r}; name the class: class Name(Generic[...])"
    )


def _class_of(decoder: Decoder, reference: Any, kind: str) -> type:
    if isinstance(reference, list):
        origin = _class_of(decoder, reference[0], "model")
        generic: Any = tuple(_read_argument(decoder, part) for part in reference[1:])
        found: type = origin[generic]  # type: ignore[index]  # makes or finds the model
        return found
    module, _, qualname = reference.partition(":")
    try:
        return decoder.classes.find(module, qualname, kind)
    except SerializationError as error:  # the data are whole
        raise RefusedError(str(error)) from error


def _read_argument(decoder: Decoder, part: Any) -> Any:
    if not isinstance(part, list):
        return _ARGUMENTS[part]
    mark, *rest = part
    if mark not in ("[]", "|", "Union"):
        return _class_of(decoder, rest[0], mark)
    first, *others = (_read_argument(decoder, each) for each in rest)
    if mark == "[]":
        return types.GenericAlias(first, tuple(others))
    if mark == "|":
        return functools.reduce(operator.or_, others, first)
    return typing.Union[(first, *others)]


def _check_names(cls: type, declared: Iterable[str], written: Iterable[str]) -> None:
    here, there = list(declared), list(written)
    if sorted(here) != sorted(there):
        raise RefusedError(
            f"class {cls.__module__}.{cls.__qualname__} has the fields {here}, and the value was "
            f"written with the fields {there}; use the same version of the class everywhere"
        )


def _names(cls: type) -> list[str]:
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return [field.name for field in cls.__attrs_attrs__]  # type: ignore[attr-defined]


def _record(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    cls = type(value)
    reference = _reference(encoder, cls)
    if isinstance(value, _BUILTINS):
        raise RefusedError("its class extends a builtin type; register it with the codec")
    names = _names(cls)
    _check_attributes(cls, [*getattr(value, "__dict__", ()), *_set_slots(value)], names)
    missing = [name for name in names if not hasattr(value, name)]
    if missing:
        raise RefusedError(f"its fields {missing} are not set")
    return reference, encoder.fields((name, getattr(value, name)) for name in names)


def _set_slots(value: Any) -> list[str]:
    """The slots of an object that are set. A private one has the name of its class in front."""
    return [
        name
        for base in type(value).__mro__
        if "__slots__" in vars(base)
        for name, content in vars(base).items()
        if isinstance(content, types.MemberDescriptorType) and hasattr(value, name)
    ]


def _check_attributes(cls: type, attributes: Iterable[str], names: Iterable[str]) -> None:
    """Refuse an object with more attributes than its fields: they would be lost."""
    others = set(attributes) - set(names) - {"__orig_class__", "_attrs_cached_hash"}
    others = {
        name for name in others if not isinstance(_inherited(cls, name), functools.cached_property)
    }
    if others:
        raise RefusedError(
            f"its attributes {sorted(others)} are no fields; declare them, or register the class "
            "with the codec"
        )


def _inherited(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _read_record(kind: str) -> Decode:
    def read(decoder: Decoder, parts: list[Any]) -> Any:
        cls = _class_of(decoder, parts[0], kind)
        fields = decoder.fields(parts[1])
        _check_names(cls, _names(cls), fields)
        return _made(cls, fields)

    return read


def _made(cls: type, attributes: dict[str, Any]) -> Any:
    value: Any = object.__new__(cls)
    for name, content in attributes.items():
        object.__setattr__(value, name, content)
    return value


def _named_tuple(encoder: Encoder, value: Any) -> tuple[Any, ...]:
    cls = type(value)
    reference = _reference(encoder, cls)
    _check_attributes(cls, getattr(value, "__dict__", ()), ())
    return reference, encoder.fields(zip(cls._fields, tuple(value), strict=True))


def _read_named_tuple(decoder: Decoder, parts: list[Any]) -> Any:
    cls: Any = _class_of(decoder, parts[0], "named tuple")
    fields = decoder.fields(parts[1])
    _check_names(cls, cls._fields, fields)
    return tuple.__new__(cls, [fields[name] for name in cls._fields])


def _model(encoder: Encoder, value: BaseModel) -> tuple[Any, ...]:
    cls = type(value)
    reference = _reference(encoder, cls)
    names = list(cls.model_fields)
    _check_attributes(cls, vars(value), names)
    missing = [name for name in names if name not in vars(value)]
    if missing:
        raise RefusedError(f"its fields {missing} are not set")
    private = value.__pydantic_private__
    return (
        reference,
        encoder.fields((name, vars(value)[name]) for name in names),
        sorted(value.__pydantic_fields_set__),
        None
        if value.__pydantic_extra__ is None
        else encoder.fields(value.__pydantic_extra__.items()),
        None if private is None else encoder.fields(private.items()),
    )


def _read_model(decoder: Decoder, parts: list[Any]) -> Any:
    reference, trees, were_set, extra, private = parts
    cls: Any = _class_of(decoder, reference, "model")
    fields = decoder.fields(trees)
    _check_names(cls, cls.model_fields, fields)
    more = None if extra is None else decoder.fields(extra)
    if more is not None and cls.model_config.get("extra") != "allow":
        raise RefusedError(f"class {cls.__qualname__} allows no extra fields: {list(more)}")
    hidden = None if private is None else decoder.fields(private)
    unknown = set(hidden or ()) - set(cls.__private_attributes__)
    if unknown:
        raise RefusedError(f"class {cls.__qualname__} has no private attributes {sorted(unknown)}")
    value = object.__new__(cls)
    object.__setattr__(value, "__dict__", fields)
    object.__setattr__(value, "__pydantic_fields_set__", set(map(str, were_set)))
    if not issubclass(cls, RootModel):  # its class has both: an instance would get them as fields
        object.__setattr__(value, "__pydantic_extra__", more)
        object.__setattr__(value, "__pydantic_private__", hidden)
    return value


def _enum(encoder: Encoder, value: Enum) -> tuple[Any, ...]:
    cls = type(value)
    if isinstance(value, Flag):
        return _reference(encoder, cls), None, value.value
    is_scalar = type(value.value) in _SCALARS
    return _reference(encoder, cls), value.name, encoder.encode(value.value) if is_scalar else None


def _read_enum(decoder: Decoder, parts: list[Any]) -> Any:
    reference, name, tree = parts
    cls: Any = _class_of(decoder, reference, "enum")
    content = decoder.decode(tree)
    if type(content) not in _SCALARS:
        raise RefusedError(f"a member of {cls.__qualname__} has no scalar as its value")
    if name is None:
        return _read_flag(cls, content)
    _check_member(cls, name)
    member = cls.__members__[name]
    if content is not None and repr(member.value) != repr(content):
        raise RefusedError(
            f"{cls.__qualname__}.{name} is {member.value!r}, and was {content!r} where it was "
            "written; use the same version of the class everywhere"
        )
    return member


def _read_flag(cls: Any, content: Any) -> Any:
    if not issubclass(cls, Flag) or type(content) is not int:
        raise RefusedError(f"a member of {cls.__qualname__} has no name")
    member = cls._value2member_map_.get(content)
    unknown = content < 0 or content & ~cls._flag_mask_
    if unknown and cls._boundary_ is not FlagBoundary.KEEP:
        raise RefusedError(f"{cls.__qualname__} has no flags for {content}")
    # Not ``cls(content)``: that calls the class's own ``_missing_`` and its metaclass.
    return Flag._missing_.__func__(cls, content) if member is None else member  # type: ignore[attr-defined]


def _check_member(cls: Any, name: str) -> None:
    if name not in cls.__members__:
        raise RefusedError(
            f"class {cls.__module__}.{cls.__qualname__} has the members {list(cls.__members__)}, "
            f"and the value was written as {name!r}"
        )


def _exception(encoder: Encoder, value: BaseException) -> tuple[Any, ...]:
    arguments: Any = value.args
    if isinstance(value, OSError) and value.filename is not None:
        arguments = (value.errno, value.strerror, value.filename, None, value.filename2)
    own = [*vars(value), *_set_slots(value)]
    names = [*own, *(name for name in _builtin_names(value) if getattr(value, name) is not None)]
    return (
        _reference(encoder, type(value)),
        encoder.items(arguments),
        encoder.attributes((name, getattr(value, name)) for name in names),
        encoder.encode(value.__cause__),
        value.__suppress_context__,
    )


def _builtin_names(value: BaseException) -> tuple[str, ...]:
    """What exceptions of the interpreter have besides their arguments and attributes."""
    if isinstance(value, ImportError):
        return "name", "path"
    if isinstance(value, (NameError, AttributeError)):
        return ("name",)  # and not ``obj`` of an AttributeError, which may be anything
    return ()


def _read_exception(decoder: Decoder, parts: list[Any]) -> BaseException:
    reference, trees, attributes, cause, is_suppressed = parts
    cls: Any = _class_of(decoder, reference, "exception")
    arguments = decoder.items(trees)
    builtin: Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    layout: Any = cls
    while layout.__module__ != "builtins":
        layout = layout.__base__  # of several builtin bases, the only one that can make objects
    error: BaseException = layout.__new__(cls, *arguments)
    if type(error) is not cls:
        raise RefusedError(f"an exception {cls.__qualname__} has other arguments")
    builtin.__init__(error, *arguments)
    for name, content in decoder.fields(attributes).items():
        if name.startswith("__") and name != "__notes__":
            raise RefusedError(f"an exception has no attribute {name!r} of its own")
        place = _inherited(cls, name)
        if callable(place):
            raise RefusedError(f"an exception's method {name!r} is not replaced")
        if isinstance(place, types.MemberDescriptorType):
            place.__set__(error, content)
        else:  # not by ``setattr``, which calls the setters of properties
            vars(error)[name] = content
    origin = decoder.decode(cause)
    # Not by ``setattr``: the class may allow no changes, as a frozen dataclass.
    if origin is not None:
        BaseException.__setattr__(error, "__cause__", origin)
    BaseException.__setattr__(error, "__suppress_context__", bool(is_suppressed))
    return error


_ENCODE: dict[str, Handler] = {
    "dataclass": ("o", _record),
    "attrs class": ("at", _record),
    "named tuple": ("nt", _named_tuple),
    "model": ("m", _model),
    "enum": ("en", _enum),
    "exception": ("x", _exception),
}

DECODE: dict[str, Decode] = {
    "o": _read_record("dataclass"),
    "at": _read_record("attrs class"),
    "nt": _read_named_tuple,
    "m": _read_model,
    "en": _read_enum,
    "x": _read_exception,
}
