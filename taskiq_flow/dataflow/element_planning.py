"""Gives each mapped node its axes, and puts it into a group of nodes that go on together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from taskiq_flow.dataflow.axes import Axis, Levels, Places, joined, keys_of, lists_of
from taskiq_flow.dataflow.element_plan import ElementPlan, GroupPlan, MappedNode, Taken
from taskiq_flow.dataflow.group_edges import Edges, GroupEdges
from taskiq_flow.dataflow.items import ItemsNode, Opening
from taskiq_flow.dataflow.key_axes import Factor, Key, KeyAxes
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
        planning.axes.depths,
        {key: len(known.levels) for key, known in planning.axes.keys.items()},
        edges,
        successors,
        planning.generators,
        planning.openings,
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
        self.axes = KeyAxes(failed_nodes)
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
        self.axes.add(key, node if node.map_over else None, axes, levels)
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
        factors = self.axes.factors(node)
        levels = tuple(level for factor in factors for level in factor.levels)
        if isinstance(node, ItemsNode) and node.joins:
            levels = (*levels[:-2], (*levels[-2], *levels[-1]))
        axes = joined(levels)
        taken = tuple(self.axes.taken(key, count, axes) for key, count in node.map_over.items())
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
            self.axes.add(key, node, axes, _flattened(levels, key) if node.flatten else levels)
            if node.flatten:
                self.axes.depths[key] = 1
        return mapped

    def _add_failures(self, node: DAGNode, levels: Levels) -> None:
        """The failures of a node are taken for each of its elements, or for several of them."""
        whole = self.in_place_of(node)
        for key, other in self._failed_nodes.items():
            if other is node:
                self.axes.keys[key] = Key(key, whole, self.mapped[whole].axes, levels)

    def _is_of_mapped(self, key: str) -> bool:
        producer = self._producers.get(key)
        return producer is not None and bool(producer.map_over)

    def _note_gathered(self, node: DAGNode) -> None:
        for key in (*node.required_keys, *node.optional_keys):
            if key not in node.map_over and self._is_of_mapped(key):
                self.gathered.add(key)

    # Groups

    def _edges_of(
        self,
        taken: Iterable[Taken],
        axes: tuple[Axis, ...],
        factors: Sequence[Factor],
        whole: Iterable[DAGNode],
    ) -> Edges:
        edges = Edges({(group, 0) for group in self._groups_of(whole)})
        further = {key: factor.shared for factor in factors[1:] for key in factor.keys}
        first_factor = len(joined(factors[0].levels))
        for key in taken:
            if key.producer is None:
                continue
            group = self.mapped[key.producer].group
            shared = further.get(key.key, len(key.at))
            if any(index >= first_factor for index in key.at[shared : key.own]):
                # All of it is needed again for each position before.
                edges.ends.add((group, shared))
            elif len(key.at) < key.own:
                edges.ends.add((group, len(key.at)))
            else:
                edges.elements.add(group)
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

    def _needs_of(self, axes: tuple[Axis, ...]) -> tuple[Places, ...]:
        """By axis: the lists of later axes that have to be there before a list of it is begun.

        They are at the same place as that list is, so that nodes would wait for them if there were
        nothing around them. Outermost lists are waited for by the mapped nodes themselves.
        """
        needs: list[Places] = [{} for _ in axes]
        for number, axis in enumerate(axes):
            for part, place in self.axes.places_of(axis, axes).items():
                if place and place[-1] + 1 < number:
                    needs[place[-1] + 1][part] = place
        return tuple(needs)

    def _new_group(self, axes: tuple[Axis, ...], needs: tuple[Places, ...], edges: Edges) -> int:
        places, parent = self.axes.places_of(axes[-1], axes), None
        if len(axes) > 1:
            parent = self._parent_for(axes, needs[:-1])
            edges.elements.add(parent)
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

    Each item is split if there are several outputs, and its time is known if it is limited.
    """
    is_each_seen = len(node.outputs) > 1 or node.timeout is not None
    return node.gives_items and (all_items or is_each_seen)


def _flattened(levels: Levels, key: str) -> Levels:
    """The levels of a node whose elements give lists that are joined."""
    return (*levels[:-1], (*levels[-1], (key, 1)))


def _check_names(nodes: Iterable[DAGNode]) -> None:
    for node in nodes:
        if node.task_name.endswith("]") and "[" in node.task_name:
            raise GraphError(
                f"node {node.task_name!r} has a name as elements of mapped nodes have; give it a "
                "name= that does not end in [...]"
            )
