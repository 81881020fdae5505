"""Dask distributed: ``map`` over the futures of the stage before, on threads of this process."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from distributed import Client, LocalCluster

from benchmarks.sleeps import LIMIT, STAGES, Sleeps, Taken

_current: list[Sleeps] = []  # functions are pickled: a copy of the object would take the notes


def _stage(number: int, item: int) -> int:
    return _current[-1].function(number)(item)


class Peer:
    """``Client.map`` and ``gather``."""

    title = "Dask distributed, map"
    most_items = 10_000

    async def take(self, sleeps: Sleeps) -> Taken:
        """Map three times, and gather what the last one gives."""
        _current.append(sleeps)
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=LIMIT,
            processes=False,
            dashboard_address=None,
            silence_logs=logging.ERROR,
            asynchronous=True,
        )
        async with cluster, Client(cluster, asynchronous=True) as client:
            start = time.perf_counter()
            values: Any = list(range(len(sleeps.seconds[0])))
            for number in range(STAGES):
                values = client.map(partial(_stage, number), values, pure=False)
            await client.gather(values)
            return sleeps.taken(start)
