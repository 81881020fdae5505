"""The mapped nodes that end together at the positions of an outermost list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from taskiq_flow.dataflow.element_plan import ElementPlan, GroupPlan, MappedNode
from taskiq_flow.dataflow.items import ItemsNode


@dataclass(frozen=True, slots=True)
class OuterGroup:
    """Nodes that have elements at the positions of an outermost list, and end there together.

    ``nodes``: the names of those with one element at a position; ``within``: of those with lists of
    elements there. ``is_closed``: whether no other node takes their values, nor those of their
    items. Then nobody but the reader asks for them when a position has ended.
    """

    nodes: tuple[str, ...]
    within: tuple[str, ...]
    is_closed: bool

    @property
    def name(self) -> str:
        """That of the first node, under which the journal has the positions."""
        return self.nodes[0]

    @property
    def all_nodes(self) -> tuple[str, ...]:
        """The names of all nodes."""
        return self.nodes + self.within


def outer_groups(plan: ElementPlan) -> list[OuterGroup]:
    """The groups of outermost lists that have nodes of their own."""
    return [
        _outer_group(plan, number, group)
        for number, group in enumerate(plan.groups)
        if group.parent is None and group.members
    ]


def _outer_group(plan: ElementPlan, number: int, group: GroupPlan) -> OuterGroup:
    inner = list(_within(plan, number))
    held = [member for each in inner if number in each.held_by for member in each.members]
    all_held = len(held) == sum(len(each.members) for each in inner)
    return OuterGroup(
        nodes=tuple(member.node.task_name for member in group.members),
        within=tuple(member.node.task_name for member in held),
        is_closed=all_held and _is_closed(plan, [*group.members, *held]),
    )


def _within(plan: ElementPlan, number: int) -> Iterator[GroupPlan]:
    for inner, group in enumerate(plan.groups):
        if group.parent == number:
            yield group
            yield from _within(plan, inner)


def _is_closed(plan: ElementPlan, members: list[MappedNode]) -> bool:
    nodes = {member.node for member in members}
    if any(isinstance(node, ItemsNode) or node in plan.generators for node in nodes):
        return False  # a generator that goes on is told of all of its earlier items
    if any(not plan.gathered.isdisjoint(node.outputs) for node in nodes):
        return False
    return all(
        taken.producer not in nodes or (mapped.node in nodes and taken.at[:1] == (0,))
        for mapped in plan.mapped.values()
        for taken in mapped.taken
    )
