"""20,000 nodes over Redis beside 1,000, in chains of 10, on four worker processes.

Cost per node is that of a run, read to its end; each round is some runs of the small graph, one of
the large one, and the small ones again. Memory is that of this process alone, in a run of its own
that nobody times, and counted as in ``memory``: what building and running the graph add at their
peak, with a reader that drops the pairs and values that weigh nothing. The results that Redis keeps
are Redis' own.
"""

from __future__ import annotations

import statistics

from benchmarks import memory
from benchmarks.distributed import engine
from benchmarks.distributed.processes import redis_server, taskiq_workers
from benchmarks.measure import Contestant, median_ratio, timed
from benchmarks.report import Check, Options, print_checks, print_table
from benchmarks.shapes import Shape, chains

SMALL = 1_000
LENGTH = 10
PROCESSES = 4
SMALL_RUNS = 5
MOST = 1.10
MOST_MEMORY = 1.5
QUEUE = "engine"


async def run(options: Options) -> list[Check]:
    """Measure both sizes in turns, then the memory of the large one."""
    nodes, rounds = (4_000, 1) if options.quick else (20_000, 3)
    with redis_server() as url, taskiq_workers(engine.WORKER, url, QUEUE, processes=PROCESSES):
        async with engine.by_engine(url, QUEUE) as by_engine:
            small = by_engine(chains(SMALL, LENGTH))
            taken = await _taken(small, by_engine(chains(nodes, LENGTH)), rounds)
        graph, peak = await _memory(url, chains(nodes, LENGTH))
    per_node = {
        SMALL: [seconds / SMALL for seconds in taken[0]],
        nodes: [seconds / nodes for seconds in taken[1]],
    }
    costs = {count: statistics.median(seconds) for count, seconds in per_node.items()}
    title = f"Redis, {PROCESSES} worker processes, chains of {LENGTH}, median of {rounds} rounds"
    rows = [[f"{count:,} nodes", f"{c * 1e6:,.0f}", f"{1 / c:,.0f}"] for count, c in costs.items()]
    print_table(title, ("", "us/node", "nodes/s"), rows)
    ratio = median_ratio(per_node[nodes], per_node[SMALL])
    checks = [
        Check(f"Redis, cost per node at {nodes:,} nodes", ratio, MOST, f"x at {SMALL:,}"),
        Check(f"Redis, peak memory per node, {nodes:,} nodes", peak, MOST_MEMORY, "KB"),
    ]
    print_checks(f"Of the memory, the validated graph alone: {graph:.2f} KB per node", checks)
    return checks


async def _taken(
    small: Contestant, large: Contestant, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of a small run, the median of those around a large one, and of that."""
    await small()
    of_small = []
    of_large = []
    for _ in range(rounds):
        around = [await timed(small) for _ in range(SMALL_RUNS)]
        of_large.append(await timed(large))
        around += [await timed(small) for _ in range(SMALL_RUNS)]
        of_small.append(statistics.median(around))
    return of_small, of_large


async def _memory(url: str, shape: Shape) -> tuple[float, float]:
    """What the graph holds per node, and the peak, on a broker that has run something before."""
    broker = engine.engine_broker(url, QUEUE)
    await broker.startup()
    try:
        await memory.by_engine(broker, chains(SMALL, LENGTH))
        return await memory.by_engine(broker, shape)
    finally:
        await broker.shutdown()
