"""What holds of each layout: where boxes and edges may lie."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from taskiq_flow.drawing.layout import Layout, PlacedBox, PlacedEdge

SAMPLES = 24
"""Points of each curve that are looked at."""


def overlaps(layout: Layout) -> list[tuple[str, str]]:
    """The pairs of boxes that overlap."""
    return [
        (a.id, b.id)
        for a, b in combinations(layout.boxes, 2)
        if a.x < b.x + b.width
        and b.x < a.x + a.width
        and a.y < b.y + b.height
        and b.y < a.y + a.height
    ]


def share_through_boxes(layout: Layout) -> float:
    """How many of the points of all edges lie in a box that is not at their ends."""
    points = inside = 0
    for edge in layout.edges:
        others = [box for box in layout.boxes if box.id not in (edge.start, edge.end)]
        for point in samples(edge):
            points += 1
            inside += any(_is_in(point, box) for box in others)
    return inside / points if points else 0.0


def samples(edge: PlacedEdge) -> Iterator[tuple[float, float]]:
    """Points along an edge."""
    line = edge.points[:-1]
    for first in range(0, len(line) - 1, 3):
        curve = line[first : first + 4]
        for number in range(SAMPLES):
            t = number / SAMPLES
            shares = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            yield (
                sum(share * x for share, (x, _) in zip(shares, curve, strict=True)),
                sum(share * y for share, (_, y) in zip(shares, curve, strict=True)),
            )


def _is_in(point: tuple[float, float], box: PlacedBox) -> bool:
    x, y = point
    return (
        box.x + 1 < x < box.x + box.width - 1 and box.y + 1 < y < box.y + box.height - 1
    )  # rounded to a tenth


def box_of(layout: Layout, name: str) -> PlacedBox:
    """The box that a node is in."""
    return next(box for box in layout.boxes if box.kind != "input" and name in box.members)
