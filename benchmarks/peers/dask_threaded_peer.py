"""Dask's threaded scheduler: a dictionary of calls; all results at the end, none before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import dask.threaded

from benchmarks.peers.protocol import Stream, Tree, sleep_in_thread

THREADS = 4


class Peer:
    """``dask.threaded.get``."""

    title = "Dask threaded, get"
    streams = False
    has_servers = False

    async def prepare(self, tree: Tree, stack: AsyncExitStack) -> Stream:
        """Write the graph down."""
        del stack
        graph: dict[str, tuple[object, ...]] = {
            step.name: (
                (sleep_in_thread, step.seconds)
                if step.parent is None
                else (sleep_in_thread, step.seconds, step.parent)
            )
            for step in tree
        }
        names = list(graph)

        async def stream() -> AsyncIterator[tuple[str, float]]:
            results = dask.threaded.get(graph, names, num_workers=THREADS)
            for name, ended in zip(names, results, strict=True):
                yield name, ended

        return stream
