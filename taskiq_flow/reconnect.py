"""Riding out a server that is away: again and again, with growing pauses, for a bounded time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TypeVar

logger = logging.getLogger("taskiq_flow")

T = TypeVar("T")

Outages = tuple[type[BaseException], ...]
"""The exceptions by which a client says that its server is away, or slow to answer."""

PATIENCE = 60.0
"""Seconds for which a server may be away before whoever needs it fails."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


def growing_pauses(first: float = _FIRST_PAUSE, longest: float = _LONGEST_PAUSE) -> Iterator[float]:
    """Seconds to wait before each further try, without end."""
    pause = first
    while True:
        yield pause
        pause = min(2 * pause, longest)


async def ride_out(
    call: Callable[[], Awaitable[T]], outages: Outages, what: str, patience: float = PATIENCE
) -> T:
    """What ``call`` gives, called again while it raises one of ``outages``.

    After ``patience`` seconds the outage itself is raised. ``what`` is tried, for the log.
    """
    loop = asyncio.get_running_loop()
    gives_up_at = loop.time() + patience
    for number, pause in enumerate(growing_pauses()):
        try:
            return await call()
        except outages as error:
            if loop.time() + pause > gives_up_at:
                raise
            if not number:
                logger.warning("%s: %r; trying again for %g s", what, error, patience)
        await asyncio.sleep(pause)
    raise AssertionError("the pauses have no end")


async def listen_through(
    listen: Callable[[], AsyncGenerator[T, None]], outages: Outages, what: str
) -> AsyncGenerator[T, None]:
    """What ``listen`` yields, begun anew whenever it raises one of ``outages``.

    Ends with the outage itself once nothing has come for ``PATIENCE`` seconds of trying.
    """
    loop = asyncio.get_running_loop()
    away_since: float | None = None
    pauses = growing_pauses()
    while True:
        began = loop.time()
        try:
            async with aclosing(listen()) as items:
                async for item in items:
                    away_since = None
                    yield item
        except outages as error:
            now = loop.time()
            if away_since is None or now - began > _LONGEST_PAUSE:  # it was up in between
                away_since, pauses = now, growing_pauses()
                logger.warning("%s: %r; trying again for %g s", what, error, PATIENCE)
            elif now - away_since > PATIENCE:
                raise
        else:
            return
        await asyncio.sleep(next(pauses))
