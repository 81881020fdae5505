"""The times of a run as a picture: an SVG document with a row for each node."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from taskiq_flow.drawing.texts import cut, isolated, text_element, title_element
from taskiq_flow.drawing.theme import SIGNS, svg_document
from taskiq_flow.previews import duration, one_line
from taskiq_flow.views.node_times import NodeTimes, Span, count_text, taken

if TYPE_CHECKING:
    from taskiq_flow.views.report import RunReport

MOST_ROWS = 200
"""Nodes that are drawn: those that took longest."""

_WIDTH, _MARGIN, _ROW, _BAR = 960, 16, 24, 14
_LEFT, _RIGHT = 220, 780
"""Where the time axis begins and ends. Names are to the left, durations to the right."""

_NAME_COLUMNS, _TITLE_COLUMNS, _TEXT_COLUMNS, _STATE_COLUMNS = 26, 60, 120, 22
_MOST_TICKS = 8
_NARROWEST = 1.0

_ROOT = "taskiq-flow-timeline"
_STYLE = """
$root .number { font-size: 12px; fill: $quiet; font-variant-numeric: tabular-nums; }
$root .critical { font-weight: 600; }
$root .stripe { fill: $raised; }
$root .grid { stroke: $line; stroke-width: 1; }
$root .waiting { fill: $waiting; }
$root .queued { fill: $queued; }
$root .running { fill: $running; }
$root .failed { fill: $failed; }
$root .path { fill: $ink; }
"""


def svg_of(report: RunReport) -> str:
    """The document. Its size depends on the number of rows only; it can be scaled."""
    names = _drawn(report)
    sentence = textwrap.wrap(one_line(report.sentence), _TEXT_COLUMNS)
    top = 48 + 18 * len(sentence) + 60
    height = top + _ROW * len(names) + 36
    title = f"run {cut(one_line(report.run_id), _TITLE_COLUMNS)}"
    took = f"{duration(report.seconds)}{report.details}"
    lines = [text_element(_MARGIN, 30, f"{title}: {report.status} in {took}", "title")]
    lines += [
        text_element(_MARGIN, 54 + 18 * number, line, "quiet")
        for number, line in enumerate(sentence)
    ]
    lines += _legend(top - 42)
    lines += _stripes(top, len(names))
    lines += _axis(report.seconds, top, height - 36)
    for number, name in enumerate(names):
        lines += _row(report, name, top + _ROW * number)
    left = len(report.nodes) - len(names)
    foot = f"{left} more nodes took less time. " if left else ""
    foot += f"{report.parallelism:.1f} nodes ran at once on average."
    lines.append(text_element(_MARGIN, height - 12, foot, "quiet"))
    return svg_document(_ROOT, _STYLE, f"{title}: timeline", (_WIDTH, height), lines)


def _drawn(report: RunReport) -> list[str]:
    """The names of the nodes that are drawn, by when they began to wait."""
    order = {name: number for number, name in enumerate(report.nodes)}
    critical = set(report.critical_path)

    def took(name: str) -> tuple[bool, float]:
        return name in critical, taken(report.nodes[name])

    def began(name: str) -> tuple[float, int]:
        spans = report.nodes[name].spans
        return spans[0].start if spans else math.inf, order[name]

    return sorted(sorted(report.nodes, key=took, reverse=True)[:MOST_ROWS], key=began)


def _legend(y: int) -> Iterator[str]:
    x = _LEFT
    for part, width in (("waiting", 84), ("queued", 84), ("running", 84), ("failed", 74)):
        yield f'<rect class="{part}" x="{x}" y="{y - 10}" width="12" height="12" rx="2"/>'
        yield text_element(x + 18, y, part, "quiet")
        x += width
    yield f'<rect class="path" x="{x}" y="{y - 2}" width="12" height="3"/>'
    yield text_element(x + 18, y, "on the critical path", "quiet")


def _stripes(top: int, rows: int) -> Iterator[str]:
    for number in range(0, rows, 2):
        y = top + _ROW * number
        yield f'<rect class="stripe" x="0" y="{y}" width="{_WIDTH}" height="{_ROW}"/>'


def _axis(seconds: float, top: int, bottom: int) -> Iterator[str]:
    step = _step(seconds)
    for number in range(int(seconds / step + 1e-9) + 1):
        x = _x(number * step, seconds)
        label = _tick(number * step)
        yield f'<line class="grid" x1="{x:.1f}" y1="{top - 6}" x2="{x:.1f}" y2="{bottom}"/>'
        yield text_element(x, top - 12, label, "number", anchor="middle")


def _step(seconds: float) -> float:
    """Between two ticks: 1, 2 or 5 of a power of ten, or whole minutes and hours."""
    least = max(seconds, 0.001) / _MOST_TICKS
    whole = (60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400)
    if least > 30:  # noqa: PLR2004 - half a minute
        return next((step for step in whole if step >= least), math.ceil(least / 86_400) * 86_400)
    power = 10.0 ** math.floor(math.log10(least))
    return next((step for step in (power, 2 * power, 5 * power) if step >= least), 10 * power)


def _tick(seconds: float) -> str:
    if seconds >= 60:  # noqa: PLR2004 - a minute
        return duration(seconds).removesuffix(" 00 s").removesuffix(" 00 m")
    return f"{seconds * 1000:g} ms" if 0 < seconds < 1 else f"{seconds:g} s"


def _x(at: float, seconds: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * (at / seconds if seconds else 0.0)


def _row(report: RunReport, name: str, y: int) -> Iterator[str]:
    times, is_critical = report.nodes[name], name in report.critical_path
    shown, count = one_line(name), count_text(times)
    yield "<g>"
    yield title_element(_details(shown + count, times))
    label = cut(shown, _NAME_COLUMNS - len(count))
    # The count stays behind the name, whatever the direction of the name's letters.
    yield text_element(_MARGIN, y + 17, isolated(label) + count, "critical" if is_critical else "")
    for span in times.spans:
        yield _bar(span, times, report.seconds, y + (_ROW - _BAR) // 2)
    if is_critical and times.spans:
        start = _x(times.spans[0].start, report.seconds)
        width = max(_x(times.spans[-1].end, report.seconds) - start, _NARROWEST)
        line = f'x="{start:.1f}" y="{y + _ROW - 4}" width="{width:.1f}" height="3"'
        yield f'<rect class="path" {line}/>'
    text, is_bad = _state_text(times)
    yield text_element(
        _RIGHT + 14, y + 17, cut(text, _STATE_COLUMNS), "bad" if is_bad else "number"
    )
    yield "</g>"


def _bar(span: Span, times: NodeTimes, seconds: float, y: int) -> str:
    start, end = _x(span.start, seconds), _x(span.end, seconds)
    is_last = span is times.spans[-1]
    kind = "failed" if is_last and times.state == "failed" else span.part
    width = max(end - start, _NARROWEST)
    return f'<rect class="{kind}" x="{start:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}"/>'


def _state_text(times: NodeTimes) -> tuple[str, bool]:
    """What stands behind the bar, and whether it is bad."""
    took = duration(taken(times)) if times.spans else ""
    tries = f", {times.attempts} attempts" if times.attempts > max(1, times.elements or 1) else ""
    if times.state == "completed":
        return f"{took}{tries}", False
    sign = f"{SIGNS[times.state]} " if times.state in SIGNS else ""
    has_ran = times.state in ("failed", "running", "cancelled", "interrupted")
    is_bad = times.state in ("failed", "interrupted")
    return f"{sign}{times.state}{f', {took}' if took and has_ran else ''}", is_bad


def _details(name: str, times: NodeTimes) -> str:
    parts = (("waiting", times.waiting), ("queued", times.queued), ("running", times.running))
    text = ", ".join(f"{part} {duration(seconds)}" for part, seconds in parts)
    return f"{name}: {times.state}; {text}; attempts: {times.attempts}"
