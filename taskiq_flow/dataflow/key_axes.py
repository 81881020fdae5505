"""The axes of keys, and those that a node has of the keys that it maps over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskiq_flow.dataflow.axes import Axis, Levels, Places, index_of, joined, parts_of, zip_of
from taskiq_flow.dataflow.element_plan import Taken
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.errors import GraphError


@dataclass(frozen=True, slots=True)
class Key:
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
class Factor:
    """Keys that a node takes together, and the levels that they add to those before.

    ``shared``: how many axes they have in common with the first factor.
    """

    keys: tuple[str, ...]
    levels: Levels
    shared: int


class KeyAxes:
    """Knows the axes of the keys of one graph, whose nodes are added in order.

    ``failed_nodes``: by the keys under which their failures are taken. ``depths``: by key, how many
    levels of lists within its values are mapped over.
    """

    def __init__(self, failed_nodes: Mapping[str, DAGNode]) -> None:
        self.depths: dict[str, int] = {}
        self.keys: dict[str, Key] = {}
        self._failed_nodes = failed_nodes
        self._around: dict[Axis, tuple[Axis, ...]] = {}  # by axis: those in which it lies

    def add(
        self, name: str, producer: DAGNode | None, own: tuple[Axis, ...], levels: Levels
    ) -> None:
        """A key that the elements of a node give. ``levels``: its own, and those of its lists."""
        self.keys[name] = Key(name, producer, own, levels)
        self._around[name, 1] = own

    def _key(self, name: str) -> Key:
        return self.keys.setdefault(name, Key(name))

    def factors(self, node: DAGNode) -> list[Factor]:
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
        factors = [Factor(tuple(node.factors[0]), levels, 0)]
        for keys, count, other in zip(node.factors[1:], shared, others, strict=True):
            further = _together(node, keys, other)[count:]
            factors.append(Factor(tuple(keys), further, len(joined(levels[:count]))))
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

    def taken(self, key: str, count: int, axes: Sequence[Axis]) -> Taken:
        """How elements along ``axes`` take so many levels of a key."""
        known = self._key(key)
        own = joined(known.first(count))
        at = tuple(index_of(axis, axes) for axis in own)
        is_failures = key in self._failed_nodes
        return Taken(key, at, len(known.own), own[-1], known.producer, is_failures)

    def places_of(self, axis: Axis, axes: Sequence[Axis]) -> Places:
        """The places of the lists of an axis that lies within others."""
        return {
            part: tuple(index_of(around, axes) for around in self._around.get(part, ()))
            for part in parts_of(axis)
            if isinstance(part, tuple)
        }


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
    keys = [key for factor in node.factors for key in factor]
    if len(set(keys)) < len(keys):  # as only the graphs around the node can have it
        return GraphError(
            f"node {node.task_name!r} multiplies with Product(...) what the graphs around it are "
            "mapped over one within the other, which it cannot then; do that outside of them"
        )
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
