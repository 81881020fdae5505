"""Where the boxes and the edges of a drawing lie, as plain data."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from taskiq_flow.drawing import folding
from taskiq_flow.drawing.diagram import Box, Diagram, Input, stem
from taskiq_flow.drawing.texts import shortened, width
from taskiq_flow.errors import ConfigurationError
from taskiq_flow.previews import one_line

MOST_WHOLE = 40
"""Boxes up to which nothing is folded unless it is asked for."""

MOST_BOXES, MOST_LEVELS = 2_000, 2_500
"""How many boxes are laid out at most, and how many levels all edges may pass together. Graphviz
takes about a second for these, and minutes for some that are larger."""

LABEL_SIZE, LINE_SIZE = 13, 11
"""The sizes of the fonts in pixels: of labels, and of the lines below them."""

LABEL_HEIGHT, LINE_HEIGHT, BAR_HEIGHT = 30, 15, 14
"""The heights in pixels of what stands in a box."""

_LONGEST, _LONGEST_SUFFIX = 210, 120
"""Pixels of a label, of a line, and of what is behind a label; what is longer is cut."""

_WIDEST, _BETWEEN = 1_600, 16
"""Pixels of a drawing that can be read on a screen, and between two boxes at least."""

_FOR_LONG_EDGES = 1.5
"""How much more room a rank takes, as edges pass between its boxes."""

PADDING, SIGN_WIDTH = 11, 18
"""Pixels between the border of a box and what stands in it, and for the sign of a state."""

BOLD = 1.12
"""How much wider a label is than the same text in another weight."""

_NARROWEST, _NARROWEST_BAR, _INPUT_HEIGHT = 44, 140, 22


Kind = Literal["node", "map", "group", "input"]
"""``"map"``: a mapped node; ``"group"``: several nodes that are equal; ``"input"``: inputs of the
run."""


Orientation = Literal["LR", "TB"]

HAS_BAR = ("map", "group")
"""Kinds of boxes in which a bar shows how many of several are in which state."""


@dataclass(frozen=True, slots=True)
class PlacedBox:
    """A rectangle, in pixels from the upper left corner.

    ``label``: the name, ``suffix``: what is behind it: how many nodes there are in a group, or what
    a node maps over. ``lines`` stand below it. All are cut to the room that there is. ``members``:
    the names of its nodes, or the keys of its inputs.
    """

    id: str
    kind: Kind
    label: str
    suffix: str
    lines: tuple[str, ...]
    members: tuple[str, ...]
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class PlacedEdge:
    """``points``: the first one, three more for each cubic Bézier curve, and the arrow's tip.

    ``is_order``: no data flows along it.
    """

    start: str
    end: str
    is_order: bool
    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """A drawing. ``implied``: edges that follow from others and are not drawn, by ids of boxes."""

    width: float
    height: float
    orientation: Orientation
    is_folded: bool
    boxes: tuple[PlacedBox, ...]
    edges: tuple[PlacedEdge, ...]
    implied: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return asdict(self)


def lay_out(
    diagram: Diagram,
    *,
    fold: bool | None = None,
    unfolded: Collection[str] = (),
    orientation: Orientation | None = None,
    shows_states: bool = False,
    apart: bool = False,
) -> Layout:
    """Lay a graph out, without the edges that others imply.

    ``fold``: whether equal nodes are one box; ``None``: if there are more than 40. ``unfolded``:
    the nodes of these names, and those that are equal to them, have boxes of their own.
    ``orientation``: ``"LR"``, from left to right, or ``"TB"``, from top to bottom; ``None``: the
    first unless that is too wide to be read on a screen. ``shows_states``: whether boxes have room
    for the state of their nodes. ``apart``: for a thread beside others, which Graphviz would hold
    up: more than 40 boxes are placed in a process of its own.

    The same graph has the same layout. Raises ``ConfigurationError`` without pygraphviz, and
    ``ValueError`` if the drawing is too large.
    """
    graphviz = _graphviz()
    numbers = range(len(diagram.boxes))
    is_folding = len(numbers) > MOST_WHOLE if fold is None else fold
    groups = _groups(diagram, unfolded) if is_folding else [[number] for number in numbers]
    boxes, arrows = _drawn(diagram, groups, shows_states=shows_states)
    before: list[list[int]] = [[] for _ in boxes]
    for start, end in arrows:
        before[end].append(start)
    least = folding.reduced(before)
    kept = [(start, end) for end, others in enumerate(least) for start in others]
    drawn = set(kept)
    levels = folding.levels(least)
    _check_size(len(boxes), sum(levels[b] - levels[a] for a, b in kept), is_folded=is_folding)
    orientation = orientation or _orientation(boxes, levels)
    sizes = [(box.width, box.height) for box in boxes]
    place = graphviz.placed_apart if apart and len(boxes) > MOST_WHOLE else graphviz.placed
    (wide, high), middles, lines = place(sizes, kept, orientation)
    edges = [
        replace(arrows[pair], points=tuple((_rounded(x), _rounded(y)) for x, y in line))
        for pair, line in zip(kept, lines, strict=True)
    ]
    return Layout(
        _rounded(wide),
        _rounded(high),
        orientation,
        is_folded=len(groups) < len(numbers),
        boxes=tuple(map(_moved, boxes, middles)),
        edges=tuple(edges),
        implied=tuple((edge.start, edge.end) for pair, edge in arrows.items() if pair not in drawn),
    )


def _check_size(boxes: int, levels: int, *, is_folded: bool) -> None:
    if boxes > MOST_BOXES or levels > MOST_LEVELS:
        fold = "" if is_folded else "fold it with fold=True, or "
        raise ValueError(
            f"the drawing has {boxes:,} boxes, and its edges pass {levels:,} levels in all; at "
            f"most {MOST_BOXES:,} and {MOST_LEVELS:,} are laid out: {fold}draw a part of the "
            "graph, as dag.part_for(outputs) gives it"
        )


def _orientation(boxes: Sequence[PlacedBox], levels: Sequence[int]) -> Orientation:
    """The one that makes a narrower drawing, if from left to right is too wide."""
    ranks: dict[int, list[float]] = {}
    for box, level in zip(boxes, levels, strict=True):
        ranks.setdefault(level, []).append(box.width + _BETWEEN)
    from_left = sum(max(widths) + _BETWEEN for widths in ranks.values())
    from_top = _FOR_LONG_EDGES * max(map(sum, ranks.values()), default=0)
    return "TB" if from_left > max(_WIDEST, from_top) else "LR"


def _groups(diagram: Diagram, unfolded: Collection[str]) -> list[list[int]]:
    """The nodes that are drawn as one box each, each group after those that it depends on."""
    numbers = {box.id: number for number, box in enumerate(diagram.boxes)}
    before: list[list[int]] = [[] for _ in numbers]
    for arrow in diagram.arrows:
        if arrow.start in numbers:
            before[numbers[arrow.end]].append(numbers[arrow.start])
    kinds = [(box.kind, box.rules, _without_keys(box)) for box in diagram.boxes]
    found = folding.classes(folding.reduced(before), kinds)
    found = folding.opened(
        found, [n for n, box in enumerate(diagram.boxes) if box.name in unfolded]
    )
    groups: list[list[int]] = [[] for _ in range(max(found, default=-1) + 1)]
    for number, group in enumerate(found):
        groups[group].append(number)
    return [groups[group] for group in folding.ordered(folding.quotient(before, found))]


def _without_keys(box: Box) -> tuple[str, ...]:
    """How a node maps, whatever the keys are."""
    return tuple("×" if word.startswith("×") else word for word in box.mapped.split())


def _drawn(
    diagram: Diagram, groups: Sequence[Sequence[int]], *, shows_states: bool
) -> tuple[list[PlacedBox], dict[tuple[int, int], PlacedEdge]]:
    """All boxes, inputs first, without a place, and the edges between them, without lines.

    Inputs that the same boxes take are one.
    """
    box_of: dict[str, int] = {}
    nodes = [[diagram.boxes[number] for number in group] for group in groups]
    for place, group in enumerate(nodes):
        box_of.update((box.id, place) for box in group)
    takers: dict[str, dict[int, None]] = {given.id: {} for given in diagram.inputs}
    is_needed = dict.fromkeys(takers, False)
    for arrow in diagram.arrows:
        if arrow.start in takers:
            takers[arrow.start][box_of[arrow.end]] = None
            is_needed[arrow.start] |= not arrow.is_optional
    together: dict[frozenset[int], list[Input]] = {}
    for given in diagram.inputs:
        together.setdefault(frozenset(takers[given.id]), []).append(given)
    boxes = [_input_box(inputs, is_needed) for inputs in together.values()]
    for place, inputs in enumerate(together.values()):
        box_of.update((given.id, place - len(together)) for given in inputs)
    boxes += [_node_box(group, shows_states=shows_states) for group in nodes]
    edges: dict[tuple[int, int], PlacedEdge] = {}
    for arrow in diagram.arrows:
        start, end = (box_of[at] + len(together) for at in (arrow.start, arrow.end))
        is_whole = boxes[start].kind != "input" and len(boxes[start].members) == 1
        label = one_line(arrow.label) if is_whole and len(boxes[end].members) == 1 else ""
        edge = PlacedEdge(boxes[start].id, boxes[end].id, arrow.is_order, label, ())
        if (start, end) not in edges or edges[start, end].is_order:
            edges[start, end] = edge
    return boxes, edges


def _input_box(inputs: Sequence[Input], is_needed: Mapping[str, bool]) -> PlacedBox:
    shown = (one_line(given.key) + "?" * (not is_needed[given.id]) for given in inputs)
    label = shortened(", ".join(shown), _LONGEST, LINE_SIZE)
    wide = max(width(label, LINE_SIZE) + 2 * PADDING, _NARROWEST)
    members = tuple(given.key for given in inputs)
    return PlacedBox(
        inputs[0].id, "input", label, "", (), members, 0, 0, round(wide), _INPUT_HEIGHT
    )


def _node_box(group: Sequence[Box], *, shows_states: bool) -> PlacedBox:
    first = group[0]
    lines = [*first.rules]
    kind: Kind
    if len(group) > 1:
        kind, suffix = "group", f"×{len(group)}"
        stems = {stem(box.name) for box in group}
        name = stems.pop() if len(stems) == 1 else first.kind
        mapped = {box.mapped for box in group}
        if first.mapped:
            lines.append(f"each {first.mapped if len(mapped) == 1 else '×'}")
    else:
        kind, suffix, name = "map" if first.is_mapped else "node", first.mapped, first.name
        if first.takes_whole:
            lines.append(f"all of {', '.join(first.takes_whole)}")
        if first.outputs and first.outputs != (first.name,):
            lines.append(f"gives {', '.join(first.outputs)}")
    label = shortened(one_line(name), _LONGEST, LABEL_SIZE)
    suffix = shortened(one_line(suffix), _LONGEST_SUFFIX, LABEL_SIZE)
    shown = tuple(shortened(one_line(line), _LONGEST, LINE_SIZE) for line in lines)
    widths = [BOLD * width(f"{label} {suffix}" if suffix else label, LABEL_SIZE)]
    widths += [width(line, LINE_SIZE) for line in shown]
    has_bar = shows_states and kind in HAS_BAR
    least = _NARROWEST_BAR if has_bar else _NARROWEST
    wide = max(max(widths) + 2 * PADDING + SIGN_WIDTH * shows_states, least)
    high = LABEL_HEIGHT + LINE_HEIGHT * len(shown) + BAR_HEIGHT * has_bar
    members = tuple(box.name for box in group)
    return PlacedBox(first.id, kind, label, suffix, shown, members, 0, 0, round(wide), high)


def _moved(box: PlacedBox, middle: tuple[float, float]) -> PlacedBox:
    x, y = middle
    return replace(box, x=_rounded(x - box.width / 2), y=_rounded(y - box.height / 2))


def _rounded(number: float) -> float:
    return round(number, 1)


def _graphviz() -> Any:
    try:
        return importlib.import_module("taskiq_flow.drawing.graphviz")
    except ModuleNotFoundError as error:
        if error.name != "pygraphviz":
            raise
        raise ConfigurationError(
            "drawings as SVG need pygraphviz, which is not installed; install the extra draw: "
            "pip install 'taskiq-flow[draw]'; dag.print(), to_mermaid() and to_dot() need nothing"
        ) from error
