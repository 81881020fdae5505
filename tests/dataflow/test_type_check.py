"""Which annotations of two nodes contradict each other, and what is said about it."""

import functools
import time
from collections import OrderedDict, deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    Protocol,
    SupportsFloat,
    TypeVar,
    Union,
    runtime_checkable,
)
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    TypeAdapter,
    model_validator,
)
from pydantic.errors import PydanticSchemaGenerationError
from taskiq import InMemoryBroker
from typing_extensions import TypedDict

from taskiq_flow import (
    DAG,
    DAGBuilder,
    ExecutionEngine,
    TypeMismatchError,
    TypeMismatchWarning,
)
from taskiq_flow.dataflow.type_check import check_types, mismatches
from taskiq_flow.values.may_fit import may_fit


class Animal: ...


class Dog(Animal): ...


class Stone: ...


class Shelf: ...


class Books(Shelf, dict[str, int]): ...


class User(BaseModel):
    name: str


class Order(BaseModel):
    number: int


class Same(BaseModel):
    name: str
    nick: str = ""


class FromAttributes(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    name: str


class FromAnything(BaseModel):
    name: str

    @model_validator(mode="before")
    @classmethod
    def _of(cls, value: Any) -> Any:
        return {"name": str(value)}


class Names(RootModel[list[str]]): ...


@dataclass
class Point:
    x: int
    y: int


class Row(TypedDict):
    a: int
    b: str


class Pair(NamedTuple):
    a: int
    b: str


class Colour(Enum):
    RED = "red"


@runtime_checkable
class Closes(Protocol):
    def close(self) -> None: ...


class Reads(Protocol):
    def read(self) -> str: ...


T = TypeVar("T")
Bound = TypeVar("Bound", bound=str)
OneOf = TypeVar("OneOf", int, str)
UserId = NewType("UserId", int)

FITS: list[tuple[Any, Any]] = [
    (Any, int),
    (int, Any),
    (dict, object),
    (Row, Pair),
    (object, int),
    (int, float),
    (int, complex),
    (float, int),
    (bool, int),
    (str, int),
    (str, date),
    (str, Path),
    (Path, str),
    (str, UUID),
    (UUID, str),
    (str, bytes),
    (datetime, date),
    (int, timedelta),
    (Decimal, float),
    (None, None),
    (None, int | None),
    (str | None, str),
    (Optional[int], int),  # noqa: UP045
    (int | list[int], list[int]),
    (int, Union[str, int]),  # noqa: UP007
    (list[int], list[float]),
    (list[int], Sequence[int]),
    (list[int], Iterable[int]),
    (list[int], Collection[int]),
    (list, list[int]),
    (list[int], list),
    (list[int], tuple[int, ...]),
    (list[int], tuple[int, int]),
    (set[int], list[int]),
    (frozenset[str], set[str]),
    (deque[int], list[int]),
    (tuple[int, str], list[int | str]),
    (tuple[int, ...], tuple[int, int]),
    (tuple[int, str], tuple[float, str]),
    (Iterable[int], list[int]),
    (Sequence[str], str),
    (str, Sequence[str]),
    (str, Iterable[str]),
    (dict[str, int], Mapping[str, int]),
    (dict[str, int], Iterable[str]),
    (dict[int, str], dict[str, str]),
    (OrderedDict[str, int], dict[str, int]),
    (Mapping[str, int], dict[str, int]),
    (Row, dict[str, Any]),
    (dict[str, Any], User),
    (dict, Point),
    (Row, User),
    (dict[str, Any], Row),
    (list[dict[str, Any]], list[User]),
    (dict, Row),
    (User, dict[str, Any]),
    (User, Same),
    (User, list),
    (Sequence[int], int),
    (User, FromAttributes),
    (int, FromAnything),
    (list[str], Names),
    (list[Any], Pair),
    (Pair, tuple[int, str]),
    (Dog, Animal),
    (Animal, Dog),
    (Closes, Point),
    (Shelf, Point),
    (object, Point),
    (str, Colour),
    (Colour, str),
    (int, SupportsFloat),
    (Stone, Closes),
    (Stone, Reads),
    (int, T),
    (T, int),
    (str, Bound),
    (int, OneOf),
    (UserId, int),
    (int, UserId),
    (Literal["a", "b"], str),
    (str, Literal["a"]),
    (Literal["a", "b"], Literal["b", "c"]),
    (Literal["1"], int),
    (Annotated[int, "metres"], int),
    (int, Annotated[int, Field(gt=0)]),
    (list[int], Annotated[int, BeforeValidator(len)]),
    (Callable[[int], int], Callable[..., Any]),
    (type[Dog], type[Animal]),
    ("Unknown", int),
    (int, "Unknown"),
    (list["Unknown"], list[int]),  # type: ignore[name-defined]  # noqa: F821
]

NEVER: list[tuple[Any, Any]] = [
    (list[int], int),
    (dict[str, int], str),
    (dict[str, int], list[int]),
    (int, str),
    (int, list[int]),
    (str, list[str]),
    (str, dict[str, str]),
    (None, int),
    (int, None),
    (str, Stone),
    (Stone, str),
    (Dog, Stone),
    (str, User),
    (User, str),
    (User, list[str]),
    (list[int], User),
    (User, Order),
    (Point, User),
    (int, Point),
    (int, Row),
    (list[User], list[Order]),
    (list[User], list[int]),
    (list[User], User),
    (User, list[User]),
    (list[list[int]], list[int]),
    (dict[str, list[int]], dict[str, int]),
    (tuple[int, str], tuple[int, str, str]),
    (tuple[int, User], tuple[int, int]),
    (tuple[int, User], list[int]),
    (list[User], tuple[int, ...]),
    (Iterable[User], list[Order]),
    (int, Sequence[int]),
    (int, Iterable[int]),
    (int, Mapping[str, int]),
    (Stone, dict[str, int]),
    (Stone, Point),
    (Stone, User),
    (Stone, Row),
    (list[int] | None, int),
    (list[int], int | str),
    (int, str | list[int]),
    (Literal["a"], Literal["b"]),
    (list[int], Literal["a"]),
    (Literal["a"], list[str]),
    (UserId, str),
    (int, Bound),
    (list[int], OneOf),
    (Annotated[int, "metres"], Annotated[str, "name"]),
    (bytes, Path),
]


def named(pair: tuple[Any, Any]) -> str:
    return f"{pair[0]} to {pair[1]}"


@pytest.mark.parametrize("pair", FITS, ids=named)
def test_what_fits_or_is_converted_or_cannot_be_told_is_let_pass(pair: tuple[Any, Any]) -> None:
    assert may_fit(*pair)


@pytest.mark.parametrize("pair", NEVER, ids=named)
def test_what_never_fits_and_is_never_converted_is_a_mismatch(pair: tuple[Any, Any]) -> None:
    assert not may_fit(*pair)


LEAVES: list[Any] = [
    *(int, str, bool, float, bytes, Decimal, date, datetime, timedelta, UUID, type(None)),
    *(User, Same, Point, Row, Pair, Colour, Literal["a", 1], Literal["1"], Path),
]


GENERICS: list[Any] = [list, Sequence, Collection]  # not Iterable, which pydantic reads lazily


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.sampled_from([str, int])
    of_one = [inner.map(generic.__class_getitem__) for generic in GENERICS]
    of_two: list[Any] = [dict.__class_getitem__, Mapping.__class_getitem__]  # type: ignore[attr-defined]
    return st.one_of(
        *of_one,
        inner.map(lambda item: tuple.__class_getitem__((item, ...))),
        st.tuples(inner, inner).map(tuple.__class_getitem__),
        *(st.tuples(keys, inner).map(of) for of in of_two),
        st.tuples(inner, inner).map(Union.__getitem__),
    )


st.register_type_strategy(Path, st.sampled_from([Path("a"), Path("/b/1")]))
annotations = st.recursive(st.sampled_from(LEAVES), nested, max_leaves=4)


def filled(value: Any) -> bool:
    """Whether no collection in it is empty: an empty one fits whatever the items are."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(filled, value.values()))
    if isinstance(value, Collection) and not isinstance(value, (str, bytes)):
        return len(value) > 0 and all(map(filled, value))
    return True


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(annotations, annotations, st.data())
def test_what_pydantic_accepts_is_never_a_mismatch(
    produced: Any, wanted: Any, data: st.DataObject
) -> None:
    if may_fit(produced, wanted):
        return
    try:
        adapter = TypeAdapter(wanted)
    except PydanticSchemaGenerationError:  # Collection: what fits it is not converted
        return
    for _ in range(3):
        value = data.draw(st.from_type(produced).filter(filled))
        try:
            adapter.validate_python(value)
        except ValueError:
            continue
        raise AssertionError(f"{value!r} of {produced} was accepted as {wanted}")


# Graphs


def graph(producer: Callable[..., Any], consumer: Callable[..., Any], **options: Any) -> DAG:
    builder = DAGBuilder().node(producer, output="x", name="producer", **options)
    return builder.node(consumer, output="y", inputs=["x"], name="consumer").build()


def gives_list() -> list[int]:
    return [1]


def takes_int(x: int) -> None: ...


def takes_list_of_str(x: list[str]) -> None: ...


def takes_user(x: User) -> None: ...


def found(dag: DAG) -> list[tuple[str, str]]:
    return [(each.consumer, each.parameter) for each in mismatches(dag.plan())]


def one_by_one() -> Iterator[int]:
    yield 1


def generated() -> Generator[int, None, None]:
    yield 1


async def from_afar() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("producer", [one_by_one, generated, from_afar])
def test_a_generator_function_gives_the_list_of_its_items(producer: Callable[..., Any]) -> None:
    def takes_ints(x: list[int]) -> None: ...

    assert found(graph(producer, takes_ints)) == []
    assert found(graph(producer, takes_int)) == [("consumer", "x")]
    assert found(graph(producer, takes_user)) == [("consumer", "x")]


def test_an_awaitable_is_judged_by_what_it_gives() -> None:
    def later() -> Awaitable[list[int]]:
        raise NotImplementedError

    async def soon() -> list[int]:
        return [1]

    for producer in (later, soon):
        assert found(graph(producer, takes_int)) == [("consumer", "x")]
        assert found(graph(producer, lambda x: x)) == []


def test_each_kind_of_parameter_is_compared() -> None:
    def positional(x: int, /) -> None: ...
    def keyword(*, x: int) -> None: ...
    def default(x: int = 1) -> None: ...
    def var_args(*rest: int) -> None: ...
    def var_kwargs(**rest: int) -> None: ...

    kinds: list[Callable[..., Any]] = [positional, keyword, default, var_args, var_kwargs]
    names = [found(graph(gives_list, consumer))[0][1] for consumer in kinds]
    assert names == ["x", "x", "x", "rest", "rest"]


def test_keys_that_go_to_other_parameters_are_compared_with_those() -> None:
    def consumer(a: list[int], b: int, *rest: str, c: int = 0) -> None: ...

    def text() -> str:
        return ""

    builder = DAGBuilder().node(gives_list, output="one").node(gives_list, output="two")
    builder.node(text, output="three")
    dag = builder.node(consumer, inputs=["one", "two", "three"], name="consumer").build()
    assert found(dag) == [("consumer", "b")]
    dag = (
        DAGBuilder()
        .node(gives_list, output="one")
        .node(consumer, inputs={"a": "one", "c": "one"}, name="consumer")
        .build()
    )
    assert found(dag) == [("consumer", "c")]


def test_what_a_partial_has_fixed_is_not_compared() -> None:
    def consumer(first: str, x: list[int]) -> None: ...

    assert found(graph(gives_list, functools.partial(consumer, "a"))) == []


def test_several_outputs_are_compared_one_by_one() -> None:
    def pair() -> tuple[int, list[int]]:
        return 1, [1]

    def row() -> Row:
        return {"a": 1, "b": ""}

    def same() -> dict[str, list[int]]:
        return {}

    def untold() -> Pair:
        return Pair(1, "")

    def consumer(a: int, b: int) -> None: ...

    wrong = {pair: ["b"], row: [], same: ["a", "b"], untold: []}
    for producer, parameters in wrong.items():
        dag = DAGBuilder().node(producer, outputs=["a", "b"]).node(consumer).build()
        assert [parameter for _, parameter in found(dag)] == parameters


def test_fallbacks_give_and_take_like_their_nodes() -> None:
    def number() -> int:
        return 1

    assert found(graph(number, takes_int, fallback=[])) == [("consumer", "x")]
    assert found(graph(number, takes_int, fallback=0)) == []
    assert found(graph(number, takes_int, fallback=gives_list)) == [("consumer", "x")]
    builder = DAGBuilder().node(gives_list, output="x")
    dag = builder.node(lambda x: x, inputs=["x"], name="consumer", fallback=takes_int).build()
    assert found(dag) == [("consumer", "x")]


def test_tasks_of_a_broker_are_compared_like_plain_functions(broker: InMemoryBroker) -> None:
    assert found(graph(broker.task(gives_list), broker.task(takes_int))) == [("consumer", "x")]


# What is said


def test_a_mismatch_is_a_warning_at_the_line_that_makes_the_engine(
    broker: InMemoryBroker,
) -> None:
    with pytest.warns(TypeMismatchWarning) as warned:
        ExecutionEngine(broker, graph(gives_list, takes_int))
    (warning,) = warned
    assert warning.filename == __file__
    assert str(warning.message) == (
        "node 'producer' gives 'x' as list[int], and node 'consumer' takes it as its parameter "
        "'x': int. No such value fits or can be converted: correct one of the annotations, or add "
        "a node that converts the value, or have 'consumer' take each item: "
        'map_over="x", or give the engine type_check="off"'
    )


def test_no_remedy_is_told_where_the_items_of_a_list_do_not_fit_either(
    broker: InMemoryBroker,
) -> None:
    def gives_texts() -> list[str]:
        return ["a"]

    def takes_list_of_numbers(x: dict[str, int]) -> None: ...

    with pytest.warns(TypeMismatchWarning) as warned:
        ExecutionEngine(broker, graph(gives_texts, takes_list_of_numbers))
    assert "map_over" not in str(warned[0].message)


def test_a_mismatch_is_an_error_if_asked_for(broker: InMemoryBroker) -> None:
    with pytest.raises(TypeMismatchError) as raised:
        ExecutionEngine(broker, graph(gives_list, takes_int), type_check="error")
    error = raised.value
    assert (error.producer, error.key, error.consumer, error.parameter) == (
        *("producer", "x", "consumer", "x"),
    )


async def test_a_mismatch_is_not_looked_for_if_the_check_is_off(broker: InMemoryBroker) -> None:
    ExecutionEngine(broker, graph(gives_list, takes_int), type_check="off")


def test_another_mode_is_refused(broker: InMemoryBroker) -> None:
    with pytest.raises(ValueError, match="type_check is 'strict'; give one of"):
        ExecutionEngine(broker, DAG(), type_check="strict")  # type: ignore[arg-type]


async def test_a_graph_that_was_changed_is_checked_by_its_next_run(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(gives_list, output="x").build()
    engine = ExecutionEngine(broker, dag, type_check="error")
    dag.add_node(DAGBuilder().add_task(takes_int))
    with pytest.raises(TypeMismatchError):
        await engine.execute()


def test_many_mismatches_are_counted(broker: InMemoryBroker) -> None:
    builder = DAGBuilder().node(gives_list, output="x")
    for number in range(8):
        builder.node(takes_int, name=f"consumer{number}", inputs=["x"])
    with pytest.raises(TypeMismatchError, match=r"'consumer4'.*; and 3 more"):
        ExecutionEngine(broker, builder.build(), type_check="error")


def test_a_large_graph_of_the_same_tasks_is_checked_in_linear_time() -> None:
    def step(x: list[User]) -> list[User]:
        return x

    builder = DAGBuilder()
    for number in range(20_000):
        builder.node(step, output=f"x{number + 1}", inputs={"x": f"x{number}"}, name=f"n{number}")
    plan = builder.build().plan()
    started = time.process_time()
    check_types(plan, "error")
    assert time.process_time() - started < 1


# Mapped nodes


def numbers() -> list[int]:
    return [1]


def text_of(number: int) -> str:
    return str(number)


def length(text: str) -> int:
    return len(text)


def joined(texts: list[str]) -> str:
    return "".join(texts)


def total(numbers: list[int]) -> int:
    return sum(numbers)


def mapped_graph(consumer: Any, key: str, **options: Any) -> DAG:
    builder = DAGBuilder().node(numbers)
    builder.node(text_of, inputs=["numbers"], map_over="numbers")
    return builder.node(consumer, name="end", inputs=[key], **options).build()


@pytest.mark.parametrize(
    ("consumer", "key", "options"),
    [
        (length, "text_of", {"map_over": "text_of"}),
        (joined, "text_of", {}),
        (total, "numbers", {}),
        (text_of, "numbers", {"map_over": "numbers"}),
    ],
)
def test_elements_and_their_lists_fit(consumer: Any, key: str, options: Any) -> None:
    assert mismatches(mapped_graph(consumer, key, **options).plan()) == []


@pytest.mark.parametrize(
    ("consumer", "key", "options", "produced"),
    [
        (total, "text_of", {"map_over": "text_of"}, str),
        (length, "text_of", {}, list[str]),
        (total, "numbers", {"map_over": "numbers"}, int),
        (text_of, "numbers", {}, list[int]),
    ],
)
def test_an_element_in_place_of_a_list_is_a_mismatch_and_the_other_way_round(
    consumer: Any, key: str, options: Any, produced: Any
) -> None:
    found = mismatches(mapped_graph(consumer, key, **options).plan())
    assert [(each.consumer, each.produced) for each in found] == [("end", produced)]


def rows(number: int) -> list[str]:
    return [str(number)]


def nested_graph(consumer: Any, key: str, **options: Any) -> DAG:
    builder = DAGBuilder().node(numbers)
    builder.node(rows, inputs=["numbers"], map_over="numbers")
    builder.node(rows, name="flat", inputs=["numbers"], map_over="numbers", flatten=True)
    return builder.node(consumer, name="end", inputs=[key], **options).build()


@pytest.mark.parametrize(
    ("consumer", "key", "options", "produced"),
    [
        (length, "rows", {"map_over": {"rows": 2}}, None),
        (joined, "rows", {"map_over": "rows"}, None),
        (joined, "rows", {}, list[list[str]]),
        (length, "rows", {"map_over": "rows"}, list[str]),
        (total, "rows", {"map_over": {"rows": 2}}, str),
        (joined, "flat", {}, None),
        (length, "flat", {"map_over": "flat"}, None),
        (total, "flat", {"map_over": "flat"}, str),
    ],
)
def test_lists_within_lists_are_compared_level_by_level(
    consumer: Any, key: str, options: Any, produced: Any
) -> None:
    found = mismatches(nested_graph(consumer, key, **options).plan())
    expected = [] if produced is None else [("end", produced)]
    assert [(each.consumer, each.produced) for each in found] == expected
