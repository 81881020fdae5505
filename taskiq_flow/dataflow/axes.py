"""What the mapped nodes of a graph map over: their axes, and the groups that their elements form.

An axis is a row of positions 0, 1, 2, … that mapped nodes share. A node that maps over a list has
the axis of that list; one that maps over the output of a mapped node has the axis of that node. So
the elements of chained maps are at the same positions, and no map waits for another as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.errors import BindingError, GraphError
from taskiq_flow.suggestions import did_you_mean

Axis: TypeAlias = Union[str, "frozenset[Axis]"]
"""The key of the list whose positions these are, or the axes that are taken together."""

_ELEMENT = re.compile(r"(.*)\[(\d+)\]", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class MappedNode:
    """How a node maps.

    ``lists``: the keys that it maps over and that no mapped node gives. ``by_element``: the other
    keys that it maps over, each with the mapped node that gives it. ``whole``: the nodes on which
    each of its elements depends, with all of their own elements. ``whole_keys``: the keys that its
    task and its condition take whole. ``zips``: whether it takes the positions of several axes
    together, as ``axis`` then says.
    """

    node: DAGNode
    axis: Axis
    group: int
    lists: tuple[str, ...]
    by_element: Mapping[str, DAGNode]
    whole: tuple[DAGNode, ...]
    whole_keys: tuple[str, ...]
    zips: bool


@dataclass(frozen=True, slots=True)
class ElementPlan:
    """The mapped nodes of a graph, each after its dependencies.

    ``groups``: mapped nodes of one axis whose elements at a position are let in together. A group
    comes after those on which it depends, which ``waits_for`` numbers. ``gathered``: keys of mapped
    nodes that another node takes whole. ``predecessors``, ``successors``: the edges between nodes
    as wholes. A mapped node waits only for the lists of its axis there; for its other dependencies,
    its elements wait.
    """

    mapped: dict[DAGNode, MappedNode]
    groups: list[list[MappedNode]]
    waits_for: list[set[int]]
    gathered: frozenset[str]
    predecessors: dict[DAGNode, list[DAGNode]]
    successors: dict[DAGNode, list[DAGNode]]

    def lists(self) -> set[str]:
        """The keys of all lists that are mapped over."""
        return {key for mapped in self.mapped.values() for key in mapped.lists}


def node_name(name: str) -> str:
    """The name of the node to which an element's name belongs; other names are their own."""
    return parted(name)[0]


def parted(name: str) -> tuple[str, int]:
    """The node and the place of an element of this name; -1 for a name that is no element's."""
    found = _ELEMENT.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, -1)


def element_plan(
    order: Sequence[DAGNode],
    predecessors: Mapping[DAGNode, Sequence[DAGNode]],
    orderings: Mapping[DAGNode, Iterable[DAGNode]],
    producers: Mapping[str, DAGNode],
    failed_nodes: Mapping[str, DAGNode],
) -> ElementPlan | None:
    """The plan of a graph's mapped nodes; ``None`` if it has none.

    ``order``: all nodes, each after its dependencies. ``failed_nodes``: by the keys under which
    their failures are taken. Raises ``GraphError`` for a name that an element could have.
    """
    if not any(node.map_over for node in order):
        return None
    _check_names(order)
    grouping = _Grouping()
    edges: dict[DAGNode, list[DAGNode]] = {}
    gathered: set[str] = set()
    for node in order:
        before = predecessors.get(node, ())
        keys = dict.fromkeys((*node.required_keys, *node.optional_keys))
        given = {key: producers[key] for key in keys if key in producers}
        gathered.update(
            key for key, other in given.items() if other.map_over and key not in node.map_over
        )
        if not node.map_over:
            grouping.add_plain(node, before)
            if before:
                edges[node] = list(before)
            continue
        mapped = _mapped(node, keys, given, orderings.get(node, ()), failed_nodes, grouping)
        grouping.add_mapped(mapped)
        sources = dict.fromkeys(producers[key] for key in lists_of(mapped.axis) if key in producers)
        if sources:
            edges[node] = list(sources)
    successors: dict[DAGNode, list[DAGNode]] = {}
    for node, others in edges.items():
        for other in others:
            successors.setdefault(other, []).append(node)
    return ElementPlan(
        grouping.mapped,
        grouping.groups,
        grouping.waits_for,
        frozenset(gathered),
        edges,
        successors,
    )


def _mapped(
    node: DAGNode,
    keys: Iterable[str],
    given: Mapping[str, DAGNode],
    orderings: Iterable[DAGNode],
    failed_nodes: Mapping[str, DAGNode],
    grouping: _Grouping,
) -> MappedNode:
    by_element = {key: given[key] for key in node.map_over if key in given and given[key].map_over}
    lists = tuple(key for key in node.map_over if key not in by_element)
    axes = {*lists, *(grouping.mapped[other].axis for other in by_element.values())}
    whole_keys = tuple(key for key in keys if key not in node.map_over)
    whole = dict.fromkeys(orderings)
    for key in whole_keys:
        other = given.get(key, failed_nodes.get(key))
        if other is not None:
            whole[other] = None
    axis: Axis = next(iter(axes)) if len(axes) == 1 else frozenset(axes)
    others = [*whole, *(given[key] for key in lists if key in given)]
    group = grouping.group_for(axis, others, by_element.values())
    zips = len(axes) > 1
    return MappedNode(node, axis, group, lists, by_element, tuple(whole), whole_keys, zips)


class _Grouping:
    """Puts each mapped node into the first group of its axis with which no circle arises.

    Otherwise it opens one more group. So nodes that take a map whole, and map over the same list,
    are let in by a later pass over the axis. Without that rule an element could wait for the end
    of an axis whose elements wait for that element to make room.
    """

    def __init__(self) -> None:
        self.mapped: dict[DAGNode, MappedNode] = {}
        self.groups: list[list[MappedNode]] = []
        self.waits_for: list[set[int]] = []  # by group: all groups that it depends on
        self._behind: dict[DAGNode, set[int]] = {}  # by plain node: the same

    def add_plain(self, node: DAGNode, before: Iterable[DAGNode]) -> None:
        """A node that runs once."""
        behind = self._groups_behind(before)
        if behind:
            self._behind[node] = behind

    def group_for(self, axis: Axis, whole: Iterable[DAGNode], by_element: Iterable[DAGNode]) -> int:
        """The group of a node that waits for nodes as wholes, and for elements of others."""
        behind = self._groups_behind(whole)
        for other in by_element:
            number = self.mapped[other].group
            if self.mapped[other].axis != axis:
                behind |= {number} | self.waits_for[number]
        own = {self.mapped[other].group for other in by_element if self.mapped[other].axis == axis}
        for number, group in enumerate(self.groups):
            waits_for = behind.union(*({n} | self.waits_for[n] for n in own if n != number))
            if group[0].axis == axis and number not in waits_for:
                self._extend(number, waits_for)
                return number
        self.groups.append([])
        self.waits_for.append(behind.union(*({n} | self.waits_for[n] for n in own)))
        return len(self.groups) - 1

    def add_mapped(self, mapped: MappedNode) -> None:
        """A mapped node, in the group that ``group_for`` has given it."""
        self.mapped[mapped.node] = mapped
        self.groups[mapped.group].append(mapped)

    def _groups_behind(self, nodes: Iterable[DAGNode]) -> set[int]:
        behind: set[int] = set()
        for node in nodes:
            if node in self.mapped:
                number = self.mapped[node].group
                behind |= {number} | self.waits_for[number]
            else:
                behind |= self._behind.get(node, set())
        return behind

    def _extend(self, number: int, waits_for: set[int]) -> None:
        """A group depends on more groups, and so do all that depend on it."""
        self.waits_for[number] |= waits_for
        for groups in (*self.waits_for, *self._behind.values()):
            if number in groups:
                groups.update(waits_for)


def lists_of(axis: Axis) -> list[str]:
    """The keys of the lists to which an axis belongs, sorted."""
    if isinstance(axis, str):
        return [axis]
    return sorted({key for part in axis for key in lists_of(part)})


def check_mapped_keys(node: DAGNode, known: Iterable[str]) -> None:
    """Raise ``BindingError`` for a key that a node maps over and does not take."""
    taken = set(known)
    for key in node.map_over:
        if key not in taken:
            raise BindingError(
                f"node {node.task_name!r} has map_over={key!r}, which is none of its inputs"
                f"{did_you_mean(key, taken)}; name one of its inputs, or add it to inputs=",
                task_name=node.task_name,
                key=key,
            )


def _check_names(nodes: Iterable[DAGNode]) -> None:
    for node in nodes:
        if node.task_name.endswith("]") and "[" in node.task_name:
            raise GraphError(
                f"node {node.task_name!r} has a name as elements of mapped nodes have; give it a "
                "name= that does not end in [...]"
            )
