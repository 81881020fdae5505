"""One graph for many inputs, beside as many runs under a semaphore, and a loop written by hand.

The graph is a chain of nodes that do nothing. What is measured is the processor time of all of it.
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
    """A broker with the tasks of the chain."""

    def __init__(self) -> None:
        self.resolve = Resolve()
        self.broker = InMemoryBroker().with_middlewares(self.resolve)
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
    ways: list[Way] = [by_hand, as_runs, as_one]
    over_hand, over_runs = [], []
    for number in range(rounds):
        took = {}
        for way in ways[number % 3 :] + ways[: number % 3]:
            stage = Stage()
            start = time.process_time()
            await way(stage, inputs)
            took[way] = time.process_time() - start
        over_hand.append(took[as_one] / took[by_hand])
        over_runs.append(took[as_one] / took[as_runs])
    hand, runs = statistics.median(over_hand), statistics.median(over_runs)
    title = f"{inputs:,} inputs of a chain of {LENGTH} no-ops, {TASK_LIMIT} at a time"
    print_table(
        title, ("over a loop by hand", "over as many runs"), [[f"{hand:.3f}", f"{runs:.3f}"]]
    )
    checks = [
        Check("many inputs: cost over a loop by hand", hand, MOST_OVER_HAND, "x"),
        Check("many inputs: cost over as many runs", runs, MOST_OVER_RUNS, "x"),
    ]
    print_checks("Many inputs", checks)
    return checks
