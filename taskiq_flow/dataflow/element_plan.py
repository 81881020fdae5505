"""The axes of a graph's mapped nodes, and the groups that their elements form.

An axis is a row of positions 0, 1, 2, … that mapped nodes share. A node that maps over a list has
the axis of that list; one that maps over the output of a mapped node has the axes of that node. So
the elements of chained maps are at the same positions, and no map waits for another as a whole. A
node that maps over lists within lists has several axes, one within the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from taskiq_flow.dataflow.axes import Axis, Places, parts_of
from taskiq_flow.dataflow.items import ItemsNode, Opening
from taskiq_flow.dataflow.node import DAGNode


@dataclass(frozen=True, slots=True)
class Taken:
    """A key that a node maps over.

    ``at``: which positions of the node's path lead to the value. ``own``: how many axes the
    elements have that give the key. With fewer positions than that, the value is a list of what
    several elements give. With more, it lies in a list that one of them gives, along ``axis``.
    ``producer``: if that is a mapped node. ``is_failures``: whether the key has its failures.
    """

    key: str
    at: tuple[int, ...]
    own: int
    axis: Axis
    producer: DAGNode | None
    is_failures: bool = False

    @property
    def is_listed(self) -> bool:
        """Whether the value is one position of a list."""
        return len(self.at) > self.own


@dataclass(frozen=True, slots=True, eq=False)
class MappedNode:
    """How a node maps.

    ``axes``: which it has; ``sizes``: how many of them there are in each level of the lists that
    it gives. ``taken``: the keys that it maps over. ``whole``: the nodes on which each of its
    elements depends, with all of their own elements. ``whole_keys``: the keys that its task and its
    condition take whole. ``lists``: the keys of the lists, given by no mapped node, without which
    it has no elements.
    """

    node: DAGNode
    axes: tuple[Axis, ...]
    sizes: tuple[int, ...]
    group: int
    taken: tuple[Taken, ...]
    whole: tuple[DAGNode, ...]
    whole_keys: tuple[str, ...]
    lists: tuple[str, ...]

    @property
    def zips(self) -> bool:
        """Whether it takes the positions of several lists together."""
        return any(isinstance(axis, frozenset) for axis in self.axes)

    @property
    def producers(self) -> dict[DAGNode, None]:
        """The mapped nodes of which it takes elements, or lists of some elements."""
        return {taken.producer: None for taken in self.taken if taken.producer is not None}


@dataclass(slots=True, eq=False)
class GroupPlan:
    """Mapped nodes of the same axes whose elements at a position are let in together.

    ``parent``: the group of the axes without the last one; at each of its positions there is a list
    of the last axis, or will be, or several that are taken together. ``places``: which lists these
    are; the place of each is made of these positions of the path. ``needs``: the places of further
    lists, which are read within this one and have to be there before it is begun. A group may have
    no members, and only lead to others. ``blocked_by``: groups that
    have to go on before an element of this one can end. ``held_by``: of its ancestors those whose
    positions last until everything within them has ended. ``waits_for``: groups that have to go on
    before a position of this one can be forgotten.
    """

    axes: tuple[Axis, ...]
    places: Places
    needs: Places
    parent: int | None
    members: list[MappedNode] = field(default_factory=list)
    blocked_by: set[int] = field(default_factory=set)
    held_by: set[int] = field(default_factory=set)
    waits_for: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class ElementPlan:
    """The mapped nodes of a graph, each after its dependencies.

    ``gathered``: keys of mapped nodes that another node takes whole. ``depths``: by key, how many
    levels of lists within its value are mapped over; ``levels``: how many levels of lists the
    elements of its node make. ``predecessors``, ``successors``: the edges between nodes as wholes.
    A mapped node waits only for the lists of its axes there; for its other dependencies, its
    elements wait. ``generators``: nodes whose items are taken while they run, with what stands for
    them elsewhere. ``openings``: of those that run once.
    """

    mapped: dict[DAGNode, MappedNode]
    groups: list[GroupPlan]
    gathered: frozenset[str]
    depths: dict[str, int]
    levels: dict[str, int]
    predecessors: dict[DAGNode | Opening, list[DAGNode | Opening]]
    successors: dict[DAGNode | Opening, list[DAGNode | Opening]]
    generators: dict[DAGNode, ItemsNode]
    openings: dict[DAGNode, Opening]

    def lists(self) -> set[str]:
        """The keys of all lists that are mapped over, and are inputs or come from plain nodes."""
        items = {node.given_key for node in self.generators.values()}
        return {key for mapped in self.mapped.values() for key in mapped.lists} - items

    def lists_within(self) -> set[str]:
        """Those of them that are read once more for each position of another axis."""
        inner = (axis for group in self.groups for axis in group.axes[1:])
        parts = (part for axis in inner for part in parts_of(axis))
        return {
            part[0] for part in parts if isinstance(part, tuple) and part[1] == 1
        } & self.lists()
