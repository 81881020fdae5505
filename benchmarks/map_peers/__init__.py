"""Other systems that map three functions in a chain, each in the way its documentation shows.

Every one of them is optional: a system that is not installed is named as such and left out.
"""

from __future__ import annotations

from typing import Protocol

from benchmarks.optional import installed_of
from benchmarks.sleeps import Sleeps, Taken

NAMES = ("pipefunc", "dask_threaded", "dask_distributed", "langgraph", "prefect")


class MapPeer(Protocol):
    """One system."""

    title: str
    """Its name and the call that is measured."""

    most_items: int
    """With more, it takes minutes."""

    async def take(self, sleeps: Sleeps) -> Taken:
        """Send all items through the stages. What a user does once for many runs is not timed."""


def installed(names: tuple[str, ...] = NAMES) -> tuple[list[MapPeer], list[str]]:
    """The peers that can be imported, and the names of those that cannot."""
    return installed_of(__name__, names)
