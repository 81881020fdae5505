"""The values that the elements of a mapped node give, by the paths of the elements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from taskiq_flow.dataflow.axes import Path
from taskiq_flow.events import NodeFailure, NodeSkipped

ABSENT: Final = object()
"""There is no value at a path."""

_Row = dict[int, Any]
"""Values by position, or further rows."""


class Cells:
    """Values at paths of one length, as rows within rows.

    ``root``: the outermost row; empty if there are no values. A list within which nothing is left
    stays an empty row until its place is dropped.
    """

    __slots__ = ("root",)

    def __init__(self) -> None:
        self.root: _Row = {}

    def open(self, path: Path) -> None:
        """There is a row at a path, perhaps without any values."""
        row = self.root
        for index in path:
            row = row.setdefault(index, {})

    def put(self, path: Path, value: Any) -> None:
        """Set the value at a path; at a shorter one, in place of a row."""
        row = self.root
        for index in path[:-1]:
            row = row.setdefault(index, {})
        row[path[-1]] = value

    def get(self, path: Path) -> Any:
        """The value at a path, or ``ABSENT``."""
        row: Any = self.root
        for index in path:
            row = row.get(index, ABSENT)
            if row is ABSENT:
                break
        return row

    def around(self, path: Path) -> Any:
        """The value at a path, or one that stands in the place of a row around it."""
        return self.get(self.place_of(path))

    def place_of(self, path: Path) -> Path:
        """A path, or the beginning of it at which a value stands in the place of a row."""
        row: Any = self.root
        for depth, index in enumerate(path):
            if not isinstance(row, dict):
                return path if row is ABSENT else path[:depth]
            row = row.get(index, ABSENT)
        return path

    def drop(self, path: Path) -> None:
        """Drop the value at a path, or all values within it."""
        row: Any = self.root
        for index in path[:-1]:
            row = row.get(index)
            if not isinstance(row, dict):
                return
        row.pop(path[-1], None)

    def items_within(self, path: Path, depth: int) -> Iterator[tuple[Path, Any]]:
        """The values within a path, in order, with their paths of this length or a shorter one."""
        found = self.get(path)
        if isinstance(found, dict) and len(path) < depth:
            for rest, value in _items(found, depth - len(path)):
                yield (*path, *rest), value
        elif found is not ABSENT:
            yield path, found

    def lists(self, within: Path, sizes: Sequence[int], *, joins: bool = False) -> list[Any]:
        """The values within a path as lists within lists.

        ``sizes``: how many positions of the paths make one level of lists. ``joins``: whether the
        values are lists themselves, and are joined on the last level.
        """
        row = self.get(within)
        return [] if row is ABSENT else _lists(row, sizes, joins=joins)

    def merged(self, other: Cells, depth: int) -> Cells:
        """These values, and those of ``other``, which may stand in the place of whole rows."""
        cells = Cells()
        cells.root = _merged(self.root, other.root, depth)
        return cells


def _items(row: _Row, depth: int) -> Iterator[tuple[Path, Any]]:
    for index in sorted(row):
        if depth == 1 or not isinstance(row[index], dict):
            yield (index,), row[index]
        else:
            for path, value in _items(row[index], depth - 1):
                yield (index, *path), value


def _lists(row: _Row, sizes: Sequence[int], *, joins: bool) -> list[Any]:
    size, *further = sizes
    values = [row[index] for index in sorted(row)]
    for _ in range(size - 1):
        values = [inner for value in values for inner in _spread(value)]
    if further:
        return [
            _lists(value, further, joins=joins) if isinstance(value, dict) else value
            for value in values
        ]
    if not joins:
        return values
    return [part for value in values for part in (value if _is_joined(value) else [value])]


def _spread(value: Any) -> list[Any]:
    """The values of a row; what stands in place of a row stands for itself."""
    return [value[index] for index in sorted(value)] if isinstance(value, dict) else [value]


def _is_joined(value: Any) -> bool:
    """Whether a value is a list that is joined with others, not a failure in its place."""
    return not isinstance(value, (NodeFailure, NodeSkipped))


def _merged(row: _Row, other: _Row, depth: int) -> _Row:
    merged = {**row, **other}
    if depth > 1:
        for index in row.keys() & other.keys():
            if isinstance(other[index], dict):
                merged[index] = _merged(row[index], other[index], depth - 1)
    return merged
