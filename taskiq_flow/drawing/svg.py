"""A layout as an SVG document, with the state of a run if one is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from taskiq_flow.drawing.diagram import RunState, state_of, states_of
from taskiq_flow.drawing.layout import (
    BAR_HEIGHT,
    BOLD,
    HAS_BAR,
    LABEL_HEIGHT,
    LABEL_SIZE,
    LINE_HEIGHT,
    LINE_SIZE,
    PADDING,
    SIGN_WIDTH,
    Layout,
    PlacedBox,
    PlacedEdge,
)
from taskiq_flow.drawing.texts import cut, isolated, text_element, title_element, width
from taskiq_flow.drawing.theme import SIGNS, STATES, svg_document
from taskiq_flow.previews import one_line

_MARGIN, _HEAD = 16, 28
_MOST_LISTED = 20
_HEAD_COLUMNS = 40
_BEHIND = 4
"""Pixels by which the outline of several nodes stands behind the first one."""

_ROOT = "taskiq-flow-graph"
_STYLE = f"""
$root .line {{ font-size: {LINE_SIZE}px; fill: $quiet; }}
$root .name {{ font-size: {LABEL_SIZE}px; font-weight: 600; }}
$root .box {{ fill: $raised; stroke: $edge; stroke-width: 1; }}
$root .input {{ fill: $paper; stroke: $line; stroke-width: 1; }}
$root .edge {{ fill: none; stroke: $edge; stroke-width: 1.2; }}
$root .order {{ stroke-dasharray: 5 4; }}
$root .tip {{ fill: $edge; }}
$root .box.completed {{ stroke: $completed; }}
$root .box.running, $root .box.queued {{ stroke: $running; stroke-width: 1.5; }}
$root .box.failed {{ stroke: $failed; stroke-width: 2; }}
$root .box.cancelled {{ stroke: $cancelled; }}
$root .box.interrupted {{ stroke: $failed; stroke-dasharray: 6 3; stroke-width: 1.5; }}
$root .box.skipped {{ stroke-dasharray: 2 3; }}
$root .sign {{ font-weight: 700; }}
$root .sign.completed {{ fill: $good; }}
$root .sign.running, $root .sign.queued {{ fill: $busy; }}
$root .sign.failed, $root .sign.interrupted {{ fill: $bad; }}
$root .sign.cancelled {{ fill: $halted; }}
$root .sign.skipped {{ fill: $quiet; }}
$root .bar {{ fill: $waiting; }}
$root .bar.completed {{ fill: $completed; }}
$root .bar.running {{ fill: $running; }}
$root .bar.queued {{ fill: $queued; }}
$root .bar.failed {{ fill: $failed; }}
$root .bar.cancelled {{ fill: $cancelled; }}
$root .bar.interrupted {{ fill: $failed; opacity: 0.5; }}
$root .bar.skipped {{ fill: $edge; }}
"""


def svg_of(layout: Layout, run: RunState | None = None) -> str:
    """The document. Its size follows from the graph; it can be scaled.

    ``run``: whose states are shown; the layout has to have been made with ``shows_states=True``.
    """
    head = "" if run is None else _head(run)
    top = _MARGIN + _HEAD * bool(head)
    wide = max(layout.width, BOLD * width(head, LABEL_SIZE)) + 2 * _MARGIN
    height = layout.height + top + _MARGIN
    lines = [text_element(_MARGIN, _MARGIN + 12, head, "name")] if head else []
    lines.append(f'<g transform="translate({_MARGIN} {top})">')
    for edge in layout.edges:
        lines += _edge(edge)
    for box in layout.boxes:
        lines += _input(box) if box.kind == "input" else _box(box, run)
    return svg_document(_ROOT, _STYLE, _title(layout, run), (wide, height), [*lines, "</g>"])


def _title(layout: Layout, run: RunState | None) -> str:
    nodes = sum(len(box.members) for box in layout.boxes if box.kind != "input")
    of_run = "" if run is None else f"run {one_line(run.run_id)}, {run.status}: "
    return f"{of_run}a graph of {nodes} {'node' if nodes == 1 else 'nodes'}"


def _head(run: RunState) -> str:
    """The run and its states in words, with the signs that stand in the boxes."""
    counts = Counter(node.state for node in run.nodes.values())
    parts = [f"{isolated(cut(one_line(run.run_id), _HEAD_COLUMNS))}: {run.status}"]
    parts += [
        f"{SIGNS.get(state, '')} {counts[state]} {state}".strip()
        for state in STATES
        if counts[state]
    ]
    return "  ·  ".join(parts)


def _edge(edge: PlacedEdge) -> Iterator[str]:
    *line, (tip_x, tip_y) = edge.points
    start, rest = line[0], line[1:]
    curve = " ".join(f"{x:g},{y:g}" for x, y in rest)
    kind = "edge order" if edge.is_order else "edge"
    label = title_element(edge.label) if edge.label else ""
    yield f'<path class="{kind}" d="M{start[0]:g},{start[1]:g}C{curve}">{label}</path>'
    x, y = line[-1]
    length = max(((tip_x - x) ** 2 + (tip_y - y) ** 2) ** 0.5, 0.1)
    across = (-3.2 * (tip_y - y) / length, 3.2 * (tip_x - x) / length)
    corners = ((x + across[0], y + across[1]), (tip_x, tip_y), (x - across[0], y - across[1]))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    yield f'<polygon class="tip" points="{points}"/>'


def _input(box: PlacedBox) -> Iterator[str]:
    yield "<g>"
    yield title_element(f"inputs of the run: {_listed(box.members)}")
    yield _rect("input", box, radius=box.height / 2)
    middle = box.x + box.width / 2
    yield text_element(middle, box.y + box.height / 2 + 4, box.label, "line", anchor="middle")
    yield "</g>"


def _box(box: PlacedBox, run: RunState | None) -> Iterator[str]:
    states = Counter[str]() if run is None else states_of(box.members, run)
    state = "" if run is None else state_of(box.members, run)
    yield "<g>"
    yield title_element(_details(box, states))
    kind = f"box {state}" if state else "box"
    if box.kind in HAS_BAR:
        yield _rect(kind, box, offset=_BEHIND)
    yield _rect(kind, box)
    left = box.x + PADDING
    if run is None:
        left, anchor = box.x + box.width / 2, "middle"
    else:
        anchor = ""
        if sign := SIGNS.get(state):
            yield text_element(left, box.y + 20, sign, f"sign {state}")
        left += SIGN_WIDTH
    # The suffix stays behind the name, whatever the direction of the name's letters.
    label = f"{isolated(box.label)} {box.suffix}" if box.suffix else isolated(box.label)
    yield text_element(left, box.y + 20, label, "name", anchor=anchor)
    for number, line in enumerate(box.lines):
        y = box.y + LABEL_HEIGHT + 6 + LINE_HEIGHT * number
        yield text_element(left, y, isolated(line), "line", anchor=anchor)
    if states and box.kind in HAS_BAR:
        yield from _bar(box, states)
    yield "</g>"


def _bar(box: PlacedBox, states: Counter[str]) -> Iterator[str]:
    """A bar whose parts are as long as many are in a state; how many have failed and ended."""
    total = states.total()
    unfinished = ("pending", "queued", "running", "interrupted")
    ended = total - sum(states[state] for state in unfinished)
    text = f"{ended}/{total}"
    x, y = box.x + PADDING, box.y + box.height - BAR_HEIGHT
    if states["failed"]:
        text = f"{states['failed']} {SIGNS['failed']} · {text}"
    wide = max(box.width - 2 * PADDING - width(text, LINE_SIZE) - 6, 0)
    for state in STATES:
        if part := wide * states[state] / total:
            yield f'<rect class="bar {state}" x="{x:.1f}" y="{y:g}" width="{part:.1f}" height="5"/>'
            x += part
    yield text_element(box.x + box.width - PADDING, y + 6, text, "line", anchor="end")


def _rect(kind: str, box: PlacedBox, *, radius: float = 6, offset: float = 0) -> str:
    place = f'x="{box.x + offset:g}" y="{box.y + offset:g}"'
    size = f'width="{box.width:g}" height="{box.height:g}"'
    return f'<rect class="{kind}" {place} {size} rx="{radius:g}"/>'


def _details(box: PlacedBox, states: Counter[str]) -> str:
    """What is shown where the pointer rests: the whole names, and how many are in which state."""
    name = _listed(box.members)
    parts = [f"{name} {box.suffix}" if box.kind == "map" else name, *box.lines]
    if box.kind in HAS_BAR:
        parts += (
            [", ".join(f"{count} {state}" for state, count in states.items())] if states else []
        )
    else:
        parts += states
    return "\n".join(parts)


def _listed(names: Sequence[str]) -> str:
    shown = [one_line(name) for name in names[:_MOST_LISTED]]
    left = len(names) - len(shown)
    return ", ".join([*shown, f"and {left} more"] if left else shown)
