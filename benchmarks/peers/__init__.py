"""Other systems running the same small graphs, each in the way its own documentation shows.

Every one of them is optional: a system that is not installed is named as such and left out.
"""

from __future__ import annotations

from benchmarks.optional import installed_of
from benchmarks.peers.protocol import Peer

NAMES = ("langgraph", "haystack", "dask_threaded", "dask_distributed")


def installed() -> tuple[list[Peer], list[str]]:
    """The peers that can be imported, and the names of those that cannot."""
    return installed_of(__name__, NAMES)
