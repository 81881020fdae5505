"""The tags of the standard library's types. ``docs/values_format.md`` describes each."""

from __future__ import annotations

import datetime as dt
import ipaddress
import math
import pathlib
import pickle
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from taskiq_flow.processes.child_main import pickled
from taskiq_flow.values.tree import Decode, Decoder, Encoder, Handler, RefusedError

MAX_EXPONENT = 1_000_000
"""Of a ``Decimal``: those of the default context have six digits."""

MAX_FRACTION_BITS = 100_000
MAX_PATTERN = 100_000
"""Characters."""

_FLAGS = re.ASCII | re.IGNORECASE | re.LOCALE | re.MULTILINE | re.DOTALL | re.UNICODE | re.VERBOSE
_FACTORIES: dict[str, Callable[[], Any] | None] = {
    kind.__name__: kind
    for kind in (int, float, complex, str, bytes, bool, list, dict, set, tuple, frozenset)
}
_PATHS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath),
    )
}
_ADDRESSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface),
        *(ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface),
    )
}


def _datetime(encoder: Encoder, value: dt.datetime) -> tuple[Any, ...]:
    return (
        value.replace(tzinfo=None, fold=0).isoformat(),
        value.fold,
        encode_zone(encoder, value.tzinfo),
    )


def _time(encoder: Encoder, value: dt.time) -> tuple[Any, ...]:
    return (
        value.replace(tzinfo=None, fold=0).isoformat(),
        value.fold,
        encode_zone(encoder, value.tzinfo),
    )


def encode_zone(encoder: Encoder, zone: dt.tzinfo | None) -> Any:
    """The tree of a time zone."""
    if zone is None or type(zone) in {dt.timezone, ZoneInfo}:
        return encoder.encode(zone)
    raise RefusedError(
        f"its time zone is a {type(zone).__module__}.{type(zone).__qualname__}; use a "
        "zoneinfo.ZoneInfo"
    )


def _read_datetime(decoder: Decoder, parts: list[Any]) -> dt.datetime:
    text, fold, zone = parts
    return dt.datetime.fromisoformat(text).replace(fold=fold, tzinfo=decoder.decode(zone))


def _read_time(decoder: Decoder, parts: list[Any]) -> dt.time:
    text, fold, zone = parts
    return dt.time.fromisoformat(text).replace(fold=fold, tzinfo=decoder.decode(zone))


def _timedelta(encoder: Encoder, value: dt.timedelta) -> tuple[Any, ...]:
    return value.days, value.seconds, value.microseconds


def _timezone(encoder: Encoder, value: dt.timezone) -> tuple[Any, ...]:
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]  # as pickle asks it
    return (*_timedelta(encoder, offset), name[0] if name else None)


def _read_timezone(decoder: Decoder, parts: list[Any]) -> dt.timezone:
    days, seconds, microseconds, name = parts
    offset = dt.timedelta(days, seconds, microseconds)
    return dt.timezone(offset) if name is None else dt.timezone(offset, name)


def _zone_info(encoder: Encoder, value: ZoneInfo) -> tuple[str]:
    if value.key is None:
        raise RefusedError("it has no key; use ZoneInfo(key)")
    return (value.key,)


def _decimal(encoder: Encoder, value: Decimal) -> tuple[str]:
    _check_exponent(value)
    return (str(value),)


def _check_exponent(value: Decimal) -> Decimal:
    if value.is_finite() and abs(value.adjusted()) > MAX_EXPONENT:
        raise RefusedError(f"its exponent is beyond {MAX_EXPONENT}")
    return value


def _fraction(encoder: Encoder, value: Fraction) -> list[Any]:
    _check_size(value.numerator, value.denominator)
    return encoder.items([value.numerator, value.denominator])


def _check_size(numerator: Any, denominator: Any) -> None:
    if type(numerator) is not int or type(denominator) is not int:
        raise RefusedError("a Fraction is not made of integers")
    if max(numerator.bit_length(), denominator.bit_length()) > MAX_FRACTION_BITS:
        raise RefusedError(f"it has more than {MAX_FRACTION_BITS} bits")


def _read_fraction(decoder: Decoder, parts: list[Any]) -> Fraction:
    numerator, denominator = decoder.items(parts)
    _check_size(numerator, denominator)
    return Fraction(numerator, denominator)


def _pattern(encoder: Encoder, value: re.Pattern[Any]) -> tuple[Any, ...]:
    if value.flags & ~_FLAGS or len(value.pattern) > MAX_PATTERN:
        raise RefusedError("its flags or its length are not carried")
    return encoder.encode(value.pattern), value.flags


def _read_pattern(decoder: Decoder, parts: list[Any]) -> re.Pattern[Any]:
    pattern, flags = decoder.decode(parts[0]), parts[1]
    if type(pattern) not in {str, bytes} or flags & ~_FLAGS or len(pattern) > MAX_PATTERN:
        raise RefusedError("a pattern is damaged")
    return re.compile(pattern, flags)


def _defaultdict(encoder: Encoder, value: defaultdict[Any, Any]) -> tuple[Any, ...]:
    factory = value.default_factory
    if factory is None:
        return None, encoder.pairs(value.items())
    name = getattr(factory, "__name__", "")
    if _FACTORIES.get(name) is not factory:
        raise RefusedError("its default_factory is no builtin type")
    return name, encoder.pairs(value.items())


def _read_defaultdict(decoder: Decoder, parts: list[Any]) -> defaultdict[Any, Any]:
    name, pairs = parts
    return defaultdict(None if name is None else _FACTORIES[name], decoder.pairs(pairs))


def _read_set(decoder: Decoder, parts: list[Any]) -> set[Any]:
    found = set(items := decoder.items(parts[0]))
    if len(found) != len(items):
        raise RefusedError("a set was written with the same element twice")
    return found


def _special_float(encoder: Encoder, value: float) -> tuple[str]:
    return ("nan" if math.isnan(value) else str(value),)


def _read_float(decoder: Decoder, parts: list[Any]) -> float:
    if parts[0] not in ("nan", "inf", "-inf"):
        raise RefusedError("a number is neither infinite nor no number")
    return float(parts[0])  # each NaN is an object of its own, as keys of a dictionary have to be


def _read_counter(decoder: Decoder, parts: list[Any]) -> Counter[Any]:
    return Counter(dict(decoder.pairs(parts[0])))


def encode_pickle(encoder: Encoder, value: Any) -> tuple[Any]:
    """By ``pickle``, for a codec that was told so. Raises ``RefusedError``."""
    try:
        return (encoder.binary(pickled(value)),)
    except Exception as error:  # whatever an object's own pickling raises
        raise RefusedError(f"pickle refuses it: {error}") from error


def decode_pickle(decoder: Decoder, parts: list[Any]) -> Any:
    """The inverse. Only a codec with ``pickle=True`` comes here."""
    return pickle.loads(decoder.binary(parts[0]))  # noqa: S301 - the user has asked for it


def _bytes_of(decoder: Decoder, parts: list[Any]) -> bytes:
    return bytes(decoder.binary(parts[0]))


ENCODE: dict[type, Handler] = {
    float: ("f", _special_float),
    complex: ("c", lambda encoder, value: encoder.items([value.real, value.imag])),
    bytes: ("b", lambda encoder, value: (encoder.binary(value),)),
    bytearray: ("ba", lambda encoder, value: (encoder.binary(bytes(value)),)),
    tuple: ("t", lambda encoder, value: (encoder.items(value),)),
    set: ("s", lambda encoder, value: (encoder.in_order(value),)),
    frozenset: ("fs", lambda encoder, value: (encoder.in_order(value),)),
    range: ("r", lambda encoder, value: encoder.items([value.start, value.stop, value.step])),
    slice: ("sl", lambda encoder, value: encoder.items([value.start, value.stop, value.step])),
    deque: ("dq", lambda encoder, value: (encoder.items(value), value.maxlen)),
    OrderedDict: ("od", lambda encoder, value: (encoder.pairs(value.items()),)),
    Counter: ("ct", lambda encoder, value: (encoder.pairs(value.items()),)),
    defaultdict: ("dd", _defaultdict),
    dt.datetime: ("dt", _datetime),
    dt.date: ("da", lambda _, value: (value.isoformat(),)),
    dt.time: ("tm", _time),
    dt.timedelta: ("td", _timedelta),
    dt.timezone: ("tz", _timezone),
    ZoneInfo: ("zi", _zone_info),
    Decimal: ("de", _decimal),
    Fraction: ("fr", _fraction),
    UUID: ("u", lambda _, value: (value.hex,)),
    re.Pattern: ("re", _pattern),
    type(...): ("e", lambda _, __: ()),
    **{
        kind: ("p", lambda encoder, value: (type(value).__name__, encoder.encode(str(value))))
        for kind in _PATHS.values()
    },
    **{
        kind: ("ip", lambda _, value: (type(value).__name__, str(value)))
        for kind in _ADDRESSES.values()
    },
}

DECODE: dict[str, Decode] = {
    "d": lambda decoder, parts: dict(decoder.pairs(parts[0])),
    "i": lambda _, parts: int(parts[0], 16),
    "su": lambda decoder, parts: str(decoder.binary(parts[0]), "utf-8", "surrogatepass"),
    "f": _read_float,
    "c": lambda decoder, parts: complex(*decoder.items(parts)),
    "b": _bytes_of,
    "ba": lambda decoder, parts: bytearray(decoder.binary(parts[0])),
    "t": lambda decoder, parts: tuple(decoder.items(parts[0])),
    "s": _read_set,
    "fs": lambda decoder, parts: frozenset(_read_set(decoder, parts)),
    "r": lambda decoder, parts: range(*decoder.items(parts)),
    "sl": lambda decoder, parts: slice(*decoder.items(parts)),
    "dq": lambda decoder, parts: deque(decoder.items(parts[0]), parts[1]),
    "od": lambda decoder, parts: OrderedDict(decoder.pairs(parts[0])),
    "ct": _read_counter,
    "dd": _read_defaultdict,
    "dt": _read_datetime,
    "da": lambda _, parts: dt.date.fromisoformat(parts[0]),
    "tm": _read_time,
    "td": lambda _, parts: dt.timedelta(*parts),
    "tz": _read_timezone,
    "zi": lambda _, parts: ZoneInfo(parts[0]),
    "de": lambda _, parts: _check_exponent(Decimal(parts[0])),
    "fr": _read_fraction,
    "u": lambda _, parts: UUID(hex=parts[0]),
    "re": _read_pattern,
    "e": lambda _, __: ...,
    "p": lambda decoder, parts: _PATHS[parts[0]](decoder.decode(parts[1])),
    "ip": lambda _, parts: _ADDRESSES[parts[0]](parts[1]),
}
