"""Which groups of elements wait for which others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from taskiq_flow.dataflow.element_plan import GroupPlan


@dataclass(slots=True)
class Edges:
    """The groups that a group needs, by what it needs of them.

    ``ends``: the end of all elements that have so many positions in common with its own;
    ``elements``: those at the path that it is itself at, on the way there, or within that.
    """

    ends: set[tuple[int, int]] = field(default_factory=set)
    elements: set[int] = field(default_factory=set)

    def __or__(self, other: Edges) -> Edges:
        return Edges(self.ends | other.ends, self.elements | other.elements)


class GroupEdges:
    """The edges between groups, which are known by their numbers in ``groups``."""

    def __init__(self, groups: Sequence[GroupPlan]) -> None:
        self._groups = groups
        self._edges: list[Edges] = []  # by group

    def append(self, edges: Edges) -> None:
        """Add the edges of the next group."""
        self._edges.append(edges)

    def add(self, number: int, edges: Edges) -> None:
        """Add edges to a group, for one more node of it."""
        self._edges[number] |= edges
        self._edges[number].elements.discard(number)

    def finish(self) -> None:
        """Set, in each group, which others it waits for. Called when all nodes are there."""
        for number, group in enumerate(self._groups):
            group.blocked_by = self.blocked_by(self._edges[number])
            group.waits_for = set(group.blocked_by)
        for number in reversed(range(len(self._groups))):  # those within a group have later numbers
            for group in self._groups[number + 1 :]:
                between = self._up_to(number, group)
                if between and all(number not in other.waits_for for other in between):
                    group.held_by.add(number)
                    self._groups[number].waits_for |= group.waits_for

    def _up_to(self, number: int, group: GroupPlan) -> list[GroupPlan]:
        """A group, and those around it within another one; empty if it is not within that."""
        found = [group]
        while (parent := found[-1].parent) != number:
            if parent is None:
                return []
            found.append(self._groups[parent])
        return found

    def blocked_by(self, edges: Edges) -> set[int]:
        """The groups that have to go on before an element with such edges can end.

        Not those of which it takes elements only: these have been let in when it is.
        """
        ends: set[tuple[int, int]] = set()
        seen: set[int] = set()
        reached = [edges]
        while reached:
            edges = reached.pop()
            ends |= edges.ends
            reached += [self._edges[number] for number in edges.elements - seen]
            seen |= edges.elements
        return self._that_end(ends)

    def _that_end(self, ends: Iterable[tuple[int, int]]) -> set[int]:
        """The groups that these ends need, but for those that lead there."""
        depths: dict[int, int] = {}  # by group: how many positions are fixed
        pending = list(ends)
        while pending:
            number, depth = pending.pop()
            if depths.get(number, depth + 1) <= depth:
                continue
            depths[number] = depth
            more = self._edges[number]
            pending += [(other, min(depth, own)) for other, own in more.ends]
            pending += [(other, depth) for other in more.elements]
        return {n for n, depth in depths.items() if depth < len(self._groups[n].axes)}
