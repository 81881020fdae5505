"""What the mapped nodes of a graph map over: their axes, and the groups that their elements form.

An axis is a row of positions 0, 1, 2, … that mapped nodes share. A node that maps over a list has
the axis of that list; one that maps over the output of a mapped node has the axes of that node. So
the elements of chained maps are at the same positions, and no map waits for another as a whole. A
node that maps over lists within lists has several axes, one within the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, Union

from taskiq_flow.dataflow.items import ItemsNode, Opening
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.errors import BindingError, GraphError
from taskiq_flow.suggestions import did_you_mean

Path: TypeAlias = tuple[int, ...]
"""The place of an element: its position along each axis of its node."""

Axis: TypeAlias = Union[tuple[str, int], "frozenset[Axis]"]
"""The positions of a list: its key, and how deep within the key's value it lies, from 1 on. Or the
axes that are taken together, by position."""

Levels: TypeAlias = tuple[tuple[Axis, ...], ...]
"""The axes of a key by level of its lists. Where lists are joined, one level has several axes."""

_ELEMENT = re.compile(r"(.*)\[(\d+(?:,\d+)*)\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Taken:
    """A key that a node maps over.

    ``at``: which positions of the node's path lead to the value. ``own``: how many axes the
    elements have that give the key. With fewer positions than that, the value is a list of what
    several elements give. With more, it lies in a list that one of them gives, along ``axis``.
    ``producer``: if that is a mapped node.
    """

    key: str
    at: tuple[int, ...]
    own: int
    axis: Axis
    producer: DAGNode | None

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
    of the last axis, or will be. Which list, ``at`` says: its place is made of these positions of
    the path. A group may have no members, and only lead to others. ``blocked_by``: groups that
    have to go on before an element of this one can end. ``held_by``: of its ancestors those whose
    positions last until everything within them has ended. ``waits_for``: groups that have to go on
    before a position of this one can be forgotten.
    """

    axes: tuple[Axis, ...]
    at: tuple[int, ...]
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


def element_name(name: str, path: Path) -> str:
    """The name of a node's element at a path; of the node itself, without any position."""
    return f"{name}[{','.join(map(str, path))}]" if path else name


def parted(name: str) -> tuple[str, Path]:
    """The node and the path of an element of this name; no path for a name that is no element's."""
    found = _ELEMENT.fullmatch(name)
    return (found[1], tuple(map(int, found[2].split(",")))) if found else (name, ())


def node_name(name: str) -> str:
    """The name of the node to which an element's name belongs; other names are their own."""
    return parted(name)[0]


def projection(at: tuple[int, ...]) -> Callable[[Path], Path]:
    """What makes of a path one of these positions of it."""
    count = len(at)
    if at == tuple(range(count)):
        return lambda path: path[:count]
    return lambda path: tuple([path[index] for index in at])


def element_plan(
    order: Sequence[DAGNode],
    predecessors: Mapping[DAGNode, Sequence[DAGNode]],
    orderings: Mapping[DAGNode, Iterable[DAGNode]],
    producers: Mapping[str, DAGNode],
    failed_nodes: Mapping[str, DAGNode],
    *,
    all_items: bool,
) -> ElementPlan | None:
    """The plan of a graph's mapped nodes; ``None`` if it has none.

    ``order``: all nodes, each after its dependencies. ``failed_nodes``: by the keys under which
    their failures are taken. ``all_items``: whether the items of all generators are asked for, not
    only of those that are mapped over.

    Raises ``GraphError`` for a name that an element could have, and for keys that cannot be mapped
    over together.
    """
    has_ended = any(node.join == "ended" for node in order)
    if not any(
        node.map_over or _may_give_items(node, all_items=all_items or has_ended) for node in order
    ):
        return None
    _check_names(order)
    planning = _Planning(order, producers, failed_nodes, all_items=all_items)
    edges: dict[DAGNode | Opening, list[DAGNode | Opening]] = {}
    for node in order:
        if not node.map_over:
            before = list(map(planning.in_place_of, predecessors.get(node, ())))
            planning.add_plain(node, before)
            if before:
                edges[node] = [*before]
        else:
            planning.add_mapped(node, map(planning.in_place_of, orderings.get(node, ())))
    for mapped in planning.mapped.values():
        makers = [maker for key in mapped.lists if (maker := planning.maker(key)) is not None]
        if makers:
            edges[mapped.node] = list(dict.fromkeys(makers))
    successors: dict[DAGNode | Opening, list[DAGNode | Opening]] = {}
    for after, others in edges.items():
        for other in others:
            successors.setdefault(other, []).append(after)
    planning.finish()
    return ElementPlan(
        planning.mapped,
        planning.groups,
        frozenset(planning.gathered),
        planning.depths,
        {key: len(known.levels) for key, known in planning.keys.items()},
        edges,
        successors,
        planning.generators,
        planning.openings,
    )


@dataclass(frozen=True, slots=True)
class _Key:
    """``own``: the axes of the elements that give the key; ``levels``: those of the key itself."""

    name: str
    producer: DAGNode | None = None
    own: tuple[Axis, ...] = ()
    levels: Levels = ()

    def first(self, count: int) -> Levels:
        """The axes of so many levels, those of lists within the value included."""
        declared = self.levels[:count]
        within = len(joined(self.levels)) - len(self.own)
        more = range(within + 1, within + 1 + count - len(declared))
        return (*declared, *(((self.name, depth),) for depth in more))


@dataclass(slots=True)
class _Edges:
    """The groups that a group needs, by what it needs of them.

    ``ends``: the end of all elements that have so many positions in common with its own;
    ``positions``: elements, in the order of a list; ``aligned``: the elements at the path that it
    is itself at, or within that.
    """

    ends: set[tuple[int, int]] = field(default_factory=set)
    positions: set[int] = field(default_factory=set)
    aligned: set[int] = field(default_factory=set)

    def __or__(self, other: _Edges) -> _Edges:
        return _Edges(
            self.ends | other.ends,
            self.positions | other.positions,
            self.aligned | other.aligned,
        )


class _Planning:
    """Gives each node its axes, and puts it into a group.

    A node joins the first group of its axes with which no circle arises. Otherwise it opens one
    more group. So nodes that take a map whole, and map over the same list, are let in by a later
    pass over the axis. Without that rule an element could wait for the end of an axis whose
    elements wait for that element to make room.

    The items of a generator are a group of their own.
    """

    def __init__(
        self,
        nodes: Iterable[DAGNode],
        producers: Mapping[str, DAGNode],
        failed_nodes: Mapping[str, DAGNode],
        *,
        all_items: bool,
    ) -> None:
        self.mapped: dict[DAGNode, MappedNode] = {}
        self.groups: list[GroupPlan] = []
        self.gathered: set[str] = set()
        self.depths: dict[str, int] = {}
        self.keys: dict[str, _Key] = {}
        self.generators: dict[DAGNode, ItemsNode] = {}
        self.openings: dict[DAGNode, Opening] = {}
        self._all_items = all_items
        self._deepest: dict[str, int] = {}  # by key: how many levels of it are mapped over
        self._taken_when_ended: set[str] = set()
        self._known_keys = {*producers}
        for node in nodes:
            self._known_keys.update(node.required_keys, node.optional_keys)
            if node.join == "ended":
                self._taken_when_ended.update(node.required_keys, node.optional_keys)
            for key, levels in node.map_over.items():
                self._deepest[key] = max(levels, self._deepest.get(key, 0))
        self._producers = dict(producers)
        self._failed_nodes = failed_nodes
        self._edges: list[_Edges] = []  # by group
        self._behind: dict[DAGNode, set[int]] = {}  # by plain node: the groups before it
        self._around: dict[Axis, tuple[Axis, ...]] = {}  # by axis: those in which it lies

    def add_plain(self, node: DAGNode, before: Iterable[DAGNode]) -> None:
        """A node that runs once."""
        if behind := self._groups_of(before):
            self._behind[node] = behind
        self._note_gathered(node)
        if self._is_taken_by_items(node, 0):
            self.openings[node] = Opening(node)
            self._add_items(node, (), ())

    def _is_taken_by_items(self, node: DAGNode, levels: int) -> bool:
        """Whether somebody takes the items of a generator.

        ``levels``: how many levels of lists the node's elements make.
        """
        if not node.gives_items:
            return False
        levels += not node.flatten
        is_mapped_over = any(self._deepest.get(key, 0) >= levels for key in node.outputs)
        is_taken_in_part = not self._taken_when_ended.isdisjoint(node.outputs)
        return (
            is_mapped_over or is_taken_in_part or _may_give_items(node, all_items=self._all_items)
        )

    def _add_items(self, node: DAGNode, axes: tuple[Axis, ...], levels: Levels) -> None:
        """The items of a generator are elements. They are let in as its row grows."""
        key = f"items of {node.task_name}"
        while key in self._known_keys:
            key += "_"
        items = self.generators[node] = ItemsNode(node, key, len(levels) + 1)
        self._producers[key] = node
        self.keys[key] = _Key(key, node if node.map_over else None, axes, levels)
        self._around[key, 1] = axes
        self.add_mapped(items, ())
        self._producers.update(dict.fromkeys(node.outputs, items))

    def in_place_of(self, node: DAGNode) -> DAGNode:
        """The node for which others wait that wait for this one."""
        return self.generators.get(node, node)

    def maker(self, key: str) -> DAGNode | Opening | None:
        """What a list is there with, that no mapped node gives; ``None`` for an input."""
        node = self._producers.get(key)
        return None if node is None else self.openings.get(node, node)

    def add_mapped(self, node: DAGNode, orderings: Iterable[DAGNode]) -> MappedNode:
        """A mapped node. ``orderings``: nodes that it only waits for."""
        keys = dict.fromkeys((*node.required_keys, *node.optional_keys))
        whole_keys = tuple(key for key in keys if key not in node.map_over)
        whole = dict.fromkeys(orderings)
        for key in whole_keys:
            other = self._producers.get(key, self._failed_nodes.get(key))
            if other is not None:
                whole[self.in_place_of(other)] = None
        factors = [self._zipped(node, list(keys)) for keys in node.factors]
        levels = tuple(level for factor in factors for level in factor)
        if isinstance(node, ItemsNode) and node.joins:
            levels = (*levels[:-2], (*levels[-2], *levels[-1]))
        axes = joined(levels)
        _check_apart(map(joined, factors), _same_list(node))
        taken = tuple(self._taken(key, count, axes) for key, count in node.map_over.items())
        lists = dict.fromkeys(
            key for axis in axes for key in lists_of(axis) if not self._is_of_mapped(key)
        )
        edges = self._edges_of(taken, axes, len(joined(factors[0])), whole)
        mapped = MappedNode(
            node,
            axes,
            tuple(map(len, levels)),
            self._group_for(node, axes, edges),
            taken,
            tuple(whole),
            whole_keys,
            tuple(lists),
        )
        self.mapped[node] = mapped
        self.groups[mapped.group].members.append(mapped)
        self._note_gathered(node)
        if self._is_taken_by_items(node, len(levels)):
            self._add_items(node, axes, levels)
            return mapped
        for key in node.outputs:
            self.keys[key] = _Key(
                key, node, axes, _flattened(levels, key) if node.flatten else levels
            )
            self._around[key, 1] = axes
            if node.flatten:
                self.depths[key] = 1
        return mapped

    def finish(self) -> None:
        """Say which group waits for which, when all nodes are there."""
        for number, group in enumerate(self.groups):
            group.blocked_by = self._blocked_by(self._edges[number])
            group.waits_for = set(group.blocked_by)
        for number in reversed(range(len(self.groups))):  # those within a group have later numbers
            for group in self.groups[number + 1 :]:
                between = self._up_to(number, group)
                if between and all(number not in other.waits_for for other in between):
                    group.held_by.add(number)
                    self.groups[number].waits_for |= group.waits_for

    def _up_to(self, number: int, group: GroupPlan) -> list[GroupPlan]:
        """A group, and those around it within another one; empty if it is not within that."""
        found = [group]
        while (parent := found[-1].parent) != number:
            if parent is None:
                return []
            found.append(self.groups[parent])
        return found

    # Keys and axes

    def _key(self, name: str) -> _Key:
        return self.keys.setdefault(name, _Key(name))

    def _is_of_mapped(self, key: str) -> bool:
        producer = self._producers.get(key)
        return producer is not None and bool(producer.map_over)

    def _note_gathered(self, node: DAGNode) -> None:
        for key in (*node.required_keys, *node.optional_keys):
            if key not in node.map_over and self._is_of_mapped(key):
                self.gathered.add(key)

    def _zipped(self, node: DAGNode, keys: Sequence[str]) -> Levels:
        """The levels of keys that are taken together, by position."""
        found = {key: self._levels(key, node.map_over[key]) for key in keys}
        together: list[tuple[Axis, ...]] = []
        for depth in range(max(map(len, found.values()))):
            levels = {own[depth] for own in found.values() if len(own) > depth}
            axes = {axis for level in levels for axis in level}
            if len(levels) > 1 and (depth or any(len(level) > 1 for level in levels)):
                raise _not_together(node, keys)
            together.append(levels.pop() if len(levels) == 1 else (_zip_of(axes),))
        _check_apart(together, _not_together(node, keys))
        return tuple(together)

    def _levels(self, key: str, count: int) -> Levels:
        known = self._key(key)
        levels = known.first(count)
        around = known.own
        for axis in joined(levels)[len(known.own) :]:
            self._around[axis] = around
            around = (*around, axis)
        within = max(0, len(joined(levels)) - len(known.own))
        self.depths[key] = max(within, self.depths.get(key, 0))
        return levels

    def _taken(self, key: str, count: int, axes: Sequence[Axis]) -> Taken:
        known = self._key(key)
        own = joined(known.first(count))
        producer = known.producer
        at = tuple(_place(axis, axes) for axis in own)
        return Taken(key, at, len(known.own), own[-1], producer)

    # Groups

    def _edges_of(
        self,
        taken: Iterable[Taken],
        axes: tuple[Axis, ...],
        first_factor: int,
        whole: Iterable[DAGNode],
    ) -> _Edges:
        edges = _Edges({(group, 0) for group in self._groups_of(whole)})
        for key in taken:
            if key.producer is None:
                continue
            group = self.mapped[key.producer].group
            theirs, depth = self.groups[group].axes, len(key.at)
            if any(index >= first_factor for index in key.at):
                edges.ends.add((group, 0))  # all of it is needed again for each position before
            elif theirs[:depth] != axes[: min(depth, len(theirs))]:
                edges.positions.add(group)
            elif depth < key.own:
                edges.ends.add((group, depth))
            else:
                edges.aligned.add(group)
        return edges

    def _groups_of(self, nodes: Iterable[DAGNode]) -> set[int]:
        """The groups whose end these nodes need, or are."""
        found: set[int] = set()
        for node in nodes:
            if node in self.mapped:
                found.add(self.mapped[node].group)
            else:
                found |= self._behind.get(node, set())
        return found

    def _group_for(self, node: DAGNode, axes: tuple[Axis, ...], edges: _Edges) -> int:
        blocked_by = self._blocked_by(edges)
        for number, group in enumerate(self.groups):
            if self._may_join(node, group) and group.axes == axes and number not in blocked_by:
                self._edges[number] |= edges
                self._edges[number].aligned.discard(number)
                return number
        return self._new_group(axes, edges)

    def _may_join(self, node: DAGNode, group: GroupPlan) -> bool:
        """Items have a pass of their own. Whoever takes one need not wait for who maps over it."""
        members = (node, *(member.node for member in group.members[:1]))
        return not any(isinstance(member, ItemsNode) for member in members)

    def _new_group(self, axes: tuple[Axis, ...], edges: _Edges) -> int:
        parent, at = None, tuple(_place(axis, axes) for axis in self._around.get(axes[-1], ()))
        if len(axes) > 1:
            parent = self._parent_for(axes)
            edges.aligned.add(parent)
        lists = (key for key in keys_of(axes) if not self._is_of_mapped(key))
        makers = [self._producers[key] for key in lists if key in self._producers]
        edges.ends |= {(group, 0) for group in self._groups_of(makers)}
        self.groups.append(GroupPlan(axes, at, parent))
        self._edges.append(edges)
        return len(self.groups) - 1

    def _parent_for(self, axes: tuple[Axis, ...]) -> int:
        """The group that leads to the lists of the last axis: of the node that makes them."""
        outer = axes[:-1]
        for key in lists_of(axes[-1]):
            producer = self._producers.get(key)
            if producer in self.mapped and self.mapped[producer].axes == outer:
                return self.mapped[producer].group
        for number, group in enumerate(self.groups):
            if group.axes == outer:
                return number
        return self._new_group(outer, _Edges())

    def _blocked_by(self, edges: _Edges) -> set[int]:
        """The groups that have to go on before an element with such edges can end."""
        found: set[int] = set()
        ends, seen = set(edges.ends), set[int]()
        reached = [edges]
        while reached:
            edges = reached.pop()
            found |= edges.positions
            for number in (edges.positions | edges.aligned) - seen:
                seen.add(number)
                more = self._edges[number]
                reached.append(more)
                is_aligned = number in edges.aligned
                ends |= more.ends if is_aligned else {(other, 0) for other, _ in more.ends}
        return found | self._that_end(ends)

    def _that_end(self, ends: Iterable[tuple[int, int]]) -> set[int]:
        """The groups that these ends need, but for those that lead there."""
        depths: dict[int, int] = {}  # by group: how many positions are fixed
        pending = list(ends)
        while pending:
            number, depth = pending.pop()
            if len(self.groups[number].axes) <= depth or depths.get(number, depth + 1) <= depth:
                continue
            depths[number] = depth
            more = self._edges[number]
            pending += [(other, min(depth, own)) for other, own in more.ends]
            pending += [(other, depth) for other in more.aligned]
            pending += [(other, 0) for other in more.positions]
        return set(depths)


def _may_give_items(node: DAGNode, *, all_items: bool) -> bool:
    """Whether a generator gives its items one by one also if no node maps over them.

    Each item is split if there are several outputs.
    """
    return node.gives_items and (all_items or len(node.outputs) > 1)


def joined(levels: Levels) -> tuple[Axis, ...]:
    """The axes of all levels, from the outermost on."""
    return tuple(axis for level in levels for axis in level)


def parts_of(axis: Axis) -> Iterator[Axis]:
    """An axis, and those that it takes together."""
    yield axis
    for part in axis if isinstance(axis, frozenset) else ():
        yield from parts_of(part)


def lists_of(axis: Axis) -> list[str]:
    """The keys of the lists to which an axis belongs, sorted."""
    return sorted({part[0] for part in parts_of(axis) if isinstance(part, tuple)})


def keys_of(axes: Iterable[Axis]) -> set[str]:
    """The keys of all lists to which axes belong."""
    return {key for axis in axes for key in lists_of(axis)}


def _flattened(levels: Levels, key: str) -> Levels:
    """The levels of a node whose elements give lists that are joined."""
    return (*levels[:-1], (*levels[-1], (key, 1)))


def _place(axis: Axis, axes: Sequence[Axis]) -> int:
    """Which of the axes is this one, or takes it together with others."""
    return next(index for index, other in enumerate(axes) if _is_within(axis, other))


def _is_within(axis: Axis, other: Axis) -> bool:
    if axis == other:
        return True
    return isinstance(other, frozenset) and any(_is_within(axis, part) for part in other)


def _zip_of(axes: Collection[Axis]) -> Axis:
    """The axis of positions that all of these have."""
    outer = [a for a in axes if not any(a != other and _is_within(a, other) for other in axes)]
    return outer[0] if len(outer) == 1 else frozenset(outer)


def _not_together(node: DAGNode, keys: Sequence[str]) -> GraphError:
    return GraphError(
        f"node {node.task_name!r} maps over {', '.join(map(repr, keys))} together, which have "
        "different lists within their lists; name fewer levels of them, as in "
        f"map_over={dict.fromkeys(keys, 1)}, or multiply them with Product(...)"
    )


def _same_list(node: DAGNode) -> GraphError:
    return GraphError(
        f"node {node.task_name!r} multiplies keys of the same list with Product(...); "
        "name such keys together, as in map_over=['a', 'b']"
    )


def _check_apart(levels: Iterable[Iterable[Axis]], error: GraphError) -> None:
    """Raise the error if two of these have an axis in common."""
    seen: set[Axis] = set()
    for level in levels:
        parts = {part for axis in level for part in parts_of(axis)}
        if parts & seen:
            raise error
        seen |= parts


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
