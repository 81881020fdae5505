"""The times of a run in the JSON of Chrome's trace viewer, which Perfetto opens.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from taskiq_flow.previews import one_line
from taskiq_flow.views.node_times import NodeTimes

if TYPE_CHECKING:
    from taskiq_flow.views.report import RunReport


def trace_of(report: RunReport) -> dict[str, Any]:
    """The document: a slice for each span. A node is on a track that is free for all of its time.

    Times are whole microseconds since the run began.
    """
    named = {"name": f"run {one_line(report.run_id)}"}
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 1, "args": named}]
    tracks = _tracks(report)
    for track in sorted(set(tracks.values())):
        about = {"pid": 1, "tid": track, "args": {"name": f"nodes {track}"}}
        events.append({"ph": "M", "name": "thread_name", **about})
    for name, track in tracks.items():
        is_critical = name in report.critical_path
        events += _slices(name, report.nodes[name], track, is_critical=is_critical)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _tracks(report: RunReport) -> dict[str, int]:
    """By name, the number of the track of each node that has a span: the lowest that is free."""
    spans = {name: times.spans for name, times in report.nodes.items() if times.spans}
    in_use: list[tuple[float, int]] = []  # until when, which
    free: list[int] = []
    tracks: dict[str, int] = {}
    for name in sorted(spans, key=lambda name: spans[name][0].start):
        while in_use and in_use[0][0] <= spans[name][0].start:
            heapq.heappush(free, heapq.heappop(in_use)[1])
        tracks[name] = heapq.heappop(free) if free else len(in_use) + 1
        heapq.heappush(in_use, (spans[name][-1].end, tracks[name]))
    return tracks


def _slices(
    name: str, times: NodeTimes, track: int, *, is_critical: bool
) -> Iterator[dict[str, Any]]:
    shown = one_line(name)
    for span in times.spans:
        start, end = round(span.start * 1e6), round(span.end * 1e6)
        about: dict[str, Any] = {"state": times.state, "attempt": span.attempt}
        if times.elements is not None:
            about["elements"] = times.elements
        if is_critical:
            about["critical path"] = True
        yield {
            "ph": "X",
            "name": shown if span.part == "running" else f"{shown} ({span.part})",
            "cat": span.part,
            "pid": 1,
            "tid": track,
            "ts": start,
            "dur": end - start,
            "args": about,
        }
