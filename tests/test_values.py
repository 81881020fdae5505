"""Values in one process: they arrive as they left, and what one taker does no other sees."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import math
import pathlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, NamedTuple, Self

import pytest
from pydantic import BaseModel
from taskiq import (
    Context,
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
)

from taskiq_flow import (
    AnnotationError,
    Cache,
    DAGBuilder,
    DAGNode,
    ExecutionEngine,
    FlowMiddleware,
    MapReduce,
    NodeFailedError,
    ResultHandle,
    Retry,
    SerializationError,
    TypeMismatchError,
)


class Point(NamedTuple):
    x: int
    y: int


class Model(BaseModel):
    tags: list[str]


@dataclasses.dataclass
class Data:
    tags: list[str]


class Colour(enum.Enum):
    RED = "red"


class Client:
    """Is no data: a connection, a model, a client."""


VALUES: list[Any] = [
    *(
        None,
        True,
        3,
        2**200,
        -0.0,
        math.inf,
        math.nan,
        1j,
        "text",
        "\ud800",
        b"\xff",
        bytearray(b"a"),
    ),
    *([1], (1, 2), Point(1, 2), {1, 2}, frozenset({1}), {1: "a"}, {(1, 2): None}, range(3)),
    *(slice(1, 2), dt.date(2026, 1, 1), dt.timedelta(1), dt.UTC, decimal.Decimal("1.10")),
    *(uuid.UUID(int=1), pathlib.Path("a"), Colour.RED, Data(["a"]), Model(tags=["a"])),
    *(ValueError("x"), Client(), Client, len, [{"a": (1, {2})}]),
]


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (repr(one) == repr(other) or one is other)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
async def test_a_value_arrives_as_it_left(broker: InMemoryBroker, value: Any) -> None:
    @broker.task
    async def decorated(plain: Any) -> Any:
        return plain

    def given(start: Any) -> Any:
        return start

    def plain(given: Any) -> Any:
        return given

    dag = DAGBuilder().node(given).node(plain).node(decorated).build()
    results = await ExecutionEngine(broker, dag).execute({"start": value})
    assert all(same(result, value) for result in results.values())
    assert len(results) == 3


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
async def test_an_element_of_a_map_arrives_as_it_left(broker: InMemoryBroker, value: Any) -> None:
    @broker.task
    async def keep(item: Any) -> Any:
        return item

    mapped = await MapReduce.map(broker, keep, [value, value])
    result = await mapped.wait_result()
    assert all(same(item, value) for item in result.return_value)


async def test_what_a_task_does_to_its_input_is_seen_by_nobody_else(broker: InMemoryBroker) -> None:
    def make() -> dict[str, list[int]]:
        return {"a": [1]}

    def spoil(make: dict[str, list[int]]) -> list[int]:
        make["a"].append(2)
        return make["a"]

    dag = DAGBuilder().node(make)
    for number in range(20):
        dag.node(spoil, output=f"s{number}", name=f"s{number}")
    results = await ExecutionEngine(broker, dag.build(), max_parallel=3).execute()
    assert results.pop("make") == {"a": [1]}
    assert set(map(tuple, results.values())) == {(1, 2)}


async def test_what_a_reader_does_to_a_result_is_seen_by_no_task(broker: InMemoryBroker) -> None:
    dag = DAGBuilder().node(lambda: [1], name="make")
    for number in range(20):
        dag.node(sum, output=f"s{number}", inputs=["make"], name=f"s{number}")
    seen = []
    async for _, value in ExecutionEngine(broker, dag.build(), max_parallel=1).execute_async():
        seen.append(value)
        if isinstance(value, list):
            value.append(100)
    assert seen[1:] == [1] * 20


@pytest.mark.parametrize("outputs", [["all"], ["all", "count"]])
async def test_a_list_that_tasks_return_again_and_again_is_looked_through_each_time(
    broker: InMemoryBroker, outputs: list[str]
) -> None:
    kept: list[Any] = []

    def collect(number: int) -> Any:
        kept.append(number)
        return kept if len(outputs) == 1 else (kept, len(kept))

    def collect_more(first: int) -> Any:
        kept.append([first])
        return kept if len(outputs) == 1 else (kept, len(kept))

    def spoil(rows: list[Any]) -> list[Any]:
        rows[-1].append("spoiled")
        return rows

    dag = DAGBuilder()
    dag.node(collect, outputs=outputs).node(len, inputs=["all"], output="first")
    dag.node(collect_more, outputs=[f"more_{key}" for key in outputs])
    for number in range(2):
        dag.node(spoil, inputs=["more_all"], output=f"s{number}", name=f"s{number}")
    results = await ExecutionEngine(broker, dag.build()).execute({"number": 1})
    assert results["more_all"] == [1, [1]]
    assert results["s0"] == results["s1"] == [1, [1, "spoiled"]]


async def test_an_input_that_a_task_changes_and_returns_is_looked_through_again(
    broker: InMemoryBroker,
) -> None:
    given: list[Any] = [1]

    def change(start: list[int]) -> list[Any]:
        given.append(start)
        return given

    def spoil(change: list[Any]) -> list[Any]:
        change[1].append("spoiled")
        return change

    dag = DAGBuilder().node(change).node(spoil).build()
    results = await ExecutionEngine(broker, dag).execute({"start": given})
    assert results == {"change": [1, [1]], "spoil": [1, [1, "spoiled"]]}


@pytest.mark.parametrize(("values", "expected"), [("isolated", [3, 1]), ("shared", [1, 3])])
async def test_what_a_condition_does_to_a_value_is_seen_by_nobody_else(
    broker: InMemoryBroker, values: Any, expected: list[int]
) -> None:
    def sorts(make: list[int]) -> bool:
        make.sort()
        return make[0] == 1

    dag = DAGBuilder().node(lambda: [3, 1], name="make")
    dag.node(lambda make: make, name="take", when=sorts)
    results = await ExecutionEngine(broker, dag.build(), values=values).execute()
    assert results == {"make": expected, "take": expected}


async def test_an_input_is_taken_when_the_run_begins(broker: InMemoryBroker) -> None:
    given = [1]

    def first(start: list[int]) -> int:
        given.append(2)
        start.append(3)
        return len(start)

    dag = DAGBuilder().node(first).node(len, output="n", inputs=["start"])
    dag.build().add_edge("first", "len")
    results = await ExecutionEngine(broker, dag.build(), max_parallel=1).execute({"start": given})
    assert results == {"first": 2, "n": 1}


async def test_shared_values_are_one_object_for_all(broker: InMemoryBroker) -> None:
    value = [[1]]
    dag = DAGBuilder().node(lambda: value, name="make").node(lambda make: make, name="take").build()
    results = await ExecutionEngine(broker, dag, values="shared").execute()
    assert results["make"] is value
    assert results["take"] is value


async def test_encoded_values_are_what_a_worker_elsewhere_would_be_given(
    broker: InMemoryBroker,
) -> None:
    def take(make: Any) -> Any:
        return make

    value = [Model(tags=["a"]), (1, {2})]
    dag = DAGBuilder().node(lambda: value, name="make").node(take).build()
    results = await ExecutionEngine(broker, dag, values="encoded").execute()
    assert results == {"make": value, "take": value}
    assert results["take"] is not value
    refusing = DAGBuilder().node(Client, name="make").node(take).build()
    with pytest.raises(
        NodeFailedError, match=r"'take' cannot be given the value of 'make'.*Client"
    ):
        await ExecutionEngine(broker, refusing, values="encoded").execute()


def test_an_unknown_way_of_sharing_is_refused(broker: InMemoryBroker) -> None:
    with pytest.raises(ValueError, match="values is 'copied'; give one of"):
        ExecutionEngine(broker, DAGBuilder().node(len).build(), values="copied")  # type: ignore[arg-type]


async def test_a_retry_is_given_what_the_first_attempt_was_given(broker: InMemoryBroker) -> None:
    lengths = []

    def flaky(start: list[int]) -> int:
        lengths.append(len(start))
        start.append(0)
        if len(lengths) < 3:
            raise OSError
        return len(start)

    dag = DAGBuilder().node(flaky, retry=Retry(attempts=3, wait=0.0)).build()
    await ExecutionEngine(broker, dag).execute({"start": [1]})
    assert lengths == [1, 1, 1]


async def test_a_retry_of_a_middleware_is_given_what_the_first_attempt_was_given() -> None:
    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware())
    lengths = []

    @broker.task(retry_on_error=True, max_retries=3)
    async def flaky(start: list[int]) -> int:
        lengths.append(len(start))
        start.append(0)
        if len(lengths) < 3:
            raise OSError
        return len(start)

    await ExecutionEngine(broker, DAGBuilder().node(flaky).build()).execute({"start": [1]})
    assert lengths == [1, 1, 1]


async def test_a_task_that_requeues_itself_is_given_the_same_again(broker: InMemoryBroker) -> None:
    lengths = []

    @broker.task
    async def again(start: list[Client], context: Annotated[Context, TaskiqDepends()]) -> int:
        lengths.append(len(start))
        start.append(Client())
        if len(lengths) < 3:
            await context.requeue()
        return len(start)

    await ExecutionEngine(broker, DAGBuilder().node(again).build()).execute({"start": []})
    assert lengths == [0, 0, 0]


async def test_a_fallback_is_given_what_the_task_was_given(broker: InMemoryBroker) -> None:
    def failing(start: list[int]) -> int:
        start.clear()
        raise OSError

    def size(start: list[int]) -> int:
        return len(start)

    dag = DAGBuilder().node(failing, fallback=size).build()
    assert await ExecutionEngine(broker, dag).execute({"start": [1]}) == {"failing": 1}


class TestGenerators:
    async def test_a_generator_function_gives_the_list_of_its_items(
        self, broker: InMemoryBroker
    ) -> None:
        def rows(n: int) -> Iterator[int]:
            yield from range(n)

        async def arows(n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield number

        dag = DAGBuilder().node(rows).node(arows)
        dag.node(sum, output="total", inputs=["rows"]).node(len, output="n2", inputs=["rows"])
        dag.node(sum, output="atotal", inputs=["arows"], name="asum")
        results = await ExecutionEngine(broker, dag.build()).execute({"n": 4})
        assert results == {
            "rows": [0, 1, 2, 3],
            "arows": [0, 1, 2, 3],
            "total": 6,
            "n2": 4,
            "atotal": 6,
        }

    async def test_so_does_one_of_a_decorated_task(self, broker: InMemoryBroker) -> None:
        @broker.task
        def rows(n: int) -> Iterator[int]:
            yield from range(n)

        @broker.task
        async def arows(n: int) -> AsyncIterator[int]:
            for number in range(n):
                yield number

        dag = DAGBuilder().node(rows).node(arows).build()
        results = await ExecutionEngine(broker, dag).execute({"n": 2})
        assert results == {"rows": [0, 1], "arows": [0, 1]}

    async def test_an_error_after_some_items_is_the_tasks_error(
        self, broker: InMemoryBroker
    ) -> None:
        def rows() -> Iterator[int]:
            yield 1
            raise OSError("broken")

        with pytest.raises(NodeFailedError) as caught:
            await ExecutionEngine(broker, DAGBuilder().node(rows).build()).execute()
        assert isinstance(caught.value.__cause__, OSError)

    @pytest.mark.parametrize(
        "make", [lambda: iter([1]), lambda: map(str, [1]), lambda: (1 for _ in [1])]
    )
    async def test_any_other_iterator_is_refused_where_it_is_made(
        self, broker: InMemoryBroker, make: Callable[[], Any]
    ) -> None:
        dag = DAGBuilder().node(make, name="make").node(list, output="all", inputs=["make"]).build()
        with pytest.raises(NodeFailedError, match=r"'make' failed .* read once only"):
            await ExecutionEngine(broker, dag).execute()

    async def test_one_as_an_input_is_refused_before_anything_is_sent(
        self, broker: InMemoryBroker
    ) -> None:
        dag = DAGBuilder().node(list, output="all", inputs=["start"]).build()
        with pytest.raises(SerializationError, match="the input 'start'") as caught:
            await ExecutionEngine(broker, dag).execute({"start": iter([1])})
        assert caught.value.key == "start"


class TestAnnotations:
    async def test_what_does_not_fit_is_converted_or_fails_the_node(
        self, broker: InMemoryBroker
    ) -> None:
        def length(model: Model) -> int:
            return len(model.tags)

        engine = ExecutionEngine(broker, DAGBuilder().node(length).build())
        assert await engine.execute({"model": {"tags": ["a"]}}) == {"length": 1}
        with pytest.raises(NodeFailedError, match="parameter 'model' of length takes Model"):
            await engine.execute({"model": 3})

    async def test_a_result_that_does_not_fit_fails_the_node_that_returned_it(
        self, broker: InMemoryBroker
    ) -> None:
        def wrong() -> Model:
            return 3  # type: ignore[return-value]

        with pytest.raises(NodeFailedError) as caught:
            await ExecutionEngine(broker, DAGBuilder().node(wrong).build()).execute()
        assert isinstance(caught.value.__cause__, AnnotationError)

    async def test_a_value_that_does_not_fit_is_not_tried_again(
        self, broker: InMemoryBroker
    ) -> None:
        def number(n: int) -> int:
            return n

        dag = DAGBuilder().node(number, retry=Retry(attempts=5, wait=60.0)).build()
        with pytest.raises(NodeFailedError) as caught:
            await ExecutionEngine(broker, dag).execute({"n": "abc"})
        assert caught.value.attempts == 1

    async def test_a_broker_that_casts_no_types_leaves_values_as_they_are(self) -> None:
        broker = InMemoryBroker(cast_types=False)
        dag = DAGBuilder().node(lambda n: n, name="n2", inputs=["n"])

        def number(n: int) -> Any:
            return n

        results = await ExecutionEngine(broker, dag.node(number).build()).execute({"n": "3"})
        assert results["number"] == "3"


class TestCallsWithinCalls:
    """The call of a task stands in a context, which everything that the task starts inherits."""

    async def test_a_task_that_calls_itself_as_a_function(self, broker: InMemoryBroker) -> None:
        @broker.task
        async def countdown(n: int) -> int:
            return n if n == 0 else await countdown(n - 1) + 1

        dag = DAGBuilder().node(countdown).build()
        assert await ExecutionEngine(broker, dag).execute({"n": 3}) == {"countdown": 3}

    @pytest.mark.parametrize("in_place", [False, True])
    async def test_a_task_that_sends_itself(self, in_place: bool) -> None:
        broker = InMemoryBroker(await_inplace=in_place)

        @broker.task
        async def countdown(n: int) -> int:
            if n == 0:
                return 0
            sent = await countdown.kiq(n - 1)
            return (await sent.wait_result(check_interval=0.01)).return_value + 1

        dag = DAGBuilder().node(countdown).build()
        assert await ExecutionEngine(broker, dag).execute({"n": 3}) == {"countdown": 3}

    @pytest.mark.parametrize("in_place", [False, True])
    async def test_a_task_that_runs_a_graph_of_itself(self, in_place: bool) -> None:
        broker = InMemoryBroker(await_inplace=in_place)

        @broker.task
        async def countdown(n: Any) -> Any:
            if n[0] == 0:
                return [0]
            inner = ExecutionEngine(broker, DAGBuilder().node(countdown).build())
            return [(await inner.execute({"n": [n[0] - 1]}))["countdown"][0] + 1]

        dag = DAGBuilder().node(countdown).build()
        assert await ExecutionEngine(broker, dag).execute({"n": [3]}) == {"countdown": [3]}

    async def test_a_sync_task_whose_thread_calls_it_again(self, broker: InMemoryBroker) -> None:
        @broker.task
        def double(n: int) -> int:
            return 2 * n

        @broker.task
        def twice(n: int) -> int:
            return double.original_func(double.original_func(n))

        dag = DAGBuilder().node(twice).node(double, output="d").build()
        assert await ExecutionEngine(broker, dag).execute({"n": 1}) == {"twice": 4, "d": 2}

    async def test_a_generator_that_calls_generators(self, broker: InMemoryBroker) -> None:
        @broker.task
        def letters(word: str) -> Iterator[str]:
            yield from word

        @broker.task
        def twice(word: str) -> Iterator[str]:
            yield from letters(word)
            yield from letters(word)

        @broker.task
        async def slow(word: str) -> AsyncIterator[str]:
            for letter in letters(word):
                yield letter

        @broker.task
        async def reversed_(word: str) -> list[str]:
            return [letter async for letter in slow(word)][::-1]

        builder = DAGBuilder().node(letters).node(twice).node(slow)
        dag = builder.node(reversed_, name="reversed").build()
        assert await ExecutionEngine(broker, dag).execute({"word": "ab"}) == {
            "letters": ["a", "b"],
            "twice": ["a", "b", "a", "b"],
            "slow": ["a", "b"],
            "reversed": ["b", "a"],
        }
        assert list(letters("ab")) == ["a", "b"]

    async def test_one_that_returns_the_generator_of_another_is_told_what_to_return(
        self, broker: InMemoryBroker
    ) -> None:
        @broker.task
        def letters(word: str) -> Iterator[str]:
            yield from word

        @broker.task
        async def letters_async(word: str) -> AsyncIterator[str]:
            yield word

        @broker.task
        async def sync_one(word: str) -> Any:
            return letters(word)

        @broker.task
        async def async_one(word: str) -> Any:
            return letters_async(word)

        dag = DAGBuilder().node(letters).node(letters_async).node(sync_one).node(async_one).build()
        engine = ExecutionEngine(broker, dag, on_error="collect")
        results = await engine.execute({"word": "ab"})
        text = (
            " can be read once only, and nobody after its first reader would find anything in it; "
        )
        assert str(results["sync_one"].error) == (
            f"a generator{text}make a list of it, as in 'return list(...)'"
        )
        assert str(results["async_one"].error) == (
            f"an async generator{text}make a list of it, as in "
            "'return [each async for each in ...]'"
        )

    async def test_a_task_sent_without_an_engine_is_executed_as_taskiq_does(
        self, broker: InMemoryBroker
    ) -> None:
        @broker.task
        async def add(a: int, b: int = 1) -> int:
            return a + b

        dag = DAGBuilder().node(add).build()
        assert await ExecutionEngine(broker, dag).execute({"a": 1}) == {"add": 2}
        sent = await add.kiq("2", b=3)  # type: ignore[call-overload] # which taskiq converts
        assert (await sent.wait_result(check_interval=0.01)).return_value == 5
        assert await add(5) == 6


async def test_injected_parameters_stand_beside_values(broker: InMemoryBroker) -> None:
    @broker.task
    async def use(
        context: Annotated[Context, TaskiqDepends()],
        value: Client,
        other: Annotated[Client, TaskiqDepends(Client)],
    ) -> bool:
        return isinstance(other, Client) and value is not other and bool(context.message.task_id)

    engine = ExecutionEngine(broker, DAGBuilder().node(use, inputs=["value"]).build())
    assert await engine.execute({"value": Client()}) == {"use": True}


async def test_a_middleware_sees_and_may_change_the_values_before_they_are_sent() -> None:
    class Adds(TaskiqMiddleware):
        executed: list[Any] = []  # noqa: RUF012

        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            message.kwargs["n"] = message.kwargs["n"] + [2]
            return message

        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            self.executed.append((message.args, message.kwargs))
            return message

    broker = InMemoryBroker().with_middlewares(Adds())
    dag = DAGBuilder().node(lambda n: n, name="keep").build()
    assert await ExecutionEngine(broker, dag).execute({"n": [1]}) == {"keep": [1, 2]}
    assert Adds.executed == [([], {})]


async def test_a_cached_result_that_would_change_on_its_way_is_not_cached(
    broker: InMemoryBroker,
) -> None:
    calls = []

    def pair(n: int) -> tuple[int, int]:
        calls.append(n)
        return n, n

    engine = ExecutionEngine(broker, DAGBuilder().node(pair, cache=Cache()).build())
    results = [(await engine.execute({"n": 1}))["pair"] for _ in range(2)]
    assert results == [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("value", "is_referred_to"),
    [([1] * 1000, True), (bytes(2000), True), (Client(), False), ((1,), False), (math.nan, False)],
)
async def test_what_is_above_the_limit_is_a_handle_whatever_its_type(
    broker: InMemoryBroker, value: Any, is_referred_to: bool
) -> None:
    dag = DAGBuilder().node(lambda: value, name="make").node(lambda make: make, name="take").build()
    results = await ExecutionEngine(broker, dag, pass_by=1000).execute()
    for result in results.values():
        assert isinstance(result, ResultHandle) is is_referred_to
        assert same(await result.get() if is_referred_to else result, value)


async def test_many_tasks_at_once_get_each_their_own_values(broker: InMemoryBroker) -> None:
    @broker.task
    async def keep(item: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return item

    dag = DAGBuilder()
    for number in range(300):
        dag.node(keep, output=f"o{number}", inputs={"item": f"i{number}"}, name=f"k{number}")
    inputs = {f"i{number}": [number] for number in range(300)}
    results = await ExecutionEngine(broker, dag.build()).execute(inputs)
    assert results == {f"o{number}": [number] for number in range(300)}


def test_a_node_is_given_its_own_copy_of_a_value_for_each_parameter() -> None:
    def both(a: list[int], b: list[int]) -> bool:
        a.append(1)
        return a == b

    async def run() -> Any:
        node = DAGNode(both, inputs={"a": "x", "b": "x"})
        dag = DAGBuilder().build()
        dag.add_node(node)
        return await ExecutionEngine(InMemoryBroker(), dag).execute({"x": []})

    assert asyncio.run(run()) == {"both": False}


class Made:
    def __init__(self, number: int) -> None:
        self.number = number


class Settings(BaseModel):
    number: int


class Whole(int):
    def __new__(cls, number: int) -> Self:
        return super().__new__(cls, number)


@dataclasses.dataclass
class Record:
    number: int


def trimmed(text: str) -> str:
    return text.strip()


def number_of(made: Made) -> int:
    return made.number


@pytest.mark.parametrize("make", [Made, Record, Settings, Whole, functools.partial(Settings)])
async def test_a_class_as_a_task_gives_an_object_of_it(broker: InMemoryBroker, make: Any) -> None:
    dag = DAGBuilder().node(make, name="made", inputs=["number"]).build()
    engine = ExecutionEngine(broker, dag, type_check="error")
    made = (await engine.execute({"number": "7"}))["made"]
    cls: Any = make.func if isinstance(make, functools.partial) else make
    assert isinstance(made, cls)
    assert made == 7 if isinstance(made, int) else made.number == 7


def test_an_edge_from_a_class_is_compared_as_one_that_gives_its_objects(
    broker: InMemoryBroker,
) -> None:
    dag = DAGBuilder().node(Made, output="made", inputs=["number"]).node(number_of).build()
    engine = ExecutionEngine(broker, dag, type_check="error")
    assert engine.execute_sync({"number": 7})["number_of"] == 7
    wrong = DAGBuilder().node(Made, output="text", inputs=["number"]).node(trimmed).build()
    with pytest.raises(TypeMismatchError, match=r"gives 'text' as .*Made"):
        ExecutionEngine(broker, wrong, type_check="error")


async def test_a_task_without_annotations_is_given_failures_as_on_a_worker() -> None:
    def fail() -> None:
        raise LookupError("none")

    def report(failures: Any = ()) -> list[str]:
        return [failure.message for failure in failures]

    broker = InMemoryBroker().with_middlewares(FlowMiddleware())
    dag = DAGBuilder().node(fail)
    dag.node(report, inputs={"failures": "fail.failures"}, join="ended")
    engine = ExecutionEngine(broker, dag.build(), on_error="collect", values="encoded")
    assert (await engine.execute())["report"] == ["none"]
