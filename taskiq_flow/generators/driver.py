"""Executes a generator function, in the process of the engine or of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import aclosing, closing
from typing import Any, Protocol

from taskiq_flow.errors import ItemsChangedError
from taskiq_flow.generators.grant import GIVE_THE_SAME, NO_ITEMS, Grant, with_item
from taskiq_flow.values.digest import digest_of
from taskiq_flow.values.listed import ITEMS_IN_A_ROW


class Sink(Protocol):
    """Where the items of one execution of a generator go.

    Its methods are called on the event loop, but for ``taken``. Each may raise an error, with which
    the generator's task fails, or ``CancelledError``. The generator is closed then.
    """

    grant: Grant
    """The newest one. ``have`` and ``digest`` are those with which the execution has begun."""

    def taken(self, item: Any) -> Any:
        """An item as its generator does not change it any more.

        Called right after it was made, in the generator's own thread.
        """

    def push(self, index: int, item: Any, digest: bytes) -> None:
        """Pass one item on. ``item``: as ``taken`` made it; ``digest``: of all up to this one."""

    async def room(self, count: int) -> None:
        """Wait until more than ``count`` items may be made."""

    async def finish(self, count: int) -> None:
        """The generator has ended, after so many items. Wait until the engine has all of them."""


async def drive(items: AsyncGenerator[Any, Any], sink: Sink) -> int:
    """Pass on the items of an async generator. Returns how many there are.

    Raises ``ItemsChangedError`` if they are not those of an earlier execution.
    """
    execution = _Execution(sink)
    async with aclosing(items):
        await sink.room(0)
        async for item in items:
            passed_on = execution.next(item)
            if passed_on is not None:
                sink.push(*passed_on)
            if execution.count >= sink.grant.may:
                await sink.room(execution.count)
            elif execution.count % ITEMS_IN_A_ROW == 0:
                await asyncio.sleep(0)
    execution.check_end()
    await sink.finish(execution.count)
    return execution.count


def drive_in_thread(
    items: Generator[Any, Any, Any], sink: Sink, loop: asyncio.AbstractEventLoop
) -> int:
    """As ``drive``, for a generator that runs in another thread than the event loop."""

    def wait(answer: Coroutine[Any, Any, None]) -> None:
        try:
            answered = asyncio.run_coroutine_threadsafe(answer, loop)
        except RuntimeError:  # the loop is closed, as its process ends
            answer.close()
            raise
        answered.result()

    execution = _Execution(sink)
    with closing(items):
        wait(sink.room(0))
        for item in items:
            passed_on = execution.next(item)
            if passed_on is not None:
                loop.call_soon_threadsafe(sink.push, *passed_on)
            if execution.count >= sink.grant.may:
                wait(sink.room(execution.count))
    execution.check_end()
    wait(sink.finish(execution.count))
    return execution.count


class _Execution:
    """Counts the items, and passes over those that the engine has of an earlier execution."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._earlier = sink.grant
        self._digest = NO_ITEMS if self._earlier.digest else b""
        self.count = 0

    def next(self, item: Any) -> tuple[int, Any, bytes] | None:
        """The next item as it is passed on; ``None`` if the engine has it already."""
        if self._digest:
            self._digest = with_item(self._digest, digest_of(item))
        index, self.count = self.count, self.count + 1
        if self.count == self._earlier.have and self._earlier.digest != self._digest:
            raise ItemsChangedError(
                f"the generator was executed again, and gave other items among the first "
                f"{self._earlier.have} than before; {GIVE_THE_SAME}"
            )
        if index < self._earlier.have:
            return None
        return index, self._sink.taken(item), self._digest

    def check_end(self) -> None:
        if self.count < self._earlier.have:
            raise ItemsChangedError(
                f"the generator was executed again, and ended after {self.count} items, of the "
                f"{self._earlier.have} that it gave before; {GIVE_THE_SAME}"
            )
