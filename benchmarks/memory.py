"""Memory that a large graph takes, per node: what building it and running it add at their peak.

Untimed, under ``tracemalloc``, which counts what Python allocates and nothing else. The baseline is
taken before the graph is built, broker and task being there. The reader drops the pairs, and the
tasks return a number that exists once, so that results weigh nothing.
"""

from __future__ import annotations

import gc
import tracemalloc

from taskiq import AsyncBroker, InMemoryBroker

from benchmarks.hand_written import Resolve, run_by_hand
from benchmarks.report import CHECKED, Check, Options, print_table
from benchmarks.shapes import Shape, chains, dag_of, drain, fan, no_op
from taskiq_flow import ExecutionEngine

MOST = 1.0


async def run(options: Options) -> list[Check]:
    """Measure chains of 10 and one wide fan."""
    nodes = 20_000 if options.quick else 100_000
    checks = []
    rows = []
    for name, shape in {"chains of 10": chains(nodes, 10), "fan": fan(nodes)}.items():
        graph, peak = await by_engine(InMemoryBroker(), shape)
        hand = await by_hand(shape)
        check = Check(f"peak memory per node, {nodes:,} nodes, {name}", peak, MOST, "KB")
        rows.append([name, f"{graph:.2f}", f"{hand:.2f}", *check.cells()])
        checks.append(check)
    heads = (f"{nodes:,} nodes", "graph alone", "run by hand", *CHECKED)
    print_table("Peak memory on top of the results, KB per node", heads, rows)
    return checks


async def by_engine(broker: AsyncBroker, shape: Shape) -> tuple[float, float]:
    """What the validated graph holds, and the peak of building and running it."""
    task = no_op(broker)
    baseline = _start()
    dag = dag_of(task, shape)
    dag.validate()
    gc.collect()
    graph = tracemalloc.get_traced_memory()[0] - baseline
    await drain(ExecutionEngine(broker, dag), len(shape))
    return _per_node(graph, shape), _per_node(_stop() - baseline, shape)


async def by_hand(shape: Shape) -> float:
    """The peak of the loop written by hand, which has no graph beside its lists."""
    resolve = Resolve()
    task = no_op(InMemoryBroker().with_middlewares(resolve))
    baseline = _start()
    await run_by_hand(resolve, task, shape)
    return _per_node(_stop() - baseline, shape)


def _start() -> int:
    """Begin to count, and return what there is."""
    gc.collect()
    tracemalloc.start()
    return tracemalloc.get_traced_memory()[0]


def _stop() -> int:
    """End counting, and return the peak."""
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _per_node(size: int, shape: Shape) -> float:
    return size / len(shape) / 1000
