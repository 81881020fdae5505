"""Positions at which all had ended: a resumed run asks nobody again, and may pass them over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from taskiq import InMemoryBroker
from taskiq.serializers import JSONSerializer

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    GraphChangedError,
    Item,
    MemoryJournal,
    NodeCompleted,
    NodeFailure,
    NodeSkipped,
    RunFailedError,
    RunReader,
)
from taskiq_flow.events import Event
from tests.virtual_clock import virtually

NUMBERS = list(range(6))


class Counting(JSONSerializer):
    """Counts the values that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def loadb(self, value: bytes) -> Any:
        self.read += 1
        return super().loadb(value)


class Yard:
    """A chain of two maps, with a node behind them that may fail, and what was done of it."""

    def __init__(self) -> None:
        self.serializer = Counting()
        self.journal = MemoryJournal(serializer=self.serializer)
        self.done: list[str] = []
        self.asked: list[int] = []
        self.events: list[Event] = []
        self.broken: set[str] = {"last"}
        self.wanted = {0, 1, 2, 4}

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what in self.broken:
            raise ValueError(what)

    def first(self, number: int) -> int:
        self._do(f"first {number}")
        return number * 10

    def second(self, first: int) -> int:
        self._do(f"second {first}")
        return first + 1

    def third(self, second: int) -> int:
        self._do(f"third {second}")
        return -second

    def last(self) -> str:
        self._do("last")
        return "done"

    def is_wanted(self, first: int) -> bool:
        self.asked.append(first)
        return first // 10 in self.wanted

    def engine(self, *, has_third: bool = False) -> ExecutionEngine:
        builder = DAGBuilder()
        builder.node(self.first, inputs={"number": "numbers"}, map_over="numbers")
        builder.node(self.second, map_over="first", when=self.is_wanted)
        if has_third:
            builder.node(self.third, map_over="second")
        dag = builder.node(self.last).build()
        dag.add_edge("second", "last")
        return ExecutionEngine(
            InMemoryBroker(), dag, on_error="continue", journal=self.journal, listeners=[self]
        )

    async def begin(self, inputs: Any = None) -> None:
        given = {"numbers": NUMBERS if inputs is None else inputs}
        with pytest.raises(RunFailedError):
            await read(self.engine().execute_async(given, run_id="r", items="only"))
        self.done.clear()
        self.asked.clear()
        self.events.clear()
        self.serializer.read = 0
        self.broken.discard("last")

    async def resume(self, **options: Any) -> list[Any]:
        return await read(self.engine().resume("r", **{"items": "only", **options}))

    def told(self, kind: type[Any]) -> list[str]:
        return [event.task_name for event in self.events if isinstance(event, kind)]


async def read(pairs: Any) -> list[Any]:
    async with aclosing(pairs):
        return [pair async for pair in pairs]


@virtually
async def test_values_that_nobody_takes_are_not_read_and_conditions_not_asked() -> None:
    yard = Yard()
    await yard.begin()
    yard.wanted = set(NUMBERS)
    assert await yard.resume(replay=False) == [("last", "done")]
    assert yard.serializer.read == 1  # the input
    assert (yard.done, yard.asked) == (["last"], [])
    kept = [e for e in yard.events if isinstance(e, NodeCompleted) and e.source == "journal"]
    assert sorted(event.task_name for event in kept) == [
        *(f"first[{number}]" for number in NUMBERS),
        *(f"second[{number}]" for number in (0, 1, 2, 4)),
    ]
    assert {str(event.to_dict()["value"]["text"]) for event in kept} == {""}
    assert yard.told(NodeSkipped) == ["second[3]", "second[5]"]
    yard.events.clear()
    assert await yard.resume(replay=False) == []


@virtually
async def test_a_reader_who_asks_for_them_has_all_values_again() -> None:
    yard = Yard()
    await yard.begin()
    again = await yard.resume()
    assert sorted(again[:-1], key=repr) == sorted(
        [
            *(("first", Item(n, n * 10)) for n in NUMBERS),
            *(("second", Item(n, n * 10 + 1)) for n in (0, 1, 2, 4)),
        ],
        key=repr,
    )
    assert again[-1] == ("last", "done")
    lists = dict(await yard.resume(items=False))
    assert lists == {"first": [n * 10 for n in NUMBERS], "second": [1, 11, 21, 41], "last": "done"}
    assert (yard.done, yard.asked) == (["last"], [])


@virtually
async def test_a_position_with_a_failure_is_not_passed_over() -> None:
    yard = Yard()
    yard.broken |= {"second 10"}
    await yard.begin()
    yard.broken.clear()
    assert await yard.resume(replay=False) == [("second", Item(1, 11)), ("last", "done")]
    assert yard.done == ["second 10", "last"]
    assert yard.asked == [10]


@virtually
async def test_what_a_changed_graph_takes_is_read_after_all() -> None:
    yard = Yard()
    await yard.begin()
    engine = yard.engine(has_third=True)
    with pytest.raises(GraphChangedError):
        await read(engine.resume("r", items="only", replay=False))
    yard.broken = {"third 11"}
    with pytest.raises(RunFailedError):
        await read(engine.resume("r", items="only", replay=False, allow_changed=True))
    assert sorted(each for each in yard.done if each.startswith("third")) == [
        *("third 1", "third 11", "third 21", "third 41")
    ]
    yard.broken.clear()
    pairs = await read(engine.resume("r", items="only", replay=False))
    assert pairs == [("third", Item(1, -11))]
    assert not [each for each in yard.done if each.startswith(("first", "second"))]
    yard.done.clear()
    assert await read(engine.resume("r", items="only", replay=False)) == []
    assert yard.done == []


@virtually
async def test_items_of_a_source_are_compared_though_they_are_passed_over() -> None:
    yard = Yard()
    await yard.begin(iter(NUMBERS))
    others = [*NUMBERS[:2], 7, *NUMBERS[3:]]
    with pytest.raises(GraphChangedError, match="item 2 of node 'first' is not the one"):
        await yard.resume(replay=False, inputs={"numbers": iter(others)})
    with pytest.raises(GraphChangedError, match="fewer items than the 6"):
        await yard.resume(replay=False, inputs={"numbers": iter(NUMBERS[:4])})
    rest = await yard.resume(replay=False, inputs={"numbers": iter(NUMBERS)})
    assert rest == [("last", "done")]
    assert yard.done == ["last"]


@virtually
async def test_lists_within_positions_are_passed_over_with_them() -> None:
    done: list[Any] = []
    journal = MemoryJournal(serializer=(serializer := Counting()))

    async def words(text: str) -> list[str]:
        done.append(text)
        return text.split()

    async def size(word: str) -> int:
        done.append(word)
        await asyncio.sleep(len(word))
        return len(word)

    def engine() -> ExecutionEngine:
        builder = DAGBuilder().node(words, inputs={"text": "texts"}, map_over="texts")
        builder.node(size, inputs={"word": "words"}, map_over={"words": 2})
        return ExecutionEngine(InMemoryBroker(), builder.build(), journal=journal)

    texts = ["a bb", "", "ccccccccc"]
    async with aclosing(engine().execute_async({"texts": texts}, run_id="r", items="only")) as run:
        async for pair in run:
            if pair == ("size", Item((0, 1), 2)):
                break
    done.clear()
    serializer.read = 0
    assert await read(engine().resume("r", items="only", replay=False)) == [
        ("size", Item((2, 0), 9))
    ]
    assert done == ["ccccccccc"]
    assert serializer.read == 2  # the input, and the list of the text that goes on
    reader = RunReader(journal)
    sizes = (await reader.view("r")).nodes["size"].elements
    assert sizes is not None
    assert (sizes.known, sizes.are_all_known, sizes.completed, sizes.kept) == (3, True, 3, 2)
    summary = await reader.run("r")
    assert (summary.completed, summary.total) == (6, 6)


@virtually
async def test_a_source_is_closed_at_once_where_its_last_item_ends_the_run() -> None:
    """With all elements in the journal, the run ends while the source is being read."""
    closed: list[float] = []
    loop, journal = asyncio.get_running_loop(), MemoryJournal()

    async def ticks() -> AsyncIterator[int]:
        try:
            for number in range(9):
                await asyncio.sleep(1)
                yield number
        finally:
            closed.append(loop.time())

    async def times(number: int, tick: int) -> int:
        return number * tick

    keys = {"number": "numbers", "tick": "ticks"}
    dag = DAGBuilder().node(times, inputs=keys, map_over=["numbers", "ticks"]).build()
    engine = ExecutionEngine(InMemoryBroker(), dag, 1, on_error="collect", journal=journal)
    await read(engine.execute_async({"numbers": [2, 3], "ticks": ticks()}, run_id="r"))
    begin = loop.time()
    again = await read(engine.resume("r", inputs={"ticks": ticks()}, items="only"))
    assert [item.value for _, item in again[:2]] == [0, 3]
    assert isinstance(again[2][1], NodeFailure)  # there are more ticks than numbers
    assert [at - begin for at in closed] == [0, 3]
    assert loop.time() - begin == 3


@pytest.mark.parametrize("outputs", [None, ["shifted"]])
@virtually
async def test_conditions_are_asked_again_where_a_failure_that_they_read_is_tried_again(
    outputs: list[str] | None,
) -> None:
    journal, broken = MemoryJournal(), {"base"}

    async def base() -> int:
        if broken:
            raise ValueError("base")
        return 10

    async def shifted(number: int, base: int = 0) -> int:
        return number + base

    def is_there(base: int = 0) -> bool:
        return base > 0

    def other(number: int) -> int:
        return number

    builder = DAGBuilder().node(base)
    if outputs:  # not needed, but with elements at the same positions
        builder.node(other, inputs={"number": "numbers"}, map_over="numbers")
    inputs = {"number": "numbers", "base": "base"}
    builder.node(shifted, inputs=inputs, map_over="numbers", join="ended", when=is_there)
    options: dict[str, Any] = {"on_error": "continue", "journal": journal}
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), **options)
    with pytest.raises(RunFailedError):
        await engine.execute({"numbers": NUMBERS}, outputs=outputs, run_id="r")
    broken.clear()
    again = await read(engine.resume("r", items="only", replay=False))
    assert sorted(item.value for name, item in again if name == "shifted") == [*range(10, 16)]


@virtually
async def test_nodes_that_a_run_does_not_need_are_not_taken_for_completed() -> None:
    journal, is_there = MemoryJournal(), asyncio.Event()

    async def double(number: int) -> int:
        return 2 * number

    async def base() -> int:
        await is_there.wait()
        return 5

    async def shifted(number: int, base: int) -> int:
        return number + base

    builder = DAGBuilder().node(double, inputs={"number": "numbers"}, map_over="numbers")
    builder.node(base)
    builder.node(shifted, inputs={"number": "numbers", "base": "base"}, map_over="numbers")
    engine = ExecutionEngine(InMemoryBroker(), builder.build(), journal=journal)
    outputs = ["double", "base"]
    run = engine.execute_async({"numbers": [1, 2]}, outputs=outputs, run_id="r", items="only")
    async with aclosing(run):
        assert [await anext(run), await anext(run)] == [
            *(("double", Item(0, 2)), ("double", Item(1, 4)))
        ]
    is_there.set()
    assert await read(engine.resume("r", items="only", replay=False)) == [("base", 5)]
