"""Axes: rows of positions that mapped nodes share, and the places of elements along them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import TypeAlias, Union

Path: TypeAlias = tuple[int, ...]
"""The place of an element: its position along each axis of its node."""

Axis: TypeAlias = Union[tuple[str, int], "frozenset[Axis]"]
"""The positions of a list: its key, and how deep within the key's value it lies, from 1 on. Or the
axes that are taken together, by position."""

Levels: TypeAlias = tuple[tuple[Axis, ...], ...]
"""The axes of a key by level of its lists. Where lists are joined, one level has several axes."""

Places: TypeAlias = dict[Axis, tuple[int, ...]]
"""By the axis of a list: the positions of a path that make the place of the list."""

_ELEMENT = re.compile(r"(.*)\[(\d+(?:,\d+)*)\]", re.DOTALL)


def element_name(name: str, path: Path) -> str:
    """The name of a node's element at a path; of the node itself, without any position."""
    if len(path) == 1:  # most are, and each element asks
        return f"{name}[{path[0]}]"
    return f"{name}[{','.join(map(str, path))}]" if path else name


def parted(name: str) -> tuple[str, Path]:
    """The node and the path of an element of this name; no path for a name that is no element's."""
    found = _ELEMENT.fullmatch(name)
    return (found[1], tuple(map(int, found[2].split(",")))) if found else (name, ())


def node_name(name: str) -> str:
    """The name of the node to which an element's name belongs; other names are their own."""
    found = _ELEMENT.fullmatch(name)
    return found[1] if found else name


def projection(at: tuple[int, ...]) -> Callable[[Path], Path]:
    """What makes of a path one of these positions of it."""
    count = len(at)
    if at == tuple(range(count)):
        return itemgetter(slice(count))
    return itemgetter(slice(at[0], at[0] + 1)) if count == 1 else itemgetter(*at)


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


def index_of(axis: Axis, axes: Sequence[Axis]) -> int:
    """Which of the axes is this one, or takes it together with others."""
    return next(index for index, other in enumerate(axes) if is_within(axis, other))


def is_within(axis: Axis, other: Axis) -> bool:
    """Whether an axis is the other one, or is taken together with others there."""
    if axis == other:
        return True
    return isinstance(other, frozenset) and any(is_within(axis, part) for part in other)


def zip_of(axes: Collection[Axis]) -> Axis:
    """The axis of positions that all of these have."""
    outer = [a for a in axes if not any(a != other and is_within(a, other) for other in axes)]
    return outer[0] if len(outer) == 1 else frozenset(outer)
