"""A generator task that is called as a function, within other tasks or in tests.

taskiq awaits what the function of a task gives. The function of a generator task is wrapped so that
this gives a list, or sends the items; whoever else calls it gets its generator all the same.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

G = TypeVar("G")


class _Called(Generic[G]):
    """``awaited``: what awaiting it gives, made of the generator."""

    def __init__(self, items: G, awaited: Callable[[G], Awaitable[Any]]) -> None:
        self._items = items
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._awaited(self._items).__await__()


class CalledGenerator(_Called[Generator[Any, Any, Any]], Generator[Any, Any, Any]):
    """The generator, which may be awaited as well."""

    def send(self, value: Any) -> Any:
        """As that of the generator."""
        return self._items.send(value)

    def throw(self, *error: Any) -> Any:
        """As that of the generator."""
        return self._items.throw(*error)

    def close(self) -> None:
        """As that of the generator."""
        self._items.close()


class CalledAsyncGenerator(_Called[AsyncGenerator[Any, Any]], AsyncGenerator[Any, Any]):
    """The async generator, which may be awaited as well."""

    def __anext__(self) -> Any:
        """As that of the generator."""
        return self._items.__anext__()

    def asend(self, value: Any) -> Any:
        """As that of the generator."""
        return self._items.asend(value)

    def athrow(self, *error: Any) -> Any:
        """As that of the generator."""
        return self._items.athrow(*error)

    def aclose(self) -> Any:
        """As that of the generator."""
        return self._items.aclose()
