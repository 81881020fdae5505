"""No-op tasks over Redis by the engine and by Celery, with one worker process each, in turns.

A chain is 100 tasks, each given what the one before returns; a chord is 400 tasks and one that is
given what all of them return, which to the engine is a fan-in. The time is from sending until the
last value is read, divided by the tasks; building the graph or the canvas is not in it, nor are the
starts of server and workers. Celery's client gets the last value only, and its workers send what
follows; the engine's reader gets every value as it comes.
"""

from __future__ import annotations

import importlib
import statistics
from contextlib import AsyncExitStack

from benchmarks.distributed.both import both
from benchmarks.distributed.processes import redis_server
from benchmarks.measure import Contestant, interleaved, median_ratio
from benchmarks.report import CHECKED, Check, Options, print_table
from benchmarks.shapes import chain, fan_in

CHAIN = 100
HEADER = 400
SHAPES = {f"chain of {CHAIN}": chain(CHAIN), f"chord of {HEADER}": fan_in(HEADER + 1)}
MOST = {f"chain of {CHAIN}": 0.6, f"chord of {HEADER}": 0.35}


async def run(options: Options) -> list[Check]:
    """Measure a chain and a chord."""
    rounds = 5 if options.quick else 15
    checks = []
    rows = []
    with redis_server() as url:
        async with AsyncExitStack() as stack:
            by_engine, by_hand = await stack.enter_async_context(both(url))
            by_celery = await _celery(url, rounds + 1, stack)
            for name, shape in SHAPES.items():
                runs = {"engine": by_engine(shape), "hand": by_hand(shape)}
                if by_celery:
                    runs["celery"] = by_celery[name]
                taken = await interleaved(runs, rounds)
                costs = [f"{statistics.median(taken[who]) / len(shape) * 1e6:,.0f}" for who in runs]
                if by_celery:
                    ratio = median_ratio(taken["engine"], taken["celery"])
                    check = Check(f"Redis, cost per task, {name}", ratio, MOST[name], "x Celery")
                    rows.append([name, *costs, *check.cells()])
                    checks.append(check)
                else:
                    rows.append([name, *costs, "not installed", "", "", ""])
    heads = ("no-op tasks", "engine, us/task", "by hand, us/task", "Celery, us/task", *CHECKED)
    print_table(f"Redis: beside Celery, median of {rounds} rounds", heads, rows)
    return checks


async def _celery(url: str, runs: int, stack: AsyncExitStack) -> dict[str, Contestant]:
    """What Celery runs for each shape, with its worker started; nothing if it is not installed."""
    try:
        celery = importlib.import_module("benchmarks.distributed.celery_peer")
    except ModuleNotFoundError:
        return {}
    peer = await stack.enter_async_context(celery.by_celery(url, "celery"))
    return dict(zip(SHAPES, (peer.chain(CHAIN, runs), peer.chord(HEADER, runs)), strict=True))
