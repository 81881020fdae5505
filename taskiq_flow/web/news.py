"""Wakes those who wait for news."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

AT_ONCE = 16
"""So many are woken before the event loop does other things: what each of them does adds up."""


class News:
    """What those who watch wait for. One event loop uses it.

    Whoever has looked and found nothing waits, without an ``await`` in between.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[bool]] = set()

    async def wait(self) -> bool:
        """Wait until something is told. Returns whether it is news, and no sign of life only."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            return await waiter
        finally:
            self._waiting.discard(waiter)

    def tell(self, *, is_news: bool = True) -> None:
        """Wake all who wait now."""
        waiting, self._waiting = self._waiting, set()
        _wake([*waiting], is_news)


def _wake(waiting: Sequence[asyncio.Future[bool]], is_news: bool) -> None:  # noqa: FBT001 - of the loop
    for waiter in waiting[:AT_ONCE]:
        if not waiter.done():
            waiter.set_result(is_news)
    if left := waiting[AT_ONCE:]:
        asyncio.get_running_loop().call_soon(_wake, left, is_news)
