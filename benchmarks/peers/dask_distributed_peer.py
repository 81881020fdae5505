"""Dask distributed: one worker process on this machine, a future for each node."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from distributed import Client, Future, LocalCluster, as_completed

from benchmarks.peers.protocol import Stream, Tree, sleep_in_thread

THREADS = 4


class Peer:
    """``submit`` and ``as_completed``."""

    title = "Dask distributed, as_completed"
    streams = True
    has_servers = True

    async def prepare(self, tree: Tree, stack: AsyncExitStack) -> Stream:
        """Start the scheduler, the worker and the client."""
        cluster = await stack.enter_async_context(
            LocalCluster(
                n_workers=1,
                threads_per_worker=THREADS,
                dashboard_address=None,
                silence_logs=logging.ERROR,
                asynchronous=True,
            )
        )
        client = await stack.enter_async_context(Client(cluster, asynchronous=True))

        async def stream() -> AsyncIterator[tuple[str, float]]:
            futures: dict[str, Future] = {}
            for step in tree:
                behind = [] if step.parent is None else [futures[step.parent]]
                future = client.submit(sleep_in_thread, step.seconds, *behind, pure=False)
                futures[step.name] = future
            names = {future.key: name for name, future in futures.items()}
            async for future, ended in as_completed(futures.values(), with_results=True):
                yield names[future.key], ended

        return stream
