"""Three maps in a chain over Redis, by the engine, by a loop written by hand and by Celery.

Each task sleeps for a log-normal time with a mean of 50 ms and a deviation of 0.5 (sigma), 32 at a
time, on one worker process for each contestant. The whole is held against the longer of two bounds:
all that was really slept divided by the limit, and the longest chain. The first item that is
through is held against what its own tasks slept: of Celery it counts as soon as its last task has
ended, of the others when their readers have it. The engine and the loop have places to spare on
their workers and keep the limit themselves. Celery, whose tasks are a group of chains, has 32
threads on its worker.
"""

from __future__ import annotations

import asyncio
import importlib
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.distributed.chaining import (
    HAND_WORKER,
    WORKER,
    by_hand,
    graph,
    register,
    send_by_hand,
    slept,
)
from benchmarks.distributed.engine import engine_broker
from benchmarks.distributed.processes import redis_server, taskiq_workers
from benchmarks.report import Check, Options, print_checks, print_table
from benchmarks.sleeps import LIMIT, STAGES, bound
from taskiq_flow import ExecutionEngine

MEAN = 0.05
MOST_OVER_BOUND = 1.05
MOST_OVER_HAND = 1.02
MOST_OF_FIRST = 1.2


@dataclass
class Took:
    """What one contestant took, from its making on."""

    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    first_seconds: float = 0.0
    chains: list[list[float]] = field(default_factory=list)
    """The items that are through, the first one at the front."""

    def done(self, chain: list[float]) -> None:
        """An item is through."""
        self.seconds = time.perf_counter() - self.began
        self.first_seconds = self.first_seconds or self.seconds
        self.chains.append(chain)

    @property
    def over_bound(self) -> float:
        """The time of the whole over the least time that the tasks could have taken."""
        return self.seconds / bound([slept(chain) for chain in self.chains])

    @property
    def first(self) -> float:
        """The time until the first item was through, over what its own tasks slept."""
        return self.first_seconds / slept(self.chains[0])


Contestant = Callable[[int, int], Awaitable[Took]]
"""Sends so many items through, with the times of a seed."""


async def run(options: Options) -> list[Check]:
    """Medians of the ratios."""
    items, sets = (300, 1) if options.quick else (1000, 3)
    took: dict[str, list[Took]] = {}
    with (
        redis_server() as url,
        taskiq_workers(WORKER, url, "engine", on_uvloop=True),
        taskiq_workers(HAND_WORKER, url, "hand", on_uvloop=True),
    ):
        async with AsyncExitStack() as stack:
            contestants = {
                "this engine": await _engine(url, stack),
                "hand-written loop": await _loop(url, stack),
            }
            if by_celery := await _celery(url, stack):
                contestants["Celery, group of chains"] = by_celery
            for seed in range(sets + 1):  # connections are made and tasks imported in the first
                for name, send in contestants.items():
                    each = await send(items if seed else LIMIT, seed)
                    if seed:
                        took.setdefault(name, []).append(each)
    engine, hand = took["this engine"], took["hand-written loop"]
    over_bound = statistics.median(each.over_bound for each in engine)
    over_hand = statistics.median(a.seconds / b.seconds for a, b in zip(engine, hand, strict=True))
    first = statistics.median(each.first for each in engine)
    rows = [
        [
            name,
            f"{statistics.median(each.over_bound for each in runs):.3f}",
            f"{statistics.median(each.first for each in runs):.3f}",
            f"{statistics.median(each.first_seconds for each in runs) * 1000:,.0f}",
        ]
        for name, runs in took.items()
    ]
    if len(rows) < len(("engine", "hand", "celery")):
        rows.append(["Celery", "not installed", "", ""])
    what = f"Redis, {STAGES} x {items:,} elements of {MEAN * 1000:.0f} ms"
    print_table(f"{what}, {LIMIT} at a time", ("", "x bound", "first x its chain", "ms"), rows)
    checks = [
        Check(f"{what}: time over the bound", over_bound, MOST_OVER_BOUND, "x"),
        Check(f"{what}: time over a loop by hand", over_hand, MOST_OVER_HAND, "x"),
        Check(f"{what}: first element", first, MOST_OF_FIRST, "x its chain"),
    ]
    print_checks("Maps over Redis", checks)
    return checks


async def _engine(url: str, stack: AsyncExitStack) -> Contestant:
    broker = engine_broker(url, "engine")
    engine = ExecutionEngine(broker, graph(register(broker)), LIMIT)
    await broker.startup()
    stack.push_async_callback(broker.shutdown)

    async def send(items: int, seed: int) -> Took:
        inputs: dict[str, Any] = {
            "items": [[item] for item in range(items)],
            "seed": seed,
            "mean": MEAN,
        }
        took = Took()
        async for name, item in engine.execute_async(inputs, items="only"):
            if name == f"s{STAGES - 1}":
                took.done(item.value)
        return took

    return send


async def _loop(url: str, stack: AsyncExitStack) -> Contestant:
    task, pubsub = await stack.enter_async_context(by_hand(url, "hand"))

    async def send(items: int, seed: int) -> Took:
        took = Took()
        await send_by_hand(task, pubsub, items, seed, MEAN, took.done)
        return took

    return send


async def _celery(url: str, stack: AsyncExitStack) -> Contestant | None:
    """Celery's, with its worker started; ``None`` if it is not installed."""
    try:
        celery = importlib.import_module("benchmarks.distributed.celery_peer")
    except ModuleNotFoundError as missing:
        if missing.name != "celery":
            raise
        return None
    peer = await stack.enter_async_context(celery.by_celery(url, "celery", threads=LIMIT))

    async def send(items: int, seed: int) -> Took:
        began = time.perf_counter()
        chains = await asyncio.to_thread(peer.maps, items, seed, MEAN)
        seconds = time.perf_counter() - began
        chains.sort(key=lambda chain: chain[-1])
        return Took(began, seconds, chains[0][-1] - began, chains)

    return send
