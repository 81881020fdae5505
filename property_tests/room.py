"""Checks of a run from within: elements that exist at once, leads of generators, what is left.

No reader and no task sees these: a run that holds too much gives the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from taskiq_flow.dataflow.axes import is_within, lists_of
from taskiq_flow.elements.element import Element
from taskiq_flow.elements.elements import Elements
from taskiq_flow.elements.generator_items import GeneratorItems
from taskiq_flow.elements.group import Cursor, Group, Mapped
from taskiq_flow.engine.mapped_nodes import MappedNodes
from taskiq_flow.engine.run_spec import Items

UNLIMITED = 256
"""How many elements of a list without a length may exist where the engine has no limit."""


@contextmanager
def room_is_kept(limit: int | None, items: Items) -> Iterator[None]:
    """Check each position that is let in, each item that is made, and what complete runs hold."""
    let_in, take, forget = Elements._let_in, GeneratorItems.take, MappedNodes.forget

    def let_in_and_check(elements: Elements, group: Group, cursor: Cursor) -> None:
        let_in(elements, group, cursor)
        check_alive(elements, group, limit)

    def take_and_check(generators: GeneratorItems, node: Any, given: Any) -> None:
        take(generators, node, given)
        check_lead(generators, node, limit)

    def check_and_forget(mapped: MappedNodes) -> None:
        if not mapped._ready.unfinished:
            check_rest(mapped, items)
        forget(mapped)

    with (
        patch.object(Elements, "_let_in", let_in_and_check),
        patch.object(GeneratorItems, "take", take_and_check),
        patch.object(MappedNodes, "forget", check_and_forget),
    ):
        yield


def check_alive(elements: Elements, group: Group, limit: int | None) -> None:
    """No more positions are alive than there is room for."""
    lists = lists_of(group.axis)
    is_read = group.depth == 1 and any(key in elements._lists.sources for key in lists)
    if is_read or (group.items and group.is_taken):
        assert len(group.alive) <= (limit or UNLIMITED)
    elif limit is not None and group.is_taken:
        assert len(group.alive) <= 2 * limit


def check_lead(generators: GeneratorItems, node: Any, limit: int | None) -> None:
    """A generator is no more than its window and the room ahead of those that take its items."""
    growing, path = generators._growing_row(node)
    for group in growing._bounding:
        lead = growing.rows[path].known - growing._let_in(group, path)
        assert lead <= growing.node.window + (limit or UNLIMITED)


def check_rest(mapped: MappedNodes, items: Items) -> None:
    """Plain nodes and gathered values are all that is held."""
    elements = mapped._elements
    assert not any(isinstance(node, Element) for node in mapped._ready._state)
    assert not any(group.alive for group in elements._groups)
    for each in elements._mapped.values():
        assert not each.pending
        assert not any(gathers.pending for gathers in each.gathers.values())
        for key in each.keys if items == "only" else ():
            if key not in mapped._plan.gathered and is_taken_along(elements, each, key):
                assert is_empty(mapped._values._cells[key].root)


def is_empty(cells: Any) -> bool:
    """Whether cells hold no values. Lists within others may have had none, and leave their places.

    That is so where a later pass over both of their axes needs all of the one before.
    """
    return isinstance(cells, dict) and all(map(is_empty, cells.values()))


def is_taken_along(elements: Elements, giver: Mapped, key: str) -> bool:
    """Whether all that take a key, or the failures beside it, do so along the same axes.

    Perhaps together with those of other lists, which may be shorter or not there.
    """
    failures = f"{giver.plan.node.task_name}.failures"
    takings = [
        (other, taking)
        for other in elements._mapped.values()
        for taking in other.taking
        if taking.key in (key, failures)
    ]
    own = giver.plan.axes
    return not giver.opens and all(
        len(other.plan.axes) == len(own)
        and all(map(is_within, own, other.plan.axes))
        # What a later pass over both takes of several elements together stays until it has ended.
        and (taking.gathers is None or other.holders[len(taking.at) - 1] is not None)
        for other, taking in takings
    )
