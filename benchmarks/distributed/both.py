"""The engine and the loop written by hand side by side, a worker process each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from benchmarks.distributed import engine, hand_written
from benchmarks.distributed.processes import taskiq_workers
from benchmarks.measure import Contestant
from benchmarks.shapes import Shape

Runs = Callable[[Shape], Contestant]


@contextlib.asynccontextmanager
async def both(url: str) -> AsyncIterator[tuple[Runs, Runs]]:
    """Gives runs of shapes by the engine, and by hand."""
    with (
        taskiq_workers(engine.WORKER, url, "engine"),
        taskiq_workers(hand_written.WORKER, url, "hand"),
    ):
        async with (
            engine.by_engine(url, "engine") as by_engine,
            hand_written.by_hand(url, "hand") as by_hand,
        ):
            yield by_engine, by_hand
