from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal, Optional

import pytest
from pydantic import BaseModel, RootModel

from taskiq_flow.errors import SerializationError
from taskiq_flow.values.classes import Classes, classes_in
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.plain import is_plain
from tests.commands import ROOT, Scripts
from tests.values.kinds import (
    KINDS,
    Access,
    Attrs,
    Box,
    CodedError,
    Colour,
    Frozen,
    LookupAttributeError,
    Model,
    Money,
    Pair,
    Point,
    SlottedError,
    ValueOSError,
)

OPEN = Classes.imported()


def same(one: Any, other: Any) -> bool:
    """Equal and of the same types, with NaN equal to itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(*pair) for pair in zip(one.items(), other.items(), strict=True)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Decimal):
        return str(one) == str(other)
    return bool(one == other) or repr(one) == repr(other)


def through_json(codec: ValueCodec, value: Any) -> Any:
    try:
        text = json.dumps(codec.encode(value), allow_nan=False)
    except ValueError:  # an integer of more than 4300 digits within plain data
        text = json.dumps(codec.encode(value, strict=True), allow_nan=False)
    return codec.decode(json.loads(text), OPEN)


def through_orjson(codec: ValueCodec, value: Any) -> Any:
    orjson = pytest.importorskip("orjson")
    return codec.decode(orjson.loads(orjson.dumps(codec.encode(value, strict=True))), OPEN)


def through_msgpack(codec: ValueCodec, value: Any) -> Any:
    msgpack = pytest.importorskip("msgpack")
    return codec.decode(msgpack.unpackb(msgpack.packb(codec.encode(value, strict=True))), OPEN)


def through_a_frame(codec: ValueCodec, value: Any) -> Any:
    return codec.decode_frame(b"".join(codec.encode_frame(value)), OPEN)


WAYS = [through_json, through_orjson, through_msgpack, through_a_frame]


@pytest.mark.parametrize("value", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_value_arrives_equal_and_of_its_type(
    way: Callable[[ValueCodec, Any], Any], value: Any
) -> None:
    for sent in (value, [value], {"a": (value,)}):
        assert same(way(ValueCodec(), sent), sent)


def test_data_of_strangers_that_look_like_tags_are_plain_data() -> None:
    stranger = [{"$tf": ["b", "AA=="]}, {"$tf": 2, "v": 1}, {"x": {"$tf": ["o", "os:system", []]}}]
    assert through_json(ValueCodec(), stranger) == stranger
    assert ValueCodec().decode(stranger, Classes()) is stranger
    for value in stranger:
        assert through_json(ValueCodec(), value) == value


def test_a_plain_value_is_its_own_encoding() -> None:
    for value in ([{"a": [1, 2.5, None]}], {"a": {"b": "c"}}, [], {}, "x", 2**100):
        assert is_plain(value)
        assert ValueCodec().encode(value) is value
    strict = {"a": [1, "x"]}
    assert ValueCodec().encode(strict, strict=True) is strict


@pytest.mark.parametrize(
    "value",
    [math.nan, [[math.inf]], {"$tf": 1}, [{"a": {1: 2}}], (1,), [Colour.RED], b""],
)
def test_what_json_changes_is_not_plain(value: Any) -> None:
    assert not is_plain(value)
    assert not is_plain([[value]])
    assert not is_plain(10**5000)


@pytest.mark.parametrize(
    "error",
    [
        CodedError(3, "no"), KeyError("a"), FileNotFoundError(2, "none", "f"), StopIteration(4),
        UnicodeDecodeError("utf-8", b"a", 0, 1, "why"), ExceptionGroup("g", [ValueError((1,))]),
        SystemExit(3), ImportError("m", name="n"), KeyboardInterrupt(), SlottedError((1,)),
        LookupAttributeError("a"), ValueOSError(2, "none", "f"),
    ],
)  # fmt: skip
def test_an_exception_keeps_class_arguments_attributes_notes_and_cause(
    error: BaseException,
) -> None:
    error.__cause__ = OSError("below")
    error.add_note("a note")
    error.unset = None  # type: ignore[attr-defined]
    other = through_json(ValueCodec(), error)
    assert type(other) is type(error)
    assert (str(other), repr(other.args)) == (str(error), repr(error.args))
    assert vars(other) == vars(error)
    assert repr(other.__cause__) == repr(error.__cause__)
    for name in ("filename", "value", "code", "name", "errno", "place", "secret", "empty"):
        assert getattr(other, name, None) == getattr(error, name, None)


def test_a_registered_type_travels_under_its_name() -> None:
    codec = ValueCodec()
    codec.register(Money, lambda money: (money.cents,), lambda parts: Money(*parts), name="money")
    assert through_json(codec, {"price": [Money(5)]}) == {"price": [Money(5)]}
    assert "u:money" in json.dumps(codec.encode(Money(5)))
    with pytest.raises(ValueError, match="registered as 'money'"):
        codec.register(Money, vars, Money, name="other")
    with pytest.raises(ValueError, match="name 'money' is registered"):
        codec.register(Point, vars, Point, name="money")
    with pytest.raises(TypeError, match="cannot be registered"):
        codec.register(int, str, int, name="int")
    with pytest.raises(SerializationError, match="'money' is not registered"):
        ValueCodec().decode(codec.encode(Money(5)), OPEN)


def test_pickle_carries_the_rest_only_if_both_sides_say_so() -> None:
    codec = ValueCodec(pickle=True)
    assert through_json(codec, [Money(3), (1,)]) == [Money(3), (1,)]
    with pytest.raises(SerializationError, match="does not unpickle"):
        ValueCodec().decode(codec.encode(Money(3)), OPEN)


def cyclic() -> list[Any]:
    value: list[Any] = [1]
    value.extend([value] * 1000)
    return value


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class Names(list[str]):
    pass


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (lambda: 1, "return data"), (print, "return data"), (int, "return data"),
        (memoryview(b"a"), r"bytes\(...\)"), (iter([1]), r"list\(...\)"), (cyclic(), "cycle"),
        (io.BytesIO(b"a"), "its content"), (io.BufferedReader(io.BytesIO()), "content"),
        (deep(300), "levels deep"), (Names(), "subclasses"), (Money(1), "register"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_path_type_and_remedy(value: Any, remedy: str) -> None:
    with pytest.raises(SerializationError, match=remedy) as caught:
        ValueCodec().encode({"rows": [1, 2, 3, Point(x=value)]})
    assert "['rows'][3].x" in str(caught.value)
    assert type(value).__qualname__ in str(caught.value)


@pytest.mark.parametrize("argument", [list[Literal["a"]], Literal["a"], Callable[[], int]])
def test_a_generic_model_over_what_has_no_name_is_refused(argument: Any) -> None:
    with pytest.raises(SerializationError, match=r"Box.* generic over .*; name the class"):
        ValueCodec().encode(Box[argument].model_construct(content=1))


class Unreadable:
    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


def test_what_a_values_own_code_raises_is_named_with_its_path() -> None:
    with pytest.raises(SerializationError, match=r"at \['a'\]\[1\].*raised LookupError: __next"):
        ValueCodec().encode({"a": (1, Unreadable())})
    assert isinstance(through_json(ValueCodec(pickle=True), [Money(1)])[0], Money)


def test_a_local_class_and_a_class_of_main_are_refused() -> None:
    class Local(Point):
        pass

    with pytest.raises(SerializationError, match="local to a function"):
        ValueCodec().encode(Local(1))
    moved = type("Moved", (Point,), {"__module__": "__main__"})
    with pytest.raises(SerializationError, match="move it to a module"):
        ValueCodec().encode(moved(1))


def test_attributes_that_are_no_fields_are_not_lost_in_silence() -> None:
    point = Point(1)
    point.more = 2  # type: ignore[attr-defined]
    with pytest.raises(SerializationError, match=r"\['more'\] are no fields"):
        ValueCodec().encode(point)


def encoded(value: Any, *, instead_of: str, now: str) -> Any:
    """The encoding by a process whose version of a class has another name in it."""
    text = json.dumps(ValueCodec().encode(value))
    assert instead_of in text
    return json.loads(text.replace(instead_of, now))


@pytest.mark.parametrize(
    ("value", "field", "lists"),
    [
        (Point(1, 2), "y", r"\['x', 'y'\].*\['x', 'z'\]"),
        (Attrs(1), "_y", r"\['x', '_y'\].*\['x', 'z'\]"),
        (Pair(1, 2), "right", r"\['left', 'right'\].*\['left', 'z'\]"),
        (Model(when=1), "when", r"\['when'\].*\['z'\]"),
        (Box[int](content=1), "content", r"\['content'\].*\['z'\]"),
        (Colour.RED, "RED", r"\['RED', 'PAIR'\].*'z'"),
    ],
)
def test_a_class_whose_fields_have_changed_is_an_error_with_both_lists(
    value: Any, field: str, lists: str
) -> None:
    with pytest.raises(SerializationError, match=lists):
        ValueCodec().decode(encoded(value, instead_of=f'"{field}"', now='"z"'), OPEN)


@pytest.mark.parametrize("value", [Point(1), Pair(1, 2), Model(when=1), Colour.RED, Access(3)])
def test_a_class_whose_name_or_kind_has_changed_is_an_error_with_its_name(value: Any) -> None:
    name = type(value).__name__
    moved = encoded(value, instead_of=f"kinds:{name}", now=f"kinds:Old{name}")
    with pytest.raises(SerializationError, match=f"class tests.values.kinds.Old{name} is not"):
        ValueCodec().decode(moved, OPEN)
    other = encoded(value, instead_of=f"kinds:{name}", now="kinds:Money")
    with pytest.raises(SerializationError, match=r"kinds\.Money is no "):
        ValueCodec().decode(other, OPEN)


def test_the_classes_in_annotations_are_found() -> None:
    annotation = dict[str, Optional[list[Frozen]]] | Pair | Box[Model] | Literal[Colour.RED]  # noqa: UP045
    assert {Frozen, Point, Pair, Model, Colour, Box, Box[Model]} <= classes_in(annotation)
    assert {BaseModel, Model} <= classes_in(dict[str, BaseModel] | Model)
    sent = ValueCodec().encode([Point(1)])
    assert ValueCodec().decode(sent, Classes(classes_in(list[Frozen]))) == [Point(1)]
    with pytest.raises(SerializationError, match="not among the classes"):
        ValueCodec().decode(sent, Classes())


def test_a_class_that_is_not_imported_here_is_no_damage() -> None:
    sent = ValueCodec().encode([Point(1)])
    text = json.dumps(sent).replace(Point.__module__, "elsewhere")
    with pytest.raises(SerializationError, match=r"decoded: class elsewhere\.Point is not imp"):
        ValueCodec().decode(json.loads(text), Classes.imported())


def test_no_library_is_imported_for_a_value(scripts: Scripts) -> None:
    script = (
        "import sys\nbefore = {*sys.modules}\n"
        "from taskiq_flow.values.codec import ValueCodec\n"
        "ValueCodec().encode((1, {2}, b'x'))\n"
        "new = {name.split('.')[0] for name in {*sys.modules} - before}\n"
        "assert not new & {'numpy', 'pandas', 'polars', 'pyarrow', 'attr', 'attrs'}, new"
    )
    scripts.output(script, cwd=ROOT)


class Numbers(RootModel[list[int]]):
    pass


def test_a_root_model_arrives_with_no_more_than_its_root() -> None:
    codec = ValueCodec()
    arrived = through_json(codec, Numbers([1]))
    assert vars(arrived) == {"root": [1]}
    assert through_json(codec, arrived) == arrived == Numbers([1])


class Changing:
    """Changes the dictionary in which it is while that is encoded."""

    def __init__(self, within: Any) -> None:
        self._within = within

    def told(self) -> int:
        self._within[len(self._within)] = 1
        return 1


@pytest.mark.parametrize("encode", ["encode", "encode_frame"])
def test_a_value_that_is_changed_while_it_is_encoded_is_refused(encode: str) -> None:
    codec, value = ValueCodec(), dict[int, Changing]()
    codec.register(Changing, Changing.told, lambda _: Changing({}), name="changing")
    value[0] = Changing(value)
    with pytest.raises(SerializationError, match="changes it meanwhile, pass on a copy"):
        getattr(codec, encode)({"a": value})
