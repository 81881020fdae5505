"""Drawing a graph: as text for a terminal, for Mermaid and for Graphviz."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import NO_FALLBACK
from taskiq_flow.dataflow.plan import FAILURES
from taskiq_flow.dataflow.tasks import default_name, identity
from taskiq_flow.drawing.diagram import Arrow, Box, Diagram, Input
from taskiq_flow.drawing.texts import columns
from taskiq_flow.previews import preview

Levels = Sequence[Sequence[DAGNode]]
Predecessors = Mapping[DAGNode, Sequence[DAGNode]]

Orientation = Literal["LR", "RL", "TB", "TD", "BT"]
"""Where edges lead to: from left to right, and so on; Mermaid's words."""

_Part = dict[int, list[DAGNode]]
"""Nodes by level."""

_WHOLE = "all of"
WIDTH = 100
"""Columns of a text that is not for a certain terminal."""

_NAME_COLUMN = 28
_LONGEST_NAME = 48
_MOST_RUNS = 30
_SHORTEST_RANGE = 6
_NEEDS_QUOTES = re.compile(r"[\s,?…'\"\\]|^$")
_IN_ASCII = str.maketrans(
    {"←": "<-", "×": "x", "⇉": "=>", "─": "-", "│": "|", "└": "`", "├": "|", "┬": "+", "…": "..."}
)
_MERMAID_SYNTAX = re.compile(r"[!-,/:-@\[-^`{-~]")


def to_text(levels: Levels, predecessors: Predecessors, width: int = WIDTH) -> str:
    """The nodes level by level, each with what it waits for, takes and gives.

    Lines are broken, and long names shortened, for so many columns.

    ``←`` names the nodes whose data a node takes, ``after`` those that it only waits for,
    ``all of`` those whose elements it takes together, ``failures of`` those whose failures it
    takes, ``takes`` the run's inputs (``?``: it can do without), ``gives`` the output keys unless
    they are just its name. ``×`` stands between a node and the keys for whose elements it runs;
    ``flat`` and ``filter`` say what becomes of its list. ``⇉`` stands behind a generator.
    ``join`` is the rule by which a node starts, ``when`` its condition, ``else`` its fallback.
    ``a … z (26)`` are all that is drawn from ``a`` to ``z`` in one level.
    Unconnected parts stand one below the other, the nodes without any edge as the last.
    """
    if not levels:
        return "an empty graph"
    places, parts = _places(levels, predecessors), _parts(levels, predecessors)
    edges = sum(map(len, predecessors.values()))
    summary = f"nodes: {len(places)}, edges: {edges}, levels: {len(levels)}"
    sheet = _sheet(parts, len(levels), width)
    return "\n\n".join((summary, *("\n".join(sheet.part(part, places)) for part in parts)))


def to_mermaid(diagram: Diagram, orientation: Orientation = "LR") -> str:
    """A Mermaid flowchart; dotted: an edge without data; rounded: an input of the run."""
    lines = [f"flowchart {orientation}"]
    lines += [f"{given.id}([{_for_mermaid(given.key)}])" for given in diagram.inputs]
    lines += [f"{box.id}[{_for_mermaid(box.title)}]" for box in diagram.boxes]
    for arrow in diagram.arrows:
        line = "-.->" if arrow.is_order else "-->"
        text = f"|{_for_mermaid(arrow.label)}|" if arrow.label else ""
        lines.append(f"{arrow.start} {line}{text} {arrow.end}")
    return "\n    ".join(lines)


def to_dot(diagram: Diagram) -> str:
    """A digraph in Graphviz's DOT; dashed: an edge without data; ellipse: an input of the run."""
    lines = ["digraph {", "rankdir=LR", "node [shape=box]"]
    lines += [
        f"{given.id} [label={_for_dot(given.key)}, shape=ellipse]" for given in diagram.inputs
    ]
    lines += [f"{box.id} [label={_for_dot(box.title)}]" for box in diagram.boxes]
    for arrow in diagram.arrows:
        text = "style=dashed" if arrow.is_order else f"label={_for_dot(arrow.label)}"
        is_bare = not (arrow.is_order or arrow.label)
        lines.append(f"{arrow.start} -> {arrow.end}" + ("" if is_bare else f" [{text}]"))
    return "\n    ".join(lines) + "\n}"


def diagram_of(levels: Levels, predecessors: Predecessors) -> Diagram:
    """The graph as boxes and arrows, from which all drawings but the text are made."""
    places = _places(levels, predecessors)
    ids = {node: f"n{index}" for index, node in enumerate(places)}
    external = dict.fromkeys(key for place in places.values() for key in place.inputs)
    inputs = {key: f"i{index}" for index, key in enumerate(external)}
    arrows: list[Arrow] = []
    for node, place in places.items():
        end = ids[node]
        for key, needed in place.inputs.items():
            label = "" if needed else "optional"
            arrows.append(Arrow(inputs[key], end, (key,), label, is_optional=not needed))
        for other in place.sources:
            keys = place.data.get(other, [])
            failures = place.failures.get(other, [])
            label = "" if keys == [other.task_name] and not failures else ", ".join(keys)
            if _is_taken_whole(node, other, keys):
                label = f"{_WHOLE} {', '.join(keys)}"
            label = ", ".join(filter(None, (label, *failures)))
            arrows.append(Arrow(ids[other], end, (*keys, *failures), label))
        arrows += (Arrow(ids[other], end) for other in place.orderings)
    kinds = _kinds(places)
    boxes = [_box(node, ids[node], kinds[node], place) for node, place in places.items()]
    return Diagram(boxes, [Input(at, key) for key, at in inputs.items()], arrows)


def _box(node: DAGNode, at: str, kind: str, place: _Place) -> Box:
    whole = (keys for other, keys in place.data.items() if _is_taken_whole(node, other, keys))
    return Box(
        at,
        node.task_name,
        kind,
        mapped=_mapped(node, str).strip(),
        rules=tuple(f"{word} {_shown(text)}" for word, text in _policies(node)),
        takes_whole=tuple(key for keys in whole for key in keys),
        is_mapped=bool(node.map_over),
        inputs=(*node.required_keys, *node.optional_keys),
        outputs=tuple(node.outputs),
    )


def _kinds(nodes: Iterable[DAGNode]) -> dict[DAGNode, str]:
    """The name of each node's task, with a number where several tasks have that name."""
    numbers: defaultdict[str, dict[object, int]] = defaultdict(dict)
    kinds = {}
    for node in nodes:
        known = numbers[name := default_name(node.task)]
        number = known.setdefault(identity(node.task), len(known) + 1)
        kinds[node] = name if number == 1 else f"{name}#{number}"
    return kinds


@dataclass(frozen=True, slots=True)
class _Place:
    """``data``: predecessor → keys; ``failures``: predecessor → the key of its failures.

    ``inputs``: key of the run's inputs → is it needed.
    """

    data: dict[DAGNode, list[str]]
    failures: dict[DAGNode, list[str]]
    orderings: list[DAGNode]
    inputs: dict[str, bool]

    @property
    def sources(self) -> Iterable[DAGNode]:
        """The nodes of which it takes anything."""
        return dict.fromkeys((*self.data, *self.failures))


def _places(levels: Levels, predecessors: Predecessors) -> dict[DAGNode, _Place]:
    nodes = [node for level in levels for node in level]
    producers = {key: node for node in nodes for key in node.outputs}
    failing = {f"{node.task_name}{FAILURES}": node for node in nodes}
    return {node: _place(node, predecessors.get(node, ()), producers, failing) for node in nodes}


def _place(
    node: DAGNode,
    before: Sequence[DAGNode],
    producers: Mapping[str, DAGNode],
    failing: Mapping[str, DAGNode],
) -> _Place:
    data: dict[DAGNode, list[str]] = {}
    failures: dict[DAGNode, list[str]] = {}
    inputs: dict[str, bool] = {}
    required = node.required_keys
    for index, key in enumerate((*required, *node.optional_keys)):
        if key in producers:
            data.setdefault(producers[key], []).append(key)
        elif key in failing:
            failures[failing[key]] = [key]
        else:
            inputs[key] = index < len(required)
    orderings = [other for other in before if other not in data and other not in failures]
    return _Place(data, failures, orderings, inputs)


def _parts(levels: Levels, predecessors: Predecessors) -> list[_Part]:
    """The unconnected parts; all nodes without an edge are the last."""
    found = _representatives(predecessors)
    parts: dict[DAGNode | None, _Part] = {}
    for depth, level in enumerate(levels):
        for node in level:
            parts.setdefault(found.get(node), {}).setdefault(depth, []).append(node)
    if None in parts:
        parts[None] = parts.pop(None)
    return list(parts.values())


def _representatives(predecessors: Predecessors) -> dict[DAGNode, DAGNode]:
    """For each node with an edge one of its part, the same for all of the part."""
    neighbours: defaultdict[DAGNode, list[DAGNode]] = defaultdict(list)
    for node, before in predecessors.items():
        for other in before:
            neighbours[node].append(other)
            neighbours[other].append(node)
    found: dict[DAGNode, DAGNode] = {}
    for start in neighbours:
        pending = [start]
        while pending:
            node = pending.pop()
            if node not in found:
                found[node] = start
                pending += neighbours[node]
    return found


@dataclass(frozen=True, slots=True)
class _Sheet:
    """``rows``: where each node is drawn, one more for the next in the same level of a part.

    ``width``, ``margin``, ``column``: columns of the whole, of the level's number, of the names.
    """

    rows: Mapping[DAGNode, int]
    width: int
    margin: int
    column: int

    def part(self, part: _Part, places: Mapping[DAGNode, _Place]) -> Iterator[str]:
        for depth, level in part.items():
            rails = ["┬─", *["├─"] * (len(level) - 2), "└─"] if len(level) > 1 else ["──"]
            for node, rail in zip(level, rails, strict=True):
                number = depth if node is level[0] else ""
                name = _name(node, self.width)
                padding = " " * (self.column - columns(name))
                line = f"{number:>{self.margin}} {rail} {name}{padding}"
                bar = " " if node is level[-1] else "│"
                indent = f"{'':{self.margin}} {bar}  {'':{self.column}}"
                yield from self._wrapped(line, indent, self.clauses(node, places[node]))

    def clauses(self, node: DAGNode, place: _Place) -> Iterator[str]:
        inputs = [self._shown(key) + "?" * (not needed) for key, needed in place.inputs.items()]
        outputs = [] if node.outputs == [node.task_name] else node.outputs
        whole = [other for other, keys in place.data.items() if _is_taken_whole(node, other, keys)]
        yield from _clause("←", self.runs(other for other in place.data if other not in whole))
        yield from _clause(_WHOLE, self.runs(whole))
        yield from _clause("failures of", self.runs(place.failures))
        yield from _clause("after", self.runs(place.orderings))
        yield from _clause("takes", [[key] for key in inputs])
        yield from _clause("gives", [[self._shown(key)] for key in outputs])
        for word, text in _policies(node):
            yield from _clause(word, [[self._shown(text)]])

    def runs(self, nodes: Iterable[DAGNode]) -> list[list[str]]:
        """The names as drawn; in one list those that stand one below the other."""
        runs: list[list[str]] = []
        below = None
        for node in sorted(nodes, key=self.rows.__getitem__):
            if self.rows[node] != below:
                runs.append([])
            runs[-1].append(self._shown(node.task_name))
            below = self.rows[node] + 1
        return runs

    def _wrapped(self, line: str, indent: str, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            if columns(line) + 1 + columns(piece) > self.width:
                yield line.rstrip()
                line = indent if piece.startswith(" ") else f"{indent}   "
            line += f" {piece}"
        yield line.rstrip()

    def _shown(self, name: str) -> str:
        return _shown(name, self.width)


def _sheet(parts: Sequence[_Part], depth: int, width: int) -> _Sheet:
    levels = enumerate(level for part in parts for level in part.values())
    drawn = enumerate((gaps, node) for gaps, level in levels for node in level)
    rows = {node: row + gaps for row, (gaps, node) in drawn}
    longest = max(columns(_name(node, width)) for node in rows)
    column = min(longest, _NAME_COLUMN * width // WIDTH)
    return _Sheet(rows, width, margin=len(str(depth - 1)), column=column)


def _clause(word: str, runs: Sequence[Sequence[str]]) -> Iterator[str]:
    """The pieces of a list, between which a line may be broken; the first begins with a space."""
    pieces: list[str] = []
    for run in runs[:_MOST_RUNS]:
        if len(run) < _SHORTEST_RANGE:
            pieces += [f"{name}," for name in run]
        else:
            pieces += [f"{run[0]} …", f"{run[-1]} ({len(run)}),"]
    if left := sum(map(len, runs[_MOST_RUNS:])):
        pieces.append(f"… and {left} more")
    if pieces:
        pieces[0] = f" {word} {pieces[0]}"
        yield from (*pieces[:-1], pieces[-1].removesuffix(","))


def _shown(name: str, width: int = WIDTH) -> str:
    """A name in a list of names: in quotes if it could be misread, shortened if very long.

    ``width``: columns of the drawing.
    """
    shown = name if name.isprintable() and not _NEEDS_QUOTES.search(name) else repr(name)
    longest = min(_LONGEST_NAME, width // 2 - 2)
    if columns(shown) <= longest:
        return shown
    half = longest * len(shown) // columns(shown) // 2 - 1
    return f"{shown[:half]}…{shown[-half:]}"


def _policies(node: DAGNode) -> Iterator[tuple[str, str]]:
    """The rule by which a node starts, its condition and its fallback, each with a word for it."""
    if node.join != "all":
        yield "join", node.join
    if node.when is not None:
        yield "when", _name_of_function(node.when)
    if callable(node.fallback):
        yield "else", _name_of_function(node.fallback)
    elif node.fallback is not NO_FALLBACK:
        yield "else", preview(node.fallback)["text"]


def _name_of_function(function: object) -> str:
    """The name of a task or a function, or of the class of another callable."""
    for attribute in ("task_name", "__name__"):
        if isinstance(name := getattr(function, attribute, None), str):
            return name.strip("<>")  # of a lambda
    return type(function).__name__


def _name(node: DAGNode, width: int) -> str:
    """The name of a node, and what it maps over."""
    shown = partial(_shown, width=width)
    return f"{shown(node.task_name)}{_mapped(node, shown)}"


def _mapped(node: DAGNode, shown: Callable[[str], str]) -> str:
    """The keys that a node maps over, whether it gives items, and what becomes of the lists."""
    text = ""
    for keys in node.factors:
        listed = (shown(key) + (f":{levels}" if levels > 1 else "") for key, levels in keys.items())
        text += f" ×{','.join(listed)}"
    text += " ⇉" * node.is_generator
    return text + " flat" * node.flatten + " filter" * node.filter


def _is_taken_whole(node: DAGNode, other: DAGNode, keys: Sequence[str]) -> bool:
    """Whether a node takes the elements of another one together."""
    return bool(other.map_over) and not set(keys) <= set(node.map_over)


def _for_mermaid(text: str) -> str:
    # Mermaid takes an empty label for a mistake.
    text = _MERMAID_SYNTAX.sub(lambda found: f"#{ord(found[0])};", _printable(text))
    return f'"{text or " "}"'


def _for_dot(text: str) -> str:
    # Graphviz reads HTML entities in every label.
    label = _printable(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
    return f'"{label}"'


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def encodable(text: str, encoding: str) -> str:
    """The text, or where the encoding cannot carry it, the same drawn with ASCII signs."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_IN_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return text
