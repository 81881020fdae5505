"""What the engine adds to a node: no-op nodes by the engine and by the hand-written loop.

Both run the same shapes on an ``InMemoryBroker`` each, in turns. The time is that of a whole run,
read to its end, divided by the nodes; building and validating the graph are not in it.
"""

from __future__ import annotations

import statistics

from benchmarks.hand_written import by_hand
from benchmarks.measure import interleaved, median_ratio
from benchmarks.report import CHECKED, Check, Options, print_table
from benchmarks.shapes import by_engine, three_shapes

NODES = 1_000
MOST = 1.00


async def run(options: Options) -> list[Check]:
    """Measure three shapes of 1,000 nodes."""
    rounds = 9 if options.quick else 31
    checks = []
    rows = []
    for name, shape in three_shapes(NODES).items():
        taken = await interleaved({"engine": by_engine(shape), "hand": by_hand(shape)}, rounds)
        ratio = median_ratio(taken["engine"], taken["hand"])
        check = Check(f"cost per node, {name}", ratio, MOST, "x by hand")
        costs = [f"{statistics.median(taken[who]) / NODES * 1e6:.1f}" for who in taken]
        rows.append([name, *costs, *check.cells()])
        checks.append(check)
    heads = ("no-op nodes", "engine, us/node", "by hand, us/node", *CHECKED)
    print_table(f"Cost per node, median of {rounds} rounds", heads, rows)
    return checks
