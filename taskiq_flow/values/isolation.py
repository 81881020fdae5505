"""Values for tasks and readers in one process: each taker gets an object of its own.

Only plain data is copied: containers of Python's own types, dataclasses, attrs classes and models,
nested. NumPy arrays become views that cannot be written to, as in Ray; tables become lazy copies.
Immutable values and objects of any other type are handed on as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from taskiq_flow.errors import SerializationError
from taskiq_flow.values.copying import COPY, Copies, DetachedCopies, copy_other, flat_copy
from taskiq_flow.values.inspection import NEVER_CHANGE, changed_meanwhile, type_name

Sharing = Literal["isolated", "shared", "encoded"]
"""``"isolated"``: each taker of a value has its own. ``"shared"``: all have the same object.
``"encoded"``: each taker is given what the codec makes of it, as if it were elsewhere."""

Take: TypeAlias = Callable[[Any], Any]
"""Makes of a value what one of its takers is given."""


def shared(value: Any) -> Any:
    """The value itself."""
    return value


def isolated(value: Any) -> Any:
    """What one taker of a value is given.

    Raises ``SerializationError`` for a value that can be read once only (an iterator, a coroutine),
    alone or within another one, and for one that is nested more deeply than Python's recursion.
    """
    return value if type(value) in NEVER_CHANGE else _own(value, Copies())


def detached(value: Any) -> Any:
    """What is taken of a value that its owner goes on to change: arrays are copied as well.

    Raises as ``isolated`` does.
    """
    return value if type(value) in NEVER_CHANGE else _own(value, DetachedCopies())


def detaching(take: Take) -> Take:
    """``take``, for values that their owner goes on to change, as the items of a generator."""
    return detached if isinstance(take, Isolation) else take


def _own(value: Any, copies: Copies) -> Any:
    kind = type(value)
    try:
        return (COPY.get(kind) or copy_other(kind))(value, copies)
    except RecursionError:
        raise SerializationError(
            f"a {type_name(value)} is nested too deeply to be copied; flatten it, or give the "
            "engine values='shared'",
            value_type=type(value),
        ) from None
    except RuntimeError as error:
        raise changed_meanwhile(value, "copied", error) from error


class Isolation:
    """``isolated`` for the values of one run: a value with many takers is looked through once.

    It remembers how flat values are copied, of which no part can be changed: a tuple of numbers
    needs no copy, a list of numbers one of the list alone.
    """

    def __init__(self) -> None:
        self._flat: dict[int, tuple[Any, Take]] = {}  # by id; the value keeps its id from others

    def __call__(self, value: Any) -> Any:
        """What one taker of a value is given. Raises as ``isolated`` does."""
        kind = type(value)
        if kind in NEVER_CHANGE:
            return value
        if kind not in _MAY_BE_FLAT:
            return _own(value, Copies())
        known = self._flat.get(id(value))
        if known is not None and known[0] is value:
            return known[1](value)
        try:
            flat = flat_copy(value)
        except RuntimeError as error:
            raise changed_meanwhile(value, "copied", error) from error
        if flat is None:
            return isolated(value)
        if len(self._flat) == _REMEMBERED:
            del self._flat[next(iter(self._flat))]  # the oldest
        made, copy_of = flat
        self._flat[id(value)] = value, copy_of
        return made

    def kept(self, value: Any) -> Any:
        """As a call, for the run itself, which changes nothing: its copy is known to be flat.

        The value is not, if it comes once more: its owner may have changed it.
        """
        made = self(value)
        if (known := self._flat.pop(id(value), None)) is not None:
            self._flat[id(made)] = made, known[1]
        return made

    def forget(self, value: Any) -> None:
        """A task has returned this value, and may have changed it since it was looked through."""
        if self._flat and type(value) is not tuple:
            self._flat.pop(id(value), None)

    def forget_all(self) -> None:
        """The run is over."""
        self._flat.clear()

    def is_flat(self, value: Any) -> bool:
        """Whether this value was found to be flat."""
        known = self._flat.get(id(value))
        return known is not None and known[0] is value


_MAY_BE_FLAT = frozenset({list, tuple, dict})

_REMEMBERED = 32
"""How many values an ``Isolation`` remembers, and holds for so long."""
