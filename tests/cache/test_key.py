"""What is the same call, and what is not."""

from __future__ import annotations

import copy
import functools
import os
import re
import subprocess
import sys
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import attrs
import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr
from taskiq import InMemoryBroker, TaskiqDepends

from taskiq_flow.cache.key import cache_key
from taskiq_flow.values.digest import digest_of
from taskiq_flow.values.handle import Reference, ResultHandle
from taskiq_flow.values.size import is_large

T = TypeVar("T")


@dataclass
class Data:
    x: int


@dataclass
class OtherData:
    x: int


class Model(BaseModel):
    x: int


class Colour(Enum):
    RED = 1


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    x: int
    _private: int = PrivateAttr(0)

    def with_private(self, value: int) -> Open:
        self._private = value
        return self


class Price(Enum):
    """An enum whose values differ from those of ``OLD_PRICE``, as after an edit."""

    LOW = 1


OLD_PRICE: Any = Enum("Price", {"LOW": 2}, module=__name__, qualname="Price")  # type: ignore[misc]


class Access(Flag):
    READ = 1


class Added(Data):
    """Has an attribute that is no field."""

    def __init__(self, x: int, y: int) -> None:
        super().__init__(x)
        self.y = y


class Slotted(list[int]):
    __slots__ = ("label",)

    def of(self, label: str) -> Slotted:
        self.label = label
        return self


@dataclass
class Box(Generic[T]):
    content: T


@attrs.frozen(cache_hash=True)
class Attrs:
    x: Any


class Labelled(list[int]):
    label = ""

    def of(self, label: str) -> Labelled:
        self.label = label
        return self


VALUES: list[Any] = [
    *(
        Open(x=1),
        Open.model_validate({"x": 1, "y": 1}),
        Open.model_validate({"x": 1, "y": 2}),
        Open(x=1).with_private(1),
    ),
    *(Price.LOW, *OLD_PRICE, Access(0), Access.READ, Added(1, 1), Added(1, 2)),
    *(OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), Labelled([1]), Labelled([1]).of("a")),
    *(None, ..., True, False, 0, 1, -1, 1.0, 0.5, float("inf"), 1j, Decimal("1.0")),
    *("", "1", "a", "\ud800", b"", b"a", Path("a"), Colour.RED, datetime(2026, 1, 1, tzinfo=UTC)),
    *((), (1,), [], [1], [[1]], [1, 2], [2, 1], ["a", "b"], ["ab"], ["a", ["b"]]),
    *(set(), {1}, frozenset(), {}, {"a": 1}, {"a": "1"}, {1: "a"}, {"1": "a"}, {"a": {"b": 1}}),
    *(bytearray(b"a"), array("i", [1]), array("l", [1]), array("i", [2])),
    *({"a": 1, "b": 2}, Data(1), Data(2), OtherData(1), Model(x=1), Model(x=2)),
    *(defaultdict(list), defaultdict(int), defaultdict(int, a=1), Counter(), Counter("a")),
    *(deque(), deque([1]), deque([1], maxlen=1), deque([2], maxlen=1), Attrs(1), Attrs(2)),
    *(Slotted([1]), Slotted([1]).of("a"), Slotted([1]).of("b"), 10**5000, 10**5000 + 1),
    *(range(2), range(3), range(0, 3, 2), slice(2), slice(1, 2), Fraction(1, 3), Fraction(2, 3)),
    *(timezone(timedelta(0)), timezone(timedelta(0), "X"), timezone(timedelta(1 / 24))),
    *(re.compile("a"), re.compile("b"), re.compile("a", re.DOTALL), re.compile(b"a")),
    *(ip_address("1.2.3.4"), ip_address("::1"), ip_network("1.2.3.4")),
]


def task(*args: Any, **kwargs: Any) -> Any: ...


def key(value: Any) -> str:
    return cache_key(task, [value], {})


def hashed(value: Any) -> Any:
    """The value, which may keep its hash from then on."""
    hash(value)
    return value


def test_different_values_have_different_keys() -> None:
    keys = [key(value) for value in VALUES]
    assert len(set(keys)) == len(VALUES)
    digests = [digest_of(value) for value in VALUES]
    assert len(set(digests)) == len(VALUES)


def test_arrays_have_keys() -> None:
    numpy = pytest.importorskip("numpy")
    grid = numpy.arange(12, dtype="i4").reshape(3, 4)
    point = numpy.dtype([("x", "f8"), ("y", "i8")])
    arrays = [
        *(grid, grid.reshape(4, 3), grid.astype("i8"), grid.astype(">i4"), grid.T, grid[:, ::2]),
        *(numpy.zeros((0, 2)), numpy.zeros((2, 0)), numpy.array(1.0), numpy.float64(1.0)),
        *(numpy.float32(1.0), numpy.int64(1), numpy.str_("a"), numpy.array(["a", "bc"])),
        *(numpy.zeros(2, point), numpy.zeros(2, "M8[s]"), numpy.zeros(2, "M8[ms]")),
    ]
    assert len({key(one) for one in arrays}) == len(arrays)
    for one in arrays:
        assert key(one) == key(copy.deepcopy(one))
    assert key(numpy.asfortranarray(grid)) == key(grid)
    assert key(numpy.arange(24, dtype="i4").reshape(3, 8)[:, ::2]) == key(grid * 2)


def test_arrays_whose_equal_values_may_have_other_bytes_have_no_key() -> None:
    numpy = pytest.importorskip("numpy")
    gaps = numpy.dtype([("x", "i1"), ("y", "i8")], align=True)
    masked = numpy.ma.masked_array([1, 2], mask=[True, False])
    objects = numpy.array([{}], dtype=object)
    for odd in (objects, numpy.zeros(2, gaps), numpy.zeros(2, numpy.longdouble), masked):
        with pytest.raises(TypeError, match="it cannot be told whether another one is the same"):
            key(odd)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a", "b", "c"}, {"c", "b", "a"}),
        ([Data(1)], [Data(1)]),
        (float("nan"), float("nan")),
        (defaultdict(set, a={1, 2}, b=3), defaultdict(set, b=3, a={2, 1})),
        (deque([{1, 2}]), deque([{2, 1}])),
        (hashed(Attrs("a")), Attrs("a")),
        (Box[int](1), Box(1)),
    ],
)
def test_equal_values_have_one_key(one: Any, other: Any) -> None:
    assert key(one) == key(other)


def test_a_call_is_told_by_where_its_arguments_stand() -> None:
    calls: list[tuple[list[Any], dict[str, Any]]] = [
        ([1, 2], {}),
        ([2, 1], {}),
        ([1], {"b": 2}),
        ([], {"a": 1, "b": 2}),
        ([[1, 2]], {}),
    ]
    assert len({cache_key(task, args, kwargs) for args, kwargs in calls}) == len(calls)


def made(text: str, **names: Any) -> Callable[..., Any]:
    """A function ``f`` of this source, in a module of its own."""
    exec(text, names)  # noqa: S102 - the text stands below
    function: Callable[..., Any] = names["f"]
    return function


def test_a_task_with_other_code_is_another() -> None:
    sources = [
        "def f(x): return x + 1",
        "def f(x): return x + 2",
        "def f(x): return x - 1",
        "def f(x, y=1): return x + 1",
        "def f(x, y=2): return x + 1",
        "def f(x): return [y + 1 for y in x]",
        "def f(x): return [y + 2 for y in x]",
        "def f(x): return x in {'a', 'b'}",
        "def g(z):\n def f(x): return x + z\n return f\nf = g(1)",
        "def g(z):\n def f(x): return x + z\n return f\nf = g(2)",
        "def h(x): return x\nimport functools\nf = functools.partial(h, 1)",
        "def h(x): return x\nimport functools\nf = functools.partial(h, 2)",
        "def f(x): return len(x)",
        "def f(x): return sum(x)",
    ]
    keys = {cache_key(made(source, __name__="m"), [1], {}) for source in sources}
    assert len(keys) == len(sources)
    assert cache_key(made(sources[0], __name__="m"), [1], {}) in keys


def test_what_a_function_does_counts_as_well_as_what_it_is_made_of() -> None:
    def tasks() -> Iterable[Any]:
        yield from (", ".join, "; ".join, {"a": 1}.get, {"a": 2}.get, len, sum)
        for text in ("def f(x): return g(x)", "def f(*x): return g(x)", "def f(x, /): return g(x)"):
            yield made(text, __name__="m")

    keys = [cache_key(task, [1], {}) for task in tasks()]
    assert len(set(keys)) == len(keys)


def test_code_that_differs_in_what_it_catches_is_other_code() -> None:
    within = "def f(x):\n try:\n  y = g(x)\n  y = h(y)\n except E:\n  y = 0\n return y"
    behind = "def f(x):\n try:\n  y = g(x)\n except E:\n  y = 0\n else:\n  y = h(y)\n return y"
    one, other = made(within, __name__="m"), made(behind, __name__="m")
    assert cache_key(one, [1], {}) != cache_key(other, [1], {})


def in_a_signature(user: Annotated[str, TaskiqDepends(str)]) -> None: ...


def as_a_default(user: str = TaskiqDepends(str)) -> None: ...


@pytest.mark.parametrize("task", [in_a_signature, as_a_default])
def test_a_task_with_an_injected_parameter_has_no_key(task: Any) -> None:
    with pytest.raises(TypeError, match="'user' is injected"):
        cache_key(task, [], {})


def test_an_error_names_what_has_no_key() -> None:
    client = object()

    def closes_over_it(x: int, *, other: Any = 1) -> Any:
        return client

    def has_it_as_default(x: int, other: Any = client) -> Any: ...

    cases: list[tuple[Any, list[Any], str]] = [
        (closes_over_it, [1], "variable 'client'"),
        (has_it_as_default, [1], "the default of 'other'"),
        (task, [1, client], "argument 2"),
    ]
    for function, args, named in cases:
        with pytest.raises(TypeError, match=f"{named}: it is a builtins.object"):
            cache_key(function, args, {})


def test_large_values_are_told_from_small_ones() -> None:
    class Wide(BaseModel):
        xs: Any

    @dataclass
    class WideData:
        xs: Any

    for kind in (lambda xs: xs, lambda xs: Wide(xs=xs), WideData):
        assert is_large(kind(list(range(2_000))))
        assert not is_large(kind(list(range(20))))


def test_where_a_function_stands_in_its_file_does_not_matter() -> None:
    one = made("def f(x):\n    return x", __name__="m")
    other = made("\n\n\ndef f(x):\n    # a comment\n    return x", __name__="m")
    assert cache_key(one, [1], {}) == cache_key(other, [1], {})


def test_the_name_of_a_task_counts() -> None:
    broker = InMemoryBroker()
    one = broker.register_task(task, task_name="one")
    other = broker.register_task(task, task_name="other")
    assert cache_key(one, [1], {}) != cache_key(other, [1], {})


async def _nothing() -> None: ...


@pytest.mark.parametrize(
    "odd", [object(), iter(()), ResultHandle(Reference("t"), _nothing), [[object()]]]
)
def test_what_cannot_be_told_apart_is_no_key(odd: Any) -> None:
    with pytest.raises(TypeError, match="it cannot be told whether another one is the same"):
        key(odd)
    assert digest_of(odd) == b""


def test_a_task_that_holds_such_a_thing_is_none_either() -> None:
    with pytest.raises(TypeError):
        cache_key(functools.partial(task, object()), [], {})


SCRIPT = """
from taskiq_flow.cache.key import cache_key
def task(x):
    return x in {'a', 'b', 'c', 'd'}
print(cache_key(task, [{'a', 'b', 'c'}, {'x': 1, 'y': [2.5]}], {'z': frozenset('xyz')}))
"""


def test_a_key_is_the_same_in_every_process() -> None:
    found = {
        subprocess.run(  # noqa: S603 - this interpreter, with the script above
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
