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
            f"node_{n}": (sleep_in_thread, seconds, *([] if parent is None else [f"node_{parent}"]))
            for n, (parent, seconds) in enumerate(zip(tree.parents, tree.seconds, strict=True))
        }
        names = list(graph)

        async def stream() -> AsyncIterator[tuple[int, float]]:
            results = dask.threaded.get(graph, names, num_workers=THREADS)
            for number, ended in enumerate(results):
                yield number, ended

        return stream
