"""A SQLite journal beside the last version that wrote format 1, which stored no events.

Both versions run the same graphs of no-op nodes in processes of their own, in turns; the time is
the CPU time of each process, its threads included.
"""

from __future__ import annotations

from benchmarks.earlier import ratios
from benchmarks.report import Check, Options, print_checks

FORMAT_1 = "015f87d26a9b516802d6a81862284dc5215f174d"
"""The last commit before format 2."""

MOST = 1.1


async def run(options: Options) -> list[Check]:
    """Measure three shapes."""
    rounds = 3 if options.quick else 7
    found = await ratios(FORMAT_1, "journal_program.py", rounds)
    checks = [
        Check(f"SQLite journal, {shape}", ratio, MOST, "x format 1")
        for shape, ratio in found.items()
    ]
    print_checks(f"CPU time, median of {rounds} rounds", checks)
    return checks
