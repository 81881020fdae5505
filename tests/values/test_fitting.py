"""What fits an annotation stays the very object; what does not is converted, or is an error."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime as dt
import inspect
import pathlib
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Protocol,
    TypedDict,
    TypeVar,
)

import pytest
import typing_extensions
from pydantic import BaseModel, Field, StringConstraints

from taskiq_flow import AnnotationError
from taskiq_flow.values.fitting import Fit, Signature

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
UserId = NewType("UserId", int)


class Point(BaseModel):
    x: int


class NamedPoint(Point):
    name: str = "p"


@dataclasses.dataclass
class Pair:
    left: int


class Row(TypedDict):
    a: int


class Reads(Protocol):
    def read(self) -> str: ...


class Box(Generic[T]):
    pass


class Client:
    pass


class LaterRow(typing_extensions.TypedDict):
    a: int


class GenericRow(TypedDict, Generic[T]):
    a: T


class Gives(Protocol[T_co]):
    def give(self) -> T_co: ...


class Index(dict[str, list[T]]):
    pass


class Place(NamedTuple):
    x: int
    y: int


class NamedBox(NamedTuple, Generic[T]):
    item: T
    label: str


CLIENT = Client()


def values_of(signature: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    own = inspect.signature(signature, eval_str=True)
    return Signature("work", own, returns_items=False).arguments(list(args), kwargs)


FITS: list[tuple[Any, Any]] = [
    *((int, 1), (int, True), (float, 1), (float, 1.5), (complex, 1.5), (str, "a"), (bytes, b"a")),
    *((Any, object()), (object, 1), (None, None), (int | None, None), (int | str, "a")),
    *((dt.date, dt.datetime(2026, 1, 1)), (pathlib.Path, pathlib.Path("a"))),  # noqa: DTZ001
    *((list[int], ["not", "looked", "at"]), (list, [1]), (dict[str, int], {"a": 1})),
    *((dict, collections.OrderedDict(a=1)), (Mapping[str, int], {"a": 1})),
    *((Sequence[int], (1, 2)), (Iterable[int], [1]), (tuple[int, ...], (1, 2))),
    *((tuple[int, str], (1, "a")), (set[int], {1}), (list[Point], [NamedPoint(x=1)])),
    *((Point, NamedPoint(x=1)), (Pair, Pair(1)), (Row, {"a": 1}), (Literal["a", "b"], "a")),
    *((UserId, 3), (Annotated[int, "a remark"], 3), (type[Point], NamedPoint), (Client, Client())),
    *((Reads, 3), (Box[int], Box()), (T, 3), (Callable[[int], int], len), ("Unknown", 3)),
    *((Iterator[int], [1]), (typing.Optional[Point], None), (typing.List[Pair], [Pair(1)])),  # noqa: UP006, UP045
    *((LaterRow, {"a": 1}), (list[LaterRow], [{"a": 1}]), (GenericRow[int], {"a": 1})),
    *(
        (Gives[int], Client()),
        (Index[Client], Index(a=[Client()])),
        (NamedBox[int], NamedBox(1, "a")),
    ),
    *((typing.Tuple, Place(1, 2)), (tuple[int, *tuple[Point, ...]], (1, Point(x=1)))),  # noqa: UP006
    *((Annotated[float, Field(ge=0)], 3), (Annotated[list[Client], Field(min_length=1)], [CLIENT])),
]


@pytest.mark.parametrize(("annotation", "value"), FITS)
def test_what_fits_is_the_very_object(annotation: Any, value: Any) -> None:
    fit = Fit.of(annotation)
    assert fit is None or fit.convert(value) is value


CONVERTED: list[tuple[Any, Any, Any]] = [
    *((int, "3", 3), (float, "1.5", 1.5), (dt.date, "2026-01-02", dt.date(2026, 1, 2))),
    *((pathlib.Path, "a", pathlib.Path("a")), (Point, {"x": 1}, Point(x=1))),
    *(
        (list[Point], [{"x": 1}], [Point(x=1)]),
        (dict[str, Pair], {"a": {"left": 1}}, {"a": Pair(1)}),
    ),
    *((Point | None, {"x": 1}, Point(x=1)), (tuple[int, Point], [1, {"x": 1}], (1, Point(x=1)))),
    *((list[int], (1, 2), [1, 2]), (set[int], [1, 1], {1}), (UserId, "3", 3)),
    (Annotated[int, Field(gt=0)], "3", 3),
    (Annotated[str, StringConstraints(strip_whitespace=True)], " a", "a"),
    *((Client | Point, {"x": 1}, Point(x=1)), (list[Client], (CLIENT,), [CLIENT])),
    (tuple[Client, Point], (CLIENT, {"x": 1}), (CLIENT, Point(x=1))),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), CONVERTED)
def test_what_does_not_fit_is_converted(annotation: Any, value: Any, expected: Any) -> None:
    fit = Fit.of(annotation)
    assert fit is not None
    converted = fit.convert(value)
    assert converted == expected
    assert type(converted) is type(expected)


MISFITS: list[tuple[Any, Any]] = [
    *((int, "abc"), (int, None), (str, 3), (Point, {"y": 1}), (Point, Pair(1)), (Client, 3)),
    *((list[Point], [3]), (Literal["a"], "b"), (Annotated[int, Field(gt=0)], -1), (None, 3)),
    *((Pair, 3), (dict[str, Point], {"a": 3}), (tuple[int, Point], (1,))),
]


@pytest.mark.parametrize(("annotation", "value"), MISFITS)
def test_what_cannot_be_converted_is_an_error_that_names_the_parameter(
    annotation: Any, value: Any
) -> None:
    def work(given: Any) -> None: ...

    work.__annotations__["given"] = annotation
    with pytest.raises(AnnotationError, match="parameter 'given' of work takes") as caught:
        values_of(work, given=value)
    assert caught.value.key == "given"
    assert caught.value.value_type is type(value)


def test_each_kind_of_parameter_is_treated_alike() -> None:
    def work(a: Point, /, b: Point, *rest: Point, c: Point, **others: Point) -> None: ...

    x = {"x": 1}
    args, kwargs = values_of(work, x, x, x, x, c=x, d=x)
    assert args == [Point(x=1)] * 4
    assert kwargs == {"c": Point(x=1), "d": Point(x=1)}


def test_a_parameter_without_an_annotation_is_not_taken_for_one_of_the_others() -> None:
    def work(*, plain, **others: Point) -> None: ...  # type: ignore[no-untyped-def]

    assert values_of(work, plain=3, other={"x": 1}) == ([], {"plain": 3, "other": Point(x=1)})


def test_a_parameter_by_position_only_and_a_further_one_may_have_the_same_name() -> None:
    def work(a: int, /, **others: Point) -> None: ...

    assert values_of(work, 3, a={"x": 1}) == ([3], {"a": Point(x=1)})


class Refuses(type):
    def __instancecheck__(cls, _: object) -> bool:
        raise ZeroDivisionError("cannot tell")


class Undecided(metaclass=Refuses):
    pass


def test_an_error_of_a_classs_own_check_names_the_parameter() -> None:
    def work(given: Undecided) -> None: ...

    with pytest.raises(AnnotationError, match=r"parameter 'given' of work .* cannot tell"):
        values_of(work, given=3)


@pytest.mark.parametrize(
    "annotation", [Awaitable[int], asyncio.Future[int], Coroutine[Any, Any, int]]
)
def test_a_function_may_be_annotated_with_the_awaitable_that_it_returns(annotation: Any) -> None:
    own = inspect.Signature(return_annotation=annotation)
    signature = Signature("work", own, returns_items=False)
    assert signature.result("3") == 3
    with pytest.raises(AnnotationError, match="work is annotated to return int"):
        signature.result("three")


def test_a_duration_of_numpy_is_no_number() -> None:
    numpy = pytest.importorskip("numpy")
    fit = Fit.of(int)
    assert fit is not None
    assert fit.fits(numpy.int8(3))
    assert not fit.fits(numpy.timedelta64(3, "s"))


def test_an_error_says_what_is_wrong_within_the_value() -> None:
    def work(points: list[Point]) -> None: ...

    with pytest.raises(AnnotationError, match=r"was given a list: 1\.x: Input should be"):
        values_of(work, [{"x": 1}, {"x": "one"}])


def test_the_result_of_a_function_fits_its_annotation() -> None:
    def work() -> Point: ...  # type: ignore[empty-body]

    signature = Signature("work", inspect.signature(work, eval_str=True), returns_items=False)
    assert signature.result({"x": 1}) == Point(x=1)
    with pytest.raises(AnnotationError, match="work is annotated to return Point, and returned 3"):
        signature.result(3)


def test_an_adapter_is_built_for_the_first_value_that_does_not_fit() -> None:
    fit = Fit.of(Point)
    assert fit is not None
    assert fit.convert(NamedPoint(x=1)).name == "p"
    assert fit._adapter is None
    fit.convert({"x": 1})
    assert fit._adapter is not None
