"""The times of a run as a picture: an SVG document with a row for each node."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from taskiq_flow.previews import duration, one_line
from taskiq_flow.views.node_times import NodeTimes, Span

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
_JOINERS = "\u200d\ufe0f"

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 16px; font-weight: 600; }
.quiet { fill: #59636e; }
.number { font-size: 12px; fill: #59636e; font-variant-numeric: tabular-nums; }
.critical { font-weight: 600; }
.bad { fill: #b3261e; font-weight: 600; }
.paper { fill: #ffffff; }
.stripe { fill: #f6f8fa; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.waiting { fill: #d3d9e0; }
.sending { fill: #e0a82e; }
.running { fill: #2f7fd6; }
.failed { fill: #cf3b32; }
.path { fill: #1f2328; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
.quiet, .number { fill: #9aa5b1; }
.bad { fill: #ff8a80; }
.paper { fill: #0d1117; }
.stripe { fill: #151b23; }
.grid { stroke: #30363d; }
.waiting { fill: #3d444d; }
.sending { fill: #c08a17; }
.running { fill: #4493f8; }
.failed { fill: #f2554a; }
.path { fill: #e6edf3; }
}
"""


def svg_of(report: RunReport) -> str:
    """The document. Its size depends on the number of rows only; it can be scaled."""
    names = _drawn(report)
    sentence = textwrap.wrap(one_line(report.sentence), _TEXT_COLUMNS)
    top = 48 + 18 * len(sentence) + 60
    height = top + _ROW * len(names) + 36
    title = f"run {_cut(one_line(report.run_id), _TITLE_COLUMNS)}"
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    style = 'style="max-width:100%;height:auto" role="img"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>',
        f"<title>{escape(title)}: timeline</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{height}"/>',
        _text(_MARGIN, 30, f"{title}: {report.status} in {duration(report.seconds)}", "title"),
    ]
    lines += [
        _text(_MARGIN, 54 + 18 * number, line, "quiet") for number, line in enumerate(sentence)
    ]
    lines += _legend(top - 42)
    lines += _stripes(top, len(names))
    lines += _axis(report.seconds, top, height - 36)
    for number, name in enumerate(names):
        lines += _row(report, name, top + _ROW * number)
    left = len(report.nodes) - len(names)
    foot = f"{left} more nodes took less time. " if left else ""
    foot += f"{report.parallelism:.1f} nodes ran at once on average."
    lines += [_text(_MARGIN, height - 12, foot, "quiet"), "</svg>"]
    return "\n".join(lines) + "\n"


def _drawn(report: RunReport) -> list[str]:
    """The names of the nodes that are drawn, by when they began to wait."""
    order = {name: number for number, name in enumerate(report.nodes)}
    critical = set(report.critical_path)

    def took(name: str) -> tuple[bool, float]:
        spans = report.nodes[name].spans
        return name in critical, spans[-1].end - spans[0].start if spans else 0.0

    def began(name: str) -> tuple[float, int]:
        spans = report.nodes[name].spans
        return spans[0].start if spans else math.inf, order[name]

    return sorted(sorted(report.nodes, key=took, reverse=True)[:MOST_ROWS], key=began)


def _legend(y: int) -> Iterator[str]:
    x = _LEFT
    for part, width in (("waiting", 84), ("sending", 84), ("running", 84), ("failed", 74)):
        yield f'<rect class="{part}" x="{x}" y="{y - 10}" width="12" height="12" rx="2"/>'
        yield _text(x + 18, y, part, "quiet")
        x += width
    yield f'<rect class="path" x="{x}" y="{y - 2}" width="12" height="3"/>'
    yield _text(x + 18, y, "on the critical path", "quiet")


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
        yield _text(x, top - 12, label, "number", anchor="middle")


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
    shown = one_line(name)
    count = "" if times.elements is None else f" ×{times.elements}"
    yield "<g>"
    yield f"<title>{escape(_details(shown + count, times))}</title>"
    label = _cut(shown, _NAME_COLUMNS - len(count))
    # The count stays behind the name, whatever the direction of the name's letters.
    yield _text(_MARGIN, y + 17, f"\u2068{label}\u2069{count}", "critical" if is_critical else "")
    for span in times.spans:
        yield _bar(span, times, report.seconds, y + (_ROW - _BAR) // 2)
    if is_critical and times.spans:
        start = _x(times.spans[0].start, report.seconds)
        width = max(_x(times.spans[-1].end, report.seconds) - start, _NARROWEST)
        line = f'x="{start:.1f}" y="{y + _ROW - 4}" width="{width:.1f}" height="3"'
        yield f'<rect class="path" {line}/>'
    text, is_bad = _state_text(times)
    yield _text(_RIGHT + 14, y + 17, _cut(text, _STATE_COLUMNS), "bad" if is_bad else "number")
    yield "</g>"


def _bar(span: Span, times: NodeTimes, seconds: float, y: int) -> str:
    start, end = _x(span.start, seconds), _x(span.end, seconds)
    is_last = span is times.spans[-1]
    kind = "failed" if is_last and times.state == "failed" else span.part
    width = max(end - start, _NARROWEST)
    return f'<rect class="{kind}" x="{start:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}"/>'


def _state_text(times: NodeTimes) -> tuple[str, bool]:
    """What stands behind the bar, and whether it is bad."""
    took = duration(times.spans[-1].end - times.spans[0].start) if times.spans else ""
    tries = f", {times.attempts} attempts" if times.attempts > 1 else ""
    if times.state == "completed":
        return f"{took}{tries}", False
    sign = {"failed": "✗ ", "running": "● "}.get(times.state, "")
    has_ran = times.state in ("failed", "running", "cancelled")
    return f"{sign}{times.state}{f', {took}' if took and has_ran else ''}", times.state == "failed"


def _details(name: str, times: NodeTimes) -> str:
    parts = (("waiting", times.waiting), ("sending", times.sending), ("running", times.running))
    text = ", ".join(f"{part} {duration(seconds)}" for part, seconds in parts)
    return f"{name}: {times.state}; {text}; attempts: {times.attempts}"


def _text(x: float, y: int, text: str, kind: str = "", anchor: str = "") -> str:
    about = f' class="{kind}"' if kind else ""
    about += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:g}" y="{y}"{about}>{escape(text)}</text>'


def _cut(text: str, columns: int) -> str:
    """The text, cut to so many columns. Letters that belong together are not parted."""
    width = 0
    for place, letter in enumerate(text):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > columns:
            start = text[: place - 1]
            while start and (start[-1] in _JOINERS or unicodedata.combining(text[len(start)])):
                start = start[:-1]
            return f"{start}…"
    return text
