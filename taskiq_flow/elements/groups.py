"""The groups that the mapped nodes of one run form."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from taskiq_flow.dataflow.axes import (
    Axis,
    is_within,
    keys_of,
    lists_of,
    parts_of,
)
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.items import ItemsNode
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.plan import FAILURES
from taskiq_flow.dataflow.ready_set import COMPLETED
from taskiq_flow.dataflow.rows import MOST_IN_FLIGHT, Source
from taskiq_flow.elements.cells import Cells
from taskiq_flow.elements.group import Dropping, Group, Mapped, Taking


class Groups:
    """The mapped nodes and the groups of one run, as they belong together.

    ``priority``: of nodes that are ready. ``producers``: the keys that nodes give. ``sources``: by
    key, the inputs of the run that are read while it goes on. ``limit``: how many nodes may run at
    once. ``lists_at``: how many positions lead to the lists that the reader is given, if any.

    ``roots``: the groups of outermost lists.
    ``cells``: by key, what elements have given; ``returned``: by node, what its tasks have.
    ``openers``: by axis, the mapped node whose elements give its lists.
    """

    def __init__(
        self,
        plan: ElementPlan,
        *,
        priority: Mapping[DAGNode, float],
        producers: Collection[str],
        sources: Mapping[str, Source],
        limit: float,
        lists_at: int | None,
    ) -> None:
        self._plan = plan
        self._limit = limit
        self._sources = sources
        self._lists_at = lists_at
        self.rows_of_items: set[Axis] = {(i.given_key, 1) for i in plan.generators.values()}
        parts = {part for group in plan.groups for a in group.axes for part in parts_of(a)}
        self.axes: set[Axis] = {part for part in parts if isinstance(part, tuple)}
        self.cells: dict[str, Cells] = {}
        self.returned: dict[DAGNode, Cells] = {}
        self.mapped: dict[DAGNode, Mapped] = {}
        for node, planned in plan.mapped.items():
            items = plan.generators.get(node)
            mapped = self.mapped[node] = Mapped(planned, priority.get(node, 0.0), items)
            mapped.taking = [
                Taking(t, None if t.producer is None else self.mapped[t.producer])
                for t in planned.taken
            ]
            mapped.link()
            listed = [t for t in mapped.taking if t.is_listed]
            if any(t.of is not None or t.key in producers for t in listed):
                mapped.ended.append(COMPLETED)
            mapped.opens = [(key, 1) for key in mapped.keys if (key, 1) in self.axes]
            mapped.lists = [k for k in mapped.keys if plan.depths.get(k) or (k, 1) in self.axes]
            self.cells.update((key, Cells()) for key in mapped.keys)
            self.returned[node] = self.cells[mapped.keys[0]] if node.output else Cells()
            mapped.row = mapped.row_of(self.returned[node])
        self.groups = [
            Group(number, group, [self.mapped[member.node] for member in group.members])
            for number, group in enumerate(plan.groups)
        ]
        self.roots = [group for group in self.groups if group.depth == 1]
        for number in range(len(self.groups)):
            self._connect(number)
        self._fill_trees()
        self.openers: dict[Axis, Mapped] = {
            axis: m for m in self.mapped.values() for axis in m.opens
        }
        passes: dict[Axis, Group] = {
            (items.given_key, 1): self.mapped[items].ancestors[-1]
            for items in plan.generators.values()
        }
        for group in self.groups:
            read = [passes[part] for part in parts_of(group.axis) if part in passes]
            group.items = [items for items in read if items is not group]
        for group in self.groups:
            self._describe(group)
        for key in sources:
            self._drop_source(key)
        self._drop_when_ended()
        for axis in self.axes:
            self._drop_rows(axis)

    def _drop_source(self, key: str) -> None:
        """Say when a value of a source is dropped: when its position has ended in all groups."""
        users = {n for n, group in enumerate(self._plan.groups) if key in keys_of(group.axes)}
        readers = {group.number for group in self.roots if key in lists_of(group.axis)}
        if all(n in readers or readers & self._plan.groups[n].held_by for n in users):
            dropping = Dropping([self.groups[number] for number in readers])
            for number in readers:
                self.groups[number].sources.append((key, dropping))

    def _drop_rows(self, axis: Axis) -> None:
        """Say with whose positions the lists of an axis are dropped: of those around all readers.

        That is the innermost group whose positions last until all readers have ended. It may have
        fewer positions than there are lists, as a shorter one beside them has. The rest goes with
        the groups around it.
        """
        opener = self.openers.get(axis)
        readers: list[Group] = []
        places: set[tuple[int, ...]] = set()
        for group in self.groups:
            for around in group.with_outer():
                if axis in around.places:
                    readers.append(group)
                    places.add(self._plan.groups[around.number].places[axis])
        common = [self._holders(reader) for reader in readers]
        for group in self._holders(readers[0]):
            begin = tuple(range(group.depth))
            is_around_all = all(group in holders for holders in common)
            if is_around_all and all(at[: group.depth] == begin for at in places):
                is_own = all(len(at) == group.depth for at in places)
                (group.rows if is_own else group.rows_within).append(axis)
                axes = self._plan.groups[group.number].axes
                if opener is None or axes == opener.plan.axes[: group.depth]:
                    return

    def _holders(self, group: Group) -> list[Group]:
        """The groups around a group whose positions last until all within has ended."""
        held_by = self._plan.groups[group.number].held_by
        found, outer = [], group.parent
        while outer is not None:
            if outer.number in held_by:
                found.append(outer)
            outer = outer.parent
        return found

    def _connect(self, number: int) -> None:
        """Tell the groups around a group of its members."""
        group, planned = self.groups[number], self._plan.groups[number]
        outer: int | None = planned.parent
        if outer is not None:
            group.parent = self.groups[outer]
            group.parent.children.append(group)
        ancestors: list[Group] = [group]
        holders: list[Group | None] = [group]
        while outer is not None:
            ancestor = self.groups[outer]
            is_held = outer in planned.held_by
            ancestors.append(ancestor)
            holders.append(ancestor if is_held else None)
            ancestor.held += group.members if is_held else ()
            outer = self._plan.groups[outer].parent
        for mapped in group.members:
            mapped.ancestors, mapped.holders = ancestors[::-1], holders[::-1]

    def _fill_trees(self) -> None:
        for mapped in self.mapped.values():  # each behind what it depends on, as they are told of
            for group in mapped.ancestors:
                group.tree.append(mapped)

    def _describe(self, group: Group) -> None:
        # The items of a generator are let in for those that take them, if there are any.
        items = [m for m in group.members if isinstance(m.plan.node, ItemsNode)]
        group.is_taken = len(items) < len(group.tree)
        within = {*group.tree}
        tasks = within - {*items} if len(items) < len(group.members) else within
        ancestors = {*group.members[0].ancestors} if group.members else set[Group]()
        for mapped in group.members:
            if mapped in tasks and all(taking.of not in tasks for taking in mapped.taking):
                group.first.append(mapped)
            for taking in mapped.taking:
                if taking.of is None or taking.is_listed or taking.gathers is not None:
                    continue
                if taking.of.ancestors[-1] not in ancestors:
                    group.foreign.append(taking)
        group.leads_to = [
            child
            for child in group.children
            if not any(self.openers.get(part) in within for part in child.awaits)
        ]
        group.room = 2 * self._limit
        if any(axis in self.rows_of_items for axis in parts_of(group.axis)):
            group.room = MOST_IN_FLIGHT if self._limit == math.inf else self._limit
            group.room = group.room if group.is_taken else math.inf
        elif group.depth == 1:
            keys = [key for key in lists_of(group.axis) if key in self._sources]
            windows = [self._sources[key].window for key in keys]
            rooms = [math.inf if window is None else window for window in windows]
            group.room = min(rooms, default=group.room)

    def _drop_when_ended(self) -> None:
        """Say which values are dropped when a position has ended: those of no later use."""
        readers: dict[str, list[Mapped]] = {}
        depths: dict[str, set[int]] = {}
        for mapped in self.mapped.values():
            for taking in mapped.taking:
                readers.setdefault(taking.key, []).append(mapped)
            # How an element has ended says whether a list of it will come, if that is not there.
            awaited = {axis for group in mapped.ancestors for axis in group.awaits}
            for axis in awaited & self.openers.keys():
                readers.setdefault(self.openers[axis].keys[0], []).append(mapped)
        for mapped in self.mapped.values():
            for depth, gathers in mapped.gathers.items():
                for key in gathers.values:
                    depths.setdefault(key, set()).add(depth)
        for group in reversed(self.groups):  # those within others first
            for mapped in group.held:
                self._drop_of(group, mapped, readers, depths)

    def _drop_of(
        self,
        group: Group,
        mapped: Mapped,
        readers: Mapping[str, Iterable[Mapped]],
        depths: Mapping[str, Iterable[int]],
    ) -> None:
        keys, node = mapped.keys, mapped.plan.node
        # Of a generator, the items too.
        taken = {*keys, *node.outputs, f"{node.task_name}{FAILURES}"}
        passes = [group]
        for reader in (reader for key in taken for reader in readers.get(key, ())):
            found = reader.holders[group.depth - 1] if len(reader.holders) >= group.depth else None
            if found is None or not self._are_at_the_same_positions(group, found):
                return
            if found not in passes:
                passes.append(found)
        droppings: list[Dropping] = []
        if len(passes) > 1 and not group.is_taken:  # items end before others are let in
            passes.remove(group)
            droppings.append(left := Dropping(passes))
            group.left.append(left)
        droppings.append(Dropping.of(passes))
        within = [g for g in mapped.ancestors if g.depth > group.depth]
        cells = [d.ended for g in within for d in g.drops if d.is_shared and mapped in d.nodes]
        cells += [c for depth, c in mapped.failures.items() if depth >= group.depth]
        for gathers in (g for depth, g in mapped.gathers.items() if depth >= group.depth):
            cells += gathers.values.values()
        listed = set[int]() if self._lists_at is None else {self._lists_at}
        for key in keys:
            wanted = {*depths.get(key, ()), *listed, *((0,) if key in self._plan.gathered else ())}
            if min(wanted, default=group.depth) >= group.depth:
                cells.append(self.cells[key])
        if min(listed, default=-1) >= group.depth and self.returned[node] not in cells:
            cells.append(self.returned[node])
        for dropping in droppings:
            dropping.nodes.append(mapped)
            dropping.cells += cells

    def _are_at_the_same_positions(self, group: Group, other: Group) -> bool:
        """Whether a position has the same number in both. The other may take lists together."""
        own, others = (self._plan.groups[each.number].axes for each in (group, other))
        return len(own) == len(others) and all(map(is_within, own, others))
