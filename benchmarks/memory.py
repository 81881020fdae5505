"""Memory that a large graph takes, per node: what building it and running it add at their peak.

Untimed, under ``tracemalloc``, which counts what Python allocates and nothing else. The baseline is
taken before the graph is built, broker and task being there. The reader drops the pairs, and the
tasks return a number that exists once, so that results weigh nothing.
"""

from __future__ import annotations

import gc
import tracemalloc

from taskiq import InMemoryBroker

from benchmarks.hand_written import by_hand
from benchmarks.measure import Contestant
from benchmarks.report import Check, Options, print_checks, print_table
from benchmarks.shapes import Shape, chains, dag_of, drain, fan, no_op
from taskiq_flow import ExecutionEngine

MOST_KILOBYTES = 1.5


async def run(options: Options) -> list[Check]:
    """Measure chains of 10 and one wide fan."""
    nodes = 20_000 if options.quick else 100_000
    shapes = {"chains of 10": chains(nodes, 10), "fan": fan(nodes)}
    rows = []
    checks = []
    for name, shape in shapes.items():
        graph, peak = await by_engine(shape)
        hand = await added_by(lambda shape=shape: by_hand(shape)())
        rows.append([name, f"{graph:.2f}", f"{peak:.2f}", f"{hand:.2f}"])
        checks.append(Check(f"peak memory per node, {name}", peak, MOST_KILOBYTES, "KB"))
    heads = (f"{nodes:,} nodes", "graph, validated", "peak, with its run", "peak, by hand")
    print_table("Memory on top of the results, KB per node", heads, rows)
    print_checks("Targets", checks)
    return checks


async def by_engine(shape: Shape) -> tuple[float, float]:
    """KB per node: held by the validated graph, and at the peak of building and running it."""
    graph = 0.0

    async def build_and_run() -> None:
        nonlocal graph
        dag = dag_of(no_op(broker), shape)
        dag.validate()
        gc.collect()
        graph = (tracemalloc.get_traced_memory()[0] - baseline) / len(shape) / 1000
        await drain(ExecutionEngine(broker, dag), len(shape))

    broker = InMemoryBroker()
    baseline = _start()
    await build_and_run()
    return graph, _stop(baseline) / len(shape) / 1000


async def added_by(run_by_hand: Contestant) -> float:
    """KB per node at the peak of a run."""
    baseline = _start()
    await run_by_hand()
    return _stop(baseline)
