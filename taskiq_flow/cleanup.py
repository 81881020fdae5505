"""Waiting that neither hangs nor leaves half of its work undone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

import anyio

logger = logging.getLogger("taskiq_flow")

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` to its end, however often the caller is cancelled meanwhile.

    A cancellation that came in between is let through afterwards.
    """
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # keeps an anyio scope around the caller from insisting
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancellation = error
    if cancellation is not None:
        raise cancellation
    return task.result()


def was_cancelled() -> bool:
    """Whether the running asyncio task was cancelled.

    If not, a ``CancelledError`` in it is an error like any other: of a client that was closed, say.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end(tasks: Iterable[asyncio.Future[Any]], grace: float) -> None:
    """Cancel tasks, and wait ``grace`` seconds at the most for them to end."""
    tasks = tuple(tasks)
    for task in tasks:
        task.cancel()
    await until_ended(tasks, grace)


async def until_ended(tasks: Iterable[asyncio.Future[Any]], grace: float) -> None:
    """Wait ``grace`` seconds at the most for cancelled tasks to end; name those that do not."""
    waited_for = set(tasks)
    if not waited_for:
        return
    done, still_running = await asyncio.wait(waited_for, timeout=grace)
    for task in done:
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not report it as never retrieved
    for task in still_running:
        logger.warning("%s has not ended %g s after it was cancelled; left alone", task, grace)
