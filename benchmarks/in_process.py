"""CPU-bound nodes: eight calls of 0.1 s of pure Python in processes, and one after the other.

On a machine that does other work, neither process has a core of its own. So CPU time is compared as
well, the least of all rounds: half of what the calls took in both processes, and what this process
took beside them.
"""

from __future__ import annotations

import os
import statistics
import time

from taskiq import InMemoryBroker

from benchmarks.measure import interleaved
from benchmarks.report import Check, NotInstalledError, Options, print_checks
from taskiq_flow import DAG, DAGNode, ExecutionEngine, in_process

CALLS = 8
SECONDS = 0.1
LEAST = 1.8
"""How many times as fast two processes must be as one thread."""


def count(steps: int) -> float:
    """Pure Python that holds the interpreter's lock. Returns its seconds of CPU time."""
    start, total = time.process_time(), 0
    for number in range(steps):
        total += number & 1
    return time.process_time() - start


in_two = in_process(count, limit=2)


def _steps() -> int:
    """How many steps take ``SECONDS`` here."""
    start = time.perf_counter()
    count(1_000_000)
    return int(SECONDS / (time.perf_counter() - start) * 1_000_000)


async def run(options: Options) -> list[Check]:
    """Compare two processes with calls one after the other."""
    if len(os.sched_getaffinity(0)) < 2:
        raise NotInstalledError("it needs two cores")
    steps, rounds = _steps(), 3 if options.quick else 9
    dag = DAG()
    for number in range(CALLS):
        dag.add_node(DAGNode(in_two, output=f"out_{number}", inputs=["steps"]))
    engine = ExecutionEngine(InMemoryBroker(), dag)

    serial: list[float] = []
    parallel: list[float] = []

    async def one_after_the_other() -> None:
        serial.append(sum(count(steps) for _ in range(CALLS)))

    async def in_processes() -> None:
        start, results = time.process_time(), await engine.execute({"steps": steps})
        parallel.append(sum(results.values()) / 2 + time.process_time() - start)

    taken = await interleaved({"serial": one_after_the_other, "processes": in_processes}, rounds)
    ratios = [b / a for a, b in zip(taken["serial"], taken["processes"], strict=True)]
    what = f"{CALLS} x {SECONDS} s on two cores"
    unit = "of one after the other"
    checks = [
        Check(what, statistics.median(ratios), 1 / LEAST, unit),
        Check(f"{what}, CPU time", min(parallel) / min(serial), 1 / LEAST, unit),
    ]
    print_checks(f"Pure Python in processes, {min(ratios):.3f} at best", checks)
    return checks
