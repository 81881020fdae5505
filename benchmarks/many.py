"""One graph for many inputs, beside as many runs under a semaphore, and loops written by hand.

The graph is a chain of nodes that do nothing. What is measured is the processor time of all of it.
The no-op cost, as in ``chained_maps``, is that of a loop with a task and a turn at the semaphore
for each node. Shown as well is what it costs beside a loop with one task for all nodes of an input.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from taskiq import InMemoryBroker

from benchmarks.chained_maps import Resolve, through
from benchmarks.report import Check, Options, print_checks, print_table
from taskiq_flow import DAGBuilder, ExecutionEngine

LENGTH = 5
TASK_LIMIT = 8
MOST_OVER_HAND = 1.15
MOST_OVER_RUNS = 1.0


class Stage:
    """A broker with the tasks of the chain. ``resolves``: as the loops by hand need it."""

    def __init__(self, *, resolves: bool = False) -> None:
        self.resolve = Resolve()
        self.broker = InMemoryBroker()
        if resolves:
            self.broker.add_middlewares(self.resolve)
        self.tasks = [self._task(number) for number in range(LENGTH)]
        builder = DAGBuilder()
        for number, task in enumerate(self.tasks):
            key = f"s{number - 1}" if number else "item"
            builder.node(task, name=f"s{number}", inputs={"item": key})
        self.engine = ExecutionEngine(self.broker, builder.build(), type_check="off")

    def _task(self, number: int) -> Any:
        async def task(item: int) -> int:
            return item

        return self.broker.task(task_name=f"stage {number}")(task)


async def by_hand(stage: Stage, inputs: int) -> None:
    """A task per input and a semaphore."""
    places = asyncio.Semaphore(TASK_LIMIT)

    async def chain(item: int) -> None:
        async with places:
            await through(stage.tasks, stage.resolve, item)

    await asyncio.gather(*map(chain, range(inputs)))


async def by_elements(stage: Stage, inputs: int) -> None:
    """A task per node and a semaphore."""
    places = asyncio.Semaphore(TASK_LIMIT)

    async def element(number: int, value: Any) -> None:
        async with places:
            value = await through(stage.tasks[number : number + 1], stage.resolve, value)
        if number + 1 < LENGTH:
            group.create_task(element(number + 1, value))

    async with asyncio.TaskGroup() as group:
        for item in range(inputs):
            group.create_task(element(0, item))


async def as_runs(stage: Stage, inputs: int) -> None:
    """A run per input and a semaphore."""
    places = asyncio.Semaphore(TASK_LIMIT)

    async def run(item: int) -> None:
        async with places:
            await stage.engine.execute({"item": item})

    await asyncio.gather(*map(run, range(inputs)))


async def as_one(stage: Stage, inputs: int) -> None:
    """All inputs in one run."""
    source = ({"item": item} for item in range(inputs))
    async for _ in stage.engine.execute_many(source, task_limit=TASK_LIMIT):
        pass


Way = Callable[[Stage, int], Awaitable[None]]


async def run(options: Options) -> list[Check]:
    """Medians of the ratios."""
    inputs, rounds = (300, 3) if options.quick else (1000, 7)
    ways: list[Way] = [by_hand, by_elements, as_runs, as_one]
    over_hand, over_elements, over_runs = [], [], []
    for number in range(rounds):
        took = {}
        for way in ways[number % 4 :] + ways[: number % 4]:
            stage = Stage(resolves=way in (by_hand, by_elements))
            start = time.process_time()
            await way(stage, inputs)
            took[way] = time.process_time() - start
        over_hand.append(took[as_one] / took[by_hand])
        over_elements.append(took[as_one] / took[by_elements])
        over_runs.append(took[as_one] / took[as_runs])
    elements = statistics.median(over_elements)
    hand, runs = statistics.median(over_hand), statistics.median(over_runs)
    title = f"{inputs:,} inputs of a chain of {LENGTH} no-ops, {TASK_LIMIT} at a time"
    print_table(
        title,
        ("x a task per node", "x a task per input", "x as many runs"),
        [[f"{ratio:.3f}" for ratio in (elements, hand, runs)]],
    )
    checks = [
        Check("many inputs: x the no-op cost of a loop by hand", elements, MOST_OVER_HAND, "x"),
        Check("many inputs: cost over as many runs", runs, MOST_OVER_RUNS, "x"),
    ]
    print_checks("Many inputs", checks)
    return checks
