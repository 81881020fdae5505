"""What a pipeline costs beside the engine that runs the graph to which it compiles.

No-op steps on an ``InMemoryBroker``, in turns: many runs of three steps, one run of many steps, and
one map. The time is the CPU time of this process.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from taskiq import InMemoryBroker

from benchmarks.measure import Contestant, interleaved, median_ratio
from benchmarks.report import CHECKED, Check, Options, print_table
from taskiq_flow import ExecutionEngine, Pipeline

NODES = 1_000
MOST = 1.05


def shapes() -> dict[str, tuple[Pipeline[Any], int, Any]]:
    """Pipelines, how often each is run, and what it is given."""
    broker = InMemoryBroker()

    @broker.task
    async def same(value: Any) -> Any:
        return value

    long = Pipeline(broker)
    for _ in range(NODES):
        long.call_next(same)
    short = Pipeline(broker).call_next(same).call_next(same).call_next(same)
    mapped = Pipeline(broker).map(same)
    return {
        "3 steps": (short, NODES // 3, 1),
        f"{NODES:,} steps": (long, 1, 1),
        f"a map of {NODES:,}": (mapped, 1, list(range(NODES))),
    }


def by_pipeline(pipeline: Pipeline[Any], runs: int, value: Any) -> Contestant:
    """Wait for the result of each run."""

    async def run() -> None:
        for _ in range(runs):
            await (await pipeline.kiq(value))

    return run


def by_engine(pipeline: Pipeline[Any], runs: int, value: Any) -> Contestant:
    """The same graph, run by an engine."""
    engine = ExecutionEngine(pipeline.broker, pipeline.dag)

    async def run() -> None:
        for _ in range(runs):
            await engine.start({"input": value})

    return run


async def run(options: Options) -> list[Check]:
    """Measure pipelines of some 1,000 nodes."""
    rounds = 9 if options.quick else 31
    checks, rows = [], []
    for name, (pipeline, runs, value) in shapes().items():
        contestants = {
            "engine": by_engine(pipeline, runs, value),
            "pipeline": by_pipeline(pipeline, runs, value),
        }
        taken = await interleaved(contestants, rounds, time.process_time)
        ratio = median_ratio(taken["pipeline"], taken["engine"])
        check = Check(f"pipelines: {name}", ratio, MOST, "x the engine")
        cost = statistics.median(taken["pipeline"]) / NODES * 1e6
        rows.append([name, f"{cost:.1f}", *check.cells()])
        checks.append(check)
    heads = ("no-op nodes", "us/node", *CHECKED)
    print_table(f"Pipelines, median of {rounds} rounds of CPU time", heads, rows)
    return checks
