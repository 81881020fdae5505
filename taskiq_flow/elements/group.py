"""The mapped nodes of a group, and what is known of their elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeAlias

from taskiq_flow.dataflow.axes import (
    Axis,
    Path,
    projection,
)
from taskiq_flow.dataflow.element_plan import GroupPlan, MappedNode, Taken
from taskiq_flow.dataflow.items import ItemsNode
from taskiq_flow.dataflow.ready_set import Gate
from taskiq_flow.dataflow.rows import Row, Zipped
from taskiq_flow.elements.cells import ABSENT, Cells
from taskiq_flow.elements.element import Element, Gathering

MOST_OPEN = 8
"""How many elements of a generator may be open at once, if its node does not say."""


class Within:
    """Counts the elements of a node within a path that have ended, or the lists of them."""

    __slots__ = ("ended", "has_failures", "is_known", "row", "uneven")

    def __init__(self, row: Row | Zipped) -> None:
        self.row = row
        self.ended = 0
        self.has_failures = False
        self.is_known = False
        self.uneven: Zipped | None = None  # lists that differ in length, at this place


class Gathers:
    """The elements of a node that are taken together at paths of one length.

    ``values``: by key, what was gathered. ``outcomes``: by path, of those that have ended.
    """

    __slots__ = ("outcomes", "pending", "values")

    def __init__(self) -> None:
        self.values: dict[str, Cells] = {}
        self.pending: dict[Path, Gathering] = {}
        self.outcomes = Cells()


class Taking:
    """How a mapped node of this run takes a key that it maps over.

    ``at``: which positions of an element's path lead to the value. ``project``: makes of the path
    the place of the value. ``value_at``: gives the value at such a place, or ``ABSENT``. ``row``:
    by position, the values of the one axis of elements that are taken one by one, if it is one.
    """

    __slots__ = (
        "at",
        "axis",
        "failures",
        "gathers",
        "is_listed",
        "key",
        "of",
        "project",
        "row",
        "value_at",
    )

    def __init__(self, taken: Taken, of: Mapped | None) -> None:
        self.key = taken.key
        self.of = of
        self.axis = taken.axis
        self.is_listed = taken.is_listed
        self.at = taken.at
        self.project = projection(taken.at)
        self.value_at: Callable[[Path], Any]
        self.row: dict[int, Any] | None = None
        self.gathers: Gathers | None = None
        self.failures: Cells | None = None
        if of is not None and len(taken.at) < taken.own:
            self.gathers = of.gathers.setdefault(len(taken.at), Gathers())
        if of is not None and taken.is_failures:
            self.failures = of.failures.setdefault(len(taken.at), Cells())
        elif self.gathers is not None:
            self.gathers.values.setdefault(taken.key, Cells())


class Mapped:
    """A mapped node in this run.

    ``linked``: the keys that it takes of elements of other nodes, for which its own elements wait;
    ``beside``: the nodes of which it takes the element at its own path, and waits for that;
    ``follows``: the only one of these, if its elements wait for nothing else.
    ``waits``: whether its elements wait for anything.
    ``ended``: the outcomes of what has ended before any of its elements is there: a node that gave
    a list that it maps over has completed, and a rule such as ``"any"`` counts it. ``is_given``:
    whether its elements have no task, but are given their values. ``gives_items``: whether each of
    them gives a row of items while it runs. ``lists``: the keys that its elements give as lists,
    which are mapped over or joined.
    ``row``: by position, the values of its one output key, if it has one axis and nothing is to be
    done but to keep them. ``takes_row``: by position, the values that its elements take, if they
    take one and no more.
    ``pending``: its elements that have not ended, by path.
    ``outcomes``: how others ended, for those that did not complete, and paths that lead to no list.
    ``within``: what has ended, by the paths that are still open. ``gathers``: by the length of
    paths. ``failures``: by the length of the paths at which they are taken. ``keys``: that its
    elements give; ``opens``: the axes of lists that these are. ``ancestors``: the groups of its
    axes, from the outermost on; ``holders``: those of them that count it, and ``None`` for the
    others. ``is_dead``: whether its outermost lists will never be there. ``lists_behind``: of many
    runs, the nodes whose lists end behind its elements or lists.
    """

    def __init__(self, plan: MappedNode, priority: float, items: ItemsNode | None) -> None:
        node = plan.node
        self.plan = plan
        limit = node.max_parallel
        if limit is None and items is not None:
            limit = MOST_OPEN
        self.gate = None if limit is None else Gate(limit)
        self.keys = node.outputs if items is None else [items.given_key]
        self.priority = priority
        self.is_given = node.given_key is not None
        self.gives_items = items is not None
        self.taking: list[Taking] = []
        self.linked: list[Taking] = []
        self.beside: list[Mapped] = []
        self.follows: Mapped | None = None
        self.waits = True
        self.ended: list[int] = []
        self.lists: list[str] = []
        self.row: dict[int, Any] | None = None
        self.takes_row: dict[int, Any] | None = None
        self.pending: dict[Path, Element] = {}
        self.outcomes = Cells()
        self.within: dict[Path, Within] = {}
        self.gathers: dict[int, Gathers] = {}
        self.failures: dict[int, Cells] = {}
        self.opens: list[Axis] = []
        self.ancestors: list[Group] = []
        self.holders: list[Group | None] = []
        self.is_open = False
        self.is_dead = False
        self.lists_behind: list[Mapped] = []

    def link(self) -> None:
        """Find out for what its elements wait, of the keys that it takes."""
        for taking in self.taking:
            if taking.of is None or taking.is_listed:
                continue
            if taking.gathers is None and taking.at == tuple(range(len(self.plan.axes))):
                self.beside.append(taking.of)
            else:
                self.linked.append(taking)
        others = {*self.beside}
        waits_else = self.linked or self.plan.whole or self.gate or self.plan.node.join != "all"
        if len(others) == 1 and not waits_else:
            self.follows = self.beside[0]
        self.waits = bool(others or waits_else)

    def row_of(self, cells: Cells) -> dict[int, Any] | None:
        """The row in which its values are kept, if these are values of one key and no more.

        ``cells``: of the values that its tasks return.
        """
        node = self.plan.node
        is_split = self.is_given and not isinstance(node, ItemsNode)
        is_more = is_split or self.lists or node.is_generator or node.output is None
        return None if is_more or len(self.plan.axes) > 1 else cells.root


class Cursor:
    """Which positions of a list a group has let in."""

    __slots__ = ("next", "prefix", "row")

    def __init__(self, prefix: Path, row: Row | Zipped) -> None:
        self.prefix = prefix
        self.row = row
        self.next = 0


class Dropping:
    """The values that nodes have at a position. They are dropped when it has ended in some groups.

    ``groups``: the nodes' own, and others whose nodes take their values, later or together with
    those of other lists. ``is_shared``: whether there are several.
    """

    __slots__ = ("cells", "ended", "groups", "is_shared", "nodes")

    def __init__(self, groups: Sequence[Group]) -> None:
        self.nodes: list[Mapped] = []
        self.cells: list[Cells] = []
        self.ended = Cells()  # by path: in how many of the groups, if not in all
        self.groups = groups
        self.is_shared = len(groups) > 1

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Dropping:
        """What is dropped when a position has ended in all of these groups."""
        if len(groups) == 1:
            for dropping in groups[0].drops:
                if not dropping.is_shared:
                    return dropping
        dropping = cls(groups)
        for group in groups:
            group.drops.append(dropping)
        return dropping

    def is_due(self, path: Path, lets_in: LetsIn) -> bool:
        """A position has ended in one more of several groups. Whether it was the last one."""
        before = self.ended.get(path)
        ended = 1 if before is ABSENT else before + 1
        if ended < len(self.groups) and ended < self._let_in(path, lets_in):
            self.ended.put(path, ended)
            return False
        self.ended.drop(path)
        return True

    def due(self, prefix: Path, depth: int, lets_in: LetsIn) -> list[Path]:
        """The positions within a path that have ended wherever they are let in."""
        ended = [*self.ended.items_within(prefix, depth)]
        found = [path for path, count in ended if count >= self._let_in(path, lets_in)]
        for path in found:
            self.ended.drop(path)
        return found

    def _let_in(self, path: Path, lets_in: LetsIn) -> int:
        """In how many of the groups a position has been let in, or still may be."""
        groups = self.groups
        return sum(not group.leaves_some or lets_in(group, path) for group in groups)


LetsIn: TypeAlias = Callable[["Group", Path], bool]
"""Whether a group has let in a position that another one has, or still may."""


class Group:
    """Mapped nodes whose elements are let in together.

    ``leads_to``: the groups within it whose lists are none that its nodes give. ``tree``: its nodes
    and those of the groups within it. ``held``: of these, the nodes that are counted before a
    position is forgotten. ``first``: the nodes that take nothing that another node of the tree
    gives. ``is_taken``: whether there are others than those that stand for the items of a
    generator. ``foreign``: how elements of other groups are taken, which have to be let in before.
    ``room``: how many positions may be alive. ``alive``: by path, the nodes of ``held`` that have
    not ended. ``cursors``: those that are not at their end; ``root``: of the outermost list.
    ``sources``: keys whose values are dropped with its positions. ``leaves_some``: whether it never
    lets in some positions of a list that others may; ``left``: values of its nodes that are dropped
    with the positions of others, but at those that none of them lets in. ``let_in``: how many
    positions.
    ``last_from``: a number of these before which it is known that those left are not the last ones.
    ``items``: the groups that let in the items of generators, of which this one reads the rows.
    ``parked``: the positions of its parent at which its lists are not there yet.
    ``fixed_by``: how many positions of its parent fix its lists.
    ``rows``: the axes of lists that are dropped with its positions;
    ``rows_within``: of those that are at places within these. ``failed``: the positions of an
    outermost list at which something has failed. ``passed_over``: those at which all has ended
    before, and of which nobody needs anything. ``lists``: of many runs, the nodes that have a list
    at each position, with how many others it ends behind.
    """

    def __init__(self, number: int, plan: GroupPlan, members: Sequence[Mapped]) -> None:
        self.number = number
        self.axis = plan.axes[-1]
        self.depth = len(plan.axes)
        self.members = members
        self.places = {part: projection(at) for part, at in plan.places.items()}
        self.awaits = {part: projection(at) for part, at in {**plan.needs, **plan.places}.items()}
        self.straight = {
            part for part, at in plan.places.items() if at == tuple(range(self.depth - 1))
        }
        self.fixed_by = max((at[-1] + 1 for at in plan.places.values() if at), default=0)
        self.parked: set[Path] = set()
        self.rows: list[Axis] = []
        self.rows_within: list[Axis] = []
        self.is_taken = True
        self.parent: Group | None = None
        self.children: list[Group] = []
        self.leads_to: list[Group] = []
        self.tree: list[Mapped] = []
        self.held: list[Mapped] = list(members)
        self.first: list[Mapped] = []
        self.foreign: list[Taking] = []
        self.room = math.inf
        self.sources: list[tuple[str, Dropping]] = []
        self.drops: list[Dropping] = []
        self.leaves_some = False
        self.left: list[Dropping] = []
        self.failed: set[Path] = set()
        self.passed_over: Collection[int] = ()
        self.lists: list[tuple[Mapped, int]] = []
        self.cursors: dict[Path, Cursor] = {}
        self.root: Cursor | None = None
        self.let_in = 0
        self.last_from = 0.0
        self.items: list[Group] = []
        self.alive: dict[Path, set[Mapped]] = {}

    def with_outer(self) -> Iterator[Group]:
        """This group, and those around it, from the inside out."""
        group: Group | None = self
        while group is not None:
            yield group
            group = group.parent

    def has_let_in(self, path: Path) -> bool:
        """Whether a position that there is has been let in."""
        prefix = path[:-1]
        if self.parent is None:
            return self.root is not None and path[-1] < self.root.next
        if not self.parent.has_let_in(prefix):
            return False
        cursor = self.cursors.get(prefix)
        if cursor is not None:
            return path[-1] < cursor.next
        return prefix not in self.parked

    def never_reads(self, prefix: Path) -> bool:
        """Whether it reads no list at a position of its parent any more, and never will."""
        if self.parent is None:
            return self.root is None and all(mapped.is_dead for mapped in self.tree)
        if self.parent.has_let_in(prefix):
            return prefix not in self.parked and prefix not in self.cursors
        return self.parent.never_lets_in(prefix)

    def never_lets_in(self, path: Path) -> bool:
        """Whether a position that was not let in never will be, as a shorter list has ended."""
        if path[:-1] in self.cursors:
            return False
        return self.root is not None or self.never_reads(path[:-1])
