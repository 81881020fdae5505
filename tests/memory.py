"""How much memory a reader of something endless keeps."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterable
from typing import Any


async def growth(numbered: AsyncIterable[tuple[int, Any]], every: int) -> float:
    """Bytes by which the memory grows with each number, by nine looks, one at each so many numbers.

    How much is in flight at a look is chance. So the least of four looks is compared with the
    least of the four before them. The first look is left out: caches fill up until then.
    """
    sizes: list[int] = []
    tracemalloc.start()
    try:
        async for index, _ in numbered:
            if index % every == every - 1:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            if len(sizes) == 9:
                break
    finally:
        tracemalloc.stop()
    return (min(sizes[5:]) - min(sizes[1:5])) / (4 * every)
