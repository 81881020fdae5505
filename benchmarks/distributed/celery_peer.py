"""Celery over the same Redis, with one worker process, as its documentation starts one.

Its settings are its own: the pool is prefork (threads for tasks that sleep), results come by
subscription, so that ``get()`` asks nobody at intervals. Not started is what a worker on its own
has no use for: gossip, mingling and heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterable
from typing import Any

from celery import Celery, chain, chord, group

from benchmarks.distributed.chaining import nap_in_thread
from benchmarks.distributed.processes import running
from benchmarks.measure import Contestant
from benchmarks.sleeps import STAGES

QUIETLY = ("--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat")
LONGEST = 60


class Peer:
    """Chains and chords of no-op tasks, and groups of chains of tasks that sleep."""

    title = "Celery, prefork, 1 process"

    def __init__(self, url: str, queue: str) -> None:
        self.app: Any = Celery("benchmark", broker=url, backend=url, set_as_current=False)
        self.app.conf.task_default_queue = queue
        self.no_op = self.app.task(no_op, name="no_op")
        self.nap = self.app.task(nap_in_thread, name="nap")

    def chain(self, nodes: int, runs: int) -> Contestant:
        """Runs of ``nodes`` tasks, each given what the one before returns."""
        no_op = self.no_op
        return _prepared(
            [chain(no_op.s(1), *[no_op.s() for _ in range(nodes - 1)]) for _ in range(runs)]
        )

    def chord(self, header: int, runs: int) -> Contestant:
        """Runs of a body given what the ``header`` tasks return."""
        no_op = self.no_op
        return _prepared(
            [chord([no_op.s(1) for _ in range(header)], no_op.s()) for _ in range(runs)]
        )

    def maps(self, items: int, seed: int, mean: float) -> list[list[float]]:
        """Send each item through the stages of a chain. Gives what each was given and returned."""
        stages = [self.nap.s(seed, mean) for _ in range(STAGES - 1)]
        chains = [chain(self.nap.s([item], seed, mean), *stages) for item in range(items)]
        found: list[list[float]] = group(chains).apply_async().get(timeout=LONGEST)
        return found


def no_op(*_: Any) -> int:
    """Take anything, do nothing and return a small number."""
    return 1


@contextlib.asynccontextmanager
async def by_celery(url: str, queue: str, threads: int | None = None) -> AsyncIterator[Peer]:
    """Start the worker, and give what runs on it once it has answered.

    ``threads``: of its pool, in place of one forked process.
    """
    pool = ("--concurrency", "1") if threads is None else ("--pool", "threads", "-c", str(threads))
    command = ["celery", "--app", "benchmarks.distributed.celery_worker", "worker", *QUIETLY]
    peer = Peer(url, queue)
    with running([*command, *pool], url, queue):
        first = await asyncio.to_thread(peer.no_op.delay)
        await asyncio.to_thread(first.get, timeout=LONGEST)
        yield peer
        gc.collect()  # results unsubscribe from the server, which is still there
    await asyncio.to_thread(peer.app.close)


def _prepared(canvases: Iterable[Any]) -> Contestant:
    """Runs of canvases made beforehand, one for each: a chain sent again has the same task ids."""
    coming = iter(canvases)

    def run() -> None:
        value = next(coming).apply_async().get(timeout=LONGEST)
        if value != 1:
            raise AssertionError(f"the last task returned {value!r}")

    return lambda: asyncio.to_thread(run)
