"""Three maps in a chain over one list, under a limit, beside a loop written by hand.

Timed: each task sleeps for a log-normal time with a deviation of 0.5 (sigma). The time of the whole
is held against the longer of two bounds: all that was really slept divided by the limit, and the
longest chain. The first finished element is held against what the three tasks of that element
slept, and the same is shown of the loop by hand. Such a chain takes 1.7 times the mean of a task,
so that tenths of a millisecond count. No-op: the processor time of an element, beside a
loop with a task per element, and beside the same loop as before, which has one task for all three
elements of an item.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from taskiq import InMemoryBroker, TaskiqMessage, TaskiqMiddleware, TaskiqResult

from benchmarks.report import Check, Options, print_checks, print_table
from benchmarks.sleeps import LIMIT, STAGES, Sleeps, Taken, drawn
from taskiq_flow import DAGBuilder, ExecutionEngine, Item

MEANS = {0.01: 15, 0.05: 3}
"""The mean seconds of a task, and how many sets of times. The first chain of a set is short or
long, and begins early or late among the first ones: with tasks of 10 ms that takes more sets."""
MOST_OVER_BOUND = 1.05
MOST_OVER_HAND = 1.02
MOST_OF_FIRST = 1.2
MOST_PER_NO_OP = 1.15


class Resolve(TaskiqMiddleware):
    """Hands each result to whoever waits for it, in the loops by hand. The engine needs none."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, asyncio.Future[Any]] = {}

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Resolve the future of the loop by hand."""
        self.waiting.pop(message.task_id).set_result(result.return_value)


async def through(tasks: Sequence[Any], resolve: Resolve, value: Any) -> Any:
    """Send a value through tasks, one after the other, as one would by hand."""
    for task in tasks:
        future = asyncio.get_running_loop().create_future()
        sent = await task.kicker().kiq(value)
        resolve.waiting[sent.task_id] = future
        value = await future
    return value


async def nothing(item: int) -> int:
    """What a no-op stage does."""
    return item


class Stages:
    """A broker with the tasks of the chain. ``sleeps``: what they do; nothing without.

    ``resolves``: as the loops by hand need it.
    """

    def __init__(self, sleeps: Sleeps | None = None, *, resolves: bool = False) -> None:
        self.resolve = Resolve()
        self.broker = InMemoryBroker()
        if resolves:
            self.broker.add_middlewares(self.resolve)
        self.tasks = [
            self.broker.register_task(
                nothing if sleeps is None else sleeps.coroutine_function(number),
                task_name=f"stage {number}",
            )
            for number in range(STAGES)
        ]


async def by_hand(stages: Stages, items: int) -> Taken:
    """A task per item and a semaphore."""
    places = asyncio.Semaphore(LIMIT)
    start = time.perf_counter()
    first: tuple[float, int] = (math.inf, 0)

    async def chain(item: int) -> None:
        nonlocal first
        async with places:
            await through(stages.tasks, stages.resolve, item)
        first = min(first, (time.perf_counter() - start, item))

    await asyncio.gather(*(chain(item) for item in range(items)))
    return Taken(time.perf_counter() - start, *first)


async def by_elements(stages: Stages, items: int) -> None:
    """A task per element and a semaphore."""
    places = asyncio.Semaphore(LIMIT)

    async def element(number: int, value: Any) -> None:
        async with places:
            value = await through(stages.tasks[number : number + 1], stages.resolve, value)
        if number + 1 < STAGES:
            group.create_task(element(number + 1, value))

    async with asyncio.TaskGroup() as group:
        for item in range(items):
            group.create_task(element(0, item))


async def by_engine(stages: Stages, items: int) -> Taken:
    """The same as a graph."""
    builder = DAGBuilder()
    for number, task in enumerate(stages.tasks):
        key = f"s{number - 1}" if number else "items"
        builder.node(task, name=f"s{number}", inputs={"item": key}, map_over=key)
    engine = ExecutionEngine(stages.broker, builder.build(), LIMIT, type_check="off")
    start = time.perf_counter()
    first: tuple[float, int] = (math.inf, 0)
    async for name, value in engine.execute_async({"items": list(range(items))}, items="only"):
        if name == f"s{STAGES - 1}" and isinstance(value, Item):
            first = min(first, (time.perf_counter() - start, value.value))
    return Taken(time.perf_counter() - start, *first)


Way = Callable[[Stages, int], Awaitable[object]]


async def timed(items: int, mean: float, sets: int) -> dict[str, float]:
    """Medians of the ratios."""
    found: dict[str, list[float]] = {"bound": [], "hand": [], "first": [], "first by hand": []}
    for seed in range(sets):
        seconds = drawn(seed, items, mean)
        hand, engine = Sleeps(seconds), Sleeps(seconds)
        beside = await by_hand(Stages(hand, resolves=True), items)
        took = await by_engine(Stages(engine), items)
        found["bound"].append(took.seconds / engine.bound)
        found["hand"].append(took.seconds / beside.seconds)
        found["first"].append(took.first_seconds / engine.chain(took.first))
        found["first by hand"].append(beside.first_seconds / hand.chain(beside.first))
    return {name: statistics.median(ratios) for name, ratios in found.items()}


async def no_op(items: int, rounds: int) -> tuple[float, float]:
    """The cost of an element that does nothing, over that of each loop by hand. Medians.

    The first loop has a task per element, the second one a task per item.
    """
    over_elements, over_items = [], []
    for number in range(rounds):
        took = {}
        ways: list[Way] = [by_elements, by_hand, by_engine]
        for way in ways if number % 2 else reversed(ways):
            start = time.process_time()
            await way(Stages(resolves=way is not by_engine), items)
            took[way] = time.process_time() - start
        over_elements.append(took[by_engine] / took[by_elements])
        over_items.append(took[by_engine] / took[by_hand])
    return statistics.median(over_elements), statistics.median(over_items)


async def run(options: Options) -> list[Check]:
    """Both measurements."""
    items = 300 if options.quick else 1000
    rows, checks = [], []
    for mean, sets in MEANS.items():
        ratios = await timed(items, mean, 1 if options.quick else sets)
        rows.append([f"{mean * 1000:.0f} ms", *(f"{ratio:.3f}" for ratio in ratios.values())])
        what = f"{STAGES} x {items:,} elements of {mean * 1000:.0f} ms"
        checks += [
            Check(f"{what}: time over the bound", ratios["bound"], MOST_OVER_BOUND, "x"),
            Check(f"{what}: time over a loop by hand", ratios["hand"], MOST_OVER_HAND, "x"),
            Check(f"{what}: first element", ratios["first"], MOST_OF_FIRST, "x its chain"),
        ]
    heads = ("mean", "x bound", "x by hand", "first x its chain", "by hand")
    print_table("Three maps in a chain", heads, rows)
    elements = 2000 if options.quick else 10_000
    ratio, over_items = await no_op(elements, 3 if options.quick else 5)
    checks.append(Check("cost of a no-op element", ratio, MOST_PER_NO_OP, "x a loop by hand"))
    print(f"A no-op element costs {over_items:.2f} x a loop by hand with a task per item.")
    print_checks("Chained maps", checks)
    return checks
