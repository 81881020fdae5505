"""The positions of a list at which all has ended, in the log and in a run that is resumed."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taskiq_flow.dataflow.axes import Path, element_name, parted
from taskiq_flow.journal.records import COMPLETED, FINISHED, REFERRED, SENT, Record, record

AT_ONCE = 64
"""Positions that are written with one record. A run that is killed loses the rest of them."""


class Positions(Collection[int]):
    """A set of positions, kept as ranges.

    >>> positions = Positions("0-2,5")
    >>> positions.add(3)
    >>> 3 in positions, 4 in positions, str(positions)
    (True, False, '0-3,5')
    """

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: str = "") -> None:
        """``ranges``: as ``str`` of another one gives them. Raises ``ValueError`` for others."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for each in ranges.split(",") if ranges else ():
            first, _, last = each.partition("-")
            for position in range(int(first), int(last or first) + 1):
                self.add(position)

    def add(self, position: int) -> None:
        """Add a position, which may be there already."""
        firsts, lasts = self._firsts, self._lasts
        at = bisect_right(firsts, position)
        if at and position <= lasts[at - 1]:
            return
        follows = at > 0 and lasts[at - 1] == position - 1
        precedes = at < len(firsts) and firsts[at] == position + 1
        if follows and precedes:
            lasts[at - 1] = lasts.pop(at)
            del firsts[at]
        elif follows:
            lasts[at - 1] = position
        elif precedes:
            firsts[at] = position
        else:
            firsts.insert(at, position)
            lasts.insert(at, position)

    def discard(self, position: int) -> None:
        """Remove a position, if it is there."""
        if position not in self:
            return
        at = bisect_right(self._firsts, position) - 1
        first, last = self._firsts.pop(at), self._lasts.pop(at)
        parts = [(first, position - 1), (position + 1, last)]
        parts = [part for part in parts if part[0] <= part[1]]
        self._firsts[at:at] = [part[0] for part in parts]
        self._lasts[at:at] = [part[1] for part in parts]

    def __contains__(self, position: object) -> bool:
        if not isinstance(position, int):
            return False
        at = bisect_right(self._firsts, position)
        return at > 0 and position <= self._lasts[at - 1]

    def __iter__(self) -> Iterator[int]:
        for first, last in zip(self._firsts, self._lasts, strict=True):
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Positions) and str(self) == str(other)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        ranges = zip(self._firsts, self._lasts, strict=True)
        return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in ranges)


class Finished(NamedTuple):
    """What a record says. ``name``: of the first of the nodes that have an element at a position.

    ``skipped``: by node, the positions at which its element was skipped by a condition.
    """

    name: str
    positions: Positions
    skipped: Mapping[str, Positions]

    @classmethod
    def at(cls, name: str, position: int, skipped: Iterable[str]) -> Finished:
        """One position."""
        return cls(name, Positions(str(position)), {n: Positions(str(position)) for n in skipped})

    def encoded(self, name: str = "") -> bytes:
        """The record. ``name``: that of the element, of one position."""
        content: dict[str, Any] = {} if name else {"at": str(self.positions)}
        if self.skipped:
            content["skipped"] = {node: str(at) for node, at in self.skipped.items()}
        return record(FINISHED, name or self.name, 0, json.dumps(content).encode())

    @classmethod
    def decoded(cls, entry: Record) -> Finished:
        """What a record says. Earlier versions wrote one without data for each of many inputs."""
        content = json.loads(entry.data) if entry.data else {}
        skipped = {node: Positions(at) for node, at in content.get("skipped", {}).items()}
        if (ranges := content.get("at")) is not None:
            return cls(entry.name, Positions(ranges), skipped)
        name, path = parted(entry.name)
        return cls(name, Positions(str(path[0])), skipped)


class FinishedRecords:
    """Makes records of positions that have ended, of many at once."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[Positions, dict[str, Positions]]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, name: str, position: int, skipped: Sequence[str]) -> bytes | None:
        """Add a position. Returns a record if it is time for one."""
        positions, all_skipped = self._pending.setdefault(name, (Positions(), {}))
        positions.add(position)
        for node in skipped:
            all_skipped.setdefault(node, Positions()).add(position)
        self._counts[name] += 1
        if self._counts[name] < AT_ONCE:
            return None
        del self._counts[name], self._pending[name]
        return Finished(name, positions, all_skipped).encoded()

    def rest(self) -> list[bytes]:
        """The records of all positions that are in none."""
        pending, self._pending = self._pending, {}
        self._counts.clear()
        return [Finished(name, *of).encoded() for name, of in pending.items()]


class PassedOver:
    """The positions that a resumed run passes over, as nobody takes their values any more.

    ``groups``: by the first of them, the nodes that have an element at each position; ``within``:
    by that node as well, those that have lists of elements there. ``positions``: which are passed
    over; ``skipped``: by node, at which of them its element was skipped by a condition.
    ``lacks_values``: whether values were left out which are asked for after all.
    """

    def __init__(
        self, groups: Mapping[str, Sequence[str]], within: Mapping[str, Sequence[str]]
    ) -> None:
        self._groups = groups
        self._outer = {node: name for name, nodes in within.items() for node in nodes}
        self._elements: dict[tuple[str, int], set[str]] = {}  # that lie within a position
        self._within: dict[tuple[str, int], list[Path]] = {}  # of those that are passed over
        self.positions: dict[str, Positions] = {}
        self.skipped: dict[str, Positions] = {}
        self.lacks_values = False

    @property
    def names(self) -> list[str]:
        """One element of each node that has some at these positions."""
        nodes = [n for name in self.positions for n in self._groups[name]]
        nodes += [node for node, name in self._outer.items() if name in self.positions]
        return [element_name(node, (0,)) for node in nodes]

    def note(self, entry: Record) -> None:
        """Note an element of a list within a position of which the log has something."""
        if self._outer and entry.kind in (SENT, COMPLETED, REFERRED):
            node, path = parted(entry.name)
            if path and (outer := self._outer.get(node)) is not None:
                self._elements.setdefault((outer, path[0]), set()).add(entry.name)

    def finish(self, finished: Finished) -> Iterator[str]:
        """Pass positions over. Yields the names of the elements there."""
        name = finished.name
        if (nodes := self._groups.get(name)) is None:
            return
        passed = self.positions.setdefault(name, Positions())
        for position in finished.positions:
            passed.add(position)
            for node in nodes:
                yield element_name(node, (position,))
            for element in self._elements.pop((name, position), ()):
                node, path = parted(element)
                self._within.setdefault((node, position), []).append(path)
                yield element
        for node, positions in finished.skipped.items():
            skipped = self.skipped.setdefault(node, Positions())
            for position in positions:
                skipped.add(position)

    def within(self, node: str, position: int) -> list[Path]:
        """The elements of a node of ``within`` at a position. They are forgotten then."""
        return sorted(self._within.pop((node, position), ()))

    def is_skipped(self, node: str, path: Path) -> bool:
        """Whether a condition skipped an element at a position that is passed over."""
        return path[0] in self.skipped.get(node, ())
