"""Calling a function in a thread of its own, which no pool has to spare."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeVar

from taskiq_flow.giving_way import give_way

T = TypeVar("T")


async def in_own_thread(
    function: Callable[[], T], cancel: Callable[[], object], *, waits: bool
) -> T:
    """Call a function in a thread of its own.

    ``cancel``: has it end soon, when this call is cancelled. ``waits``: whether the call lasts
    until it has ended then.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()
    ended.add_done_callback(asyncio.Future.exception)  # seen, also if nobody waits for it
    give_way(ended)
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result = context.run(function)
        except BaseException as error:  # of the user's, which the task raises
            tell(ended.set_exception, error)
        else:
            tell(ended.set_result, result)

    def tell(settle: Callable[[Any], None], outcome: Any) -> None:
        try:
            loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:  # the loop is closed
            return

    threading.Thread(target=run, name="taskiq_flow generator", daemon=True).start()
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        cancel()
        if waits:
            await asyncio.wait([ended])
        raise


async def listed_in_own_thread(
    make: Callable[[], Generator[Any, Any, Any]], *, waits: bool
) -> list[Any]:
    """The items of a generator that runs in a thread of its own. ``make``: makes it, over there."""
    is_cancelled = threading.Event()

    def run() -> list[Any]:
        given: list[Any] = []
        with closing(make()) as items:
            for item in items:
                if is_cancelled.is_set():
                    break
                given.append(item)
        return given

    return await in_own_thread(run, is_cancelled.set, waits=waits)
