"""What listeners add to a run: one and two that do nothing, one that keeps a view, and progress.

The same graphs of no-op nodes on an ``InMemoryBroker`` each, in turns. The time is the CPU time of
this process, so that others on the machine count for less.
"""

from __future__ import annotations

import io
import statistics
import time

from benchmarks.measure import interleaved, median_ratio
from benchmarks.report import CHECKED, Check, Options, print_table
from benchmarks.shapes import by_engine, three_shapes
from taskiq_flow import Event, Progress, RunView

NODES = 1_000
MOST = {"one": 1.17, "two": 1.25, "view": 1.35, "progress": 1.20}


class Nothing:
    """Does nothing with any event."""

    def on_event(self, event: Event) -> None:
        """Called three times for each node."""


class Viewing:
    """Keeps a view of the run that is in progress."""

    def __init__(self) -> None:
        self.view = RunView()

    def on_event(self, event: Event) -> None:
        """Apply the event to the view of its run."""
        if event.run_id != self.view.run_id:
            self.view = RunView()
        self.view.apply(event)


async def run(options: Options) -> list[Check]:
    """Measure three shapes of 1,000 nodes."""
    rounds = 9 if options.quick else 31
    checks = []
    rows = []
    for name, shape in three_shapes(NODES).items():
        contestants = {
            "none": by_engine(shape),
            "one": by_engine(shape, [Nothing()]),
            "two": by_engine(shape, [Nothing(), Nothing()]),
            "view": by_engine(shape, [Viewing()]),
            "progress": by_engine(shape, [Progress(io.StringIO())]),
        }
        taken = await interleaved(contestants, rounds, time.process_time)
        for who, most in MOST.items():
            ratio = median_ratio(taken[who], taken["none"])
            check = Check(f"listeners: {who}, {name}", ratio, most, "x without")
            cost = statistics.median(taken[who]) / NODES * 1e6
            rows.append([f"{name}: {who}", f"{cost:.1f}", *check.cells()])
            checks.append(check)
    heads = ("no-op nodes: listeners", "us/node", *CHECKED)
    print_table(f"Listeners, median of {rounds} rounds of CPU time", heads, rows)
    return checks
