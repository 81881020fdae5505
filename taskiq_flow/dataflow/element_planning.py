"""Gives each mapped node its axes, and puts it into a group of nodes that go on together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskiq_flow.dataflow.axes import (
    Axis,
    Levels,
    Places,
    count_alike,
    index_of,
    joined,
    keys_of,
    lists_of,
    parts_of,
    zip_of,
)
from taskiq_flow.dataflow.element_plan import ElementPlan, GroupPlan, MappedNode, Taken
from taskiq_flow.dataflow.group_edges import Edges, GroupEdges
from taskiq_flow.dataflow.items import ItemsNode, Opening
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.errors import GraphError


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
    planning.edges.finish()
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


@dataclass(frozen=True, slots=True)
class _Factor:
    """Keys that a node takes together, and the levels that they add to those before.

    ``shared``: how many axes they have in common with the first factor.
    """

    keys: tuple[str, ...]
    levels: Levels
    shared: int


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
        self.edges = GroupEdges(self.groups)
        self._needs: list[tuple[Places, ...]] = []  # by group: of it and those around it
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
        factors = self._factors(node)
        levels = tuple(level for factor in factors for level in factor.levels)
        if isinstance(node, ItemsNode) and node.joins:
            levels = (*levels[:-2], (*levels[-2], *levels[-1]))
        axes = joined(levels)
        taken = tuple(self._taken(key, count, axes) for key, count in node.map_over.items())
        lists = dict.fromkeys(
            key for axis in axes for key in lists_of(axis) if not self._is_of_mapped(key)
        )
        edges = self._edges_of(taken, axes, factors, whole)
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
            self._add_failures(node, levels)
            return mapped
        if not isinstance(node, ItemsNode):
            self._add_failures(node, levels)
        for key in node.outputs:
            self.keys[key] = _Key(
                key, node, axes, _flattened(levels, key) if node.flatten else levels
            )
            self._around[key, 1] = axes
            if node.flatten:
                self.depths[key] = 1
        return mapped

    def _add_failures(self, node: DAGNode, levels: Levels) -> None:
        """The failures of a node are taken for each of its elements, or for several of them."""
        whole = self.in_place_of(node)
        for key, other in self._failed_nodes.items():
            if other is node:
                self.keys[key] = _Key(key, whole, self.mapped[whole].axes, levels)

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

    def _factors(self, node: DAGNode) -> list[_Factor]:
        """What each factor of a node adds to the node's levels.

        Outer levels that a factor has in common with the first one are taken together with these:
        so two lists that are given by the same element are multiplied for each element.
        """
        first, *others = [self._by_depth(node, factor) for factor in node.factors]
        shared = [_count_shared(first, other) for other in others]
        if shared and shared[0] == len(first):
            raise _same_list(node)
        for count, other in zip(shared, others, strict=True):
            if count == len(other):
                raise _same_list(node)
            for depth in range(count):
                first[depth] |= other[depth]
        levels = _together(node, node.factors[0], first)
        factors = [_Factor(tuple(node.factors[0]), levels, 0)]
        for keys, count, other in zip(node.factors[1:], shared, others, strict=True):
            further = _together(node, keys, other)[count:]
            factors.append(_Factor(tuple(keys), further, len(joined(levels[:count]))))
        _check_apart([joined(factor.levels) for factor in factors], _same_list(node))
        return factors

    def _by_depth(self, node: DAGNode, factor: Mapping[str, int]) -> list[set[tuple[Axis, ...]]]:
        """The different levels that the keys of a factor have at each depth."""
        found = [self._levels(node, key, count) for key, count in factor.items()]
        deepest = max(map(len, found))
        return [{own[depth] for own in found if len(own) > depth} for depth in range(deepest)]

    def _levels(self, node: DAGNode, key: str, count: int) -> Levels:
        known = self._key(key)
        if key in self._failed_nodes and count > len(known.levels):
            raise _no_elements(node, key, self._failed_nodes[key])
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
        at = tuple(index_of(axis, axes) for axis in own)
        is_failures = key in self._failed_nodes
        return Taken(key, at, len(known.own), own[-1], known.producer, is_failures)

    # Groups

    def _edges_of(
        self,
        taken: Iterable[Taken],
        axes: tuple[Axis, ...],
        factors: Sequence[_Factor],
        whole: Iterable[DAGNode],
    ) -> Edges:
        edges = Edges({(group, 0) for group in self._groups_of(whole)})
        further = {key: factor.shared for factor in factors[1:] for key in factor.keys}
        first_factor = len(joined(factors[0].levels))
        for key in taken:
            if key.producer is None:
                continue
            group = self.mapped[key.producer].group
            theirs, depth = self.groups[group].axes, len(key.at)
            shared = further.get(key.key, depth)
            in_common = count_alike(theirs, axes)
            if any(index >= first_factor for index in key.at[shared : key.own]):
                # All of it is needed again for each position before.
                edges.ends.add((group, shared))
                if in_common < shared:
                    edges.positions.add((group, in_common))
            elif in_common < min(depth, len(theirs)):
                edges.positions.add((group, in_common))
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

    def _group_for(self, node: DAGNode, axes: tuple[Axis, ...], edges: Edges) -> int:
        blocked_by, needs = self.edges.blocked_by(edges), self._needs_of(axes)
        for number, group in enumerate(self.groups):
            is_alike = group.axes == axes and self._needs[number] == needs
            if is_alike and self._may_join(node, group) and number not in blocked_by:
                self.edges.add(number, edges)
                return number
        return self._new_group(axes, needs, edges)

    def _may_join(self, node: DAGNode, group: GroupPlan) -> bool:
        """Items have a pass of their own. Whoever takes one need not wait for who maps over it."""
        members = (node, *(member.node for member in group.members[:1]))
        return not any(isinstance(member, ItemsNode) for member in members)

    def _places_of(self, axis: Axis, axes: Sequence[Axis]) -> Places:
        """The places of the lists of an axis that lies within others."""
        return {
            part: tuple(index_of(around, axes) for around in self._around.get(part, ()))
            for part in parts_of(axis)
            if isinstance(part, tuple)
        }

    def _needs_of(self, axes: tuple[Axis, ...]) -> tuple[Places, ...]:
        """By axis: the lists of later axes that have to be there before a list of it is begun.

        They are at the same place as that list is, so that nodes would wait for them if there were
        nothing around them. Outermost lists are waited for by the mapped nodes themselves.
        """
        needs: list[Places] = [{} for _ in axes]
        for number, axis in enumerate(axes):
            for part, place in self._places_of(axis, axes).items():
                if place and place[-1] + 1 < number:
                    needs[place[-1] + 1][part] = place
        return tuple(needs)

    def _new_group(self, axes: tuple[Axis, ...], needs: tuple[Places, ...], edges: Edges) -> int:
        places, parent = self._places_of(axes[-1], axes), None
        if len(axes) > 1:
            parent = self._parent_for(axes, needs[:-1])
            edges.aligned.add(parent)
        lists = (key for key in keys_of(axes) if not self._is_of_mapped(key))
        makers = [self._producers[key] for key in lists if key in self._producers]
        edges.ends |= {(group, 0) for group in self._groups_of(makers)}
        self.groups.append(GroupPlan(axes, places, needs[-1], parent))
        self.edges.append(edges)
        self._needs.append(needs)
        return len(self.groups) - 1

    def _parent_for(self, axes: tuple[Axis, ...], needs: tuple[Places, ...]) -> int:
        """The group that leads to the lists of the last axis: of the last node that makes one."""
        outer = axes[:-1]
        alike = [
            number
            for number, group in enumerate(self.groups)
            if group.axes == outer and self._needs[number] == needs
        ]
        makers = [
            self.mapped[producer].group
            for key in lists_of(axes[-1])
            if (producer := self._producers.get(key)) in self.mapped
        ]
        found = [number for number in alike if number in makers][-1:] or alike[:1]
        return found[0] if found else self._new_group(outer, needs, Edges())


def _may_give_items(node: DAGNode, *, all_items: bool) -> bool:
    """Whether a generator gives its items one by one also if no node maps over them.

    Each item is split if there are several outputs.
    """
    return node.gives_items and (all_items or len(node.outputs) > 1)


def _flattened(levels: Levels, key: str) -> Levels:
    """The levels of a node whose elements give lists that are joined."""
    return (*levels[:-1], (*levels[-1], (key, 1)))


def _together(
    node: DAGNode, keys: Iterable[str], levels: Iterable[set[tuple[Axis, ...]]]
) -> Levels:
    """The levels of keys that are taken together, by position."""
    together: list[tuple[Axis, ...]] = []
    for different in levels:
        level = next(iter(different))
        if len(different) > 1:
            if any(len(each) > 1 for each in different):
                raise _not_together(node, [*keys])
            level = (zip_of({axis for each in different for axis in each}),)
        together.append(level)
    _check_apart(together, _not_together(node, [*keys]))
    return tuple(together)


def _count_shared(
    first: Iterable[set[tuple[Axis, ...]]], other: Iterable[set[tuple[Axis, ...]]]
) -> int:
    """How many of the outer levels of two factors have lists in common."""
    count = 0
    for ours, theirs in zip(first, other, strict=False):
        is_single = all(len(level) == 1 for level in ours | theirs)
        if ours != theirs and not (is_single and _parts_in(ours) & _parts_in(theirs)):
            break
        count += 1
    return count


def _parts_in(levels: Iterable[tuple[Axis, ...]]) -> set[Axis]:
    return {part for level in levels for axis in level for part in parts_of(axis)}


def _not_together(node: DAGNode, keys: Sequence[str]) -> GraphError:
    return GraphError(
        f"node {node.task_name!r} maps over {', '.join(map(repr, keys))} together, which have "
        "different lists within their lists, or lists that were joined; name fewer levels of "
        f"them, as in map_over={dict.fromkeys(keys, 1)}, or multiply them with Product(...)"
    )


def _no_elements(node: DAGNode, key: str, of: DAGNode) -> GraphError:
    return GraphError(
        f"node {node.task_name!r} maps over {key!r} with {node.map_over[key]} levels, and node "
        f"{of.task_name!r} maps over fewer; name as many at the most, or none to take all failures"
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


def _check_names(nodes: Iterable[DAGNode]) -> None:
    for node in nodes:
        if node.task_name.endswith("]") and "[" in node.task_name:
            raise GraphError(
                f"node {node.task_name!r} has a name as elements of mapped nodes have; give it a "
                "name= that does not end in [...]"
            )
