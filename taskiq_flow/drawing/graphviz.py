"""Graphviz's ``dot``, which says where boxes and edges lie. Imports pygraphviz.

It is given sizes and numbers, never names, so that no name can be read as its syntax. It holds the
interpreter's lock for as long as it takes. As a script, this file reads what ``placed`` is given
and writes what that returns, each as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence

from pygraphviz import AGraph

Point = tuple[float, float]

_INCH = 72
_HEAD = (
    "nodesep=0.22; ranksep=0.55; splines=true; "
    'node [shape=box, fixedsize=true, label=""]; edge [arrowsize=0.7];'
)


def placed(
    sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]], orientation: str
) -> tuple[tuple[float, float], list[Point], list[list[Point]]]:
    """The size of the whole, the middle of each box, and the line of each edge.

    ``orientation``: such as ``"LR"``. A line is a point, three for each cubic Bézier curve, and the
    tip of its arrow. All is in pixels from the upper left corner.
    """
    lines = [f"digraph {{ rankdir={orientation};", _HEAD]
    lines += [
        f"{number} [width={width / _INCH:.4f}, height={height / _INCH:.4f}];"
        for number, (width, height) in enumerate(sizes)
    ]
    # Without a key, an edge could not be told from another one between the same boxes.
    lines += [f"{start} -> {end} [key={n}];" for n, (start, end) in enumerate(edges)]
    with AGraph(string="\n".join([*lines, "}"])) as graph:
        graph.layout("dot")
        *_, width, height = _numbers(graph.graph_attr["bb"])
        middles = [
            _turned(graph.get_node(number).attr["pos"], height) for number in range(len(sizes))
        ]
        found = [
            _line(graph.get_edge(start, end, str(n)).attr["pos"], height)
            for n, (start, end) in enumerate(edges)
        ]
    return (width, height), [middle for (middle,) in middles], found


def placed_apart(
    sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]], orientation: str
) -> tuple[tuple[float, float], list[Point], list[list[Point]]]:
    """As ``placed``, in a process of its own, so that other threads of this one go on.

    In this process if it is a program with Python within it, which would begin once more.
    """
    if not sys.executable or hasattr(sys, "frozen"):
        return placed(sizes, edges, orientation)
    found = subprocess.run(  # noqa: S603 - this interpreter, with this file
        [sys.executable, "-P", __file__],
        input=json.dumps([sizes, edges, orientation]).encode(),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    whole, middles, lines = json.loads(found.stdout)
    return whole, middles, lines


def _line(text: str, height: float) -> list[Point]:
    """The points of an edge. Graphviz writes the tip of the arrow before them."""
    tip, _, points = text.removeprefix("e,").partition(" ")
    return [*_turned(points, height), *_turned(tip, height)]


def _turned(text: str, height: float) -> list[Point]:
    """Points, whose second coordinate is from the lower edge upwards."""
    pairs: Iterable[list[float]] = map(_numbers, text.split())
    return [(x, height - y) for x, y in pairs]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


if __name__ == "__main__":
    json.dump(placed(*json.load(sys.stdin)), sys.stdout)
