"""The tags of objects of the user's classes. No method of a class is called but its getters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from enum import Enum, Flag
from typing import Any

from pydantic import BaseModel

from taskiq_flow.values.classes import imported, kind_of
from taskiq_flow.values.tree import Decode, Decoder, Encoder, Handler, RefusedError

_ARGUMENTS: dict[str, type] = {
    kind.__name__: kind for kind in (int, float, complex, str, bytes, bool, list, dict, set, tuple)
}
"""What a generic model may have as an argument, besides classes that are carried."""

_BUILTINS = (list, dict, set, frozenset, tuple, str, bytes, bytearray, int, float, complex)


def find_object(cls: type) -> Handler | None:
    """The tag for objects of a class and its function, if the class is carried by its name."""
    return _ENCODE.get(kind_of(cls) or "")


def _reference(cls: type) -> Any:
    """How a class is named: ``"module:qualname"``, or a list for a generic model's arguments."""
    generic = getattr(cls, "__pydantic_generic_metadata__", None)
    if generic and generic["origin"] is not None:
        return [_reference(generic["origin"]), *map(_argument, generic["args"])]
    if cls.__module__ == "__main__":
        raise RefusedError(
            "its class is defined in __main__; move it to a module that both processes import",
            kind=cls,
        )
    if "<locals>" in cls.__qualname__:
        raise RefusedError("its class is local to a function; move it to a module", kind=cls)
    if imported(cls.__module__, cls.__qualname__) is not cls:
        raise RefusedError(
            f"its class is not {cls.__module__}.{cls.__qualname__}, as its name says", kind=cls
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def _argument(argument: Any) -> Any:
    name = getattr(argument, "__name__", "")
    if argument is None or argument is type(None):
        return "None"
    if _ARGUMENTS.get(name) is argument:
        return name
    if isinstance(argument, type) and kind_of(argument):
        return [kind_of(argument), _reference(argument)]
    raise RefusedError(
        f"its class is generic over {argument!r}; name the class: class Name(Generic[...])",
        kind=type(argument),
    )


def _class_of(decoder: Decoder, reference: Any, kind: str) -> type:
    if isinstance(reference, list):
        origin = _class_of(decoder, reference[0], "model")
        generic: Any = tuple(_read_argument(decoder, part) for part in reference[1:])
        found: type = origin[generic]  # type: ignore[index]  # makes or finds the model
        return found
    module, _, qualname = reference.partition(":")
    return decoder.classes.find(module, qualname, kind)


def _read_argument(decoder: Decoder, part: Any) -> Any:
    if isinstance(part, list):
        return _class_of(decoder, part[1], part[0])
    return type(None) if part == "None" else _ARGUMENTS[part]


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
    reference = _reference(cls)
    if isinstance(value, _BUILTINS):
        raise RefusedError("its class extends a builtin type; register it with the codec", kind=cls)
    names = _names(cls)
    _check_attributes(cls, _all_attributes(value), names)
    missing = [name for name in names if not hasattr(value, name)]
    if missing:
        raise RefusedError(f"its fields {missing} are not set", kind=cls)
    return reference, encoder.fields((name, getattr(value, name)) for name in names)


def _all_attributes(value: Any) -> list[str]:
    slots = [
        name
        for base in type(value).__mro__
        for name in _slots(base)
        if not name.startswith("__") and hasattr(value, name)
    ]
    return [*getattr(value, "__dict__", ()), *slots]


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _check_attributes(cls: type, attributes: Iterable[str], names: Iterable[str]) -> None:
    """Refuse an object with more attributes than its fields: they would be lost."""
    others = set(attributes) - set(names) - {"__orig_class__", "_attrs_cached_hash"}
    others = {
        name for name in others if not isinstance(_inherited(cls, name), functools.cached_property)
    }
    if others:
        raise RefusedError(
            f"its attributes {sorted(others)} are no fields; declare them, or register the class "
            "with the codec",
            kind=cls,
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
    reference = _reference(cls)
    _check_attributes(cls, getattr(value, "__dict__", ()), ())
    return reference, encoder.fields(zip(cls._fields, tuple(value), strict=True))


def _read_named_tuple(decoder: Decoder, parts: list[Any]) -> Any:
    cls: Any = _class_of(decoder, parts[0], "named tuple")
    fields = decoder.fields(parts[1])
    _check_names(cls, cls._fields, fields)
    return tuple.__new__(cls, [fields[name] for name in cls._fields])


def _model(encoder: Encoder, value: BaseModel) -> tuple[Any, ...]:
    cls = type(value)
    reference = _reference(cls)
    names = list(cls.model_fields)
    _check_attributes(cls, vars(value), names)
    missing = [name for name in names if name not in vars(value)]
    if missing:
        raise RefusedError(f"its fields {missing} are not set", kind=cls)
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
    object.__setattr__(value, "__pydantic_extra__", more)
    object.__setattr__(value, "__pydantic_private__", hidden)
    return value


def _enum(encoder: Encoder, value: Enum) -> tuple[Any, ...]:
    cls = type(value)
    content = value.value
    if isinstance(value, Flag):
        return _reference(cls), None, encoder.encode(content)
    known = type(content) in {int, str, bool, float, type(None)}
    return _reference(cls), value.name, encoder.encode(content) if known else None


def _read_enum(decoder: Decoder, parts: list[Any]) -> Any:
    cls: Any = _class_of(decoder, parts[0], "enum")
    name, content = parts[1], decoder.decode(parts[2])
    if name is None:
        if not issubclass(cls, Flag) or type(content) is not int:
            raise RefusedError(f"a member of {cls.__qualname__} has no name")
        return cls(content)
    _check_member(cls, name)
    member = cls.__members__[name]
    if content is not None and repr(member.value) != repr(content):
        raise RefusedError(
            f"{cls.__qualname__}.{name} is {member.value!r}, and was {content!r} where it was "
            "written; use the same version of the class everywhere"
        )
    return member


def _check_member(cls: Any, name: str) -> None:
    if name not in cls.__members__:
        raise RefusedError(
            f"class {cls.__module__}.{cls.__qualname__} has the members {list(cls.__members__)}, "
            f"and the value was written as {name!r}"
        )


def _exception(encoder: Encoder, value: BaseException) -> tuple[Any, ...]:
    cls = type(value)
    reference = _reference(cls)
    arguments: Any = value.args
    if isinstance(value, OSError) and value.filename is not None:
        arguments = (value.errno, value.strerror, value.filename, None, value.filename2)
    attributes = {
        name: content
        for name, content in (*_builtin_state(value), *vars(value).items())
        if content is not None
    }
    return (
        reference,
        encoder.items(arguments),
        encoder.fields(attributes.items()),
        encoder.encode(value.__cause__),
        value.__suppress_context__,
    )


def _builtin_state(value: BaseException) -> list[tuple[str, Any]]:
    """What exceptions of the interpreter have besides their arguments and attributes."""
    names: tuple[str, ...] = ()
    if isinstance(value, ImportError):
        names = ("name", "path")
    elif isinstance(value, NameError):
        names = ("name",)
    elif isinstance(value, AttributeError):
        names = ("name",)  # and ``obj``, which may be anything
    return [(name, getattr(value, name)) for name in names]


def _read_exception(decoder: Decoder, parts: list[Any]) -> BaseException:
    reference, trees, attributes, cause, is_suppressed = parts
    cls: Any = _class_of(decoder, reference, "exception")
    arguments = decoder.items(trees)
    base = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    error: BaseException = base.__new__(cls, *arguments)
    if type(error) is not cls:
        raise RefusedError(f"an exception {cls.__qualname__} has other arguments")
    base.__init__(error, *arguments)
    for name, content in decoder.fields(attributes).items():
        if name.startswith("__") and name != "__notes__":
            raise RefusedError(f"an exception has no attribute {name!r} of its own")
        if callable(_inherited(cls, name)):
            raise RefusedError(f"an exception's method {name!r} is not replaced")
        BaseException.__setattr__(error, name, content)
    origin = decoder.decode(cause)
    if origin is not None:
        error.__cause__ = origin
    error.__suppress_context__ = bool(is_suppressed)
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
