"""No-op tasks over Redis by the engine and by Celery, with one worker process each, in turns.

A chain is 100 tasks, each given what the one before returns; a chord is 400 tasks and one that is
given what all of them return, which to the engine is a fan-in. The time is from sending until the
last value is read, divided by the tasks; building the graph or the canvas is not in it, nor are the
starts of server and workers. Celery's client gets the last value only, and its workers send what
follows; the engine's reader gets every value as it comes. Further runs measure the CPU time of all
processes together, which says more where the machine has other work to do.
"""

from __future__ import annotations

import importlib
import statistics
import time
from contextlib import AsyncExitStack

from benchmarks.distributed.both import both
from benchmarks.distributed.cpu import cpu_clock
from benchmarks.distributed.processes import redis_server
from benchmarks.measure import Contestant, interleaved, median_ratio, middle_half
from benchmarks.report import CHECKED, Check, Options, print_table
from benchmarks.shapes import chain, fan_in

CHAIN = 100
HEADER = 400
SHAPES = {f"chain of {CHAIN}": chain(CHAIN), f"chord of {HEADER}": fan_in(HEADER + 1)}
MOST = 0.25


async def run(options: Options) -> list[Check]:
    """Measure a chain and a chord."""
    rounds = 3 if options.quick else 15
    checks = []
    rows = []
    with redis_server() as url:
        async with AsyncExitStack() as stack:
            by_engine, by_hand = await stack.enter_async_context(both(url))
            by_celery = await _celery(url, 2 * (rounds + 1), stack)
            clocks = {"time": time.perf_counter, "CPU": cpu_clock()}
            for name, shape in SHAPES.items():
                runs = {"engine": by_engine(shape), "hand": by_hand(shape)}
                if by_celery:
                    runs["celery"] = by_celery[name]
                for what, clock in clocks.items():
                    taken = await interleaved(runs, rounds, clock)
                    medians = [statistics.median(taken[who]) / len(shape) * 1e6 for who in runs]
                    row = [f"{name}, {what}", *(f"{median:,.0f}" for median in medians)]
                    if not by_celery:
                        rows.append([*row, "not installed", "", "", "", ""])
                        continue
                    ratio = median_ratio(taken["engine"], taken["celery"])
                    check = Check(f"Redis, {what} per task, {name}", ratio, MOST, "x Celery")
                    half = middle_half(taken["engine"], taken["celery"])
                    rows.append([*row, *check.cells(), half])
                    checks.append(check)
    costs = ("engine, us/task", "by hand, us/task", "Celery, us/task")
    heads = ("no-op tasks", *costs, *CHECKED, "half of the rounds")
    print_table(f"Redis: beside Celery, median of {rounds} rounds", heads, rows)
    if not checks:
        print("Celery is not in this environment; scripts/bench makes one that has it.\n")
    return checks


async def _celery(url: str, runs: int, stack: AsyncExitStack) -> dict[str, Contestant]:
    """What Celery runs for each shape, with its worker started; nothing if it is not installed."""
    try:
        celery = importlib.import_module("benchmarks.distributed.celery_peer")
    except ModuleNotFoundError as missing:
        if missing.name != "celery":
            raise
        return {}
    peer = await stack.enter_async_context(celery.by_celery(url, "celery"))
    return dict(zip(SHAPES, (peer.chain(CHAIN, runs), peer.chord(HEADER, runs)), strict=True))
