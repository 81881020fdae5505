"""Retrying with exponential backoff, for a bounded time, while a server is unreachable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TypeVar

logger = logging.getLogger("taskiq_flow")

T = TypeVar("T")

Outages = tuple[type[BaseException], ...]
"""The exceptions that a client raises when its server is unreachable or slow to answer."""

OUTAGE_TIMEOUT = 60.0
"""Seconds of an outage after which a call fails."""

_FIRST_DELAY, _MAX_DELAY = 0.05, 2.0


def backoff_delays(first: float = _FIRST_DELAY, longest: float = _MAX_DELAY) -> Iterator[float]:
    """Seconds to wait before each retry, without end; each delay is twice the previous one."""
    while True:
        yield first
        first = min(2 * first, longest)


async def retry_through_outage(
    call: Callable[[], Awaitable[T]], outages: Outages, what: str, seconds: float = OUTAGE_TIMEOUT
) -> T:
    """Return what ``call`` returns. It is called again while it raises one of ``outages``.

    Raises the last of them after ``seconds``. ``what``: the problem, for the log.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    for number, delay in enumerate(backoff_delays()):
        try:
            return await call()
        except outages as error:
            if loop.time() + delay > deadline:
                raise
            if not number:
                logger.warning("%s: %r; trying again for %g s", what, error, seconds)
        await asyncio.sleep(delay)
    raise AssertionError("the delays have no end")


async def listen_through_outages(
    listen: Callable[[], AsyncGenerator[T, None]], outages: Outages, what: str
) -> AsyncGenerator[T, None]:
    """Yield what ``listen`` yields. It is called again whenever it raises one of ``outages``.

    Raises the last of them after ``OUTAGE_TIMEOUT`` seconds of retries without an item.
    """
    loop = asyncio.get_running_loop()
    outage_began: float | None = None
    delays = backoff_delays()
    while True:
        began = loop.time()
        try:
            async with aclosing(listen()) as items:
                async for item in items:
                    outage_began = None
                    yield item
        except outages as error:
            now = loop.time()
            if outage_began is None or now - began > _MAX_DELAY:  # it had connected in between
                outage_began, delays = now, backoff_delays()
                logger.warning("%s: %r; trying again for %g s", what, error, OUTAGE_TIMEOUT)
            elif now - outage_began > OUTAGE_TIMEOUT:
                raise
        else:
            return
        await asyncio.sleep(next(delays))
