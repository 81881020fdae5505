"""Three maps in a chain by the engine, by hand and by other systems, in one process, one by one.

Each task sleeps for a log-normal time with a mean of 10 ms and a deviation of 0.5 (sigma), 32 at a
time. The whole is held against the longer of two bounds: all that was slept divided by the limit,
and the longest chain. The first item that is through is shown beside it: of the engine as its
reader has it, of the others when its last task has ended. Building the graph and starting servers
and pools is not in it.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable

from benchmarks.chained_maps import Stages, by_engine, by_hand
from benchmarks.map_peers import installed
from benchmarks.report import Check, Options, print_table
from benchmarks.sleeps import LIMIT, STAGES, Sleeps, Taken, drawn

MEAN = 0.01
SETS = {1000: 3, 64: 9}
"""How many sets of times, by the number of items."""


async def the_engine(sleeps: Sleeps) -> Taken:
    """What an engine takes."""
    return await by_engine(Stages(sleeps), len(sleeps.seconds[0]))


async def a_loop(sleeps: Sleeps) -> Taken:
    """What a loop takes that has a task for each item, and a semaphore."""
    return await by_hand(Stages(sleeps, resolves=True), len(sleeps.seconds[0]))


async def run(options: Options) -> list[Check]:
    """Measure both lengths of lists. No target: ``narrow`` and ``chained_maps`` have them."""
    present, absent = installed()
    contestants: dict[str, tuple[Callable[[Sleeps], Awaitable[Taken]], int]] = {
        "this engine": (the_engine, max(SETS)),
        "hand-written loop": (a_loop, max(SETS)),
    }
    contestants |= {peer.title: (peer.take, peer.most_items) for peer in present}
    rows: dict[str, list[str]] = {name: [] for name in contestants}
    for items, sets in SETS.items():
        over_bound: dict[str, list[float]] = {name: [] for name in contestants}
        first: dict[str, list[float]] = {name: [] for name in contestants}
        for seed in range(1 if options.quick else sets):
            for name, (take, most_items) in contestants.items():
                if items <= most_items:
                    sleeps = Sleeps(drawn(seed, items, MEAN))
                    taken = await take(sleeps)
                    over_bound[name].append(taken.seconds / sleeps.bound)
                    first[name].append(taken.first_seconds)
        for name, row in rows.items():
            if over_bound[name]:
                row.append(f"{statistics.median(over_bound[name]):.3f}")
                row.append(f"{statistics.median(first[name]) * 1000:.0f}")
            else:
                row += ["not run", ""]
    table = [[name, *row] for name, row in rows.items()]
    table += [[name, *["not installed", ""] * len(SETS)] for name in absent]
    heads = [head for items in SETS for head in (f"{items:,}: x bound", "first, ms")]
    title = f"{STAGES} maps in a chain, tasks of {MEAN * 1000:.0f} ms, {LIMIT} at a time"
    print_table(title, ("items", *heads), table)
    return []
