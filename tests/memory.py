"""How much memory a reader of something endless keeps."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterable
from typing import Any


async def grown(numbered: AsyncIterable[tuple[int, Any]], every: int) -> int:
    """Bytes that came between the second and the fifth look, one at each so many numbers."""
    sizes: list[int] = []
    tracemalloc.start()
    try:
        async for index, _ in numbered:
            if index % every == every - 1:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            if len(sizes) == 5:
                break
    finally:
        tracemalloc.stop()
    return sizes[-1] - sizes[1]
