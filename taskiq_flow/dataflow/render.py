"""Drawing a graph: as text for a terminal, for Mermaid and for Graphviz."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import NO_FALLBACK
from taskiq_flow.previews import preview

Levels = Sequence[Sequence[DAGNode]]
Predecessors = Mapping[DAGNode, Sequence[DAGNode]]

_Part = dict[int, list[DAGNode]]
"""Nodes by level."""
_Diagram = tuple[dict[DAGNode, str], dict[str, str], list["_Arrow"]]
"""The nodes and the run's inputs, both with their ids, and the edges."""
_Arrow = tuple[str, str, str | None]
"""Where an edge starts, where it ends, its label; ``None`` for an edge without data."""

_WIDTH = 100
_NAME_COLUMN = 28
_LONGEST_NAME = 48
_MOST_RUNS = 30
_SHORTEST_RANGE = 6
_NEEDS_QUOTES = re.compile(r"[\s,?…'\"\\]|^$")
_MERMAID_SYNTAX = re.compile(r"[!-,/:-@\[-^`{-~]")


def to_text(levels: Levels, predecessors: Predecessors) -> str:
    """The nodes level by level, each with what it waits for, takes and gives.

    ``←`` names the nodes whose data a node takes, ``after`` those that it only waits for,
    ``all of`` those whose elements it takes together, ``takes`` the run's inputs (``?``: it can do
    without), ``gives`` the output keys unless they are just its name. ``×`` stands between a node
    and the keys for whose elements it runs; ``flat`` and ``filter`` say what becomes of its list.
    ``⇉`` stands behind a generator.
    ``join`` is the rule by which a node starts, ``when`` its condition, ``else`` its fallback.
    ``a … z (26)`` are all that is drawn from ``a`` to ``z`` in one level.
    Unconnected parts stand one below the other, the nodes without any edge as the last.
    """
    if not levels:
        return "an empty graph"
    places, parts = _places(levels, predecessors), _parts(levels, predecessors)
    edges = sum(map(len, predecessors.values()))
    summary = f"nodes: {len(places)}, edges: {edges}, levels: {len(levels)}"
    sheet = _sheet(parts, len(levels))
    return "\n\n".join((summary, *("\n".join(sheet.part(part, places)) for part in parts)))


def to_mermaid(levels: Levels, predecessors: Predecessors) -> str:
    """A Mermaid flowchart; dotted: an edge without data; rounded: an input of the run."""
    nodes, inputs, arrows = _diagram(levels, predecessors)
    lines = ["flowchart LR"]
    lines += [f"{at}([{_for_mermaid(key)}])" for key, at in inputs.items()]
    lines += [f"{at}[{_for_mermaid(_titled(node))}]" for node, at in nodes.items()]
    for start, end, label in arrows:
        line = "-.->" if label is None else "-->"
        text = f"|{_for_mermaid(label)}|" if label else ""
        lines.append(f"{start} {line}{text} {end}")
    return "\n    ".join(lines)


def to_dot(levels: Levels, predecessors: Predecessors) -> str:
    """A digraph in Graphviz's DOT; dashed: an edge without data; ellipse: an input of the run."""
    nodes, inputs, arrows = _diagram(levels, predecessors)
    lines = ["digraph {", "rankdir=LR", "node [shape=box]"]
    lines += [f"{at} [label={_for_dot(key)}, shape=ellipse]" for key, at in inputs.items()]
    lines += [f"{at} [label={_for_dot(_titled(node))}]" for node, at in nodes.items()]
    for start, end, label in arrows:
        text = "style=dashed" if label is None else f"label={_for_dot(label)}"
        lines.append(f"{start} -> {end}" + ("" if label == "" else f" [{text}]"))
    return "\n    ".join(lines) + "\n}"


@dataclass(frozen=True, slots=True)
class _Place:
    """``data``: predecessor → keys; ``inputs``: key of the run's inputs → is it needed."""

    data: dict[DAGNode, list[str]]
    orderings: list[DAGNode]
    inputs: dict[str, bool]


def _places(levels: Levels, predecessors: Predecessors) -> dict[DAGNode, _Place]:
    nodes = [node for level in levels for node in level]
    producers = {key: node for node in nodes for key in node.outputs}
    return {node: _place(node, predecessors.get(node, ()), producers) for node in nodes}


def _place(node: DAGNode, before: Sequence[DAGNode], producers: Mapping[str, DAGNode]) -> _Place:
    data: dict[DAGNode, list[str]] = {}
    inputs: dict[str, bool] = {}
    required = node.required_keys
    for index, key in enumerate((*required, *node.optional_keys)):
        if key in producers:
            data.setdefault(producers[key], []).append(key)
        else:
            inputs[key] = index < len(required)
    return _Place(data, [other for other in before if other not in data], inputs)


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

    ``margin``, ``column``: the width of the level's number and of the names.
    """

    rows: Mapping[DAGNode, int]
    margin: int
    column: int

    def part(self, part: _Part, places: Mapping[DAGNode, _Place]) -> Iterator[str]:
        for depth, level in part.items():
            rails = ["┬─", *["├─"] * (len(level) - 2), "└─"] if len(level) > 1 else ["──"]
            for node, rail in zip(level, rails, strict=True):
                number = depth if node is level[0] else ""
                name = _name(node)
                padding = " " * (self.column - _columns(name))
                line = f"{number:>{self.margin}} {rail} {name}{padding}"
                bar = " " if node is level[-1] else "│"
                indent = f"{'':{self.margin}} {bar}  {'':{self.column}}"
                yield from _wrapped(line, indent, self.clauses(node, places[node]))

    def clauses(self, node: DAGNode, place: _Place) -> Iterator[str]:
        inputs = [_shown(key) + "?" * (not needed) for key, needed in place.inputs.items()]
        outputs = [] if node.outputs == [node.task_name] else node.outputs
        whole = [other for other, keys in place.data.items() if _is_taken_whole(node, other, keys)]
        yield from _clause("←", self.runs(other for other in place.data if other not in whole))
        yield from _clause("all of", self.runs(whole))
        yield from _clause("after", self.runs(place.orderings))
        yield from _clause("takes", [[key] for key in inputs])
        yield from _clause("gives", [[_shown(key)] for key in outputs])
        for word, text in _policies(node):
            yield from _clause(word, [[_shown(text)]])

    def runs(self, nodes: Iterable[DAGNode]) -> list[list[str]]:
        """The names as drawn; in one list those that stand one below the other."""
        runs: list[list[str]] = []
        below = None
        for node in sorted(nodes, key=self.rows.__getitem__):
            if self.rows[node] != below:
                runs.append([])
            runs[-1].append(_shown(node.task_name))
            below = self.rows[node] + 1
        return runs


def _sheet(parts: Sequence[_Part], depth: int) -> _Sheet:
    levels = enumerate(level for part in parts for level in part.values())
    drawn = enumerate((gaps, node) for gaps, level in levels for node in level)
    rows = {node: row + gaps for row, (gaps, node) in drawn}
    longest = max(_columns(_name(node)) for node in rows)
    return _Sheet(rows, margin=len(str(depth - 1)), column=min(longest, _NAME_COLUMN))


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


def _wrapped(line: str, indent: str, pieces: Iterable[str]) -> Iterator[str]:
    for piece in pieces:
        if _columns(line) + 1 + _columns(piece) > _WIDTH:
            yield line.rstrip()
            line = indent if piece.startswith(" ") else f"{indent}   "
        line += f" {piece}"
    yield line.rstrip()


def _shown(name: str) -> str:
    """A name in a list of names: in quotes if it could be misread, shortened if very long."""
    shown = name if name.isprintable() and not _NEEDS_QUOTES.search(name) else repr(name)
    if _columns(shown) <= _LONGEST_NAME:
        return shown
    half = _LONGEST_NAME * len(shown) // _columns(shown) // 2 - 1
    return f"{shown[:half]}…{shown[-half:]}"


def _columns(text: str) -> int:
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def _diagram(levels: Levels, predecessors: Predecessors) -> _Diagram:
    places = _places(levels, predecessors)
    nodes = {node: f"n{index}" for index, node in enumerate(places)}
    external = dict.fromkeys(key for place in places.values() for key in place.inputs)
    inputs = {key: f"i{index}" for index, key in enumerate(external)}
    arrows: list[_Arrow] = []
    for node, place in places.items():
        end = nodes[node]
        for key, needed in place.inputs.items():
            arrows.append((inputs[key], end, "" if needed else "optional"))
        for other, keys in place.data.items():
            label = "" if keys == [other.task_name] else ", ".join(keys)
            if _is_taken_whole(node, other, keys):
                label = f"all of {', '.join(keys)}"
            arrows.append((nodes[other], end, label))
        arrows += ((nodes[other], end, None) for other in place.orderings)
    return nodes, inputs, arrows


def _titled(node: DAGNode) -> str:
    policies = ", ".join(f"{word} {_shown(text)}" for word, text in _policies(node))
    return f"{node.task_name}{_mapped(node, str)}{policies and f' ({policies})'}"


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


def _name(node: DAGNode) -> str:
    """The name of a node, and what it maps over."""
    return f"{_shown(node.task_name)}{_mapped(node, _shown)}"


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


_IN_ASCII = ("<-", "x", "=>", "-", "|", "`", "+", "|", "...")


def encodable(text: str, encoding: str) -> str:
    """The text, or where the encoding cannot carry it, the same drawn with ASCII signs."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        signs = str.maketrans(
            {
                "←": "<-",
                "×": "x",
                "─": "-",
                "├": "|",
                "└": "`",
                "┬": "+",
                "│": "|",
                "…": "...",
                "⇉": "=>",
            }
        )
        return text.translate(signs).encode(encoding, "backslashreplace").decode(encoding)
    return text
