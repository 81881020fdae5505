"""Classes of a user's whose objects travel, and a table of values of all kinds."""

from __future__ import annotations

import enum
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Network, IPv6Address, ip_address
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, Generic, NamedTuple, Optional, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
from pydantic import BaseModel, ConfigDict, PrivateAttr

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Custom(enum.Flag):
    ONE = 1
    TWO = 2

    @classmethod
    def _missing_(cls, value: object) -> Any:
        raise SystemExit(value)


@dataclass
class Point:
    x: Any
    y: Any = None


@dataclass(frozen=True, slots=True)
class Frozen:
    when: datetime
    points: tuple[Point, ...] = ()


@dataclass
class Derived:
    name: str
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.name)


class Pair(NamedTuple):
    left: Any
    right: Any


Plain = namedtuple("Plain", "a b")  # noqa: PYI024 - that form is what is tested


class Model(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    when: Any
    _hidden: int = PrivateAttr(default=0)


class Box(BaseModel, Generic[T]):
    content: T


@attrs.frozen
class Attrs:
    x: Any
    _y: Any = 3


class CodedError(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


@dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class SlottedError(CodedError):
    __slots__ = ("__secret", "empty", "place")

    def __init__(self, place: Any) -> None:
        super().__init__(4, "slots")
        self.place = place
        self.__secret = 5

    @property
    def secret(self) -> int:
        return self.__secret


class LookupAttributeError(KeyError, AttributeError):
    """Its layout is that of its second base."""


class ValueOSError(ValueError, OSError):
    """Its layout is that of its second base, and its arguments those of the first."""


class GuardedError(Exception):
    calls: ClassVar[list[Any]] = []

    @property
    def state(self) -> int:
        return len(self.calls)

    @state.setter
    def state(self, value: Any) -> None:
        self.calls.append(value)


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    def __hash__(self) -> int:
        return hash(self.cents)


def hidden_model() -> Model:
    model = Model(when=date(2026, 1, 2), more=(1, 2))  # type: ignore[call-arg]
    model._hidden = 7
    return model


_SCOPED = IPv6Address("fe80::1%eth0")
SCOPED = _SCOPED if copy(_SCOPED) == _SCOPED else IPv6Address("fe80::1")
"""Before 3.11.4, Python loses the scope of an address that it copies or pickles."""

KINDS: dict[str, Any] = {
    "none": None,
    "bool": True,
    "int": 5,
    "huge int": -(10**5000),
    "huge int in a list": [2**70, 10**5000, (1,)],
    "float": 0.1,
    "nan": math.nan,
    "inf": [math.inf, -math.inf, 1.5],
    "negative zero": (-0.0, complex(-0.0, math.nan)),
    "complex": 1 + 2j,
    "text": "ä\0☃",
    "surrogate": ("\ud800x", {"\udfff": (1,)}),
    "bytes": b"\0\xff",
    "bytearray": bytearray(b"ab"),
    "list": [1, [2, {"a": None}]],
    "tuple": (1, (), [(2,)]),
    "named tuple": Pair((1,), Plain(1, {2})),
    "set": {1, "a", (2, 3), frozenset({b"x"})},
    "nan as keys": [{math.nan: 1, float("nan"): 2}, {math.nan, float("nan")}],
    "dict keys": {1: "a", (1, 2): "b", None: "c", "1": "d", 1.5: "e", Colour.RED: "f"},
    "tag in a dict": {"$tf": ["b", "AA=="], "v": 1},
    "envelope": {"$tf": 1, "v": {"$tf": ["e"]}},
    "range": range(1, 10, 3),
    "slice": slice(None, (1,), 2),
    "deque": deque([1, (2,)], maxlen=5),
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    "naive datetime": [datetime(2026, 1, 2, 3, 4, fold=1)],  # noqa: DTZ001
    "zone": datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    "date": date.max,
    "time": time(1, 2, 3, 4, tzinfo=timezone(timedelta(hours=-2, seconds=1), "here")),
    "timedelta": timedelta(days=-1, microseconds=1),
    "timezone": [timezone.utc, timezone(timedelta(0), "X"), timezone(timedelta(hours=1))],  # noqa: UP017
    "decimal": [Decimal("1.10"), Decimal("-0"), Decimal("sNaN12"), Decimal("-Infinity")],
    "fraction": Fraction(-(2**80), 3),
    "uuid": UUID(int=5),
    "path": (Path("/a/b"), PurePosixPath("a"), PureWindowsPath("c:/x")),
    "enum": [Colour.RED, Colour.PAIR],
    "int enum": Level.LOW,
    "flag": Access.READ | Access.WRITE,
    "dataclass": Point({1: 2}, Frozen(datetime(1, 1, 1, tzinfo=UTC), (Point(1),))),
    "dataclass with a derived field": Derived("abc"),
    "model": hidden_model(),
    "generic model": Box[int](content=3),
    "generic model of a model": Box[Model](content=hidden_model()),
    "generic model of a collection": Box[dict[str, list[Model]]](content={"a": [hidden_model()]}),
    "generic model of unions": [
        Box[int | None](content=None),
        Box[Optional[list[str]]](content=["a"]),  # noqa: UP045 - a class of its own for pydantic
        Box[tuple[date | Decimal, ...]](content=(date.max, Decimal(1))),
        Box[Any](content=Box[Box[int]](content=Box[int](content=1))),
    ],
    "attrs": Attrs((1,)),
    "ordered": OrderedDict([("b", 1), ("a", 2)]),
    "counter": Counter("aab"),
    "defaultdict": defaultdict(list, {"a": [1]}),
    "ip": [ip_address("1.2.3.4"), SCOPED, IPv4Network("10.0.0.0/8")],
    "pattern": [re.compile("(?i)a+"), re.compile(b"x", re.DOTALL)],
    "ellipsis": ...,
}
