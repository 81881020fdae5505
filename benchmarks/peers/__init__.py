"""Other systems running the same small graphs, each in the way its own documentation shows.

Every one of them is optional: a system that is not installed is named as such and left out.
"""

from __future__ import annotations

import importlib

from benchmarks.peers.protocol import Peer

NAMES = ("langgraph", "haystack", "dask_threaded", "dask_distributed")


def installed() -> tuple[list[Peer], list[str]]:
    """The peers that can be imported, and the names of those that cannot."""
    present: list[Peer] = []
    absent: list[str] = []
    for name in NAMES:
        try:
            peer: type[Peer] = importlib.import_module(f"benchmarks.peers.{name}_peer").Peer
        except ImportError:
            absent.append(name)
        else:
            present.append(peer())
    return present, absent
