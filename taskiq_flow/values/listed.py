"""The list of what an async generator gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

ITEMS_IN_A_ROW = 64
"""Items after which an async generator that awaits nothing lets the event loop go on."""


async def listed(items: AsyncGenerator[Any, Any]) -> list[Any]:
    """The items of a generator. It is closed, also if this is cancelled."""
    given: list[Any] = []
    async with aclosing(items):
        async for item in items:
            given.append(item)
            if len(given) % ITEMS_IN_A_ROW == 0:
                await asyncio.sleep(0)
    return given
