"""Which nodes are drawn as one box, and which edges need not be drawn.

Nodes are numbers here, each greater than those that it depends on.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

Edges = Sequence[Sequence[int]]
"""For each node those that it depends on."""


def reduced(predecessors: Edges) -> list[list[int]]:
    """The transitive reduction: without the edges that others imply.

    The ancestors of a node are a bit set, which is forgotten after the last node that needs it.
    """
    left = [0] * len(predecessors)
    for before in predecessors:
        for other in before:
            left[other] += 1
    ancestors: dict[int, int] = {}
    kept: list[list[int]] = []
    for node, before in enumerate(predecessors):
        known = 0
        for other in before:
            known |= ancestors[other]
        kept.append([other for other in before if not known >> other & 1])
        for other in before:
            known |= 1 << other
            left[other] -= 1
            if not left[other]:
                del ancestors[other]
        if left[node]:
            ancestors[node] = known
    return kept


def classes(predecessors: Edges, kinds: Sequence[Hashable]) -> list[int]:
    """The class of each node: nodes of the same kind whose neighbours are in the same classes.

    This is the coarsest such partition, found by refining: nodes are parted as long as they differ.
    A graph of these classes has no cycle either. Where an edge leads from one class to another,
    each node of the second depends on one of the first, so a cycle would have no beginning.
    """
    successors: list[list[int]] = [[] for _ in predecessors]
    for node, before in enumerate(predecessors):
        for other in before:
            successors[other].append(node)
    # Equal nodes are at the same levels. To begin with these spares a round for each level.
    last = len(predecessors) - 1
    turned = [[last - other for other in after] for after in reversed(successors)]
    around = zip(kinds, levels(predecessors), reversed(levels(turned)), strict=True)
    found, count = _numbered(list(around))
    while True:
        refined = [
            (
                found[node],
                frozenset(found[other] for other in before),
                frozenset(found[other] for other in successors[node]),
            )
            for node, before in enumerate(predecessors)
        ]
        finer, more = _numbered(refined)
        if more == count:
            return found
        found, count = finer, more


def levels(predecessors: Edges) -> list[int]:
    """For each node, how many edges the longest path to it has."""
    found: list[int] = []
    for before in predecessors:
        found.append(1 + max((found[other] for other in before), default=-1))
    return found


def opened(found: Sequence[int], wanted: Iterable[int]) -> list[int]:
    """The classes, but each node of those with a wanted node is a class by itself."""
    apart = {found[node] for node in wanted}
    return _numbered([(cls, node * (cls in apart)) for node, cls in enumerate(found)])[0]


def quotient(predecessors: Edges, found: Sequence[int]) -> list[list[int]]:
    """The edges between classes, which are numbered in the order of a node of each.

    The classes come in no topological order; ``ordered`` gives one.
    """
    edges: list[dict[int, None]] = [{} for _ in range(max(found, default=-1) + 1)]
    for node, before in enumerate(predecessors):
        edges[found[node]].update((found[other], None) for other in before)
    return [list(before) for before in edges]


def ordered(predecessors: Edges) -> list[int]:
    """The nodes, each after those that it depends on, otherwise in their order."""
    done: dict[int, None] = {}
    for start in range(len(predecessors)):
        path = [start]
        while path:
            missing = [other for other in predecessors[path[-1]] if other not in done]
            if missing:
                path += missing[::-1]
            else:
                done[path.pop()] = None
    return list(done)


def _numbered(values: Sequence[Hashable]) -> tuple[list[int], int]:
    """Equal values have the same number, in the order in which they come."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values], len(numbers)
