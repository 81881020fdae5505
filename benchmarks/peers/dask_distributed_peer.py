"""Dask distributed: one worker process on this machine, a future for each node."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from distributed import Client, LocalCluster, as_completed

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

        async def stream() -> AsyncIterator[tuple[int, float]]:
            futures = []
            for parent, seconds in zip(tree.parents, tree.seconds, strict=True):
                behind = [] if parent is None else [futures[parent]]
                futures.append(client.submit(sleep_in_thread, seconds, *behind, pure=False))
            numbers = {future.key: number for number, future in enumerate(futures)}
            async for future, ended in as_completed(futures, with_results=True):
                yield numbers[future.key], ended

        return stream
