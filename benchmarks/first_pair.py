"""How soon a wide graph gives its first pair: 100,000 nodes that wait for none.

An engine that sends everything before it reads anything gives its first pair when nearly all the
time has passed.
"""

from __future__ import annotations

import statistics
import time

from taskiq import InMemoryBroker

from benchmarks.measure import timed
from benchmarks.report import Check, Options, print_checks
from benchmarks.shapes import chains, dag_of, no_op
from taskiq_flow import ExecutionEngine

MOST = 0.01


async def run(options: Options) -> list[Check]:
    """Measure the moment of the first pair as a part of the whole."""
    nodes, rounds = (20_000, 1) if options.quick else (100_000, 3)
    broker = InMemoryBroker()
    dag = dag_of(no_op(broker), chains(nodes, 1))
    dag.validate()
    engine = ExecutionEngine(broker, dag)
    firsts: list[float] = []

    async def note_first() -> None:
        start = time.perf_counter()
        first = None
        async for _ in engine.execute_async():
            if first is None:
                first = time.perf_counter() - start
        firsts.append(first or 0.0)

    lasts = [await timed(note_first) for _ in range(rounds)]
    part = statistics.median(first / last for first, last in zip(firsts, lasts, strict=True))
    checks = [Check(f"first pair of {nodes:,} roots", part, MOST, "of the whole")]
    first, last = statistics.median(firsts), statistics.median(lasts)
    print_checks(f"First pair after {first:.3f} s, last after {last:.3f} s", checks)
    return checks
