"""Limits how many elements of mapped nodes exist at once, and how far sources are read."""

from __future__ import annotations

import math
from typing import Any, Protocol

from taskiq_flow.dataflow.axes import lists_of
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.ready_set import ReadySet
from taskiq_flow.elements.group import Group
from taskiq_flow.elements.groups import Groups
from taskiq_flow.elements.lists import Lists


class Backlog(Protocol):
    """How far the reader of a run is behind."""

    def unread(self) -> int:
        """How many elements the reader has still to read, if they are yielded."""

    def ahead(self) -> int:
        """How many of many runs have ended, and wait for an earlier one to be read."""


class Room:
    """Says whether a group may let in one more position, and whether a source may be read on."""

    def __init__(
        self,
        plan: ElementPlan,
        groups: Groups,
        lists: Lists,
        ready: ReadySet[Any],
        backlog: Backlog,
    ) -> None:
        self._plan = plan
        self._groups = groups.groups
        self._roots = [group.number for group in groups.roots]
        self._lists = lists
        self._ready = ready
        self._backlog = backlog
        self._readers = {
            key: [n for n in self._roots if key in lists_of(self._groups[n].axis)]
            for key in lists.sources
        }
        self._read_together = {key: self._connected(key) for key in lists.sources}
        self.waits_for_reader = False
        """Whether there would be more room if the reader had read more."""
        self.lets_in_none = False
        """Whether it is known that no position may be let in: none could, and nothing has happened
        since but that elements have ended which make no room."""

    def has_room(self, key: str) -> bool:
        """Whether a source may be read further."""
        known = self._lists.source(key).known
        growing = {n for n in self._read_together[key] if self._may_grow(self._groups[n])}
        governing = [
            self._groups[n]
            for n in self._readers[key]
            if n in growing and not self._plan.groups[n].waits_for & growing
        ]
        return bool(governing) and all(
            self.has_room_for_one(group, known - (group.root.next if group.root else 0))
            for group in governing
        )

    def left(self, group: Group) -> float:
        """How many further positions may exist."""
        alive, unread = len(group.alive), self._unread(group)
        if group.depth == 1:
            alive += self._backlog.ahead()
        return group.room - alive - unread

    def has_room_for_one(self, group: Group, more: int = 0) -> bool:
        """Whether a further position may exist. ``more``: that are there and not let in."""
        if group.room == math.inf:
            return True
        alive = len(group.alive) + more
        if alive >= group.room:
            return False
        if group.depth == 1:
            alive += self._backlog.ahead()
        unread = self._unread(group)
        if alive < group.room <= alive + unread:
            self.waits_for_reader = True
        return alive + unread < group.room

    def _unread(self, group: Group) -> int:
        """How many unread elements take room of a group."""
        unread = self._backlog.unread()
        if unread and group.items:
            # What the reader lacks and this group has not let in takes none of its room.
            ahead = max(items.let_in for items in group.items) - group.let_in
            unread = max(0, unread - max(0, ahead))
        return unread

    def _connected(self, key: str) -> set[int]:
        """The numbers of the groups that read a source, or another that is zipped with it.

        One that waits for another of them says nothing about room: it would wait for itself.
        """
        found, keys = set[int](), {key}
        lists = {n: set(lists_of(self._groups[n].axis)) for n in self._roots}
        while True:
            more = {n for n, own in lists.items() if not keys.isdisjoint(own)}
            if more == found:
                return found
            found = more
            keys.update(other for n in found for other in lists[n])

    def _may_grow(self, group: Group) -> bool:
        """Whether further positions may come: its lists have not ended, or are not there yet."""
        if group.root is not None:
            return group.root.row.length is None
        return not all(mapped.is_dead for mapped in group.tree)
