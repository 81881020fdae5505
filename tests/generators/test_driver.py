"""A generator that is executed in a thread, beside an event loop that may be gone."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from taskiq_flow.generators.driver import drive_in_thread
from taskiq_flow.generators.grant import Grant
from taskiq_flow.generators.here import SinkHere


class Takes:
    """Takes items, and forgets them."""

    def items(self, task_id: str, first: int, items: Sequence[Any], digest: bytes) -> None:
        """Nothing is done with them."""


def numbers() -> Generator[int, None, None]:
    yield 0


async def test_a_generator_whose_event_loop_was_closed_leaves_nothing_that_was_not_awaited() -> (
    None
):
    closed = asyncio.new_event_loop()
    closed.close()
    sink = SinkHere("r:numbers:1", Takes(), Grant(), lambda item: item)
    with warnings.catch_warnings(record=True) as found:
        with pytest.raises(RuntimeError, match="closed"):
            drive_in_thread(numbers(), sink, closed)
        gc.collect()
    assert not found
