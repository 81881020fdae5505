"""What the engine adds to a node across processes: Redis streams, one worker process each.

The engine stands beside a loop written by hand for one graph, in turns, on the same server, with
the same broker and the same worker settings; only one of the two workers has something to do at a
time. The time is that of a whole run, read to its end, divided by the nodes; building and
validating the graph, connecting and subscribing are not in it, nor are the starts of server and
workers. Both save every result in Redis. Further runs measure the CPU time of all processes
together, which says more where the machine has other work to do.
"""

from __future__ import annotations

import statistics
import time

from benchmarks.distributed.both import both
from benchmarks.distributed.cpu import cpu_clock
from benchmarks.distributed.processes import redis_server
from benchmarks.measure import interleaved, median_ratio, middle_half
from benchmarks.report import CHECKED, Check, Options, print_table
from benchmarks.shapes import chain, fan

SHAPES = {"chain of 100": chain(100), "fan of 400": fan(400)}
MOST = {"chain of 100": 0.6, "fan of 400": 0.75}


async def run(options: Options) -> list[Check]:
    """Measure both shapes."""
    rounds = 7 if options.quick else 41
    checks = []
    rows = []
    with redis_server() as url:
        async with both(url) as (by_engine, by_hand):
            clocks = {"time": time.perf_counter, "CPU": cpu_clock()}
            for name, shape in SHAPES.items():
                runs = {"engine": by_engine(shape), "hand": by_hand(shape)}
                for what, clock in clocks.items():
                    taken = await interleaved(runs, rounds, clock)
                    ratio = median_ratio(taken["engine"], taken["hand"])
                    check = Check(f"Redis, {what} per node, {name}", ratio, MOST[name], "x by hand")
                    medians = [statistics.median(taken[who]) / len(shape) * 1e6 for who in runs]
                    row = [f"{name}, {what}", *(f"{median:,.0f}" for median in medians)]
                    half = middle_half(taken["engine"], taken["hand"])
                    rows.append([*row, *check.cells(), half])
                    checks.append(check)
    heads = ("no-op nodes", "engine, us/node", "by hand, us/node", *CHECKED, "half of the rounds")
    print_table(f"Redis: cost per node, median of {rounds} rounds", heads, rows)
    return checks
