"""Three maps in a chain over a list of only 64, where a barrier costs most.

Each task sleeps for a log-normal time with a deviation of 0.5 (sigma), 32 at a time. The engine is
held against the longer of two bounds (all that was slept divided by the limit, and the longest
chain), against the same three maps one after the other, and against pipefunc where it is installed,
whose maps take their functions to a pool of 32 threads, one item in each call. The first two are
shown on paper too: what the engine's schedule takes if nothing but the tasks takes time.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks import map_peers, schedule
from benchmarks.chained_maps import Stages, by_engine
from benchmarks.report import Check, Options, print_checks, print_table
from benchmarks.sleeps import LIMIT, STAGES, Sleeps, drawn
from benchmarks.workload import Workflow
from taskiq_flow import MapReduce

ITEMS = 64
MEANS = {0.01: 120, 0.05: 30}
"""The mean seconds of a task, and how many sets of times. Sets differ much: on paper, a run takes
0.53 to 0.85 of the time with barriers. The median is 0.715 for 400 sets, 0.717 for the first 120 of
them and 0.716 for 30, but 0.745 for 15."""
MOST_OVER_BOUND = 1.27
MOST_OF_BARRIERS = 1 / 1.4
MOST_OF_PIPEFUNC = 1 / 1.39


async def with_barriers(stages: Stages) -> float:
    """The seconds of the maps one after the other."""
    start = time.perf_counter()
    values: list[Any] = list(range(ITEMS))
    for task in stages.tasks:
        mapped = await MapReduce.map(stages.broker, task, values, max_parallel=LIMIT)
        values = (await mapped.wait_result()).return_value
    return time.perf_counter() - start


def on_paper(seconds: list[list[float]]) -> tuple[float, float]:
    """What the schedule takes if nothing but the tasks takes time: of the bound, of barriers."""
    times = [time for stage in seconds for time in stage]
    names = [f"s{number}[{item}]" for number in range(STAGES) for item in range(ITEMS)]
    behind = [[n - ITEMS] if n >= ITEMS else [] for n in range(len(times))]
    behind_all = [range(n // ITEMS * ITEMS - ITEMS, n // ITEMS * ITEMS) for n in range(len(times))]
    # How long tasks take is not known before: the longest path is that of the most tasks.
    tasks_left = [float(STAGES - n // ITEMS) for n in range(len(times))]
    chained = Workflow("chained", names, times, behind)
    barriers = Workflow("barriers", names, times, [[n for n in b if n >= 0] for b in behind_all])
    took = schedule.on_paper(chained, LIMIT, tasks_left)
    bound = max(sum(times) / LIMIT, schedule.critical_path(chained))
    return took / bound, took / schedule.first_come(barriers, LIMIT)


async def run(options: Options) -> list[Check]:
    """Medians of the ratios, for two lengths of tasks."""
    rows, checks = [], []
    peers, _ = map_peers.installed(("pipefunc",))
    for mean, sets in MEANS.items():
        over_bound, barriers, pipefunc = [], [], []
        paper: list[tuple[float, float]] = []
        for seed in range(10 if options.quick else sets):
            seconds = drawn(seed, ITEMS, mean)
            sleeps = Sleeps(seconds)
            took = (await by_engine(Stages(sleeps), ITEMS)).seconds
            over_bound.append(took / sleeps.bound)
            barriers.append(took / await with_barriers(Stages(Sleeps(seconds))))
            paper.append(on_paper(seconds))
            pipefunc += [took / (await peer.take(Sleeps(seconds))).seconds for peer in peers]
        what = f"{STAGES} x {ITEMS} elements of {mean * 1000:.0f} ms"
        found = [statistics.median(over_bound), statistics.median(barriers)]
        checks += [
            Check(f"{what}: time over the bound", found[0], MOST_OVER_BOUND, "x"),
            Check(f"{what}: time over three maps", found[1], MOST_OF_BARRIERS, "x"),
        ]
        row = [f"{mean * 1000:.0f} ms", *(f"{ratio:.3f}" for ratio in found)]
        if pipefunc:
            ratio = statistics.median(pipefunc)
            checks.append(Check(f"{what}: time over pipefunc", ratio, MOST_OF_PIPEFUNC, "x"))
            row.append(f"{ratio:.3f}")
        else:
            row.append("not installed")
        rows.append(row)
        medians = map(statistics.median, zip(*paper, strict=True))
        rows.append(["on paper", *(f"{ratio:.3f}" for ratio in medians), ""])
    print_table(
        f"{STAGES} maps in a chain over {ITEMS} items, {LIMIT} at a time",
        ("mean", "x bound", "x three maps", "x pipefunc"),
        rows,
    )
    print_checks("Narrow", checks)
    return checks
