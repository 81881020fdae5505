"""The report of a run as text: what held it back, and when its nodes waited and ran."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.cells import cell_len, set_cell_size

from taskiq_flow.cli.output import wrapped
from taskiq_flow.previews import duration, one_line
from taskiq_flow.views.node_times import NodeTimes, count_text, taken
from taskiq_flow.views.report import MOST_LISTED, RunReport

_SIGNS = {"waiting": "·", "queued": "░", "running": "█"}
_LONGEST_NAME = 28
_NUMBERS = 50
"""Columns that the numbers of a node need beside its name."""

_NARROWEST_TABLE = 72
"""Columns that a table of numbers needs."""


def report_lines(report: RunReport, width: int) -> Iterator[str]:
    """The report in lines of up to ``width`` columns: sentence, timeline, and numbers if they fit.

    The timeline has the nodes that took longest, in the order in which they began to wait.
    """
    took = f"{duration(report.seconds)}{report.details}"
    yield from wrapped(f"run {one_line(report.run_id)}: {report.status} in {took}", width)
    yield from wrapped(one_line(report.sentence), width)
    named = [name for name, times in report.nodes.items() if times.spans]
    longest = sorted(named, key=lambda name: taken(report.nodes[name]), reverse=True)[:MOST_LISTED]
    rows = [name for name in report.nodes if name in set(longest)]
    rows.sort(key=lambda name: report.nodes[name].spans[0].start)
    if not rows:
        return
    yield ""
    counts = {name: count_text(report.nodes[name]) for name in rows}
    longest_label = max(cell_len(one_line(name) + count) for name, count in counts.items())
    column = min(longest_label, _LONGEST_NAME, width // 3)
    room = max(width - column - 14, 8)
    for name in rows:
        times = report.nodes[name]
        mark = "*" if name in report.critical_path else " "
        took = duration(taken(times))
        label = _label(one_line(name), counts[name], column)
        yield f"{mark} {label}  {_bar(times, report.seconds, room)} {took:>9}".rstrip()
    yield ""
    legend = ", ".join(f"{sign} {part}" for part, sign in _SIGNS.items())
    yield from wrapped(f"{legend}; * on the critical path", width)
    if width >= _NARROWEST_TABLE:
        yield from [*report.lines(width - _NUMBERS)][2:]


def _label(name: str, count: str, columns: int) -> str:
    """The name and how many it stands for, in so many columns. A name that is longer is cut."""
    room = columns - cell_len(count)
    shown = name if cell_len(name) <= room else set_cell_size(name, room - 1) + "…"
    return set_cell_size(shown + count, columns)


def _bar(times: NodeTimes, seconds: float, room: int) -> str:
    """The spans of a node on a line that stands for the run. A later span covers an earlier one."""
    bar = [" "] * room
    scale = room / seconds if seconds else 0.0
    for span in times.spans:
        start = min(int(span.start * scale), room - 1)
        end = max(start + 1, math.ceil(min(span.end * scale, room)))
        bar[start:end] = _SIGNS[span.part] * (end - start)
    return "".join(bar)
