"""Each taker of a value of plain data has its own; everything else is the object itself."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import io
import pathlib
import sys
import time
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import attrs
import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from taskiq_flow import SerializationError
from taskiq_flow.values.copying import COPY
from taskiq_flow.values.isolation import Isolation, detached, detaching, isolated, shared


class Model(BaseModel):
    model_config = ConfigDict(extra="allow")
    tags: list[str]


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)
    tags: tuple[str, ...]


@dataclasses.dataclass
class Data:
    tags: list[str]


@dataclasses.dataclass(slots=True)
class Slotted:
    tags: list[str]


@dataclasses.dataclass(frozen=True)
class Frozen:
    tags: Any


@attrs.define
class Attrs:
    tags: list[str]


class Named(NamedTuple):
    tags: list[str]


class OwnTuple(tuple[Any, ...]):
    __slots__ = ()

    def __new__(cls, *parts: Any) -> Self:
        return super().__new__(cls, parts)


class Noted(Named):
    note: list[str]


class OwnList(list[Any]):
    pass


class OwnDict(dict[str, Any]):
    pass


class OwnDeque(collections.deque[Any]):
    pass


class SlottedDict(dict[str, Any]):
    __slots__ = ("note",)
    note: list[str]


def noted() -> Noted:
    own = Noted(["a"])
    own.note = ["b"]
    return own


def with_slot() -> SlottedDict:
    own = SlottedDict()
    own.note = ["a"]
    return own


@dataclasses.dataclass(init=False)
class Private:
    __slots__ = ("__tags",)

    def __init__(self) -> None:
        self.__tags = ["a"]

    @property
    def tags(self) -> list[str]:
        return self.__tags

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Private) and self.tags == other.tags

    __hash__ = None  # type: ignore[assignment]


class WithPrivate(BaseModel):
    _tags: list[str] = PrivateAttr(default_factory=lambda: ["a"])


class Colour(enum.Enum):
    RED = 1


class Client:
    pass


def with_attribute() -> OwnList:
    own = OwnList([1])
    own.note = ["a"]  # type: ignore[attr-defined]
    return own


MUTABLE: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (lambda: [1, 2], lambda v: v),
    (lambda: [[1], 2], lambda v: v[0]),
    (lambda: [{"a": 1}, {"b": 2}], lambda v: v[0]),
    (lambda: [{"a": [1]}, {"b": 2}], lambda v: v[0]["a"]),
    (lambda: [{"a": bytearray(b"ab")}], lambda v: v[0]["a"]),
    (lambda: [vars(Data(["a"]))], lambda v: v[0]["tags"]),
    (lambda: types.MappingProxyType({"a": [1]}), lambda v: v["a"]),
    (lambda: {"a": {"b": [1]}}, lambda v: v["a"]["b"]),
    (lambda: ([1], 2), lambda v: v[0]),
    (lambda: {1, 2}, lambda v: v),
    (lambda: bytearray(b"ab"), lambda v: v),
    (lambda: collections.deque([[1]], maxlen=3), lambda v: v[0]),
    (lambda: collections.OrderedDict(a=[1]), lambda v: v["a"]),
    (lambda: collections.defaultdict(list, a=[1]), lambda v: v["a"]),
    (lambda: collections.Counter("aab"), lambda v: v),
    (lambda: Model(tags=["a"], extra=["b"]), lambda v: v.tags),  # type: ignore[call-arg]
    (lambda: Model(tags=["a"], extra=["b"]), lambda v: v.extra),  # type: ignore[call-arg]
    (lambda: Data(["a"]), lambda v: v.tags),
    (lambda: Slotted(["a"]), lambda v: v.tags),
    (lambda: Frozen(["a"]), lambda v: v.tags),
    (lambda: Attrs(["a"]), lambda v: v.tags),
    (lambda: Named(["a"]), lambda v: v.tags),
    (lambda: OwnTuple([1], 2), lambda v: v[0]),
    (noted, lambda v: v.tags),
    (noted, lambda v: v.note),
    (lambda: OwnList([[1]]), lambda v: v[0]),
    (with_attribute, lambda v: v.note),
    (lambda: OwnDict(a=[1]), lambda v: v["a"]),
    (lambda: OwnDeque([[1]]), lambda v: v[0]),
    (with_slot, lambda v: v.note),
    (Private, lambda v: v.tags),
    (WithPrivate, lambda v: v._tags),
    (lambda: types.SimpleNamespace(a=[1]), lambda v: v.a),
    (lambda: collections.UserDict(a=[1]), lambda v: v["a"]),
    (lambda: collections.UserList([[1]]), lambda v: v[0]),
    (lambda: collections.ChainMap({"a": [1]}), lambda v: v["a"]),
]


@pytest.mark.parametrize(("make", "part"), MUTABLE)
def test_what_one_taker_changes_is_not_seen_by_another(
    make: Callable[[], Any], part: Callable[[Any], Any]
) -> None:
    value = make()
    taken = isolated(value)
    assert type(taken) is type(value)
    assert taken == value
    assert part(taken) is not part(value)
    part(taken).clear()
    assert value == make()


client = Client()

SAME: list[Any] = [
    *(None, True, 1, 1.5, 1j, "text", b"bytes", ..., range(3), float("nan")),
    *((1, "a"), ((1,), frozenset({2})), frozenset({1}), Colour.RED, Named.__new__),
    *(dt.datetime(2026, 1, 1), dt.timedelta(1), decimal.Decimal(1), uuid.UUID(int=1)),  # noqa: DTZ001
    *(fractions.Fraction(1, 3), pathlib.Path("a"), Frozen(("a",)), FrozenModel(tags=("a",))),
    *(time.gmtime(0), OwnTuple(1, (2,)), OwnTuple(client), types.MappingProxyType({1: client})),
    *(client, (client, 1), Client, len, types.MappingProxyType({}), ValueError("x")),
]


@pytest.mark.parametrize("value", SAME)
def test_what_nobody_changes_and_what_is_no_plain_data_is_the_object_itself(value: Any) -> None:
    assert isolated(value) is value


def test_an_object_within_plain_data_is_the_object_itself() -> None:
    assert isolated([client, {"client": client}])[1]["client"] is client


def test_a_value_that_holds_itself_is_copied_with_its_shape() -> None:
    value: list[Any] = [1]
    value.append(value)
    taken = isolated(value)
    assert taken is not value
    assert taken[1] is taken


def test_a_container_that_cannot_be_copied_is_the_object_itself() -> None:
    class Single(dict[str, int]):
        def __copy__(self) -> Any:
            raise TypeError

    value = Single(a=1)
    assert isolated(value) is value


def test_an_object_whose_copy_raises_is_the_object_itself() -> None:
    @dataclasses.dataclass
    class Single:
        tags: list[str]

        def __copy__(self) -> Any:
            raise RuntimeError

    value = Single([])
    assert isolated(value) is value


def test_a_container_that_is_its_own_copy_keeps_its_items() -> None:
    class Single(dict[str, list[int]]):
        def __copy__(self) -> Any:
            return self

    items = [1]
    value = Single(a=items)
    assert isolated(value) is value
    assert value["a"] is items


def test_items_are_copied_as_they_are_stored_and_not_as_a_class_shows_them() -> None:
    class Shown(list[int]):
        def __iter__(self) -> Any:
            return iter([[item] for item in list.__iter__(self)])

    class ShownDict(dict[str, int]):
        def items(self) -> Any:
            return [(key, [value]) for key, value in dict.items(self)]

    assert list.__repr__(isolated(Shown([1, 2, 3]))) == "[1, 2, 3]"
    assert dict.__repr__(isolated(ShownDict(a=1, b=2))) == "{'a': 1, 'b': 2}"


def test_a_property_that_makes_a_new_value_each_time_is_not_asked() -> None:
    @dataclasses.dataclass
    class Fresh:
        _parts: list[int]

        @property
        def parts(self) -> list[int]:
            raise AssertionError

    value = Fresh([1])
    value.__dict__["parts"] = [2]
    taken = isolated(value)
    assert taken.__dict__ == {"_parts": [1], "parts": [2]}
    assert taken.__dict__["parts"] is not value.__dict__["parts"]


@pytest.mark.parametrize("make", [lambda: io.BytesIO(b"abc"), lambda: io.StringIO("abc")])
def test_each_taker_reads_a_buffer_in_memory_from_where_it_stood(make: Callable[[], Any]) -> None:
    value = make()
    value.read(1)
    first, second = isolated(value), isolated([value])[0]
    assert first.read() == second.read()
    assert len(value.read()) == 2


def test_the_refusal_of_an_open_file_says_what_to_pass_on() -> None:
    with (
        pathlib.Path(__file__).open() as file,
        pytest.raises(SerializationError, match=r"its content, .* or its path"),
    ):
        isolated({"file": file})


def test_a_library_that_another_thread_is_importing_does_not_stand_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "polars", types.ModuleType("polars"))
    value = type("Made", (), {})()
    assert isolated(value) is value


def test_what_is_bound_in_a_partial_is_its_takers_own() -> None:
    value: Any = functools.partial(dict, [("a", 1)], b=[2])
    taken = isolated(value)
    assert (taken.func, taken.args, taken.keywords) == (dict, value.args, {"b": [2]})
    taken.args[0].clear()
    taken.keywords["b"].clear()
    taken.keywords["c"] = 3
    assert value() == {"a": 1, "b": [2]}


def test_a_partial_that_is_bound_to_itself_is_copied_with_its_shape() -> None:
    value: Any = functools.partial(print, [])
    value.args[0].append(value)
    taken = isolated(value)
    assert taken.args[0] is not value.args[0]
    assert taken.args[0][0] is taken


CELL = ["a"]


def cells() -> Any:
    """Two cells, each of them a list."""
    made = pytest.importorskip("numpy").empty(2, object)
    made[0], made[1] = [*CELL], [*CELL]
    return made


def library(name: str) -> Any:
    return pytest.importorskip(name)


def fields(*kinds: Any) -> Any:
    return library("numpy").dtype([(f"f{place}", *kind) for place, kind in enumerate(kinds)])


def records() -> Any:
    made = library("numpy").zeros(1, fields((int,), (object,), (object, (1, 2))))
    made["f1"], made["f2"] = cells()[:1], cells()
    return made


def nested_records() -> Any:
    made = library("numpy").zeros((2, 1), fields((fields((object,)),), (int,)))
    made["f0"]["f0"][0, 0] = [*CELL]
    return made


def column_of_polars() -> Any:
    polars = library("polars")
    return polars.Series("o", [None, [*CELL]], dtype=polars.Object)


HOLDING_OBJECTS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (lambda: cells().reshape(2, 1), lambda v: v[1, 0]),
    (lambda: isolated(cells()), lambda v: v[0]),
    (records, lambda v: v["f1"][0]),
    (records, lambda v: v["f2"][0, 0, 1]),
    (nested_records, lambda v: v["f0"]["f0"][0, 0]),
    (lambda: records()[0], lambda v: v["f1"]),
    (lambda: library("numpy").rec.array(records())[0], lambda v: v.f1),
    (lambda: library("pandas").Series(cells(), dtype=object), lambda v: v.iloc[1]),
    (lambda: library("pandas").Series(cells()[:1], dtype=object), lambda v: v.iloc[0]),
    (lambda: library("pandas").DataFrame({"n": [1, 2], "o": cells()}), lambda v: v["o"].iloc[0]),
    (lambda: library("pandas").DataFrame({"o": cells()[:1]}), lambda v: v.iloc[0, 0]),
    (lambda: library("pandas").array(cells(), dtype=object), lambda v: v[1]),
    (column_of_polars, lambda v: v[1]),
    (lambda: library("polars").DataFrame({"o": column_of_polars()}), lambda v: v["o"][1]),
]


@pytest.mark.parametrize(("make", "cell"), HOLDING_OBJECTS)
def test_objects_in_arrays_and_columns_are_their_takers_own(
    make: Callable[[], Any], cell: Callable[[Any], Any]
) -> None:
    value = make()
    taken = isolated(value)
    assert type(taken) is type(value)
    assert getattr(taken, "dtype", None) == getattr(value, "dtype", None)
    assert cell(taken) == CELL
    cell(taken).clear()
    assert cell(value) == CELL


def test_a_column_of_objects_keeps_its_name_its_index_and_the_other_columns() -> None:
    pandas = library("pandas")
    value = pandas.DataFrame({"n": [1, 2], "o": cells(), "s": ["x", "y"]}, index=["k", "k"])
    value.attrs["unit"] = "m"
    taken = isolated(value)
    pandas.testing.assert_frame_equal(taken, value)
    pandas.testing.assert_series_equal(isolated(value["o"]), value["o"])
    assert taken.attrs == {"unit": "m"}
    taken.loc["k", "n"] = 0
    assert list(value["n"]) == [1, 2]


def test_an_array_of_objects_cannot_be_written_to() -> None:
    taken = isolated(cells())
    with pytest.raises(ValueError, match="read-only"):
        taken[0] = None


def test_an_array_of_objects_that_nobody_changes_is_not_copied() -> None:
    numpy = library("numpy")
    value = numpy.array(["a", "b"], object)
    taken = isolated(value)
    assert numpy.shares_memory(taken, value)
    assert not taken.flags.writeable


@pytest.mark.filterwarnings("ignore:Setting the shape")  # NumPy 2.5 advises against it
@pytest.mark.parametrize("is_writeable", [True, False])
def test_the_shape_of_an_array_is_its_takers_own(is_writeable: bool) -> None:
    value = library("numpy").arange(4)
    value.flags.writeable = is_writeable
    kept = isolated(value)
    isolated(kept).shape = (2, 2)
    assert kept.shape == value.shape == (4,)


def masked_records() -> Any:
    kinds = [("f0", int), ("f1", float)]
    return library("numpy").ma.array([(1, 2)], mask=[(False, True)], dtype=kinds, fill_value=(8, 9))


@pytest.mark.parametrize(
    "make",
    [
        lambda: library("numpy").zeros(2, fields((">i4",), (float, (2, 2)))),
        lambda: library("numpy").zeros(2, fields((">i4",), (float,)))[0],
        lambda: library("numpy").rec.array([(1, "a")], names="f0,f1"),
        records,
        masked_records,
    ],
)
def test_the_names_of_an_arrays_fields_are_its_takers_own(make: Callable[[], Any]) -> None:
    value = make()
    kept = isolated(value)
    assert (type(kept), kept.dtype, repr(kept)) == (type(value), value.dtype, repr(value))
    names = value.dtype.names
    isolated(kept).dtype.names = [name.upper() for name in names]
    assert kept.dtype.names == value.dtype.names == names


def test_an_array_that_holds_itself_is_copied_with_its_shape() -> None:
    value: Any = cells()
    value[1] = value
    taken = isolated(value)
    assert taken[1] is taken


def test_an_element_of_a_structured_array_is_its_takers_own() -> None:
    numpy = library("numpy")
    value = numpy.zeros(2, fields((int,), (float,)))
    isolated(value[1])["f0"] = 1
    assert value["f0"].tolist() == [0, 0]


def test_the_mask_of_an_array_is_its_takers_own() -> None:
    numpy = pytest.importorskip("numpy")
    value = numpy.ma.array([1, 2], mask=[False, True])
    taken = isolated(value)
    assert taken.mask.tolist() == [False, True]
    taken[0] = numpy.ma.masked
    assert value.mask.tolist() == [False, True]


def test_the_mask_of_an_array_is_the_own_one_of_a_taker_of_a_takers() -> None:
    numpy = pytest.importorskip("numpy")
    value = numpy.ma.array([1, 2], fill_value=7, hard_mask=True)
    value[0] = numpy.ma.masked
    kept = isolated(value)
    isolated(kept).mask[1] = True
    assert kept.mask.tolist() == value.mask.tolist() == [True, False]
    assert (kept.fill_value, kept.hardmask) == (7, True)
    assert numpy.shares_memory(kept.data, value.data)
    assert isolated(numpy.ma.masked) is numpy.ma.masked


def test_the_names_of_an_index_are_its_takers_own() -> None:
    pandas = pytest.importorskip("pandas")
    value = pandas.Index([1], name="a")
    isolated(value).name = "b"
    assert value.name == "a"


@dataclasses.dataclass(eq=False)
class Node:
    tags: list[str]
    around: Any = None


def test_members_of_sets_and_keys_are_their_takers_own() -> None:
    node = Node(["a"])
    members, frozen, weights, nested, nodes = isolated(
        [{node}, frozenset({node}), {node: 1}, {(node, 1): 2}, [node]]
    )
    (own,) = nodes
    assert own is not node
    assert members == frozen == weights.keys() == {own}
    assert nested == {(own, 1): 2}
    own.tags.append("b")
    assert node.tags == ["a"]


def test_a_set_of_the_users_and_a_flat_dictionary_have_members_and_keys_of_their_own() -> None:
    class Nodes(set[Node]):
        pass

    node = Node(["a"])
    (own,) = isolated(Nodes({node}))
    assert type(own) is Node
    assert own is not node
    (own,) = Isolation()({node: 1})
    assert own is not node


def test_a_member_that_refers_to_its_set_is_copied_with_it() -> None:
    node = Node(["a"])
    node.around = {node}
    taken = isolated(node.around)
    (own,) = taken
    assert own is not node
    assert own.around is taken


@pytest.mark.parametrize("keys", [[1, "a"], [(1, 2), "a"], [Colour.RED, Frozen(1), frozenset({1})]])
def test_keys_that_nobody_can_change_stay_the_objects_themselves(keys: list[Any]) -> None:
    taken = isolated({key: [1] for key in keys})
    assert all(map(lambda one, other: one is other, taken, keys))
    assert isolated(frozenset(keys)) == frozenset(keys)


@pytest.mark.parametrize("view", ["keys", "values", "items"])
def test_a_view_of_a_dictionary_is_that_of_a_copy(view: str) -> None:
    value = {"a": [1]}
    taken = isolated(getattr(value, view)())
    assert list(taken) == list(getattr(value, view)())
    assert type(taken) is type(getattr(value, view)())
    value["a"].append(2)
    value["b"] = []
    assert list(taken) == list(getattr({"a": [1]}, view)())


def test_the_memory_of_a_view_cannot_be_written_to() -> None:
    value = memoryview(bytearray(b"ab"))
    taken = isolated(value)
    assert taken == value
    with pytest.raises(TypeError, match="read-only"):
        taken[0] = 0


def test_a_view_of_memory_can_be_released_by_each_of_its_takers() -> None:
    value = memoryview(b"ab")
    with isolated(value) as taken:
        assert taken.tobytes() == b"ab"
    assert value.tobytes() == b"ab"


def test_an_array_of_pandas_is_its_takers_own() -> None:
    pandas = pytest.importorskip("pandas")
    value = pandas.Categorical(["a", "b"])
    isolated(value)[0] = "b"
    assert list(value) == ["a", "b"]


def test_a_value_nested_too_deeply_is_an_error_that_says_so() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(SerializationError, match="nested too deeply"):
        isolated(value)
    while value:
        value = value.pop()  # its own destructor would recurse


def items() -> Iterator[int]:
    yield 1


async def answer() -> int:
    return 1


async def stream() -> Any:
    yield 1


@pytest.mark.parametrize(
    "make",
    [
        *(items, stream, lambda: iter([1]), lambda: map(str, [1]), lambda: zip([1], [2])),  # noqa: B905
        *(lambda: reversed([1]), lambda: (x for x in [1]), lambda: enumerate([1])),
        lambda: filter(None, [1]),
    ],
)
def test_what_can_be_read_once_is_refused_wherever_it_stands(make: Callable[[], Any]) -> None:
    for value in (make(), [make()], {"a": (make(),)}, Data([make()])):
        with pytest.raises(SerializationError, match="can be read once only"):
            isolated(value)


def test_a_coroutine_is_refused() -> None:
    coroutine = answer()
    with pytest.raises(SerializationError, match="await it"):
        isolated(coroutine)
    coroutine.close()


def test_isolation_calls_no_code_of_a_dataclass_and_no_validator() -> None:
    @dataclasses.dataclass
    class Strict:
        tags: list[str]

        def __post_init__(self) -> None:
            self.tags.append("made")

    value = Strict([])
    assert isolated(value).tags == ["made"]


def test_shared_values_are_the_objects_themselves() -> None:
    value = [[1]]
    assert shared(value) is value


def test_a_copy_is_as_deep_as_one_of_the_copy_module() -> None:
    value = {"rows": [{"a": 1, "b": (1, [2])} for _ in range(5)], "x": collections.deque([{1}])}
    assert isolated(value) == copy.deepcopy(value)


@pytest.mark.parametrize(
    "value", [(1, 2), [1, "a"], [{"a": 1}, {"b": 2}], {"a": 1}, [[1]], {"a": []}]
)
def test_a_value_with_many_takers_is_copied_as_by_itself(value: Any) -> None:
    take = Isolation()
    for _ in range(3):
        taken = take(value)
        assert taken == isolated(value)
        assert (taken is value) is (type(value) is tuple)
        if isinstance(taken, list) and isinstance(taken[0], dict):
            assert taken[0] is not value[0]


def test_the_attributes_of_living_objects_are_looked_at() -> None:
    value = Data(["a"])
    taken = isolated([vars(value)])
    assert taken == [{"tags": ["a"]}]
    assert taken[0]["tags"] is not value.tags


@pytest.mark.parametrize("place", [0, 5_000, 9_999])
@pytest.mark.parametrize("items", [[1], [1, "a"], [{"a": 1}], [{"a": 1}, {1: 2, (3,): 4}]])
def test_one_item_of_many_that_can_be_changed_is_copied(items: list[Any], place: int) -> None:
    value: list[Any] = [copy.copy(item) for _ in range(10_000 // len(items)) for item in items]
    value[place] = {"a": [1]}
    taken = Isolation()(value)
    assert taken == value
    assert taken[place]["a"] is not value[place]["a"]


def test_of_many_values_the_last_are_remembered() -> None:
    take, values = Isolation(), [[number] for number in range(100)]
    assert [take(value) for value in values] == values
    assert sum(map(take.is_flat, values)) == 32


@pytest.mark.parametrize("value", [[1], (1,), [{"a": 1}], {"a": 1}])
def test_what_a_run_keeps_is_not_looked_through_again_and_what_it_was_given_is(value: Any) -> None:
    take = Isolation()
    kept = take.kept(value)
    assert kept == value
    assert take.is_flat(kept)
    assert take.is_flat(value) is (kept is value)
    assert take(kept) == value


def test_a_list_that_may_have_changed_is_looked_through_again() -> None:
    take, inner, value = Isolation(), [1], [0]
    take(value)
    value.append(inner)  # type: ignore[arg-type]
    take.forget(value)
    assert take(value)[1] is not inner


def refilled(memory: bytearray, kind: str) -> Any:
    """A value of this memory, as one that is filled again and again."""
    if kind == "view":
        return memoryview(memory)
    numpy = library("numpy")
    array = numpy.frombuffer(memory, "u1")
    if kind == "read-only array":
        array = array[:]
        array.flags.writeable = False
    return numpy.ma.array(array, mask=[True, False], copy=False) if kind == "masked" else array


@pytest.mark.parametrize("kind", ["view", "array", "read-only array", "masked"])
def test_what_is_taken_of_an_owner_is_not_changed_by_it_afterwards(kind: str) -> None:
    memory = bytearray(b"ab")
    value = refilled(memory, kind)
    (taken,) = detached([value])
    before = repr(taken.tolist())
    memory[:] = b"xy"
    assert repr(taken.tolist()) == before != repr(value.tolist())
    with pytest.raises((TypeError, ValueError), match="read-only"):
        taken[1] = 0


def test_memory_that_nobody_can_write_to_is_not_copied() -> None:
    numpy = library("numpy")
    value = numpy.frombuffer(b"ab", "u1")
    assert numpy.shares_memory(detached(value), value)
    text = b"ab"
    assert detached(memoryview(text)).obj is text


@pytest.mark.parametrize("form", [">i4", "i4,i4"])
def test_a_view_of_a_format_that_python_cannot_make_stays_one(form: str) -> None:
    value = memoryview(library("numpy").zeros(2, form))
    assert detached(value).format == value.format


def test_values_that_are_not_isolated_are_not_detached() -> None:
    assert detaching(Isolation()) is detached
    assert detaching(shared) is shared


def test_a_value_that_another_thread_changes_meanwhile_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def changing(value: Any, copies: Any) -> Any:  # when threads change just then is not ours
        for key in value:
            value[key, 1] = 1

    monkeypatch.setitem(COPY, dict, changing)
    for value in ({1: [1, {2}]}, {1: {2: {3}}}):
        with pytest.raises(SerializationError, match=r"a dict could not be copied: .* on a copy"):
            isolated(value)
