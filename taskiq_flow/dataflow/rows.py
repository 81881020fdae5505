"""The lists that nodes map over, as far as they are known, and how a run reads them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence, Sized
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from taskiq_flow.errors import SerializationError
from taskiq_flow.values.isolation import Take, shared

MOST_IN_FLIGHT = 256
"""Elements of a source that may exist or be unread at once, where the engine has no limit."""

_NO_LISTS = (str, bytes, bytearray, memoryview, Mapping, AbstractSet)
"""Nobody maps over these on purpose."""


@dataclass(frozen=True, slots=True)
class Source:
    """An iterable, sync or async, that is read while the run goes on, perhaps without an end.

    ``window``: how many of its elements may exist or be unread at once; ``None`` for any number.
    """

    items: Iterable[Any] | AsyncIterable[Any]
    window: int | None


def as_source(value: Any, limit: int | None) -> Source | None:
    """What a run input is if it has no length, as generators have none; ``None`` for a list.

    ``limit``: how many nodes the engine has in flight at most.
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, (*_NO_LISTS, Sized)):
        return None
    if isinstance(value, (Iterable, AsyncIterable)):
        return Source(value, MOST_IN_FLIGHT if limit is None else limit)
    return None


def is_list(value: Any) -> bool:
    """Whether a node may map over a value: a list, a tuple or an array, not text or a mapping.

    Nor over a table, which would give the names of its columns, nor over what is read once.
    """
    if isinstance(value, (*_NO_LISTS, Iterator)) or hasattr(value, "columns"):
        return False
    try:
        iter(value)
    except TypeError:  # it is not iterable, as an array without dimensions is not
        return False
    return True


def not_lists(value: Any, depth: int) -> Iterator[Any]:
    """The parts of a value that are no lists, though it should have ``depth`` levels of these."""
    if not is_list(value):
        yield value
    elif depth > 1:
        for part in value:
            yield from not_lists(part, depth - 1)


class Row:
    """The values of one list by position. ``known``: how many there are so far.

    ``is_cut``: whether whoever gives it has failed, so that there are no more. ``left_by``: by the
    numbers of the groups that read it no further, though it may go on, how many they have read.
    """

    __slots__ = (
        "_items",
        "_iterator",
        "_take",
        "_values",
        "is_cut",
        "is_ended",
        "known",
        "left_by",
    )

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        self._values: dict[int, Any] | Sequence[Any] = {}
        if values is not None:  # what its owner could change later is taken as it is now
            self._values = values if isinstance(values, (tuple, range)) else list(values)
        self._items: Iterable[Any] | None = None
        self._iterator: Iterator[Any] | None = None
        self._take: Take = shared
        self.known = len(self._values)
        self.is_ended = values is not None
        self.is_cut = False
        self.left_by: dict[int, int] = {}

    @classmethod
    def of_source(cls, source: Source, take: Take) -> Row:
        """A row that grows. One of an async iterable grows by ``append``.

        ``take``: makes of a value one that its source does not change any more.
        """
        row = cls()
        row._take = take
        if not isinstance(source.items, AsyncIterable):
            row._items = source.items
        return row

    def __getitem__(self, index: int) -> Any:
        return self._values[index]

    def forget(self) -> None:
        """Let go of all values. Nobody asks for them any more."""
        self._values = {}

    @property
    def length(self) -> int | None:
        """How many values there are in all; ``None`` if that is not known yet."""
        return self.known if self.is_ended else None

    def read(self) -> bool:
        """Read one more value, if that takes no waiting. ``False`` if there is none.

        Raises whatever the iterable raises.
        """
        if self._items is None or self.is_ended:
            return False
        if self._iterator is None:
            self._iterator = iter(self._items)
        try:
            self.append(next(self._iterator))
        except StopIteration:
            self.is_ended = True
            return False
        return True

    def append(self, value: Any) -> None:
        """One more value of a source has come."""
        with contextlib.suppress(SerializationError):  # then its element fails, which is told
            value = self._take(value)
        if isinstance(self._values, dict):
            self._values[self.known] = value
        self.known += 1

    def drop(self, index: int) -> None:
        """Nobody will ask for a value any more. A list keeps it, as it was given whole."""
        if isinstance(self._values, dict):
            self._values.pop(index, None)

    def close(self) -> None:
        """Close the iterator if it is a generator. Raises whatever that raises."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


class Zipped:
    """Lists that are taken together by position. They end with the shortest.

    ``rows``: each with the key whose values are its elements.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: Iterable[tuple[str, Row]]) -> None:
        self.rows = tuple(rows)

    @property
    def known(self) -> int:
        """How many positions there are so far."""
        return min(row.known for _, row in self.rows)

    @property
    def length(self) -> int | None:
        """How many positions there are in all, once it is known which list is the shortest."""
        shortest = min((row.known for _, row in self.rows if row.is_ended), default=None)
        if shortest is None or any(
            not row.is_ended and row.known <= shortest for _, row in self.rows
        ):
            return None
        return shortest

    @property
    def is_cut(self) -> bool:
        """Whether the shortest list has ended because whoever gives it has failed."""
        length = self.length
        return any(row.is_cut and row.known == length for _, row in self.rows)

    @property
    def is_even(self) -> bool:
        """Whether all of the lists have the same length."""
        return len({row.length for _, row in self.rows}) == 1
