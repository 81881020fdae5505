"""Tasks that are generators: their items are taken while they run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from taskiq import InMemoryBroker, SimpleRetryMiddleware, TaskiqMessage, TaskiqMiddleware

from taskiq_flow import (
    DAGBuilder,
    ElementsKnown,
    ExecutionEngine,
    Failure,
    GraphChangedError,
    Item,
    ItemsChangedError,
    MemoryJournal,
    MissingNodeError,
    NodeCompleted,
    NodeFailed,
    NodeFailedError,
    NodeFailure,
    NodeSkipped,
    NodeTimeoutError,
    OutputShapeError,
    Product,
    Retry,
    RunCancelledError,
    RunFailedError,
    RunReader,
    RunView,
)
from taskiq_flow.engine.run_spec import Items, OnError
from taskiq_flow.generators.grant import ITEMS_LABEL, Grant
from taskiq_flow.testing import LocalBroker, LocalNotices
from tests.local_flow import with_flow
from tests.recording import AtOnce, Recorder
from tests.virtual_clock import virtually


async def numbers(count: int) -> AsyncIterator[int]:
    """One number each second."""
    for number in range(count):
        await asyncio.sleep(1)
        yield number


async def double(number: int) -> int:
    await asyncio.sleep(1)
    return 2 * number


def awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same as a coroutine function: a thread would not be waited for by the virtual clock."""

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def chain() -> DAGBuilder:
    return DAGBuilder().node(numbers).node(double, inputs=["numbers"], map_over="numbers")


def engine_of(builder: DAGBuilder, **options: Any) -> ExecutionEngine:
    return ExecutionEngine(InMemoryBroker(), builder.build(), **options)


async def stream_of(
    engine: ExecutionEngine, inputs: dict[str, Any], *, items: Items = True
) -> list[tuple[str, Any]]:
    return [pair async for pair in engine.execute_async(inputs, items=items)]


class Source:
    """A generator that notes what it has made, and that it was closed."""

    def __init__(self, count: int, breaks_at: int | None = None) -> None:
        self.count = count
        self.breaks_at = breaks_at
        self.made = 0
        self.executions = 0
        self.closed = 0

    async def items(self) -> AsyncIterator[int]:
        self.executions += 1
        try:
            for number in range(self.count):
                if number == self.breaks_at and self.executions == 1:
                    raise ValueError(f"broken at {number}")
                self.made += 1
                yield number
        finally:
            self.closed += 1


# Items flow


@virtually
async def test_a_node_that_maps_over_a_generator_runs_while_that_one_makes_more() -> None:
    loop = asyncio.get_running_loop()
    times = {}
    async for name, value in engine_of(chain()).execute_async({"count": 3}, items=True):
        times[name, value.index if isinstance(value, Item) else None] = loop.time()
    assert times == {
        ("numbers", 0): 1,
        ("numbers", 1): 2,
        ("double", 0): 2,
        ("numbers", 2): 3,
        ("numbers", None): 3,
        ("double", 1): 3,
        ("double", 2): 4,
        ("double", None): 4,
    }


@virtually
async def test_who_takes_a_generator_whole_is_given_the_list() -> None:
    builder = chain().node(awaited(sum), name="total", inputs=["double"])
    builder.node(awaited(len), name="count_of", inputs=["numbers"])
    results = await engine_of(builder).execute({"count": 4})
    assert results == {"numbers": [0, 1, 2, 3], "double": [0, 2, 4, 6], "total": 12, "count_of": 4}


@virtually
async def test_a_generator_without_items_gives_an_empty_list() -> None:
    builder = chain().node(awaited(sum), name="total", inputs=["double"])
    assert await stream_of(engine_of(builder), {"count": 0}) == [
        ("numbers", []),
        ("double", []),
        ("total", 0),
    ]


@virtually
@pytest.mark.parametrize("taken", ["numbers", "double", ""])
async def test_a_run_that_was_stopped_has_the_items_that_a_node_takes_whole(taken: str) -> None:
    builder = chain()
    if taken:
        builder.node(awaited(sum), name="total", inputs=[taken])
    async with engine_of(builder).start({"count": 99}, items="only") as run:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run, 3.5)
        so_far = run.results
    assert run.results == so_far
    assert (
        so_far
        == {
            "numbers": {"numbers[0]": 0, "numbers[1]": 1, "numbers[2]": 2},
            "double": {"double[0]": 0, "double[1]": 2},
            "": {},
        }[taken]
    )


@virtually
async def test_items_are_yielded_also_if_no_node_maps_over_them() -> None:
    engine = engine_of(DAGBuilder().node(numbers))
    assert await stream_of(engine, {"count": 2}) == [
        ("numbers", Item(0, 0)),
        ("numbers", Item(1, 1)),
        ("numbers", [0, 1]),
    ]
    assert await stream_of(engine, {"count": 2}, items="only") == [
        ("numbers", Item(0, 0)),
        ("numbers", Item(1, 1)),
    ]
    assert await stream_of(engine, {"count": 2}, items=False) == [("numbers", [0, 1])]


@virtually
async def test_items_are_yielded_as_they_are_made_though_nothing_else_may_run() -> None:
    loop = asyncio.get_running_loop()
    engine = engine_of(DAGBuilder().node(numbers), max_parallel=1)
    times = [loop.time() async for _ in engine.execute_async({"count": 3}, items="only")]
    assert times == [1, 2, 3]


async def test_a_sync_generator_gives_its_items_as_it_makes_them() -> None:
    may_end = threading.Event()

    def lines() -> Iterator[str]:
        yield "ebb"
        may_end.wait(10)
        yield "flow"

    async def shout(line: str) -> str:
        may_end.set()
        return line.upper()

    builder = DAGBuilder().node(lines).node(shout, inputs=["lines"], map_over="lines")
    async with asyncio.timeout(20):
        results = await engine_of(builder).execute()
    assert results == {"lines": ["ebb", "flow"], "shout": ["EBB", "FLOW"]}


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_task_of_the_broker_may_be_a_generator(is_async: bool) -> None:
    broker = InMemoryBroker()

    @broker.task
    async def made_async(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @broker.task
    def made(count: int) -> Iterator[int]:
        yield from range(count)

    task: Any = made_async if is_async else made
    builder = DAGBuilder().node(task, name="made")
    dag = builder.node(abs, name="positive", inputs=["made"], map_over="made").build()
    assert await ExecutionEngine(broker, dag).execute({"count": 2}) == {
        "made": [0, 1],
        "positive": [0, 1],
    }


async def test_sync_generators_that_wait_leave_the_threads_to_others() -> None:
    def items(size: int) -> Iterator[int]:
        yield from range(size)

    def negative(item: int) -> int:
        return -item

    builder = DAGBuilder().node(items, inputs=["sizes"], map_over="sizes", window=2)
    builder.node(negative, inputs=["items"], map_over={"items": 2})
    engine = engine_of(builder, max_parallel=8)  # the broker has fewer threads
    async with asyncio.timeout(20):
        results = await engine.execute({"sizes": [30] * 10})
    assert results["negative"] == [[-number for number in range(30)]] * 10


@virtually
async def test_each_item_is_split_if_there_are_several_outputs() -> None:
    async def pairs(count: int) -> AsyncIterator[tuple[int, str]]:
        for number in range(count):
            yield number, str(number)

    builder = DAGBuilder().node(pairs, outputs=["number", "text"])
    builder.node(awaited(len), name="length", inputs=["text"], map_over="text")
    expected = {"number": [0, 1], "text": ["0", "1"], "length": [1, 1]}
    assert await engine_of(builder).execute({"count": 2}) == expected


@virtually
async def test_an_item_that_cannot_be_split_fails_by_itself() -> None:
    async def pairs() -> AsyncIterator[Any]:
        yield 1, 2
        yield 3

    engine = engine_of(DAGBuilder().node(pairs, outputs=["a", "b"]), on_error="continue")
    with pytest.raises(RunFailedError) as failed:
        await engine.execute()
    assert list(failed.value.failures) == ["pairs[1]"]
    assert isinstance(failed.value.failures["pairs[1]"], OutputShapeError)


@virtually
async def test_a_mapped_generator_gives_lists_within_a_list() -> None:
    builder = DAGBuilder().node(numbers, inputs=["counts"], map_over="counts")
    builder.node(double, inputs=["numbers"], map_over={"numbers": 2})
    builder.node(awaited(sum), name="sums", inputs=["double"], map_over="double")
    results = await engine_of(builder).execute({"counts": [2, 0, 3]})
    assert results == {
        "numbers": [[0, 1], [], [0, 1, 2]],
        "double": [[0, 2], [], [0, 2, 4]],
        "sums": [2, 0, 6],
    }


@virtually
async def test_the_items_of_a_mapped_generator_are_joined_by_flatten() -> None:
    builder = DAGBuilder().node(numbers, inputs=["counts"], map_over="counts", flatten=True)
    builder.node(double, inputs=["numbers"], map_over="numbers")
    pairs = await stream_of(engine_of(builder), {"counts": [2, 0, 1]})
    assert dict(pairs)["numbers"] == [0, 1, 0]
    assert dict(pairs)["double"] == [0, 2, 0]
    assert ("double", Item((2, 0), 0)) in pairs


@virtually
async def test_items_are_taken_together_and_multiplied_as_elements_are() -> None:
    builder = DAGBuilder().node(numbers)
    builder.node(
        awaited(lambda n, c: f"{c}{n}"),
        name="zipped",
        inputs=["numbers", "chars"],
        map_over=["numbers", "chars"],
    )
    builder.node(
        awaited(lambda c, n: f"{c}{n}"),
        name="product",
        inputs=["chars", "numbers"],
        map_over=Product("chars", "numbers"),
    )
    results = await engine_of(builder).execute({"count": 2, "chars": ["a", "b"]})
    assert results["zipped"] == ["a0", "b1"]
    assert results["product"] == [["a0", "a1"], ["b0", "b1"]]


@virtually
async def test_lists_that_differ_in_length_are_told_by_the_generators_output() -> None:
    builder = DAGBuilder().node(numbers, output="ids")
    builder.node(
        awaited(lambda n, c: n), name="zipped", inputs=["ids", "chars"], map_over=["ids", "chars"]
    )
    with pytest.raises(NodeFailedError) as failed:
        await engine_of(builder).execute({"count": 3, "chars": ["a", "b"]})
    assert "'chars' has 2" in str(failed.value)
    assert "'ids' has" in str(failed.value)
    assert "items of" not in str(failed.value)


def numbers_beside_chars() -> DAGBuilder:
    """A generator and a run input, whose items are taken together."""
    builder = DAGBuilder().node(numbers)
    return builder.node(
        awaited(lambda number, char: f"{char}{number}"),
        name="zipped",
        inputs={"number": "numbers", "char": "chars"},
        map_over=["numbers", "chars"],
    )


@virtually
@pytest.mark.parametrize("chars", [[], ["a", "b"]])
@pytest.mark.parametrize("many", [False, True])
async def test_a_run_ends_when_an_endless_generator_is_longer_than_a_list_beside_it(
    chars: list[str], many: bool
) -> None:
    engine = engine_of(numbers_beside_chars())
    given: dict[str, Any] = {"count": 1_000_000, "chars": chars}
    with pytest.raises(NodeFailedError, match="'numbers' has more") as failed:
        if many:
            _ = [each async for each in engine.execute_many([given])]
        await engine.execute(given)
    assert failed.value.task_name == ("zipped[0]" if many else "zipped")
    assert asyncio.get_running_loop().time() == len(chars) + 1


@virtually
async def test_other_runs_are_told_once_when_the_longer_list_is_whole() -> None:
    recorder = Recorder()
    engine = engine_of(numbers_beside_chars(), on_error="collect", listeners=[recorder])
    results = await engine.execute({"count": 5, "chars": ["a", "b"]})
    assert results["numbers"] == [0, 1, 2, 3, 4]
    assert isinstance(results["zipped"], NodeFailure)
    assert [(event.task_name, event.at) for event in recorder.of(NodeFailed)] == [("zipped", 5.0)]


@virtually
@pytest.mark.parametrize("is_taken", [False, True])
@pytest.mark.filterwarnings("ignore::taskiq_flow.UnusedInputWarning")
async def test_an_input_of_the_user_may_have_any_name(is_taken: bool) -> None:
    builder, name = chain(), "items of numbers"
    if is_taken:
        builder.node(awaited(repr), name="text", inputs=[name])
    results = await engine_of(builder).execute({"count": 2, name: 7})
    assert results["double"] == [0, 2]
    assert results.get("text") == ("7" if is_taken else None)


@virtually
async def test_an_item_is_taken_as_it_was_when_it_was_yielded() -> None:
    async def growing() -> AsyncIterator[list[int]]:
        row: list[int] = []
        for number in range(3):
            row.append(number)
            yield row

    builder = DAGBuilder().node(growing)
    builder.node(awaited(len), name="length", inputs=["growing"], map_over="growing")
    results = await engine_of(builder).execute()
    assert results == {"growing": [[0], [0, 1], [0, 1, 2]], "length": [1, 2, 3]}


@pytest.mark.parametrize("is_input", [False, True])
async def test_an_array_that_is_filled_again_for_each_item_is_taken_each_time(
    is_input: bool,
) -> None:
    numpy = pytest.importorskip("numpy")

    def frames() -> Iterator[Any]:
        frame = numpy.zeros(2, int)
        for number in range(3):
            frame[:] = number
            yield frame

    async def brightness(frame: Any) -> int:
        await asyncio.sleep(0)
        return int(frame.sum())

    builder = DAGBuilder() if is_input else DAGBuilder().node(frames)
    dag = builder.node(brightness, inputs=["frames"], map_over="frames").build()
    engine = ExecutionEngine(InMemoryBroker(), dag)
    inputs = {"frames": frames()} if is_input else {}
    assert dict([pair async for pair in engine.execute_async(inputs)])["brightness"] == [0, 2, 4]


class Odd:
    """Equality that is no answer, as that of an array."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Any:
        return [other]

    def __bool__(self) -> bool:
        raise ValueError("neither")


@virtually
@pytest.mark.parametrize("items", [True, "only"])
async def test_items_of_any_kind_are_values(items: Items) -> None:
    given: list[Any] = [None, False, ValueError("a value"), Odd(), (1, 2), [], StopIteration(), ...]

    async def give() -> AsyncIterator[Any]:
        for value in given:
            yield value

    async def same(value: Any) -> Any:
        return value

    builder = DAGBuilder().node(give)
    builder.node(same, inputs={"value": "give"}, map_over="give", max_parallel=2)
    found: dict[str, list[Any]] = {"give": [], "same": []}
    engine = engine_of(builder, values="shared")
    async for name, item in engine.execute_async(items=items):
        if isinstance(item, Item):
            found[name].append(item.value)
    for values in found.values():
        assert len(values) == len(given)
        assert all(value is each for value, each in zip(values, given, strict=True))


@virtually
async def test_listeners_are_told_how_many_items_there_were() -> None:
    recorder = Recorder()
    await engine_of(chain(), listeners=[recorder]).execute({"count": 2})
    completed = recorder.of(NodeCompleted)
    given = [event.result for event in completed if event.task_name == "numbers"]
    assert (given, repr(given)) == ([2], "[2 items]")
    assert [event.count for event in recorder.of(ElementsKnown)] == [2]


@virtually
async def test_a_generator_that_a_condition_skips_has_no_items() -> None:
    builder = DAGBuilder().node(numbers, when=lambda count: count > 5)
    builder.node(double, inputs=["numbers"], map_over="numbers")
    pairs = dict(await stream_of(engine_of(builder, on_error="collect"), {"count": 2}))
    assert [pairs[name].reason for name in ("numbers", "double")] == ["condition"] * 2


@virtually
async def test_a_cached_generator_gives_its_list_when_it_has_ended() -> None:
    loop = asyncio.get_running_loop()
    builder = DAGBuilder().node(numbers, cache=True)
    builder.node(double, inputs=["numbers"], map_over="numbers")
    engine = engine_of(builder)
    first = await engine.execute({"count": 3})
    assert loop.time() == 4
    assert first == {"numbers": [0, 1, 2], "double": [0, 2, 4]}
    assert await engine.execute({"count": 3}) == first
    assert loop.time() == 5


@virtually
async def test_a_generator_runs_for_each_of_many_inputs() -> None:
    engine = engine_of(chain())
    source = [{"count": 2}, {"count": 1}]
    found = [pair async for pair in engine.execute_many(source, ordered=True, whole=True)]
    assert found == [
        (0, {"numbers": [0, 1], "double": [0, 2]}),
        (1, {"numbers": [0], "double": [0]}),
    ]
    items = [triple async for triple in engine.execute_many(source, items=True)]
    assert (0, "numbers", Item(1, 1)) in items
    assert (1, "double", [0]) in items


@pytest.mark.parametrize("is_embedded", [True, False])
async def test_middlewares_see_generators_under_the_names_of_their_tasks(
    is_embedded: bool,
) -> None:
    seen: list[tuple[str, str, Any]] = []

    class Sees(TaskiqMiddleware):
        def post_execute(self, message: TaskiqMessage, result: Any) -> None:
            seen.append((message.task_name, message.labels["kind"], result.return_value))

    broker: Any = InMemoryBroker() if is_embedded else LocalBroker()
    broker.add_middlewares(Sees())
    flow = with_flow(broker, LocalNotices())

    async def items() -> AsyncIterator[int]:
        yield 1

    def lines() -> Iterator[int]:
        yield 2

    builder = DAGBuilder().node(broker.register_task(items, task_name="shop:items", kind="async"))
    builder.node(broker.register_task(lines, task_name="shop:lines", kind="sync"))
    dag = builder.build()
    async with contextlib.nullcontext() if is_embedded else broker.worker():
        await stream_of(ExecutionEngine(broker, dag), {})
    await flow.shutdown()
    assert sorted(seen) == [("shop:items", "async", 1), ("shop:lines", "sync", 1)]


# Room


@virtually
@pytest.mark.parametrize("window", [1, 4])
async def test_a_generator_is_no_further_ahead_than_its_window(window: int) -> None:
    source, begun, most = Source(50), 0, 0

    async def slow(item: int) -> int:
        nonlocal begun, most
        begun += 1
        most = max(most, source.made - begun)
        await asyncio.sleep(1)
        return item

    builder = DAGBuilder().node(source.items, window=window)
    builder.node(slow, inputs=["items"], map_over="items", max_parallel=2)
    results = await engine_of(builder).execute()
    assert results["slow"] == list(range(50))
    assert most <= window + 2  # which were sent and have not begun


@virtually
async def test_a_generator_waits_for_the_reader_if_nobody_else_takes_its_items() -> None:
    source, read = Source(100), 0
    engine = engine_of(DAGBuilder().node(source.items, window=4))
    async for _ in engine.execute_async(items="only"):
        await asyncio.sleep(1)
        read += 1
        assert source.made <= read + 5
    assert read == 100


@virtually
async def test_the_reader_is_given_items_that_a_slow_map_has_not_taken_yet() -> None:
    loop = asyncio.get_running_loop()

    async def slow(number: int) -> int:
        await asyncio.sleep(100)
        return number

    builder = DAGBuilder().node(numbers).node(awaited(sum), name="total", inputs=["numbers"])
    builder.node(slow, inputs=["numbers"], map_over="numbers", max_parallel=1)
    times = {}
    async for name, value in engine_of(builder).execute_async({"count": 4}, items=True):
        times[name, value.index if isinstance(value, Item) else None] = loop.time()
    assert [times["numbers", index] for index in (0, 1, 2, 3, None)] == [1, 2, 3, 4, 4]
    assert times["total", None] == 4
    assert times["slow", 0] == 101


@virtually
async def test_a_map_goes_on_while_the_reader_has_still_to_read_the_items() -> None:
    source, begun = Source(50), asyncio.Event()

    async def first(item: int) -> None:
        begun.set()

    builder = DAGBuilder().node(source.items, window=10)
    builder.node(first, inputs=["items"], map_over="items")
    async for _ in engine_of(builder, max_parallel=1).execute_async(items="only"):
        await asyncio.wait_for(begun.wait(), 1)
        break
    assert source.made <= 1 + 10 + 1


@virtually
@pytest.mark.parametrize("items", [True, "only"])
async def test_the_reader_holds_back_a_generator_whose_items_a_condition_leaves_out(
    items: Items,
) -> None:
    source, read = Source(100), 0
    builder = DAGBuilder().node(source.items, window=2)
    builder.node(double, inputs=["items"], map_over="items", when=lambda items: False)
    async for _ in engine_of(builder, max_parallel=2).execute_async(items=items):
        await asyncio.sleep(1)
        read += 1
        assert source.made <= read + 2 + 2 + 1


@virtually
async def test_items_are_dropped_when_all_that_map_over_them_have_ended() -> None:
    class Big:
        """It can be referenced weakly."""

    alive: weakref.WeakSet[Big] = weakref.WeakSet()
    most = 0

    async def bigs() -> AsyncIterator[Big]:
        for _ in range(100):
            alive.add(big := Big())
            yield big

    async def first(big: Big) -> int:
        nonlocal most
        await asyncio.sleep(1)
        most = max(most, len(alive))
        return 1

    builder = DAGBuilder().node(bigs, window=2).node(first, inputs=["bigs"], map_over="bigs")
    builder.node(
        awaited(lambda big, other: other),
        name="last",
        inputs=["bigs", "first"],
        map_over=["bigs", "first"],
    )
    engine = engine_of(builder, max_parallel=2, values="shared")
    read = [name async for name, _ in engine.execute_async(items="only")]
    assert len(read) == 300
    assert most <= 12


@virtually
async def test_items_of_which_a_later_pass_takes_some_are_dropped_with_their_positions_there() -> (
    None
):
    class Big:
        """It can be referenced weakly."""

    alive: weakref.WeakSet[Big] = weakref.WeakSet()
    at_the_end: list[int] = []

    async def bigs() -> AsyncIterator[Big]:
        for _ in range(20):
            alive.add(big := Big())
            yield big

    async def one(big: Big) -> int:
        return 1

    async def share(big: Big, total: int) -> None:
        await asyncio.sleep(1)
        at_the_end.append(len(alive))

    builder = DAGBuilder().node(bigs, window=2).node(one, inputs=["bigs"], map_over="bigs")
    builder.node(awaited(sum), name="total", inputs=["one"])
    builder.node(share, inputs={"big": "bigs", "total": "total"}, map_over="bigs", max_parallel=1)
    engine = engine_of(builder, max_parallel=2, values="shared")
    async for _ in engine.execute_async(items="only"):
        pass
    assert len(at_the_end) == 20
    assert at_the_end[-1] <= 4


async def list_beside(kind: str) -> list[int]:
    if kind == "failing late":
        await asyncio.sleep(10)
    if kind.startswith("failing"):
        raise ValueError
    return [0] * 3 if kind == "shorter" else []


@virtually
@pytest.mark.parametrize("others", ["shorter", "empty", "failing", "skipped", "failing late"])
@pytest.mark.parametrize("made_by", ["generator", "mapped generator", "map", "source"])
@pytest.mark.parametrize("are_taken", [False, True])
async def test_values_that_a_list_beside_them_leaves_over_are_dropped(
    made_by: str, others: str, *, are_taken: bool
) -> None:
    class Big:
        """It can be referenced weakly."""

    alive: weakref.WeakSet[Big] = weakref.WeakSet()

    async def bigs(row: int = 0) -> AsyncIterator[Big]:
        for _ in range(100):
            await asyncio.sleep(1)
            alive.add(big := Big())
            yield big

    async def other(row: int = 0) -> list[int]:
        return await list_beside(others)

    builder, inputs, within = DAGBuilder(), dict[str, Any](), dict[str, Any]()
    if made_by == "mapped generator":
        inputs["rows"] = [0]
        within = {"inputs": {"row": "rows"}, "map_over": "rows"}
    levels = 2 if within else 1
    if made_by.endswith("generator"):
        builder.node(bigs, window=2, **within)
    elif made_by == "map":
        inputs["source"] = bigs()
        builder.node(awaited(lambda big: big), name="bigs", inputs=["source"], map_over="source")
    else:
        inputs["bigs"] = bigs()
    builder.node(other, when=lambda: others != "skipped", **within)
    if are_taken:
        builder.node(awaited(id), name="taken", inputs=["bigs"], map_over={"bigs": levels})
    builder.node(
        awaited(lambda big, other: other),
        name="together",
        inputs=["bigs", "other"],
        map_over={"bigs": levels, "other": levels},
    )
    engine = engine_of(builder, max_parallel=2, values="shared", on_error="collect")
    most = 0
    async for _ in engine.execute_async(inputs, items="only"):
        most = max(most, len(alive))
    assert most <= 10
    assert most or (made_by == "source" and not are_taken)  # then nobody reads it


@virtually
async def test_a_generator_does_not_wait_if_its_items_are_taken_whole_only() -> None:
    source = Source(1000)
    builder = DAGBuilder().node(source.items, window=1)
    builder.node(awaited(len), name="count", inputs=["items"])
    assert (await engine_of(builder, max_parallel=1).execute())["count"] == 1000


@virtually
@pytest.mark.parametrize("limit", [1, 2, None])
async def test_items_that_wait_for_all_of_them_are_no_deadlock(limit: int | None) -> None:
    source = Source(100)
    builder = DAGBuilder().node(source.items, window=2)
    builder.node(awaited(sum), name="total", inputs=["items"])
    builder.node(
        awaited(lambda item, total: item / total),
        name="share",
        inputs=["items", "total"],
        map_over="items",
    )
    results = await engine_of(builder, max_parallel=limit).execute()
    assert sum(results["share"]) == pytest.approx(1)


@virtually
@pytest.mark.parametrize("limit", [1, 2, None])
@pytest.mark.parametrize("flatten", [False, True])
async def test_items_that_wait_for_what_their_own_generators_map_over_are_no_deadlock(
    limit: int | None, flatten: bool
) -> None:
    async def items(number: int) -> AsyncIterator[int]:
        for item in range(number):
            yield item

    builder = DAGBuilder().node(numbers, window=1)
    builder.node(items, inputs=["numbers"], map_over="numbers", flatten=flatten, window=1)
    builder.node(
        awaited(lambda item, numbers: (item, len(numbers))),
        name="share",
        inputs={"item": "items", "numbers": "numbers"},
        map_over={"items": 1 if flatten else 2},
    )
    results = await engine_of(builder, max_parallel=limit).execute({"count": 12})
    nested = [[(item, 12) for item in range(number)] for number in range(12)]
    assert results["share"] == ([pair for part in nested for pair in part] if flatten else nested)


@virtually
@pytest.mark.parametrize("items", [True, False])
async def test_who_takes_the_items_of_an_element_waits_for_what_that_waits_for(
    items: Items,
) -> None:
    async def bits(number: int, first: list[int]) -> AsyncIterator[int]:
        for _ in first:
            yield number

    builder = DAGBuilder().node(double, name="first", inputs=["numbers"], map_over="numbers")
    builder.node(bits, inputs={"number": "numbers", "first": "first"}, map_over="numbers")
    builder.node(awaited(sum), name="total", inputs=["bits"], map_over="bits")
    engine = engine_of(builder, max_parallel=1)
    pairs = await stream_of(engine, {"numbers": [0, 1, 2, 3]}, items=items)
    assert ("total", [0, 4, 8, 12]) in pairs


@virtually
async def test_a_generator_that_waits_gives_up_its_place() -> None:
    results = await engine_of(chain(), max_parallel=1).execute({"count": 40})
    assert results["double"] == [2 * number for number in range(40)]


@virtually
@pytest.mark.parametrize(("limit", "most"), [(None, 8), (3, 3)])
async def test_so_many_elements_of_a_generator_are_open_at_once(
    limit: int | None, most: int
) -> None:
    running = AtOnce()

    async def items(size: int) -> AsyncIterator[int]:
        with running:
            for number in range(size):
                await asyncio.sleep(1)
                yield number

    builder = DAGBuilder().node(
        items, inputs=["sizes"], map_over="sizes", max_parallel=limit, window=1
    )
    builder.node(double, inputs=["items"], map_over={"items": 2}, max_parallel=2)
    results = await engine_of(builder).execute({"sizes": [3] * 20})
    assert results["double"] == [[0, 2, 4]] * 20
    assert running.most == most


@virtually
@pytest.mark.parametrize(
    ("limit", "max_parallel", "granted"), [(None, 8, 2 + 8), (5, None, 2 + 4), (1, 8, 2)]
)
async def test_items_for_free_places_are_granted_beside_the_window(
    limit: int | None, max_parallel: int | None, granted: int
) -> None:
    grants: list[Grant] = []

    class Labels(TaskiqMiddleware):
        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            grants.extend(Grant.of(v) for k, v in message.labels.items() if k == ITEMS_LABEL)
            return message

    broker = LocalBroker().with_middlewares(Labels())
    flow = with_flow(broker, LocalNotices())
    taking = broker.register_task(double, task_name="double")
    builder = DAGBuilder().node(broker.register_task(numbers, task_name="numbers"), window=2)
    builder.node(taking, inputs=["numbers"], map_over="numbers", max_parallel=max_parallel)
    engine = ExecutionEngine(broker, builder.build(), limit)
    async with broker.worker():
        results = await engine.execute({"count": 20})
    await flow.shutdown()
    assert results["double"] == [2 * number for number in range(20)]
    assert [grant.may for grant in grants] == [granted]


@virtually
async def test_generators_share_the_places_that_are_free() -> None:
    made = begun = most = 0

    async def items(size: int) -> AsyncIterator[int]:
        nonlocal made, most
        for number in range(size):
            made += 1
            most = max(most, made - begun)
            yield number
            await asyncio.sleep(0)

    async def slow(items: int) -> int:
        nonlocal begun
        begun += 1
        await asyncio.sleep(1)
        return 2 * items

    builder = DAGBuilder().node(items, inputs=["sizes"], map_over="sizes", window=2)
    builder.node(slow, inputs=["items"], map_over={"items": 2}, max_parallel=16)
    results = await engine_of(builder).execute({"sizes": [40] * 8})
    assert results["slow"] == [[2 * number for number in range(40)]] * 8
    assert most <= 8 * 2 + 16


@virtually
async def test_generators_that_hold_all_places_of_a_worker_do_not_stop_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = LocalBroker()
    flow = with_flow(broker, LocalNotices())

    async def items(size: int) -> AsyncIterator[int]:
        for number in range(size):
            yield number

    builder = DAGBuilder().node(
        broker.register_task(items, task_name="items"),
        inputs=["sizes"],
        map_over="sizes",
        window=2,
    )
    builder.node(
        broker.register_task(double, task_name="double"),
        inputs=["items"],
        map_over={"items": 2},
        max_parallel=1,
    )
    engine = ExecutionEngine(broker, builder.build())
    async with broker.worker(slots=2):
        results = await engine.execute({"sizes": [7, 7, 7]})
    await flow.shutdown()
    assert results["double"] == [[2 * number for number in range(7)]] * 3
    said = [record.message for record in caplog.records if "waited for room" in record.message]
    assert len(said) == 1


# Failures


def broken(at: int, **options: Any) -> DAGBuilder:
    async def items() -> AsyncIterator[int]:
        for number in range(at):
            yield number
        raise ValueError(f"broken at {at}")

    builder = DAGBuilder().node(items, **options)
    builder.node(double, inputs=["items"], map_over="items")
    return builder.node(awaited(sum), name="total", inputs=["double"])


@virtually
async def test_items_that_were_made_go_on_though_the_generator_fails_later() -> None:
    pairs = await stream_of(engine_of(broken(2), on_error="collect"), {})
    values = dict(pairs)
    assert [pair for pair in pairs if isinstance(pair[1], Item)] == [
        ("items", Item(0, 0)),
        ("items", Item(1, 1)),
        ("double", Item(0, 0)),
        ("double", Item(1, 2)),
    ]
    assert isinstance(values["items"], NodeFailure)
    assert isinstance(values["double"], NodeSkipped)
    assert values["double"].because_of == ("items",)
    assert isinstance(values["total"], NodeSkipped)


@virtually
@pytest.mark.parametrize("on_error", ["collect", "continue"])
async def test_listeners_are_told_that_a_list_over_a_failed_generator_is_none(
    on_error: OnError,
) -> None:
    journal, view = MemoryJournal(), RunView()
    run = engine_of(broken(2), on_error=on_error, journal=journal).start(run_id="r")
    async for event in run.events():
        view.apply(event)
    node = view.nodes["double"]
    assert (node.state, node.reason, node.because_of) == ("skipped", "failure", ("items",))
    assert node.elements is not None
    assert node.elements.completed == 2
    with pytest.raises(MissingNodeError, match=r"the node was skipped; its elements are stored"):
        await RunReader(journal).value("r", "double")
    assert await RunReader(journal).value("r", "double[1]") == 2
    if on_error == "collect":
        assert isinstance((await run)["double"], NodeSkipped)
    else:
        with pytest.raises(RunFailedError):
            await run


@virtually
async def test_a_generator_that_fails_is_the_failure_of_the_run() -> None:
    with pytest.raises(NodeFailedError) as failed:
        await engine_of(broken(2)).execute()
    assert failed.value.task_name == "items"
    with pytest.raises(RunFailedError) as ended:
        await engine_of(broken(2), on_error="continue").execute()
    assert list(ended.value.failures) == ["items"]
    assert ended.value.skipped == ["total"]


@virtually
async def test_nodes_are_skipped_if_a_generator_fails_before_its_first_item() -> None:
    pairs = await stream_of(engine_of(broken(0), on_error="collect"), {})
    assert [name for name, _ in pairs] == ["items", "double", "total"]
    assert [type(value) for _, value in pairs] == [NodeFailure, NodeSkipped, NodeSkipped]


@virtually
async def test_an_ended_node_is_given_what_there_is_of_the_items() -> None:
    builder = broken(2)
    builder.node(
        awaited(lambda items=None, double=None, failures=(): (items, double, failures)),
        name="report",
        inputs={"items": "items", "double": "double", "failures": "items.failures"},
        join="ended",
    )
    pairs = dict(await stream_of(engine_of(builder, on_error="collect"), {}, items=False))
    items, doubled, failures = pairs["report"]
    assert (items, doubled) == ([0, 1], [0, 2])
    assert failures == [Failure("items", None, "ValueError", "broken at 2")]


@virtually
async def test_an_ended_node_alone_is_given_what_there_is_of_the_items() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    builder = DAGBuilder().node(items)
    builder.node(awaited(lambda items=None: items), name="report", inputs=["items"], join="ended")
    pairs = dict(await stream_of(engine_of(builder, on_error="collect"), {}, items=False))
    assert pairs["report"] == [1]


@virtually
async def test_one_of_many_generators_fails_by_itself() -> None:
    async def items(size: int) -> AsyncIterator[int]:
        for number in range(size):
            yield number
        if size == 2:
            raise ValueError("broken")

    builder = DAGBuilder().node(items, inputs=["sizes"], map_over="sizes")
    builder.node(double, inputs=["items"], map_over={"items": 2})
    engine = engine_of(builder, on_error="collect")
    pairs = dict(await stream_of(engine, {"sizes": [1, 2]}, items=False))
    assert pairs["items"][0] == [0]
    assert isinstance(pairs["items"][1], NodeFailure)
    assert pairs["double"][0] == [0]
    assert isinstance(pairs["double"][1], NodeSkipped)
    assert pairs["double"][1].because_of == ("items[1]",)


@virtually
async def test_a_generator_over_the_items_of_one_that_fails_is_told_as_skipped() -> None:
    async def some() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    builder = DAGBuilder().node(some)
    builder.node(numbers, inputs=["some"], map_over="some")
    engine = engine_of(builder, on_error="collect")
    for items in (True, False):
        pairs = dict(await stream_of(engine, {}, items=items))
        assert isinstance(pairs["some"], NodeFailure)
        assert isinstance(pairs["numbers"], NodeSkipped)
        assert pairs["numbers"].because_of == ("some",)
    found = [triple async for triple in engine.execute_many([{}])]
    assert {name: type(value) for _, name, value in found} == {
        "some": NodeFailure,
        "numbers": NodeSkipped,
    }


# Executed once more


@virtually
async def test_a_retry_passes_over_the_items_that_were_taken() -> None:
    source = Source(4, breaks_at=2)
    builder = DAGBuilder().node(source.items, retry=Retry(2, wait=0))
    builder.node(double, inputs=["items"], map_over="items")
    pairs = await stream_of(engine_of(builder), {})
    assert [pair for pair in pairs if pair[0] == "items"] == [
        *(("items", Item(number, number)) for number in range(4)),
        ("items", [0, 1, 2, 3]),
    ]
    assert (source.made, source.executions, source.closed) == (6, 2, 2)


@virtually
@pytest.mark.parametrize("second", [[0, 7, 2, 3], [0]], ids=["other items", "fewer items"])
async def test_other_items_at_a_retry_fail_the_node_for_good(second: list[int]) -> None:
    executions = 0

    async def items() -> AsyncIterator[int]:
        nonlocal executions
        executions += 1
        for number in [0, 1, 2] if executions == 1 else second:
            yield number
        if executions == 1:
            raise ValueError("broken")

    builder = DAGBuilder().node(items, retry=Retry(5, wait=0))
    builder.node(double, inputs=["items"], map_over="items")
    with pytest.raises(NodeFailedError) as failed:
        await engine_of(builder).execute()
    assert isinstance(failed.value.__cause__, ItemsChangedError)
    assert executions == 2


async def test_a_retry_of_a_middleware_passes_over_the_items_that_were_taken() -> None:
    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware())
    executions = 0

    @broker.task(retry_on_error=True, max_retries=3)
    async def items() -> AsyncIterator[int]:
        nonlocal executions
        executions += 1
        for number in range(4):
            if number == 2 and executions == 1:
                raise ValueError("broken")
            yield number

    dag = DAGBuilder().node(items, name="items").build()
    pairs = await stream_of(ExecutionEngine(broker, dag), {})
    assert pairs == [*(("items", Item(n, n)) for n in range(4)), ("items", [0, 1, 2, 3])]
    assert executions == 2


@virtually
async def test_the_time_limit_counts_for_each_item_and_not_while_there_is_no_room() -> None:
    builder = DAGBuilder().node(numbers, timeout=1.5, window=1)
    builder.node(double, inputs=["numbers"], map_over="numbers", max_parallel=1)

    async def slowly(number: int) -> int:
        await asyncio.sleep(5)
        return number

    builder.node(slowly, inputs=["double"], map_over="double", max_parallel=1)
    assert (await engine_of(builder).execute({"count": 10}))["slowly"][-1] == 18


@virtually
async def test_an_item_that_takes_longer_than_the_time_limit_fails_the_generator() -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(5):
            await asyncio.sleep(number)
            yield number

    engine = engine_of(DAGBuilder().node(items, timeout=2.5), on_error="collect")
    pairs = await stream_of(engine, {})
    assert [pair[1].value for pair in pairs[:-1]] == [0, 1, 2]
    assert isinstance(pairs[-1][1].error, NodeTimeoutError)


@virtually
async def test_the_time_limit_counts_for_each_item_also_if_only_their_list_is_taken() -> None:
    builder = DAGBuilder().node(numbers, timeout=1.5)
    builder.node(awaited(sum), name="total", inputs=["numbers"])
    assert await engine_of(builder).execute({"count": 5}) == {
        "numbers": [0, 1, 2, 3, 4],
        "total": 10,
    }


@virtually
@pytest.mark.parametrize("is_resumed", [False, True])
async def test_the_items_that_are_passed_over_have_the_time_of_as_many(is_resumed: bool) -> None:
    executions, last = 0, 1.0

    async def items() -> AsyncIterator[int]:
        nonlocal executions
        executions += 1
        for number in range(6):
            await asyncio.sleep(last if number == 4 else 1)
            if number == 4 and executions == 1:
                raise ValueError("broken")
            yield number

    engine = engine_of(
        DAGBuilder().node(items, timeout=1.5, retry=None if is_resumed else 2),
        journal=MemoryJournal(),
    )
    if not is_resumed:
        assert (await engine.execute())["items"] == [0, 1, 2, 3, 4, 5]
        return
    with pytest.raises(NodeFailedError):
        await engine.execute(run_id="r")
    last, begin = 100, asyncio.get_running_loop().time()
    with pytest.raises(NodeFailedError) as failed:
        await engine.execute(run_id="r", resume=True)
    assert isinstance(failed.value.__cause__, NodeTimeoutError)
    assert asyncio.get_running_loop().time() - begin == 5 * 1.5
    last = 1
    assert (await engine.execute(run_id="r", resume=True))["items"] == [0, 1, 2, 3, 4, 5]


async def test_a_sync_generator_that_outlives_its_time_gives_no_late_item() -> None:
    may_go_on, closed = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        try:
            yield 1
            may_go_on.wait(20)
            yield 2
        finally:
            closed.set()

    builder = DAGBuilder().node(items, timeout=0.3)
    builder.node(awaited(abs), name="size", inputs=["items"], map_over="items")
    run = engine_of(builder, on_error="collect").start(items=True)
    pairs = [pair async for pair in run]
    may_go_on.set()
    assert await asyncio.to_thread(closed.wait, 20)
    assert pairs[:2] == [("items", Item(0, 1)), ("size", Item(0, 1))]
    assert isinstance(dict(pairs)["items"].error, NodeTimeoutError)
    assert isinstance(dict(pairs)["size"], NodeSkipped)
    assert len(pairs) == 4


# Ended early


async def test_a_generator_that_awaits_nothing_does_not_hold_up_the_event_loop() -> None:
    made = 0

    async def items() -> AsyncIterator[int]:
        nonlocal made
        while made < 1_000_000:
            made += 1
            yield made

    builder = DAGBuilder().node(items).node(awaited(len), name="count", inputs=["items"])
    builder.node(
        awaited(lambda item, count: item / count),
        name="share",
        inputs=["items", "count"],
        map_over="items",
    )
    run = engine_of(builder).start()
    while not made:
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert made < 10_000


@virtually
async def test_a_reader_that_leaves_closes_the_generator() -> None:
    source = Source(1000)
    stream = engine_of(DAGBuilder().node(source.items)).execute_async(items=True)
    async for _ in stream:
        break
    await stream.aclose()
    assert source.closed == 1
    assert source.made < 1000


@virtually
async def test_the_run_has_ended_when_the_generator_has_cleaned_up() -> None:
    closed = False

    async def items() -> AsyncIterator[int]:
        nonlocal closed
        try:
            for number in range(1000):
                yield number
        finally:
            await asyncio.sleep(1)
            closed = True

    stream = engine_of(DAGBuilder().node(items)).execute_async(items=True)
    async for _ in stream:
        break
    await stream.aclose()
    assert closed


@virtually
async def test_a_cancelled_run_closes_a_generator_that_waits() -> None:
    source = Source(1000)
    builder = DAGBuilder().node(source.items)
    builder.node(double, inputs=["items"], map_over="items", max_parallel=1)
    run = engine_of(builder).start()
    await asyncio.sleep(3)
    assert source.closed == 0
    run.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert source.closed == 1


async def test_a_cancelled_run_closes_a_sync_generator_that_waits() -> None:
    closed, waits = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        try:
            for number in range(1000):
                if number == 15:
                    waits.set()
                yield number
        finally:
            closed.set()

    async def blocks(item: int) -> int:
        await asyncio.sleep(60)
        return item

    builder = DAGBuilder().node(items)
    builder.node(blocks, inputs=["items"], map_over="items", max_parallel=1)
    run = engine_of(builder).start()
    assert await asyncio.to_thread(waits.wait, 10)
    run.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert await asyncio.to_thread(closed.wait, 10)


@virtually
async def test_a_failure_elsewhere_closes_the_generator() -> None:
    source = Source(1000)

    async def fails(item: int) -> int:
        raise ValueError(item)

    builder = DAGBuilder().node(source.items)
    builder.node(fails, inputs=["items"], map_over="items")
    with pytest.raises(NodeFailedError):
        await engine_of(builder).execute()
    assert source.closed == 1


# Resumed


@virtually
async def test_a_resumed_run_goes_on_behind_the_items_that_the_journal_has() -> None:
    source, journal = Source(5, breaks_at=3), MemoryJournal()
    builder = DAGBuilder().node(source.items)
    builder.node(double, inputs=["items"], map_over="items")
    engine = engine_of(builder, journal=journal)
    with pytest.raises(NodeFailedError):
        await engine.execute(run_id="run")
    assert await engine.execute(run_id="run", resume=True) == {
        "items": [0, 1, 2, 3, 4],
        "double": [0, 2, 4, 6, 8],
    }
    assert source.executions == 2


@virtually
async def test_a_resumed_run_yields_the_items_of_earlier_engines_again() -> None:
    source, journal = Source(3), MemoryJournal()
    builder = DAGBuilder().node(source.items)
    engine = engine_of(builder, journal=journal)
    first = [pair async for pair in engine.execute_async(run_id="run", items=True)]
    again = [pair async for pair in engine.resume("run", items=True)]
    assert again == first
    assert [pair async for pair in engine.resume("run", items=True, replay=False)] == []
    assert [pair async for pair in engine.resume("run")] == [("items", [0, 1, 2])]
    assert source.executions == 1


@virtually
async def test_a_resumed_run_takes_a_list_that_was_not_taken_item_by_item() -> None:
    source, journal = Source(2), MemoryJournal()
    engine = engine_of(DAGBuilder().node(source.items), journal=journal)
    await engine.execute(run_id="run")
    assert [pair async for pair in engine.resume("run", items=True)] == [
        ("items", Item(0, 0)),
        ("items", Item(1, 1)),
        ("items", [0, 1]),
    ]
    assert [pair async for pair in engine.resume("run", items=True, replay=False)] == []
    assert source.executions == 1


@virtually
@pytest.mark.parametrize("is_mapped_over", [False, True])
async def test_a_resumed_run_puts_items_together_if_the_generator_has_a_fallback_now(
    is_mapped_over: bool,
) -> None:
    def builder(**options: Any) -> DAGBuilder:
        builder = DAGBuilder().node(numbers, **options).node(fails, inputs=["numbers"])
        if is_mapped_over:
            builder.node(double, inputs=["numbers"], map_over="numbers")
        return builder

    async def fails(numbers: list[int]) -> list[int]:
        if not is_fixed:
            raise ValueError("not yet")
        return numbers

    is_fixed, journal = False, MemoryJournal()
    with pytest.raises(NodeFailedError):
        async for _ in engine_of(builder(), journal=journal).execute_async(
            {"count": 3}, run_id="r", items=True
        ):
            pass
    is_fixed = True
    engine = engine_of(builder(fallback=[7]), journal=journal)
    results = dict([pair async for pair in engine.resume("r")])
    assert results["numbers"] == results["fails"] == [0, 1, 2]


@virtually
async def test_a_generator_that_has_become_a_function_is_another_node() -> None:
    journal = MemoryJournal()
    await engine_of(chain(), journal=journal).execute({"count": 3}, run_id="r")

    async def listed(count: int) -> list[int]:
        return list(range(count))

    listed.__name__ = "numbers"
    builder = DAGBuilder().node(listed)
    builder.node(double, inputs=["numbers"], map_over="numbers")
    engine = engine_of(builder, journal=journal)
    with pytest.raises(GraphChangedError, match="changed: numbers"):
        _ = [pair async for pair in engine.resume("r")]
    results = dict([pair async for pair in engine.resume("r", allow_changed=True)])
    assert results == {"numbers": [0, 1, 2], "double": [0, 2, 4]}


@virtually
async def test_a_resumed_generator_that_gives_other_items_fails() -> None:
    journal, executions = MemoryJournal(), 0

    async def items() -> AsyncIterator[int]:
        nonlocal executions
        executions += 1
        for number in range(3):
            yield number * executions
        if executions == 1:
            raise ValueError("broken")

    builder = DAGBuilder().node(items)
    builder.node(double, inputs=["items"], map_over="items")
    engine = engine_of(builder, journal=journal)
    with pytest.raises(NodeFailedError):
        await engine.execute(run_id="run")
    with pytest.raises(NodeFailedError) as failed:
        await engine.execute(run_id="run", resume=True)
    assert isinstance(failed.value.__cause__, ItemsChangedError)
    remedy = "if its source changes, return a list from a plain node and map over that, or compute"
    assert remedy in str(failed.value.__cause__)
    again = dict([pair async for pair in engine.rerun("run", ["items"])])
    assert again["double"] == [0, 6, 12]


# Declared


def test_a_window_is_of_generators_only() -> None:
    with pytest.raises(ValueError, match="no generator function"):
        DAGBuilder().node(double, inputs=["numbers"], window=3)
    with pytest.raises(ValueError, match="whole number"):
        DAGBuilder().node(numbers, window=0)


def test_a_generator_is_no_filter() -> None:
    with pytest.raises(ValueError, match="does not say yes or no"):
        DAGBuilder().node(numbers, inputs=["counts"], map_over="counts", filter=True)
