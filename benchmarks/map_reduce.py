"""``MapReduce.map`` beside the last version in which it was not a graph of one mapped node.

No-op tasks, 32 at a time and without a limit, over a list and over a generator, whose results are
read as they come. Both versions run in processes of their own, in turns; the time is CPU time.
"""

from __future__ import annotations

from benchmarks.earlier import ratios
from benchmarks.report import Check, Options, print_checks

BEFORE = "45362a3c64cb2ebf42c5af3ece8c90536ffc0c77"
"""The last commit before it was one."""

MOST = 1 / 1.15


async def run(options: Options) -> list[Check]:
    """Measure three maps."""
    rounds = 3 if options.quick else 5
    found = await ratios(BEFORE, "map_reduce_program.py", rounds)
    checks = [
        Check(f"MapReduce.map, {what}", ratio, MOST, "x before") for what, ratio in found.items()
    ]
    print_checks(f"CPU time, median of {rounds} rounds", checks)
    return checks
