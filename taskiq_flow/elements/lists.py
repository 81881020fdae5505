"""The lists that the mapped nodes of one run map over, as far as they are there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from taskiq_flow.dataflow.axes import Axis, Path
from taskiq_flow.dataflow.element_plan import ElementPlan
from taskiq_flow.dataflow.rows import Row, Source, Zipped, not_lists
from taskiq_flow.elements.group import Group
from taskiq_flow.errors import InputError, OutputShapeError
from taskiq_flow.values.isolation import Take, detaching


class Lists:
    """The rows of one run, by their axes and places.

    ``sources``: by key, the inputs of the run that are read while it goes on. ``take``: makes of
    such a value one that its source does not change any more.
    """

    def __init__(
        self,
        plan: ElementPlan,
        axes: Collection[Axis],
        sources: Mapping[str, Source],
        take: Take,
    ) -> None:
        self._plan = plan
        self._keys = plan.lists()
        self.sources = sources
        self.rows: dict[Axis, dict[Path, Row]] = {axis: {} for axis in axes}
        for key, source in sources.items():
            self.rows[key, 1][()] = Row.of_source(source, detaching(take))

    def row(self, axis: Axis, at: Path) -> Row | None:
        """The list of an axis at a path; ``None`` if it is not there."""
        rows = self.rows[axis]
        row = rows.get(at)
        if row is None and isinstance(axis, tuple) and axis[1] > 1:
            around = self.row((axis[0], axis[1] - 1), at[:-1])
            if around is not None:
                row = rows[at] = Row(around[at[-1]])
        return row

    def row_of(self, group: Group, prefix: Path) -> Row | Zipped | None:
        """What a group reads at a position of its parent; ``None`` if it is not there."""
        found = [(axis, self.row(axis, place(prefix))) for axis, place in group.places.items()]
        rows = [(axis[0], row) for axis, row in found if row and isinstance(axis, tuple)]
        if len(rows) < len(found):
            return None
        return rows[0][1] if len(rows) == 1 else Zipped(rows)

    def value(self, axis: Axis, path: Path) -> Any:
        """The value of an axis at a path. Raises ``KeyError`` if its list is not there."""
        row = self.row(axis, path[:-1])
        if row is None:
            raise KeyError(axis)
        return row[path[-1]]

    def check(self, values: Mapping[str, Any], keys: Iterable[str], of: Any) -> None:
        """Store the lists that are mapped over, of the values that a node gives under these keys.

        Raises ``OutputShapeError`` if one cannot be mapped over.
        """
        for key in keys:
            if key in self._keys:
                self.check_value(key, values[key], of)
                self.rows[key, 1][()] = Row(values[key])

    def check_value(self, key: str, value: Any, of: Any) -> None:
        """Raises ``OutputShapeError`` if a node gives what cannot be mapped over as it is."""
        depth = self._plan.depths.get(key, 0)
        for found in not_lists(value, depth) if depth else ():
            what = f"gives {key!r} as a {type(found).__name__}, and it is mapped over"
            if found is not value:
                what = (
                    f"gives {key!r}, which is mapped over {depth} levels deep, and one of its "
                    f"lists is a {type(found).__name__}"
                )
            elif (key, 1) not in self.rows:
                what = f"has flatten=True and gives {key!r} as a {type(found).__name__}"
            remedy = "a list" if depth == 1 else "lists of lists"
            raise OutputShapeError(
                f"node {of.task_name!r} {what}; return {remedy}", task_name=of.task_name
            )

    def put(self, key: str, path: Path, value: Any) -> None:
        """An element has given a value, which is a list if its key is mapped over."""
        if (key, 1) in self.rows:
            self.rows[key, 1][path] = Row(value)

    def take_inputs(self, values: Mapping[str, Any]) -> None:
        """Store the lists that are mapped over, of the inputs of the run."""
        for key in self._keys:
            if key in values:
                self.rows[key, 1][()] = Row(values[key])

    def source(self, key: str) -> Row:
        """The values of a source, as far as they were read."""
        return self.rows[key, 1][()]

    def source_error(self, key: str, value: Any) -> InputError | None:
        """The error of a source's value that lacks lists within it which are mapped over.

        ``None`` if it has them.
        """
        depth = self._plan.depths.get(key, 0) - 1
        for found in not_lists(value, depth) if depth > 0 else ():
            return InputError(
                f"the run was given {key!r}, whose values are mapped over, and one of them has a "
                f"{type(found).__name__}; give it lists",
                keys=[key],
            )
        return None

    def close(self) -> Iterable[Callable[[], None]]:
        """The functions that close sources. Each may raise whatever its generator raises."""
        return [self.source(key).close for key in self.sources]

    def forget(self) -> None:
        """Let go of the values of all lists. The run is over."""
        for rows in self.rows.values():
            for row in rows.values():
                row.forget()

    def drop_item(self, key: str, path: Path) -> None:
        """Drop an item of a generator from its row. It has become an element."""
        self.rows[key, 1][path[:-1]].drop(path[-1])

    def drop(self, group: Group, path: Path) -> None:
        """Drop the lists at a position of a group that nobody will ask for any more."""
        for axis in group.rows:
            self.rows[axis].pop(path, None)
        for axis in group.rows_within:
            rows = self.rows[axis]
            for at in [at for at in rows if at[: group.depth] == path]:
                del rows[at]
        for key, dropping in group.sources:
            if not dropping.is_shared or dropping.is_due(path, self.lets_in):
                self.source(key).drop(path[0])

    def drop_left(self, group: Group) -> None:
        """Drop the values of sources that this group never lets in, and others have done with."""
        for key, dropping in group.sources:
            for path in dropping.due((), 1, self.lets_in):
                self.source(key).drop(path[0])

    def lets_in(self, group: Group, path: Path) -> bool:
        """Whether a group has let in a position that another one has, or still may."""
        prefix = path[:-1]
        for axis in group.straight:  # others may be read at several places, less far at some
            row = self.rows[axis].get(prefix)
            if row is not None and group.number in row.left_by:
                return path[-1] < row.left_by[group.number]
        is_left = group.straight and group.never_reads(prefix)
        return bool(group.held) and not is_left
