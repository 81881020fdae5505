"""Completions of any broker: one loop that asks the result backend for all tasks in flight."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import anyio
from aiostream import stream
from aiostream.core import Stream
from taskiq import AsyncBroker, TaskiqResult
from taskiq.compat import parse_obj_as

from taskiq_flow.completion.protocol import Observer, failed

logger = logging.getLogger("taskiq_flow")

SHORTEST_INTERVAL = 0.005
"""Seconds between two rounds while results keep coming."""

LONGEST_INTERVAL = 0.2
"""Seconds between two rounds when nothing has come for a while."""

ASKED_AT_ONCE = 32
"""Questions to the result backend that are on their way at the same time."""

LONGEST_ANSWER = 10.0
"""Seconds that one question may take; its answer is missing then like that of a failing backend."""

BACKEND_PATIENCE = 60.0
"""Seconds of nothing but errors from the result backend before a task is given up."""


Answer = tuple[str, TaskiqResult[Any] | None]
"""A task's id, and its result if there is one."""


class PollingCompletions:
    """The completions of one run, read from the broker's result backend."""

    def __init__(self, broker: AsyncBroker, observer: Observer[Any]) -> None:
        self._backend = broker.result_backend
        self._observer = observer
        self._expected: dict[str, tuple[Any, Any]] = {}  # id → node, return type
        self._unreadable_since: dict[str, float] = {}
        self._interval = SHORTEST_INTERVAL
        self._poller: asyncio.Task[None] | None = None
        self._revoked = False

    def expect(self, task_id: str, node: Any, return_type: Any) -> None:
        """Watch for a task; its result is parsed as its annotation says, as taskiq does."""
        self._expected[task_id] = node, return_type
        self._interval = SHORTEST_INTERVAL
        if self._poller is None:
            self._poller = asyncio.get_running_loop().create_task(self._poll())

    def forget(self, task_id: str) -> bool:
        """Stop watching for a task."""
        self._unreadable_since.pop(task_id, None)
        return self._expected.pop(task_id, None) is not None

    def revoke(self) -> None:
        """Stop asking. The tasks themselves cannot be reached: they run on, and end unheard."""
        self._revoked = True
        self._expected.clear()
        if self._poller is not None:
            self._poller.cancel()

    async def aclose(self) -> None:
        """Stop asking, and wait for the loop to end."""
        self.revoke()
        if self._poller is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            self._interval = min(self._interval * 1.5, LONGEST_INTERVAL)
            asked: Stream[Answer] = stream.map(
                stream.iterate(list(self._expected)),
                self._ask,
                task_limit=ASKED_AT_ONCE,
                ordered=False,
            )
            async with asked.stream() as answers:
                async for task_id, result in answers:
                    if result is not None and task_id in self._expected:
                        self._interval = SHORTEST_INTERVAL
                        node, return_type = self._expected[task_id]
                        self.forget(task_id)
                        self._observer.settle(node, task_id, _parsed(result, return_type))

    async def _ask(self, task_id: str, *_: str) -> Answer:
        """A task's result, if there is one by now. A failing backend is asked again for a while."""
        now = asyncio.get_running_loop().time()
        try:
            with anyio.fail_after(LONGEST_ANSWER):
                ready = await self._backend.is_result_ready(task_id)
                result = await self._backend.get_result(task_id) if ready else None
        except (Exception, asyncio.CancelledError) as error:
            # Whatever a backend's client raises, unless it is the run that ends the question.
            if self._revoked:
                raise
            since = self._unreadable_since.setdefault(task_id, now)
            if since == now:
                logger.warning("the result of %s cannot be read yet: %r", task_id, error)
            return task_id, failed(error) if now - since > BACKEND_PATIENCE else None
        self._unreadable_since.pop(task_id, None)
        return task_id, result


def _parsed(result: TaskiqResult[Any], return_type: Any) -> TaskiqResult[Any]:
    """The value as the task's annotation says, as taskiq does it; or as it is, if it cannot be."""
    if return_type is not None and not result.is_err:
        try:
            result.return_value = parse_obj_as(return_type, result.return_value)
        except Exception as error:  # of the wrong form, or of a type that pydantic does not know
            logger.warning("a result was not read as %r: %s", return_type, error)
    return result
