"""100,000 nodes beside 1,000, in chains of 10: whether a node costs the same in a large graph.

Cost per node is that of a run, read to its end, as in ``overhead``; in each round a number of runs
of the small graph stands beside one of the large one. Beside it stands the same ratio of the
hand-written loop: what taskiq and the garbage collector take more in a large heap. The total is
that of one large graph from nothing: nodes made, graph validated, run to its end.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

from taskiq import InMemoryBroker

from benchmarks.hand_written import by_hand
from benchmarks.measure import Contestant, median_ratio, timed
from benchmarks.report import Check, Options, print_checks, print_table
from benchmarks.shapes import by_engine, chains, dag_of, drain, no_op
from taskiq_flow import ExecutionEngine

SMALL = 1_000
LENGTH = 10
SMALL_RUNS = 5
MOST = 1.05
MOST_SECONDS = 10.0


@dataclass(slots=True)
class Taken:
    """Seconds per node, by round."""

    small: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)

    async def measure(self, small: Contestant, large: Contestant, nodes: int) -> None:
        """One round: the median of some runs of the small graph, then one of the large."""
        runs = [await timed(small) for _ in range(SMALL_RUNS)]
        self.small.append(statistics.median(runs) / SMALL)
        self.large.append(await timed(large) / nodes)

    def row(self) -> list[str]:
        """Cost at either size, and the ratio."""
        costs = [f"{statistics.median(taken) * 1e6:.1f}" for taken in (self.small, self.large)]
        return [*costs, f"{median_ratio(self.large, self.small):.2f} x"]


async def run(options: Options) -> list[Check]:
    """Measure both sizes in turns, then the large graph from nothing."""
    nodes, rounds = (20_000, 1) if options.quick else (100_000, 3)
    small, large = chains(SMALL, LENGTH), chains(nodes, LENGTH)
    runs = {
        "engine": (Taken(), by_engine(small), by_engine(large)),
        "hand-written loop": (Taken(), by_hand(small), by_hand(large)),
    }
    for _ in range(rounds):
        for taken, run_small, run_large in runs.values():
            await taken.measure(run_small, run_large, nodes)
    heads = (f"chains of {LENGTH}", f"{SMALL:,} nodes, us/node", f"{nodes:,} nodes, us/node", "")
    rows = [[name, *taken.row()] for name, (taken, _, _) in runs.items()]
    print_table(f"Cost per node by size, median of {rounds} rounds", heads, rows)

    engine, _, _ = runs["engine"]
    runs.clear()
    building, total = await from_nothing(nodes)
    ratio = median_ratio(engine.large, engine.small)
    checks = [
        Check(f"cost per node at {nodes:,} nodes", ratio, MOST, f"x at {SMALL:,}"),
        Check(f"{nodes:,} nodes from nothing", total, MOST_SECONDS * nodes / 100_000, "s"),
    ]
    print_checks(f"Of which building and validating: {building:.2f} s", checks)
    return checks


async def from_nothing(nodes: int) -> tuple[float, float]:
    """Seconds to build and validate a large graph, and to have run it as well."""
    building = 0.0

    async def everything() -> None:
        nonlocal building
        start = time.perf_counter()
        broker = InMemoryBroker()
        dag = dag_of(no_op(broker), chains(nodes, LENGTH))
        dag.validate()
        building = time.perf_counter() - start
        await drain(ExecutionEngine(broker, dag), nodes)

    total = await timed(everything)
    return building, total
